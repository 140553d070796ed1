//! What the command lines of `aoctl` and `ao-sidecar` may say. Help, completions and manual pages
//! come from these definitions.

pub mod aoctl;
pub mod arguments;
mod help;
pub mod manual;
pub mod sidecar;

/// Where the daemon looks for its configuration.
pub const DEFAULT_CONFIG: &str = "/etc/ao-sidecar/config.toml";
