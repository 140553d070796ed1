//! Who gets in, and how often it may call.
//!
//! Until its certificate is verified a connection is *pending*. Strangers, who come from addresses
//! that no partner has, share a part of the room, and never take the partners'. Within that part
//! the newest closes the oldest one of the source that has most. A partner that calls from
//! elsewhere has one or two there, so however many connections a flood opens, it keeps that partner
//! out only if as many new sources as strangers have places appear during one handshake.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// What a [`PeerServer`](super::PeerServer) takes before it refuses.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections altogether, some 50 KiB each. Partners wait for room as long as a handshake may
    /// take, strangers are refused. Default 256.
    pub connections: usize,
    /// Connections that wait for room. Default 512.
    pub waiting: usize,
    /// Of these, connections of strangers whose handshake is under way. Default 128.
    pub strangers: usize,
    /// Connections from one source (IPv4 address or IPv6 /64) whose handshake is under way, and as
    /// many that wait for room, for each partner expected there. Default 16.
    pub pending_per_source: usize,
    /// Connections of one partner whose handshake is complete. Default 8.
    pub per_partner: usize,
    /// Longest time for a handshake. Default 5 s.
    pub handshake: Duration,
    /// Longest time for a call. Default 10 s.
    pub call: Duration,
    /// A connection whose first call has not begun this long after the handshake is closed.
    /// Default 2 s.
    pub first_call: Duration,
    /// After this time a connection takes no further call. Default 15 s.
    pub connection: Duration,
    /// Calls of one partner per second. A rollover takes two or three. Default 4.
    pub calls_per_second: u32,
    /// Calls of one partner at once, after a time without. Default 24.
    pub calls_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            waiting: 512,
            strangers: 128,
            pending_per_source: 16,
            per_partner: 8,
            handshake: Duration::from_secs(5),
            call: Duration::from_secs(10),
            first_call: Duration::from_secs(2),
            connection: Duration::from_secs(15),
            calls_per_second: 4,
            calls_burst: 24,
        }
    }
}

/// Why a connection does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("too many connections at once")]
    Connections,
    #[error("too many connections wait for room")]
    Waiting,
    #[error("too many connections of this peer at once")]
    Partner,
}

/// The room for connections.
pub(crate) struct Admission {
    limits: Limits,
    room: Mutex<Room>,
    /// Told when a place is given back.
    freed: Notify,
}

#[derive(Default)]
struct Room {
    next: u64,
    /// By age; none is empty. What is dropped of them closes its connection.
    pending: HashMap<Group, BTreeMap<u64, oneshot::Sender<()>>>,
    authenticated: usize,
    partners: HashMap<Arc<str>, usize>,
    /// Those that wait for room, by source.
    waiting: HashMap<IpAddr, usize>,
}

/// Pending connections that take each other's place first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Group {
    source: IpAddr,
    stranger: bool,
}

/// A connection's place; given back when dropped.
pub(crate) struct Place {
    admission: Arc<Admission>,
    holder: Holder,
}

/// A place, and what completes when it has to be given to another.
pub(crate) type Entered = (Place, oneshot::Receiver<()>);

/// One that waits for room; no longer when dropped.
struct Turn<'a> {
    admission: &'a Admission,
    source: IpAddr,
}

enum Holder {
    Pending(Group, u64),
    Partner(Arc<str>),
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            room: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// A place for a connection from `address`, where `expected` partners are.
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        expected: usize,
    ) -> Result<Entered, Full> {
        let (source, stranger) = (source(address), expected == 0);
        let group = Group { source, stranger };
        let mut room = self.room();
        while room.pending_of(group) >= self.per_source(expected) && room.close_oldest(group) {}
        if stranger {
            while room.strangers() >= self.limits.strangers && room.close_stranger() {}
        }
        let full = room.used() >= self.limits.connections;
        if full && (stranger || !room.close_stranger()) {
            return Err(Full::Connections);
        }
        let (keep, evicted) = oneshot::channel();
        let number = room.next;
        room.next += 1;
        room.pending.entry(group).or_default().insert(number, keep);
        let admission = Arc::clone(self);
        let holder = Holder::Pending(group, number);
        Ok((Place { admission, holder }, evicted))
    }

    /// The same as soon as there is room. Partners are so many that all of them may call at once.
    pub(super) async fn wait(
        self: &Arc<Self>,
        address: IpAddr,
        expected: usize,
    ) -> Result<Entered, Full> {
        let _turn = self.turn(source(address), expected)?;
        let entered = async {
            loop {
                self.freed.notified().await;
                if let Ok(entered) = self.enter(address, expected) {
                    return entered;
                }
            }
        };
        let entered = timeout(self.limits.handshake, entered).await;
        entered.map_err(|_| Full::Connections)
    }

    fn turn(&self, source: IpAddr, expected: usize) -> Result<Turn<'_>, Full> {
        let mut room = self.room();
        let all: usize = room.waiting.values().sum();
        let here = room.waiting.get(&source).copied().unwrap_or(0);
        if all >= self.limits.waiting || here >= self.per_source(expected) {
            return Err(Full::Waiting);
        }
        room.waiting.insert(source, here + 1);
        let admission = self;
        Ok(Turn { admission, source })
    }

    fn per_source(&self, expected: usize) -> usize {
        let each = self.limits.pending_per_source;
        each.saturating_mul(expected.max(1))
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn used(&self) -> usize {
        self.pending.values().map(BTreeMap::len).sum::<usize>() + self.authenticated
    }

    fn strangers(&self) -> usize {
        let strangers = self.pending.iter().filter(|(group, _)| group.stranger);
        strangers.map(|(_, pending)| pending.len()).sum()
    }

    fn pending_of(&self, group: Group) -> usize {
        self.pending.get(&group).map_or(0, BTreeMap::len)
    }

    /// Closes the oldest one of the strangers' source that has most; between equals the oldest.
    /// Whether there was one.
    fn close_stranger(&mut self) -> bool {
        let strangers = self.pending.iter().filter(|(group, _)| group.stranger);
        let fullest = strangers.max_by_key(|(_, pending)| {
            let oldest = pending.first_key_value().map(|(&number, _)| number);
            (pending.len(), Reverse(oldest))
        });
        let group = fullest.map(|(&group, _)| group);
        group.is_some_and(|group| self.close_oldest(group))
    }

    /// Whether there was one.
    fn close_oldest(&mut self, group: Group) -> bool {
        let pending = self.pending.get(&group);
        let oldest = pending.and_then(|pending| pending.first_key_value());
        let number = oldest.map(|(&number, _)| number);
        number.is_some_and(|number| self.remove(group, number))
    }

    /// Whether it was there.
    fn remove(&mut self, group: Group, number: u64) -> bool {
        let Entry::Occupied(mut pending) = self.pending.entry(group) else {
            return false;
        };
        let was_there = pending.get_mut().remove(&number).is_some();
        if pending.get().is_empty() {
            pending.remove();
        }
        was_there
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut room = self.admission.room();
        if let Entry::Occupied(mut here) = room.waiting.entry(self.source) {
            *here.get_mut() -= 1;
            if *here.get() == 0 {
                here.remove();
            }
        }
    }
}

impl Place {
    /// The certificate is that of `partners` partners, `first` among them.
    pub(super) fn authenticated(&mut self, first: &Arc<str>, partners: usize) -> Result<(), Full> {
        let limit = self.admission.limits.per_partner.saturating_mul(partners);
        let mut room = self.admission.room();
        let count = room.partners.get(first).copied().unwrap_or(0);
        if count >= limit {
            return Err(Full::Partner);
        }
        if let Holder::Pending(group, number) = self.holder {
            // When it was just evicted, the certificate came in time nevertheless.
            room.remove(group, number);
            room.authenticated += 1;
            room.partners.insert(Arc::clone(first), count + 1);
            self.holder = Holder::Partner(Arc::clone(first));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut room = self.admission.room();
        match &self.holder {
            Holder::Pending(group, number) => {
                room.remove(*group, *number);
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
    /// How many partners call with it.
    partners: f64,
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

    /// Whether `first` may call now, whose certificate is that of `partners` partners; counts it if
    /// so.
    pub(super) fn allows(&self, first: &Arc<str>, partners: usize, now: Instant) -> bool {
        let partners = f64::from(u32::try_from(partners).unwrap_or(u32::MAX));
        let burst = partners * self.burst;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // A full bucket is as good as none, so partners that are gone leave nothing behind.
        buckets.retain(|name, bucket| name == first || !self.refilled(bucket, now));
        let bucket = buckets.entry(Arc::clone(first)).or_insert(Bucket {
            partners,
            tokens: burst,
            filled: now,
        });
        bucket.partners = partners;
        self.refilled(bucket, now);
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// Adds what came in since the last time; whether it is full.
    fn refilled(&self, bucket: &mut Bucket, now: Instant) -> bool {
        let waited = now.saturating_duration_since(bucket.filled).as_secs_f64();
        let full = bucket.partners * self.burst;
        bucket.tokens = (bucket.tokens + waited * bucket.partners * self.per_second).min(full);
        bucket.filled = now;
        bucket.tokens >= full
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
    fn the_source_with_most_loses_its_oldest() {
        let admission = admission(20, 4, 9);
        let enter = |from: &str| admission.enter(ip(from), 0).unwrap();
        let (_roaming, mut roaming) = enter("10.0.0.1");
        let mut flood: Vec<_> = (0..9).map(|_| enter("10.0.0.2")).collect();
        assert!(!closed(&mut roaming));
        let open = flood.iter_mut().map(|(_, evicted)| !closed(evicted));
        let open: Vec<bool> = open.collect();
        assert_eq!(open[6..], [true; 3]);
        assert!(!open[..6].contains(&true), "{open:?}");
        // As many sources as there are places, and one more.
        let _others: Vec<_> = (3..6).map(|n| enter(&format!("10.0.0.{n}"))).collect();
        assert!(closed(&mut roaming));
    }

    #[tokio::test(start_paused = true)]
    async fn partners_wait_for_room_in_limited_number_and_time() {
        let admission = Arc::new(Admission::new(Limits {
            connections: 1,
            waiting: 3,
            pending_per_source: 2,
            ..Limits::default()
        }));
        let (held, _evicted) = admission.enter(ip("10.0.0.1"), 1).unwrap();
        let begun = tokio::time::Instant::now();
        let wait = |from| admission.wait(ip(from), 1);
        let (a, b, c, d, e) = tokio::join!(
            wait("10.0.0.1"),
            wait("10.0.0.1"),
            wait("10.0.0.1"),
            wait("10.0.0.2"),
            wait("10.0.0.3"),
        );
        let results = [a, b, c, d, e].map(Result::err);
        let (late, many) = (Some(Full::Connections), Some(Full::Waiting));
        assert_eq!(results, [late, late, many, late, many]);
        assert_eq!(begun.elapsed(), admission.limits.handshake);
        assert!(admission.room().waiting.is_empty());
        let (entered, ()) = tokio::join!(wait("10.0.0.2"), async { drop(held) });
        assert!(entered.is_ok());
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
            .map(|place| place.authenticated(&name, 1))
            .collect();
        assert_eq!(results, [Ok(()), Ok(()), Err(Full::Partner)]);
        // A second partner with the same certificate has as much.
        assert_eq!(places[2].authenticated(&name, 2), Ok(()));
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
        let granted = (0..100).filter(|_| rate.allows(&a, 1, start)).count();
        assert_eq!(granted, 24);
        assert!(rate.allows(&b, 1, start));
        let later = start + Duration::from_millis(500);
        let granted = (0..100).filter(|_| rate.allows(&a, 1, later)).count();
        assert_eq!(granted, 2);
        assert_eq!(
            rate.buckets.lock().unwrap().len(),
            1,
            "b's bucket is full again"
        );
    }

    #[test]
    fn partners_with_one_certificate_have_the_calls_of_all() {
        let rate = CallRate::new(&Limits::default());
        let a: Arc<str> = "a".into();
        let start = Instant::now();
        let granted = (0..100).filter(|_| rate.allows(&a, 3, start)).count();
        assert_eq!(granted, 72);
        let later = start + Duration::from_millis(500);
        let granted = (0..100).filter(|_| rate.allows(&a, 3, later)).count();
        assert_eq!(granted, 6);
    }
}
