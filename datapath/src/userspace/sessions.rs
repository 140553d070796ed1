//! What the local TCP has, by socket diagnosis, beside what the engines know.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ao_engine::policy::{ConnectionId, Policy};
use ao_sys::links::Links;
use ao_sys::sock_diag::{self, Filter, TcpSocket, TcpState};

use super::restored::Restored;
use super::worker::{Command, Handle, Shared, WorkerReport};

/// Connections seen this recently are not doubted: the dump may be older than they are.
const RECENT: Duration = Duration::from_secs(5);

/// Live sessions to configured peers that no record tells of.
pub(super) fn unknown(
    policy: &Policy,
    links: &Links,
    restored: &Restored,
) -> io::Result<Vec<TcpSocket>> {
    let mut sockets = sock_diag::tcp_sockets(Filter::Connected)?;
    sockets.retain(|socket| {
        let id = connection_of(socket, links);
        // A handshake that begins now is signed from its next segment on.
        !matches!(socket.state, TcpState::SynSent | TcpState::SynReceived)
            && policy.find(&id).is_some()
            && !restored.has(&id)
    });
    Ok(sockets)
}

/// `local – remote`, for messages.
pub(super) fn name(socket: &TcpSocket) -> String {
    format!("{} – {}", socket.local, socket.remote)
}

/// Closes a session that cannot go on: its daemon reconnects, protected.
pub(super) fn close(socket: &TcpSocket, was_guarded: bool) {
    let session = name(socket);
    let why = if was_guarded {
        "its keys are not on record"
    } else {
        "it was unprotected"
    };
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

/// Forgets what had no socket last time, and has none now: one dump may miss a socket when others
/// of its hash bucket close meanwhile. `missing` is what had none last time.
pub(super) fn reconcile(
    shared: &Shared,
    reports: &[(&Handle, WorkerReport)],
    missing: &mut HashSet<ConnectionId>,
) -> io::Result<()> {
    let links = shared.links();
    let sockets = sock_diag::tcp_sockets(Filter::All)?;
    let alive: HashSet<ConnectionId> = sockets
        .iter()
        .map(|socket| key(&connection_of(socket, &links)))
        .collect();
    let views = || reports.iter().flat_map(|(_, report)| &report.sessions);
    let quiet = views().filter(|view| view.silent_for > RECENT);
    let known = quiet
        .map(|view| view.connection)
        .chain(shared.restored.connections());
    let gone: HashSet<ConnectionId> = known.filter(|id| !alive.contains(&key(id))).collect();
    let doomed: HashSet<ConnectionId> = gone.intersection(missing).copied().collect();
    *missing = gone;

    shared
        .restored
        .retain(&shared.journal, |id| !doomed.contains(id));
    for (worker, report) in reports {
        for view in report
            .sessions
            .iter()
            .filter(|view| doomed.contains(&view.connection))
        {
            tracing::info!(
                peer = %view.peer,
                remote = %remote_end(&view.connection),
                "connection forgotten: the local TCP has closed it"
            );
            worker.send(Command::Remove(view.connection));
        }
    }
    Ok(())
}

/// The same connection as sockets and segments name it: a socket need not be bound to a device,
/// so addresses and ports decide. Two VRFs with equal tuples keep each other's entries alive.
fn key(id: &ConnectionId) -> ConnectionId {
    ConnectionId {
        domain: 0,
        interface: 0,
        ..*id
    }
}

fn connection_of(socket: &TcpSocket, links: &Links) -> ConnectionId {
    let on_link = |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let (local, remote) = (socket.local, socket.remote);
    let link_local = on_link(local.ip()) || on_link(remote.ip());
    ConnectionId {
        domain: links.domain_of(socket.interface),
        interface: if link_local { socket.interface } else { 0 },
        local: local.ip(),
        remote: remote.ip(),
        local_port: local.port(),
        remote_port: remote.port(),
    }
}

pub(super) fn local_end(id: &ConnectionId) -> SocketAddr {
    end(id.local, id.local_port, id.interface)
}

pub(super) fn remote_end(id: &ConnectionId) -> SocketAddr {
    end(id.remote, id.remote_port, id.interface)
}

fn end(address: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match address {
        IpAddr::V4(_) => SocketAddr::new(address, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, interface).into(),
    }
}

pub(super) fn vrf_name(id: &ConnectionId, links: &Links) -> Option<String> {
    links
        .get(id.domain)
        .filter(|link| link.vrf)
        .map(|link| link.name.clone())
}
