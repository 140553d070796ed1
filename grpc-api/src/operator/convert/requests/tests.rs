use tonic::Code;

use super::*;

fn refusal<T>(read: Read<T>) -> String {
    let Err(status) = read else {
        panic!("it was taken");
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    status.message().to_owned()
}

fn peer() -> v1::PeerSpec {
    v1::PeerSpec {
        name: "as64502".into(),
        address: "10.0.0.2".into(),
        key_chain: "transit".into(),
        ..v1::PeerSpec::default()
    }
}

fn key() -> v1::KeySpec {
    v1::KeySpec {
        send_id: Some(0),
        recv_id: Some(255),
        algorithm: "aes-128-cmac-96".into(),
        secret: b"precious".to_vec(),
        ..v1::KeySpec::default()
    }
}

fn time(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

#[test]
fn a_peer_is_read() {
    let full = v1::PeerSpec {
        first_port: 1,
        last_port: 65_535,
        local_address: "10.0.0.1".into(),
        interface: "eth0".into(),
        vrf: "blue".into(),
        ttl_min: 255,
        datapath: "kernel".into(),
        ..peer()
    };
    let Change::PutPeer {
        peer,
        replace,
        replace_sessions,
    } = put_peer(Some(full), true, false).unwrap()
    else {
        panic!("no peer");
    };
    assert!(replace && !replace_sessions);
    let expected = PeerSpec {
        name: "as64502".into(),
        address: "10.0.0.2".into(),
        key_chain: "transit".into(),
        ports: Some((1, 65_535)),
        local_address: Some("10.0.0.1".into()),
        interface: Some("eth0".into()),
        vrf: Some("blue".into()),
        ttl_min: 255,
        datapath: Some("kernel".into()),
    };
    assert_eq!(peer, expected);
}

#[test]
fn bad_peers_are_refused() {
    let refused = |change: fn(&mut v1::PeerSpec)| {
        let mut peer = peer();
        change(&mut peer);
        refusal(put_peer(Some(peer), false, false))
    };
    assert_eq!(refusal(put_peer(None, false, false)), "peer is missing");
    assert_eq!(refused(|peer| peer.name.clear()), "no peer is named");
    let name = "the name of a peer has 1 to 64 octets and no control characters";
    assert_eq!(refused(|peer| peer.name = "x".repeat(65)), name);
    assert_eq!(refused(|peer| peer.name = "a\nb".into()), name);
    assert_eq!(refused(|peer| peer.name = "\u{85}".into()), name);
    assert_eq!(
        refused(|peer| peer.key_chain.clear()),
        "no key chain is named"
    );
    assert_eq!(refused(|peer| peer.address.clear()), "address is missing");
    assert_eq!(
        refused(|peer| peer.vrf = "v".repeat(129)),
        "vrf has at most 128 octets and no control characters"
    );
    assert_eq!(refused(|peer| peer.ttl_min = 256), "ttl_min is 0 to 255");
    assert_eq!(
        refused(|peer| peer.first_port = 65_536),
        "ports are 1 to 65535"
    );
    assert_eq!(
        refused(|peer| peer.last_port = 80),
        "last_port 80 is below 179"
    );
}

#[test]
fn ports_have_defaults() {
    assert_eq!(ports(0, 0).unwrap(), None);
    assert_eq!(ports(0, 200).unwrap(), Some((179, 200)));
    assert_eq!(ports(1790, 0).unwrap(), Some((1790, 1790)));
    assert_eq!(ports(1, 65_535).unwrap(), Some((1, 65_535)));
}

#[test]
fn a_key_is_read() {
    let key = v1::KeySpec {
        include_tcp_options: Some(false),
        send_lifetime: Some(v1::Lifetime {
            start: time(-1, 500_000_000),
            end: time(5, 0),
        }),
        accept_lifetime: Some(v1::Lifetime::default()),
        ..key()
    };
    let Change::PutKey {
        chain,
        key,
        replace,
    } = put_key("transit".into(), Some(key), false).unwrap()
    else {
        panic!("no key");
    };
    assert_eq!((&*chain, replace), ("transit", false));
    assert_eq!(
        (key.send_id, key.recv_id, key.include_tcp_options),
        (0, 255, false)
    );
    assert_eq!(&**key.secret.unwrap().0, b"precious");
    let start = UNIX_EPOCH - Duration::from_millis(500);
    let end = UNIX_EPOCH + Duration::from_secs(5);
    assert_eq!(
        key.send,
        Lifetime {
            start: Some(start),
            end: Some(end)
        }
    );
    assert_eq!(key.accept, Some(Lifetime::default()));
}

#[test]
fn bad_keys_are_refused() {
    let refused = |change: fn(&mut v1::KeySpec)| {
        let mut key = key();
        change(&mut key);
        let refusal = refusal(put_key("transit".into(), Some(key), false));
        assert!(!refusal.contains("precious"));
        refusal
    };
    assert_eq!(refusal(put_key("x".into(), None, false)), "key is missing");
    assert_eq!(refused(|key| key.send_id = None), "send_id is missing");
    assert_eq!(
        refused(|key| key.recv_id = Some(256)),
        "recv_id is 0 to 255"
    );
    assert_eq!(refused(|key| key.algorithm.clear()), "algorithm is missing");
    assert_eq!(refused(|key| key.secret.clear()), "a key has a secret");
    assert_eq!(
        refused(|key| key.secret = vec![1; 81]),
        "a secret has 1 to 80 octets"
    );
    fn sent(key: &mut v1::KeySpec, start: Option<Timestamp>, end: Option<Timestamp>) {
        key.send_lifetime = Some(v1::Lifetime { start, end });
    }
    let none = "send_lifetime has a time that is none";
    assert_eq!(refused(|key| sent(key, time(0, -1), None)), none);
    assert_eq!(refused(|key| sent(key, None, time(0, 1_000_000_000))), none);
    assert_eq!(refused(|key| sent(key, None, time(i64::MIN, 0))), none);
    assert_eq!(
        refused(|key| sent(key, None, time(LAST_MOMENT + 1, 0))),
        none
    );
    assert_eq!(
        refused(|key| sent(key, time(5, 0), time(5, 0))),
        "send_lifetime ends before it starts"
    );
}

#[test]
fn a_key_that_is_replaced_may_keep_its_secret() {
    let same = v1::KeySpec {
        secret: Vec::new(),
        ..key()
    };
    let Change::PutKey {
        key: read, replace, ..
    } = put_key("transit".into(), Some(same.clone()), true).unwrap()
    else {
        panic!("no key");
    };
    assert!(replace && read.secret.is_none());
    let chain = v1::CreateKeyChainRequest {
        key_chain: Some(v1::KeyChainSpec {
            name: "transit".into(),
            ..v1::KeyChainSpec::default()
        }),
        keys: vec![key(), same],
    };
    assert_eq!(refusal(create_key_chain(chain)), "a key has a secret");
}

#[test]
fn a_key_chain_is_read() {
    let chain = |tolerance| v1::KeyChainSpec {
        name: "transit".into(),
        tolerance,
        allow_gaps: true,
        on_expiry: "close".into(),
    };
    let span = |seconds, nanos| Some(Span { seconds, nanos });
    let request = v1::CreateKeyChainRequest {
        key_chain: Some(chain(span(60, 5))),
        keys: vec![key()],
    };
    let Change::CreateKeyChain { chain: rules, keys } = create_key_chain(request).unwrap() else {
        panic!("no key chain");
    };
    let expected = KeyChainSpec {
        name: "transit".into(),
        tolerance: Some(Duration::new(60, 5)),
        allow_gaps: true,
        on_expiry: Some("close".into()),
    };
    assert_eq!((rules, keys.len()), (expected, 1));

    let update = |tolerance| {
        refusal(update_key_chain(v1::UpdateKeyChainRequest {
            key_chain: Some(chain(tolerance)),
        }))
    };
    let none = "tolerance is no duration from 0";
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
        assert_eq!(update(span(seconds, nanos)), none);
    }
    assert_eq!(
        refusal(create_key_chain(v1::CreateKeyChainRequest {
            key_chain: Some(chain(None)),
            keys: Vec::new(),
        })),
        "a key chain has at least one key"
    );
    assert_eq!(
        refusal(create_key_chain(v1::CreateKeyChainRequest::default())),
        "key_chain is missing"
    );
}

#[test]
fn listening_has_its_bounds() {
    let span = |seconds| Span { seconds, nanos: 0 };
    assert_eq!(listen(None).unwrap(), LISTEN);
    assert_eq!(listen(Some(&span(0))).unwrap(), Duration::ZERO);
    assert_eq!(listen(Some(&span(150))).unwrap(), MAX_LISTEN);
    assert_eq!(refusal(listen(Some(&span(151)))), "listen is 0 to 150 s");
    assert_eq!(
        refusal(listen(Some(&span(-1)))),
        "listen is no duration from 0"
    );
}

#[test]
fn a_configuration_has_its_bound() {
    let text = |length| v1::ValidateConfigRequest {
        toml: "#".repeat(length),
    };
    assert_eq!(config_text(text(0)).unwrap(), None);
    assert!(config_text(text(MAX_CONFIG)).unwrap().is_some());
    assert_eq!(
        refusal(config_text(text(MAX_CONFIG + 1))),
        "a configuration has at most 1 MiB"
    );
}

#[test]
fn what_has_a_secret_does_not_show_it() {
    let request = v1::CreateKeyRequest {
        key_chain: "transit".into(),
        key: Some(key()),
    };
    let shown = format!("{request:?}");
    assert!(
        shown.contains("aes-128-cmac-96") && !shown.contains("112"),
        "{shown}"
    );
    let shown = format!(
        "{:?}",
        v1::ValidateConfigRequest {
            toml: "precious".into()
        }
    );
    assert_eq!(shown, "ValidateConfigRequest { .. }");
}
