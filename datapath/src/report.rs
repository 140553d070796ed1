//! What the datapath tells: sessions, counters and its own health.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// A SYN was seen; the far end has not yet proven that it knows both ISNs.
    Opening,
    /// Segments verified under both ISNs.
    Established,
    /// FIN or RST was seen; the entry is kept for late segments.
    Closing,
    /// Read back after a restart; no segment of it has been seen since.
    Restored,
}

impl SessionState {
    /// The stable lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Restored => "restored",
        }
    }
}

/// One TCP session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Name of its peer.
    pub peer: Arc<str>,
    /// This end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// VRF device, if the session lives in one.
    pub vrf: Option<String>,
    /// How far it is.
    pub state: SessionState,
    /// SendID of current_key.
    pub current_key: u8,
    /// RecvID of rnext_key.
    pub rnext_key: u8,
    /// Segments from the peer whose MAC verified.
    pub segments_good: u64,
    /// Segments from the peer with TCP-AO that were refused.
    pub segments_bad: u64,
    /// Segments from the peer without TCP-AO.
    pub segments_unsigned: u64,
    /// Segments signed and sent.
    pub segments_sent: u64,
    /// Sequence number extension of what was sent last.
    pub snd_sne: u32,
    /// Sequence number extension of what was received last.
    pub rcv_sne: u32,
}

/// One configured peer.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Its name.
    pub name: Arc<str>,
    /// Its address or prefix, as configured (`fe80::1%eth0`, `10.0.0.0/24`).
    pub address: String,
    /// Sessions established.
    pub sessions: u32,
    /// Segments verified.
    pub segments_good: u64,
    /// Segments signed and sent.
    pub segments_sent: u64,
    /// Refused packets by reason; only reasons that occurred.
    pub drops: BTreeMap<&'static str, u64>,
}

/// A netfilter queue.
#[derive(Clone, Debug, Default)]
pub struct QueueReport {
    /// Its number.
    pub number: u16,
    /// Packets taken from it.
    pub packets: u64,
    /// Times the kernel found the socket buffer full (ENOBUFS).
    pub overruns: u64,
}

/// The whole backend.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which firewall carries the queue rules: `nftables` or `iptables`.
    pub queue_rules: &'static str,
    /// Which firewall carries the guard.
    pub guard: &'static str,
    /// Whether inbound segments are stripped.
    pub strips: bool,
    /// Times the watcher had to put rules back.
    pub rules_restored: u64,
    /// Queues.
    pub queues: Vec<QueueReport>,
    /// Peers, in the order of the configuration.
    pub peers: Vec<PeerReport>,
    /// Sessions.
    pub sessions: Vec<Session>,
    /// Refused packets that belong to no peer, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Packets dropped by the firewall itself, by rule (`unsigned`, `fragment`, `ttl`, `guard`).
    pub firewall_drops: BTreeMap<&'static str, u64>,
}
