//! Captures by tcpdump, judged by the tests' own checker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::netns::Namespace;
use crate::process::{Process, output};
use crate::scratch::Scratch;
use crate::wait;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    scratch: Scratch,
}

impl Capture {
    /// Captures what passes `interface` and `filter` (in tcpdump's language). Only what the
    /// kernel has not yet cut into segments is longer than what is kept of a packet.
    ///
    /// # Panics
    /// When tcpdump does not come to listen.
    #[must_use]
    pub fn start(namespace: &Namespace, interface: &str, filter: &str) -> Self {
        let scratch = Scratch::new();
        let pcap = scratch.file("capture.pcap");
        let mut arguments: Vec<&str> = [
            "-i",
            interface,
            "-Z",
            "root",
            "-n",
            "-s",
            "2048",
            "-U",
            "--immediate-mode",
            "-B",
            "65536",
            "-w",
        ]
        .to_vec();
        let path = pcap.to_string_lossy();
        arguments.push(&path);
        arguments.push(filter);
        let tcpdump = namespace.spawn("tcpdump", arguments, &scratch.file("tcpdump.log"));
        wait::until("tcpdump listening", Duration::from_secs(10), || {
            tcpdump.log().contains("listening on")
        });
        Self { tcpdump, scratch }
    }

    /// The file; complete packets are in it at once.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.scratch.file("capture.pcap")
    }

    /// Ends the capture.
    ///
    /// # Panics
    /// When tcpdump lost packets.
    #[must_use]
    pub fn stop(mut self) -> Finished {
        self.tcpdump.stop(Signal::SIGINT, Duration::from_secs(10));
        let log = self.tcpdump.log();
        assert!(
            log.contains("\n0 packets dropped by kernel"),
            "an incomplete capture: {log}"
        );
        Finished {
            scratch: self.scratch,
        }
    }

    /// Segments captured so far that carry `what`: an expression of tcpdump's language.
    #[must_use]
    pub fn count(&self, what: &str) -> usize {
        count(&self.file(), what)
    }
}

/// A complete capture.
#[derive(Debug)]
pub struct Finished {
    scratch: Scratch,
}

impl Finished {
    /// The file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.scratch.file("capture.pcap")
    }

    /// Packets in it that match `what`, in tcpdump's language.
    #[must_use]
    pub fn count(&self, what: &str) -> usize {
        count(&self.file(), what)
    }

    /// All packets as tcpdump shows them.
    ///
    /// # Panics
    /// When tcpdump cannot read the file.
    #[must_use]
    pub fn decoded(&self) -> String {
        let mut command = Command::new("tcpdump");
        command.arg("-n").arg("-r").arg(self.file());
        output(command).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Recomputes every MAC with `keys` and gives the checker's report.
    ///
    /// # Panics
    /// When a segment is unsigned or its MAC wrong, or an expectation in `arguments` fails.
    pub fn check(&self, keys: &[Value], arguments: &[&str]) -> Value {
        check(&self.file(), keys, arguments)
    }
}

/// Recomputes every MAC in a capture, which may still go on, and gives the checker's report.
///
/// # Panics
/// When a segment is unsigned or its MAC wrong, or an expectation in `arguments` fails.
pub fn check(file: &Path, keys: &[Value], arguments: &[&str]) -> Value {
    let scratch = Scratch::new();
    let keys = scratch.write("keys.json", &Value::from(keys.to_vec()).to_string());
    let mut command = tool("check_capture.py");
    command.arg(file).arg(keys).args(arguments);
    let report = output(command).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&report).expect("the checker's report")
}

fn count(file: &Path, what: &str) -> usize {
    let mut command = Command::new("tcpdump");
    command.arg("-n").arg("-r").arg(file).arg(what);
    // A file still being written may end within a packet; what was printed before counts.
    let output = command.output().expect("run tcpdump");
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// One of the tools in `tests/tools`, run by Debian's Python: another one on the path would lack
/// python3-cryptography.
#[must_use]
pub fn tool(name: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-B");
    command.arg(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tools")
            .join(name),
    );
    command
}
