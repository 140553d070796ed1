//! What the engine changes in the options of a segment: room for TCP-AO, MSS, and options that
//! would lead around it.

use ao_engine::crypto::Algorithm::{HmacSha1_96, HmacSha256_128};
use ao_engine::engine::{Limits, Verdict};
use ao_engine::reason::DropReason;

use crate::support::{ACK, Host, Session, Tcp, key, option, options, sign_as_is, verify};

/// The options of a Linux SYN: MSS 1460, SACK permitted, timestamps, window scale.
const LINUX_SYN: [u8; 20] = [
    2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

fn sack(blocks: u8) -> Vec<u8> {
    let edges = (0..blocks).flat_map(|block| [0, 0, block + 1, 0, 0, 0, block + 1, 9]);
    [1, 1, option::SACK, 2 + 8 * blocks]
        .into_iter()
        .chain(edges)
        .collect()
}

/// Field notes 28.
#[test]
fn a_linux_syn_has_room_for_either_mac() {
    for (algorithm, len, mss) in [(HmacSha1_96, 36, 1444), (HmacSha256_128, 40, 1440)] {
        let mut session = Session::active(vec![key(1, 2, algorithm)]);
        let out = session.send(&session.local_syn().options(&LINUX_SYN));
        session.assert_signed(&out.bytes, 0, 0);
        let sent = Tcp::parse(&out.bytes);
        assert_eq!(sent.options.len(), len);
        assert_eq!(sent.mss(), Some(mss));
        assert_eq!(sent.options[4..20], LINUX_SYN[4..]);
    }
}

/// Field notes 6: last on output; the checksum comes after the MAC.
#[test]
fn ao_is_the_last_option_on_output() {
    let mut session = Session::established(vec![key(1, 2, HmacSha1_96)]);
    let out = session
        .send(&session.of_local(ACK, 1, 1).options(&TIMESTAMPS))
        .passed();
    let kinds: Vec<_> = options(&out.options).map(|option| option[0]).collect();
    assert_eq!(kinds, [8, option::AO]);
    assert_eq!(out.options.len(), 28);
}

/// Whatever place the far end gives TCP-AO, it is verified there and taken out cleanly.
#[test]
fn ao_may_stand_anywhere_on_input() {
    let mut session = Session::established(vec![key(1, 2, HmacSha1_96)]);
    let ao = [&[option::AO, 16, 2, 1][..], &[0; 12]].concat();
    let lists = [
        [&ao[..], &TIMESTAMPS].concat(),
        [&TIMESTAMPS[..], &ao].concat(),
        [&[1, 1][..], &ao, &[8, 10, 0, 0, 0, 1, 0, 0, 0, 2]].concat(),
        [&[8, 10, 0, 0, 0, 1, 0, 0, 0, 2][..], &ao, &[1, 1]].concat(),
        [&ao[..], &[0, 0, 0, 0]].concat(),
    ];
    for list in lists {
        let segment = session.of_far(ACK, 1, 1).options(&list).payload(b"data");
        let packet = sign_as_is(
            &segment,
            &session.keys[0],
            (session.far_isn, session.local_isn),
            0,
        );
        let passed = session.host.inbound(&packet).passed();
        assert_eq!(passed.without_ao(), segment.without_ao(), "{list:?}");
        assert_eq!(passed.ao(), None);
    }
}

/// Field notes 28: with timestamps and 16 octets of TCP-AO one block of SACK is left, with 20
/// none in the aligned layout and one without padding.
#[test]
fn sack_blocks_give_way() {
    for (algorithm, timestamps, offered, left) in [
        (HmacSha1_96, true, 3, 1),
        (HmacSha1_96, true, 2, 1),
        (HmacSha1_96, true, 1, 1),
        (HmacSha1_96, false, 4, 2),
        (HmacSha1_96, false, 1, 1),
        (HmacSha256_128, true, 3, 1),
        (HmacSha256_128, true, 1, 1),
        (HmacSha256_128, false, 3, 2),
    ] {
        let mut session = Session::established(vec![key(1, 2, algorithm)]);
        let stamps: &[u8] = if timestamps { &TIMESTAMPS } else { &[] };
        let list = [stamps, &sack(offered)].concat();
        let out = session.send(&session.of_local(ACK, 1, 1).options(&list));
        let name = format!("{algorithm}, timestamps {timestamps}, {offered} blocks");
        session.assert_signed(&out.bytes, 0, 0);
        let sent = out.passed();
        let kept = sent.option(option::SACK).map_or(0, |value| value.len() / 8);
        assert_eq!(kept, left, "{name}");
        if kept > 0 {
            assert_eq!(
                sent.option(option::SACK).unwrap()[..8],
                sack(1)[4..],
                "{name}: the first"
            );
        }
        assert_eq!(sent.option(8).is_some(), timestamps, "{name}");
        assert!(sent.options.len() <= 40);
    }
}

/// MPTCP and fast open lead data around TCP-AO: taken out of SYNs, which go on.
#[test]
fn options_that_open_side_doors_are_stripped_from_syns() {
    let mptcp = [option::MPTCP, 4, 0x01, 0x01];
    let cookie = [option::FAST_OPEN, 6, 1, 2, 3, 4];
    let experimental = [254, 8, 0xf9, 0x89, 1, 2, 3, 4];
    let other_experiment = [254, 4, 0x12, 0x34];
    for unwanted in [&mptcp[..], &cookie, &experimental] {
        let list = [unwanted, &[2, 4, 0x05, 0xb4], &other_experiment].concat();
        let mut session = Session::active(vec![key(1, 2, HmacSha1_96)]);
        let out = session.send(&session.local_syn().options(&list));
        session.assert_signed(&out.bytes, 0, 0);
        let kinds = |segment: &Tcp| -> Vec<u8> {
            options(&segment.options).map(|option| option[0]).collect()
        };
        assert_eq!(kinds(&out.passed()), [2, 254, option::AO]);
        let answer = session.far_syn_ack().options(&list);
        assert_eq!(kinds(&session.receive(&answer).passed()), [2, 254]);

        let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
        let syn = session.far_syn().options(&list);
        assert_eq!(kinds(&session.receive(&syn).passed()), [2, 254]);
        let answer = session.send(&session.local_syn_ack().options(&list));
        session.assert_signed(&answer.bytes, 0, 0);
        assert_eq!(kinds(&answer.passed()), [2, 254, option::AO]);
    }
}

/// Field notes 29: the local stack does not know about the octets that are inserted.
#[test]
fn mss_makes_room_in_both_directions_and_follows_the_route() {
    let mss = |value: u16| [&[2, 4][..], &value.to_be_bytes()].concat();
    let cases = [
        // algorithm, route MTU, offered, sent out, told to the local TCP; IPv4 then IPv6
        (HmacSha1_96, Some(1500), 1460, 1444, [1444, 1424]),
        (HmacSha256_128, Some(1500), 1460, 1440, [1440, 1420]),
        (HmacSha1_96, Some(1400), 1460, 1444, [1344, 1324]),
        (HmacSha1_96, Some(1400), 536, 520, [520, 520]),
        (HmacSha1_96, Some(9000), 1460, 1444, [1444, 1444]),
        (HmacSha1_96, None, 1460, 1444, [1444, 1444]),
        (HmacSha1_96, Some(1500), 8, 0, [0, 0]),
    ];
    for (algorithm, route_mtu, offered, outbound, inbound) in cases {
        for (ends, inbound) in [["10.0.0.1", "10.0.0.2"], ["[2001:db8::1]", "[2001:db8::2]"]]
            .iter()
            .zip(inbound)
        {
            let [local, far] = [format!("{}:179", ends[0]), format!("{}:40000", ends[1])];
            let mut session = Session::between(&local, &far, vec![key(1, 2, algorithm)]);
            session.host.route_mtu = route_mtu;
            let syn = session
                .receive(&session.far_syn().options(&mss(offered)))
                .passed();
            assert_eq!(syn.mss(), Some(inbound), "{route_mtu:?} {offered} {local}");
            let answer = session.send(&session.local_syn_ack().options(&mss(offered)));
            session.assert_signed(&answer.bytes, 0, 0);
            assert_eq!(answer.passed().mss(), Some(outbound));
        }
    }
}

#[test]
fn the_longest_mac_of_the_peer_sets_the_room() {
    let keys = vec![key(1, 2, HmacSha1_96), key(3, 4, HmacSha256_128)];
    let mut session = Session::active(keys);
    let out = session
        .send(&session.local_syn().options(&LINUX_SYN))
        .passed();
    assert_eq!(out.mss(), Some(1440));
}

#[test]
fn a_syn_without_mss_stays_without() {
    let mut session = Session::active(vec![key(1, 2, HmacSha1_96)]);
    assert_eq!(session.send(&session.local_syn()).passed().mss(), None);
    let odd = session.far_syn_ack().options(&[2, 3, 9]);
    assert_eq!(session.receive(&odd).passed().option(2), Some(&[9][..]));
}

/// Where the local kernel ignores kind 29, segments may go on as they came.
#[test]
fn without_stripping_a_segment_is_accepted_untouched() {
    let limits = Limits {
        strip: false,
        ..Host::LIMITS
    };
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    session.host = Host::with_limits(vec![Host::peer(session.far, &session.keys)], limits);
    let syn = session.far_syn().options(&LINUX_SYN);
    let passed = session.receive(&syn).passed();
    assert_eq!((passed.mss(), passed.ao()), (Some(1444), Some((2, 1))));
    session.send(&session.local_syn_ack()).passed();
    let packet = session.signed(&session.of_far(ACK, 1, 1).payload(b"data"));
    let outcome = session.host.inbound(&packet);
    assert_eq!(outcome.verdict, Verdict::Accept);
    assert_eq!(outcome.bytes, packet);
    assert!(verify(
        &packet,
        &session.keys[0],
        (session.far_isn, session.local_isn),
        0
    ));
    let mut forged = packet;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(
        session.host.inbound(&forged).dropped(),
        DropReason::Checksum
    );
}

#[test]
fn an_option_that_kernels_without_ao_do_not_overlook_is_removed_anyway() {
    for (algorithm, left) in [(HmacSha1_96, true), (HmacSha256_128, false)] {
        let mut session = Session::passive(vec![key(1, 2, algorithm)]);
        let limits = Limits {
            strip: false,
            ..Host::LIMITS
        };
        let peer = Host::peer(session.far, &session.keys);
        session.host = Host::with_limits(vec![peer], limits);
        session.accept_call();
        let outcome = session.receive(&session.of_far(ACK, 1, 1));
        assert_eq!(outcome.verdict == Verdict::Accept, left, "{algorithm}");
        assert_eq!(outcome.passed().ao().is_some(), left, "{algorithm}");
    }
}
