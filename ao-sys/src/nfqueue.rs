//! Netfilter queues (NFQUEUE) over raw netlink: packets in batches, verdicts in batches.
//!
//! The kernel numbers the packets of a queue one by one, and a batch verdict settles *every*
//! packet up to the number it names. So that no packet is ever released by a verdict meant for
//! another, only drops go in batches. [`Verdicts`] takes verdicts in the order of the numbers and
//! drops whatever lies in a gap: a message that was truncated or could not be read is refused.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_void};

use crate::socket;

mod message;
mod verdict;

pub use message::Queued;
pub use verdict::{VerdictBuffer, Verdicts};

/// Packets taken from the kernel by one call, at most.
pub const BATCH: usize = 32;
const VLEN: libc::c_uint = 32;

/// Octets in front of a packet that a [`Arena`] slot keeps writable, at least.
pub const HEADROOM: usize = 64;

/// Room for one message: the headroom, the attributes, and a packet of 65,535 octets.
const SLOT: usize = 68 * 1024;

/// What the kernel may copy: all of a packet.
const COPY_RANGE: u32 = 0xffff;

/// `libc::AF_NETLINK`, in the width of an address.
const AF_NETLINK: libc::sa_family_t = 16;

/// Verdicts for a whole batch of large packets go in one message.
const SEND_BUFFER: c_int = 4 << 20;

/// Why a queue could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// CAP_NET_ADMIN is missing in this network namespace.
    #[error("netfilter queue {0}: not permitted, CAP_NET_ADMIN is needed")]
    Permission(u16),
    /// The kernel has no netfilter queues.
    #[error("this kernel has no netfilter queues (CONFIG_NETFILTER_NETLINK_QUEUE)")]
    Unsupported,
    /// Another program holds the queue.
    #[error("netfilter queue {number} is held by another program ({holder})")]
    Held {
        /// Number of the queue.
        number: u16,
        /// What is known of the program: its name and process ID, or its netlink port.
        holder: String,
    },
    /// Anything else.
    #[error("netfilter queue {0}: {1}")]
    Io(u16, #[source] io::Error),
}

/// A bound queue. Closing it unbinds it: from then on the kernel drops what the rules queue.
#[derive(Debug)]
pub struct Queue {
    socket: OwnedFd,
    number: u16,
}

/// What one [`Queue::receive`] brought beside packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Messages taken from the socket. [`BATCH`] of them: there may be more.
    pub messages: usize,
    /// Messages that held no readable, whole packet.
    pub unreadable: usize,
}

/// Buffers for one batch. Memory that no packet reached is never touched.
#[derive(Debug)]
pub struct Arena {
    storage: Vec<u8>,
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            storage: vec![0; BATCH * SLOT],
        }
    }
}

impl Arena {
    /// The slots; a packet's [`Queued::slot`] is an index into this.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.storage.chunks_exact_mut(SLOT)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Queue {
    /// Binds queue `number` of this thread's network namespace, to hold up to `length` packets,
    /// with a receive buffer of `buffer` octets (the kernel doubles it for its own bookkeeping).
    ///
    /// Packets are copied whole. Neither fail-open nor GSO is asked for: a full queue drops, and
    /// the kernel cuts large packets to wire size and completes their checksums first.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(number: u16, length: u32, buffer: u32) -> Result<Self, BindError> {
        let failed = |error| BindError::Io(number, error);
        let socket = socket::open(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => BindError::Unsupported,
                _ => failed(error),
            })?;
        let buffer = c_int::try_from(buffer).unwrap_or(c_int::MAX);
        socket::set(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            buffer,
        )
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => BindError::Permission(number),
            _ => failed(error),
        })?;
        socket::set(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            SEND_BUFFER,
        )
        .map_err(failed)?;
        bind_netlink(&socket).map_err(failed)?;

        let queue = Self { socket, number };
        let ask = |request: &[u8]| queue.send(&[io::IoSlice::new(request)]).map_err(failed);
        ask(&message::binding(number, length))?;
        match queue.acknowledgement().map_err(failed)? {
            0 => {
                ask(&message::opening(number, COPY_RANGE))?;
                Ok(queue)
            }
            libc::EPERM | libc::EBUSY => Err(match holder(number) {
                Some(holder) => BindError::Held { number, holder },
                None => BindError::Permission(number),
            }),
            // nfnetlink's answer for a subsystem that nobody registered.
            libc::EINVAL | libc::EOPNOTSUPP => Err(BindError::Unsupported),
            code => Err(failed(io::Error::from_raw_os_error(code))),
        }
    }

    /// The queue's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Takes what is waiting, up to [`BATCH`] packets, without blocking; `batch` is cleared first.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is waiting; ENOBUFS when the kernel had to drop packets because
    /// the receive buffer was full (packets may be waiting all the same).
    pub fn receive(&self, arena: &mut Arena, batch: &mut Vec<Queued>) -> io::Result<Received> {
        batch.clear();
        // SAFETY: all-zero octets are a valid `mmsghdr`: null pointers and zero lengths.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: all-zero octets are a valid `sockaddr_nl`.
        let mut senders: [libc::sockaddr_nl; BATCH] = unsafe { std::mem::zeroed() };
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; BATCH];
        for (((header, sender), vector), slot) in headers
            .iter_mut()
            .zip(&mut senders)
            .zip(&mut vectors)
            .zip(arena.slots())
        {
            let Some(room) = slot.get_mut(HEADROOM..) else {
                continue;
            };
            *vector = libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            };
            header.msg_hdr.msg_name = (&raw mut *sender).cast();
            header.msg_hdr.msg_namelen = socket::length_of::<libc::sockaddr_nl>();
            header.msg_hdr.msg_iov = &raw mut *vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every header points to a name and one vector that live in this frame, and the
        // vectors to disjoint slots of the arena, which is borrowed for the whole call.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                VLEN,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        socket::check(count)?;
        let mut received = Received {
            messages: usize::try_from(count).unwrap_or(0),
            unreadable: 0,
        };
        for (index, ((header, sender), slot)) in headers
            .iter()
            .zip(&senders)
            .zip(arena.slots())
            .take(received.messages)
            .enumerate()
        {
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            // Only the kernel has port 0; whoever else may send here is not believed.
            let genuine = sender.nl_pid == 0;
            let end = HEADROOM + header.msg_len as usize;
            let packet = slot
                .get(HEADROOM..end)
                .filter(|_| whole && genuine)
                .and_then(|message| message::parse(message, index));
            match packet {
                Some(packet) => batch.push(packet.shifted(HEADROOM)),
                None => received.unreadable += 1,
            }
        }
        Ok(received)
    }

    fn send(&self, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
        // SAFETY: all-zero octets are a valid `msghdr`.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        // `IoSlice` has the layout of `iovec` by guarantee, and the kernel only reads through it.
        header.msg_iov = parts.as_ptr().cast_mut().cast::<libc::iovec>();
        header.msg_iovlen = parts.len();
        // SAFETY: the header points to `parts`, which outlives the call, and to nothing else; a
        // netlink socket that was never connected sends to the kernel.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits for the answer to the request that creates the queue: 0 or an error number. No packet
    /// overtakes it, as the queue takes none before it is opened.
    fn acknowledgement(&self) -> io::Result<c_int> {
        let mut answer = [0_u8; 512];
        loop {
            // SAFETY: the pointer and the length describe `answer`.
            let count = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    answer.as_mut_ptr().cast::<c_void>(),
                    answer.len(),
                    0,
                )
            };
            let count = match usize::try_from(count) {
                Ok(count) => count,
                Err(_) => return Err(io::Error::last_os_error()),
            };
            if let Some(code) = answer.get(..count).and_then(message::error_code) {
                return Ok(code);
            }
        }
    }
}

fn bind_netlink(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: all-zero octets are a valid `sockaddr_nl`; port 0 lets the kernel choose.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = AF_NETLINK;
    let pointer = (&raw const address).cast::<libc::sockaddr>();
    let length = socket::length_of::<libc::sockaddr_nl>();
    // SAFETY: the pointer and the length describe `address`.
    socket::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) })
}

/// Who holds a queue, by /proc; `None` when nobody does.
fn holder(number: u16) -> Option<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").ok()?;
    let port = table.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        let found = columns.next()?.parse() == Ok(number);
        found.then(|| columns.next()).flatten().map(str::to_owned)
    })?;
    // The first netlink socket of a process has its process ID as port; later ones do not.
    let name = std::fs::read_to_string(format!("/proc/{port}/comm"));
    Some(match name {
        Ok(name) => format!("{}, process {port}", name.trim()),
        Err(_) => format!("netlink port {port}"),
    })
}

/// A range moved up by `offset`.
fn shifted(range: &Range<usize>, offset: usize) -> Range<usize> {
    range.start + offset..range.end + offset
}
