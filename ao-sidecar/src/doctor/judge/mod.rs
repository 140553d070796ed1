//! From facts to findings: pure.
//!
//! A peer without a session gets one cause: the surest that applies, in the order of [`Code`].
//! What follows from it is not told again. Only causes that have nothing to do with one another
//! stand side by side.

mod far_end;
mod host;
mod kernel;
mod keys;
mod peering;
mod segments;
mod session;
mod silence;

use std::cmp::Reverse;
use std::sync::Arc;

use grpc_api::operator::administration::{Finding, FindingSeverity};

use super::code::Code;
use super::facts::{Facts, PeerFacts};

/// What follows from `facts`: what matters most first, and of equal severity what is surest. Never
/// empty.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = host::findings(facts);
    for peer in &facts.peers {
        found.extend(of_peer(facts, peer));
    }
    found.extend(kernel::rest(facts));
    found.extend(silence::strangers(facts));
    ordered(found)
}

/// What matters most first, and of equal severity what is surest.
pub(super) fn ordered(mut found: Vec<Draft>) -> Vec<Finding> {
    // Stable: peers stay in their order.
    found.sort_by_key(|draft| (Reverse(draft.severity), draft.code));
    found.into_iter().map(Draft::finding).collect()
}

/// Whether what holds a peer up can be known only by listening to it.
pub(super) fn needs_listening(facts: &Facts, peer: &PeerFacts) -> bool {
    !peer.is_up() && !peer.is_restored() && certain(facts, peer).is_empty()
}

fn of_peer(facts: &Facts, peer: &PeerFacts) -> Vec<Draft> {
    let mut found = match (peer.is_up(), peer.is_restored()) {
        (true, _) => vec![session::ok(peer)],
        (false, true) => vec![session::restored(peer)],
        (false, false) => causes(facts, peer),
    };
    found.extend(keys::warnings(facts, peer));
    found.extend(peering::warnings(peer));
    found.extend(session::warnings(peer));
    found
}

/// Why there is no session.
fn causes(facts: &Facts, peer: &PeerFacts) -> Vec<Draft> {
    let mut found = certain(facts, peer);
    if !found.is_empty() {
        return found;
    }
    match segments::cause(facts, peer) {
        Some(cause) => {
            found.push(cause);
            // They have nothing to do with keys.
            found.extend(segments::ttl_low(facts, peer));
            found.extend(silence::idle(facts, peer));
        }
        None => found.push(silence::cause(facts, peer)),
    }
    found
}

/// What holds a peer up whatever the far end sends.
fn certain(facts: &Facts, peer: &PeerFacts) -> Vec<Draft> {
    let causes = [
        host::no_route(facts, peer),
        keys::missing(facts, peer),
        kernel::not_launched(facts, peer),
        host::local_md5(peer),
        host::already_signed(peer),
    ];
    causes.into_iter().flatten().collect()
}

/// A finding before it has its place among the others.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) code: Code,
    pub(super) severity: FindingSeverity,
    pub(super) peer: Option<Arc<str>>,
    pub(super) seen: String,
    pub(super) matters: String,
    pub(super) remedy: String,
}

impl Draft {
    /// About everything.
    pub(super) fn new(
        code: Code,
        seen: impl Into<String>,
        matters: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            code,
            severity: code.severity(),
            peer: None,
            seen: seen.into(),
            matters: matters.into(),
            remedy: remedy.into(),
        }
    }

    /// About a peer.
    pub(super) fn of(self, peer: &PeerFacts) -> Self {
        Self {
            peer: Some(Arc::clone(&peer.name)),
            ..self
        }
    }

    /// With another severity than the code's.
    pub(super) fn at(self, severity: FindingSeverity) -> Self {
        Self { severity, ..self }
    }

    fn finding(self) -> Finding {
        Finding {
            code: self.code.as_str(),
            severity: self.severity,
            peer: self.peer,
            seen: self.seen,
            matters: self.matters,
            remedy: self.remedy,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
