//! The backends that put TCP-AO onto a daemon's sessions.

mod abort;

pub mod firewall;
pub mod mac;
pub mod report;
pub mod settings;
pub mod userspace;
