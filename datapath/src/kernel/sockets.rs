//! The daemons' sockets: which there are, and a descriptor of each for as long as it is worked on.
//!
//! A descriptor of ours keeps a socket open that its daemon has closed, so none is ever kept.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ao_engine::policy::Peer;
use ao_sys::pidfd::PidFd;
use ao_sys::process::{self, Holder};
use ao_sys::sock_diag::{self, Filter, TcpSocket, TcpState};
use ao_sys::tcp_socket::{self, Facts};

use super::wanted::Target;

/// A socket that concerns a peer.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) socket: TcpSocket,
    /// The peer of a connection; a listener has none.
    pub(super) peer: Option<Arc<Peer>>,
}

impl Found {
    /// Whether it is a session that its daemon has yet to accept. A handshake is none: what comes
    /// of it has the listener's keys of then. Nor is what its daemon has closed.
    pub(super) fn waits(&self) -> bool {
        matches!(
            self.socket.state,
            TcpState::Established | TcpState::CloseWait
        )
    }

    /// Whether it is a connection beyond the handshake, which only who has keys gets to.
    pub(super) fn is_session(&self) -> bool {
        let opens = matches!(self.socket.state, TcpState::SynSent | TcpState::SynReceived);
        self.peer.is_some() && !opens
    }

    /// `listener on 0.0.0.0:179` or `10.0.0.1:179 – 10.0.0.2:40000`, for messages.
    pub(super) fn name(&self) -> String {
        match self.peer {
            None => format!("listener on {}", self.socket.local),
            Some(_) => crate::sockets::name(&self.socket),
        }
    }

    /// Why its process would not let us have it, for messages.
    pub(super) fn refusal(&self, error: &io::Error) -> String {
        format!(
            "{}: its process cannot be looked into ({error}): CAP_SYS_PTRACE is needed, and \
             kernel.yama.ptrace_scope below 3",
            self.name()
        )
    }
}

/// Whose sockets may get keys. Whoever has a socket can read the keys on it, so that one of just
/// any local user must get none.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    /// Users that launched daemons make sockets as.
    users: BTreeSet<u32>,
    /// Ports below this one are for privileged programs.
    first_free_port: u16,
}

impl Trust {
    /// Trusts root, these users, and whoever has a privileged port.
    pub(super) fn new(users: BTreeSet<u32>) -> Self {
        let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let read = fs::read_to_string(file).ok();
        let port = read.and_then(|text| text.trim().parse().ok());
        Self {
            users,
            first_free_port: port.unwrap_or(1024),
        }
    }

    /// Whether a socket that this user made on this port of ours may get keys.
    pub(super) fn covers(&self, user: u32, port: u16) -> bool {
        user == 0 || self.users.contains(&user) || port < self.first_free_port
    }
}

/// Whose connections are looked at. Listeners concern everybody.
#[derive(Clone, Debug)]
pub(super) enum Concerned {
    All,
    Peers(HashSet<Arc<str>>),
}

impl Concerned {
    pub(super) fn has(&self, peer: &Arc<str>) -> bool {
        match self {
            Self::All => true,
            Self::Peers(peers) => peers.contains(peer),
        }
    }
}

/// Listeners and connections of the calling thread's network namespace that concern a peer of the
/// kernel backend.
pub(super) fn find(target: &Target, of: &Concerned) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for socket in sock_diag::tcp_sockets(Filter::All)? {
        match socket.state {
            TcpState::Listen if target.has_port(socket.local.port()) => {
                found.push(Found { socket, peer: None });
            }
            TcpState::Listen | TcpState::Closed | TcpState::TimeWait => {}
            _ => {
                let peer = target.find(socket.local, socket.remote, socket.interface);
                if let Some(peer) = peer.filter(|peer| of.has(&peer.name)).cloned() {
                    let peer = Some(peer);
                    found.push(Found { socket, peer });
                }
            }
        }
    }
    Ok(found)
}

/// Gets descriptors of other processes' sockets, and remembers which process has which.
#[derive(Default)]
pub(super) struct Opener {
    /// By inode: where a socket was last seen.
    holders: HashMap<u32, Holder>,
}

impl Opener {
    /// Calls `work` with a descriptor of each socket, one after the other; returns those that no
    /// process has (not accepted yet, or closed) and those that could not be had, with the cause.
    pub(super) fn for_each<'f>(
        &mut self,
        sockets: &'f [Found],
        mut work: impl FnMut(&Found, &OwnedFd, &Facts),
    ) -> Missed<'f> {
        let mut processes = Processes::default();
        let mut missed = Missed::default();
        let mut unknown = Vec::new();
        for found in sockets {
            let holder = self.holders.get(&found.socket.inode);
            match holder.map(|holder| processes.open(holder, found)) {
                Some(Ok(Some((socket, facts)))) => work(found, &socket, &facts),
                _ if found.socket.inode == 0 => missed.orphans.push(found),
                _ => unknown.push(found),
            }
        }
        if !unknown.is_empty() {
            self.look_up(&unknown);
        }
        for found in unknown {
            let Some(holder) = self.holders.get(&found.socket.inode) else {
                missed.orphans.push(found);
                continue;
            };
            match processes.open(holder, found) {
                Ok(Some((socket, facts))) => work(found, &socket, &facts),
                Ok(None) => missed.orphans.push(found),
                Err(error) => missed.refused.push((found, error)),
            }
        }
        missed
    }

    /// Process and command of whoever has a socket.
    pub(super) fn owner(&self, socket: &TcpSocket) -> Option<(u32, String)> {
        let pid = self.holders.get(&socket.inode)?.pid;
        Some((pid, process::name(pid)?))
    }

    /// Forgets where sockets were that are no more.
    pub(super) fn retain(&mut self, sockets: &[Found]) {
        let alive: HashSet<u32> = sockets.iter().map(|found| found.socket.inode).collect();
        self.holders.retain(|inode, _| alive.contains(inode));
    }

    fn look_up(&mut self, sockets: &[&Found]) {
        let inodes: HashSet<u32> = sockets.iter().map(|found| found.socket.inode).collect();
        let mut first: Vec<u32> = self.holders.values().map(|holder| holder.pid).collect();
        first.sort_unstable();
        first.dedup();
        self.holders.retain(|inode, _| !inodes.contains(inode));
        match process::holders(&inodes, &first) {
            Ok(holders) => self.holders.extend(holders),
            Err(error) => tracing::warn!(%error, "processes cannot be searched for sockets"),
        }
    }
}

/// Sockets that were not worked on.
#[derive(Debug, Default)]
pub(super) struct Missed<'f> {
    /// Those no process has: waiting to be accepted, or just closed.
    pub(super) orphans: Vec<&'f Found>,
    pub(super) refused: Vec<(&'f Found, io::Error)>,
}

/// Descriptors of processes, for one round.
#[derive(Default)]
struct Processes(HashMap<u32, PidFd>);

impl Processes {
    /// The socket, if the process still has this one under that number.
    fn open(&mut self, holder: &Holder, found: &Found) -> io::Result<Option<(OwnedFd, Facts)>> {
        let process = match self.0.entry(holder.pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => match PidFd::open(holder.pid) {
                Ok(process) => unknown.insert(process),
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        let socket = match process.get(holder.fd) {
            Ok(socket) => socket,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let facts = tcp_socket::facts(socket.as_fd())?;
        let facts = facts.filter(|facts| facts.cookie == found.socket.cookie);
        Ok(facts.map(|facts| (socket, facts)))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::EBADF | libc::ENOENT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn just_any_user_gets_no_keys_on_a_free_port() {
        let trust = Trust {
            users: BTreeSet::from([101]),
            first_free_port: 1024,
        };
        assert!(trust.covers(0, 40_000), "root");
        assert!(trust.covers(101, 40_000), "a launched daemon's user");
        assert!(trust.covers(1000, 179), "a privileged port");
        assert!(!trust.covers(1000, 1790));
        assert!(
            !trust.covers(1000, 40_000),
            "a connection that anyone can begin"
        );
    }
}
