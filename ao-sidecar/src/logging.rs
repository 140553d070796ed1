//! Logs go to stderr, where a service manager or a terminal picks them up.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::{self, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, registry, reload};

use crate::config::{Log, LogFormat};

/// Changes the level of the log that was set up.
static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Octets that a pipe with room takes without waiting (pipe(7)).
const PIPE_BUF: usize = 4096;

/// Makes `tracing` log as configured. Later calls change nothing.
pub(crate) fn init(log: Log) {
    let (level, handle) = reload::Layer::new(LevelFilter::from_level(log.level));
    let lines = registry().with(level);
    let layer = layer()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false);
    let set = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.with(layer)),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true);
            tracing::subscriber::set_global_default(lines.with(layer))
        }
    };
    // It fails only if logging is set up already, and then that set-up is as good.
    if set.is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// From now on this is the least important level that is logged, if [`init`] has set logging up.
pub(crate) fn set_level(level: Level) {
    if let Some(handle) = LEVEL.get() {
        // It fails only when the log is gone, with the process.
        let _ = handle.reload(LevelFilter::from_level(level));
    }
}

/// Makes `tracing` log lines for people, from `info` on, as what has no configuration does. A line
/// that nobody takes is lost: a keeper that waits for its terminal would have its daemon wait, and
/// one that ends for want of it would break the daemon's calls for good.
pub(crate) fn init_keeper() {
    std::panic::set_hook(Box::new(|_| {}));
    let lines = fmt::fmt()
        .with_writer(|| Patient)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false);
    // It fails only if logging is set up already, and then that set-up is as good.
    let _ = tracing::subscriber::set_global_default(lines.finish());
}

/// Stderr, as long as it takes what is written.
struct Patient;

impl Write for Patient {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let takes = poll(&mut ready, PollTimeout::ZERO).is_ok()
            && ready[0].revents() == Some(PollFlags::POLLOUT);
        if takes {
            // More than this a pipe with room might not take without waiting.
            let _ = unistd::write(&stderr, line.get(..PIPE_BUF).unwrap_or(line));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_whether_anybody_reads_it_or_not() {
        let line = [b'x'; 100_000];
        assert_eq!(Patient.write(&line).unwrap(), line.len());
    }
}
