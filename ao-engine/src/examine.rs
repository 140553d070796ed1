//! What is wrong with the first segment of a handshake, found by trying.
//!
//! The traffic key of a SYN depends on its own ISN only, and that of a SYN-ACK on two ISNs which it
//! carries itself, so both can be examined alone, without a connection. Nothing here decides
//! whether a segment is let in: that is the engine's, and it tries nothing.

use alloc::sync::Arc;

use crate::crypto::Algorithm;
use crate::policy::Mkt;
use crate::reason::DropReason;

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
