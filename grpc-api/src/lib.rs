//! The gRPC APIs: generated code, conversions, access control, and how they are served. Operators
//! use a Unix socket; the sidecars of peers use TLS, in [`peer`].
//!
//! They hold no policy: what they answer comes from a [`Source`] or a [`peer::Handler`].
#![forbid(unsafe_code)]

mod client;
mod codec;
mod convert;
mod health;
pub mod operator;
pub mod peer;
mod roles;
mod service;
mod socket;
mod tcp;
#[cfg(test)]
mod test_support;
mod tls;

pub use client::{Client, ConnectError, Target, connect, connect_for};
pub use health::Health;
pub use roles::{RoleMap, Roles};
pub use service::{Alarm, Api, PeerFacts, Snapshot, Source, serve};
pub use socket::{ApiSocket, SocketError};
pub use tcp::{FreshTls, ServerTls, TcpApi, TcpError};
pub use tls::{TlsError, TlsFiles};

/// Messages, client and server generated from `proto/aosidecar/v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    rustdoc::broken_intra_doc_links
)]
pub mod v1 {
    tonic::include_proto!("aosidecar.v1");
}
