//! Attacks from the wire.

use std::path::Path;

use serde_json::Value;

use crate::netns::Namespace;
use crate::process::output;

/// Where an attacker is and whom it attacks.
#[derive(Debug)]
pub struct Attacker<'a> {
    /// Namespace of the attacker.
    pub namespace: &'a Namespace,
    /// Its interface towards the victim.
    pub interface: &'a str,
    /// Address of the victim.
    pub victim: String,
    /// Protected port.
    pub port: u16,
    /// What it has listened to: a capture on Ethernet, still running perhaps.
    pub capture: &'a Path,
}

impl Attacker<'_> {
    /// Runs an attack of `attack.py` and returns the number of packets sent.
    ///
    /// # Panics
    /// When it could not be carried out.
    pub fn run(&self, attack: &str, arguments: &[&str]) -> u64 {
        let report = self.report(attack, arguments);
        report["sent"].as_u64().expect("a count of packets")
    }

    /// Runs an attack and returns its whole report.
    ///
    /// # Panics
    /// When it could not be carried out.
    pub fn report(&self, attack: &str, arguments: &[&str]) -> Value {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/attack.py");
        let mut command = self.namespace.command("/usr/bin/python3");
        command.arg("-B").arg(tool).arg(attack);
        command.arg("--capture").arg(self.capture);
        command.args(["--interface", self.interface, "--to", &self.victim]);
        command.args(["--port", &self.port.to_string()]);
        command.args(arguments);
        let report = output(command).unwrap_or_else(|error| panic!("{attack}: {error}"));
        serde_json::from_str(&report).expect("the attack's report")
    }
}
