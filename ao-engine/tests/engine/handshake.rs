//! How connections begin and end.

use ao_engine::crypto::Algorithm::HmacSha1_96;
use ao_engine::engine::SessionState;
use ao_engine::reason::DropReason;

use crate::support::{ACK, FIN, PSH, RST, SYN, Session, Tcp, key, sign};

fn one_key() -> Vec<ao_engine::policy::Mkt> {
    vec![key(1, 2, HmacSha1_96)]
}

#[test]
fn passive_open() {
    let mut session = Session::passive(one_key());
    let syn = session.receive(&session.far_syn());
    assert_eq!(
        syn.passed(),
        session.far_syn(),
        "stripped, otherwise unchanged"
    );
    assert_eq!(session.state(), None, "a SYN alone is no session");
    let answer = session.send(&session.local_syn_ack());
    session.assert_signed(&answer.bytes, 0, 0);
    assert_eq!(session.state(), Some(SessionState::Opening));
    let ack = session.of_far(ACK, 1, 1);
    assert_eq!(session.receive(&ack).passed(), ack);
    assert_eq!(session.state(), Some(SessionState::Established));
    session.assert_alive();
}

#[test]
fn active_open() {
    let mut session = Session::active(one_key());
    let syn = session.send(&session.local_syn());
    session.assert_signed(&syn.bytes, 0, 0);
    assert_eq!(session.state(), Some(SessionState::Opening));
    session.receive(&session.far_syn_ack()).passed();
    assert_eq!(session.state(), Some(SessionState::Established));
    session.assert_alive();
}

/// Field notes 2: the destination ISN is zero for a SYN alone; a SYN-ACK takes both.
#[test]
fn syn_keys_have_one_isn_and_syn_ack_keys_both() {
    let mut session = Session::passive(one_key());
    let ids = (2, 1);
    let (far, local) = (session.far_isn, session.local_isn);
    let both = sign(&session.far_syn(), &session.keys[0], ids, (far, local), 0);
    assert_eq!(session.host.inbound(&both).dropped(), DropReason::BadMac);

    let mut session = Session::active(one_key());
    session.send(&session.local_syn()).passed();
    let alone = sign(&session.far_syn_ack(), &session.keys[0], ids, (far, 0), 0);
    assert_eq!(session.host.inbound(&alone).dropped(), DropReason::BadMac);
    session.receive(&session.far_syn_ack()).passed();
}

/// Field notes 30: all four traffic keys of RFC 5925 §5.2.
#[test]
fn simultaneous_open() {
    let mut session = Session::active(one_key());
    let ours = session.send(&session.local_syn());
    session.assert_signed(&ours.bytes, 0, 0);
    session.receive(&session.far_syn()).passed();
    let answer = session.send(&session.local_syn_ack());
    session.assert_signed(&answer.bytes, 0, 0);
    session.receive(&session.far_syn_ack()).passed();
    assert_eq!(session.state(), Some(SessionState::Established));
    session.assert_alive();
    assert_eq!(session.host.engine.sessions().count(), 1);
}

#[test]
fn simultaneous_open_when_the_far_end_hears_only_the_syn() {
    let mut session = Session::active(one_key());
    session.send(&session.local_syn()).passed();
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    // Our SYN was lost, so the far end acknowledges with data at once.
    session
        .receive(&session.of_far(ACK | PSH, 1, 1).payload(b"x"))
        .passed();
    session.assert_alive();
}

/// Field notes 27: the ISNs of a SYN cookie's connection are one below the numbers of its ACK.
#[test]
fn syn_cookies_leave_only_the_last_ack() {
    let mut session = Session::passive(one_key());
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    assert_eq!(
        session.state(),
        Some(SessionState::Opening),
        "a handshake can be replayed whole"
    );
    let data = session.of_far(ACK | PSH, 1, 1).payload(b"OPEN");
    assert_eq!(session.receive(&data).passed(), data);
    assert_eq!(session.state(), Some(SessionState::Established));
    session.assert_alive();
    let sent = session.send(&session.of_local(ACK | PSH, 1, 5).payload(b"OPEN"));
    session.assert_signed(&sent.bytes, 0, 0);
}

#[test]
fn syn_cookies_whose_ack_carries_data() {
    let mut session = Session::passive(one_key());
    session
        .receive(&session.of_far(ACK | PSH, 1, 1).payload(b"OPEN"))
        .passed();
    session.send(&session.of_local(ACK, 1, 5)).passed();
    session
        .receive(&session.of_far(ACK | PSH, 5, 1).payload(b"more"))
        .passed();
    session.assert_alive();
}

#[test]
fn segments_of_unknown_connections_are_verified_at_a_bounded_rate() {
    let mut session = Session::passive(one_key());
    let forged = |port| {
        let far = format!("10.0.0.2:{port}").parse().unwrap();
        let (segment, keys) = (Tcp::new(far, session.local, ACK, 5, 5), &session.keys);
        sign(&segment, &keys[0], (2, 1), (77, 77), 0)
    };
    let forged: Vec<_> = (1..=15).map(forged).collect();
    let reasons: Vec<_> = forged
        .iter()
        .map(|packet| session.host.inbound(packet).dropped())
        .collect();
    assert_eq!(reasons[..10], [DropReason::BadMac; 10]);
    assert_eq!(reasons[10..], [DropReason::RateLimited; 5]);
    // One token comes back each tenth of a second.
    session.host.wait(100);
    assert_eq!(
        session.host.inbound(&forged[0]).dropped(),
        DropReason::BadMac
    );
    assert_eq!(
        session.host.inbound(&forged[1]).dropped(),
        DropReason::RateLimited
    );
    assert_eq!(session.drops(DropReason::RateLimited), 6);
}

#[test]
fn only_an_ack_recovers_a_handshake() {
    let mut session = Session::passive(one_key());
    for flags in [SYN | ACK, RST | ACK, FIN | ACK, PSH, 0] {
        let stray = session.of_far(flags, 1, 1);
        assert_eq!(
            session.receive(&stray).dropped(),
            DropReason::UnknownConnection,
            "{flags:#x}"
        );
    }
    assert_eq!(session.host.engine.sessions().count(), 0);
}

#[test]
fn a_live_session_is_not_recovered_over() {
    let mut session = Session::established(one_key());
    let isns = (500, 600);
    let foreign = Tcp {
        seq: 501,
        ack: 601,
        ..session.of_far(ACK, 0, 0)
    };
    let replayed = sign(&foreign, &session.keys[0], (2, 1), isns, 0);
    assert_eq!(
        session.host.inbound(&replayed).dropped(),
        DropReason::BadMac
    );
    session.assert_alive();
}

/// Two segments of one cookie handshake in one batch are one connection.
#[test]
fn a_recovered_handshake_is_one_entry_however_often_it_is_told() {
    use ao_engine::engine::Direction::Inbound;
    let mut session = Session::passive(one_key());
    let ack = session.signed(&session.of_far(ACK, 1, 1));
    let data = session.signed(&session.of_far(ACK | PSH, 1, 1).payload(b"OPEN"));
    session.host.batch(&[(Inbound, ack), (Inbound, data)]);
    assert_eq!(session.host.engine.sessions().count(), 1);
    assert_eq!(session.state(), Some(SessionState::Established));
}

/// Field notes 30: data in a SYN is covered, and takes up sequence numbers.
#[test]
fn data_in_a_syn() {
    let mut session = Session::passive(one_key());
    let syn = session.far_syn().payload(b"early");
    assert_eq!(session.receive(&syn).passed(), syn);
    let mut forged = session.signed(&syn);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    forged[last - 2] ^= 1; // the same bits of two words: neither sum is right
    assert!(matches!(
        session.host.inbound(&forged).dropped(),
        DropReason::Checksum | DropReason::BadMac
    ));
    session.send(&session.of_local(SYN | ACK, 0, 6)).passed();

    let mut session = Session::active(one_key());
    let out = session.send(&session.local_syn().payload(b"early"));
    session.assert_signed(&out.bytes, 0, 0);
    session.receive(&session.of_far(SYN | ACK, 0, 1)).passed();
    session.assert_alive();
}

#[test]
fn retransmissions_of_the_handshake() {
    let mut session = Session::passive(one_key());
    for _ in 0..3 {
        session.receive(&session.far_syn()).passed();
        let answer = session.send(&session.local_syn_ack());
        session.assert_signed(&answer.bytes, 0, 0);
        session.host.wait(1000);
    }
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    // The ACK was lost to the local TCP: it answers again, the far end acknowledges again.
    let answer = session.send(&session.local_syn_ack());
    session.assert_signed(&answer.bytes, 0, 0);
    assert!(answer.changes.is_empty());
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    assert_eq!(session.host.engine.sessions().count(), 1);

    let mut session = Session::active(one_key());
    for _ in 0..3 {
        let syn = session.send(&session.local_syn());
        session.assert_signed(&syn.bytes, 0, 0);
    }
    for _ in 0..3 {
        session.receive(&session.far_syn_ack()).passed();
    }
    session.assert_alive();
}

/// A far end that answers twice with different ISNs, as one that restarted might, does not
/// replace those that the local TCP took.
#[test]
fn a_second_syn_ack_with_another_isn_changes_nothing() {
    use ao_engine::engine::Direction::Inbound;
    for together in [false, true] {
        let mut session = Session::active(one_key());
        session.send(&session.local_syn()).passed();
        let first = session.signed(&session.far_syn_ack());
        let isns = (70_000, session.local_isn);
        let other = Tcp {
            seq: 70_000,
            ..session.far_syn_ack()
        };
        let other = sign(&other, &session.keys[0], (2, 1), isns, 0);
        let second = if together {
            let (mut outcomes, _) = session.host.batch(&[(Inbound, first), (Inbound, other)]);
            outcomes.pop().unwrap()
        } else {
            session.host.inbound(&first).passed();
            session.host.inbound(&other)
        };
        assert_eq!(
            second.dropped(),
            DropReason::UnknownConnection,
            "together: {together}"
        );
        session.assert_alive();
    }
}

/// Field notes 25: a reset counts with a valid MAC only.
#[test]
fn resets() {
    let mut session = Session::established(one_key());
    let reset = session.of_far(RST, 1, 1);
    assert_eq!(
        session.host.inbound(&reset.bytes()).dropped(),
        DropReason::Unsigned
    );
    assert_eq!(session.state(), Some(SessionState::Established));
    assert_eq!(session.view(|view| view.counters.unsigned), Some(1));
    session.receive(&reset).passed();
    assert_eq!(session.state(), Some(SessionState::Closing));

    let mut session = Session::established(one_key());
    let out = session.send(&session.of_local(RST | ACK, 1, 1));
    session.assert_signed(&out.bytes, 0, 0);
    assert_eq!(session.state(), Some(SessionState::Closing));
}

#[test]
fn a_reset_outside_the_window_ends_nothing() {
    let mut session = Session::established(one_key());
    session.receive(&session.of_far(RST, 900_000, 1)).passed();
    session.send(&session.of_local(ACK, 1, 1)).passed();
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    assert_eq!(session.state(), Some(SessionState::Established));
}

/// A closed port's reset has no ISN of its own to be signed under.
#[test]
fn a_reset_that_answers_a_syn_is_not_sent() {
    let mut session = Session::passive(one_key());
    session.receive(&session.far_syn()).passed();
    let reset = Tcp {
        seq: 0,
        ..session.of_local(RST | ACK, 0, 1)
    };
    assert_eq!(
        session.send(&reset).dropped(),
        DropReason::UnknownConnection
    );

    let mut session = Session::active(one_key());
    session.send(&session.local_syn()).passed();
    let reset = Tcp {
        seq: 0,
        ..session.of_far(RST | ACK, 0, 1)
    };
    assert_eq!(
        session.host.inbound(&reset.bytes()).dropped(),
        DropReason::Unsigned
    );
    let signed = sign(&reset, &session.keys[0], (2, 1), (0, session.local_isn), 0);
    assert_eq!(
        session.host.inbound(&signed).dropped(),
        DropReason::UnknownConnection
    );
    assert_eq!(session.state(), Some(SessionState::Opening));
}

fn close(session: &mut Session) {
    session.send(&session.of_local(FIN | ACK, 1, 1)).passed();
    assert_eq!(session.state(), Some(SessionState::Established));
    session.receive(&session.of_far(FIN | ACK, 1, 2)).passed();
    session.send(&session.of_local(ACK, 2, 2)).passed();
    assert_eq!(session.state(), Some(SessionState::Closing));
}

#[test]
fn a_closed_connection_answers_late_segments_until_it_expires() {
    let mut session = Session::established(one_key());
    close(&mut session);
    session.host.wait(60_000);
    session.receive(&session.of_far(FIN | ACK, 1, 2)).passed();
    let answer = session.send(&session.of_local(ACK, 2, 2));
    session.assert_signed(&answer.bytes, 0, 0);
    session.host.wait(120_000);
    assert_eq!(session.state(), Some(SessionState::Closing));
    session.host.wait(1);
    assert_eq!(session.state(), None);
    assert!(session.host.records.is_empty());
    let late = session.send(&session.of_local(ACK, 2, 2));
    assert_eq!(late.dropped(), DropReason::UnknownConnection);
}

#[test]
fn a_tuple_in_time_wait_is_used_again() {
    let mut session = Session::established(one_key());
    close(&mut session);
    let (old_local, old_far) = (session.local_isn, session.far_isn);
    (session.local_isn, session.far_isn) = (5_000_000, 7_000_000);
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();

    // Between the two, a late segment of the first connection still belongs to it.
    (session.local_isn, session.far_isn) = (old_local, old_far);
    session.receive(&session.of_far(FIN | ACK, 1, 2)).passed();
    let answer = session.send(&session.of_local(ACK, 2, 2));
    session.assert_signed(&answer.bytes, 0, 0);

    (session.local_isn, session.far_isn) = (5_000_000, 7_000_000);
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    session.assert_alive();
    assert_eq!(
        session.host.engine.sessions().count(),
        1,
        "the first has given way"
    );
}

#[test]
fn this_end_uses_a_tuple_again() {
    let mut session = Session::active(one_key());
    session.call();
    close(&mut session);
    (session.local_isn, session.far_isn) = (1500, 9500); // within reach of the first
    session.call();
    session.assert_alive();
    assert_eq!(session.host.engine.sessions().count(), 1);
}

/// Both may claim a segment when the new ISNs lie just below the old numbers: each is tried.
#[test]
fn a_late_segment_that_looks_like_one_of_the_next_handshake() {
    let mut session = Session::established(one_key());
    close(&mut session);
    let late = session.signed(&session.of_far(FIN | ACK, 1, 2));
    (session.local_isn, session.far_isn) = (500, 8000);
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    session.host.inbound(&late).passed();
    assert_eq!(session.state(), Some(SessionState::Closing), "the first");
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    session.assert_alive();
}

#[test]
fn an_ack_of_nothing_while_this_end_calls_is_not_verified() {
    let mut session = Session::active(one_key());
    session.send(&session.local_syn()).passed();
    let stray = session.receive(&session.of_far(ACK, 1, 1));
    assert_eq!(stray.dropped(), DropReason::UnknownConnection);
}

#[test]
fn the_syn_of_a_live_session_opens_nothing() {
    let mut session = Session::established(one_key());
    session.receive(&session.far_syn()).passed();
    session.host.engine.remove(&session.id());
    assert_eq!(session.host.take_changes().len(), 1, "one entry went");
}

/// Nobody can end or move a session with what it once said.
#[test]
fn a_replayed_syn_leaves_a_live_session_alone() {
    let mut session = Session::established(one_key());
    let live = (session.local_isn, session.far_isn);
    let mut replays = vec![session.signed(&session.far_syn())];
    for isn in [42, 8_999, 9_001, 9_500, u32::MAX] {
        session.far_isn = isn;
        replays.push(session.signed(&session.far_syn()));
    }
    (session.local_isn, session.far_isn) = live;
    for replay in replays {
        session.assert_alive();
        session.host.inbound(&replay).passed();
        session.assert_alive();
        // The local TCP answers with an ACK of the connection it has (RFC 5961 §4.2).
        let challenge = session.send(&session.of_local(ACK, 1, 1));
        session.assert_signed(&challenge.bytes, 0, 0);
    }
    session.assert_alive();
    assert_eq!(session.host.engine.sessions().count(), 1);
    assert_eq!(session.host.records.len(), 1);
}

#[test]
fn a_replayed_syn_in_time_wait_leads_nowhere() {
    let mut session = Session::established(one_key());
    close(&mut session);
    let live = (session.local_isn, session.far_isn);
    (session.local_isn, session.far_isn) = (5_000_000, 7_000_000);
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    assert_eq!(session.host.engine.sessions().count(), 2);
    // Nobody answers the SYN-ACK: the attempt expires, and never was a session.
    (session.local_isn, session.far_isn) = live;
    session.receive(&session.of_far(ACK, 2, 2)).passed();
    session.host.wait(130_001);
    assert_eq!(session.host.engine.sessions().count(), 0);
}

#[test]
fn a_syn_sent_again_after_its_answer_leaves_the_connection_as_it_is() {
    let mut session = Session::active(one_key());
    session.send(&session.local_syn()).passed();
    session.receive(&session.far_syn_ack()).passed();
    let good = session.view(|view| view.counters.good);
    session.send(&session.local_syn()).passed();
    session.receive(&session.far_syn_ack()).passed();
    assert_eq!(
        session.view(|view| view.counters.good),
        good.map(|good| good + 1)
    );
    session.assert_alive();
}
