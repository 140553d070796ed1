//! `[[key_chain]]` and its keys.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::Mkt;
use keymgr::chain::{ChainError, Key, KeyChain};
use keymgr::secret_file::{self, SecretFileError};
use zeroize::Zeroizing;

use super::problem::{Problems, place};
use super::section::{Schema, Section};

pub(super) const KEY_CHAIN: Schema = Schema {
    title: "[[key_chain]]",
    required: &["name", "key"],
    optional: &[],
};

const KEY: Schema = Schema {
    title: "[[key_chain.key]]",
    required: &["send_id", "recv_id", "algorithm"],
    optional: &["secret", "secret_hex", "secret_file", "include_tcp_options"],
};

const SECRETS: [&str; 3] = ["secret", "secret_hex", "secret_file"];

/// A chain as peers refer to it.
pub(super) struct Chain {
    pub(super) name: String,
    /// MKTs in order of preference; nothing when the chain was refused, so that the peers that
    /// name it are not blamed.
    pub(super) mkts: Vec<Arc<Mkt>>,
}

/// What reading chains needs to know, and finds out.
pub(super) struct Reader<'r> {
    pub(super) text: &'r str,
    pub(super) problems: &'r Problems,
    /// Folder that `secret_file` is relative to.
    pub(super) folder: &'r Path,
    /// Where secrets stand in the configuration itself.
    pub(super) inline_secrets: Vec<Range<usize>>,
}

impl Reader<'_> {
    /// Reads all chains. Chains without a name are left out.
    pub(super) fn chains(&mut self, sections: Vec<Section<'_, '_>>) -> Vec<Chain> {
        let mut chains: Vec<(Chain, usize)> = Vec::new();
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

    fn chain(&mut self, mut section: Section<'_, '_>) -> Option<Chain> {
        let name = section.parsed("name", checked_name);
        let listed = section.has("key");
        let sections = section.tables("key", &KEY);
        let mut keys = Vec::with_capacity(sections.len());
        let mut spans = Vec::with_capacity(sections.len());
        let complete = sections.len();
        for section in sections {
            spans.push((section.span_of("send_id"), section.span_of("recv_id")));
            keys.extend(self.key(&section));
        }
        if keys.len() < complete || !listed {
            // The positions in a ChainError would not be those of the file, and the chain is
            // refused already.
            return name.map(|name| Chain {
                name,
                mkts: Vec::new(),
            });
        }
        let name = name?;
        match KeyChain::new(name.as_str(), keys) {
            Ok(chain) => Some(Chain {
                name,
                mkts: chain.into_mkts(),
            }),
            Err(error) => {
                self.refuse(&name, error, section.span(), &spans);
                Some(Chain {
                    name,
                    mkts: Vec::new(),
                })
            }
        }
    }

    fn refuse(
        &self,
        name: &str,
        error: ChainError,
        chain: &Range<usize>,
        keys: &[(Range<usize>, Range<usize>)],
    ) {
        let (span, first) = match error {
            ChainError::Empty => (Some(chain), None),
            ChainError::DuplicateSendId { first, second, .. } => (
                keys.get(second).map(|spans| &spans.0),
                keys.get(first).map(|spans| &spans.0),
            ),
            ChainError::DuplicateRecvId { first, second, .. } => (
                keys.get(second).map(|spans| &spans.1),
                keys.get(first).map(|spans| &spans.1),
            ),
        };
        let help = match first {
            Some(first) => {
                let line = place(self.text, first.start).0;
                format!("the other is in line {line}; write an ID that the chain does not have")
            }
            None => "add a [[key_chain.key]]".to_owned(),
        };
        self.problems.add(
            span.unwrap_or(chain),
            format!("key chain {name:?} is refused: {error}; {help}"),
        );
    }

    fn key(&mut self, section: &Section<'_, '_>) -> Option<Key> {
        let send_id = section.integer("send_id", 0..=u8::MAX);
        let recv_id = section.integer("recv_id", 0..=u8::MAX);
        let algorithm = section.choice(
            "algorithm",
            &Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm)),
        );
        let include_tcp_options = match section.boolean("include_tcp_options") {
            None if section.has("include_tcp_options") => None,
            given => Some(given.unwrap_or(true)),
        };
        let secret = self.secret(section);
        Some(Key {
            send_id: send_id?,
            recv_id: recv_id?,
            algorithm: algorithm?,
            secret: secret?,
            include_tcp_options: include_tcp_options?,
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
