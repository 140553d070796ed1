//! IPv4 and IPv6 headers, as far as the engine has to understand them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{array, u8_at, u16_at};
use super::checksum;
use crate::reason::DropReason;

/// IP protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// IP protocol number of ICMP.
pub(super) const ICMP: u8 = 1;
/// IPv6 next-header value of ICMPv6.
pub(super) const ICMPV6: u8 = 58;

const IPV6_HEADER: usize = 40;

/// Why a packet cannot be read as what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ParseError {
    /// It ends within a header.
    #[error("the packet ends within a header")]
    Truncated,
    /// It is neither IPv4 nor IPv6.
    #[error("the IP version is neither 4 nor 6")]
    Version,
    /// A length field contradicts another one or the length of the packet; jumbograms included.
    #[error("the lengths in the headers contradict each other or the packet")]
    Length,
    /// The IP options or IPv6 extension headers cannot be read, or are of a kind that hides what
    /// follows (IPsec).
    #[error("the IP options or extension headers cannot be read")]
    Headers,
    /// It carries another protocol.
    #[error("the packet carries another protocol")]
    Protocol,
    /// It is no ICMP error.
    #[error("the packet is no ICMP error")]
    NoIcmpError,
    /// It is a fragment, or an atomic one.
    #[error("the packet is a fragment")]
    Fragment,
    /// Source routing or a home address: the addresses in the IP header are not those of the
    /// connection.
    #[error("an option or extension header changes the addresses")]
    ExtensionHeader,
}

impl ParseError {
    /// The reason such a packet is dropped for.
    #[must_use]
    pub const fn reason(self) -> DropReason {
        match self {
            Self::Fragment => DropReason::Fragment,
            Self::ExtensionHeader => DropReason::ExtensionHeader,
            Self::Truncated
            | Self::Version
            | Self::Length
            | Self::Headers
            | Self::Protocol
            | Self::NoIcmpError => DropReason::Malformed,
        }
    }
}

/// How much of the packet is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it: its lengths must be exact, and it must not be a fragment.
    Whole,
    /// The front part, quoted in an ICMP error; a first fragment is as good as a whole packet.
    Quoted,
}

/// What an IP header says.
#[derive(Clone, Copy)]
pub(super) struct Network {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    /// Offset of what follows the last IP header.
    pub(super) payload: usize,
}

impl Network {
    pub(super) fn parse(packet: &[u8], extent: Extent) -> Result<Self, ParseError> {
        match u8_at(packet, 0).ok_or(ParseError::Truncated)? >> 4 {
            4 => parse_v4(packet, extent),
            6 => parse_v6(packet, extent),
            _ => Err(ParseError::Version),
        }
    }
}

fn parse_v4(packet: &[u8], extent: Extent) -> Result<Network, ParseError> {
    let fixed: [u8; 20] = array(packet, 0).ok_or(ParseError::Truncated)?;
    let header_len = usize::from(fixed[0] & 0xf) * 4;
    let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if header_len < 20 || total_len < header_len {
        return Err(ParseError::Length);
    }
    if extent == Extent::Whole && total_len != packet.len() {
        return Err(ParseError::Length);
    }
    let options = packet.get(20..header_len).ok_or(ParseError::Truncated)?;
    let (more_fragments, fragment_offset) = (fixed[6] & 0x20 != 0, [fixed[6] & 0x1f, fixed[7]]);
    if fragment_offset != [0, 0] || (more_fragments && extent == Extent::Whole) {
        return Err(ParseError::Fragment);
    }
    refuse_source_routes(options)?;
    Ok(Network {
        src: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        dst: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        ttl: fixed[8],
        protocol: fixed[9],
        payload: header_len,
    })
}

/// IPv4 options are harmless but for the source routes (RFC 791 §3.1): with one, the destination
/// in the header is only the next hop.
fn refuse_source_routes(mut options: &[u8]) -> Result<(), ParseError> {
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    while let [kind, rest @ ..] = options {
        options = match *kind {
            0 => return Ok(()),
            1 => rest,
            LOOSE | STRICT => return Err(ParseError::ExtensionHeader),
            _ => {
                let len = usize::from(*rest.first().ok_or(ParseError::Headers)?);
                if len < 2 {
                    return Err(ParseError::Headers);
                }
                options.get(len..).ok_or(ParseError::Headers)?
            }
        };
    }
    Ok(())
}

fn parse_v6(packet: &[u8], extent: Extent) -> Result<Network, ParseError> {
    let fixed: [u8; IPV6_HEADER] = array(packet, 0).ok_or(ParseError::Truncated)?;
    let payload_len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if extent == Extent::Whole && IPV6_HEADER + payload_len != packet.len() {
        return Err(ParseError::Length);
    }
    let (protocol, payload) = walk_extension_headers(packet, fixed[6], extent)?;
    let src: [u8; 16] = array(&fixed, 8).ok_or(ParseError::Truncated)?;
    let dst: [u8; 16] = array(&fixed, 24).ok_or(ParseError::Truncated)?;
    Ok(Network {
        src: Ipv6Addr::from(src).into(),
        dst: Ipv6Addr::from(dst).into(),
        ttl: fixed[7],
        protocol,
        payload,
    })
}

/// The protocol after the last extension header, and its offset.
fn walk_extension_headers(
    packet: &[u8],
    first: u8,
    extent: Extent,
) -> Result<(u8, usize), ParseError> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    const ESP: u8 = 50;
    const AUTHENTICATION: u8 = 51;

    let (mut next, mut at) = (first, IPV6_HEADER);
    loop {
        if matches!(next, ESP | AUTHENTICATION) {
            return Err(ParseError::Headers);
        }
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            return Ok((next, at));
        }
        let fixed: [u8; 8] = array(packet, at).ok_or(ParseError::Truncated)?;
        let len = if next == FRAGMENT {
            8
        } else {
            (usize::from(fixed[1]) + 1) * 8
        };
        let header = packet.get(at..at + len).ok_or(ParseError::Truncated)?;
        match next {
            // RFC 8200 §4.1: it stands first or not at all.
            HOP_BY_HOP if at != IPV6_HEADER => return Err(ParseError::Headers),
            HOP_BY_HOP | DESTINATION => check_v6_options(header)?,
            ROUTING => check_routing(fixed[2], fixed[3])?,
            _ => {
                let offset = u16::from_be_bytes([fixed[2], fixed[3]]) >> 3;
                if extent == Extent::Whole || offset != 0 {
                    return Err(ParseError::Fragment);
                }
            }
        }
        next = fixed[0];
        at += len;
    }
}

/// A routing header that is not used up, or of the types 0 (RFC 5095) and 2 (RFC 6275 §6.4),
/// makes the destination in the IP header another one than the connection's.
fn check_routing(kind: u8, segments_left: u8) -> Result<(), ParseError> {
    if segments_left != 0 || matches!(kind, 0 | 2) {
        return Err(ParseError::ExtensionHeader);
    }
    Ok(())
}

/// Options of a hop-by-hop or destination options header: all must be readable, and none may
/// replace the source address (RFC 6275 §6.3) or the length (RFC 2675).
fn check_v6_options(header: &[u8]) -> Result<(), ParseError> {
    const PAD1: u8 = 0;
    const JUMBO: u8 = 0xc2;
    const HOME_ADDRESS: u8 = 0xc9;

    let mut options = header.get(2..).ok_or(ParseError::Truncated)?;
    while let [kind, rest @ ..] = options {
        options = match *kind {
            PAD1 => rest,
            JUMBO => return Err(ParseError::Length),
            HOME_ADDRESS => return Err(ParseError::ExtensionHeader),
            _ => {
                let len = usize::from(*rest.first().ok_or(ParseError::Headers)?);
                options.get(2 + len..).ok_or(ParseError::Headers)?
            }
        };
    }
    Ok(())
}

/// Writes the length of the whole packet into the IP header and completes the IPv4 header
/// checksum. Packets are never longer than the field: the caller has checked.
pub(super) fn set_length(packet: &mut [u8]) {
    let total_len = packet.len();
    match u8_at(packet, 0).map(|first| first >> 4) {
        Some(4) => {
            let header_len = usize::from(u8_at(packet, 0).unwrap_or(0) & 0xf) * 4;
            let total_len = u16::try_from(total_len).unwrap_or(u16::MAX);
            super::bytes::put(packet, 2, &total_len.to_be_bytes());
            super::bytes::put(packet, 10, &[0, 0]);
            let sum = checksum::finish(&[packet.get(..header_len).unwrap_or_default()]);
            super::bytes::put(packet, 10, &sum);
        }
        Some(6) => {
            let payload_len = u16::try_from(total_len.saturating_sub(IPV6_HEADER));
            super::bytes::put(packet, 4, &payload_len.unwrap_or(u16::MAX).to_be_bytes());
        }
        _ => {}
    }
}

/// The longest packet whose length the IP header can tell.
pub(super) fn longest(src: IpAddr) -> usize {
    let field = usize::from(u16::MAX);
    if src.is_ipv4() {
        field
    } else {
        IPV6_HEADER + field
    }
}

/// A pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) and its length.
pub(super) fn pseudo_header(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    upper_len: usize,
) -> ([u8; 40], usize) {
    let mut header = [0; 40];
    let upper_len = u32::try_from(upper_len).unwrap_or(u32::MAX).to_be_bytes();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            super::bytes::put(&mut header, 0, &src.octets());
            super::bytes::put(&mut header, 4, &dst.octets());
            super::bytes::put(&mut header, 8, &[0, protocol, upper_len[2], upper_len[3]]);
            (header, 12)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            super::bytes::put(&mut header, 0, &src.octets());
            super::bytes::put(&mut header, 16, &dst.octets());
            super::bytes::put(&mut header, 32, &upper_len);
            super::bytes::put(&mut header, 39, &[protocol]);
            (header, 40)
        }
        // No packet mixes families.
        _ => (header, 0),
    }
}

/// Reads the protocol's first 16-bit field pair: the ports.
pub(super) fn ports(packet: &[u8], at: usize) -> Option<(u16, u16)> {
    Some((u16_at(packet, at)?, u16_at(packet, at + 2)?))
}
