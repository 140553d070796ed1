//! What differs between two configurations: every key of every table is told.

use grpc_api::operator::administration::{ChangeKind, ConfigChange};

use super::super::{api, key_chain, peer, rollover};
use super::*;

/// Every table and key once, more or less. Needs the files that [`folder`] makes.
const ALL: &str = r#"datapath = "auto"
state_dir = "/var/lib/one"
api_socket = "/run/one.sock"
on_exit = "keep"
[log]
format = "text"
level = "info"
[userspace]
first_queue = 100
workers = 2
queue_length = 4096
mark_bit = 16
max_connections = 4096
strip = "auto"
[identity]
cert_file = "one.pem"
key_file = "one.pem"
[peering]
listen = "10.0.0.1:7179"
[store]
key_file = "one.pem"
[api]
viewer_group = "v1"
operator_group = "o1"
admin_group = "a1"
[api.tcp]
listen = ["10.0.0.1:7180"]
certificate_file = "one.pem"
key_file = "one.pem"
ca_file = "one.pem"
viewers = ["v1.example.net"]
operators = ["o1.example.net"]
admins = ["a1.example.net"]
[metrics]
listen = "10.0.0.1:9179"
[[key_chain]]
name = "chain"
accept_tolerance = "5m"
allow_gaps = false
on_expiry = "keep"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "hunter2"
include_tcp_options = true
lifetime = { start = 2026-01-01T00:00:00Z, end = 2027-01-01T00:00:00Z }
[[key_chain]]
name = "other"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "hunter2"
[[peer]]
name = "manual"
address = "10.0.0.2"
key_chain = "chain"
ports = "179-180"
local_address = "10.0.0.1"
vrf = "red"
ttl_min = 0
[[peer]]
name = "local"
address = "fe80::1"
key_chain = "chain"
interface = "eth0"
port = 1790
[[peer]]
name = "agreed"
address = "10.0.0.3"
[peer.rollover]
endpoint = "10.0.0.3:7179"
fingerprint = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
algorithm = "aes-128-cmac-96"
interval = "24h"
overlap = "1h"
runway = 2
highest_id = 63
label = "l1"
[[peer]]
name = "certified"
address = "10.0.0.4"
[peer.rollover]
endpoint = "10.0.0.4:7179"
ca_file = "one.pem"
name = "one.example.net"
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one.pem", "two.pem"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

fn read(folder: &tempfile::TempDir, text: &str) -> Config {
    let config = parse_as(text, &folder.path().join("ao.toml"), 0o600);
    config.unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A key, what of the text becomes what, what the change is about, and whether it needs a restart.
type Row = (&'static str, &'static str, &'static str, &'static str, bool);

const TOP: &[Row] = &[
    (
        "datapath",
        "\"auto\"\nstate",
        "\"userspace\"\nstate",
        "peer manual",
        false,
    ),
    ("state_dir", "lib/one", "lib/two", "state_dir", true),
    ("api_socket", "one.sock", "two.sock", "api_socket", true),
    (
        "on_exit",
        "on_exit = \"keep\"",
        "on_exit = \"remove\"",
        "on_exit",
        true,
    ),
];
const IN_LOG: &[Row] = &[
    (
        "format",
        "format = \"text\"",
        "format = \"json\"",
        "[log]",
        true,
    ),
    ("level", "\"info\"", "\"debug\"", "[log]", false),
];
const IN_USERSPACE: &[Row] = &[
    ("first_queue", "= 100", "= 101", "[userspace]", true),
    ("workers", "workers = 2", "workers = 3", "[userspace]", true),
    (
        "queue_length",
        "queue_length = 4096",
        "queue_length = 100",
        "[userspace]",
        true,
    ),
    ("mark_bit", "= 16", "= 32", "[userspace]", true),
    (
        "max_connections",
        "max_connections = 4096",
        "max_connections = 100",
        "[userspace]",
        true,
    ),
    (
        "strip",
        "strip = \"auto\"",
        "strip = \"never\"",
        "[userspace]",
        true,
    ),
];
const IN_IDENTITY: &[Row] = &[
    (
        "cert_file",
        "cert_file = \"one",
        "cert_file = \"two",
        "[identity]",
        true,
    ),
    (
        "key_file",
        "\"one.pem\"\n[peering]",
        "\"two.pem\"\n[peering]",
        "[identity]",
        true,
    ),
];
const IN_PEERING: &[Row] = &[(
    "listen",
    "10.0.0.1:7179",
    "10.0.0.2:7179",
    "[peering]",
    true,
)];
const IN_STORE: &[Row] = &[(
    "key_file",
    "\"one.pem\"\n[api]",
    "\"two.pem\"\n[api]",
    "[store]",
    true,
)];
const IN_API: &[Row] = &[
    ("viewer_group", "\"v1\"", "\"v2\"", "[api]", false),
    ("operator_group", "\"o1\"", "\"o2\"", "[api]", false),
    ("admin_group", "admin_group = \"a1\"\n", "", "[api]", false),
];
const IN_TCP: &[Row] = &[
    (
        "listen",
        "10.0.0.1:7180",
        "10.0.0.2:7180",
        "[api.tcp]",
        true,
    ),
    (
        "certificate_file",
        "certificate_file = \"one",
        "certificate_file = \"two",
        "[api.tcp]",
        true,
    ),
    (
        "key_file",
        "\"one.pem\"\nca_file",
        "\"two.pem\"\nca_file",
        "[api.tcp]",
        true,
    ),
    (
        "ca_file",
        "\"one.pem\"\nviewers",
        "\"two.pem\"\nviewers",
        "[api.tcp]",
        true,
    ),
    ("viewers", "v1.example", "v2.example", "[api.tcp]", false),
    ("operators", "o1.example", "o2.example", "[api.tcp]", false),
    ("admins", "a1.example", "a2.example", "[api.tcp]", false),
];
const IN_METRICS: &[Row] = &[(
    "listen",
    "10.0.0.1:9179",
    "10.0.0.1:9180",
    "[metrics]",
    true,
)];
const IN_CHAIN: &[Row] = &[
    (
        "accept_tolerance",
        "\"5m\"",
        "\"forever\"",
        "key chain chain",
        false,
    ),
    (
        "allow_gaps",
        "allow_gaps = false",
        "allow_gaps = true",
        "key chain chain",
        false,
    ),
    (
        "on_expiry",
        "on_expiry = \"keep\"\n[[",
        "on_expiry = \"close\"\n[[",
        "key chain chain",
        false,
    ),
];
const IN_KEY: &[Row] = &[
    (
        "send_id",
        "send_id = 1\n",
        "send_id = 2\n",
        "key chain chain",
        false,
    ),
    (
        "recv_id",
        "recv_id = 1\n",
        "recv_id = 2\n",
        "key chain chain",
        false,
    ),
    (
        "algorithm",
        "hmac-sha-1-96",
        "hmac-sha-256-96",
        "key chain chain",
        false,
    ),
    (
        "secret",
        "secret = \"hunter2\"",
        "secret = \"hunter2+\"",
        "key chain chain",
        false,
    ),
    (
        "secret_hex",
        "secret = \"hunter2\"",
        "secret_hex = \"0001\"",
        "key chain chain",
        false,
    ),
    (
        "secret_file",
        "secret = \"hunter2\"",
        "secret_file = \"SECRET\"",
        "key chain chain",
        false,
    ),
    (
        "include_tcp_options",
        "options = true",
        "options = false",
        "key chain chain",
        false,
    ),
    (
        "lifetime",
        "end = 2027",
        "end = 2028",
        "key chain chain",
        false,
    ),
    (
        "send_lifetime",
        "lifetime = {",
        "accept_lifetime = \"always\"\nsend_lifetime = {",
        "key chain chain",
        false,
    ),
    (
        "accept_lifetime",
        "lifetime = {",
        "accept_lifetime = { end = 2028-01-01T00:00:00Z }\nsend_lifetime = {",
        "key chain chain",
        false,
    ),
];
const IN_PEER: &[Row] = &[
    ("address", "10.0.0.2", "10.0.0.5", "peer manual", false),
    (
        "key_chain",
        "key_chain = \"chain\"\nports",
        "key_chain = \"other\"\nports",
        "peer manual",
        false,
    ),
    ("rollover", ROLLOVER_FROM, ROLLOVER_TO, "peer manual", false),
    ("port", "port = 1790", "port = 1791", "peer local", false),
    ("ports", "179-180", "179-181", "peer manual", false),
    (
        "local_address",
        "local_address = \"10.0.0.1\"",
        "",
        "peer manual",
        false,
    ),
    ("interface", "\"eth0\"", "\"eth1\"", "peer local", false),
    ("vrf", "\"red\"", "\"blue\"", "peer manual", false),
    (
        "ttl_min",
        "ttl_min = 0",
        "ttl_min = 254",
        "peer manual",
        false,
    ),
    (
        "datapath",
        "ttl_min = 0",
        "ttl_min = 0\ndatapath = \"kernel\"",
        "peer manual",
        false,
    ),
];
const ROLLOVER_FROM: &str = r#"key_chain = "chain"
ports = "179-180"
local_address = "10.0.0.1"
vrf = "red"
ttl_min = 0
"#;
const ROLLOVER_TO: &str = r#"ports = "179-180"
local_address = "10.0.0.1"
vrf = "red"
ttl_min = 0
[peer.rollover]
endpoint = "10.0.0.2:7179"
ca_file = "one.pem"
name = "three.example.net"
"#;
const IN_ROLLOVER: &[Row] = &[
    (
        "endpoint",
        "10.0.0.3:7179",
        "10.0.0.3:7180",
        "peer agreed",
        false,
    ),
    (
        "fingerprint",
        "sha256:0011",
        "sha256:1111",
        "peer agreed",
        false,
    ),
    (
        "ca_file",
        "ca_file = \"one.pem\"\nname",
        "ca_file = \"two.pem\"\nname",
        "peer certified",
        false,
    ),
    (
        "name",
        "one.example.net",
        "two.example.net",
        "peer certified",
        false,
    ),
    (
        "algorithm",
        "\"aes-128-cmac-96\"",
        "[\"aes-128-cmac-96\", \"hmac-sha-1-96\"]",
        "peer agreed",
        false,
    ),
    ("interval", "24h", "25h", "peer agreed", false),
    ("overlap", "\"1h\"", "\"2h\"", "peer agreed", false),
    ("runway", "runway = 2", "runway = 3", "peer agreed", false),
    ("highest_id", "= 63", "= 64", "peer agreed", false),
    ("label", "\"l1\"", "\"l2\"", "peer agreed", false),
];

/// Each kind of table with its rows, and the keys that have other tables under them or whose change
/// makes another object.
fn every_table() -> Vec<(&'static Schema, &'static [Row], &'static [&'static str])> {
    let sections = &[
        "log",
        "userspace",
        "identity",
        "peering",
        "store",
        "api",
        "metrics",
        "key_chain",
        "peer",
    ];
    vec![
        (&ROOT, TOP, sections),
        (&LOG, IN_LOG, &[]),
        (&USERSPACE, IN_USERSPACE, &[]),
        (&rollover::IDENTITY, IN_IDENTITY, &[]),
        (&rollover::PEERING, IN_PEERING, &[]),
        (&rollover::STORE, IN_STORE, &[]),
        (&api::API, IN_API, &["tcp"]),
        (&api::TCP, IN_TCP, &[]),
        (&api::METRICS, IN_METRICS, &[]),
        (&key_chain::KEY_CHAIN, IN_CHAIN, &["name", "key"]),
        (&key_chain::KEY, IN_KEY, &[]),
        (&peer::PEER, IN_PEER, &["name"]),
        (&rollover::ROLLOVER, IN_ROLLOVER, &[]),
    ]
}

#[test]
fn each_key_changed_alone_is_one_change() {
    let folder = folder();
    let secret = folder.path().join("secret");
    fs::write(&secret, "hunter2 in a file").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let base = read(&folder, ALL);
    let mut all = String::new();
    for (schema, rows, other) in every_table() {
        let mut keys: Vec<&str> = [schema.required, schema.optional].concat();
        keys.retain(|key| !other.contains(key));
        let mut tested: Vec<&str> = rows.iter().map(|row| row.0).collect();
        keys.sort_unstable();
        tested.sort_unstable();
        assert_eq!(keys, tested, "of {}", schema.title);
        for (key, from, to, subject, needs_restart) in rows {
            assert!(ALL.contains(from), "{from}");
            let text = ALL.replacen(from, &to.replace("SECRET", "secret"), 1);
            let changes = diff(&base, &read(&folder, &text), now());
            // The backend of all peers that do not say is that of each of them.
            let [change, more @ ..] = &changes[..] else {
                panic!("{key} of {} makes no difference", schema.title)
            };
            assert!(
                more.is_empty() || (*key == "datapath" && more.len() == 3),
                "{changes:?}"
            );
            assert_eq!(change.subject, *subject, "{key} of {}", schema.title);
            assert_eq!(change.kind, ChangeKind::Changed);
            assert_eq!(
                change.needs_restart, *needs_restart,
                "{key} of {}",
                schema.title
            );
            assert!(!change.details.is_empty());
            all.push_str(&shown(change));
        }
    }
    let all = all.replace(folder.path().to_str().unwrap(), "DIR");
    assert!(!all.contains(MARK), "{all}");
    assert_snapshot!(all, @r##"
~ peer manual: datapath "auto" becomes "userspace" => its sessions are closed if another backend serves it from then on
~ state_dir: state_dir "/var/lib/one" becomes "/var/lib/two" (restart)
~ api_socket: api_socket "/run/one.sock" becomes "/run/two.sock" (restart)
~ on_exit: on_exit "keep" becomes "remove" (restart)
~ [log]: format "text" becomes "json" (restart)
~ [log]: level "info" becomes "debug"
~ [userspace]: first_queue 100 becomes 101 (restart)
~ [userspace]: workers 2 becomes 3 (restart)
~ [userspace]: queue_length 4096 becomes 100 (restart)
~ [userspace]: mark_bit 0x00000010 becomes 0x00000020 (restart)
~ [userspace]: max_connections 4096 becomes 100 (restart)
~ [userspace]: strip "auto" becomes "never" (restart)
~ [identity]: cert_file "DIR/one.pem" becomes "DIR/two.pem" (restart)
~ [identity]: key_file "DIR/one.pem" becomes "DIR/two.pem" (restart)
~ [peering]: listen ["10.0.0.1:7179"] becomes ["10.0.0.2:7179"] (restart)
~ [store]: key_file "DIR/one.pem" becomes "DIR/two.pem" (restart)
~ [api]: viewer_group "v1" becomes "v2"
~ [api]: operator_group "o1" becomes "o2"
~ [api]: admin_group "a1" becomes none
~ [api.tcp]: listen ["10.0.0.1:7180"] becomes ["10.0.0.2:7180"] (restart)
~ [api.tcp]: certificate_file "DIR/one.pem" becomes "DIR/two.pem" (restart)
~ [api.tcp]: key_file "DIR/one.pem" becomes "DIR/two.pem" (restart)
~ [api.tcp]: ca_file "DIR/one.pem" becomes "DIR/two.pem" (restart)
~ [api.tcp]: viewers ["v1.example.net"] becomes ["v2.example.net"]
~ [api.tcp]: operators ["o1.example.net"] becomes ["o2.example.net"]
~ [api.tcp]: admins ["a1.example.net"] becomes ["a2.example.net"]
~ [metrics]: listen "10.0.0.1:9179" becomes "10.0.0.1:9180" (restart)
~ key chain chain: accept_tolerance "5m" becomes "forever"
~ key chain chain: allow_gaps false becomes true
~ key chain chain: on_expiry "keep" becomes "close"
~ key chain chain: key 2/1 is new, key 1/1 is gone => the key in use (send 1, recv 1) goes: sessions of manual, local are cut until the far end uses another
~ key chain chain: key 1/2 is new, key 1/1 is gone => the key in use (send 1, recv 1) goes: sessions of manual, local are cut until the far end uses another
~ key chain chain: key 1/1: algorithm "hmac-sha-1-96" becomes "hmac-sha-256-96" => another algorithm under the IDs in use (send 1, recv 1): sessions of manual, local are cut until the far end has it, too
~ key chain chain: key 1/1 has another secret => another secret under the IDs in use (send 1, recv 1): sessions of manual, local are cut until the far end has it, too
~ key chain chain: key 1/1 has another secret => another secret under the IDs in use (send 1, recv 1): sessions of manual, local are cut until the far end has it, too
~ key chain chain: key 1/1 has another secret => another secret under the IDs in use (send 1, recv 1): sessions of manual, local are cut until the far end has it, too
~ key chain chain: key 1/1: include_tcp_options true becomes false => another include_tcp_options under the IDs in use (send 1, recv 1): sessions of manual, local are cut until the far end has it, too
~ key chain chain: key 1/1: send_lifetime { start = "2026-01-01T00:00:00Z", end = "2027-01-01T00:00:00Z" } becomes { start = "2026-01-01T00:00:00Z", end = "2028-01-01T00:00:00Z" }, key 1/1: accept_lifetime { start = "2026-01-01T00:00:00Z", end = "2027-01-01T00:00:00Z" } becomes { start = "2026-01-01T00:00:00Z", end = "2028-01-01T00:00:00Z" }
~ key chain chain: key 1/1: accept_lifetime { start = "2026-01-01T00:00:00Z", end = "2027-01-01T00:00:00Z" } becomes "always"
~ key chain chain: key 1/1: accept_lifetime { start = "2026-01-01T00:00:00Z", end = "2027-01-01T00:00:00Z" } becomes { end = "2028-01-01T00:00:00Z" }
~ peer manual: address "10.0.0.2" becomes "10.0.0.5" => its sessions are closed
~ peer manual: key_chain "chain" becomes "other"
~ peer manual: key_chain "chain" becomes none, rollover: endpoint none becomes "10.0.0.2:7179" => it is blocked until keys are agreed with its sidecar
~ peer local: ports "1790-1790" becomes "1791-1791" => sessions with ports that it has no more are closed, and not protected any more
~ peer manual: ports "179-180" becomes "179-181"
~ peer manual: local_address "10.0.0.1" becomes none => its sessions are closed
~ peer local: interface "eth0" becomes "eth1" => its sessions are closed
~ peer manual: vrf "red" becomes "blue" => its sessions are closed
~ peer manual: ttl_min 0 becomes 254
~ peer manual: datapath "auto" becomes "kernel" => its sessions are closed if another backend serves it from then on
~ peer agreed: rollover: endpoint "10.0.0.3:7179" becomes "10.0.0.3:7180"
~ peer agreed: rollover: fingerprint "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff" becomes "sha256:11112233445566778899aabbccddeeff00112233445566778899aabbccddeeff" => keys that were agreed with another far end are not used any more
~ peer certified: rollover: ca_file "DIR/one.pem" becomes "DIR/two.pem"
~ peer certified: rollover: name "one.example.net" becomes "two.example.net" => keys that were agreed with another far end are not used any more
~ peer agreed: rollover: algorithm ["aes-128-cmac-96"] becomes ["aes-128-cmac-96", "hmac-sha-1-96"]
~ peer agreed: rollover: interval "1day" becomes "1day 1h"
~ peer agreed: rollover: overlap "1h" becomes "2h"
~ peer agreed: rollover: runway 2 becomes 3
~ peer agreed: rollover: highest_id 63 becomes 64
~ peer agreed: rollover: label "l1" becomes "l2"
"##);
}

fn shown(change: &ConfigChange) -> String {
    let ConfigChange {
        subject,
        kind,
        details,
        effect,
        needs_restart,
    } = change;
    let restart = if *needs_restart { " (restart)" } else { "" };
    let sign = match kind {
        ChangeKind::Added => '+',
        ChangeKind::Removed => '-',
        ChangeKind::Changed => '~',
    };
    let effect = if effect.is_empty() {
        String::new()
    } else {
        format!(" => {effect}")
    };
    format!(
        "{sign} {subject}: {}{effect}{restart}\n",
        details.join(", ")
    )
}

fn told(one: &str, other: &str) -> String {
    let folder = folder();
    let changes = diff(&read(&folder, one), &read(&folder, other), now());
    let told: String = changes.iter().map(shown).collect();
    assert!(!told.contains(MARK), "{told}");
    told
}

#[test]
fn what_has_moved_is_no_change() {
    assert_eq!(told(ALL, ALL), "");
    let at = ALL.find("[[peer]]\nname = \"local\"").unwrap();
    let (before, after) = ALL.split_at(at);
    let (local, rest) = after.split_at(after[1..].find("[[peer]]").unwrap() + 1);
    let moved = format!("{before}{rest}{local}");
    assert_eq!(told(ALL, &moved), "");
    let comments = ALL.replace("[[", "# a comment\n[[");
    assert_eq!(told(ALL, &comments), "");
}

#[test]
fn the_same_made_by_api_is_no_change() {
    let folder = folder();
    let text = format!("{CHAIN}{PEER}");
    let made = Overlay {
        peers: vec![grpc_api::operator::administration::PeerSpec {
            name: "b".to_owned(),
            address: "10.0.0.9".to_owned(),
            key_chain: "transit".to_owned(),
            ..Default::default()
        }],
        chains: Vec::new(),
    };
    let file = folder.path().join("ao.toml");
    let by_api = parse_with(&text, &file, 0o600, &made).unwrap();
    let second = PEER.replace("as64502", "b").replace("0.2", "0.9");
    let in_file = read(&folder, &format!("{text}{second}"));
    assert_eq!(diff(&by_api, &in_file, now()), []);
    assert_eq!(diff(&in_file, &by_api, now()), []);
}

#[test]
fn changes_of_keys_in_use_are_told_with_the_peers() {
    let second = "[[key_chain.key]]\nsend_id = 2\nrecv_id = 3\nalgorithm = \"hmac-sha-1-96\"\n\
                  secret = \"hunter2\"\n";
    let one = format!("{CHAIN}{PEER}");
    let both = format!("{CHAIN}{second}{PEER}");
    let other = "[[key_chain]]\nname = \"other\"\n";
    let other = format!("{other}{second}");
    let ended = "hunter2\"\nlifetime = { end = 2026-02-01T00:00:00Z }\n";
    let to_come = "hunter2\"\nlifetime = { start = 2026-07-01T00:00:00Z }\n";
    let past = both.replace("hunter2\"\n", ended);
    let future = both.replace("hunter2\"\n", to_come);
    let close = "name = \"transit\"\non_expiry = \"close\"";
    let many: String = (2..9)
        .map(|n| {
            PEER.replace("as64502", &format!("p{n}"))
                .replace("0.2", &format!("1.{n}"))
        })
        .collect();
    let many = format!("{one}{many}");
    let secret = |text: &str| text.replace("hunter2 is", "hunter2 was");
    let elsewhere = format!("{other}{one}");
    let moved = elsewhere.replace("key_chain = \"transit\"", "key_chain = \"other\"");
    let ends_closed = one.replace("name = \"transit\"", close).replace(
        "the secret\"",
        "the secret\"\nlifetime = { end = 2026-02-01T00:00:00Z }",
    );
    let goes =
        "the key accepted now (send 2, recv 3) goes: sessions of as64502 that use it are cut";
    let rows = [
        // Not the one in use, but accepted.
        (&both, one.clone(), goes),
        (&both, both.replacen("recv_id = 3", "recv_id = 4", 1), goes),
        // Its end is over, or its start to come.
        (&past, one.clone(), ""),
        (&future, one.clone(), ""),
        (
            &one,
            secret(&one),
            "another secret under the IDs in use (send 1, recv 1): sessions of as64502 are cut \
             until the far end has it, too",
        ),
        (
            &many,
            secret(&many),
            "another secret under the IDs in use (send 1, recv 1): sessions of as64502, p2, p3, \
             p4, p5 and 3 more are cut until the far end has it, too",
        ),
        (
            &one,
            ends_closed,
            "sessions of as64502 are closed: there is no key that is accepted now",
        ),
        // Another chain, and one that nobody has.
        (
            &elsewhere,
            moved,
            "the key in use (send 1, recv 1) goes: sessions of as64502 are cut until the far end \
             uses another",
        ),
        (
            &elsewhere,
            elsewhere.replace("recv_id = 3", "recv_id = 4"),
            "",
        ),
    ];
    let folder = folder();
    for (former, fresh, effect) in rows {
        let changes = diff(&read(&folder, former), &read(&folder, &fresh), now());
        let [change] = &changes[..] else {
            panic!("{changes:?}")
        };
        assert_eq!(change.effect, effect, "{:?}", change.details);
    }
}

#[test]
fn objects_come_and_go() {
    let second = "[[key_chain.key]]\nsend_id = 2\nrecv_id = 2\nalgorithm = \"hmac-sha-1-96\"\n\
                  secret = \"hunter2\"\n";
    let first = CHAIN.split_at(CHAIN.find("[[key_chain.key]]").unwrap());
    let both = format!("{CHAIN}{second}{PEER}");
    let exchanged = format!("{}{second}{}{PEER}", first.0, first.1);
    let one = format!("{CHAIN}{PEER}");
    let renamed = one.replace("as64502", "as64503");
    let agreed = one.replace(
        "key_chain = \"transit\"\n",
        "[peer.rollover]\nendpoint = \"10.0.0.2:1\"\nca_file = \"one.pem\"\nname = \"a\"\n",
    );
    let other_chain = one.replace("transit", "elsewhere");
    let all = [
        told(&one, &both),
        told(&both, &one),
        told(&both, &exchanged),
        told(&one, &renamed),
        told(&one, &other_chain),
        told(&one, &agreed),
        told(&agreed, &one),
        told(&agreed, &agreed.replace("\"a\"", "\"b\"")),
        told(&one, &one.replace("10.0.0.2", "10.0.0.0/24")),
        told(&one, &format!("{one}port = 180\n")),
        told(&one, &format!("{one}ports = \"100-200\"\n")),
        told(
            &one,
            &format!("[metrics]\nlisten = \"127.0.0.1:9179\"\n{one}"),
        ),
        told(
            ALL,
            &ALL.replace("\"json\"", "").replace(
                "format = \"text\"\nlevel = \"info\"",
                "format = \"json\"\nlevel = \"warn\"",
            ),
        ),
    ];
    assert_snapshot!(all.join("\n"), @r##"
~ key chain transit: key 2/2 is new

~ key chain transit: key 2/2 is gone => the key accepted now (send 2, recv 2) goes: sessions of as64502 that use it are cut

~ key chain transit: its keys have another order

+ peer as64503: address "10.0.0.2", key_chain "transit" => sessions with it are refused unless they are signed
- peer as64502: address "10.0.0.2", key_chain "transit" => its sessions are closed, and not protected any more

+ key chain elsewhere: key 1/1
- key chain transit: key 1/1
~ peer as64502: key_chain "transit" becomes "elsewhere"

~ peer as64502: key_chain "transit" becomes none, rollover: endpoint none becomes "10.0.0.2:1" => it is blocked until keys are agreed with its sidecar

~ peer as64502: key_chain none becomes "transit", rollover: endpoint "10.0.0.2:1" becomes none => its agreed keys are destroyed: the far end needs the key chain, too

~ peer as64502: rollover: name "a" becomes "b" => keys that were agreed with another far end are not used any more

~ peer as64502: address "10.0.0.2" becomes "10.0.0.0/24" => its sessions are closed

~ peer as64502: ports "179-179" becomes "180-180" => sessions with ports that it has no more are closed, and not protected any more

~ peer as64502: ports "179-179" becomes "100-200"

~ [metrics]: listen none becomes "127.0.0.1:9179" (restart)

~ [log]: format "text" becomes "json" (restart)
~ [log]: level "info" becomes "warn"
"##);
}
