//! Opening sockets and reading or setting their integer options, the same way everywhere.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};

/// Size of a kernel structure, as the socket calls want it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "kernel structures are small"
)]
pub(crate) const fn length_of<T>() -> socklen_t {
    size_of::<T>() as socklen_t
}

/// Opens a socket that is closed on exec.
pub(crate) fn open(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes three integers and touches no memory of ours.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just handed us this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an integer option.
pub(crate) fn set(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let pointer = (&raw const value).cast::<c_void>();
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let status =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, length_of::<c_int>()) };
    check(status)
}

/// Reads an integer option.
pub(crate) fn get(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = length_of::<c_int>();
    let pointer = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `length` octets, the size of `value`.
    let status = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, pointer, &raw mut length) };
    check(status).map(|()| value)
}

/// A kernel structure that the socket calls may read and write whole.
///
/// # Safety
/// Every pattern of octets is a valid value, and there is no padding.
pub(crate) unsafe trait Plain {}

// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// Sets an option that is a structure.
pub(crate) fn set_value<T: Plain>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let pointer = (&raw const *value).cast::<c_void>();
    // SAFETY: the pointer and the length describe `value`, which outlives the call and, being
    // `Plain`, has no octet that is not initialized.
    let status =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, length_of::<T>()) };
    check(status)
}

/// Reads an option that is a structure; what the kernel does not write stays as it was. Returns
/// the length that the kernel says it has written.
pub(crate) fn get_value<T: Plain>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut T,
) -> io::Result<usize> {
    let mut length = length_of::<T>();
    let pointer = (&raw mut *value).cast::<c_void>();
    // SAFETY: the kernel writes at most `length` octets, the size of `value`, and whatever it
    // writes is a valid `Plain`.
    let status = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, pointer, &raw mut length) };
    check(status).map(|()| length as usize)
}

/// The error of a call that reports it through `errno`.
pub(crate) fn check(status: c_int) -> io::Result<()> {
    if status < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A socket address in the kernel's layout.
pub(crate) enum KernelAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

pub(crate) const AF_INET: libc::sa_family_t = 2;
pub(crate) const AF_INET6: libc::sa_family_t = 10;

impl KernelAddress {
    /// The address with port 0 unless given; `scope` is the interface of a link-local address.
    pub(crate) fn new(address: std::net::IpAddr, port: u16, scope: u32) -> Self {
        match address {
            std::net::IpAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: AF_INET,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.octets()),
                },
                sin_zero: [0; 8],
            }),
            std::net::IpAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: AF_INET6,
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.octets(),
                },
                sin6_scope_id: if v6.is_unicast_link_local() { scope } else { 0 },
            }),
        }
    }

    /// Pointer and length as the socket calls want them; valid as long as `self`.
    pub(crate) fn as_raw(&self) -> (*const libc::sockaddr, socklen_t) {
        match self {
            Self::V4(v4) => ((&raw const *v4).cast(), length_of::<libc::sockaddr_in>()),
            Self::V6(v6) => ((&raw const *v6).cast(), length_of::<libc::sockaddr_in6>()),
        }
    }
}
