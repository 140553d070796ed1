//! What callers ask for, checked as far as that goes without the configuration.
#![allow(clippy::result_large_err, reason = "callers answer with the error")]

use std::mem;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ao_engine::crypto::MasterKey;
use prost_types::{Duration as Span, Timestamp};
use tonic::Status;
use zeroize::Zeroizing;

use crate::operator::Lifetime;
use crate::operator::administration::{Change, KeyChainSpec, KeySpec, PeerSpec, Secret};
use crate::v1;

/// Octets of a name.
const MAX_NAME: usize = 64;
/// Octets of anything else that is short: an address, the name of an algorithm.
const MAX_SHORT: usize = 128;
/// Octets of a configuration.
const MAX_CONFIG: usize = 1 << 20;
/// Listening for a diagnosis unless told otherwise, and at most.
const LISTEN: Duration = Duration::from_secs(10);
const MAX_LISTEN: Duration = Duration::from_secs(150);
/// BGP's port.
const BGP: u16 = 179;
/// Seconds of the longest span and of the first and the last moment that the messages may have.
const MAX_SPAN: u64 = 315_576_000_000;
const FIRST_MOMENT: i64 = -62_135_596_800;
const LAST_MOMENT: i64 = 253_402_300_799;

type Read<T> = Result<T, Status>;

fn invalid(reason: impl Into<String>) -> Status {
    Status::invalid_argument(reason)
}

/// Checks the name of a `what`. What it is does not come back: it may be long.
pub(crate) fn name(what: &str, name: String) -> Read<String> {
    if name.is_empty() {
        return Err(invalid(format!("no {what} is named")));
    }
    asked(what, &name)?;
    Ok(name)
}

/// Checks the name of a `what` that is asked for; it may be empty.
pub(crate) fn asked(what: &str, name: &str) -> Read<()> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(invalid(format!(
            "the name of a {what} has 1 to {MAX_NAME} octets and no control characters"
        )));
    }
    Ok(())
}

fn short(what: &str, text: String) -> Read<String> {
    if text.len() > MAX_SHORT || text.chars().any(char::is_control) {
        return Err(invalid(format!(
            "{what} has at most {MAX_SHORT} octets and no control characters"
        )));
    }
    Ok(text)
}

fn optional(what: &str, text: String) -> Read<Option<String>> {
    short(what, text).map(|text| (!text.is_empty()).then_some(text))
}

fn required<T>(what: &str, message: Option<T>) -> Read<T> {
    message.ok_or_else(|| invalid(format!("{what} is missing")))
}

/// The peer of a request, which replaces the one with its name or is new.
pub(crate) fn put_peer(
    peer: Option<v1::PeerSpec>,
    replace: bool,
    replace_sessions: bool,
) -> Read<Change> {
    let peer = required("peer", peer)?;
    let ports = ports(peer.first_port, peer.last_port)?;
    let ttl_min = u8::try_from(peer.ttl_min).map_err(|_| invalid("ttl_min is 0 to 255"))?;
    Ok(Change::PutPeer {
        peer: PeerSpec {
            name: name("peer", peer.name)?,
            address: required("address", optional("address", peer.address)?)?,
            key_chain: name("key chain", peer.key_chain)?,
            ports,
            local_address: optional("local_address", peer.local_address)?,
            interface: optional("interface", peer.interface)?,
            vrf: optional("vrf", peer.vrf)?,
            ttl_min,
            datapath: optional("datapath", peer.datapath)?,
        },
        replace,
        replace_sessions,
    })
}

/// Both 0 means nothing; otherwise the first one is BGP's unless given, the last one the first.
fn ports(first: u32, last: u32) -> Read<Option<(u16, u16)>> {
    if (first, last) == (0, 0) {
        return Ok(None);
    }
    let port = |port, otherwise| match port {
        0 => Ok(otherwise),
        port => u16::try_from(port).map_err(|_| invalid("ports are 1 to 65535")),
    };
    let first = port(first, BGP)?;
    let last = port(last, first)?;
    if first > last {
        return Err(invalid(format!("last_port {last} is below {first}")));
    }
    Ok(Some((first, last)))
}

/// A new key chain with its keys.
pub(crate) fn create_key_chain(request: v1::CreateKeyChainRequest) -> Read<Change> {
    // First of all, so that no secret is dropped as it is.
    let keys: Vec<_> = request.keys.into_iter().map(Held::new).collect();
    let chain = rules(request.key_chain)?;
    if keys.is_empty() {
        return Err(invalid("a key chain has at least one key"));
    }
    let keys = keys
        .into_iter()
        .map(|key| key.read(true))
        .collect::<Read<_>>()?;
    Ok(Change::CreateKeyChain { chain, keys })
}

/// The rules of a key chain, which replace those of the one with their name.
pub(crate) fn update_key_chain(request: v1::UpdateKeyChainRequest) -> Read<Change> {
    let chain = rules(request.key_chain)?;
    Ok(Change::UpdateKeyChain { chain })
}

fn rules(chain: Option<v1::KeyChainSpec>) -> Read<KeyChainSpec> {
    let chain = required("key_chain", chain)?;
    Ok(KeyChainSpec {
        name: name("key chain", chain.name)?,
        tolerance: chain
            .tolerance
            .map(|span| read_span("tolerance", &span))
            .transpose()?,
        allow_gaps: chain.allow_gaps,
        on_expiry: optional("on_expiry", chain.on_expiry)?,
    })
}

/// A key, which replaces the one with its IDs or is new.
pub(crate) fn put_key(chain: String, key: Option<v1::KeySpec>, replace: bool) -> Read<Change> {
    // First of all, so that no secret is dropped as it is.
    let key = key.map(Held::new);
    let chain = name("key chain", chain)?;
    Ok(Change::PutKey {
        chain,
        key: required("key", key)?.read(!replace)?,
        replace,
    })
}

/// A key to be deleted.
pub(crate) fn delete_key(request: v1::DeleteKeyRequest) -> Read<Change> {
    Ok(Change::DeleteKey {
        chain: name("key chain", request.key_chain)?,
        send_id: id("send_id", request.send_id)?,
        recv_id: id("recv_id", request.recv_id)?,
    })
}

/// A key whose secret is wiped when it is dropped.
struct Held {
    key: v1::KeySpec,
    secret: Zeroizing<Vec<u8>>,
}

impl Held {
    fn new(mut key: v1::KeySpec) -> Self {
        let secret = Zeroizing::new(mem::take(&mut key.secret));
        Self { key, secret }
    }

    fn read(self, with_secret: bool) -> Read<KeySpec> {
        let Self { key, secret } = self;
        if secret.len() > MasterKey::MAX_LEN {
            let most = MasterKey::MAX_LEN;
            return Err(invalid(format!("a secret has 1 to {most} octets")));
        }
        if with_secret && secret.is_empty() {
            return Err(invalid("a key has a secret"));
        }
        Ok(KeySpec {
            send_id: id("send_id", key.send_id)?,
            recv_id: id("recv_id", key.recv_id)?,
            algorithm: required("algorithm", optional("algorithm", key.algorithm)?)?,
            include_tcp_options: key.include_tcp_options.unwrap_or(true),
            secret: (!secret.is_empty()).then(|| Secret(secret)),
            send: key
                .send_lifetime
                .map(|span| read_lifetime("send_lifetime", &span))
                .transpose()?
                .unwrap_or_default(),
            accept: key
                .accept_lifetime
                .map(|span| read_lifetime("accept_lifetime", &span))
                .transpose()?,
        })
    }
}

fn id(what: &str, id: Option<u32>) -> Read<u8> {
    let id = required(what, id)?;
    u8::try_from(id).map_err(|_| invalid(format!("{what} is 0 to 255")))
}

fn read_lifetime(what: &str, lifetime: &v1::Lifetime) -> Read<Lifetime> {
    let moment = |time: &Timestamp| read_timestamp(what, time);
    let start = lifetime.start.as_ref().map(moment).transpose()?;
    let end = lifetime.end.as_ref().map(moment).transpose()?;
    if let (Some(start), Some(end)) = (start, end)
        && start >= end
    {
        return Err(invalid(format!("{what} ends before it starts")));
    }
    Ok(Lifetime { start, end })
}

fn read_timestamp(what: &str, time: &Timestamp) -> Read<SystemTime> {
    let nanos = u32::try_from(time.nanos)
        .ok()
        .filter(|&nanos| nanos < 1_000_000_000);
    let moment = nanos
        .filter(|_| (FIRST_MOMENT..=LAST_MOMENT).contains(&time.seconds))
        .and_then(|nanos| {
            let whole = Duration::from_secs(time.seconds.unsigned_abs());
            let whole = match time.seconds < 0 {
                true => UNIX_EPOCH.checked_sub(whole),
                false => UNIX_EPOCH.checked_add(whole),
            };
            whole?.checked_add(Duration::from_nanos(nanos.into()))
        });
    moment.ok_or_else(|| invalid(format!("{what} has a time that is none")))
}

fn read_span(what: &str, span: &Span) -> Read<Duration> {
    let seconds = u64::try_from(span.seconds)
        .ok()
        .filter(|&seconds| seconds <= MAX_SPAN);
    let nanos = u32::try_from(span.nanos)
        .ok()
        .filter(|&nanos| nanos < 1_000_000_000);
    seconds
        .zip(nanos)
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .ok_or_else(|| invalid(format!("{what} is no duration from 0")))
}

/// How long to listen for a diagnosis.
pub(crate) fn listen(asked: Option<&Span>) -> Read<Duration> {
    let asked = asked.map_or(Ok(LISTEN), |span| read_span("listen", span))?;
    if asked > MAX_LISTEN {
        let most = MAX_LISTEN.as_secs();
        return Err(invalid(format!("listen is 0 to {most} s")));
    }
    Ok(asked)
}

/// A configuration that is to be checked; nothing for the file.
pub(crate) fn config_text(
    mut request: v1::ValidateConfigRequest,
) -> Read<Option<Zeroizing<String>>> {
    let text = Zeroizing::new(mem::take(&mut request.toml));
    if text.len() > MAX_CONFIG {
        return Err(invalid("a configuration has at most 1 MiB"));
    }
    Ok((!text.is_empty()).then_some(text))
}

impl std::fmt::Debug for v1::KeySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySpec")
            .field("send_id", &self.send_id)
            .field("recv_id", &self.recv_id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for v1::ValidateConfigRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValidateConfigRequest")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
