//! The engine at one end, Linux's own TCP-AO at the other: two implementations that share nothing.

use std::time::Duration;

use ao_tests::capture::tool;
use ao_tests::daemon::At;
use ao_tests::netns::Namespace;
use ao_tests::process::Process;
use ao_tests::progress;
use ao_tests::scratch::Scratch;
use ao_tests::settings::soak;
use ao_tests::sidecar::{ALGORITHMS, Key, PeerConfig, Sidecar};
use ao_tests::topology::{Family, INTERFACE, Lan};
use ao_tests::wait;
use serde_json::{Value, json};

/// All sessions of one end, one after the other.
const LIMIT: Duration = Duration::from_secs(120);

/// A session with the kernel at host b, which has an address for each.
struct Case {
    a: String,
    b: String,
    key: Key,
}

impl Case {
    /// As the tool at host a has it: plain TCP.
    fn at_a(&self) -> Value {
        json!({ "local": self.a, "remote": self.b, "port": 179, "keys": [] })
    }

    /// As the tool at host b has it: with a key in the kernel.
    fn at_b(&self) -> Value {
        let key = self.key.mirrored();
        json!({
            "local": self.b, "remote": self.a, "port": 179,
            "keys": [in_kernel(&key)],
        })
    }
}

/// A key as the tool has it.
pub(super) fn in_kernel(key: &Key) -> Value {
    json!({
        "send_id": key.send_id, "recv_id": key.recv_id, "algorithm": key.algorithm,
        "secret": key.secret, "include_options": key.include_tcp_options,
    })
}

/// Every algorithm with options covered and not; each case has KeyIDs and a secret of its own.
fn cases(lan: &Lan, family: Family) -> Vec<Case> {
    let mut cases = Vec::new();
    for algorithm in ALGORITHMS {
        for include_tcp_options in [true, false] {
            let number = u8::try_from(cases.len()).expect("few cases");
            let mut key = Key::new(algorithm);
            (key.send_id, key.recv_id) = (10 + number, 200 + number);
            // Shorter than an AES key, as long as one, and longer.
            key.secret = "0123456789abcdefghijklm"[..9 + usize::from(number) * 2].to_owned();
            key.include_tcp_options = include_tcp_options;
            let number = 11 + number;
            let (a, b, length) = match family {
                Family::V4 => (lan.a.v4.to_string(), format!("10.0.0.{number}"), 24),
                _ => (lan.a.v6.to_string(), format!("fd00::{number}"), 64),
            };
            let address = format!("addr add {b}/{length} dev {INTERFACE}");
            lan.b.namespace.ip(&address);
            cases.push(Case { a, b, key });
        }
    }
    cases
}

fn protect(lan: &Lan, cases: &[Case]) -> Sidecar {
    let peers: Vec<PeerConfig> = cases
        .iter()
        .map(|case| PeerConfig::new(&case.b, case.key.clone()))
        .collect();
    Sidecar::start_with_peers(&lan.a.namespace, &peers)
}

/// Both ends of a list of sessions, running.
pub(super) struct Ends {
    server: Process,
    client: Process,
    _scratch: Scratch,
}

impl Ends {
    pub(super) fn start(server: (&At<'_>, Value), client: (&At<'_>, Value), more: &[&str]) -> Self {
        let scratch = Scratch::new();
        let start = |role: &str, (at, cases): (&At<'_>, Value)| {
            let file = scratch.write(&format!("{role}.json"), &cases.to_string());
            let tool = tool("kernel_ao.py");
            let mut arguments: Vec<String> = tool
                .get_args()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect();
            arguments.extend([role.to_owned(), file.to_string_lossy().into_owned()]);
            arguments.extend(more.iter().map(ToString::to_string));
            let log = scratch.file(&format!("{role}.log"));
            at.spawn(tool.get_program(), arguments, &log)
        };
        let server = start("serve", server);
        wait::until("the listeners", Duration::from_secs(20), || {
            server.log().contains("listening")
        });
        let client = start("connect", client);
        Self {
            server,
            client,
            _scratch: scratch,
        }
    }

    /// Waits until all sessions have ended well, and gives what the server said.
    pub(super) fn finish(mut self) -> String {
        let client = self.client.wait(LIMIT);
        assert!(client.success(), "{}", self.client.log());
        let server = self.server.wait(LIMIT);
        assert!(server.success(), "{}", self.server.log());
        self.server.log()
    }
}

/// A counter of a namespace's kernel, `TCPAOGood` for example.
pub(super) fn kernel_counter(namespace: &Namespace, name: &str) -> u64 {
    let name = format!("TcpExt{name}");
    let answer = namespace.run("nstat", &["-jasz", &name]);
    let answer: Value = serde_json::from_str(&answer).expect("nstat's JSON");
    answer["kernel"][&name].as_u64().expect("a counter")
}

fn interoperates(family: Family) {
    let octets = if soak() { "10000000" } else { "100000" };
    let lan = Lan::new();
    let cases = cases(&lan, family);
    let sidecar = protect(&lan, &cases);
    let (a, b) = (&At::plain(&lan.a.namespace), &At::plain(&lan.b.namespace));
    let at_a: Value = cases.iter().map(Case::at_a).collect();
    let at_b: Value = cases.iter().map(Case::at_b).collect();
    let arguments = ["--octets", octets];
    Ends::start((b, at_b.clone()), (a, at_a.clone()), &arguments).finish();
    progress!("{family:?}: opened by the sidecar's end");
    Ends::start((a, at_a), (b, at_b), &arguments).finish();
    progress!("{family:?}: opened by the kernel's end");
    let counters = sidecar.ask("counters");
    for (index, case) in cases.iter().enumerate() {
        let peer = &counters["peers"][index];
        // At least the octets' segments of two sessions came in.
        assert!(peer["segments_good"].as_u64() > Some(100), "{peer}");
        let bad = &peer["drops"]["bad-mac"];
        assert_eq!(bad.as_u64().unwrap_or(0), 0, "{:?}: {peer}", case.key);
    }
    assert!(kernel_counter(&lan.b.namespace, "TCPAOGood") > 1000);
    for name in ["TCPAOBad", "TCPAOKeyNotFound", "TCPAORequired"] {
        assert_eq!(kernel_counter(&lan.b.namespace, name), 0, "{name}");
    }
}

#[test]
#[ignore = "needs the lab's kernel"]
fn the_kernel_and_the_engine_understand_each_other_over_ipv4() {
    interoperates(Family::V4);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn the_kernel_and_the_engine_understand_each_other_over_ipv6() {
    interoperates(Family::V6);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn the_kernel_and_the_engine_refuse_each_other_with_different_secrets() {
    let lan = Lan::new();
    let mut cases = cases(&lan, Family::V4);
    cases.truncate(1);
    let sidecar = protect(&lan, &cases);
    cases[0].key.secret.push('!');
    let (a, b) = (&At::plain(&lan.a.namespace), &At::plain(&lan.b.namespace));
    let at_a = || (a, json!([cases[0].at_a()]));
    let at_b = || (b, json!([cases[0].at_b()]));
    for (server, client) in [(at_b(), at_a()), (at_a(), at_b())] {
        let mut ends = Ends::start(server, client, &["--patience", "8"]);
        for end in [&mut ends.client, &mut ends.server] {
            let status = end.wait(LIMIT);
            assert!(
                !status.success() && end.log().contains("timed out"),
                "{}",
                end.log()
            );
        }
    }
    assert!(
        kernel_counter(&lan.b.namespace, "TCPAOBad") > 0,
        "the kernel refused nothing"
    );
    assert_eq!(kernel_counter(&lan.b.namespace, "TCPAOGood"), 0);
    let drops = sidecar.drops();
    assert!(drops.of(&["bad-mac"]) > 0, "{drops:?}");
}
