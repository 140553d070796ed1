//! What the datapath tells: sessions, counters and its own health.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::settings::Backend;

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

/// How much a key of a session was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// Its SendID.
    pub send_id: u8,
    /// Its RecvID.
    pub recv_id: u8,
    /// Segments from the peer that verified with it.
    pub good: u64,
    /// Segments from the peer that named it and did not verify.
    pub bad: u64,
    /// Segments signed with it; the kernel does not tell.
    pub sent: Option<u64>,
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
    /// Who signs and verifies its segments.
    pub backend: Backend,
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
    /// Segments from the peer with a KeyID that the kernel has no key for.
    pub key_not_found: u64,
    /// ICMP errors about the session that the kernel did not believe.
    pub dropped_icmp: u64,
    /// Counts of each key, in the order of preference with the userspace backend; empty for a
    /// session that has not been seen since a restart.
    pub keys: Vec<KeyUse>,
    /// Sequence number extension of what was sent last, where the backend tells.
    pub snd_sne: Option<u32>,
    /// Sequence number extension of what was received last, where the backend tells.
    pub rcv_sne: Option<u32>,
}

/// One configured peer.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Its name.
    pub name: Arc<str>,
    /// Its address or prefix, as configured (`fe80::1%eth0`, `10.0.0.0/24`).
    pub address: String,
    /// Who signs and verifies its segments.
    pub backend: Backend,
    /// Why it is this backend.
    pub backend_reason: String,
    /// Keys it has; without any it is blocked.
    pub keys: u32,
    /// Sessions established.
    pub sessions: u32,
    /// Segments verified.
    pub segments_good: u64,
    /// Segments signed and sent.
    pub segments_sent: u64,
    /// Refused packets by reason; only reasons that occurred.
    pub drops: BTreeMap<&'static str, u64>,
    /// The packet that was refused last; nothing of peers of the kernel backend, which does not
    /// tell.
    pub last_refused: Option<LastRefused>,
}

/// The last packet of a peer that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRefused {
    /// Why, as in [`PeerReport::drops`].
    pub reason: &'static str,
    /// How long ago.
    pub ago: Duration,
    /// The KeyID that it named, if it had TCP-AO and was read that far.
    pub key_id: Option<u8>,
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
    /// Packets that wait in it.
    pub waiting: u32,
    /// Packets the kernel dropped because the queue, or the buffer of its socket, was full.
    pub dropped: u64,
}

/// A daemon that `ao-sidecar exec` launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchedDaemon {
    /// The name of its program, as the kernel has it.
    pub name: String,
    /// Its process.
    pub pid: u32,
}

/// The kernel backend.
#[derive(Clone, Debug, Default)]
pub struct KernelReport {
    /// Whether this kernel has TCP-AO.
    pub tcp_ao: bool,
    /// Daemons that run under `ao-sidecar exec`.
    pub daemons: Vec<LaunchedDaemon>,
    /// Listening sockets that have keys.
    pub listeners: u32,
    /// The limit of option memory per socket, in octets (`net.core.optmem_max`).
    pub optmem_max: u64,
    /// What that limit was before the sidecar raised it.
    pub optmem_raised_from: Option<u64>,
    /// What sockets lack of what they should have, for people.
    pub problems: Vec<String>,
}

/// The whole datapath.
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
    /// Why the rules are not as they should be, for people, as far as was seen at the last look:
    /// they could not be put back, or nobody looks.
    pub rules_trouble: Option<String>,
    /// Queues.
    pub queues: Vec<QueueReport>,
    /// Peers, in the order of the configuration.
    pub peers: Vec<PeerReport>,
    /// Whether sessions, and what is counted with them, may be missing: a worker did not answer in
    /// time, or sockets could not be looked at.
    pub partial: bool,
    /// Sessions.
    pub sessions: Vec<Session>,
    /// Refused packets that belong to no peer, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Packets dropped by the firewall itself, by rule (`unsigned`, `fragment`, `ttl`, `guard`).
    pub firewall_drops: BTreeMap<&'static str, u64>,
    /// MACs that the userspace backend has computed.
    pub macs: u64,
    /// Time it took for them, all workers together.
    pub mac_time: Duration,
    /// The kernel backend; `None` when it does not run.
    pub kernel: Option<KernelReport>,
}
