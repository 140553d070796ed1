//! Edits of a segment's options.
//!
//! Each keeps data offset, IP length and IPv4 header checksum right, and leaves the TCP checksum
//! to [`super::fill_checksum`].

use super::buf::{NoHeadroom, PacketBuf};
use super::bytes::{put, u16_at};
use super::ip;
use super::options::{AoOption, OptionList, is_kind, kind, options};
use super::segment::Segment;
use crate::crypto::Mac;

/// A TCP-AO option cannot be added: the 40 octets of options, the 65,535 octets the IP header can
/// tell or the headroom of the buffer do not suffice, or the options there cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for a TCP-AO option")]
pub struct NoOptionSpace;

/// Appends a TCP-AO option with a zero MAC of `mac_len` octets, as the last one and aligned.
///
/// Padding at the end of the list makes room for it, and so does padding between options when it
/// would not fit otherwise.
///
/// # Errors
/// [`NoOptionSpace`]; the packet is unchanged then. [`trim_sack`] may help.
pub fn insert_ao(
    buf: &mut PacketBuf<'_>,
    segment: &mut Segment,
    key_id: u8,
    rnext_key_id: u8,
    mac_len: usize,
) -> Result<AoOption, NoOptionSpace> {
    let len = mac_len.saturating_add(4);
    let mut list = OptionList::read(buf.bytes(), segment).map_err(|_| NoOptionSpace)?;
    if !list.fits(len) {
        list.compact();
    }
    // With a MAC of a whole number of words, aligning the start aligns the end.
    list.align();
    let at = list.len();
    if !list.fits(len) {
        return Err(NoOptionSpace);
    }
    let option_len = u8::try_from(len).map_err(|_| NoOptionSpace)?;
    list.push(&[kind::AO, option_len, key_id, rnext_key_id]);
    for _ in 0..mac_len {
        list.push(&[0]);
    }
    replace_options(buf, segment, list).map_err(|NoHeadroom| NoOptionSpace)?;
    Ok(AoOption {
        offset: segment.options_offset() + at,
        len,
        key_id,
        rnext_key_id,
    })
}

/// Writes the MAC into the option. A MAC that does not have the option's length is not written.
pub fn set_mac(packet: &mut [u8], ao: &AoOption, mac: &Mac) {
    if mac.as_bytes().len() == ao.mac_len() {
        put(packet, ao.offset + 4, mac.as_bytes());
    }
}

/// Removes the TCP-AO option and the padding that aligned it. The header shrinks by whole words.
pub fn remove_ao(buf: &mut PacketBuf<'_>, segment: &mut Segment, ao: &AoOption) {
    let Ok(mut list) = OptionList::read(buf.bytes(), segment) else {
        return;
    };
    let first = segment.options_offset();
    list.retain(|option, _| first + option.offset != ao.offset);
    shrink_options(buf, segment, list);
}

/// Lowers the value of the MSS option to `max` if it is above. True when it was.
pub fn clamp_mss(packet: &mut [u8], segment: &Segment, max: u16) -> bool {
    let mss = options(packet, segment)
        .map_while(Result::ok)
        .find(|option| option.kind == kind::MSS && option.len == 4);
    let Some(mss) = mss else { return false };
    let above = u16_at(packet, mss.offset + 2).is_some_and(|value| value > max);
    if above {
        put(packet, mss.offset + 2, &max.to_be_bytes());
    }
    above
}

/// Removes the options of the given kinds, with the padding before each. [`kind::FAST_OPEN`]
/// includes its experimental form. True when there were any.
pub fn strip_options(buf: &mut PacketBuf<'_>, segment: &mut Segment, kinds: &[u8]) -> bool {
    let Ok(mut list) = OptionList::read(buf.bytes(), segment) else {
        return false;
    };
    let before = list.len();
    list.retain(|option, octets| !is_kind(option, octets, kinds));
    let stripped = list.len() != before;
    if stripped {
        shrink_options(buf, segment, list);
    }
    stripped
}

/// Drops SACK blocks from the end until `room` more octets of options (a multiple of four) fit,
/// as [`insert_ao`] would place them. The first block, which may report a duplicate, goes last.
///
/// Returns whether they fit. When they do not even without SACK, the packet is unchanged.
pub fn trim_sack(buf: &mut PacketBuf<'_>, segment: &mut Segment, room: usize) -> bool {
    let Ok(mut list) = OptionList::read(buf.bytes(), segment) else {
        return false;
    };
    let mut trimmed = false;
    while !fits_somehow(&list, room) {
        if !list.drop_sack_block() {
            return false;
        }
        trimmed = true;
    }
    if trimmed {
        shrink_options(buf, segment, list);
    }
    true
}

fn fits_somehow(list: &OptionList, room: usize) -> bool {
    let mut compact = *list;
    compact.compact();
    compact.fits(room)
}

/// Replaces the options by a list that is not longer, so that no headroom is needed.
fn shrink_options(buf: &mut PacketBuf<'_>, segment: &mut Segment, list: OptionList) {
    // An error would need a list that grew: the packet stays as it was then.
    let _unchanged = replace_options(buf, segment, list);
}

fn replace_options(
    buf: &mut PacketBuf<'_>,
    segment: &mut Segment,
    mut list: OptionList,
) -> Result<(), NoHeadroom> {
    list.align();
    let at = segment.options_offset();
    let (old, new) = (segment.options_len(), list.len());
    if new > old {
        if buf.len() + (new - old) > ip::longest(segment.src) {
            return Err(NoHeadroom);
        }
        buf.open_gap(at, new - old)?;
    } else {
        buf.close_gap(at, old - new);
    }
    let packet = buf.bytes_mut();
    put(packet, at, list.as_bytes());
    segment.set_options_len(packet, new);
    ip::set_length(packet);
    Ok(())
}
