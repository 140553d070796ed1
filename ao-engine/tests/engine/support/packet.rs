//! Packets of literal fields, written and read without the engine's own views.

use std::net::{IpAddr, SocketAddr};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;

/// A TCP segment with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) ttl: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Tcp {
    pub(crate) fn new(src: SocketAddr, dst: SocketAddr, flags: u8, seq: u32, ack: u32) -> Self {
        let (window, ttl) = (0xffff, 64);
        Self {
            src,
            dst,
            seq,
            ack,
            flags,
            window,
            ttl,
            options: vec![],
            payload: vec![],
        }
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The packet from its IP header on, all checksums right. Options are padded with NOPs.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        while !options.len().is_multiple_of(4) {
            options.push(option::NOP);
        }
        assert!(options.len() <= 40, "{} octets of options", options.len());
        let mut tcp = Vec::with_capacity(20 + options.len() + self.payload.len());
        tcp.extend(self.src.port().to_be_bytes());
        tcp.extend(self.dst.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        tcp.extend([words << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(options);
        tcp.extend(&self.payload);
        let mut packet = ip_header(self.src.ip(), self.dst.ip(), 6, self.ttl, tcp.len());
        let start = packet.len();
        packet.extend(tcp);
        put_checksum(
            &mut packet,
            start,
            start + 16,
            self.src.ip(),
            self.dst.ip(),
            6,
        );
        packet
    }

    /// Reads a packet without extension headers back. Asserts that its lengths are consistent.
    pub(crate) fn parse(packet: &[u8]) -> Self {
        let at = header_len(packet);
        let (src, dst) = addresses(packet);
        let claimed = match packet[0] >> 4 {
            4 => usize::from(be16(packet, 2)),
            _ => 40 + usize::from(be16(packet, 4)),
        };
        assert_eq!(claimed, packet.len(), "length in the IP header");
        let tcp = &packet[at..];
        let end = usize::from(tcp[12] >> 4) * 4;
        Self {
            src: SocketAddr::new(src, be16(tcp, 0)),
            dst: SocketAddr::new(dst, be16(tcp, 2)),
            seq: be32(tcp, 4),
            ack: be32(tcp, 8),
            flags: tcp[13],
            window: be16(tcp, 14),
            ttl: if packet[0] >> 4 == 4 {
                packet[8]
            } else {
                packet[7]
            },
            options: tcp[20..end].to_vec(),
            payload: tcp[end..].to_vec(),
        }
    }

    /// The value of the first option of a kind.
    pub(crate) fn option(&self, kind: u8) -> Option<&[u8]> {
        options(&self.options)
            .find(|option| option[0] == kind)
            .map(|option| &option[2..])
    }

    pub(crate) fn mss(&self) -> Option<u16> {
        self.option(option::MSS).map(|value| be16(value, 0))
    }

    /// KeyID and RNextKeyID.
    pub(crate) fn ao(&self) -> Option<(u8, u8)> {
        self.option(option::AO).map(|value| (value[0], value[1]))
    }

    /// The same segment without TCP-AO and without padding.
    pub(crate) fn without_ao(&self) -> Self {
        let kept = options(&self.options).filter(|option| option[0] != option::AO);
        Self {
            options: kept.flatten().copied().collect(),
            ..self.clone()
        }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers the segment takes up.
    pub(crate) fn seq_len(&self) -> u32 {
        let phantom = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        u32::try_from(self.payload.len()).unwrap() + phantom
    }
}

/// Option kinds.
pub(crate) mod option {
    pub(crate) const NOP: u8 = 1;
    pub(crate) const MSS: u8 = 2;
    pub(crate) const SACK: u8 = 5;
    pub(crate) const MD5: u8 = 19;
    pub(crate) const AO: u8 = 29;
    pub(crate) const MPTCP: u8 = 30;
    pub(crate) const FAST_OPEN: u8 = 34;
}

/// The options of a list, whole, without padding.
pub(crate) fn options(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while let [option::NOP, rest @ ..] = list {
            list = rest;
        }
        match list {
            [] | [0, ..] => None,
            [_, len, ..] => {
                let (option, rest) = list.split_at(usize::from(*len));
                list = rest;
                Some(option)
            }
            [_] => panic!("an option without a length"),
        }
    })
}

/// An ICMP error, v4 or v6 by the family of `src`.
#[derive(Clone, Debug)]
pub(crate) struct Icmp<'a> {
    pub(crate) src: IpAddr,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// The 32 bits after the checksum: for IPv4 the MTU in the lower half.
    pub(crate) word: u32,
    /// The packet it is about; as much of it as a router quotes is taken.
    pub(crate) about: &'a [u8],
}

impl Icmp<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (dst, _) = addresses(self.about);
        let (protocol, quoted) = if self.src.is_ipv4() {
            (1, header_len(self.about) + 8)
        } else {
            (58, self.about.len().min(1232))
        };
        let mut icmp = vec![self.kind, self.code, 0, 0];
        icmp.extend(self.word.to_be_bytes());
        icmp.extend(&self.about[..quoted]);
        let mut packet = ip_header(self.src, dst, protocol, 64, icmp.len());
        let start = packet.len();
        packet.extend(icmp);
        put_checksum(&mut packet, start, start + 2, self.src, dst, protocol);
        packet
    }
}

fn ip_header(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0];
            header.extend(u16::try_from(20 + len).unwrap().to_be_bytes());
            header.extend([0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0]);
            header.extend(src.octets());
            header.extend(dst.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(u16::try_from(len).unwrap().to_be_bytes());
            header.extend([protocol, ttl]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => panic!("two families"),
    }
}

fn put_checksum(
    packet: &mut [u8],
    start: usize,
    field: usize,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
) {
    packet[field..field + 2].fill(0);
    let sum = upper_checksum(&packet[start..], src, dst, protocol).to_be_bytes();
    packet[field..field + 2].copy_from_slice(&sum);
}

fn upper_checksum(upper: &[u8], src: IpAddr, dst: IpAddr, protocol: u8) -> u16 {
    let mut covered = match protocol {
        1 => vec![],
        _ => pseudo_header(src, dst, protocol, upper.len()),
    };
    covered.extend(upper);
    checksum(&covered)
}

/// The pseudo-header of TCP and ICMPv6.
pub(super) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = u16::try_from(len).unwrap().to_be_bytes();
            [&src.octets()[..], &dst.octets(), &[0, protocol], &len].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = u32::try_from(len).unwrap().to_be_bytes();
            [&src.octets()[..], &dst.octets(), &len, &[0, 0, 0, protocol]].concat()
        }
        _ => panic!("two families"),
    }
}

/// RFC 1071, as it stands there.
fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

pub(crate) fn tcp_checksum_ok(packet: &[u8]) -> bool {
    let (src, dst) = addresses(packet);
    upper_checksum(&packet[header_len(packet)..], src, dst, 6) == 0
}

pub(crate) fn icmp_sum_ok(packet: &[u8]) -> bool {
    let (src, dst) = addresses(packet);
    let protocol = if src.is_ipv4() { 1 } else { 58 };
    upper_checksum(&packet[header_len(packet)..], src, dst, protocol) == 0
}

pub(crate) fn ip_checksum_ok(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 || checksum(&packet[..header_len(packet)]) == 0
}

pub(super) fn header_len(packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => usize::from(packet[0] & 0xf) * 4,
        _ => 40,
    }
}

pub(super) fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    fn v4(octets: &[u8]) -> IpAddr {
        IpAddr::from(<[u8; 4]>::try_from(octets).unwrap())
    }
    fn v6(octets: &[u8]) -> IpAddr {
        IpAddr::from(<[u8; 16]>::try_from(octets).unwrap())
    }
    match packet[0] >> 4 {
        4 => (v4(&packet[12..16]), v4(&packet[16..20])),
        _ => (v6(&packet[8..24]), v6(&packet[24..40])),
    }
}

fn be16(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

fn be32(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(octets[at..at + 4].try_into().unwrap())
}
