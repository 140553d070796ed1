//! `aoctl doctor`: why a peer is down, and what to do.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use grpc_api::operator::administration::{self, FindingSeverity};
use grpc_api::v1::{self, DiagnoseRequest, GetStatusRequest};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::keys::filled;
use super::output::{Answer, Paint, Shown, Tone};
use super::table::printable;
use super::time::Span;
use super::{ClientError, Sidecar};

/// What to find out.
pub struct Complaint {
    /// About this peer, or all of them.
    pub peer: Option<String>,
    /// How long to listen to segments.
    pub listen: Duration,
}

/// How long a diagnosis may take beside listening.
const BESIDES: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Diagnosis {
    findings: Vec<Finding>,
    /// The sidecar does not answer.
    #[serde(skip)]
    alone: bool,
}

#[derive(Serialize)]
struct Finding {
    code: String,
    severity: &'static str,
    peer: Option<String>,
    seen: String,
    matters: Option<String>,
    remedy: Option<String>,
}

/// Has the sidecar find out what is wrong. When it does not answer, says so on stderr and finds out
/// what can be seen without it; `config` is its configuration.
///
/// # Errors
/// When the sidecar refuses, or cannot be reached and is on another machine.
pub fn diagnose(
    sidecar: &Sidecar,
    complaint: Complaint,
    config: &Path,
) -> Result<Shown, ClientError> {
    let error = match super::runtime()?.block_on(ask(sidecar, complaint)) {
        Ok(diagnosis) => return Ok(Shown::new(diagnosis)),
        Err(error) => error,
    };
    let Some(socket) = sidecar.socket() else {
        return Err(error);
    };
    if !matches!(error, ClientError::Unreachable { .. }) {
        return Err(error);
    }
    let findings = crate::doctor::local(socket, config);
    if findings.is_empty() {
        return Err(error);
    }
    // Without stderr the exit code has to do.
    let _ = writeln!(io::stderr(), "aoctl: {error}");
    Ok(Shown::new(Diagnosis {
        findings: findings.into_iter().map(Finding::from).collect(),
        alone: true,
    }))
}

async fn ask(sidecar: &Sidecar, complaint: Complaint) -> Result<Diagnosis, ClientError> {
    let Complaint { peer, listen } = complaint;
    // Whether anybody answers is known soon, unlike what is wrong.
    let mut client = sidecar.connect(super::PATIENCE).await?;
    let answered = client.get_status(GetStatusRequest {}).await;
    answered.map_err(|status| sidecar.failed(&status))?;
    let mut client = sidecar.connect_beside(listen, BESIDES).await?;
    let request = DiagnoseRequest {
        peer: peer.clone().unwrap_or_default(),
        listen: Some(Span {
            seconds: i64::try_from(listen.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(listen.subsec_nanos()).unwrap_or_default(),
        }),
    };
    let mut progress = Progress::new(peer.as_deref(), listen);
    let answer = tokio::select! {
        answer = client.diagnose(request) => answer,
        never = progress.show() => match never {},
    };
    drop(progress);
    let findings = answer.map_err(|status| sidecar.failed(&status))?;
    let findings = findings.into_inner().findings;
    Ok(Diagnosis {
        findings: findings.into_iter().map(Finding::from).collect(),
        alone: false,
    })
}

/// A line on stderr that tells how long it may still take; gone when it ends. Only on a terminal.
struct Progress {
    what: String,
    listen: Duration,
    shown: bool,
}

impl Progress {
    fn new(peer: Option<&str>, listen: Duration) -> Self {
        let what = printable(peer.unwrap_or("peers without a session")).into_owned();
        Self {
            what,
            listen,
            shown: false,
        }
    }

    async fn show(&mut self) -> std::convert::Infallible {
        if !io::stderr().is_terminal() {
            return std::future::pending().await;
        }
        let start = Instant::now();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // What is answered at once needs no progress.
        tick.tick().await;
        loop {
            tick.tick().await;
            let (passed, all) = (start.elapsed().as_secs(), self.listen.as_secs());
            let what = &self.what;
            let _ = write!(
                io::stderr(),
                "\r\x1b[Klistening to {what}: {passed} s of at most {all} s …"
            );
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Answer for Diagnosis {
    /// A paragraph for each finding, what matters most first.
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let mut totals = Vec::new();
        for (severity, heading, one, many) in GROUPS {
            let of_severity = |finding: &&Finding| finding.severity == severity;
            let group: Vec<&Finding> = self.findings.iter().filter(of_severity).collect();
            if group.is_empty() {
                continue;
            }
            totals.push(match group.len() {
                1 => format!("1 {one}"),
                count => format!("{count} {many}"),
            });
            writeln!(out, "{}", paint.paint(tone(severity), heading))?;
            for finding in group {
                writeln!(out)?;
                finding.write(paint, out)?;
            }
            writeln!(out)?;
        }
        match totals.is_empty() {
            true => writeln!(out, "nothing was found"),
            false => writeln!(out, "{}", totals.join(", ")),
        }
    }

    fn exit_code(&self) -> u8 {
        let any = |severity: &str| self.findings.iter().any(|one| one.severity == severity);
        match (self.alone, any("problem"), any("warning")) {
            (true, ..) => 3,
            (false, true, _) => 4,
            (false, false, true) => 5,
            (false, false, false) => 0,
        }
    }
}

/// Severities with the heading and the names of their findings, the worst first. What a later
/// sidecar may call otherwise is worth a look.
const GROUPS: [(&str, &str, &str, &str); 5] = [
    ("problem", "PROBLEMS", "problem", "problems"),
    ("warning", "WARNINGS", "warning", "warnings"),
    ("unknown", "OTHERS", "other finding", "other findings"),
    ("note", "NOTES", "note", "notes"),
    (
        "ok",
        "AS IT SHOULD BE",
        "point as it should be",
        "points as they should be",
    ),
];

fn tone(severity: &str) -> Tone {
    match severity {
        "problem" => Tone::Bad,
        "warning" | "unknown" => Tone::Doubtful,
        "ok" => Tone::Good,
        _ => Tone::Heading,
    }
}

impl Finding {
    fn write(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let code = paint.paint(tone(self.severity), &printable(&self.code));
        match &self.peer {
            Some(peer) => writeln!(out, "{}: {code}", printable(peer))?,
            None => writeln!(out, "{code}")?,
        }
        let parts = [
            ("seen", Some(&self.seen)),
            ("why", self.matters.as_ref()),
            ("do", self.remedy.as_ref()),
        ];
        for (name, text) in parts {
            let Some(text) = text else { continue };
            let mut label = name;
            for line in text
                .lines()
                .flat_map(|line| wrapped(line, paint.width() - INDENT))
            {
                writeln!(out, "  {label:<4}  {line}")?;
                label = "";
            }
        }
        Ok(())
    }
}

/// Columns before the text of a part.
const INDENT: usize = 8;

/// The line, broken between words so that no part is longer than `width`, where that can be. What is
/// indented is to be copied, and stays whole.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let line = printable(line);
    if line.starts_with("  ") {
        return vec![line.into_owned()];
    }
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let Some(last) = lines.last_mut() else { break };
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

impl From<v1::Finding> for Finding {
    fn from(finding: v1::Finding) -> Self {
        Self {
            severity: match finding.severity() {
                v1::FindingSeverity::Unspecified => "unknown",
                v1::FindingSeverity::Ok => "ok",
                v1::FindingSeverity::Note => "note",
                v1::FindingSeverity::Warning => "warning",
                v1::FindingSeverity::Problem => "problem",
            },
            code: finding.code,
            peer: filled(finding.peer),
            seen: finding.seen,
            matters: filled(finding.matters),
            remedy: filled(finding.remedy),
        }
    }
}

impl From<administration::Finding> for Finding {
    fn from(finding: administration::Finding) -> Self {
        Self {
            code: finding.code.to_owned(),
            severity: match finding.severity {
                FindingSeverity::Ok => "ok",
                FindingSeverity::Note => "note",
                FindingSeverity::Warning => "warning",
                FindingSeverity::Problem => "problem",
            },
            peer: finding.peer.map(|peer| peer.to_string()),
            seen: finding.seen,
            matters: filled(finding.matters),
            remedy: filled(finding.remedy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakable", 3), ["unbreakable"]);
        assert_eq!(wrapped("  chmod 600 file", 3), ["  chmod 600 file"]);
        assert_eq!(wrapped("", 3), [""]);
    }

    #[test]
    fn the_exit_code_tells_the_worst() {
        let code = |alone, severities: &[&'static str]| {
            let findings = severities.iter().map(|severity| Finding {
                code: "some-code".into(),
                severity,
                peer: None,
                seen: String::new(),
                matters: None,
                remedy: None,
            });
            let findings = findings.collect();
            Answer::exit_code(&Diagnosis { findings, alone })
        };
        assert_eq!(code(false, &["ok", "note", "unknown"]), 0);
        assert_eq!(code(false, &["ok", "warning"]), 5);
        assert_eq!(code(false, &["warning", "problem"]), 4);
        assert_eq!(code(true, &["warning", "problem"]), 3);
    }
}
