//! What the service manager is told, and when (sd_notify(3)).

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use ao_tests::scratch::Scratch;
use ao_tests::settings::SIDECAR_START;
use ao_tests::sidecar::{Config, Key, Sidecar};
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Time after which the service manager takes the sidecar for dead.
const WATCHDOG: Duration = Duration::from_secs(3);

/// A service manager with nothing but ears.
struct Manager {
    socket: UnixDatagram,
    scratch: Scratch,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.file("notify")).expect("a socket");
        Self { socket, scratch }
    }

    fn launch(&self, sidecar: &mut Sidecar) {
        let socket = self.scratch.file("notify");
        let micros = WATCHDOG.as_micros().to_string();
        let environment = [
            ("NOTIFY_SOCKET", socket.to_str().expect("its path")),
            ("WATCHDOG_USEC", &micros),
        ];
        sidecar.launch_with(&[], &environment);
    }

    /// What is said within `limit`, if anything.
    fn hear(&self, limit: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(limit)).expect("a limit");
        let mut buffer = [0; 256];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// The next thing said that is no sign of life.
    fn hear_state(&self, limit: Duration) -> String {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            match self.hear(limit) {
                Some(said) if said != "WATCHDOG=1" => return said,
                _ => {}
            }
        }
        panic!("nothing but signs of life within {limit:?}");
    }

    fn hear_life(&self) {
        let said = self.hear(WATCHDOG);
        assert_eq!(said.as_deref(), Some("WATCHDOG=1"));
    }

    /// Asserts that the sidecar would be taken for dead.
    fn hear_nothing(&self) {
        // Asked before it hung, it may have answered since.
        self.hear(WATCHDOG / 2);
        assert_eq!(self.hear(WATCHDOG * 2), None);
    }
}

/// A thread that hangs until it is dropped.
struct Hung(Pid);

impl Hung {
    /// Makes a thread of `process` whose name begins so hang; its other threads go on.
    fn thread(process: u32, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
        let found = tasks.flatten().find(|task| {
            let comm = fs::read_to_string(task.path().join("comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        });
        let thread = found
            .unwrap_or_else(|| panic!("no thread {name}"))
            .file_name();
        let id = thread
            .to_str()
            .and_then(|id| id.parse().ok())
            .expect("an id");
        let thread = Pid::from_raw(id);
        ptrace::seize(thread, Options::empty()).expect("seize the thread");
        ptrace::interrupt(thread).expect("interrupt the thread");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("its stop");
        Self(thread)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // It is gone if its process is.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn ready_means_protected_and_signs_of_life_mean_well() {
    let lan = Lan::new();
    let manager = Manager::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let mut sidecar = Sidecar::prepare(&lan.a.namespace, &config);
    manager.launch(&mut sidecar);

    assert_eq!(manager.hear(SIDECAR_START).as_deref(), Some("READY=1"));
    let status = sidecar.try_ask("status").expect("the API answers");
    let rules = |tool: &str, arguments: &[&str]| lan.a.namespace.run(tool, arguments);
    let nft = rules("nft", &["list", "ruleset"]);
    let legacy = rules("iptables-legacy-save", &[]);
    for (carrier, rules) in [("nftables", nft), ("iptables", legacy)] {
        let used = [&status["queue_rules"], &status["guard"]];
        assert!(used.contains(&&carrier.into()), "{status}");
        assert!(rules.contains("10.0.0.2"), "{carrier} has no rule: {rules}");
    }
    for _ in 0..4 {
        manager.hear_life();
    }

    let hung = Hung::thread(sidecar.process().id(), "ao-worker-");
    manager.hear_nothing();
    drop(hung);
    wait::until("signs of life", WATCHDOG * 3, || {
        manager.hear(WATCHDOG).as_deref() == Some("WATCHDOG=1")
    });
    assert_eq!(sidecar.ask("status")["peers"][0]["name"], "peer");

    sidecar.process().signal(Signal::SIGHUP);
    let said = manager.hear_state(WATCHDOG);
    let stamp = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(stamp.is_some_and(|at| at.parse::<u64>().is_ok()), "{said}");
    assert_eq!(manager.hear_state(SIDECAR_START), "READY=1");
    manager.hear_life();

    assert!(sidecar.stop().success());
    assert_eq!(manager.hear_state(WATCHDOG), "STOPPING=1");
    assert_eq!(
        manager.hear(WATCHDOG / 2),
        None,
        "signs of life after the end"
    );
}

#[test]
fn a_sidecar_that_does_not_start_is_never_ready() {
    let lan = Lan::new();
    let manager = Manager::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let mut first = Sidecar::prepare(&lan.a.namespace, &config);
    first.launch(&[]);
    first.wait_ready();
    let mut second = Sidecar::prepare(&lan.a.namespace, &config);
    manager.launch(&mut second);
    assert!(!second.process().wait(SIDECAR_START).success());
    assert_eq!(manager.hear(Duration::from_millis(100)), None);
}
