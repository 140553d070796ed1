//! One MAC over a 64-octet header and a payload, by the datapath's provider and by the libraries
//! it was chosen over, and batches of 32.
#![allow(
    missing_docs,
    reason = "criterion's macros generate undocumented items"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use ao_engine::crypto::{
    Algorithm, KdfContext, MacJob, MacProvider, MasterKey, TrafficKey, derive,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datapath::mac::Provider;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

const HEADER: [u8; 64] = [7; 64];
const PAYLOADS: [usize; 3] = [0, 536, 1440];

fn key(algorithm: Algorithm) -> TrafficKey {
    let end = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let context = KdfContext {
        src: end,
        dst: end,
        src_port: 1,
        dst_port: 179,
        src_isn: 1,
        dst_isn: 2,
    };
    derive(algorithm, &MasterKey::new(b"benchmark").unwrap(), &context)
}

fn batch<P: MacProvider>(provider: &P, key: &P::Key, payload: &[u8], count: usize) {
    let mut jobs: Vec<_> = (0..count)
        .map(|_| MacJob::new(key, &HEADER, payload))
        .collect();
    provider.compute(black_box(&mut jobs));
    black_box(jobs);
}

fn single(c: &mut Criterion) {
    for algorithm in [
        Algorithm::HmacSha1_96,
        Algorithm::Aes128Cmac96,
        Algorithm::HmacSha256_128,
    ] {
        let mut group = c.benchmark_group(algorithm.name());
        let traffic_key = key(algorithm);
        let ours = Provider.prepare(algorithm, &traffic_key);
        for length in PAYLOADS {
            let payload = vec![9; length];
            group.throughput(Throughput::Bytes((HEADER.len() + length) as u64));
            group.bench_with_input(
                BenchmarkId::new("provider", length),
                &payload,
                |b, payload| {
                    b.iter(|| batch(&Provider, &ours, payload, 1));
                },
            );
            aws_lc(&mut group, algorithm, &traffic_key, &payload);
            openssl(&mut group, algorithm, &traffic_key, &payload);
        }
        let payload = vec![9; 1440];
        group.throughput(Throughput::Bytes(
            32 * (HEADER.len() + payload.len()) as u64,
        ));
        group.bench_function("provider, 32 at once/1440", |b| {
            b.iter(|| batch(&Provider, &ours, &payload, 32));
        });
        group.finish();
    }
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn aws_lc(group: &mut Group<'_>, algorithm: Algorithm, key: &TrafficKey, payload: &[u8]) {
    let id = BenchmarkId::new("aws-lc", payload.len());
    let hmac_kind = match algorithm {
        Algorithm::Aes128Cmac96 => {
            let key = aws_lc_rs::cmac::Key::new(aws_lc_rs::cmac::AES_128, key.as_bytes()).unwrap();
            group.bench_function(id, |b| {
                b.iter(|| {
                    let mut context = aws_lc_rs::cmac::Context::with_key(&key);
                    context.update(&HEADER).unwrap();
                    context.update(payload).unwrap();
                    black_box(context.sign().unwrap())
                });
            });
            return;
        }
        Algorithm::HmacSha1_96 => aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        _ => aws_lc_rs::hmac::HMAC_SHA256,
    };
    let key = aws_lc_rs::hmac::Key::new(hmac_kind, key.as_bytes());
    group.bench_function(id, |b| {
        b.iter(|| {
            let mut context = aws_lc_rs::hmac::Context::with_key(&key);
            context.update(&HEADER);
            context.update(payload);
            black_box(context.sign())
        });
    });
}

/// OpenSSL through its high-level interface, which sets the key up for each MAC.
fn openssl(group: &mut Group<'_>, algorithm: Algorithm, key: &TrafficKey, payload: &[u8]) {
    let id = BenchmarkId::new("openssl", payload.len());
    let (pkey, digest) = match algorithm {
        Algorithm::Aes128Cmac96 => (cmac_key(key).unwrap(), None),
        Algorithm::HmacSha1_96 => (
            PKey::hmac(key.as_bytes()).unwrap(),
            Some(MessageDigest::sha1()),
        ),
        _ => (
            PKey::hmac(key.as_bytes()).unwrap(),
            Some(MessageDigest::sha256()),
        ),
    };
    group.bench_function(id, |b| {
        b.iter(|| {
            let mut signer = match digest {
                Some(digest) => Signer::new(digest, &pkey).unwrap(),
                None => Signer::new_without_digest(&pkey).unwrap(),
            };
            signer.update(&HEADER).unwrap();
            signer.update(payload).unwrap();
            black_box(signer.sign_to_vec().unwrap())
        });
    });
}

fn cmac_key(key: &TrafficKey) -> Result<PKey<openssl::pkey::Private>, openssl::error::ErrorStack> {
    PKey::cmac(&openssl::symm::Cipher::aes_128_cbc(), key.as_bytes())
}

criterion_group!(benches, single);
criterion_main!(benches);
