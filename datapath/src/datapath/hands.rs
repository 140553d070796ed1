//! Peers change hands when a daemon is launched or goes, and follow the devices there are.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use ao_engine::policy::Policy;
use ao_sys::links::Links;
use ao_sys::sock_diag::TcpState;

use super::served::{Served, engine_policy, kernel_target};
use super::{Running, State, active_sessions, ruleset};
use crate::choice::{self, Circumstances, Decision};
use crate::firewall;
use crate::kernel::Kernel;
use crate::policy;
use crate::settings::PeerSpec;
use crate::sockets;

impl Running {
    /// Decides anew, as a daemon has been launched or has gone.
    pub(super) fn reconsider(&self) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let _turn = self.turn();
        let State { peers, links, .. } = self.state().clone();
        let specs: Vec<PeerSpec> = peers.iter().map(|peer| peer.spec.clone()).collect();
        let decided = self
            .circumstances(kernel, &specs, &links)
            .map(|of| choice::decide(&specs, &self.abilities, of));
        match decided {
            Ok(Ok(decisions)) => {
                if let Err(error) = self.set_backends(kernel, peers, &links, &decisions) {
                    tracing::error!(%error, "peers stay with their backends");
                }
            }
            // What was possible at the start and is not any more: keys have changed since.
            Ok(Err(error)) => tracing::error!(%error, "peers stay with their backends"),
            Err(error) => tracing::error!(%error, "peers stay with their backends"),
        }
    }

    /// How things are with each peer now.
    pub(super) fn circumstances(
        &self,
        kernel: &Kernel,
        specs: &[PeerSpec],
        links: &Arc<Links>,
    ) -> io::Result<impl Fn(&PeerSpec) -> Circumstances + use<>> {
        let everyone = policy::resolve(specs, links).map_err(io::Error::other)?;
        let everyone = Arc::new(everyone);
        let active = active_sessions(&self.abilities, &everyone, links);
        let others: HashSet<Arc<str>> = sockets::of_peers(&everyone, links)?
            .into_iter()
            // What is being closed holds nothing up.
            .filter(|found| found.socket.state == TcpState::Established)
            .filter(|found| !active.has(found.socket.local, found.socket.remote))
            .map(|found| found.peer)
            .collect();
        let launched = kernel.has_daemon();
        Ok(move |peer: &PeerSpec| Circumstances {
            launched,
            kernel_session: active.any_of(&peer.name),
            userspace_session: others.contains(&peer.name),
        })
    }

    /// Gives peers to other backends. Sessions of a peer that changes hands would not go on, and
    /// it is decided so that there are none.
    fn set_backends(
        &self,
        kernel: &Kernel,
        mut peers: Vec<Served>,
        links: &Arc<Links>,
        decisions: &[Decision],
    ) -> Result<(), firewall::Error> {
        let mut moved = Vec::new();
        for (served, decision) in peers.iter_mut().zip(decisions) {
            if served.decision.backend != decision.backend {
                moved.push((Arc::clone(&served.spec.name), decision.clone()));
            }
            served.decision.clone_from(decision);
        }
        if moved.is_empty() {
            self.state().peers = peers;
            return Ok(());
        }
        // Keys first, so that a peer that comes to the kernel finds its listener ready.
        let former = kernel.target();
        self.set_kernel_target(kernel, &peers, links);
        let installed =
            ruleset(&self.settings, &peers).and_then(|ruleset| self.firewall.replace(&ruleset));
        if let Err(error) = installed {
            kernel.restore_target(former);
            return Err(error);
        }
        for (peer, decision) in moved {
            let backend = decision.backend.as_str();
            tracing::info!(%peer, backend, "peer changes hands: {}", decision.reason);
        }
        self.follow(peers, links);
        Ok(())
    }

    fn set_kernel_target(&self, kernel: &Kernel, peers: &[Served], links: &Arc<Links>) {
        let target = kernel_target(&kernel.target(), peers, links);
        // Not strictly: what cannot be done is logged and tried again.
        let set = target.map(|target| kernel.set_target(target, false));
        if let Err(error) = set {
            tracing::error!(%error, "peers could not be matched to the devices");
        }
    }

    pub(super) fn set_links(&self, links: &Arc<Links>) {
        let _turn = self.turn();
        let peers = self.state().peers.clone();
        if let Some(kernel) = self.kernel.get() {
            self.set_kernel_target(kernel, &peers, links);
        }
        self.follow(peers, links);
    }

    /// Tells the engine of the peers and devices there are now.
    fn follow(&self, peers: Vec<Served>, links: &Arc<Links>) {
        match engine_policy(&peers, links) {
            Ok(policy) => self.adopt(State {
                peers,
                links: Arc::clone(links),
                policy: Arc::new(policy),
            }),
            Err(error) => {
                tracing::error!(%error, "peers could not be matched to the new devices");
                let mut state = self.state();
                state.peers = peers;
                state.links = Arc::clone(links);
            }
        }
    }

    /// Makes this the state of things, for the engine as well.
    pub(super) fn adopt(&self, state: State) {
        let (links, policy): (Arc<Links>, Arc<Policy>) =
            (Arc::clone(&state.links), Arc::clone(&state.policy));
        *self.state() = state;
        // Without the state's lock: workers may be slow to answer, and reports must not wait.
        if let Some(userspace) = self.userspace.get()
            && let Err(error) = userspace.adapt(&links, &policy)
        {
            tracing::error!(%error, "a change of peers or devices is not proven");
        }
    }
}
