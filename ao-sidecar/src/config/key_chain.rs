//! `[[key_chain]]` and its keys.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::Mkt;
use grpc_api::operator::administration::Origin;
use keymgr::chain::{ChainError, Key, KeyChain, OnExpiry, Rules};
use keymgr::secret_file::SecretFileError;
use zeroize::Zeroizing;

use super::files::Files;
use super::lifetime::{LIFETIMES, lifetimes, shown, tolerance};
use super::overlay::Document;
use super::problem::Place;
use super::section::{Schema, Section};

pub(super) const KEY_CHAIN: Schema = Schema {
    title: "[[key_chain]]",
    required: &["name", "key"],
    optional: &["accept_tolerance", "allow_gaps", "on_expiry"],
};

pub(super) const KEY: Schema = Schema {
    title: "[[key_chain.key]]",
    required: &["send_id", "recv_id", "algorithm"],
    optional: &[
        "secret",
        "secret_hex",
        "secret_file",
        "include_tcp_options",
        "lifetime",
        "send_lifetime",
        "accept_lifetime",
    ],
};

/// A key made by API, which stands beside its chain. Its secret is a position.
pub(super) const API_KEY: Schema = Schema {
    title: "a key",
    required: &["key_chain", "send_id", "recv_id", "algorithm", "secret"],
    optional: KEY.optional,
};

const SECRETS: [&str; 3] = ["secret", "secret_hex", "secret_file"];

/// A key chain of a configuration.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The chain with its keys.
    pub keys: Arc<KeyChain>,
    /// Where it was made.
    pub origin: Origin,
    /// Where each of its keys was made, in their order: the file's come first.
    pub key_origins: Vec<Origin>,
}

/// A chain as peers refer to it.
pub(super) struct Named {
    pub(super) name: String,
    /// Nothing when the chain was refused, so that the peers that name it are not blamed.
    pub(super) chain: Option<Chain>,
}

/// Where the parts of a key stand that a chain may be refused for.
struct Places<'p> {
    key: Place<'p>,
    send_id: Place<'p>,
    recv_id: Place<'p>,
    /// What says when the key is sent.
    send: Place<'p>,
    /// What says when it is accepted.
    accept: Place<'p>,
}

/// What reading chains needs to know, and finds out.
pub(super) struct Reader<'r> {
    pub(super) files: &'r Files,
    pub(super) now: SystemTime,
    /// Where secrets stand in the file itself.
    pub(super) inline_secrets: Vec<Place<'r>>,
}

impl<'r> Reader<'r> {
    /// Reads all chains, with the keys that were `added` beside them. Chains without a name are
    /// left out.
    pub(super) fn chains<'i>(
        &mut self,
        sections: Vec<Section<'r, 'i>>,
        added: Vec<Section<'r, 'i>>,
    ) -> Vec<Named> {
        let mut added = by_chain(added);
        let mut chains: Vec<Named> = Vec::new();
        // Where the first one of each name is.
        let mut named: HashMap<String, Place<'_>> = HashMap::new();
        for section in sections {
            let place = section.place_of("name");
            let name = section.parsed("name", checked_name);
            let first = name.as_ref().and_then(|name| named.get(name));
            if let (Some(first), Some(name)) = (first, &name) {
                place.problem(exists_twice("key chain", "chains", name, first, &place));
                if place.origin() == Origin::Api {
                    // Its keys were taken for the other's.
                    continue;
                }
            }
            let beside = name.as_ref().and_then(|name| added.remove(name));
            let is_first = first.is_none();
            let chain = self.chain(section, name, beside.unwrap_or_default());
            if let Some(chain) = chain.filter(|_| is_first) {
                named.insert(chain.name.clone(), place);
                chains.push(chain);
            }
        }
        for (name, keys) in &added {
            for key in keys {
                let text = format!(
                    "there is no key chain {name:?} any more; put it back, or delete the key"
                );
                key.place().problem(text);
            }
        }
        chains
    }

    fn chain<'i>(
        &mut self,
        mut section: Section<'r, 'i>,
        name: Option<String>,
        added: Vec<Section<'r, 'i>>,
    ) -> Option<Named> {
        let rules = rules(&section);
        // Keys made by API never stand in their chain.
        let listed = section.has("key") || section.problems().made_by_api().is_some();
        let mut sections = section.tables("key", &KEY);
        sections.extend(added);
        let complete = sections.len();
        let mut keys = Vec::with_capacity(complete);
        let mut places = Vec::with_capacity(complete);
        for mut section in sections {
            places.push(Places::of(&section));
            keys.extend(self.key(&mut section));
        }
        let name = name?;
        if keys.len() < complete || !listed {
            // The positions in a ChainError would not be those of the texts, and the chain is
            // refused already.
            return Some(Named { name, chain: None });
        }
        let chain = KeyChain::new(name.as_str(), keys, rules)
            .inspect_err(|error| refuse(&name, *error, &section.place(), &places))
            .inspect(|chain| self.warn(chain, &section.place_of("name")));
        let chain = chain.ok().map(|chain| Chain {
            keys: Arc::new(chain),
            origin: section.place().origin(),
            key_origins: places.iter().map(|places| places.key.origin()).collect(),
        });
        Some(Named { name, chain })
    }

    /// Warns when a chain has no key to send with now. Its peers are never unprotected.
    fn warn(&self, chain: &KeyChain, place: &Place<'_>) {
        let wanted = chain.at(self.now);
        let next = wanted.next_change.map(shown);
        let text = match (wanted.expired, chain.expires(), next) {
            (Some(OnExpiry::Keep), Some(end), None) => {
                format!(
                    "ran out at {}: its last key stays in use; add a key",
                    shown(end)
                )
            }
            (Some(OnExpiry::Close), Some(end), None) => {
                format!(
                    "ran out at {}: its peers are blocked; add a key",
                    shown(end)
                )
            }
            (Some(OnExpiry::Close), _, Some(next)) => {
                format!("is in a gap: its peers are blocked until {next}")
            }
            (None, _, Some(next)) if wanted.keys.is_empty() => {
                format!("has not begun: its peers are blocked until {next}")
            }
            _ => return,
        };
        place.warn(format!("key chain {:?} {text}", chain.name()));
    }

    fn key(&mut self, section: &mut Section<'r, '_>) -> Option<Key> {
        let send_id = section.integer("send_id", 0..=u8::MAX);
        let recv_id = section.integer("recv_id", 0..=u8::MAX);
        let algorithm = section.choice(
            "algorithm",
            &Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm)),
        );
        let include_options = match section.boolean("include_tcp_options") {
            None if section.has("include_tcp_options") => None,
            given => Some(given.unwrap_or(true)),
        };
        let secret = match section.problems().made_by_api() {
            Some(made) => secret_of_api(section, made),
            None => self.secret(section),
        };
        let lifetimes = lifetimes(section);
        let mkt = Mkt {
            send_id: send_id?,
            recv_id: recv_id?,
            algorithm: algorithm?,
            master_key: secret?,
            include_options: include_options?,
        };
        let (send, accept) = lifetimes?;
        Some(Key {
            mkt: Arc::new(mkt),
            send,
            accept,
        })
    }

    fn secret(&mut self, section: &Section<'r, '_>) -> Option<MasterKey> {
        let given: Vec<&str> = SECRETS.into_iter().filter(|key| section.has(key)).collect();
        for inline in given.iter().filter(|key| **key != "secret_file") {
            self.inline_secrets.push(section.place_of(inline));
        }
        let [key] = given[..] else {
            let found = match given[..] {
                [] => "the key has no secret".to_owned(),
                _ => format!("the key has `{}`", given.join("` and `")),
            };
            let place = given
                .last()
                .map_or_else(|| section.place(), |key| section.place_of(key));
            place.problem(format!(
                "{found}; write exactly one of `secret_file`, `secret_hex`, `secret`"
            ));
            return None;
        };
        let secret = match key {
            "secret_file" => self.secret_in_file(section.text(key)?, section),
            "secret_hex" => from_hex(section.text(key)?).and_then(|octets| master_key(&octets)),
            _ => master_key(section.text(key)?.as_bytes()),
        };
        secret.map_err(|text| section.problem(key, text)).ok()
    }

    fn secret_in_file(&self, name: &str, key: &Section<'_, '_>) -> Result<MasterKey, String> {
        if name.is_empty() {
            return Err("`secret_file` is empty; write the name of the file".to_owned());
        }
        let path = self.files.path(name);
        if !self.files.may_look(&path, key, "secret_file") {
            // Any secret does: nobody is given this one.
            return master_key(b"not looked at");
        }
        let secret = self.files.secret(&path).map_err(|error| {
            let file = path.display();
            let help = match error {
                SecretFileError::Io(_) => "write the name of a file that holds the secret".into(),
                SecretFileError::NotRegular => "write the name of a regular file".into(),
                SecretFileError::Exposed { .. } => format!("chmod 600 {file}"),
                SecretFileError::ForeignOwner { .. } => format!("chown root {file}"),
                SecretFileError::Empty => "write the secret into it".into(),
                SecretFileError::TooLong => "write a secret of 1 to 80 octets into it".to_owned(),
            };
            format!("secret file {file} {error}: {help}")
        })?;
        master_key(secret.expose())
    }
}

impl<'p> Places<'p> {
    fn of(key: &Section<'p, '_>) -> Self {
        let [both, send, accept] = LIFETIMES;
        let first_of = |names: &[&str]| {
            let given = names.iter().find(|name| key.has(name));
            given.map_or_else(|| key.place(), |name| key.place_of(name))
        };
        Self {
            key: key.place(),
            send_id: key.place_of("send_id"),
            recv_id: key.place_of("recv_id"),
            send: first_of(&[both, send]),
            accept: first_of(&[accept, both, send]),
        }
    }
}

/// Keys that stand beside their chains, by the names of these.
fn by_chain<'r, 'i>(keys: Vec<Section<'r, 'i>>) -> BTreeMap<String, Vec<Section<'r, 'i>>> {
    let mut by_chain: BTreeMap<String, Vec<Section<'_, '_>>> = BTreeMap::new();
    for key in keys {
        if let Some(name) = key.text("key_chain").map(str::to_owned) {
            by_chain.entry(name).or_default().push(key);
        }
    }
    by_chain
}

fn refuse(name: &str, error: ChainError, chain: &Place<'_>, keys: &[Places<'_>]) {
    let key = |position: usize| keys.get(position);
    let repeated = |second: &Place<'_>, first: Option<&Place<'_>>| {
        let first = first.unwrap_or(chain).seen_from(second);
        format!(
            "{error}; the other is {first}; write an ID that the chain does not have, or lifetimes \
             that are at least twice `accept_tolerance` apart"
        )
    };
    let (place, text) = match error {
        ChainError::Empty => (chain, format!("{error}; add a [[key_chain.key]]")),
        ChainError::DuplicateSendId { first, second, .. } => {
            let place = key(second).map_or(chain, |key| &key.send_id);
            (place, repeated(place, key(first).map(|key| &key.send_id)))
        }
        ChainError::DuplicateRecvId { first, second, .. } => {
            let place = key(second).map_or(chain, |key| &key.recv_id);
            (place, repeated(place, key(first).map(|key| &key.recv_id)))
        }
        ChainError::SentUnaccepted { key: position } => (
            key(position).map_or(chain, |key| &key.accept),
            format!("{error}; write an `accept_lifetime` that covers `send_lifetime`"),
        ),
        ChainError::Gap {
            before,
            after,
            from,
            until,
        } => {
            let place = key(after).map_or(chain, |key| &key.send);
            let before = key(before).map_or(chain, |key| &key.send);
            let text = format!(
                "no key is sent from {}, when the one {} ends, until {}, when this one starts; let \
                 them overlap, or write allow_gaps = true",
                shown(from),
                before.seen_from(place),
                shown(until)
            );
            (place, text)
        }
    };
    place.problem(format!("key chain {name:?} is refused: {text}"));
}

/// Says that something exists twice: the `first` one, and the one at `place`. `command` is what
/// `aoctl` calls its kind.
pub(super) fn exists_twice(
    kind: &str,
    command: &str,
    name: &str,
    first: &Place<'_>,
    place: &Place<'_>,
) -> String {
    let first = first.seen_from(place);
    if place.origin() == Origin::Api {
        format!("exists {first}, too; delete one of them (aoctl {command} delete {name:?})")
    } else {
        format!("{kind} {name:?} exists {first}; write another name")
    }
}

fn secret_of_api(section: &Section<'_, '_>, made: &Document<'_>) -> Option<MasterKey> {
    let position = section.integer("secret", 0..=u32::MAX)?;
    let Some(secret) = made.secret(position) else {
        section.problem("secret", "the key has no secret; give it one");
        return None;
    };
    let secret = master_key(&secret.0);
    secret.map_err(|text| section.problem("secret", text)).ok()
}

fn rules(chain: &Section<'_, '_>) -> Rules {
    let on_expiry = [("keep", OnExpiry::Keep), ("close", OnExpiry::Close)];
    Rules {
        tolerance: tolerance(chain).unwrap_or_default(),
        allow_gaps: chain.boolean("allow_gaps").unwrap_or_default(),
        on_expiry: chain.choice("on_expiry", &on_expiry).unwrap_or_default(),
    }
}

/// A name without the characters that would make status and logs ambiguous.
pub(crate) fn checked_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err("a name has 1 to 64 octets and no control characters; write another".into());
    }
    Ok(name.to_owned())
}

fn master_key(octets: &[u8]) -> Result<MasterKey, String> {
    MasterKey::new(octets).map_err(|_| {
        let found = if octets.is_empty() {
            "empty"
        } else {
            "too long"
        };
        format!(
            "the secret is {found}; write 1 to {} octets",
            MasterKey::MAX_LEN
        )
    })
}

fn from_hex(digits: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let refused =
        || "the secret is no hexadecimal number; write two digits for each octet".to_owned();
    let mut octets = Zeroizing::new(Vec::with_capacity(digits.len().div_ceil(2)));
    for pair in digits.as_bytes().chunks(2) {
        let &[high, low] = pair else {
            return Err(refused());
        };
        octets.push(digit(high).ok_or_else(refused)? << 4 | digit(low).ok_or_else(refused)?);
    }
    Ok(octets)
}

fn digit(ascii: u8) -> Option<u8> {
    char::from(ascii)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::from_hex;

    #[test]
    fn hexadecimal_secrets_are_read_exactly() {
        assert_eq!(from_hex("00ffA5").unwrap()[..], [0x00, 0xff, 0xa5]);
        assert_eq!(from_hex("").unwrap().len(), 0);
        for wrong in ["0", "0x00", "0g", "é", "00 11"] {
            assert!(from_hex(wrong).is_err(), "{wrong}");
        }
    }
}
