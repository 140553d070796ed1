//! What the datapath is told: peers by name and address, queues, and what to do at the edges.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use ao_engine::crypto::Algorithm;
use ao_engine::policy::{Mkt, Prefix};

/// Which backend the operator wants for a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The kernel where it can do everything the peer's keys ask for and the daemon was launched
    /// by the sidecar, else userspace.
    #[default]
    Auto,
    /// The kernel's own TCP-AO, always.
    Kernel,
    /// The userspace engine, always.
    Userspace,
}

/// Who signs and verifies the segments of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The kernel, with keys on the daemon's sockets.
    Kernel,
    /// The engine of this process, behind netfilter queues.
    Userspace,
}

impl Backend {
    /// The stable lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// A peer as configured: interfaces and VRFs by name, because an index may change while we run.
#[derive(Clone, Debug)]
pub struct PeerSpec {
    /// Name given by the operator, unique.
    pub name: Arc<str>,
    /// Addresses of the far end.
    pub remote: Prefix,
    /// Address of this end; any when absent.
    pub local: Option<IpAddr>,
    /// Protected ports, matched as source or destination port.
    pub ports: RangeInclusive<u16>,
    /// Interface of a link-local peer.
    pub interface: Option<String>,
    /// VRF device the sessions live in; any domain when absent.
    pub vrf: Option<String>,
    /// MKTs in order of preference. A peer without any is blocked: nothing passes either way.
    pub keys: Vec<Arc<Mkt>>,
    /// Algorithms of keys that the peer may get while the datapath runs, beside those of `keys`:
    /// `Choice::Auto` takes the kernel only if it has them all.
    pub algorithms: Vec<Algorithm>,
    /// Lowest TTL or hop limit accepted from the peer; 0 accepts all.
    pub ttl_min: u8,
    /// Which backend is wanted.
    pub datapath: Choice,
}

impl PeerSpec {
    /// Whether both cover some connection with equal precedence, so that neither could be preferred.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.remote == other.remote
            && self.local == other.local
            && self.ports.start() <= other.ports.end()
            && other.ports.start() <= self.ports.end()
            && self.interface == other.interface
            && self.vrf == other.vrf
    }
}

/// Whether TCP-AO is removed from verified inbound segments before the local TCP sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strip {
    /// Remove it unless a probe shows that this kernel ignores option kind 29.
    #[default]
    Auto,
    /// Always remove it.
    Always,
    /// Remove it only where a kernel without TCP-AO would not overlook it.
    Never,
}

/// What happens to the firewall rules and the guard at an orderly exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// They stay: configured peers are blocked until the sidecar is back.
    #[default]
    Keep,
    /// They are removed: sessions may go on unprotected.
    Remove,
}

/// Everything the userspace backend is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Configured peers.
    pub peers: Vec<PeerSpec>,
    /// Number of the first netfilter queue; the workers take this and the following ones, ICMP
    /// errors the one after those.
    pub first_queue: u16,
    /// Number of workers, each with a queue of its own: 1 to 64.
    pub workers: u8,
    /// Packets a queue holds before the kernel drops: 64 to 65,536.
    pub queue_length: u32,
    /// Single bit of the packet mark by which the guard knows verified packets; other bits are
    /// left alone.
    pub mark_bit: u32,
    /// Upper bound on connections.
    pub max_connections: u32,
    /// Whether verified segments are stripped.
    pub strip: Strip,
    /// What happens to rules and guard at exit.
    pub on_exit: OnExit,
    /// Where connection state is kept.
    pub state_dir: PathBuf,
    /// Where keepers of launched daemons are awaited ([`crate::keeper::socket_path`]).
    pub keeper_socket: PathBuf,
    /// Close unprotected sessions that are alive at the first start, instead of refusing to start.
    pub replace_sessions: bool,
}
