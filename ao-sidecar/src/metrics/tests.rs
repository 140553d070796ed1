//! What a page says, and that what is made of it (documentation, dashboard, alerts) knows it.

mod endpoint;
mod openmetrics;
mod packaging;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use datapath::settings::Backend;
use grpc_api::operator::{EventLog, KeyState};

use self::openmetrics::{Family, parse};
use self::world::World;
use super::history::{Counted, History};
use super::page::{self, Memory};
use super::{PREFIX, families};

/// The page of `world`, read back.
fn scrape(world: &World, memory: &mut Memory) -> BTreeMap<String, Family> {
    parse(&page(world, memory, Counted::default()))
}

fn page(world: &World, memory: &mut Memory, counted: Counted) -> String {
    page::text(world.moment(), memory, counted).expect("a page")
}

/// Value of the sample of a family of ours whose labels have these values.
fn value(page: &BTreeMap<String, Family>, family: &str, labels: &[&str]) -> Option<f64> {
    let name = format!("{PREFIX}_{family}");
    let family = page.get(&name).unwrap_or_else(|| panic!("no {name}"));
    family.value(labels)
}

#[test]
fn a_page_as_scrapers_see_it() {
    let (world, log, history) = (World::example(), EventLog::new(), History::default());
    world::key_change(&log, "as64502", Duration::from_millis(1200));
    history.catch_up(&log, 0);
    let counted = history.of_peers(&world.moment().peers());
    let page = page(&world, &mut Memory::default(), counted);
    parse(&page);
    insta::assert_snapshot!(page);
}

#[test]
fn every_family_is_on_every_page_as_it_is_described() {
    let read = scrape(&World::example(), &mut Memory::default());
    let names: Vec<String> = families::ALL
        .iter()
        .map(|family| format!("{PREFIX}_{}", family.name))
        .collect();
    assert_eq!(names.len(), read.len(), "{:?}", read.keys());
    for (name, described) in names.iter().zip(families::ALL) {
        let family = read.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(family.help, described.help);
        assert_eq!(family.kind, described.kind.as_str(), "{name}");
        for sample in &family.samples {
            let labels: Vec<&str> = sample
                .labels
                .iter()
                .map(|(label, _)| label.as_str())
                .filter(|label| *label != "le")
                .collect();
            assert_eq!(labels, described.labels, "{name}");
        }
    }
}

#[test]
fn names_that_need_escaping_come_back_as_they_were() {
    let name = "a \"b\" \\ c\nd é {peer=\"x\"} # EOF";
    let mut world = World::example();
    world.report.peers[0].name = name.into();
    let read = scrape(&world, &mut Memory::default());
    assert_eq!(value(&read, "peer_up", &[name]), Some(1.0));
}

#[test]
fn a_prefix_is_neither_up_nor_down() {
    let mut world = World::example();
    let peer = world.peer("blocked");
    (peer.address, peer.keys) = ("192.0.2.0/24".into(), 1);
    let read = scrape(&world, &mut Memory::default());
    assert_eq!(value(&read, "peer_up", &["blocked"]), None);
    assert_eq!(value(&read, "peer_sessions", &["blocked"]), Some(0.0));
    assert_eq!(value(&read, "peer_up", &["kernel"]), Some(1.0));
}

#[test]
fn counts_stay_when_sessions_end() {
    let (mut world, mut memory) = (World::example(), Memory::default());
    let good = |world: &World, memory: &mut Memory| {
        let read = scrape(world, memory);
        let peer = |family| value(&read, family, &["kernel"]);
        let drops = |reason| value(&read, "peer_drops", &["kernel", reason]);
        let key = |result| value(&read, "key_segments", &["kernel", "5/6", "", result]);
        (
            peer("peer_segments_good"),
            peer("peer_segments_sent"),
            drops("bad-mac"),
            key("good"),
            key("sent"),
        )
    };
    let counts = (Some(40.0), Some(50.0), Some(3.0), Some(40.0), Some(0.0));
    assert_eq!(good(&world, &mut memory), counts);

    // The socket of the only session is closed: the kernel forgets what it had counted.
    world
        .report
        .sessions
        .retain(|s| s.backend != Backend::Kernel);
    let peer = world.peer("kernel");
    (peer.segments_good, peer.segments_sent, peer.sessions) = (0, 0, 0);
    assert_eq!(good(&world, &mut memory), counts);
    assert_eq!(good(&world, &mut memory), counts, "counted twice");

    // Another one, of the same ports, begins.
    let mut session = World::example().report.sessions.pop().unwrap();
    (
        session.segments_good,
        session.segments_sent,
        session.segments_bad,
    ) = (1, 2, 0);
    session.keys[0].good = 1;
    world.report.sessions.push(session);
    let peer = world.peer("kernel");
    (peer.segments_good, peer.segments_sent, peer.sessions) = (1, 2, 1);
    let more = (Some(41.0), Some(52.0), Some(3.0), Some(41.0), Some(0.0));
    assert_eq!(good(&world, &mut memory), more);
}

#[test]
fn a_key_that_is_gone_has_no_series() {
    let (mut world, mut memory) = (World::example(), Memory::default());
    let key = |world: &World, memory: &mut Memory, generation| {
        let read = scrape(world, memory);
        value(
            &read,
            "key_segments",
            &["as64502", "7/7", generation, "good"],
        )
    };
    assert_eq!(key(&world, &mut memory, "3"), Some(100.0));
    // The IDs are used again by a later generation, which begins to count.
    for report in world.keys.iter_mut().filter(|key| &*key.peer == "as64502") {
        report.state = KeyState::Deleted;
    }
    world.keys.push(world::generation("as64502", 260, 7));
    world.report.sessions[0].keys[0].good = 1;
    assert_eq!(key(&world, &mut memory, "3"), None);
    assert_eq!(key(&world, &mut memory, "260"), Some(1.0));
    // A peer that was removed leaves nothing.
    world.keys.clear();
    world.rollovers.clear();
    world.report.sessions.clear();
    world.report.peers.clear();
    let read = scrape(&world, &mut memory);
    for family in families::ALL {
        if family.labels.contains(&"peer") {
            let samples = &read[&format!("{PREFIX}_{}", family.name)].samples;
            assert!(samples.is_empty(), "{}: {samples:?}", family.name);
        }
    }
}

#[test]
fn a_chain_ends_with_its_last_key() {
    let mut world = World::example();
    let end = |world: &World, chain| {
        let read = scrape(world, &mut Memory::default());
        value(&read, "key_chain_end_timestamp_seconds", &[chain])
    };
    assert_eq!(end(&world, "transit"), Some(2_000_000_000.0));
    world
        .keys
        .push(world::chain_key("kernel", "transit", Some(2_100_000_000)));
    assert_eq!(end(&world, "transit"), Some(2_100_000_000.0));
    world.keys.push(world::chain_key("kernel", "transit", None));
    assert_eq!(end(&world, "transit"), None);
}

#[test]
fn a_thousand_peers_make_a_page_quickly() {
    let (world, mut memory) = (World::of(1000, 2), Memory::default());
    page(&world, &mut memory, Counted::default());
    let begun = Instant::now();
    let page = page(&world, &mut memory, Counted::default());
    let took = begun.elapsed();
    let series = page.lines().filter(|line| !line.starts_with('#')).count();
    println!(
        "1,000 peers, 2,000 sessions: {series} series, {} octets, {took:?}",
        page.len()
    );
    parse(&page);
    // Peers × (families of one series, drops, two keys × three results), and little else.
    assert!(series < 1000 * 25, "{series}");
    // Optimised it is some milliseconds; this notices what grows with the square.
    assert!(took < Duration::from_secs(2), "{took:?}");
}
