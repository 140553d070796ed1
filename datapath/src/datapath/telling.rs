//! What the datapath tells of itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::served::peer_report;
use super::{Datapath, Running};
use crate::report::{Report, SessionState};

/// How long a worker may take to answer before it is taken for dead.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

impl Datapath {
    /// What there is to tell, gathered from the backends and the firewall.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.running.report();
        report.rules_trouble = self.rules_trouble();
        report
    }

    fn rules_trouble(&self) -> Option<String> {
        match self.watched() {
            Ok(()) => self.running.firewall.trouble(),
            Err(trouble) => Some(trouble),
        }
    }

    fn watched(&self) -> Result<(), String> {
        match &self.watcher {
            Some(watcher) if watcher.is_alive() => Ok(()),
            _ => Err("the watcher over the firewall rules does not do its rounds".to_owned()),
        }
    }

    /// Whether all that protection depends on is well: what is to be [alive](Self::liveness) is, and
    /// the watcher found rules and guard as they should be.
    ///
    /// # Errors
    /// What is not, for people.
    pub fn health(&self) -> Result<(), String> {
        self.liveness()?;
        match self.running.firewall.trouble() {
            Some(trouble) => Err(format!(
                "the firewall rules are not all in place: {trouble}"
            )),
            None => Ok(()),
        }
    }

    /// Whether all threads are alive: each worker answers within a second, and the watcher over the
    /// rules does its rounds. A new process would be alive again; rules that the system's tools do
    /// not put back would be no better for it, and its start would need the same tools.
    ///
    /// # Errors
    /// What is not, for people.
    pub fn liveness(&self) -> Result<(), String> {
        if let Some(userspace) = self.running.userspace.get() {
            userspace.check(ANSWER_WITHIN)?;
        }
        self.watched()?;
        match self.running.kernel.get() {
            Some(kernel) if !kernel.is_alive() => {
                Err("the thread that looks after the kernel's sockets has ended".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Running {
    /// In the time of peers plus sessions: both may be thousands.
    fn report(&self) -> Report {
        let peers = self.state().peers.clone();
        let mut report = Report {
            queue_rules: self.firewall.queue_rules().as_str(),
            guard: self.firewall.guard().as_str(),
            rules_restored: self.firewall.restored(),
            firewall_drops: self.firewall.recent_drops(),
            peers: peers.iter().map(peer_report).collect(),
            ..Report::default()
        };
        if let Some(userspace) = self.userspace.get() {
            userspace.report(&mut report);
        }
        let kernel_sessions = self.kernel.get().map(|kernel| {
            report.kernel = Some(kernel.report());
            let reported = kernel.sessions();
            report.partial |= reported.partial;
            reported.sessions
        });
        let mut by_name: HashMap<Arc<str>, _> = report
            .peers
            .iter_mut()
            .map(|peer| (Arc::clone(&peer.name), peer))
            .collect();
        for session in kernel_sessions.iter().flatten() {
            if let Some(peer) = by_name.get_mut(&session.peer) {
                peer.segments_good += session.segments_good;
                peer.segments_sent += session.segments_sent;
            }
        }
        report
            .sessions
            .extend(kernel_sessions.into_iter().flatten());
        for session in &report.sessions {
            if session.state == SessionState::Established
                && let Some(peer) = by_name.get_mut(&session.peer)
            {
                peer.sessions = peer.sessions.saturating_add(1);
            }
        }
        report
    }
}
