//! What the kernel's routing knows.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_int;

use crate::raw::SO_BINDTOIFINDEX;
use crate::socket::{self, KernelAddress};

/// The MTU of the route to `destination` by the device with index `interface` (0: any), as it is
/// now: configured on the route, learned by path MTU discovery, or the device's own.
///
/// Asks by connecting a UDP socket, which sends nothing.
///
/// # Errors
/// ENETUNREACH and the like by routing, ENODEV when the device is gone.
pub fn mtu(destination: IpAddr, interface: u32) -> io::Result<u32> {
    let (domain, level, name) = match destination {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let socket = socket::open(domain, libc::SOCK_DGRAM, 0)?;
    let device = c_int::try_from(interface).unwrap_or(c_int::MAX);
    socket::set(socket.as_fd(), libc::SOL_SOCKET, SO_BINDTOIFINDEX, device)?;
    // Port 9 is "discard"; IPv4 does not connect to port 0.
    let address = KernelAddress::new(destination, 9, interface);
    let (pointer, length) = address.as_raw();
    // SAFETY: pointer and length describe `address`, which outlives the call.
    socket::check(unsafe { libc::connect(socket.as_raw_fd(), pointer, length) })?;
    let mtu = socket::get(socket.as_fd(), level, name)?;
    u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}
