//! OpenBGPD.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::site::At;
use super::{Daemon, Speaker, Standing, prefix};
use crate::process::{Process, output};
use crate::scratch::Scratch;
use crate::topology::{Family, INTERFACE};
use crate::wait;

/// Debian's home of `_openbgpd`, to which the unprivileged processes chroot. They make nothing in
/// it, so any number of instances share it; the control socket of each is elsewhere.
const HOME: &str = "/run/openbgpd";

/// A running bgpd: a parent, and the session engine, which holds all sockets of BGP.
#[derive(Debug)]
pub(super) struct OpenBgpd {
    speaker: Speaker,
    process: Process,
    session_engine: u32,
    scratch: Scratch,
}

impl OpenBgpd {
    pub(super) fn start(at: At<'_>, speaker: &Speaker) -> Self {
        std::fs::create_dir_all(HOME).expect("make bgpd's home");
        std::fs::set_permissions(HOME, Permissions::from_mode(0o755)).expect("set permissions");
        let scratch = Scratch::new();
        let text = configuration(speaker, &scratch.file("bgpd.sock").to_string_lossy());
        let config = scratch.write("bgpd.conf", &text);
        // It has no notion of Linux's VRFs, so that all its sockets are put into one.
        let at = match &speaker.vrf {
            Some(vrf) => at.in_vrf(vrf),
            None => at,
        };
        let arguments = ["-d".as_ref(), "-f".as_ref(), config.as_os_str()];
        let mut process = at.spawn("bgpd", arguments, &scratch.file("bgpd.log"));
        let session_engine = wait::poll("the session engine", Duration::from_secs(20), || {
            if let Some(status) = process.ended() {
                panic!("bgpd ended with {status}");
            }
            session_engine(process.id())
        });
        Self {
            speaker: speaker.clone(),
            process,
            session_engine,
            scratch,
        }
    }

    fn ask(&self, question: &str) -> Result<Value, String> {
        let mut command = Command::new("bgpctl");
        command.arg("-s").arg(self.scratch.file("bgpd.sock"));
        command.arg("-j").args(question.split_whitespace());
        let answer = output(command)?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }

    fn neighbor(&self) -> Result<Value, String> {
        let answer = self.ask("show neighbor")?;
        // A template is listed beside the neighbors made of it.
        let mut neighbors = answer["neighbors"].as_array().into_iter().flatten();
        neighbors
            .find(|neighbor| neighbor["remote_addr"] == zoned(&self.speaker, &self.speaker.remote))
            .cloned()
            .ok_or_else(|| format!("no such neighbor: {answer}"))
    }
}

/// The child of `parent` that was started as `bgpd -S`.
fn session_engine(parent: u32) -> Result<u32, String> {
    let read = |path: String| std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"));
    let children = read(format!("/proc/{parent}/task/{parent}/children"))?;
    for child in children.split_whitespace() {
        let command = read(format!("/proc/{child}/cmdline"))?;
        if command.split('\0').nth(1) == Some("-S") {
            return child.parse().map_err(|error| format!("{child}: {error}"));
        }
    }
    Err(format!("not among the children {children}"))
}

/// An address with the zone it needs.
fn zoned(speaker: &Speaker, address: &str) -> String {
    match speaker.family {
        Family::LinkLocal => format!("{address}%{INTERFACE}"),
        _ => address.to_owned(),
    }
}

fn configuration(speaker: &Speaker, socket: &str) -> String {
    let Speaker {
        local_as,
        remote_as,
        hold_time,
        ..
    } = speaker;
    let local = zoned(speaker, &speaker.local);
    let remote = speaker
        .range
        .clone()
        .unwrap_or_else(|| zoned(speaker, &speaker.remote));
    let family = match speaker.family {
        Family::V4 => "IPv4",
        _ => "IPv6",
    };
    let reach = match speaker.family {
        Family::LinkLocal => "",
        _ => "  multihop 8\n",
    };
    let passive = if speaker.passive { "  passive\n" } else { "" };
    let mut networks = String::new();
    for index in speaker.first_route..speaker.first_route + speaker.routes {
        let route = prefix(speaker.family, index);
        let _ = writeln!(networks, "network {route} set {{ metric {index} }}");
    }
    format!(
        "AS {local_as}
router-id 192.0.2.{id}
fib-update no
socket \"{socket}\"
listen on {local}
connect-retry 1
{networks}neighbor {remote} {{
  descr \"peer\"
  remote-as {remote_as}
  local-address {local}
  holdtime {hold_time}
  announce {family} unicast
{reach}{passive}}}
allow from any
allow to any
",
        id = local_as % 250,
    )
}

impl Daemon for OpenBgpd {
    fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    fn standing(&self) -> Result<Standing, String> {
        let neighbor = self.neighbor()?;
        let times = self.process.log().matches("-> Established").count();
        Ok(Standing {
            established: neighbor["state"] == "Established",
            times_established: u32::try_from(times).map_err(|error| error.to_string())?,
        })
    }

    fn received_count(&self) -> Result<u32, String> {
        let neighbor = self.neighbor()?;
        let count = neighbor["stats"]["prefixes"]["received"].as_u64();
        let count = count.ok_or_else(|| format!("no count: {neighbor}"))?;
        u32::try_from(count).map_err(|error| error.to_string())
    }

    fn received(&self) -> Result<BTreeMap<String, u32>, String> {
        let answer = self.ask("show rib")?;
        let routes = answer["rib"].as_array().ok_or("no routes")?;
        let mut received = BTreeMap::new();
        for route in routes.iter().filter(|route| route["source"] == "external") {
            let prefix = route["prefix"].as_str().ok_or("no prefix")?;
            let metric = route["metric"].as_u64().ok_or("no metric")?;
            let metric = u32::try_from(metric).map_err(|error| error.to_string())?;
            received.insert(prefix.to_owned(), metric);
        }
        Ok(received)
    }

    fn id(&self) -> u32 {
        self.session_engine
    }
}
