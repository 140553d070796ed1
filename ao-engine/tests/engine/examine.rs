//! The first segments of a handshake, signed in other ways than they should be: each is recognised
//! as exactly that.

use std::net::SocketAddr;
use std::sync::Arc;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::examine::{Examined, Hint, Keys, MAX_OTHER_KEYS, Sender, examine, verifies};
use ao_engine::policy::Mkt;
use ao_engine::reason::DropReason;
use proptest::prelude::*;

use crate::support::{ACK, SYN, Tcp, key, option, sign, sign_as_is};

const MSS: [u8; 4] = [2, 4, 5, 0xb4];

fn far_to_here(flags: u8, ack: u32) -> Tcp {
    let far: SocketAddr = "10.0.0.2:40000".parse().unwrap();
    let here: SocketAddr = "10.0.0.1:179".parse().unwrap();
    Tcp::new(far, here, flags, 0x0102_0304, ack).options(&MSS)
}

fn syn() -> Tcp {
    far_to_here(SYN, 0)
}

fn from_far_end(packet: &[u8], active: &[Arc<Mkt>]) -> Examined {
    let keys = Keys {
        active,
        inactive: &[],
    };
    examine(packet, Sender::FarEnd, keys)
}

/// As the far end signs: `ids` are KeyID and RNextKeyID.
fn signed(segment: &Tcp, mkt: &Arc<Mkt>, ids: (u8, u8)) -> Vec<u8> {
    let dst_isn = match segment.flags & ACK {
        0 => 0,
        _ => segment.ack.wrapping_sub(1),
    };
    sign(segment, mkt, ids, (segment.seq, dst_isn), 0)
}

fn here(send_id: u8, recv_id: u8) -> Arc<Mkt> {
    Arc::new(key(send_id, recv_id, Algorithm::HmacSha1_96))
}

fn altered(mkt: &Mkt, alter: impl FnOnce(&mut Mkt)) -> Arc<Mkt> {
    let mut other = Mkt {
        send_id: mkt.send_id,
        recv_id: mkt.recv_id,
        algorithm: mkt.algorithm,
        master_key: MasterKey::new(mkt.master_key.expose()).unwrap(),
        include_options: mkt.include_options,
    };
    alter(&mut other);
    Arc::new(other)
}

#[test]
fn without_tcp_ao() {
    let active = [here(1, 2)];
    assert_eq!(from_far_end(&syn().bytes(), &active), Examined::NoAo);
    let mut md5 = vec![option::MD5, 18];
    md5.resize(18, 7);
    let md5 = syn().options(&md5).bytes();
    assert_eq!(from_far_end(&md5, &active), Examined::Md5);
}

#[test]
fn as_it_should_be() {
    let active = [here(1, 2), here(3, 4)];
    for segment in [syn(), far_to_here(SYN | ACK, 0), far_to_here(SYN | ACK, 99)] {
        let packet = signed(&segment, &active[1], (4, 1));
        let expected = Examined::Verified {
            key_id: 4,
            rnext_key_id: 1,
            rnext_known: true,
        };
        assert_eq!(from_far_end(&packet, &active), expected);
        let unknown = signed(&segment, &active[1], (4, 2));
        assert!(matches!(
            from_far_end(&unknown, &active),
            Examined::Verified {
                rnext_known: false,
                ..
            }
        ));
    }
}

#[test]
fn of_this_end() {
    let active = [here(1, 2)];
    let keys = Keys {
        active: &active,
        inactive: &[],
    };
    let packet = signed(&syn(), &active[0], (1, 2));
    assert!(matches!(
        examine(&packet, Sender::ThisEnd, keys),
        Examined::Verified {
            key_id: 1,
            rnext_known: true,
            ..
        }
    ));
}

#[test]
fn with_the_ids_swapped() {
    let active = [here(1, 2)];
    // The far end's configuration is a copy of ours, instead of its mirror image.
    let packet = signed(&syn(), &active[0], (1, 2));
    let expected = Examined::UnknownKeyId {
        key_id: 1,
        rnext_key_id: 2,
        hint: Hint::OtherKey {
            send_id: 1,
            recv_id: 2,
            active: true,
            algorithm: Algorithm::HmacSha1_96,
            include_options: true,
        },
    };
    assert_eq!(from_far_end(&packet, &active), expected);
}

#[test]
fn with_another_secret_or_an_unknown_id() {
    let active = [here(1, 2)];
    let wrong = signed(&syn(), &here(8, 9), (2, 1));
    let expected = Examined::WrongMac {
        key_id: 2,
        rnext_key_id: 1,
        hint: Hint::Nothing,
    };
    assert_eq!(from_far_end(&wrong, &active), expected);
    let unknown = signed(&syn(), &here(8, 9), (7, 1));
    let expected = Examined::UnknownKeyId {
        key_id: 7,
        rnext_key_id: 1,
        hint: Hint::Nothing,
    };
    assert_eq!(from_far_end(&unknown, &active), expected);
}

#[test]
fn with_a_key_of_another_time() {
    let (active, inactive) = ([here(1, 2)], [here(5, 6)]);
    let keys = Keys {
        active: &active,
        inactive: &inactive,
    };
    let packet = signed(&syn(), &inactive[0], (6, 5));
    let Examined::UnknownKeyId {
        key_id: 6, hint, ..
    } = examine(&packet, Sender::FarEnd, keys)
    else {
        panic!("the key is not active")
    };
    assert!(matches!(
        hint,
        Hint::OtherKey {
            recv_id: 6,
            active: false,
            ..
        }
    ));
}

#[test]
fn with_a_mac_of_another_length() {
    let active = [here(1, 2)];
    let long = altered(&active[0], |key| key.algorithm = Algorithm::HmacSha256_128);
    let expected = Examined::MacLength {
        key_id: 2,
        rnext_key_id: 1,
        got: 16,
        expected: 12,
        hint: Hint::Algorithm {
            algorithm: Algorithm::HmacSha256_128,
            include_options: true,
        },
    };
    assert_eq!(
        from_far_end(&signed(&syn(), &long, (2, 1)), &active),
        expected
    );
    let odd = syn()
        .options(&[option::AO, 10, 2, 1, 0, 0, 0, 0, 0, 0])
        .bytes();
    assert!(matches!(
        from_far_end(&odd, &active),
        Examined::MacLength {
            got: 6,
            hint: Hint::Nothing,
            ..
        }
    ));
}

#[test]
fn that_cannot_be_read() {
    let active = [here(1, 2)];
    let not_opening = signed(&far_to_here(ACK, 5), &active[0], (2, 1));
    let malformed = Examined::Malformed(DropReason::Malformed);
    assert_eq!(from_far_end(&not_opening, &active), malformed);
    assert_eq!(from_far_end(&[], &active), malformed);
    let mut twice = [option::AO, 16, 2, 1].to_vec();
    twice.resize(16, 0);
    twice.extend(twice.clone());
    assert_eq!(
        from_far_end(&syn().options(&twice).bytes(), &active),
        Examined::Malformed(DropReason::DuplicateAo)
    );
}

#[test]
fn the_work_has_a_bound() {
    let mut active: Vec<Arc<Mkt>> = (0..=254).map(|id| here(id, id)).collect();
    let last = active.remove(254);
    // Beyond the bound: not found, though it is there.
    let all = [&active[..], std::slice::from_ref(&last)].concat();
    let packet = signed(&syn(), &last, (255, 255));
    assert!(matches!(
        from_far_end(&packet, &all),
        Examined::UnknownKeyId {
            hint: Hint::Nothing,
            ..
        }
    ));
    let within = [std::slice::from_ref(&last), &active[..MAX_OTHER_KEYS - 1]].concat();
    assert!(matches!(
        from_far_end(&packet, &within),
        Examined::UnknownKeyId {
            hint: Hint::OtherKey { recv_id: 254, .. },
            ..
        }
    ));
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop::sample::select(&Algorithm::ALL[..])
}

fn opening() -> impl Strategy<Value = Tcp> {
    let options = prop_oneof![Just(MSS.to_vec()), Just([&MSS[..], &[4, 2, 1, 1]].concat())];
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let addresses = prop_oneof![
        Just(("10.0.0.2:40000", "10.0.0.1:179")),
        Just(("[2001:db8::2]:179", "[2001:db8::1]:40001")),
    ];
    let fields = (
        any::<bool>(),
        any::<u32>(),
        any::<u32>(),
        options,
        payload,
        addresses,
    );
    fields.prop_map(|(answers, seq, ack, options, payload, (far, here))| {
        let flags = if answers { SYN | ACK } else { SYN };
        let (far, here) = (far.parse().unwrap(), here.parse().unwrap());
        let ack = if answers { ack } else { 0 };
        Tcp::new(far, here, flags, seq, ack)
            .options(&options)
            .payload(&payload)
    })
}

proptest! {
    /// Whatever the far end does otherwise, and nothing else, is what is found.
    #[test]
    fn a_variation_is_recognised_as_exactly_that(
        segment in opening(),
        ours in (algorithm(), any::<bool>()),
        theirs in (algorithm(), any::<bool>()),
        same_secret in any::<bool>(),
        same_id in any::<bool>(),
    ) {
        let mine = altered(&here(1, 2), |key| (key.algorithm, key.include_options) = ours);
        let secret = if same_secret { here(1, 2) } else { here(8, 9) };
        let sent_with = altered(&secret, |key| (key.algorithm, key.include_options) = theirs);
        let key_id = if same_id { 2 } else { 77 };
        let packet = signed(&segment, &sent_with, (key_id, 1));
        let active = [mine];
        let found = from_far_end(&packet, &active);
        let verified = matches!(found, Examined::Verified { .. });
        prop_assert_eq!(verifies(&packet, Sender::FarEnd, &active), verified);

        let (algorithm, include_options) = theirs;
        let ids = (key_id, 1);
        let other_key = if same_secret {
            Hint::OtherKey { send_id: 1, recv_id: 2, active: true, algorithm, include_options }
        } else {
            Hint::Nothing
        };
        let other_manner = match (same_secret, algorithm == ours.0) {
            (false, _) => Hint::Nothing,
            (true, true) => Hint::OptionsFlag { include_options },
            (true, false) => Hint::Algorithm { algorithm, include_options },
        };
        let (key_id, rnext_key_id) = ids;
        let expected = if !same_id {
            Examined::UnknownKeyId { key_id, rnext_key_id, hint: other_key }
        } else if algorithm.mac_len() != ours.0.mac_len() {
            Examined::MacLength {
                key_id,
                rnext_key_id,
                got: u8::try_from(algorithm.mac_len()).unwrap(),
                expected: u8::try_from(ours.0.mac_len()).unwrap(),
                hint: other_manner,
            }
        } else if same_secret && theirs == ours {
            Examined::Verified { key_id, rnext_key_id, rnext_known: true }
        } else {
            Examined::WrongMac { key_id, rnext_key_id, hint: other_manner }
        };
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_changed_octet_verifies_with_nothing(segment in opening(), at in 0_usize..200, bit in 0_u8..8) {
        let active = [here(1, 2)];
        let mut packet = signed(&segment, &active[0], (2, 1));
        let before = packet.clone();
        let at = at % packet.len();
        packet[at] ^= 1 << bit;
        let verified = matches!(from_far_end(&packet, &active), Examined::Verified { .. });
        // What is not covered: of the IP header all but the addresses, and the check sum.
        let v4 = packet[0] >> 4 == 4;
        let (addresses, tcp) = if v4 { (12..20, 20) } else { (8..40, 40) };
        let covered = (addresses.contains(&at) || at >= tcp) && !(tcp + 16..tcp + 18).contains(&at);
        prop_assert!(!(verified && covered), "{before:02x?} verifies with octet {at} changed");
    }

    #[test]
    fn hostile_octets_are_examined_without_a_panic(
        packet in prop::collection::vec(any::<u8>(), 0..120),
        options in prop::collection::vec(any::<u8>(), 0..=40),
    ) {
        let active = [here(1, 2), here(3, 4)];
        let _ = from_far_end(&packet, &active);
        let options = &options[..options.len() / 4 * 4];
        let found = from_far_end(&syn().options(options).bytes(), &active);
        prop_assert!(!matches!(found, Examined::Verified { .. }), "it was never signed");
    }

    /// A MAC over a segment whose options the signer did not choose, cut short at any octet.
    #[test]
    fn truncated_packets_are_malformed(segment in opening(), keep in 0_usize..200) {
        let active = [here(1, 2)];
        let mut whole = segment.clone();
        whole.options.extend([option::AO, 16, 2, 1]);
        whole.options.extend([0; 12]);
        let dst_isn = if segment.has(ACK) { segment.ack.wrapping_sub(1) } else { 0 };
        let packet = sign_as_is(&whole, &active[0], (segment.seq, dst_isn), 0);
        prop_assert!(matches!(from_far_end(&packet, &active), Examined::Verified { .. }), "not verified");
        let cut = &packet[..keep % packet.len()];
        prop_assert!(matches!(from_far_end(cut, &active), Examined::Malformed(_)), "not malformed");
    }
}
