//! ICMP errors about TCP segments (RFC 792, RFC 4443).

use core::net::IpAddr;

use super::bytes::{array, put, u16_at, u32_at};
use super::checksum;
use super::ip::{self, Extent, Network, ParseError};

/// Octets of an ICMP error before the quoted packet.
const HEADER: usize = 8;

/// The segment an ICMP error is about, as quoted in it: sent by `src`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Address of the quoted segment's sender.
    pub src: IpAddr,
    /// Address of its receiver.
    pub dst: IpAddr,
    /// Port of its sender.
    pub src_port: u16,
    /// Port of its receiver.
    pub dst_port: u16,
    /// Its sequence number.
    pub seq: u32,
}

/// An ICMP error about a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// IP version: 4 or 6.
    pub version: u8,
    /// ICMP or ICMPv6 type.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// Next-hop MTU in octets, in "fragmentation needed" (v4 type 3 code 4) and "packet too big"
    /// (v6 type 2). `None` in all others, and where an old IPv4 router says 0.
    pub mtu: Option<u32>,
    /// The segment it is about.
    pub quoted: Quoted,
    /// Who sent the error.
    pub outer_src: IpAddr,
    /// Whom it was sent to: the sender of the quoted segment.
    pub outer_dst: IpAddr,
    icmp_offset: usize,
}

impl IcmpError {
    /// Whether this kind of error carries an MTU.
    #[must_use]
    pub const fn is_too_big(&self) -> bool {
        is_too_big(self.version, self.kind, self.code)
    }

    /// Whether TCP takes this kind of error for the end of a connection (RFC 5925 §7.8).
    #[must_use]
    pub const fn is_hard(&self) -> bool {
        matches!(
            (self.version, self.kind, self.code),
            (4, 3, 2 | 3) | (6, 1, 1 | 4)
        )
    }

    /// Offset of the MTU field and its octets: 2 or 4.
    const fn mtu_field(&self) -> (usize, usize) {
        if self.version == 4 {
            (self.icmp_offset + 6, 2)
        } else {
            (self.icmp_offset + 4, 4)
        }
    }
}

const fn is_too_big(version: u8, kind: u8, code: u8) -> bool {
    matches!((version, kind, code), (4, 3, 4) | (6, 2, _))
}

/// Reads an ICMP error whose quoted packet is a TCP segment, of which 8 octets suffice.
///
/// # Errors
/// For any other packet, for fragments and for quoted fragments other than the first.
pub fn parse_icmp_error(packet: &[u8]) -> Result<IcmpError, ParseError> {
    let outer = Network::parse(packet, Extent::Whole)?;
    let at = outer.payload;
    let header: [u8; HEADER] = array(packet, at).ok_or(ParseError::Truncated)?;
    let [kind, code, ..] = header;
    let version = match (outer.src, outer.protocol, kind) {
        (IpAddr::V4(_), ip::ICMP, 3 | 11 | 12) => 4,
        (IpAddr::V6(_), ip::ICMPV6, 1..=4) => 6,
        _ => return Err(ParseError::NoIcmpError),
    };
    let mtu = match version {
        4 => u16_at(&header, 6).map(u32::from),
        _ => u32_at(&header, 4),
    };
    Ok(IcmpError {
        version,
        kind,
        code,
        mtu: mtu.filter(|mtu| *mtu != 0 && is_too_big(version, kind, code)),
        quoted: parse_quoted(packet.get(at + HEADER..).unwrap_or_default(), version)?,
        outer_src: outer.src,
        outer_dst: outer.dst,
        icmp_offset: at,
    })
}

fn parse_quoted(packet: &[u8], version: u8) -> Result<Quoted, ParseError> {
    let network = Network::parse(packet, Extent::Quoted)?;
    if network.src.is_ipv4() != (version == 4) {
        return Err(ParseError::Version);
    }
    if network.protocol != ip::TCP {
        return Err(ParseError::Protocol);
    }
    let (src_port, dst_port) = ip::ports(packet, network.payload).ok_or(ParseError::Truncated)?;
    let seq = u32_at(packet, network.payload + 4).ok_or(ParseError::Truncated)?;
    Ok(Quoted {
        src: network.src,
        dst: network.dst,
        src_port,
        dst_port,
        seq,
    })
}

/// Whether the ICMP checksum is right.
#[must_use]
pub fn icmp_checksum_ok(packet: &[u8], error: &IcmpError) -> bool {
    icmp_checksum(packet, error) == [0, 0]
}

/// Writes another MTU into an error that carries one ([`IcmpError::is_too_big`]), and completes
/// the ICMP checksum. Other errors are left alone.
pub fn set_icmp_mtu(packet: &mut [u8], error: &IcmpError, mtu: u32) {
    if !error.is_too_big() {
        return;
    }
    let (at, len) = error.mtu_field();
    if len == 2 {
        put(
            packet,
            at,
            &u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes(),
        );
    } else {
        put(packet, at, &mtu.to_be_bytes());
    }
    let field = error.icmp_offset + 2;
    put(packet, field, &[0, 0]);
    let checksum = icmp_checksum(packet, error);
    put(packet, field, &checksum);
}

/// ICMPv6 covers a pseudo-header (RFC 4443 §2.3), ICMP does not.
fn icmp_checksum(packet: &[u8], error: &IcmpError) -> [u8; 2] {
    let icmp = packet.get(error.icmp_offset..).unwrap_or_default();
    if error.version == 4 {
        return checksum::finish(&[icmp]);
    }
    let (pseudo, len) = ip::pseudo_header(error.outer_src, error.outer_dst, ip::ICMPV6, icmp.len());
    checksum::finish(&[pseudo.get(..len).unwrap_or_default(), icmp])
}
