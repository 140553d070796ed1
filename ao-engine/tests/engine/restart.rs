//! What goes on record, when, and that an engine made of the records alone goes on.

use ao_engine::crypto::Algorithm::{Aes128Cmac96, HmacSha1_96};
use ao_engine::engine::{Action, SessionState, Verdict};
use ao_engine::policy::Mkt;

use crate::support::{ACK, FIN, Icmp, PSH, Session, Tcp, key};

fn keys() -> Vec<Mkt> {
    vec![key(1, 2, HmacSha1_96), key(3, 4, Aes128Cmac96)]
}

#[test]
fn isns_are_on_record_before_they_are_told() {
    let mut session = Session::active(keys());
    let syn = session.send(&session.local_syn());
    let [(Some(0), record)] = syn.saves()[..] else {
        panic!("{:?}", syn.changes)
    };
    assert_eq!(
        (record.local_isn, record.remote_isn),
        (Some(session.local_isn), None)
    );
    assert!(!record.proven);
    let answer = session.receive(&session.far_syn_ack());
    let [(None, record)] = answer.saves()[..] else {
        panic!("{:?}", answer.changes)
    };
    assert_eq!(record.remote_isn, Some(session.far_isn));
    assert!(record.proven);

    let mut session = Session::passive(keys());
    let syn = session.receive(&session.far_syn());
    assert!(syn.changes.is_empty(), "a replayed SYN writes nothing");
    let answer = session.send(&session.local_syn_ack());
    let [(Some(0), record)] = answer.saves()[..] else {
        panic!("{:?}", answer.changes)
    };
    assert_eq!(record.connection, session.id());
    assert_eq!(record.local_isn, Some(session.local_isn));
    assert_eq!(record.remote_isn, Some(session.far_isn));
    let ack = session.receive(&session.of_far(ACK, 1, 1));
    let [(None, record)] = ack.saves()[..] else {
        panic!("{:?}", ack.changes)
    };
    assert!(record.proven);
    let data = session.receive(&session.of_far(ACK | PSH, 1, 1).payload(b"data"));
    assert!(data.changes.is_empty());
}

#[test]
fn the_index_names_the_packet_that_waits() {
    use ao_engine::engine::Direction::{Inbound, Outbound};
    let mut session = Session::passive(keys());
    session.receive(&session.far_syn()).passed();
    let noise = session.of_far(ACK, 1, 1).bytes();
    let answer = session.local_syn_ack().bytes();
    let batch = [
        (Inbound, noise.clone()),
        (Inbound, noise),
        (Outbound, answer),
    ];
    let (_, changes) = session.host.batch(&batch);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].packet, Some(2));
}

#[test]
fn a_key_switch_is_saved() {
    let mut session = Session::established(keys());
    let switch = session.of_far(ACK | PSH, 1, 1).payload(b"x");
    let outcome = session.receive_with(&switch, 0, 3, 0);
    let [(None, record)] = outcome.saves()[..] else {
        panic!("{:?}", outcome.changes)
    };
    assert_eq!((record.current_key, record.rnext_key), (3, 2));
}

#[test]
fn marks_are_saved_every_2_to_the_28_octets() {
    let mut session = Session::established(keys());
    let step = 1 << 26;
    let (mut received, mut sent) = (0, 0);
    for at in 1..=32u32 {
        let data = session.of_far(ACK | PSH, 1 + at * step, 1);
        let outcome = session.receive_with(&data, 0, 1, 0);
        outcome.passed();
        received += outcome.saves().len();
    }
    for at in 1..=32u32 {
        let data = session.of_local(ACK | PSH, 1 + at * step, 1);
        let outcome = session.send(&data);
        outcome.passed();
        sent += outcome.saves().len();
    }
    assert_eq!((received, sent), (8, 8));
    let record = session.host.records.values().next().unwrap();
    assert!(record.received >= u64::from(session.far_isn) + (31 << 26));
    assert!(record.sent >= u64::from(session.local_isn) + (31 << 26));
}

#[test]
fn records_of_entries_that_went_are_deleted() {
    let mut session = Session::established(keys());
    let live = session.host.records.keys().next().copied();
    session.receive(&session.of_far(FIN | ACK, 1, 1)).passed();
    session.send(&session.of_local(FIN | ACK, 1, 2)).passed();
    (session.local_isn, session.far_isn) = (5_000_000, 7_000_000);
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    assert_eq!(session.host.records.len(), 2);
    let proof = session.receive(&session.of_far(ACK, 1, 1));
    let gone: Vec<_> = proof
        .changes
        .iter()
        .filter(|change| change.action == Action::Forget)
        .map(|change| Some(change.entry))
        .collect();
    assert_eq!(gone, [live]);
    assert_eq!(session.host.records.len(), 1);
}

/// Field notes 25 and 31: the steps of both handshakes, with a kill after each.
#[test]
fn killed_at_any_step_of_a_handshake() {
    type Step = fn(&mut Session) -> Tcp;
    let passive: [Step; 5] = [
        |s| s.receive(&s.far_syn()).passed(),
        |s| s.send(&s.local_syn_ack()).passed(),
        |s| s.receive(&s.of_far(ACK, 1, 1)).passed(),
        |s| s.receive(&s.of_far(ACK | PSH, 1, 1).payload(b"x")).passed(),
        |s| s.send(&s.of_local(ACK, 1, 2)).passed(),
    ];
    let active: [Step; 4] = [
        |s| s.send(&s.local_syn()).passed(),
        |s| s.receive(&s.far_syn_ack()).passed(),
        |s| s.send(&s.of_local(ACK | PSH, 1, 1).payload(b"x")).passed(),
        |s| s.receive(&s.of_far(ACK, 1, 2)).passed(),
    ];
    let simultaneous: [Step; 5] = [
        |s| s.send(&s.local_syn()).passed(),
        |s| s.receive(&s.far_syn()).passed(),
        |s| s.send(&s.local_syn_ack()).passed(),
        |s| s.receive(&s.far_syn_ack()).passed(),
        |s| s.receive(&s.of_far(ACK, 1, 1)).passed(),
    ];
    for (calls, steps) in [
        (false, &passive[..]),
        (true, &active),
        (true, &simultaneous),
    ] {
        for killed_after in 0..steps.len() {
            let fresh = if calls {
                Session::active
            } else {
                Session::passive
            };
            let mut session = fresh(keys());
            for (at, step) in steps.iter().enumerate() {
                step(&mut session);
                if at == killed_after {
                    session.host.restart();
                }
            }
            assert_eq!(session.state(), Some(SessionState::Established));
            session.assert_alive();
            assert_eq!(session.host.engine.sessions().count(), 1);
        }
    }
}

/// Both handshakes when each segment that a killed engine still held is sent again.
#[test]
fn killed_mid_transfer_with_marks_as_old_as_they_may_be() {
    let mut session = Session::passive(keys());
    (session.local_isn, session.far_isn) = (u32::MAX - (1 << 27), u32::MAX - (1 << 27));
    session.accept_call();
    // Both directions wrap, and the last save is just under 2^28 octets ago.
    let stale = (1 << 28) - 10;
    let outcome = session.receive_with(&session.of_far(ACK | PSH, stale, 1), 0, 1, 1);
    assert!(outcome.saves().is_empty());
    let outcome = session.send(&session.of_local(ACK | PSH, stale, stale));
    assert!(outcome.saves().is_empty());
    session.host.restart();
    let out = session.send(&session.of_local(ACK | PSH, stale + 1, stale));
    session.assert_signed(&out.bytes, 0, 1);
    session
        .receive_with(&session.of_far(ACK | PSH, stale + 1, stale), 0, 1, 1)
        .passed();
    assert_eq!(
        session.view(|view| (view.snd_sne, view.rcv_sne)),
        Some((1, 1))
    );
}

#[test]
fn keys_in_use_survive() {
    let mut session = Session::established(keys());
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"x"), 0, 3, 0)
        .passed();
    session.host.restart();
    assert_eq!(
        session.view(|view| (view.current_key, view.rnext_key)),
        Some((3, 2))
    );
    let out = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&out.bytes, 1, 0);
}

/// The mark on record may lie ahead of what the far end has acknowledged.
#[test]
fn a_path_mtu_message_about_data_from_before_the_restart_is_believed() {
    let mut session = Session::established(keys());
    let segment = session.of_local(ACK | PSH, 1, 1).payload(&[7; 1400]);
    let sent = session.send(&segment).bytes;
    // A key switch puts the connection on record with that segment in flight.
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"x"), 0, 3, 0)
        .passed();
    session.host.restart();
    let src = "203.0.113.1".parse().unwrap();
    let error = Icmp {
        src,
        kind: 3,
        code: 4,
        word: 1000,
        about: &sent,
    };
    let outcome = session.host.icmp(&error.bytes()).unwrap();
    assert_eq!(outcome.verdict, Verdict::Modified);
    assert_eq!(session.send(&segment).verdict, Verdict::Split);
}

/// A tuple in reuse has two records; neither takes the other's place when they are restored.
#[test]
fn a_handshake_beside_a_live_connection_survives() {
    let mut session = Session::established(keys());
    (session.local_isn, session.far_isn) = (5_000_000, 7_000_000);
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    assert_eq!(session.host.records.len(), 2);
    // In either order.
    for _ in 0..2 {
        session.host.restart();
        assert_eq!(session.host.engine.sessions().count(), 2);
        let swapped = session.host.records.iter().rev().map(|(_, record)| *record);
        let entries = session.host.records.keys().copied();
        session.host.records = entries.clone().zip(swapped).collect();
    }
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    session.assert_alive();
}

#[test]
fn a_record_of_nobody_is_refused() {
    let mut session = Session::established(keys());
    let (&entry, &record) = session.host.records.iter().next().unwrap();
    session.host.set_policy(vec![]);
    session.host.take_changes();
    let now = ao_engine::time::Instant::from_millis(session.host.now);
    assert!(!session.host.engine.restore(now, entry, &record));
}

/// Data that arrives first after a kill between SYN-ACK and ACK completes the handshake.
#[test]
fn a_lost_record_costs_the_session_not_its_safety() {
    let mut session = Session::established(keys());
    session.host.records.clear();
    session.host.restart();
    let data = session.of_far(ACK | PSH, 100, 1).payload(b"x");
    assert_eq!(
        session.receive(&data).dropped(),
        ao_engine::reason::DropReason::BadMac,
        "its numbers are not those of a handshake"
    );
    let out: Tcp = session.of_local(ACK, 1, 1);
    assert_eq!(
        session.send(&out).dropped(),
        ao_engine::reason::DropReason::UnknownConnection
    );
}
