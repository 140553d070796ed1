//! TCP-AO in miniature: sessions with current_key and rnext_key, and segments that carry KeyIDs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ao_engine::policy::Mkt;
use keymgr::rollover::SessionKeys;

/// Longest time that TCP tries to open a session for.
const HANDSHAKE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) number: u64,
    pub(crate) mkt: Arc<Mkt>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Backend {
    /// The first one begins new sessions.
    pub(crate) keys: Vec<Key>,
    pub(crate) selected: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) to: usize,
    pub(crate) key: Key,
    pub(crate) rnext_key: u8,
    pub(crate) syn: bool,
    pub(crate) sequence: u32,
    pub(crate) sent_at: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) current: Key,
    pub(crate) rnext: Key,
    pub(crate) verified: Vec<(u8, u64)>,
    pub(crate) established: bool,
    /// It sent the SYN, which has not been answered.
    opening: bool,
    next_sequence: u32,
    highest_seen: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) sides: [Option<Side>; 2],
    pub(crate) wire: Vec<Segment>,
    opened_at: Duration,
}

impl Backend {
    pub(crate) fn first(&self) -> Option<&Key> {
        self.keys.first()
    }

    pub(crate) fn has(&self, key: &Key) -> bool {
        self.verifies(key).is_some()
    }

    /// The key with this KeyID, if it is the same one.
    fn verifies(&self, key: &Key) -> Option<&Key> {
        self.by_id(key.mkt.send_id)
            .filter(|own| own.mkt.master_key == key.mkt.master_key)
    }

    fn by_id(&self, id: u8) -> Option<&Key> {
        self.keys.iter().find(|own| own.mkt.send_id == id)
    }

    pub(crate) fn install(&mut self, key: Key) {
        if !self.keys.iter().any(|own| own.number == key.number) {
            self.keys.push(key);
        }
    }

    pub(crate) fn select(&mut self, number: u64, end: usize, sessions: &mut [Option<Session>]) {
        let position = self.keys.iter().position(|key| key.number == number);
        let key = self
            .keys
            .remove(position.expect("only installed keys are selected"));
        self.keys.insert(0, key.clone());
        self.selected = Some(number);
        for side in sides(end, sessions) {
            side.rnext = key.clone();
            if side.opening {
                side.current = key.clone();
            }
        }
    }

    pub(crate) fn delete(&mut self, number: u64, end: usize, sessions: &mut [Option<Session>]) {
        self.keys.retain(|key| key.number != number);
        let Some(first) = self.keys.first() else {
            return;
        };
        for side in sides(end, sessions) {
            for key in [&mut side.current, &mut side.rnext] {
                if key.number == number {
                    *key = first.clone();
                }
            }
        }
    }

    /// A new process: it has what it is given, and goes on with the sessions it finds.
    pub(crate) fn restart(&mut self, keys: Vec<Key>, end: usize, sessions: &mut [Option<Session>]) {
        self.keys = keys;
        if self.selected.is_some() {
            // A session begins with the first, and each asks for it.
            self.selected = self.keys.first().map(|key| key.number).max(self.selected);
        }
        for session in sessions {
            let Some(state) = session else { continue };
            let Some(side) = &mut state.sides[end] else {
                continue;
            };
            let Some(first) = self.keys.first() else {
                *session = None;
                continue;
            };
            side.rnext = first.clone();
            if side.opening || !self.keys.iter().any(|key| same(key, &side.current)) {
                side.current = first.clone();
            }
        }
    }
}

fn same(a: &Key, b: &Key) -> bool {
    a.mkt.master_key == b.mkt.master_key
}

fn sides(end: usize, sessions: &mut [Option<Session>]) -> impl Iterator<Item = &mut Side> {
    sessions
        .iter_mut()
        .flatten()
        .filter_map(move |session| session.sides[end].as_mut())
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|key| key.number))
            .finish()
    }
}

impl Side {
    fn new(current: &Key, rnext: &Key, opening: bool) -> Self {
        Self {
            current: current.clone(),
            rnext: rnext.clone(),
            verified: Vec::new(),
            established: false,
            opening,
            next_sequence: 1,
            highest_seen: 0,
        }
    }

    pub(crate) fn uses(&self, number: u64) -> bool {
        self.current.number == number || self.rnext.number == number
    }

    pub(crate) fn observed(&self, session: usize) -> SessionKeys {
        SessionKeys {
            name: format!("session {session}"),
            send_id_current: self.current.mkt.send_id,
            recv_id_rnext: self.rnext.mkt.recv_id,
            verified: self.verified.clone(),
            established: self.established,
        }
    }

    fn receive(&mut self, segment: &Segment, backend: &Backend) {
        let id = segment.key.mkt.send_id;
        match self.verified.iter_mut().find(|(key, _)| *key == id) {
            Some((_, count)) => *count += 1,
            None => self.verified.push((id, 1)),
        }
        self.established = true;
        self.opening = false;
        // The RNextKeyID of old segments is ignored.
        if segment.sequence > self.highest_seen {
            self.highest_seen = segment.sequence;
            if let Some(key) = backend.by_id(segment.rnext_key) {
                self.current = key.clone();
            }
        }
    }
}

impl Session {
    /// `end` sends a SYN.
    pub(crate) fn open(end: usize, backend: &Backend, now: Duration) -> Option<Self> {
        let first = backend.first()?;
        let mut session = Self {
            sides: [None, None],
            wire: Vec::new(),
            opened_at: now,
        };
        session.sides[end] = Some(Side::new(first, first, true));
        session.send(end, now);
        Some(session)
    }

    /// TCP gives up a handshake that is not completed: one that began with a key that has been
    /// deleted meanwhile cannot be.
    pub(crate) fn has_timed_out(&self, now: Duration) -> bool {
        let complete = |side: &Option<Side>| side.as_ref().is_some_and(|side| side.established);
        now > self.opened_at + HANDSHAKE && !self.sides.iter().all(complete)
    }

    pub(crate) fn send(&mut self, from: usize, now: Duration) {
        if let Some(side) = &mut self.sides[from] {
            self.wire.push(Segment {
                to: 1 - from,
                key: side.current.clone(),
                rnext_key: side.rnext.mkt.recv_id,
                syn: side.opening,
                sequence: side.next_sequence,
                sent_at: now,
            });
            side.next_sequence += 1;
        }
    }

    pub(crate) fn arrive(&mut self, segment: &Segment, backend: &Backend, now: Duration) {
        let Some(key) = backend.verifies(&segment.key) else {
            return;
        };
        if let Some(side) = &mut self.sides[segment.to] {
            if !segment.syn {
                side.receive(segment, backend);
            }
            return;
        }
        if !segment.syn {
            return;
        }
        // A SYN: it is answered with the key that it asks for.
        let (Some(current), Some(rnext)) = (backend.by_id(segment.rnext_key), backend.first())
        else {
            return;
        };
        let mut side = Side::new(current, rnext, false);
        side.highest_seen = segment.sequence;
        side.verified.push((key.mkt.recv_id, 1));
        self.sides[segment.to] = Some(side);
        self.send(segment.to, now);
    }
}
