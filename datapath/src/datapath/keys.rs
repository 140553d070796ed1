//! Keys of single peers, changed while their sessions live.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use ao_engine::policy::Mkt;

use super::served::{Served, engine_policy, kernel_target};
use super::{Datapath, Running};
use crate::kernel::Target;
use crate::keys::{Arrangement, Carrier, KeyError, KeyOf, Observed, Proofs, Removal, unobserved};
use crate::report::{Session, SessionState};
use crate::settings::Backend;
use crate::sockets;

impl Datapath {
    /// Adds keys to peers, each behind those its peer has: they verify what comes, and nothing is
    /// signed with them before they are selected, but for the first key of a peer that was blocked:
    /// it is selected by being there. A key that is there already is proven again.
    ///
    /// One result for each key, in their order. `Ok`: every socket of the peer verifies segments
    /// with it, and a session that begins will.
    pub fn install(&self, keys: &[(Arc<str>, Arc<Mkt>)]) -> Vec<Result<(), KeyError>> {
        let of = |(peer, mkt): &(Arc<str>, Arc<Mkt>)| KeyOf {
            peer: Arc::clone(peer),
            send_id: mkt.send_id,
        };
        self.step(
            keys,
            of,
            |peer, (_, mkt)| peer.install(mkt),
            |carrier, arrangement, keys| carrier.carry(arrangement, &names(keys, of)),
        )
    }

    /// Makes keys, named by SendID, the first of their peers. A session goes on signing with the
    /// key it has until the far end, asked by RNextKeyID, asks in turn.
    ///
    /// One result for each key. `Ok`: it is rnext_key of every session, and sessions that this end
    /// begins begin with it.
    pub fn select(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), KeyError>> {
        self.step(
            keys,
            key_of,
            |peer, &(_, send_id)| peer.select(send_id),
            |carrier, arrangement, keys| carrier.carry(arrangement, &names(keys, key_of)),
        )
    }

    /// Ends the time to send of keys, named by SendID: they still verify, but sessions that sign
    /// with one go on with the first key of the peer, and do not follow a far end that asks for it.
    /// The kernel follows a far end all the same: its sessions are taken back whenever they are
    /// looked at, every 30 s or when they are observed.
    ///
    /// One result for each key. `Ok`: no session signs with it.
    pub fn retire(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), KeyError>> {
        self.step(
            keys,
            key_of,
            |peer, &(_, send_id)| peer.retire(send_id),
            |carrier, arrangement, keys| carrier.carry(arrangement, &names(keys, key_of)),
        )
    }

    /// Removes keys, named by SendID. One that is in use, or may be as not all sessions of its peer
    /// can be looked at, stays as it was unless it is forced.
    /// The last key of a peer blocks it: what the engine has of its sessions goes, and the kernel's
    /// keep it, as [`KeyError::InUse`] tells, until they are closed.
    ///
    /// One result for each key. `Ok`: no socket of a process has it. What no process has any
    /// more, as it is being closed, keeps its keys in the kernel until it is gone, a minute or two.
    pub fn delete(&self, keys: &[(Arc<str>, u8, Removal)]) -> Vec<Result<(), KeyError>> {
        let unused = keys.iter().filter(|key| key.2 == Removal::Unused);
        let peers: Vec<Arc<str>> = unused.map(|key| Arc::clone(&key.0)).collect();
        let observed = self.observe(&peers);
        self.step(
            keys,
            |(peer, send_id, _)| KeyOf {
                peer: Arc::clone(peer),
                send_id: *send_id,
            },
            |peer, &(ref name, send_id, removal)| {
                if removal == Removal::Unused {
                    check_unused(peer, send_id, observed.get(name))?;
                }
                peer.delete(send_id);
                Ok(())
            },
            |carrier, arrangement, keys| {
                let removals: Vec<(KeyOf, Removal)> = keys
                    .iter()
                    .map(|(peer, send_id, removal)| {
                        let peer = Arc::clone(peer);
                        let send_id = *send_id;
                        (KeyOf { peer, send_id }, *removal)
                    })
                    .collect();
                carrier.delete(arrangement, &removals)
            },
        )
    }

    /// The sessions of each of these peers, with the keys they use and how much; nothing of a peer
    /// that is not configured.
    ///
    /// [`KeyError::Unanswered`], [`KeyError::NotAccepted`] or [`KeyError::Socket`] instead, when
    /// there may be sessions that cannot be looked at now.
    #[must_use]
    pub fn observe(&self, peers: &[Arc<str>]) -> Observed {
        let by_backend = {
            let wanted: HashSet<&str> = peers.iter().map(|peer| &**peer).collect();
            let state = self.running.state();
            let served = state.peers.iter();
            let (kernel, userspace): (Vec<&Served>, Vec<&Served>) = served
                .filter(|peer| wanted.contains(&*peer.spec.name))
                .partition(|peer| peer.decision.backend == Backend::Kernel);
            let names = |peers: Vec<&Served>| -> Vec<Arc<str>> {
                let names = peers.iter().map(|peer| Arc::clone(&peer.spec.name));
                names.collect()
            };
            [
                (Backend::Userspace, names(userspace)),
                (Backend::Kernel, names(kernel)),
            ]
        };
        let mut observed = Observed::new();
        for (backend, peers) in by_backend {
            if peers.is_empty() {
                continue;
            }
            observed.extend(match self.running.carrier(backend) {
                Some(carrier) => carrier.observe(&peers),
                None => unobserved(&peers, &KeyError::Unanswered),
            });
        }
        observed
    }

    /// Lets established sessions of these peers that are quiet show which keys they use: each
    /// sends one signed acknowledgment, at most one a second. The kernel's sessions wait for
    /// traffic of their own.
    pub fn nudge(&self, peers: &[Arc<str>]) {
        if let Some(userspace) = self.running.userspace.get() {
            userspace.nudge(peers);
        }
    }

    /// Closes all sessions of a peer, with a reset to both ends; returns how many.
    ///
    /// # Errors
    /// When sockets cannot be listed, or one cannot be closed; all others are closed then.
    pub fn close(&self, peer: &str) -> io::Result<usize> {
        let (policy, links) = {
            let state = self.running.state();
            (Arc::clone(&state.policy), Arc::clone(&state.links))
        };
        let mut sockets = sockets::of_peers(&policy, &links)?;
        sockets.retain(|found| &*found.peer == peer);
        close_each(&sockets, |found| ao_sys::sock_diag::destroy(&found.socket))
    }

    /// Takes one step with many keys: `decide` changes a peer, if it may be changed, and `prove`
    /// lets its backend carry that out, once for all keys.
    fn step<K>(
        &self,
        keys: &[K],
        of: impl Fn(&K) -> KeyOf,
        mut decide: impl FnMut(&mut Served, &K) -> Result<(), KeyError>,
        prove: impl Fn(&dyn Carrier, Arrangement, &[&K]) -> Proofs,
    ) -> Vec<Result<(), KeyError>> {
        // Proofs take time, in which others may read what there is.
        let _turn = self.running.turn();
        let mut fresh = self.running.state().peers.clone();
        let places: HashMap<Arc<str>, usize> = fresh
            .iter()
            .enumerate()
            .map(|(place, peer)| (Arc::clone(&peer.spec.name), place))
            .collect();
        let mut results: Proofs = keys
            .iter()
            .map(|key| {
                let place = places.get(&of(key).peer).copied();
                let peer = place.and_then(|place| fresh.get_mut(place));
                peer.ok_or(KeyError::UnknownPeer)
                    .and_then(|peer| decide(peer, key))
            })
            .collect();
        for backend in [Backend::Userspace, Backend::Kernel] {
            let is_its = |key: &K| {
                let place = places.get(&of(key).peer);
                let peer = place.and_then(|&place| fresh.get(place));
                peer.is_some_and(|peer| peer.decision.backend == backend)
            };
            let (waiting, concerned): (Vec<&mut Result<(), KeyError>>, Vec<&K>) = results
                .iter_mut()
                .zip(keys)
                .filter(|(result, key)| result.is_ok() && is_its(key))
                .unzip();
            if concerned.is_empty() {
                continue;
            }
            let proofs = match self.running.arrange(&fresh) {
                Ok(arrangement) => match self.running.carrier(backend) {
                    Some(carrier) => prove(carrier, arrangement, &concerned),
                    None => vec![Err(KeyError::Unanswered); concerned.len()],
                },
                Err(error) => vec![Err(error); concerned.len()],
            };
            for (result, proof) in waiting.into_iter().zip(proofs) {
                *result = proof;
            }
        }
        results
    }
}

impl Running {
    /// Takes `fresh` for what is wanted from now on, unless it contradicts itself.
    fn arrange(&self, fresh: &[Served]) -> Result<Arrangement, KeyError> {
        let mut state = self.state();
        let policy = Arc::new(engine_policy(fresh, &state.links)?);
        let former = self.kernel.get().map(|kernel| kernel.target());
        let none = Arc::new(Target::default());
        let target = kernel_target(&former.unwrap_or(none), fresh, &state.links)?;
        state.peers = fresh.to_vec();
        state.policy = Arc::clone(&policy);
        Ok(Arrangement {
            policy,
            target,
            links: Arc::clone(&state.links),
        })
    }

    fn carrier(&self, backend: Backend) -> Option<&dyn Carrier> {
        match backend {
            Backend::Userspace => self.userspace.get().map(|it| it as &dyn Carrier),
            Backend::Kernel => self.kernel.get().map(|it| it as &dyn Carrier),
        }
    }
}

fn key_of((peer, send_id): &(Arc<str>, u8)) -> KeyOf {
    KeyOf {
        peer: Arc::clone(peer),
        send_id: *send_id,
    }
}

fn names<K>(keys: &[&K], of: impl Fn(&K) -> KeyOf) -> Vec<KeyOf> {
    keys.iter().map(|key| of(key)).collect()
}

/// Closes all that can be closed; one that is gone already is closed. The first error, if any.
fn close_each<S>(sockets: &[S], close: impl Fn(&S) -> io::Result<()>) -> io::Result<usize> {
    let mut first_error = None;
    for socket in sockets {
        match close(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                first_error.get_or_insert(error);
            }
            _ => {}
        }
    }
    first_error.map_or(Ok(sockets.len()), Err)
}

/// Refuses what would take a key from a session, or may do so.
fn check_unused(
    peer: &Served,
    send_id: u8,
    observed: Option<&Result<Vec<Session>, KeyError>>,
) -> Result<(), KeyError> {
    let sessions = match observed {
        Some(Ok(sessions)) => sessions,
        Some(Err(unseen)) => return Err(unseen.clone()),
        None => return Err(KeyError::UnknownPeer),
    };
    match sessions.iter().find(|it| uses(it, peer, send_id)) {
        Some(session) => Err(KeyError::InUse {
            send_id,
            session: sockets::between(session.local, session.remote),
        }),
        None => Ok(()),
    }
}

/// Whether a session signs with a key of its peer, or asks the far end to. One that is opening does
/// not count: a recorded SYN, sent again, opens one with whichever key it was signed with.
fn uses(session: &Session, peer: &Served, send_id: u8) -> bool {
    let key = peer.spec.keys.iter().find(|key| key.send_id == send_id);
    !matches!(session.state, SessionState::Closing | SessionState::Opening)
        && key.is_some_and(|key| {
            session.current_key == key.send_id || session.rnext_key == key.recv_id
        })
}

#[cfg(test)]
mod tests;
