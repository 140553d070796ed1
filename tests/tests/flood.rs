//! A flood of bad segments. In a file of its own, so that it runs alone.

use std::time::Duration;

use ao_tests::attack::Attacker;
use ao_tests::capture::Capture;
use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, Bulk};
use ao_tests::settings::{FLOOD_RATE, flood_length};
use ao_tests::topology::{Family, Lan};

#[test]
fn a_session_keeps_up_under_a_flood_of_bad_segments() {
    const RATE: u64 = 1_000_000;
    for family in [Family::V4, Family::V6] {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
        let mut bulk = Bulk::start(&lan.a, &lan.b, family, RATE);
        // The attacker has heard enough; to go on listening would only cost the processor.
        let capture = capture.stop();
        let attacker = Attacker {
            namespace: &lan.wire,
            interface: Lan::PORT_A,
            victim: lan.a.address(family).to_string(),
            port: BULK_PORT,
            capture: &capture.file(),
        };
        let progress = |bulk: &Bulk| (bulk.client.received(), bulk.server.received());
        let before = progress(&bulk);
        let refused_before = bulk.sidecar_a.drops();
        let length = flood_length();
        let (rate, seconds) = (FLOOD_RATE.to_string(), length.as_secs().to_string());
        let report = attacker.report("flood", &["--rate", &rate, "--seconds", &seconds]);
        let after = progress(&bulk);
        let refused = bulk.sidecar_a.drops().of(&["bad-mac"]) - refused_before.of(&["bad-mac"]);
        progress!("{family:?}: {report}, {refused} refused by MAC, octets {before:?} to {after:?}");
        let reached = report["rate"].as_u64().unwrap_or(0);
        assert!(
            reached >= u64::from(FLOOD_RATE) * 9 / 10,
            "the attacker reached only {reached} segments per second"
        );
        assert!(refused > 0, "nothing was refused by its MAC");
        let wanted = RATE * length.as_secs() * 8 / 10;
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            assert!(
                after - before >= wanted,
                "{} of {wanted} octets came through",
                after - before
            );
        }
        bulk.finish(Duration::from_secs(10));
    }
}
