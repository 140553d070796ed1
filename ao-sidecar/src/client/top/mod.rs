//! `aoctl top`: a live view. What is seen changes by [`View::update`] only, and [`draw::draw`]
//! shows it; both are free of terminal, clock and connection.

mod draw;
mod poll;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use self::view::{Key, Message, View};
use super::{ClientError, Paint, Sidecar};

/// How soon a key is answered, and news are shown.
const TICK: Duration = Duration::from_millis(50);

/// Shows peers, sessions and events until the user has seen enough; looks at the sidecar each
/// `interval`, and goes on trying while it does not answer.
///
/// # Errors
/// When the output is no terminal, or fails.
pub fn top(sidecar: &Sidecar, interval: Duration, paint: Paint) -> Result<(), ClientError> {
    if !io::stdout().is_terminal() {
        return Err(ClientError::Usage(
            "top needs a terminal; `aoctl status --json` is for programs".to_owned(),
        ));
    }
    // Less would keep the sidecar busy with nothing else.
    let news = poll::start(sidecar.clone(), interval.max(Duration::from_millis(100)))?;
    let view = View::new(sidecar.to_string());
    // Also puts the terminal back before a panic is told.
    let mut terminal = Terminal(ratatui::try_init()?);
    show(&mut terminal, view, news, paint)
}

/// A terminal that is put back when this goes.
struct Terminal(ratatui::DefaultTerminal);

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is no other way back if this fails.
        let _ = ratatui::try_restore();
    }
}

fn show(
    terminal: &mut Terminal,
    mut view: View,
    mut news: Receiver<Message>,
    paint: Paint,
) -> Result<(), ClientError> {
    loop {
        terminal.0.draw(|frame| draw::draw(&view, paint, frame))?;
        let mut changed = false;
        while !changed {
            if event::poll(TICK)? {
                changed = true;
                if let Some(key) = key(&event::read()?) {
                    view.update(Message::Key(key));
                }
            }
            loop {
                match news.try_recv() {
                    Ok(message) => view.update(message),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
                changed = true;
            }
        }
        if view.ended() {
            return Ok(());
        }
    }
}

/// What a key press is for; nothing for other input.
fn key(event: &Event) -> Option<Key> {
    let Event::Key(pressed) = event else {
        return None;
    };
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    Some(match pressed.code {
        KeyCode::Char('c') if pressed.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Tab => Key::Switch,
        KeyCode::Up => Key::Up(1),
        KeyCode::Down => Key::Down(1),
        KeyCode::PageUp => Key::Up(PAGE),
        KeyCode::PageDown => Key::Down(PAGE),
        KeyCode::Home => Key::Up(usize::MAX),
        KeyCode::End => Key::Down(usize::MAX),
        _ => return None,
    })
}

/// Lines that a page key scrolls.
const PAGE: usize = 10;
