//! What is wrong with a configuration, and where.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A configuration that was refused. Its text has one line for each problem and never repeats a
/// line of the file, which could hold a secret.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line and column, both from 1; absent when the whole file is meant.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to write instead.
    pub text: String,
}

impl ConfigError {
    /// A problem with the whole file.
    pub(super) fn of_file(file: &Path, text: String) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem { place: None, text }],
        }
    }

    /// The problems, in the order of the file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file.display())?;
            if let Some((line, column)) = problem.place {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects problems by their place in the text, so that all of them can be told at once.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<(usize, String)>>);

impl Problems {
    /// Notes a problem at the start of `span`.
    pub(super) fn add(&self, span: &Range<usize>, text: impl Into<String>) {
        self.0.borrow_mut().push((span.start, text.into()));
    }

    /// Nothing, or the error that tells everything noted about `text`, read from `file`.
    pub(super) fn into_result(self, file: &Path, text: &str) -> Result<(), ConfigError> {
        let mut problems = self.0.into_inner();
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by_key(|&(offset, _)| offset);
        let problems = problems
            .into_iter()
            .map(|(offset, problem)| Problem {
                place: Some(place(text, offset)),
                text: problem,
            })
            .collect();
        Err(ConfigError {
            file: file.to_owned(),
            problems,
        })
    }
}

/// Line and column of an offset, both from 1; columns count characters.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nü = 2\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, 4), (1, 5));
        assert_eq!(place(text, 6), (2, 1));
        assert_eq!(place(text, 9), (2, 3));
        assert_eq!(place(text, text.len()), (3, 1));
        assert_eq!(place(text, 99), (3, 1));
    }
}
