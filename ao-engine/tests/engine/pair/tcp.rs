//! A small TCP: handshake, sliding window, retransmission by timer and by duplicate
//! acknowledgments, SACK blocks, MSS, path MTU, FIN. Enough to notice when something below it
//! loses what TCP would not lose.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::support::{ACK, FIN, PSH, RST, SYN, Tcp, option};

const FIRST_RTO: u64 = 300;
const LONGEST_RTO: u64 = 5_000;
const WINDOW: u64 = 16_000;

/// One end of a connection. Positions in its streams are 64-bit offsets from the ISN: the SYN is
/// at 0, the data begins at 1.
pub(crate) struct Endpoint {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) isn: u32,
    pub(crate) peer_isn: Option<u32>,
    /// What the route to the far end carries, as this host believes.
    pub(crate) route_mtu: usize,
    pub(crate) was_reset: bool,
    link_mtu: usize,
    calls: bool,
    timestamps: bool,
    peer_mss: usize,
    data: Vec<u8>,
    una: u64,
    next: u64,
    /// End of everything ever sent.
    max: u64,
    duplicates: u32,
    repeat_first: bool,
    rto: u64,
    deadline: Option<u64>,
    received: Vec<u8>,
    early: BTreeMap<u64, Vec<u8>>,
    fin_at: Option<u64>,
    ack_due: bool,
}

impl Endpoint {
    pub(crate) fn new(
        local: SocketAddr,
        remote: SocketAddr,
        isn: u32,
        link_mtu: usize,
        data: Vec<u8>,
    ) -> Self {
        Self {
            local,
            remote,
            isn,
            peer_isn: None,
            route_mtu: link_mtu,
            was_reset: false,
            link_mtu,
            calls: false,
            timestamps: isn.is_multiple_of(2),
            peer_mss: 536,
            data,
            una: 0,
            next: 0,
            max: 0,
            duplicates: 0,
            repeat_first: false,
            rto: FIRST_RTO,
            deadline: None,
            received: Vec::new(),
            early: BTreeMap::new(),
            fin_at: None,
            ack_due: false,
        }
    }

    pub(crate) fn call(&mut self) {
        self.calls = true;
    }

    pub(crate) fn received(&self) -> &[u8] {
        &self.received
    }

    /// Everything was acknowledged, the FIN too, and everything received.
    pub(crate) fn is_done(&self) -> bool {
        self.una == self.end() + 1 && self.fin_at == Some(self.expected())
    }

    /// 64-bit sequence number of one on the wire that this end sent.
    pub(crate) fn extend(&self, seq: u32) -> u64 {
        let near = u64::from(self.isn) + self.max;
        near.wrapping_add_signed(i64::from(seq.wrapping_sub(near as u32).cast_signed()))
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Segments to send now.
    pub(crate) fn poll(&mut self, now: u64) -> Vec<Tcp> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.next = self.una;
            self.rto = (self.rto * 2).min(LONGEST_RTO);
            self.deadline = None;
        }
        let mut out = Vec::new();
        if self.repeat_first {
            self.repeat_first = false;
            out.extend(self.segment_at(self.una));
        }
        while let Some(segment) = self.segment_at(self.next) {
            self.next += u64::from(segment.seq_len());
            self.max = self.max.max(self.next);
            out.push(segment);
        }
        // Out of order data is reported by an acknowledgment of its own.
        if self.ack_due && (out.is_empty() || !self.early.is_empty()) && self.una > 0 {
            out.push(self.pure_ack());
        }
        self.ack_due = false;
        if self.una == self.max {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(now + self.rto);
        }
        out
    }

    pub(crate) fn receive(&mut self, now: u64, segment: &Tcp) {
        if segment.has(SYN) {
            if self.peer_isn.is_none() {
                self.peer_isn = Some(segment.seq);
                self.peer_mss = segment.mss().map_or(536, usize::from);
            }
            if self.una == 0 && !segment.has(ACK) {
                self.next = 0; // The answer tells our ISN, perhaps again.
            }
        }
        if self.peer_isn.is_none() {
            return;
        }
        let at = self.position(segment);
        if segment.has(RST) {
            self.was_reset |= at == self.expected() as i64;
            return;
        }
        if segment.has(ACK) {
            self.acknowledged(now, segment);
        }
        if segment.seq_len() > 0 || at < self.expected() as i64 {
            self.ack_due = true;
            self.take(segment, at);
        }
    }

    /// News of a smaller path MTU, bounded from below as Linux does.
    pub(crate) fn lower_mtu(&mut self, mtu: usize) {
        let least = if self.local.is_ipv4() { 552 } else { 1280 };
        let mtu = mtu.max(least);
        if mtu < self.route_mtu {
            self.route_mtu = mtu;
            self.next = self.una;
        }
    }

    fn end(&self) -> u64 {
        1 + self.data.len() as u64
    }

    /// Position of the next octet of data to receive.
    fn expected(&self) -> u64 {
        1 + self.received.len() as u64
    }

    fn segment_at(&self, at: u64) -> Option<Tcp> {
        if at == 0 {
            let flags = match self.peer_isn {
                Some(_) => SYN | ACK,
                None if self.calls => SYN,
                None => return None,
            };
            let mss = (self.link_mtu - self.ip_header() - 20) as u16;
            let [high, low] = mss.to_be_bytes();
            let list = [&[option::MSS, 4, high, low, 1, 1, 4, 2][..], &self.stamps()].concat();
            return Some(self.segment(flags, 0).options(&list));
        }
        if self.una == 0 {
            return None;
        }
        let room = (self.una + WINDOW).saturating_sub(at);
        if at < self.end() && room > 0 {
            let stamps = self.stamps();
            let by_mss = self.peer_mss.saturating_sub(stamps.len());
            let by_mtu = self.route_mtu - self.ip_header() - 20 - stamps.len();
            let most = by_mss.min(by_mtu).max(1).min(room as usize);
            let from = (at - 1) as usize;
            let to = (from + most).min(self.data.len());
            let segment = self.segment(ACK | PSH, at).options(&stamps);
            return Some(segment.payload(&self.data[from..to]));
        }
        (at == self.end() && room > 0).then(|| self.segment(ACK | FIN, at).options(&self.stamps()))
    }

    fn pure_ack(&self) -> Tcp {
        let mut list = self.stamps();
        let peer = self.peer_isn.unwrap_or(0);
        let blocks: Vec<u8> = self
            .early
            .iter()
            .take(3)
            .flat_map(|(&at, octets)| {
                let (left, right) = (at as u32, at as u32 + octets.len() as u32);
                [left, right].map(|edge| peer.wrapping_add(edge).to_be_bytes())
            })
            .flatten()
            .collect();
        if !blocks.is_empty() {
            list.extend([1, 1, option::SACK, 2 + blocks.len() as u8]);
            list.extend(blocks);
        }
        self.segment(ACK, self.max).options(&list)
    }

    fn segment(&self, flags: u8, at: u64) -> Tcp {
        let seq = self.isn.wrapping_add(at as u32);
        let after_fin = u64::from(self.fin_at == Some(self.expected()));
        let ack = self.peer_isn.map_or(0, |isn| {
            isn.wrapping_add((self.expected() + after_fin) as u32)
        });
        Tcp::new(self.local, self.remote, flags, seq, ack)
    }

    fn stamps(&self) -> Vec<u8> {
        match self.timestamps {
            true => vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            false => vec![],
        }
    }

    fn ip_header(&self) -> usize {
        if self.local.is_ipv4() { 20 } else { 40 }
    }

    fn position(&self, segment: &Tcp) -> i64 {
        let expected = self.expected();
        let near = self.peer_isn.unwrap_or(0).wrapping_add(expected as u32);
        expected as i64 + i64::from(segment.seq.wrapping_sub(near).cast_signed())
    }

    fn acknowledged(&mut self, now: u64, segment: &Tcp) {
        let near = self.isn.wrapping_add(self.una as u32);
        let ahead = u64::from(segment.ack.wrapping_sub(near));
        if ahead > 0 && self.una + ahead <= self.max {
            self.una += ahead;
            self.next = self.next.max(self.una);
            self.duplicates = 0;
            self.rto = FIRST_RTO;
            self.deadline = (self.una < self.max).then_some(now + self.rto);
        } else if ahead == 0 && segment.seq_len() == 0 && self.una < self.max {
            self.duplicates += 1;
            self.repeat_first |= self.duplicates == 3;
        }
    }

    fn take(&mut self, segment: &Tcp, at: i64) {
        let at = at + i64::from(segment.has(SYN));
        if segment.has(FIN) {
            self.fin_at = Some((at + segment.payload.len() as i64) as u64);
        }
        let skip = (self.expected() as i64 - at).max(0) as usize;
        if let Some(fresh) = segment
            .payload
            .get(skip..)
            .filter(|fresh| !fresh.is_empty())
        {
            let at = (at + skip as i64) as u64;
            let held = self.early.entry(at).or_default();
            if held.len() < fresh.len() {
                *held = fresh.to_vec();
            }
        }
        while let Some((at, octets)) = self.early.first_key_value() {
            if *at > self.expected() {
                break;
            }
            let known = (self.expected() - at) as usize;
            self.received
                .extend_from_slice(octets.get(known..).unwrap_or_default());
            self.early.pop_first();
        }
    }
}
