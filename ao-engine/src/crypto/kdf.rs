//! Traffic keys (RFC 5925 §5.2, RFC 5926 §3.1).

use core::fmt;
use core::net::IpAddr;

use aes::Aes128;
use cmac::Cmac;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Algorithm, MasterKey};

/// The connection as the KDF sees it: from the sender of the segments the key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KdfContext {
    /// Address of the sender.
    pub src: IpAddr,
    /// Address of the receiver.
    pub dst: IpAddr,
    /// Port of the sender.
    pub src_port: u16,
    /// Port of the receiver.
    pub dst_port: u16,
    /// Initial sequence number of the sender.
    pub src_isn: u32,
    /// Initial sequence number of the receiver; 0 for a SYN without ACK, and only for that.
    pub dst_isn: u32,
}

/// A key for one direction of one connection. Wiped on drop, never shown.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TrafficKey {
    octets: [u8; 32],
    len: usize,
}

impl TrafficKey {
    fn new(octets: &[u8]) -> Self {
        let mut key = Self {
            octets: [0; 32],
            len: octets.len().min(32),
        };
        for (to, from) in key.octets.iter_mut().zip(octets) {
            *to = *from;
        }
        key
    }

    /// The key: as many octets as [`Algorithm::traffic_key_len`] says.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    /// The first 16 octets: an AES-128 key.
    pub(super) fn aes_key(&self) -> Zeroizing<[u8; 16]> {
        let mut key = Zeroizing::new([0; 16]);
        for (to, from) in key.iter_mut().zip(&self.octets) {
            *to = *from;
        }
        key
    }
}

impl fmt::Debug for TrafficKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficKey([redacted])")
    }
}

/// Derives the traffic key of one direction.
///
/// The SHA-256 algorithms use the construction of RFC 5926 §3.1.1.1 with HMAC-SHA-256 and an
/// output of 256 bits, which is what Linux does.
#[must_use]
pub fn derive(algorithm: Algorithm, master: &MasterKey, context: &KdfContext) -> TrafficKey {
    match algorithm {
        Algorithm::HmacSha1_96 => {
            let prf = hmac_key::<Hmac<Sha1>>(master.expose());
            let mut key = input(prf, context, 160).finalize().into_bytes();
            let traffic_key = TrafficKey::new(&key);
            key.zeroize();
            traffic_key
        }
        Algorithm::HmacSha256_96 | Algorithm::HmacSha256_128 => {
            let prf = hmac_key::<Hmac<Sha256>>(master.expose());
            let mut key = input(prf, context, 256).finalize().into_bytes();
            let traffic_key = TrafficKey::new(&key);
            key.zeroize();
            traffic_key
        }
        Algorithm::Aes128Cmac96 => {
            let prf = cmac_key(&aes_master(master.expose()));
            let mut key = input(prf, context, 128).finalize().into_bytes();
            let traffic_key = TrafficKey::new(&key);
            key.zeroize();
            traffic_key
        }
    }
}

/// Feeds `i || Label || Context || Output_Length` (RFC 5926 §3.1.1). One block of output is
/// enough for every algorithm, so `i` is always 1.
fn input<M: Mac>(mut prf: M, context: &KdfContext, output_bits: u16) -> M {
    prf.update(&[1]);
    prf.update(b"TCP-AO");
    for address in [context.src, context.dst] {
        match address {
            IpAddr::V4(v4) => prf.update(&v4.octets()),
            IpAddr::V6(v6) => prf.update(&v6.octets()),
        }
    }
    prf.update(&context.src_port.to_be_bytes());
    prf.update(&context.dst_port.to_be_bytes());
    prf.update(&context.src_isn.to_be_bytes());
    prf.update(&context.dst_isn.to_be_bytes());
    prf.update(&output_bits.to_be_bytes());
    prf
}

/// The AES key for a master key of any length: itself when it has 16 octets, else its CMAC under
/// a zero key (RFC 5926 §3.1.1.2, after RFC 4615).
pub(super) fn aes_master(master: &[u8]) -> Zeroizing<[u8; 16]> {
    if let Ok(key) = master.try_into() {
        return Zeroizing::new(key);
    }
    let mut prf = cmac_key(&[0; 16]);
    prf.update(master);
    Zeroizing::new(prf.finalize().into_bytes().into())
}

fn cmac_key(key: &[u8; 16]) -> Cmac<Aes128> {
    Cmac::new(key.into())
}

pub(super) fn hmac_key<M: KeyInit>(key: &[u8]) -> M {
    let Ok(mac) = M::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length (RFC 2104 §2)");
    };
    mac
}
