//! What the kernel thinks of its wall clock.

use std::io;
use std::mem::MaybeUninit;

/// Whether the wall clock follows a source of time: whoever steers it (chrony, ntpd,
/// systemd-timesyncd) has told the kernel so.
///
/// # Errors
/// The kernel's; some sandboxes forbid the call.
pub fn is_synchronised() -> io::Result<bool> {
    let mut timex = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: with `modes` 0 the call changes nothing and writes into the structure only.
    let state = unsafe { libc::adjtimex(timex.as_mut_ptr()) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the structure is one of integers, for which zeros are valid as well.
    let timex = unsafe { timex.assume_init() };
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        // What it says depends on the machine.
        is_synchronised().unwrap();
    }
}
