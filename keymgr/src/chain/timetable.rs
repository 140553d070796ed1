//! Which keys of a chain are wanted at an instant.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ao_engine::policy::Mkt;

use super::{Key, KeyChain, OnExpiry, Rules};
use crate::lifetime::{Lifetime, compare_ends};

/// Days before the end of a chain at which its operator is warned.
const WARNING_DAYS: [u8; 3] = [1, 7, 30];
const DAY: Duration = Duration::from_secs(86_400);

/// What a chain wants at an instant.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Every key that is accepted, the one to send with first. None means that the peer is
    /// blocked: before the first key, and after the last one with [`OnExpiry::Close`].
    pub keys: Vec<Arc<Mkt>>,
    /// SendIDs of those `keys` that are accepted only, because their send lifetime is over.
    pub retired: Vec<u8>,
    /// Set when send lifetimes have ended and none has started since: what the operator wants in
    /// that case. `keys` are in accordance with it.
    pub expired: Option<OnExpiry>,
    /// The next instant at which any of this is different; absent when it stays so for ever.
    pub next_change: Option<SystemTime>,
}

/// When a key is really sent and accepted: with the tolerance, and with the time for which a last
/// key is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) send: Lifetime,
    pub(super) accept: Lifetime,
}

/// A span in which no send lifetime runs, though one has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lapse {
    /// Position of the key that was sent last.
    pub(super) last: usize,
    /// When its send lifetime ends.
    pub(super) from: SystemTime,
    /// Position and start of the next key to send with; absent when the chain has run out.
    pub(super) next: Option<(usize, SystemTime)>,
}

impl Lapse {
    fn until(&self) -> Option<SystemTime> {
        self.next.map(|(_, start)| start)
    }

    fn contains(&self, now: SystemTime) -> bool {
        self.from <= now && self.until().is_none_or(|until| now < until)
    }
}

/// The lapses of a chain, by time.
pub(super) fn lapses(keys: &[Key]) -> Vec<Lapse> {
    let mut by_start: Vec<(usize, Lifetime)> =
        keys.iter().map(|key| key.send).enumerate().collect();
    by_start.sort_by_key(|(_, send)| send.start());

    let mut lapses = Vec::new();
    let mut by_start = by_start.into_iter();
    let Some(mut last) = by_start.next() else {
        return lapses;
    };
    for next in by_start {
        if let (Some(from), Some(start)) = (last.1.end(), next.1.start())
            && from < start
        {
            lapses.push(Lapse {
                last: last.0,
                from,
                next: Some((next.0, start)),
            });
            last = next;
            continue;
        }
        // Of two that end together, the one that `at` prefers until then.
        let newer = next.1.start() > last.1.start();
        let later = compare_ends(next.1.end(), last.1.end());
        if later.is_gt() || (later.is_eq() && newer) {
            last = next;
        }
    }
    if let Some(from) = last.1.end() {
        lapses.push(Lapse {
            last: last.0,
            from,
            next: None,
        });
    }
    lapses
}

/// The windows of all keys.
///
/// A key that is kept in a lapse is sent and accepted until the next one starts, and accepted for
/// the tolerance beyond: a far end whose clock is behind still sends with it then.
pub(super) fn windows(keys: &[Key], lapses: &[Lapse], rules: Rules) -> Vec<Window> {
    keys.iter()
        .enumerate()
        .map(|(position, key)| {
            let (mut send, mut accept) = (key.send, key.accept);
            let kept = lapses.iter().find(|lapse| lapse.last == position);
            if let (OnExpiry::Keep, Some(lapse)) = (rules.on_expiry, kept) {
                send = send.extended_to(lapse.until());
                accept = accept.extended_to(lapse.until());
            }
            Window {
                send,
                accept: accept.widened(rules.tolerance),
            }
        })
        .collect()
}

impl KeyChain {
    /// The keys wanted at `now`: of those whose send lifetime runs, the one that has started last
    /// comes first (RFC 8177 §2.2).
    #[must_use]
    pub fn at(&self, now: SystemTime) -> Wanted {
        let lapse = self.lapses.iter().find(|lapse| lapse.contains(now));
        let expired = lapse.map(|_| self.rules.on_expiry);
        if let (Some(lapse), Some(OnExpiry::Close)) = (lapse, expired) {
            return Wanted {
                keys: Vec::new(),
                retired: Vec::new(),
                expired,
                next_change: lapse.until(),
            };
        }

        let accepted = || {
            let all = self.keys.iter().zip(&self.windows);
            all.filter(|(_, window)| window.accept.contains(now))
        };
        let mut keys: Vec<_> = accepted().collect();
        keys.sort_by_key(|(_, window)| {
            let send = &window.send;
            let newest = send.contains(now).then_some(Reverse(send.start()));
            // Behind the keys to send with: those to come, the nearest first, and then the past.
            (newest.is_none(), newest, send.has_ended(now), send.start())
        });
        Wanted {
            retired: accepted()
                .filter(|(_, window)| window.send.has_ended(now))
                .map(|(key, _)| key.mkt.send_id)
                .collect(),
            keys: keys.into_iter().map(|(key, _)| key.mkt.clone()).collect(),
            expired,
            next_change: self.changes().filter(|&change| change > now).min(),
        }
    }

    /// When there is no key to send with any more; absent when there always is one.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.lapses
            .iter()
            .find(|lapse| lapse.next.is_none())
            .map(|lapse| lapse.from)
    }

    /// The warning that is due: the chain runs out in that many days (30, 7 or 1) or fewer. `told`
    /// is the warning that was given last; none is due twice, and none once the chain has run out.
    #[must_use]
    pub fn warning_due(&self, now: SystemTime, told: Option<u8>) -> Option<u8> {
        let left = self.expires()?.duration_since(now).ok()?;
        let due = WARNING_DAYS
            .into_iter()
            .find(|&days| !left.is_zero() && left <= DAY * u32::from(days))?;
        told.is_none_or(|told| due < told).then_some(due)
    }

    /// Every instant at which something may change.
    fn changes(&self) -> impl Iterator<Item = SystemTime> {
        let windows = self.windows.iter().flat_map(|Window { send, accept }| {
            [send.start(), send.end(), accept.start(), accept.end()]
        });
        let lapses = self
            .lapses
            .iter()
            .flat_map(|lapse| [Some(lapse.from), lapse.until()]);
        windows.chain(lapses).flatten()
    }
}
