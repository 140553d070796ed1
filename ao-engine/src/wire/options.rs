//! TCP options: reading, and the list in a form that can be edited.

use super::bytes::{array, put, u16_at};
use super::segment::Segment;
use crate::reason::DropReason;

/// Option kinds (IANA, TCP Option Kind Numbers).
pub mod kind {
    /// End of option list.
    pub const END: u8 = 0;
    /// No-operation.
    pub const NOP: u8 = 1;
    /// Maximum segment size.
    pub const MSS: u8 = 2;
    /// Selective acknowledgement blocks.
    pub const SACK: u8 = 5;
    /// TCP-MD5 signature (RFC 2385).
    pub const MD5: u8 = 19;
    /// TCP-AO (RFC 5925).
    pub const AO: u8 = 29;
    /// Multipath TCP.
    pub const MPTCP: u8 = 30;
    /// Fast-open cookie (RFC 7413).
    pub const FAST_OPEN: u8 = 34;
    /// Experimental, told apart by a 16-bit identifier (RFC 6994).
    pub const EXPERIMENTAL: u8 = 254;
}

/// Identifier of fast open in an experimental option.
const FAST_OPEN_EXPERIMENT: u16 = 0xf989;

/// Most octets of options in a TCP header.
pub(super) const MAX_OPTIONS: usize = 40;

/// One option of a segment, other than padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption {
    /// Option kind, see [`kind`].
    pub kind: u8,
    /// Offset of the kind octet from the start of the packet.
    pub offset: usize,
    /// Octets of the option, kind and length included: at least 2.
    pub len: usize,
}

/// An option's length is below 2 or reaches beyond the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TCP options cannot be read")]
pub struct MalformedOptions;

/// The options of a segment, NOPs skipped, up to the end-of-list option. See [`options`].
#[derive(Clone, Debug)]
pub struct Options<'p> {
    rest: &'p [u8],
    offset: usize,
}

/// Iterates over the options of a segment. After an error there is nothing more.
#[must_use]
pub fn options<'p>(packet: &'p [u8], segment: &Segment) -> Options<'p> {
    Options {
        rest: segment.option_list(packet),
        offset: segment.options_offset(),
    }
}

impl Iterator for Options<'_> {
    type Item = Result<TcpOption, MalformedOptions>;

    fn next(&mut self) -> Option<Self::Item> {
        while let [kind::NOP, rest @ ..] = self.rest {
            self.rest = rest;
            self.offset += 1;
        }
        let (&kind, after_kind) = self.rest.split_first()?;
        if kind == kind::END {
            self.rest = &[];
            return None;
        }
        let len = after_kind.first().map_or(0, |len| usize::from(*len));
        let Some(rest) = self.rest.get(len..).filter(|_| len >= 2) else {
            self.rest = &[];
            return Some(Err(MalformedOptions));
        };
        let option = TcpOption {
            kind,
            offset: self.offset,
            len,
        };
        self.rest = rest;
        self.offset += len;
        Some(Ok(option))
    }
}

/// A TCP-AO option (RFC 5925 §2.2) and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AoOption {
    /// Offset of the kind octet from the start of the packet.
    pub offset: usize,
    /// Octets of the option: 4 and the MAC.
    pub len: usize,
    /// KeyID.
    pub key_id: u8,
    /// RNextKeyID.
    pub rnext_key_id: u8,
}

impl AoOption {
    /// The MAC in the packet.
    #[must_use]
    pub fn mac<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet
            .get(self.offset + 4..self.offset + self.len)
            .unwrap_or_default()
    }

    /// Octets of the MAC.
    #[must_use]
    pub const fn mac_len(&self) -> usize {
        self.len.saturating_sub(4)
    }
}

/// What the engine needs to know about a segment's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionSummary {
    /// The TCP-AO option.
    pub ao: Option<AoOption>,
    /// Whether there is a TCP-MD5 option.
    pub md5: bool,
    /// The value of the MSS option.
    pub mss: Option<u16>,
}

/// Why a segment's options are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OptionsError {
    /// They cannot be read, or the TCP-AO option is shorter than 4 octets.
    #[error("the TCP options cannot be read")]
    Malformed,
    /// TCP-AO occurs twice.
    #[error("the TCP-AO option occurs twice")]
    DuplicateAo,
    /// TCP-AO and TCP-MD5 occur together.
    #[error("TCP-AO and TCP-MD5 occur in one segment")]
    AoWithMd5,
}

impl OptionsError {
    /// The reason such a segment is dropped for.
    #[must_use]
    pub const fn reason(self) -> DropReason {
        match self {
            Self::Malformed => DropReason::MalformedOptions,
            Self::DuplicateAo => DropReason::DuplicateAo,
            Self::AoWithMd5 => DropReason::AoWithMd5,
        }
    }
}

/// Reads all options once.
///
/// # Errors
/// For options that cannot be read and for the combinations RFC 5925 §2.2 orders to discard.
pub fn summarize_options(packet: &[u8], segment: &Segment) -> Result<OptionSummary, OptionsError> {
    let mut summary = OptionSummary::default();
    for option in options(packet, segment) {
        let option = option.map_err(|MalformedOptions| OptionsError::Malformed)?;
        match option.kind {
            kind::AO => {
                let ao = read_ao(packet, option).ok_or(OptionsError::Malformed)?;
                if summary.ao.replace(ao).is_some() {
                    return Err(OptionsError::DuplicateAo);
                }
            }
            kind::MD5 => summary.md5 = true,
            kind::MSS if option.len == 4 => summary.mss = u16_at(packet, option.offset + 2),
            _ => {}
        }
    }
    if summary.ao.is_some() && summary.md5 {
        return Err(OptionsError::AoWithMd5);
    }
    Ok(summary)
}

fn read_ao(packet: &[u8], option: TcpOption) -> Option<AoOption> {
    let [key_id, rnext_key_id] = array(packet, option.offset + 2).filter(|_| option.len >= 4)?;
    Some(AoOption {
        offset: option.offset,
        len: option.len,
        key_id,
        rnext_key_id,
    })
}

/// An option list taken out of its packet to be edited. Padding at its end is left out; padding
/// within counts as part of the option it precedes.
#[derive(Clone, Copy)]
pub(super) struct OptionList {
    octets: [u8; MAX_OPTIONS],
    len: usize,
}

impl OptionList {
    const EMPTY: Self = Self {
        octets: [0; MAX_OPTIONS],
        len: 0,
    };

    pub(super) fn read(packet: &[u8], segment: &Segment) -> Result<Self, MalformedOptions> {
        let mut used = 0;
        for option in options(packet, segment) {
            let option = option?;
            used = option.offset + option.len - segment.options_offset();
        }
        let mut list = Self::EMPTY;
        list.push(segment.option_list(packet).get(..used).unwrap_or_default());
        Ok(list)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends what fits.
    pub(super) fn push(&mut self, octets: &[u8]) {
        let room = self.octets.get_mut(self.len..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(octets) {
            *to = *from;
            self.len += 1;
        }
    }

    /// Appends NOPs until the length is a multiple of four.
    pub(super) fn align(&mut self) {
        while !self.len.is_multiple_of(4) {
            self.push(&[kind::NOP]);
        }
    }

    /// Whether `room` more octets, aligned, fit behind the list.
    pub(super) fn fits(&self, room: usize) -> bool {
        self.len.saturating_add(room) <= MAX_OPTIONS
    }

    /// Each option with the padding before it: offset and octets of the whole, then the option.
    fn entries(&self) -> impl Iterator<Item = (&[u8], TcpOption)> {
        let mut end = 0;
        let list = Options {
            rest: self.as_bytes(),
            offset: 0,
        };
        list.map_while(Result::ok).map(move |option| {
            let start = core::mem::replace(&mut end, option.offset + option.len);
            (self.octets.get(start..end).unwrap_or_default(), option)
        })
    }

    /// Keeps the options that `keep` holds for; it is given each with its offset in the list and
    /// its octets.
    pub(super) fn retain(&mut self, keep: impl Fn(TcpOption, &[u8]) -> bool) {
        let mut kept = Self::EMPTY;
        for (entry, option) in self.entries() {
            let octets = entry.get(entry.len() - option.len..).unwrap_or_default();
            if keep(option, octets) {
                kept.push(entry);
            }
        }
        *self = kept;
    }

    /// Removes all padding.
    pub(super) fn compact(&mut self) {
        let mut compact = Self::EMPTY;
        for (entry, option) in self.entries() {
            compact.push(entry.get(entry.len() - option.len..).unwrap_or_default());
        }
        *self = compact;
    }

    /// Drops the last block of the SACK option, the option itself with its last block. The first
    /// block goes last: it is the newest information, or a duplicate's report (RFC 2883 §4).
    /// False when there is none to drop.
    pub(super) fn drop_sack_block(&mut self) -> bool {
        const BLOCK: usize = 8;
        let sack = self
            .entries()
            .map(|(_, option)| option)
            .find(|one| one.kind == kind::SACK);
        let Some(sack) = sack else { return false };
        let shorter = sack.len.saturating_sub(BLOCK);
        if shorter < 2 + BLOCK {
            self.retain(|option, _| option.offset != sack.offset);
            return true;
        }
        put(
            &mut self.octets,
            sack.offset + 1,
            &[u8::try_from(shorter).unwrap_or(0)],
        );
        self.octets
            .copy_within(sack.offset + sack.len..self.len, sack.offset + shorter);
        self.len -= BLOCK;
        true
    }
}

/// Whether an option is of one of the kinds, counting experimental fast open as fast open.
pub(super) fn is_kind(option: TcpOption, octets: &[u8], kinds: &[u8]) -> bool {
    let experiment = u16_at(octets, 2).filter(|_| option.kind == kind::EXPERIMENTAL);
    kinds.contains(&option.kind)
        || (experiment == Some(FAST_OPEN_EXPERIMENT) && kinds.contains(&kind::FAST_OPEN))
}
