//! What runs: configuration, datapath and keys, and what is told about them.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use datapath::report::Report;
use datapath::settings::{Backend, OnExit, PeerSpec, Settings};
use datapath::{Datapath, StartError, StopError};
use grpc_api::operator::EventLog;
use grpc_api::{Alarm, FreshTls, PeerFacts, Roles, ServerTls, Snapshot, Source, TlsError};
use tracing::{error, info, warn};

use super::alarms::Watched;
use super::{DaemonError, Options, roles, tls_files};
use crate::VERSION;
use crate::audit::AuditLog;
use crate::changes::{Changes, Fitting, LeftOut};
use crate::config::{ApiConfig, Config, ConfigError, Overlay, Peer};
use crate::keys::{Control, Keys, SharedDatapath, WallClock, note_unused_store};

/// What runs.
pub(super) struct Sidecar {
    pub(super) started: Instant,
    options: Options,
    running: RwLock<Arc<Running>>,
    pub(super) datapath: Arc<SharedDatapath>,
    pub(super) keys: Keys,
    pub(super) changes: Changes,
    pub(super) audit: AuditLog,
    pub(super) roles: Roles,
    /// Held by whoever takes over a configuration, until that is done.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    watched: Mutex<Watched>,
    /// Set once the API is served over TCP.
    api_tls: OnceLock<ServerTls>,
}

/// A configuration that runs, and what is told about it again and again.
pub(super) struct Running {
    pub(super) config: Arc<Config>,
    facts: Arc<[PeerFacts]>,
    file: String,
    pub(super) loaded_at: SystemTime,
    /// What was made by API, such as `peer as64502`.
    pub(super) api_made: Vec<String>,
}

impl Running {
    pub(super) fn new(config: Config, made: &Overlay) -> Self {
        Self {
            facts: config.peers.iter().map(facts).collect(),
            file: config.file().display().to_string(),
            config: Arc::new(config),
            loaded_at: SystemTime::now(),
            api_made: made.names(),
        }
    }

    /// Whether this peer is left out.
    pub(super) fn has_left_out(&self, name: &Arc<str>) -> bool {
        let mut left_out = self.config.left_out.iter();
        left_out.any(|peer| peer.spec.name == *name)
    }
}

impl Sidecar {
    /// Starts datapath and keys. Blocks; when it returns, rules and guard are active.
    pub(super) fn start(
        options: Options,
        fitting: Fitting,
        changes: Changes,
        events: &EventLog,
    ) -> Result<Self, DaemonError> {
        let Fitting {
            mut config,
            made,
            left_out,
            mut blocked,
        } = fitting;
        let roles = Roles::new(roles::known(&config.api).0);
        note_unused_store(&config);
        let datapath = Arc::new(SharedDatapath::default());
        let keys = Keys::new(&datapath, events)?;
        let mut alarms: Vec<Alarm> = left_out.into_iter().map(alarm).collect();
        while let Err(refused) = start_datapath(
            &datapath,
            &keys,
            &config,
            &blocked,
            options.replace_sessions,
        ) {
            // Whoever was protected does not wait for those that were not.
            warn!("{refused}");
            alarms.extend(leave_out_newcomers(&mut config, &mut blocked, refused)?);
        }
        for Peer { spec, .. } in &config.left_out {
            error!(peer = %spec.name, "{LEFT_OUT}");
        }
        let mut watched = Watched::default();
        watched.note_left_out(alarms);
        Ok(Self {
            started: Instant::now(),
            audit: AuditLog::new(&config.state_dir),
            running: RwLock::new(Arc::new(Running::new(config, &made))),
            options,
            datapath,
            keys,
            changes,
            roles,
            turn: Arc::default(),
            watched: Mutex::new(watched),
            api_tls: OnceLock::new(),
        })
    }

    /// The configuration in use.
    pub(super) fn running(&self) -> Arc<Running> {
        Arc::clone(&self.running.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this one is in use.
    pub(super) fn set_running(&self, running: Running) {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(running);
    }

    /// The API is served over TCP from now on, with this.
    pub(super) fn note_api_tls(&self, tls: ServerTls) {
        // There is but one.
        let _ = self.api_tls.set(tls);
    }

    /// What the API over TCP is served with, and what its files hold now; nothing while it is not
    /// served, as the files are read once more before it is.
    pub(super) fn fresh_api_tls(
        &self,
        config: &ApiConfig,
    ) -> Result<Option<(&ServerTls, FreshTls)>, TlsError> {
        let (Some(tls), Some(tcp)) = (self.api_tls.get(), &config.tcp) else {
            return Ok(None);
        };
        Ok(Some((tls, FreshTls::read(&tls_files(tcp))?)))
    }

    /// The configuration file as it is now, together with what was made by API.
    pub(super) fn load(&self) -> Result<Config, ConfigError> {
        let loaded = Config::load(&self.options.config, &self.changes.overlay())?;
        Ok(self.as_started(loaded))
    }

    /// What the command line replaces stays replaced.
    pub(super) fn as_started(&self, mut config: Config) -> Config {
        if let Some(folder) = &self.options.state_dir {
            config.state_dir.clone_from(folder);
        }
        if let Some(socket) = &self.options.api_socket {
            config.api_socket.clone_from(socket);
        }
        config
    }

    /// The file that the configuration is read from.
    pub(super) fn file(&self) -> &Path {
        &self.options.config
    }

    pub(super) fn control(&self) -> Arc<Control> {
        self.keys.control()
    }

    pub(super) fn log_start(&self, socket: impl Display) {
        let Some(report) = self.datapath.with(Datapath::report) else {
            return;
        };
        info!(
            datapath = backends(&report),
            peers = report.peers.len(),
            queue_rules = report.queue_rules,
            guard = report.guard,
            strip = report.strips,
            api = %socket,
            "protecting"
        );
    }

    /// What is wrong, if anything is; nothing while it stops.
    pub(super) fn health(&self) -> Result<(), String> {
        self.datapath.with(Datapath::health).unwrap_or(Ok(()))
    }

    /// Whether a restart would cure nothing; what it would, if not. Blocks for up to a second.
    pub(super) fn liveness(&self) -> Result<(), String> {
        self.datapath.with(Datapath::liveness).unwrap_or(Ok(()))
    }

    /// Stops in order. Blocks.
    pub(super) fn stop(&self) -> Result<(), StopError> {
        self.keys.stop();
        self.datapath.take().map_or(Ok(()), Datapath::stop)
    }

    /// What happens to rules and guard when it stops.
    pub(super) fn on_exit(&self) -> OnExit {
        self.running().config.on_exit
    }

    /// What came of an attempt that is made until it succeeds. While it fails there is an alarm.
    pub(super) fn settled<T, E: Display>(
        &self,
        what: &'static str,
        attempt: Result<T, E>,
    ) -> Option<T> {
        let (done, why) = match attempt {
            Ok(done) => (Some(done), None),
            Err(error) => (None, Some(format!("{what}: {error}"))),
        };
        if self.watched().note_missing(what, why.as_deref()) {
            match why {
                Some(why) => error!("{why}; whoever is protected stays so, and it is tried again"),
                None => info!("{what}: the trouble is over"),
            }
        }
        done
    }

    pub(super) fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Sidecar {
    fn snapshot(&self) -> Option<Snapshot> {
        let report = self.datapath.with(Datapath::report)?;
        let running = self.running();
        let mut alarms = self.watched().alarms(&report, Instant::now());
        alarms.extend(self.keys.alarms());
        alarms.extend(running.config.left_out.iter().map(|peer| Alarm {
            peer: Some(Arc::clone(&peer.spec.name)),
            text: LEFT_OUT.to_owned(),
        }));
        Some(Snapshot {
            version: VERSION,
            uptime: self.started.elapsed(),
            datapath: backends(&report),
            peers: Arc::clone(&running.facts),
            report,
            alarms,
            config_file: running.file.clone(),
            config_loaded_at: running.loaded_at,
            api_made: u32::try_from(running.api_made.len()).unwrap_or(u32::MAX),
        })
    }
}

/// Starts the datapath with the peers of `config`, and those that stay blocked.
fn start_datapath(
    datapath: &SharedDatapath,
    keys: &Keys,
    config: &Config,
    blocked: &[PeerSpec],
    replace_sessions: bool,
) -> Result<(), DaemonError> {
    // Before the datapath: automatic peers have the keys of the store from its first moment.
    let prepared = keys.prepare(config)?;
    keys.take_over(prepared, &config.peers, WallClock::Believed, |wanted| {
        let settings = Settings {
            peers: [&wanted.specs, blocked].concat(),
            ..config.settings(replace_sessions)
        };
        datapath.put(Datapath::start(settings)?);
        Ok(())
    })
}

/// What is said of a peer that a start has left out.
const LEFT_OUT: &str = "not protected: it is left out, as a session with it was alive and unprotected \
                        when the sidecar started. It is taken in when it has none, which is looked \
                        at every 3 s; aoctl config reload --replace-sessions closes it at once";

/// Leaves out the peers that the start was `refused` for and nobody would miss: they have come to
/// the configuration while the sidecar was down, or were refused there, and a session of theirs is
/// alive and unprotected. Tells of those that were to be blocked, for another reason.
fn leave_out_newcomers(
    config: &mut Config,
    blocked: &mut Vec<PeerSpec>,
    refused: DaemonError,
) -> Result<Vec<Alarm>, DaemonError> {
    let DaemonError::Start(StartError::UnprotectedSessions { newcomers, .. }) = &refused else {
        return Err(refused);
    };
    let is_new = |name: &Arc<str>| newcomers.contains(name);
    let (before, left_out) = (config.peers.len(), config.left_out.len());
    config.leave_out(is_new);
    let unblocked: Vec<_> = blocked.extract_if(.., |spec| is_new(&spec.name)).collect();
    // Somebody has to be served, and the next start has to be another one.
    if config.peers.is_empty() || (config.peers.len() == before && unblocked.is_empty()) {
        config.peers.extend(config.left_out.drain(left_out..));
        return Err(refused);
    }
    let alarm = |spec: PeerSpec| Alarm {
        peer: Some(spec.name),
        text: "not protected, and not blocked either, as a session with it was alive and \
               unprotected when the sidecar started"
            .to_owned(),
    };
    Ok(unblocked.into_iter().map(alarm).collect())
}

/// What the API tells of a peer beside the datapath's report.
fn facts(peer: &Peer) -> PeerFacts {
    PeerFacts {
        name: peer.spec.name.clone(),
        // Empty when keys are agreed.
        key_chain: peer
            .keys
            .chain()
            .map_or_else(String::new, |chain| chain.name().to_owned()),
        ports: (*peer.spec.ports.start(), *peer.spec.ports.end()),
        origin: peer.origin,
    }
}

fn alarm(left_out: LeftOut) -> Alarm {
    let LeftOut { what, why } = left_out;
    Alarm {
        peer: None,
        text: format!(
            "{what} is left out, and if it is a peer blocked, unless an alarm says otherwise: {why}"
        ),
    }
}

/// The backends that serve a peer.
fn backends(report: &Report) -> &'static str {
    let serves = |backend| report.peers.iter().any(|peer| peer.backend == backend);
    match (serves(Backend::Kernel), serves(Backend::Userspace)) {
        (true, true) => "kernel and userspace",
        (true, false) => "kernel",
        (false, _) => "userspace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = "[[key_chain]]\nname = \"c\"\n[[key_chain.key]]\nsend_id = 1\nrecv_id = 1\n\
                         algorithm = \"hmac-sha-1-96\"\nsecret = \"of the tests\"\n";

    fn config(peers: &[&str]) -> Config {
        let peer = |(name, last): (&&str, u8)| {
            format!(
                "[[peer]]\nname = \"{name}\"\naddress = \"192.0.2.{last}\"\nkey_chain = \"c\"\n"
            )
        };
        let peers: String = peers.iter().zip(1..).map(peer).collect();
        let text = CHAIN.to_owned() + &peers;
        Config::load_text(&text, Path::new("/etc/ao.toml"), &Overlay::default()).unwrap()
    }

    fn names<'p>(specs: impl Iterator<Item = &'p PeerSpec>) -> Vec<&'p str> {
        specs.map(|spec| &*spec.name).collect()
    }

    #[test]
    fn newcomers_are_left_out_as_long_as_that_makes_a_difference() {
        let mut config = config(&["one", "two", "three"]);
        let mut blocked = vec![PeerSpec {
            name: "four".into(),
            ..config.peers[0].spec.clone()
        }];
        let mut leave_out = |newcomers: &[&str]| {
            let refused = StartError::UnprotectedSessions {
                sessions: Vec::new(),
                newcomers: newcomers.iter().map(|&name| name.into()).collect(),
            };
            let done = leave_out_newcomers(&mut config, &mut blocked, refused.into()).is_ok();
            let peers = config.peers.iter().map(|peer| &peer.spec);
            let left_out = config.left_out.iter().map(|peer| &peer.spec);
            let [peers, left_out, blocked] =
                [names(peers), names(left_out), names(blocked.iter())].map(|names| names.join(" "));
            (done, peers, left_out, blocked)
        };
        let told = |done, peers: &str, left_out: &str, blocked: &str| {
            (
                done,
                peers.to_owned(),
                left_out.to_owned(),
                blocked.to_owned(),
            )
        };
        assert_eq!(leave_out(&[]), told(false, "one two three", "", "four"));
        assert_eq!(leave_out(&["two"]), told(true, "one three", "two", "four"));
        assert_eq!(leave_out(&["two"]), told(false, "one three", "two", "four"));
        assert_eq!(leave_out(&["four"]), told(true, "one three", "two", ""));
        // Somebody has to be served.
        assert_eq!(
            leave_out(&["one", "three"]),
            told(false, "one three", "two", "")
        );
    }
}
