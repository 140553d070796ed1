//! Raw sockets that send whole IP packets past the route's MTU.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::c_int;

use crate::socket::{self, KernelAddress};

/// asm-generic/socket.h; libc has it for other targets only.
pub(crate) const SO_BINDTOIFINDEX: c_int = 62;

/// A burst of a whole congestion window must fit.
const SEND_BUFFER: c_int = 4 << 20;

/// IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Sends packets of one IP version by one device.
///
/// Only the device's MTU counts: the route's, learned or configured, is ignored
/// (IP_PMTUDISC_PROBE), and nothing is ever fragmented.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    interface: u32,
}

/// Version and destination address of an IP packet.
#[must_use]
pub fn destination(packet: &[u8]) -> Option<(Family, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let octets: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            Some((Family::V4, Ipv4Addr::from(octets).into()))
        }
        6 => {
            let octets: [u8; 16] = *packet.get(24..)?.first_chunk()?;
            Some((Family::V6, Ipv6Addr::from(octets).into()))
        }
        _ => None,
    }
}

impl Sender {
    /// Opens a sender on the device with index `interface`, whose packets bear `mark`.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW or CAP_NET_ADMIN, ENODEV when the device is gone.
    pub fn open(family: Family, interface: u32, mark: u32) -> io::Result<Self> {
        let (domain, level, include_header, discover, probe) = match family {
            Family::V4 => (
                libc::AF_INET,
                libc::IPPROTO_IP,
                libc::IP_HDRINCL,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_PROBE,
            ),
            Family::V6 => (
                libc::AF_INET6,
                libc::IPPROTO_IPV6,
                libc::IPV6_HDRINCL,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_PROBE,
            ),
        };
        let device = c_int::try_from(interface).map_err(|_| libc::ENODEV);
        let device = device.map_err(io::Error::from_raw_os_error)?;
        let socket = socket::open(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        let fd = socket.as_fd();
        socket::set(fd, level, include_header, 1)?;
        socket::set(fd, level, discover, probe)?;
        socket::set(fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())?;
        socket::set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)?;
        socket::set(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX, device)?;
        Ok(Self { socket, interface })
    }

    /// Sends one IP packet, headers and checksums complete, to the destination it names.
    ///
    /// # Errors
    /// EMSGSIZE above the device's MTU, `WouldBlock` or ENOBUFS when the device cannot keep up,
    /// ENETUNREACH and the like by routing, `InvalidInput` if it is no IP packet.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let (_, address) =
            destination(packet).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let address = KernelAddress::new(address, 0, self.interface);
        let (address, length) = address.as_raw();
        // SAFETY: both pointers come with the lengths of what they point to, and both outlive
        // the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                address,
                length,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
