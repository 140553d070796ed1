//! A verified bulk transfer in both directions, by the command `ao-stream` in the namespaces.

use std::time::Duration;

use crate::daemon::At;
use crate::netns::Namespace;
use crate::process::{Process, built_folder};
use crate::scratch::Scratch;
use crate::wait;

/// Octets per second of a transfer that keeps a session busy, but no CPU.
pub const STEADY: u64 = 4_000_000;

/// One end of a transfer.
#[derive(Debug)]
pub struct Stream {
    process: Process,
    scratch: Scratch,
}

impl Stream {
    /// Listens on `address` (with port) for one connection.
    ///
    /// # Panics
    /// When it does not come to listen.
    #[must_use]
    pub fn serve(namespace: &Namespace, address: &str, rate: u64) -> Self {
        Self::serve_by(&At::plain(namespace), address, rate)
    }

    /// The same, under a launcher if there is one.
    ///
    /// # Panics
    /// When it does not come to listen.
    #[must_use]
    pub fn serve_by(at: &At<'_>, address: &str, rate: u64) -> Self {
        let stream = Self::spawn(at, "serve", address, rate);
        wait::until("the listener", Duration::from_secs(20), || {
            stream.says("listening")
        });
        stream
    }

    /// Connects to `address`; the kernel goes on trying for about two minutes.
    #[must_use]
    pub fn connect(namespace: &Namespace, address: &str, rate: u64) -> Self {
        Self::connect_by(&At::plain(namespace), address, rate)
    }

    /// The same, under a launcher if there is one.
    #[must_use]
    pub fn connect_by(at: &At<'_>, address: &str, rate: u64) -> Self {
        Self::spawn(at, "connect", address, rate)
    }

    fn spawn(at: &At<'_>, role: &str, address: &str, rate: u64) -> Self {
        let scratch = Scratch::new();
        let end = scratch.file("end");
        let rate = rate.to_string();
        let process = at.spawn(
            built_folder().join("ao-stream"),
            [role, address, &rate, &end.to_string_lossy()],
            &scratch.file("stream.log"),
        );
        Self { process, scratch }
    }

    /// Whether a connection came up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.says("accepted") || self.says("connected")
    }

    /// Octets received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.figures("").map_or(0, |(_, received)| received)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Closes the connection in order, as the first of both ends.
    pub fn end(&self) {
        self.scratch.write("end", "");
    }

    /// Waits for the end of the transfer: octets sent and received.
    ///
    /// # Panics
    /// When the stream was cut or corrupted, or takes longer than `limit`.
    pub fn finish(&mut self, limit: Duration) -> (u64, u64) {
        let status = self.process.wait(limit);
        assert!(
            status.success(),
            "{:?}: {status}",
            self.process.log().lines().last()
        );
        self.figures("done ")
            .expect("the totals of a finished transfer")
    }

    fn says(&self, word: &str) -> bool {
        self.process
            .log()
            .lines()
            .any(|line| line.starts_with(word))
    }

    /// Octets sent and received, of the last line that begins with `what`.
    fn figures(&self, what: &str) -> Option<(u64, u64)> {
        let log = self.process.log();
        log.lines()
            .rev()
            .filter(|line| line.starts_with(what))
            .find_map(|line| {
                let (sent, received) = line.split_once(" sent=")?.1.split_once(" received=")?;
                Some((sent.parse().ok()?, received.parse().ok()?))
            })
    }
}

/// Ends a transfer and asserts that each end got what the other sent, and that something was sent.
///
/// # Panics
/// When a single octet is missing.
pub fn finish(client: &mut Stream, server: &mut Stream, limit: Duration) {
    client.end();
    let (sent, received) = client.finish(limit);
    assert_eq!(server.finish(limit), (received, sent));
    assert!(sent > 0 && received > 0, "nothing was transferred");
}

/// Waits until `stream` has received another `octets`.
///
/// # Panics
/// When that takes longer than `limit`: the transfer stalls.
pub fn wait_for_more(stream: &Stream, octets: u64, limit: Duration) {
    let wanted = stream.received() + octets;
    wait::poll("the transfer going on", limit, || {
        let received = stream.received();
        if received >= wanted {
            Ok(())
        } else {
            Err(format!("{received} of {wanted} octets received"))
        }
    });
}
