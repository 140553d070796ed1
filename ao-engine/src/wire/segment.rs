//! TCP segments in IP packets.

use core::net::IpAddr;

use super::bytes::{array, u8_at, u32_at};
use super::ip::{self, Extent, Network, ParseError};

/// The control bits of a TCP header, the low octet of them (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    #[must_use]
    pub const fn fin(self) -> bool {
        self.0 & 0x01 != 0
    }

    /// Synchronize sequence numbers.
    #[must_use]
    pub const fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }

    /// Reset the connection.
    #[must_use]
    pub const fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }

    /// Push.
    #[must_use]
    pub const fn psh(self) -> bool {
        self.0 & 0x08 != 0
    }

    /// The acknowledgement number is valid.
    #[must_use]
    pub const fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }
}

/// A TCP segment found in an IP packet: its fields and where they are. Borrows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address of the sender.
    pub src: IpAddr,
    /// Address of the receiver.
    pub dst: IpAddr,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// Port of the sender.
    pub src_port: u16,
    /// Port of the receiver.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; without meaning when the ACK flag is off.
    pub ack: u32,
    /// Control bits.
    pub flags: Flags,
    tcp_offset: usize,
    header_len: usize,
    total_len: usize,
}

impl Segment {
    /// Finds the TCP segment in a packet, which must be whole: `packet` ends where the IP header
    /// says.
    ///
    /// # Errors
    /// For anything but one whole, unfragmented TCP segment between the two addresses of the IP
    /// header; see [`ParseError`].
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        let network = Network::parse(packet, Extent::Whole)?;
        if network.protocol != ip::TCP {
            return Err(ParseError::Protocol);
        }
        let tcp_offset = network.payload;
        let fixed: [u8; 20] = array(packet, tcp_offset).ok_or(ParseError::Truncated)?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < 20 || tcp_offset + header_len > packet.len() {
            return Err(ParseError::Length);
        }
        let (src_port, dst_port) = ip::ports(&fixed, 0).ok_or(ParseError::Truncated)?;
        Ok(Self {
            src: network.src,
            dst: network.dst,
            ttl: network.ttl,
            src_port,
            dst_port,
            seq: u32_at(&fixed, 4).ok_or(ParseError::Truncated)?,
            ack: u32_at(&fixed, 8).ok_or(ParseError::Truncated)?,
            flags: Flags(fixed[13]),
            tcp_offset,
            header_len,
            total_len: packet.len(),
        })
    }

    /// Offset of the TCP header from the start of the packet.
    #[must_use]
    pub const fn tcp_offset(&self) -> usize {
        self.tcp_offset
    }

    /// Octets of the TCP header, options included: 20 to 60.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Offset of the first option.
    #[must_use]
    pub const fn options_offset(&self) -> usize {
        self.tcp_offset + 20
    }

    /// Octets of options, padding included: 0 to 40.
    #[must_use]
    pub const fn options_len(&self) -> usize {
        self.header_len - 20
    }

    /// Offset of the payload from the start of the packet.
    #[must_use]
    pub const fn payload_offset(&self) -> usize {
        self.tcp_offset + self.header_len
    }

    /// Octets of payload.
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.total_len.saturating_sub(self.payload_offset())
    }

    /// Octets of the whole packet.
    #[must_use]
    pub const fn total_len(&self) -> usize {
        self.total_len
    }

    /// Sequence numbers the segment takes up: payload, SYN and FIN.
    #[must_use]
    pub fn seq_len(&self) -> u32 {
        // An IP packet is far shorter than 2^32.
        let payload = u32::try_from(self.payload_len()).unwrap_or(u32::MAX);
        payload
            .wrapping_add(u32::from(self.flags.syn()))
            .wrapping_add(u32::from(self.flags.fin()))
    }

    /// The payload.
    #[must_use]
    pub fn payload<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet
            .get(self.payload_offset()..self.total_len)
            .unwrap_or_default()
    }

    /// The option list, padding included.
    pub(super) fn option_list<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet
            .get(self.options_offset()..self.payload_offset())
            .unwrap_or_default()
    }

    /// Takes note of another length of the option list, and writes it into the data offset.
    pub(super) fn set_options_len(&mut self, packet: &mut [u8], len: usize) {
        self.header_len = 20 + len;
        self.total_len = packet.len();
        let at = self.tcp_offset + 12;
        let words = u8::try_from(self.header_len / 4).unwrap_or(0);
        if let Some(octet) = u8_at(packet, at) {
            super::bytes::put(packet, at, &[words << 4 | octet & 0x0f]);
        }
    }
}
