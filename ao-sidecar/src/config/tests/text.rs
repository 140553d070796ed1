//! The configuration as text.

use std::fmt::Write;

use super::super::toml_text::LEFT_OUT;
use super::*;

/// Everything that has an effect, secrets included: two configurations are equal if these are.
fn everything(config: &Config) -> String {
    let Config {
        state_dir,
        api_socket,
        on_exit,
        api,
        metrics_listen,
        log,
        userspace,
        identity,
        listen,
        sealing_key_file,
        chains,
        peers,
        left_out: _,
        warnings: _,
        source: _,
        files: _,
    } = config;
    let mut text = format!(
        "{state_dir:?} {api_socket:?} {on_exit:?} {api:?} {metrics_listen:?} {log:?} {userspace:?} \
         {identity:?} {listen:?} {sealing_key_file:?}\n"
    );
    for chain in chains {
        writeln!(text, "{:?}", chain.keys).unwrap();
        for key in chain.keys.keys() {
            writeln!(text, "{:?}", key.mkt.master_key.expose()).unwrap();
        }
    }
    for peer in peers {
        writeln!(text, "{:?} {:?}", peer.spec, peer.keys).unwrap();
    }
    text
}

/// The text of the configuration with its secrets put in.
fn with_secrets(config: &Config) -> String {
    let text = config.to_toml();
    let keys = config.chains.iter().flat_map(|chain| chain.keys.keys());
    let mut parts = text.split(LEFT_OUT);
    let mut whole = parts.next().unwrap().to_owned();
    for (key, part) in keys.zip(parts.by_ref()) {
        let octets = key.mkt.master_key.expose();
        let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        whole.push_str(&format!("secret_hex = \"{hex}\"\n{part}"));
    }
    assert_eq!(parts.next(), None);
    whole
}

#[test]
fn the_text_is_complete_and_has_no_secret() {
    let made = Overlay {
        peers: vec![grpc_api::operator::administration::PeerSpec {
            name: "b \"\\\u{e9}".to_owned(),
            address: "10.0.0.9".to_owned(),
            key_chain: "transit".to_owned(),
            ..Default::default()
        }],
        chains: vec![MadeChain {
            name: "transit".to_owned(),
            rules: None,
            keys: vec![grpc_api::operator::administration::KeySpec {
                send_id: 9,
                recv_id: 8,
                algorithm: "aes-128-cmac-96".to_owned(),
                include_tcp_options: false,
                secret: Some(grpc_api::operator::administration::Secret(Zeroizing::new(
                    MARK.into(),
                ))),
                send: grpc_api::operator::Lifetime {
                    start: Some(SystemTime::UNIX_EPOCH),
                    end: None,
                },
                accept: None,
            }],
        }],
    };
    let text = format!(
        "[api]\nadmin_group = \"netadmin\"\n[metrics]\nlisten = \"127.0.0.1:9179\"\n\
         [userspace]\nworkers = 2\n{CHAIN}{PEER}"
    );
    let config = parse_with(&text, Path::new("/etc/ao.toml"), 0o600, &made).unwrap();
    assert!(!config.to_toml().contains(MARK));
    assert_snapshot!(config.to_toml(), @r##"
state_dir = "/var/lib/ao-sidecar"
api_socket = "/run/ao-sidecar/api.sock"
on_exit = "keep"

[api]
admin_group = "netadmin"

[metrics]
listen = "127.0.0.1:9179"

[log]
format = "text"
level = "info"

[userspace]
first_queue = 7900
workers = 2
queue_length = 4096
mark_bit = 0x08000000
max_connections = 4096
strip = "auto"

[[key_chain]]
name = "transit"
accept_tolerance = "5m"
allow_gaps = false
on_expiry = "keep"

[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
include_tcp_options = true
send_lifetime = "always"
accept_lifetime = "always"
# The secret is left out.

# Made by API.
[[key_chain.key]]
send_id = 9
recv_id = 8
algorithm = "aes-128-cmac-96"
include_tcp_options = false
send_lifetime = { start = "1970-01-01T00:00:00Z" }
accept_lifetime = { start = "1970-01-01T00:00:00Z" }
# The secret is left out.

[[peer]]
name = "as64502"
address = "10.0.0.2"
key_chain = "transit"
ports = "179-179"
ttl_min = 0
datapath = "auto"

# Made by API.
[[peer]]
name = "b \"\\é"
address = "10.0.0.9"
key_chain = "transit"
ports = "179-179"
ttl_min = 0
datapath = "auto"
"##);
    assert_eq!(
        everything(&accepted_quietly(&with_secrets(&config))),
        everything(&config)
    );
}

/// A text whose secrets are hexadecimal.
fn accepted_quietly(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A key without IDs.
fn any_key() -> impl Strategy<Value = String> {
    let algorithm = prop::sample::select(Algorithm::ALL.to_vec());
    let secret = prop::collection::vec(any::<u8>(), 1..=80);
    let lifetime = prop_oneof![
        Just(String::new()),
        Just("lifetime = \"always\"\n".to_owned()),
        (
            1_000_000_000_u64..1_500_000_000,
            1..1_000_000_000_u64,
            0..1_000_000_000_u32
        )
            .prop_map(|(start, seconds, nanos)| {
                let start = shown_at(start, nanos);
                format!("lifetime = {{ start = {start}, duration = \"{seconds}s 7us\" }}\n")
            }),
        (1_000_000_000_u64..1_500_000_000).prop_map(|end| {
            let end = shown_at(end, 0);
            format!("send_lifetime = {{ end = {end} }}\naccept_lifetime = \"always\"\n")
        }),
    ];
    (algorithm, secret, any::<bool>(), lifetime).prop_map(|(algorithm, secret, options, lifetime)| {
        let hex: String = secret.iter().map(|octet| format!("{octet:02x}")).collect();
        format!(
            "algorithm = \"{}\"\nsecret_hex = \"{hex}\"\ninclude_tcp_options = {options}\n{lifetime}",
            algorithm.name()
        )
    })
}

fn shown_at(seconds: u64, nanos: u32) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    jiff::Timestamp::try_from(at).unwrap().to_string()
}

fn any_chain(name: &'static str) -> impl Strategy<Value = String> {
    let tolerance = prop_oneof![
        Just("0s".to_owned()),
        Just("forever".to_owned()),
        Just("1month 3days 7ms".to_owned()),
        (1..10_000_000_u32).prop_map(|seconds| format!("{seconds}s")),
    ];
    let keys = prop::collection::vec(any_key(), 1..4);
    let on_expiry = prop::sample::select(vec!["keep", "close"]);
    (tolerance, on_expiry, keys).prop_map(move |(tolerance, on_expiry, keys)| {
        let mut text = format!(
            "[[key_chain]]\nname = {name}\nallow_gaps = true\naccept_tolerance = \"{tolerance}\"\n\
             on_expiry = \"{on_expiry}\"\n"
        );
        for (id, key) in keys.iter().enumerate() {
            let head = format!(
                "[[key_chain.key]]\nsend_id = {id}\nrecv_id = {}\n",
                255 - id
            );
            text.push_str(&head);
            text.push_str(key);
        }
        text
    })
}

/// A peer at an address that no other has.
fn any_peer(number: usize) -> impl Strategy<Value = String> {
    let keys = prop_oneof![
        Just("key_chain = \"a\"\n".to_owned()),
        Just("key_chain = \"b \\u0022 \\\\\"\n".to_owned()),
        (1..9_u8, 15..=255_u8, 10..100_000_u32, any::<u8>()).prop_map(
            move |(runway, highest, interval, octet)| {
                format!(
                    "[peer.rollover]\nendpoint = \"router-{number}.example.net:7179\"\n\
                 fingerprint = \"sha256:{}\"\nrunway = {runway}\nhighest_id = {highest}\n\
                 interval = \"{interval}s\"\nlabel = \"{number}\"\n",
                    format!("{octet:02x}").repeat(32)
                )
            }
        ),
    ];
    let place = prop_oneof![
        Just(format!(
            "address = \"10.0.0.{}\"\nlocal_address = \"10.0.1.1\"\n",
            number + 1
        )),
        Just(format!("address = \"2001:db8::{number}\"\nvrf = \"red\"\n")),
        Just(format!("address = \"fe80::{number}%eth0\"\n")),
    ];
    let ports = prop_oneof![
        Just(String::new()),
        (1..=65_535_u16).prop_map(|port| format!("port = {port}\n")),
        (1..500_u16, 500..=65_535_u16)
            .prop_map(|(low, high)| format!("ports = \"{low}-{high}\"\n")),
    ];
    let datapath = prop::sample::select(vec!["auto", "kernel", "userspace"]);
    (keys, place, ports, any::<u8>(), datapath).prop_map(
        move |(keys, place, ports, ttl, datapath)| {
            format!(
                "[[peer]]\nname = \"peer {number}\"\n{place}{ports}ttl_min = {ttl}\n\
                 datapath = \"{datapath}\"\n{keys}"
            )
        },
    )
}

fn any_top() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["error", "warn", "info", "debug", "trace"]);
    (
        level,
        any::<bool>(),
        0..32_u32,
        1..=64_u8,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(level, json, bit, workers, remove, served)| {
            let format = if json { "json" } else { "text" };
            let on_exit = if remove { "remove" } else { "keep" };
            let served = if served {
                "[metrics]\nlisten = \"[::1]:9179\"\n[api]\nviewer_group = \"adm\"\n\
                 admin_group = \"wheel\"\n[peering]\nlisten = []\n"
            } else {
                ""
            };
            format!(
                "on_exit = \"{on_exit}\"\nstate_dir = \"/a \\u0022b\\\\\"\ndatapath = \"kernel\"\n\
                 [log]\nlevel = \"{level}\"\nformat = \"{format}\"\n\
                 [userspace]\nmark_bit = {}\nworkers = {workers}\n{served}",
                1_u32 << bit
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_text_with_its_secrets_is_the_same_configuration(
        top in any_top(),
        a in any_chain("\"a\""),
        b in any_chain("\"b \\u0022 \\\\\""),
        peers in [any_peer(0), any_peer(1), any_peer(2)],
    ) {
        let text = format!("{top}{a}{b}{}", peers.concat());
        // IDs whose lifetimes do not go together are refused; those texts are of no use here.
        let config = accepted_quietly(&text);
        let again = accepted_quietly(&with_secrets(&config));
        prop_assert_eq!(everything(&again), everything(&config));
        prop_assert_eq!(diff(&config, &again, now()), []);
    }
}
