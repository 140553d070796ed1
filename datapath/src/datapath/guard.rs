//! The guard alone, while no sidecar runs.

use std::sync::Arc;

use ao_sys::links::Links;

use super::served::served;
use super::{StartError, active_sessions, check_privileges, note_both, note_protected, ruleset};
use crate::choice::{Abilities, Decision};
use crate::firewall::Firewall;
use crate::lock::NamespaceLock;
use crate::policy;
use crate::protected::Protected;
use crate::settings::{Backend, Choice, PeerSpec, Settings};

/// Installs the guard alone: configured peers are blocked until a sidecar runs.
///
/// # Errors
/// See [`StartError`].
pub fn install_guard(settings: &Settings) -> Result<(), StartError> {
    check_privileges()?;
    let _lock = NamespaceLock::acquire()?;
    let decisions = guard_decisions(settings)?;
    let ruleset = ruleset(settings, &served(&settings.peers, decisions))?;
    let noted = Protected::load(&settings.state_dir);
    note_both(settings, &noted, &settings.peers);
    Firewall::probe()?.install_guard(&ruleset)?;
    note_protected(settings, &settings.peers);
    Ok(())
}

/// Removes guard and rules: configured peers are unprotected from then on.
///
/// # Errors
/// See [`StartError`].
pub fn remove_guard() -> Result<(), StartError> {
    check_privileges()?;
    let _lock = NamespaceLock::acquire()?;
    Ok(Firewall::probe()?.remove()?)
}

/// For the guard alone it matters who lets segments in: the kernel by itself, for peers that are
/// its or have a session of its; the engine, which marks them, for all others. Whether the kernel
/// can is for the start to say.
fn guard_decisions(settings: &Settings) -> Result<Vec<Decision>, StartError> {
    let links = Arc::new(Links::read().map_err(|e| StartError::Io("network devices", e))?);
    let everyone = Arc::new(policy::resolve(&settings.peers, &links)?);
    let abilities = Abilities::probe().map_err(|e| StartError::Io("TCP socket", e))?;
    let active = active_sessions(&abilities, &everyone, &links);
    let decision = |peer: &PeerSpec| {
        let kernel = peer.datapath == Choice::Kernel || active.any_of(&peer.name);
        Decision {
            backend: if kernel {
                Backend::Kernel
            } else {
                Backend::Userspace
            },
            reason: "guard only".to_owned(),
        }
    };
    Ok(settings.peers.iter().map(decision).collect())
}
