//! Aligned text.

use std::borrow::Cow;
use std::io::{self, Write};

use super::output::{Paint, Tone};

/// The text without what would move a terminal's cursor: parts of it may come from far away.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, "\u{fffd}").into(),
        false => text.into(),
    }
}

/// The same for a text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(printable).collect();
    lines.join("\n")
}

/// The text, cut where it would make a table unreadable.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Rows under a heading; each column is as wide as its widest cell.
pub(super) struct Table {
    headings: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// How a column is headed and aligned.
#[derive(Clone, Copy)]
pub(super) enum Column {
    /// Text, aligned to the left.
    Text(&'static str),
    /// Numbers, aligned to the right.
    Number(&'static str),
    /// States, aligned to the left and coloured.
    State(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Text(heading) | Self::Number(heading) | Self::State(heading) => heading,
        }
    }
}

impl Table {
    pub(super) fn new(headings: &[Column]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has a cell for each column.
    pub(super) fn row<const N: usize>(&mut self, cells: [&dyn ToString; N]) {
        let printable = |cell: &dyn ToString| shortened(&printable(&cell.to_string())).into_owned();
        self.rows.push(cells.map(printable).into());
    }

    /// Writes the table, or `empty` when it has no rows.
    pub(super) fn write(&self, empty: &str, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return writeln!(out, "{empty}");
        }
        let headings: Vec<String> = self
            .headings
            .iter()
            .map(|column| column.heading().to_owned())
            .collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let mut widths = vec![0; headings.len()];
        for row in lines() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for (number, row) in lines().enumerate() {
            // Blanks are written before the cell that follows them, so that no line ends in any.
            let (mut line, mut blanks) = (String::new(), 0);
            for ((cell, column), width) in row.iter().zip(&self.headings).zip(&widths) {
                let missing = width - cell.chars().count();
                let tone = match (number, column) {
                    (0, _) => Tone::Heading,
                    (_, Column::State(_)) => tone_of(cell),
                    _ => Tone::Plain,
                };
                let (before, after) = match column {
                    Column::Number(_) => (missing, 0),
                    Column::Text(_) | Column::State(_) => (0, missing),
                };
                if !cell.is_empty() {
                    line.extend(std::iter::repeat_n(' ', blanks + before));
                    line.push_str(&paint.paint(tone, cell));
                    blanks = after + GAP;
                } else {
                    blanks += missing + GAP;
                }
            }
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

/// Blanks between two columns.
const GAP: usize = 2;

/// What a state means for who reads it.
pub(super) fn tone_of(state: &str) -> Tone {
    match state {
        "established" | "active" | "proven" | "ok" => Tone::Good,
        "down" | "closing" | "restored" | "revoking" => Tone::Doubtful,
        "blocked" | "expired" | "unreachable" => Tone::Bad,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::aoctl::When;

    fn shown(when: When) -> String {
        let mut table = Table::new(&[
            Column::Text("PEER"),
            Column::State("STATE"),
            Column::Number("KEYS"),
            Column::Text("REASON"),
        ]);
        table.row([&"a", &"established", &7, &""]);
        table.row([&"\u{1b}[2J", &"blocked", &10_000, &"none"]);
        let mut out = Vec::new();
        let paint = Paint::new(when, &io::stdout());
        table.write("nothing", paint, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_control_characters_replaced() {
        insta::assert_snapshot!(shown(When::Never), @r"
PEER  STATE         KEYS  REASON
a     established      7
�[2J  blocked      10000  none
");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let coloured = shown(When::Always);
        let plain = ["\u{1b}[1m", "\u{1b}[32m", "\u{1b}[1;31m", "\u{1b}[0m"]
            .iter()
            .fold(coloured.clone(), |text, code| text.replace(code, ""));
        assert_eq!(plain, shown(When::Never));
        assert!(
            coloured.contains("\u{1b}[32mestablished\u{1b}[0m"),
            "{coloured}"
        );
        assert!(
            coloured.contains("\u{1b}[1;31mblocked\u{1b}[0m"),
            "{coloured}"
        );
    }
}
