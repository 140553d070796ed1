//! Sessions and counters.

use insta::assert_snapshot;

use crate::fixture::snapshot;
use crate::server::Server;

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
queue 7900    waiting              0
queue 7900    dropped              0
queue 7901    packets              0
queue 7901    overruns             1
queue 7901    waiting              0
queue 7901    dropped              0
userspace     macs                 0
userspace     mac-time-us          0
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
  "rules_restored": 2,
  "macs": 0,
  "mac_time_us": 0
}
"#);
}
