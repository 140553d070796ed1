//! The configuration, as the API sees and changes it.

mod describe;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grpc_api::operator::ControlError;
use grpc_api::operator::administration::{
    Administration, Audit, Caller, Change, Changed, ConfigProblem, ConfigReport, Finding,
    KeyChainReport, Validation,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use self::describe::{chain_report, change_text, outcome};
use super::apply::ApplyError;
use super::sidecar::Sidecar;
use crate::config::{self, ConfigError, Problem};
use crate::doctor;

/// Configurations that are checked at a time, beside those that are taken over: each may take a
/// second of a processor. Others wait.
const CHECKS: usize = 2;

/// Answers those who administer.
pub(super) struct Administrator {
    sidecar: Arc<Sidecar>,
    checks: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Administrator {
    /// `stop`: whether the daemon stops.
    pub(super) fn new(sidecar: Arc<Sidecar>, stop: watch::Receiver<bool>) -> Self {
        Self {
            sidecar,
            checks: Arc::new(Semaphore::new(CHECKS)),
            stop,
        }
    }

    /// Does what blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sidecar) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        let sidecar = Arc::clone(&self.sidecar);
        let done = spawn_blocking(move || work(&sidecar)).await;
        done.map_err(|broken| ControlError::Refused(format!("internal error: {broken}")))
    }

    /// Checks a configuration, once those before it are done. It has its place until it is done,
    /// whoever waits for it.
    async fn checking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sidecar) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        let place = Arc::clone(&self.checks).acquire_owned().await;
        let place = place.map_err(|_| ControlError::Stopping)?;
        self.blocking(move |sidecar| {
            let _place = place;
            work(sidecar)
        })
        .await
    }
}

impl Sidecar {
    /// Takes over another configuration, once those before have done so. The audit log has it
    /// before anything is touched. Once begun, it goes on to its end, whoever waits for it.
    pub(super) async fn audited(
        self: &Arc<Self>,
        who: Arc<str>,
        role: &'static str,
        what: String,
        work: impl FnOnce(&Self) -> Result<Changed, ApplyError> + Send + 'static,
    ) -> Result<Changed, ControlError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let sidecar = Arc::clone(self);
        let done = spawn_blocking(move || {
            let _turn = turn;
            let entry = sidecar.begin_audit(&who, role, &what)?;
            let changed = work(&sidecar);
            match &changed {
                Ok(changed) => entry.done(Ok(&outcome(changed))),
                Err(error) => entry.done(Err(&error.to_string())),
            }
            changed.map_err(ControlError::from)
        });
        let broken = |broken| ControlError::Refused(format!("internal error: {broken}"));
        done.await.map_err(broken)?
    }

    fn begin_audit(
        &self,
        who: &str,
        role: &'static str,
        what: &str,
    ) -> Result<crate::audit::Entry, ControlError> {
        let begun = self.audit.begin(who, role, what);
        let failure = begun.as_ref().err().map(ToString::to_string);
        self.watched().note_audit(failure);
        begun.map_err(|error| ControlError::Refused(error.to_string()))
    }
}

impl Administration for Administrator {
    async fn key_chains(&self) -> Result<Vec<KeyChainReport>, ControlError> {
        self.blocking(|sidecar| {
            let running = sidecar.running();
            let now = sidecar.control().chains_now();
            let chains = running.config.chains.iter();
            chains
                .map(|chain| chain_report(chain, &running.config.peers, now))
                .collect()
        })
        .await
    }

    async fn config(&self) -> Result<ConfigReport, ControlError> {
        let running = self.sidecar.running();
        Ok(ConfigReport {
            toml: running.config.to_toml(),
            file: self.sidecar.file().display().to_string(),
            loaded_at: running.loaded_at,
            api_made: running.api_made.clone(),
        })
    }

    async fn validate(&self, toml: Option<Zeroizing<String>>) -> Result<Validation, ControlError> {
        self.checking(move |sidecar| {
            let checked = match &toml {
                Some(text) => {
                    let made = sidecar.changes.overlay();
                    sidecar.running().config.check_text(text, &made)
                }
                None => sidecar.load().map(|config| config.warnings),
            };
            validation(checked)
        })
        .await
    }

    async fn diff(&self) -> Result<Changed, ControlError> {
        self.checking(|sidecar| {
            let fresh = sidecar.load().map_err(ApplyError::from)?;
            let now = SystemTime::now();
            Ok(Changed {
                changes: config::diff(&sidecar.running().config, &fresh, now),
                warnings: fresh.warnings.iter().map(ToString::to_string).collect(),
            })
        })
        .await?
    }

    async fn reload(
        &self,
        caller: &Caller,
        replace_sessions: bool,
    ) -> Result<Changed, ControlError> {
        let what = match replace_sessions {
            false => "reload the configuration".to_owned(),
            true => "reload the configuration, closing unprotected sessions".to_owned(),
        };
        let (who, role) = (Arc::clone(&caller.who), caller.role.as_str());
        let reload = move |sidecar: &Sidecar| sidecar.reload(replace_sessions);
        self.sidecar.audited(who, role, what, reload).await
    }

    async fn change(&self, caller: &Caller, change: Change) -> Result<Changed, ControlError> {
        let what = change_text(&change);
        let (who, role) = (Arc::clone(&caller.who), caller.role.as_str());
        let work = move |sidecar: &Sidecar| sidecar.change(change);
        self.sidecar.audited(who, role, what, work).await
    }

    async fn audit(&self, caller: &Caller, what: String) -> Result<Audit, ControlError> {
        let (who, role) = (Arc::clone(&caller.who), caller.role.as_str());
        let begun = self.blocking(move |sidecar| sidecar.begin_audit(&who, role, &what));
        let entry = begun.await??;
        Ok(Audit::new(move |outcome| entry.done(outcome)))
    }

    async fn diagnose(
        &self,
        peer: Option<&str>,
        listen: Duration,
    ) -> Result<Vec<Finding>, ControlError> {
        let parts = doctor::Parts {
            config: Arc::clone(&self.sidecar.running().config),
            datapath: Arc::clone(&self.sidecar.datapath),
            control: self.sidecar.control(),
            config_file: self.sidecar.file().to_owned(),
            started: self.sidecar.started,
            stop: self.stop.clone(),
        };
        doctor::diagnose(parts, peer, listen).await
    }
}

fn validation(checked: Result<Vec<Problem>, ConfigError>) -> Validation {
    let told = |problem: &Problem| ConfigProblem {
        place: problem.place,
        text: problem.text.clone(),
    };
    match checked {
        Ok(warnings) => Validation {
            problems: Vec::new(),
            warnings: warnings.iter().map(told).collect(),
        },
        Err(error) => Validation {
            problems: error.problems().iter().map(told).collect(),
            warnings: Vec::new(),
        },
    }
}
