//! Octets that must not be seen.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Octets that are wiped when dropped, never shown and never serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    /// Takes over a copy of `octets`; wiping the original is the caller's.
    #[must_use]
    pub fn new(octets: &[u8]) -> Self {
        Self(Zeroizing::new(octets.into()))
    }

    /// The octets.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a secret of a generation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretKind {
    /// This end's contribution to the master key.
    Contribution = 1,
    /// The master key.
    MasterKey = 2,
}

/// Names a secret among those of one peer. A name never gets another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretName {
    /// The generation.
    pub number: u64,
    /// Which one of its secrets.
    pub kind: SecretKind,
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn a_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::new(b"key")), "Secret(…)");
    }
}
