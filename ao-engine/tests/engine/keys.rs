//! Which MKT signs and verifies: RFC 5925 §7.4 and §7.5, and changes of the policy.

use std::sync::Arc;

use ao_engine::crypto::Algorithm::{self, HmacSha1_96, HmacSha256_128};
use ao_engine::engine::SessionState;
use ao_engine::policy::Mkt;
use ao_engine::reason::DropReason;

use crate::support::{ACK, FIN, Host, PSH, Session, Tcp, key};

fn two_keys() -> Vec<Mkt> {
    vec![key(1, 2, HmacSha1_96), key(3, 4, Algorithm::Aes128Cmac96)]
}

#[test]
fn each_algorithm_with_and_without_options() {
    for algorithm in Algorithm::ALL {
        for include_options in [true, false] {
            for (local, far) in [
                ("10.0.0.1:179", "10.0.0.2:40000"),
                ("[2001:db8::1]:40000", "[2001:db8::2]:179"),
                ("[fe80::1]:179", "[fe80::2]:40000"),
            ] {
                let keys = vec![Mkt {
                    include_options,
                    ..key(5, 6, algorithm)
                }];
                let mut session = Session::between(local, far, keys);
                if session.local.port() == 179 {
                    session.receive(&session.far_syn()).passed();
                    session.send(&session.local_syn_ack()).passed();
                } else {
                    session.send(&session.local_syn()).passed();
                    session.receive(&session.far_syn_ack()).passed();
                }
                let timestamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
                let data = session
                    .of_far(ACK | PSH, 1, 1)
                    .options(&timestamps)
                    .payload(b"odd");
                assert_eq!(session.receive(&data).passed(), data, "{algorithm}");
                let data = session
                    .of_local(ACK | PSH, 1, 4)
                    .options(&timestamps)
                    .payload(b"x");
                let out = session.send(&data);
                session.assert_signed(&out.bytes, 0, 0);
                let option = Tcp::parse(&out.bytes).option(29).unwrap().len() + 2;
                assert_eq!(option, algorithm.option_len());
            }
        }
    }
}

/// Field notes 4 and 5: excluded options are left out, included ones count with their padding.
#[test]
fn options_are_covered_or_not_as_the_key_says() {
    for include_options in [true, false] {
        let keys = vec![Mkt {
            include_options,
            ..key(1, 2, HmacSha1_96)
        }];
        let mut session = Session::established(keys);
        let timestamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
        let segment = session.of_far(ACK, 1, 1).options(&timestamps);
        let genuine = Tcp::parse(&session.signed(&segment));
        let mut changed = genuine.clone();
        changed.options[11] ^= 1; // the last octet of the timestamps
        let mut repadded = genuine.clone();
        repadded.options[..12].copy_from_slice(&[8, 10, 0, 0, 0, 9, 0, 0, 0, 8, 1, 1]);
        for forged in [changed, repadded] {
            let outcome = session.host.inbound(&forged.bytes());
            if include_options {
                assert_eq!(outcome.dropped(), DropReason::BadMac);
            } else {
                outcome.passed();
            }
        }
        // Whatever the key says, TCP-AO's own IDs are covered.
        let mut other_rnext = genuine;
        other_rnext.options[15] ^= 1;
        assert_eq!(
            session.host.inbound(&other_rnext.bytes()).dropped(),
            DropReason::BadMac
        );
    }
}

/// Field notes 11: in by RecvID, out by SendID of current_key and RecvID of rnext_key.
#[test]
fn ids_of_the_two_directions_are_separate() {
    let mut session = Session::established(two_keys());
    let out = session.send(&session.of_local(ACK, 1, 1));
    assert_eq!(Tcp::parse(&out.bytes).ao(), Some((1, 2)));
    // The far end may use any key it shares, whatever we asked for.
    session
        .receive_with(&session.of_far(ACK, 1, 1), 1, 1, 0)
        .passed();
    let out = session.send(&session.of_local(ACK, 1, 1));
    assert_eq!(Tcp::parse(&out.bytes).ao(), Some((1, 2)));
}

/// Field notes 11 and 13: the far end moves current_key there and back, from the SYN on.
#[test]
fn the_far_end_chooses_the_key_it_receives() {
    let mut session = Session::passive(two_keys());
    session.receive_with(&session.far_syn(), 0, 3, 0).passed();
    let answer = session.send(&session.local_syn_ack());
    session.assert_signed(&answer.bytes, 1, 0);
    session
        .receive_with(&session.of_far(ACK, 1, 1), 0, 3, 0)
        .passed();
    assert_eq!(
        session.view(|view| (view.current_key, view.rnext_key)),
        Some((3, 2))
    );

    // An older key again is legal (RFC 5925 §7.5).
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"a"), 1, 1, 0)
        .passed();
    let out = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&out.bytes, 0, 0);
    session
        .receive_with(&session.of_far(ACK | PSH, 2, 1).payload(b"a"), 1, 3, 0)
        .passed();
    let out = session.send(&session.of_local(ACK, 1, 3));
    session.assert_signed(&out.bytes, 1, 0);
}

#[test]
fn the_answer_to_our_syn_may_switch() {
    let mut session = Session::active(two_keys());
    let syn = session.send(&session.local_syn());
    session.assert_signed(&syn.bytes, 0, 0);
    session
        .receive_with(&session.far_syn_ack(), 0, 3, 0)
        .passed();
    let ack = session.send(&session.of_local(ACK, 1, 1));
    session.assert_signed(&ack.bytes, 1, 0);
}

/// Field notes 12: what we ask for moves by management only.
#[test]
fn rnext_key_does_not_follow_the_far_end() {
    let mut session = Session::established(two_keys());
    session
        .receive_with(&session.of_far(ACK, 1, 1), 1, 3, 0)
        .passed();
    assert_eq!(
        session.view(|view| (view.current_key, view.rnext_key)),
        Some((3, 2))
    );
}

#[test]
fn an_unknown_rnext_key_id_is_no_action() {
    let mut session = Session::established(two_keys());
    for unknown in [0, 2, 4, 99, 255] {
        session
            .receive_with(&session.of_far(ACK, 1, 1), 0, unknown, 0)
            .passed();
        assert_eq!(session.view(|view| view.current_key), Some(1), "{unknown}");
    }
}

#[test]
fn a_refused_segment_switches_nothing() {
    let mut session = Session::established(two_keys());
    let mut forged = Tcp::parse(&session.signed_with(&session.of_far(ACK, 1, 1), 0, 1, 0));
    forged.options[3] = 3;
    assert_eq!(
        session.host.inbound(&forged.bytes()).dropped(),
        DropReason::BadMac
    );
    assert_eq!(session.view(|view| view.current_key), Some(1));
}

#[test]
fn old_segments_do_not_bring_an_old_key_back() {
    let mut session = Session::established(two_keys());
    let data = session.of_local(ACK | PSH, 1, 1).payload(&[0; 100]);
    session.send(&data).passed();
    // Old by both numbers, by its acknowledgment alone, by its sequence number alone.
    let replays = [
        session.signed(&session.of_far(ACK | PSH, 1, 1).payload(b"abc")),
        session.signed(&session.of_far(ACK, 4, 50)),
        session.signed(&session.of_far(ACK | PSH, 1, 101).payload(b"abc")),
        session.signed(&Tcp {
            ack: 0,
            ..session.of_far(PSH, 1, 0).payload(b"abc")
        }),
    ];
    for packet in &replays {
        session.host.inbound(packet).passed();
    }
    session
        .receive_with(&session.of_far(ACK, 4, 101), 0, 3, 0)
        .passed();
    assert_eq!(session.view(|view| view.current_key), Some(3));
    for replay in &replays {
        session.host.inbound(replay).passed();
        assert_eq!(session.view(|view| view.current_key), Some(3));
    }
}

/// Two acknowledgments of a quiet connection have the same numbers; the first, replayed, asks for
/// the old key as convincingly as the second asked for the new one.
#[test]
fn a_quiet_connection_is_not_taken_back_to_an_old_key() {
    let mut session = Session::established(two_keys());
    let old = session.signed(&session.of_far(ACK, 1, 1));
    session.host.inbound(&old).passed();
    session
        .receive_with(&session.of_far(ACK, 1, 1), 0, 3, 0)
        .passed();
    assert_eq!(session.view(|view| view.current_key), Some(3));
    session.host.inbound(&old).passed();
    assert_eq!(session.view(|view| view.current_key), Some(3));
    // The far end itself goes back with its next data.
    let data = session.of_far(ACK | PSH, 1, 1).payload(b"x");
    session.receive_with(&data, 0, 3, 0).passed();
    session.receive(&session.of_far(ACK, 2, 1)).passed();
    assert_eq!(session.view(|view| view.current_key), Some(1));
}

#[test]
fn a_policy_change_keeps_the_keys_in_use_by_their_ids() {
    let mut session = Session::established(two_keys());
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"a"), 0, 3, 0)
        .passed();
    let before = session.host.counters("far");
    let mut keys = session.keys.clone();
    keys.push(Arc::new(key(7, 8, HmacSha256_128)));
    session
        .host
        .set_policy(vec![Host::peer(session.far, &keys)]);
    assert_eq!(
        session.view(|view| (view.current_key, view.rnext_key)),
        Some((3, 2))
    );
    assert_eq!(session.host.counters("far"), before);
    let out = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&out.bytes, 1, 0);

    // A key added is usable at once, a key removed gives way to the first.
    session.keys.insert(0, keys[2].clone());
    session
        .receive_with(&session.of_far(ACK, 2, 1), 0, 3, 0)
        .passed();
    session.keys.truncate(1);
    session
        .host
        .set_policy(vec![Host::peer(session.far, &session.keys)]);
    assert_eq!(
        session.view(|view| (view.current_key, view.rnext_key)),
        Some((7, 8))
    );
    let out = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&out.bytes, 0, 0);
}

/// RFC 5925 §3.3: management chooses rnext_key, the far end current_key. The four steps of a key
/// change: add, prefer, wait, remove.
#[test]
fn another_first_key_becomes_rnext_key_and_nothing_else() {
    let mut session = Session::established(two_keys());
    let [old, new] = [session.keys[0].clone(), session.keys[1].clone()];
    let set = |session: &mut Session, keys: &[Arc<Mkt>]| {
        let peer = Host::peer(session.far, keys);
        session.host.set_policy(vec![peer]);
        session.view(|view| (view.current_key, view.rnext_key))
    };
    // The same keys again, or another one behind them, move nothing and need no record.
    assert_eq!(set(&mut session, &[old.clone(), new.clone()]), Some((1, 2)));
    let spare = Arc::new(key(7, 8, HmacSha256_128));
    let keys = [old.clone(), new.clone(), spare];
    assert_eq!(set(&mut session, &keys), Some((1, 2)));
    assert_eq!(session.host.take_changes().len(), 0);

    session.keys = vec![new.clone(), old.clone()];
    let keys = session.keys.clone();
    assert_eq!(set(&mut session, &keys), Some((1, 4)));
    let out = session.send(&session.of_local(ACK, 1, 1));
    session.assert_signed(&out.bytes, 1, 0);
    assert_eq!(Tcp::parse(&out.bytes).ao(), Some((1, 4)));
    // A restart does not take it back.
    session.host.take_changes();
    session.host.restart();
    let ids = session.view(|view| (view.current_key, view.rnext_key));
    assert_eq!(ids, Some((1, 4)));

    // The far end signs with either key, and moves current_key when it asks for another.
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"a"), 1, 1, 0)
        .passed();
    session
        .receive_with(&session.of_far(ACK | PSH, 2, 1).payload(b"b"), 0, 3, 0)
        .passed();
    let out = session.send(&session.of_local(ACK, 1, 3));
    session.assert_signed(&out.bytes, 0, 0);
    session.keys.truncate(1);
    let keys = session.keys.clone();
    assert_eq!(set(&mut session, &keys), Some((3, 4)));
    session.assert_alive();
}

/// While the preference stays, a key of an opening or changed connection is not touched.
#[test]
fn rnext_key_stays_where_it_was_while_the_first_key_stays() {
    let mut session = Session::established(two_keys());
    let [old, new] = [session.keys[0].clone(), session.keys[1].clone()];
    let spare = Arc::new(key(7, 8, HmacSha256_128));
    for keys in [
        [new.clone(), old.clone(), spare.clone()],
        [new.clone(), spare, old],
    ] {
        let peer = Host::peer(session.far, &keys);
        session.host.set_policy(vec![peer]);
        let ids = session.view(|view| (view.current_key, view.rnext_key));
        assert_eq!(ids, Some((1, 4)));
    }
}

#[test]
fn a_policy_change_forgets_connections_that_lost_their_peer_or_its_keys() {
    for gone in [true, false] {
        let mut session = Session::established(two_keys());
        let peers = if gone {
            vec![]
        } else {
            vec![Host::peer(session.far, &[])]
        };
        session.host.set_policy(peers);
        session.host.take_changes();
        assert_eq!(session.host.engine.sessions().count(), 0);
        assert!(session.host.records.is_empty());
        let out = session.send(&session.of_local(ACK, 1, 1));
        let reason = if gone {
            DropReason::NoPeer
        } else {
            DropReason::NoKey
        };
        assert_eq!(out.dropped(), reason);
    }
}

#[test]
fn a_peer_that_moves_in_the_policy_keeps_its_sessions() {
    let mut session = Session::established(two_keys());
    let mut other = Host::peer("10.0.0.9:179".parse().unwrap(), &session.keys);
    other.name = "other".into();
    other.selector.local = Some(session.local.ip()); // sorts before
    let far = Host::peer(session.far, &session.keys);
    session.host.set_policy(vec![other, far]);
    assert_eq!(
        session.view(|view| view.peer.name.to_string()),
        Some("far".into())
    );
    session.assert_alive();
    assert_eq!(session.host.counters("other").good, 0);
}

#[test]
fn counters_of_session_and_peer() {
    let mut session = Session::established(two_keys());
    for _ in 0..3 {
        session.receive(&session.of_far(ACK, 1, 1)).passed();
    }
    for _ in 0..4 {
        session.send(&session.of_local(ACK, 1, 1)).passed();
    }
    let wrong = session.signed_with(&session.of_far(ACK, 1, 1), 0, 1, 5);
    session.host.inbound(&wrong).dropped();
    session
        .host
        .inbound(&session.of_far(FIN, 1, 1).bytes())
        .dropped();
    let counters = session.view(|view| view.counters).unwrap();
    // SYN, ACK and three; SYN-ACK and four.
    assert_eq!((counters.good, counters.sent), (5, 5));
    assert_eq!((counters.bad, counters.unsigned), (1, 1));
    let peer = session.host.counters("far");
    assert_eq!((peer.good, peer.sent, peer.drops.total()), (5, 5, 2));
    assert_eq!(
        peer.drops.iter().collect::<Vec<_>>(),
        [(DropReason::Unsigned, 1), (DropReason::BadMac, 1)]
    );
}

fn link_local() -> Session {
    Session::between(
        "[fe80::1]:179",
        "[fe80::2]:40000",
        vec![key(1, 2, HmacSha1_96)],
    )
}

#[test]
fn the_link_tells_link_local_connections_apart() {
    let mut session = link_local();
    session.host.link.interface = 7;
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    session.host.link.interface = 8;
    let elsewhere = session.of_local(ACK, 1, 1);
    assert_eq!(
        session.send(&elsewhere).dropped(),
        DropReason::UnknownConnection
    );
    // Another connection with the same addresses and ports.
    session.local_isn = 77;
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    let mut interfaces: Vec<_> = session
        .host
        .engine
        .sessions()
        .map(|view| view.connection.interface)
        .collect();
    interfaces.sort_unstable();
    assert_eq!(interfaces, [7, 8]);

    // A selector that names a link covers that one only.
    let mut session = link_local();
    let mut peer = Host::peer(session.far, &session.keys);
    peer.selector.interface = Some(7);
    session.host.set_policy(vec![peer]);
    session.host.link.interface = 8;
    assert_eq!(
        session.receive(&session.far_syn()).dropped(),
        DropReason::NoPeer
    );
    session.host.link.interface = 7;
    session.receive(&session.far_syn()).passed();
}

#[test]
fn an_l3_domain_has_connections_of_its_own() {
    let mut session = Session::passive(two_keys());
    let other_key: Vec<_> = vec![Arc::new(key(1, 2, HmacSha256_128))];
    let mut red = Host::peer(session.far, &session.keys);
    red.selector.domain = Some(7);
    let mut blue = Host::peer(session.far, &other_key);
    (blue.name, blue.selector.domain) = ("blue".into(), Some(8));
    session.host.set_policy(vec![red, blue]);

    session.host.link.domain = 7;
    session.accept_call();
    session.host.link.domain = 8;
    assert_eq!(
        session.receive(&session.far_syn()).dropped(),
        DropReason::MacLength
    );
    let keys = std::mem::replace(&mut session.keys, other_key);
    session.local_isn = 77;
    session.accept_call();
    assert_eq!(session.host.engine.sessions().count(), 2);
    session.assert_alive();
    (session.keys, session.local_isn, session.host.link.domain) = (keys, 1000, 7);
    session.assert_alive();
    session.host.link.domain = 0;
    assert_eq!(
        session.receive(&session.far_syn()).dropped(),
        DropReason::NoPeer
    );
    assert_eq!(session.state(), None::<SessionState>);
}

/// Field notes 13: a SYN that asks for a key this end does not have is answered all the same.
#[test]
fn a_syn_that_asks_for_an_unknown_key_is_answered_with_the_first() {
    let mut session = Session::passive(two_keys());
    session.receive_with(&session.far_syn(), 1, 99, 0).passed();
    let answer = session.send(&session.local_syn_ack());
    session.assert_signed(&answer.bytes, 0, 0);
}

/// Field notes 15: a forced removal leaves no way to sign or be verified with the old key, however
/// long the far end clings to it.
#[test]
fn a_removed_key_is_gone_at_once() {
    let mut session = Session::established(two_keys());
    let with_old = session.signed(&session.of_far(ACK, 1, 1));
    let peer = Host::peer(session.far, &session.keys[1..]);
    session.host.set_policy(vec![peer]);
    let late = session.host.inbound(&with_old);
    assert_eq!(late.dropped(), DropReason::UnknownKeyId);
    let out = session.send(&session.of_local(ACK, 1, 1));
    session.assert_signed(&out.bytes, 1, 0);
    session
        .receive_with(&session.of_far(ACK, 1, 1), 1, 3, 0)
        .passed();
}
