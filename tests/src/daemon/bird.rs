//! BIRD 2.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use super::site::At;
use super::{Daemon, Speaker, Standing, prefix};
use crate::process::{Process, output};
use crate::scratch::Scratch;
use crate::topology::{Family, INTERFACE};

/// A running BIRD.
#[derive(Debug)]
pub(super) struct Bird {
    speaker: Speaker,
    process: Process,
    scratch: Scratch,
}

impl Bird {
    pub(super) fn start(at: &At<'_>, speaker: &Speaker) -> Self {
        let scratch = Scratch::new();
        let config = scratch.write("bird.conf", &configuration(speaker));
        let process = at.spawn(
            "bird",
            [
                "-f".as_ref(),
                "-c".as_ref(),
                config.as_os_str(),
                "-s".as_ref(),
                scratch.file("bird.ctl").as_os_str(),
                "-P".as_ref(),
                scratch.file("bird.pid").as_os_str(),
            ],
            &scratch.file("bird.log"),
        );
        Self {
            speaker: speaker.clone(),
            process,
            scratch,
        }
    }

    /// The session's protocol: BIRD numbers those it makes for a range, from 1 on.
    fn protocol(&self) -> &'static str {
        if self.speaker.range.is_some() {
            "peer1"
        } else {
            "peer"
        }
    }

    fn ask(&self, question: &str) -> Result<String, String> {
        self.control(&["-r"], question)
    }

    fn control(&self, options: &[&str], words: &str) -> Result<String, String> {
        let mut command = Command::new("birdc");
        command.args(options);
        command.arg("-s").arg(self.scratch.file("bird.ctl"));
        command.args(words.split_whitespace());
        output(command)
    }
}

fn configuration(speaker: &Speaker) -> String {
    let Speaker {
        local,
        remote,
        local_as,
        remote_as,
        hold_time,
        ..
    } = speaker;
    let channel = speaker.family.name();
    let link_local = speaker.family == Family::LinkLocal;
    let zone = if link_local {
        format!("%{INTERFACE}")
    } else {
        String::new()
    };
    let reach = if link_local { "direct" } else { "multihop 8" };
    // FRR finds link-local neighbors by their router advertisements.
    let advertisements = if link_local {
        format!("protocol radv {{ interface \"{INTERFACE}\" {{ max ra interval 4; }}; }}\n")
    } else {
        String::new()
    };
    let (remote, remote_as) = match &speaker.range {
        Some(range) => (
            format!("range {range}"),
            format!("{remote_as}; dynamic name \"peer\""),
        ),
        None => (format!("{remote}{zone}"), remote_as.to_string()),
    };
    let passive = if speaker.passive { "yes" } else { "no" };
    let vrf = speaker
        .vrf
        .as_ref()
        .map_or_else(String::new, |name| format!("  vrf \"{name}\";\n"));
    let password = speaker
        .password
        .as_ref()
        .map_or_else(String::new, |password| {
            format!("  password \"{password}\";\n")
        });
    let mut routes = String::new();
    for index in speaker.first_route..speaker.first_route + speaker.routes {
        let route = prefix(speaker.family, index);
        let _ = writeln!(
            routes,
            "  route {route} blackhole {{ bgp_med = {index}; }};"
        );
    }
    format!(
        "log stderr all;
router id 192.0.2.{id};
protocol device {{}}
{advertisements}protocol static announced {{
  {channel};
{routes}}}
protocol bgp {name} {{
{vrf}{password}  debug {{ states, events }};
  local {local}{zone} as {local_as};
  neighbor {remote} as {remote_as};
  {reach};
  passive {passive};
  hold time {hold_time};
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 2;
  {channel} {{ import all; export where source = RTS_STATIC; }};
}}
",
        name = if speaker.range.is_some() {
            "any"
        } else {
            "peer"
        },
        id = local_as % 250,
    )
}

impl Daemon for Bird {
    fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    fn standing(&self) -> Result<Standing, String> {
        let name = self.protocol();
        let answer = self.ask(&format!("show protocols {name}"))?;
        let line = answer
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .ok_or_else(|| format!("no such protocol: {answer}"))?;
        let times = self
            .process
            .log()
            .matches("BGP session established")
            .count();
        Ok(Standing {
            established: line.contains("Established"),
            times_established: u32::try_from(times).map_err(|error| error.to_string())?,
        })
    }

    fn received_count(&self) -> Result<u32, String> {
        let answer = self.ask(&format!("show route protocol {} count", self.protocol()))?;
        // "10 of 20 routes for 20 networks in table master4"
        answer
            .lines()
            .filter(|line| line.contains(" routes for "))
            .filter_map(|line| line.split_whitespace().next()?.parse::<u32>().ok())
            .reduce(|sum, count| sum + count)
            .ok_or_else(|| format!("no count: {answer}"))
    }

    fn received(&self) -> Result<BTreeMap<String, u32>, String> {
        let answer = self.ask(&format!("show route protocol {} all", self.protocol()))?;
        let mut routes = BTreeMap::new();
        let mut current = None;
        for line in answer.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("BGP.med:") => {
                    let metric = words.next().and_then(|word| word.parse().ok());
                    if let (Some(prefix), Some(metric)) = (current.take(), metric) {
                        routes.insert(prefix, metric);
                    }
                }
                Some(word) if !line.starts_with(char::is_whitespace) && word.contains('/') => {
                    current = Some(word.to_owned());
                }
                _ => {}
            }
        }
        Ok(routes)
    }

    fn announce(&self, on: bool) -> Result<(), String> {
        let verb = if on { "enable" } else { "disable" };
        self.control(&[], &format!("{verb} announced")).map(drop)
    }

    fn id(&self) -> u32 {
        self.process.id()
    }
}
