//! The engine: batches of packets in, one verdict per packet out.
//!
//! A batch goes through three steps. *Plan*: each packet is parsed, given its connection and MKT,
//! and refused where that costs no MAC; local segments are edited and get their option. *MAC*: all
//! MACs of the batch are computed by one call of the provider, so that several can run side by
//! side. *Commit*: in order of arrival, outbound segments are completed, inbound MACs compared,
//! and only what verified changes the state of a connection.
//!
//! The caller's duties, for each batch: [`Engine::process`], then put
//! [`Engine::take_changes`] on record, then carry out the verdicts, then send
//! [`Engine::take_outbox`].

mod connection;
mod counters;
mod icmp;
mod inbound;
mod nudge;
mod outbound;
mod table;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

pub use connection::{KeyCounters, SessionCounters};
pub use counters::{DropCounters, PeerCounters, Refused};

use connection::Connection;
use counters::Counters;
use inbound::{Subject, VerifyPlan};
use outbound::SignPlan;
use table::{Handle, Table};

use crate::crypto::{Mac, MacJob, MacProvider};
use crate::policy::{ConnectionId, Mkt, Peer, Policy};
use crate::reason::DropReason;
use crate::record::{EntryId, Record};
use crate::time::Instant;
use crate::wire::{PacketBuf, Segment};

/// Which way a packet goes, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the far end to the local TCP.
    Inbound,
    /// From the local TCP to the far end.
    Outbound,
}

/// Where a packet came in or leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index of the L3 master (VRF), 0 in the default domain.
    pub domain: u32,
    /// Interface index of the device.
    pub interface: u32,
    /// MTU of the device, if known.
    pub mtu: Option<u32>,
    /// Packet mark, which may choose the route: what is sent in a packet's stead has the same.
    pub mark: u32,
}

/// A packet under way.
#[derive(Debug)]
pub struct Packet<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Where it came in or leaves.
    pub link: Link,
    /// MTU of the route towards the remote address as the kernel sees it now, if known.
    pub route_mtu: Option<u32>,
    /// The packet from its IP header on, and the room before it.
    pub buf: PacketBuf<'a>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it came.
    Accept,
    /// It goes on as it now stands in its buffer.
    Modified,
    /// The queue drops it; as it stands in its buffer it is sent past the route's MTU, which the
    /// inserted option exceeds though the path does not mind.
    Transmit,
    /// The queue drops it; the outbox has the smaller segments to send instead.
    Split,
    /// It is refused.
    Drop(DropReason),
}

/// A packet the engine made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The device it leaves by.
    pub link: Link,
    /// The packet from its IP header on, complete.
    pub bytes: Vec<u8>,
}

/// A change to what must be on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Index in the batch of the packet that must not pass before the change is on record.
    pub packet: Option<usize>,
    /// The entry that changed.
    pub entry: EntryId,
    /// What to do with its record.
    pub action: Action,
}

/// What to do with the record of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this one over any earlier one.
    Save(Record),
    /// Delete it.
    Forget,
}

/// Bounds and fixed choices of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries in the connection table, provisional ones included.
    pub max_connections: usize,
    /// Whether TCP-AO is removed from every verified inbound segment. If not, it is left where
    /// kernels without TCP-AO overlook it: at the end of the header, with at most 16 octets.
    pub strip: bool,
    /// First segments of unknown connections that are verified per second (SYN cookies, a record
    /// that was lost): each costs a key derivation.
    pub unknown_per_second: u32,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// The far end has not proven yet that it knows both ISNs.
    Opening,
    /// It has.
    Established,
    /// Both ends are done; kept for late segments.
    Closing,
}

/// One session, as reported.
#[derive(Clone, Debug)]
pub struct SessionView<'a> {
    /// The connection.
    pub connection: ConnectionId,
    /// Its peer.
    pub peer: &'a Peer,
    /// How far it is.
    pub state: SessionState,
    /// SendID of current_key.
    pub current_key: u8,
    /// RecvID of rnext_key.
    pub rnext_key: u8,
    /// Its segments.
    pub counters: SessionCounters,
    /// The same by key, in the order of the peer's keys; shorter while the last were not used.
    pub key_counters: &'a [KeyCounters],
    /// SNE of what was sent last.
    pub snd_sne: u32,
    /// SNE of what was received last.
    pub rcv_sne: u32,
    /// When its last genuine segment passed.
    pub last_seen: Instant,
}

impl SessionView<'_> {
    /// The keys of its peer, and how much the session has used each.
    pub fn keys(&self) -> impl Iterator<Item = (&Mkt, KeyCounters)> {
        let counters = self.key_counters.iter().copied();
        let unused = core::iter::repeat(KeyCounters::default());
        let keys = self.peer.keys.iter().map(AsRef::as_ref);
        keys.zip(counters.chain(unused))
    }
}

/// TCP-AO for the connections of one worker.
#[derive(Debug)]
pub struct Engine<P: MacProvider> {
    provider: P,
    limits: Limits,
    policy: Arc<Policy>,
    table: Table<P::Key>,
    counters: Counters,
    recovery: Bucket,
    changes: Vec<Change>,
    outbox: Vec<Outgoing>,
}

/// What is to be done with a packet once the MACs of the batch are known.
enum Plan<K> {
    Refused(Refusal),
    Sign(SignPlan),
    Verify(VerifyPlan<K>),
}

/// Why a packet is refused, and who it is counted against.
struct Refusal {
    reason: DropReason,
    peer: Option<usize>,
    connection: Option<ConnectionId>,
    /// The KeyID that the segment named.
    key_id: Option<u8>,
    /// Index of the key of that name, where it is the key that did not fit.
    key: Option<usize>,
}

impl<P: MacProvider> Engine<P> {
    /// An engine without peers: it refuses everything. `worker` keeps the entry numbers of
    /// several engines apart.
    pub fn new(provider: P, limits: Limits, worker: u16) -> Self {
        Self {
            provider,
            limits,
            policy: Arc::new(Policy::default()),
            table: Table::new(limits.max_connections, u64::from(worker) << 48),
            counters: Counters::default(),
            recovery: Bucket::new(limits.unknown_per_second),
            changes: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// Replaces the policy. Connections whose peer is gone, or has no keys left, are forgotten.
    ///
    /// The first key of its peer is rnext_key of a connection: which one the far end is asked to
    /// use is a matter of management (RFC 5925 §3.3). current_key is the far end's to move, by its
    /// RNextKeyID, as long as the key exists and may be sent with; else it is the first key, too.
    /// So it is for a connection whose SYN the far end has not answered.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        let old = core::mem::replace(&mut self.policy, policy);
        let policy = &self.policy;
        self.table
            .remove_where(|connection| usable_peer(policy, &connection.id).is_none());
        for connection in self.table.iter_mut() {
            let Some((index, peer)) = usable_peer(policy, &connection.id) else {
                continue;
            };
            let was = old.peers().get(connection.peer);
            let before = was.and_then(|was| connection.key_ids(was));
            connection.peer = index;
            connection.follow_keys(was.map(AsRef::as_ref), peer);
            // Else a restart would ask for the former key again.
            if connection.local_isn.is_some() && connection.key_ids(peer) != before {
                self.changes.push(Change {
                    packet: None,
                    entry: connection.entry,
                    action: Action::Save(connection.record(peer)),
                });
            }
        }
        self.counters.follow(policy);
    }

    /// Decides on a batch. `verdicts` is cleared and filled with one verdict per packet, in order.
    pub fn process(
        &mut self,
        now: Instant,
        packets: &mut [Packet<'_>],
        verdicts: &mut Vec<Verdict>,
    ) {
        let plans: Vec<Plan<P::Key>> = packets
            .iter_mut()
            .enumerate()
            .map(|(index, packet)| {
                let plan = match packet.direction {
                    Direction::Inbound => self.plan_inbound(now, packet).map(Plan::Verify),
                    Direction::Outbound => self.plan_outbound(now, index, packet).map(Plan::Sign),
                };
                plan.unwrap_or_else(Plan::Refused)
            })
            .collect();
        let macs = self.compute_macs(packets, &plans);
        verdicts.clear();
        for (packet, (plan, mac)) in packets.iter_mut().zip(plans.into_iter().zip(macs)) {
            let committed = match (plan, mac) {
                (Plan::Refused(refusal), _) => Err(refusal),
                (Plan::Sign(plan), Some(mac)) => self.commit_outbound(now, packet, &plan, &mac),
                (Plan::Verify(plan), Some(mac)) => self.commit_inbound(now, packet, plan, &mac),
                // A later packet of the batch took the entry's place in a full table.
                (Plan::Sign(_) | Plan::Verify(_), None) => Ok(Verdict::Drop(DropReason::TableFull)),
            };
            verdicts.push(
                committed.unwrap_or_else(|refusal| Verdict::Drop(self.refuse(now, &refusal))),
            );
        }
    }

    /// Packets to send that no packet of the batch became.
    pub fn take_outbox(&mut self) -> Vec<Outgoing> {
        core::mem::take(&mut self.outbox)
    }

    /// What must be on record before the verdicts of the batch are carried out.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let forgotten = self.table.take_forgotten();
        if self.changes.is_empty() && forgotten.is_empty() {
            return Vec::new();
        }
        let gone = |entry| Change {
            packet: None,
            entry,
            action: Action::Forget,
        };
        let mut changes = core::mem::take(&mut self.changes);
        changes.extend(forgotten.into_iter().map(gone));
        changes
    }

    /// Takes up a connection as it was recorded, with the keys as they are now. False if no
    /// configured peer with a key covers it, or the table is full.
    pub fn restore(&mut self, now: Instant, entry: EntryId, record: &Record) -> bool {
        let Some((index, peer)) = usable_peer(&self.policy, &record.connection) else {
            return false;
        };
        let connection = Connection::from_record(record, entry, index, peer, now);
        let moved = connection.key_ids(peer) != Some((record.current_key, record.rnext_key));
        let inserted = if record.proven {
            self.table.insert_live(now, connection)
        } else {
            self.table.insert_opening(now, connection)
        };
        if let Ok(handle) = inserted
            && moved
            && record.local_isn.is_some()
        {
            self.save(None, handle);
        }
        inserted.is_ok()
    }

    /// Lets time pass: handshakes that came to nothing and closed connections go. About once a
    /// second is often enough.
    pub fn tick(&mut self, now: Instant) {
        self.table
            .remove_where(|connection| connection.is_expired(now));
    }

    /// Forgets a connection that the local TCP no longer has, and its handshakes with it.
    pub fn remove(&mut self, connection: &ConnectionId) {
        self.table.remove_where(|entry| entry.id == *connection);
    }

    /// Forgets an entry whose change could not be put on record. The segment it was for is sent
    /// again by the local TCP, and asks for a record anew.
    pub fn discard(&mut self, entry: EntryId) {
        self.table.remove_where(|known| known.entry == entry);
    }

    /// Whether any entry of the connection exists.
    pub fn knows(&self, connection: &ConnectionId) -> bool {
        self.table.any(connection).is_some()
    }

    /// All sessions, without handshakes that so far are only a SYN from the far end: anyone can
    /// replay one.
    pub fn sessions(&self) -> impl Iterator<Item = SessionView<'_>> {
        self.table
            .iter()
            .filter(|entry| entry.local_isn.is_some())
            .filter_map(|entry| {
                let peer = self.policy.peers().get(entry.peer)?;
                Some(SessionView {
                    connection: entry.id,
                    peer,
                    state: match (entry.is_closed(), entry.proven) {
                        (true, _) => SessionState::Closing,
                        (false, true) => SessionState::Established,
                        (false, false) => SessionState::Opening,
                    },
                    current_key: peer.keys.get(entry.current)?.send_id,
                    rnext_key: peer.keys.first()?.recv_id,
                    counters: entry.counters,
                    key_counters: entry.key_counters(),
                    snd_sne: entry.sent.sne(),
                    rcv_sne: entry.received.sne(),
                    last_seen: entry.last_seen,
                })
            })
    }

    /// What computes the MACs.
    pub fn provider(&self) -> &P {
        &self.provider
    }

    /// Counters of all peers by name.
    pub fn peer_counters(&self) -> impl Iterator<Item = (&Arc<str>, &PeerCounters)> {
        self.counters.iter()
    }

    /// Refused packets of no peer.
    pub fn unmatched_drops(&self) -> &DropCounters {
        &self.counters.unmatched
    }

    /// One MAC per plan; none for a plan that needs none, or whose entry is gone.
    fn compute_macs(&self, packets: &[Packet<'_>], plans: &[Plan<P::Key>]) -> Vec<Option<Mac>> {
        let mut places = Vec::with_capacity(plans.len());
        let mut jobs = Vec::with_capacity(plans.len());
        for (place, (packet, plan)) in packets.iter().zip(plans).enumerate() {
            if let Some(job) = self.mac_job(packet, plan) {
                places.push(place);
                jobs.push(job);
            }
        }
        self.provider.compute(&mut jobs);
        let mut macs = vec![None; plans.len()];
        for (place, job) in places.into_iter().zip(jobs) {
            if let Some(mac) = macs.get_mut(place) {
                *mac = Some(job.mac);
            }
        }
        macs
    }

    fn mac_job<'a>(
        &'a self,
        packet: &'a Packet<'_>,
        plan: &'a Plan<P::Key>,
    ) -> Option<MacJob<'a, P::Key>> {
        let (key, header, segment) = match plan {
            Plan::Refused(_) => return None,
            Plan::Sign(plan) => (
                self.table.get(plan.handle)?.key(plan.key)?,
                &plan.header,
                &plan.segment,
            ),
            Plan::Verify(plan) => (
                self.subject_key(&plan.subject)?,
                &plan.header,
                &plan.segment,
            ),
        };
        Some(MacJob::new(
            key,
            header.as_bytes(),
            segment.payload(packet.buf.bytes()),
        ))
    }

    fn subject_key<'a>(&'a self, subject: &'a Subject<P::Key>) -> Option<&'a P::Key> {
        match subject {
            Subject::Entry { handle, key, .. } => self.table.get(*handle)?.key(*key),
            Subject::Syn { key } | Subject::Answer { key, .. } | Subject::Recovered { key, .. } => {
                Some(key)
            }
        }
    }

    /// Counts a refusal where it belongs.
    fn refuse(&mut self, now: Instant, refusal: &Refusal) -> DropReason {
        let Refusal {
            reason,
            peer,
            ref connection,
            key_id,
            key,
        } = *refusal;
        let at = now;
        self.counters.refuse(peer, Refused { reason, at, key_id });
        let entry = connection.as_ref().and_then(|id| self.table.any(id));
        if let Some(entry) = entry.and_then(|handle| self.table.get_mut(handle)) {
            match reason {
                DropReason::Unsigned | DropReason::Md5 => entry.counters.unsigned += 1,
                DropReason::UnknownKeyId | DropReason::MacLength | DropReason::BadMac => {
                    entry.counters.bad += 1;
                    if let Some(key) = key {
                        entry.count(key, |key| key.bad += 1);
                    }
                }
                _ => {}
            }
        }
        reason
    }

    fn save(&mut self, packet: Option<usize>, handle: Handle) {
        let Some(connection) = self.table.get_mut(handle) else {
            return;
        };
        let Some(peer) = self.policy.peers().get(connection.peer) else {
            return;
        };
        let record = connection.record(peer);
        self.changes.push(Change {
            packet,
            entry: handle.entry(),
            action: Action::Save(record),
        });
    }

    /// The entry of a connection that has these two ISNs.
    fn entry_with(&self, id: &ConnectionId, local_isn: u32, remote_isn: u32) -> Option<Handle> {
        let wanted = |entry: &Connection<P::Key>| entry.has_isns(local_isn, remote_isn);
        let is_live = |handle: &Handle| self.table.get(*handle).is_some_and(wanted);
        self.table
            .find_opening(id, wanted)
            .or_else(|| self.table.live(id).filter(is_live))
    }

    /// The peer's index for a connection: from its entry, else from the policy.
    fn peer_of(&self, id: &ConnectionId) -> Option<usize> {
        let known = self.table.any(id).and_then(|handle| self.table.get(handle));
        known
            .map(|entry| entry.peer)
            .or_else(|| self.policy.find(id))
    }
}

/// The peer that covers a connection, if it has a key at all.
fn usable_peer<'a>(policy: &'a Policy, id: &ConnectionId) -> Option<(usize, &'a Arc<Peer>)> {
    let index = policy.find(id)?;
    let peer = policy.peers().get(index)?;
    (!peer.keys.is_empty()).then_some((index, peer))
}

impl Packet<'_> {
    /// The connection it belongs to, if it is a TCP segment at all.
    pub fn connection(&self) -> Option<ConnectionId> {
        let segment = Segment::parse(self.buf.bytes()).ok()?;
        let source = (segment.src, segment.src_port);
        let destination = (segment.dst, segment.dst_port);
        Some(match self.direction {
            Direction::Inbound => connection_id(self.link, destination, source),
            Direction::Outbound => connection_id(self.link, source, destination),
        })
    }
}

/// The connection between two ends.
fn connection_id(
    link: Link,
    (local, local_port): (IpAddr, u16),
    (remote, remote_port): (IpAddr, u16),
) -> ConnectionId {
    let on_link = |address: IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let interface = if on_link(local) || on_link(remote) {
        link.interface
    } else {
        0
    };
    ConnectionId {
        domain: link.domain,
        interface,
        local,
        remote,
        local_port,
        remote_port,
    }
}

/// A token bucket that holds one second's worth.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    /// Thousandths of a token.
    level: u64,
    filled: Instant,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        let per_second = u64::from(per_second);
        Self {
            per_second,
            level: per_second * 1000,
            filled: Instant::default(),
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.as_millis().saturating_sub(self.filled.as_millis());
        self.filled = now;
        let full = self.per_second * 1000;
        self.level = self
            .level
            .saturating_add(passed.saturating_mul(self.per_second))
            .min(full);
        let taken = self.level >= 1000;
        if taken {
            self.level -= 1000;
        }
        taken
    }
}
