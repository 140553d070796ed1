//! Evidence for a diagnosis: what segments of peers look like on the wire, and what of this host
//! stands in the way of a session. Facts only: what follows from them is for others to judge.
//!
//! [`Datapath::listen`](crate::Datapath::listen) takes a copy of each SYN, SYN-ACK, RST and ICMP
//! error before the firewall sees those that come and after the engine has signed those that go.
//! [`local()`] reads what the kernel knows of peers.

mod collect;
mod listen;
mod local;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use ao_engine::examine::{Examined, Hint};
pub use ao_sys::sock_diag::TcpState;

pub(crate) use self::listen::{Question, listen};
pub use self::local::{Listener, LocalFacts, Md5Key, PeerLocal, Route, Socket, local};

/// What was seen on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// How long it was listened.
    pub listened: Duration,
    /// The peers asked about, in the order of the question; without those there are not.
    pub peers: Vec<PeerEvidence>,
    /// SYNs to protected ports of this host that are no peer's.
    pub strangers: Strangers,
    /// Packets that came faster than they could be looked at.
    pub missed: u64,
}

/// What was seen of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEvidence {
    /// Its name.
    pub peer: Arc<str>,
    /// SYNs and SYN-ACKs that left this host; at most [`MAX_KINDS`] kinds.
    pub sent: Vec<Seen>,
    /// SYNs and SYN-ACKs that arrived; at most [`MAX_KINDS`] kinds.
    pub received: Vec<Seen>,
    /// RSTs that left this host.
    pub resets_sent: u64,
    /// RSTs that arrived, signed or not.
    pub resets_received: u64,
    /// ICMP errors about segments of this host; at most [`MAX_KINDS`] kinds.
    pub icmp: Vec<IcmpSeen>,
    /// Times the kernel of this host gave up to find the next hop's address on the link (ARP,
    /// neighbor discovery): segments that it could not send.
    pub unresolved: u64,
    /// SYNs and SYN-ACKs of more kinds, or more than it was worth to examine.
    pub unexamined: u64,
}

impl PeerEvidence {
    /// Nothing was seen of the peer.
    #[must_use]
    pub fn nothing(peer: Arc<str>) -> Self {
        Self {
            peer,
            sent: Vec::new(),
            received: Vec::new(),
            resets_sent: 0,
            resets_received: 0,
            icmp: Vec::new(),
            unresolved: 0,
            unexamined: 0,
        }
    }

    /// SYNs and SYN-ACKs that left this host.
    #[must_use]
    pub fn sent_count(&self) -> u64 {
        self.sent.iter().map(|seen| seen.count).sum()
    }

    /// SYNs and SYN-ACKs that arrived, examined or not.
    #[must_use]
    pub fn received_count(&self) -> u64 {
        self.received.iter().map(|seen| seen.count).sum::<u64>() + self.unexamined
    }
}

/// Kinds of segments that are told apart per peer and direction.
pub const MAX_KINDS: usize = 16;

/// Which segment of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A SYN.
    Syn,
    /// A SYN-ACK.
    SynAck,
}

/// Segments of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What they are.
    pub examined: Examined,
    /// Which segment of the handshake.
    pub step: Step,
    /// Address of the far end.
    pub remote: IpAddr,
    /// Address of this end.
    pub local: IpAddr,
    /// The protected port of the connection: the receiver's of a SYN.
    pub port: u16,
    /// The lowest TTL or hop limit seen.
    pub ttl: u8,
    /// Name of the device, empty if it is gone.
    pub interface: String,
    /// How many.
    pub count: u64,
}

/// ICMP errors of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpSeen {
    /// Who sent them: the far end, or a router.
    pub from: IpAddr,
    /// ICMP or ICMPv6 type, by the family of `from`.
    pub kind: u8,
    /// ICMP or ICMPv6 code.
    pub code: u8,
    /// What that means, such as "port unreachable".
    pub meaning: &'static str,
    /// How many.
    pub count: u64,
}

/// SYNs to protected ports of this host that belong to no peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// How many there were.
    pub count: u64,
    /// Some of them, each source once; at most [`MAX_KINDS`].
    pub examples: Vec<Stranger>,
}

/// A source of SYNs that belong to no peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Its address.
    pub from: IpAddr,
    /// Where its SYN went.
    pub to: SocketAddr,
    /// Name of the device, empty if it is gone.
    pub interface: String,
    /// Name of the VRF the device belongs to.
    pub vrf: Option<String>,
    /// Its KeyID, if it had TCP-AO.
    pub key_id: Option<u8>,
    /// Whether it had TCP-MD5.
    pub md5: bool,
    /// A peer asked about with whose key it verifies: it knows the secret, and comes from an
    /// address, to an address, or by a device that is not the peer's.
    pub verifies_as: Option<Arc<str>>,
    /// SYNs from this address.
    pub count: u64,
}
