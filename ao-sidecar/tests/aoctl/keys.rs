//! Keys and key changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use grpc_api::operator::{
    CompletedRollover, ControlError, GenerationReport, IdentityReport, KeyControl, KeyOrigin,
    KeyReport, KeyState, Lifetime, PeerKeys, RolloverReport,
};
use insta::assert_snapshot;

use crate::events::proven;
use crate::fixture::snapshot;
use crate::server::{Server, failure};

/// Two automatic peers, of which one has never been reached, and one with a key chain.
pub(crate) struct Fixed;

impl KeyControl for Fixed {
    fn peers(&self) -> Vec<PeerKeys> {
        let peer = |(name, automatic): (&str, bool)| PeerKeys {
            name: name.into(),
            automatic,
        };
        [("as64502", true), ("as64503", true), ("ix", false)]
            .map(peer)
            .into()
    }

    async fn keys(&self, peer: Option<&str>) -> Result<Vec<KeyReport>, ControlError> {
        let mut keys = vec![
            agreed(4, KeyState::Retiring, KeyState::Proven),
            agreed(5, KeyState::Proven, KeyState::Selected),
            offered(),
        ];
        keys.extend(chain_keys());
        keys.retain(|key| peer.is_none_or(|peer| *key.peer == *peer));
        Ok(keys)
    }

    async fn rollovers(&self, peer: Option<&str>) -> Result<Vec<RolloverReport>, ControlError> {
        let mut rollovers = vec![under_way(), first_contact()];
        rollovers.retain(|rollover| peer.is_none_or(|peer| *rollover.peer == *peer));
        Ok(rollovers)
    }

    async fn start(&self, peer: &str, compromised: bool) -> Result<String, ControlError> {
        Ok(match compromised {
            true => format!("a fresh key is being agreed with {peer}"),
            false => format!("{peer} changes to generation 6"),
        })
    }

    async fn abort(&self, _: &str) -> Result<String, ControlError> {
        Err(ControlError::Refused(
            "generation 5 is selected already: there is no way back".into(),
        ))
    }

    async fn force(&self, peer: &str) -> Result<String, ControlError> {
        Ok(format!("generation 4 of {peer} is being deleted\u{1b}[2J"))
    }

    async fn identity(&self) -> Result<IdentityReport, ControlError> {
        Ok(IdentityReport {
            fingerprint: format!("sha256:{}", "0a".repeat(32)),
            certificate_file: "/var/lib/ao-sidecar/identity.crt".into(),
            expires: Some(at(0)),
            listen: vec!["0.0.0.0:7179".into(), "[::]:7179".into()],
        })
    }
}

/// Hours after a fixed moment.
fn at(hours: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_798_156_800 + hours * 3600)
}

fn agreed(generation: u64, state: KeyState, there: KeyState) -> KeyReport {
    let id = u8::try_from(generation).unwrap();
    KeyReport {
        peer: "as64502".into(),
        origin: KeyOrigin::Rollover {
            generation,
            there: Some(there),
            agreed_at: Some(at(generation)),
            segments_verified_there: 90,
        },
        ids: Some((id, id)),
        algorithm: "aes-128-cmac-96",
        state,
        send: Lifetime::default(),
        accept: Lifetime::default(),
        last_use: Some(at(generation + 1)),
        segments_verified: 100,
    }
}

fn offered() -> KeyReport {
    KeyReport {
        peer: "as64503".into(),
        origin: KeyOrigin::Rollover {
            generation: 1,
            there: None,
            agreed_at: None,
            segments_verified_there: 0,
        },
        ids: None,
        algorithm: "",
        last_use: None,
        segments_verified: 0,
        ..agreed(1, KeyState::Offered, KeyState::Offered)
    }
}

fn chain_keys() -> [KeyReport; 2] {
    let key = |id, state, start, end| KeyReport {
        peer: "ix".into(),
        origin: KeyOrigin::Chain {
            name: "transit".into(),
        },
        ids: Some((id, id + 1)),
        algorithm: "hmac-sha-1-96",
        state,
        send: Lifetime { start, end },
        accept: Lifetime { start: None, end },
        last_use: None,
        segments_verified: 0,
    };
    [
        key(1, KeyState::Active, None, Some(at(24))),
        key(3, KeyState::Pending, Some(at(24)), None),
    ]
}

fn under_way() -> RolloverReport {
    RolloverReport {
        peer: "as64502".into(),
        endpoint: "10.0.0.2:7179".into(),
        trust: "sha256:0b0b".into(),
        interval: Duration::from_secs(86_400),
        overlap: Duration::from_secs(3600),
        active: Some(GenerationReport {
            number: 4,
            key_id: Some(4),
            state: KeyState::Proven,
            there: Some(KeyState::Proven),
        }),
        target: Some(GenerationReport {
            number: 5,
            key_id: Some(5),
            state: KeyState::Selected,
            there: Some(KeyState::Installed),
        }),
        runway_ready: 1,
        runway_wanted: 2,
        next: Some(at(24)),
        last: Some(CompletedRollover {
            at: at(0),
            took: Duration::from_millis(412),
            trigger: "schedule",
        }),
        last_heard: Some(at(1)),
        unreachable: Some((at(2), "connection refused".into())),
        waiting: Some("traffic on session 10.0.0.1:179 10.0.0.2:40002".into()),
        alarms: vec!["peer unreachable: connection refused".into()],
    }
}

fn first_contact() -> RolloverReport {
    RolloverReport {
        peer: "as64503".into(),
        endpoint: "10.0.0.3:7179".into(),
        active: None,
        target: None,
        runway_ready: 0,
        next: None,
        last: None,
        last_heard: None,
        unreachable: None,
        waiting: None,
        alarms: Vec::new(),
        ..under_way()
    }
}

#[test]
fn keys_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["keys", "list"]), @r"
PEER     GEN  SEND-ID  RECV-ID  ALGORITHM        ORIGIN      STATE     THERE     SEND                     ACCEPT                   LAST-USE              VERIFIED  VERIFIED-THERE
as64502    4        4        4  aes-128-cmac-96  (rollover)  retiring  proven    -                        -                        2026-12-25T05:00:00Z       100              90
as64502    5        5        5  aes-128-cmac-96  (rollover)  proven    selected  -                        -                        2026-12-25T06:00:00Z       100              90
as64503    1        -        -  -                (rollover)  offered   -         -                        -                        -                            0               0
ix         -        1        2  hmac-sha-1-96    transit     active    -         ../2026-12-26T00:00:00Z  ../2026-12-26T00:00:00Z  -                            0               -
ix         -        3        4  hmac-sha-1-96    transit     pending   -         2026-12-26T00:00:00Z/..  always                   -                            0               -
");
    assert_snapshot!(server.answer(&["keys", "list", "as64503", "--json"]), @r#"
[
  {
    "peer": "as64503",
    "generation": 1,
    "send_id": null,
    "recv_id": null,
    "algorithm": null,
    "key_chain": null,
    "state": "offered",
    "there": null,
    "send": {
      "start": null,
      "end": null
    },
    "accept": {
      "start": null,
      "end": null
    },
    "agreed_at": null,
    "last_use": null,
    "segments_verified": 0,
    "segments_verified_there": 0
  }
]
"#);
    let chain = server.answer(&["keys", "list", "ix", "--json"]);
    let chain: serde_json::Value = serde_json::from_str(&chain).unwrap();
    assert_eq!(chain[0]["key_chain"], "transit");
    assert_eq!(chain[0]["generation"], serde_json::Value::Null);
    assert_eq!(chain[1]["send"]["start"], "2026-12-26T00:00:00.000Z");
    assert_eq!(chain[2], serde_json::Value::Null);
}

#[test]
fn rollovers_are_shown() {
    let server = Server::start(Some(snapshot()));
    server.events.push(proven("as64502"));
    server.events.push(proven("as64502"));
    assert_snapshot!(server.answer(&["rollover", "status"]), @r"
PEER     ACTIVE  KEY  STATE    TARGET      RUNWAY  NEXT                  CHANNEL      ALARMS
as64502       4    4  proven   5 selected  1/2     2026-12-26T00:00:00Z  unreachable       1
as64503       -    -  blocked  -           0/2     -                     untried           0

ALARM as64502: peer unreachable: connection refused
");
    assert_snapshot!(server.answer(&["rollover", "status", "as64502"]), @r"
peer        as64502
ALARM       peer unreachable: connection refused
active      generation 4, key 4: proven here, proven there
target      generation 5, key 5: selected here, installed there
waiting     traffic on session 10.0.0.1:179 10.0.0.2:40002
runway      1 of 2 ready
next        2026-12-26T00:00:00Z
last        2026-12-25T00:00:00Z, took 412ms, trigger schedule
interval    1d 0h 0m 0s
overlap     1h 0m 0s
channel     unreachable since 2026-12-25T02:00:00Z: connection refused
last heard  2026-12-25T01:00:00Z
endpoint    10.0.0.2:7179
trust       sha256:0b0b
events      proven 2
");
    assert_snapshot!(server.answer(&["rollover", "status", "as64503"]), @r"
peer        as64503
active      none: the peer is blocked
target      none: no change is under way
runway      0 of 2 ready
next        -
last        -
interval    1d 0h 0m 0s
overlap     1h 0m 0s
channel     untried
last heard  -
endpoint    10.0.0.3:7179
trust       sha256:0b0b
events      -
");
    assert_snapshot!(server.answer(&["rollover", "status", "as64502", "--json"]), @r#"
[
  {
    "peer": "as64502",
    "endpoint": "10.0.0.2:7179",
    "trust": "sha256:0b0b",
    "interval_seconds": 86400,
    "overlap_seconds": 3600,
    "active": {
      "number": 4,
      "key_id": 4,
      "state": "proven",
      "there": "proven"
    },
    "target": {
      "number": 5,
      "key_id": 5,
      "state": "selected",
      "there": "installed"
    },
    "runway_ready": 1,
    "runway_wanted": 2,
    "next": "2026-12-26T00:00:00.000Z",
    "last": {
      "at": "2026-12-25T00:00:00.000Z",
      "took_ms": 412,
      "trigger": "schedule"
    },
    "last_heard": "2026-12-25T01:00:00.000Z",
    "unreachable_since": "2026-12-25T02:00:00.000Z",
    "unreachable_reason": "connection refused",
    "waiting": "traffic on session 10.0.0.1:179 10.0.0.2:40002",
    "alarms": [
      "peer unreachable: connection refused"
    ],
    "event_counts": {
      "proven": 2
    }
  }
]
"#);
}

#[test]
fn key_changes_say_what_was_done() {
    let server = Server::start(Some(snapshot()));
    let answer = |arguments: &[&str]| server.answer(arguments);
    assert_eq!(
        answer(&["rollover", "start", "as64502"]),
        "as64502 changes to generation 6\n"
    );
    assert_eq!(
        answer(&["rollover", "start", "--compromised", "as64502"]),
        "a fresh key is being agreed with as64502\n"
    );
    assert_eq!(
        answer(&["rollover", "force", "as64502"]),
        "generation 4 of as64502 is being deleted\u{fffd}[2J\n",
        "nothing reaches the terminal's control"
    );
    let json = answer(&["--json", "rollover", "start", "as64502"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"message": "as64502 changes to generation 6"})
    );
}

#[test]
fn refusals_are_exit_code_1_with_the_reason() {
    let server = Server::start(Some(snapshot()));
    let refusal = |arguments: &[&str]| {
        let (code, text) = failure(&server.socket(), arguments);
        assert_eq!(code, Some(1));
        text
    };
    assert_snapshot!(refusal(&["rollover", "abort", "as64502"]), @"aoctl: ao-sidecar refused: generation 5 is selected already: there is no way back");
    assert_snapshot!(refusal(&["rollover", "start", "as64520"]), @"aoctl: ao-sidecar refused: there is no peer `as64520`; is `as64502` meant?");
    assert_snapshot!(refusal(&["keys", "list", "transit"]), @"aoctl: ao-sidecar refused: there is no peer `transit`; configured are `as64502`, `as64503`, `ix`");
    assert_snapshot!(refusal(&["rollover", "status", "ix"]), @"aoctl: ao-sidecar refused: peer `ix` has a key chain; its keys change by their lifetimes");
    assert_snapshot!(refusal(&["events", "--peer", "iy"]), @"aoctl: ao-sidecar refused: there is no peer `iy`; is `ix` meant?");
}

#[test]
fn the_identity_is_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["identity"]), @r"
fingerprint  sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a
certificate  /var/lib/ao-sidecar/identity.crt
expires      2026-12-25T00:00:00Z
listens on   0.0.0.0:7179, [::]:7179
");
    assert_snapshot!(server.answer(&["identity", "--json"]), @r#"
{
  "fingerprint": "sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
  "certificate_file": "/var/lib/ao-sidecar/identity.crt",
  "expires": "2026-12-25T00:00:00.000Z",
  "listen": [
    "0.0.0.0:7179",
    "[::]:7179"
  ]
}
"#);
}
