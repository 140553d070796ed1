//! Who gets in, and how often it may call.
//!
//! Until its certificate is verified a connection is *pending*. Strangers, who come from addresses
//! that no partner has, share a small part of the room, and the newest closes the oldest: a silent
//! flood neither takes the partners' room nor keeps out a partner that calls from elsewhere,
//! because a handshake takes less time than the flood needs to fill that part again.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

/// What a [`PeerServer`](super::PeerServer) takes before it refuses.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections altogether, some 50 KiB each. Partners wait for room, strangers are refused.
    /// Default 256.
    pub connections: usize,
    /// Of these, connections of strangers whose handshake is under way. Default 128.
    pub strangers: usize,
    /// Connections from one source (IPv4 address or IPv6 /64) whose handshake is under way, for
    /// each partner expected there. Default 16.
    pub pending_per_source: usize,
    /// Connections of one partner whose handshake is complete. Default 16.
    pub per_partner: usize,
    /// Longest time for a handshake. Default 5 s.
    pub handshake: Duration,
    /// Longest time for a call. Default 10 s.
    pub call: Duration,
    /// After this time a connection takes no further call. Default 15 s.
    pub connection: Duration,
    /// Calls of one partner per second. Default 20.
    pub calls_per_second: u32,
    /// Calls of one partner at once, after a time without. Default 40.
    pub calls_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            strangers: 128,
            pending_per_source: 16,
            per_partner: 16,
            handshake: Duration::from_secs(5),
            call: Duration::from_secs(10),
            connection: Duration::from_secs(15),
            calls_per_second: 20,
            calls_burst: 40,
        }
    }
}

/// Why a connection does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("too many connections at once")]
    Connections,
    #[error("too many connections of this peer at once")]
    Partner,
}

/// The room for connections.
pub(super) struct Admission {
    limits: Limits,
    room: Mutex<Room>,
    /// Told when a place is given back.
    freed: Notify,
}

#[derive(Default)]
struct Room {
    next: u64,
    /// By age.
    pending: BTreeMap<u64, Pending>,
    authenticated: usize,
    partners: HashMap<Arc<str>, usize>,
}

struct Pending {
    source: IpAddr,
    stranger: bool,
    /// Dropped, it closes the connection.
    _keep: oneshot::Sender<()>,
}

/// A connection's place; given back when dropped.
pub(super) struct Place {
    admission: Arc<Admission>,
    holder: Holder,
}

enum Holder {
    Pending(u64),
    Partner(Arc<str>),
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            room: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// Completes when a place was given back, now or since the last time; it may be taken again.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// A place for a connection from `address`, where `expected` partners are; and what completes
    /// when the place has to be given to another.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        expected: usize,
    ) -> Result<(Place, oneshot::Receiver<()>), Full> {
        let source = source(address);
        let stranger = expected == 0;
        let mut room = self.room();
        let per_source = self
            .limits
            .pending_per_source
            .saturating_mul(expected.max(1));
        room.shrink(per_source, |pending| {
            pending.source == source && pending.stranger == stranger
        });
        if stranger {
            room.shrink(self.limits.strangers, |pending| pending.stranger);
        }
        let full = room.used() >= self.limits.connections;
        if full && (stranger || !room.close_stranger()) {
            return Err(Full::Connections);
        }
        let (keep, evicted) = oneshot::channel();
        let number = room.next;
        room.next += 1;
        let pending = Pending {
            source,
            stranger,
            _keep: keep,
        };
        room.pending.insert(number, pending);
        let admission = Arc::clone(self);
        let holder = Holder::Pending(number);
        Ok((Place { admission, holder }, evicted))
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn used(&self) -> usize {
        self.pending.len() + self.authenticated
    }

    /// Closes the oldest of those that `counts` until there is one less than `limit`.
    fn shrink(&mut self, limit: usize, counts: impl Fn(&Pending) -> bool) {
        let matching = self.pending.iter().filter(|(_, pending)| counts(pending));
        let numbers: Vec<u64> = matching.map(|(&number, _)| number).collect();
        let excess = (numbers.len() + 1).saturating_sub(limit);
        for number in numbers.into_iter().take(excess) {
            self.pending.remove(&number);
        }
    }

    fn close_stranger(&mut self) -> bool {
        let oldest = self.pending.iter().find(|(_, pending)| pending.stranger);
        let oldest = oldest.map(|(&number, _)| number);
        oldest.is_some_and(|number| self.pending.remove(&number).is_some())
    }
}

impl Place {
    /// The certificate is `partner`'s.
    pub(super) fn authenticated(&mut self, partner: &Arc<str>) -> Result<(), Full> {
        let mut room = self.admission.room();
        let count = room.partners.get(partner).copied().unwrap_or(0);
        if count >= self.admission.limits.per_partner {
            return Err(Full::Partner);
        }
        if let Holder::Pending(number) = self.holder {
            // When it was just evicted, the certificate came in time nevertheless.
            room.pending.remove(&number);
            room.authenticated += 1;
            room.partners.insert(Arc::clone(partner), count + 1);
            self.holder = Holder::Partner(Arc::clone(partner));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut room = self.admission.room();
        match &self.holder {
            Holder::Pending(number) => {
                room.pending.remove(number);
            }
            Holder::Partner(partner) => {
                room.authenticated = room.authenticated.saturating_sub(1);
                let count = room.partners.get(partner).copied().unwrap_or(0);
                if count > 1 {
                    room.partners.insert(Arc::clone(partner), count - 1);
                } else {
                    room.partners.remove(partner);
                }
            }
        }
        drop(room);
        self.admission.freed.notify_one();
    }
}

/// What a single party can have as many of as it likes counts as one: an IPv6 /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How often each partner may call: a token bucket.
pub(super) struct CallRate {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<Arc<str>, Bucket>>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl CallRate {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            per_second: limits.calls_per_second.into(),
            burst: limits.calls_burst.into(),
            buckets: Mutex::default(),
        }
    }

    /// Whether `partner` may call now; counts it if so.
    pub(super) fn allows(&self, partner: &Arc<str>, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // A full bucket is as good as none, so partners that are gone leave nothing behind.
        buckets.retain(|name, bucket| name == partner || self.tokens(bucket, now) < self.burst);
        let bucket = buckets.entry(Arc::clone(partner)).or_insert(Bucket {
            tokens: self.burst,
            filled: now,
        });
        bucket.tokens = self.tokens(bucket, now);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn tokens(&self, bucket: &Bucket, now: Instant) -> f64 {
        let waited = now.saturating_duration_since(bucket.filled).as_secs_f64();
        (bucket.tokens + waited * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(
        connections: usize,
        strangers: usize,
        pending_per_source: usize,
    ) -> Arc<Admission> {
        Arc::new(Admission::new(Limits {
            connections,
            strangers,
            pending_per_source,
            per_partner: 2,
            ..Limits::default()
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn closed(evicted: &mut oneshot::Receiver<()>) -> bool {
        evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_newest_of_a_source_closes_its_oldest() {
        let admission = admission(10, 10, 2);
        let mut places: Vec<_> = (0..3)
            .map(|n| admission.enter(ip(&format!("2001:db8::{n}")), 0).unwrap())
            .collect();
        let (_other, mut other) = admission.enter(ip("2001:db8:0:1::"), 0).unwrap();
        let ends: Vec<bool> = places
            .iter_mut()
            .map(|(_, evicted)| closed(evicted))
            .collect();
        assert_eq!(ends, [true, false, false]);
        assert!(!closed(&mut other));
    }

    #[test]
    fn strangers_take_their_part_and_no_more() {
        let admission = admission(4, 2, 9);
        let mut strangers: Vec<_> = (0..9)
            .map(|n| admission.enter(ip(&format!("10.0.0.{n}")), 0).unwrap())
            .collect();
        let open = strangers
            .iter_mut()
            .filter_map(|(_, evicted)| (!closed(evicted)).then_some(()));
        assert_eq!(open.count(), 2);
        // Two places are free, and two are the strangers' to lose.
        let partners: Vec<_> = (0..4)
            .map(|_| admission.enter(ip("10.1.0.1"), 1).unwrap())
            .collect();
        assert_eq!(
            admission.enter(ip("10.1.0.1"), 1).err(),
            Some(Full::Connections)
        );
        assert_eq!(
            admission.enter(ip("10.0.0.1"), 0).err(),
            Some(Full::Connections)
        );
        drop(partners);
        drop(strangers);
        assert_eq!(admission.room().used(), 0);
    }

    #[test]
    fn a_partner_has_its_own_limit() {
        let admission = admission(10, 10, 10);
        let name: Arc<str> = "a".into();
        let mut places: Vec<_> = (0..3)
            .map(|_| admission.enter(ip("10.0.0.1"), 1).unwrap().0)
            .collect();
        let results: Vec<_> = places
            .iter_mut()
            .map(|place| place.authenticated(&name))
            .collect();
        assert_eq!(results, [Ok(()), Ok(()), Err(Full::Partner)]);
        assert_eq!(admission.room().used(), 3);
        drop(places);
        assert_eq!(admission.room().used(), 0);
        assert!(admission.room().partners.is_empty());
    }

    #[test]
    fn calls_are_limited_by_burst_and_rate() {
        let rate = CallRate::new(&Limits::default());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let start = Instant::now();
        let granted = (0..100).filter(|_| rate.allows(&a, start)).count();
        assert_eq!(granted, 40);
        assert!(rate.allows(&b, start));
        let later = start + Duration::from_millis(500);
        let granted = (0..100).filter(|_| rate.allows(&a, later)).count();
        assert_eq!(granted, 10);
        assert_eq!(
            rate.buckets.lock().unwrap().len(),
            1,
            "b's bucket is full again"
        );
    }
}
