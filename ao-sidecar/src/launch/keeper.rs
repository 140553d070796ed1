//! The keeper's side of a launch: a process of its own, out of the daemon's way.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use ao_sys::seccomp::Listener;
use ao_sys::{descriptors, unix};
use datapath::keeper::{Keeper, Launch};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{dup2_stdin, dup2_stdout};

/// What the two sides say when all is well; anything else is the reason why not.
pub(super) const READY: &[u8] = b"ready";

/// Is the keeper until its daemon and all that the daemon started are gone.
pub(super) fn run(parent: &OwnedFd, launch: Launch, wait: Duration) -> ! {
    step_aside(parent);
    crate::logging::init_keeper();
    match Keeper::register(launch, wait) {
        Ok(keeper) => {
            if let Some(listener) = take_over(parent) {
                keeper.keep(&listener);
            }
        }
        Err(error) => {
            // If it is not there any more, nobody is interested.
            let _ = unix::send(parent.as_fd(), error.to_string().as_bytes(), &[]);
        }
    }
    std::process::exit(0)
}

/// Says that all is well and gets the notifications. Nothing if the other side gave up.
fn take_over(parent: &OwnedFd) -> Option<Listener> {
    unix::send(parent.as_fd(), READY, &[]).ok()?;
    let mut buffer = [0; 16];
    let (_, attached) = unix::receive(parent.as_fd(), &mut buffer).ok()?;
    let listener = attached.into_iter().next().map(Listener::from)?;
    unix::send(parent.as_fd(), READY, &[]).ok()?;
    Some(listener)
}

/// Waits until the other side says that all is well.
pub(super) fn await_word(keeper: BorrowedFd<'_>) -> Result<(), String> {
    let mut buffer = vec![0; 4096];
    match unix::receive(keeper, &mut buffer) {
        Ok((0, _)) => Err("the keeper process ended unexpectedly".to_owned()),
        Ok((length, _)) => match buffer.get(..length) {
            Some(READY) => Ok(()),
            said => Err(String::from_utf8_lossy(said.unwrap_or_default()).into_owned()),
        },
        Err(error) => Err(format!("the keeper process does not answer: {error}")),
    }
}

/// Keeps nothing of the daemon's that somebody may wait for to be closed, and does not go when the
/// daemon is told to: its last calls are still to be answered.
fn step_aside(parent: &OwnedFd) {
    let signals: SigSet = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]
    .into_iter()
    .collect();
    let settled = signals
        .thread_block()
        .and_then(|()| prctl::set_name(c"ao-keeper"))
        .map_err(io::Error::from)
        .and_then(|()| descriptors::close_all_but(&[parent.as_fd(), io::stderr().as_fd()]))
        .and_then(|()| silence())
        .and_then(|()| std::env::set_current_dir(Path::new("/")));
    if let Err(error) = settled {
        // It works all the same.
        tracing::debug!(%error, "the keeper could not leave the daemon's surroundings");
    }
    // Without it, the daemon's calls fail for good: better the daemon itself is chosen.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
}

fn silence() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}
