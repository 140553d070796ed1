//! The sidecar under test.

mod config;

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use config::peers_text;
pub use config::{ALGORITHMS, Config, Expiry, Key, Lifetime, PeerConfig, Rollover, Terms};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::Launcher;
use crate::netns::Namespace;
use crate::process::{Process, built_folder, output};
use crate::scratch::Scratch;
use crate::settings::SIDECAR_START;
use crate::topology::{Family, Host};
use crate::wait;

/// A sidecar with its configuration and state; running or not.
#[derive(Debug)]
pub struct Sidecar {
    namespace: String,
    datapath: &'static str,
    process: Option<Process>,
    scratch: Scratch,
}

impl Sidecar {
    /// Writes the configuration, starts nothing.
    #[must_use]
    pub fn prepare(namespace: &Namespace, config: &Config) -> Self {
        let sidecar = Self::bare(namespace, config.datapath);
        sidecar.reconfigure(config);
        sidecar
    }

    /// A sidecar without a configuration: it has a state folder of its own, nothing else.
    #[must_use]
    pub fn bare(namespace: &Namespace, datapath: &'static str) -> Self {
        Self {
            namespace: namespace.name().to_owned(),
            datapath,
            process: None,
            scratch: Scratch::new(),
        }
    }

    /// The same with several peers: each has a chain of its own, and the peers' names are
    /// `peer-0`, `peer-1` and so on.
    #[must_use]
    pub fn prepare_with_peers(
        namespace: &Namespace,
        datapath: &'static str,
        peers: &[PeerConfig],
    ) -> Self {
        let sidecar = Self::bare(namespace, datapath);
        sidecar.configure(peers);
        sidecar
    }

    /// Starts a sidecar that protects several peers on the wire. Waits until it is ready.
    #[must_use]
    pub fn start_with_peers(namespace: &Namespace, peers: &[PeerConfig]) -> Self {
        Self::start_with_datapath(namespace, "userspace", peers)
    }

    /// Starts a sidecar that protects several peers. Waits until it is ready.
    #[must_use]
    pub fn start_with_datapath(
        namespace: &Namespace,
        datapath: &'static str,
        peers: &[PeerConfig],
    ) -> Self {
        Self::start_prepared(Self::prepare_with_peers(namespace, datapath, peers))
    }

    /// Starts a sidecar and waits until it is ready.
    #[must_use]
    pub fn start(namespace: &Namespace, config: &Config) -> Self {
        Self::start_prepared(Self::prepare(namespace, config))
    }

    fn start_prepared(mut sidecar: Self) -> Self {
        sidecar.launch(&[]);
        sidecar.wait_ready();
        sidecar
    }

    /// Starts sidecars at both hosts that protect their session with `key` (as a has it).
    #[must_use]
    pub fn pair(a: &Host, b: &Host, family: Family, key: &Key) -> (Self, Self) {
        Self::pair_with(a, b, family, key, |_| ())
    }

    /// The same, after a change to both configurations.
    #[must_use]
    pub fn pair_with(
        a: &Host,
        b: &Host,
        family: Family,
        key: &Key,
        change: impl Fn(&mut Config),
    ) -> (Self, Self) {
        let start = |own: &Host, far, key| {
            let mut config = Config::new(far, family, key);
            change(&mut config);
            Self::start(&own.namespace, &config)
        };
        (start(a, b, key.clone()), start(b, a, key.mirrored()))
    }

    /// Starts the process; does not wait.
    pub fn launch(&mut self, arguments: &[&str]) {
        self.launch_with(arguments, &[]);
    }

    /// The same with variables in its environment.
    pub fn launch_with(&mut self, arguments: &[&str], environment: &[(&str, &str)]) {
        let mut command = self.command(&["run"]);
        command.envs(environment.iter().copied());
        command.arg("--state-dir").arg(self.state_dir());
        command.arg("--api-socket").arg(self.socket());
        command.args(arguments);
        let name = format!("ao-sidecar in {}", self.namespace);
        let log = self.scratch.file("sidecar.log");
        // The old process, if any, ends before the new one starts.
        self.process = None;
        self.process = Some(Process::spawn(&name, &log, command));
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time.
    pub fn wait_ready(&mut self) {
        wait::poll("the sidecar's API", SIDECAR_START, || {
            if let Some(status) = self.process().ended() {
                panic!("the sidecar ended with {status}");
            }
            self.try_ask("status")
        });
    }

    /// Runs `ao-sidecar SUBCOMMAND… --config FILE` in its namespace to the end.
    ///
    /// # Errors
    /// When it fails: its output.
    pub fn run(&self, subcommand: &[&str]) -> Result<String, String> {
        output(self.command(subcommand))
    }

    fn command(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]);
        command.arg(program("ao-sidecar")).args(subcommand);
        command.arg("--config").arg(self.config_file());
        command
    }

    /// The fingerprint its far ends know it by; its key is made when it has none yet.
    ///
    /// # Panics
    /// When it does not print one, alone on a line.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut command = Command::new(program("ao-sidecar"));
        command
            .args(["identity", "--state-dir"])
            .arg(self.state_dir());
        let answer = output(command).unwrap_or_else(|error| panic!("{error}"));
        let line = answer.strip_suffix('\n').unwrap_or_default();
        assert!(
            line.starts_with("sha256:") && !line.contains('\n'),
            "{answer:?}"
        );
        line.to_owned()
    }

    /// `auto`, `kernel` or `userspace`: what its peers use.
    #[must_use]
    pub fn datapath(&self) -> &'static str {
        self.datapath
    }

    /// The folder of its state, made at its first start.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.scratch.file("state")
    }

    /// Path of its configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.scratch.file("config.toml")
    }

    /// Starts daemons under `ao-sidecar exec`, with this sidecar to serve them.
    #[must_use]
    pub fn launcher(&self) -> Launcher {
        Launcher::new(&self.socket())
    }

    /// Where it answers operators.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.scratch.file("api.sock")
    }

    /// Writes another configuration for the next start.
    pub fn reconfigure(&self, config: &Config) {
        config.write(&self.scratch);
    }

    /// Adds sections to its configuration for the next start.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn add_sections(&self, sections: &str) {
        let file = self.config_file();
        let text = std::fs::read_to_string(&file).expect("its configuration");
        std::fs::write(file, format!("{text}\n{sections}")).expect("write its configuration");
    }

    /// Writes another configuration with these peers for the next start.
    pub fn configure(&self, peers: &[PeerConfig]) {
        let text = peers_text(self.datapath, peers);
        self.scratch.write("config.toml", &text);
    }

    /// Gives its peers other keys and lets it read the configuration again.
    ///
    /// # Panics
    /// When it does not say that it has.
    pub fn reload(&mut self, peers: &[PeerConfig]) {
        self.configure(peers);
        let read = |log: String| log.matches("configuration taken over").count();
        let before = read(self.process().log());
        self.process().signal(Signal::SIGHUP);
        wait::until("the configuration being read", SIDECAR_START, || {
            read(self.process().log()) > before
        });
    }

    /// Asks it, as an operator would.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn try_ask(&self, question: &str) -> Result<Value, String> {
        let answer = self.operate(&[question, "--json"])?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }

    /// Runs `aoctl WORDS…` and returns what it prints.
    ///
    /// # Errors
    /// When it fails: its output.
    pub fn operate(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program("aoctl"));
        command.arg("--socket").arg(self.socket()).args(words);
        output(command)
    }

    /// Asks it, as an operator would.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn ask(&self, question: &str) -> Value {
        self.try_ask(question)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// The one session that is established.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[must_use]
    pub fn established(&self) -> Value {
        match self.all_established().as_slice() {
            [session] => session.clone(),
            _ => panic!("not one established session: {}", self.ask("sessions")),
        }
    }

    /// All sessions that are established.
    #[must_use]
    pub fn all_established(&self) -> Vec<Value> {
        let sessions = self.ask("sessions");
        let all = sessions.as_array().into_iter().flatten();
        all.filter(|session| session["state"] == "established")
            .cloned()
            .collect()
    }

    /// Refused packets of the peer and of the firewall, by reason.
    #[must_use]
    pub fn drops(&self) -> Drops {
        let counters = self.ask("counters");
        let mut drops = Drops::default();
        for table in [
            &counters["peers"][0]["drops"],
            &counters["drops"],
            &counters["firewall_drops"],
        ] {
            for (reason, count) in table.as_object().into_iter().flatten() {
                *drops.0.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        drops
    }

    /// The process.
    ///
    /// # Panics
    /// When it was never launched.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a launched sidecar")
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// Stops it in order.
    pub fn stop(&mut self) -> ExitStatus {
        self.process().stop(Signal::SIGTERM, SIDECAR_START)
    }

    /// Starts it again and waits until it is ready.
    pub fn restart(&mut self) {
        self.launch(&[]);
        self.wait_ready();
    }

    /// Makes it hang.
    pub fn freeze(&mut self) {
        self.process().signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.process().signal(Signal::SIGCONT);
    }
}

/// Counts of refused packets by reason.
#[derive(Clone, Debug, Default)]
pub struct Drops(std::collections::BTreeMap<String, u64>);

impl Drops {
    /// How many were refused for any of the reasons.
    #[must_use]
    pub fn of(&self, reasons: &[&str]) -> u64 {
        reasons
            .iter()
            .filter_map(|reason| self.0.get(*reason))
            .sum()
    }
}

/// The path of one of the project's programs: in `AO_BIN_DIR`, else beside the test programs.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("AO_BIN_DIR").map_or_else(built_folder, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build -p ao-sidecar`, or name its folder in AO_BIN_DIR",
        path.display()
    );
    path
}
