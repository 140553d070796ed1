//! What a MAC covers besides the payload (RFC 5925 §5.1).

use super::bytes::put;
use super::ip;
use super::options::AoOption;
use super::segment::Segment;

const SNE: usize = 4;
const PSEUDO: usize = 40;
const TCP: usize = 60;

/// SNE, pseudo-header and TCP header, as they go into a MAC.
#[derive(Clone, Copy, Debug)]
pub struct MacHeader {
    octets: [u8; SNE + PSEUDO + TCP],
    len: usize,
}

impl Default for MacHeader {
    fn default() -> Self {
        Self {
            octets: [0; SNE + PSEUDO + TCP],
            len: 0,
        }
    }
}

impl MacHeader {
    /// The octets.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, octets: &[u8]) -> usize {
        let at = self.len;
        put(&mut self.octets, at, octets);
        self.len = (at + octets.len()).min(self.octets.len());
        at
    }
}

/// Writes what the MAC of a segment covers before the payload into `out`.
///
/// The checksum and the MAC are zero. Without `include_options`, options other than TCP-AO are
/// left out, not zeroed, while data offset and length keep their values (RFC 5925 §5.1). The
/// next header in the pseudo-header is TCP, whatever extension headers there are.
pub fn mac_header(
    packet: &[u8],
    segment: &Segment,
    ao: &AoOption,
    sne: u32,
    include_options: bool,
    out: &mut MacHeader,
) {
    out.len = 0;
    out.push(&sne.to_be_bytes());
    let tcp_len = segment.total_len().saturating_sub(segment.tcp_offset());
    let (pseudo, len) = ip::pseudo_header(segment.src, segment.dst, ip::TCP, tcp_len);
    out.push(pseudo.get(..len).unwrap_or_default());

    let (first_option, end) = (segment.options_offset(), segment.payload_offset());
    let fixed = out.push(
        packet
            .get(segment.tcp_offset()..first_option)
            .unwrap_or_default(),
    );
    put(&mut out.octets, fixed + 16, &[0, 0]);

    let ao_at = if include_options {
        let options = out.push(packet.get(first_option..end).unwrap_or_default());
        options + ao.offset.saturating_sub(first_option)
    } else {
        out.push(
            packet
                .get(ao.offset..ao.offset + ao.len)
                .unwrap_or_default(),
        )
    };
    let mac = out.octets.get_mut(ao_at + 4..ao_at + ao.len.max(4));
    mac.unwrap_or_default().fill(0);
}
