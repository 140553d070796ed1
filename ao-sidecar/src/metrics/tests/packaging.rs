//! What is written about the metrics knows them all, and no others.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use prometheus_client::metrics::MetricType;
use serde_json::Value;

use super::families::{self, Described};
use crate::metrics::PREFIX;

/// A file of the repository.
fn file(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names that a family has in queries.
fn names(family: &Described) -> Vec<String> {
    let suffixes: &[&str] = match family.kind {
        MetricType::Counter => &["_total"],
        MetricType::Info => &["_info"],
        MetricType::Histogram => &["_bucket", "_sum", "_count"],
        _ => &[""],
    };
    suffixes
        .iter()
        .map(|suffix| format!("{PREFIX}_{}{suffix}", family.name))
        .collect()
}

/// The names of metrics in a text.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with(&format!("{PREFIX}_")))
        .map(str::to_owned)
        .collect()
}

fn assert_known(text: &str) {
    let known: BTreeSet<String> = families::ALL.iter().flat_map(names).collect();
    let unknown: Vec<_> = mentioned(text).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "there is no {unknown:?}");
    assert!(!mentioned(text).is_empty());
}

#[test]
fn alerts_know_the_metrics_and_each_has_a_test() {
    let (alerts, tests) = (
        file("packaging/prometheus/alerts.yml"),
        file("packaging/prometheus/alerts_test.yml"),
    );
    assert_known(&alerts);
    assert_known(&tests);
    let names = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let untested: Vec<&str> = names
        .clone()
        .filter(|name| !tests.contains(&format!("alertname: {name}\n")))
        .filter(|name| !tests.contains(&format!("alertname=\"{name}\"")))
        .collect();
    assert!(untested.is_empty(), "{untested:?}");
    assert!(names.count() > 10);
}

#[test]
fn the_dashboard_knows_the_metrics() {
    let text = file("packaging/grafana/ao-sidecar.json");
    assert_known(&text);
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{panel}");
        if panel["type"] != "row" {
            let targets = panel["targets"].as_array().expect("targets");
            assert!(!targets.is_empty(), "{panel}");
            assert_ne!(panel["description"], "", "{panel}");
        }
    }
    let used: BTreeSet<String> = mentioned(&text);
    let unseen: Vec<_> = families::ALL
        .iter()
        .filter(|family| names(family).iter().all(|name| !used.contains(name)))
        .map(|family| family.name)
        .collect();
    // What is of use with labels or in alerts only.
    assert_eq!(
        unseen,
        [
            "api_made",
            "peer",
            "rules_in_place",
            "far_end_heard_timestamp_seconds"
        ]
    );
}

#[test]
fn the_documentation_has_every_family_as_it_is() {
    let text = file("docs/METRICS.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with(&format!("| `{PREFIX}_")))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let documented: Vec<String> = rows.iter().map(|cells| cells[..4].join(" | ")).collect();
    let wanted: Vec<String> = families::ALL
        .iter()
        .map(|family| {
            let name = match family.kind {
                MetricType::Histogram => format!("{PREFIX}_{}", family.name),
                _ => names(family).concat(),
            };
            let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
            let (kind, labels) = (family.kind.as_str(), labels.join(", "));
            format!("`{name}` | {kind} | {labels} | {}", family.help)
        })
        .collect();
    for (documented, wanted) in documented.iter().zip(&wanted) {
        assert_eq!(documented, wanted);
    }
    assert_eq!(documented.len(), wanted.len());
}

/// Runs promtool and systemd-analyze.
#[test]
fn the_programs_they_are_for_accept_them() {
    let checked = Command::new(root().join("scripts/check-packaging"))
        .output()
        .expect("scripts/check-packaging");
    let said =
        [checked.stdout, checked.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(checked.status.success(), "{}", said.concat());
    println!("{}", said.concat());
}
