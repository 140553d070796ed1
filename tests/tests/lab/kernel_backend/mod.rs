//! The kernel's own TCP-AO, programmed on the sockets of unmodified daemons.

mod backends_together;
mod bad_input;
mod doctor;
mod restart;
mod rollover;
mod scale;
mod sessions;

use std::time::Duration;

use ao_tests::capture::{Capture, tool};
use ao_tests::daemon::{self, At, Daemon, Implementation, Speaker, wait_converged};
use ao_tests::netns::Namespace;
use ao_tests::process::Process;
use ao_tests::scene::checker_key;
use ao_tests::scratch::Scratch;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::wait;
use serde_json::Value;

/// How long a session may take to come up: the programs of some daemons take seconds to start in
/// the lab.
const LIMIT: Duration = Duration::from_secs(90);

/// How long a step of the programs may take that takes milliseconds elsewhere.
const STEP: Duration = Duration::from_secs(30);

/// Sidecars at both hosts; `keys` are as a has them.
fn sidecars(
    a: &Host,
    b: &Host,
    family: Family,
    datapaths: (&'static str, &'static str),
    peers: impl Fn(PeerConfig) -> PeerConfig,
) -> (Sidecar, Sidecar) {
    let start = |own: &Host, far: &Host, datapath, key| {
        let peer = peers(PeerConfig::new(far.address_text(family), key));
        Sidecar::start_with_datapath(&own.namespace, datapath, &[peer])
    };
    let key = Key::default();
    (
        start(a, b, datapaths.0, key.clone()),
        start(b, a, datapaths.1, key.mirrored()),
    )
}

/// A pair of speakers with so few routes that announcing them costs no time.
fn speakers(a: &Host, b: &Host, family: Family) -> (Speaker, Speaker) {
    let (mut a, mut b) = Speaker::pair(a, b, family);
    (a.routes, b.routes) = (2, 2);
    (a, b)
}

/// A session of two launched daemons between two hosts whose sidecars run.
struct Session {
    a: Box<dyn Daemon>,
    b: Box<dyn Daemon>,
}

impl Session {
    /// Brings it up, opened by a, and waits until all routes are exchanged.
    fn start(
        implementations: (Implementation, Implementation),
        hosts: (&Host, &Host),
        sidecars: (&Sidecar, &Sidecar),
        speakers: &(Speaker, Speaker),
    ) -> Self {
        let start = |implementation, host: &Host, sidecar: &Sidecar, speaker| {
            let launcher = sidecar.launcher();
            daemon::start_under(implementation, &host.namespace, speaker, &launcher)
        };
        let b = start(implementations.1, hosts.1, sidecars.1, &speakers.1);
        let a = start(implementations.0, hosts.0, sidecars.0, &speakers.0);
        wait_converged(&*a, &*b, LIMIT);
        Self { a, b }
    }

    /// A session over IPv4 with the kernel at both ends.
    fn simple(
        lan: &Lan,
        implementations: (Implementation, Implementation),
    ) -> (Self, Sidecar, Sidecar) {
        let family = Family::V4;
        let datapaths = ("kernel", "kernel");
        let (sidecar_a, sidecar_b) = sidecars(&lan.a, &lan.b, family, datapaths, |peer| peer);
        let session = Self::start(
            implementations,
            (&lan.a, &lan.b),
            (&sidecar_a, &sidecar_b),
            &speakers(&lan.a, &lan.b, family),
        );
        (session, sidecar_a, sidecar_b)
    }
}

/// The one established session, which is the kernel's and has refused nothing.
fn assert_in_kernel(sidecar: &Sidecar) -> Value {
    let session = sidecar.established();
    assert_eq!(session["datapath"], "kernel", "{session}");
    for counter in ["segments_bad", "segments_unsigned", "key_not_found"] {
        assert_eq!(session[counter], 0, "{counter}: {session}");
    }
    session
}

/// Waits until the sidecar lists an established session.
fn wait_listed(sidecar: &Sidecar) {
    wait::poll("the session being listed", STEP, || {
        let sessions = sidecar.try_ask("sessions")?;
        let mut all = sessions.as_array().into_iter().flatten();
        match all.any(|session| session["state"] == "established") {
            true => Ok(()),
            false => Err(sessions.to_string()),
        }
    });
}

/// Every segment of BGP in the capture is signed with the default key. The kernel leaves the
/// checksum to the virtual link, which completes it nowhere.
fn assert_signed(capture: Capture, a: &Host, b: &Host, family: Family) {
    let key = checker_key(&Key::default(), a, b, family);
    capture
        .stop()
        .check(&[key], &["--offloaded", "--min-signed", "4"]);
}

/// Waits for a line in a sidecar's or daemon's log that contains all of `words`.
fn wait_log(process: &Process, words: &[&str]) {
    wait::poll("a line of the log", STEP, || {
        let log = process.log();
        match log
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
        {
            true => Ok(()),
            false => Err(format!("{words:?} not in: {log}")),
        }
    });
}

/// A program that makes a daemon's calls (`tests/tools/calls.py`).
struct Calls {
    process: Process,
    scratch: Scratch,
}

impl Calls {
    /// Starts it under `sidecar` and waits until it is ready; its calls are made by [`go`](Self::go).
    fn prepare(namespace: &Namespace, sidecar: &Sidecar, words: &[&str]) -> Self {
        let calls = Self::spawn(&At::under(namespace, &sidecar.launcher()), words);
        wait::poll("a program under exec", STEP, || {
            match calls.process.log().contains("ready") {
                true => Ok(()),
                false => Err(calls.process.log()),
            }
        });
        calls
    }

    fn spawn(at: &At<'_>, words: &[&str]) -> Self {
        let scratch = Scratch::new();
        let go = scratch.file("go").to_string_lossy().into_owned();
        let tool = tool("calls.py");
        let mut arguments: Vec<String> = tool
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        arguments.extend(["--go".to_owned(), go]);
        arguments.extend(words.iter().map(ToString::to_string));
        let process = at.spawn(tool.get_program(), arguments, &scratch.file("calls.log"));
        Self { process, scratch }
    }

    fn go(&self) {
        self.scratch.write("go", "");
    }

    /// Makes the calls and waits for the results: errno or "ok", and milliseconds, of each.
    fn results(&self) -> Vec<(String, u64)> {
        self.go();
        wait::poll("the calls' results", STEP, || {
            let log = self.process.log();
            if !log.lines().any(|line| line == "done") {
                return Err(log);
            }
            let results = log
                .lines()
                .filter(|line| line.contains('/') || line.starts_with("int80"));
            results
                .filter(|line| line.split(' ').count() == 3)
                .map(|line| {
                    let mut words = line.split(' ').skip(1);
                    let result = words.next().unwrap_or_default().to_owned();
                    let time = words.next().and_then(|word| word.parse().ok());
                    time.map(|time| (result, time))
                        .ok_or_else(|| line.to_owned())
                })
                .collect()
        })
    }

    /// The results without their times.
    fn outcomes(&self) -> Vec<String> {
        let results = self.results();
        results.into_iter().map(|(result, _)| result).collect()
    }
}
