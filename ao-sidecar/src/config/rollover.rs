//! Peers whose keys are agreed with their own sidecar: `[peer.rollover]`, and what belongs to this
//! end: `[identity]`, `[peering]`, `[store]`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Prefix;
use grpc_api::peer::Endpoint;
use keymgr::identity::Fingerprint;

use super::api::addresses;
use super::files::Files;
use super::key_chain::checked_name;
use super::lifetime::duration;
use super::peer::{interface_name, is_link_local};
use super::section::{Schema, Section, suggest};

pub(super) const ROLLOVER: Schema = Schema {
    title: "[peer.rollover]",
    required: &["endpoint"],
    optional: &[
        "fingerprint",
        "ca_file",
        "name",
        "algorithm",
        "interval",
        "overlap",
        "runway",
        "highest_id",
        "label",
    ],
};
pub(super) const IDENTITY: Schema = Schema {
    title: "[identity]",
    required: &[],
    optional: &["cert_file", "key_file"],
};
pub(super) const PEERING: Schema = Schema {
    title: "[peering]",
    required: &[],
    optional: &["listen"],
};
pub(super) const STORE: Schema = Schema {
    title: "[store]",
    required: &[],
    optional: &["key_file"],
};

/// Where sidecars listen for their peers unless told otherwise.
const DEFAULT_LISTEN: [&str; 2] = ["0.0.0.0:7179", "[::]:7179"];
const DEFAULT_ALGORITHMS: [Algorithm; 2] = [Algorithm::Aes128Cmac96, Algorithm::HmacSha1_96];
const DEFAULT_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const LEAST_INTERVAL: Duration = Duration::from_secs(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Unless half the interval is less.
const DEFAULT_OVERLAP: Duration = Duration::from_secs(3600);
const DEFAULT_RUNWAY: u8 = 2;
/// Room for the longest runway, the keys in use, and those whose IDs rest before they are reused.
const LEAST_HIGHEST_ID: u8 = 15;

/// A peer whose keys are agreed with the sidecar at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloverConfig {
    /// Where that sidecar answers.
    pub endpoint: Endpoint,
    /// How it is known.
    pub trust: TrustConfig,
    /// Algorithms of keys, the preferred one first; at least one, and none twice.
    pub algorithms: Vec<Algorithm>,
    /// Time between two changes of keys; 10 s at least.
    pub interval: Duration,
    /// How long the former key is accepted after a change; not above `interval`.
    pub overlap: Duration,
    /// Generations that are kept agreed in advance, 1 to 8.
    pub runway: u8,
    /// Highest KeyID that keys may get, 15 to 255.
    pub highest_id: u8,
    /// Tells several peerings with one sidecar apart, at both ends; 1 to 64 octets.
    pub label: String,
}

/// How a far end is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustConfig {
    /// By its key.
    Pinned(Fingerprint),
    /// By a certificate of the operator's own authority.
    Authority {
        /// PEM file with the authority's certificates.
        ca_file: PathBuf,
        /// DNS name that the certificate is for.
        name: String,
    },
}

/// What this end shows to its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IdentityConfig {
    /// A key of its own, made in the state folder when absent.
    #[default]
    Own,
    /// The operator's.
    Files {
        /// PEM file with the certificate and those between it and the authority's.
        cert_file: PathBuf,
        /// PEM file with its private key.
        key_file: PathBuf,
    },
}

/// As operators are shown it, and as the store knows it.
impl fmt::Display for TrustConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(fingerprint) => fingerprint.fmt(f),
            Self::Authority { name, .. } => write!(f, "name {name:?}"),
        }
    }
}

impl TrustConfig {
    /// Whether a certificate could be taken for either. Names do not depend on the authority: the
    /// one that two peers trust may be the same.
    pub(super) fn confusable(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pinned(one), Self::Pinned(other)) => one == other,
            (Self::Authority { name: one, .. }, Self::Authority { name: other, .. }) => {
                one.eq_ignore_ascii_case(other)
            }
            _ => false,
        }
    }
}

/// Reads `[peer.rollover]` of the peer at `remote`. Looks at `files`.
pub(super) fn rollover(
    section: &Section<'_, '_>,
    files: &Files,
    remote: Option<&Prefix>,
) -> Option<RolloverConfig> {
    let endpoint = section.parsed("endpoint", parse_endpoint);
    let trust = trust(section, files);
    let algorithms = algorithms(section);
    let (interval, overlap) = times(section);
    let runway = section.integer("runway", 1..=8).unwrap_or(DEFAULT_RUNWAY);
    let highest_id = section
        .integer("highest_id", LEAST_HIGHEST_ID..=u8::MAX)
        .unwrap_or(u8::MAX);
    Some(RolloverConfig {
        endpoint: endpoint?,
        trust: trust?,
        algorithms: algorithms?,
        interval,
        overlap,
        runway,
        highest_id,
        label: label(section, remote),
    })
}

/// Two sessions between two routers are most often one over IPv4 and one over IPv6.
fn label(section: &Section<'_, '_>, remote: Option<&Prefix>) -> String {
    let by_family = match remote.is_some_and(|remote| remote.address().is_ipv4()) {
        true => "ipv4",
        false => "ipv6",
    };
    let given = section.parsed("label", checked_name);
    given.unwrap_or_else(|| by_family.to_owned())
}

fn times(section: &Section<'_, '_>) -> (Duration, Duration) {
    let interval = duration(section, "interval").unwrap_or(DEFAULT_INTERVAL);
    if interval < LEAST_INTERVAL {
        section.problem(
            "interval",
            "`interval` is too short; write at least \"10s\"",
        );
    }
    let overlap = duration(section, "overlap").unwrap_or(DEFAULT_OVERLAP.min(interval / 2));
    if interval > LONGEST_INTERVAL {
        section.problem(
            "interval",
            "`interval` is too long; write at most \"3650days\"",
        );
    }
    if overlap > interval {
        let text = format!(
            "`overlap` is above the interval of {}, so former keys would pile up; write less",
            humantime::format_duration(interval)
        );
        section.problem("overlap", text);
    }
    (interval, overlap)
}

fn trust(section: &Section<'_, '_>, files: &Files) -> Option<TrustConfig> {
    let help = "write `fingerprint`, or `ca_file` and `name`";
    let authority = ["ca_file", "name"].into_iter().find(|key| section.has(key));
    match (section.has("fingerprint"), authority) {
        (true, Some(key)) => {
            section.problem(
                key,
                format!("the peer has `fingerprint` and `{key}`; {help}"),
            );
            None
        }
        (true, None) => {
            let fingerprint = section.parsed("fingerprint", |text| {
                text.parse().map_err(|_| {
                    "`fingerprint` is none; write sha256: and 64 hexadecimal digits, as \
                     `ao-sidecar identity` prints them at the far end"
                        .to_owned()
                })
            });
            fingerprint.map(TrustConfig::Pinned)
        }
        (false, Some(_)) if !section.has("ca_file") || !section.has("name") => {
            section.problem(
                "ca_file",
                "`ca_file` and `name` belong together; add the other",
            );
            None
        }
        (false, Some(_)) => {
            let ca_file = existing_file(section, "ca_file", files, "the authority's certificates");
            let name = section.parsed("name", parse_certificate_name);
            Some(TrustConfig::Authority {
                ca_file: ca_file?,
                name: name?,
            })
        }
        (false, None) => {
            section.problem(
                "fingerprint",
                format!("nothing tells who the peer is; {help}"),
            );
            None
        }
    }
}

fn algorithms(section: &Section<'_, '_>) -> Option<Vec<Algorithm>> {
    let Some(written) = section.texts("algorithm", "the name of an algorithm, or a list of names")
    else {
        return (!section.has("algorithm")).then(|| DEFAULT_ALGORITHMS.to_vec());
    };
    let mut algorithms = Vec::with_capacity(written.len());
    for (name, span) in &written {
        let problem = match name.parse::<Algorithm>() {
            Ok(algorithm) if !algorithms.contains(&algorithm) => {
                algorithms.push(algorithm);
                continue;
            }
            Ok(_) => format!("algorithm {name:?} is there twice; remove one"),
            Err(_) => {
                let hint = suggest(name, Algorithm::ALL.iter().map(|known| known.name()));
                format!("unknown algorithm {name:?}; {hint}")
            }
        };
        section.problem_at(span, problem);
    }
    if written.is_empty() {
        section.problem(
            "algorithm",
            "the list of algorithms is empty; name at least one",
        );
    }
    (!written.is_empty() && algorithms.len() == written.len()).then_some(algorithms)
}

/// Reads `[identity]`.
pub(super) fn identity(root: &mut Section<'_, '_>, files: &Files) -> IdentityConfig {
    let Some(section) = root.table("identity", &IDENTITY) else {
        return IdentityConfig::Own;
    };
    if section.has("cert_file") != section.has("key_file") {
        let text = "`cert_file` and `key_file` belong together; add the other, or leave both away \
                    for a key that the sidecar makes";
        section.problem("cert_file", text);
    }
    let cert_file = existing_file(&section, "cert_file", files, "the certificate");
    let key_file = existing_file(&section, "key_file", files, "its private key");
    match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => IdentityConfig::Files {
            cert_file,
            key_file,
        },
        _ => IdentityConfig::Own,
    }
}

/// Reads `[peering]`: where to listen when some peer's keys are `agreed`.
pub(super) fn listen(root: &mut Section<'_, '_>, agreed: bool) -> Vec<SocketAddr> {
    let section = root.table("peering", &PEERING);
    let Some(mut listen) =
        section.and_then(|section| addresses(&section, "listen", "10.0.0.1:7179"))
    else {
        let default = DEFAULT_LISTEN.iter().filter_map(|text| text.parse().ok());
        return default.filter(|_| agreed).collect();
    };
    listen.retain(|_| agreed);
    listen
}

/// Reads `[store]`: the file of the sealing key.
pub(super) fn sealing_key_file(root: &mut Section<'_, '_>, files: &Files) -> Option<PathBuf> {
    let section = root.table("store", &STORE)?;
    existing_file(&section, "key_file", files, "the sealing key")
}

/// A file that must be there. It is read later; `what` is in it.
pub(super) fn existing_file(
    section: &Section<'_, '_>,
    key: &str,
    files: &Files,
    what: &str,
) -> Option<PathBuf> {
    section.parsed(key, |name| {
        let path = files.path(name);
        let found = if name.is_empty() {
            Err("no name is given".to_owned())
        } else if !files.may_look(&path, section, key) {
            Ok(())
        } else {
            match files.is_regular(&path) {
                Ok(true) => Ok(()),
                Ok(false) => Err(format!("{} is not a regular file", path.display())),
                Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
            }
        };
        found
            .map(|()| path)
            .map_err(|found| format!("`{key}`: {found}; write the name of a file with {what}"))
    })
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    let refused = || {
        format!(
            "{text:?} is no endpoint; write one like \"10.0.0.2:7179\", \"[2001:db8::2]:7179\", \
             \"[fe80::1%eth0]:7179\" or \"router.example.net:7179\""
        )
    };
    let endpoint: Endpoint = text.parse().map_err(|_| refused())?;
    let zone = endpoint.host().split_once('%').map(|(_, zone)| zone);
    match (endpoint.address(), zone) {
        (Some(address), None) if is_link_local(address) => Err(format!(
            "link-local address without an interface; write \"[{address}%eth0]:{}\" with the name \
             of the interface",
            endpoint.port()
        )),
        (Some(address), Some(_)) if !is_link_local(address) => Err(format!(
            "%interface is for link-local addresses only; write \"[{address}]:{}\"",
            endpoint.port()
        )),
        (Some(_), Some(zone)) => interface_name(zone).map(|_| endpoint),
        (None, _) if !is_dns_name(endpoint.host()) => Err(refused()),
        _ => Ok(endpoint),
    }
}

fn parse_certificate_name(text: &str) -> Result<String, String> {
    if is_dns_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is no DNS name; write the one that the peer's certificate is for"
        ))
    }
}

/// Letters, digits and hyphens in labels of 1 to 63 octets (RFC 1123 §2.1). The last label is not
/// all digits: that is a mistyped address.
pub(super) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(label)
        && !last.bytes().all(|octet| octet.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_shown() {
        for text in [
            "10.0.0.2:7179",
            "[2001:db8::2]:7179",
            "[fe80::1%eth0]:1",
            "router.example.net:65535",
            "a:1",
        ] {
            assert_eq!(parse_endpoint(text).unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "10.0.0.2",
            ":7179",
            "10.0.0.256:7179",
            "10.0.0.2:0",
            "10.0.0.2:65536",
            "2001:db8::2:7179",
            "[10.0.0.2]:7179",
            "[fe80::1]:7179",
            "[2001:db8::2%eth0]:7179",
            "[fe80::1%]:7179",
            "-a.example:7179",
            "a..example:7179",
            "a b:7179",
            "https://a:7179",
        ] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
