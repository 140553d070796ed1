//! What goes together with a file that contradicts what was made by API: the file goes first, for
//! whoever has changed it is not there when a machine starts.

use std::collections::HashSet;
use std::path::Path;

use datapath::settings::PeerSpec;

use crate::config::{Config, ConfigError, Overlay};

/// Something made by API that does not go together with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Such as `peer "as64502"`.
    pub what: String,
    /// Why, with both places.
    pub why: String,
}

/// A configuration that a daemon can start with.
#[derive(Debug)]
pub struct Fitting {
    /// The file, and as much of what was made by API as goes together with it.
    pub config: Config,
    /// That much.
    pub made: Overlay,
    /// The rest, which is still on disk.
    pub left_out: Vec<LeftOut>,
    /// Peers that were left out and cover something that no other peer does: without keys, so that
    /// they are blocked and not unprotected.
    pub blocked: Vec<PeerSpec>,
}

/// The file together with all of `made`, or as much of it as goes.
///
/// # Errors
/// When the file is wrong by itself; all problems are told then.
pub(super) fn fit(file: &Path, made: Overlay) -> Result<Fitting, ConfigError> {
    let load = |made: &Overlay| Config::load(file, made);
    let refused = match load(&made) {
        Ok(config) => {
            return Ok(Fitting {
                config,
                made,
                left_out: Vec::new(),
                blocked: Vec::new(),
            });
        }
        Err(refused) => refused,
    };
    if !fits(&load(&Overlay::default())) {
        return Err(refused);
    }
    let mut search = Search {
        made: &made,
        load: &load,
        out: HashSet::new(),
        left_out: Vec::new(),
    };
    search.leave_out_whoever_is_blamed(refused);
    let fitting = made.without(&search.out);
    let subjects = fitting.subjects();
    if !fits(&load(&fitting)) {
        search.out.extend(subjects.iter().cloned());
        search.admit(&subjects);
    }
    let Search { out, left_out, .. } = search;
    let fitting = made.without(&out);
    let config = load(&fitting)?;
    let blocked = blocked(&made, &out, &config);
    Ok(Fitting {
        config,
        made: fitting,
        left_out,
        blocked,
    })
}

/// Whether there is nothing wrong that more peers would not mend.
fn fits(loaded: &Result<Config, ConfigError>) -> bool {
    loaded
        .as_ref()
        .err()
        .is_none_or(ConfigError::is_want_of_peers)
}

/// The peers of `made` that are out, as far as nobody in `config` has their place.
fn blocked(made: &Overlay, out: &HashSet<String>, config: &Config) -> Vec<PeerSpec> {
    let mut names: HashSet<_> = config
        .peers
        .iter()
        .map(|peer| peer.spec.name.clone())
        .collect();
    let still_in = made.without(out);
    let is_out = |spec: &PeerSpec| still_in.peer(&spec.name).is_none();
    let mut specs: Vec<PeerSpec> = made.covered().into_iter().filter(is_out).collect();
    specs.retain(|spec| !config.peers.iter().any(|peer| peer.spec.overlaps(spec)));
    for spec in &mut specs {
        while !names.insert(spec.name.clone()) {
            spec.name = format!("{} (left out)", spec.name).into();
        }
    }
    specs
}

struct Search<'s> {
    made: &'s Overlay,
    load: &'s dyn Fn(&Overlay) -> Result<Config, ConfigError>,
    /// Subjects that are out, for now or for good.
    out: HashSet<String>,
    left_out: Vec<LeftOut>,
}

impl Search<'_> {
    /// Leaves out what problems are about, until none is about anything made by API.
    fn leave_out_whoever_is_blamed(&mut self, refused: ConfigError) {
        let mut refused = refused;
        loop {
            let before = self.out.len();
            for problem in refused.problems() {
                let Some(what) = &problem.subject else {
                    continue;
                };
                if self.out.insert(what.clone()) {
                    self.left_out.push(LeftOut {
                        what: what.clone(),
                        why: problem.text.clone(),
                    });
                }
            }
            if self.out.len() == before {
                return;
            }
            match (self.load)(&self.made.without(&self.out)) {
                Ok(_) => return,
                Err(error) => refused = error,
            }
        }
    }

    /// Takes those of `subjects` back in that go together with all that is in already.
    fn admit(&mut self, subjects: &[String]) {
        for subject in subjects {
            self.out.remove(subject);
        }
        let loaded = (self.load)(&self.made.without(&self.out));
        if fits(&loaded) {
            return;
        }
        self.out.extend(subjects.iter().cloned());
        match (subjects, loaded) {
            ([what], Err(error)) => self.left_out.push(LeftOut {
                what: what.clone(),
                why: error.to_string(),
            }),
            _ => {
                let (first, second) = subjects.split_at(subjects.len() / 2);
                self.admit(first);
                self.admit(second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use grpc_api::operator::administration;

    use super::*;

    const FILE: &str = r#"[[key_chain]]
name = "transit"
[[key_chain.key]]
send_id = 1
recv_id = 1
algorithm = "hmac-sha-1-96"
secret = "of the file"
[[peer]]
name = "as64502"
address = "10.0.0.2"
key_chain = "transit"
"#;

    fn made(peers: &[(&str, &str, &str)]) -> Overlay {
        let peer = |&(name, address, chain): &(&str, &str, &str)| administration::PeerSpec {
            name: name.to_owned(),
            address: address.to_owned(),
            key_chain: chain.to_owned(),
            ..administration::PeerSpec::default()
        };
        Overlay {
            peers: peers.iter().map(peer).collect(),
            chains: Vec::new(),
        }
    }

    fn fit_text(text: &str, made: Overlay) -> Result<Fitting, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fit(&file, made)
    }

    #[test]
    fn the_file_goes_first_and_whoever_loses_its_place_is_blocked() {
        let made = made(&[
            ("as64502", "10.0.0.3", "transit"),
            ("same", "10.0.0.2", "transit"),
            ("fits", "10.0.0.4", "transit"),
            ("lost", "10.0.0.5", "gone"),
        ]);
        let fitting = fit_text(FILE, made).unwrap();
        let names: Vec<&str> = fitting
            .config
            .peers
            .iter()
            .map(|peer| &*peer.spec.name)
            .collect();
        assert_eq!(names, ["as64502", "fits"]);
        let out: Vec<&str> = fitting.left_out.iter().map(|out| &*out.what).collect();
        assert_eq!(out.len(), 3, "{out:?}");
        let same_name = fitting
            .left_out
            .iter()
            .find(|out| out.what.contains("as64502"));
        let why = &same_name.unwrap().why;
        assert!(
            why.contains("c.toml:") && why.contains("made by API"),
            "{why}"
        );
        let blocked: Vec<String> = fitting
            .blocked
            .iter()
            .map(|spec| format!("{} {}", spec.name, spec.remote))
            .collect();
        assert_eq!(blocked, ["as64502 (left out) 10.0.0.3", "lost 10.0.0.5"]);
        assert!(fitting.blocked.iter().all(|spec| spec.keys.is_empty()));
    }

    #[test]
    fn the_search_finds_those_that_nothing_blames() {
        let peers: Vec<(String, String)> = (0..40)
            .map(|number| (format!("p{number}"), format!("10.0.1.{number}")))
            .collect();
        let peers: Vec<(&str, &str, &str)> = peers
            .iter()
            .map(|(name, address)| (name.as_str(), address.as_str(), "transit"))
            .collect();
        let made = made(&peers);
        let load = |made: &Overlay| {
            let wrong = made.peer("p7").is_some() || made.peer("p31").is_some();
            let text = if wrong { "nonsense" } else { FILE };
            Config::load_text(text, Path::new("/c.toml"), &Overlay::default())
        };
        let subjects = made.subjects();
        let mut search = Search {
            made: &made,
            load: &load,
            out: subjects.iter().cloned().collect(),
            left_out: Vec::new(),
        };
        search.admit(&subjects);
        let out: Vec<&str> = search.left_out.iter().map(|out| &*out.what).collect();
        assert_eq!(out, [r#"peer "p7""#, r#"peer "p31""#]);
        assert_eq!(made.without(&search.out).peers.len(), 38);
    }

    #[test]
    fn a_file_that_is_wrong_by_itself_is_refused() {
        let made = made(&[("as64502", "10.0.0.3", "transit")]);
        let error = fit_text(&FILE.replace("hmac-sha-1-96", "md5"), made).unwrap_err();
        assert!(error.to_string().contains("md5"), "{error}");
    }

    #[test]
    fn a_file_without_peers_keeps_those_that_fit() {
        let text = FILE.split("[[peer]]").next().unwrap_or_default();
        let made = made(&[("a", "10.0.0.3", "transit"), ("b", "10.0.0.4", "gone")]);
        let fitting = fit_text(text, made).unwrap();
        assert_eq!(fitting.config.peers.len(), 1);
        assert_eq!(fitting.left_out.len(), 1);
    }
}
