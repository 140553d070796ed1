//! AES-CMAC (RFC 4493) of several segments side by side.
//!
//! Within one segment each AES call waits for the one before it, so a single MAC runs at the
//! latency of AES and leaves most of the AES unit idle. Chains of different segments are
//! independent: eight of them fill the unit, through the multi-block interface of the `aes` crate.

use aes::Aes128Enc;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{
    Block, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser,
    KeyInit, consts::U16,
};
use zeroize::{Zeroize, Zeroizing};

use super::provider::{Mac, MacJob};

/// Most jobs computed side by side: as many blocks as the `aes` crate's AES-NI code takes at once.
pub(super) const LANES: usize = 8;

type Octets = [u8; 16];
type State = Block<Aes128Enc>;

/// An expanded AES key and the two subkeys of RFC 4493 §2.3.
pub(super) struct CmacKey {
    cipher: Aes128Enc,
    whole: Zeroizing<Octets>,
    padded: Zeroizing<Octets>,
}

impl CmacKey {
    pub(super) fn new(key: &Octets) -> Self {
        let cipher = Aes128Enc::new(key.into());
        let mut zero = State::default();
        cipher.encrypt_block(&mut zero);
        let whole = Zeroizing::new(double(&zero.0));
        let padded = Zeroizing::new(double(&whole));
        zero.0.zeroize();
        Self {
            cipher,
            whole,
            padded,
        }
    }

    /// Computes up to [`LANES`] jobs, all of this key.
    pub(super) fn compute<K>(&self, jobs: &mut [MacJob<'_, K>]) {
        let mut states = [State::default(); LANES];
        if let [job] = &*jobs {
            let chain = Chain::new(self, job.header, job.payload);
            let [state, ..] = &mut states;
            self.cipher.encrypt_with_backend(OneChain {
                chain: &chain,
                state,
            });
        } else {
            let chains: [Chain<'_>; LANES] = core::array::from_fn(|lane| {
                jobs.get(lane).map_or_else(Chain::default, |job| {
                    Chain::new(self, job.header, job.payload)
                })
            });
            let states = &mut states;
            self.cipher.encrypt_with_backend(SideBySide {
                chains: &chains,
                states,
            });
        }
        for (job, state) in jobs.iter_mut().zip(&states) {
            job.mac = Mac::truncated(&state.0, 12);
        }
    }
}

/// Multiplies by x in GF(2^128) (RFC 4493 §2.3), without a branch on the secret.
fn double(value: &Octets) -> Octets {
    let value = u128::from_be_bytes(*value);
    ((value << 1) ^ ((value >> 127) * 0x87)).to_be_bytes()
}

/// The message of one job, cut into the blocks of the CBC chain without copying the bulk of it.
#[derive(Default)]
struct Chain<'a> {
    header: &'a [Octets],
    /// The block in which header and payload meet, if there is one.
    joint: Option<Octets>,
    payload: &'a [Octets],
    /// The last block, already mixed with its subkey; `None` for a lane without a job.
    last: Option<Octets>,
}

impl<'a> Chain<'a> {
    fn new(key: &CmacKey, header: &'a [u8], payload: &'a [u8]) -> Self {
        let (header, header_rest) = header.as_chunks::<16>();
        let needed = if header_rest.is_empty() {
            0
        } else {
            16 - header_rest.len()
        };
        let (filler, payload) = payload.split_at(needed.min(payload.len()));
        let (payload, rest) = payload.as_chunks::<16>();
        let joint = [header_rest, filler].concat_padded();

        if !rest.is_empty() {
            let last = Some(xor(&[rest, &[]].concat_padded(), &key.padded));
            let joint = (needed != 0).then_some(joint);
            return Self {
                header,
                joint,
                payload,
                last,
            };
        }
        if let Some((last, payload)) = payload.split_last() {
            let joint = (needed != 0).then_some(joint);
            return Self {
                header,
                joint,
                payload,
                last: Some(xor(last, &key.whole)),
            };
        }
        // Nothing follows the joint, so it is the last block: whole if the filler sufficed.
        if needed != 0 {
            let subkey = if filler.len() == needed {
                &key.whole
            } else {
                &key.padded
            };
            return Self {
                header,
                joint: None,
                payload,
                last: Some(xor(&joint, subkey)),
            };
        }
        match header.split_last() {
            Some((last, header)) => Self {
                header,
                joint: None,
                payload,
                last: Some(xor(last, &key.whole)),
            },
            None => {
                let last = Some(xor(&[&[][..], &[]].concat_padded(), &key.padded));
                Self {
                    header,
                    joint: None,
                    payload,
                    last,
                }
            }
        }
    }

    /// Its runs of adjacent blocks, in order.
    fn runs(&self) -> [&[Octets]; 4] {
        [
            self.header,
            self.joint.as_slice(),
            self.payload,
            self.last.as_slice(),
        ]
    }

    fn blocks(&self) -> usize {
        self.runs().iter().map(|run| run.len()).sum()
    }
}

trait ConcatPadded {
    /// Both parts one after the other in a block, followed by the padding of RFC 4493 §2.4 as far
    /// as there is room.
    fn concat_padded(self) -> Octets;
}

impl ConcatPadded for [&[u8]; 2] {
    fn concat_padded(self) -> Octets {
        let mut block = [0; 16];
        let octets = self.into_iter().flatten().chain(&[0x80]);
        for (to, from) in block.iter_mut().zip(octets) {
            *to = *from;
        }
        block
    }
}

#[inline(always)]
fn xor(one: &Octets, other: &Octets) -> Octets {
    core::array::from_fn(|i| one[i] ^ other[i])
}

/// One chain at the latency of AES.
struct OneChain<'c, 'a> {
    chain: &'c Chain<'a>,
    state: &'c mut State,
}

impl BlockSizeUser for OneChain<'_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for OneChain<'_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let mut state = *self.state;
        for run in self.chain.runs() {
            for block in run {
                state.0 = xor(&state.0, block);
                backend.encrypt_block((&mut state).into());
            }
        }
        *self.state = state;
    }
}

/// All lanes in step. Shorter chains start later, so that all end together and no result has to
/// be picked up on the way.
struct SideBySide<'c, 'a> {
    chains: &'c [Chain<'a>; LANES],
    states: &'c mut [State; LANES],
}

impl BlockSizeUser for SideBySide<'_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for SideBySide<'_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let mut states = *self.states;
        let longest = self.chains.iter().map(Chain::blocks).max().unwrap_or(0);
        let mut lanes = self.chains.each_ref().map(|chain| Lane {
            wait: longest - chain.blocks(),
            run: &[],
            later: chain.runs(),
        });
        loop {
            lanes.iter_mut().for_each(Lane::settle);
            let steps = lanes.iter().map(Lane::steps).min().unwrap_or(0);
            if steps == 0 {
                break;
            }
            for step in 0..steps {
                for (lane, state) in lanes.iter().zip(&mut states) {
                    if let Some(block) = lane.run.get(step) {
                        state.0 = xor(&state.0, block);
                    }
                }
                let (groups, rest) = InOutBuf::from(&mut states[..]).into_chunks();
                for group in groups {
                    backend.encrypt_par_blocks(group);
                }
                backend.encrypt_tail_blocks(rest);
            }
            for (lane, state) in lanes.iter_mut().zip(&mut states) {
                lane.advance(steps, state);
            }
        }
        *self.states = states;
    }
}

/// Where a lane is in its chain.
struct Lane<'c> {
    /// Steps to sit out before the chain starts.
    wait: usize,
    /// What is left of the current run of adjacent blocks.
    run: &'c [Octets],
    /// The runs after it; taken from the front.
    later: [&'c [Octets]; 4],
}

impl Lane<'_> {
    /// Makes the next run current when the last one is used up.
    fn settle(&mut self) {
        if self.wait == 0 && self.run.is_empty() {
            let next = self.later.iter_mut().find(|run| !run.is_empty());
            self.run = next.map(core::mem::take).unwrap_or_default();
        }
    }

    fn steps(&self) -> usize {
        if self.wait > 0 {
            self.wait
        } else {
            self.run.len()
        }
    }

    /// Goes on by `steps`. A chain starts from zero, whatever its lane held while it waited.
    fn advance(&mut self, steps: usize, state: &mut State) {
        if self.wait > 0 {
            self.wait -= steps;
            *state = State::default();
        } else {
            self.run = self.run.get(steps..).unwrap_or_default();
        }
    }
}
