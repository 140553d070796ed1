//! Keys that come and go while a connection lives, and what the engine sends to show them.

use std::net::SocketAddr;
use std::sync::Arc;

use ao_engine::crypto::Algorithm::{Aes128Cmac96, HmacSha1_96, HmacSha256_96};
use ao_engine::engine::{KeyCounters, SessionState};
use ao_engine::policy::{Mkt, Peer};
use ao_engine::reason::DropReason;
use ao_engine::time::Instant;
use proptest::prelude::*;

use crate::support::{ACK, FIN, Host, PSH, SYN, Session, Tcp, key, option};

fn two_keys() -> Vec<Mkt> {
    vec![key(1, 2, HmacSha1_96), key(3, 4, Aes128Cmac96)]
}

/// The session's peer with the session's keys.
fn peer(session: &Session) -> Peer {
    Host::peer(session.far, &session.keys)
}

fn ids(session: &Session) -> Option<(u8, u8)> {
    session.view(|view| (view.current_key, view.rnext_key))
}

fn counts(session: &Session) -> Vec<(u8, KeyCounters)> {
    let counts = session.view(|view| {
        view.keys()
            .map(|(key, counted)| (key.send_id, counted))
            .collect::<Vec<_>>()
    });
    counts.unwrap()
}

fn counted(good: u64, bad: u64, sent: u64) -> KeyCounters {
    KeyCounters { good, bad, sent }
}

#[test]
fn counts_are_by_key_and_stay_with_it() {
    let mut session = Session::established(two_keys());
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"a"), 1, 3, 0)
        .passed();
    session.send(&session.of_local(ACK, 1, 2)).passed();
    let wrong_sne = session.signed_with(&session.of_far(ACK, 2, 1), 1, 3, 5);
    assert_eq!(
        session.host.inbound(&wrong_sne).dropped(),
        DropReason::BadMac
    );
    // SYN and ACK with the first, SYN-ACK with it; then data in, acknowledgment out.
    let (first, second) = (counted(2, 0, 1), counted(1, 1, 1));
    assert_eq!(counts(&session), [(1, first), (3, second)]);

    let fresh = Arc::new(key(5, 6, HmacSha256_96));
    let [old, new] = [session.keys[0].clone(), session.keys[1].clone()];
    session.keys = vec![fresh, new, old];
    session.host.set_policy(vec![peer(&session)]);
    let none = counted(0, 0, 0);
    assert_eq!(counts(&session), [(5, none), (3, second), (1, first)]);
    assert_eq!(ids(&session), Some((3, 6)));
    session.send(&session.of_local(ACK, 1, 2)).passed();
    assert_eq!(counts(&session)[1], (3, counted(1, 1, 2)));

    // The same IDs with another secret are another key.
    let other = Mkt {
        include_options: false,
        ..key(3, 4, Aes128Cmac96)
    };
    session.keys[1] = Arc::new(other);
    session.host.set_policy(vec![peer(&session)]);
    assert_eq!(counts(&session)[1], (3, none));
    let out = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&out.bytes, 1, 0);
}

/// The end of a key's time to send: it verifies, but the far end cannot ask for it.
#[test]
fn a_retired_key_verifies_and_signs_nothing() {
    let mut session = Session::established(two_keys());
    session.keys.reverse();
    session.host.set_policy(vec![peer(&session)]);
    assert_eq!(ids(&session), Some((1, 4)));
    session.host.take_changes();
    let retired = Peer {
        accept_only: vec![1],
        ..peer(&session)
    };
    session.host.set_policy(vec![retired]);
    assert_eq!(ids(&session), Some((3, 4)));
    assert_eq!(session.host.take_changes().len(), 1, "put on record");
    // The far end still signs with it, and asks for it.
    session
        .receive_with(&session.of_far(ACK | PSH, 1, 1).payload(b"a"), 1, 1, 0)
        .passed();
    assert_eq!(ids(&session), Some((3, 4)));
    session.host.restart();
    assert_eq!(ids(&session), Some((3, 4)));
    let out = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&out.bytes, 0, 0);
}

#[test]
fn a_syn_that_nobody_answered_is_sent_again_with_the_new_key() {
    let mut session = Session::active(two_keys());
    let syn = session.send(&session.local_syn());
    session.assert_signed(&syn.bytes, 0, 0);
    session.keys.reverse();
    session.host.set_policy(vec![peer(&session)]);
    let syn = session.send(&session.local_syn());
    session.assert_signed(&syn.bytes, 0, 0);
    assert_eq!(Tcp::parse(&syn.bytes).ao(), Some((3, 4)));
    // The answer to the first one: signed with the key that asked for, and asking for it.
    session
        .receive_with(&session.far_syn_ack(), 1, 1, 0)
        .passed();
    assert_eq!(ids(&session), Some((1, 4)));
    let ack = session.send(&session.of_local(ACK, 1, 1));
    session.assert_signed(&ack.bytes, 1, 0);
}

#[test]
fn a_connection_that_is_opened_in_mid_change_comes_up() {
    // The far end has the new key already, and calls with the old one.
    let mut keys = two_keys();
    keys.reverse();
    let mut session = Session::passive(keys);
    session.receive_with(&session.far_syn(), 1, 1, 0).passed();
    let answer = session.send(&session.local_syn_ack());
    session.assert_signed(&answer.bytes, 1, 0);
    assert_eq!(Tcp::parse(&answer.bytes).ao(), Some((1, 4)));
    // Asked for the new one, it asks for it in turn.
    session
        .receive_with(&session.of_far(ACK, 1, 1), 0, 3, 0)
        .passed();
    assert_eq!(session.state(), Some(SessionState::Established));
    assert_eq!(ids(&session), Some((3, 4)));
}

/// The preference has changed while no engine ran.
#[test]
fn a_connection_taken_up_asks_for_the_key_that_is_first_now() {
    let mut session = Session::established(two_keys());
    let records = session.host.records.clone();
    let [old, new] = [session.keys[0].clone(), session.keys[1].clone()];
    session.keys = vec![new, old];
    let mut host = Host::new(vec![peer(&session)]);
    for (&entry, record) in &records {
        assert!(
            host.engine
                .restore(Instant::from_millis(host.now), entry, record)
        );
    }
    assert_eq!(host.take_changes().len(), 1, "put on record");
    session.host = host;
    assert_eq!(ids(&session), Some((1, 4)));
    let out = session.send(&session.of_local(ACK, 1, 1));
    session.assert_signed(&out.bytes, 1, 0);
    assert_eq!(Tcp::parse(&out.bytes).ao(), Some((1, 4)));
}

/// All acknowledgments of a quiet connection are level: each may lead on, none may lead back.
#[test]
fn a_quiet_connection_follows_any_number_of_changes_but_never_back() {
    let keys = (0..8).map(|n| key(2 * n + 1, 2 * n + 2, HmacSha1_96));
    let mut session = Session::established(keys.collect());
    let level = session.of_far(ACK, 1, 1);
    let mut seen = vec![session.signed(&level)];
    session.host.inbound(&seen[0]).passed();
    for n in 1..8u8 {
        let send_id = 2 * n + 1;
        let ask = session.signed_with(&level, usize::from(n), send_id, 0);
        session.host.inbound(&ask).passed();
        assert_eq!(session.view(|view| view.current_key), Some(send_id));
        for replay in &seen {
            session.host.inbound(replay).passed();
            assert_eq!(session.view(|view| view.current_key), Some(send_id));
        }
        seen.push(ask);
    }
    // After a restart nothing level moves it: what was left is not on record.
    session.host.restart();
    for replay in &seen {
        session.host.inbound(replay).passed();
        assert_eq!(session.view(|view| view.current_key), Some(15));
    }
}

/// A level segment that was held up leads to a key that both ends have skipped; the next one leads
/// to the one that both prefer.
#[test]
fn a_quiet_connection_comes_back_to_the_key_that_is_first() {
    let keys = (0..3).map(|n| key(2 * n + 1, 2 * n + 2, HmacSha1_96));
    let mut session = Session::established(keys.collect());
    let level = session.of_far(ACK, 1, 1);
    let [oldest, held_up, newest] =
        [1, 3, 5].map(|send_id| session.signed_with(&level, 0, send_id, 0));
    // While this end prefers none of the two, nothing leads back.
    for (segment, current) in [(&newest, 5), (&held_up, 3), (&newest, 3)] {
        session.host.inbound(segment).passed();
        assert_eq!(ids(&session), Some((current, 2)));
    }
    session.keys.rotate_right(1);
    session.host.set_policy(vec![peer(&session)]);
    for segment in [&newest, &held_up, &oldest] {
        session.host.inbound(segment).passed();
        assert_eq!(ids(&session), Some((5, 6)));
    }
}

/// Two engines, an end each of one connection.
struct Two {
    near: Host,
    far: Host,
    near_keys: Vec<Arc<Mkt>>,
    far_keys: Vec<Arc<Mkt>>,
}

const NEAR_ISN: u32 = 1000;
const FAR_ISN: u32 = u32::MAX - 1;

impl Two {
    fn new(v6: bool) -> Self {
        let mkts = |keys: Vec<Mkt>| keys.into_iter().map(Arc::new).collect::<Vec<_>>();
        let near_keys = mkts(two_keys());
        let far_keys = mkts(vec![key(2, 1, HmacSha1_96), key(4, 3, Aes128Cmac96)]);
        let [near, far] = addresses(v6);
        let mut two = Self {
            near: Host::new(vec![Host::peer(far, &near_keys)]),
            far: Host::new(vec![Host::peer(near, &far_keys)]),
            near_keys,
            far_keys,
        };
        let syn = Tcp::new(near, far, SYN, NEAR_ISN, 0);
        two.reach_far(&syn);
        let answer = Tcp::new(far, near, SYN | ACK, FAR_ISN, NEAR_ISN + 1);
        two.reach_near(&answer);
        let mut data = Tcp::new(near, far, ACK | PSH, NEAR_ISN + 1, FAR_ISN.wrapping_add(1));
        data = data.options(&TIMESTAMPS).payload(b"open");
        two.reach_far(&data);
        let reply = Tcp::new(far, near, ACK | PSH, FAR_ISN.wrapping_add(1), NEAR_ISN + 5);
        two.reach_near(&reply.options(&TIMESTAMPS).payload(b"open too"));
        let sack = [5, 10, 0, 0, 0, 1, 0, 0, 0, 9];
        let ack = Tcp::new(near, far, ACK, NEAR_ISN + 5, FAR_ISN.wrapping_add(9));
        two.reach_far(&ack.options(&[&TIMESTAMPS[..], &[1, 1], &sack].concat()));
        two
    }

    fn reach_far(&mut self, segment: &Tcp) {
        let signed = self.near.outbound(&segment.bytes());
        signed.passed();
        self.far.inbound(&signed.bytes).passed();
    }

    fn reach_near(&mut self, segment: &Tcp) {
        let signed = self.far.outbound(&segment.bytes());
        signed.passed();
        self.near.inbound(&signed.bytes).passed();
    }

    fn wait(&mut self, millis: u64) {
        self.near.wait(millis);
        self.far.wait(millis);
    }

    fn set_policies(&mut self, [near, far]: [SocketAddr; 2]) {
        self.near.set_policy(vec![Host::peer(far, &self.near_keys)]);
        self.far.set_policy(vec![Host::peer(near, &self.far_keys)]);
        self.near.take_changes();
        self.far.take_changes();
    }

    /// Each end is nudged twice, so that each sends one that may move the other's current_key.
    fn exchange_nudges(&mut self) {
        for _ in 0..2 {
            self.wait(1000);
            for ack in nudge(&mut self.near) {
                self.far.inbound(&ack).passed();
            }
            for ack in nudge(&mut self.far) {
                self.near.inbound(&ack).passed();
            }
        }
    }

    /// The local TCPs send an octet each way, the `n`th.
    fn speak(&mut self, n: u8) {
        let [near, far] = addresses(false);
        let n = u32::from(n);
        let (seq, ack) = (NEAR_ISN + 5 + n, FAR_ISN.wrapping_add(9 + n));
        self.reach_far(&Tcp::new(near, far, ACK | PSH, seq, ack).payload(b"x"));
        self.reach_near(&Tcp::new(far, near, ACK | PSH, ack, seq + 1).payload(b"x"));
        self.reach_far(&Tcp::new(near, far, ACK, seq + 1, ack.wrapping_add(1)));
    }

    fn prefer_second(&mut self) {
        self.near_keys.reverse();
        let [_, far] = addresses(
            self.near
                .engine
                .sessions()
                .all(|v| v.connection.local.is_ipv6()),
        );
        self.near.set_policy(vec![Host::peer(far, &self.near_keys)]);
    }

    fn far_prefers_second(&mut self) {
        self.far_keys.reverse();
        let [near, _] = addresses(
            self.near
                .engine
                .sessions()
                .all(|v| v.connection.local.is_ipv6()),
        );
        self.far.set_policy(vec![Host::peer(near, &self.far_keys)]);
    }
}

const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];

fn addresses(v6: bool) -> [SocketAddr; 2] {
    match v6 {
        false => ["10.0.0.1:40000", "10.0.0.2:179"],
        true => ["[2001:db8::1]:40000", "[2001:db8::2]:179"],
    }
    .map(|address| address.parse().unwrap())
}

fn nudge(host: &mut Host) -> Vec<Vec<u8>> {
    host.engine.nudge(Instant::from_millis(host.now), |_| true);
    let outbox = host.engine.take_outbox();
    let link = host.link;
    assert!(outbox.iter().all(|outgoing| outgoing.link == link));
    outbox.into_iter().map(|outgoing| outgoing.bytes).collect()
}

fn keys_of(host: &Host) -> (u8, u8) {
    let view = host.engine.sessions().next().unwrap();
    (view.current_key, view.rnext_key)
}

#[test]
fn a_quiet_session_changes_its_key_by_acknowledgments_alone() {
    for v6 in [false, true] {
        let mut two = Two::new(v6);
        two.prefer_second();
        assert!(nudge(&mut two.near).is_empty(), "it has just spoken");
        two.wait(1000);
        let [ack] = &nudge(&mut two.near)[..] else {
            panic!("one acknowledgment")
        };
        assert!(nudge(&mut two.near).is_empty(), "once a second");
        let parsed = two.far.inbound(ack).passed();
        assert_eq!(keys_of(&two.far), (4, 1), "the far end follows");
        // Nothing new to the far TCP: the last header, its timestamps, no data, no SACK.
        assert_eq!((parsed.flags, parsed.payload.len()), (ACK, 0));
        assert_eq!(parsed.seq, NEAR_ISN + 5);
        assert_eq!(parsed.ack, FAR_ISN.wrapping_add(9));
        assert!(parsed.option(8).is_some() && parsed.option(option::SACK).is_none());

        two.far_prefers_second();
        two.wait(1000);
        let [ack] = &nudge(&mut two.far)[..] else {
            panic!("one acknowledgment")
        };
        two.near.inbound(ack).passed();
        assert_eq!(keys_of(&two.near), (3, 4));

        // The next one asks for an answer, as a keep-alive does, and passes as well.
        let probes = nudge(&mut two.near);
        let probe = two.far.inbound(&probes[0]).passed();
        assert_eq!((probe.seq, probe.payload.len()), (NEAR_ISN + 4, 0));
        let verified = two.far.engine.sessions().next().unwrap();
        let by_key: Vec<_> = verified.keys().map(|(_, counted)| counted.good).collect();
        assert_eq!(by_key, [1, 4], "with the new key, with the old one");
        assert_eq!(verified.counters.bad, 0);
        two.wait(1000);
        let next = two.far.inbound(&nudge(&mut two.near)[0]).passed();
        assert_eq!(next.seq, NEAR_ISN + 5);
    }
}

#[test]
fn only_an_established_session_that_has_spoken_is_nudged() {
    let mut opening = Session::active(two_keys());
    opening.send(&opening.local_syn()).passed();
    opening.host.wait(5000);
    assert!(nudge(&mut opening.host).is_empty());

    let mut silent = Session::established(two_keys());
    silent.host.wait(5000);
    assert!(nudge(&mut silent.host).is_empty(), "no header to repeat");
    silent.send(&silent.of_local(ACK, 1, 1)).passed();
    silent.host.wait(5000);
    assert_eq!(nudge(&mut silent.host).len(), 1);

    silent.receive(&silent.of_far(FIN | ACK, 1, 1)).passed();
    silent.host.wait(5000);
    assert!(nudge(&mut silent.host).is_empty(), "being closed");

    let mut restarted = Session::established(two_keys());
    restarted.send(&restarted.of_local(ACK, 1, 1)).passed();
    restarted.host.restart();
    restarted.host.wait(5000);
    assert!(
        nudge(&mut restarted.host).is_empty(),
        "its marks may be old"
    );
    assert_eq!(counts(&restarted)[0].1, counted(0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Generation after generation, by the rules of a rollover and in any order of who begins: no
    /// segment of a quiet connection is refused, and both ends come to use the last key.
    #[test]
    fn generations_succeed_each_other_without_a_loss(
        firsts in prop::collection::vec(any::<bool>(), 1..6),
        restarts in prop::collection::vec(any::<bool>(), 6),
    ) {
        let mut two = Two::new(false);
        let addresses = addresses(false);
        for (n, (near_first, restart)) in (0u8..).zip(firsts.into_iter().zip(restarts)) {
            let id = 10 + n;
            two.near_keys.push(Arc::new(key(id, id, HmacSha1_96)));
            two.far_keys.push(Arc::new(key(id, id, HmacSha1_96)));
            two.set_policies(addresses);
            let order = if near_first { [0, 1] } else { [1, 0] };
            for end in order {
                match end {
                    0 => two.near_keys.rotate_right(1),
                    _ => two.far_keys.rotate_right(1),
                }
                two.set_policies(addresses);
                two.exchange_nudges();
            }
            two.exchange_nudges();
            prop_assert_eq!(keys_of(&two.near), (id, id));
            prop_assert_eq!(keys_of(&two.far), (id, id));
            two.near_keys.truncate(1);
            two.far_keys.truncate(1);
            two.set_policies(addresses);
            if restart {
                two.near.restart();
                // What was left at this place is not on record: the local TCPs speak first.
                two.speak(n);
            }
            two.exchange_nudges();
        }
        for host in [&two.near, &two.far] {
            let view = host.engine.sessions().next().unwrap();
            prop_assert_eq!(view.counters.bad, 0);
            prop_assert_eq!(host.counters("far").drops.total(), 0);
        }
    }
}
