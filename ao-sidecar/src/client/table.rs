//! Aligned text.

use std::borrow::Cow;
use std::io::{self, Write};

/// The text without what would move a terminal's cursor: parts of it may come from far away.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, "\u{fffd}").into(),
        false => text.into(),
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
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Text(heading) | Self::Number(heading) => heading,
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
        self.rows.push(cells.map(ToString::to_string).into());
    }

    /// Writes the table, or `empty` when it has no rows.
    pub(super) fn write(&self, empty: &str, out: &mut dyn Write) -> io::Result<()> {
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
        for row in lines() {
            let mut line = String::new();
            for ((cell, column), width) in row.iter().zip(&self.headings).zip(&widths) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line.push_str(&match column {
                    Column::Text(_) => format!("{cell:<width$}"),
                    Column::Number(_) => format!("{cell:>width$}"),
                });
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
