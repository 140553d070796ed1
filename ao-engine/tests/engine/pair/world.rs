//! Two hosts, each a small TCP over an engine, joined by a path.

use std::net::SocketAddr;
use std::sync::Arc;

use ao_engine::engine::Verdict;
use ao_engine::policy::Mkt;
use ao_engine::reason::DropReason;

use super::path::{Arrival, Path, Weather};
use super::tcp::Endpoint;
use crate::support::{ACK, Host, SYN, Tcp, verify};

/// What happens to an engine at a point in time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// It is killed and started again with its records.
    Restart(usize),
    /// Management makes the key at this index the one to receive with: RNextKeyID.
    Advertise(usize, usize),
}

/// A run: what the path does, and what happens when.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) addresses: [&'static str; 2],
    pub(crate) isns: [u32; 2],
    pub(crate) octets: [usize; 2],
    pub(crate) seed: u64,
    pub(crate) weather: Weather,
    pub(crate) events: Vec<(u64, Event)>,
    /// Both ends call at once.
    pub(crate) simultaneous: bool,
    /// Without, the same TCPs talk without TCP-AO: what gets through then must get through with.
    pub(crate) protected: bool,
}

pub(crate) const LINK_MTU: usize = 1500;
/// Longer than any run takes: ten minutes of virtual time.
const LIMIT: u64 = 600_000;

pub(crate) struct World {
    pub(crate) hosts: [Host; 2],
    pub(crate) tcps: [Endpoint; 2],
    pub(crate) now: u64,
    /// Segments that were sent past the route's MTU, and in pieces.
    pub(crate) transmitted: usize,
    pub(crate) split: usize,
    pub(crate) damaged: usize,
    /// Events that came while the transfer was under way.
    pub(crate) events_in_time: usize,
    keys: [Vec<Arc<Mkt>>; 2],
    path: Path,
    plan: Plan,
}

/// Octets that are wrong at any other place.
pub(crate) fn stream(end: usize, len: usize) -> Vec<u8> {
    let octet = |at: usize| (at.wrapping_mul(31) >> 3) as u8 ^ (at >> 11) as u8 ^ end as u8;
    (0..len).map(octet).collect()
}

impl World {
    /// `keys` are those of each end, in its own IDs.
    pub(crate) fn new(plan: Plan, keys: [Vec<Arc<Mkt>>; 2]) -> Self {
        let ends: [SocketAddr; 2] = plan.addresses.map(|address| address.parse().unwrap());
        let host = |end: usize| Host::new(vec![Host::peer(ends[1 - end], &keys[end])]);
        let tcp = |end: usize| {
            let data = stream(end, plan.octets[end]);
            Endpoint::new(ends[end], ends[1 - end], plan.isns[end], LINK_MTU, data)
        };
        let mut tcps = [tcp(0), tcp(1)];
        tcps[0].call();
        if plan.simultaneous {
            tcps[1].call();
        }
        let hosts = [host(0), host(1)];
        let path = Path::new(plan.weather.clone(), plan.seed);
        let (now, transmitted, split, damaged, events_in_time) = (0, 0, 0, 0, 0);
        Self {
            hosts,
            tcps,
            now,
            transmitted,
            split,
            damaged,
            events_in_time,
            keys,
            path,
            plan,
        }
    }

    /// Runs until both ends are done and checks what arrived.
    pub(crate) fn run(&mut self) {
        let mut events = self.plan.events.clone();
        events.sort_by_key(|(at, _)| *at);
        events.reverse();
        loop {
            for end in 0..2 {
                for segment in self.tcps[end].poll(self.now) {
                    self.send(end, &segment);
                }
            }
            if self.tcps.iter().all(Endpoint::is_done) && events.is_empty() {
                break;
            }
            let deadlines = self.tcps.iter().filter_map(Endpoint::deadline);
            let event = events.last().map(|(at, _)| *at);
            let next = deadlines.chain(self.path.next_arrival()).chain(event).min();
            self.now = next.expect("nothing will ever happen again").max(self.now);
            assert!(self.now < LIMIT, "stalled");
            for host in &mut self.hosts {
                host.now = 1_000_000 + self.now;
            }
            while let Some((_, event)) = events.pop_if(|(at, _)| *at <= self.now) {
                self.happen(event);
            }
            // One at a time, so that each can be answered.
            if let Some(arrival) = self.path.arrive(self.now) {
                self.arrive(&arrival);
            }
        }
        for end in 0..2 {
            assert!(!self.tcps[end].was_reset);
            let sent = stream(1 - end, self.plan.octets[1 - end]);
            assert!(
                self.tcps[end].received() == sent,
                "end {end} received something else"
            );
        }
    }

    fn happen(&mut self, event: Event) {
        let done = self.tcps.iter().all(Endpoint::is_done);
        self.events_in_time += usize::from(!done);
        match event {
            Event::Restart(end) => self.hosts[end].restart(),
            Event::Advertise(end, key) => {
                let mut keys = self.keys[end].clone();
                keys[..=key].rotate_right(1);
                let far = self.plan.addresses[1 - end].parse().unwrap();
                self.hosts[end].set_policy(vec![Host::peer(far, &keys)]);
                self.hosts[end].take_changes();
                self.hosts[end].restart();
            }
        }
    }

    fn send(&mut self, end: usize, segment: &Tcp) {
        if !self.plan.protected {
            self.path.send(self.now, end, &segment.bytes());
            return;
        }
        let route_mtu = self.tcps[end].route_mtu;
        let host = &mut self.hosts[end];
        host.route_mtu = Some(route_mtu as u32);
        host.link.mtu = Some(LINK_MTU as u32);
        let outcome = host.outbound(&segment.bytes());
        let packets = match outcome.verdict {
            Verdict::Modified => {
                assert!(
                    outcome.bytes.len() <= route_mtu,
                    "the kernel would drop this"
                );
                vec![outcome.bytes]
            }
            Verdict::Transmit => {
                self.transmitted += 1;
                vec![outcome.bytes]
            }
            Verdict::Split => {
                self.split += 1;
                outcome
                    .outbox
                    .into_iter()
                    .map(|piece| piece.bytes)
                    .collect()
            }
            other => panic!("a genuine segment was not sent: {other:?} {segment:?}"),
        };
        for packet in packets {
            assert!(packet.len() <= LINK_MTU);
            self.assert_signed(end, &packet);
            self.path.send(self.now, end, &packet);
        }
    }

    fn assert_signed(&self, end: usize, packet: &[u8]) {
        let (tcp, segment) = (&self.tcps[end], Tcp::parse(packet));
        let starts = segment.flags & (SYN | ACK) == SYN;
        let their_isn = if starts { 0 } else { tcp.peer_isn.unwrap() };
        let (key_id, _) = segment.ao().expect("a segment without TCP-AO on the wire");
        let key = self.keys[end]
            .iter()
            .find(|key| key.send_id == key_id)
            .unwrap();
        let sne = (tcp.extend(segment.seq) >> 32) as u32;
        assert!(
            verify(packet, key, (tcp.isn, their_isn), sne),
            "wrong MAC on the wire"
        );
    }

    fn arrive(&mut self, arrival: &Arrival) {
        let (end, bytes) = (arrival.end, &arrival.bytes);
        let protocol = if bytes[0] >> 4 == 4 {
            bytes[9]
        } else {
            bytes[6]
        };
        if protocol != 6 {
            self.hear_of_mtu(end, bytes);
            return;
        }
        if !self.plan.protected {
            if !arrival.damaged {
                self.tcps[end].receive(self.now, &Tcp::parse(bytes));
            }
            return;
        }
        let outcome = self.hosts[end].inbound(bytes);
        if arrival.damaged {
            assert_eq!(outcome.dropped(), DropReason::Checksum);
            self.damaged += 1;
            return;
        }
        match outcome.verdict {
            Verdict::Modified => {
                let passed = outcome.passed();
                assert_eq!(passed.ao(), None);
                self.tcps[end].receive(self.now, &passed);
            }
            other => panic!(
                "a genuine segment was refused: {other:?} {:?}",
                Tcp::parse(bytes)
            ),
        }
    }

    fn hear_of_mtu(&mut self, end: usize, bytes: &[u8]) {
        let told = if self.plan.protected {
            match self.hosts[end].icmp(bytes) {
                Some(outcome) if outcome.verdict == Verdict::Modified => outcome.bytes,
                // Acknowledged by now, in spite of the message, or about a SYN's attempt.
                Some(outcome) => {
                    assert_eq!(outcome.dropped(), DropReason::IcmpUnmatched);
                    return;
                }
                None => panic!("an ICMP error about nobody"),
            }
        } else {
            bytes.to_vec()
        };
        let at = if bytes[0] >> 4 == 4 { 20 } else { 40 } + 4;
        let mtu = u32::from_be_bytes(told[at..at + 4].try_into().unwrap());
        self.tcps[end].lower_mtu(mtu as usize);
    }
}
