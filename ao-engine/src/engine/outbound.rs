//! Segments of the local TCP: made to fit, signed, and sent so that they arrive.

use super::connection::{Connection, KeyUse};
use super::inbound::{SYN_OPTIONS_REMOVED, header_of, inserted_room, lower_mss};
use super::table::Handle;
use super::{Engine, Outgoing, Packet, Refusal, Verdict, connection_id};
use crate::crypto::{Mac, MacJob, MacProvider};
use crate::policy::{ConnectionId, Mkt, Peer};
use crate::reason::DropReason;
use crate::time::Instant;
use crate::wire::{
    AoOption, MacHeader, PacketBuf, Segment, fill_checksum, insert_ao, set_mac, split_segment,
    strip_options, summarize_options, trim_sack,
};

/// An outbound segment with its option in place, waiting for its MAC.
pub(super) struct SignPlan {
    id: ConnectionId,
    peer: usize,
    mkt: usize,
    pub(super) handle: Handle,
    /// Place of the traffic key in its entry.
    pub(super) key: usize,
    pub(super) segment: Segment,
    ao: AoOption,
    pub(super) header: MacHeader,
}

impl<P: MacProvider> Engine<P> {
    pub(super) fn plan_outbound(
        &mut self,
        now: Instant,
        index: usize,
        packet: &mut Packet<'_>,
    ) -> Result<SignPlan, Refusal> {
        let bytes = packet.buf.bytes();
        let mut segment =
            Segment::parse(bytes).map_err(|error| Refusal::of_nobody(error.reason()))?;
        let id = connection_id(
            packet.link,
            (segment.src, segment.src_port),
            (segment.dst, segment.dst_port),
        );
        let peer_index = self
            .peer_of(&id)
            .ok_or_else(|| Refusal::of_nobody(DropReason::NoPeer))?;
        let refusal = |reason| Refusal {
            reason,
            peer: Some(peer_index),
            connection: Some(id),
            key_id: None,
            key: None,
        };
        let policy = self.policy.clone();
        let peer = policy
            .peers()
            .get(peer_index)
            .ok_or_else(|| refusal(DropReason::NoPeer))?;
        refuse_foreign_signature(bytes, &segment).map_err(refusal)?;
        if peer.keys.is_empty() {
            return Err(refusal(DropReason::NoKey));
        }
        let handle = self
            .sending_entry(now, index, &id, peer_index, &segment)
            .map_err(refusal)?;
        let entry = self
            .table
            .get_mut(handle)
            .ok_or_else(|| refusal(DropReason::TableFull))?;
        let (mkt_index, mkt, rnext) =
            sending_keys(entry, peer).ok_or_else(|| refusal(DropReason::NoKey))?;
        let starts = segment.flags.syn() && !segment.flags.ack();
        let key_use = if starts {
            KeyUse::SendSyn
        } else {
            KeyUse::SendOther
        };
        let key = entry
            .prepare_key(&self.provider, mkt_index, mkt, key_use)
            .ok_or_else(|| refusal(DropReason::UnknownConnection))?;
        let sne = entry.sent.sne_of(segment.seq);

        if segment.flags.syn() {
            strip_options(&mut packet.buf, &mut segment, &SYN_OPTIONS_REMOVED);
            lower_mss(&mut packet.buf, &segment, None, inserted_room(peer));
        }
        let ao = make_room_and_insert(&mut packet.buf, &mut segment, mkt, rnext)
            .ok_or_else(|| refusal(DropReason::NoOptionSpace))?;
        let header = header_of(packet.buf.bytes(), &segment, &ao, sne, mkt);
        Ok(SignPlan {
            id,
            peer: peer_index,
            mkt: mkt_index,
            handle,
            key,
            segment,
            ao,
            header,
        })
    }

    pub(super) fn commit_outbound(
        &mut self,
        now: Instant,
        packet: &mut Packet<'_>,
        plan: &SignPlan,
        mac: &Mac,
    ) -> Result<Verdict, Refusal> {
        let refusal = || Refusal {
            reason: DropReason::TableFull,
            peer: Some(plan.peer),
            connection: Some(plan.id),
            key_id: None,
            key: None,
        };
        set_mac(packet.buf.bytes_mut(), &plan.ao, mac);
        fill_checksum(packet.buf.bytes_mut(), &plan.segment);
        let entry = self.table.get_mut(plan.handle).ok_or_else(refusal)?;
        entry.note_sent(plan.mkt, &plan.segment, now);
        entry
            .template
            .set(now, packet.link, packet.buf.bytes(), &plan.segment);
        let path_mtu = entry.path_mtu(now);
        let needs_saving = entry.needs_saving();
        if let Some(counters) = self.counters.peer(plan.peer) {
            counters.sent += 1;
        }
        if needs_saving {
            self.save(None, plan.handle);
        }
        let length = u32::try_from(packet.buf.len()).unwrap_or(u32::MAX);
        let bound = path_mtu.into_iter().chain(packet.link.mtu).min();
        if let Some(bound) = bound.filter(|&bound| length > bound)
            && self.split(packet, plan, bound)
        {
            return Ok(Verdict::Split);
        }
        let exceeds_route = packet.route_mtu.is_some_and(|mtu| length > mtu);
        Ok(if exceeds_route {
            Verdict::Transmit
        } else {
            Verdict::Modified
        })
    }

    /// The entry that signs a segment of the local TCP, made where the segment says enough.
    fn sending_entry(
        &mut self,
        now: Instant,
        index: usize,
        id: &ConnectionId,
        peer: usize,
        segment: &Segment,
    ) -> Result<Handle, DropReason> {
        match (segment.flags.syn(), segment.flags.ack()) {
            (true, false) => self.entry_for_syn(now, index, id, peer, segment.seq),
            (true, true) => {
                let remote_isn = segment.ack.wrapping_sub(1);
                self.entry_for_syn_ack(now, index, id, peer, segment.seq, remote_isn)
            }
            // A reset that answers a SYN has no ISN of this end to be signed under: the far end
            // hears nothing and times out.
            (false, _) => self
                .table
                .find_opening(id, |entry| !entry.proven && entry.is_near_ours(segment))
                .or_else(|| self.table.live(id))
                .ok_or(DropReason::UnknownConnection),
        }
    }

    fn entry_for_syn(
        &mut self,
        now: Instant,
        index: usize,
        id: &ConnectionId,
        peer: usize,
        isn: u32,
    ) -> Result<Handle, DropReason> {
        let begun =
            |entry: &Connection<P::Key>| entry.local_isn == Some(isn) && entry.remote_isn.is_none();
        let answered = |handle: &Handle| {
            self.table
                .get(*handle)
                .is_some_and(|entry| entry.local_isn == Some(isn))
        };
        // A SYN sent again may come after its answer was accepted: its entry is the live one then.
        let live = self.table.live(id).filter(answered);
        if let Some(handle) = self.table.find_opening(id, begun).or(live) {
            return Ok(handle);
        }
        let mut entry = Connection::new(*id, self.table.number(), peer, now);
        entry.set_local_isn(isn);
        self.open(now, index, entry)
    }

    /// A SYN-ACK holds both ISNs, so that its entry can be made anew where a restart lost it.
    fn entry_for_syn_ack(
        &mut self,
        now: Instant,
        index: usize,
        id: &ConnectionId,
        peer: usize,
        local_isn: u32,
        remote_isn: u32,
    ) -> Result<Handle, DropReason> {
        if let Some(handle) = self.entry_with(id, local_isn, remote_isn) {
            return Ok(handle);
        }
        let asked = |entry: &Connection<P::Key>| entry.remote_isn == Some(remote_isn);
        let Some(handle) = self.table.find_opening(id, asked) else {
            let mut entry = Connection::new(*id, self.table.number(), peer, now);
            entry.set_local_isn(local_isn);
            entry.set_remote_isn(remote_isn);
            return self.open(now, index, entry);
        };
        if let Some(entry) = self.table.get_mut(handle) {
            entry.set_local_isn(local_isn);
        }
        self.save(Some(index), handle);
        Ok(handle)
    }

    /// Adds an entry whose ISN is about to be told to the far end: it is on record before that.
    fn open(
        &mut self,
        now: Instant,
        index: usize,
        entry: Connection<P::Key>,
    ) -> Result<Handle, DropReason> {
        let handle = self
            .table
            .insert_opening(now, entry)
            .map_err(|_| DropReason::TableFull)?;
        self.save(Some(index), handle);
        Ok(handle)
    }

    /// Sends a segment in pieces that a path of `bound` octets carries, as the local TCP would
    /// if it could be told of the option. False if the segment cannot be taken apart.
    fn split(&mut self, packet: &Packet<'_>, plan: &SignPlan, bound: u32) -> bool {
        let policy = self.policy.clone();
        let Some(entry) = self.table.get(plan.handle) else {
            return false;
        };
        let Some(peer) = policy.peers().get(plan.peer) else {
            return false;
        };
        let Some((_, mkt, _)) = sending_keys(entry, peer) else {
            return false;
        };
        let Some(key) = entry.key(plan.key) else {
            return false;
        };
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        let Some(mut pieces) = split_segment(packet.buf.bytes(), &plan.segment, bound) else {
            return false;
        };
        for piece in &mut pieces {
            let Ok(segment) = Segment::parse(piece) else {
                return false;
            };
            let sne = entry.sent.sne_of(segment.seq);
            let header = header_of(piece, &segment, &plan.ao, sne, mkt);
            let mut job = [MacJob::new(key, header.as_bytes(), segment.payload(piece))];
            self.provider.compute(&mut job);
            let [MacJob { mac, .. }] = job;
            set_mac(piece, &plan.ao, &mac);
            fill_checksum(piece, &segment);
        }
        let link = packet.link;
        self.outbox
            .extend(pieces.into_iter().map(|bytes| Outgoing { link, bytes }));
        true
    }
}

/// Somebody else already signs: both at once would make the far end refuse every segment.
fn refuse_foreign_signature(bytes: &[u8], segment: &Segment) -> Result<(), DropReason> {
    let options = summarize_options(bytes, segment).map_err(|error| error.reason())?;
    if options.ao.is_some() {
        Err(DropReason::AlreadySigned)
    } else if options.md5 {
        Err(DropReason::LocalMd5)
    } else {
        Ok(())
    }
}

/// current_key with its index, and rnext_key's RecvID (RFC 5925 §7.4).
pub(super) fn sending_keys<'a, K>(
    entry: &Connection<K>,
    peer: &'a Peer,
) -> Option<(usize, &'a Mkt, u8)> {
    let current = peer.keys.get(entry.current)?;
    let rnext = peer.keys.first()?;
    Some((entry.current, current, rnext.recv_id))
}

/// Inserts the option, at the cost of SACK blocks where the 40 octets are full.
pub(super) fn make_room_and_insert(
    buf: &mut PacketBuf<'_>,
    segment: &mut Segment,
    mkt: &Mkt,
    rnext: u8,
) -> Option<AoOption> {
    let mac_len = mkt.algorithm.mac_len();
    if let Ok(ao) = insert_ao(buf, segment, mkt.send_id, rnext, mac_len) {
        return Some(ao);
    }
    trim_sack(buf, segment, mkt.algorithm.option_len());
    insert_ao(buf, segment, mkt.send_id, rnext, mac_len).ok()
}
