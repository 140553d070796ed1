//! What a TCP socket is, asked of the socket itself. It may be a copy of another process's.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

use crate::sock_diag::TcpState;
use crate::socket::{self, Plain};

/// asm-generic/socket.h, which x86-64 and aarch64 use.
const SO_COOKIE: libc::c_int = 57;
const SO_BINDTOIFINDEX: libc::c_int = 62;
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Names the socket for as long as the machine is up; the same number as in
    /// [`sock_diag`](crate::sock_diag::TcpSocket::cookie).
    pub cookie: u64,
    /// Its state.
    pub state: TcpState,
    /// Interface index it is bound to: a link, or a VRF; 0 if none.
    pub interface: u32,
    /// This end; IPv4 for a connection over IPv4 even when the socket is an IPv6 one. A link-local
    /// address has its scope.
    pub local: SocketAddr,
    /// The far end, likewise. `None` unless there is a connection, or was one that the far end
    /// has closed: in SYN-SENT there is none yet.
    pub remote: Option<SocketAddr>,
    /// Whether it is an IPv6 socket that takes no IPv4 connections.
    pub ipv6_only: bool,
    /// Whether it is an IPv6 socket.
    pub domain_v6: bool,
    /// Names its network namespace for as long as the machine is up; `None` before Linux 5.14.
    pub network_namespace_cookie: Option<u64>,
}

/// What the socket is; `None` when it is no TCP socket, or no socket at all.
///
/// # Errors
/// The kernel's.
pub fn facts(fd: BorrowedFd<'_>) -> io::Result<Option<Facts>> {
    let domain_v6 = match option(fd, libc::SO_DOMAIN) {
        Ok(libc::AF_INET) => false,
        Ok(libc::AF_INET6) => true,
        Ok(_) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => return Ok(None),
        Err(error) => return Err(error),
    };
    if option(fd, libc::SO_TYPE)? != libc::SOCK_STREAM
        || option(fd, libc::SO_PROTOCOL)? != libc::IPPROTO_TCP
    {
        return Ok(None);
    }
    let remote = match getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
        Ok(remote) => Some(canonical(&remote)?),
        Err(Errno::ENOTCONN) => None,
        Err(error) => return Err(error.into()),
    };
    let network_namespace_cookie = match cookie(fd, SO_NETNS_COOKIE) {
        Ok(cookie) => Some(cookie),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => None,
        Err(error) => return Err(error),
    };
    let only = || socket::get(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    Ok(Some(Facts {
        cookie: cookie(fd, SO_COOKIE)?,
        state: tcp_info(fd)?.state.into(),
        interface: option(fd, SO_BINDTOIFINDEX)?.cast_unsigned(),
        local: canonical(&getsockname(fd.as_raw_fd())?)?,
        remote,
        ipv6_only: domain_v6 && only()? != 0,
        domain_v6,
        network_namespace_cookie,
    }))
}

/// Segments that a connection has sent, modulo 2^32.
///
/// # Errors
/// The kernel's.
pub fn segments_out(fd: BorrowedFd<'_>) -> io::Result<u64> {
    tcp_info(fd).map(|info| info.segments_out.into())
}

/// Segments that a connection has received, modulo 2^32.
///
/// # Errors
/// The kernel's.
pub fn segments_in(fd: BorrowedFd<'_>) -> io::Result<u64> {
    tcp_info(fd).map(|info| info.segments_in.into())
}

fn option(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<libc::c_int> {
    socket::get(fd, libc::SOL_SOCKET, name)
}

fn cookie(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    socket::get_value(fd, libc::SOL_SOCKET, name, &mut cookie).map(|_| cookie)
}

fn canonical(address: &SockaddrStorage) -> io::Result<SocketAddr> {
    let v4 = || {
        address
            .as_sockaddr_in()
            .map(|&v4| SocketAddr::V4(v4.into()))
    };
    let v6 = || {
        address
            .as_sockaddr_in6()
            .map(|&v6| SocketAddr::V6(v6.into()))
    };
    let address = v4().or_else(v6).ok_or(io::ErrorKind::InvalidData)?;
    Ok(match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        _ => address,
    })
}

/// `struct tcp_info` as far as its segment counters, which Linux has had since 4.2.
#[repr(C)]
struct TcpInfo {
    state: u8,
    unread: [u8; 135],
    segments_out: u32,
    segments_in: u32,
}

// SAFETY: integers and octets; the tests below show that there is no padding.
unsafe impl Plain for TcpInfo {}

fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut info = TcpInfo {
        state: 0,
        unread: [0; 135],
        segments_out: 0,
        segments_in: 0,
    };
    let length = socket::get_value(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    if length < size_of::<TcpInfo>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;
    use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sock_diag::{self, Filter};

    #[test]
    fn counters_are_where_c_has_them() {
        assert_eq!(size_of::<TcpInfo>(), 144);
        assert_eq!(offset_of!(TcpInfo, unread), 1);
        assert_eq!(
            offset_of!(TcpInfo, segments_out),
            offset_of!(libc::tcp_info, tcpi_segs_out)
        );
        assert_eq!(
            offset_of!(TcpInfo, segments_in),
            offset_of!(libc::tcp_info, tcpi_segs_in)
        );
    }

    #[test]
    fn listener_and_connection_are_described() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        let of_listener = facts(listener.as_fd()).unwrap().unwrap();
        assert_eq!(
            (of_listener.state, of_listener.local),
            (TcpState::Listen, local)
        );
        assert_eq!((of_listener.remote, of_listener.interface), (None, 0));
        assert_eq!(
            (of_listener.domain_v6, of_listener.ipv6_only),
            (false, false)
        );
        let of_client = facts(client.as_fd()).unwrap().unwrap();
        assert_eq!(of_client.state, TcpState::Established);
        assert_eq!(of_client.local, client.local_addr().unwrap());
        assert_eq!(of_client.remote, Some(local));
        let namespace = of_client.network_namespace_cookie;
        assert_eq!(namespace, of_listener.network_namespace_cookie);
        assert!(segments_out(client.as_fd()).unwrap() >= 2);
        assert!(segments_in(client.as_fd()).unwrap() >= 1);
        let listed = sock_diag::tcp_sockets(Filter::All).unwrap();
        for facts in [of_listener, of_client] {
            let same = listed.iter().find(|socket| socket.cookie == facts.cookie);
            let same = same.unwrap();
            assert_eq!((same.local, same.state), (facts.local, facts.state));
        }
    }

    #[test]
    fn mapped_connection_is_described_as_ipv4() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let facts = facts(accepted.as_fd()).unwrap().unwrap();
        assert_eq!(facts.local, SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(facts.remote, Some(client.local_addr().unwrap()));
        assert!(facts.domain_v6 && !facts.ipv6_only);
    }

    #[test]
    fn fresh_socket_and_other_things_are_told_apart() {
        let fresh = socket::open(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        socket::set(fresh.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
        let of_fresh = facts(fresh.as_fd()).unwrap().unwrap();
        assert_eq!((of_fresh.state, of_fresh.remote), (TcpState::Closed, None));
        assert_eq!(of_fresh.local, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
        assert!(of_fresh.ipv6_only);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(facts(udp.as_fd()).unwrap(), None);
        let (unix, _) = crate::unix::pair().unwrap();
        assert_eq!(facts(unix.as_fd()).unwrap(), None);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(facts(file.as_fd()).unwrap(), None);
    }
}
