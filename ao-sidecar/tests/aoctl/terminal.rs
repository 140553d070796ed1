//! What is different on a terminal: the live view, colours, and secrets that are typed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use grpc_api::operator::administration::Changed;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::fixture::snapshot;
use crate::server::{Server, program, words};

/// `aoctl` on a terminal of its own.
struct OnTerminal {
    process: Child,
    keyboard: File,
    /// Keeps the terminal, so that its state can be seen afterwards.
    terminal: OwnedFd,
    screen: Receiver<Vec<u8>>,
    written: Vec<u8>,
    before: LocalFlags,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl OnTerminal {
    fn start(server: &Server, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let size = Winsize {
            ws_row: SIZE.0.try_into().unwrap(),
            ws_col: SIZE.1.try_into().unwrap(),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pair.slave).unwrap().local_flags;
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let process = program()
            .arg("--socket")
            .arg(server.socket())
            .args(arguments)
            .env("TERM", "xterm")
            .envs(variables.iter().copied())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keyboard = File::from(pair.master);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        // It ends when the terminal does, or nobody looks any more.
        std::thread::spawn(move || {
            let mut octets = [0; 4096];
            while let Ok(count) = reader.read(&mut octets) {
                if count == 0 || sender.send(octets[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            process,
            keyboard,
            terminal: pair.slave,
            screen,
            written: Vec::new(),
            before,
        }
    }

    /// Waits until this holds for what was written to the terminal.
    fn await_written(&mut self, what: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !what(&String::from_utf8_lossy(&self.written)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(octets) => self.written.extend(octets),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!(
                        "not yet:\n{}",
                        page(&String::from_utf8_lossy(&self.written))
                    )
                }
            }
        }
    }

    /// Waits until all of these are seen.
    fn await_seen(&mut self, texts: &[&str]) {
        self.await_written(|written| {
            let page = page(written);
            texts.iter().all(|text| page.contains(text))
        });
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn flags(&self) -> LocalFlags {
        tcgetattr(&self.terminal).unwrap().local_flags
    }

    /// Waits until it has ended, and sees to it that the terminal is as it was.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(self.flags(), self.before);
        status
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const SIZE: (usize, usize) = (24, 120);

/// What a terminal shows after this was written to it: characters, and where they are put.
fn page(written: &str) -> String {
    let (lines, columns) = SIZE;
    let mut cells = vec![vec![' '; columns]; lines];
    let (mut line, mut column) = (0, 0);
    let mut rest = written.chars();
    while let Some(character) = rest.next() {
        match character {
            '\u{1b}' => {
                let mut sequence = String::new();
                for part in rest.by_ref() {
                    sequence.push(part);
                    if part.is_ascii_alphabetic() {
                        break;
                    }
                }
                if let Some(place) = sequence.strip_prefix('[').and_then(|s| s.strip_suffix('H')) {
                    let (to_line, to_column) = place.split_once(';').unwrap_or(("1", "1"));
                    (line, column) = (number(to_line) - 1, number(to_column) - 1);
                }
            }
            '\r' => column = 0,
            '\n' => line += 1,
            other => {
                if let Some(cell) = cells.get_mut(line).and_then(|line| line.get_mut(column)) {
                    *cell = other;
                }
                column += 1;
            }
        }
    }
    let text = cells.iter().map(|line| line.iter().collect::<String>());
    text.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn number(digits: &str) -> usize {
    digits.parse().unwrap()
}

const LEFT: &str = "\u{1b}[?1049l";

#[test]
fn top_shows_the_peers_and_puts_the_terminal_back() {
    let server = Server::start(Some(snapshot()));
    server.events.push(crate::events::proven("as64502"));
    let mut top = OnTerminal::start(&server, &["top", "--interval", "100ms"], &[]);
    top.await_seen(&["as64502", "blocked", "generation", "proven"]);
    assert!(!top.flags().contains(LocalFlags::ICANON));
    top.press("\t");
    top.await_seen(&["10.0.0.1:40123"]);
    top.press("q");
    assert_eq!(top.end().code(), Some(0));
    top.await_written(|written| written.contains(LEFT));
}

#[test]
fn top_ends_in_order_by_ctrl_c_and_by_signals() {
    let server = Server::start(Some(snapshot()));
    let end = |how: &dyn Fn(&mut OnTerminal)| {
        let mut top = OnTerminal::start(&server, &["top"], &[]);
        top.await_seen(&["as64502"]);
        how(&mut top);
        assert_eq!(top.end().code(), Some(0));
        top.await_written(|written| written.contains(LEFT));
    };
    end(&|top| top.press("\u{3}"));
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        end(&|top| kill(Pid::from_raw(top.process.id().try_into().unwrap()), signal).unwrap());
    }
}

#[test]
fn top_goes_on_trying_while_the_sidecar_is_gone() {
    let server = Server::start(Some(snapshot()));
    let mut top = OnTerminal::start(&server, &["top", "--interval", "100ms"], &[]);
    top.await_seen(&["as64502"]);
    let folder = server.stop();
    top.await_seen(&["GONE, trying again", "as64502"]);
    let _again = Server::start_in(folder, Some(snapshot()));
    top.await_written(|written| !page(written).contains("GONE"));
    top.press("q");
    assert_eq!(top.end().code(), Some(0));
}

#[test]
fn top_refuses_what_is_no_terminal() {
    let server = Server::start(Some(snapshot()));
    let (code, text, error) = server.outcome(&["top"]);
    assert_eq!((code, text.as_str()), (Some(2), ""));
    assert_eq!(
        error,
        "aoctl: top needs a terminal; `aoctl status --json` is for programs\n"
    );
}

#[test]
fn colours_are_for_terminals_unless_told_otherwise() {
    const RED: &str = "\u{1b}[1;31mblocked";
    let server = Server::start(Some(snapshot()));
    assert!(
        !server.answer(&["peers"]).contains('\u{1b}'),
        "none in a pipe"
    );
    assert!(server.answer(&["peers", "--color", "always"]).contains(RED));

    let on_terminal = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut aoctl = OnTerminal::start(&server, arguments, variables);
        assert_eq!(aoctl.end().code(), Some(0));
        aoctl.await_written(|written| written.contains("aoctl doctor"));
        String::from_utf8_lossy(&aoctl.written).contains(RED)
    };
    assert!(on_terminal(&["peers"], &[]));
    assert!(!on_terminal(&["peers", "--color", "never"], &[]));
    assert!(!on_terminal(&["peers"], &[("NO_COLOR", "1")]));
    assert!(!on_terminal(&["peers"], &[("TERM", "dumb")]));
    assert!(
        on_terminal(&["peers"], &[("NO_COLOR", "")]),
        "empty is not set"
    );
}

#[test]
fn a_typed_secret_is_not_shown() {
    let server = Server::start(Some(snapshot()));
    *server.administration.changed.lock().unwrap() = Changed::default();
    let arguments = words(
        "keys add transit --send-id 5 --recv-id 6 --algorithm aes-128-cmac-96 \
         --secret-file -",
    );
    let mut aoctl = OnTerminal::start(&server, &arguments, &[]);
    aoctl.await_written(|written| written.contains("secret: "));
    aoctl.press("hunter2\u{7f}3\n");
    assert_eq!(aoctl.end().code(), Some(0));
    assert!(server.administration.last().ends_with("Some(\"hunter3\")"));
    aoctl.await_seen(&["as64502"]);
    let written = String::from_utf8_lossy(&aoctl.written);
    assert!(!written.contains("hunter"), "{written}");

    let mut aoctl = OnTerminal::start(&server, &arguments, &[]);
    aoctl.await_written(|written| written.contains("secret: "));
    aoctl.press("hunter\u{3}");
    assert_eq!(aoctl.end().code(), Some(1));
    assert_eq!(server.administration.asked.lock().unwrap().len(), 1);
}
