//! What keeper and sidecar tell each other: one JSON object a message, over a Unix socket that
//! keeps messages apart (SOCK_SEQPACKET).
//!
//! A keeper lives as long as its daemon and so meets sidecars of later releases: fields may be
//! added, and a message that is not understood is skipped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ao_engine::policy::Prefix;
use serde::{Deserialize, Serialize};

/// Highest version both sides of this release speak.
pub(crate) const VERSION: u32 = 1;
/// Longest message.
pub(crate) const MAX_MESSAGE: usize = 65_536;
/// Peers in one message, so that it stays below [`MAX_MESSAGE`].
const PEERS_PER_MESSAGE: usize = 500;

/// The socket on which the sidecar whose API is at `api_socket` awaits keepers.
#[must_use]
pub fn socket_path(api_socket: &Path) -> PathBuf {
    let mut path = api_socket.as_os_str().to_owned();
    path.push(".keeper");
    path.into()
}

/// From a keeper.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToSidecar {
    /// The first message.
    Hello {
        version: u32,
        /// What was launched, for people.
        daemon: String,
        /// Its process id.
        pid: u32,
        /// Inode of the network namespace it was launched in.
        network_namespace: u64,
        /// Users that its sockets were made by so far.
        #[serde(default)]
        users: Vec<u32>,
    },
    /// A call that waits. A pidfd of the caller's process goes with the message: never the socket
    /// itself, which a descriptor under way would keep open.
    Call {
        id: u64,
        /// Descriptor number in the calling process.
        fd: i32,
        /// SO_COOKIE of the socket, by which a descriptor closed and used again is noticed.
        cookie: u64,
        /// User that the socket was made by.
        user: u32,
        call: Call,
    },
    /// Something the operator should read.
    Notice { text: String },
}

/// What a daemon wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// Open a connection.
    Connect { remote: SocketAddr },
    /// Accept connections.
    Listen,
}

/// From the sidecar.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToKeeper {
    /// The daemon is registered; its peers follow.
    Welcome { version: u32 },
    /// The daemon cannot be served.
    Refused { why: String },
    /// Configured peers: a new list begins where `first` is set and is complete where `last` is.
    Peers {
        first: bool,
        last: bool,
        peers: Vec<PeerRange>,
    },
    /// What becomes of a call: it goes on, or fails with this errno.
    Verdict { id: u64, errno: Option<i32> },
}

/// Connections that are protected, as far as a keeper has to know them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireRange", into = "WireRange")]
pub(crate) struct PeerRange {
    pub(crate) remote: Prefix,
    pub(crate) first_port: u16,
    pub(crate) last_port: u16,
}

impl PeerRange {
    /// Whether a connection to `remote` from `local_port` (0 when the kernel has yet to choose
    /// one) is a peer's. VRF and local address are left out: without a sidecar, rather refuse a
    /// connection too many.
    pub(crate) fn covers(&self, remote: SocketAddr, local_port: u16) -> bool {
        let ports = self.first_port..=self.last_port;
        self.remote.contains(remote.ip().to_canonical())
            && (ports.contains(&remote.port()) || ports.contains(&local_port))
    }
}

#[derive(Serialize, Deserialize)]
struct WireRange {
    address: std::net::IpAddr,
    length: u8,
    ports: (u16, u16),
}

impl TryFrom<WireRange> for PeerRange {
    type Error = ao_engine::policy::PrefixError;

    fn try_from(wire: WireRange) -> Result<Self, Self::Error> {
        Ok(Self {
            remote: Prefix::new(wire.address, wire.length)?,
            first_port: wire.ports.0,
            last_port: wire.ports.1,
        })
    }
}

impl From<PeerRange> for WireRange {
    fn from(range: PeerRange) -> Self {
        Self {
            address: range.remote.address(),
            length: range.remote.length(),
            ports: (range.first_port, range.last_port),
        }
    }
}

/// The messages that tell a keeper its peers.
pub(crate) fn peer_messages(peers: &[PeerRange]) -> Vec<ToKeeper> {
    let parts: Vec<&[PeerRange]> = if peers.is_empty() {
        vec![&[]]
    } else {
        peers.chunks(PEERS_PER_MESSAGE).collect()
    };
    let count = parts.len();
    parts
        .into_iter()
        .enumerate()
        .map(|(index, part)| ToKeeper::Peers {
            first: index == 0,
            last: index + 1 == count,
            peers: part.to_vec(),
        })
        .collect()
}

/// A message as it goes over the socket.
pub(crate) fn encode(message: &impl Serialize) -> Vec<u8> {
    // Numbers, strings and lists of them cannot fail to be written to memory.
    serde_json::to_vec(message).unwrap_or_default()
}

/// A message that came over the socket; nothing if it is of no known kind.
pub(crate) fn decode<'m, M: Deserialize<'m>>(message: &'m [u8]) -> Option<M> {
    serde_json::from_slice(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(remote: &str, length: u8) -> PeerRange {
        PeerRange {
            remote: Prefix::new(remote.parse().unwrap(), length).unwrap(),
            first_port: 179,
            last_port: 180,
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let call = ToSidecar::Call {
            id: u64::MAX,
            fd: 7,
            cookie: 1 << 40,
            user: 65534,
            call: Call::Connect {
                remote: "[fe80::1%3]:179".parse().unwrap(),
            },
        };
        assert_eq!(decode(&encode(&call)), Some(call));
        let refused = ToKeeper::Refused { why: "no".into() };
        assert_eq!(decode(&encode(&refused)), Some(refused));
    }

    #[test]
    fn what_a_later_release_adds_is_skipped() {
        let more = br#"{"verdict":{"id":1,"errno":null,"reason":"new"}}"#;
        let known = ToKeeper::Verdict { id: 1, errno: None };
        assert_eq!(decode(more), Some(known));
        assert_eq!(decode::<ToKeeper>(br#"{"unheard_of":{}}"#), None);
        assert_eq!(decode::<ToKeeper>(b"\xff"), None);
        let host_bits = br#"{"peers":{"first":true,"last":true,"peers":[{"address":"10.0.0.1","length":8,"ports":[1,2]}]}}"#;
        assert_eq!(decode::<ToKeeper>(host_bits), None);
    }

    #[test]
    fn many_peers_fit_into_messages() {
        let peers = vec![range("2001:db8:1234:5678:9abc:def0:1234:5678", 128); 1201];
        let messages = peer_messages(&peers);
        assert_eq!(messages.len(), 3);
        assert!(
            messages
                .iter()
                .all(|message| encode(message).len() < MAX_MESSAGE)
        );
        let ToKeeper::Peers { first, last, .. } = &messages[2] else {
            panic!("{messages:?}");
        };
        assert_eq!((*first, *last), (false, true));
        assert_eq!(peer_messages(&[]).len(), 1);
    }

    #[test]
    fn a_range_covers_either_port_and_mapped_addresses() {
        let range = range("10.0.0.0", 24);
        let covers = |remote: &str, local| range.covers(remote.parse().unwrap(), local);
        assert!(covers("10.0.0.9:179", 0));
        assert!(covers("10.0.0.9:50000", 180));
        assert!(covers("[::ffff:10.0.0.9]:179", 0));
        assert!(!covers("10.0.0.9:50000", 0));
        assert!(!covers("10.0.1.9:179", 0));
    }
}
