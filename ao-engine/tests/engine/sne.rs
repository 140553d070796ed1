//! Sequence number extension across wraps (field notes 10), with signed segments at both ends.

use ao_engine::crypto::Algorithm::{Aes128Cmac96, HmacSha1_96};
use ao_engine::reason::DropReason;

use crate::support::{ACK, PSH, Session, Tcp, key, verify};

/// 64-bit offsets from the ISNs are walked in steps of a quarter of the space.
#[test]
fn several_wraps_in_both_directions() {
    for (local_isn, far_isn) in [(0, u32::MAX), (u32::MAX - 1, 1), (0x8000_0000, 0x7fff_ffff)] {
        for algorithm in [HmacSha1_96, Aes128Cmac96] {
            let mut session = Session::passive(vec![key(1, 2, algorithm)]);
            (session.local_isn, session.far_isn) = (local_isn, far_isn);
            session.accept_call();
            for step in 0..24u64 {
                let offset = 1 + (step << 30);
                let (local, far) = (u64::from(local_isn) + offset, u64::from(far_isn) + offset);
                let numbers = |seq: u64, ack: u64| (seq as u32, ack as u32);
                let sne_of = |value: u64| (value >> 32) as u32;

                let (seq, ack) = numbers(far, local);
                let segment = Tcp {
                    seq,
                    ack,
                    ..session.of_far(ACK | PSH, 0, 0)
                }
                .payload(b"x");
                session.receive_with(&segment, 0, 1, sne_of(far)).passed();
                for wrong in [sne_of(far).wrapping_sub(1), sne_of(far) + 1] {
                    let forged = session.receive_with(&segment, 0, 1, wrong);
                    assert_eq!(forged.dropped(), DropReason::BadMac, "step {step}");
                }
                let (seq, ack) = numbers(local, far + 1);
                let segment = Tcp {
                    seq,
                    ack,
                    ..session.of_local(ACK | PSH, 0, 0)
                }
                .payload(b"x");
                let out = session.send(&segment);
                session.assert_signed(&out.bytes, 0, sne_of(local));
                let reported = session.view(|view| (view.snd_sne, view.rcv_sne));
                assert_eq!(reported, Some((sne_of(local + 1), sne_of(far))));
            }
            assert!(session.view(|view| view.snd_sne).unwrap() >= 5);
        }
    }
}

/// Retransmissions and keepalive probes reach back across a wrap.
#[test]
fn segments_from_before_a_wrap_keep_their_extension() {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    (session.local_isn, session.far_isn) = (u32::MAX - 10, u32::MAX - 10);
    session.accept_call();
    let across = [0; 30];
    session
        .receive(&session.of_far(ACK | PSH, 1, 1).payload(&across))
        .passed();
    session
        .receive_with(&session.of_far(ACK | PSH, 31, 1).payload(b"x"), 0, 1, 1)
        .passed();
    // A retransmission of what was sent before the wrap.
    session
        .receive(&session.of_far(ACK | PSH, 1, 1).payload(&across))
        .passed();
    let wrong = session.receive_with(&session.of_far(ACK, 1, 1), 0, 1, 1);
    assert_eq!(wrong.dropped(), DropReason::BadMac);
    session
        .receive_with(&session.of_far(ACK, 32, 1), 0, 1, 1)
        .passed();

    let out = session.send(&session.of_local(ACK | PSH, 1, 32).payload(&across));
    session.assert_signed(&out.bytes, 0, 0);
    let out = session.send(&session.of_local(ACK | PSH, 31, 32).payload(b"x"));
    session.assert_signed(&out.bytes, 0, 1);
    let out = session.send(&session.of_local(ACK | PSH, 1, 32).payload(&across));
    session.assert_signed(&out.bytes, 0, 0);
}

/// A keepalive probe repeats the octet before the next one, here the last before a wrap.
#[test]
fn a_keepalive_probe_at_a_wrap() {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    (session.local_isn, session.far_isn) = (u32::MAX - 1, u32::MAX - 1);
    session.accept_call();
    session
        .receive(&session.of_far(ACK | PSH, 1, 1).payload(b"x"))
        .passed();
    session
        .receive_with(&session.of_far(ACK, 2, 1), 0, 1, 1)
        .passed();
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    session
        .send(&session.of_local(ACK | PSH, 1, 2).payload(b"x"))
        .passed();
    let out = session.send(&session.of_local(ACK, 2, 2));
    session.assert_signed(&out.bytes, 0, 1);
    let probe = session.send(&session.of_local(ACK, 1, 2));
    session.assert_signed(&probe.bytes, 0, 0);
}

#[test]
fn the_highest_isn_wraps_with_the_first_octet() {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    (session.local_isn, session.far_isn) = (u32::MAX, u32::MAX);
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    session
        .receive_with(&session.of_far(ACK, 1, 1), 0, 1, 1)
        .passed();
    let out = session.send(&session.of_local(ACK, 1, 1));
    session.assert_signed(&out.bytes, 0, 1);
    let again = session.send(&session.local_syn_ack());
    session.assert_signed(&again.bytes, 0, 0);
    // Recovered from its last segment alone, it is the same.
    let mut cookies = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    (cookies.local_isn, cookies.far_isn) = (u32::MAX, u32::MAX);
    cookies
        .receive_with(&cookies.of_far(ACK, 1, 1), 0, 1, 1)
        .passed();
    cookies
        .receive_with(&cookies.of_far(ACK, 1, 1), 0, 1, 1)
        .passed();
    let out = cookies.send(&cookies.of_local(ACK, 1, 1));
    cookies.assert_signed(&out.bytes, 0, 1);
}

/// Only what verified moves the mark.
#[test]
fn forged_numbers_do_not_move_the_window() {
    let mut session = Session::established(vec![key(1, 2, HmacSha1_96)]);
    for ahead in [0x4000_0000, 0x7fff_0000, 0x8000_0000, 0xf000_0000] {
        let mut forged = Tcp::parse(&session.signed(&session.of_far(ACK, 1, 1)));
        forged.seq = forged.seq.wrapping_add(ahead);
        assert_eq!(
            session.host.inbound(&forged.bytes()).dropped(),
            DropReason::BadMac
        );
    }
    assert_eq!(session.view(|view| view.rcv_sne), Some(0));
    session.assert_alive();
    let out = session.send(&session.of_local(ACK, 1, 1));
    assert!(verify(
        &out.bytes,
        &session.keys[0],
        (session.local_isn, session.far_isn),
        0
    ));
}
