//! The backends that put TCP-AO onto a daemon's sessions.

mod abort;
mod choice;
mod datapath;
mod keys;
mod lock;
mod policy;
mod protected;
mod sockets;
mod userspace;

pub mod evidence;
pub mod firewall;
pub mod keeper;
mod kernel;
pub mod mac;
pub mod report;
pub mod settings;

pub use abort::AbortOnPanic;
pub use choice::Decision;
pub use datapath::{
    Datapath, Reconfigured, ReloadError, StartError, StopError, install_guard, remove_guard,
};
pub use kernel::RefusedKeys;
pub use keys::{KeyError, Observed, Removal};
pub use protected::covered_last;
pub use userspace::JournalError;
