//! What the engine knows of one connection.

use alloc::vec::Vec;
use core::time::Duration;

use super::nudge::Template;
use crate::crypto::{KdfContext, MacProvider, derive};
use crate::policy::{ConnectionId, Mkt, Peer};
use crate::record::{EntryId, Record};
use crate::sne::HighWater;
use crate::time::Instant;
use crate::wire::{Flags, Segment};

/// A handshake that made no progress: Linux sends its last SYN 63 s after the first and waits
/// 64 s for an answer to it.
const OPENING_TIMEOUT: Duration = Duration::from_secs(130);
/// A closed connection: late segments and their answers must still be signed (TIME_WAIT is 60 s).
const CLOSED_TIMEOUT: Duration = Duration::from_secs(120);
/// A path MTU is believed as long as Linux believes one (net.ipv4.route.mtu_expires).
const PATH_MTU_LIFETIME: Duration = Duration::from_secs(600);
/// How far sent and received marks may run ahead of what is on record. A quarter of what the SNE
/// could bear, so that a lost record costs nothing.
const MARK_SLACK: u64 = 1 << 28;
/// The most a TCP has in flight (RFC 7323 §2.3).
const LARGEST_WINDOW: u64 = 1 << 30;

/// Which of the four traffic keys of RFC 5925 §5.2 with both ISNs or the SYN's own alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    SendSyn,
    SendOther,
    ReceiveOther,
}

/// Segments of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Received with TCP-AO and verified.
    pub good: u64,
    /// Received with TCP-AO and refused.
    pub bad: u64,
    /// Received without TCP-AO.
    pub unsigned: u64,
    /// Signed and sent.
    pub sent: u64,
}

/// Segments of one connection with one of its peer's keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyCounters {
    /// Received and verified.
    pub good: u64,
    /// Received with its RecvID and refused.
    pub bad: u64,
    /// Signed and sent.
    pub sent: u64,
}

/// Where a segment of the far end stands in both streams: its sequence number and its
/// acknowledgment.
type Place = (u64, u64);

/// The latest moves of current_key.
#[derive(Clone, Copy, Debug)]
struct Switch {
    /// Place of the segments that asked for them.
    place: Place,
    /// Keys that were left at this place.
    left: SendIds,
    /// Keys that were asked for at this place, and taken.
    taken: SendIds,
}

/// A set of SendIDs, one bit each.
#[derive(Clone, Copy, Debug)]
struct SendIds([u64; 4]);

impl SendIds {
    const NONE: Self = Self([0; 4]);
    const ALL: Self = Self([u64::MAX; 4]);

    fn has(&self, send_id: u8) -> bool {
        let word = self.0.get(usize::from(send_id / 64));
        word.is_some_and(|word| word >> (send_id % 64) & 1 == 1)
    }

    fn insert(&mut self, send_id: u8) {
        if let Some(word) = self.0.get_mut(usize::from(send_id / 64)) {
            *word |= 1 << (send_id % 64);
        }
    }
}

#[derive(Debug)]
struct CachedKey<K> {
    mkt: usize,
    key_use: KeyUse,
    key: K,
}

/// How the connection is coming to its end.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    fin_sent: bool,
    fin_received: bool,
    reset: bool,
}

/// One entry of the connection table.
#[derive(Debug)]
pub(super) struct Connection<K> {
    pub(super) id: ConnectionId,
    pub(super) entry: EntryId,
    /// Index of the peer in the policy.
    pub(super) peer: usize,
    pub(super) local_isn: Option<u32>,
    pub(super) remote_isn: Option<u32>,
    /// The far end has proven that it knows both ISNs.
    pub(super) proven: bool,
    /// End of what was sent.
    pub(super) sent: HighWater,
    /// Highest sequence number received.
    pub(super) received: HighWater,
    /// Highest acknowledgment received, on the scale of `sent`.
    pub(super) acked: HighWater,
    /// Index of current_key among the peer's keys. rnext_key is the first of them: which one the
    /// far end is asked to use is a matter of management (RFC 5925 §3.3).
    pub(super) current: usize,
    pub(super) last_seen: Instant,
    pub(super) counters: SessionCounters,
    /// By the index of the key; shorter while the last ones were never used.
    key_counters: Vec<KeyCounters>,
    keys: Vec<CachedKey<K>>,
    switch: Option<Switch>,
    /// The last segment sent, for those that the engine makes itself.
    pub(super) template: Template,
    path_mtu: Option<(u32, Instant)>,
    ending: Ending,
    saved: (u64, u64),
}

impl<K> Connection<K> {
    /// An entry that knows nothing yet but its peer; the first key of the peer is current_key and
    /// rnext_key.
    pub(super) fn new(id: ConnectionId, entry: EntryId, peer: usize, now: Instant) -> Self {
        let mark = HighWater::from_isn(0);
        Self {
            id,
            entry,
            peer,
            local_isn: None,
            remote_isn: None,
            proven: false,
            sent: mark,
            received: mark,
            acked: mark,
            current: 0,
            last_seen: now,
            counters: SessionCounters::default(),
            key_counters: Vec::new(),
            keys: Vec::new(),
            switch: None,
            template: Template::default(),
            path_mtu: None,
            ending: Ending::default(),
            saved: (0, 0),
        }
    }

    /// An entry as it was recorded. A key that is no longer to be sent with gives way to the first.
    pub(super) fn from_record(
        record: &Record,
        entry: EntryId,
        peer: usize,
        keys: &Peer,
        now: Instant,
    ) -> Self {
        let mut connection = Self::new(record.connection, entry, peer, now);
        connection.local_isn = record.local_isn;
        connection.remote_isn = record.remote_isn;
        connection.proven = record.proven;
        connection.sent = HighWater::from_value(record.sent);
        connection.received = HighWater::from_value(record.received);
        // What was acknowledged is not on record: as far back as a window reaches.
        connection.acked = HighWater::from_value(record.sent.wrapping_sub(LARGEST_WINDOW));
        connection.choose_current(keys, record.current_key);
        connection.saved = (record.sent, record.received);
        // The record does not tell which segment moved current_key last. It may be the newest of a
        // quiet connection, whose replay must not move it back.
        connection.switch = Some(Switch {
            place: (record.received, record.sent),
            left: SendIds::ALL,
            taken: SendIds::NONE,
        });
        connection
    }

    /// Follows from one peer entry to another: keys that are in both keep their counts and their
    /// traffic keys.
    pub(super) fn follow_keys(&mut self, old: Option<&Peer>, new: &Peer) {
        let old_keys = old.map_or(&[][..], |old| &old.keys);
        let current = old_keys.get(self.current).map(|key| key.send_id);
        let moved = |mkt: usize| {
            let before = old_keys.get(mkt)?;
            new.keys.iter().position(|key| key.is_same(before))
        };
        let counters = core::mem::take(&mut self.key_counters);
        for (mkt, counted) in counters.into_iter().enumerate() {
            if let Some(place) = moved(mkt) {
                self.count(place, |counters| *counters = counted);
            }
        }
        self.keys.retain_mut(|cached| {
            let place = moved(cached.mkt);
            cached.mkt = place.unwrap_or_default();
            place.is_some()
        });
        match current {
            Some(send_id) => self.choose_current(new, send_id),
            None => self.current = 0,
        }
    }

    /// Points current_key to the key with this SendID, if that may be sent with, else to the
    /// first. A connection that is no more than our SYN begins anew with the first key: its peer
    /// is looked up for each SYN (RFC 5925 §7.4), whose traffic key depends on no earlier segment,
    /// and the far end, which has answered none yet, answers by the key that it is asked for.
    fn choose_current(&mut self, peer: &Peer, send_id: u8) {
        let mut keys = peer.keys.iter();
        let may_send = !self.is_only_begun() && !peer.accept_only.contains(&send_id);
        let place = keys.position(|key| key.send_id == send_id);
        self.current = place.filter(|_| may_send).unwrap_or(0);
    }

    fn is_only_begun(&self) -> bool {
        self.local_isn.is_some() && self.remote_isn.is_none() && !self.proven
    }

    /// SendID of current_key and RecvID of rnext_key.
    pub(super) fn key_ids(&self, peer: &Peer) -> Option<(u8, u8)> {
        let current = peer.keys.get(self.current)?.send_id;
        Some((current, peer.keys.first()?.recv_id))
    }

    /// Counts something of the key with this index.
    pub(super) fn count(&mut self, mkt: usize, note: impl FnOnce(&mut KeyCounters)) {
        if self.key_counters.len() <= mkt {
            self.key_counters.resize(mkt + 1, KeyCounters::default());
        }
        if let Some(counters) = self.key_counters.get_mut(mkt) {
            note(counters);
        }
    }

    /// Counts by the index of the key.
    pub(super) fn key_counters(&self) -> &[KeyCounters] {
        &self.key_counters
    }

    pub(super) fn set_local_isn(&mut self, isn: u32) {
        self.local_isn = Some(isn);
        self.sent = HighWater::from_isn(isn);
        self.acked = self.sent;
        self.keys.clear();
    }

    pub(super) fn set_remote_isn(&mut self, isn: u32) {
        self.remote_isn = Some(isn);
        self.received = HighWater::from_isn(isn);
        self.keys.clear();
    }

    /// Whether both ISNs are these.
    pub(super) fn has_isns(&self, local: u32, remote: u32) -> bool {
        self.local_isn == Some(local) && self.remote_isn == Some(remote)
    }

    /// Whether a segment from the far end lies close enough to the ISNs to belong to this
    /// handshake: what a client may send before it hears more than the SYN-ACK.
    pub(super) fn is_near(&self, segment: &Segment) -> bool {
        near(segment, self.remote_isn, self.local_isn)
    }

    /// The same for a segment of the local TCP: it is of this handshake rather than of the
    /// connection before it with the same ports.
    pub(super) fn is_near_ours(&self, segment: &Segment) -> bool {
        near(segment, self.local_isn, self.remote_isn)
    }

    /// Makes sure the traffic key is at hand; its place among the cached keys, or `None` while an
    /// ISN it needs is unknown.
    pub(super) fn prepare_key<P>(
        &mut self,
        provider: &P,
        mkt_index: usize,
        mkt: &Mkt,
        key_use: KeyUse,
    ) -> Option<usize>
    where
        P: MacProvider<Key = K>,
    {
        let cached = |held: &CachedKey<K>| held.mkt == mkt_index && held.key_use == key_use;
        if let Some(place) = self.keys.iter().position(cached) {
            return Some(place);
        }
        let context = self.kdf_context(key_use)?;
        let key = provider.prepare(
            mkt.algorithm,
            &derive(mkt.algorithm, &mkt.master_key, &context),
        );
        self.keys.push(CachedKey {
            mkt: mkt_index,
            key_use,
            key,
        });
        Some(self.keys.len() - 1)
    }

    /// A key prepared earlier in the same batch.
    pub(super) fn key(&self, place: usize) -> Option<&K> {
        self.keys.get(place).map(|cached| &cached.key)
    }

    fn kdf_context(&self, key_use: KeyUse) -> Option<KdfContext> {
        Some(match key_use {
            KeyUse::SendSyn => outbound_context(&self.id, self.local_isn?, 0),
            KeyUse::SendOther => outbound_context(&self.id, self.local_isn?, self.remote_isn?),
            KeyUse::ReceiveOther => inbound_context(&self.id, self.remote_isn?, self.local_isn?),
        })
    }

    /// Notes a segment that was signed with the key of this index.
    pub(super) fn note_sent(&mut self, mkt: usize, segment: &Segment, now: Instant) {
        self.count(mkt, |key| key.sent += 1);
        let end = self
            .sent
            .extend(segment.seq)
            .wrapping_add(u64::from(segment.seq_len()));
        self.sent.advance(end);
        self.counters.sent += 1;
        self.last_seen = now;
        self.note_flags(segment.flags, true);
    }

    /// Notes an acknowledgment that this end's TCP knows nothing of.
    pub(super) fn note_acknowledged(&mut self, mkt: usize) {
        self.count(mkt, |key| key.sent += 1);
        self.counters.sent += 1;
    }

    /// Notes a segment whose MAC verified with the key of this index.
    pub(super) fn note_received(&mut self, mkt: usize, segment: &Segment, now: Instant) {
        self.count(mkt, |key| key.good += 1);
        self.received.advance(self.received.extend(segment.seq));
        if segment.flags.ack() && self.local_isn.is_some() {
            self.acked.advance(self.acked.extend(segment.ack));
        }
        self.counters.good += 1;
        self.last_seen = now;
        self.note_flags(segment.flags, false);
    }

    fn note_flags(&mut self, flags: Flags, sent: bool) {
        if flags.rst() {
            self.ending.reset = true;
        } else if flags.fin() && sent {
            self.ending.fin_sent = true;
        } else if flags.fin() {
            self.ending.fin_received = true;
        } else {
            // A reset that the other TCP refused, being outside its window, ended nothing.
            self.ending.reset = false;
        }
    }

    /// Whether a verified segment may move current_key to the key with this SendID: it is the
    /// newest so far. An old one, replayed, must not take the connection back to a key the far end
    /// no longer has. Among segments that are level, as all acknowledgments of a quiet connection
    /// are, none leads back to a key that was left there, except to the peer's first key if it was
    /// taken there: a segment that was held up may have led away from it, to a key that was
    /// skipped, and where both ends prefer it the connection must come back without waiting for
    /// data. The key from before all moves stays left, first or not: what asked for it may be old.
    pub(super) fn may_switch_key(&self, segment: &Segment, peer: &Peer, send_id: u8) -> bool {
        let is_first = peer.keys.first().is_some_and(|key| key.send_id == send_id);
        let (seq, ack) = self.place_of(segment);
        let level = self.switch.filter(|switch| switch.place == (seq, ack));
        seq.wrapping_sub(self.received.value()).cast_signed() >= 0
            && ack.wrapping_sub(self.acked.value()).cast_signed() >= 0
            && level.is_none_or(|switch| {
                !switch.left.has(send_id) || (is_first && switch.taken.has(send_id))
            })
    }

    /// Moves current_key from the key with the SendID `left` to the one with the SendID `taken`,
    /// whose index is `current`, as a segment of the far end asked.
    pub(super) fn switch_key(&mut self, left: u8, taken: u8, current: usize, segment: &Segment) {
        let place = self.place_of(segment);
        let level = self.switch.filter(|switch| switch.place == place);
        let mut switch = level.unwrap_or(Switch {
            place,
            left: SendIds::NONE,
            taken: SendIds::NONE,
        });
        switch.left.insert(left);
        switch.taken.insert(taken);
        self.switch = Some(switch);
        self.current = current;
    }

    /// Where a segment of the far end stands in both streams.
    fn place_of(&self, segment: &Segment) -> Place {
        let ack = match segment.flags.ack() {
            true => self.acked.extend(segment.ack),
            false => self.acked.value(),
        };
        (self.received.extend(segment.seq), ack)
    }

    /// Whether a number quoted by an ICMP error is of data sent and not yet acknowledged.
    pub(super) fn in_flight(&self, seq: u32) -> bool {
        let seq = self.sent.extend(seq);
        let behind_end = self.sent.value().wrapping_sub(seq).cast_signed() > 0;
        behind_end && seq.wrapping_sub(self.acked.value()).cast_signed() >= 0
    }

    /// Neither end has begun to close.
    pub(super) fn is_open(&self) -> bool {
        let Ending {
            fin_sent,
            fin_received,
            reset,
        } = self.ending;
        self.proven && !fin_sent && !fin_received && !reset
    }

    /// Both ends are done with the connection.
    pub(super) fn is_closed(&self) -> bool {
        self.ending.reset || (self.ending.fin_sent && self.ending.fin_received)
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        let silent = now.since(self.last_seen);
        if self.is_closed() {
            silent > CLOSED_TIMEOUT
        } else {
            !self.proven && silent > OPENING_TIMEOUT
        }
    }

    /// Lower goes first; `None` never goes.
    pub(super) fn eviction_rank(&self) -> Option<u8> {
        match (self.is_closed(), self.proven, self.local_isn) {
            (true, _, _) => Some(0),
            (false, false, None) => Some(1),
            (false, false, Some(_)) => Some(2),
            (false, true, _) => None,
        }
    }

    pub(super) fn path_mtu(&self, now: Instant) -> Option<u32> {
        let (mtu, learned) = self.path_mtu?;
        (now.since(learned) < PATH_MTU_LIFETIME).then_some(mtu)
    }

    /// Believes a path MTU. One that is believed already is not raised: a larger one may be an
    /// older message that comes late.
    pub(super) fn learn_path_mtu(&mut self, mtu: u32, now: Instant) {
        let lowest = self.path_mtu(now).map_or(mtu, |known| known.min(mtu));
        self.path_mtu = Some((lowest, now));
    }

    /// Whether the marks have run too far ahead of what is on record.
    pub(super) fn needs_saving(&self) -> bool {
        let (sent, received) = self.saved;
        self.sent.value().wrapping_sub(sent) >= MARK_SLACK
            || self.received.value().wrapping_sub(received) >= MARK_SLACK
    }

    /// What to record, noting that it will be.
    pub(super) fn record(&mut self, peer: &Peer) -> Record {
        self.saved = (self.sent.value(), self.received.value());
        Record {
            connection: self.id,
            local_isn: self.local_isn,
            remote_isn: self.remote_isn,
            sent: self.sent.value(),
            received: self.received.value(),
            current_key: peer.keys.get(self.current).map_or(0, |key| key.send_id),
            rnext_key: peer.keys.first().map_or(0, |key| key.recv_id),
            proven: self.proven,
        }
    }
}

/// Whether a segment's numbers lie just above the ISNs of its sender and its receiver.
fn near(segment: &Segment, sender_isn: Option<u32>, receiver_isn: Option<u32>) -> bool {
    const REACH: u32 = 1 << 24;
    let (Some(sender), Some(receiver)) = (sender_isn, receiver_isn) else {
        return false;
    };
    segment.seq.wrapping_sub(sender) < REACH
        && (!segment.flags.ack() || segment.ack.wrapping_sub(receiver) < REACH)
}

/// KDF context of segments this end sends.
pub(super) fn outbound_context(id: &ConnectionId, local_isn: u32, remote_isn: u32) -> KdfContext {
    KdfContext {
        src: id.local,
        dst: id.remote,
        src_port: id.local_port,
        dst_port: id.remote_port,
        src_isn: local_isn,
        dst_isn: remote_isn,
    }
}

/// KDF context of segments the far end sends.
pub(super) fn inbound_context(id: &ConnectionId, remote_isn: u32, local_isn: u32) -> KdfContext {
    KdfContext {
        src: id.remote,
        dst: id.local,
        src_port: id.remote_port,
        dst_port: id.local_port,
        src_isn: remote_isn,
        dst_isn: local_isn,
    }
}
