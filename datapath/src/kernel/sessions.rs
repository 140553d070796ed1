//! What the kernel tells of sessions: the same as the other backend's, by its own counters.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ao_engine::policy::Peer;
use ao_sys::sock_diag::TcpState;
use ao_sys::tcp_ao;
use ao_sys::tcp_socket::{self, Facts};

use super::sockets::{self, Concerned, Found, Opener};
use super::wanted::Target;
use crate::keys::KeyError;
use crate::report::{KeyUse, Session, SessionState};
use crate::settings::Backend;
use crate::sockets::{connection_of, vrf_name};

/// Sessions that have TCP-AO in the kernel.
#[derive(Debug, Default)]
pub(crate) struct ActiveSessions(Vec<Session>);

impl ActiveSessions {
    /// Finds those of any peer of `target`.
    pub(crate) fn find(target: &Target) -> Self {
        Self(report(target, &Concerned::All, &mut Opener::default()).sessions)
    }

    /// Whether the session between these ends is one of them.
    pub(crate) fn has(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let mut sessions = self.0.iter();
        sessions.any(|session| session.local == local && session.remote == remote)
    }

    /// Whether an established one is of this peer.
    pub(crate) fn any_of(&self, peer: &str) -> bool {
        // Anyone can begin one; only a peer's keys establish it.
        let mut sessions = self.0.iter();
        sessions.any(|session| &*session.peer == peer && session.state == SessionState::Established)
    }
}

/// The sessions there are now, as far as they can be looked at.
pub(super) fn report(target: &Target, of: &Concerned, opener: &mut Opener) -> Reported {
    match look(target, of, opener) {
        Ok(seen) => Reported {
            // What waits to be accepted is no session yet.
            partial: !seen
                .unseen
                .values()
                .all(|it| matches!(it, KeyError::NotAccepted { .. })),
            sessions: seen.sessions,
        },
        Err(error) => {
            tracing::warn!(%error, "sockets cannot be listed");
            Reported {
                partial: true,
                ..Reported::default()
            }
        }
    }
}

/// What there is to report of sessions.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    pub(crate) sessions: Vec<Session>,
    /// Whether there may be more.
    pub(crate) partial: bool,
}

/// What a look at sessions has brought.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) sessions: Vec<Session>,
    /// By peer: why there may be more.
    pub(super) unseen: HashMap<Arc<str>, KeyError>,
}

/// The sessions there are now, and whose could not all be looked at.
pub(super) fn look(target: &Target, of: &Concerned, opener: &mut Opener) -> io::Result<Seen> {
    let mut found = sockets::find(target, of)?;
    found.retain(|found| found.peer.is_some());
    let mut seen = Seen::default();
    let missed = opener.for_each(&found, |found, socket, facts| {
        let Some(peer) = found.peer.as_ref() else {
            return;
        };
        match session(target, peer, found, socket.as_fd(), facts) {
            Ok(session) => seen.sessions.extend(session),
            Err(error) => {
                let error = KeyError::Socket(format!("{}: {error}", found.name()));
                seen.unseen.insert(Arc::clone(&peer.name), error);
            }
        }
    });
    // A handshake hides nothing: anyone can begin one, by a SYN sent once more, and what comes of
    // it has the listener's keys of then.
    let waiting = missed.orphans.iter().filter(|found| found.waits());
    let waiting = waiting.map(|found| {
        let session = found.name();
        (*found, KeyError::NotAccepted { session })
    });
    let refused = missed.refused.iter();
    let refused = refused.map(|(found, error)| (*found, KeyError::Socket(found.refusal(error))));
    for (found, error) in waiting.chain(refused) {
        if let Some(peer) = &found.peer {
            seen.unseen.insert(Arc::clone(&peer.name), error);
        }
    }
    Ok(seen)
}

/// Nothing for a session without TCP-AO.
fn session(
    target: &Target,
    peer: &Peer,
    found: &Found,
    socket: BorrowedFd<'_>,
    facts: &Facts,
) -> io::Result<Option<Session>> {
    let Some(info) = tcp_ao::info(socket)? else {
        return Ok(None);
    };
    let keys = tcp_ao::keys(socket)?;
    Ok(Some(Session {
        peer: Arc::clone(&peer.name),
        backend: Backend::Kernel,
        local: found.socket.local,
        remote: found.socket.remote,
        vrf: vrf_name(&connection_of(&found.socket, &target.links), &target.links),
        state: state(facts.state),
        current_key: info.current_key.unwrap_or_default(),
        rnext_key: info.rnext_key.unwrap_or_default(),
        keys: keys
            .iter()
            .map(|key| KeyUse {
                send_id: key.send_id,
                recv_id: key.recv_id,
                good: key.good,
                bad: key.bad,
                sent: None,
            })
            .collect(),
        segments_good: info.good,
        segments_bad: info.bad,
        segments_unsigned: info.unsigned,
        key_not_found: info.key_not_found,
        dropped_icmp: info.dropped_icmp,
        segments_sent: tcp_socket::segments_out(socket).unwrap_or_default(),
        snd_sne: None,
        rcv_sne: None,
    }))
}

fn state(state: TcpState) -> SessionState {
    match state {
        TcpState::SynSent | TcpState::SynReceived => SessionState::Opening,
        TcpState::Established => SessionState::Established,
        _ => SessionState::Closing,
    }
}
