//! Ways to open a connection that ask more of the engine than a plain handshake.

use std::path::Path;
use std::time::Duration;

use ao_tests::capture::Capture;
use ao_tests::scene::{BULK_PORT, Bulk, checker_key, sidecars};
use ao_tests::sidecar::Key;
use ao_tests::stream::STEADY;
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

/// The listener answers every SYN by a cookie, and keeps nothing.
#[test]
fn a_session_opens_through_syn_cookies() {
    for family in [Family::V4, Family::V6] {
        let lan = Lan::new();
        lan.b.namespace.sysctl("net.ipv4.tcp_syncookies", "2");
        let mut bulk = Bulk::start(&lan.a, &lan.b, family, STEADY);
        bulk.finish(Duration::from_secs(10));
        let counters = lan
            .b
            .namespace
            .run("nstat", &["-az", "TcpExtSyncookiesRecv"]);
        let received = counters.split_whitespace().nth(2);
        assert_eq!(received, Some("1"), "no cookie came back: {counters}");
    }
}

/// MPTCP is stripped from the SYN, and both ends fall back to TCP.
#[test]
fn ends_that_ask_for_mptcp_fall_back_to_tcp() {
    for family in [Family::V4, Family::V6] {
        let lan = Lan::new();
        let filter = format!("tcp port {BULK_PORT}");
        let capture = Capture::start(&lan.wire, Lan::PORT_A, &filter);
        let _sidecars = sidecars(&lan.a, &lan.b, family);
        let scratch = ao_tests::scratch::Scratch::new();
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/mptcp.py");
        let (address, port) = (lan.b.address(family).to_string(), BULK_PORT.to_string());
        let start = |host: &ao_tests::topology::Host, role: &str| {
            let arguments = ["-B", &tool.to_string_lossy(), role, &address, &port];
            let log = scratch.file(&format!("{role}.log"));
            host.namespace.spawn("/usr/bin/python3", arguments, &log)
        };
        let mut server = start(&lan.b, "serve");
        wait::until("the listener", Duration::from_secs(10), || {
            server.log().contains("listening")
        });
        let mut client = start(&lan.a, "connect");
        for end in [&mut client, &mut server] {
            let status = end.wait(Duration::from_secs(20));
            assert!(status.success(), "{}", end.log());
        }
        let key = checker_key(&Key::default(), &lan.a, &lan.b, family);
        let captured = capture.stop();
        captured.check(&[key], &["--port", &port, "--min-signed", "4"]);
        let shown = captured.decoded();
        assert!(!shown.contains("mptcp"), "MPTCP on the wire: {shown}");
    }
}
