//! Configurations of the sidecar under test.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::scratch::Scratch;
use crate::topology::{Family, Host};

/// Names of the algorithms, as the configuration has them.
pub const ALGORITHMS: [&str; 4] = [
    "hmac-sha-1-96",
    "aes-128-cmac-96",
    "hmac-sha-256-96",
    "hmac-sha-256-128",
];

/// A key as one end has it.
#[derive(Clone, Debug)]
pub struct Key {
    /// KeyID it sends.
    pub send_id: u8,
    /// KeyID it expects.
    pub recv_id: u8,
    /// One of [`ALGORITHMS`].
    pub algorithm: &'static str,
    /// The secret, text.
    pub secret: String,
    /// Whether other TCP options are covered.
    pub include_tcp_options: bool,
    /// When it is sent and, but for the chain's tolerance, accepted; always without.
    pub lifetime: Option<Lifetime>,
}

/// A span of time.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// Its first moment.
    pub start: SystemTime,
    /// The first moment after it.
    pub end: SystemTime,
}

impl Key {
    /// A key with IDs 1 (sent) and 2 (expected).
    #[must_use]
    pub fn new(algorithm: &'static str) -> Self {
        Self {
            send_id: 1,
            recv_id: 2,
            algorithm,
            secret: "a secret of the tests".into(),
            include_tcp_options: true,
            lifetime: None,
        }
    }

    /// The same key as the far end has it.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self {
            send_id: self.recv_id,
            recv_id: self.send_id,
            ..self.clone()
        }
    }

    /// The key for the capture checker; this end's address is `a`.
    #[must_use]
    pub fn for_checker(&self, a: &str, b: &str) -> Value {
        json!({
            "a": a, "b": b, "a_to_b_id": self.send_id, "b_to_a_id": self.recv_id,
            "algorithm": self.algorithm, "secret": self.secret,
            "include_options": self.include_tcp_options,
        })
    }

    /// Everything of it but the secret.
    fn text(&self) -> String {
        let mut text = format!(
            "[[key_chain.key]]\nsend_id = {}\nrecv_id = {}\nalgorithm = \"{}\"\n\
             include_tcp_options = {}\n",
            self.send_id, self.recv_id, self.algorithm, self.include_tcp_options
        );
        if let Some(Lifetime { start, end }) = self.lifetime {
            let _ = writeln!(
                text,
                "lifetime = {{ start = {}, end = {} }}",
                date_time(start),
                date_time(end)
            );
        }
        text
    }
}

/// As TOML has it, in UTC.
fn date_time(moment: SystemTime) -> Timestamp {
    Timestamp::try_from(moment).expect("a time with a date")
}

impl Default for Key {
    fn default() -> Self {
        Self::new(ALGORITHMS[0])
    }
}

/// A configuration with one peer.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the peer, with zone where it needs one.
    pub peer: String,
    /// Protected port.
    pub port: u16,
    /// Its keys.
    pub keys: Vec<Key>,
    /// `keep` or `remove`.
    pub on_exit: &'static str,
    /// `auto`, `always` or `never`.
    pub strip: &'static str,
    /// `auto`, `kernel` or `userspace`.
    pub datapath: &'static str,
    /// Lowest TTL accepted from the peer; 0 accepts all.
    pub ttl_min: u8,
}

impl Config {
    /// Protects BGP with `peer` by `key`.
    #[must_use]
    pub fn new(peer: &Host, family: Family, key: Key) -> Self {
        Self {
            peer: peer.address_text(family),
            port: 179,
            keys: vec![key],
            on_exit: "keep",
            strip: "auto",
            datapath: "userspace",
            ttl_min: 0,
        }
    }

    pub(super) fn write(&self, scratch: &Scratch) -> PathBuf {
        let mut text = format!(
            "datapath = \"{}\"\non_exit = \"{}\"\n[userspace]\nstrip = \"{}\"\n\
             [[key_chain]]\nname = \"chain\"\n",
            self.datapath, self.on_exit, self.strip
        );
        for (index, key) in self.keys.iter().enumerate() {
            let file = format!("chain-{index}.key");
            scratch.write(&file, &key.secret);
            let _ = writeln!(text, "{}secret_file = \"{file}\"", key.text());
        }
        let _ = write!(
            text,
            "[[peer]]\nname = \"peer\"\naddress = \"{}\"\nport = {}\nkey_chain = \"chain\"\n\
             ttl_min = {}\n",
            self.peer, self.port, self.ttl_min
        );
        scratch.write("config.toml", &text)
    }
}

/// A peer of a sidecar that has several.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its address, or a prefix of dynamic peers.
    pub address: String,
    /// Protected port.
    pub port: u16,
    /// The keys of its chain; the first is the preferred one.
    pub keys: Vec<Key>,
    /// What its chain says about the time, where it differs from the default.
    pub expiry: Option<Expiry>,
    /// Its sidecar, with which keys are agreed; then it has no chain.
    pub rollover: Option<Rollover>,
    /// VRF device it is in.
    pub vrf: Option<&'static str>,
    /// `auto`, `kernel` or `userspace`, where it differs from the others' datapath.
    pub datapath: Option<&'static str>,
}

/// What a chain whose keys have lifetimes says about them.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    /// `accept_tolerance`.
    pub tolerance: &'static str,
    /// `on_expiry`: `keep` or `close`.
    pub then: &'static str,
}

/// `[peer.rollover]`.
#[derive(Clone, Debug)]
pub struct Rollover {
    /// Where the peer's sidecar answers.
    pub endpoint: String,
    /// Who it is.
    pub fingerprint: String,
    /// How keys change.
    pub terms: Terms,
}

/// How two sidecars change keys.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// One of [`ALGORITHMS`].
    pub algorithm: &'static str,
    /// Time between two changes.
    pub interval: &'static str,
    /// How long the former key is still accepted.
    pub overlap: &'static str,
    /// Keys agreed in advance.
    pub runway: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            algorithm: "aes-128-cmac-96",
            interval: "10s",
            overlap: "2s",
            runway: 2,
        }
    }
}

impl PeerConfig {
    /// BGP with `address`, protected by one key.
    #[must_use]
    pub fn new(address: impl Into<String>, key: Key) -> Self {
        Self {
            address: address.into(),
            port: 179,
            keys: vec![key],
            expiry: None,
            rollover: None,
            vrf: None,
            datapath: None,
        }
    }

    /// BGP with a host, protected by keys agreed with its sidecar, whose fingerprint is given.
    #[must_use]
    pub fn agreeing(peer: &Host, family: Family, fingerprint: String, terms: Terms) -> Self {
        Self {
            keys: Vec::new(),
            rollover: Some(Rollover {
                endpoint: peer.socket_text(Family::V4, PEERING_PORT),
                fingerprint,
                terms,
            }),
            ..Self::new(peer.address_text(family), Key::default())
        }
    }

    /// The same in a VRF.
    #[must_use]
    pub fn in_vrf(self, vrf: &'static str) -> Self {
        Self {
            vrf: Some(vrf),
            ..self
        }
    }

    /// Its chain, if it has one.
    fn chain_text(&self, name: &str) -> String {
        if self.rollover.is_some() {
            return String::new();
        }
        let mut text = format!("[[key_chain]]\nname = \"{name}\"\n");
        if let Some(Expiry { tolerance, then }) = self.expiry {
            let _ = write!(
                text,
                "accept_tolerance = \"{tolerance}\"\non_expiry = \"{then}\"\n"
            );
        }
        for key in &self.keys {
            let _ = writeln!(text, "{}secret = \"{}\"", key.text(), key.secret);
        }
        text
    }

    fn text(&self, name: &str, chain: &str) -> String {
        let mut text = format!(
            "[[peer]]\nname = \"{name}\"\naddress = \"{}\"\nport = {}\n",
            self.address, self.port
        );
        for (key, value) in [("vrf", self.vrf), ("datapath", self.datapath)] {
            if let Some(value) = value {
                let _ = writeln!(text, "{key} = \"{value}\"");
            }
        }
        let _ = match &self.rollover {
            None => writeln!(text, "key_chain = \"{chain}\""),
            Some(rollover) => write!(text, "{}", rollover.text()),
        };
        text
    }
}

/// TCP port where sidecars answer one another, by default.
pub(crate) const PEERING_PORT: u16 = 7179;

impl Rollover {
    fn text(&self) -> String {
        let Terms {
            algorithm,
            interval,
            overlap,
            runway,
        } = self.terms;
        format!(
            "[peer.rollover]\nendpoint = \"{}\"\nfingerprint = \"{}\"\nalgorithm = \"{algorithm}\"\n\
             interval = \"{interval}\"\noverlap = \"{overlap}\"\nrunway = {runway}\n",
            self.endpoint, self.fingerprint
        )
    }
}

/// A whole configuration: chain and name of each peer are numbered.
pub(super) fn peers_text(datapath: &str, peers: &[PeerConfig]) -> String {
    let mut text = format!("datapath = \"{datapath}\"\n");
    for (index, peer) in peers.iter().enumerate() {
        let chain = format!("chain-{index}");
        text += &peer.chain_text(&chain);
        text += &peer.text(&format!("peer-{index}"), &chain);
    }
    text
}
