//! The API over a real Unix socket, asked by the real `aoctl`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod administration;
mod keys;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use datapath::report::{
    KernelReport, KeyUse, LaunchedDaemon, PeerReport, QueueReport, Report, Session, SessionState,
};
use datapath::settings::Backend;
use grpc_api::operator::EventLog;
use grpc_api::operator::administration::Origin;
use grpc_api::{Api, ApiSocket, Health, PeerFacts, Roles, Snapshot, SocketError, Source};
use insta::assert_snapshot;
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Answers the same at all times, or nothing.
struct Fixed(Option<Snapshot>);

impl Source for Fixed {
    fn snapshot(&self) -> Option<Snapshot> {
        self.0.clone()
    }
}

/// A served API; it stops with this value.
struct Server {
    folder: TempDir,
    events: EventLog,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), SocketError>>>,
}

impl Server {
    fn start(snapshot: Option<Snapshot>) -> Self {
        let events = EventLog::new();
        let folder = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&folder.path().join("api.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let log = events.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let api = Api {
                source: Arc::new(Fixed(snapshot)),
                control: Arc::new(keys::Fixed),
                administration: Arc::new(administration::Fixed),
                roles: Roles::default(),
                health: Health::new(),
                events: log,
            };
            runtime.block_on(grpc_api::serve(socket, None, api, async {
                let _ = stopped.await;
            }))
        });
        Self {
            folder,
            events,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn answer(&self, arguments: &[&str]) -> String {
        let output = aoctl(&self.socket(), arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
        assert!(
            !self.socket().exists(),
            "the socket goes away with its server"
        );
    }
}

fn aoctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aoctl"))
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap()
}

/// Exit code and what stderr says, with the socket's name replaced.
fn failure(socket: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = aoctl(socket, arguments);
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        text.replace(socket.to_str().unwrap(), "SOCKET"),
    )
}

fn facts(name: &str, ports: (u16, u16)) -> PeerFacts {
    PeerFacts {
        name: name.into(),
        key_chain: "transit".into(),
        ports,
        origin: Origin::File(1),
    }
}

fn peer(
    (name, address): (&str, &str),
    keys: u32,
    sessions: u32,
    drops: &[(&'static str, u64)],
) -> PeerReport {
    PeerReport {
        name: name.into(),
        address: address.into(),
        backend: Backend::Userspace,
        backend_reason: "configured".into(),
        keys,
        sessions,
        segments_good: u64::from(sessions) * 1000,
        segments_sent: u64::from(sessions) * 900,
        drops: drops.iter().copied().collect(),
        last_refused: None,
    }
}

fn session(peer: &str, local: SocketAddr, remote: SocketAddr, state: SessionState) -> Session {
    Session {
        peer: peer.into(),
        local,
        remote,
        vrf: None,
        backend: Backend::Userspace,
        state,
        current_key: 1,
        rnext_key: 2,
        segments_good: 1000,
        segments_bad: 3,
        segments_unsigned: 4,
        segments_sent: 900,
        key_not_found: 0,
        dropped_icmp: 0,
        keys: Vec::new(),
        snd_sne: Some(0),
        rcv_sne: Some(1),
    }
}

fn snapshot() -> Snapshot {
    let link_local = |host: &str, port| SocketAddrV6::new(host.parse().unwrap(), port, 0, 1).into();
    let in_vrf = session(
        "as64502",
        "10.0.0.1:40123".parse().unwrap(),
        "10.0.0.2:179".parse().unwrap(),
        SessionState::Restored,
    );
    Snapshot {
        version: "1.2.3",
        uptime: Duration::from_secs(93_784),
        datapath: "userspace",
        peers: Arc::from([
            facts("as64502", (179, 179)),
            facts("ix", (179, 180)),
            facts("new", (179, 179)),
        ]),
        report: Report {
            queue_rules: "iptables",
            guard: "nftables",
            strips: true,
            rules_restored: 2,
            queues: vec![
                QueueReport {
                    number: 7900,
                    packets: 1900,
                    overruns: 5,
                    ..QueueReport::default()
                },
                QueueReport {
                    number: 7901,
                    packets: 0,
                    overruns: 1,
                    ..QueueReport::default()
                },
            ],
            peers: vec![
                peer(
                    ("as64502", "10.0.0.2"),
                    1,
                    1,
                    &[("bad-mac", 3), ("unsigned", 4)],
                ),
                peer(("ix", "2001:db8::/64"), 2, 0, &[]),
                peer(("new", "fe80::1%eth0"), 0, 0, &[]),
            ],
            sessions: vec![
                session(
                    "ix",
                    link_local("fe80::2", 179),
                    link_local("fe80::1", 40001),
                    SessionState::Opening,
                ),
                session(
                    "ix",
                    "[2001:db8::1]:179".parse().unwrap(),
                    "[2001:db8::2]:5000".parse().unwrap(),
                    SessionState::Closing,
                ),
                session(
                    "as64502",
                    "10.0.0.1:179".parse().unwrap(),
                    "10.0.0.2:40002".parse().unwrap(),
                    SessionState::Established,
                ),
                Session {
                    vrf: Some("blue".into()),
                    ..in_vrf
                },
            ],
            drops: BTreeMap::from([("no-peer", 7)]),
            firewall_drops: BTreeMap::from([("guard", 1), ("unsigned", 100_000)]),
            macs: 0,
            mac_time: Duration::ZERO,
            kernel: None,
        },
        alarms: Vec::new(),
        config_file: "/etc/ao-sidecar/config.toml".into(),
        config_loaded_at: SystemTime::UNIX_EPOCH,
        api_made: 0,
    }
}

#[test]
fn status_is_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["status"]), @r"
ao-sidecar 1.2.3, up 1d 2h 3m 4s
datapath        userspace
queue rules     iptables
guard           nftables
strips TCP-AO   yes
rules restored  2
queue overruns  6

PEER     ADDRESS        PORTS    DATAPATH   STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  REASON
as64502  10.0.0.2       179      userspace  established         1  transit       1  1000   900        7  configured
ix       2001:db8::/64  179-180  userspace  down                0  transit       2     0     0        0  configured
new      fe80::1%eth0   179      userspace  blocked             0  transit       0     0     0        0  configured
");
    assert_snapshot!(server.answer(&["status", "--json"]), @r#"
{
  "version": "1.2.3",
  "uptime_seconds": 93784,
  "datapath": "userspace",
  "queue_rules": "iptables",
  "guard": "nftables",
  "strips": true,
  "rules_restored": 2,
  "overruns": 6,
  "queues": [
    {
      "number": 7900,
      "packets": 1900,
      "overruns": 5
    },
    {
      "number": 7901,
      "packets": 0,
      "overruns": 1
    }
  ],
  "peers": [
    {
      "name": "as64502",
      "address": "10.0.0.2",
      "sessions": 1,
      "state": "established",
      "key_chain": "transit",
      "keys": 1,
      "ports": "179",
      "segments_good": 1000,
      "segments_sent": 900,
      "segments_dropped": 7,
      "datapath": "userspace",
      "datapath_reason": "configured"
    },
    {
      "name": "ix",
      "address": "2001:db8::/64",
      "sessions": 0,
      "state": "down",
      "key_chain": "transit",
      "keys": 2,
      "ports": "179-180",
      "segments_good": 0,
      "segments_sent": 0,
      "segments_dropped": 0,
      "datapath": "userspace",
      "datapath_reason": "configured"
    },
    {
      "name": "new",
      "address": "fe80::1%eth0",
      "sessions": 0,
      "state": "blocked",
      "key_chain": "transit",
      "keys": 0,
      "ports": "179",
      "segments_good": 0,
      "segments_sent": 0,
      "segments_dropped": 0,
      "datapath": "userspace",
      "datapath_reason": "configured"
    }
  ],
  "kernel": null
}
"#);
}

#[test]
fn sessions_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["sessions"]), @r"
PEER     LOCAL              REMOTE              VRF   DATAPATH   STATE        CURRENT  RNEXT  GOOD  BAD  UNSIGNED  SENT  SND-SNE  RCV-SNE
as64502  10.0.0.1:179       10.0.0.2:40002      -     userspace  established        1      2  1000    3         4   900        0        1
as64502  10.0.0.1:40123     10.0.0.2:179        blue  userspace  restored           1      2  1000    3         4   900        0        1
ix       [2001:db8::1]:179  [2001:db8::2]:5000  -     userspace  closing            1      2  1000    3         4   900        0        1
ix       [fe80::2%lo]:179   [fe80::1%lo]:40001  -     userspace  opening            1      2  1000    3         4   900        0        1
");
    assert_snapshot!(server.answer(&["--json", "sessions"]), @r#"
[
  {
    "peer": "as64502",
    "local": "10.0.0.1:179",
    "remote": "10.0.0.2:40002",
    "vrf": null,
    "state": "established",
    "current_key": 1,
    "rnext_key": 2,
    "segments_good": 1000,
    "segments_bad": 3,
    "segments_unsigned": 4,
    "segments_sent": 900,
    "snd_sne": 0,
    "rcv_sne": 1,
    "datapath": "userspace",
    "keys": [],
    "key_not_found": 0,
    "dropped_icmp": 0
  },
  {
    "peer": "as64502",
    "local": "10.0.0.1:40123",
    "remote": "10.0.0.2:179",
    "vrf": "blue",
    "state": "restored",
    "current_key": 1,
    "rnext_key": 2,
    "segments_good": 1000,
    "segments_bad": 3,
    "segments_unsigned": 4,
    "segments_sent": 900,
    "snd_sne": 0,
    "rcv_sne": 1,
    "datapath": "userspace",
    "keys": [],
    "key_not_found": 0,
    "dropped_icmp": 0
  },
  {
    "peer": "ix",
    "local": "[2001:db8::1]:179",
    "remote": "[2001:db8::2]:5000",
    "vrf": null,
    "state": "closing",
    "current_key": 1,
    "rnext_key": 2,
    "segments_good": 1000,
    "segments_bad": 3,
    "segments_unsigned": 4,
    "segments_sent": 900,
    "snd_sne": 0,
    "rcv_sne": 1,
    "datapath": "userspace",
    "keys": [],
    "key_not_found": 0,
    "dropped_icmp": 0
  },
  {
    "peer": "ix",
    "local": "[fe80::2%lo]:179",
    "remote": "[fe80::1%lo]:40001",
    "vrf": null,
    "state": "opening",
    "current_key": 1,
    "rnext_key": 2,
    "segments_good": 1000,
    "segments_bad": 3,
    "segments_unsigned": 4,
    "segments_sent": 900,
    "snd_sne": 0,
    "rcv_sne": 1,
    "datapath": "userspace",
    "keys": [],
    "key_not_found": 0,
    "dropped_icmp": 0
  }
]
"#);
}

#[test]
fn peers_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["peers"]), @r"
PEER     ADDRESS        PORTS    DATAPATH   STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  REASON
as64502  10.0.0.2       179      userspace  established         1  transit       1  1000   900        7  configured
ix       2001:db8::/64  179-180  userspace  down                0  transit       2     0     0        0  configured
new      fe80::1%eth0   179      userspace  blocked             0  transit       0     0     0        0  configured
");
    assert_snapshot!(server.answer(&["peers", "--json"]), @r#"
[
  {
    "name": "as64502",
    "address": "10.0.0.2",
    "sessions": 1,
    "state": "established",
    "key_chain": "transit",
    "keys": 1,
    "ports": "179",
    "segments_good": 1000,
    "segments_sent": 900,
    "segments_dropped": 7,
    "datapath": "userspace",
    "datapath_reason": "configured"
  },
  {
    "name": "ix",
    "address": "2001:db8::/64",
    "sessions": 0,
    "state": "down",
    "key_chain": "transit",
    "keys": 2,
    "ports": "179-180",
    "segments_good": 0,
    "segments_sent": 0,
    "segments_dropped": 0,
    "datapath": "userspace",
    "datapath_reason": "configured"
  },
  {
    "name": "new",
    "address": "fe80::1%eth0",
    "sessions": 0,
    "state": "blocked",
    "key_chain": "transit",
    "keys": 0,
    "ports": "179",
    "segments_good": 0,
    "segments_sent": 0,
    "segments_dropped": 0,
    "datapath": "userspace",
    "datapath_reason": "configured"
  }
]
"#);
}

#[test]
fn counters_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["counters"]), @r"
WHERE         COUNTER          VALUE
peer as64502  segments-good     1000
peer as64502  segments-sent      900
peer as64502  drop bad-mac         3
peer as64502  drop unsigned        4
peer ix       segments-good        0
peer ix       segments-sent        0
peer new      segments-good        0
peer new      segments-sent        0
no peer       drop no-peer         7
firewall      drop guard           1
firewall      drop unsigned   100000
firewall      rules-restored       2
queue 7900    packets           1900
queue 7900    overruns             5
queue 7901    packets              0
queue 7901    overruns             1
");
    assert_snapshot!(server.answer(&["counters", "--json"]), @r#"
{
  "peers": [
    {
      "name": "as64502",
      "segments_good": 1000,
      "segments_sent": 900,
      "drops": {
        "bad-mac": 3,
        "unsigned": 4
      }
    },
    {
      "name": "ix",
      "segments_good": 0,
      "segments_sent": 0,
      "drops": {}
    },
    {
      "name": "new",
      "segments_good": 0,
      "segments_sent": 0,
      "drops": {}
    }
  ],
  "drops": {
    "no-peer": 7
  },
  "firewall_drops": {
    "guard": 1,
    "unsigned": 100000
  },
  "queues": [
    {
      "number": 7900,
      "packets": 1900,
      "overruns": 5
    },
    {
      "number": 7901,
      "packets": 0,
      "overruns": 1
    }
  ],
  "rules_restored": 2
}
"#);
}

#[test]
fn the_kernel_backend_is_shown() {
    let mut snapshot = snapshot();
    let report = &mut snapshot.report;
    report.kernel = Some(KernelReport {
        tcp_ao: true,
        daemons: [("bird", 812), ("bgpd", 901)]
            .map(|(name, pid)| LaunchedDaemon {
                name: name.into(),
                pid,
            })
            .into(),
        listeners: 2,
        optmem_max: 524_288,
        optmem_raised_from: Some(131_072),
        problems: vec!["bgpd (901): no key for 10.0.0.2".into()],
    });
    report.peers.truncate(1);
    report.peers[0].backend = Backend::Kernel;
    report.peers[0].backend_reason = "bird was launched by ao-sidecar exec".into();
    report.sessions = vec![Session {
        backend: Backend::Kernel,
        key_not_found: 6,
        dropped_icmp: 7,
        keys: vec![KeyUse {
            send_id: 1,
            recv_id: 2,
            good: 1000,
            bad: 3,
            sent: None,
        }],
        snd_sne: None,
        rcv_sne: None,
        ..report.sessions.remove(2)
    }];
    let server = Server::start(Some(snapshot));
    assert_snapshot!(server.answer(&["status"]), @r"
ao-sidecar 1.2.3, up 1d 2h 3m 4s
datapath        userspace
queue rules     iptables
guard           nftables
strips TCP-AO   yes
rules restored  2
queue overruns  6
kernel TCP-AO   yes
daemons         bird (812), bgpd (901)
listeners       2
option memory   524288 octets, raised from 131072
problem         bgpd (901): no key for 10.0.0.2

PEER     ADDRESS   PORTS  DATAPATH  STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  REASON
as64502  10.0.0.2  179    kernel    established         1  transit       1  1000   900        7  bird was launched by ao-sidecar exec
");
    assert_snapshot!(server.answer(&["sessions"]), @r"
PEER     LOCAL         REMOTE          VRF  DATAPATH  STATE        CURRENT  RNEXT  GOOD  BAD  UNSIGNED  SENT  SND-SNE  RCV-SNE
as64502  10.0.0.1:179  10.0.0.2:40002  -    kernel    established        1      2  1000    3         4   900        -        -
");
    assert_snapshot!(server.answer(&["sessions", "--json"]), @r#"
[
  {
    "peer": "as64502",
    "local": "10.0.0.1:179",
    "remote": "10.0.0.2:40002",
    "vrf": null,
    "state": "established",
    "current_key": 1,
    "rnext_key": 2,
    "segments_good": 1000,
    "segments_bad": 3,
    "segments_unsigned": 4,
    "segments_sent": 900,
    "snd_sne": null,
    "rcv_sne": null,
    "datapath": "kernel",
    "keys": [
      {
        "send_id": 1,
        "recv_id": 2,
        "good": 1000,
        "bad": 3,
        "sent": null
      }
    ],
    "key_not_found": 6,
    "dropped_icmp": 7
  }
]
"#);
    let status = server.answer(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["kernel"]["daemons"][1]["pid"], 901);
    assert_eq!(status["kernel"]["optmem_raised_from"], 131_072);
    assert_eq!(status["peers"][0]["datapath"], "kernel");
    let reason = &status["peers"][0]["datapath_reason"];
    assert_eq!(reason, "bird was launched by ao-sidecar exec");
}

#[test]
fn nothing_to_show_is_said() {
    let nothing = Snapshot {
        peers: Arc::from([]),
        report: Report::default(),
        ..snapshot()
    };
    let server = Server::start(Some(nothing));
    assert_eq!(server.answer(&["sessions"]), "no sessions\n");
    assert_eq!(server.answer(&["sessions", "--json"]), "[]\n");
    assert_eq!(server.answer(&["peers"]), "no peers\n");
}

#[test]
fn an_unreachable_sidecar_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let (code, text) = failure(&socket, &["status"]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on SOCKET: No such file or directory (os error 2); is it running, and is --socket right?");

    drop(UnixListener::bind(&socket).unwrap());
    let (code, text) = failure(&socket, &["status"]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on SOCKET: Connection refused (os error 111); is it running, and is --socket right?");

    let stopping = Server::start(None);
    let (code, text) = failure(&stopping.socket(), &["status"]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on SOCKET: the sidecar is stopping");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let (code, text) = failure(Path::new("/nonexistent"), &["stats"]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("a similar subcommand exists: 'status'"),
        "{text}"
    );
}

#[test]
fn a_living_socket_is_kept_and_a_stale_one_replaced() {
    let server = Server::start(Some(snapshot()));
    let error = ApiSocket::bind(&server.socket()).unwrap_err().to_string();
    assert!(
        error.starts_with("another ao-sidecar is serving on "),
        "{error}"
    );
    assert!(
        !server.answer(&["status"]).is_empty(),
        "the living one still answers"
    );

    let stale = server.folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let socket = ApiSocket::bind(&stale).unwrap();
    assert!(fs::symlink_metadata(socket.path()).is_ok());
}
