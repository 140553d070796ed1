//! Algorithms, key derivation (RFC 5926 §3.1) and MACs (RFC 5926 §3.2).
//!
//! An [`Algorithm`] names a KDF and a MAC together, as the MKTs of RFC 5925 do in practice.
//! [`derive()`] turns a [`MasterKey`] and the connection's [`KdfContext`] into a [`TrafficKey`];
//! a [`MacProvider`] turns that into keyed state of its own and computes MACs in batches.
//! [`RustCrypto`] is the provider that is always there; faster ones live outside this crate.

mod cmac_lanes;
mod kdf;
mod provider;

use core::fmt;
use core::str::FromStr;

use alloc::boxed::Box;
use alloc::vec::Vec;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

pub use kdf::{KdfContext, TrafficKey, derive};
pub use provider::{Mac, MacJob, MacProvider, RustCrypto, RustCryptoKey};

/// A KDF and the MAC that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// KDF_HMAC_SHA1 and HMAC-SHA-1-96 (RFC 5926 §3.1.1.1, §3.2.1).
    HmacSha1_96,
    /// KDF_AES_128_CMAC and AES-128-CMAC-96 (RFC 5926 §3.1.1.2, §3.2.2).
    Aes128Cmac96,
    /// Linux's `hmac(sha256)` with the MAC cut to 96 bits. No RFC defines it.
    HmacSha256_96,
    /// Linux's `hmac(sha256)` with the MAC cut to 128 bits. No RFC defines it.
    HmacSha256_128,
}

impl Algorithm {
    /// Every algorithm, the mandatory ones first.
    pub const ALL: [Self; 4] = [
        Self::HmacSha1_96,
        Self::Aes128Cmac96,
        Self::HmacSha256_96,
        Self::HmacSha256_128,
    ];

    /// The name used in configuration and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha1_96 => "hmac-sha-1-96",
            Self::Aes128Cmac96 => "aes-128-cmac-96",
            Self::HmacSha256_96 => "hmac-sha-256-96",
            Self::HmacSha256_128 => "hmac-sha-256-128",
        }
    }

    /// Octets of the MAC in the option: 12 or 16.
    #[must_use]
    pub const fn mac_len(self) -> usize {
        match self {
            Self::HmacSha256_128 => 16,
            _ => 12,
        }
    }

    /// Octets of the whole TCP-AO option: 16 or 20, both multiples of four.
    #[must_use]
    pub const fn option_len(self) -> usize {
        4 + self.mac_len()
    }

    /// Octets of a traffic key.
    #[must_use]
    pub const fn traffic_key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::Aes128Cmac96 => 16,
            Self::HmacSha256_96 | Self::HmacSha256_128 => 32,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not one of [`Algorithm::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown algorithm; known are hmac-sha-1-96, aes-128-cmac-96, hmac-sha-256-96 and \
     hmac-sha-256-128"
)]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or(UnknownAlgorithm)
    }
}

/// The secret of an MKT: 1 to 80 octets, wiped on drop, never shown.
///
/// Deliberately not `Clone`: share it behind an `Arc` instead, so that there is one copy to wipe.
pub struct MasterKey(Zeroizing<Box<[u8]>>);

/// Why a master key was refused. Says nothing about the secret but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// No octets at all.
    #[error("the master key is empty")]
    Empty,
    /// Above [`MasterKey::MAX_LEN`].
    #[error("the master key has {0} octets, more than 80")]
    TooLong(usize),
}

impl MasterKey {
    /// Most octets of a master key: what Linux takes (`TCP_AO_MAXKEYLEN`), so that every key
    /// works with either backend.
    pub const MAX_LEN: usize = 80;

    /// Copies the secret. The caller wipes the source.
    ///
    /// # Errors
    /// When `secret` is empty or longer than [`Self::MAX_LEN`].
    pub fn new(secret: &[u8]) -> Result<Self, MasterKeyError> {
        match secret.len() {
            0 => Err(MasterKeyError::Empty),
            1..=Self::MAX_LEN => Ok(Self(Zeroizing::new(secret.into()))),
            len => Err(MasterKeyError::TooLong(len)),
        }
    }

    /// The secret itself, for key derivation and for programming a kernel. Never for display.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The AES-128 key this master key stands for (RFC 5926 §3.1.1.2), which is what Linux keeps
    /// and shows of it.
    #[must_use]
    pub fn aes128_key(&self) -> Zeroizing<[u8; 16]> {
        kdf::aes_master(self.expose())
    }
}

impl TryFrom<Vec<u8>> for MasterKey {
    type Error = MasterKeyError;

    /// Copies the secret and wipes the source, whether it is accepted or not.
    fn try_from(mut secret: Vec<u8>) -> Result<Self, Self::Error> {
        let key = Self::new(&secret);
        secret.zeroize();
        key
    }
}

impl PartialEq for MasterKey {
    /// In constant time for keys of equal length.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for MasterKey {}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn names_parse_back() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
            assert_eq!(algorithm.option_len() % 4, 0);
        }
        assert_eq!("HMAC-SHA-1-96".parse::<Algorithm>(), Err(UnknownAlgorithm));
        assert_eq!("".parse::<Algorithm>(), Err(UnknownAlgorithm));
        let message = UnknownAlgorithm.to_string();
        assert!(
            Algorithm::ALL
                .iter()
                .all(|algorithm| message.contains(algorithm.name()))
        );
    }

    #[test]
    fn master_keys_have_1_to_80_octets() {
        assert_eq!(MasterKey::new(&[]), Err(MasterKeyError::Empty));
        assert!(MasterKey::new(&[7]).is_ok());
        assert!(MasterKey::new(&[7; 80]).is_ok());
        assert_eq!(MasterKey::new(&[7; 81]), Err(MasterKeyError::TooLong(81)));
        assert_eq!(
            MasterKey::try_from(vec![7; 81]),
            Err(MasterKeyError::TooLong(81))
        );
        assert_eq!(MasterKey::try_from(vec![1, 2]), MasterKey::new(&[1, 2]));
        assert_ne!(MasterKey::new(&[1, 2]), MasterKey::new(&[1, 3]));
        assert_ne!(MasterKey::new(&[1, 2]), MasterKey::new(&[1, 2, 3]));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = MasterKey::new(b"testvector").unwrap();
        let shown = format!("{key:?}");
        assert_eq!(shown, "MasterKey([redacted])");
    }
}
