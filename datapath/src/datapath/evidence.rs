//! Evidence about peers of the running datapath.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ao_engine::policy::Mkt;
use ao_sys::route;

use super::Datapath;
use super::served::Served;
use crate::evidence::{self, Evidence, LocalFacts, Question};
use crate::policy;
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
        let (served, links) = {
            let state = self.running.state();
            (state.peers.clone(), Arc::clone(&state.links))
        };
        // Of both backends: the kernel's peers are examined with their keys, too.
        let policy = policy::resolve_keyed(served.iter().map(Served::keyed), &links)
            .map_err(io::Error::other)?;
        let mut addresses = route::addresses()?;
        addresses.extend(served.iter().filter_map(|peer| peer.spec.local));
        let question = Question {
            policy: Arc::new(policy),
            links,
            asked: peers,
            extra,
            addresses,
        };
        evidence::listen(question, at_most, stop_when_all, go_on)
    }

    /// What the kernel of this host knows of these peers, read now, in the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// When devices or sockets cannot be listed.
    pub fn local(&self, peers: &[Arc<str>]) -> io::Result<LocalFacts> {
        let served = self.running.state().peers.clone();
        let all: Vec<PeerSpec> = served.into_iter().map(|peer| peer.spec).collect();
        evidence::local(&all, peers)
    }
}
