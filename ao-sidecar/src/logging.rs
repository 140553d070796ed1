//! Logs go to stderr, where a service manager or a terminal picks them up.

use std::io;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::config::{Log, LogFormat};

/// Makes `tracing` log as configured. Later calls change nothing.
pub(crate) fn init(log: Log) {
    let lines = fmt()
        .with_writer(io::stderr)
        .with_max_level(LevelFilter::from_level(log.level))
        .with_ansi(false)
        .with_target(false);
    // It fails only if logging is set up already, and then that set-up is as good.
    let _ = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
        LogFormat::Json => {
            tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish())
        }
    };
}

/// Makes `tracing` log lines for people, from `info` on, as what has no configuration does.
pub(crate) fn init_plain() {
    init(Log {
        format: LogFormat::Text,
        level: tracing::Level::INFO,
    });
}
