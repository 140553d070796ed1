//! More than 2^32 octets in one connection: the sequence number extension counts on, also across
//! a restart. In a file of its own, so that it runs alone.

use std::time::{Duration, Instant};

use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, Bulk, sidecars};
use ao_tests::sidecar::Sidecar;
use ao_tests::stream::Stream;
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

/// The sequence number extension of the one session.
fn extension(sidecar: &Sidecar, which: &str) -> u64 {
    sidecar.established()[which].as_u64().unwrap_or(0)
}

#[test]
fn a_transfer_goes_on_when_its_sequence_numbers_wrap() {
    const OCTETS: u64 = (1 << 32) + (1 << 28);
    let lan = Lan::new();
    let (sidecar_a, sidecar_b) = sidecars(&lan.a, &lan.b, Family::V4);
    let address = lan.b.socket_text(Family::V4, BULK_PORT);
    let server = Stream::serve(&lan.b.namespace, &address, 100_000);
    let client = Stream::connect(&lan.a.namespace, &address, u64::MAX / 1_000_000);
    let mut bulk = Bulk {
        client,
        server,
        sidecar_a,
        sidecar_b,
    };
    let started = Instant::now();
    wait::poll("more than 2^32 octets", Duration::from_secs(180), || {
        let received = bulk.server.received();
        if received > OCTETS {
            return Ok(());
        }
        Err(format!("{received} octets"))
    });
    progress!("{OCTETS} octets in {:?}", started.elapsed());
    // An ISN close to 2^32 makes it wrap twice.
    let sent = extension(&bulk.sidecar_a, "snd_sne");
    let received = extension(&bulk.sidecar_b, "rcv_sne");
    assert!((1..=2).contains(&sent), "sent: {sent}");
    assert!((1..=2).contains(&received), "received: {received}");
    for sidecar in [&mut bulk.sidecar_a, &mut bulk.sidecar_b] {
        sidecar.kill();
        sidecar.restart();
    }
    bulk.wait_for_more(100_000, Duration::from_secs(20));
    assert!(extension(&bulk.sidecar_b, "rcv_sne") >= received);
    bulk.finish(Duration::from_secs(20));
}
