//! Segments that the inserted option makes too big: sent past the route's MTU, or in pieces.

use ao_engine::crypto::Algorithm::{self, HmacSha1_96, HmacSha256_128};
use ao_engine::engine::Verdict;

use crate::support::{ACK, FIN, Icmp, PSH, RST, Session, Tcp, URG, key, verify};

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Field notes 29: a full segment that grew goes out all the same when only the route objects.
#[test]
fn beyond_the_route_mtu_the_engine_sends_by_itself() {
    let mut session = Session::established(vec![key(1, 2, HmacSha1_96)]);
    session.host.route_mtu = Some(1400);
    for (len, verdict) in [
        (1400 - 40 - 16, Verdict::Modified),
        (1400 - 40 - 15, Verdict::Transmit),
        (1400 - 40, Verdict::Transmit),
        (1500 - 40 - 16, Verdict::Transmit),
    ] {
        let out = session.send(&session.of_local(ACK, 1, 1).payload(&payload(len)));
        assert_eq!(out.verdict, verdict, "{len}");
        session.assert_signed(&out.bytes, 0, 0);
    }
}

/// The pieces carry the same stream, verify, and arrive through another engine unchanged.
#[test]
fn beyond_the_link_mtu_a_segment_is_taken_apart() {
    for algorithm in Algorithm::ALL {
        for (near, remote) in [("10.0.0.1", "10.0.0.2"), ("[2001:db8::1]", "[2001:db8::2]")] {
            let (a, b) = (format!("{near}:179"), format!("{remote}:40000"));
            let mut here = Session::between(&a, &b, vec![key(1, 2, algorithm)]);
            here.accept_call();
            let mut there = Session::between(&b, &a, vec![key(2, 1, algorithm)]);
            (there.local_isn, there.far_isn) = (here.far_isn, here.local_isn);
            there.call();

            let timestamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
            let flags = ACK | PSH | FIN | 0x80;
            let whole = here
                .of_local(flags, 1, 1)
                .options(&timestamps)
                .payload(&payload(4000));
            let out = here.send(&whole);
            assert_eq!(out.verdict, Verdict::Split);
            assert!(out.outbox.len() >= 3);
            let mut stream = Vec::new();
            for (place, piece) in out.outbox.iter().enumerate() {
                assert!(piece.bytes.len() <= 1500);
                assert_eq!(piece.link, here.host.link);
                here.assert_signed(&piece.bytes, 0, 0);
                let arrived = there.host.inbound(&piece.bytes).passed();
                assert_eq!(
                    arrived.seq,
                    whole.seq + u32::try_from(stream.len()).unwrap()
                );
                assert_eq!((arrived.ack, arrived.window), (whole.ack, whole.window));
                assert_eq!(arrived.options, timestamps);
                let last = place + 1 == out.outbox.len();
                assert_eq!(
                    arrived.has(FIN) && arrived.has(PSH),
                    last,
                    "FIN and PSH at the end"
                );
                assert_eq!(arrived.flags & 0x80 != 0, place == 0, "CWR at the start");
                stream.extend(arrived.payload);
            }
            assert_eq!(stream, whole.payload);
        }
    }
}

#[test]
fn pieces_across_a_wrap_have_their_own_extension() {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    session.local_isn = u32::MAX - 2000;
    session.accept_call();
    let out = session.send(&session.of_local(ACK, 1, 1).payload(&payload(4000)));
    assert_eq!(out.verdict, Verdict::Split);
    let isns = (session.local_isn, session.far_isn);
    let snes: Vec<u32> = out
        .outbox
        .iter()
        .map(|piece| {
            let sne = u32::from(Tcp::parse(&piece.bytes).seq < 1 << 31);
            assert!(verify(&piece.bytes, &session.keys[0], isns, sne));
            sne
        })
        .collect();
    assert_eq!(snes, [0, 0, 1]);
}

#[test]
fn what_means_something_as_a_whole_is_not_taken_apart() {
    let mut session = Session::established(vec![key(1, 2, HmacSha256_128)]);
    session.host.link.mtu = Some(576);
    for flags in [RST | ACK, URG | ACK] {
        let out = session.send(&session.of_local(flags, 1, 1).payload(&payload(560)));
        assert_eq!(out.verdict, Verdict::Modified);
        session.assert_signed(&out.bytes, 0, 0);
    }
}

#[test]
fn the_longest_packet_stays_within_its_length_field() {
    let mut session = Session::established(vec![key(1, 2, HmacSha1_96)]);
    (session.host.link.mtu, session.host.route_mtu) = (Some(65_535), Some(65_535));
    let out = session.send(
        &session
            .of_local(ACK, 1, 1)
            .payload(&payload(65_535 - 40 - 16)),
    );
    assert_eq!((out.verdict, out.bytes.len()), (Verdict::Modified, 65_535));
    session.assert_signed(&out.bytes, 0, 0);
    let out = session.send(
        &session
            .of_local(ACK, 1, 1)
            .payload(&payload(65_535 - 40 - 15)),
    );
    assert_eq!(out.dropped(), ao_engine::reason::DropReason::NoOptionSpace);
}

/// A path MTU learned from a router holds for ten minutes.
#[test]
fn a_learned_path_mtu_splits_until_it_expires() {
    let mut session = Session::established(vec![key(1, 2, HmacSha1_96)]);
    let segment = session.of_local(ACK | PSH, 1, 1).payload(&payload(1400));
    let sent = session.send(&segment);
    assert_eq!(sent.verdict, Verdict::Modified);
    let src = "203.0.113.1".parse().unwrap();
    let error = Icmp {
        src,
        kind: 3,
        code: 4,
        word: 1000,
        about: &sent.bytes,
    };
    assert_eq!(
        session.host.icmp(&error.bytes()).unwrap().verdict,
        Verdict::Modified
    );
    let again = session.send(&segment);
    assert_eq!(again.verdict, Verdict::Split);
    assert!(again.outbox.iter().all(|piece| piece.bytes.len() <= 1000));
    session.host.wait(599_999);
    assert_eq!(session.send(&segment).verdict, Verdict::Split);
    session.host.wait(1);
    assert_eq!(session.send(&segment).verdict, Verdict::Modified);
}
