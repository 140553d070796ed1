//! Acknowledgments that the engine sends by itself, so that a quiet connection shows which keys
//! it uses: the far end learns of another rnext_key from a segment only.

use alloc::vec;
use core::time::Duration;

use super::connection::KeyUse;
use super::inbound::header_of;
use super::outbound::{make_room_and_insert, sending_keys};
use super::table::Handle;
use super::{Engine, Link, Outgoing};
use crate::crypto::{MacJob, MacProvider};
use crate::policy::Peer;
use crate::time::Instant;
use crate::wire::{HEADROOM, PacketBuf, Segment, bare_ack, fill_checksum, set_mac};

/// How long a connection has sent nothing when it is quiet.
const QUIET: Duration = Duration::from_secs(1);
/// Octets of the longest headers kept: of IPv4 with all options and TCP with all options.
const HEADERS: usize = 120;

/// The headers of the last segment sent.
#[derive(Debug)]
pub(super) struct Template {
    headers: [u8; HEADERS],
    /// Octets of it that are used.
    len: usize,
    link: Link,
    sent_at: Instant,
    /// Whether the next acknowledgment is to be one that the far end answers.
    asks: bool,
}

impl Default for Template {
    fn default() -> Self {
        Self {
            headers: [0; HEADERS],
            len: 0,
            link: Link::default(),
            sent_at: Instant::default(),
            asks: false,
        }
    }
}

impl Template {
    /// Notes what is sent. Segments that open or end a connection have no headers of use.
    pub(super) fn set(&mut self, now: Instant, link: Link, packet: &[u8], segment: &Segment) {
        self.sent_at = now;
        let flags = segment.flags;
        if !flags.ack() || flags.syn() || flags.fin() || flags.rst() {
            return;
        }
        let headers = packet.get(..segment.payload_offset()).unwrap_or_default();
        let kept = self.headers.get_mut(..headers.len());
        self.len = kept.map_or(0, |kept| {
            kept.copy_from_slice(headers);
            headers.len()
        });
        self.link = link;
    }

    fn headers(&self) -> Option<&[u8]> {
        self.headers.get(..self.len).filter(|kept| !kept.is_empty())
    }
}

impl<P: MacProvider> Engine<P> {
    /// Puts a signed acknowledgment without data into the outbox for each quiet connection of the
    /// peers that `wanted` holds for; at most one a second and connection.
    ///
    /// It repeats the last segment's headers, so that it tells the far end's TCP nothing new. Every
    /// other one has a sequence number that the far end has had already, as a keep-alive has: its
    /// TCP answers that (RFC 9293 §3.10.7.4), and shows its keys in turn. Connections that have
    /// sent nothing since a restart, or are being closed, send nothing.
    pub fn nudge(&mut self, now: Instant, wanted: impl Fn(&Peer) -> bool) {
        let policy = self.policy.clone();
        let is_wanted = |peer: usize| policy.peers().get(peer).is_some_and(|peer| wanted(peer));
        let quiet = self.table.handles(|entry| {
            entry.is_open() && now.since(entry.template.sent_at) >= QUIET && is_wanted(entry.peer)
        });
        for handle in quiet {
            let made = self.acknowledge(now, handle);
            self.outbox.extend(made);
        }
    }

    fn acknowledge(&mut self, now: Instant, handle: Handle) -> Option<Outgoing> {
        let policy = self.policy.clone();
        let entry = self.table.get_mut(handle)?;
        let peer_index = entry.peer;
        let peer = policy.peers().get(peer_index)?;
        let (mkt_index, mkt, rnext) = sending_keys(entry, peer)?;
        let place = entry.prepare_key(&self.provider, mkt_index, mkt, KeyUse::SendOther)?;

        let headers = entry.template.headers()?;
        let mut storage = vec![0; HEADROOM];
        storage.extend_from_slice(headers);
        let end = storage.len();
        let mut buf = PacketBuf::new(&mut storage, HEADROOM, end)?;
        let seq = entry
            .sent
            .wire()
            .wrapping_sub(u32::from(entry.template.asks));
        let mut segment = bare_ack(&mut buf, seq)?;
        let ao = make_room_and_insert(&mut buf, &mut segment, mkt, rnext)?;
        let sne = entry.sent.sne_of(seq);
        let header = header_of(buf.bytes(), &segment, &ao, sne, mkt);
        let mut job = [MacJob::new(entry.key(place)?, header.as_bytes(), &[])];
        self.provider.compute(&mut job);
        let [MacJob { mac, .. }] = job;
        set_mac(buf.bytes_mut(), &ao, &mac);
        fill_checksum(buf.bytes_mut(), &segment);

        entry.note_acknowledged(mkt_index);
        entry.template.sent_at = now;
        entry.template.asks = !entry.template.asks;
        if let Some(counters) = self.counters.peer(peer_index) {
            counters.sent += 1;
        }
        Some(Outgoing {
            link: entry.template.link,
            bytes: buf.bytes().to_vec(),
        })
    }
}
