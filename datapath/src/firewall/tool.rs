//! Runs the tools that change the firewall, in the calling thread's network namespace.

use std::env;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;

/// Where the tools are when PATH does not say, as with a service manager's.
const ADMIN_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// How long a tool may take: longer than it needs for thousands of peers on a busy host.
const LONGEST_RUN: Duration = Duration::from_secs(20);
/// What a pipe takes without blocking once it is said to take anything (pipe(7)).
const PIPE_BUF: usize = 4096;
/// Between two looks whether a tool that has closed its output has ended, too.
const ENDING: Duration = Duration::from_millis(1);

/// A command and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
}

impl Tool {
    /// Runs the tool and returns what it printed. One that does not end in time is killed.
    pub(super) fn run(self, arguments: &[&str], input: &str) -> Result<String, Error> {
        self.run_within(LONGEST_RUN, arguments, input)
    }

    fn run_within(self, limit: Duration, arguments: &[&str], input: &str) -> Result<String, Error> {
        let failed = |reason: String| Error::Tool {
            tool: self.name,
            reason,
        };
        let mut child = Command::new(self.path()?)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let ended = converse(&mut child, input.as_bytes(), Instant::now() + limit);
        let (output, written) = ended.map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::TimedOut => {
                    format!("did not end within {} s and was killed", limit.as_secs())
                }
                _ => error.to_string(),
            };
            kill(child);
            failed(reason)
        })?;
        if !output.status.success() {
            return Err(failed(first_lines(&output.stderr)));
        }
        written.map_err(|error| failed(error.to_string()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether the tool is installed.
    pub(super) fn check(self) -> Result<(), Error> {
        self.path().map(drop)
    }

    fn path(self) -> Result<PathBuf, Error> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(env::split_paths(ADMIN_DIRECTORIES))
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(self.name))
            .find(|candidate| candidate.is_file())
            .ok_or(Error::MissingTool {
                tool: self.name,
                package: self.package,
            })
    }
}

/// Writes the input and reads what is printed, until the tool has ended; also whether it took all of
/// the input: one that ends early does not, and its exit status says what was wrong.
fn converse(
    child: &mut Child,
    mut input: &[u8],
    deadline: Instant,
) -> io::Result<(Output, io::Result<()>)> {
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut printed, mut complaint) = (Vec::new(), Vec::new());
    let mut written = Ok(());
    while stdout.is_some() || stderr.is_some() {
        if input.is_empty() {
            stdin = None;
        }
        let [can_write, has_output, has_complaint] = wait(
            [
                (stdin.as_ref().map(AsFd::as_fd), PollFlags::POLLOUT),
                (stdout.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
                (stderr.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            ],
            deadline,
        )?;
        if can_write && let Some(pipe) = &mut stdin {
            let (piece, _) = input.split_at(input.len().min(PIPE_BUF));
            match pipe.write(piece) {
                Ok(taken) => input = input.get(taken..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    written = Err(error);
                    stdin = None;
                }
            }
        }
        if has_output {
            read_some(&mut stdout, &mut printed)?;
        }
        if has_complaint {
            read_some(&mut stderr, &mut complaint)?;
        }
    }
    drop(stdin);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(ENDING);
    };
    let output = Output {
        status,
        stdout: printed,
        stderr: complaint,
    };
    Ok((output, written))
}

/// Waits until something can be done with any of these pipes; with which.
fn wait<const N: usize>(
    pipes: [(Option<BorrowedFd<'_>>, PollFlags); N],
    deadline: Instant,
) -> io::Result<[bool; N]> {
    let mut descriptors: Vec<PollFd> = pipes
        .iter()
        .filter_map(|(pipe, events)| Some(PollFd::new((*pipe)?, *events)))
        .collect();
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let millis = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
    match poll(&mut descriptors, PollTimeout::from(millis)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut found = descriptors.iter().map(|it| it.any().unwrap_or(false));
    Ok(pipes.map(|(pipe, _)| pipe.is_some() && found.next().unwrap_or(false)))
}

/// Reads what is there; the pipe goes when it has ended.
fn read_some(pipe: &mut Option<impl Read>, text: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let Some(open) = pipe else { return Ok(()) };
    match open.read(&mut buffer) {
        Ok(0) => *pipe = None,
        Ok(length) => text.extend_from_slice(buffer.get(..length).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Kills a tool, and has somebody else wait for its end: what hangs in the kernel does not die.
fn kill(mut child: Child) {
    // It may have ended by now.
    let _ = child.kill();
    let reaper = thread::Builder::new().name("ao-reaper".to_owned());
    if let Err(error) = reaper.spawn(move || child.wait()) {
        tracing::warn!(%error, "a tool that was killed is not waited for");
    }
}

/// The beginning of an error message, on one line.
fn first_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(3)
        .collect();
    if lines.is_empty() {
        "failed without a message".to_owned()
    } else {
        lines.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tool_names_its_package() {
        let tool = Tool {
            name: "no-such-tool",
            package: "nftables",
        };
        let error = tool.run(&[], "").unwrap_err();
        assert!(
            error.to_string().contains("apt-get install nftables"),
            "{error}"
        );
    }

    #[test]
    fn failure_carries_the_message() {
        let tool = Tool {
            name: "sh",
            package: "dash",
        };
        let error = tool.run(&["-c", "echo wrong >&2; exit 3"], "").unwrap_err();
        assert_eq!(error.to_string(), "sh: wrong");
        assert_eq!(tool.run(&["-c", "cat"], "text").unwrap(), "text");
        let long = "0123456789abcdef".repeat(64 * 1024);
        assert_eq!(tool.run(&["-c", "cat"], &long).unwrap(), long);
        let unread = tool.run(&["-c", "exec <&-; exit 1"], &long).unwrap_err();
        assert_eq!(unread.to_string(), "sh: failed without a message");
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed() {
        let tool = Tool {
            name: "sh",
            package: "dash",
        };
        let begun = Instant::now();
        for script in [
            "exec sleep 600",
            "exec >&- 2>&-; exec sleep 600",
            // One that has left its output to another program.
            "sleep 4 & wait",
        ] {
            let long = "x".repeat(1 << 20);
            let error = tool
                .run_within(Duration::from_secs(1), &["-c", script], &long)
                .unwrap_err();
            let expected = "sh: did not end within 1 s and was killed";
            assert_eq!(error.to_string(), expected, "{script}");
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
