//! Properties over generated packets.

use ao_engine::crypto::Algorithm;
use ao_engine::engine::Direction::{Inbound, Outbound};
use ao_engine::engine::{Direction, Verdict};
use ao_engine::policy::Mkt;
use ao_engine::reason::DropReason;
use proptest::prelude::*;

use crate::support::{ACK, Host, Icmp, PSH, Session, Tcp, key};

fn any_algorithm() -> impl Strategy<Value = Algorithm> {
    proptest::sample::select(Algorithm::ALL.to_vec())
}

fn any_options() -> impl Strategy<Value = Vec<u8>> {
    let timestamps = any::<[u8; 8]>().prop_map(|value| [&[8, 10][..], &value].concat());
    let sack = any::<[u8; 8]>().prop_map(|value| [&[5, 10][..], &value].concat());
    prop_oneof![Just(vec![]), timestamps, sack, Just(vec![1, 1, 1])]
}

fn any_payload(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..max)
}

/// Two ends of one connection: what one signs arrives at the other.
fn pair(algorithm: Algorithm, include_options: bool, v6: bool) -> (Session, Session) {
    let (a, b) = match v6 {
        false => ("10.0.0.1:179", "10.0.0.2:40000"),
        true => ("[2001:db8::1]:179", "[2001:db8::2]:40000"),
    };
    let mut here = Session::between(
        a,
        b,
        vec![Mkt {
            include_options,
            ..key(1, 2, algorithm)
        }],
    );
    here.accept_call();
    let mut there = Session::between(
        b,
        a,
        vec![Mkt {
            include_options,
            ..key(2, 1, algorithm)
        }],
    );
    (there.local_isn, there.far_isn) = (here.far_isn, here.local_isn);
    there.call();
    (here, there)
}

fn refused(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Drop(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_one_engine_signs_the_other_accepts(
        algorithm in any_algorithm(),
        (include_options, v6) in any::<(bool, bool)>(),
        options in any_options(),
        payload in any_payload(1300),
        (seq, ack) in (0u32..0x4000_0000, any::<u32>()),
        flags in proptest::sample::select(vec![ACK, ACK | PSH, ACK | 1, 4, 4 | ACK, 0, !2]),
    ) {
        let (mut here, mut there) = pair(algorithm, include_options, v6);
        let segment = here.of_local(flags, seq, ack).options(&options).payload(&payload);
        let sent = here.send(&segment);
        sent.passed();
        let arrived = there.host.inbound(&sent.bytes).passed();
        prop_assert_eq!(arrived.without_ao(), segment.without_ao());
        prop_assert_eq!(arrived.ao(), None);
    }

    #[test]
    fn any_changed_octet_is_refused(
        algorithm in any_algorithm(),
        (v6, payload) in (any::<bool>(), any_payload(60)),
        (at, flip) in (any::<proptest::sample::Index>(), 1u8..),
        sum_repaired in any::<bool>(),
    ) {
        let (mut here, mut there) = pair(algorithm, true, v6);
        let timestamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
        let segment = here.of_local(ACK, 1, 1).options(&timestamps).payload(&payload);
        let packet = here.send(&segment).bytes;
        let mut forged = packet.clone();
        let at = at.index(packet.len());
        forged[at] ^= flip;
        // Outside the MAC: what routers change, and the IP header's fields without meaning here.
        let uncovered: &[usize] =
            if v6 { &[0, 1, 2, 3, 7] } else { &[1, 4, 5, 8, 10, 11] };
        let ip_header = if v6 { 40 } else { 20 };
        // The upper bits of the flags word and of IPv4's fragment word: reserved, DF, version.
        let df = !v6 && at == 6 && forged[6] & 0x3f == packet[6] & 0x3f;
        if at < ip_header && (uncovered.contains(&at) || df) && forged[0] >> 4 == packet[0] >> 4 {
            return Ok(());
        }
        let tcp_sum = at == ip_header + 16 || at == ip_header + 17;
        if sum_repaired && at >= ip_header && !tcp_sum && at != ip_header + 12 {
            // A thorough forger: the checksum fits the forged segment.
            forged = Tcp::parse(&forged).bytes();
            prop_assume!(forged != packet);
        }
        prop_assert!(refused(there.host.inbound(&forged).verdict), "octet {at}");
        there.host.inbound(&packet).passed();
    }

    #[test]
    fn arbitrary_octets_are_refused_with_a_reason(
        inbound in any::<bool>(),
        octets in any_payload(200),
    ) {
        let mut session = Session::established(vec![key(1, 2, Algorithm::HmacSha1_96)]);
        let before = session.host.engine.unmatched_drops().total();
        let direction = if inbound { Inbound } else { Outbound };
        let (outcomes, _) = session.host.batch(&[(direction, octets.clone())]);
        prop_assert!(refused(outcomes[0].verdict));
        prop_assert_eq!(session.host.engine.unmatched_drops().total(), before + 1);
        let icmp = session.host.icmp(&octets);
        prop_assert!(icmp.is_none_or(|outcome| refused(outcome.verdict)));
    }

    /// Starts from packets that get far, so that every parser sees damage deep inside.
    #[test]
    fn damaged_packets_never_panic_and_never_pass(
        v6 in any::<bool>(),
        inbound in any::<bool>(),
        cut in any::<proptest::sample::Index>(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut here, mut there) = pair(Algorithm::HmacSha1_96, true, v6);
        let timestamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
        let plain = here.of_local(ACK | PSH, 1, 1).options(&timestamps).payload(&[9; 40]);
        let signed = here.send(&plain).bytes;
        let src = if v6 { "2001:db8:f::1" } else { "203.0.113.1" }.parse().unwrap();
        let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
        let icmp = Icmp { src, kind, code, word: 1400, about: &signed }.bytes();
        let spoil = |packet: &[u8]| {
            let mut packet = packet.to_vec();
            for (at, value) in &damage {
                let at = at.index(packet.len());
                packet[at] = *value;
            }
            packet.truncate(cut.index(packet.len()) + 1);
            packet
        };
        let _verdict = here.host.icmp(&spoil(&icmp));
        if inbound {
            let spoilt = spoil(&signed);
            let verdict = there.host.inbound(&spoilt).verdict;
            prop_assert!(refused(verdict) || spoilt.len() == signed.len());
        } else {
            let out = here.host.outbound(&spoil(&plain.bytes()));
            if !refused(out.verdict) {
                prop_assert!(Tcp::parse(&out.bytes).ao().is_some(), "never unsigned");
            }
        }
    }

    /// One batch or one by one: the same verdicts, octets, records and counters.
    #[test]
    fn batches_change_nothing(
        algorithm in any_algorithm(),
        kinds in proptest::collection::vec((0u8..9, 0u32..2000, any_payload(80)), 1..40),
    ) {
        let fresh = || {
            let mut session = Session::established(vec![key(1, 2, algorithm)]);
            session.host.link.mtu = Some(120);
            session
        };
        let mut one_by_one = fresh();
        let mut packets: Vec<(Direction, Vec<u8>)> = Vec::new();
        for (place, (kind, offset, payload)) in kinds.into_iter().enumerate() {
            let session = &mut one_by_one;
            let data = session.of_far(ACK | PSH, 1 + offset, 1).payload(&payload);
            let live = (session.far, session.far_isn);
            packets.push(match kind {
                0 | 1 => (Inbound, session.signed(&data)),
                2 => (Inbound, session.signed_with(&data, 0, 1, 3)),
                3 => (Inbound, data.bytes()),
                4 | 5 => {
                    let data = session.of_local(ACK | PSH, 1 + offset, 1).payload(&payload);
                    (Outbound, data.bytes())
                }
                6 => {
                    // A SYN of another connection, or a replayed one of this.
                    session.far.set_port(40_000 + (place % 3) as u16);
                    session.far_isn = 7 + offset;
                    (Inbound, session.signed(&session.far_syn()))
                }
                7 => {
                    session.far.set_port(179);
                    session.local.set_port(20_000 + (place % 3) as u16);
                    (Outbound, session.local_syn().bytes())
                }
                _ => (Inbound, payload),
            });
            (one_by_one.far, one_by_one.far_isn) = live;
            one_by_one.local.set_port(179);
        }
        let mut together = fresh();
        let (batched, _) = together.host.batch(&packets);
        let batch_outbox = batched.last().map(|last| last.outbox.clone()).unwrap_or_default();
        let mut single_outbox = Vec::new();
        for ((direction, packet), batched) in packets.iter().zip(&batched) {
            let (outcomes, _) = one_by_one.host.batch(&[(*direction, packet.clone())]);
            prop_assert_eq!(outcomes[0].verdict, batched.verdict);
            prop_assert_eq!(&outcomes[0].bytes, &batched.bytes);
            single_outbox.extend(outcomes[0].outbox.clone());
        }
        prop_assert_eq!(single_outbox, batch_outbox);
        let (one, all) = (&one_by_one.host, &together.host);
        prop_assert_eq!(one.counters("far"), all.counters("far"));
        prop_assert_eq!(one.engine.unmatched_drops(), all.engine.unmatched_drops());
        // Entries may be numbered in another order.
        let records = |host: &Host| -> std::collections::BTreeSet<_> {
            host.records.values().map(ao_engine::record::Record::encode).collect()
        };
        prop_assert_eq!(records(one), records(all));
    }
}

#[test]
fn a_batch_may_be_empty_and_a_packet_too() {
    let mut session = Session::established(vec![key(1, 2, Algorithm::HmacSha1_96)]);
    let (outcomes, changes) = session.host.batch(&[]);
    assert!(outcomes.is_empty() && changes.is_empty());
    assert_eq!(session.host.inbound(&[]).dropped(), DropReason::Malformed);
    assert_eq!(session.host.outbound(&[]).dropped(), DropReason::Malformed);
    assert!(session.host.icmp(&[]).is_none());
}
