//! Listening to handshakes: packets of the tap in, evidence out.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ao_engine::policy::{Mkt, Policy};
use ao_sys::links::Links;
use ao_sys::packet::{MAX_PACKET, Tap};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Evidence;
use super::collect::Collector;

/// A packet that passes several devices is seen on all of them within this time.
const SETTLE: Duration = Duration::from_millis(50);
/// How long it is still listened once there is something to tell of all peers: the other direction
/// may have something to add.
const AFTERGLOW: Duration = Duration::from_millis(700);
/// How often it is asked whether to go on.
const ASKED: Duration = Duration::from_millis(200);
/// Different packets that wait to settle. When there are more, those that are there have settled.
const MAX_UNSETTLED: usize = 4096;
/// The same in octets: SYNs may carry data.
const MAX_UNSETTLED_OCTETS: usize = 4 << 20;

/// What to listen to.
pub(crate) struct Question<'a> {
    /// All peers there are, with the keys they have.
    pub(crate) policy: Arc<Policy>,
    pub(crate) links: Arc<Links>,
    /// Names of the peers asked about.
    pub(crate) asked: &'a [Arc<str>],
    /// Keys of other times.
    pub(crate) extra: &'a [(Arc<str>, Arc<Mkt>)],
    /// Addresses of this host.
    pub(crate) addresses: HashSet<IpAddr>,
}

/// Listens in the calling thread's network namespace.
pub(crate) fn listen(
    question: Question<'_>,
    at_most: Duration,
    stop_when_all: bool,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Evidence> {
    let peers = question.policy.peers();
    let ports: Vec<RangeInclusive<u16>> = peers
        .iter()
        .map(|peer| peer.selector.ports.clone())
        .collect();
    let tap = Tap::open(&ports)?;
    let begun = Instant::now();
    let end = begun + at_most;
    let mut collector = Collector::new(question);
    let mut unsettled = Unsettled::default();
    let mut buffer = vec![0; MAX_PACKET];
    let mut enough: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let ends = enough.map_or(end, |enough| end.min(enough + AFTERGLOW));
        if now >= ends || !go_on() {
            break;
        }
        wait(&tap, ends - now, unsettled.is_empty())?;
        while let Some(tapped) = receive(&tap, &mut buffer)? {
            unsettled.add(tapped.packet, tapped.interface, Instant::now());
            if unsettled.is_full() || Instant::now() >= ends {
                break;
            }
        }
        unsettled.settle(Instant::now(), |packet, devices| {
            collector.take(packet, devices);
        });
        if stop_when_all && enough.is_none() && collector.is_conclusive() {
            enough = Some(Instant::now());
        }
    }
    unsettled.settle(end + SETTLE, |packet, devices| {
        collector.take(packet, devices);
    });
    let missed = u64::from(tap.missed()?);
    Ok(collector.finish(begun.elapsed(), missed))
}

/// Waits for a packet, or until those there are have settled.
fn wait(tap: &Tap, left: Duration, nothing_waits: bool) -> io::Result<()> {
    let wait = match nothing_waits {
        true => left.min(ASKED),
        false => left.min(SETTLE),
    };
    // Rounded up, so that the last millisecond is not spun away.
    let millis = u16::try_from(wait.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
    let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ready, PollTimeout::from(millis)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A device that goes down is told once, and of no matter: the others are still there.
fn receive<'b>(tap: &Tap, buffer: &'b mut [u8]) -> io::Result<Option<ao_sys::packet::Tapped<'b>>> {
    match tap.receive(buffer) {
        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
        other => other,
    }
}

/// Packets of which another device may yet show a copy.
#[derive(Default)]
struct Unsettled {
    packets: HashMap<Box<[u8]>, Sighting>,
    /// Length of all of them.
    octets: usize,
}

struct Sighting {
    first: Instant,
    /// In the order of the sightings.
    devices: Vec<u32>,
}

impl Unsettled {
    fn add(&mut self, packet: &[u8], device: u32, now: Instant) {
        let Some(sighting) = self.packets.get_mut(packet) else {
            let sighting = Sighting {
                first: now,
                devices: vec![device],
            };
            self.octets += packet.len();
            self.packets.insert(packet.into(), sighting);
            return;
        };
        if !sighting.devices.contains(&device) {
            sighting.devices.push(device);
        }
    }

    /// Hands over what has settled, in no particular order.
    fn settle(&mut self, now: Instant, mut take: impl FnMut(&[u8], &[u32])) {
        let all = self.is_full();
        let octets = &mut self.octets;
        self.packets.retain(|packet, sighting| {
            let settled = all || now.duration_since(sighting.first) >= SETTLE;
            if settled {
                *octets -= packet.len();
                take(packet, &sighting.devices);
            }
            !settled
        });
    }

    fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn is_full(&self) -> bool {
        self.packets.len() >= MAX_UNSETTLED || self.octets >= MAX_UNSETTLED_OCTETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(unsettled: &mut Unsettled, now: Instant) -> Vec<(Vec<u8>, Vec<u32>)> {
        let mut taken = Vec::new();
        unsettled.settle(now, |packet, devices| {
            taken.push((packet.to_vec(), devices.to_vec()));
        });
        taken.sort();
        taken
    }

    #[test]
    fn copies_of_one_packet_are_one() {
        let begun = Instant::now();
        let mut unsettled = Unsettled::default();
        unsettled.add(b"one", 2, begun);
        unsettled.add(b"one", 7, begun + SETTLE / 2);
        unsettled.add(b"one", 2, begun + SETTLE / 2);
        unsettled.add(b"two", 2, begun + SETTLE / 2);
        assert_eq!(settled(&mut unsettled, begun + SETTLE / 2), []);
        let first = settled(&mut unsettled, begun + SETTLE);
        assert_eq!(first, [(b"one".to_vec(), vec![2, 7])]);
        // The same octets later are another segment.
        unsettled.add(b"one", 2, begun + SETTLE * 2);
        let rest = settled(&mut unsettled, begun + SETTLE * 3);
        assert_eq!(rest.len(), 2);
        assert!(unsettled.is_empty());
    }

    #[test]
    fn a_flood_is_looked_at_at_once() {
        let now = Instant::now();
        let mut unsettled = Unsettled::default();
        for number in 0..u32::try_from(MAX_UNSETTLED).unwrap() {
            assert!(!unsettled.is_full());
            unsettled.add(&number.to_be_bytes(), 1, now);
        }
        assert_eq!(settled(&mut unsettled, now).len(), MAX_UNSETTLED);
        assert!(unsettled.is_empty());
        let mut large = vec![0; MAX_UNSETTLED_OCTETS / 2];
        unsettled.add(&large, 1, now);
        unsettled.add(&large, 2, now);
        assert!(!unsettled.is_full());
        large[0] = 1;
        unsettled.add(&large, 1, now);
        assert_eq!(settled(&mut unsettled, now).len(), 2);
        assert!(unsettled.is_empty() && !unsettled.is_full());
    }
}
