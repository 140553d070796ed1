//! A strict reader of the OpenMetrics text format, as far as pages of ours use it.

use std::collections::{BTreeMap, BTreeSet};

/// A sample.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

/// A family with its samples.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

impl Family {
    /// Value of the sample whose labels have these values.
    pub(crate) fn value(&self, labels: &[&str]) -> Option<f64> {
        let found = self.samples.iter().find(|sample| {
            let values = sample.labels.iter().map(|(_, value)| value.as_str());
            values.eq(labels.iter().copied())
        });
        found.map(|sample| sample.value)
    }
}

/// Reads a page, and panics at whatever the format does not allow.
pub(crate) fn parse(page: &str) -> BTreeMap<String, Family> {
    let body = page
        .strip_suffix("# EOF\n")
        .expect("the page ends with its end mark");
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    let mut series = BTreeSet::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            let family = Family {
                kind: String::new(),
                help: help.to_owned(),
                samples: Vec::new(),
            };
            assert!(is_name(name), "{line}");
            let before = families.insert(name.to_owned(), family);
            assert!(before.is_none(), "{name} comes twice");
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, current, "{line}");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            let sample = sample(line);
            let family = families.get_mut(&current).expect("a family");
            let suffix = sample.name.strip_prefix(&current).expect("its family");
            let allowed: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("unknown type {other:?}"),
            };
            assert!(allowed.contains(&suffix), "{line} in a {}", family.kind);
            if family.kind != "gauge" {
                assert!(sample.value >= 0.0, "{line}");
            }
            let labels: BTreeSet<&String> = sample.labels.iter().map(|(name, _)| name).collect();
            assert_eq!(labels.len(), sample.labels.len(), "a label twice: {line}");
            let text = line.rsplit_once(' ').unwrap().0.to_owned();
            assert!(series.insert(text), "a series twice: {line}");
            family.samples.push(sample);
        }
    }
    for (name, family) in &families {
        if family.kind == "histogram" {
            check_histogram(name, family);
        }
    }
    families
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a value");
    let (name, rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest, line),
        None => (Vec::new(), rest),
    };
    let value = value.strip_prefix(' ').expect("one blank");
    Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().unwrap_or_else(|_| panic!("{line}")),
    }
}

fn labels<'l>(mut rest: &'l str, line: &str) -> (Vec<(String, String)>, &'l str) {
    let mut labels = Vec::new();
    loop {
        let (name, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(name) && !name.contains(':'), "{line}");
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next() {
                Some((end, '"')) => break end,
                Some((_, '\\')) => value.push(match characters.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, escaped @ ('\\' | '"'))) => escaped,
                    other => panic!("{other:?} is escaped: {line}"),
                }),
                Some((_, character)) => value.push(character),
                None => panic!("a value does not end: {line}"),
            }
        };
        labels.push((name.to_owned(), value));
        let after = &quoted[end + 1..];
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, after.strip_prefix('}').expect("the labels' end")),
        }
    }
}

fn is_name(name: &str) -> bool {
    let character = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(character)
}

fn check_histogram(name: &str, family: &Family) {
    let of = |suffix: &str, labels: &[(String, String)]| -> Vec<f64> {
        let wanted = format!("{name}{suffix}");
        let found = family.samples.iter().filter(|sample| {
            let own = sample.labels.iter().filter(|(name, _)| name != "le");
            sample.name == wanted && own.eq(labels)
        });
        found.map(|sample| sample.value).collect()
    };
    let counts = format!("{name}_count");
    for sample in family.samples.iter().filter(|sample| sample.name == counts) {
        let buckets = of("_bucket", &sample.labels);
        assert!(buckets.is_sorted(), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&sample.value), "{name}");
        assert_eq!(of("_sum", &sample.labels).len(), 1, "{name}");
    }
}
