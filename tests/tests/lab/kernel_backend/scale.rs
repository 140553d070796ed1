//! Many peers on one listener.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ao_tests::capture::tool;
use ao_tests::process::output;
use ao_tests::progress;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::Lan;
use ao_tests::wait;

use super::Calls;

const PEERS: u32 = 1000;
const KEYS: usize = 2;

/// Two keys are on the listener for each of 1,000 peers within this time on a real machine.
const LIMIT: Duration = Duration::from_secs(2);

fn peers(keys: usize) -> Vec<PeerConfig> {
    (0..PEERS)
        .map(|number| {
            let mut peer = PeerConfig::new(
                format!("10.{}.{}.9", 1 + number / 250, number % 250),
                Key::default(),
            );
            peer.keys.push(Key {
                send_id: 3,
                recv_id: 4,
                ..Key::default()
            });
            peer.keys.truncate(keys);
            peer
        })
        .collect()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// When the listener had so many keys, by what it says itself.
fn moment(calls: &Calls, keys: usize) -> u64 {
    let wanted = format!("keys {keys} ");
    wait::poll("all keys on the listener", Duration::from_secs(120), || {
        let log = calls.process.log();
        log.lines()
            .find_map(|line| line.strip_prefix(&wanted)?.parse().ok())
            .ok_or_else(|| log.lines().last().unwrap_or_default().to_owned())
    })
}

/// How long the same number of keys takes a program that makes nothing but the system calls:
/// what the lab's emulated processor can do at best.
fn plain(lan: &Lan) -> Duration {
    let tool = tool("calls.py");
    let mut command = lan.b.namespace.command(tool.get_program());
    command.args(tool.get_args());
    command.args(["--plain-keys", &(PEERS as usize * KEYS).to_string()]);
    let answer = output(command).unwrap_or_else(|error| panic!("{error}"));
    let milliseconds = answer.trim().strip_prefix("plain ");
    let milliseconds = milliseconds.and_then(|word| word.parse().ok());
    Duration::from_millis(milliseconds.expect("a time"))
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_thousand_peers_get_their_keys_on_a_listener_at_once() {
    let lan = Lan::new();
    lan.b.namespace.sysctl("net.core.optmem_max", "16777216");
    let plain = plain(&lan);
    let before = "131072";
    lan.a.namespace.sysctl("net.core.optmem_max", before);
    let mut sidecar = Sidecar::start_with_datapath(&lan.a.namespace, "kernel", &peers(1));
    let words = ["--hold", "listen/0.0.0.0/179"];
    let calls = Calls::prepare(&lan.a.namespace, &sidecar, &words);
    let began = now();
    assert_eq!(calls.outcomes(), ["ok"]);
    let first = moment(&calls, PEERS as usize) - began;
    let began = now();
    sidecar.reload(&peers(KEYS));
    let second = moment(&calls, PEERS as usize * KEYS) - began;
    progress!(
        "{PEERS} peers: first key {first} ms after listen, second key {second} ms after SIGHUP; \
         {} ms for {KEYS} keys each by system calls alone",
        plain.as_millis()
    );
    let status = sidecar.ask("status");
    assert_eq!(
        status["kernel"]["optmem_raised_from"]
            .as_u64()
            .map(|octets| octets.to_string()),
        Some(before.to_owned()),
        "{status}"
    );
    // Beside the system calls, what takes two seconds at most elsewhere may take ten times as long.
    let allowed = plain * 2 + LIMIT * 10;
    assert!(
        Duration::from_millis(second) < allowed,
        "{second} ms, allowed {allowed:?}"
    );
}
