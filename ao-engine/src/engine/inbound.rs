//! Segments from the far end: which MKT and which connection, and what a verified one changes.

use alloc::vec::Vec;

use super::connection::{Connection, KeyUse, inbound_context};
use super::table::Handle;
use super::{Engine, Packet, Refusal, Verdict, connection_id};
use crate::crypto::{Mac, MacJob, MacProvider, derive};
use crate::policy::{ConnectionId, Mkt, Peer};
use crate::reason::DropReason;
use crate::time::Instant;
use crate::wire::{
    AoOption, MacHeader, PacketBuf, Segment, checksum_ok, clamp_mss, fill_checksum, kind,
    mac_header, remove_ao, strip_options, summarize_options,
};

/// Options that let a peer put data or a second connection past what TCP-AO was set up for:
/// MPTCP, TCP fast open and its experimental form. Removed from SYNs; the SYN itself goes on.
pub(super) const SYN_OPTIONS_REMOVED: [u8; 2] = [kind::MPTCP, kind::FAST_OPEN];

/// An inbound segment whose MAC is to be checked.
pub(super) struct VerifyPlan<K> {
    id: ConnectionId,
    peer: usize,
    mkt: usize,
    pub(super) segment: Segment,
    ao: AoOption,
    pub(super) header: MacHeader,
    pub(super) subject: Subject<K>,
}

/// Which ISNs, and so which traffic key, a segment is checked under.
pub(super) enum Subject<K> {
    /// A SYN: its own ISN alone.
    Syn { key: K },
    /// A SYN-ACK that answers our SYN: its own ISN and ours.
    Answer { handle: Handle, key: K },
    /// Any other segment: both ISNs of an entry.
    Entry { handle: Handle, key: usize },
    /// A first acknowledgment whose handshake left no entry (SYN cookies, lost record): the ISNs
    /// are one below its two numbers.
    Recovered {
        key: K,
        local_isn: u32,
        remote_isn: u32,
    },
}

impl<P: MacProvider> Engine<P> {
    pub(super) fn plan_inbound(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
    ) -> Result<VerifyPlan<P::Key>, Refusal> {
        let bytes = packet.buf.bytes();
        let segment = Segment::parse(bytes).map_err(|error| Refusal::of_nobody(error.reason()))?;
        let id = connection_id(
            packet.link,
            (segment.dst, segment.dst_port),
            (segment.src, segment.src_port),
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

        // From the cheapest check to the dearest: a flood pays for what it can pass.
        if segment.ttl < peer.ttl_min {
            return Err(refusal(DropReason::Ttl));
        }
        let options = summarize_options(bytes, &segment).map_err(|e| refusal(e.reason()))?;
        let Some(ao) = options.ao else {
            let reason = if options.md5 {
                DropReason::Md5
            } else {
                DropReason::Unsigned
            };
            return Err(refusal(reason));
        };
        let refusal = |reason| Refusal {
            key_id: Some(ao.key_id),
            ..refusal(reason)
        };
        // RFC 5925 §7.5: the MKT follows from the KeyID and the socket pair, nothing else.
        let (mkt_index, mkt) = find_key(peer, |key| key.recv_id == ao.key_id)
            .ok_or_else(|| refusal(DropReason::UnknownKeyId))?;
        if ao.len != mkt.algorithm.option_len() {
            return Err(Refusal {
                key: Some(mkt_index),
                ..refusal(DropReason::MacLength)
            });
        }
        // Before anything that costs a key derivation or a token of the recovery budget.
        if !checksum_ok(bytes, &segment) {
            return Err(refusal(DropReason::Checksum));
        }
        let subject = self
            .first_subject(now, &id, &segment, mkt_index, mkt)
            .map_err(refusal)?;
        let sne = self.sne_for(&subject, &segment);
        let header = header_of(bytes, &segment, &ao, sne, mkt);
        Ok(VerifyPlan {
            id,
            peer: peer_index,
            mkt: mkt_index,
            segment,
            ao,
            header,
            subject,
        })
    }

    pub(super) fn commit_inbound(
        &mut self,
        now: Instant,
        packet: &mut Packet<'_>,
        mut plan: VerifyPlan<P::Key>,
        mac: &Mac,
    ) -> Result<Verdict, Refusal> {
        let policy = self.policy.clone();
        let refusal = |reason| Refusal {
            reason,
            peer: Some(plan.peer),
            connection: Some(plan.id),
            key_id: Some(plan.ao.key_id),
            key: Some(plan.mkt),
        };
        let Some((peer, mkt)) = policy
            .peers()
            .get(plan.peer)
            .and_then(|peer| Some((peer, peer.keys.get(plan.mkt)?)))
        else {
            return Err(refusal(DropReason::NoPeer));
        };
        if !mac.ct_eq(plan.ao.mac(packet.buf.bytes())) {
            match self.verify_under_another(packet.buf.bytes(), &plan, mkt) {
                Some(handle) => plan.subject = handle,
                None => return Err(refusal(DropReason::BadMac)),
            }
        }
        if let Some(counters) = self.counters.peer(plan.peer) {
            counters.good += 1;
        }
        self.accept(now, &plan, peer).map_err(refusal)?;
        Ok(self.edit_inbound(packet, &plan, peer))
    }

    /// Picks the entry, and so the traffic key, that a segment is most likely of.
    fn first_subject(
        &mut self,
        now: Instant,
        id: &ConnectionId,
        segment: &Segment,
        mkt_index: usize,
        mkt: &Mkt,
    ) -> Result<Subject<P::Key>, DropReason> {
        let one_off = |provider: &P, remote_isn, local_isn| {
            let context = inbound_context(id, remote_isn, local_isn);
            provider.prepare(
                mkt.algorithm,
                &derive(mkt.algorithm, &mkt.master_key, &context),
            )
        };
        if segment.flags.syn() && !segment.flags.ack() {
            return Ok(Subject::Syn {
                key: one_off(&self.provider, segment.seq, 0),
            });
        }
        let likeliest = self.candidates(id, segment).next();
        if let Some(handle) = likeliest {
            let isns = self
                .table
                .get(handle)
                .map(|entry| (entry.remote_isn, entry.local_isn));
            if segment.flags.syn()
                && isns != Some((Some(segment.seq), Some(segment.ack.wrapping_sub(1))))
            {
                let key = one_off(&self.provider, segment.seq, segment.ack.wrapping_sub(1));
                return Ok(Subject::Answer { handle, key });
            }
            return self
                .entry_subject(handle, mkt_index, mkt)
                .ok_or(DropReason::UnknownConnection);
        }
        // The handshake's last segment carries both ISNs, as SYN cookies rely on (RFC 4987 §3.6).
        // Only while nothing else claims the connection, and not for free.
        let completes_a_handshake = segment.flags.ack()
            && !segment.flags.syn()
            && !segment.flags.rst()
            && !segment.flags.fin();
        if !completes_a_handshake || !self.may_recover(id) {
            return Err(DropReason::UnknownConnection);
        }
        if !self.recovery.take(now) {
            return Err(DropReason::RateLimited);
        }
        let (remote_isn, local_isn) = (segment.seq.wrapping_sub(1), segment.ack.wrapping_sub(1));
        let key = one_off(&self.provider, remote_isn, local_isn);
        Ok(Subject::Recovered {
            key,
            local_isn,
            remote_isn,
        })
    }

    /// Entries a segment other than a SYN may be of, the likeliest first.
    fn candidates(&self, id: &ConnectionId, segment: &Segment) -> impl Iterator<Item = Handle> {
        let segment = *segment;
        let fits = move |handle: &Handle| {
            let Some(entry) = self.table.get(*handle) else {
                return false;
            };
            if segment.flags.syn() {
                entry.local_isn == Some(segment.ack.wrapping_sub(1))
                    && (!entry.proven || entry.remote_isn == Some(segment.seq))
            } else {
                entry.proven || entry.is_near(&segment)
            }
        };
        let opening = self.table.opening(id).iter().copied();
        opening.chain(self.table.live(id)).filter(fits)
    }

    /// Whether nothing is known of the connection but SYNs that anybody may have replayed.
    fn may_recover(&self, id: &ConnectionId) -> bool {
        self.table.live(id).is_none()
            && self
                .table
                .find_opening(id, |entry| entry.local_isn.is_some())
                .is_none()
    }

    fn entry_subject(
        &mut self,
        handle: Handle,
        mkt_index: usize,
        mkt: &Mkt,
    ) -> Option<Subject<P::Key>> {
        let entry = self.table.get_mut(handle)?;
        let key = entry.prepare_key(&self.provider, mkt_index, mkt, KeyUse::ReceiveOther)?;
        Some(Subject::Entry { handle, key })
    }

    fn sne_for(&self, subject: &Subject<P::Key>, segment: &Segment) -> u32 {
        match subject {
            Subject::Entry { handle, .. } => self
                .table
                .get(*handle)
                .map_or(0, |entry| entry.received.sne_of(segment.seq)),
            // A handshake's first segments: SNE is 0 (RFC 5925 §6.2), or already 1 for the
            // acknowledgment of a SYN with the highest ISN.
            Subject::Recovered { remote_isn, .. } => u32::from(*remote_isn == u32::MAX),
            Subject::Syn { .. } | Subject::Answer { .. } => 0,
        }
    }

    /// The MAC did not match under the likeliest entry: tries the others the segment may be of.
    fn verify_under_another(
        &mut self,
        bytes: &[u8],
        plan: &VerifyPlan<P::Key>,
        mkt: &Mkt,
    ) -> Option<Subject<P::Key>> {
        let Subject::Entry { handle: tried, .. } = plan.subject else {
            return None;
        };
        let others: Vec<Handle> = self.candidates(&plan.id, &plan.segment).collect();
        for handle in others {
            if handle == tried {
                continue;
            }
            let Some(subject) = self.entry_subject(handle, plan.mkt, mkt) else {
                continue;
            };
            let sne = self.sne_for(&subject, &plan.segment);
            let header = header_of(bytes, &plan.segment, &plan.ao, sne, mkt);
            let Some(key) = self.subject_key(&subject) else {
                continue;
            };
            let payload = bytes.get(plan.segment.payload_offset()..)?;
            let mut job = [MacJob::new(key, header.as_bytes(), payload)];
            self.provider.compute(&mut job);
            if job.iter().any(|job| job.mac.ct_eq(plan.ao.mac(bytes))) {
                return Some(subject);
            }
        }
        None
    }

    /// The segment is genuine: the state of its connection follows it.
    fn accept(
        &mut self,
        now: Instant,
        plan: &VerifyPlan<P::Key>,
        peer: &Peer,
    ) -> Result<(), DropReason> {
        match plan.subject {
            Subject::Syn { .. } => self.accept_syn(now, plan, peer),
            Subject::Answer { handle, .. } => {
                let isn = plan.segment.seq;
                match self.table.get_mut(handle) {
                    // An earlier segment of the batch answered, too: its ISN stays.
                    Some(entry) if entry.proven && entry.remote_isn != Some(isn) => {
                        return Err(DropReason::UnknownConnection);
                    }
                    Some(entry) if !entry.proven => entry.set_remote_isn(isn),
                    _ => {}
                }
                self.accept_proof(now, handle, plan, peer);
                Ok(())
            }
            Subject::Entry { handle, .. } => {
                self.accept_proof(now, handle, plan, peer);
                Ok(())
            }
            Subject::Recovered {
                local_isn,
                remote_isn,
                ..
            } => {
                // An earlier segment of the batch may have recovered the same handshake.
                if let Some(handle) = self.entry_with(&plan.id, local_isn, remote_isn) {
                    self.accept_proof(now, handle, plan, peer);
                    return Ok(());
                }
                let mut entry = Connection::new(plan.id, self.table.number(), plan.peer, now);
                entry.set_local_isn(local_isn);
                entry.set_remote_isn(remote_isn);
                entry.note_received(plan.mkt, &plan.segment, now);
                follow_rnext(&mut entry, peer, plan);
                // Still provisional: an old handshake can be replayed whole.
                let handle = self
                    .table
                    .insert_opening(now, entry)
                    .map_err(|_| DropReason::TableFull)?;
                self.save(None, handle);
                Ok(())
            }
        }
    }

    /// A SYN proves no more than that somebody, some time, sent it: it opens a provisional entry
    /// and leaves a live connection alone.
    fn accept_syn(
        &mut self,
        now: Instant,
        plan: &VerifyPlan<P::Key>,
        peer: &Peer,
    ) -> Result<(), DropReason> {
        let isn = plan.segment.seq;
        let live = self
            .table
            .live(&plan.id)
            .and_then(|handle| self.table.get(handle));
        if live.is_some_and(|entry| entry.remote_isn == Some(isn) && !entry.is_closed()) {
            return Ok(());
        }
        let known = self
            .table
            .find_opening(&plan.id, |entry| entry.remote_isn == Some(isn));
        if let Some(entry) = known.and_then(|handle| self.table.get_mut(handle)) {
            // The same handshake again: after a restart its entry may come from the SYN-ACK alone,
            // and not know which key the far end asked for.
            entry.last_seen = now;
            if !entry.proven {
                follow_rnext(entry, peer, plan);
            }
            return Ok(());
        }
        let mut entry = Connection::new(plan.id, self.table.number(), plan.peer, now);
        // In a simultaneous open our own SYN has an entry, too: it stays as it is for a SYN-ACK,
        // and this one gets our ISN when the local TCP answers.
        entry.set_remote_isn(isn);
        entry.counters.good = 1;
        entry.count(plan.mkt, |key| key.good = 1);
        follow_rnext(&mut entry, peer, plan);
        self.table
            .insert_opening(now, entry)
            .map(|_| ())
            .map_err(|_| DropReason::TableFull)
    }

    /// A segment verified under both ISNs: its entry is the live one from now on.
    fn accept_proof(
        &mut self,
        now: Instant,
        handle: Handle,
        plan: &VerifyPlan<P::Key>,
        peer: &Peer,
    ) {
        let Some(entry) = self.table.get_mut(handle) else {
            return;
        };
        let wanted = plan.ao.rnext_key_id;
        let may_switch = entry.may_switch_key(&plan.segment, peer, wanted);
        let first_proof = !core::mem::replace(&mut entry.proven, true);
        entry.note_received(plan.mkt, &plan.segment, now);
        let switched = may_switch && follow_rnext(entry, peer, plan);
        let must_save = first_proof || switched || entry.needs_saving();
        if first_proof {
            self.table.promote(handle);
        }
        if must_save {
            self.save(None, handle);
        }
    }

    /// Makes a verified segment fit for the local TCP.
    fn edit_inbound(
        &self,
        packet: &mut Packet<'_>,
        plan: &VerifyPlan<P::Key>,
        peer: &Peer,
    ) -> Verdict {
        let mut segment = plan.segment;
        let strip = self.limits.strip || !is_overlooked(&plan.ao, &segment);
        if !segment.flags.syn() && !strip {
            return Verdict::Accept;
        }
        if strip {
            remove_ao(&mut packet.buf, &mut segment, &plan.ao);
        }
        if segment.flags.syn() {
            strip_options(&mut packet.buf, &mut segment, &SYN_OPTIONS_REMOVED);
            let room = inserted_room(peer);
            let headers = headers_len(&segment);
            let route = packet.route_mtu.map(|mtu| mtu.saturating_sub(headers));
            lower_mss(&mut packet.buf, &segment, route, room);
        }
        fill_checksum(packet.buf.bytes_mut(), &segment);
        Verdict::Modified
    }
}

impl Refusal {
    pub(super) fn of_nobody(reason: DropReason) -> Self {
        Self {
            reason,
            peer: None,
            connection: None,
            key_id: None,
            key: None,
        }
    }
}

/// Whether a kernel without TCP-AO overlooks the option. Linux from 6.7 on looks for it even when
/// built without (it shares a loop with TCP-MD5) wherever 18 octets of options are left, and
/// refuses a handshake in which it finds it.
fn is_overlooked(ao: &AoOption, segment: &Segment) -> bool {
    const LOOKED_AT: usize = 18;
    segment.payload_offset().saturating_sub(ao.offset) < LOOKED_AT
}

/// The MAC input's part before the payload.
pub(super) fn header_of(
    bytes: &[u8],
    segment: &Segment,
    ao: &AoOption,
    sne: u32,
    mkt: &Mkt,
) -> MacHeader {
    let mut header = MacHeader::default();
    mac_header(bytes, segment, ao, sne, mkt.include_options, &mut header);
    header
}

/// Octets that the option of the peer's longest algorithm takes.
pub(super) fn inserted_room(peer: &Peer) -> u32 {
    let longest = peer.keys.iter().map(|key| key.algorithm.option_len()).max();
    longest.and_then(|len| u32::try_from(len).ok()).unwrap_or(0)
}

/// Octets of IP and TCP header that an MSS does not count.
pub(super) fn headers_len(segment: &Segment) -> u32 {
    if segment.src.is_ipv4() { 40 } else { 60 }
}

/// Lowers the MSS option by the room that TCP-AO takes, and to what the route carries.
pub(super) fn lower_mss(buf: &mut PacketBuf<'_>, segment: &Segment, route: Option<u32>, room: u32) {
    let offered = summarize_options(buf.bytes(), segment)
        .ok()
        .and_then(|options| options.mss);
    let Some(offered) = offered else { return };
    let bound = route.map_or(u32::from(offered), |route| route.min(u32::from(offered)));
    let lowered = bound.saturating_sub(room);
    clamp_mss(
        buf.bytes_mut(),
        segment,
        u16::try_from(lowered).unwrap_or(u16::MAX),
    );
}

/// RFC 5925 §7.5: RNextKeyID names, by its SendID, the key the far end wants to receive. Unknown
/// means no action, and so does one whose time to send has passed. True if current_key moved.
fn follow_rnext<K>(entry: &mut Connection<K>, peer: &Peer, plan: &VerifyPlan<K>) -> bool {
    let wanted = plan.ao.rnext_key_id;
    let Some(current) = peer.keys.get(entry.current) else {
        return false;
    };
    if current.send_id == wanted || peer.accept_only.contains(&wanted) {
        return false;
    }
    let Some((place, _)) = find_key(peer, |key| key.send_id == wanted) else {
        return false;
    };
    entry.switch_key(current.send_id, wanted, place, &plan.segment);
    true
}

fn find_key(peer: &Peer, wanted: impl Fn(&Mkt) -> bool) -> Option<(usize, &Mkt)> {
    let (index, key) = peer.keys.iter().enumerate().find(|(_, key)| wanted(key))?;
    Some((index, key))
}
