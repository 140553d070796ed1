//! What must hold at any time, and what in the end.

use keymgr::rollover::message::Stage;

use super::World;
use crate::wire::Key;

impl World {
    /// Nothing that was ever in use goes before its successor is in use in both directions.
    pub(super) fn check_deletion(&self, index: usize, number: u64) {
        let selected = |end: usize| self.ends[end].backend.selected;
        if self.amnesia || !self.ever_selected.contains(&number) {
            return;
        }
        for end in 0..2 {
            assert!(
                selected(end) > Some(number),
                "end {index} deletes {number} while end {end} has selected {:?}",
                selected(end)
            );
        }
        for session in self.sessions.iter().flatten() {
            for side in session.sides.iter().flatten() {
                assert!(
                    !side.established || !side.uses(number),
                    "end {index} deletes {number}, which a session uses: {session:?}"
                );
            }
        }
    }

    /// Everything that must hold at any time.
    pub(crate) fn check(&mut self) {
        self.check_ids();
        for end in 0..2 {
            if let Some(number) = self.forced[end]
                && self.has_followed(1 - end, number)
            {
                self.forced[end] = None;
            }
        }
        if !self.amnesia && self.ends.iter().all(|end| end.backend.selected.is_some()) {
            for from in 0..2 {
                if self.forced[1 - from].is_none() {
                    self.check_common(from);
                }
            }
        }
    }

    fn has_followed(&self, end: usize, number: u64) -> bool {
        self.ends[end].backend.selected >= Some(number)
            && self
                .sessions
                .iter()
                .flatten()
                .filter_map(|session| session.sides[end].as_ref())
                .all(|side| side.current.number >= number)
    }

    /// What end `from` sends, on any session or to open one, verifies at the other end.
    fn check_common(&self, from: usize) {
        let there = &self.ends[1 - from].backend;
        let first = self.ends[from].backend.first().unwrap();
        assert!(
            there.has(first),
            "end {from} opens sessions with {}, the other has {there}",
            first.number
        );
        for session in self.sessions.iter().flatten() {
            if let [Some(_), Some(_)] = &session.sides
                && let Some(side) = &session.sides[from]
                && side.established
            {
                assert!(
                    there.has(&side.current),
                    "end {from} sends with {}, the other has {there}: {session:?}",
                    side.current.number
                );
            }
        }
    }

    /// One KeyID, one key: in both backends and in the network.
    fn check_ids(&self) {
        let mut seen: [Option<&Key>; 256] = [None; 256];
        let installed = self.ends.iter().flat_map(|end| &end.backend.keys);
        let under_way = self
            .sessions
            .iter()
            .flatten()
            .flat_map(|session| session.wire.iter().map(|segment| &segment.key));
        for key in installed.chain(under_way) {
            let other = seen[usize::from(key.mkt.send_id)].get_or_insert(key);
            assert!(
                self.amnesia || other.mkt.master_key == key.mkt.master_key,
                "KeyID {} is that of generations {} and {}",
                key.mkt.send_id,
                other.number,
                key.number
            );
        }
    }

    /// Whether both ends use the same proven key and have their runway.
    pub(crate) fn has_converged(&self) -> bool {
        let status = [self.status(0), self.status(1)];
        status[0].active.is_some()
            && status[0].active == status[1].active
            && status.iter().all(|status| {
                status.proven
                    && !status.start_pending
                    && status.alarms.is_empty()
                    && status.generations.iter().any(|g| g.ready)
                    && !status
                        .generations
                        .iter()
                        .any(|g| Some(g.number) < status.active && g.stage != Stage::Deleted)
            })
    }
}
