//! `[[key_chain]]` and its keys.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::Mkt;
use grpc_api::operator::administration::Origin;
use keymgr::chain::{ChainError, Key, KeyChain, OnExpiry, Rules};
use keymgr::secret_file::{self, SecretFileError};
use zeroize::Zeroizing;

use super::lifetime::{LIFETIMES, lifetimes, shown, tolerance};
use super::problem::{Problems, place};
use super::section::{Schema, Section};

pub(super) const KEY_CHAIN: Schema = Schema {
    title: "[[key_chain]]",
    required: &["name", "key"],
    optional: &["accept_tolerance", "allow_gaps", "on_expiry"],
};

const KEY: Schema = Schema {
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

const SECRETS: [&str; 3] = ["secret", "secret_hex", "secret_file"];

/// A key chain of a configuration.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The chain with its keys.
    pub keys: Arc<KeyChain>,
    /// Where it was made.
    pub origin: Origin,
    /// Where each of its keys was made, in their order.
    pub key_origins: Vec<Origin>,
}

/// A chain as peers refer to it.
pub(super) struct Named {
    pub(super) name: String,
    /// Nothing when the chain was refused, so that the peers that name it are not blamed.
    pub(super) chain: Option<Chain>,
}

/// Where the parts of a key stand that a chain may be refused for.
struct Places {
    send_id: Range<usize>,
    recv_id: Range<usize>,
    /// What says when the key is sent.
    send: Range<usize>,
    /// What says when it is accepted.
    accept: Range<usize>,
}

/// What reading chains needs to know, and finds out.
pub(super) struct Reader<'r> {
    pub(super) text: &'r str,
    pub(super) problems: &'r Problems,
    /// Folder that `secret_file` is relative to.
    pub(super) folder: &'r Path,
    pub(super) now: SystemTime,
    /// Where secrets stand in the configuration itself.
    pub(super) inline_secrets: Vec<Range<usize>>,
}

impl Reader<'_> {
    /// Reads all chains. Chains without a name are left out.
    pub(super) fn chains(&mut self, sections: Vec<Section<'_, '_>>) -> Vec<Named> {
        let mut chains: Vec<(Named, usize)> = Vec::new();
        for section in sections {
            let span = section.span_of("name");
            let Some(chain) = self.chain(section) else {
                continue;
            };
            if let Some((_, first)) = chains.iter().find(|(other, _)| other.name == chain.name) {
                let line = place(self.text, *first).0;
                self.problems.add(
                    &span,
                    format!(
                        "key chain {:?} exists in line {line}; write another name",
                        chain.name
                    ),
                );
            } else {
                chains.push((chain, span.start));
            }
        }
        chains.into_iter().map(|(chain, _)| chain).collect()
    }

    fn chain(&mut self, mut section: Section<'_, '_>) -> Option<Named> {
        let name = section.parsed("name", checked_name);
        let name_span = section.span_of("name");
        let rules = rules(&section);
        let listed = section.has("key");
        let sections = section.tables("key", &KEY);
        let complete = sections.len();
        let mut keys = Vec::with_capacity(complete);
        let mut places = Vec::with_capacity(complete);
        let mut key_origins = Vec::with_capacity(complete);
        for mut section in sections {
            places.push(Places::of(&section));
            key_origins.push(Origin::File(line(self.text, section.span())));
            keys.extend(self.key(&mut section));
        }
        let name = name?;
        if keys.len() < complete || !listed {
            // The positions in a ChainError would not be those of the file, and the chain is
            // refused already.
            return Some(Named { name, chain: None });
        }
        let chain = KeyChain::new(name.as_str(), keys, rules)
            .inspect_err(|error| self.refuse(&name, *error, section.span(), &places))
            .inspect(|chain| self.warn(chain, &name_span));
        let origin = Origin::File(line(self.text, section.span()));
        let chain = chain.ok().map(|chain| Chain {
            keys: Arc::new(chain),
            origin,
            key_origins,
        });
        Some(Named { name, chain })
    }

    fn refuse(&self, name: &str, error: ChainError, chain: &Range<usize>, keys: &[Places]) {
        let key = |position: usize| keys.get(position);
        let line_of = |span: Option<&Range<usize>>| {
            let start = span.map_or(chain.start, |span| span.start);
            place(self.text, start).0
        };
        let repeated = |first| {
            let line = line_of(first);
            let help = "write an ID that the chain does not have, or lifetimes that are at least \
                        twice `accept_tolerance` apart";
            format!("{error}; the other is in line {line}; {help}")
        };
        let (span, text) = match error {
            ChainError::Empty => (None, format!("{error}; add a [[key_chain.key]]")),
            ChainError::DuplicateSendId { first, second, .. } => (
                key(second).map(|key| &key.send_id),
                repeated(key(first).map(|key| &key.send_id)),
            ),
            ChainError::DuplicateRecvId { first, second, .. } => (
                key(second).map(|key| &key.recv_id),
                repeated(key(first).map(|key| &key.recv_id)),
            ),
            ChainError::SentUnaccepted { key: position } => (
                key(position).map(|key| &key.accept),
                format!("{error}; write an `accept_lifetime` that covers `send_lifetime`"),
            ),
            ChainError::Gap {
                before,
                after,
                from,
                until,
            } => (
                key(after).map(|key| &key.send),
                format!(
                    "no key is sent from {}, when the one in line {} ends, until {}, when this one \
                     starts; let them overlap, or write allow_gaps = true",
                    shown(from),
                    line_of(key(before).map(|key| &key.send)),
                    shown(until)
                ),
            ),
        };
        self.problems.add(
            span.unwrap_or(chain),
            format!("key chain {name:?} is refused: {text}"),
        );
    }

    /// Warns when a chain has no key to send with now. Its peers are never unprotected.
    fn warn(&self, chain: &KeyChain, place: &Range<usize>) {
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
        self.problems
            .warn(place, format!("key chain {:?} {text}", chain.name()));
    }

    fn key(&mut self, section: &mut Section<'_, '_>) -> Option<Key> {
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
        let secret = self.secret(section);
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

    fn secret(&mut self, section: &Section<'_, '_>) -> Option<MasterKey> {
        let given: Vec<&str> = SECRETS.into_iter().filter(|key| section.has(key)).collect();
        for inline in given.iter().filter(|key| **key != "secret_file") {
            self.inline_secrets.push(section.span_of(inline));
        }
        let [key] = given[..] else {
            let found = match given[..] {
                [] => "the key has no secret".to_owned(),
                _ => format!("the key has `{}`", given.join("` and `")),
            };
            let place = given
                .last()
                .map_or_else(|| section.span().clone(), |key| section.span_of(key));
            let text =
                format!("{found}; write exactly one of `secret_file`, `secret_hex`, `secret`");
            self.problems.add(&place, text);
            return None;
        };
        let secret = match key {
            "secret_file" => self.secret_in_file(section.text(key)?),
            "secret_hex" => from_hex(section.text(key)?).and_then(|octets| master_key(&octets)),
            _ => master_key(section.text(key)?.as_bytes()),
        };
        secret.map_err(|text| section.problem(key, text)).ok()
    }

    fn secret_in_file(&self, name: &str) -> Result<MasterKey, String> {
        if name.is_empty() {
            return Err("`secret_file` is empty; write the name of the file".to_owned());
        }
        let path = self.folder.join(name);
        secret_file::read(&path).map_err(|error| {
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
        })
    }
}

impl Places {
    fn of(key: &Section<'_, '_>) -> Self {
        let [both, send, accept] = LIFETIMES;
        let first_of = |names: &[&str]| {
            let given = names.iter().find(|name| key.has(name));
            given.map_or_else(|| key.span().clone(), |name| key.span_of(name))
        };
        Self {
            send_id: key.span_of("send_id"),
            recv_id: key.span_of("recv_id"),
            send: first_of(&[both, send]),
            accept: first_of(&[accept, both, send]),
        }
    }
}

fn line(text: &str, span: &Range<usize>) -> u32 {
    u32::try_from(place(text, span.start).0).unwrap_or(u32::MAX)
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
pub(super) fn checked_name(name: &str) -> Result<String, String> {
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
