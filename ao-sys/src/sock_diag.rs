//! TCP sockets of this network namespace: list them, close them from outside.

mod md5;

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlaBuffer, NlasIterator, Parseable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink;

pub use self::md5::{Md5Key, md5_keys};

/// Octets of `struct inet_diag_msg`, which precedes the attributes of a socket.
const INET_DIAG_MSG: usize = 72;
/// INET_DIAG_SKV6ONLY of linux/inet_diag.h.
const INET_DIAG_SKV6ONLY: u16 = 11;

/// State of a TCP socket, as in include/net/tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// ESTABLISHED.
    Established,
    /// SYN-SENT.
    SynSent,
    /// SYN-RECEIVED.
    SynReceived,
    /// FIN-WAIT-1.
    FinWait1,
    /// FIN-WAIT-2.
    FinWait2,
    /// TIME-WAIT.
    TimeWait,
    /// CLOSED.
    Closed,
    /// CLOSE-WAIT.
    CloseWait,
    /// LAST-ACK.
    LastAck,
    /// LISTEN.
    Listen,
    /// CLOSING.
    Closing,
    /// One this library does not know.
    Other(u8),
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            other => Self::Other(other),
        }
    }
}

/// Which sockets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of them, listeners included.
    All,
    /// Those with a live connection: from SYN-SENT to the last state before TIME-WAIT.
    Connected,
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its state.
    pub state: TcpState,
    /// This end; IPv4 for a connection over IPv4 even when the socket is an IPv6 one.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// Interface index it is bound to: a link, or the VRF of a socket in one; 0 if none.
    pub interface: u32,
    /// Inode, as in /proc/PID/fd; 0 when no process has it.
    pub inode: u32,
    /// User that made it.
    pub uid: u32,
    /// Names the socket for as long as the machine is up (SO_COOKIE).
    pub cookie: u64,
    /// Whether it is an IPv6 listener that takes no IPv4 connections.
    pub ipv6_only: bool,
    family: u8,
    id: SocketId,
}

/// Lists the TCP sockets of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn tcp_sockets(filter: Filter) -> io::Result<Vec<TcpSocket>> {
    let mut found = Vec::new();
    let extensions = ExtensionFlags::empty();
    dump(&states(filter), &extensions, |message| {
        found.extend(parse(message));
    })?;
    Ok(found)
}

/// Hands over what the kernel says of each TCP socket in one of these states.
fn dump(
    states: &StateFlags,
    extensions: &ExtensionFlags,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let socket = netlink::open(NETLINK_SOCK_DIAG)?;
    for (family, id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = serialize(
            header,
            request(family, states.clone(), extensions.clone(), id),
        );
        match netlink::exchange(&socket, &request, &mut each) {
            // A kernel without IPv6 knows no sockets of it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && family == AF_INET6 => {}
            other => other?,
        }
    }
    Ok(())
}

/// Closes a socket from outside (SOCK_DESTROY): its owner sees ECONNABORTED, the far end a RST.
///
/// # Errors
/// `Unsupported` when the kernel was built without INET_DIAG_DESTROY, `NotFound` when the socket
/// is gone already, `PermissionDenied` without CAP_NET_ADMIN.
pub fn destroy(socket: &TcpSocket) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let inner = request(
        socket.family,
        StateFlags::all(),
        ExtensionFlags::empty(),
        socket.id.clone(),
    );
    let request = serialize(header, SockDiagDestroy::new(inner));
    let connection = netlink::open(NETLINK_SOCK_DIAG)?;
    netlink::exchange(&connection, &request, |_| {}).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel cannot close a socket of another program (CONFIG_INET_DIAG_DESTROY is \
             not set)",
        ),
        _ => error,
    })
}

fn states(filter: Filter) -> StateFlags {
    match filter {
        Filter::All => StateFlags::all(),
        Filter::Connected => {
            StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE - StateFlags::TIME_WAIT
        }
    }
}

fn request(
    family: u8,
    states: StateFlags,
    extensions: ExtensionFlags,
    socket_id: SocketId,
) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions,
        states,
        socket_id,
    })
}

fn serialize<M>(header: NetlinkHeader, message: M) -> Vec<u8>
where
    M: NetlinkSerializable + Into<NetlinkPayload<M>>,
{
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Leaves the attributes where they are: one that may be there holds TCP-MD5 keys, and no copy of it
/// is to be left.
fn parse(message: &[u8]) -> Option<TcpSocket> {
    let header = netlink::payload(message).get(..INET_DIAG_MSG)?;
    let InetResponseHeader {
        family,
        state,
        socket_id: id,
        uid,
        inode,
        ..
    } = InetResponseHeader::parse(header).ok()?;
    Some(TcpSocket {
        state: state.into(),
        local: SocketAddr::new(unmapped(id.source_address), id.source_port),
        remote: SocketAddr::new(unmapped(id.destination_address), id.destination_port),
        interface: id.interface_id,
        inode,
        uid,
        // Two halves of 32 bits, low one first, each in the byte order of the machine.
        cookie: u64::from_ne_bytes(id.cookie),
        ipv6_only: ipv6_only(message),
        family,
        id,
    })
}

/// The kernel says so of listeners.
fn ipv6_only(message: &[u8]) -> bool {
    attributes(message).any(|attribute| {
        attribute.kind() == INET_DIAG_SKV6ONLY && attribute.value().first() == Some(&1)
    })
}

/// What follows the fixed part of a message.
fn attributes(message: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    let attributes = netlink::payload(message).get(INET_DIAG_MSG..);
    NlasIterator::new(attributes.unwrap_or_default()).map_while(Result::ok)
}

/// IPv4 connections of IPv6 sockets show mapped addresses.
fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::socket;

    fn find(sockets: &[TcpSocket], local: SocketAddr) -> Vec<&TcpSocket> {
        sockets
            .iter()
            .filter(|socket| socket.local == local)
            .collect()
    }

    #[test]
    fn listener_and_connection_are_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let all = tcp_sockets(Filter::All).unwrap();
        let local = listener.local_addr().unwrap();
        assert!(
            find(&all, local)
                .iter()
                .any(|socket| socket.state == TcpState::Listen)
        );
        let connected = tcp_sockets(Filter::Connected).unwrap();
        assert!(
            find(&connected, local)
                .iter()
                .all(|socket| socket.state != TcpState::Listen)
        );
        let own = find(&connected, client.local_addr().unwrap());
        assert_eq!(own.len(), 1);
        assert_eq!(
            (own[0].remote, own[0].state),
            (local, TcpState::Established)
        );
        assert_ne!(own[0].inode, 0);
    }

    #[test]
    fn mapped_connection_is_reported_as_ipv4() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let connected = tcp_sockets(Filter::Connected).unwrap();
        let accepted: Vec<_> = connected
            .iter()
            .filter(|socket| socket.remote == client.local_addr().unwrap())
            .collect();
        assert_eq!(accepted.len(), 1);
        assert_eq!(accepted[0].local, SocketAddr::from(([127, 0, 0, 1], port)));
    }

    #[test]
    fn a_listener_tells_whether_it_takes_ipv4() {
        let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let only = socket::open(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        socket::set(only.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
        let only = {
            let listening = nix::sys::socket::listen(&only, nix::sys::socket::Backlog::MAXCONN);
            listening.unwrap();
            TcpListener::from(only)
        };
        let all = tcp_sockets(Filter::All).unwrap();
        for (listener, expected) in [(both, false), (only, true)] {
            let port = listener.local_addr().unwrap().port();
            let found = all.iter().find(|socket| socket.local.port() == port);
            assert_eq!(found.unwrap().ipv6_only, expected);
        }
    }

    #[test]
    fn destroyed_connection_is_reset() {
        use std::io::Read;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let sockets = tcp_sockets(Filter::Connected).unwrap();
        let own = find(&sockets, client.local_addr().unwrap())[0].clone();
        destroy(&own).unwrap();
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(destroy(&own).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
