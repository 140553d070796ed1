//! What the local TCP has, by socket diagnosis.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use ao_engine::policy::{ConnectionId, Policy};
use ao_sys::links::Links;
use ao_sys::sock_diag::{self, Filter, TcpSocket, TcpState};

/// A live session of a configured peer.
#[derive(Clone, Debug)]
pub(crate) struct PeerSocket {
    pub(crate) socket: TcpSocket,
    pub(crate) connection: ConnectionId,
    /// Name of its peer.
    pub(crate) peer: Arc<str>,
}

/// Live sessions with configured peers. Handshakes are none yet: what begins now is signed from
/// its next segment on.
pub(crate) fn of_peers(policy: &Policy, links: &Links) -> io::Result<Vec<PeerSocket>> {
    let sockets = sock_diag::tcp_sockets(Filter::Connected)?;
    let of_peer = |socket: TcpSocket| {
        if matches!(socket.state, TcpState::SynSent | TcpState::SynReceived) {
            return None;
        }
        let connection = connection_of(&socket, links);
        let peer = policy.peers().get(policy.find(&connection)?)?;
        Some(PeerSocket {
            socket,
            connection,
            peer: Arc::clone(&peer.name),
        })
    };
    Ok(sockets.into_iter().filter_map(of_peer).collect())
}

/// `local – remote`, for messages.
pub(crate) fn name(socket: &TcpSocket) -> String {
    between(socket.local, socket.remote)
}

/// The same of a session's ends.
pub(crate) fn between(local: SocketAddr, remote: SocketAddr) -> String {
    format!("{local} – {remote}")
}

/// Closes a session that cannot go on, and says why: its daemon may reconnect.
pub(crate) fn close(socket: &TcpSocket, why: &str) {
    let session = name(socket);
    match sock_diag::destroy(socket) {
        Ok(()) => tracing::warn!(%session, "session closed: {why}"),
        Err(error) => {
            tracing::error!(
                %session,
                %error,
                "session cannot be closed ({why}); it is blocked and will time out"
            );
        }
    }
}

/// The connection of a socket, as segments name it.
pub(crate) fn connection_of(socket: &TcpSocket, links: &Links) -> ConnectionId {
    connection_between(socket.local, socket.remote, socket.interface, links)
}

/// The connection between two ends, as segments name it, of a socket bound to `interface` (0 if to
/// none). IPv4 addresses may be mapped; the link of a link-local address may be in `remote`.
pub(crate) fn connection_between(
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
    links: &Links,
) -> ConnectionId {
    let on_link = |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let link = match remote {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => v6.scope_id(),
        _ => interface,
    };
    let link_local = on_link(local_ip) || on_link(remote_ip);
    let bound = if interface == 0 && link_local {
        link
    } else {
        interface
    };
    ConnectionId {
        domain: links.domain_of(bound),
        interface: if link_local { link } else { 0 },
        local: local_ip,
        remote: remote_ip,
        local_port: local.port(),
        remote_port: remote.port(),
    }
}

/// This end, with the link of a link-local address.
pub(crate) fn local_end(id: &ConnectionId) -> SocketAddr {
    end(id.local, id.local_port, id.interface)
}

/// The far end, with the link of a link-local address.
pub(crate) fn remote_end(id: &ConnectionId) -> SocketAddr {
    end(id.remote, id.remote_port, id.interface)
}

fn end(address: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match address {
        IpAddr::V4(_) => SocketAddr::new(address, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, interface).into(),
    }
}

/// Name of the VRF device a connection lives in.
pub(crate) fn vrf_name(id: &ConnectionId, links: &Links) -> Option<String> {
    links
        .get(id.domain)
        .filter(|link| link.vrf)
        .map(|link| link.name.clone())
}
