use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ao_engine::crypto::Algorithm;
use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

mod api;
mod diff;
mod files;
mod lifetimes;
mod rollover;
mod text;

/// Stands in every secret of these tests, and must never come out.
const MARK: &str = "hunter2";

const CHAIN: &str = r#"[[key_chain]]
name = "transit"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "hunter2 is the secret"
"#;

const PEER: &str = r#"[[peer]]
name = "as64502"
address = "10.0.0.2"
key_chain = "transit"
"#;

/// 2026-06-01T00:00:00Z.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_272_000)
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_as(text, Path::new("/etc/ao.toml"), 0o600)
}

fn parse_as(text: &str, file: &Path, mode: u32) -> Result<Config, ConfigError> {
    parse_with(text, file, mode, &Overlay::default())
}

fn parse_with(text: &str, file: &Path, mode: u32, made: &Overlay) -> Result<Config, ConfigError> {
    let source = Source {
        text: Arc::new(Zeroizing::new(text.to_owned())),
        file: file.to_owned(),
        mode,
    };
    Config::parse(&source, Files::of(file), made, now())
}

fn accepted(text: &str) -> Config {
    let config = parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert!(
        !format!("{config:?}").contains(MARK),
        "a secret shows: {config:?}"
    );
    config
}

/// What is said about a text that must be refused.
fn refused(text: &str) -> String {
    told(parse(text))
}

fn told(result: Result<Config, ConfigError>) -> String {
    let error = result.unwrap_err();
    let shown = error.to_string();
    assert!(
        !format!("{error:?} {shown}").contains(MARK),
        "a secret shows: {shown}"
    );
    shown
}

/// A chain whose one key has these lines after its IDs and algorithm, which take 6 lines.
fn with_secret(lines: &str) -> String {
    let chain = CHAIN.lines().take(6).collect::<Vec<_>>().join("\n");
    format!("{chain}\n{lines}\n{PEER}")
}

/// A correct chain in 7 lines, then a peer with these lines after its header and name.
fn with_peer(lines: &str) -> String {
    format!("{CHAIN}[[peer]]\nname = \"p\"\n{lines}\n")
}

#[test]
fn the_least_configuration_gets_the_documented_defaults() {
    let config = accepted(&format!("{CHAIN}{PEER}"));
    assert_eq!(config.peers[0].spec.datapath, Choice::Auto);
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.level, tracing::Level::INFO);
    assert_eq!(config.api_socket, Path::new("/run/ao-sidecar/api.sock"));
    let settings = config.settings(false);
    assert_eq!(settings.state_dir, Path::new("/var/lib/ao-sidecar"));
    assert_eq!(settings.on_exit, OnExit::Keep);
    assert_eq!(settings.strip, Strip::Auto);
    assert_eq!(
        (
            settings.first_queue,
            settings.queue_length,
            settings.mark_bit,
            settings.max_connections
        ),
        (7900, 4096, 0x0800_0000, 4096)
    );
    assert!((1..=2).contains(&settings.workers));
    let [peer] = &settings.peers[..] else {
        panic!("one peer")
    };
    assert_eq!(
        (&*peer.name, peer.remote.to_string()),
        ("as64502", "10.0.0.2".to_owned())
    );
    assert_eq!((peer.ports.clone(), peer.ttl_min), (179..=179, 0));
    assert_eq!(
        (&peer.local, &peer.interface, &peer.vrf),
        (&None, &None, &None)
    );
    let [mkt] = &peer.keys[..] else {
        panic!("one key")
    };
    assert_eq!(
        (mkt.send_id, mkt.recv_id, mkt.include_options),
        (1, 1, true)
    );
    assert_eq!(mkt.master_key.expose(), b"hunter2 is the secret");
}

#[test]
fn every_key_is_read() {
    let text = r#"
datapath = "userspace"
state_dir = "/tmp/state"
api_socket = "/tmp/api.sock"
on_exit = "remove"
[log]
format = "json"
level = "debug"
[userspace]
first_queue = 100
workers = 3
queue_length = 65_536
mark_bit = "0x10"
max_connections = 16
strip = "never"
[[key_chain]]
name = "ix"
[[key_chain.key]]
send_id = 0
recv_id = 255
algorithm = "hmac-sha-256-128"
secret_hex = "0001ff"
include_tcp_options = false
[[key_chain.key]]
send_id = 7
recv_id = 0
algorithm = "aes-128-cmac-96"
secret = "hunter2 \u00e9"
[[peer]]
name = "rs1"
address = "fe80::1%eth0"
ports = "179-181"
key_chain = "ix"
local_address = "fe80::2"
vrf = "blue"
ttl_min = 255
[[peer]]
name = "clients"
address = "2001:db8::/64"
port = 1790
key_chain = "ix"
"#;
    let config = accepted(text);
    assert_eq!(config.peers[0].spec.datapath, Choice::Userspace);
    assert_eq!(config.api_socket, Path::new("/tmp/api.sock"));
    assert_eq!(
        (config.log.format, config.log.level),
        (LogFormat::Json, tracing::Level::DEBUG)
    );
    let settings = config.settings(true);
    assert!(settings.replace_sessions);
    assert_eq!(settings.state_dir, Path::new("/tmp/state"));
    assert_eq!(
        (settings.on_exit, settings.strip),
        (OnExit::Remove, Strip::Never)
    );
    assert_eq!(
        (
            settings.first_queue,
            settings.workers,
            settings.queue_length
        ),
        (100, 3, 65_536)
    );
    assert_eq!((settings.mark_bit, settings.max_connections), (0x10, 16));
    let [one, two] = &settings.peers[..] else {
        panic!("two peers")
    };
    assert_eq!(one.interface.as_deref(), Some("eth0"));
    assert_eq!(one.vrf.as_deref(), Some("blue"));
    assert_eq!(one.local, Some("fe80::2".parse().unwrap()));
    assert_eq!((one.ports.clone(), one.ttl_min), (179..=181, 255));
    assert_eq!(
        (two.remote.to_string(), two.ports.clone()),
        ("2001:db8::/64".into(), 1790..=1790)
    );
    assert_eq!(one.keys[0].master_key.expose(), [0x00, 0x01, 0xff]);
    assert_eq!(one.keys[1].master_key.expose(), "hunter2 é".as_bytes());
    assert!(!one.keys[0].include_options && one.keys[1].include_options);
    assert!(
        Arc::ptr_eq(&one.keys[0], &two.keys[0]),
        "peers share the chain's keys"
    );
}

#[test]
fn mark_bits_are_integers_or_hexadecimal_texts() {
    let with = |bit: &str| format!("[userspace]\nmark_bit = {bit}\n{CHAIN}{PEER}");
    assert_eq!(
        accepted(&with("0x08000000")).settings(false).mark_bit,
        0x0800_0000
    );
    assert_eq!(
        accepted(&with("\"0x80000000\"")).settings(false).mark_bit,
        1 << 31
    );
    assert_snapshot!(refused(&with("3")), @"/etc/ao.toml:2:12: 0x00000003 is not a single bit; write one like 0x08000000");
    assert_snapshot!(refused(&with("\"8\"")), @r#"/etc/ao.toml:2:12: "8" is no mark; write one like "0x08000000""#);
    assert_snapshot!(refused(&with("0x100000000")), @"/etc/ao.toml:2:12: `mark_bit` is out of range; write 1 to 4294967295");
}

#[test]
fn unknown_keys_name_the_nearest_one() {
    let text = format!(
        "datapth = \"auto\"\nx = 1\n[log]\nlvel = \"info\"\n[userspace]\nworker = 1\n{}\nadress = \
         \"10.0.0.2\"\n",
        with_secret("secert = \"hunter2\"")
    );
    assert_snapshot!(refused(&text), @r#"
/etc/ao.toml:1:1: unknown key `datapth` in the configuration; write `datapath`
/etc/ao.toml:2:1: unknown key `x` in the configuration; write one of `datapath`, `state_dir`, `api_socket`, `on_exit`, `log`, `userspace`, `identity`, `peering`, `store`, `api`, `metrics`, `key_chain`, `peer`
/etc/ao.toml:4:1: unknown key `lvel` in [log]; write `level`
/etc/ao.toml:6:1: unknown key `worker` in [userspace]; write `workers`
/etc/ao.toml:9:1: the key has no secret; write exactly one of `secret_file`, `secret_hex`, `secret`
/etc/ao.toml:13:1: unknown key `secert` in [[key_chain.key]]; write `secret`
/etc/ao.toml:19:1: unknown key `adress` in [[peer]]; write `address`
"#);
}

#[test]
fn overlapping_ids_are_refused() {
    let chain = |send, recv| {
        let key = CHAIN.lines().skip(5).collect::<Vec<_>>().join("\n");
        format!("{CHAIN}[[key_chain.key]]\nrecv_id = {recv}\nsend_id = {send}\n{key}\n{PEER}")
    };
    accepted(&chain(2, 2));
    assert_snapshot!(refused(&chain(1, 2)), @r#"/etc/ao.toml:10:11: key chain "transit" is refused: two keys have send_id 1; the other is in line 4; write an ID that the chain does not have, or lifetimes that are at least twice `accept_tolerance` apart"#);
    assert_snapshot!(refused(&chain(2, 1)), @r#"/etc/ao.toml:9:11: key chain "transit" is refused: two keys have recv_id 1; the other is in line 5; write an ID that the chain does not have, or lifetimes that are at least twice `accept_tolerance` apart"#);
}

#[test]
fn ids_and_algorithms_are_checked() {
    let text = format!("{CHAIN}{PEER}").replace("send_id = 1", "send_id = 256");
    let text = text
        .replace("recv_id = 1", "recv_id = -1")
        .replace("sha-1-96", "sha1-96");
    assert_snapshot!(refused(&text), @r#"
/etc/ao.toml:4:11: `send_id` is out of range; write 0 to 255
/etc/ao.toml:5:11: `recv_id` is out of range; write 0 to 255
/etc/ao.toml:6:13: unknown algorithm "hmac-sha1-96"; write `hmac-sha-1-96`
"#);
    let text = format!("{CHAIN}{PEER}").replace("hmac-sha-1-96", "md5");
    assert_snapshot!(refused(&text), @r#"/etc/ao.toml:6:13: unknown algorithm "md5"; write one of `hmac-sha-1-96`, `aes-128-cmac-96`, `hmac-sha-256-96`, `hmac-sha-256-128`"#);
}

#[test]
fn a_key_has_exactly_one_good_secret() {
    let long = format!("secret = \"hunter2{}\"", "x".repeat(74));
    let lines = [
        "",
        "secret = \"hunter2\"\nsecret_hex = \"00\"",
        "secret = \"\"",
        &long,
        "secret_hex = \"\"",
        "secret_hex = \"hunter2\"",
        "secret_hex = \"123\"",
        "secret_file = \"\"",
    ];
    let all: Vec<String> = lines
        .iter()
        .map(|lines| refused(&with_secret(lines)))
        .collect();
    assert_snapshot!(all.join("\n"), @r"
/etc/ao.toml:3:1: the key has no secret; write exactly one of `secret_file`, `secret_hex`, `secret`
/etc/ao.toml:8:14: the key has `secret` and `secret_hex`; write exactly one of `secret_file`, `secret_hex`, `secret`
/etc/ao.toml:7:10: the secret is empty; write 1 to 80 octets
/etc/ao.toml:7:10: the secret is too long; write 1 to 80 octets
/etc/ao.toml:7:14: the secret is empty; write 1 to 80 octets
/etc/ao.toml:7:14: the secret is no hexadecimal number; write two digits for each octet
/etc/ao.toml:7:14: the secret is no hexadecimal number; write two digits for each octet
/etc/ao.toml:7:15: `secret_file` is empty; write the name of the file
");
}

#[test]
fn wrong_types_are_told_without_the_value() {
    let lines = [
        "secret = [\"hunter2\"]",
        "secret = 4711",
        "secret = 2020-01-01",
        "secret_file = { hunter2 = \"hunter2\" }",
        "secret = \"s\"\ninclude_tcp_options = \"hunter2\"",
        "secret = \"s\"\n[[key_chain]]\nname = 5\nkey = \"hunter2\"",
    ];
    let all: Vec<String> = lines
        .iter()
        .map(|lines| refused(&with_secret(lines)))
        .collect();
    let all = all.join("\n");
    assert!(!all.contains("4711"));
    assert_snapshot!(all, @r"
/etc/ao.toml:7:10: `secret` is of type array; write a string
/etc/ao.toml:7:10: `secret` is of type integer; write a string
/etc/ao.toml:7:10: `secret` is of type datetime; write a string
/etc/ao.toml:7:15: `secret_file` is of type table; write a string
/etc/ao.toml:8:23: `include_tcp_options` is of type string; write true or false
/etc/ao.toml:9:8: `name` is of type integer; write a string
/etc/ao.toml:10:7: write [[key_chain.key]] instead of `key`
");
    let text = format!("log = 1\n{CHAIN}{PEER}").replace("send_id = 1", "send_id = \"hunter2\"");
    assert_snapshot!(refused(&text), @r"
/etc/ao.toml:1:7: `log` is no table; write [log]
/etc/ao.toml:5:11: `send_id` is of type string; write an integer from 0 to 255
");
    assert_snapshot!(refused("peer = 1\n[key_chain]\nname = \"a\""), @r"
/etc/ao.toml:1:1: there is no [[peer]], so nothing to protect; add one
/etc/ao.toml:1:8: write [[peer]] instead of `peer`
/etc/ao.toml:2:1: write [[key_chain]] instead of `key_chain`
");
}

#[test]
fn syntax_errors_are_told_without_the_line() {
    let lines = [
        "secret = hunter2",
        "secret = \"hunter2",
        "secret \"hunter2\"",
        "secret = \"hunter2\" hunter2",
        "secret = \"hunter2\\q\"",
        "secret = \"a\"\nsecret = \"hunter2\"",
        "secret = '''hunter2",
    ];
    let all: Vec<String> = lines
        .iter()
        .map(|lines| refused(&with_secret(lines)))
        .collect();
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml:7:10: not TOML: string values must be quoted, expected literal string
/etc/ao.toml:7:18: not TOML: invalid basic string, expected `"`
/etc/ao.toml:7:8: not TOML: key with no value, expected `=`
/etc/ao.toml:7:20: not TOML: unexpected key or value, expected newline, `#`
/etc/ao.toml:7:19: not TOML: missing escaped value, expected `b`, `e`, `f`, `n`, `r`, `\`, `"`, `x`, `u`, `U`
/etc/ao.toml:8:1: not TOML: duplicate key
/etc/ao.toml:12:1: not TOML: invalid multi-line literal string, expected `'`
"#);
}

#[test]
fn secret_files_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, contents: &str, mode| {
        let path = folder.path().join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    };
    write("good", "hunter2\n", 0o600);
    write("open", "hunter2", 0o644);
    write("empty", "\n", 0o600);
    write("long", &MARK.repeat(12), 0o600);
    let parse = |name: &str| {
        let text = with_secret(&format!("secret_file = {name:?}"));
        parse_as(&text, &folder.path().join("ao.toml"), 0o644)
    };
    let config = parse("good").unwrap();
    assert_eq!(config.peers[0].spec.keys[0].master_key.expose(), b"hunter2");
    let absolute = folder.path().join("good");
    assert!(parse(absolute.to_str().unwrap()).is_ok());

    let all: Vec<String> = ["absent", "open", "empty", "long", "."]
        .iter()
        .map(|name| told(parse(name)))
        .collect();
    let all = all
        .join("\n")
        .replace(folder.path().to_str().unwrap(), "DIR");
    assert_snapshot!(all, @r"
DIR/ao.toml:7:15: secret file DIR/absent cannot be read: No such file or directory (os error 2): write the name of a file that holds the secret
DIR/ao.toml:7:15: secret file DIR/open is readable by others (mode 0644): chmod 600 DIR/open
DIR/ao.toml:7:15: secret file DIR/empty is empty: write the secret into it
DIR/ao.toml:7:15: secret file DIR/long holds more than 80 octets: write a secret of 1 to 80 octets into it
DIR/ao.toml:7:15: secret file DIR/. is not a regular file: write the name of a regular file
");
}

#[test]
fn secrets_in_a_readable_configuration_are_refused() {
    let parse = |lines: &str, mode| {
        let file = Path::new("/etc/ao.toml");
        parse_as(&with_secret(lines), file, mode)
    };
    assert!(parse("secret_hex = \"00\"", 0o400).is_ok());
    assert_snapshot!(told(parse("secret_hex = \"00\"", 0o640)), @"/etc/ao.toml:7:14: the file holds a secret and is readable by others (mode 0640): chmod 600 /etc/ao.toml, or write `secret_file` with a file of its own");
    assert_snapshot!(told(parse("secret = \"hunter2\"", 0o604)), @"/etc/ao.toml:7:10: the file holds a secret and is readable by others (mode 0604): chmod 600 /etc/ao.toml, or write `secret_file` with a file of its own");
}

#[test]
fn addresses_are_checked() {
    let addresses = [
        "10.0.0.256",
        "10.0.0.2/24",
        "10.0.0.0/33",
        "2001:db8::1/64",
        "224.0.0.1",
        "0.0.0.0",
        "::ffff:10.0.0.2",
        "fe80::1",
        "fe80::1%",
        "10.0.0.2%eth0",
        "localhost",
    ];
    let peer =
        |address: &str| with_peer(&format!("key_chain = \"transit\"\naddress = \"{address}\""));
    let all: Vec<String> = addresses
        .iter()
        .map(|address| refused(&peer(address)))
        .collect();
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml:11:11: "10.0.0.256" is no IP address; write one like "10.0.0.2", "2001:db8::2", "10.0.0.0/24" or "fe80::1%eth0"
/etc/ao.toml:11:11: "10.0.0.2/24" has address bits beyond the prefix; write "10.0.0.0/24" for the network or "10.0.0.2" for the one address
/etc/ao.toml:11:11: "33" is no prefix length; write 0 to 32
/etc/ao.toml:11:11: "2001:db8::1/64" has address bits beyond the prefix; write "2001:db8::/64" for the network or "2001:db8::1" for the one address
/etc/ao.toml:11:11: "224.0.0.1" is no address of a host; write a unicast address
/etc/ao.toml:11:11: "0.0.0.0" is no address of a host; write a unicast address
/etc/ao.toml:11:11: sessions with "::ffff:10.0.0.2" are IPv4 on the wire; write "10.0.0.2"
/etc/ao.toml:11:11: link-local address without an interface; write address = "fe80::1%eth0" with the name of the interface
/etc/ao.toml:11:11: "" is no interface name; write one as `ip link` shows it
/etc/ao.toml:11:11: %interface is for link-local addresses only; write "10.0.0.2"
/etc/ao.toml:11:11: "localhost" is no IP address; write one like "10.0.0.2", "2001:db8::2", "10.0.0.0/24" or "fe80::1%eth0"
"#);
}

#[test]
fn attributes_of_peers_are_checked() {
    let attributes = [
        "address = \"10.0.0.2\"\nport = 0",
        "address = \"10.0.0.2\"\nport = 179\nports = \"179-180\"",
        "address = \"10.0.0.2\"\nports = \"180-179\"",
        "address = \"10.0.0.2\"\nttl_min = 256",
        "address = \"10.0.0.2\"\nlocal_address = \"2001:db8::1\"",
        "address = \"10.0.0.2\"\nlocal_address = \"10.0.0.1/24\"",
        "address = \"10.0.0.2\"\ninterface = \"eth0\"",
        "address = \"fe80::1%eth0\"\ninterface = \"eth1\"",
        "address = \"10.0.0.2\"\nvrf = \"a name too long\"",
        "address = \"10.0.0.2\"\nvrf = \"\"",
    ];
    let peer = |lines: &str| with_peer(&format!("key_chain = \"transit\"\n{lines}"));
    let all: Vec<String> = attributes
        .iter()
        .map(|lines| refused(&peer(lines)))
        .collect();
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml:12:8: `port` is out of range; write 1 to 65535
/etc/ao.toml:13:9: the peer has `port` and `ports`; write one of them
/etc/ao.toml:12:9: "180-179" is no range of ports; write "FIRST-LAST", each 1 to 65535
/etc/ao.toml:12:11: `ttl_min` is out of range; write 0 to 255
/etc/ao.toml:12:17: `local_address` and `address` are of different families; write both as IPv4 or both as IPv6
/etc/ao.toml:12:17: "10.0.0.1/24" is no IP address; write one of this host, without %interface or /length
/etc/ao.toml:12:13: `interface` is for link-local addresses only; remove it, or write vrf = "eth0" if that is what it is
/etc/ao.toml:12:13: the address says %eth0, `interface` says "eth1"; write one
/etc/ao.toml:12:7: "a name too long" is no interface name; write one as `ip link` shows it
/etc/ao.toml:12:7: "" is no interface name; write one as `ip link` shows it
"#);
    accepted(&peer("address = \"fe80::1\"\ninterface = \"eth0\""));
}

#[test]
fn peers_are_told_apart() {
    let second = |name: &str, lines: &str| {
        format!("{CHAIN}{PEER}[[peer]]\nname = {name:?}\nkey_chain = \"transit\"\n{lines}\n")
    };
    assert_snapshot!(refused(&second("as64502", "address = \"10.0.0.3\"")), @r#"/etc/ao.toml:13:8: peer "as64502" exists in line 8; write another name"#);
    assert_snapshot!(refused(&second("b", "address = \"10.0.0.2/32\"\nports = \"1-200\"")), @r#"/etc/ao.toml:15:11: peer "b" has the same address and ports as peer "as64502" in line 8; remove one, or tell them apart by `ports`, `local_address` or `vrf`"#);
    for apart in [
        "port = 180",
        "local_address = \"10.0.0.1\"",
        "vrf = \"red\"",
    ] {
        accepted(&second("b", &format!("address = \"10.0.0.2\"\n{apart}")));
    }
    accepted(&second("b", "address = \"10.0.0.0/24\""));
}

#[test]
fn chains_are_found_by_name() {
    let peer = with_peer("address = \"10.0.0.2\"\nkey_chain = \"trnsit\"");
    assert_snapshot!(refused(&peer), @r#"/etc/ao.toml:11:13: there is no key chain "trnsit"; write `transit`"#);
    assert_snapshot!(refused(PEER), @r#"/etc/ao.toml:4:13: there is no key chain "transit"; add a [[key_chain]] of that name"#);
    assert_snapshot!(refused(&format!("{CHAIN}{CHAIN}{PEER}")), @r#"/etc/ao.toml:9:8: key chain "transit" exists in line 2; write another name"#);
    assert_snapshot!(refused(&format!("key_chain = [{{ name = \"transit\", key = [] }}]\n{PEER}")), @r#"/etc/ao.toml:1:14: key chain "transit" is refused: the key chain has no keys; add a [[key_chain.key]]"#);
}

#[test]
fn what_is_missing_is_named() {
    assert_snapshot!(refused(""), @"/etc/ao.toml:1:1: there is no [[peer]], so nothing to protect; add one");
    assert_snapshot!(refused("[[key_chain]]\n[[key_chain.key]]\n[[peer]]\n"), @r#"
/etc/ao.toml:1:1: [[key_chain]] has no `name`; add it
/etc/ao.toml:2:1: [[key_chain.key]] has no `send_id`; add it
/etc/ao.toml:2:1: [[key_chain.key]] has no `recv_id`; add it
/etc/ao.toml:2:1: [[key_chain.key]] has no `algorithm`; add it
/etc/ao.toml:2:1: the key has no secret; write exactly one of `secret_file`, `secret_hex`, `secret`
/etc/ao.toml:3:1: [[peer]] has no `name`; add it
/etc/ao.toml:3:1: [[peer]] has no `address`; add it
/etc/ao.toml:3:1: the peer has neither `key_chain` nor [peer.rollover]; write one of them
"#);
    assert_snapshot!(refused("key_chain = []\npeer = []\n"), @"/etc/ao.toml:1:1: there is no [[peer]], so nothing to protect; add one");
}

#[test]
fn options_of_the_daemon_are_checked() {
    let text = format!(
        r#"datapath = "kernal"
state_dir = "state"
api_socket = "/{}"
on_exit = "delete"
[log]
format = "xml"
level = "INFO"
[userspace]
workers = 64
first_queue = 65472
queue_length = 63
max_connections = 15
strip = true
{CHAIN}{PEER}"#,
        "x".repeat(107)
    );
    assert_snapshot!(refused(&text), @r#"
/etc/ao.toml:1:12: unknown datapath "kernal"; write `kernel`
/etc/ao.toml:2:13: `state_dir` is no absolute path; write one that begins with /
/etc/ao.toml:3:14: `api_socket` is too long; write at most 100 octets
/etc/ao.toml:4:11: unknown on_exit "delete"; write one of `keep`, `remove`
/etc/ao.toml:6:10: unknown format "xml"; write one of `text`, `json`
/etc/ao.toml:7:9: unknown level "INFO"; write `info`
/etc/ao.toml:10:15: `first_queue` is out of range; write 0 to 65471
/etc/ao.toml:11:16: `queue_length` is out of range; write 64 to 65536
/etc/ao.toml:12:19: `max_connections` is out of range; write 16 to 1048576
/etc/ao.toml:13:9: `strip` is of type boolean; write a string
"#);
    assert_snapshot!(refused(&format!("datapath = \"user\"\n{CHAIN}{PEER}")), @r#"/etc/ao.toml:1:12: unknown datapath "user"; write one of `auto`, `kernel`, `userspace`"#);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nonexistent/ao.toml"), &Overlay::default()).unwrap_err();
    assert_eq!(error.problems().len(), 1);
    assert_snapshot!(error, @"/nonexistent/ao.toml: cannot be read: No such file or directory (os error 2)");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ao.toml");
    fs::write(&path, [0x61, 0xff]).unwrap();
    let error = Config::load(&path, &Overlay::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("ao.toml: cannot be read: stream did not contain valid UTF-8"),
        "{error}"
    );
}

proptest! {
    /// Whatever a slip of the hand does to a good file, it is read or refused, and what is said
    /// does not repeat a secret.
    #[test]
    fn slips_neither_crash_nor_leak(
        at in 0_usize..220,
        removed in 0_usize..6,
        inserted in "[\\[\\]\"'=#{}.,\\\\ \na0é]{0,3}",
    ) {
        let good = format!("{CHAIN}{PEER}");
        let (at, end) = (at.min(good.len()), (at + removed).min(good.len()));
        let text = format!("{}{inserted}{}", &good[..at], &good[end..]);
        // A slip within the word itself leaves another word.
        if let Err(error) = parse(&text) {
            prop_assert!(!format!("{error} {error:?}").contains(MARK), "{}", error);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }
}

#[test]
fn a_peer_may_have_a_datapath_of_its_own() {
    let second = PEER
        .replace("as64502", "other")
        .replace("10.0.0.2", "10.0.0.3");
    let text = format!("datapath = \"userspace\"\n{CHAIN}{PEER}datapath = \"kernel\"\n{second}");
    let config = accepted(&text);
    let wanted: Vec<Choice> = config.peers.iter().map(|peer| peer.spec.datapath).collect();
    assert_eq!(wanted, [Choice::Kernel, Choice::Userspace]);
}
