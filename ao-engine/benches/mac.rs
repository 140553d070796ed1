//! Cost of one MAC, and of 32 in a batch, with the provider that is always there.

use std::hint::black_box;
use std::net::Ipv4Addr;

use ao_engine::crypto::{
    Algorithm, KdfContext, MacJob, MacProvider, MasterKey, RustCrypto, RustCryptoKey, derive,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// SNE, pseudo-header and a TCP header with timestamps and TCP-AO.
const HEADER: [u8; 64] = [0x5a; 64];
const PAYLOADS: [usize; 5] = [0, 64, 536, 1440, 8948];

fn mac(c: &mut Criterion) {
    let Ok(master) = MasterKey::new(b"testvector") else {
        return;
    };
    let context = KdfContext {
        src: Ipv4Addr::new(192, 0, 2, 1).into(),
        dst: Ipv4Addr::new(192, 0, 2, 2).into(),
        src_port: 50000,
        dst_port: 179,
        src_isn: 1,
        dst_isn: 2,
    };
    for algorithm in Algorithm::ALL {
        let key = RustCrypto.prepare(algorithm, &derive(algorithm, &master, &context));
        batches::<1>(c, &format!("{algorithm}/one"), &key);
        batches::<32>(c, &format!("{algorithm}/batch"), &key);
    }
}

/// Batches of `N` segments, for each length of payload.
fn batches<const N: usize>(c: &mut Criterion, name: &str, key: &RustCryptoKey) {
    let payload = vec![0xa5; 8948];
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(N as u64));
    for len in PAYLOADS {
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                let mut jobs: [_; N] = std::array::from_fn(|_| {
                    MacJob::new(key, black_box(&HEADER[..]), black_box(&payload[..len]))
                });
                RustCrypto.compute(&mut jobs);
                black_box(jobs.map(|job| job.mac))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, mac);
criterion_main!(benches);
