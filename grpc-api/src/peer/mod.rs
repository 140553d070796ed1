//! The channel between two sidecars: one call, [`exchange`], over TLS 1.3 with certificates at
//! both ends.
//!
//! Who calls is decided by the certificate alone, against the [`Partners`]; addresses only say who
//! has room reserved. A connection carries one call or a few, and is closed within seconds.

mod client;
mod endpoint;
mod limits;
mod refusals;
mod server;
mod tls;
mod trust;
mod wire;

use std::ops::RangeInclusive;

pub use client::{CallError, exchange};
pub use endpoint::{Endpoint, EndpointError};
pub use limits::Limits;
pub use server::{BindError, Caller, Handler, PeerServer, Refused};
pub use tls::{IdentityError, PeerIdentity};
pub use trust::{Authority, Partner, Partners, Trust, TrustError};

// What the operator's side over TCP has in common with this.
pub(crate) use limits::{Admission, Entered};
pub(crate) use refusals::{Kind, Origin, RefusalLog};
pub(crate) use server::{handshake_failure, linger};
pub(crate) use tls::{HTTP2, provider};
pub(crate) use trust::explain;

/// Versions of the protocol that this release speaks.
pub const VERSIONS: RangeInclusive<u32> = 1..=1;

/// Metadata of a refusal for the version: those served, as `LOWEST-HIGHEST`.
const VERSIONS_METADATA: &str = "ao-versions";

/// Largest message in either direction, in octets.
const MAX_MESSAGE: usize = 32 << 10;

/// The newest version that both speak.
fn common_version(ours: &RangeInclusive<u32>, theirs: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *ours.end().min(theirs.end());
    (ours.contains(&newest) && theirs.contains(&newest)).then_some(newest)
}
