//! Every reason to refuse a segment, and where it is counted.

use ao_engine::crypto::Algorithm::{self, HmacSha1_96, HmacSha256_128};
use ao_engine::engine::Verdict;
use ao_engine::policy::Mkt;
use ao_engine::reason::DropReason;

use crate::support::{ACK, Host, PSH, RST, SYN, Session, Tcp, key, option, sign};

const MD5: [u8; 18] = {
    let mut list = [0; 18];
    [list[0], list[1]] = [option::MD5, 18];
    list
};

fn ao_of_len(len: u8, key_id: u8) -> Vec<u8> {
    let mut option = vec![0; usize::from(len)];
    option[..4].copy_from_slice(&[option::AO, len, key_id, 1]);
    option
}

fn session() -> Session {
    Session::established(vec![key(1, 2, HmacSha1_96), key(3, 4, HmacSha256_128)])
}

/// How a refusal counts for its session.
#[derive(Debug, PartialEq, Eq)]
enum Counted {
    Bad,
    Unsigned,
    NotAtAll,
}

#[test]
fn inbound_segments() {
    let genuine = |session: &Session| session.signed(&session.of_far(ACK | PSH, 1, 1));
    type Forge = Box<dyn Fn(&Session) -> Vec<u8>>;
    let segment = |session: &Session| session.of_far(ACK, 1, 1);
    let patched = move |at: usize, value: u8| -> Forge {
        Box::new(move |session| {
            let mut packet = genuine(session);
            packet[at] = value;
            packet
        })
    };
    let with_options = move |list: Vec<u8>| -> Forge {
        Box::new(move |session| segment(session).options(&list).bytes())
    };
    use Counted::{Bad, NotAtAll, Unsigned};
    use DropReason as R;
    let cases: Vec<(&str, R, Counted, Forge)> = vec![
        (
            "no AO",
            R::Unsigned,
            Unsigned,
            Box::new(move |s| segment(s).bytes()),
        ),
        (
            "unsigned SYN",
            R::Unsigned,
            Unsigned,
            Box::new(|s| {
                Tcp {
                    flags: SYN,
                    ..s.far_syn()
                }
                .bytes()
            }),
        ),
        (
            "unsigned reset",
            R::Unsigned,
            Unsigned,
            Box::new(|s| s.of_far(RST, 1, 1).bytes()),
        ),
        ("MD5", R::Md5, Unsigned, with_options(MD5.to_vec())),
        (
            "AO and MD5",
            R::AoWithMd5,
            NotAtAll,
            with_options([ao_of_len(16, 2), MD5.to_vec()].concat()),
        ),
        (
            "MD5 and AO",
            R::AoWithMd5,
            NotAtAll,
            with_options([MD5.to_vec(), ao_of_len(16, 2)].concat()),
        ),
        (
            "two AO, the first genuine",
            R::DuplicateAo,
            NotAtAll,
            Box::new(move |s| {
                let mut both = Tcp::parse(&s.signed(&segment(s)));
                both.options.extend(ao_of_len(16, 2));
                both.bytes()
            }),
        ),
        (
            "AO of 3 octets",
            R::MalformedOptions,
            NotAtAll,
            with_options(vec![29, 3, 2, 1]),
        ),
        (
            "option of length 0",
            R::MalformedOptions,
            NotAtAll,
            with_options(vec![8, 0, 1, 1]),
        ),
        (
            "option of length 1",
            R::MalformedOptions,
            NotAtAll,
            with_options(vec![8, 1, 1, 1]),
        ),
        (
            "option beyond the header",
            R::MalformedOptions,
            NotAtAll,
            with_options(vec![8, 10, 1, 1]),
        ),
        (
            "unknown KeyID",
            R::UnknownKeyId,
            Bad,
            with_options(ao_of_len(16, 9)),
        ),
        (
            "KeyID that is a SendID",
            R::UnknownKeyId,
            Bad,
            with_options(ao_of_len(16, 1)),
        ),
        (
            "AO without a MAC",
            R::MacLength,
            Bad,
            with_options(ao_of_len(4, 2)),
        ),
        (
            "MAC too long for its key",
            R::MacLength,
            Bad,
            with_options(ao_of_len(20, 2)),
        ),
        (
            "MAC too short for its key",
            R::MacLength,
            Bad,
            with_options(ao_of_len(16, 4)),
        ),
        ("zero MAC", R::BadMac, Bad, with_options(ao_of_len(16, 2))),
        (
            "wrong master key",
            R::BadMac,
            Bad,
            Box::new(move |s| {
                let wrong = key(7, 8, HmacSha1_96).into();
                sign(&segment(s), &wrong, (2, 1), (s.far_isn, s.local_isn), 0)
            }),
        ),
        (
            "wrong algorithm",
            R::BadMac,
            Bad,
            Box::new(move |s| {
                let wrong = key(1, 2, Algorithm::Aes128Cmac96).into();
                sign(&segment(s), &wrong, (2, 1), (s.far_isn, s.local_isn), 0)
            }),
        ),
        (
            "wrong option flag",
            R::BadMac,
            Bad,
            Box::new(move |s| {
                let wrong = Mkt {
                    include_options: false,
                    ..key(1, 2, HmacSha1_96)
                }
                .into();
                let timestamps = segment(s).options(&[8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
                sign(&timestamps, &wrong, (2, 1), (s.far_isn, s.local_isn), 0)
            }),
        ),
        (
            "signed under other ISNs",
            R::BadMac,
            Bad,
            Box::new(move |s| sign(&segment(s), &s.keys[0], (2, 1), (1, 2), 0)),
        ),
        (
            "signed with a later SNE",
            R::BadMac,
            Bad,
            Box::new(move |s| s.signed_with(&segment(s), 0, 1, 1)),
        ),
        ("our own segment sent back", R::BadMac, Bad, {
            Box::new(move |s| {
                // The traffic keys of the two directions differ (RFC 5925 §5.2).
                sign(&segment(s), &s.keys[0], (2, 1), (s.local_isn, s.far_isn), 0)
            })
        }),
        (
            "wrong checksum",
            R::Checksum,
            NotAtAll,
            patched(20 + 17, 0x5a),
        ),
        ("more fragments", R::Fragment, NotAtAll, patched(6, 0x20)),
        ("later fragment", R::Fragment, NotAtAll, patched(7, 0x01)),
        ("another protocol", R::Malformed, NotAtAll, patched(9, 17)),
        (
            "another IP version",
            R::Malformed,
            NotAtAll,
            patched(0, 0x55),
        ),
        (
            "data offset of 4 words",
            R::Malformed,
            NotAtAll,
            patched(20 + 12, 0x40),
        ),
        (
            "data offset beyond the end",
            R::Malformed,
            NotAtAll,
            patched(20 + 12, 0xf0),
        ),
        ("nobody's address", R::NoPeer, NotAtAll, {
            Box::new(move |s| {
                let src = "10.0.0.3:40000".parse().unwrap();
                Tcp { src, ..segment(s) }.bytes()
            })
        }),
    ];
    for (name, reason, counted, forge) in cases {
        let mut session = session();
        let packet = forge(&session);
        let before = session.view(|view| view.counters).unwrap();
        assert_eq!(session.host.inbound(&packet).dropped(), reason, "{name}");

        let of_nobody = matches!(
            reason,
            R::Fragment | R::Malformed | R::NoPeer | R::ExtensionHeader
        );
        assert_eq!(
            session.drops(reason),
            u64::from(!of_nobody),
            "{name}: counter of the peer"
        );
        let last = session.host.counters("far").last_refused;
        let read_so_far = matches!(
            reason,
            R::UnknownKeyId | R::MacLength | R::BadMac | R::Checksum
        );
        assert_eq!(
            last.map(|last| (last.reason, last.key_id.is_some())),
            (!of_nobody).then_some((reason, read_so_far)),
            "{name}: the last one refused"
        );
        if name == "unknown KeyID" {
            assert_eq!(last.and_then(|last| last.key_id), Some(9));
        }
        let unmatched = session.host.engine.unmatched_drops();
        assert_eq!(
            unmatched.get(reason),
            u64::from(of_nobody),
            "{name}: counter of nobody"
        );
        let after = session.view(|view| view.counters).unwrap();
        assert_eq!(
            after.bad - before.bad,
            u64::from(counted == Bad),
            "{name}: bad"
        );
        assert_eq!(
            after.unsigned - before.unsigned,
            u64::from(counted == Unsigned),
            "{name}"
        );
        assert_eq!(after.good, before.good, "{name}: good");
        session.assert_alive();
    }
}

#[test]
fn outbound_segments() {
    let keys = || vec![key(1, 2, HmacSha1_96)];
    type Forge = fn(&Session) -> Vec<u8>;
    let cases: [(&str, DropReason, Forge); 5] = [
        ("signed already", DropReason::AlreadySigned, |s| {
            s.of_local(ACK, 1, 1).options(&ao_of_len(16, 1)).bytes()
        }),
        ("MD5 of the daemon", DropReason::LocalMd5, |s| {
            s.of_local(ACK, 1, 1).options(&MD5).bytes()
        }),
        ("no connection", DropReason::UnknownConnection, |s| {
            let src = "10.0.0.1:1".parse().unwrap();
            let dst = "10.0.0.2:179".parse().unwrap();
            Tcp {
                src,
                dst,
                ..s.of_local(ACK, 1, 1)
            }
            .bytes()
        }),
        ("no option space", DropReason::NoOptionSpace, |s| {
            let mut full = vec![77; 40];
            full[1] = 40;
            s.of_local(ACK, 1, 1).options(&full).bytes()
        }),
        ("unreadable options", DropReason::MalformedOptions, |s| {
            s.of_local(ACK, 1, 1).options(&[8, 1]).bytes()
        }),
    ];
    for (name, reason, forge) in cases {
        let mut session = Session::established(keys());
        let packet = forge(&session);
        assert_eq!(session.host.outbound(&packet).dropped(), reason, "{name}");
        assert_eq!(session.drops(reason), 1, "{name}");
        session.assert_alive();
    }
    let mut session = Session::established(keys());
    let dst = "192.0.2.1:179".parse().unwrap();
    let astray = Tcp {
        dst,
        ..session.of_local(ACK, 1, 1)
    };
    assert_eq!(session.send(&astray).dropped(), DropReason::NoPeer);
    assert_eq!(
        session
            .host
            .engine
            .unmatched_drops()
            .get(DropReason::NoPeer),
        1
    );
}

#[test]
fn an_engine_without_policy_refuses_everything() {
    let mut session = session();
    session.host.set_policy(vec![]);
    let inbound = session.receive(&session.of_far(ACK, 1, 1));
    assert_eq!(inbound.dropped(), DropReason::NoPeer);
    let outbound = session.send(&session.of_local(SYN, 1, 1));
    assert_eq!(outbound.dropped(), DropReason::NoPeer);
}

#[test]
fn a_peer_without_keys_is_blocked_not_unsigned() {
    let mut session = Session::active(vec![]);
    assert_eq!(
        session.send(&session.local_syn()).dropped(),
        DropReason::NoKey
    );
    let syn = session.far_syn();
    assert_eq!(
        session.host.inbound(&syn.bytes()).dropped(),
        DropReason::Unsigned
    );
    let signed = syn.options(&ao_of_len(16, 2));
    assert_eq!(
        session.host.inbound(&signed.bytes()).dropped(),
        DropReason::UnknownKeyId
    );
}

#[test]
fn ttl_below_the_floor_costs_no_mac() {
    for (local, far) in [
        ("10.0.0.1:179", "10.0.0.2:40000"),
        ("[2001:db8::1]:179", "[2001:db8::2]:40000"),
    ] {
        let mut session = Session::between(local, far, vec![key(1, 2, HmacSha1_96)]);
        session.accept_call();
        let mut peer = Host::peer(session.far, &session.keys);
        peer.ttl_min = 254;
        session.host.set_policy(vec![peer]);
        for (ttl, passes) in [
            (0, false),
            (64, false),
            (253, false),
            (254, true),
            (255, true),
        ] {
            let outcome = session.receive(&session.of_far(ACK, 1, 1).ttl(ttl));
            match passes {
                true => drop(outcome.passed()),
                false => assert_eq!(outcome.dropped(), DropReason::Ttl, "{ttl}"),
            }
        }
        // Refused before the missing option is looked for.
        let unsigned = session.of_far(ACK, 1, 1).ttl(1).bytes();
        assert_eq!(session.host.inbound(&unsigned).dropped(), DropReason::Ttl);
        assert_eq!(session.drops(DropReason::Ttl), 4);
    }
}

/// Puts an extension header between the IPv6 header and TCP.
fn with_extension(packet: &[u8], kind: u8, header: &[u8]) -> Vec<u8> {
    let mut extended = packet[..40].to_vec();
    extended[6] = kind;
    let len = u16::try_from(packet.len() - 40 + header.len()).unwrap();
    extended[4..6].copy_from_slice(&len.to_be_bytes());
    extended.extend(header);
    extended[40] = 6;
    extended.extend(&packet[40..]);
    extended
}

/// Field notes 7, and the injection hole of fragments.
#[test]
fn ipv6_extension_headers() {
    let fresh = || {
        let ends = ("[2001:db8::1]:179", "[2001:db8::2]:40000");
        let mut session = Session::between(ends.0, ends.1, vec![key(1, 2, HmacSha1_96)]);
        session.accept_call();
        session
    };
    let cases: [(&str, u8, &[u8], Option<DropReason>); 7] = [
        ("hop by hop, padded", 0, &[0, 0, 1, 4, 0, 0, 0, 0], None),
        (
            "destination options, padded",
            60,
            &[0, 0, 1, 4, 0, 0, 0, 0],
            None,
        ),
        (
            "segment routing, used up",
            43,
            &[0, 0, 4, 0, 0, 0, 0, 0],
            None,
        ),
        (
            "routing with a segment left",
            43,
            &[0, 0, 4, 1, 0, 0, 0, 0],
            Some(DropReason::ExtensionHeader),
        ),
        (
            "first fragment",
            44,
            &[0, 0, 0, 1, 0, 0, 0, 7],
            Some(DropReason::Fragment),
        ),
        (
            "atomic fragment",
            44,
            &[0, 0, 0, 0, 0, 0, 0, 7],
            Some(DropReason::Fragment),
        ),
        (
            "later fragment",
            44,
            &[0, 0, 0, 8, 0, 0, 0, 7],
            Some(DropReason::Fragment),
        ),
    ];
    for (name, kind, header, refused) in cases {
        let mut session = fresh();
        let packet = session.signed(&session.of_far(ACK | PSH, 1, 1).payload(b"data"));
        let outcome = session.host.inbound(&with_extension(&packet, kind, header));
        match refused {
            Some(reason) => assert_eq!(outcome.dropped(), reason, "{name}"),
            None => {
                assert_eq!(outcome.verdict, Verdict::Modified, "{name}");
                let plain = session.of_far(ACK | PSH, 1, 1).payload(b"data").bytes();
                assert_eq!(
                    outcome.bytes,
                    with_extension(&plain, kind, header),
                    "{name}"
                );
            }
        }
    }
}

/// Field notes 8: two segments alike but for one bit of the MAC are both refused in full.
#[test]
fn every_bit_of_the_mac_counts() {
    let mut session = session();
    for (index, mac_len) in [(0, 12), (1, 16)] {
        let id = session.keys[index].send_id;
        let packet = session.signed_with(&session.of_far(ACK, 1, 1), index, id, 0);
        for bit in 0..mac_len * 8 {
            let mut forged = Tcp::parse(&packet);
            forged.options[4 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                session.host.inbound(&forged.bytes()).dropped(),
                DropReason::BadMac
            );
        }
        session.host.inbound(&packet).passed();
    }
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let mut names: Vec<_> = DropReason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), DropReason::ALL.len());
}

/// Field notes 32: addresses and ports are covered, so plain TCP-AO does not cross a NAT.
#[test]
fn a_nat_on_the_path_is_noticed() {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    let syn = Tcp::parse(&session.signed(&session.far_syn()));
    for (src, dst) in [
        ("10.0.0.2:40001", "10.0.0.1:179"),
        ("10.0.0.2:40000", "10.0.0.9:179"),
    ] {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        let translated = Tcp {
            src,
            dst,
            ..syn.clone()
        };
        let outcome = session.host.inbound(&translated.bytes());
        assert_eq!(outcome.dropped(), DropReason::BadMac);
    }
    session.host.inbound(&syn.bytes()).passed();
}
