//! How answers are shown: as text, with colours or without, or as JSON.

use std::env;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::cli::aoctl::When;

/// How to show an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people, with colours or without.
    Text(Paint),
    /// For programs.
    Json,
}

/// What a piece of text tells at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Doubtful,
    Bad,
    Heading,
    Plain,
}

/// Gives text its colour, or leaves it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    colours: bool,
    width: usize,
}

/// Columns of a page that is no terminal.
const PAGE: usize = 80;

impl Paint {
    /// Colours for what goes to `stream`, as wanted. Whoever sets NO_COLOR to anything wants none.
    #[must_use]
    pub fn new(when: When, stream: &impl IsTerminal) -> Self {
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let colours = match when {
            When::Always => true,
            When::Never => false,
            When::Auto => stream.is_terminal() && !dumb && !set("NO_COLOR"),
        };
        let columns = match stream.is_terminal() {
            true => crossterm::terminal::size().map_or(PAGE, |(columns, _)| columns.into()),
            false => PAGE,
        };
        Self {
            colours,
            // Longer lines are hard to read, shorter ones are none.
            width: columns.clamp(40, 100),
        }
    }

    /// Whether there are any.
    pub(super) fn has_colours(self) -> bool {
        self.colours
    }

    /// How many columns paragraphs may have.
    pub(super) fn width(self) -> usize {
        self.width
    }

    /// The text in the colour of its tone.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "1;31",
            Tone::Heading => "1",
            Tone::Plain => "",
        };
        match self.colours && !code.is_empty() && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// An answer that has a form for people and one for programs.
pub(super) trait Answer: Serialize {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()>;

    /// The exit code that it is shown with.
    fn exit_code(&self) -> u8 {
        0
    }
}

/// An answer, whatever it is about. It needs neither connection nor runtime any more.
pub struct Shown(Box<dyn Show>);

trait Show {
    fn show(&self, format: Format, out: &mut dyn Write) -> io::Result<()>;
    fn exit_code(&self) -> u8;
}

impl<A: Answer> Show for A {
    fn show(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Text(paint) => self.text(paint, out)?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut *out, self).map_err(io::Error::from)?;
                writeln!(out)?;
            }
        }
        out.flush()
    }

    fn exit_code(&self) -> u8 {
        Answer::exit_code(self)
    }
}

impl Shown {
    pub(super) fn new(answer: impl Answer + 'static) -> Self {
        Self(Box::new(answer))
    }

    /// Writes it to `out`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        self.0.show(format, out)
    }

    /// The exit code that goes with it: 0, unless it tells of problems or differences.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.0.exit_code()
    }
}
