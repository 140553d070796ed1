//! The steps on one socket, each with its result: add, select, delete. Which ones is for
//! [`plan`](super::plan) to say.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ao_engine::policy::Mkt;
use ao_sys::tcp_ao::{self, Deletion, InstalledKey, Scope};

use super::optmem::OptionMemory;
use super::plan::{self, KeyName, Role, Wanted};

/// Why a socket has not what it should have.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(
        "peer {peer:?}: the daemon has set a TCP-MD5 password for it on the same socket, and the \
         kernel takes only one of the two: remove the password from the daemon's configuration"
    )]
    Md5 { peer: Arc<str> },
    #[error(
        "peer {peer:?}: no option memory left for its keys and net.core.optmem_max ({limit}) \
         cannot be raised ({source}): sysctl -w net.core.optmem_max={}", limit.saturating_mul(2)
    )]
    Memory {
        peer: Arc<str>,
        limit: u64,
        source: io::Error,
    },
    #[error(
        "peer {peer:?}: key send_id {send_id}, recv_id {recv_id} has changed its secret, algorithm \
         or options flag while the session uses it: give the new key IDs of its own"
    )]
    InUse {
        peer: Arc<str>,
        send_id: u8,
        recv_id: u8,
    },
    #[error("peer {peer:?}: the kernel refuses the key with send_id {send_id}: {source}")]
    Add {
        peer: Arc<str>,
        send_id: u8,
        source: io::Error,
    },
    #[error("the kernel refuses to {what} a key: {source}")]
    Kernel {
        what: &'static str,
        source: io::Error,
    },
}

impl Problem {
    /// The peer whose keys are not all there.
    pub(super) fn peer(&self) -> Option<&Arc<str>> {
        match self {
            Self::Md5 { peer }
            | Self::Memory { peer, .. }
            | Self::InUse { peer, .. }
            | Self::Add { peer, .. } => Some(peer),
            Self::Kernel { .. } => None,
        }
    }

    fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}

/// What became of the keys to be added.
#[derive(Debug, Default)]
pub(super) struct Added {
    pub(super) keys: usize,
    /// Keys that others are in the way of.
    pub(super) left_out: usize,
    pub(super) problems: Vec<Problem>,
}

/// The keys a socket has.
pub(super) fn installed(socket: BorrowedFd<'_>) -> Result<Vec<InstalledKey>, Problem> {
    tcp_ao::keys(socket).map_err(Problem::kernel("list"))
}

/// Which missing keys are to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Those that nothing is in the way of: nothing is lost by adding them.
    Free,
    /// All. What is in the way is deleted.
    All,
}

/// Adds what is missing; goes on with the others after one that is refused.
pub(super) fn add(
    socket: BorrowedFd<'_>,
    role: Role,
    wanted: &[Wanted],
    missing: Missing,
    memory: &OptionMemory,
) -> Added {
    let mut added = Added::default();
    let there = match installed(socket) {
        Ok(there) => there,
        Err(problem) => {
            added.problems.push(problem);
            return added;
        }
    };
    let additions = plan::additions(role, wanted, &there);
    let blocked = additions.blocked.iter().map(|want| Problem::InUse {
        peer: Arc::clone(&want.peer),
        send_id: want.mkt.send_id,
        recv_id: want.mkt.recv_id,
    });
    added.problems.extend(blocked);
    let mut keys = additions.keys;
    match missing {
        Missing::Free => added.left_out = additions.replacing.len(),
        Missing::All => {
            for name in &additions.displaced {
                if let Err(error) = delete_one(socket, role, name, None) {
                    added.problems.push(Problem::kernel("replace")(error));
                }
            }
            keys.extend(additions.replacing);
        }
    }
    // What the others of a peer with a refused key would be refused for, too.
    let mut refused: HashSet<&Arc<str>> = HashSet::new();
    for want in keys {
        if refused.contains(&want.peer) {
            continue;
        }
        match add_one(socket, want, memory) {
            Ok(()) => added.keys += 1,
            Err(problem) => {
                refused.insert(&want.peer);
                added.problems.push(problem);
            }
        }
    }
    added
}

fn add_one(socket: BorrowedFd<'_>, want: &Wanted, memory: &OptionMemory) -> Result<(), Problem> {
    let peer = || Arc::clone(&want.peer);
    let key = want.new_key(false);
    loop {
        let Err(error) = tcp_ao::add_key(socket, &key) else {
            return Ok(());
        };
        match error.raw_os_error() {
            Some(libc::ENOMEM) => memory.raise().map_err(|(limit, source)| Problem::Memory {
                peer: peer(),
                limit,
                source,
            })?,
            Some(libc::EKEYREJECTED) => return Err(Problem::Md5 { peer: peer() }),
            _ => {
                return Err(Problem::Add {
                    peer: peer(),
                    send_id: want.mkt.send_id,
                    source: error,
                });
            }
        }
    }
}

/// Makes the preferred key rnext_key, and current_key where it is not the far end's to choose;
/// whether there was anything to do.
pub(super) fn select(
    socket: BorrowedFd<'_>,
    role: Role,
    wanted: &[Wanted],
) -> Result<bool, Problem> {
    let selection = plan::selection(role, wanted, &installed(socket)?);
    if selection.is_empty() {
        return Ok(false);
    }
    tcp_ao::select(socket, selection.current, selection.rnext)
        .map_err(Problem::kernel("select"))?;
    Ok(true)
}

/// What became of the keys to be deleted.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    pub(super) keys: usize,
    /// Keys that stay because they are in use.
    pub(super) waiting: Vec<KeyName>,
}

/// Deletes what nobody wants and nobody uses, and with it what is used but is `forced` to go, by
/// SendID: the session goes on with the preferred key.
pub(super) fn delete(
    socket: BorrowedFd<'_>,
    role: Role,
    wanted: &[Wanted],
    is_ours: impl Fn(&Scope) -> bool,
    forced: impl Fn(u8) -> bool,
) -> Result<Deleted, Problem> {
    let deletions = plan::deletions(role, wanted, &installed(socket)?, is_ours);
    let mut deleted = Deleted::default();
    let preferred = wanted.first();
    for name in deletions.waiting {
        match preferred.filter(|_| forced(name.send_id)) {
            Some(preferred) => {
                delete_one(socket, role, &name, Some(&preferred.mkt))
                    .map_err(Problem::kernel("replace"))?;
                deleted.keys += 1;
            }
            None => deleted.waiting.push(name),
        }
    }
    for name in deletions.keys {
        match delete_one(socket, role, &name, None) {
            Ok(()) => deleted.keys += 1,
            // The far end has gone back to it since we looked.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => deleted.waiting.push(name),
            Err(error) => return Err(Problem::kernel("delete")(error)),
        }
    }
    Ok(deleted)
}

/// Deletes a key; `successor` becomes current_key and rnext_key in the same step.
fn delete_one(
    socket: BorrowedFd<'_>,
    role: Role,
    name: &KeyName,
    successor: Option<&Mkt>,
) -> io::Result<()> {
    tcp_ao::delete_key(
        socket,
        &Deletion {
            scope: name.scope,
            send_id: name.send_id,
            recv_id: name.recv_id,
            replace_current: successor.map(|key| key.send_id),
            replace_rnext: successor.map(|key| key.recv_id),
            // A listener uses no key by itself: no need to wait for the readers of each.
            asynchronous: role == Role::Listener,
        },
    )
}
