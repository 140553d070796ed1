//! `aoctl events`: a line for each event, as it comes.

use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;
use tonic::Streaming;

use super::output::{Paint, Tone};
use super::table::printable;
use super::time::{milliseconds, precise};
use super::{ClientError, Format, Sidecar};

/// Which events to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Number of the last event already known; 0 for none.
    pub after: u64,
    /// The log that number is of; 0 if that is not known.
    pub log: u64,
    /// Only those of this peer; empty for all.
    pub peer: String,
    /// Go on with events as they happen.
    pub follow: bool,
}

/// An event as it is shown.
#[derive(Serialize)]
pub(super) struct Event {
    sequence: u64,
    log: u64,
    time: Option<String>,
    peer: Option<String>,
    kind: String,
    severity: &'static str,
    generation: Option<u64>,
    key_id: Option<u32>,
    trigger: Option<String>,
    proof: Option<String>,
    took_ms: Option<u64>,
    message: String,
}

/// Writes the events of the sidecar to `out`, one a line, each as soon as it is there.
/// With [`Watch::follow`] it ends with success when the process is interrupted (SIGINT).
///
/// # Errors
/// When the sidecar cannot be reached, refuses, or goes away while it is followed; when `out`
/// cannot be written.
pub fn watch(
    sidecar: &Sidecar,
    watch: Watch,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    super::runtime()?.block_on(async {
        let follow = watch.follow;
        let all = show_all(sidecar, watch, format, out);
        if !follow {
            return all.await;
        }
        tokio::select! {
            ended = all => ended,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

async fn show_all(
    sidecar: &Sidecar,
    watch: Watch,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let Watch {
        after,
        log,
        peer,
        follow,
    } = watch;
    let request = v1::WatchEventsRequest {
        after,
        log,
        peer,
        follow,
    };
    let answer = sidecar
        .connect(super::PATIENCE)
        .await?
        .watch_events(request)
        .await;
    let mut events: Streaming<v1::Event> = answer
        .map_err(|status| sidecar.failed(&status))?
        .into_inner();
    loop {
        match events.message().await {
            Ok(Some(event)) => Event::from(event).show(format, out)?,
            Ok(None) if follow => return Err(sidecar.gone("it ended the events")),
            Ok(None) => return Ok(()),
            Err(status) => {
                return Err(match sidecar.failed(&status) {
                    ClientError::Unreachable { reason, .. } => sidecar.gone(&reason),
                    refused => refused,
                });
            }
        }
    }
}

impl Event {
    fn show(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Json => {
                serde_json::to_writer(&mut *out, self).map_err(io::Error::from)?;
                writeln!(out)?;
            }
            Format::Text(paint) => writeln!(
                out,
                "{}  {:>6}  {}  {}  {}  {}",
                self.time.as_deref().unwrap_or("-"),
                self.sequence,
                self.coloured_severity(paint),
                printable(self.peer.as_deref().unwrap_or("-")),
                printable(&self.kind),
                printable(&self.message),
            )?,
        }
        out.flush()
    }

    fn coloured_severity(&self, paint: Paint) -> String {
        paint.paint(self.tone(), &format!("{:<7}", self.severity))
    }

    fn tone(&self) -> Tone {
        match self.severity {
            "alarm" => Tone::Bad,
            "warning" => Tone::Doubtful,
            _ => Tone::Plain,
        }
    }

    /// The event in a line without its number and kind.
    pub(super) fn short(&self) -> (String, Tone) {
        let time = self.time.as_deref().unwrap_or("-");
        let message = printable(&self.message);
        let line = match &self.peer {
            Some(peer) => format!("{time} {}: {message}", printable(peer)),
            None => format!("{time} {message}"),
        };
        (line, self.tone())
    }
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            severity: match event.severity() {
                v1::Severity::Unspecified => "unknown",
                v1::Severity::Info => "info",
                v1::Severity::Warning => "warning",
                v1::Severity::Alarm => "alarm",
            },
            sequence: event.sequence,
            log: event.log,
            time: event.time.as_ref().and_then(precise),
            peer: filled(event.peer),
            kind: event.kind,
            generation: Some(event.generation).filter(|&number| number > 0),
            key_id: event.key_id,
            trigger: filled(event.trigger),
            proof: filled(event.proof),
            took_ms: event.took.as_ref().map(milliseconds),
            message: event.message,
        }
    }
}
