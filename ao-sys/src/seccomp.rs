//! System calls of another program, held until this one has looked at them (seccomp user
//! notification).
//!
//! A program under the [filter](install) stops in connect(2) and listen(2) until whoever holds the
//! [`Listener`] lets the call [proceed](Listener::proceed) or [refuses](Listener::refuse) it. What
//! a call points to can be changed by other threads of the program after it was read: this holds
//! back a program that does not know of TCP-AO, not one that fights it.
//!
//! While nobody answers, the call waits; when the last copy of the listener is closed, every
//! call that would be notified fails with ENOSYS, for good.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_long, c_ulong, c_void};

use crate::{capabilities, pidfd, process};

mod filter;

pub use filter::{NATIVE, X32_BIT};

/// How to install the filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Set no_new_privs even if CAP_SYS_ADMIN makes that unnecessary. Set-user-ID programs that
    /// the process runs then have no effect.
    pub no_new_privs: bool,
}

/// Where the notifications of a filter arrive. Readable when one is waiting; hung up (POLLHUP)
/// when the last process under the filter has ended.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    waits_killable: Option<bool>,
}

/// A call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Names it when it is answered.
    pub id: u64,
    /// The calling thread. 0 if it is not visible from this PID namespace.
    pub thread: u32,
    /// Which call it is.
    pub call: Call,
    /// Its arguments. Where a parameter is an `int`, only the low 32 bits mean anything.
    pub args: [u64; 6],
}

/// Which system call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// connect(2) with an address of 16 octets or more.
    Connect,
    /// listen(2).
    Listen,
    /// One by the calling convention of another architecture, as of a 32-bit program, whose
    /// arguments mean something else.
    Foreign {
        /// AUDIT_ARCH_… of linux/audit.h.
        arch: u32,
        /// Number of the call there; on x86-64, with [`X32_BIT`] for one of the x32 ABI.
        number: i32,
    },
    /// Another one of this architecture; a filter of [`install`] notifies of none.
    Other(i32),
}

impl Call {
    fn new(arch: u32, number: i32) -> Self {
        let is_x32 = arch == NATIVE && number & X32_BIT.cast_signed() != 0;
        match c_long::from(number) {
            _ if arch != NATIVE || is_x32 => Self::Foreign { arch, number },
            libc::SYS_connect => Self::Connect,
            libc::SYS_listen => Self::Listen,
            _ => Self::Other(number),
        }
    }
}

/// Puts the calling process, and whatever it starts or becomes from now on, under a filter:
///
/// - connect(2) with an address of 16 octets or more, listen(2), and all calls by a foreign calling
///   convention wait for the [`Listener`];
/// - socket(2) for MPTCP fails with EPROTONOSUPPORT, io_uring_setup(2) with ENOSYS, a send with
///   MSG_FASTOPEN with EOPNOTSUPP: each is a way around connect(2), or makes a socket that takes
///   no key, and programs have a fallback for each;
/// - everything else goes on.
///
/// Without CAP_SYS_ADMIN, no_new_privs is set first.
///
/// # Errors
/// `InvalidInput` when the process has more than one thread: the others would stay without. EBUSY
/// when the process is under a filter with a listener already. ENOSYS or EINVAL on a kernel
/// without seccomp filters or user notification.
pub fn install(options: Options) -> io::Result<Listener> {
    if process::threads()? != 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a filter is for a process with one thread",
        ));
    }
    if options.no_new_privs || !capabilities::have_sys_admin() {
        set_no_new_privs()?;
    }
    let program = filter::program();
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Since Linux 5.19 a call that was received is then interrupted by nothing but a deadly
    // signal. Before, a signal handler makes the program repeat the call.
    let killable = flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let (fd, waits_killable) = match load(&program, killable) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (load(&program, flags)?, false),
        other => (other?, true),
    };
    Ok(Listener {
        fd,
        waits_killable: Some(waits_killable),
    })
}

fn set_no_new_privs() -> io::Result<()> {
    let [on, unused]: [c_ulong; 2] = [1, 0];
    // SAFETY: takes integers only.
    let status = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) };
    crate::socket::check(status)
}

fn load(program: &[libc::sock_filter], flags: c_ulong) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        // The kernel only reads it.
        filter: program.as_ptr().cast_mut(),
    };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `program` describes a slice that outlives the call, and the kernel only reads it.
    pidfd::own(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) })
}

impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Self {
        Self {
            fd,
            waits_killable: None,
        }
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.fd
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Whether signals leave a call alone once it was received; `None` for a listener that came
    /// from elsewhere.
    #[must_use]
    pub fn waits_killable(&self) -> Option<bool> {
        self.waits_killable
    }

    /// Takes a waiting call; waits for one if there is none, for ever if none can come any more,
    /// so poll first. `None` if the caller was interrupted or killed meanwhile.
    ///
    /// # Errors
    /// EINVAL or ENOTTY when the descriptor is no listener, and the kernel's others.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut buffer = Buffer::new(sizes()?.notification)?;
        loop {
            // SAFETY: the buffer is as large as the kernel says it writes.
            let received = unsafe { self.control(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut buffer) };
            match received {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let raw: libc::seccomp_notif = buffer.get();
        Ok(Some(Notification {
            id: raw.id,
            thread: raw.pid,
            call: Call::new(raw.data.arch, raw.data.nr),
            args: raw.data.args,
        }))
    }

    /// Whether the call still waits. What was read from the caller's memory or descriptors is the
    /// caller's only if this holds afterwards: its thread ID may have been used again.
    #[must_use]
    pub fn is_valid(&self, id: u64) -> bool {
        let pointer = (&raw const id).cast::<c_void>();
        let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
        // SAFETY: the kernel reads the eight octets of `id`.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), request, pointer) == 0 }
    }

    /// Lets the kernel carry out the call. `false` if it no longer waits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn proceed(&self, id: u64) -> io::Result<bool> {
        self.answer(&libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags: CONTINUE,
        })
    }

    /// Makes the call fail with `errno`, a positive number. `false` if it no longer waits.
    ///
    /// # Errors
    /// `InvalidInput` when `errno` is not between 1 and 4095, and the kernel's.
    pub fn refuse(&self, id: u64, errno: i32) -> io::Result<bool> {
        if !(1..=4095).contains(&errno) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.answer(&libc::seccomp_notif_resp {
            id,
            val: 0,
            error: -errno,
            flags: 0,
        })
    }

    fn answer(&self, response: &libc::seccomp_notif_resp) -> io::Result<bool> {
        let mut buffer = Buffer::new(sizes()?.response)?;
        buffer.put(response);
        loop {
            // SAFETY: the buffer is as large as the kernel says it reads.
            let sent = unsafe { self.control(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut buffer) };
            match sent {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Gone, or answered already and not yet on its way.
                    return match error.raw_os_error() {
                        Some(libc::ENOENT | libc::EINPROGRESS) => Ok(false),
                        _ => Err(error),
                    };
                }
            }
        }
    }

    /// # Safety
    /// The buffer must be as large as the kernel's structure of the request.
    unsafe fn control(&self, request: libc::Ioctl, buffer: &mut Buffer) -> io::Result<()> {
        let pointer = buffer.0.as_mut_ptr().cast::<c_void>();
        // SAFETY: the caller's promise.
        crate::socket::check(unsafe { libc::ioctl(self.fd.as_raw_fd(), request, pointer) })
    }
}

/// SECCOMP_USER_NOTIF_FLAG_CONTINUE, in the width of the field.
const CONTINUE: u32 = 1;

/// Sizes of the kernel's structures, which may grow.
struct Sizes {
    notification: usize,
    response: usize,
}

fn sizes() -> io::Result<Sizes> {
    let mut sizes = libc::seccomp_notif_sizes {
        seccomp_notif: 0,
        seccomp_notif_resp: 0,
        seccomp_data: 0,
    };
    let operation = libc::SECCOMP_GET_NOTIF_SIZES;
    // SAFETY: the kernel writes the structure, which outlives the call.
    let status = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw mut sizes) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Sizes {
        notification: usize::from(sizes.seccomp_notif),
        response: usize::from(sizes.seccomp_notif_resp),
    })
}

/// Whether this kernel has user notification.
#[must_use]
pub fn is_available() -> bool {
    let action: u32 = libc::SECCOMP_RET_USER_NOTIF;
    let operation = libc::SECCOMP_GET_ACTION_AVAIL;
    // SAFETY: the kernel reads the four octets of `action`.
    let status = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) };
    status == 0 && sizes().is_ok()
}

/// Zeroed memory for a structure of the kernel, aligned for it, and at least as large as the
/// structure that this program knows.
struct Buffer(Vec<u64>);

impl Buffer {
    fn new(size: usize) -> io::Result<Self> {
        let known = size_of::<libc::seccomp_notif>();
        if size > 1 << 16 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self(vec![0; size.max(known).div_ceil(size_of::<u64>())]))
    }

    fn get(&self) -> libc::seccomp_notif {
        let pointer = self.0.as_ptr().cast::<libc::seccomp_notif>();
        // SAFETY: the memory is initialized, aligned and large enough, and any octets are a valid
        // value of the structure, which consists of integers.
        unsafe { pointer.read() }
    }

    fn put(&mut self, response: &libc::seccomp_notif_resp) {
        let pointer = self.0.as_mut_ptr().cast::<libc::seccomp_notif_resp>();
        // SAFETY: the memory is aligned and, being large enough for a `seccomp_notif`, large
        // enough for a response.
        unsafe { pointer.write(*response) };
    }
}

const _: () = assert!(size_of::<libc::seccomp_notif>() >= size_of::<libc::seccomp_notif_resp>());
const _: () = assert!(align_of::<u64>() >= align_of::<libc::seccomp_notif>());

#[cfg(test)]
mod tests;
