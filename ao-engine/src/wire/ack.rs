//! The bare acknowledgment that follows from a segment's headers.

use super::buf::PacketBuf;
use super::bytes::{put, u8_at};
use super::edit::strip_options;
use super::ip;
use super::options::kind;
use super::segment::Segment;

const ACK: u8 = 0x10;
/// The ECN field in the second octet of an IPv4 and of an IPv6 header: acknowledgments without
/// data are not ECN-capable (RFC 3168 §6.1.4).
const ECN_V4: u8 = 0x03;
const ECN_V6: u8 = 0x30;

/// Makes the headers of an earlier segment those of an acknowledgment that carries no data, has
/// `seq`, and acknowledges what the earlier one did. SACK blocks and TCP-AO go, other options
/// stay; the checksum of TCP is left to be completed.
///
/// `None` when `buf` holds no headers of IP and TCP.
#[must_use]
pub fn bare_ack(buf: &mut PacketBuf<'_>, seq: u32) -> Option<Segment> {
    let packet = buf.bytes_mut();
    let ecn = match u8_at(packet, 0)? >> 4 {
        4 => ECN_V4,
        _ => ECN_V6,
    };
    let traffic_class = u8_at(packet, 1)? & !ecn;
    put(packet, 1, &[traffic_class]);
    ip::set_length(packet);
    let tcp = Segment::parse(packet).ok()?.tcp_offset();
    put(packet, tcp + 4, &seq.to_be_bytes());
    put(packet, tcp + 13, &[ACK]);
    // Nothing is urgent.
    put(packet, tcp + 18, &[0, 0]);
    let mut segment = Segment::parse(packet).ok()?;
    strip_options(buf, &mut segment, &[kind::SACK, kind::AO]);
    Some(segment)
}
