//! The MACs the datapath computes with: for each algorithm the library that is fastest at it.
//!
//! By measurement (`make bench`): HMAC-SHA-1 is RustCrypto's; single AES-CMACs and HMAC-SHA-256
//! are aws-lc's; several AES-CMACs under one key are RustCrypto's AES again, eight lanes side by
//! side.

use ao_engine::crypto::{Algorithm, Mac, MacJob, MacProvider, RustCrypto, TrafficKey};
use aws_lc_rs::{cmac, hmac};

/// From this many CMACs under one key on, lanes beat the faster single MAC.
const WORTH_LANES: usize = 2;

type PortableKey = <RustCrypto as MacProvider>::Key;

/// The provider in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Provider;

/// A traffic key ready for use. The libraries wipe their key schedules on drop.
pub struct Key(Prepared);

#[expect(
    clippy::large_enum_variant,
    reason = "one per direction and MKT; a box costs a miss"
)]
enum Prepared {
    /// By RustCrypto, whatever the algorithm.
    Portable(PortableKey),
    Cmac {
        single: cmac::Key,
        lanes: PortableKey,
    },
    Hmac {
        key: hmac::Key,
        mac_len: usize,
    },
}

impl MacProvider for Provider {
    type Key = Key;

    fn prepare(&self, algorithm: Algorithm, key: &TrafficKey) -> Key {
        let portable = || RustCrypto.prepare(algorithm, key);
        Key(match algorithm {
            Algorithm::HmacSha1_96 => Prepared::Portable(portable()),
            Algorithm::Aes128Cmac96 => match cmac::Key::new(cmac::AES_128, key.as_bytes()) {
                Ok(single) => Prepared::Cmac {
                    single,
                    lanes: portable(),
                },
                Err(_) => Prepared::Portable(portable()),
            },
            Algorithm::HmacSha256_96 | Algorithm::HmacSha256_128 => Prepared::Hmac {
                key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()),
                mac_len: algorithm.mac_len(),
            },
        })
    }

    fn compute(&self, jobs: &mut [MacJob<'_, Key>]) {
        for run in jobs.chunk_by_mut(|one, next| std::ptr::eq(one.key, next.key)) {
            compute_run(run);
        }
    }
}

/// MACs under one key.
fn compute_run(jobs: &mut [MacJob<'_, Key>]) {
    let Some(first) = jobs.first() else { return };
    match &first.key.0 {
        Prepared::Portable(key) => compute_portable(jobs, key),
        Prepared::Cmac { lanes, .. } if jobs.len() >= WORTH_LANES => compute_portable(jobs, lanes),
        Prepared::Cmac { single, lanes } => {
            for job in &mut *jobs {
                let mut context = cmac::Context::with_key(single);
                let whole = context
                    .update(job.header)
                    .and_then(|()| context.update(job.payload));
                if let Ok(tag) = whole.and_then(|()| context.sign()) {
                    job.mac = Mac::truncated(tag.as_ref(), Algorithm::Aes128Cmac96.mac_len());
                }
            }
            // Where the library could not, the other one can.
            if jobs.iter().any(|job| job.mac.as_bytes().is_empty()) {
                compute_portable(jobs, lanes);
            }
        }
        Prepared::Hmac { key, mac_len } => {
            for job in jobs {
                let mut context = hmac::Context::with_key(key);
                context.update(job.header);
                context.update(job.payload);
                job.mac = Mac::truncated(context.sign().as_ref(), *mac_len);
            }
        }
    }
}

fn compute_portable(jobs: &mut [MacJob<'_, Key>], key: &PortableKey) {
    let mut portable: Vec<MacJob<'_, PortableKey>> = jobs
        .iter()
        .map(|job| MacJob::new(key, job.header, job.payload))
        .collect();
    RustCrypto.compute(&mut portable);
    let macs: Vec<Mac> = portable.into_iter().map(|job| job.mac).collect();
    for (job, mac) in jobs.iter_mut().zip(macs) {
        job.mac = mac;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use ao_engine::crypto::{KdfContext, MasterKey, derive};

    use super::*;

    fn traffic_key(algorithm: Algorithm, isn: u32) -> TrafficKey {
        let end = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let context = KdfContext {
            src: end,
            dst: end,
            src_port: 1,
            dst_port: 179,
            src_isn: isn,
            dst_isn: 0,
        };
        derive(algorithm, &MasterKey::new(b"master").unwrap(), &context)
    }

    #[test]
    fn both_libraries_agree_on_every_algorithm_length_and_batch() {
        let data: Vec<u8> = (0..3000_u32).map(|i| (i % 251) as u8).collect();
        for algorithm in Algorithm::ALL {
            let keys = [1, 2].map(|isn| traffic_key(algorithm, isn));
            let ours = keys.each_ref().map(|key| Provider.prepare(algorithm, key));
            let reference = keys
                .each_ref()
                .map(|key| RustCrypto.prepare(algorithm, key));
            for batch in [1, 2, 3, 9, 32] {
                let part = |i: usize| (&data[..64], &data[64..64 + (i * 97) % 1500]);
                let which = |i: usize| usize::from(i % 7 == 3);
                let mut jobs: Vec<_> = (0..batch)
                    .map(|i| MacJob::new(&ours[which(i)], part(i).0, part(i).1))
                    .collect();
                Provider.compute(&mut jobs);
                for (i, job) in jobs.iter().enumerate() {
                    let mut single = [MacJob::new(&reference[which(i)], part(i).0, part(i).1)];
                    RustCrypto.compute(&mut single);
                    assert_eq!(
                        job.mac.as_bytes(),
                        single[0].mac.as_bytes(),
                        "{algorithm} {batch}"
                    );
                    assert_eq!(job.mac.as_bytes().len(), algorithm.mac_len());
                }
            }
        }
    }
}
