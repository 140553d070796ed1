//! Another configuration: peers come, go and change between two jobs of the backend.

use std::collections::BTreeSet;
use std::sync::Arc;

use keymgr::backend::Backend;
use keymgr::rollover::Now;
use tokio::sync::oneshot;

use super::handle::Input;
use super::{Caller, Course, Manager, Named, Peer, Plan, Planned, Reply, Subject};

/// Somebody has the backend alone, or is waiting for it.
pub(super) struct Hold {
    pub(super) number: u64,
    /// Told once the backend is free.
    pub(super) ready: Option<Reply<()>>,
}

impl<B: Backend, C: Caller> Manager<B, C> {
    pub(super) fn is_present(&self, peer: &Named) -> bool {
        let known = self.peers.get(&peer.name);
        known.is_some_and(|known| known.incarnation == peer.incarnation)
    }

    /// Begins no job any more, and tells when none is under way.
    pub(super) fn hold(&mut self, ready: Reply<()>, plan: oneshot::Receiver<(Plan, Reply<()>)>) {
        self.holds += 1;
        let number = self.holds;
        self.hold = Some(Hold {
            number,
            ready: Some(ready),
        });
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let plan = plan.await.ok();
            if let Some(outbox) = outbox.upgrade() {
                let _ = outbox.send(Input::Release { number, plan }).await;
            }
        });
    }

    /// Follows a configuration, which the backend has taken over already.
    pub(super) fn reconfigure(&mut self, now: Now, plan: Plan) {
        let mut former = std::mem::take(&mut self.peers);
        let mut begun = BTreeSet::new();
        for Planned {
            name,
            incarnation,
            course,
        } in plan.peers
        {
            let peer = match (course, former.remove(&name)) {
                (Course::Begun(core), _) => {
                    begun.insert(Arc::clone(&name));
                    Peer::new(*core, incarnation)
                }
                (Course::Reconfigured(parameters), Some(mut peer)) => {
                    peer.core.reconfigure(parameters, now);
                    peer
                }
                (Course::Same, Some(peer)) => peer,
                (_, None) => continue,
            };
            self.peers.insert(name, peer);
        }
        self.gone.extend(former.into_keys());
        self.gone.extend(plan.gone);
        self.gone.retain(|name| !self.peers.contains_key(name));
        let goes_on = |name: &Arc<str>| self.peers.contains_key(name) && !begun.contains(name);
        self.next_job.retain(goes_on);
        self.alarms.retain(|subject| match subject {
            Subject::Rollover(name) => goes_on(name),
            _ => true,
        });
        self.look_every = plan.look_every;
        self.next_look = now.steady;
    }
}
