//! FRR's bgpd.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::site::At;
use super::{Daemon, Speaker, Standing, parse_index, prefix};
use crate::netns::Namespace;
use crate::process::{Process, output};
use crate::scratch::Scratch;
use crate::topology::{Family, INTERFACE};
use crate::wait;

const DIRECTORY: &str = "/usr/lib/frr";

/// A running bgpd.
#[derive(Debug)]
pub(super) struct Frr {
    speaker: Speaker,
    bgpd: Process,
    _zebra: Option<Process>,
    scratch: Scratch,
}

impl Frr {
    pub(super) fn start(at: &At<'_>, speaker: &Speaker) -> Self {
        let scratch = Scratch::new();
        let zebra = (speaker.family == Family::LinkLocal || speaker.vrf.is_some())
            .then(|| zebra(at.namespace, &scratch));
        let config = scratch.write("bgpd.conf", &configuration(speaker));
        let mut arguments = common_arguments(&scratch, "bgpd", &config);
        arguments.push("--skip_runas".into());
        arguments.push(
            if zebra.is_some() {
                "--no_kernel"
            } else {
                "--no_zebra"
            }
            .into(),
        );
        let path = Path::new(DIRECTORY).join("bgpd");
        let bgpd = at.spawn(path, arguments, &scratch.file("bgpd.log"));
        Self {
            speaker: speaker.clone(),
            bgpd,
            _zebra: zebra,
            scratch,
        }
    }

    fn ask(&self, question: &str) -> Result<String, String> {
        self.control(&[question.to_owned()])
    }

    fn control(&self, commands: &[String]) -> Result<String, String> {
        let mut command = Command::new("vtysh");
        command.arg("--vty_socket").arg(self.scratch.path());
        command.args(["-d", "bgpd"]);
        for words in commands {
            command.args(["-c", words]);
        }
        output(command)
    }

    fn ask_json(&self, question: &str) -> Result<Value, String> {
        let answer = self.ask(question)?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }
}

fn common_arguments(scratch: &Scratch, program: &str, config: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["--log", "stdout", "--vty_port", "0"]
        .map(OsString::from)
        .to_vec();
    for (option, value) in [
        ("--pid_file", scratch.file(&format!("{program}.pid"))),
        ("--vty_socket", scratch.path().to_owned()),
        ("--socket", scratch.file("zserv.api")),
        ("--config_file", config.to_owned()),
    ] {
        arguments.push(option.into());
        arguments.push(value.into());
    }
    arguments
}

/// Link-local peers and VRFs need zebra, which tells bgpd the interfaces. It insists on running as a user
/// of its own.
fn zebra(namespace: &Namespace, scratch: &Scratch) -> Process {
    let config = scratch.write("zebra.conf", "hostname zebra\n");
    for (path, mode) in [(scratch.path(), 0o1777), (&config, 0o644)] {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("set permissions");
    }
    let zebra = namespace.spawn(
        Path::new(DIRECTORY).join("zebra"),
        common_arguments(scratch, "zebra", &config),
        &scratch.file("zebra.log"),
    );
    let socket = scratch.file("zserv.api");
    wait::until("zebra's socket", Duration::from_secs(10), || {
        socket.exists()
    });
    zebra
}

/// A link-local peer is named by its interface, and found by its router advertisements: in this
/// release a `fe80::` neighbor waits for next-hop tracking for ever.
fn neighbor_name(speaker: &Speaker) -> &str {
    if speaker.family == Family::LinkLocal {
        INTERFACE
    } else {
        &speaker.remote
    }
}

/// What names the speaker's VRF in configuration and questions.
fn vrf(speaker: &Speaker) -> String {
    let vrf = speaker.vrf.as_ref();
    vrf.map_or_else(String::new, |name| format!(" vrf {name}"))
}

fn configuration(speaker: &Speaker) -> String {
    let Speaker {
        local,
        local_as,
        remote_as,
        hold_time,
        ..
    } = speaker;
    let remote = match speaker.range {
        Some(_) => "RANGE",
        None => neighbor_name(speaker),
    };
    let family = speaker.family.name();
    let keepalive = (hold_time / 3).max(1);
    let mut neighbor = String::new();
    let mut say = |words: &str| {
        let _ = writeln!(neighbor, " neighbor {remote} {words}");
    };
    let interface = match speaker.family {
        Family::LinkLocal => "interface v6only ",
        _ => "",
    };
    if speaker.range.is_some() {
        say("peer-group");
    }
    say(&format!("{interface}remote-as {remote_as}"));
    say(&format!("timers {keepalive} {hold_time}"));
    say("timers connect 1");
    if speaker.passive {
        say("passive");
    }
    if speaker.family != Family::LinkLocal {
        say("ebgp-multihop 8");
        say("disable-connected-check");
        say(&format!("update-source {local}"));
    }
    if let Some(range) = &speaker.range {
        let _ = writeln!(neighbor, " bgp listen range {range} peer-group {remote}");
    }
    let mut networks = String::new();
    let mut maps = String::new();
    for index in speaker.first_route..speaker.first_route + speaker.routes {
        let route = prefix(speaker.family, index);
        let _ = writeln!(networks, "  network {route} route-map metric-{index}");
        let _ = writeln!(
            maps,
            "route-map metric-{index} permit 10\n set metric {index}\nexit"
        );
    }
    format!(
        "bgp as-path access-list OWN permit ^$
{maps}router bgp {local_as}{vrf}
 bgp router-id 192.0.2.{id}
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
{neighbor} address-family {family} unicast
  neighbor {remote} activate
  neighbor {remote} filter-list OWN out
{networks} exit-address-family
",
        vrf = vrf(speaker),
        id = local_as % 250,
    )
}

impl Daemon for Frr {
    fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    fn standing(&self) -> Result<Standing, String> {
        let remote = neighbor_name(&self.speaker);
        let answer = self.ask_json(&format!(
            "show bgp{} neighbors {remote} json",
            vrf(&self.speaker)
        ))?;
        let neighbor = answer
            .get(remote)
            .ok_or_else(|| format!("no such neighbor: {answer}"))?;
        let times = neighbor["connectionsEstablished"]
            .as_u64()
            .ok_or("no counter")?;
        Ok(Standing {
            established: neighbor["bgpState"] == "Established",
            times_established: u32::try_from(times).map_err(|error| error.to_string())?,
        })
    }

    fn received_count(&self) -> Result<u32, String> {
        let family = self.speaker.family.name();
        let answer = self.ask_json(&format!(
            "show bgp{} {family} unicast summary json",
            vrf(&self.speaker)
        ))?;
        let count = answer["peers"][neighbor_name(&self.speaker)]["pfxRcd"].as_u64();
        let count = count.ok_or_else(|| format!("no count: {answer}"))?;
        u32::try_from(count).map_err(|error| error.to_string())
    }

    fn received(&self) -> Result<BTreeMap<String, u32>, String> {
        let family = self.speaker.family.name();
        let answer = self.ask_json(&format!(
            "show bgp{} {family} unicast json",
            vrf(&self.speaker)
        ))?;
        let routes = answer["routes"].as_object().ok_or("no routes")?;
        let own = self.speaker.first_route..self.speaker.first_route + self.speaker.routes;
        let mut received = BTreeMap::new();
        for (prefix, paths) in routes {
            if parse_index(prefix).is_some_and(|index| own.contains(&index)) {
                continue;
            }
            let metric = paths[0]["metric"]
                .as_u64()
                .ok_or_else(|| format!("{prefix}: {paths}"))?;
            let metric = u32::try_from(metric).map_err(|error| error.to_string())?;
            received.insert(prefix.clone(), metric);
        }
        Ok(received)
    }

    fn announce(&self, on: bool) -> Result<(), String> {
        let speaker = &self.speaker;
        let no = if on { "" } else { "no " };
        let mut commands = vec![
            "configure terminal".to_owned(),
            format!("router bgp {}{}", speaker.local_as, vrf(speaker)),
            format!("address-family {} unicast", speaker.family.name()),
        ];
        commands.extend(
            speaker
                .announced()
                .into_iter()
                .map(|(prefix, metric)| format!("{no}network {prefix} route-map metric-{metric}")),
        );
        self.control(&commands).map(drop)
    }

    fn id(&self) -> u32 {
        self.bgpd.id()
    }
}
