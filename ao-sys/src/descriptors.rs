//! The process's table of open files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::socket::check;

/// Highest descriptor there can be.
const LAST: u32 = i32::MAX as u32;

/// Closes every descriptor of this process except `kept`, as one that goes its own way does with
/// those it inherited: a file, lock or socket stays open as long as any copy of it.
///
/// # Errors
/// When the kernel refuses; it has close_range since Linux 5.9.
///
/// Whoever in this process owns a closed descriptor will close its number again, which may be
/// another's by then: call this while nothing else is open, or let go of no owner afterwards.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept
        .iter()
        .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
        .collect();
    kept.sort_unstable();
    kept.dedup();
    let mut first = 0;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, LAST)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes integers. What it closes is the caller's to choose, see above; no memory of
    // this process depends on a descriptor.
    check(unsafe { libc::close_range(first, last, 0) })
}
