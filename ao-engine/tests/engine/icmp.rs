//! ICMP errors as RFC 5925 §7.8 orders (field notes 26).

use ao_engine::crypto::Algorithm::{HmacSha1_96, HmacSha256_128};
use ao_engine::engine::Verdict;
use ao_engine::reason::DropReason;

use crate::support::{ACK, Icmp, PSH, Session, Tcp, icmp_sum_ok, key};

const V4: [&str; 3] = ["10.0.0.1", "10.0.0.2", "203.0.113.1"];
const V6: [&str; 3] = ["[2001:db8::1]", "[2001:db8::2]", "[2001:db8:f::1]"];

/// A session with 100 octets in flight, and the packet that has them.
fn in_flight(ends: [&str; 3]) -> (Session, Vec<u8>, std::net::IpAddr) {
    let [local, far, router] = ends;
    let (local, far) = (format!("{local}:179"), format!("{far}:40000"));
    let mut session = Session::between(&local, &far, vec![key(1, 2, HmacSha1_96)]);
    session.accept_call();
    let sent = session.send(&session.of_local(ACK | PSH, 1, 1).payload(&[7; 100]));
    let router = router.trim_matches(['[', ']']).parse().unwrap();
    (session, sent.bytes, router)
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Ignored,
    Passed,
    /// With this MTU in it for the local TCP.
    Shrunk(u32),
}

#[test]
fn each_type_and_code_for_a_synchronized_connection() {
    use Expected::{Ignored, Passed, Shrunk};
    let v4 = (0..=15).map(|code| {
        let expected = match code {
            2 | 3 => Ignored,
            4 => Shrunk(1400 - 16),
            _ => Passed,
        };
        (V4, 3, code, expected)
    });
    let other_v4 = [
        (V4, 11, 0, Passed),
        (V4, 11, 1, Passed),
        (V4, 12, 0, Passed),
    ];
    let v6 = (0..=6).map(|code| {
        let expected = if matches!(code, 1 | 4) {
            Ignored
        } else {
            Passed
        };
        (V6, 1, code, expected)
    });
    let other_v6 = [
        (V6, 2, 0, Shrunk(1400 - 16)),
        (V6, 3, 0, Passed),
        (V6, 3, 1, Passed),
        (V6, 4, 1, Passed),
    ];
    for (ends, kind, code, expected) in v4.chain(other_v4).chain(v6).chain(other_v6) {
        let (mut session, about, src) = in_flight(ends);
        let error = Icmp {
            src,
            kind,
            code,
            word: 1400,
            about: &about,
        }
        .bytes();
        let outcome = session.host.icmp(&error).unwrap();
        let name = format!("type {kind} code {code}");
        match expected {
            Ignored => {
                assert_eq!(outcome.dropped(), DropReason::IcmpIgnored, "{name}");
                assert_eq!(session.drops(DropReason::IcmpIgnored), 1, "{name}");
            }
            Passed => {
                assert_eq!(outcome.verdict, Verdict::Accept, "{name}");
                assert_eq!(outcome.bytes, error, "{name}");
            }
            Shrunk(mtu) => {
                assert_eq!(outcome.verdict, Verdict::Modified, "{name}");
                let told = Icmp {
                    src,
                    kind,
                    code,
                    word: mtu,
                    about: &about,
                }
                .bytes();
                assert_eq!(outcome.bytes, told, "{name}");
                assert!(icmp_sum_ok(&outcome.bytes));
            }
        }
        session.assert_alive();
    }
}

#[test]
fn an_mtu_is_believed_down_to_a_floor() {
    // MTU in the message, MTU believed.
    let v4 = [
        (1500, 1500),
        (1000, 1000),
        (552, 552),
        (551, 552),
        (68, 552),
        (0, 576),
    ];
    let v6 = [(1500, 1500), (1280, 1280), (1279, 1280), (1, 1280)];
    let v4 = v4.map(|(said, believed)| (V4, 3, 4, said, believed));
    let v6 = v6.map(|(said, believed)| (V6, 2, 0, said, believed));
    for (ends, kind, code, said, believed) in v4.into_iter().chain(v6) {
        let (mut session, about, src) = in_flight(ends);
        let error = Icmp {
            src,
            kind,
            code,
            word: said,
            about: &about,
        }
        .bytes();
        let outcome = session.host.icmp(&error).unwrap();
        let told = Icmp {
            src,
            kind,
            code,
            word: believed - 16,
            about: &about,
        }
        .bytes();
        assert_eq!(outcome.bytes, told, "{said}");
        // The engine's own bound is the path's, not the one told.
        session.host.link.mtu = None;
        session.host.route_mtu = None;
        let headers = if src.is_ipv4() { 40 } else { 60 } + 16;
        let fits = vec![1; believed as usize - headers];
        let out = session.send(&session.of_local(ACK, 1, 1).payload(&fits));
        assert_eq!(out.verdict, Verdict::Modified, "{said}");
        let above = vec![1; believed as usize - headers + 1];
        let out = session.send(&session.of_local(ACK, 1, 1).payload(&above));
        assert_eq!(out.verdict, Verdict::Split, "{said}");
    }
}

#[test]
fn the_longest_mac_of_the_peer_is_taken_off_the_mtu() {
    let keys = vec![key(1, 2, HmacSha1_96), key(3, 4, HmacSha256_128)];
    let mut session = Session::established(keys);
    let sent = session.send(&session.of_local(ACK | PSH, 1, 1).payload(&[7; 100]));
    let src = "203.0.113.1".parse().unwrap();
    let error = Icmp {
        src,
        kind: 3,
        code: 4,
        word: 1400,
        about: &sent.bytes,
    };
    let told = Icmp {
        word: 1380,
        ..error.clone()
    }
    .bytes();
    assert_eq!(session.host.icmp(&error.bytes()).unwrap().bytes, told);
}

#[test]
fn numbers_that_are_not_in_flight_are_guesses() {
    for (ends, kind, code) in [(V4, 3, 4), (V4, 3, 1), (V6, 2, 0), (V6, 1, 0)] {
        let (mut session, about, src) = in_flight(ends);
        let quoted = Tcp::parse(&about);
        // Sent are 1..=100 after the ISN; all of it is unacknowledged.
        for (ahead, believed) in [
            (0, true),
            (99, true),
            (100, false),
            (-1, false),
            (i32::MIN, false),
            (1 << 30, false),
        ] {
            let seq = quoted.seq.wrapping_add_signed(ahead);
            let about = Tcp {
                seq,
                ..quoted.clone()
            }
            .bytes();
            let error = Icmp {
                src,
                kind,
                code,
                word: 1400,
                about: &about,
            }
            .bytes();
            let verdict = session.host.icmp(&error).unwrap().verdict;
            let refused = verdict == Verdict::Drop(DropReason::IcmpUnmatched);
            assert_eq!(refused, !believed, "type {kind} code {code}, {ahead} ahead");
        }
        assert_eq!(session.drops(DropReason::IcmpUnmatched), 4);
        // Once acknowledged, the same numbers are old.
        session.receive(&session.of_far(ACK, 1, 101)).passed();
        let error = Icmp {
            src,
            kind,
            code,
            word: 1400,
            about: &about,
        }
        .bytes();
        assert_eq!(
            session.host.icmp(&error).unwrap().dropped(),
            DropReason::IcmpUnmatched
        );
    }
}

#[test]
fn in_flight_across_a_wrap() {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    session.local_isn = u32::MAX - 10;
    session.accept_call();
    for at in [1, 41] {
        let segment = session.of_local(ACK | PSH, at, 1).payload(&[7; 40]);
        let sent = session.send(&segment);
        let src = "203.0.113.1".parse().unwrap();
        let error = Icmp {
            src,
            kind: 3,
            code: 4,
            word: 1400,
            about: &sent.bytes,
        };
        assert_eq!(
            session.host.icmp(&error.bytes()).unwrap().verdict,
            Verdict::Modified
        );
    }
}

/// What this host says of itself is about the route, which the option may exceed.
#[test]
fn this_hosts_own_complaints_are_ignored() {
    for (ends, kind, code) in [(V4, 3, 4), (V4, 3, 1), (V6, 2, 0)] {
        let (mut session, about, _) = in_flight(ends);
        let src = session.local.ip();
        let error = Icmp {
            src,
            kind,
            code,
            word: 1400,
            about: &about,
        };
        let outcome = session.host.icmp(&error.bytes()).unwrap();
        assert_eq!(outcome.dropped(), DropReason::IcmpIgnored);
    }
}

#[test]
fn a_damaged_error_is_refused() {
    for (ends, kind, code) in [(V4, 3, 4), (V6, 2, 0)] {
        let (mut session, about, src) = in_flight(ends);
        let mut error = Icmp {
            src,
            kind,
            code,
            word: 1400,
            about: &about,
        }
        .bytes();
        let at = if src.is_ipv4() { 20 + 7 } else { 40 + 7 };
        error[at] ^= 1;
        assert_eq!(
            session.host.icmp(&error).unwrap().dropped(),
            DropReason::Checksum
        );
    }
}

/// An attempt to connect may be ended by an error about its SYN.
#[test]
fn while_opening_errors_about_our_syn_pass() {
    let mut session = Session::active(vec![key(1, 2, HmacSha1_96)]);
    let syn = session.send(&session.local_syn()).bytes;
    let src = "203.0.113.1".parse().unwrap();
    for (kind, code) in [(3, 1), (3, 2), (3, 3), (11, 0)] {
        let error = Icmp {
            src,
            kind,
            code,
            word: 0,
            about: &syn,
        }
        .bytes();
        assert_eq!(session.host.icmp(&error).unwrap().verdict, Verdict::Accept);
        let guess = Tcp {
            seq: 1,
            ..Tcp::parse(&syn)
        }
        .bytes();
        let error = Icmp {
            src,
            kind,
            code,
            word: 0,
            about: &guess,
        }
        .bytes();
        assert!(session.host.icmp(&error).is_none());
    }
    session.receive(&session.far_syn_ack()).passed();
    let error = Icmp {
        src,
        kind: 3,
        code: 3,
        word: 0,
        about: &syn,
    }
    .bytes();
    assert_eq!(
        session.host.icmp(&error).unwrap().dropped(),
        DropReason::IcmpIgnored
    );
}

#[test]
fn errors_about_unknown_connections_are_left_to_others_and_unprotected_ones_pass() {
    let (mut session, about, src) = in_flight(V4);
    let mut judge = |about: &[u8]| {
        let error = Icmp {
            src,
            kind: 3,
            code: 4,
            word: 1400,
            about,
        };
        session
            .host
            .icmp(&error.bytes())
            .map(|judged| judged.verdict)
    };
    let unknown = Tcp {
        dst: "10.0.0.2:40001".parse().unwrap(),
        ..Tcp::parse(&about)
    };
    assert_eq!(judge(&unknown.bytes()), None);
    let unprotected = Tcp {
        src: "10.0.0.1:180".parse().unwrap(),
        ..Tcp::parse(&about)
    };
    assert_eq!(judge(&unprotected.bytes()), Some(Verdict::Accept));
    let mut udp = about.clone();
    udp[9] = 17;
    assert_eq!(judge(&udp), Some(Verdict::Accept));
}

#[test]
fn what_is_no_icmp_error_does_not_pass_for_one() {
    let (mut session, segment, src) = in_flight(V4);
    assert!(
        session.host.icmp(&segment).is_none(),
        "a TCP segment in the wrong queue"
    );
    let (mut session, segment, src6) = in_flight(V6);
    assert!(src6.is_ipv6() && src.is_ipv4());
    // The quoted segment behind an authentication header, which the kernel would skip.
    let mut hidden = segment.clone();
    hidden[6] = 51;
    let header = [
        6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    hidden.splice(40..40, header);
    let length = u16::try_from(hidden.len() - 40).unwrap();
    hidden[4..6].copy_from_slice(&length.to_be_bytes());
    let error = Icmp {
        src: src6,
        kind: 2,
        code: 0,
        word: 1300,
        about: &hidden,
    };
    assert!(session.host.icmp(&error.bytes()).is_none());
}
