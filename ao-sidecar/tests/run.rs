//! A whole run of the daemon, in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const SIDECAR: &str = env!("CARGO_BIN_EXE_ao-sidecar");
const DEADLINE: Duration = Duration::from_secs(20);

const CONFIG: &str = r#"
[log]
format = "json"
[userspace]
workers = 1
[[key_chain]]
name = "transit"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "hunter2 is the secret"
[[peer]]
name = "as64502"
address = "192.0.2.2"
key_chain = "transit"
"#;

/// Files of one daemon, and the service manager it reports to.
struct Scene {
    folder: TempDir,
    manager: UnixDatagram,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = File::options();
        options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.path().join("c.toml"))
            .unwrap();
        fs::write(folder.path().join("c.toml"), CONFIG).unwrap();
        let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { folder, manager }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `ao-sidecar run` in a new network namespace.
    fn command(&self, state_dir: &str, socket: &str) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--net", SIDECAR, "run", "--config"])
            .arg(self.path("c.toml"));
        command.arg("--state-dir").arg(self.path(state_dir));
        command.arg("--api-socket").arg(self.path(socket));
        command
    }

    fn start(&self) -> Daemon {
        let child = self
            .command("state", "api.sock")
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Daemon(child)
    }

    fn notified(&self) -> String {
        let mut buffer = [0; 64];
        let length = self.manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn aoctl(&self, question: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_aoctl"))
            .arg("--socket")
            .arg(self.path("api.sock"))
            .args([question, "--json"])
            .output()
            .unwrap()
    }
}

/// A running daemon; it is killed with this value.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it logged, once it has ended.
    fn log(&mut self) -> Vec<serde_json::Value> {
        let mut text = String::new();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(!text.contains("hunter2"), "a secret is logged");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_starts_answers_and_stops_in_order() {
    let scene = Scene::new();
    let mut daemon = scene.start();
    assert_eq!(scene.notified(), "READY=1");

    let answer = scene.aoctl("status");
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let status: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(status["datapath"], "userspace");
    assert_eq!(status["peers"][0]["name"], "as64502");
    assert_eq!(status["peers"][0]["address"], "192.0.2.2");
    assert_eq!(status["peers"][0]["sessions"], 0);
    assert_eq!(status["peers"][0]["state"], "down");
    assert_eq!(scene.aoctl("sessions").stdout, b"[]\n");

    daemon.signal(Signal::SIGTERM);
    assert_eq!(scene.notified(), "STOPPING=1");
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!scene.path("api.sock").exists());
    let log = daemon.log();
    let messages: Vec<&str> = log
        .iter()
        .filter_map(|line| line["message"].as_str())
        .collect();
    assert_eq!(messages.first(), Some(&"ao-sidecar starts"));
    assert!(messages.contains(&"protecting"), "{messages:?}");
    assert_eq!(
        messages.last(),
        Some(&"stopped; rules and guard stay: configured peers are blocked")
    );
}

#[test]
fn a_second_daemon_is_refused_and_harms_nothing() {
    let scene = Scene::new();
    let mut daemon = scene.start();
    assert_eq!(scene.notified(), "READY=1");

    for (state_dir, socket, reason) in [
        ("state", "other.sock", "another ao-sidecar (process "),
        ("other", "api.sock", "another ao-sidecar is serving on "),
    ] {
        let second = scene.command(state_dir, socket).output().unwrap();
        assert_eq!(second.status.code(), Some(1));
        let said = String::from_utf8(second.stderr).unwrap();
        let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "ERROR");
        assert!(
            last["message"].as_str().unwrap().starts_with(reason),
            "{said}"
        );
    }
    assert!(
        scene.aoctl("status").status.success(),
        "the first one still answers"
    );

    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn a_killed_daemon_leaves_nothing_in_the_way_of_the_next() {
    let scene = Scene::new();
    let mut daemon = scene.start();
    assert_eq!(scene.notified(), "READY=1");
    daemon.signal(Signal::SIGKILL);
    assert_eq!(daemon.ended().code(), None);
    assert!(
        scene.path("api.sock").exists(),
        "the stale socket the next one meets"
    );

    let mut next = scene.start();
    assert_eq!(scene.notified(), "READY=1");
    assert!(scene.aoctl("status").status.success());
    next.signal(Signal::SIGTERM);
    assert_eq!(next.ended().code(), Some(0));
}

#[test]
fn the_guard_comes_and_goes_without_a_daemon() {
    let scene = Scene::new();
    // Which of the two firewalls carries the guard depends on the kernel.
    let script = "list() { nft list ruleset; iptables-save; iptables-legacy-save; }; \
                  \"$0\" guard install --config \"$1\" || exit 1; list; echo ==; \
                  \"$0\" guard remove --config \"$1\" || exit 1; list; true";
    let mut command = Command::new("unshare");
    command
        .args(["--net", "sh", "-c", script, SIDECAR])
        .arg(scene.path("c.toml"));
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let (installed, removed) = said.split_once("==\n").unwrap();
    assert!(installed.contains("192.0.2.2"), "{installed}");
    assert!(!removed.contains("192.0.2.2"), "{removed}");
}

/// Neither secrets nor credentials are there yet, and somebody has made a mistake.
#[test]
fn the_guard_is_installed_for_whoever_can_be_made_out() {
    let scene = Scene::new();
    let broken = CONFIG.replace(
        "secret = \"hunter2 is the secret\"",
        "secret_file = \"/nonexistent\"",
    ) + "[[peer]]\nname = \"other\"\naddress = \"nonsense\"\n\
         [store]\nsealing_key_file = \"/run/credentials/none/store.key\"\n";
    let state = format!("state_dir = {:?}\n", scene.path("state"));
    fs::write(scene.path("c.toml"), state + &broken).unwrap();
    fs::create_dir(scene.path("state")).unwrap();
    fs::write(
        scene.path("state/protected-peers"),
        "192.0.2.9/32 179-179\n",
    )
    .unwrap();
    let script = "\"$0\" guard install --config \"$1\" || exit 1; \
                  nft list ruleset; iptables-save; iptables-legacy-save; true";
    let mut command = Command::new("unshare");
    command
        .args(["--net", "sh", "-c", script, SIDECAR])
        .arg(scene.path("c.toml"));
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    assert!(complaint.contains("nonsense"), "{complaint}");
    let rules = String::from_utf8_lossy(&output.stdout);
    assert!(
        rules.contains("192.0.2.2") && rules.contains("192.0.2.9"),
        "{rules}"
    );
}

/// Whatever is missing for the optional services, peers are protected.
#[test]
fn what_cannot_be_served_yet_is_an_alarm() {
    let scene = Scene::new();
    let optional = "[api]\nviewer_group = \"no-such-group-here\"\n\
                    [api.tcp]\nlisten = [\"127.0.0.1:7180\"]\ncertificate_file = \"none.pem\"\n\
                    key_file = \"none.key\"\nca_file = \"ca.pem\"\nadmins = [\"a.example\"]\n\
                    [metrics]\nlisten = \"127.0.0.1:7180\"\n";
    for (name, mode) in [("none.pem", 0o644), ("none.key", 0o600), ("ca.pem", 0o644)] {
        let mut options = File::options();
        options.write(true).create_new(true).mode(mode);
        options.open(scene.path(name)).unwrap();
    }
    fs::write(scene.path("c.toml"), optional.to_owned() + CONFIG).unwrap();
    let _daemon = scene.start();
    assert_eq!(scene.notified(), "READY=1");
    let begun = Instant::now();
    loop {
        let status = String::from_utf8(scene.aoctl("status").stdout).unwrap();
        if ["groups of [api]", "API over TCP"]
            .iter()
            .all(|what| status.contains(what))
        {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes what `[api.tcp]` of `scene` and an admin need: by an authority that is another one each
/// time.
fn issue(scene: &Scene) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["authority".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    for name in ["api.example", "admin.example"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(scene.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        let path = scene.path(&format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    fs::write(scene.path("ca.pem"), ca).unwrap();
}

#[test]
fn renewed_certificates_come_into_use_with_a_reload() {
    let scene = Scene::new();
    issue(&scene);
    let tcp = "[api.tcp]\nlisten = \"127.0.0.1:7180\"\ncertificate_file = \"api.example.pem\"\n\
               key_file = \"api.example.key\"\nca_file = \"ca.pem\"\nadmins = \"admin.example\"\n";
    fs::write(scene.path("c.toml"), tcp.to_owned() + CONFIG).unwrap();
    let daemon = scene.start();
    assert_eq!(scene.notified(), "READY=1");
    let over_tcp = |words: &[&str]| {
        let script = "ip link set lo up; exec \"$@\"";
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", daemon.0.id()))
            .args(["sh", "-c", script, "sh", env!("CARGO_BIN_EXE_aoctl")])
            .args([
                "--address",
                "127.0.0.1:7180",
                "--server-name",
                "api.example",
            ]);
        for (option, file) in [
            ("--ca", "ca.pem"),
            ("--cert", "admin.example.pem"),
            ("--key", "admin.example.key"),
        ] {
            command.arg(option).arg(scene.path(file));
        }
        let output = command.args(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        output.status.success().then_some(()).ok_or(said)
    };
    let begun = Instant::now();
    while let Err(error) = over_tcp(&["status"]) {
        assert!(begun.elapsed() < DEADLINE, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }

    fs::write(scene.path("api.example.pem"), "half a certificate").unwrap();
    let refused = over_tcp(&["config", "reload"]).unwrap_err();
    assert!(
        refused.contains("[api.tcp]") && refused.contains("api.example.pem"),
        "{refused}"
    );
    over_tcp(&["status"]).unwrap();

    issue(&scene);
    // What is served is still what was read before.
    let refused = over_tcp(&["status"]).unwrap_err();
    assert!(refused.contains("certificate is refused"), "{refused}");
    daemon.signal(Signal::SIGHUP);
    assert!(scene.notified().starts_with("RELOADING=1"));
    assert_eq!(scene.notified(), "READY=1");
    over_tcp(&["status"]).unwrap();
}

/// A client that keeps its connection open delays the stop by a second at most, and a second
/// signal does not wait for it.
#[test]
fn a_lingering_client_cannot_hold_the_daemon() {
    for (impatient, code) in [(false, 0), (true, 1)] {
        let scene = Scene::new();
        let mut daemon = scene.start();
        assert_eq!(scene.notified(), "READY=1");
        let _lingering = UnixStream::connect(scene.path("api.sock")).unwrap();
        assert!(
            scene.aoctl("status").status.success(),
            "accepted after the lingering one"
        );
        daemon.signal(Signal::SIGTERM);
        assert_eq!(scene.notified(), "STOPPING=1");
        if impatient {
            daemon.signal(Signal::SIGINT);
        }
        assert_eq!(daemon.ended().code(), Some(code), "impatient: {impatient}");
        let said = if impatient {
            "second signal (SIGINT)"
        } else {
            "still in progress"
        };
        let log = daemon.log();
        let found = log
            .iter()
            .any(|line| line["message"].as_str().unwrap().contains(said));
        assert!(found, "{log:?}");
    }
}

/// Peers and keys change; what is read at the start only, or is wrong, changes nothing.
#[test]
fn a_hangup_takes_over_all_of_a_configuration_or_nothing() {
    const SECOND_KEY: &str = "[[key_chain.key]]\nsend_id = 2\nrecv_id = 2\n\
         algorithm = \"hmac-sha-1-96\"\nsecret = \"hunter2 is another\"\n[[peer]]";
    let scene = Scene::new();
    let mut daemon = scene.start();
    assert_eq!(scene.notified(), "READY=1");
    let two_keys = CONFIG.replace("[[peer]]", SECOND_KEY);
    let moved = two_keys.replace("192.0.2.2", "192.0.2.3");
    let another = moved.replace("as64502", "as64503");
    let workers = two_keys.replace("workers = 1", "workers = 2");
    for (text, name, address) in [
        (&*two_keys, "as64502", "192.0.2.2"),
        (&two_keys, "as64502", "192.0.2.2"),
        (&moved, "as64502", "192.0.2.3"),
        (&another, "as64503", "192.0.2.3"),
        (&workers, "as64503", "192.0.2.3"),
        ("broken", "as64503", "192.0.2.3"),
    ] {
        fs::write(scene.path("c.toml"), text).unwrap();
        daemon.signal(Signal::SIGHUP);
        let reloading = scene.notified();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(time.unwrap().parse::<u64>().unwrap() > 0, "{reloading}");
        assert_eq!(scene.notified(), "READY=1");
        let peers = scene.aoctl("peers").stdout;
        let peers: serde_json::Value = serde_json::from_slice(&peers).unwrap();
        let peer = &peers.as_array().unwrap()[0];
        assert_eq!(
            (&peer["name"], &peer["address"], &peer["keys"]),
            (&name.into(), &address.into(), &2.into())
        );
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    let log = daemon.log();
    let said = |begin: &str| -> Vec<&str> {
        let messages = log.iter().filter_map(|line| line["message"].as_str());
        messages
            .filter(|message| message.starts_with(begin))
            .collect()
    };
    assert_eq!(said("configuration taken over").len(), 4, "{log:?}");
    let refused = "configuration not taken over, the running configuration stays: ";
    let refusals = said(refused);
    assert_eq!(refusals.len(), 2, "{log:?}");
    assert!(
        refusals[0].contains("restart ao-sidecar to change"),
        "{}",
        refusals[0]
    );
}
