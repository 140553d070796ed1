//! The sidecar as a whole, and its peers.

use std::sync::Arc;

use datapath::report::{KernelReport, KeyUse, LaunchedDaemon, Report, Session};
use datapath::settings::Backend;
use grpc_api::Snapshot;
use insta::assert_snapshot;

use crate::fixture::snapshot;
use crate::server::Server;

#[test]
fn status_is_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["status"]), @r"
BLOCKED  new: no key, so nothing is let through
DOWN     ix: no session is established

ao-sidecar 1.2.3, up 1d 2h 3m 4s
datapath        userspace
queue rules     iptables
guard           nftables
strips TCP-AO   yes
rules restored  2
queue overruns  6

PEER     ADDRESS        PORTS    DATAPATH   STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  ORIGIN   REASON
as64502  10.0.0.2       179      userspace  established         1  transit       1  1000   900        7  unknown  configured
ix       2001:db8::/64  179-180  userspace  down                0  transit       2     0     0        0  unknown  configured
new      fe80::1%eth0   179      userspace  blocked             0  transit       0     0     0        0  unknown  configured

`aoctl doctor ix` tells why ix has no session, `aoctl doctor` why it and 1 more have none
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
      "overruns": 5,
      "waiting": 0,
      "dropped": 0
    },
    {
      "number": 7901,
      "packets": 0,
      "overruns": 1,
      "waiting": 0,
      "dropped": 0
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
      "datapath_reason": "configured",
      "origin": "unknown"
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
      "datapath_reason": "configured",
      "origin": "unknown"
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
      "datapath_reason": "configured",
      "origin": "unknown"
    }
  ],
  "kernel": null,
  "alarms": [],
  "config_file": null,
  "config_loaded_at": null,
  "api_made": 0,
  "role": null
}
"#);
}

#[test]
fn peers_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["peers"]), @r"
PEER     ADDRESS        PORTS    DATAPATH   STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  ORIGIN   REASON
as64502  10.0.0.2       179      userspace  established         1  transit       1  1000   900        7  unknown  configured
ix       2001:db8::/64  179-180  userspace  down                0  transit       2     0     0        0  unknown  configured
new      fe80::1%eth0   179      userspace  blocked             0  transit       0     0     0        0  unknown  configured

`aoctl doctor ix` tells why ix has no session, `aoctl doctor` why it and 1 more have none
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
    "datapath_reason": "configured",
    "origin": "unknown"
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
    "datapath_reason": "configured",
    "origin": "unknown"
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
    "datapath_reason": "configured",
    "origin": "unknown"
  }
]
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
PROBLEM  bgpd (901): no key for 10.0.0.2

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

PEER     ADDRESS   PORTS  DATAPATH  STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  ORIGIN   REASON
as64502  10.0.0.2  179    kernel    established         1  transit       1  1000   900        7  unknown  bird was launched by ao-sidecar exec
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
