//! Static key chains (RFC 8177) and the MKTs they become (RFC 5925 §3.1).
//!
//! A [`KeyChain`] is checked when it is made: from its first start to its last end there is always
//! a key to send with, and the far end accepts it, if it has the mirrored chain and a clock that
//! differs by no more than the tolerance. [`KeyChain::at`] tells which keys are wanted when.

mod timetable;

use std::sync::Arc;
use std::time::SystemTime;

use ao_engine::policy::Mkt;

pub use self::timetable::Wanted;
use self::timetable::{Lapse, Window};
use crate::lifetime::{Lifetime, Tolerance, compare_ends};

/// A key as the operator writes it.
#[derive(Clone, Debug)]
pub struct Key {
    /// IDs, algorithm and secret. Always the same one for the same key of a chain.
    pub mkt: Arc<Mkt>,
    /// When segments are sent with it.
    pub send: Lifetime,
    /// When segments that have it are accepted, before the chain's tolerance is added. Covers
    /// `send`: whoever advertises a key as RNextKeyID has to accept it.
    pub accept: Lifetime,
}

/// What holds for all keys of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// How far the clocks of the two ends may be apart.
    pub tolerance: Tolerance,
    /// Whether there may be spans between two keys in which there is none to send with. They are
    /// treated as `on_expiry` says.
    pub allow_gaps: bool,
    /// What happens when the last key has ended.
    pub on_expiry: OnExpiry,
}

/// What happens to sessions when there is no key to send with any more. They are never unsigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExpiry {
    /// The last key stays in use, until another one starts.
    #[default]
    Keep,
    /// Sessions are closed, and the peer is blocked until another key starts.
    Close,
}

/// Keys with lifetimes. At no instant do two of them that are accepted share a SendID or a RecvID:
/// "MKTs that match the same connection MUST NOT share a KeyID" (RFC 5925 §3.1).
#[derive(Clone, Debug)]
pub struct KeyChain {
    name: String,
    keys: Vec<Key>,
    rules: Rules,
    /// When each key is really sent and accepted.
    windows: Vec<Window>,
    /// Spans without a key to send with, by time.
    lapses: Vec<Lapse>,
}

/// Why a key chain was refused. Positions count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There is no key. An empty chain never means "accept unsigned segments".
    #[error("the key chain has no keys")]
    Empty,
    /// Two keys that are accepted at the same time share a SendID.
    #[error("two keys have send_id {id}")]
    DuplicateSendId {
        /// Position of the key named first.
        first: usize,
        /// Position of the key named later.
        second: usize,
        /// The SendID.
        id: u8,
    },
    /// Two keys that are accepted at the same time share a RecvID.
    #[error("two keys have recv_id {id}")]
    DuplicateRecvId {
        /// Position of the key named first.
        first: usize,
        /// Position of the key named later.
        second: usize,
        /// The RecvID.
        id: u8,
    },
    /// A key would be sent when it is not accepted.
    #[error("a key is sent when it is not accepted")]
    SentUnaccepted {
        /// Position of the key.
        key: usize,
    },
    /// Between two keys there is none to send with.
    #[error("there is no key to send with for a while")]
    Gap {
        /// Position of the key that ends.
        before: usize,
        /// Position of the key that starts next.
        after: usize,
        /// When the one ends.
        from: SystemTime,
        /// When the other starts.
        until: SystemTime,
    },
}

impl Key {
    /// A key that is always used.
    #[must_use]
    pub fn always(mkt: Mkt) -> Self {
        Self {
            mkt: Arc::new(mkt),
            send: Lifetime::ALWAYS,
            accept: Lifetime::ALWAYS,
        }
    }
}

impl KeyChain {
    /// A chain of `keys`. Among those that start together the first one is preferred.
    ///
    /// # Errors
    /// When there is no key, a key is sent but not accepted, there is a gap that the rules do not
    /// allow, or IDs repeat among keys that are accepted at the same time.
    pub fn new(name: impl Into<String>, keys: Vec<Key>, rules: Rules) -> Result<Self, ChainError> {
        if keys.is_empty() {
            return Err(ChainError::Empty);
        }
        check_accepted(&keys)?;
        let lapses = timetable::lapses(&keys);
        if !rules.allow_gaps {
            check_gaps(&lapses)?;
        }
        let windows = timetable::windows(&keys, &lapses, rules);
        check_ids(&keys, &windows)?;
        Ok(Self {
            name: name.into(),
            keys,
            rules,
            windows,
            lapses,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its keys, as they were given.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Whether the other one has the same name, keys (secrets included) and rules.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): (&Key, &Key)| {
            one.mkt.is_same(&other.mkt) && one.send == other.send && one.accept == other.accept
        };
        self.name == other.name
            && self.rules == other.rules
            && self.keys.len() == other.keys.len()
            && self.keys.iter().zip(&other.keys).all(same)
    }
}

fn check_accepted(keys: &[Key]) -> Result<(), ChainError> {
    let covered = |key: &Key| {
        key.accept.start() <= key.send.start()
            && compare_ends(key.send.end(), key.accept.end()).is_le()
    };
    match keys.iter().position(|key| !covered(key)) {
        Some(key) => Err(ChainError::SentUnaccepted { key }),
        None => Ok(()),
    }
}

fn check_gaps(lapses: &[Lapse]) -> Result<(), ChainError> {
    for lapse in lapses {
        if let Some((after, until)) = lapse.next {
            return Err(ChainError::Gap {
                before: lapse.last,
                after,
                from: lapse.from,
                until,
            });
        }
    }
    Ok(())
}

fn check_ids(keys: &[Key], windows: &[Window]) -> Result<(), ChainError> {
    let together: Vec<_> = keys.iter().zip(windows).collect();
    for (second, (key, window)) in together.iter().enumerate() {
        let earlier = together.iter().take(second).enumerate();
        for (first, (other, beside)) in earlier {
            if !window.accept.overlaps(&beside.accept) {
                continue;
            }
            let (mkt, other) = (&key.mkt, &other.mkt);
            if mkt.send_id == other.send_id {
                let id = mkt.send_id;
                return Err(ChainError::DuplicateSendId { first, second, id });
            }
            if mkt.recv_id == other.recv_id {
                let id = mkt.recv_id;
                return Err(ChainError::DuplicateRecvId { first, second, id });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
