//! GoBGP.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::site::At;
use super::{Daemon, Speaker, Standing};
use crate::process::{Process, output};
use crate::scratch::Scratch;
use crate::topology::{Family, INTERFACE};
use crate::wait;

/// A running gobgpd.
#[derive(Debug)]
pub(super) struct GoBgp {
    speaker: Speaker,
    namespace: String,
    process: Process,
    _scratch: Scratch,
}

impl GoBgp {
    pub(super) fn start(at: &At<'_>, speaker: &Speaker) -> Self {
        let scratch = Scratch::new();
        let config = scratch.write("gobgpd.toml", &configuration(speaker));
        let log = scratch.file("gobgpd.log");
        let process = at.spawn(
            "gobgpd",
            [
                "-t".as_ref(),
                "toml".as_ref(),
                "-f".as_ref(),
                config.as_os_str(),
            ],
            &log,
        );
        let daemon = Self {
            speaker: speaker.clone(),
            namespace: at.namespace.name().to_owned(),
            process,
            _scratch: scratch,
        };
        daemon.announce();
        daemon
    }

    /// GoBGP takes routes only through its API.
    fn announce(&self) {
        wait::poll("gobgpd's API", Duration::from_secs(20), || {
            self.ask(&["global"])
        });
        for (prefix, metric) in self.speaker.announced() {
            let metric = metric.to_string();
            let family = self.speaker.family.name();
            self.ask(&[
                "global", "rib", "add", "-a", family, &prefix, "med", &metric,
            ])
            .expect("announce a route");
        }
    }

    /// GoBGP's name of the peer.
    fn peer(&self) -> String {
        neighbor_address(&self.speaker)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace, "gobgp", "-j"])
            .args(arguments);
        output(command)
    }

    fn ask_json(&self, arguments: &[&str]) -> Result<Value, String> {
        let answer = self.ask(arguments)?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }
}

fn neighbor_address(speaker: &Speaker) -> String {
    match speaker.family {
        Family::LinkLocal => format!("{}%{INTERFACE}", speaker.remote),
        _ => speaker.remote.clone(),
    }
}

fn configuration(speaker: &Speaker) -> String {
    let Speaker {
        local,
        local_as,
        remote_as,
        passive,
        hold_time,
        ..
    } = speaker;
    let remote = neighbor_address(speaker);
    let family = speaker.family.name();
    let keepalive = (hold_time / 3).max(1);
    // A zone is not accepted as local address, and not needed: the link names it.
    let transport = match speaker.family {
        Family::LinkLocal => String::new(),
        _ => format!("local-address = \"{local}\"\n"),
    };
    let bind = speaker
        .vrf
        .as_ref()
        .map_or_else(String::new, |vrf| format!("bind-interface = \"{vrf}\"\n"));
    let multihop = speaker.family != Family::LinkLocal;
    // One neighbor, or a group for those that come from the range.
    let (table, identity, range) = match &speaker.range {
        None => (
            "neighbors",
            format!("neighbor-address = \"{remote}\""),
            String::new(),
        ),
        Some(range) => (
            "peer-groups",
            "peer-group-name = \"range\"".to_owned(),
            format!(
                "[[dynamic-neighbors]]\n[dynamic-neighbors.config]\nprefix = \"{range}\"\n\
                 peer-group = \"range\"\n"
            ),
        ),
    };
    format!(
        r#"[global.config]
as = {local_as}
router-id = "192.0.2.{id}"
[[{table}]]
[{table}.config]
{identity}
peer-as = {remote_as}
[{table}.transport.config]
passive-mode = {passive}
{transport}{bind}[{table}.timers.config]
hold-time = {hold_time}
keepalive-interval = {keepalive}
connect-retry = 1
idle-hold-time-after-reset = 1
[{table}.ebgp-multihop.config]
enabled = {multihop}
multihop-ttl = 8
[[{table}.afi-safis]]
[{table}.afi-safis.config]
afi-safi-name = "{family}-unicast"
{range}"#,
        id = local_as % 250,
    )
}

impl Daemon for GoBgp {
    fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    fn standing(&self) -> Result<Standing, String> {
        let answer = self.ask_json(&["neighbor", &self.peer()])?;
        let established = answer["state"]["session_state"].as_u64() == Some(6);
        // GoBGP counts how often the session went down.
        let downs = answer["state"]["flops"].as_u64().unwrap_or(0);
        let downs = u32::try_from(downs).map_err(|error| error.to_string())?;
        Ok(Standing {
            established,
            times_established: downs + u32::from(established),
        })
    }

    fn received_count(&self) -> Result<u32, String> {
        self.received()
            .and_then(|routes| u32::try_from(routes.len()).map_err(|error| error.to_string()))
    }

    fn received(&self) -> Result<BTreeMap<String, u32>, String> {
        let family = self.speaker.family.name();
        let answer = self.ask_json(&["neighbor", &self.peer(), "adj-in", "-a", family])?;
        let routes = answer
            .as_object()
            .ok_or_else(|| format!("no table: {answer}"))?;
        let mut received = BTreeMap::new();
        for (prefix, paths) in routes {
            let attributes = paths[0]["attrs"]
                .as_array()
                .ok_or_else(|| format!("{paths}"))?;
            // Attribute type 4 is MULTI_EXIT_DISC (RFC 4271 §4.3).
            let metric = attributes
                .iter()
                .find(|attribute| attribute["type"] == 4)
                .and_then(|attribute| attribute["metric"].as_u64())
                .ok_or_else(|| format!("{prefix} without metric: {paths}"))?;
            let metric = u32::try_from(metric).map_err(|error| error.to_string())?;
            received.insert(prefix.clone(), metric);
        }
        Ok(received)
    }

    fn id(&self) -> u32 {
        self.process.id()
    }
}
