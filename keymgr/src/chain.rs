//! Static key chains (RFC 8177) and the MKTs they become (RFC 5925 §3.1).

use std::sync::Arc;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::Mkt;

/// A key as the operator writes it.
#[derive(Debug)]
pub struct Key {
    /// KeyID in segments sent with this key, 0 to 255; the far end's RecvID.
    pub send_id: u8,
    /// KeyID expected in segments received with this key, 0 to 255; the far end's SendID.
    pub recv_id: u8,
    /// Algorithm of KDF and MAC.
    pub algorithm: Algorithm,
    /// The shared secret.
    pub secret: MasterKey,
    /// Whether the MAC covers TCP options other than TCP-AO.
    pub include_tcp_options: bool,
}

/// Keys in order of preference: the first one starts a new connection.
///
/// Holds at least one key, and no two keys with the same SendID or the same RecvID: "MKTs that
/// match the same connection MUST NOT share a KeyID" (RFC 5925 §3.1).
#[derive(Debug)]
pub struct KeyChain {
    name: String,
    keys: Vec<Key>,
}

/// Why a key chain was refused. Positions count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There is no key. An empty chain never means "accept unsigned segments".
    #[error("the key chain has no keys")]
    Empty,
    /// Two keys share a SendID.
    #[error("two keys have send_id {id}")]
    DuplicateSendId {
        /// Position of the key named first.
        first: usize,
        /// Position of the key named later.
        second: usize,
        /// The SendID.
        id: u8,
    },
    /// Two keys share a RecvID.
    #[error("two keys have recv_id {id}")]
    DuplicateRecvId {
        /// Position of the key named first.
        first: usize,
        /// Position of the key named later.
        second: usize,
        /// The RecvID.
        id: u8,
    },
}

impl KeyChain {
    /// A chain of `keys`, the preferred one first.
    ///
    /// # Errors
    /// When there is no key, or when SendIDs or RecvIDs overlap.
    pub fn new(name: impl Into<String>, keys: Vec<Key>) -> Result<Self, ChainError> {
        check_ids(
            &keys
                .iter()
                .map(|key| (key.send_id, key.recv_id))
                .collect::<Vec<_>>(),
        )?;
        Ok(Self {
            name: name.into(),
            keys,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its keys, the preferred one first.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The MKTs of the chain, in its order. All peers of a chain share them.
    #[must_use]
    pub fn into_mkts(self) -> Vec<Arc<Mkt>> {
        self.keys
            .into_iter()
            .map(|key| Arc::new(key.into()))
            .collect()
    }
}

impl From<Key> for Mkt {
    fn from(key: Key) -> Self {
        Self {
            send_id: key.send_id,
            recv_id: key.recv_id,
            algorithm: key.algorithm,
            master_key: key.secret,
            include_options: key.include_tcp_options,
        }
    }
}

/// Checks the `(SendID, RecvID)` pairs of a chain's keys.
fn check_ids(ids: &[(u8, u8)]) -> Result<(), ChainError> {
    if ids.is_empty() {
        return Err(ChainError::Empty);
    }
    let mut senders = [None; 256];
    let mut receivers = [None; 256];
    for (second, &(send_id, recv_id)) in ids.iter().enumerate() {
        if let Some(first) = senders[usize::from(send_id)].replace(second) {
            return Err(ChainError::DuplicateSendId {
                first,
                second,
                id: send_id,
            });
        }
        if let Some(first) = receivers[usize::from(recv_id)].replace(second) {
            return Err(ChainError::DuplicateRecvId {
                first,
                second,
                id: recv_id,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(send_id: u8, recv_id: u8) -> Key {
        Key {
            send_id,
            recv_id,
            algorithm: "hmac-sha-1-96".parse().unwrap(),
            secret: MasterKey::new(b"correct horse").unwrap(),
            include_tcp_options: recv_id.is_multiple_of(2),
        }
    }

    #[test]
    fn an_empty_chain_is_refused() {
        assert_eq!(
            KeyChain::new("empty", Vec::new()).unwrap_err(),
            ChainError::Empty
        );
    }

    #[test]
    fn the_first_overlap_is_named() {
        assert_eq!(
            KeyChain::new("c", vec![key(1, 1), key(2, 2), key(1, 3)]).unwrap_err(),
            ChainError::DuplicateSendId {
                first: 0,
                second: 2,
                id: 1
            }
        );
        assert_eq!(
            KeyChain::new("c", vec![key(1, 9), key(2, 9)]).unwrap_err(),
            ChainError::DuplicateRecvId {
                first: 0,
                second: 1,
                id: 9
            }
        );
    }

    #[test]
    fn send_and_recv_ids_may_cross() {
        assert!(KeyChain::new("crossed", vec![key(1, 2), key(2, 1)]).is_ok());
    }

    #[test]
    fn secrets_never_show() {
        let chain = KeyChain::new("c", vec![key(1, 1)]).unwrap();
        let shown = format!("{chain:?} {:?}", chain.keys());
        assert!(
            !shown.contains("correct horse") && !shown.contains("99, 111, 114"),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn a_chain_is_accepted_exactly_when_no_id_repeats(
            ids in prop::collection::vec((0_u8..12, 0_u8..12), 1..8)
        ) {
            let repeats = ids.iter().enumerate().any(|(index, &(send_id, recv_id))| {
                ids.iter().take(index).any(|&(s, r)| s == send_id || r == recv_id)
            });
            prop_assert_eq!(check_ids(&ids).is_err(), repeats);
        }

        #[test]
        fn mkts_keep_order_and_attributes(count in 1_u8..=255) {
            let keys = (0..count).map(|id| key(id, 255 - id)).collect();
            let mkts = KeyChain::new("c", keys).unwrap().into_mkts();
            prop_assert_eq!(mkts.len(), usize::from(count));
            for (id, mkt) in (0..count).zip(&mkts) {
                prop_assert_eq!((mkt.send_id, mkt.recv_id), (id, 255 - id));
                prop_assert_eq!(mkt.include_options, (255 - id).is_multiple_of(2));
            }
        }
    }
}
