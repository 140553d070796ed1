//! Netlink sockets: requests, dumps and multicast groups, for the modules that speak netlink.

use std::io;

use netlink_packet_core::{ErrorBuffer, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr};
use zeroize::Zeroizing;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Flag of a message of a dump that is not consistent with the messages before it.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Times a dump is asked for.
const ATTEMPTS: usize = 5;
/// Octets of a netlink message header.
const HEADER: usize = 16;
/// Larger than any datagram of a dump, which the kernel limits to 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// A netlink socket that talks to the kernel of the calling thread's network namespace.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Receives one datagram.
pub(crate) fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut datagram = Vec::with_capacity(DATAGRAM);
    socket.recv(&mut datagram, 0)?;
    Ok(datagram)
}

/// The messages in one datagram: type and whole message with its header.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(buffer.length()).ok()?;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        (length >= HEADER).then_some((buffer.message_type(), message))
    })
}

/// What follows the header of a message.
pub(crate) fn payload(message: &[u8]) -> &[u8] {
    message.get(HEADER..).unwrap_or_default()
}

/// Sends a request and hands every message of the answer to `each`, up to the end of the dump or
/// the acknowledgement. A dump during which something changed is asked for again, and its messages
/// handed over again.
pub(crate) fn exchange(
    socket: &Socket,
    request: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        if exchange_once(socket, request, &mut each)? {
            return Ok(());
        }
    }
    Err(io::Error::new(
        io::ErrorKind::Interrupted,
        "the list changes faster than it can be read",
    ))
}

/// Whether the answer is consistent.
fn exchange_once(
    socket: &Socket,
    request: &[u8],
    each: &mut impl FnMut(&[u8]),
) -> io::Result<bool> {
    socket.send(request, 0)?;
    let mut consistent = true;
    loop {
        // What the kernel says of sockets may hold their TCP-MD5 keys.
        let datagram = Zeroizing::new(receive(socket)?);
        for (kind, message) in messages(&datagram) {
            consistent &= flags(message) & NLM_F_DUMP_INTR == 0;
            match kind {
                NLMSG_DONE => return done(payload(message)).map(|()| consistent),
                NLMSG_ERROR => return outcome(payload(message)).map(|()| consistent),
                _ => each(message),
            }
        }
    }
}

/// The end of a dump, which carries an error if it was cut short.
fn done(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

fn flags(message: &[u8]) -> u16 {
    message
        .get(6..8)
        .and_then(|field| field.first_chunk())
        .map_or(0, |f| u16::from_ne_bytes(*f))
}

fn outcome(payload: &[u8]) -> io::Result<()> {
    let error = ErrorBuffer::new_checked(payload)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    match error.code() {
        None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + payload.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn datagram_is_split_at_aligned_lengths() {
        let datagram = [message(20, b"abcde"), message(21, b"")].concat();
        let found: Vec<_> = messages(&datagram)
            .map(|(kind, m)| (kind, payload(m)))
            .collect();
        assert_eq!(found, [(20, &b"abcde"[..]), (21, &b""[..])]);
    }

    #[test]
    fn truncated_and_undersized_messages_end_the_walk() {
        let whole = message(20, b"abcd");
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0);
        }
        assert_eq!(messages(&[0; 32]).count(), 0);
    }

    #[test]
    fn error_message_becomes_an_io_error() {
        let refused = outcome(&(-libc::EPERM).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
        assert!(outcome(&[]).is_err());
    }
}
