//! Properties of the MAC provider: batches of any shape give what single jobs and the plain
//! crates give.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::Ipv4Addr;

use ao_engine::crypto::{
    Algorithm, KdfContext, Mac, MacJob, MacProvider, MasterKey, RustCrypto, TrafficKey, derive,
};
use hmac::KeyInit;
use proptest::prelude::*;

fn traffic_key(algorithm: Algorithm, src_port: u16) -> TrafficKey {
    let address = Ipv4Addr::new(192, 0, 2, 1).into();
    let (dst_port, src_isn, dst_isn) = (179, 1, 2);
    let context = KdfContext {
        src: address,
        dst: address,
        src_port,
        dst_port,
        src_isn,
        dst_isn,
    };
    derive(algorithm, &MasterKey::new(b"testvector").unwrap(), &context)
}

fn reference(algorithm: Algorithm, key: &TrafficKey, message: &[u8]) -> Vec<u8> {
    fn full<M: hmac::Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
        let mut mac = <M as KeyInit>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().to_vec()
    }
    let key = key.as_bytes();
    let mut mac = match algorithm {
        Algorithm::HmacSha1_96 => full::<hmac::Hmac<sha1::Sha1>>(key, message),
        Algorithm::Aes128Cmac96 => full::<cmac::Cmac<aes::Aes128>>(key, message),
        _ => full::<hmac::Hmac<sha2::Sha256>>(key, message),
    };
    mac.truncate(algorithm.mac_len());
    mac
}

fn message() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let octets = |lengths| proptest::collection::vec(any::<u8>(), lengths);
    (
        octets(0..=110),
        prop_oneof![octets(0..=70), octets(500..=600)],
    )
}

proptest! {
    #[test]
    fn batches_equal_the_plain_crates(
        messages in proptest::collection::vec((0usize..6, message()), 1..40),
    ) {
        let kinds = [0, 1, 1, 1, 2, 3].map(|index| Algorithm::ALL[index]);
        let traffic_keys: Vec<_> =
            (0u16..).zip(kinds).map(|(port, kind)| traffic_key(kind, port / 2)).collect();
        let keys: Vec<_> = kinds
            .iter()
            .zip(&traffic_keys)
            .map(|(kind, key)| RustCrypto.prepare(*kind, key))
            .collect();
        let mut jobs: Vec<_> = messages
            .iter()
            .map(|(index, (header, payload))| MacJob::new(&keys[*index], header, payload))
            .collect();
        RustCrypto.compute(&mut jobs);
        for (job, (index, (header, payload))) in jobs.iter().zip(&messages) {
            let message = [&header[..], payload].concat();
            let expected = reference(kinds[*index], &traffic_keys[*index], &message);
            prop_assert_eq!(job.mac.as_bytes(), expected);
        }
    }

    #[test]
    fn lanes_equal_one_lane(messages in proptest::collection::vec(message(), 1..=20)) {
        let key = RustCrypto
            .prepare(Algorithm::Aes128Cmac96, &traffic_key(Algorithm::Aes128Cmac96, 1));
        let mut jobs: Vec<_> = messages
            .iter()
            .map(|(header, payload)| MacJob::new(&key, header, payload))
            .collect();
        RustCrypto.compute(&mut jobs);
        for (together, (header, payload)) in jobs.iter().zip(&messages) {
            let mut alone = [MacJob::new(&key, header, payload)];
            RustCrypto.compute(&mut alone);
            prop_assert!(together.mac.ct_eq(alone[0].mac.as_bytes()));
        }
    }
}

#[test]
fn every_length_around_the_block_boundaries() {
    let traffic_key = traffic_key(Algorithm::Aes128Cmac96, 1);
    let key = RustCrypto.prepare(Algorithm::Aes128Cmac96, &traffic_key);
    let octets: Vec<u8> = (0..=255).collect();
    for header in 0..=50 {
        for payload in 0..=50 {
            let mut job = [MacJob::new(
                &key,
                &octets[..header],
                &octets[100..100 + payload],
            )];
            RustCrypto.compute(&mut job);
            let message = [&octets[..header], &octets[100..100 + payload]].concat();
            let expected = reference(Algorithm::Aes128Cmac96, &traffic_key, &message);
            assert_eq!(job[0].mac.as_bytes(), expected, "{header} + {payload}");
        }
    }
}

#[test]
fn an_empty_mac_equals_nothing() {
    assert!(!Mac::default().ct_eq(&[]));
    let mac = Mac::truncated(&[7; 20], 12);
    assert!(mac.ct_eq(&[7; 12]));
    assert!(!mac.ct_eq(&[7; 11]));
    assert!(!mac.ct_eq(&[7; 16]));
    assert!(!mac.ct_eq(&[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8]));
    assert!(!mac.ct_eq(&[]));
    assert_eq!(Mac::truncated(&[7; 32], 99).as_bytes().len(), 16);
}

#[test]
fn no_secret_in_debug_output() {
    let traffic_key = traffic_key(Algorithm::HmacSha1_96, 1);
    let key = RustCrypto.prepare(Algorithm::HmacSha1_96, &traffic_key);
    assert_eq!(
        format!("{traffic_key:?} {key:?}"),
        "TrafficKey([redacted]) RustCryptoKey([redacted])"
    );
    assert_eq!(
        format!("{:?}", Mac::truncated(&[7; 20], 12)),
        "Mac(12 octets)"
    );
}
