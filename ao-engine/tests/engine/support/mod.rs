//! What the scenarios are built from: packets of literal fields, a signer of its own, and a host
//! with an engine.

mod host;
mod packet;
mod signer;

pub(crate) use host::{Host, Session};
pub(crate) use packet::{ACK, FIN, Icmp, PSH, RST, SYN, Tcp, URG, icmp_sum_ok, option, options};
pub(crate) use signer::{key, sign, sign_as_is, verify};
