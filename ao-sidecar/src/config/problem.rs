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

/// One thing that is wrong. Shown with its place, and without the file.
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
            write!(f, "{}:{problem}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.text)
    }
}

/// Collects problems by their place in the text, so that all of them can be told at once.
#[derive(Debug, Default)]
pub(super) struct Problems {
    errors: RefCell<Vec<(usize, String)>>,
    /// What does not keep the configuration from being used.
    warnings: RefCell<Vec<(usize, String)>>,
}

impl Problems {
    /// Notes a problem at the start of `span`.
    pub(super) fn add(&self, span: &Range<usize>, text: impl Into<String>) {
        self.errors.borrow_mut().push((span.start, text.into()));
    }

    /// Notes something doubtful at the start of `span`.
    pub(super) fn warn(&self, span: &Range<usize>, text: impl Into<String>) {
        self.warnings.borrow_mut().push((span.start, text.into()));
    }

    /// The warnings about `text`, or the error that tells all problems; `file` is where `text` was
    /// read from.
    pub(super) fn into_result(self, file: &Path, text: &str) -> Result<Vec<Problem>, ConfigError> {
        let problems = in_order(self.errors.into_inner(), text);
        if problems.is_empty() {
            Ok(in_order(self.warnings.into_inner(), text))
        } else {
            Err(ConfigError {
                file: file.to_owned(),
                problems,
            })
        }
    }
}

fn in_order(mut noted: Vec<(usize, String)>, text: &str) -> Vec<Problem> {
    noted.sort_by_key(|&(offset, _)| offset);
    let problem = |(offset, problem)| Problem {
        place: Some(place(text, offset)),
        text: problem,
    };
    noted.into_iter().map(problem).collect()
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
