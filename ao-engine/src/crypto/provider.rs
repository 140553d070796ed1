//! MACs over segments, in batches.

use core::fmt;

use hmac::Hmac;
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::cmac_lanes::{CmacKey, LANES};
use super::kdf::hmac_key;
use super::{Algorithm, TrafficKey};

/// Computes MACs. Implementations keep no state of their own: the prepared keys hold it.
pub trait MacProvider {
    /// A traffic key made ready for use. Should wipe itself on drop.
    type Key;

    /// Makes a traffic key ready for one algorithm.
    fn prepare(&self, algorithm: Algorithm, key: &TrafficKey) -> Self::Key;

    /// Computes the MAC of every job, into [`MacJob::mac`].
    ///
    /// Jobs of equal key that follow each other may be computed side by side.
    fn compute(&self, jobs: &mut [MacJob<'_, Self::Key>]);
}

/// One MAC to compute: over `header`, then `payload`.
#[derive(Debug)]
pub struct MacJob<'a, K> {
    /// The prepared key.
    pub key: &'a K,
    /// SNE, pseudo-header and TCP header, checksum and MAC zeroed: see
    /// [`crate::wire::MacHeader`].
    pub header: &'a [u8],
    /// What follows the TCP header.
    pub payload: &'a [u8],
    /// Where the result goes.
    pub mac: Mac,
}

impl<'a, K> MacJob<'a, K> {
    /// A job with no result yet.
    #[must_use]
    pub fn new(key: &'a K, header: &'a [u8], payload: &'a [u8]) -> Self {
        Self {
            key,
            header,
            payload,
            mac: Mac::default(),
        }
    }
}

/// A computed MAC of 12 or 16 octets; empty by default, which equals nothing.
#[derive(Clone, Copy, Default)]
pub struct Mac {
    octets: [u8; 16],
    len: usize,
}

impl Mac {
    /// The first `len` octets of `output`; at most 16.
    #[must_use]
    pub fn truncated(output: &[u8], len: usize) -> Self {
        let mut mac = Self {
            octets: [0; 16],
            len: len.min(output.len()).min(16),
        };
        for (to, from) in mac.octets.iter_mut().zip(output).take(mac.len) {
            *to = *from;
        }
        mac
    }

    /// The octets as they go into the option.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    /// Whether a received MAC equals this one, compared in constant time. Unequal lengths are
    /// unequal, and an empty MAC equals nothing.
    #[must_use]
    pub fn ct_eq(&self, received: &[u8]) -> bool {
        self.len != 0 && self.as_bytes().ct_eq(received).into()
    }
}

impl fmt::Debug for Mac {
    /// Shows the length only: the MAC we expected would be a gift to whoever forged the segment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({} octets)", self.len)
    }
}

/// The provider made of the RustCrypto crates: portable, and with the CPU's SHA and AES
/// instructions where it has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct RustCrypto;

/// Keyed state of [`RustCrypto`]: HMAC midstates or expanded AES keys. Wiped on drop.
pub struct RustCryptoKey(Keyed);

#[expect(
    clippy::large_enum_variant,
    reason = "one per direction and MKT; a box costs a miss"
)]
enum Keyed {
    Sha1(Hmac<Sha1>),
    Sha256 { hmac: Hmac<Sha256>, mac_len: usize },
    Cmac(CmacKey),
}

impl fmt::Debug for RustCryptoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RustCryptoKey([redacted])")
    }
}

impl MacProvider for RustCrypto {
    type Key = RustCryptoKey;

    fn prepare(&self, algorithm: Algorithm, key: &TrafficKey) -> Self::Key {
        RustCryptoKey(match algorithm {
            Algorithm::HmacSha1_96 => Keyed::Sha1(hmac_key(key.as_bytes())),
            Algorithm::Aes128Cmac96 => Keyed::Cmac(CmacKey::new(&key.aes_key())),
            Algorithm::HmacSha256_96 | Algorithm::HmacSha256_128 => Keyed::Sha256 {
                hmac: hmac_key(key.as_bytes()),
                mac_len: algorithm.mac_len(),
            },
        })
    }

    fn compute(&self, jobs: &mut [MacJob<'_, Self::Key>]) {
        for jobs in jobs.chunk_by_mut(|one, next| core::ptr::eq(one.key, next.key)) {
            let Some(RustCryptoKey(keyed)) = jobs.first().map(|job| job.key) else {
                continue;
            };
            match keyed {
                Keyed::Sha1(hmac) => {
                    for job in jobs {
                        job.mac = hmac_of(hmac, job.header, job.payload, 12);
                    }
                }
                Keyed::Sha256 { hmac, mac_len } => {
                    for job in jobs {
                        job.mac = hmac_of(hmac, job.header, job.payload, *mac_len);
                    }
                }
                Keyed::Cmac(cmac) => {
                    for jobs in jobs.chunks_mut(LANES) {
                        cmac.compute(jobs);
                    }
                }
            }
        }
    }
}

fn hmac_of<M: hmac::Mac + Clone>(keyed: &M, header: &[u8], payload: &[u8], len: usize) -> Mac {
    let mut mac = keyed.clone();
    mac.update(header);
    mac.update(payload);
    Mac::truncated(&mac.finalize().into_bytes(), len)
}
