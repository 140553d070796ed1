//! Runs the tools that change the firewall, in the calling thread's network namespace.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::Error;

/// Where the tools are when PATH does not say, as with a service manager's.
const ADMIN_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// A command and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
}

impl Tool {
    /// Runs the tool and returns what it printed.
    pub(super) fn run(self, arguments: &[&str], input: &str) -> Result<String, Error> {
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
        // A tool that ends early closes its input; its exit status then says what was wrong.
        let written = child
            .stdin
            .take()
            .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child
            .wait_with_output()
            .map_err(|error| failed(error.to_string()))?;
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
    }
}
