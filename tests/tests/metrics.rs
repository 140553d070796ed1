//! Metrics of a real session, read by a real Prometheus.

#![allow(clippy::expect_used, reason = "a test that cannot go on ends")]

use std::path::Path;

use ao_tests::process::{Process, output};
use ao_tests::scene::{BULK_PORT, streams};
use ao_tests::scratch::Scratch;
use ao_tests::settings::{CONVERGENCE, SIDECAR_START};
use ao_tests::sidecar::{Config, Key, Sidecar};
use ao_tests::stream::STEADY;
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::{progress, wait};
use serde_json::Value;

const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:9179\"\n";

fn packaging(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging/prometheus")
        .join(name)
}

/// A sidecar that has metrics.
fn start(own: &Host, far: &Host, key: Key) -> Sidecar {
    let config = Config {
        port: BULK_PORT,
        ..Config::new(far, Family::V4, key)
    };
    let mut sidecar = Sidecar::prepare(&own.namespace, &config);
    sidecar.add_sections(METRICS);
    sidecar.launch(&[]);
    sidecar.wait_ready();
    sidecar
}

/// Prometheus with our scrape configuration and alerts.
struct Prometheus<'h> {
    host: &'h Host,
    _process: Process,
    _scratch: Scratch,
}

impl<'h> Prometheus<'h> {
    fn start(host: &'h Host) -> Self {
        let scratch = Scratch::new();
        let text = std::fs::read_to_string(packaging("prometheus.yml")).expect("its configuration");
        let often = text.replace("scrape_interval: 15s", "scrape_interval: 1s");
        assert_ne!(often, text);
        let config = scratch.write("prometheus.yml", &often);
        let alerts = std::fs::read_to_string(packaging("alerts.yml")).expect("the alerts");
        scratch.write("alerts.yml", &alerts);
        let mut command = host.namespace.command("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        let data = scratch.file("data");
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg("--web.listen-address=127.0.0.1:9090");
        let log = scratch.file("prometheus.log");
        Self {
            host,
            _process: Process::spawn("prometheus", &log, command),
            _scratch: scratch,
        }
    }

    /// The values of an expression, by their labels.
    fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>, String> {
        let mut command = self.host.namespace.command("promtool");
        command.args(["query", "instant", "-o", "json", "http://127.0.0.1:9090"]);
        command.arg(expression);
        let answer: Value =
            serde_json::from_str(&output(command)?).map_err(|error| error.to_string())?;
        let samples = answer.as_array().ok_or("no list")?.iter();
        let read = |sample: &Value| {
            let value = sample["value"][1].as_str()?.parse().ok()?;
            Some((sample["metric"].clone(), value))
        };
        samples
            .map(|sample| read(sample).ok_or_else(|| answer.to_string()))
            .collect()
    }

    /// The one value of an expression.
    fn value(&self, expression: &str) -> Result<f64, String> {
        match self.query(expression)?.as_slice() {
            [(_, value)] => Ok(*value),
            other => Err(format!("{expression}: {other:?}")),
        }
    }

    /// Waits until an expression has a value that is as wanted.
    fn await_value(&self, expression: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        wait::poll(expression, CONVERGENCE, || {
            let value = self.value(expression)?;
            if wanted(value) {
                Ok(value)
            } else {
                Err(format!("{value}"))
            }
        })
    }
}

#[test]
fn prometheus_sees_a_session_and_what_it_refuses() {
    let lan = Lan::new();
    let key = Key::default();
    let sidecar_a = start(&lan.a, &lan.b, key.clone());
    let mut sidecar_b = start(&lan.b, &lan.a, key.mirrored());
    let _streams = streams(&lan.a, &lan.b, Family::V4, STEADY);
    wait::until("the session", CONVERGENCE, || {
        sidecar_a.ask("status")["peers"][0]["sessions"] == 1
    });

    let prometheus = Prometheus::start(&lan.a);
    let one = |value: f64| (value - 1.0).abs() < f64::EPSILON;
    // Prometheus takes a page as a whole or not at all.
    prometheus.await_value(r#"up{job="ao-sidecar"}"#, one);
    prometheus.await_value("ao_sidecar_peer_up", one);
    prometheus.await_value("ao_sidecar_peer_blocked", |value| {
        value.abs() < f64::EPSILON
    });
    prometheus.await_value(r#"ao_sidecar_sessions{state="established"}"#, one);
    for counter in [
        "ao_sidecar_peer_segments_good_total",
        "ao_sidecar_peer_segments_sent_total",
        r#"ao_sidecar_key_segments_total{result="good"}"#,
        r#"ao_sidecar_key_segments_total{result="sent"}"#,
        "sum(ao_sidecar_queue_packets_total)",
        "ao_sidecar_macs_total",
        "ao_sidecar_mac_seconds_total",
    ] {
        let before = prometheus.await_value(counter, |value| value > 0.0);
        let after = prometheus.await_value(counter, |value| value > before);
        progress!("{counter}: {before}, then {after}");
    }
    let said = sidecar_a.ask("counters");
    let told = said["peers"][0]["segments_good"].as_f64().expect("a count");
    prometheus.await_value("ao_sidecar_peer_segments_good_total", |value| value >= told);
    let alerts = prometheus.query(r#"ALERTS{alertstate="firing"}"#);
    assert_eq!(alerts, Ok(Vec::new()));

    // Somebody flushes the firewall: the watcher notices, and so does Prometheus.
    let restored = "ao_sidecar_rules_restored_total";
    let before = prometheus.await_value(restored, |_| true);
    lan.a.namespace.run("nft", &["flush", "ruleset"]);
    prometheus.await_value(restored, |value| value > before);

    // Without the far end's sidecar the session stalls, and what is not signed is counted.
    sidecar_b.stop();
    lan.b.namespace.run("nft", &["flush", "ruleset"]);
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        for table in ["mangle", "raw"] {
            lan.b.namespace.run(tool, &["-t", table, "-F"]);
        }
    }
    prometheus.await_value(
        "sum(ao_sidecar_firewall_drops_total) + (sum(ao_sidecar_peer_drops_total) or vector(0))",
        |value| value > 0.0,
    );
}

#[test]
fn a_second_sidecar_in_the_namespace_touches_nothing() {
    let lan = Lan::new();
    let key = Key::default();
    let first = start(&lan.a, &lan.b, key.clone());
    let rules = lan.a.namespace.run("nft", &["-s", "list", "ruleset"]);
    let config = Config::new(&lan.b, Family::V4, key);
    let mut second = Sidecar::prepare(&lan.a.namespace, &config);
    second.launch(&[]);
    let status = second.process().wait(SIDECAR_START);
    let said = second.process().log();
    assert_eq!(status.code(), Some(1), "{said}");
    let wanted = "is held by another program (ao-sidecar, process ";
    assert!(said.contains(wanted), "{said}");
    assert_eq!(
        lan.a.namespace.run("nft", &["-s", "list", "ruleset"]),
        rules
    );
    assert_eq!(first.ask("status")["peers"][0]["name"], "peer");
}

/// Peers are protected all the same, and metrics are served once the port is free.
#[test]
fn a_port_that_another_program_has_is_an_alarm() {
    let lan = Lan::new();
    let runtime = lan.a.namespace.runtime();
    let taken = runtime.spawn(tokio::net::TcpListener::bind("127.0.0.1:9179"));
    let taken = runtime.block_on(taken).expect("a task").expect("the port");
    let sidecar = start(&lan.a, &lan.b, Key::default());
    let alarmed = || {
        sidecar.ask("status")["alarms"]
            .to_string()
            .contains("metrics")
    };
    wait::until("the alarm", SIDECAR_START, alarmed);
    drop(taken);
    wait::until("its end", SIDECAR_START, || !alarmed());
}
