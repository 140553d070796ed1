//! TCP-AO written a second time, from RFC 5925 §5.1: only the key derivation is the engine's,
//! and that has its own vectors.

use std::sync::Arc;

use ao_engine::crypto::{Algorithm, KdfContext, MasterKey, derive};
use ao_engine::policy::Mkt;
use hmac::{KeyInit, Mac};

use super::packet::{Tcp, addresses, header_len, option, options, pseudo_header};

/// ISN of a segment's sender, and of its receiver (0 for a SYN without ACK).
pub(crate) type Isns = (u32, u32);

/// A key whose master key follows from its SendID, so that two different ones never agree.
pub(crate) fn key(send_id: u8, recv_id: u8, algorithm: Algorithm) -> Mkt {
    let mut ids = [send_id, recv_id];
    ids.sort_unstable();
    let secret = format!("secret of {} and {}", ids[0], ids[1]);
    let master_key = MasterKey::new(secret.as_bytes()).unwrap();
    Mkt {
        send_id,
        recv_id,
        algorithm,
        master_key,
        include_options: true,
    }
}

/// The packet of a segment with TCP-AO added as its last option.
pub(crate) fn sign(segment: &Tcp, mkt: &Arc<Mkt>, ids: (u8, u8), isns: Isns, sne: u32) -> Vec<u8> {
    let mut segment = segment.clone();
    while !segment.options.len().is_multiple_of(4) {
        segment.options.push(option::NOP);
    }
    let mac_len = mkt.algorithm.mac_len();
    segment
        .options
        .extend([option::AO, u8::try_from(4 + mac_len).unwrap(), ids.0, ids.1]);
    segment.options.extend(vec![0; mac_len]);
    sign_as_is(&segment, mkt, isns, sne)
}

/// The packet of a segment that has a TCP-AO option already, with its MAC filled in.
pub(crate) fn sign_as_is(segment: &Tcp, mkt: &Arc<Mkt>, isns: Isns, sne: u32) -> Vec<u8> {
    let mut segment = segment.clone();
    let mac = mac_of(&segment.bytes(), mkt, isns, sne);
    let at = ao_offset(&segment.options) + 4;
    segment.options[at..at + mac.len()].copy_from_slice(&mac);
    segment.bytes()
}

/// Whether the MAC of a packet is right.
pub(crate) fn verify(packet: &[u8], mkt: &Arc<Mkt>, isns: Isns, sne: u32) -> bool {
    let segment = Tcp::parse(packet);
    let held = segment.option(option::AO).map(|value| value[2..].to_vec());
    held == Some(mac_of(packet, mkt, isns, sne))
}

fn mac_of(packet: &[u8], mkt: &Arc<Mkt>, isns: Isns, sne: u32) -> Vec<u8> {
    let segment = Tcp::parse(packet);
    let (src, dst) = addresses(packet);
    let tcp = &packet[header_len(packet)..];
    let mut input = sne.to_be_bytes().to_vec();
    input.extend(pseudo_header(src, dst, 6, tcp.len()));
    input.extend(&tcp[..16]);
    input.extend([0, 0]);
    input.extend(&tcp[18..20]);
    let mut covered = segment.options.clone();
    let ao = ao_offset(&covered);
    let mac_end = ao + 4 + mkt.algorithm.mac_len();
    covered[ao + 4..mac_end].fill(0);
    if !mkt.include_options {
        covered = covered[ao..mac_end].to_vec();
    }
    input.extend(covered);
    input.extend(&segment.payload);

    let (src_port, dst_port) = (segment.src.port(), segment.dst.port());
    let (src_isn, dst_isn) = isns;
    let context = KdfContext {
        src,
        dst,
        src_port,
        dst_port,
        src_isn,
        dst_isn,
    };
    let traffic_key = derive(mkt.algorithm, &mkt.master_key, &context);
    let mut mac = match mkt.algorithm {
        Algorithm::HmacSha1_96 => full::<hmac::Hmac<sha1::Sha1>>(traffic_key.as_bytes(), &input),
        Algorithm::Aes128Cmac96 => full::<cmac::Cmac<aes::Aes128>>(traffic_key.as_bytes(), &input),
        _ => full::<hmac::Hmac<sha2::Sha256>>(traffic_key.as_bytes(), &input),
    };
    mac.truncate(mkt.algorithm.mac_len());
    mac
}

fn full<M: Mac + KeyInit>(key: &[u8], input: &[u8]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).unwrap();
    mac.update(input);
    mac.finalize().into_bytes().to_vec()
}

fn ao_offset(list: &[u8]) -> usize {
    let ao = options(list).find(|one| one[0] == option::AO).unwrap();
    ao.as_ptr() as usize - list.as_ptr() as usize
}
