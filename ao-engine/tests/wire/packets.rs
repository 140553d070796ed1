//! Building packets, independently of the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A TCP segment to be put into a packet.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    /// IPv4 options or IPv6 extension headers, whole; the latter with their next-header fields
    /// already chained from `first_header` to TCP.
    pub(crate) extra: Vec<u8>,
    /// First next-header value; 6 without extension headers.
    pub(crate) first_header: u8,
    pub(crate) flags: u8,
    /// TCP options, a multiple of four octets.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const SEQ: u32 = 0x0102_0304;
pub(crate) const ACK: u32 = 0xfffe_fdfc;

pub(crate) fn v4() -> Spec {
    Spec {
        v6: false,
        extra: Vec::new(),
        first_header: 6,
        flags: 0x10,
        options: Vec::new(),
        payload: b"payload".to_vec(),
    }
}

pub(crate) fn v6() -> Spec {
    Spec { v6: true, ..v4() }
}

impl Spec {
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        if self.v6 {
            let at = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into();
            [at(1), at(2)]
        } else {
            [
                Ipv4Addr::new(192, 0, 2, 1).into(),
                Ipv4Addr::new(198, 51, 100, 2).into(),
            ]
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(50000u16.to_be_bytes());
        tcp.extend(179u16.to_be_bytes());
        tcp.extend(SEQ.to_be_bytes());
        tcp.extend(ACK.to_be_bytes());
        let words = 5 + u8::try_from(self.options.len() / 4).unwrap();
        tcp.extend([words << 4, self.flags, 0x20, 0, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let checksum = self.checksum(6, &tcp);
        tcp[16..18].copy_from_slice(&checksum);
        self.ip(6, &tcp)
    }

    /// The IP packet around any transport header.
    pub(crate) fn ip(&self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let len = u16::try_from(self.extra.len() + transport.len()).unwrap();
        let mut packet = Vec::new();
        if self.v6 {
            let first = if self.extra.is_empty() {
                protocol
            } else {
                self.first_header
            };
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(len.to_be_bytes());
            packet.extend([first, 64]);
        } else {
            let words = 5 + u8::try_from(self.extra.len() / 4).unwrap();
            packet.extend([0x40 | words, 0xc0]);
            packet.extend((20 + len).to_be_bytes());
            packet.extend([0xbe, 0xef, 0x40, 0, 64, protocol, 0, 0]);
        }
        for address in self.addresses() {
            match address {
                IpAddr::V4(v4) => packet.extend(v4.octets()),
                IpAddr::V6(v6) => packet.extend(v6.octets()),
            }
        }
        packet.extend(&self.extra);
        if !self.v6 {
            let checksum = internet_checksum(&packet);
            packet[10..12].copy_from_slice(&checksum);
        }
        packet.extend(transport);
        packet
    }

    /// The checksum of a transport header with pseudo-header.
    pub(crate) fn checksum(&self, protocol: u8, transport: &[u8]) -> [u8; 2] {
        let mut covered = Vec::new();
        for address in self.addresses() {
            match address {
                IpAddr::V4(v4) => covered.extend(v4.octets()),
                IpAddr::V6(v6) => covered.extend(v6.octets()),
            }
        }
        covered.extend(u32::try_from(transport.len()).unwrap().to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
        covered.extend(transport);
        internet_checksum(&covered)
    }
}

/// The Internet checksum as the RFC words it: 16 bits at a time.
pub(crate) fn internet_checksum(octets: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in octets.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
