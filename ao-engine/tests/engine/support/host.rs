//! A host with an engine, driven one packet at a time, and a far end that signs by itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ao_engine::crypto::RustCrypto;
use ao_engine::engine::{
    Action, Change, Direction, Engine, Limits, Link, Outgoing, Packet, PeerCounters, SessionState,
    Verdict,
};
use ao_engine::policy::{ConnectionId, Mkt, Peer, Policy, Prefix, Selector};
use ao_engine::reason::DropReason;
use ao_engine::record::{EntryId, Record};
use ao_engine::time::Instant;
use ao_engine::wire::{HEADROOM, PacketBuf};

use super::packet::{ACK, SYN, Tcp, ip_checksum_ok, tcp_checksum_ok};
use super::signer::{Isns, sign, verify};

/// What became of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// As it stands in the buffer afterwards.
    pub(crate) bytes: Vec<u8>,
    pub(crate) outbox: Vec<Outgoing>,
    pub(crate) changes: Vec<Change>,
}

impl Outcome {
    /// The segment that goes on, with checksums that must be right.
    pub(crate) fn passed(&self) -> Tcp {
        let goes = matches!(
            self.verdict,
            Verdict::Accept | Verdict::Modified | Verdict::Transmit
        );
        assert!(goes, "{:?}", self.verdict);
        assert!(tcp_checksum_ok(&self.bytes) && ip_checksum_ok(&self.bytes));
        Tcp::parse(&self.bytes)
    }

    pub(crate) fn dropped(&self) -> DropReason {
        match self.verdict {
            Verdict::Drop(reason) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Records to be saved, with the packet that waits for each.
    pub(crate) fn saves(&self) -> Vec<(Option<usize>, Record)> {
        let saved = |change: &Change| match change.action {
            Action::Save(record) => Some((change.packet, record)),
            Action::Forget => None,
        };
        self.changes.iter().filter_map(saved).collect()
    }
}

/// An engine with its clock and what it has on record.
pub(crate) struct Host {
    pub(crate) engine: Engine<RustCrypto>,
    pub(crate) now: u64,
    pub(crate) link: Link,
    pub(crate) route_mtu: Option<u32>,
    pub(crate) records: BTreeMap<EntryId, Record>,
    limits: Limits,
    policy: Arc<Policy>,
    restarts: u16,
}

impl Host {
    pub(crate) const LIMITS: Limits = Limits {
        max_connections: 100,
        strip: true,
        unknown_per_second: 10,
    };

    pub(crate) fn new(peers: Vec<Peer>) -> Self {
        Self::with_limits(peers, Self::LIMITS)
    }

    pub(crate) fn with_limits(peers: Vec<Peer>, limits: Limits) -> Self {
        let policy = Arc::new(Policy::new(peers).unwrap());
        let mut engine = Engine::new(RustCrypto, limits, 0);
        engine.set_policy(policy.clone());
        let link = Link {
            mark: 0,
            domain: 0,
            interface: 2,
            mtu: Some(1500),
        };
        let (now, route_mtu, records, restarts) = (1_000_000, Some(1500), BTreeMap::new(), 0);
        Self {
            engine,
            now,
            link,
            route_mtu,
            records,
            limits,
            policy,
            restarts,
        }
    }

    /// A peer with one address and port 179.
    pub(crate) fn peer(far: SocketAddr, keys: &[Arc<Mkt>]) -> Peer {
        let remote = Prefix::host(far.ip());
        let (local, ports, interface, domain) = (None, 179..=179, None, None);
        let selector = Selector {
            remote,
            local,
            ports,
            interface,
            domain,
        };
        Peer {
            name: "far".into(),
            selector,
            keys: keys.to_vec(),
            accept_only: vec![],
            ttl_min: 0,
        }
    }

    pub(crate) fn set_policy(&mut self, peers: Vec<Peer>) {
        self.policy = Arc::new(Policy::new(peers).unwrap());
        self.engine.set_policy(self.policy.clone());
    }

    /// Kills the engine and starts another one with the records of the first.
    pub(crate) fn restart(&mut self) {
        self.restarts += 1;
        self.engine = Engine::new(RustCrypto, self.limits, self.restarts);
        self.engine.set_policy(self.policy.clone());
        for (&entry, record) in &self.records {
            let record = Record::decode(&record.encode()).unwrap();
            assert!(
                self.engine
                    .restore(Instant::from_millis(self.now), entry, &record)
            );
        }
    }

    pub(crate) fn inbound(&mut self, bytes: &[u8]) -> Outcome {
        self.one(Direction::Inbound, bytes)
    }

    pub(crate) fn outbound(&mut self, bytes: &[u8]) -> Outcome {
        self.one(Direction::Outbound, bytes)
    }

    fn one(&mut self, direction: Direction, bytes: &[u8]) -> Outcome {
        let (mut outcomes, changes) = self.batch(&[(direction, bytes.to_vec())]);
        let mut outcome = outcomes.pop().unwrap();
        outcome.changes = changes;
        outcome
    }

    /// One batch. The outbox is with the last outcome.
    pub(crate) fn batch(
        &mut self,
        packets: &[(Direction, Vec<u8>)],
    ) -> (Vec<Outcome>, Vec<Change>) {
        let mut buffers: Vec<Vec<u8>> = packets
            .iter()
            .map(|(_, bytes)| [&[0xaa; HEADROOM], &bytes[..]].concat())
            .collect();
        let mut batch: Vec<Packet<'_>> = packets
            .iter()
            .zip(&mut buffers)
            .map(|((direction, _), buffer)| {
                let end = buffer.len();
                let buf = PacketBuf::new(buffer, HEADROOM, end).unwrap();
                let (direction, link, route_mtu) = (*direction, self.link, self.route_mtu);
                Packet {
                    direction,
                    link,
                    route_mtu,
                    buf,
                }
            })
            .collect();
        let mut verdicts = Vec::new();
        self.engine
            .process(Instant::from_millis(self.now), &mut batch, &mut verdicts);
        assert_eq!(verdicts.len(), packets.len());
        let mut outcomes: Vec<Outcome> = verdicts
            .into_iter()
            .zip(&batch)
            .map(|(verdict, packet)| {
                let bytes = packet.buf.bytes().to_vec();
                Outcome {
                    verdict,
                    bytes,
                    outbox: vec![],
                    changes: vec![],
                }
            })
            .collect();
        if let Some(last) = outcomes.last_mut() {
            last.outbox = self.engine.take_outbox();
        }
        let changes = self.take_changes();
        (outcomes, changes)
    }

    pub(crate) fn icmp(&mut self, bytes: &[u8]) -> Option<Outcome> {
        let mut buffer = bytes.to_vec();
        let end = buffer.len();
        let mut buf = PacketBuf::new(&mut buffer, 0, end).unwrap();
        let now = Instant::from_millis(self.now);
        let verdict = self.engine.process_icmp(now, self.link, &mut buf)?;
        let (outbox, changes) = (vec![], vec![]);
        Some(Outcome {
            verdict,
            bytes: buf.bytes().to_vec(),
            outbox,
            changes,
        })
    }

    /// Lets time pass, with a tick at its end.
    pub(crate) fn wait(&mut self, millis: u64) {
        self.now += millis;
        self.engine.tick(Instant::from_millis(self.now));
        self.take_changes();
    }

    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        let changes = self.engine.take_changes();
        for change in &changes {
            match change.action {
                Action::Save(record) => self.records.insert(change.entry, record),
                Action::Forget => self.records.remove(&change.entry),
            };
        }
        changes
    }

    pub(crate) fn counters(&self, peer: &str) -> PeerCounters {
        let found = self
            .engine
            .peer_counters()
            .find(|(name, _)| &***name == peer);
        found.map(|(_, counters)| counters.clone()).unwrap()
    }
}

/// A connection between a host's local TCP and a far end that signs by itself.
pub(crate) struct Session {
    pub(crate) host: Host,
    pub(crate) local: SocketAddr,
    pub(crate) far: SocketAddr,
    pub(crate) local_isn: u32,
    pub(crate) far_isn: u32,
    /// The host's keys, by its own IDs.
    pub(crate) keys: Vec<Arc<Mkt>>,
}

impl Session {
    /// No packet has passed yet; the far end is to call.
    pub(crate) fn passive(keys: Vec<Mkt>) -> Self {
        Self::between("10.0.0.1:179", "10.0.0.2:40000", keys)
    }

    /// No packet has passed yet; the host is to call.
    pub(crate) fn active(keys: Vec<Mkt>) -> Self {
        Self::between("10.0.0.1:40000", "10.0.0.2:179", keys)
    }

    pub(crate) fn between(local: &str, far: &str, keys: Vec<Mkt>) -> Self {
        let keys: Vec<Arc<Mkt>> = keys.into_iter().map(Arc::new).collect();
        let (local, far) = (local.parse().unwrap(), far.parse().unwrap());
        let host = Host::new(vec![Host::peer(far, &keys)]);
        Self {
            host,
            local,
            far,
            local_isn: 1000,
            far_isn: 9000,
            keys,
        }
    }

    /// The far end called and the handshake is over.
    pub(crate) fn established(keys: Vec<Mkt>) -> Self {
        let mut session = Self::passive(keys);
        session.accept_call();
        session
    }

    pub(crate) fn accept_call(&mut self) {
        self.receive(&self.far_syn()).passed();
        self.send(&self.local_syn_ack()).passed();
        let sne = u32::from(self.far_isn == u32::MAX);
        let ack = self.of_far(ACK, 1, 1);
        self.receive_with(&ack, 0, self.keys[0].send_id, sne)
            .passed();
        assert_eq!(self.state(), Some(SessionState::Established));
    }

    pub(crate) fn call(&mut self) {
        self.send(&self.local_syn()).passed();
        self.receive(&self.far_syn_ack()).passed();
        self.send(&self.of_local(ACK, 1, 1)).passed();
        assert_eq!(self.state(), Some(SessionState::Established));
    }

    /// A segment of the far end, its numbers counted from the ISNs.
    pub(crate) fn of_far(&self, flags: u8, seq: u32, ack: u32) -> Tcp {
        let (seq, ack) = (
            self.far_isn.wrapping_add(seq),
            self.local_isn.wrapping_add(ack),
        );
        Tcp::new(self.far, self.local, flags, seq, ack)
    }

    /// A segment of the local TCP, its numbers counted from the ISNs.
    pub(crate) fn of_local(&self, flags: u8, seq: u32, ack: u32) -> Tcp {
        let (seq, ack) = (
            self.local_isn.wrapping_add(seq),
            self.far_isn.wrapping_add(ack),
        );
        Tcp::new(self.local, self.far, flags, seq, ack)
    }

    pub(crate) fn far_syn(&self) -> Tcp {
        Tcp {
            ack: 0,
            ..self.of_far(SYN, 0, 0)
        }
    }

    pub(crate) fn local_syn(&self) -> Tcp {
        Tcp {
            ack: 0,
            ..self.of_local(SYN, 0, 0)
        }
    }

    pub(crate) fn far_syn_ack(&self) -> Tcp {
        self.of_far(SYN | ACK, 0, 1)
    }

    pub(crate) fn local_syn_ack(&self) -> Tcp {
        self.of_local(SYN | ACK, 0, 1)
    }

    fn isns(&self, segment: &Tcp) -> Isns {
        let starts = segment.flags & (SYN | ACK) == SYN;
        if segment.src == self.far {
            (self.far_isn, if starts { 0 } else { self.local_isn })
        } else {
            (self.local_isn, if starts { 0 } else { self.far_isn })
        }
    }

    /// Signs a segment of the far end with the first key, SNE 0.
    pub(crate) fn signed(&self, segment: &Tcp) -> Vec<u8> {
        let first = self.keys[0].send_id;
        self.signed_with(segment, 0, first, 0)
    }

    /// Signs with the key at an index; `rnext` is a SendID of the host.
    pub(crate) fn signed_with(&self, segment: &Tcp, key: usize, rnext: u8, sne: u32) -> Vec<u8> {
        let key = &self.keys[key];
        sign(segment, key, (key.recv_id, rnext), self.isns(segment), sne)
    }

    /// A segment of the far end arrives, signed.
    pub(crate) fn receive(&mut self, segment: &Tcp) -> Outcome {
        let packet = self.signed(segment);
        self.host.inbound(&packet)
    }

    pub(crate) fn receive_with(
        &mut self,
        segment: &Tcp,
        key: usize,
        rnext: u8,
        sne: u32,
    ) -> Outcome {
        let packet = self.signed_with(segment, key, rnext, sne);
        self.host.inbound(&packet)
    }

    /// The local TCP sends a segment.
    pub(crate) fn send(&mut self, segment: &Tcp) -> Outcome {
        self.host.outbound(&segment.bytes())
    }

    /// Asserts that a packet of the host carries the KeyID of a key and verifies with it.
    pub(crate) fn assert_signed(&self, packet: &[u8], key: usize, sne: u32) {
        let segment = Tcp::parse(packet);
        let key = &self.keys[key];
        assert_eq!(segment.ao().map(|(id, _)| id), Some(key.send_id), "KeyID");
        assert!(
            verify(packet, key, self.isns(&segment), sne),
            "MAC of {segment:?}"
        );
        assert!(
            tcp_checksum_ok(packet) && ip_checksum_ok(packet),
            "checksums"
        );
    }

    /// A segment each way passes and verifies.
    pub(crate) fn assert_alive(&mut self) {
        let segment = self.of_far(ACK, 1, 1);
        self.receive(&segment).passed();
        let segment = self.of_local(ACK, 1, 1);
        let out = self.send(&segment);
        out.passed();
        let sne = self.view(|view| view.snd_sne).unwrap();
        let key = self.view(|view| view.current_key).unwrap();
        let key = self
            .keys
            .iter()
            .position(|held| held.send_id == key)
            .unwrap();
        self.assert_signed(&out.bytes, key, sne);
    }

    pub(crate) fn id(&self) -> ConnectionId {
        ConnectionId {
            domain: self.host.link.domain,
            interface: 0,
            local: self.local.ip(),
            remote: self.far.ip(),
            local_port: self.local.port(),
            remote_port: self.far.port(),
        }
    }

    /// Something of the session as it is reported; the live one where there are several.
    pub(crate) fn view<T>(
        &self,
        of: impl Fn(&ao_engine::engine::SessionView<'_>) -> T,
    ) -> Option<T> {
        let mut views: Vec<_> = self
            .host
            .engine
            .sessions()
            .filter(|view| view.connection == self.id())
            .collect();
        views.sort_by_key(|view| view.state == SessionState::Opening);
        views.first().map(of)
    }

    pub(crate) fn state(&self) -> Option<SessionState> {
        self.view(|view| view.state)
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.host.counters("far").drops.get(reason)
    }
}
