//! What is wrong with a configuration, and where.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use grpc_api::operator::administration::Origin;

use super::NO_PEER;
use super::overlay::Document;

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
    /// Line and column, both from 1; absent when the whole file is meant, or something that was
    /// made by API, which the text then names.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to write instead.
    pub text: String,
    /// What of the things made by API it is about, if it is about one.
    pub(crate) subject: Option<String>,
}

impl ConfigError {
    /// A problem with the whole file.
    pub(super) fn of_file(file: &Path, text: String) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                place: None,
                text,
                subject: None,
            }],
        }
    }

    /// Whether nothing is wrong but that nobody is to be protected.
    pub(crate) fn is_want_of_peers(&self) -> bool {
        self.problems.iter().all(|problem| problem.text == NO_PEER)
    }

    /// The problems, in the order of the file; then those of what was made by API.
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

/// Most problems and most warnings of a file that are kept.
const MAX_KEPT: usize = 200;

/// Collects the problems of one text by their place in it, so that all of them can be told at once.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: Text<'t>,
    /// Offsets of the lines of the file.
    lines: Vec<usize>,
    errors: Noted,
    /// What does not keep the configuration from being used.
    warnings: Noted,
}

/// What was noted about a text, by offsets.
#[derive(Debug, Default)]
struct Noted {
    kept: RefCell<Vec<(usize, String)>>,
    /// How much came after the most that is kept.
    more: Cell<usize>,
}

impl Noted {
    fn add(&self, most: usize, span: &Range<usize>, text: impl Into<String>) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < most {
            kept.push((span.start, text.into()));
        } else {
            self.more.set(self.more.get() + 1);
        }
    }
}

/// One of the two texts that a configuration is made of.
#[derive(Debug)]
enum Text<'t> {
    File(&'t str, &'t Path),
    Api(&'t Document<'t>),
}

impl<'t> Problems<'t> {
    /// Those of `file`, which has this text.
    pub(super) fn of_file(text: &'t str, file: &'t Path) -> Self {
        let after_newline = text.match_indices('\n').map(|(offset, _)| offset + 1);
        let lines = std::iter::once(0).chain(after_newline).collect();
        Self::new(Text::File(text, file), lines)
    }

    /// Those of what was made by API.
    pub(super) fn of_api(made: &'t Document<'t>) -> Self {
        Self::new(Text::Api(made), Vec::new())
    }

    fn new(text: Text<'t>, lines: Vec<usize>) -> Self {
        Self {
            text,
            lines,
            errors: Noted::default(),
            warnings: Noted::default(),
        }
    }

    /// Notes a problem at the start of `span`.
    pub(super) fn add(&self, span: &Range<usize>, text: impl Into<String>) {
        self.errors.add(self.most_kept(), span, text);
    }

    /// Notes something doubtful at the start of `span`.
    pub(super) fn warn(&self, span: &Range<usize>, text: impl Into<String>) {
        self.warnings.add(self.most_kept(), span, text);
    }

    /// All of them are kept of what was made by API, which is bounded: each tells what of it does
    /// not fit.
    fn most_kept(&self) -> usize {
        match self.text {
            Text::File(..) => MAX_KEPT,
            Text::Api(_) => usize::MAX,
        }
    }

    /// Whether nothing was noted that is wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.errors.kept.borrow().is_empty()
    }

    /// What was made by API, if that is what the problems are about.
    pub(super) fn made_by_api(&self) -> Option<&'t Document<'t>> {
        match self.text {
            Text::File(..) => None,
            Text::Api(made) => Some(made),
        }
    }

    /// The problems and the warnings, each in the order of the text.
    fn in_order(self) -> (Vec<Problem>, Vec<Problem>) {
        let told = |noted: &Noted| {
            let mut kept = noted.kept.take();
            kept.sort_by_key(|&(offset, _)| offset);
            let kept = kept.into_iter();
            let mut told: Vec<Problem> = kept
                .map(|(offset, text)| self.problem(offset, text))
                .collect();
            let more = noted.more.get();
            if more > 0 {
                let text = format!("and {more} more like these");
                told.push(Problem {
                    place: None,
                    text,
                    subject: None,
                });
            }
            told
        };
        (told(&self.errors), told(&self.warnings))
    }

    fn problem(&self, offset: usize, text: String) -> Problem {
        match self.text {
            Text::File(..) => Problem {
                place: Some(self.line_and_column(offset)),
                text,
                subject: None,
            },
            Text::Api(made) => Problem {
                place: None,
                text: format!("made by API: {}: {text}", made.subject(offset)),
                subject: Some(made.subject(offset).to_owned()),
            },
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).max(1)
    }

    /// Line and column of an offset, both from 1; columns count characters.
    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let start = self.lines.get(line - 1).copied().unwrap_or_default();
        let before = match self.text {
            Text::File(text, _) => text.get(start..offset).or_else(|| text.get(start..)),
            Text::Api(_) => None,
        };
        (line, before.map_or(0, |before| before.chars().count()) + 1)
    }
}

/// The warnings about the texts of a configuration, or the error that tells all problems. The first
/// text is that of `file`.
pub(super) fn told<const N: usize>(
    file: &Path,
    texts: [Problems<'_>; N],
) -> Result<Vec<Problem>, ConfigError> {
    let (problems, warnings): (Vec<_>, Vec<_>) = texts.map(Problems::in_order).into_iter().unzip();
    let problems = problems.concat();
    if problems.is_empty() {
        Ok(warnings.concat())
    } else {
        Err(ConfigError {
            file: file.to_owned(),
            problems,
        })
    }
}

/// A part of one of the texts.
#[derive(Clone, Debug)]
pub(super) struct Place<'p> {
    pub(super) problems: &'p Problems<'p>,
    pub(super) span: Range<usize>,
}

impl Place<'_> {
    /// Notes a problem with it.
    pub(super) fn problem(&self, text: impl Into<String>) {
        self.problems.add(&self.span, text);
    }

    /// Notes that it is doubtful.
    pub(super) fn warn(&self, text: impl Into<String>) {
        self.problems.warn(&self.span, text);
    }

    /// Where the object that it is of was made, if it is the beginning of that object.
    pub(super) fn origin(&self) -> Origin {
        match self.problems.text {
            Text::File(..) => {
                let line = self.problems.line(self.span.start);
                Origin::File(u32::try_from(line).unwrap_or(u32::MAX))
            }
            Text::Api(_) => Origin::Api,
        }
    }

    /// Where it is, told to somebody who looks at `from`.
    pub(super) fn seen_from(&self, from: &Place<'_>) -> String {
        match self.problems.text {
            Text::Api(made) => format!("made by API ({})", made.subject(self.span.start)),
            Text::File(_, file) => {
                let line = self.problems.line(self.span.start);
                match from.problems.text {
                    Text::File(..) => format!("in line {line}"),
                    Text::Api(_) => format!("in {}:{line}", file.display()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nü = 2\n";
        let problems = Problems::of_file(text, Path::new(""));
        let place = |offset| problems.line_and_column(offset);
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(4), (1, 5));
        assert_eq!(place(6), (2, 1));
        assert_eq!(place(9), (2, 3));
        assert_eq!(place(text.len()), (3, 1));
        assert_eq!(place(99), (3, 1));
    }

    #[test]
    fn of_many_problems_the_first_are_told() {
        let problems = Problems::of_file("a\nb\n", Path::new("f"));
        for _ in 0..MAX_KEPT + 3 {
            problems.add(&(2..3), "wrong");
            problems.warn(&(0..1), "doubtful");
        }
        let error = told(Path::new("f"), [problems]).unwrap_err();
        assert_eq!(error.problems().len(), MAX_KEPT + 1);
        let shown = error.to_string();
        assert_eq!(shown.lines().next(), Some("f:2:1: wrong"));
        assert_eq!(shown.lines().last(), Some("f: and 3 more like these"));
    }
}
