//! Decides a launched daemon's call: its socket gets the keys first, or the call fails.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use ao_sys::pidfd::PidFd;
use ao_sys::sock_diag::TcpState;
use ao_sys::tcp_socket::{self, Facts};
use nix::sys::socket::{setsockopt, sockopt};

use super::plan::Role;
use super::steps::{self, Missing};
use super::wanted::{Place, Target, of_connection};
use super::{Launched, Shared};
use crate::keeper::protocol::Call;

/// What a connect to a peer fails with when its keys cannot be installed: daemons try again.
const UNREACHABLE: Option<i32> = Some(libc::EHOSTUNREACH);

/// The errno a call is to fail with; nothing if it may go on.
pub(super) fn decide(
    shared: &Shared,
    daemon: &Launched,
    process: &PidFd,
    fd: i32,
    cookie: u64,
    call: Call,
) -> Option<i32> {
    let socket = process.get(fd).and_then(|socket| {
        let facts = tcp_socket::facts(socket.as_fd())?;
        Ok(facts.map(|facts| (socket, facts)))
    });
    let (socket, facts) = match socket {
        Ok(Some((socket, facts))) if facts.cookie == cookie => (socket, facts),
        // The descriptor was closed meanwhile; whatever it is now, it is not what was asked about.
        Ok(_) => return Some(libc::EBADF),
        Err(error) => {
            tracing::error!(
                daemon = daemon.name,
                "a socket of process {} cannot be had ({error}); CAP_SYS_PTRACE is needed, and \
                 kernel.yama.ptrace_scope below 3",
                daemon.pid
            );
            return refused(call);
        }
    };
    if is_elsewhere(shared, &facts) {
        tracing::error!(
            daemon = daemon.name,
            "{} refused: its socket is in another network namespace than the sidecar",
            describe(call)
        );
        return Some(libc::EHOSTUNREACH);
    }
    match call {
        Call::Connect { remote } => connect(shared, daemon, socket.as_fd(), &facts, remote),
        Call::Listen => {
            listen(shared, daemon, socket.as_fd(), &facts);
            None
        }
    }
}

fn refused(call: Call) -> Option<i32> {
    match call {
        Call::Connect { .. } => UNREACHABLE,
        // Without keys it takes none of our peers; the guard keeps unsigned segments from it.
        Call::Listen => None,
    }
}

fn describe(call: Call) -> String {
    match call {
        Call::Connect { remote } => format!("connect to {remote}"),
        Call::Listen => "listen".to_owned(),
    }
}

/// Whether the socket was made in another network namespace than ours. A kernel that cannot tell
/// (before 5.14) has no TCP-AO either.
fn is_elsewhere(shared: &Shared, facts: &Facts) -> bool {
    facts.network_namespace_cookie != shared.network_namespace_cookie
}

fn connect(
    shared: &Shared,
    daemon: &Launched,
    socket: BorrowedFd<'_>,
    facts: &Facts,
    remote: SocketAddr,
) -> Option<i32> {
    // Asks how far an earlier connect has come, or is an error anyway.
    if facts.state != TcpState::Closed {
        return None;
    }
    let target = shared.target();
    let local = local_end(&target, facts, remote);
    let peer = target.find(local, remote, facts.interface)?;
    let wanted = of_connection(peer, remote.ip());
    if wanted.is_empty() {
        tracing::warn!(
            daemon = daemon.name,
            peer = %peer.name,
            "connect to {remote} refused (EHOSTUNREACH): the peer has no key yet"
        );
        return UNREACHABLE;
    }
    let added = steps::add(socket, Role::Opening, &wanted, Missing::All, &shared.memory);
    let mut problems = added.problems;
    if let Err(problem) = steps::select(socket, Role::Opening, &wanted) {
        problems.push(problem);
    }
    if let Err(problem) = steps::delete(socket, Role::Opening, &wanted, |_| true, |_| false) {
        problems.push(problem);
    }
    if problems.is_empty() {
        tracing::debug!(daemon = daemon.name, peer = %peer.name, %remote, "connect with keys");
        return None;
    }
    for problem in problems {
        tracing::error!(
            daemon = daemon.name,
            "connect to {remote} refused (EHOSTUNREACH): {problem}"
        );
    }
    UNREACHABLE
}

/// The local end a connection will have: routing chooses the address if the daemon has not.
fn local_end(target: &Target, facts: &Facts, remote: SocketAddr) -> SocketAddr {
    let chosen = facts.local;
    if !chosen.ip().is_unspecified() {
        return chosen;
    }
    let device = target.device(facts.interface);
    // Without a route the connect will fail as it should.
    let source = source_address(device, remote).unwrap_or(chosen.ip());
    SocketAddr::new(source, chosen.port())
}

/// The address routing would choose: connecting a UDP socket sends nothing.
fn source_address(device: Option<&str>, remote: SocketAddr) -> io::Result<IpAddr> {
    let remote = match remote.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), remote.port()),
        IpAddr::V6(_) => remote,
    };
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
    }
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

fn listen(shared: &Shared, daemon: &Launched, socket: BorrowedFd<'_>, facts: &Facts) {
    let target = shared.target();
    if !target.has_peers() || !target.has_port(facts.local.port()) {
        return;
    }
    let wanted = target.of_listener(&Place::of(facts));
    let added = steps::add(
        socket,
        Role::Listener,
        &wanted,
        Missing::All,
        &shared.memory,
    );
    for problem in added.problems {
        tracing::error!(
            daemon = daemon.name,
            "listener on {}: {problem}; the peer stays blocked",
            facts.local
        );
    }
    // What came too late for the daemon's patience, and what changed meanwhile.
    shared.recheck();
}
