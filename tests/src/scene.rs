//! Scenes most tests begin with: a protected BGP session, a protected bulk transfer.

use std::time::Duration;

use serde_json::Value;

use crate::attack::Attacker;
use crate::capture::Capture;
use crate::daemon::{self, Daemon, Implementation, Speaker, assert_never_down, wait_converged};
use crate::settings::CONVERGENCE;
use crate::sidecar::{Config, Key, Sidecar};
use crate::stream::{self, Stream, wait_for_more};
use crate::topology::{Family, Host, Lan};

/// Which end opens the TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// Host a.
    A,
    /// Host b.
    B,
}

/// A protected BGP session on a [`Lan`], with a capture of host a's link.
#[derive(Debug)]
pub struct Session {
    /// The daemon at host a.
    pub a: Box<dyn Daemon>,
    /// The daemon at host b.
    pub b: Box<dyn Daemon>,
    /// The sidecar at host a.
    pub sidecar_a: Sidecar,
    /// The sidecar at host b.
    pub sidecar_b: Sidecar,
    /// Everything IP on host a's link since before the sidecars started.
    pub capture: Capture,
    /// The network.
    pub lan: Lan,
    /// Kind of its addresses.
    pub family: Family,
    /// Its key, as host a has it.
    pub key: Key,
}

impl Session {
    /// Brings the session up and waits until all routes are exchanged.
    #[must_use]
    pub fn start(
        daemons: (Implementation, Implementation),
        family: Family,
        key: Key,
        opener: Opener,
    ) -> Self {
        Self::start_with(daemons, family, key, opener, |_| ())
    }

    /// The same, after a change to the configurations of both sidecars.
    #[must_use]
    pub fn start_with(
        daemons: (Implementation, Implementation),
        family: Family,
        key: Key,
        opener: Opener,
        change: impl Fn(&mut Config),
    ) -> Self {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
        let (sidecar_a, sidecar_b) = Sidecar::pair_with(&lan.a, &lan.b, family, &key, change);
        let (mut a, mut b) = Speaker::pair(&lan.a, &lan.b, family);
        (a.passive, b.passive) = (opener == Opener::B, opener == Opener::A);
        let a = daemon::start(daemons.0, &lan.a.namespace, &a);
        let b = daemon::start(daemons.1, &lan.b.namespace, &b);
        wait_converged(&*a, &*b, CONVERGENCE);
        Self {
            a,
            b,
            sidecar_a,
            sidecar_b,
            capture,
            lan,
            family,
            key,
        }
    }

    /// BIRD and FRR, opened by BIRD at host a, with the default key.
    #[must_use]
    pub fn bird_frr(family: Family) -> Self {
        let daemons = (Implementation::Bird, Implementation::Frr);
        Self::start(daemons, family, Key::default(), Opener::A)
    }

    /// Somebody on the wire who attacks host a.
    #[must_use]
    pub fn attacker<'a>(&'a self, capture: &'a std::path::Path) -> Attacker<'a> {
        Attacker {
            namespace: &self.lan.wire,
            interface: Lan::PORT_A,
            victim: self.lan.a.address(self.family).to_string(),
            port: 179,
            capture,
        }
    }

    /// Asserts that the session was never down and still has all routes, at both ends.
    ///
    /// # Panics
    /// When it has not.
    pub fn assert_untouched(&self) {
        assert_never_down(&*self.a);
        assert_never_down(&*self.b);
        wait_converged(&*self.a, &*self.b, Duration::ZERO);
    }

    /// Ends the capture, recomputes every MAC in it and gives the report.
    ///
    /// # Panics
    /// When a segment is unsigned, its MAC wrong, or a packet longer than the MTU.
    pub fn check_wire(self) -> Value {
        let key = checker_key(&self.key, &self.lan.a, &self.lan.b, self.family);
        let mtu = Lan::MTU.to_string();
        let expectations = [
            "--min-signed",
            "4",
            "--max-ip-length",
            &mtu,
            "--expect-algorithm",
            self.key.algorithm,
        ];
        self.capture.stop().check(&[key], &expectations)
    }
}

/// The key for the capture checker; `key` is as host a has it.
#[must_use]
pub fn checker_key(key: &Key, a: &Host, b: &Host, family: Family) -> Value {
    key.for_checker(
        &a.address(family).to_string(),
        &b.address(family).to_string(),
    )
}

/// Protected port of the bulk transfers: any port can be protected.
pub const BULK_PORT: u16 = 5179;

/// A protected bulk transfer, opened by host a.
#[derive(Debug)]
pub struct Bulk {
    /// Host a's end.
    pub client: Stream,
    /// Host b's end.
    pub server: Stream,
    /// The sidecar at host a.
    pub sidecar_a: Sidecar,
    /// The sidecar at host b.
    pub sidecar_b: Sidecar,
}

impl Bulk {
    /// Starts sidecars and transfer, and waits until octets flow both ways.
    #[must_use]
    pub fn start(a: &Host, b: &Host, family: Family, rate: u64) -> Self {
        let (sidecar_a, sidecar_b) = sidecars(a, b, family);
        let (client, server) = streams(a, b, family, rate);
        let bulk = Self {
            client,
            server,
            sidecar_a,
            sidecar_b,
        };
        bulk.wait_for_more(rate / 10, CONVERGENCE);
        bulk
    }

    /// Waits until both ends have received another `octets`.
    ///
    /// # Panics
    /// When that takes longer than `limit` at an end.
    pub fn wait_for_more(&self, octets: u64, limit: Duration) {
        let wanted = self.client.received() + octets;
        wait_for_more(&self.server, octets, limit);
        let received = self.client.received();
        wait_for_more(&self.client, wanted.saturating_sub(received), limit);
    }

    /// Ends the transfer and asserts that no octet is missing at either end.
    ///
    /// # Panics
    /// When one is.
    pub fn finish(&mut self, limit: Duration) {
        stream::finish(&mut self.client, &mut self.server, limit);
    }
}

/// Sidecars that protect [`BULK_PORT`] at both hosts.
#[must_use]
pub fn sidecars(a: &Host, b: &Host, family: Family) -> (Sidecar, Sidecar) {
    Sidecar::pair_with(a, b, family, &Key::default(), |config| {
        config.port = BULK_PORT;
    })
}

/// A transfer on [`BULK_PORT`] from host a to host b.
#[must_use]
pub fn streams(a: &Host, b: &Host, family: Family, rate: u64) -> (Stream, Stream) {
    let address = b.socket_text(family, BULK_PORT);
    let server = Stream::serve(&b.namespace, &address, rate);
    let client = Stream::connect(&a.namespace, &address, rate);
    (client, server)
}
