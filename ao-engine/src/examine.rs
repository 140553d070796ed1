//! What is wrong with the first segment of a handshake, found by trying.
//!
//! The traffic key of a SYN depends on its own ISN only, and that of a SYN-ACK on two ISNs which it
//! carries itself, so both can be examined alone, without a connection. Nothing here decides
//! whether a segment is let in: that is the engine's, and it tries nothing.

use alloc::sync::Arc;

use crate::crypto::{Algorithm, KdfContext, MacJob, MacProvider, RustCrypto, derive};
use crate::policy::Mkt;
use crate::reason::DropReason;
use crate::wire::{AoOption, MacHeader, Segment, mac_header, summarize_options};

/// Keys beside the one named by the KeyID whose secrets are tried, at most.
pub const MAX_OTHER_KEYS: usize = 64;

/// Who sent a segment: an MKT has a KeyID of its own for either end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// This end: the KeyID is the SendID of its MKT.
    ThisEnd,
    /// The far end: the KeyID is the RecvID of its MKT.
    FarEnd,
}

/// The MKTs to examine a segment with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys<'a> {
    /// Those the peer has now. No two of them share an ID.
    pub active: &'a [Arc<Mkt>],
    /// Those of other times: expired, or pending.
    pub inactive: &'a [Arc<Mkt>],
}

/// What a SYN or SYN-ACK is, seen from the keys of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Examined {
    /// It verifies with the active key that its KeyID names.
    Verified {
        /// KeyID.
        key_id: u8,
        /// RNextKeyID.
        rnext_key_id: u8,
        /// Whether an active key has RNextKeyID for this end's segments.
        rnext_known: bool,
    },
    /// It has neither TCP-AO nor TCP-MD5.
    NoAo,
    /// It has TCP-MD5 (RFC 2385) instead of TCP-AO.
    Md5,
    /// No active key has its KeyID.
    UnknownKeyId {
        /// KeyID.
        key_id: u8,
        /// RNextKeyID.
        rnext_key_id: u8,
        /// Never [`Hint::OptionsFlag`] nor [`Hint::Algorithm`].
        hint: Hint,
    },
    /// The MAC is shorter or longer than those of the active key that the KeyID names.
    MacLength {
        /// KeyID.
        key_id: u8,
        /// RNextKeyID.
        rnext_key_id: u8,
        /// Octets of its MAC.
        got: u8,
        /// Octets of the key's MACs.
        expected: u8,
        /// Never [`Hint::OptionsFlag`].
        hint: Hint,
    },
    /// The MAC is not that of the active key that the KeyID names.
    WrongMac {
        /// KeyID.
        key_id: u8,
        /// RNextKeyID.
        rnext_key_id: u8,
        /// What it does verify with.
        hint: Hint,
    },
    /// It is no whole TCP segment with SYN, or its options are such as RFC 5925 §2.2 has discarded:
    /// TCP-AO twice, or together with TCP-MD5.
    Malformed(DropReason),
}

/// What a segment verifies with that does not verify as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hint {
    /// With nothing that was tried: most likely the secrets differ.
    Nothing,
    /// With the key that its KeyID names, when TCP options are covered, or are not, other than that
    /// key says.
    OptionsFlag {
        /// Whether the sender's MAC covers them.
        include_options: bool,
    },
    /// With the secret of the key that its KeyID names and another algorithm.
    Algorithm {
        /// The sender's.
        algorithm: Algorithm,
        /// Whether the sender's MAC covers TCP options.
        include_options: bool,
    },
    /// With the secret of a key that its KeyID does not name, or that is not active.
    OtherKey {
        /// SendID of that key at this end.
        send_id: u8,
        /// RecvID of that key at this end.
        recv_id: u8,
        /// Whether it is an active one.
        active: bool,
        /// The sender's algorithm.
        algorithm: Algorithm,
        /// Whether the sender's MAC covers TCP options.
        include_options: bool,
    },
}

/// Examines the packet of a SYN or SYN-ACK as it is on the wire.
///
/// Costs at most six MACs for each of 1 + [`MAX_OTHER_KEYS`] keys, and one if the segment is as it
/// should be. TTL and check sum are not looked at.
#[must_use]
pub fn examine(packet: &[u8], sender: Sender, keys: Keys<'_>) -> Examined {
    let segment = match Segment::parse(packet) {
        Ok(segment) if segment.flags.syn() => segment,
        Ok(_) => return Examined::Malformed(DropReason::Malformed),
        Err(error) => return Examined::Malformed(error.reason()),
    };
    let options = match summarize_options(packet, &segment) {
        Ok(options) => options,
        Err(error) => return Examined::Malformed(error.reason()),
    };
    let Some(ao) = options.ao else {
        return match options.md5 {
            true => Examined::Md5,
            false => Examined::NoAo,
        };
    };
    Signed {
        packet,
        segment,
        ao,
        sender,
    }
    .examine(keys)
}

/// Whether the packet of a SYN or SYN-ACK verifies with the key that its KeyID names. Costs one MAC
/// at most.
#[must_use]
pub fn verifies(packet: &[u8], sender: Sender, keys: &[Arc<Mkt>]) -> bool {
    let segment = Segment::parse(packet)
        .ok()
        .filter(|segment| segment.flags.syn());
    let signed = segment.and_then(|segment| {
        let options = summarize_options(packet, &segment).ok()?;
        Some(Signed {
            packet,
            segment,
            ao: options.ao?,
            sender,
        })
    });
    signed.is_some_and(|signed| {
        let mut named = keys
            .iter()
            .filter(|key| signed.id_of(key) == signed.ao.key_id)
            .filter(|key| key.algorithm.mac_len() == signed.ao.mac_len());
        named
            .next()
            .is_some_and(|key| signed.verifies(key, Manner::of(key)))
    })
}

/// A SYN or SYN-ACK with TCP-AO.
struct Signed<'p> {
    packet: &'p [u8],
    segment: Segment,
    ao: AoOption,
    sender: Sender,
}

/// One way to compute a MAC with a master key.
#[derive(Clone, Copy)]
struct Manner {
    algorithm: Algorithm,
    include_options: bool,
}

impl Signed<'_> {
    fn examine(&self, keys: Keys<'_>) -> Examined {
        let (key_id, rnext_key_id) = (self.ao.key_id, self.ao.rnext_key_id);
        let named = keys.active.iter().find(|key| self.id_of(key) == key_id);
        let Some(key) = named else {
            return Examined::UnknownKeyId {
                key_id,
                rnext_key_id,
                hint: self.other_key(keys, None),
            };
        };
        let (got, expected) = (self.ao.mac_len(), key.algorithm.mac_len());
        if got != expected {
            return Examined::MacLength {
                key_id,
                rnext_key_id,
                got: octets(got),
                expected: octets(expected),
                hint: self.hint(keys, key),
            };
        }
        if self.verifies(key, Manner::of(key)) {
            return Examined::Verified {
                key_id,
                rnext_key_id,
                rnext_known: keys
                    .active
                    .iter()
                    .any(|key| self.other_id_of(key) == rnext_key_id),
            };
        }
        Examined::WrongMac {
            key_id,
            rnext_key_id,
            hint: self.hint(keys, key),
        }
    }

    /// What it verifies with that does not verify with the key it names.
    fn hint(&self, keys: Keys<'_>, named: &Arc<Mkt>) -> Hint {
        let own = Manner::of(named);
        match self.manner(named) {
            Some(manner) if manner.algorithm == own.algorithm => Hint::OptionsFlag {
                include_options: manner.include_options,
            },
            Some(manner) => Hint::Algorithm {
                algorithm: manner.algorithm,
                include_options: manner.include_options,
            },
            None => self.other_key(keys, Some(named)),
        }
    }

    fn other_key(&self, keys: Keys<'_>, named: Option<&Arc<Mkt>>) -> Hint {
        let active = keys.active.iter().map(|key| (key, true));
        let inactive = keys.inactive.iter().map(|key| (key, false));
        let others = active
            .chain(inactive)
            .filter(|(key, _)| named.is_none_or(|named| !Arc::ptr_eq(key, named)));
        let mut found = others
            .take(MAX_OTHER_KEYS)
            .filter_map(|(key, active)| Some((key, active, self.manner(key)?)));
        found
            .next()
            .map_or(Hint::Nothing, |(key, active, manner)| Hint::OtherKey {
                send_id: key.send_id,
                recv_id: key.recv_id,
                active,
                algorithm: manner.algorithm,
                include_options: manner.include_options,
            })
    }

    /// In which manner the MAC is made with a key's secret: its own first.
    fn manner(&self, key: &Mkt) -> Option<Manner> {
        let own = Manner::of(key);
        let others = Algorithm::ALL
            .into_iter()
            .filter(|algorithm| *algorithm != own.algorithm);
        core::iter::once(own.algorithm)
            .chain(others)
            .filter(|algorithm| algorithm.mac_len() == self.ao.mac_len())
            .flat_map(|algorithm| {
                [own.include_options, !own.include_options].map(|include_options| Manner {
                    algorithm,
                    include_options,
                })
            })
            .find(|manner| self.verifies(key, *manner))
    }

    fn verifies(&self, key: &Mkt, manner: Manner) -> bool {
        let Self {
            packet,
            segment,
            ao,
            ..
        } = self;
        // RFC 5925 §5.2: a SYN is sent before the other ISN is known.
        let dst_isn = match segment.flags.ack() {
            true => segment.ack.wrapping_sub(1),
            false => 0,
        };
        let context = KdfContext {
            src: segment.src,
            dst: segment.dst,
            src_port: segment.src_port,
            dst_port: segment.dst_port,
            src_isn: segment.seq,
            dst_isn,
        };
        let traffic_key = derive(manner.algorithm, &key.master_key, &context);
        let prepared = RustCrypto.prepare(manner.algorithm, &traffic_key);
        let mut header = MacHeader::default();
        // The SNE of an ISN is 0 (RFC 5925 §6.2).
        mac_header(packet, segment, ao, 0, manner.include_options, &mut header);
        let mut job = [MacJob::new(
            &prepared,
            header.as_bytes(),
            segment.payload(packet),
        )];
        RustCrypto.compute(&mut job);
        job.iter().any(|job| job.mac.ct_eq(ao.mac(packet)))
    }

    /// The ID of a key that stands in the sender's segments.
    fn id_of(&self, key: &Mkt) -> u8 {
        match self.sender {
            Sender::ThisEnd => key.send_id,
            Sender::FarEnd => key.recv_id,
        }
    }

    /// The ID of a key that the sender asks to be sent.
    fn other_id_of(&self, key: &Mkt) -> u8 {
        match self.sender {
            Sender::ThisEnd => key.recv_id,
            Sender::FarEnd => key.send_id,
        }
    }
}

impl Manner {
    fn of(key: &Mkt) -> Self {
        Self {
            algorithm: key.algorithm,
            include_options: key.include_options,
        }
    }
}

/// An option has less than 40 octets.
fn octets(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}
