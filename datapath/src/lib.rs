//! The backends that put TCP-AO onto a daemon's sessions.

mod abort;
mod datapath;
mod lock;
mod policy;
mod protected;
mod sockets;
mod userspace;

pub mod firewall;
pub mod mac;
pub mod report;
pub mod settings;

pub use datapath::{
    Datapath, Decision, ReloadError, StartError, StopError, install_guard, remove_guard,
};
pub use userspace::JournalError;
