use std::fs;
use std::time::{Duration, SystemTime};

use grpc_api::operator::Lifetime;
use grpc_api::operator::administration::{KeyChainSpec, KeySpec, PeerSpec, Secret};
use insta::assert_snapshot;
use zeroize::Zeroizing;

use super::*;
use crate::small_disk::SmallDisk;

const FILE: &str = "/etc/ao.toml";
const TEXT: &str = r#"[[key_chain]]
name = "transit"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "of the file"
[[peer]]
name = "as64502"
address = "10.0.0.2"
key_chain = "transit"
"#;

/// Stands in secrets, and must never come out.
const MARK: &str = "hunter2";

fn config(made: &Overlay) -> Result<Config, ConfigError> {
    Config::load_text(TEXT, Path::new(FILE), made)
}

fn secret(name: &str) -> Option<Secret> {
    let octets = format!("{MARK} is the secret {name}").into_bytes();
    Some(Secret(Zeroizing::new(octets)))
}

fn key(send_id: u8, recv_id: u8) -> KeySpec {
    KeySpec {
        send_id,
        recv_id,
        algorithm: "aes-128-cmac-96".to_owned(),
        include_tcp_options: true,
        secret: secret(&format!("{send_id}/{recv_id}")),
        send: Lifetime {
            start: None,
            end: None,
        },
        accept: None,
    }
}

fn chain(name: &str) -> KeyChainSpec {
    KeyChainSpec {
        name: name.to_owned(),
        tolerance: Some(Duration::from_secs(90)),
        allow_gaps: true,
        on_expiry: Some("close".to_owned()),
    }
}

fn peer(name: &str, address: &str, key_chain: &str) -> PeerSpec {
    PeerSpec {
        name: name.to_owned(),
        address: address.to_owned(),
        key_chain: key_chain.to_owned(),
        ..PeerSpec::default()
    }
}

fn put_peer(peer: PeerSpec, replace: bool) -> Change {
    Change::PutPeer {
        peer,
        replace,
        replace_sessions: false,
    }
}

fn put_key(chain: &str, key: KeySpec, replace: bool) -> Change {
    Change::PutKey {
        chain: chain.to_owned(),
        key,
        replace,
    }
}

fn create_chain(name: &str, keys: Vec<KeySpec>) -> Change {
    Change::CreateKeyChain {
        chain: chain(name),
        keys,
    }
}

fn delete_chain(name: &str) -> Change {
    Change::DeleteKeyChain {
        name: name.to_owned(),
    }
}

fn delete_peer(name: &str) -> Change {
    Change::DeletePeer {
        name: name.to_owned(),
    }
}

fn delete_key(chain: &str, id: u8) -> Change {
    Change::DeleteKey {
        chain: chain.to_owned(),
        send_id: id,
        recv_id: id,
    }
}

fn staged(changes: &Changes, change: Change) -> Result<Staged, ControlError> {
    let running = config(&changes.overlay()).unwrap_or_else(|error| panic!("{error}"));
    changes.stage(change, &running)
}

fn refusal(changes: &Changes, change: Change) -> String {
    let error = staged(changes, change).unwrap_err();
    assert!(!format!("{error:?}").contains(MARK));
    let kind = format!("{error:?}");
    format!("{}: {error}", kind.split('(').next().unwrap_or_default())
}

fn make(changes: &Changes, change: Change) {
    let staged = staged(changes, change).unwrap();
    changes.keep(staged).unwrap();
}

/// Everything but secrets, and those as a comparison of keys.
fn shown(changes: &Changes) -> String {
    let overlay = changes.overlay();
    let secrets: Vec<_> = overlay
        .chains
        .iter()
        .flat_map(|chain| &chain.keys)
        .map(|key| key.secret.as_ref().map(|secret| secret.0.to_vec()))
        .collect();
    format!("{overlay:?} {secrets:?}")
}

fn reopened(changes: Changes, folder: &Path) -> Changes {
    let before = shown(&changes);
    drop(changes);
    let changes = Changes::open(folder, None).unwrap();
    assert_eq!(shown(&changes), before);
    changes
}

fn all_octets(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        all.extend(fs::read(entry.unwrap().path()).unwrap());
    }
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|part| part == needle)
}

fn base64(octets: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for triple in octets.chunks_exact(3) {
        let bits = triple
            .iter()
            .fold(0_usize, |bits, octet| bits << 8 | usize::from(*octet));
        for shift in [18, 12, 6, 0] {
            text.push(char::from(digits[bits >> shift & 63]));
        }
    }
    text
}

#[test]
fn nothing_is_made_before_the_first_change() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    assert!(changes.overlay().is_empty());
    let _staged = staged(&changes, put_peer(peer("x", "10.0.0.3", "transit"), false)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_was_made_is_kept_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    let late = SystemTime::UNIX_EPOCH + Duration::new(2_000_000_000, 5);
    let dated = KeySpec {
        send: Lifetime {
            start: Some(SystemTime::UNIX_EPOCH),
            end: Some(late),
        },
        accept: Some(Lifetime {
            start: None,
            end: Some(late + Duration::from_secs(9)),
        }),
        include_tcp_options: false,
        ..key(3, 4)
    };
    make(&changes, create_chain("ix", vec![key(7, 7), dated]));
    make(&changes, put_key("transit", key(9, 9), false));
    let everything = PeerSpec {
        ports: Some((179, 180)),
        local_address: Some("fe80::2".to_owned()),
        interface: Some("eth0".to_owned()),
        vrf: Some("red".to_owned()),
        ttl_min: 254,
        datapath: Some("userspace".to_owned()),
        ..peer("z", "fe80::1", "ix")
    };
    make(&changes, put_peer(everything, false));
    make(&changes, put_peer(peer("a", "10.0.0.3", "transit"), false));
    let changes = reopened(changes, folder.path());
    assert_eq!(
        changes.overlay().names(),
        [
            "peer z",
            "peer a",
            "key chain ix",
            "key 7/7 of key chain ix",
            "key 3/4 of key chain ix",
            "key 9/9 of key chain transit"
        ]
    );
    // Replaced, and still in its place.
    make(&changes, put_peer(peer("z", "10.0.0.4", "ix"), true));
    let changes = reopened(changes, folder.path());
    assert_eq!(changes.overlay().names()[0], "peer z");
    assert_eq!(changes.overlay().peers[0].ttl_min, 0);

    let config = config(&changes.overlay()).unwrap();
    let names: Vec<&str> = config.peers.iter().map(|peer| &*peer.spec.name).collect();
    assert_eq!(names, ["as64502", "z", "a"]);
    assert_eq!(
        config.chains[0].keys.keys().len(),
        2,
        "9/9 was added to transit"
    );
}

#[test]
fn secrets_are_nowhere_in_clear_and_the_deleted_are_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    make(&changes, create_chain("ix", vec![key(7, 7), key(8, 8)]));
    make(&changes, put_key("transit", key(9, 9), false));
    make(
        &changes,
        put_key(
            "ix",
            KeySpec {
                secret: secret("new"),
                ..key(7, 7)
            },
            true,
        ),
    );
    make(&changes, delete_key("ix", 8));
    make(&changes, delete_key("transit", 9));
    assert_eq!(
        changes.overlay().names(),
        ["key chain ix", "key 7/7 of key chain ix"]
    );
    let mark = MARK.as_bytes();
    let hex: String = mark.iter().map(|octet| format!("{octet:02x}")).collect();
    let all = all_octets(folder.path());
    assert!(contains(&all, b"redb"), "the store is among them");
    for form in [MARK.to_owned(), hex.to_uppercase(), hex, base64(mark)] {
        assert!(!contains(&all, form.as_bytes()), "{form} is on disk");
    }
    // What is there is one secret: each row would hold the sealed octets of one.
    let mut store = {
        drop(changes);
        let key = SealingKey::load(folder.path(), None).unwrap();
        Store::open(&folder.path().join(CHANGES_FILE_NAME), &key).unwrap()
    };
    let rows = store.load().unwrap();
    let secrets: Vec<_> = rows.iter().flat_map(|row| &row.secrets).collect();
    assert_eq!((rows.len(), secrets.len()), (1, 1));
    assert_eq!(secrets[0].1.expose(), secret("new").unwrap().0.as_slice());
}

#[test]
fn a_key_keeps_its_secret_and_two_may_share_one() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    let shared = |id| KeySpec {
        secret: secret("shared"),
        ..key(id, id)
    };
    make(&changes, create_chain("ix", vec![shared(1), shared(2)]));
    let without = KeySpec {
        secret: None,
        include_tcp_options: false,
        ..key(1, 1)
    };
    make(&changes, put_key("ix", without, true));
    let changes = reopened(changes, folder.path());
    let keys = &changes.overlay().chains[0].keys;
    assert!(!keys[0].include_tcp_options && keys[1].include_tcp_options);
    for key in keys {
        assert_eq!(key.secret.as_ref().unwrap().0, secret("shared").unwrap().0);
    }
    make(&changes, delete_key("ix", 2));
    let changes = reopened(changes, folder.path());
    assert_eq!(
        changes.overlay().names(),
        ["key chain ix", "key 1/1 of key chain ix"]
    );
}

#[test]
fn every_change_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    make(&changes, create_chain("ix", vec![key(7, 7), key(8, 8)]));
    make(&changes, put_peer(peer("x", "10.0.0.3", "transit"), false));
    let other = KeyChainSpec {
        allow_gaps: false,
        ..chain("ix")
    };
    for change in [
        put_peer(peer("y", "10.0.0.4", "ix"), false),
        put_peer(peer("x", "10.0.0.4", "ix"), true),
        delete_peer("x"),
        create_chain("iy", vec![key(1, 1)]),
        Change::UpdateKeyChain { chain: other },
        delete_chain("ix"),
        put_key("ix", key(9, 9), false),
        put_key("transit", key(9, 9), false),
        put_key(
            "ix",
            KeySpec {
                secret: secret("new"),
                ..key(8, 8)
            },
            true,
        ),
        delete_key("ix", 8),
    ] {
        let before = shown(&changes);
        let staged = staged(&changes, change).unwrap();
        let undo = staged.undo();
        changes.keep(staged).unwrap();
        assert_ne!(shown(&changes), before);
        changes.keep(undo).unwrap();
        assert_eq!(shown(&changes), before);
    }
    reopened(changes, folder.path());
}

#[test]
fn conflicts_name_both() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    make(&changes, create_chain("ix", vec![key(7, 7)]));
    make(&changes, put_peer(peer("x", "10.0.0.3", "ix"), false));
    let long = "x".repeat(65);
    let no_secret = KeySpec {
        secret: None,
        ..key(8, 8)
    };
    let all = [
        put_peer(peer("x", "10.0.0.4", "ix"), false),
        put_peer(peer("as64502", "10.0.0.4", "ix"), false),
        put_peer(peer("as64502", "10.0.0.4", "ix"), true),
        put_peer(peer("y", "10.0.0.4", "ix"), true),
        put_peer(peer(&long, "10.0.0.4", "ix"), false),
        delete_peer("as64502"),
        delete_peer("y"),
        create_chain("ix", vec![key(1, 1)]),
        create_chain("transit", vec![key(1, 1)]),
        create_chain("iy", vec![]),
        create_chain("iy", vec![key(1, 1), key(1, 2)]),
        create_chain("a\nb", vec![key(1, 1)]),
        Change::UpdateKeyChain {
            chain: chain("transit"),
        },
        Change::UpdateKeyChain { chain: chain("iy") },
        delete_chain("transit"),
        delete_chain("ix"),
        delete_chain("iy"),
        put_key("ix", key(7, 8), false),
        put_key("ix", no_secret, false),
        put_key("iy", key(1, 1), false),
        put_key("ix", key(8, 8), true),
        put_key("transit", key(1, 1), true),
        put_key("transit", key(2, 2), true),
        delete_key("transit", 1),
        delete_key("ix", 7),
        delete_key("iy", 7),
    ];
    let all: Vec<String> = all
        .into_iter()
        .map(|change| refusal(&changes, change))
        .collect();
    assert_snapshot!(all.join("\n"), @r#"
Exists: peer "x" was made by API already: change that one, or choose another name
Exists: peer "as64502" is in /etc/ao.toml:8 already, so it cannot be made by API: change it there, or choose another name
Refused: peer "as64502" is in /etc/ao.toml:8: change it there, and reload
NotFound: there is no peer "y"
Invalid: a name has 1 to 64 octets and no control characters; write another
Refused: peer "as64502" is in /etc/ao.toml:8: change it there, and reload
NotFound: there is no peer "y"
Exists: key chain "ix" was made by API already: change that one, or choose another name
Exists: key chain "transit" is in /etc/ao.toml:1 already, so it cannot be made by API: change it there, or choose another name
Invalid: key chain "iy" has no keys: give it at least one
Invalid: key 1/2 of key chain "iy" shares an ID with a key before it: choose other IDs
Invalid: a name has 1 to 64 octets and no control characters; write another
Refused: key chain "transit" is in /etc/ao.toml:1: change it there, and reload
NotFound: there is no key chain "iy"
Refused: key chain "transit" is in /etc/ao.toml:1: change it there, and reload
Refused: key chain "ix" is in use by peer "x": give them another one first
NotFound: there is no key chain "iy"
Exists: key 7/7 of key chain "ix" was made by API already, and key 7/8 of key chain "ix" would share an ID with it: choose other IDs, or delete that one
Invalid: key 8/8 of key chain "ix" has no secret: give it one
NotFound: there is no key chain "iy"
NotFound: there is no key 8/8 of key chain "ix"
Refused: key 1/1 of key chain "transit" is in /etc/ao.toml:3: change it there, and reload
NotFound: there is no key 2/2 of key chain "transit"
Refused: key 1/1 of key chain "transit" is in /etc/ao.toml:3: change it there, and reload
Refused: key 7/7 of key chain "ix" is the last one: delete the key chain, or add another key first
NotFound: there is no key chain "iy"
"#);
}

#[test]
fn what_contradicts_the_file_is_told_with_both_places() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    make(&changes, create_chain("ix", vec![key(7, 7)]));
    let told = |change| {
        let staged = staged(&changes, change).unwrap();
        let error = config(staged.overlay()).unwrap_err();
        assert!(!format!("{error:?} {error}").contains(MARK));
        error.to_string()
    };
    let beyond = KeySpec {
        send: Lifetime {
            start: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60)),
            end: None,
        },
        ..key(2, 2)
    };
    let all = [
        put_peer(peer("y", "10.0.0.2", "ix"), false),
        put_peer(peer("y", "10.0.0.256", "iy"), false),
        put_peer(
            PeerSpec {
                ports: Some((5, 0)),
                ..peer("y", "10.0.0.3", "ix")
            },
            false,
        ),
        put_peer(
            PeerSpec {
                datapath: Some("x".into()),
                ..peer("y", "10.0.0.3", "ix")
            },
            false,
        ),
        put_key("transit", key(1, 2), false),
        put_key("transit", key(2, 1), false),
        put_key(
            "ix",
            KeySpec {
                algorithm: "md5".to_owned(),
                ..key(1, 1)
            },
            false,
        ),
        put_key(
            "ix",
            KeySpec {
                secret: Some(Secret(Zeroizing::new(vec![0; 81]))),
                ..key(1, 1)
            },
            false,
        ),
        put_key("transit", beyond, false),
    ];
    let all: Vec<String> = all.into_iter().map(told).collect();
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml: made by API: peer "y": peer "y" has the same address and ports as peer "as64502" in /etc/ao.toml:8; remove one, or tell them apart by `ports`, `local_address` or `vrf`
/etc/ao.toml: made by API: peer "y": "10.0.0.256" is no IP address; write one like "10.0.0.2", "2001:db8::2", "10.0.0.0/24" or "fe80::1%eth0"
/etc/ao.toml: made by API: peer "y": there is no key chain "iy"; write `ix`
/etc/ao.toml: made by API: peer "y": "5-0" is no range of ports; write "FIRST-LAST", each 1 to 65535
/etc/ao.toml: made by API: peer "y": unknown datapath "x"; write one of `auto`, `kernel`, `userspace`
/etc/ao.toml: made by API: key 1/2 of key chain "transit": key chain "transit" is refused: two keys have send_id 1; the other is in /etc/ao.toml:4; write an ID that the chain does not have, or lifetimes that are at least twice `accept_tolerance` apart
/etc/ao.toml: made by API: key 2/1 of key chain "transit": key chain "transit" is refused: two keys have recv_id 1; the other is in /etc/ao.toml:5; write an ID that the chain does not have, or lifetimes that are at least twice `accept_tolerance` apart
/etc/ao.toml: made by API: key 1/1 of key chain "ix": unknown algorithm "md5"; write one of `hmac-sha-1-96`, `aes-128-cmac-96`, `hmac-sha-256-96`, `hmac-sha-256-128`
/etc/ao.toml: made by API: key 1/1 of key chain "ix": the secret is too long; write 1 to 80 octets
/etc/ao.toml: made by API: key 2/2 of key chain "transit": "beyond the calendar" is no date-time; write one like 2026-12-01T00:00:00Z
"#);
}

#[test]
fn the_file_may_get_what_was_made_before() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    make(&changes, create_chain("ix", vec![key(7, 7)]));
    make(&changes, put_peer(peer("x", "10.0.0.3", "ix"), false));
    make(&changes, put_key("transit", key(9, 9), false));
    let told = |text: &str| {
        let error = Config::load_text(text, Path::new(FILE), &changes.overlay()).unwrap_err();
        error.to_string()
    };
    let (chain, peer) = TEXT.split_at(TEXT.find("[[peer]]").unwrap());
    let all = [
        told(&format!(
            "{TEXT}{}",
            peer.replace("as64502", "x").replace("0.2", "0.9")
        )),
        told(&format!(
            "{TEXT}{}",
            peer.replace("as64502", "y").replace("0.2", "0.3")
        )),
        told(&format!("{}{TEXT}", chain.replace("transit", "ix"))),
        told(&TEXT.replace("transit", "other")),
        told(&TEXT.replace("_id = 1", "_id = 9")),
    ];
    assert_snapshot!(all.join("\n"), @r#"
/etc/ao.toml: made by API: peer "x": exists in /etc/ao.toml:12, too; delete one of them (aoctl peers delete "x")
/etc/ao.toml: made by API: peer "x": peer "x" has the same address and ports as peer "y" in /etc/ao.toml:12; remove one, or tell them apart by `ports`, `local_address` or `vrf`
/etc/ao.toml: made by API: key chain "ix": exists in /etc/ao.toml:2, too; delete one of them (aoctl chains delete "ix")
/etc/ao.toml: made by API: key 9/9 of key chain "transit": there is no key chain "transit" any more; put it back, or delete the key
/etc/ao.toml: made by API: key 9/9 of key chain "transit": key chain "transit" is refused: two keys have send_id 9; the other is in /etc/ao.toml:4; write an ID that the chain does not have, or lifetimes that are at least twice `accept_tolerance` apart
"#);
}

#[test]
fn there_is_an_end_to_what_can_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    let running = config(&Overlay::default()).unwrap();
    let peers = (0..MOST_OBJECTS).map(|index| {
        let address = format!("10.1.{}.{}", index / 256, index % 256);
        peer(&format!("p{index}"), &address, "transit")
    });
    let full = Overlay {
        peers: peers.collect(),
        chains: Vec::new(),
    };
    assert_eq!(full.len(), MOST_OBJECTS);
    assert_eq!(config(&full).unwrap().peers.len(), MOST_OBJECTS + 1);
    let one_more = put_peer(peer("x", "10.0.0.3", "transit"), false);
    let error = stage::stage(&full, one_more, &running).unwrap_err();
    assert_snapshot!(error, @"4096 peers, key chains and keys were made by API, and there cannot be more: delete some, or write them into the configuration file");
    stage::stage(&full, delete_peer("p0"), &running).unwrap();
    stage::stage(
        &full,
        put_peer(peer("p0", "10.0.0.3", "transit"), true),
        &running,
    )
    .unwrap();
    drop(changes);
}

#[test]
fn a_full_disk_changes_nothing() {
    let disk = SmallDisk::new(8 << 10);
    let changes = Changes::open(disk.path(), None).unwrap();
    make(&changes, create_chain("ix", vec![key(7, 7), key(8, 8)]));
    disk.fill();
    let before = shown(&changes);
    let told = |change| {
        let staged = staged(&changes, change).unwrap();
        changes.keep(staged).map_err(|error| error.to_string())
    };
    // The secret is destroyed by writing all of the file anew.
    let error = told(delete_key("ix", 8)).unwrap_err();
    assert!(error.contains("no room for"), "{error}");
    assert!(
        error.ends_with("until then nothing can be changed by API"),
        "{error}"
    );
    assert_eq!(shown(&changes), before);
    disk.free();
    let changes = reopened(changes, disk.path());
    disk.fill();
    // Small changes find room in the file for a while.
    let mut made = 0;
    let error = loop {
        let name = format!("p{made}");
        let address = format!("10.2.{}.{}", made / 256, made % 256);
        let staged = staged(&changes, put_peer(peer(&name, &address, "ix"), false)).unwrap();
        let before = shown(&changes);
        match changes.keep(staged) {
            Ok(()) => made += 1,
            Err(error) => {
                assert_eq!(shown(&changes), before);
                break error.to_string();
            }
        }
        assert!(made < 4000, "the disk is never full");
    };
    assert!(error.contains("no room for"), "{error}");
    assert_eq!(changes.overlay().peers.len(), made);
    disk.free();
    let changes = reopened(changes, disk.path());
    make(&changes, put_peer(peer("x", "10.0.0.3", "ix"), false));
}

#[test]
fn a_store_that_is_of_no_use_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let changes = Changes::open(folder.path(), None).unwrap();
    make(&changes, put_peer(peer("x", "10.0.0.3", "transit"), false));
    let error = || {
        let error = Changes::open(folder.path(), None).unwrap_err().to_string();
        error.replace(folder.path().to_str().unwrap(), "DIR")
    };
    assert_snapshot!(error(), @"DIR/changes.redb is in use by another ao-sidecar: stop that one, or use another state folder");
    drop(changes);
    let path = folder.path().join(CHANGES_FILE_NAME);
    let sealing_key = folder.path().join("store.key");
    let kept = fs::read(&sealing_key).unwrap();
    fs::remove_file(&sealing_key).unwrap();
    assert_snapshot!(error(), @"DIR/store.key is missing, and DIR/changes.redb cannot be opened without it: put it back, or move DIR/changes.redb away and start again; what was made by API is lost then, and its peers are not protected any more");
    fs::write(&sealing_key, [1; 32]).unwrap();
    std::os::unix::fs::chown(&sealing_key, None, None).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&sealing_key, private).unwrap();
    assert_snapshot!(error(), @"DIR/changes.redb was sealed with another key than the one in DIR/store.key: put that key back, or move DIR/changes.redb away and start again; what was made by API is lost then, and its peers are not protected any more");
    fs::write(&sealing_key, kept).unwrap();
    assert_eq!(
        Changes::open(folder.path(), None).unwrap().overlay().len(),
        1
    );
    fs::write(&path, b"nothing of ours").unwrap();
    assert_snapshot!(error(), @"DIR/changes.redb is not a key store of ao-sidecar and stays as it is: move it away, or use another state folder");
    assert_eq!(fs::read(&path).unwrap(), b"nothing of ours");
}

#[test]
fn the_whole_is_loaded_from_where_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let changes = Changes::open(&state, None).unwrap();
    make(&changes, put_peer(peer("x", "10.0.0.3", "transit"), false));
    drop(changes);
    let file = folder.path().join("ao.toml");
    let write = |text: String| {
        fs::write(&file, text).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&file, private).unwrap();
    };
    write(format!("state_dir = {state:?}\n{TEXT}"));
    let config = load(&file, None).unwrap();
    assert_eq!(config.peers.len(), 2);
    assert_eq!(config.state_dir, state);
    write(TEXT.to_owned());
    let (fitting, _changes) = load_to_start(&file, Some(&state)).unwrap();
    assert!(fitting.left_out.is_empty());
    let config = fitting.config;
    assert_eq!((config.peers.len(), config.state_dir), (2, state));
}
