//! A path in virtual time: delay, loss, duplication, reordering, damage, and routers with an MTU.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::support::Icmp;

/// What the path does to packets, in thousandths.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    /// Packets that take up to ten times as long as others.
    pub(crate) reordering: u64,
    /// Packets with a bit of their payload changed.
    pub(crate) damage: u64,
    /// MTU of the narrowest router from a point in time on, in milliseconds.
    pub(crate) mtus: Vec<(u64, usize)>,
}

/// A packet that arrives at one of the two ends.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival {
    pub(crate) at: u64,
    order: u64,
    pub(crate) end: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) damaged: bool,
}

pub(crate) struct Path {
    weather: Weather,
    random: u64,
    order: u64,
    under_way: BinaryHeap<Reverse<Arrival>>,
}

const DELAY: u64 = 20;

impl Path {
    pub(crate) fn new(weather: Weather, seed: u64) -> Self {
        let under_way = BinaryHeap::new();
        Self {
            weather,
            random: seed,
            order: 0,
            under_way,
        }
    }

    pub(crate) fn next_arrival(&self) -> Option<u64> {
        self.under_way.peek().map(|Reverse(arrival)| arrival.at)
    }

    pub(crate) fn arrive(&mut self, now: u64) -> Option<Arrival> {
        self.next_arrival().filter(|&at| at <= now)?;
        self.under_way.pop().map(|Reverse(arrival)| arrival)
    }

    /// A packet leaves the end `from`.
    pub(crate) fn send(&mut self, now: u64, from: usize, bytes: &[u8]) {
        let mtu = self
            .weather
            .mtus
            .iter()
            .rev()
            .find(|(since, _)| *since <= now);
        if let Some(&(_, mtu)) = mtu.filter(|(_, mtu)| bytes.len() > *mtu) {
            let too_big = packet_too_big(bytes, mtu);
            self.carry(now, from, too_big, false);
            return;
        }
        let copies = 1 + u64::from(self.happens(self.weather.duplication));
        for _ in 0..copies {
            self.carry(now, 1 - from, bytes.to_vec(), true);
        }
    }

    fn carry(&mut self, now: u64, end: usize, mut bytes: Vec<u8>, may_damage: bool) {
        if self.happens(self.weather.loss) {
            return;
        }
        let headers = if bytes[0] >> 4 == 4 { 20 + 60 } else { 40 + 60 };
        let damaged = may_damage && bytes.len() > headers && self.happens(self.weather.damage);
        if damaged {
            let at = headers + (self.random() as usize) % (bytes.len() - headers);
            bytes[at] ^= 1 << (self.random() % 8);
        }
        let mut delay = DELAY + self.random() % 3;
        if self.happens(self.weather.reordering) {
            delay += self.random() % (DELAY * 9);
        }
        self.order += 1;
        let (at, order) = (now + delay, self.order);
        self.under_way.push(Reverse(Arrival {
            at,
            order,
            end,
            bytes,
            damaged,
        }));
    }

    fn happens(&mut self, thousandths: u64) -> bool {
        self.random() % 1000 < thousandths
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn packet_too_big(about: &[u8], mtu: usize) -> Vec<u8> {
    let word = mtu as u32;
    if about[0] >> 4 == 4 {
        let src = "203.0.113.1".parse().unwrap();
        Icmp {
            src,
            kind: 3,
            code: 4,
            word,
            about,
        }
        .bytes()
    } else {
        let src = "2001:db8:f::1".parse().unwrap();
        Icmp {
            src,
            kind: 2,
            code: 0,
            word,
            about,
        }
        .bytes()
    }
}
