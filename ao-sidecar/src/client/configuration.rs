//! The configuration: in use, checked, and how it differs or was changed.

use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;

use super::output::{Answer, Paint, Tone};
use super::table::printable;
use super::time::At;

#[derive(Serialize)]
pub(super) struct InUse {
    toml: String,
    file: String,
    loaded_at: At,
    api_made: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Checked {
    valid: bool,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    line: Option<u32>,
    column: Option<u32>,
    text: String,
}

/// What a reload would change.
#[derive(Serialize)]
pub(super) struct Differences {
    changes: Vec<Change>,
    warnings: Vec<String>,
}

/// What a reload changed.
#[derive(Serialize)]
pub(super) struct Reloaded {
    changes: Vec<Change>,
    warnings: Vec<String>,
}

/// What a change by API changed.
#[derive(Serialize)]
pub(super) struct Changed {
    message: String,
    changes: Vec<Change>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Change {
    subject: String,
    kind: &'static str,
    details: Vec<String>,
    effect: Option<String>,
    needs_restart: bool,
}

impl Answer for InUse {
    /// A file that could be taken as it is, once the secrets are put in.
    fn text(&self, _: Paint, out: &mut dyn Write) -> io::Result<()> {
        let file = printable(&self.file);
        writeln!(out, "# in use since {}, read from {file}", self.loaded_at)?;
        if !self.api_made.is_empty() {
            let made = self.api_made.join(", ");
            writeln!(out, "# made by API: {}", printable(&made))?;
        }
        for line in self.toml.lines() {
            writeln!(out, "{}", printable(line))?;
        }
        Ok(())
    }
}

impl Answer for Checked {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        for problem in &self.problems {
            problem.write(&paint.paint(Tone::Bad, "problem"), out)?;
        }
        for warning in &self.warnings {
            warning.write(&paint.paint(Tone::Doubtful, "warning"), out)?;
        }
        match self.valid {
            true => writeln!(out, "{}", paint.paint(Tone::Good, "it would be taken")),
            false => writeln!(out, "{}", paint.paint(Tone::Bad, "it would be refused")),
        }
    }

    fn exit_code(&self) -> u8 {
        if self.valid { 0 } else { 4 }
    }
}

impl Problem {
    fn write(&self, kind: &str, out: &mut dyn Write) -> io::Result<()> {
        let text = printable(&self.text);
        match (self.line, self.column) {
            (Some(line), Some(column)) => writeln!(out, "{line}:{column}: {kind}: {text}"),
            (Some(line), None) => writeln!(out, "{line}: {kind}: {text}"),
            (None, _) => writeln!(out, "{kind}: {text}"),
        }
    }
}

impl Answer for Differences {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        if self.changes.is_empty() {
            writeln!(out, "no differences")?;
        }
        write_changes(&self.changes, &self.warnings, paint, out)?;
        if self.changes.iter().any(|change| change.needs_restart) {
            writeln!(out, "a reload would be refused: a restart is needed")?;
        }
        Ok(())
    }

    fn exit_code(&self) -> u8 {
        match &self.changes[..] {
            [] => 0,
            changes if changes.iter().any(|change| change.needs_restart) => 4,
            _ => 5,
        }
    }
}

impl Answer for Reloaded {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        if self.changes.is_empty() {
            writeln!(out, "read again; nothing has changed")?;
        }
        write_changes(&self.changes, &self.warnings, paint, out)
    }
}

impl Answer for Changed {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", printable(&self.message))?;
        write_changes(&self.changes, &self.warnings, paint, out)
    }
}

fn write_changes(
    changes: &[Change],
    warnings: &[String],
    paint: Paint,
    out: &mut dyn Write,
) -> io::Result<()> {
    for change in changes {
        change.write(paint, out)?;
    }
    for warning in warnings {
        let word = paint.paint(Tone::Doubtful, "warning");
        writeln!(out, "{word}: {}", printable(warning))?;
    }
    Ok(())
}

impl Change {
    /// As a diff: a sign and the subject; what differs, then what that does.
    fn write(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let (sign, tone) = match self.kind {
            "added" => ('+', Tone::Good),
            "removed" => ('-', Tone::Bad),
            _ => ('~', Tone::Doubtful),
        };
        let head = format!("{sign} {}", printable(&self.subject));
        write!(out, "{}", paint.paint(tone, &head))?;
        match &self.details[..] {
            [detail] => writeln!(out, ": {}", printable(detail))?,
            details => {
                writeln!(out)?;
                for detail in details {
                    writeln!(out, "    {}", printable(detail))?;
                }
            }
        }
        if let Some(effect) = &self.effect {
            writeln!(
                out,
                "    {}",
                paint.paint(Tone::Heading, &printable(effect))
            )?;
        }
        if self.needs_restart {
            writeln!(out, "    {}", paint.paint(Tone::Bad, "needs a restart"))?;
        }
        Ok(())
    }
}

fn changes(changes: Vec<v1::ConfigChange>) -> Vec<Change> {
    changes.into_iter().map(Change::from).collect()
}

impl From<v1::ConfigChange> for Change {
    fn from(change: v1::ConfigChange) -> Self {
        Self {
            kind: match change.kind() {
                v1::ChangeKind::Unspecified => "unknown",
                v1::ChangeKind::Added => "added",
                v1::ChangeKind::Removed => "removed",
                v1::ChangeKind::Changed => "changed",
            },
            subject: change.subject,
            details: change.details,
            effect: Some(change.effect).filter(|effect| !effect.is_empty()),
            needs_restart: change.needs_restart,
        }
    }
}

impl From<v1::GetConfigResponse> for InUse {
    fn from(answer: v1::GetConfigResponse) -> Self {
        Self {
            toml: answer.toml,
            file: answer.file,
            loaded_at: At(answer.loaded_at),
            api_made: answer.api_made,
        }
    }
}

impl From<v1::ValidateConfigResponse> for Checked {
    fn from(answer: v1::ValidateConfigResponse) -> Self {
        let all =
            |problems: Vec<v1::ConfigProblem>| problems.into_iter().map(Problem::from).collect();
        Self {
            valid: answer.valid,
            problems: all(answer.problems),
            warnings: all(answer.warnings),
        }
    }
}

impl From<v1::ConfigProblem> for Problem {
    fn from(v1::ConfigProblem { line, column, text }: v1::ConfigProblem) -> Self {
        let told = |number| Some(number).filter(|&number| number > 0);
        Self {
            line: told(line),
            column: told(column),
            text,
        }
    }
}

impl From<v1::DiffConfigResponse> for Differences {
    fn from(answer: v1::DiffConfigResponse) -> Self {
        Self {
            changes: changes(answer.changes),
            warnings: answer.warnings,
        }
    }
}

impl From<v1::ReloadConfigResponse> for Reloaded {
    fn from(answer: v1::ReloadConfigResponse) -> Self {
        Self {
            changes: changes(answer.changes),
            warnings: answer.warnings,
        }
    }
}

impl From<v1::ChangeResponse> for Changed {
    fn from(answer: v1::ChangeResponse) -> Self {
        Self {
            message: answer.message,
            changes: changes(answer.changes),
            warnings: answer.warnings,
        }
    }
}
