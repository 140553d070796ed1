//! Why the datapath does not do as it was told.

use std::io;
use std::sync::Arc;

use ao_engine::policy::PolicyError;
use ao_sys::nfqueue::BindError;

use crate::choice::Impossible;
use crate::firewall;
use crate::kernel::RefusedKeys;
use crate::userspace::JournalError;

/// Why the datapath could not start. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root, and without the capabilities.
    #[error("CAP_NET_ADMIN and CAP_NET_RAW are needed: run ao-sidecar as root")]
    Permission,
    /// Two peers or keys contradict each other.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The firewall rules; a guard that was installed stays.
    #[error(transparent)]
    Firewall(#[from] firewall::Error),
    /// A netfilter queue.
    #[error("{0}; stop that program or set another userspace.first_queue")]
    QueueHeld(#[source] BindError),
    /// A netfilter queue, for another cause.
    #[error(transparent)]
    Queue(BindError),
    /// The connection journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another sidecar has its rules in this network namespace.
    #[error(
        "another ao-sidecar is at work in this network namespace; one serves all peers: stop it, \
         or add the peers to its configuration"
    )]
    AnotherSidecar,
    /// A peer is to be the kernel's and cannot be.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// Sessions to configured peers are alive and unprotected.
    #[error(
        "unprotected session{} alive: {}; run with --replace-sessions to close {} and let the \
         daemon reconnect protected",
        if .sessions.len() == 1 { " is" } else { "s are" },
        .sessions.join(", "),
        if .sessions.len() == 1 { "it" } else { "them" },
    )]
    UnprotectedSessions {
        /// Both ends of each.
        sessions: Vec<String>,
        /// Their peers, if a start without them would take protection from nobody: others were
        /// protected before this start, and these were not. Empty otherwise.
        newcomers: Vec<Arc<str>>,
    },
    /// Anything the kernel refused.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// Why the datapath could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The rules are still there: configured peers stay blocked.
    #[error("the firewall rules could not be removed: {0}")]
    Firewall(#[from] firewall::Error),
}

/// Why peers were not changed. The running ones are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Two peers or keys contradict each other.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The kernel does not take the keys.
    #[error("{0}")]
    Kernel(#[from] RefusedKeys),
    /// A peer is to be the kernel's and cannot be.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// Sessions to peers that are new, or have other addresses or ports, are alive and unprotected.
    #[error(
        "unprotected session{} alive: {}; allow {} to be closed, and the daemon reconnects \
         protected",
        if .0.len() == 1 { " is" } else { "s are" },
        .0.join(", "),
        if .0.len() == 1 { "it" } else { "them" },
    )]
    UnprotectedSessions(Vec<String>),
    /// The firewall does not take the rules.
    #[error(transparent)]
    Firewall(#[from] firewall::Error),
    /// The first peer of the userspace backend: its queues or its journal cannot be had.
    #[error("the userspace backend, which has had no peers so far: {0}")]
    Userspace(#[source] StartError),
    /// Anything the kernel refused.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}
