//! A tap on all devices of a network namespace: copies of the packets that open, refuse or fail a
//! TCP connection, as they are on the wire.
//!
//! A packet socket is served before netfilter on the way in and after it on the way out: what the
//! firewall drops is seen, and what leaves is seen as it was signed. Nothing is held up or changed.

mod filter;

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, sock_filter, sock_fprog};
use nix::errno::Errno;
use nix::sys::socket::{LinkAddr, recvfrom};

use crate::socket::{self, Plain};

/// Octets of any IP packet, jumbograms aside.
pub const MAX_PACKET: usize = 65_575;

/// What waits to be looked at may take this much memory of the kernel's; what comes beyond is
/// counted as missed.
const RECEIVE_BUFFER: c_int = 4 << 20;

const ETH_P_ALL: u16 = 3;
const PACKET_OTHERHOST: u8 = 3;
const SOL_PACKET: c_int = 263;
const PACKET_STATISTICS: c_int = 6;

/// Sees, on every device: TCP segments with SYN or RST to or from some ports, and ICMP errors about
/// TCP. Not fragments, and over IPv6 nothing behind extension headers.
///
/// The descriptor becomes readable when there is something.
#[derive(Debug)]
pub struct Tap(OwnedFd);

/// A packet that was seen.
#[derive(Clone, Copy, Debug)]
pub struct Tapped<'b> {
    /// From its IP header on. The TCP check sum of one that leaves, or that came from another
    /// namespace of this host, may be left to the device, and wrong here.
    pub packet: &'b [u8],
    /// Index of the device. A packet that passes several (a VLAN, a bond, a bridge, a VRF) is seen
    /// on each, one on the loopback device twice.
    pub interface: u32,
}

impl Tap {
    /// Opens a tap in the calling thread's network namespace. Many ranges of ports are widened
    /// until they are few.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open(ports: &[RangeInclusive<u16>]) -> io::Result<Self> {
        // Bound to no protocol, it sees nothing until its filter is in place.
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
        let socket = socket::open(libc::AF_PACKET, kind, 0)?;
        attach(socket.as_fd(), &mut filter::program(ports))?;
        // Refused to a caller without CAP_NET_ADMIN, who has what there is.
        let _ = socket::set(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            RECEIVE_BUFFER,
        );
        bind(socket.as_fd())?;
        Ok(Self(socket))
    }

    /// Takes the next packet, without waiting; `None` when there is none. Packets to other hosts are
    /// passed over, and what does not fit into `buffer` is cut off.
    ///
    /// # Errors
    /// The kernel's, ENETDOWN when a device has gone.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<Tapped<'b>>> {
        loop {
            let (length, address) = match recvfrom::<LinkAddr>(self.0.as_raw_fd(), buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(address) = address else {
                continue;
            };
            let link: &libc::sockaddr_ll = address.as_ref();
            if link.sll_pkttype == PACKET_OTHERHOST {
                continue;
            }
            let interface = link.sll_ifindex.cast_unsigned();
            let packet = buffer.get(..length).unwrap_or_default();
            return Ok(Some(Tapped { packet, interface }));
        }
    }

    /// Packets that were missed since the last call, because nobody took them in time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn missed(&self) -> io::Result<u32> {
        let mut statistics = Statistics::default();
        socket::get_value(self.as_fd(), SOL_PACKET, PACKET_STATISTICS, &mut statistics)?;
        Ok(statistics.drops)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `struct tpacket_stats`.
#[derive(Default)]
#[repr(C)]
struct Statistics {
    packets: u32,
    drops: u32,
}

// SAFETY: two integers of the same size.
unsafe impl Plain for Statistics {}

fn attach(fd: BorrowedFd<'_>, program: &mut [sock_filter]) -> io::Result<()> {
    let program = sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `program` says where the instructions are and how many; the kernel reads both during
    // the call only.
    socket::check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            socket::length_of::<sock_fprog>(),
        )
    })
}

/// Binds to all protocols, which has packets that leave seen, too, on all devices.
fn bind(fd: BorrowedFd<'_>) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: AF_PACKET,
        sll_protocol: ETH_P_ALL.to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: pointer and length describe `address`, which outlives the call.
    socket::check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            socket::length_of::<libc::sockaddr_ll>(),
        )
    })
}

const AF_PACKET: libc::sa_family_t = 17;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn taken(tap: &Tap) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut packets = Vec::new();
        while let Some(tapped) = tap.receive(&mut buffer).unwrap() {
            assert_eq!(tapped.interface, 1, "loopback");
            packets.push(tapped.packet.to_vec());
        }
        packets
    }

    /// Ports that nobody else uses are what the kernel picks for a listener.
    #[test]
    fn handshakes_and_refusals_of_some_ports_are_seen() {
        for host in ["127.0.0.1", "[::1]"] {
            let listener = TcpListener::bind(format!("{host}:0")).unwrap();
            let address = listener.local_addr().unwrap();
            let other = TcpListener::bind(format!("{host}:0")).unwrap();
            let tap = Tap::open(&[address.port()..=address.port()]).unwrap();
            drop(TcpStream::connect(other.local_addr().unwrap()).unwrap());
            assert_eq!(taken(&tap), Vec::<Vec<u8>>::new(), "another port");

            drop(TcpStream::connect(address).unwrap());
            drop(listener);
            TcpStream::connect(address).unwrap_err();
            // Loopback delivers before the caller goes on, and each packet is there twice.
            let tcp = if address.is_ipv4() { 20 } else { 40 };
            let flags: Vec<u8> = taken(&tap).iter().map(|p| p[tcp + 13] & 0x17).collect();
            let (syn, syn_ack, rst) = (0x02, 0x12, 0x04);
            assert_eq!(flags[..4], [syn, syn, syn_ack, syn_ack], "{flags:x?}");
            let refused = [syn, syn, 0x10 | rst, 0x10 | rst];
            assert!(flags.ends_with(&refused), "{flags:x?}");
            assert!(flags.iter().all(|flags| flags & (0x02 | rst) != 0));
            assert_eq!(tap.missed().unwrap(), 0);
        }
    }

    #[test]
    fn what_is_not_taken_in_time_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tap = Tap::open(&[address.port()..=address.port()]).unwrap();
        socket::set(tap.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 0).unwrap();
        for _ in 0..20 {
            drop(TcpStream::connect(address).unwrap());
            drop(listener.accept().unwrap());
        }
        let seen = taken(&tap).len();
        let missed = tap.missed().unwrap();
        assert!(seen < 80 && missed > 0, "{seen} seen, {missed} missed");
        assert_eq!(tap.missed().unwrap(), 0, "since the last call");
    }
}
