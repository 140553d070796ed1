//! Peers whose keys are agreed, and what belongs to this end.

use insta::assert_snapshot;
use keymgr::identity::Fingerprint;

use super::*;

const FINGERPRINT: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A peer with these lines in its `[peer.rollover]`, which begin in line 6, after an endpoint and,
/// unless they say how the peer is known, a fingerprint.
fn agreed(lines: &str) -> String {
    let mut text = format!(
        "[[peer]]\nname = \"p\"\naddress = \"10.0.0.2\"\n[peer.rollover]\n\
         endpoint = \"10.0.0.2:7179\"\n{lines}\n"
    );
    if !["fingerprint", "ca_file", "name ="]
        .iter()
        .any(|key| lines.contains(key))
    {
        text.push_str(&format!("fingerprint = \"{FINGERPRINT}\"\n"));
    }
    text
}

fn all_refused(texts: impl IntoIterator<Item = String>) -> String {
    let all: Vec<String> = texts.into_iter().map(|text| refused(&text)).collect();
    all.join("\n")
}

fn read(lines: &str) -> RolloverConfig {
    let config = accepted(&agreed(lines));
    config.peers[0].keys.rollover().unwrap().clone()
}

#[test]
fn the_least_automatic_peer_gets_the_documented_defaults() {
    let config = accepted(&agreed(""));
    let fingerprint: Fingerprint = FINGERPRINT.parse().unwrap();
    let expected = RolloverConfig {
        endpoint: "10.0.0.2:7179".parse().unwrap(),
        trust: TrustConfig::Pinned(fingerprint),
        algorithms: vec![Algorithm::Aes128Cmac96, Algorithm::HmacSha1_96],
        interval: Duration::from_secs(86_400),
        overlap: Duration::from_secs(3600),
        runway: 2,
        highest_id: 255,
        label: "ipv4".to_owned(),
    };
    let peer = &config.peers[0];
    assert_eq!(peer.keys.rollover(), Some(&expected));
    assert!(peer.spec.keys.is_empty(), "blocked until keys are agreed");
    assert_eq!(peer.spec.algorithms, expected.algorithms);
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["0.0.0.0:7179", "[::]:7179"]);
    assert_eq!(config.identity, IdentityConfig::Own);
    assert_eq!(config.sealing_key_file, None);
}

#[test]
fn without_automatic_peers_nobody_listens() {
    let config = accepted(&format!(
        "[peering]\nlisten = \"127.0.0.1:7179\"\n{CHAIN}{PEER}"
    ));
    assert!(config.listen.is_empty());
    assert!(accepted(&format!("{CHAIN}{PEER}")).listen.is_empty());
}

#[test]
fn every_key_of_automatic_peers_is_read() {
    let read = read(
        "algorithm = [\"hmac-sha-256-128\", \"hmac-sha-1-96\"]\ninterval = \"10s\"\n\
         overlap = \"3s\"\nrunway = 8\nhighest_id = 63",
    );
    assert_eq!(
        read.algorithms,
        [Algorithm::HmacSha256_128, Algorithm::HmacSha1_96]
    );
    assert_eq!(
        (read.interval, read.overlap),
        (Duration::from_secs(10), Duration::from_secs(3))
    );
    assert_eq!((read.runway, read.highest_id), (8, 63));
}

#[test]
fn the_overlap_follows_a_short_interval() {
    assert_eq!(read("interval = \"10s\"").overlap, Duration::from_secs(5));
    assert_eq!(
        read("algorithm = \"aes-128-cmac-96\"").algorithms,
        [Algorithm::Aes128Cmac96]
    );
}

#[test]
fn values_of_automatic_peers_are_checked() {
    let lines = [
        "interval = \"9s\"",
        "interval = \"daily\"",
        "interval = 10",
        "interval = \"10s\"\noverlap = \"11s\"",
        "runway = 0",
        "runway = 9",
        "highest_id = 14",
        "highest_id = 256",
        "algorithm = []",
        "algorithm = \"md5\"",
        "algorithm = [\"hmac-sha1-96\", 1]",
        "algorithm = [\"hmac-sha-1-96\", \"hmac-sha-1-96\"]",
        "intervall = \"24h\"",
    ];
    assert_snapshot!(all_refused(lines.map(agreed)), @r#"
/etc/ao.toml:6:12: `interval` is too short; write at least "10s"
/etc/ao.toml:6:12: "daily" is no duration; write one like "90s", "5m", "24h" or "31d"
/etc/ao.toml:6:12: `interval` is of type integer; write a duration in quotes, like "24h"
/etc/ao.toml:7:11: `overlap` is above the interval of 10s, so former keys would pile up; write less
/etc/ao.toml:6:10: `runway` is out of range; write 1 to 8
/etc/ao.toml:6:10: `runway` is out of range; write 1 to 8
/etc/ao.toml:6:14: `highest_id` is out of range; write 15 to 255
/etc/ao.toml:6:14: `highest_id` is out of range; write 15 to 255
/etc/ao.toml:6:13: the list of algorithms is empty; name at least one
/etc/ao.toml:6:13: unknown algorithm "md5"; write one of `hmac-sha-1-96`, `aes-128-cmac-96`, `hmac-sha-256-96`, `hmac-sha-256-128`
/etc/ao.toml:6:13: `algorithm` is of type integer; write the name of an algorithm, or a list of names
/etc/ao.toml:6:31: algorithm "hmac-sha-1-96" is there twice; remove one
/etc/ao.toml:6:1: unknown key `intervall` in [peer.rollover]; write `interval`
"#);
}

#[test]
fn a_far_end_is_known_in_exactly_one_way() {
    let lines = [
        "fingerprint = \"sha256:0011\"",
        &format!("fingerprint = \"{FINGERPRINT}\"\nname = \"router.example.net\""),
        "name = \"router.example.net\"",
        "ca_file = \"/nonexistent/ca.pem\"",
        "ca_file = \"/nonexistent/ca.pem\"\nname = \"10.0.0.2\"",
        "ca_file = \"/\"\nname = \"router.example.net\"",
        "ca_file = \"\"\nname = \"router.example.net\"",
    ];
    assert_snapshot!(all_refused(lines.map(agreed)), @r#"
/etc/ao.toml:6:15: `fingerprint` is none; write sha256: and 64 hexadecimal digits, as `ao-sidecar identity` prints them at the far end
/etc/ao.toml:7:8: the peer has `fingerprint` and `name`; write `fingerprint`, or `ca_file` and `name`
/etc/ao.toml:4:1: `ca_file` and `name` belong together; add the other
/etc/ao.toml:6:11: `ca_file` and `name` belong together; add the other
/etc/ao.toml:6:11: `ca_file`: /nonexistent/ca.pem cannot be read: No such file or directory (os error 2); write the name of a file with the authority's certificates
/etc/ao.toml:7:8: "10.0.0.2" is no DNS name; write the one that the peer's certificate is for
/etc/ao.toml:6:11: `ca_file`: / is not a regular file; write the name of a file with the authority's certificates
/etc/ao.toml:6:11: `ca_file`: no name is given; write the name of a file with the authority's certificates
"#);
    let nothing = agreed("").replace("fingerprint = ", "runway = 2 #");
    assert_snapshot!(refused(&nothing), @r#"/etc/ao.toml:4:1: nothing tells who the peer is; write `fingerprint`, or `ca_file` and `name`"#);
}

#[test]
fn an_authority_and_the_operators_own_identity_are_files_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "router.pem", "router.key", "store.key"] {
        fs::write(folder.path().join(name), "read later").unwrap();
    }
    let text = format!(
        "[identity]\ncert_file = \"router.pem\"\nkey_file = \"router.key\"\n[store]\n\
         key_file = \"store.key\"\n{}",
        agreed("ca_file = \"ca.pem\"\nname = \"router.example.net\"")
    );
    let config = parse_as(&text, &folder.path().join("ao.toml"), 0o600).unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = TrustConfig::Authority {
        ca_file: path("ca.pem"),
        name: "router.example.net".to_owned(),
    };
    assert_eq!(config.peers[0].keys.rollover().unwrap().trust, authority);
    let files = IdentityConfig::Files {
        cert_file: path("router.pem"),
        key_file: path("router.key"),
    };
    assert_eq!(config.identity, files);
    assert_eq!(config.sealing_key_file, Some(path("store.key")));
}

#[test]
fn endpoints_are_checked() {
    let with = |endpoint: &str| {
        agreed("").replace(
            "endpoint = \"10.0.0.2:7179\"",
            &format!("endpoint = {endpoint:?}"),
        )
    };
    for good in [
        "10.0.0.2:1",
        "[2001:db8::2]:7179",
        "[fe80::1%eth0]:7179",
        "router.example.net:65535",
    ] {
        let config = accepted(&with(good));
        let rollover = config.peers[0].keys.rollover().unwrap();
        assert_eq!(rollover.endpoint.to_string(), good);
    }
    let wrong = [
        "10.0.0.2",
        "10.0.0.256:7179",
        "10.0.0.2:0",
        "2001:db8::2:7179",
        "[fe80::1]:7179",
        "[fe80::1%a name too long]:7179",
        "[2001:db8::2%eth0]:7179",
        "-router.example:7179",
        "https://router.example:7179",
    ];
    assert_snapshot!(all_refused(wrong.map(with)), @r#"
/etc/ao.toml:5:12: "10.0.0.2" is no endpoint; write one like "10.0.0.2:7179", "[2001:db8::2]:7179", "[fe80::1%eth0]:7179" or "router.example.net:7179"
/etc/ao.toml:5:12: "10.0.0.256:7179" is no endpoint; write one like "10.0.0.2:7179", "[2001:db8::2]:7179", "[fe80::1%eth0]:7179" or "router.example.net:7179"
/etc/ao.toml:5:12: "10.0.0.2:0" is no endpoint; write one like "10.0.0.2:7179", "[2001:db8::2]:7179", "[fe80::1%eth0]:7179" or "router.example.net:7179"
/etc/ao.toml:5:12: "2001:db8::2:7179" is no endpoint; write one like "10.0.0.2:7179", "[2001:db8::2]:7179", "[fe80::1%eth0]:7179" or "router.example.net:7179"
/etc/ao.toml:5:12: link-local address without an interface; write "[fe80::1%eth0]:7179" with the name of the interface
/etc/ao.toml:5:12: "a name too long" is no interface name; write one as `ip link` shows it
/etc/ao.toml:5:12: %interface is for link-local addresses only; write "[2001:db8::2]:7179"
/etc/ao.toml:5:12: "-router.example:7179" is no endpoint; write one like "10.0.0.2:7179", "[2001:db8::2]:7179", "[fe80::1%eth0]:7179" or "router.example.net:7179"
/etc/ao.toml:5:12: "https://router.example:7179" is no endpoint; write one like "10.0.0.2:7179", "[2001:db8::2]:7179", "[fe80::1%eth0]:7179" or "router.example.net:7179"
"#);
}

#[test]
fn keys_come_from_one_source_and_one_far_end() {
    let peer = agreed("");
    let both = peer.replace(
        "[peer.rollover]",
        "key_chain = \"transit\"\n[peer.rollover]",
    );
    assert_snapshot!(refused(&format!("{CHAIN}{both}")), @r#"/etc/ao.toml:11:13: the peer has `key_chain` and [peer.rollover]; write one of them"#);
    let neither = "[[peer]]\nname = \"p\"\naddress = \"10.0.0.2\"\n";
    assert_snapshot!(refused(neither), @r#"/etc/ao.toml:1:1: the peer has neither `key_chain` nor [peer.rollover]; write one of them"#);
    let prefix = peer.replace("address = \"10.0.0.2\"", "address = \"10.0.0.0/24\"");
    assert_snapshot!(refused(&prefix), @r#"/etc/ao.toml:3:11: "10.0.0.0/24" is for many far ends, and keys are agreed with one; write the address of one, or a `key_chain` instead of [peer.rollover]"#);
    let no_table = "[[peer]]\nname = \"p\"\naddress = \"10.0.0.2\"\nrollover = true\n";
    assert_snapshot!(refused(no_table), @r#"/etc/ao.toml:4:12: `rollover` is no table; write [peer.rollover]"#);
    let incomplete = "[[peer]]\nname = \"p\"\naddress = \"10.0.0.2\"\n[peer.rollover]\n";
    assert_snapshot!(refused(incomplete), @r#"
/etc/ao.toml:4:1: [peer.rollover] has no `endpoint`; add it
/etc/ao.toml:4:1: nothing tells who the peer is; write `fingerprint`, or `ca_file` and `name`
"#);
}

#[test]
fn far_ends_are_told_apart() {
    let other = |text: String| {
        text.replace("\"p\"", "\"q\"")
            .replace("address = \"10.0.0.2\"", "address = \"10.0.0.3\"")
    };
    let two = format!("{}{}", agreed(""), other(agreed("")));
    assert_snapshot!(refused(&two), @r#"/etc/ao.toml:14:15: peer "q" has the same fingerprint and label as peer "p" in line 1, so their calls could not be told apart; write label = "…" for one of them, the same at the far end"#);
    accepted(&two.replacen("sha256:00", "sha256:01", 1));
    let labelled = two.replacen("[peer.rollover]", "[peer.rollover]\nlabel = \"east\"", 1);
    assert_eq!(
        accepted(&labelled).peers[0].keys.rollover().unwrap().label,
        "east"
    );
    // The usual second session with a router needs none.
    let v6 = two.replace("address = \"10.0.0.3\"", "address = \"2001:db8::2\"");
    let labels: Vec<String> = accepted(&v6)
        .peers
        .iter()
        .map(|peer| peer.keys.rollover().unwrap().label.clone())
        .collect();
    assert_eq!(labels, ["ipv4", "ipv6"]);

    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, "read later").unwrap();
    let named = |name: &str| agreed(&format!("ca_file = {ca:?}\nname = \"{name}\""));
    let two = |name| format!("{}{}", named("a.example"), other(named(name)));
    assert_snapshot!(refused(&two("A.example")), @r#"/etc/ao.toml:14:8: peer "q" has the same name and label as peer "p" in line 1, so their calls could not be told apart; write label = "…" for one of them, the same at the far end"#);
    accepted(&two("b.example"));
}

#[test]
fn identity_peering_and_store_are_checked() {
    let tables = [
        "[identity]\ncert_file = \"/etc/hostname\"\n",
        "[identity]\ncert_file = \"/nonexistent/a.pem\"\nkey_file = \"/nonexistent/a.key\"\n",
        "[peering]\nlisten = \"7179\"\n",
        "[peering]\nlisten = [\"10.0.0.1:0\", \"[::1]:7179\", \"[::1]:7179\", 7179]\n",
        "[peering]\nlisten = [\"10.0.0.1:0\", \"[::1]:7179\", \"[::1]:7179\", \"::1\"]\n",
        "[store]\nkey_file = \"/nonexistent/store.key\"\n",
        "[store]\nkeyfile = \"a\"\n",
        "identity = true\n",
    ];
    let all = tables.map(|table| format!("{table}{}", agreed("")));
    assert_snapshot!(all_refused(all), @r#"
/etc/ao.toml:2:13: `cert_file` and `key_file` belong together; add the other, or leave both away for a key that the sidecar makes
/etc/ao.toml:2:13: `cert_file`: /nonexistent/a.pem cannot be read: No such file or directory (os error 2); write the name of a file with the certificate
/etc/ao.toml:3:12: `key_file`: /nonexistent/a.key cannot be read: No such file or directory (os error 2); write the name of a file with its private key
/etc/ao.toml:2:10: "7179" is no address and port; write one like "10.0.0.1:7179" or "[2001:db8::1]:7179"
/etc/ao.toml:2:10: `listen` is of type integer; write an address and port, or a list of them
/etc/ao.toml:2:11: "10.0.0.1:0" has port 0; write 1 to 65535
/etc/ao.toml:2:39: "[::1]:7179" is there twice; remove one
/etc/ao.toml:2:53: "::1" is no address and port; write one like "10.0.0.1:7179" or "[2001:db8::1]:7179"
/etc/ao.toml:2:12: `key_file`: /nonexistent/store.key cannot be read: No such file or directory (os error 2); write the name of a file with the sealing key
/etc/ao.toml:2:1: unknown key `keyfile` in [store]; write `key_file`
/etc/ao.toml:1:12: `identity` is no table; write [identity]
"#);
    let nowhere = accepted(&format!("[peering]\nlisten = []\n{}", agreed("")));
    assert!(nowhere.listen.is_empty());
}
