//! The layout of NFQUEUE's netlink messages (linux/netfilter/nfnetlink_queue.h).
#![allow(
    clippy::cast_possible_truncation,
    reason = "constants of the kernel's interface"
)]

use std::ops::Range;

use super::shifted;

/// Length of `nlmsghdr`: length, type, flags, sequence number, port.
const NLMSG_HEADER: usize = 16;
/// Length of `nfgenmsg`: family, version, resource ID.
const NFGEN_HEADER: usize = 4;
/// Length of `nlattr`: length, type.
pub(super) const ATTRIBUTE_HEADER: usize = 4;
/// The bits of an attribute's type that are flags (nested, byte order).
const ATTRIBUTE_FLAGS: u16 = 0xc000;

pub(super) const VERDICT: u16 = queue_message(libc::NFQNL_MSG_VERDICT);
pub(super) const VERDICT_BATCH: u16 = queue_message(libc::NFQNL_MSG_VERDICT_BATCH);
const PACKET: u16 = queue_message(libc::NFQNL_MSG_PACKET);
const CONFIG: u16 = queue_message(libc::NFQNL_MSG_CONFIG);
const ERROR: u16 = libc::NLMSG_ERROR as u16;

const fn queue_message(kind: i32) -> u16 {
    ((libc::NFNL_SUBSYS_QUEUE << 8) | kind) as u16
}

/// A packet in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Its number: 1 is the first packet of a queue, each next one is one higher.
    pub id: u32,
    /// The netfilter hook it waits in: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u8,
    /// Index of the device it came in by; 0 if none.
    pub input: u32,
    /// Index of the device it leaves by; 0 if none.
    pub output: u32,
    /// Index of the bridge port it came in by; 0 if none.
    pub physical_input: u32,
    /// Index of the bridge port it leaves by; 0 if none.
    pub physical_output: u32,
    /// Its packet mark.
    pub mark: u32,
    /// Which slot of the arena holds it.
    pub slot: usize,
    /// Where in the slot it lies, from the first octet of the IP header on.
    pub payload: Range<usize>,
}

impl Queued {
    pub(super) fn shifted(mut self, offset: usize) -> Self {
        self.payload = shifted(&self.payload, offset);
        self
    }
}

/// Reads a packet message; `None` if it is anything else, or holds only a part of the packet.
pub(super) fn parse(message: &[u8], slot: usize) -> Option<Queued> {
    let (kind, length) = header(message)?;
    if kind != PACKET {
        return None;
    }
    let mut packet = Queued {
        id: 0,
        hook: 0,
        input: 0,
        output: 0,
        physical_input: 0,
        physical_output: 0,
        mark: 0,
        slot,
        payload: 0..0,
    };
    let mut numbered = false;
    let mut at = NLMSG_HEADER + NFGEN_HEADER;
    while at < length {
        let size = usize::from(u16::from_ne_bytes(octets(message, at)?));
        let kind = u16::from_ne_bytes(octets(message, at + 2)?) & !ATTRIBUTE_FLAGS;
        if size < ATTRIBUTE_HEADER || at + size > length {
            return None;
        }
        let value = at + ATTRIBUTE_HEADER;
        match i32::from(kind) {
            libc::NFQA_PACKET_HDR if size >= ATTRIBUTE_HEADER + 7 => {
                packet.id = u32::from_be_bytes(octets(message, value)?);
                packet.hook = u8::from_be_bytes(octets(message, value + 6)?);
                numbered = true;
            }
            libc::NFQA_MARK => packet.mark = number(message, value, size)?,
            libc::NFQA_IFINDEX_INDEV => packet.input = number(message, value, size)?,
            libc::NFQA_IFINDEX_OUTDEV => packet.output = number(message, value, size)?,
            libc::NFQA_IFINDEX_PHYSINDEV => packet.physical_input = number(message, value, size)?,
            libc::NFQA_IFINDEX_PHYSOUTDEV => packet.physical_output = number(message, value, size)?,
            libc::NFQA_PAYLOAD => packet.payload = value..at + size,
            // Present only when the packet was longer than what was copied.
            libc::NFQA_CAP_LEN => return None,
            _ => {}
        }
        at += aligned(size);
    }
    (numbered && !packet.payload.is_empty()).then_some(packet)
}

/// The error number of an error message; 0 is an acknowledgement.
pub(super) fn error_code(message: &[u8]) -> Option<i32> {
    let (kind, _) = header(message)?;
    let code = i32::from_ne_bytes(octets(message, NLMSG_HEADER)?);
    (kind == ERROR).then(|| code.wrapping_neg())
}

/// Type and length of a message that lies wholly in the buffer.
fn header(message: &[u8]) -> Option<(u16, usize)> {
    let length = usize::try_from(u32::from_ne_bytes(octets(message, 0)?)).ok()?;
    let kind = u16::from_ne_bytes(octets(message, 4)?);
    (length >= NLMSG_HEADER && length <= message.len()).then_some((kind, length))
}

/// The request that creates a queue, answered by an acknowledgement. It takes no packet yet.
pub(super) fn binding(queue: u16, length: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    begin(&mut message, CONFIG, libc::NLM_F_ACK as u16, queue);
    // nfqnl_msg_config_cmd: command, padding, protocol family.
    put(
        &mut message,
        libc::NFQA_CFG_CMD,
        &[libc::NFQNL_CFG_CMD_BIND as u8, 0, 0, 0],
    );
    put(
        &mut message,
        libc::NFQA_CFG_QUEUE_MAXLEN,
        &length.to_be_bytes(),
    );
    finish(&mut message, 0, 0);
    message
}

/// The request from which on a queue takes packets, to copy so much of them.
pub(super) fn opening(queue: u16, copy_range: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    begin(&mut message, CONFIG, 0, queue);
    // nfqnl_msg_config_params: range, mode; packed.
    let [a, b, c, d] = copy_range.to_be_bytes();
    put(
        &mut message,
        libc::NFQA_CFG_PARAMS,
        &[a, b, c, d, libc::NFQNL_COPY_PACKET as u8],
    );
    finish(&mut message, 0, 0);
    message
}

/// Appends the headers of a message, its length still open.
pub(super) fn begin(out: &mut Vec<u8>, kind: u16, flags: u16, queue: u16) {
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8]);
    out.extend_from_slice(&queue.to_be_bytes());
}

/// Appends an attribute, padded.
pub(super) fn put(out: &mut Vec<u8>, kind: i32, value: &[u8]) {
    open_attribute(out, kind, value.len());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Appends what pads a value of `length` octets. Where it stands in `out` says nothing, as packets
/// that belong in between are sent from elsewhere.
pub(super) fn pad(out: &mut Vec<u8>, length: usize) {
    out.resize(out.len() + aligned(length) - length, 0);
}

/// Appends the header of an attribute whose value of `length` octets follows elsewhere.
pub(super) fn open_attribute(out: &mut Vec<u8>, kind: i32, length: usize) {
    let size = u16::try_from(ATTRIBUTE_HEADER + length).unwrap_or(u16::MAX);
    out.extend_from_slice(&size.to_ne_bytes());
    out.extend_from_slice(&(kind as u16).to_ne_bytes());
}

/// Fills in the length of the message that begins at `start` and goes on for `extra` octets
/// behind what `out` holds.
pub(super) fn finish(out: &mut [u8], start: usize, extra: usize) {
    let length = u32::try_from(out.len() - start + extra).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

/// Netlink aligns messages and attributes to four octets.
pub(super) fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

fn number(message: &[u8], at: usize, size: usize) -> Option<u32> {
    (size == ATTRIBUTE_HEADER + 4)
        .then(|| octets(message, at))
        .flatten()
        .map(u32::from_be_bytes)
}

fn octets<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet message as the kernel lays it out.
    fn packet_message(id: u32, payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        begin(&mut message, PACKET, 0, 7);
        let [a, b, c, d] = id.to_be_bytes();
        put(
            &mut message,
            libc::NFQA_PACKET_HDR,
            &[a, b, c, d, 0x08, 0x00, 1],
        );
        put(&mut message, libc::NFQA_IFINDEX_INDEV, &4_u32.to_be_bytes());
        put(
            &mut message,
            libc::NFQA_IFINDEX_PHYSINDEV,
            &5_u32.to_be_bytes(),
        );
        put(&mut message, libc::NFQA_MARK, &0x10_u32.to_be_bytes());
        put(&mut message, libc::NFQA_PAYLOAD, payload);
        finish(&mut message, 0, 0);
        message
    }

    #[test]
    fn the_requests_have_the_kernels_layout() {
        if cfg!(target_endian = "big") {
            return;
        }
        let expected: &[u8] = &[
            36, 0, 0, 0, 0x02, 0x03, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
            0, 0, 0x01, 0x02, // nfgenmsg, queue 258
            8, 0, 1, 0, 1, 0, 0, 0, // NFQA_CFG_CMD
            8, 0, 3, 0, 0, 0, 0x04, 0, // NFQA_CFG_QUEUE_MAXLEN
        ];
        assert_eq!(binding(258, 1024), expected);
        let expected: &[u8] = &[
            32, 0, 0, 0, 0x02, 0x03, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
            0, 0, 0x01, 0x02, // nfgenmsg, queue 258
            9, 0, 2, 0, 0, 0, 0xff, 0xff, 2, 0, 0, 0, // NFQA_CFG_PARAMS
        ];
        assert_eq!(opening(258, 0xffff), expected);
    }

    #[test]
    fn a_packet_message_is_read() {
        let message = packet_message(9, &[0x45, 1, 2, 3, 4]);
        let packet = parse(&message, 3).unwrap();
        assert_eq!(
            (packet.id, packet.hook, packet.slot, packet.mark),
            (9, 1, 3, 0x10)
        );
        assert_eq!(
            (packet.input, packet.output, packet.physical_input),
            (4, 0, 5)
        );
        assert_eq!(&message[packet.payload], &[0x45, 1, 2, 3, 4]);
    }

    #[test]
    fn a_partly_copied_packet_is_not_read() {
        let mut message = packet_message(9, &[0x45, 1, 2, 3]);
        put(&mut message, libc::NFQA_CAP_LEN, &70_000_u32.to_be_bytes());
        finish(&mut message, 0, 0);
        assert_eq!(parse(&message, 0), None);
    }

    #[test]
    fn error_messages_are_told_apart() {
        let mut message = Vec::new();
        begin(&mut message, ERROR, 0, 0);
        message.truncate(NLMSG_HEADER);
        message.extend_from_slice(&(-libc::EPERM).to_ne_bytes());
        finish(&mut message, 0, 0);
        assert_eq!(error_code(&message), Some(libc::EPERM));
        assert_eq!(parse(&message, 0), None);
        assert_eq!(error_code(&packet_message(1, &[0x45])), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(message in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&message, 0);
            let _ = error_code(&message);
        }

        #[test]
        fn a_damaged_message_stays_in_bounds(at in 0_usize..72, octet: u8, cut in 0_usize..80) {
            let mut message = packet_message(9, &[0x45; 20]);
            if let Some(place) = message.get_mut(at) {
                *place = octet;
            }
            message.truncate(cut.max(1));
            if let Some(packet) = parse(&message, 0) {
                prop_assert!(message.get(packet.payload).is_some());
            }
        }
    }
}
