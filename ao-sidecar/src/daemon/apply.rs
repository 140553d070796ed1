//! Another configuration takes over: all of it or nothing, and one at a time.
//!
//! SIGHUP, the API's reload and changes by API all come this way. What can fail comes first and
//! changes nothing; a failure after that is taken back.

use std::sync::Arc;
use std::time::SystemTime;

use datapath::{Datapath, Reconfigured, ReloadError};
use grpc_api::TlsError;
use grpc_api::operator::administration::{ChangeKind, Changed, ConfigChange};
use grpc_api::operator::{ControlError, administration};
use tracing::{error, info, warn};

use super::roles::{self, RolesError};
use super::sidecar::{Running, Sidecar};
use crate::changes::{ChangesError, Staged};
use crate::config::{self, Config, ConfigError};
use crate::keys::{KeysError, WallClock, Wanted};
use crate::logging;

/// Why the running configuration stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The file is wrong, or does not go together with what was made by API.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A change by API cannot be made.
    #[error(transparent)]
    Change(#[from] ControlError),
    /// Something differs that is read at the start only.
    #[error("restart ao-sidecar to change {}", .0.join(", "))]
    NeedsRestart(Vec<String>),
    /// A group is not known.
    #[error(transparent)]
    Roles(#[from] RolesError),
    /// A file of the API over TCP cannot be used.
    #[error("[api.tcp]: {0}")]
    Tls(#[from] TlsError),
    /// Keys cannot be managed that way.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A change by API cannot be kept on disk.
    #[error("the change cannot be kept on disk: {0}")]
    Keep(#[from] ChangesError),
    /// Peers cannot be as they are written.
    #[error(transparent)]
    Datapath(#[from] ReloadError),
    /// It failed half-way, and what is on disk could not be taken back.
    #[error(
        "{refused}; and what was made by API stays changed on disk, as it could not be taken back \
         ({undo}): it takes effect with the next reload or restart"
    )]
    NotTakenBack {
        /// Why it failed.
        refused: Box<ReloadError>,
        /// Why it was not taken back.
        undo: Box<ChangesError>,
    },
    /// There is nothing left to change.
    #[error("the sidecar is stopping")]
    Stopping,
}

/// Why another configuration takes over.
enum Cause {
    /// The file is read again; with it the time is taken over, and what the API over TCP shows.
    Reload,
    /// A change by API.
    Change(Staged),
    /// A peer that the start has left out can be served.
    TakenIn,
}

impl From<ApplyError> for ControlError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Change(error) => error,
            ApplyError::Stopping => Self::Stopping,
            other => Self::Refused(other.to_string()),
        }
    }
}

impl Sidecar {
    /// Reads the configuration file again and takes it over. Blocks; for who has the turn.
    pub(super) fn reload(&self, replace_sessions: bool) -> Result<Changed, ApplyError> {
        self.apply(self.load()?, Cause::Reload, replace_sessions)
    }

    /// Takes in the peers that the start has left out and that have no unprotected session any more.
    /// Blocks; for who has the turn.
    pub(super) fn take_in_left_out(&self) -> Result<(), ApplyError> {
        let running = self.running();
        let left_out = running.config.left_out.iter();
        let specs: Vec<_> = left_out.map(|peer| peer.spec.clone()).collect();
        let busy = self.datapath.with(|datapath| datapath.unprotected(&specs));
        let busy = busy.ok_or(ApplyError::Stopping)??;
        for spec in specs.iter().filter(|spec| !busy.contains(&spec.name)) {
            self.take_in(&spec.name)?;
        }
        Ok(())
    }

    /// Takes in one peer that is left out, alone: another one may still have to wait.
    fn take_in(&self, name: &Arc<str>) -> Result<(), ApplyError> {
        let running = self.running();
        let mut fresh = running.config.with(&self.changes.overlay())?;
        fresh.leave_out(|peer| peer != name && running.has_left_out(peer));
        let specs: Vec<_> = fresh.peers.iter().map(|peer| peer.spec.clone()).collect();
        let names = specs.iter().map(|spec| Arc::clone(&spec.name)).collect();
        let checked = self
            .datapath
            .with(|datapath| datapath.check(&specs, &names, false));
        match checked.ok_or(ApplyError::Stopping)? {
            // Whose session it is depends on who else is there.
            Err(ReloadError::UnprotectedSessions(_)) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => self.apply(fresh, Cause::TakenIn, false).map(drop),
        }
    }

    /// Makes a change by API. Blocks; for who has the turn.
    pub(super) fn change(&self, change: administration::Change) -> Result<Changed, ApplyError> {
        use administration::Change;
        let replace_sessions = matches!(
            change,
            Change::PutPeer {
                replace_sessions: true,
                ..
            }
        );
        let about = match &change {
            Change::PutPeer { peer, .. } => Some(peer.name.clone()),
            _ => None,
        };
        let running = self.running();
        let staged = self.changes.stage(change, &running.config)?;
        let mut fresh = running.config.with(staged.overlay())?;
        // Who is left out has to do only with a change of its own.
        fresh.leave_out(|peer| running.has_left_out(peer) && about.as_deref() != Some(&**peer));
        self.apply(fresh, Cause::Change(staged), replace_sessions)
    }

    fn apply(
        &self,
        fresh: Config,
        cause: Cause,
        replace_sessions: bool,
    ) -> Result<Changed, ApplyError> {
        let running = self.running();
        // Who changes one thing by API has not said that the time of all chains is right.
        let (now, wall_clock) = match cause {
            Cause::Reload => (SystemTime::now(), WallClock::Believed),
            Cause::Change(_) | Cause::TakenIn => (self.control().chains_now(), WallClock::AsBefore),
        };
        let changes = config::diff(&running.config, &fresh, now);
        let restart = changes.iter().filter(|change| change.needs_restart);
        let restart: Vec<String> = restart.map(|change| change.subject.clone()).collect();
        if !restart.is_empty() {
            return Err(ApplyError::NeedsRestart(restart));
        }
        let roles = match cause {
            Cause::Reload | Cause::Change(_) => Some(roles::of(&fresh.api)?),
            Cause::TakenIn => None,
        };
        let tls = match cause {
            Cause::Reload => self.fresh_api_tls(&fresh.api)?,
            Cause::Change(_) | Cause::TakenIn => None,
        };
        let prepared = self.keys.prepare(&fresh)?;
        let staged = match cause {
            Cause::Change(staged) => Some(staged),
            Cause::Reload | Cause::TakenIn => None,
        };
        let take_over = |wanted: &Wanted| {
            let reconfigured = self
                .datapath
                .with(|datapath| self.reconfigure(datapath, wanted, staged, replace_sessions));
            reconfigured.unwrap_or(Err(ApplyError::Stopping))
        };
        let done = self
            .keys
            .take_over(prepared, &fresh.peers, wall_clock, take_over)?;
        if let Some(roles) = roles {
            self.roles.replace(roles);
        }
        if let Some((tls, fresh)) = tls {
            tls.replace(fresh);
        }
        logging::set_level(fresh.log.level);
        let changed = Changed {
            changes,
            warnings: fresh.warnings.iter().map(ToString::to_string).collect(),
        };
        self.set_running(Running::new(fresh, &self.changes.overlay()));
        // What was made by API is in whole.
        self.watched().note_left_out(Vec::new());
        log(&changed, done);
        Ok(changed)
    }

    /// Puts a change by API on disk, and gives all peers to the datapath.
    fn reconfigure(
        &self,
        datapath: &Datapath,
        wanted: &Wanted,
        staged: Option<Staged>,
        replace_sessions: bool,
    ) -> Result<Reconfigured, ApplyError> {
        let Wanted {
            specs,
            keep_keys_of,
        } = wanted;
        datapath.check(specs, keep_keys_of, replace_sessions)?;
        let undo = staged.as_ref().map(Staged::undo);
        if let Some(staged) = staged {
            self.changes.keep(staged)?;
        }
        let refused = match datapath.reconfigure(specs, keep_keys_of, replace_sessions) {
            Ok(done) => return Ok(done),
            Err(refused) => refused,
        };
        match undo.map_or(Ok(()), |undo| self.changes.keep(undo)) {
            Ok(()) => Err(refused.into()),
            Err(undo) => {
                let (refused, undo) = (Box::new(refused), Box::new(undo));
                let failure = ApplyError::NotTakenBack { refused, undo };
                error!("{failure}");
                Err(failure)
            }
        }
    }
}

/// One line for each change, and what it did to sessions.
fn log(changed: &Changed, done: Reconfigured) {
    for ConfigChange {
        subject,
        kind,
        details,
        ..
    } in &changed.changes
    {
        let details = details.join(", ");
        match kind {
            ChangeKind::Added => info!("configuration: {subject} added"),
            ChangeKind::Removed => info!("configuration: {subject} removed"),
            ChangeKind::Changed => info!("configuration: {subject} changed: {details}"),
        }
    }
    for warning in &changed.warnings {
        warn!("configuration:{warning}");
    }
    let Reconfigured {
        added,
        removed,
        changed,
        rekeyed,
        closed,
    } = done;
    info!(
        added,
        removed, changed, rekeyed, closed, "configuration taken over"
    );
}
