//! The kernel at one end, the userspace engine at the other.

use std::time::Duration;

use ao_tests::capture::Capture;
use ao_tests::daemon::At;
use ao_tests::progress;
use ao_tests::sidecar::{ALGORITHMS, Key, PeerConfig, Sidecar};
use ao_tests::stream::{self, STEADY, Stream, wait_for_more};
use ao_tests::topology::{Family, INTERFACE, Lan};
use ao_tests::wait;
use serde_json::Value;

use super::STEP;

/// Slow enough for an emulated processor that signs at one end in the engine.
const RATE: u64 = STEADY / 20;

/// Where the tests' transfers are protected.
const PORT: u16 = 5179;

/// Keys with IDs and secrets of their own.
fn numbered(number: u8, algorithm: &'static str) -> Key {
    Key {
        send_id: 10 + number,
        recv_id: 100 + number,
        secret: format!("secret number {number}"),
        ..Key::new(algorithm)
    }
}

/// Sidecars with peers on [`PORT`]: at a the kernel's, at b the engine's. The keys of each
/// connection are as a has them, and b has an address for each, which is added here.
fn sidecars(lan: &Lan, keys: &[Key]) -> (Vec<String>, Sidecar, Sidecar) {
    let addresses: Vec<String> = (0..keys.len())
        .map(|index| format!("10.0.0.{}", 20 + index))
        .collect();
    for address in &addresses {
        let add = format!("addr add {address}/24 dev {INTERFACE}");
        lan.b.namespace.ip(&add);
    }
    let peers_of_a: Vec<PeerConfig> = addresses
        .iter()
        .zip(keys)
        .map(|(address, key)| PeerConfig {
            port: PORT,
            ..PeerConfig::new(address, key.clone())
        })
        .collect();
    let sidecar_a = Sidecar::start_with_datapath(&lan.a.namespace, "kernel", &peers_of_a);
    let peer_of_b = PeerConfig {
        port: PORT,
        keys: keys.iter().map(Key::mirrored).collect(),
        ..PeerConfig::new(lan.a.v4.to_string(), Key::default())
    };
    let sidecar_b = Sidecar::start_with_datapath(&lan.b.namespace, "userspace", &[peer_of_b]);
    (addresses, sidecar_a, sidecar_b)
}

/// The ends of a transfer, the kernel's at a and the engine's at b.
fn transfer(lan: &Lan, kernel: &Sidecar, address_b: &str, kernel_opens: bool) -> (Stream, Stream) {
    let at_a = At::under(&lan.a.namespace, &kernel.launcher());
    let at_b = At::plain(&lan.b.namespace);
    let place = |address: &str| format!("{address}:{PORT}");
    if kernel_opens {
        let server = Stream::serve_by(&at_b, &place(address_b), RATE);
        (Stream::connect_by(&at_a, &place(address_b), RATE), server)
    } else {
        let address_a = lan.a.v4.to_string();
        let server = Stream::serve_by(&at_a, &place(&address_a), RATE);
        (Stream::connect_by(&at_b, &place(&address_a), RATE), server)
    }
}

fn assert_no_refusal(sidecar: &Sidecar) {
    let sessions = sidecar.ask("sessions");
    for session in sessions.as_array().into_iter().flatten() {
        for counter in ["segments_bad", "segments_unsigned", "key_not_found"] {
            assert_eq!(session[counter], 0, "{counter}: {session}");
        }
    }
    let drops = sidecar.drops();
    let refused = drops.of(&["bad-mac", "unknown-key-id", "mac-length", "unsigned"]);
    assert_eq!(refused, 0, "{drops:?}");
}

/// One transfer with each algorithm, options covered and not, opened by either end.
#[test]
#[ignore = "needs the lab's kernel"]
fn kernel_and_engine_agree_on_every_algorithm_and_option() {
    for kernel_opens in [true, false] {
        for include_tcp_options in [true, false] {
            for algorithm in ALGORITHMS {
                agree(algorithm, include_tcp_options, kernel_opens);
            }
        }
    }
}

fn agree(algorithm: &'static str, include_tcp_options: bool, kernel_opens: bool) {
    progress!("{algorithm}, options covered: {include_tcp_options}, kernel opens: {kernel_opens}");
    let lan = Lan::new();
    let key = Key {
        include_tcp_options,
        ..Key::new(algorithm)
    };
    let filter = format!("tcp port {PORT}");
    let capture = Capture::start(&lan.wire, Lan::PORT_A, &filter);
    let (addresses, sidecar_a, sidecar_b) = sidecars(&lan, std::slice::from_ref(&key));
    let (mut client, mut server) = transfer(&lan, &sidecar_a, &addresses[0], kernel_opens);
    wait_for_more(&server, RATE / 4, STEP);
    wait_for_more(&client, RATE / 4, STEP);
    assert_eq!(sidecar_a.established()["datapath"], "kernel");
    assert_eq!(sidecar_b.established()["datapath"], "userspace");
    assert_no_refusal(&sidecar_a);
    assert_no_refusal(&sidecar_b);
    stream::finish(&mut client, &mut server, STEP);
    let key = key.for_checker(&lan.a.v4.to_string(), &addresses[0]);
    let port = PORT.to_string();
    capture.stop().check(
        &[key],
        &["--port", &port, "--offloaded", "--min-signed", "4"],
    );
}

/// Gives both sidecars these keys, first the kernel's or first the engine's.
fn reload(lan: &Lan, both: &mut [Sidecar; 2], address_b: &str, keys: &[Key], kernel_first: bool) {
    let at_a = PeerConfig {
        port: PORT,
        keys: keys.to_vec(),
        ..PeerConfig::new(address_b, Key::default())
    };
    let at_b = PeerConfig {
        port: PORT,
        keys: keys.iter().map(Key::mirrored).collect(),
        ..PeerConfig::new(lan.a.v4.to_string(), Key::default())
    };
    let [a, b] = both;
    if kernel_first {
        a.reload(&[at_a]);
        b.reload(&[at_b]);
    } else {
        b.reload(&[at_b]);
        a.reload(&[at_a]);
    }
}

/// Waits until both ends send with `key` (as a has it) and want the other to.
fn wait_key(both: &[Sidecar; 2], key: &Key) {
    let wanted = [key.clone(), key.mirrored()];
    for (sidecar, key) in both.iter().zip(wanted) {
        wait::poll("the key in use in both directions", STEP, || {
            let sessions = sidecar.try_ask("sessions")?;
            let mut all = sessions.as_array().into_iter().flatten();
            let in_use = |one: &Value| {
                one["state"] == "established"
                    && one["current_key"] == key.send_id
                    && one["rnext_key"] == key.recv_id
            };
            match all.any(in_use) {
                true => Ok(()),
                false => Err(sessions.to_string()),
            }
        });
    }
}

/// Key changes under a live transfer: the next key is added at both ends, made the preferred one,
/// and the old one removed, the kernel's end being first with everything, then the engine's.
fn changes_keys(kernel_opens: bool) {
    let lan = Lan::new();
    let filter = format!("tcp port {PORT}");
    let capture = Capture::start(&lan.wire, Lan::PORT_A, &filter);
    let keys = [0, 1, 2].map(|number| numbered(number, ALGORITHMS[usize::from(number)]));
    let (addresses, sidecar_a, sidecar_b) = sidecars(&lan, &keys[..1]);
    let address_b = &addresses[0];
    let (mut client, mut server) = transfer(&lan, &sidecar_a, address_b, kernel_opens);
    wait_for_more(&server, RATE / 4, STEP);
    let mut both = [sidecar_a, sidecar_b];
    for (pair, kernel_first) in keys.windows(2).zip([true, false]) {
        let [old, new] = pair else {
            unreachable!("windows of two")
        };
        progress!(
            "from {} to {}, kernel first: {kernel_first}",
            old.send_id,
            new.send_id
        );
        for step in [
            vec![old.clone(), new.clone()],
            vec![new.clone(), old.clone()],
        ] {
            reload(&lan, &mut both, address_b, &step, kernel_first);
            wait_for_more(&server, RATE / 4, STEP);
            wait_for_more(&client, RATE / 4, STEP);
        }
        wait_key(&both, new);
        reload(
            &lan,
            &mut both,
            address_b,
            std::slice::from_ref(new),
            kernel_first,
        );
        wait_for_more(&server, RATE / 4, STEP);
        wait_for_more(&client, RATE / 4, STEP);
        let listed = both[0].established();
        assert_eq!(listed["keys"].as_array().map(Vec::len), Some(1), "{listed}");
    }
    both.iter().for_each(assert_no_refusal);
    stream::finish(&mut client, &mut server, Duration::from_secs(60));
    let keys = keys.map(|key| key.for_checker(&lan.a.v4.to_string(), address_b));
    let port = PORT.to_string();
    capture.stop().check(
        &keys,
        &["--port", &port, "--offloaded", "--min-signed", "4"],
    );
}

#[test]
#[ignore = "needs the lab's kernel"]
fn keys_change_under_load_of_a_transfer_that_the_kernel_opened() {
    changes_keys(true);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn keys_change_under_load_of_a_transfer_that_the_engine_opened() {
    changes_keys(false);
}

/// Which family plays no role above: one transfer over link-local addresses.
#[test]
#[ignore = "needs the lab's kernel"]
fn kernel_and_engine_agree_over_link_local_addresses() {
    let lan = Lan::new();
    let family = Family::LinkLocal;
    let peer = |far: &ao_tests::topology::Host, key| PeerConfig {
        port: PORT,
        ..PeerConfig::new(far.address_text(family), key)
    };
    let key = Key::default();
    let at_a = peer(&lan.b, key.clone());
    let sidecar_a = Sidecar::start_with_datapath(&lan.a.namespace, "kernel", &[at_a]);
    let at_b = peer(&lan.a, key.mirrored());
    let sidecar_b = Sidecar::start_with_datapath(&lan.b.namespace, "userspace", &[at_b]);
    let place = lan.b.socket_text(family, PORT);
    let mut server = Stream::serve_by(&At::plain(&lan.b.namespace), &place, RATE);
    let launched = At::under(&lan.a.namespace, &sidecar_a.launcher());
    let mut client = Stream::connect_by(&launched, &place, RATE);
    wait_for_more(&server, RATE / 4, STEP);
    assert_no_refusal(&sidecar_a);
    assert_no_refusal(&sidecar_b);
    stream::finish(&mut client, &mut server, STEP);
}
