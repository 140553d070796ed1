//! `aoctl doctor` names the true cause: faults injected one by one, at the far end and at this one.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod far_end;
mod this_end;

use ao_tests::daemon::{self, Daemon, Implementation, Speaker};
use ao_tests::doctor::{Diagnosis, PEER, diagnose};
use ao_tests::sidecar::{Config, Key, Sidecar};
use ao_tests::topology::{Family, Lan};

/// A BGP daemon at host a, protected by the sidecar under examination. What host b has is each
/// test's.
struct Patient {
    sidecar: Sidecar,
    daemon: Box<dyn Daemon>,
    lan: Lan,
}

impl Patient {
    /// BIRD, which tries every 2 s and takes calls, behind a sidecar with the default key.
    fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// The same, after a change to the sidecar's configuration.
    fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let lan = Lan::new();
        let mut config = Config::new(&lan.b, Family::V4, Key::default());
        change(&mut config);
        let sidecar = Sidecar::start(&lan.a.namespace, &config);
        let (speaker, _) = Speaker::pair(&lan.a, &lan.b, Family::V4);
        let daemon = daemon::start(Implementation::Bird, &lan.a.namespace, &speaker);
        Self {
            sidecar,
            daemon,
            lan,
        }
    }

    /// A daemon at host b, which tries as well; `change` makes it another than host a expects.
    fn far_daemon(
        &self,
        implementation: Implementation,
        change: impl FnOnce(&mut Speaker),
    ) -> Box<dyn Daemon> {
        let (_, mut speaker) = Speaker::pair(&self.lan.a, &self.lan.b, Family::V4);
        speaker.passive = false;
        change(&mut speaker);
        daemon::start(implementation, &self.lan.b.namespace, &speaker)
    }

    /// A sidecar at host b whose key is the right one but for `change`.
    fn far_sidecar(&self, change: impl FnOnce(&mut Key)) -> Sidecar {
        let mut key = Key::default().mirrored();
        change(&mut key);
        let config = Config::new(&self.lan.a, Family::V4, key);
        Sidecar::start(&self.lan.b.namespace, &config)
    }

    /// What the doctor says of the peer.
    fn diagnosis(&self) -> Diagnosis {
        diagnose(&self.sidecar, &[PEER])
    }
}
