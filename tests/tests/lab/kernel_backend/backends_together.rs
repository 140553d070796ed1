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

/// The addresses of a connection, of a and of b.
type Ends = (String, String);

/// Sidecars with peers on [`PORT`], a's for the kernel and b's for the engine: for each key (as a
/// has it) a connection with addresses of its own, which are added here.
fn sidecars(lan: &Lan, keys: &[Key]) -> (Vec<Ends>, Sidecar, Sidecar) {
    let ends: Vec<Ends> = (0..keys.len())
        .map(|index| {
            (
                format!("10.0.0.{}", 20 + index),
                format!("10.0.0.{}", 40 + index),
            )
        })
        .collect();
    for (a, b) in &ends {
        for (namespace, own, far) in [(&lan.a.namespace, a, b), (&lan.b.namespace, b, a)] {
            namespace.ip(&format!("addr add {own}/24 dev {INTERFACE}"));
            namespace.ip(&format!("route add {far} dev {INTERFACE} src {own}"));
        }
    }
    let connections = || ends.iter().zip(keys);
    let at_a: Vec<PeerConfig> = connections()
        .map(|((_, b), key)| peer(b, std::slice::from_ref(key)))
        .collect();
    let at_b: Vec<PeerConfig> = connections()
        .map(|((a, _), key)| peer(a, &[key.mirrored()]))
        .collect();
    let sidecar_a = Sidecar::start_with_datapath(&lan.a.namespace, "kernel", &at_a);
    let sidecar_b = Sidecar::start_with_datapath(&lan.b.namespace, "userspace", &at_b);
    (ends, sidecar_a, sidecar_b)
}

fn peer(address: &str, keys: &[Key]) -> PeerConfig {
    PeerConfig {
        port: PORT,
        keys: keys.to_vec(),
        ..PeerConfig::new(address, Key::default())
    }
}

/// The ends of a transfer, the kernel's at a and the engine's at b: client and server.
fn transfer(lan: &Lan, kernel: &Sidecar, (a, b): &Ends, kernel_opens: bool) -> (Stream, Stream) {
    let at_a = At::under(&lan.a.namespace, &kernel.launcher());
    let at_b = At::plain(&lan.b.namespace);
    let (client, server, address) = match kernel_opens {
        true => (at_a, at_b, b),
        false => (at_b, at_a, a),
    };
    let place = format!("{address}:{PORT}");
    let server = Stream::serve_by(&server, &place, RATE);
    (Stream::connect_by(&client, &place, RATE), server)
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

/// The established session with an address is by this datapath.
fn assert_datapath(sidecar: &Sidecar, remote: &str, datapath: &str) {
    let sessions = sidecar.ask("sessions");
    let mut all = sessions.as_array().into_iter().flatten();
    let found = all.any(|session| {
        let address = session["remote"].as_str().unwrap_or_default();
        session["state"] == "established"
            && session["datapath"] == datapath
            && address.starts_with(&format!("{remote}:"))
    });
    assert!(found, "no session with {remote} by {datapath}: {sessions}");
}

/// One transfer with each algorithm, options covered and not, opened by either end.
#[test]
#[ignore = "needs the lab's kernel"]
fn kernel_and_engine_agree_on_every_algorithm_and_option() {
    let mut keys = Vec::new();
    for algorithm in ALGORITHMS {
        for include_tcp_options in [true, false] {
            let number = u8::try_from(keys.len()).expect("few keys");
            keys.push(Key {
                include_tcp_options,
                ..numbered(number, algorithm)
            });
        }
    }
    let lan = Lan::new();
    let filter = format!("tcp port {PORT}");
    let capture = Capture::start(&lan.wire, Lan::PORT_A, &filter);
    let (ends, sidecar_a, sidecar_b) = sidecars(&lan, &keys);
    for kernel_opens in [true, false] {
        for (both, key) in ends.iter().zip(&keys) {
            progress!("kernel opens: {kernel_opens}, {key:?}");
            let (mut client, mut server) = transfer(&lan, &sidecar_a, both, kernel_opens);
            wait_for_more(&server, RATE / 4, STEP);
            wait_for_more(&client, RATE / 4, STEP);
            assert_datapath(&sidecar_a, &both.1, "kernel");
            assert_datapath(&sidecar_b, &both.0, "userspace");
            stream::finish(&mut client, &mut server, STEP);
        }
    }
    assert_no_refusal(&sidecar_a);
    assert_no_refusal(&sidecar_b);
    let keys: Vec<Value> = keys
        .iter()
        .zip(&ends)
        .map(|(key, (a, b))| key.for_checker(a, b))
        .collect();
    let port = PORT.to_string();
    let expectations = ["--port", &port, "--offloaded", "--min-signed", "4"];
    capture.stop().check(&keys, &expectations);
}

/// Gives both sidecars these keys, first the kernel's or first the engine's.
fn reload(both: &mut [Sidecar; 2], (a, b): &Ends, keys: &[Key], kernel_first: bool) {
    let mirrored: Vec<Key> = keys.iter().map(Key::mirrored).collect();
    let mut steps = [(b, keys), (a, mirrored.as_slice())].map(|(far, keys)| peer(far, keys));
    let mut sidecars = both.each_mut();
    if !kernel_first {
        steps.reverse();
        sidecars.reverse();
    }
    for (sidecar, peer) in sidecars.into_iter().zip(steps) {
        sidecar.reload(&[peer]);
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
    let (ends, sidecar_a, sidecar_b) = sidecars(&lan, &keys[..1]);
    let ends = &ends[0];
    let (mut client, mut server) = transfer(&lan, &sidecar_a, ends, kernel_opens);
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
            reload(&mut both, ends, &step, kernel_first);
            wait_for_more(&server, RATE / 4, STEP);
            wait_for_more(&client, RATE / 4, STEP);
        }
        wait_key(&both, new);
        reload(&mut both, ends, std::slice::from_ref(new), kernel_first);
        wait_for_more(&server, RATE / 4, STEP);
        wait_for_more(&client, RATE / 4, STEP);
        let listed = both[0].established();
        assert_eq!(listed["keys"].as_array().map(Vec::len), Some(1), "{listed}");
    }
    both.iter().for_each(assert_no_refusal);
    stream::finish(&mut client, &mut server, Duration::from_secs(60));
    let keys = keys.map(|key| key.for_checker(&ends.0, &ends.1));
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
