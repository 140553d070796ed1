//! The Internet checksum (RFC 1071).

use super::bytes::put;
use super::ip;
use super::segment::Segment;

/// Offset of the checksum in a TCP header.
const FIELD: usize = 16;

/// Whether the TCP checksum is right.
#[must_use]
pub fn checksum_ok(packet: &[u8], segment: &Segment) -> bool {
    tcp_checksum(packet, segment) == [0, 0]
}

/// Computes and writes the TCP checksum. The last step of every edit.
pub fn fill_checksum(packet: &mut [u8], segment: &Segment) {
    let field = segment.tcp_offset() + FIELD;
    put(packet, field, &[0, 0]);
    let checksum = tcp_checksum(packet, segment);
    put(packet, field, &checksum);
}

fn tcp_checksum(packet: &[u8], segment: &Segment) -> [u8; 2] {
    let tcp = packet.get(segment.tcp_offset()..).unwrap_or_default();
    let (pseudo, len) = ip::pseudo_header(segment.src, segment.dst, ip::TCP, tcp.len());
    finish(&[pseudo.get(..len).unwrap_or_default(), tcp])
}

/// The checksum of several parts, each of which but the last has an even length. Zero when the
/// parts contain their own, right checksum.
pub(super) fn finish(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum: u64 = parts.iter().map(|part| sum(part)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).unwrap_or(u16::MAX);
    (!folded).to_ne_bytes()
}

/// Adds up in the machine's own byte order and in 64-bit words: both leave the folded ones'
/// complement sum unchanged (RFC 1071 §2 B and C). Four sums, so that one addition need not wait
/// for the carry of another. The result is below 2^36.
fn sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 4];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            let (sum, carry) = lane.overflowing_add(u64::from_ne_bytes(*word));
            // A sum that overflowed is below the maximum: the carry fits.
            *lane = sum + u64::from(carry);
        }
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    let pairs: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_ne_bytes(*pair)))
        .sum();
    let odd = odd
        .first()
        .map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])));
    lanes
        .iter()
        .map(|lane| (lane & 0xffff_ffff) + (lane >> 32))
        .sum::<u64>()
        + pairs
        + odd
}
