//! Taking a segment apart, as TCP segmentation offload does.

use alloc::vec::Vec;

use super::bytes::{put, u16_at};
use super::ip;
use super::segment::Segment;

const FIN_PSH: u8 = 0x09;
const URG: u8 = 0x20;
/// Congestion window reduced (RFC 3168 §6.1.2): told once.
const CWR: u8 = 0x80;

/// Cuts the payload into pieces that fit into packets of `bound` octets, each with the headers
/// and options of the whole. Checksums of TCP and MACs are left to be completed.
///
/// `None` for segments that mean something as a whole (SYN, RST, urgent data) and when `bound`
/// leaves no room for payload.
#[must_use]
pub fn split_segment(packet: &[u8], segment: &Segment, bound: usize) -> Option<Vec<Vec<u8>>> {
    let flags = segment.flags.0;
    if segment.flags.syn() || segment.flags.rst() || flags & URG != 0 {
        return None;
    }
    let headers = packet.get(..segment.payload_offset())?;
    let room = bound.checked_sub(headers.len()).filter(|&room| room > 0)?;
    let payload = segment.payload(packet);
    let last = payload.chunks(room).len().checked_sub(1)?;
    let mut pieces = Vec::with_capacity(last + 1);
    let mut seq = segment.seq;
    for (place, chunk) in payload.chunks(room).enumerate() {
        let mut piece = Vec::with_capacity(headers.len() + chunk.len());
        piece.extend_from_slice(headers);
        piece.extend_from_slice(chunk);
        let mut kept = flags;
        if place != last {
            kept &= !FIN_PSH;
        }
        if place != 0 {
            kept &= !CWR;
        }
        put(&mut piece, segment.tcp_offset() + 4, &seq.to_be_bytes());
        put(&mut piece, segment.tcp_offset() + 13, &[kept]);
        if segment.src.is_ipv4() {
            // Packets that may be told apart only by their identification (RFC 6864 §4).
            let identification = u16_at(&piece, 4)?.wrapping_add(u16::try_from(place).ok()?);
            put(&mut piece, 4, &identification.to_be_bytes());
        }
        ip::set_length(&mut piece);
        seq = seq.wrapping_add(u32::try_from(chunk.len()).ok()?);
        pieces.push(piece);
    }
    Some(pieces)
}
