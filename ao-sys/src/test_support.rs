//! What the tests of several modules need.

use std::io;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Runs a function in a forked process, which has one thread, and waits for it. Returns its
/// process ID and its outcome, of which only the number of an error comes across.
pub(crate) fn run_forked(function: impl FnOnce() -> io::Result<()>) -> (u32, io::Result<()>) {
    let child = start_forked(function);
    (child, join_forked(child))
}

/// Runs a function in a forked process and does not wait.
pub(crate) fn start_forked(function: impl FnOnce() -> io::Result<()>) -> u32 {
    // SAFETY: the functions of the tests take no lock that another thread could hold but the
    // allocator's, which the C library keeps usable across a fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child.as_raw().cast_unsigned(),
        ForkResult::Child => {
            // A test that fails does not leave the process behind.
            // SAFETY: takes integers only.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let run = std::panic::AssertUnwindSafe(function);
            let status = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => error.raw_os_error().unwrap_or(255),
                Err(_) => 254,
            };
            // SAFETY: takes an integer and does not return.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Waits for a forked process.
pub(crate) fn join_forked(child: u32) -> io::Result<()> {
    let pid = nix::unistd::Pid::from_raw(child.cast_signed());
    match waitpid(pid, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}
