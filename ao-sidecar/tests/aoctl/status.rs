//! The sidecar as a whole, and its peers.

use std::sync::Arc;
use std::time::Duration;

use datapath::report::{
    KernelReport, KeyUse, LastRefused, LaunchedDaemon, PeerReport, Report, Session,
};
use datapath::settings::Backend;
use grpc_api::{Alarm, PeerFacts, Snapshot};
use insta::assert_snapshot;

use crate::fixture::snapshot;
use crate::server::Server;

#[test]
fn status_is_shown() {
    let alarm = |peer: Option<&str>, text: &str| Alarm {
        peer: peer.map(Into::into),
        text: text.into(),
    };
    let server = Server::start(Some(Snapshot {
        alarms: vec![
            alarm(Some("as64502"), "peer unreachable\u{1b}[2J"),
            alarm(None, "the audit log cannot be written"),
            alarm(Some("ix"), "peer unreachable\u{1b}[2J"),
            alarm(Some("new"), "blocked: it has no key"),
        ],
        api_made: 2,
        ..snapshot()
    }));
    assert_snapshot!(server.answer(&["status"]), @r"
ALARM    as64502, ix: peer unreachable�[2J
ALARM    the audit log cannot be written
ALARM    new: blocked: it has no key
DOWN     ix: no session is established

ao-sidecar 1.2.3, up 1d 2h 3m 4s
datapath        userspace
queue rules     iptables
guard           nftables
strips TCP-AO   yes
rules restored  2
queue overruns  6
configuration   /etc/ao-sidecar/config.toml, in use since 2026-12-25T00:00:00Z
made by API     2

PEER     ADDRESS        PORTS    DATAPATH   STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  ORIGIN  LAST-REFUSED  DATAPATH-REASON
as64502  10.0.0.2       179      userspace  established         1  transit       1  1000   900        7  file    -             configured
ix       2001:db8::/64  179-180  userspace  down                0  transit       2     0     0        0  file    -             configured
new      fe80::1%eth0   179      userspace  blocked             0  transit       0     0     0        0  file    -             configured

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
      "origin": "file",
      "last_refused": null,
      "last_refused_at": null,
      "last_refused_key_id": null
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
      "origin": "file",
      "last_refused": null,
      "last_refused_at": null,
      "last_refused_key_id": null
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
      "origin": "file",
      "last_refused": null,
      "last_refused_at": null,
      "last_refused_key_id": null
    }
  ],
  "kernel": null,
  "alarms": [
    {
      "peer": "as64502",
      "text": "peer unreachable\u001b[2J"
    },
    {
      "peer": null,
      "text": "the audit log cannot be written"
    },
    {
      "peer": "ix",
      "text": "peer unreachable\u001b[2J"
    },
    {
      "peer": "new",
      "text": "blocked: it has no key"
    }
  ],
  "config_file": "/etc/ao-sidecar/config.toml",
  "config_loaded_at": "2026-12-25T00:00:00.000Z",
  "api_made": 2,
  "role": "admin"
}
"#);
}

#[test]
fn peers_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["peers"]), @r"
PEER     ADDRESS        PORTS    DATAPATH   STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  ORIGIN  LAST-REFUSED  DATAPATH-REASON
as64502  10.0.0.2       179      userspace  established         1  transit       1  1000   900        7  file    -             configured
ix       2001:db8::/64  179-180  userspace  down                0  transit       2     0     0        0  file    -             configured
new      fe80::1%eth0   179      userspace  blocked             0  transit       0     0     0        0  file    -             configured

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
    "origin": "file",
    "last_refused": null,
    "last_refused_at": null,
    "last_refused_key_id": null
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
    "origin": "file",
    "last_refused": null,
    "last_refused_at": null,
    "last_refused_key_id": null
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
    "origin": "file",
    "last_refused": null,
    "last_refused_at": null,
    "last_refused_key_id": null
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
configuration   /etc/ao-sidecar/config.toml, in use since 2026-12-25T00:00:00Z
kernel TCP-AO   yes
daemons         bird (812), bgpd (901)
listeners       2
option memory   524288 octets, raised from 131072

PEER     ADDRESS   PORTS  DATAPATH  STATE        SESSIONS  KEY-CHAIN  KEYS  GOOD  SENT  DROPPED  ORIGIN  LAST-REFUSED  DATAPATH-REASON
as64502  10.0.0.2  179    kernel    established         1  transit       1  1000   900        7  file    -             bird was launched by ao-sidecar exec
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
fn the_last_refusal_is_shown() {
    let mut refused = snapshot();
    refused.report.peers.truncate(2);
    refused.peers = refused.peers[..2].into();
    let refusals = [("bad-mac", Some(7)), ("unsigned", None)];
    for (peer, (reason, key_id)) in refused.report.peers.iter_mut().zip(refusals) {
        peer.last_refused = Some(LastRefused {
            reason,
            ago: Duration::from_secs(60),
            key_id,
        });
    }
    let server = Server::start(Some(refused));
    let text = server.answer(&["peers"]);
    assert!(text.contains("  bad-mac (KeyID 7) at 20"), "{text}");
    assert!(text.contains("  unsigned at 20"), "{text}");
    let json = server.answer(&["peers", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["last_refused"], "bad-mac");
    assert_eq!(json[0]["last_refused_key_id"], 7);
    assert!(json[0]["last_refused_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(json[1]["last_refused_key_id"], serde_json::Value::Null);
}

#[test]
fn nothing_wrong_is_said_first() {
    let mut fine = snapshot();
    fine.report.peers.truncate(1);
    fine.peers = fine.peers[..1].into();
    let server = Server::start(Some(fine));
    let text = server.answer(&["status"]);
    assert!(
        text.starts_with("OK       the peer is established\n\nao-sidecar "),
        "{text}"
    );
    assert!(!text.contains("doctor"), "{text}");
}

#[test]
fn of_many_peers_that_are_down_a_few_are_named() {
    let mut many = snapshot();
    many.peers = (0..1000)
        .map(|number| PeerFacts {
            name: format!("peer {number}").into(),
            ..many.peers[1].clone()
        })
        .collect();
    let down = many.report.peers[1].clone();
    let peers = many.peers.iter().map(|facts| PeerReport {
        name: facts.name.clone(),
        ..down.clone()
    });
    many.report.peers = peers.collect();
    let server = Server::start(Some(many));
    let text = server.answer(&["status"]);
    let first = text.lines().next().unwrap();
    assert_snapshot!(first, @"DOWN     peer 0, peer 1, peer 2, peer 3, peer 4, peer 5, peer 6, peer 7 and 992 more: no session is established");
    assert_snapshot!(text.lines().last().unwrap(), @"`aoctl doctor 'peer 0'` tells why 'peer 0' has no session, `aoctl doctor` why it and 999 more have none");
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
