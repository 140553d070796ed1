//! Unix sockets that keep messages apart and in order (SOCK_SEQPACKET), and carry descriptors.

use std::fs::Permissions;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use libc::{c_int, c_void};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};
use nix::sys::time::TimeVal;

/// Descriptors in one message, at most (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 253;

/// Socket option for the groups of who connected (asm-generic/socket.h), which libc lacks.
const SO_PEERGROUPS: c_int = 59;

/// Connections that wait to be accepted, at most.
const BACKLOG: i32 = 64;

/// Who is at the other end, as of when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process ID; 0 if it is not visible from here.
    pub pid: u32,
    /// Effective user ID.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket::socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    Ok(socket)
}

/// Two sockets connected to each other.
///
/// # Errors
/// The kernel's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let sockets = socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok(sockets)
}

/// A listening socket at `path`, which only its owner may connect to: mode 0600 from the start.
///
/// # Errors
/// `AddrInUse` when the path exists, `InvalidInput` when it is too long (107 octets).
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    let address = address(path)?;
    let socket = open()?;
    let socket = std::fs::File::from(socket);
    // The mode of an unbound socket is what its file gets.
    socket.set_permissions(Permissions::from_mode(0o600))?;
    socket::bind(socket.as_raw_fd(), &address)?;
    let listening = Backlog::new(BACKLOG).and_then(|backlog| socket::listen(&socket, backlog));
    listening?;
    Ok(socket.into())
}

/// The next connection to a listening socket.
///
/// # Errors
/// `WouldBlock` when there is none and the socket does not block or its time is up; the kernel's.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel just handed us this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A connection to the listening socket at `path`. Does not wait, as whoever listens may be stopped.
///
/// # Errors
/// `NotFound`, `ConnectionRefused` (nobody listens any more), `PermissionDenied`, `WouldBlock` (its
/// backlog is full).
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = address(path)?;
    let socket = open()?;
    let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
    fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    socket::connect(socket.as_raw_fd(), &address)?;
    fcntl(&socket, FcntlArg::F_SETFL(flags))?;
    Ok(socket)
}

fn address(path: &Path) -> io::Result<UnixAddr> {
    UnixAddr::new(path).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is too long for a socket",
        )
    })
}

/// Sends one message, whole, with copies of descriptors. An empty message would look like the end
/// of the connection and is refused.
///
/// # Errors
/// `InvalidInput` (nothing to send), `BrokenPipe` (no one is at the other end; no signal is
/// raised), `WouldBlock` (no room, on a socket that does not block or whose time is up), EMSGSIZE.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let bytes = [IoSlice::new(bytes)];
    loop {
        let flags = MsgFlags::MSG_NOSIGNAL;
        match socket::sendmsg::<UnixAddr>(fd.as_raw_fd(), &bytes, control, flags, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

/// Receives one message and the descriptors that came with it, closed on exec. Its length is 0
/// when the connection has ended.
///
/// # Errors
/// `InvalidData` when the message is longer than the buffer or not all its descriptors could be
/// taken: it is lost. `WouldBlock` when there is none on a socket that does not block or whose
/// time is up.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast::<c_void>(),
        iov_len: buffer.len(),
    };
    // Larger than anything that can come; 64-bit words, for the alignment of its headers.
    let mut control = [0_u64; DESCRIPTORS_MAX.div_ceil(2) + 8];
    // SAFETY: integers and pointers, for which zero is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast::<c_void>();
    header.msg_controllen = size_of_val(&control);
    let length = loop {
        let flags = libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header describes `buffer` and `control`, which outlive the call.
        let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
        match usize::try_from(length) {
            Ok(length) => break length,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    // Taken first: whatever came must be closed, also when the message is refused.
    let fds = descriptors(&header);
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the message did not arrive whole",
        ));
    }
    Ok((length, fds))
}

/// Owns the descriptors in a received header. To be called once per header.
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut owned = Vec::new();
    // SAFETY: the kernel has filled the header in and its control buffer is still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so it points to a control message within the buffer.
        let message = unsafe { next.read_unaligned() };
        if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: computes the size of a header, touching no memory.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = message.cmsg_len.saturating_sub(head) / size_of::<c_int>();
            // SAFETY: as for `next`.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<c_int>();
            for index in 0..count {
                // SAFETY: the message has `count` descriptors from `data` on.
                let place = unsafe { data.add(index) };
                // SAFETY: as above.
                let fd = unsafe { place.read_unaligned() };
                // SAFETY: the kernel just handed us this descriptor and nobody else owns it.
                owned.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: both come from the kernel's answer.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    owned
}

/// Who is at the other end.
///
/// # Errors
/// The kernel's.
pub fn peer_credentials(fd: BorrowedFd<'_>) -> io::Result<Credentials> {
    let peer = socket::getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok(Credentials {
        pid: u32::try_from(peer.pid()).unwrap_or(0),
        uid: peer.uid(),
        gid: peer.gid(),
    })
}

/// The supplementary groups of who is at the other end, as of when it connected.
///
/// # Errors
/// The kernel's.
pub fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // A first guess; the kernel tells when there are more (65,536 at most).
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut length =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        let (level, name) = (libc::SOL_SOCKET, SO_PEERGROUPS);
        let pointer = groups.as_mut_ptr().cast::<c_void>();
        // SAFETY: the kernel writes at most `length` octets, the size of what `groups` holds, and
        // any octets are valid numbers.
        let status =
            unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, pointer, &raw mut length) };
        let told = length as usize / size_of::<libc::gid_t>();
        match crate::socket::check(status) {
            Ok(()) => {
                groups.truncate(told);
                return Ok(groups);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && told > groups.len() => {
                groups.resize(told, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// How long a receive or an accept may wait before it fails with `WouldBlock`; zero: for ever.
///
/// # Errors
/// The kernel's.
pub fn set_receive_timeout(fd: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    Ok(socket::setsockopt(
        &fd,
        sockopt::ReceiveTimeout,
        &timeval(time),
    )?)
}

/// How long a send or a connect may wait before it fails with `WouldBlock`; zero: for ever.
///
/// # Errors
/// The kernel's.
pub fn set_send_timeout(fd: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    Ok(socket::setsockopt(
        &fd,
        sockopt::SendTimeout,
        &timeval(time),
    )?)
}

fn timeval(time: Duration) -> TimeVal {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    // Rounded up: zero would mean for ever.
    let micros = time.subsec_nanos().div_ceil(1000);
    TimeVal::new(
        seconds.saturating_add(i64::from(micros / 1_000_000)),
        i64::from(micros % 1_000_000),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ao-sys-{name}-{}", std::process::id()))
    }

    #[test]
    fn the_groups_of_who_connected_are_told() {
        let (one, _other) = pair().unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect();
        let mut told = peer_groups(one.as_fd()).unwrap();
        own.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, own);
    }

    #[test]
    fn messages_stay_apart_and_carry_descriptors() {
        let (one, other) = pair().unwrap();
        let (from, to) = io::pipe().unwrap();
        send(one.as_fd(), b"first", &[to.as_fd(), from.as_fd()]).unwrap();
        send(one.as_fd(), b"second", &[]).unwrap();
        drop(to);
        let mut buffer = [0; 32];
        let (length, fds) = receive(other.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], fds.len()), (&b"first"[..], 2));
        for fd in &fds {
            let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
            let flags = std::fs::read_to_string(path).unwrap();
            let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0);
        }
        drop(fds);
        let (length, fds) = receive(other.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], fds.len()), (&b"second"[..], 0));
        // All copies of the pipe's other end are closed.
        let mut rest = Vec::new();
        File::from(OwnedFd::from(from))
            .read_to_end(&mut rest)
            .unwrap();
        drop(one);
        assert_eq!(receive(other.as_fd(), &mut buffer).unwrap().0, 0);
        let error = send(other.as_fd(), b"x", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn message_that_does_not_fit_is_refused_and_its_descriptors_closed() {
        let (one, other) = pair().unwrap();
        let (mut from, to) = io::pipe().unwrap();
        send(one.as_fd(), b"too long", &[to.as_fd()]).unwrap();
        drop(to);
        let error = receive(other.as_fd(), &mut [0; 3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(from.read(&mut [0]).unwrap(), 0);
        let error = send(one.as_fd(), b"", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn as_many_descriptors_arrive_as_the_kernel_sends() {
        let (one, other) = pair().unwrap();
        let fds = vec![one.as_fd(); DESCRIPTORS_MAX];
        send(one.as_fd(), b"x", &fds).unwrap();
        let (_, received) = receive(other.as_fd(), &mut [0; 1]).unwrap();
        assert_eq!(received.len(), DESCRIPTORS_MAX);
        let fds = vec![one.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(one.as_fd(), b"x", &fds).is_err());
    }

    #[test]
    fn listener_is_its_owners_and_knows_who_connects() {
        let path = path("listener");
        let listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = bind(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        let client = connect(&path).unwrap();
        let server = accept(listener.as_fd()).unwrap();
        let peer = peer_credentials(server.as_fd()).unwrap();
        let own = Credentials {
            pid: std::process::id(),
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        };
        assert_eq!(peer, own);
        assert_eq!(peer_credentials(client.as_fd()).unwrap(), own);
        drop(listener);
        let refused = connect(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let long = bind(Path::new(&"x".repeat(200))).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn waiting_ends() {
        let (one, _other) = pair().unwrap();
        set_receive_timeout(one.as_fd(), Duration::from_millis(10)).unwrap();
        let error = receive(one.as_fd(), &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        set_send_timeout(one.as_fd(), Duration::from_nanos(1)).unwrap();
        let full = (0..10_000).find_map(|_| send(one.as_fd(), &[0; 4096], &[]).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(
            timeval(Duration::from_nanos(999_999_999)),
            TimeVal::new(1, 0)
        );
        assert_eq!(timeval(Duration::from_nanos(1)), TimeVal::new(0, 1));
    }
}
