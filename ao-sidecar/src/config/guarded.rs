//! Whom the guard covers: everybody who can be made out, whatever is wrong with the configuration.
//!
//! Keys, groups and the store of what was made by API are not looked at: at boot the guard comes
//! first, when files and credentials that the daemon needs may not be there yet.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use datapath::settings::{PeerSpec, Settings};
use keymgr::store::CHANGES_FILE_NAME;
use toml::de::DeTable;
use zeroize::Zeroizing;

use super::problem::{self, ConfigError, Problems};
use super::section::Section;
use super::{DEFAULT_STATE_DIR, NO_PEER, ROOT, USERSPACE, absolute, peer, read, userspace};

/// Whom the guard covers.
#[derive(Debug)]
pub struct Guarded {
    /// What the guard is made of. Peers have no keys; there may be none.
    pub settings: Settings,
    /// What could not be read of the file.
    pub doubts: Option<ConfigError>,
}

impl Guarded {
    /// The peers of `file` as far as it can be read. If not all of it can, or something may have
    /// been made by API, also those that the rules covered last. `state_dir` replaces the one that
    /// is configured.
    #[must_use]
    pub fn read(file: &Path, state_dir: Option<&Path>) -> Self {
        let (text, unread) = match read(file) {
            Ok((text, _)) => (text, None),
            Err(error) => {
                let unread = ConfigError::of_file(file, format!("cannot be read: {error}"));
                (Zeroizing::default(), Some(unread))
            }
        };
        let problems = Problems::of_file(&text, file);
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            // `message` is made of fixed texts only.
            let text = format!("not TOML: {}", error.message());
            problems.add(&error.span().unwrap_or(0..0), text);
        }
        let mut root = Section::new(&ROOT, table.into_inner(), 0..0, &problems);
        let datapath = super::datapath(&root).unwrap_or_default();
        let configured = absolute(&root, "state_dir", DEFAULT_STATE_DIR);
        let state_dir = state_dir.map_or(configured, Path::to_owned);
        let userspace = userspace(root.table("userspace", &USERSPACE));
        let sections = root.tables("peer", &peer::PEER);
        let mut peers = Vec::new();
        for spec in sections
            .iter()
            .filter_map(|section| peer::covered(section, datapath))
        {
            cover(&mut peers, spec);
        }
        let may_have_made = || state_dir.join(CHANGES_FILE_NAME).symlink_metadata().is_ok();
        let wholly_read = unread.is_none() && problems.is_empty();
        if !wholly_read || may_have_made() {
            for spec in datapath::covered_last(&state_dir) {
                cover(&mut peers, spec);
            }
        }
        tell_apart(&mut peers);
        if peers.is_empty() && unread.is_none() {
            root.place().problem(NO_PEER);
        }
        drop((sections, root));
        let doubts = unread.or_else(|| problem::told(file, [problems]).err());
        Self {
            settings: userspace.settings(peers, &state_dir),
            doubts,
        }
    }
}

/// Covers a peer, too. Where others cover the same address, ports are put together.
fn cover(peers: &mut Vec<PeerSpec>, mut spec: PeerSpec) {
    while let Some(at) = peers.iter().position(|other| other.overlaps(&spec)) {
        let other = peers.remove(at);
        let first = *other.ports.start().min(spec.ports.start());
        let last = *other.ports.end().max(spec.ports.end());
        spec = PeerSpec {
            ports: first..=last,
            ..other
        };
    }
    peers.push(spec);
}

/// Gives each peer a name of its own.
fn tell_apart(peers: &mut [PeerSpec]) {
    let mut names: HashSet<Arc<str>> = HashSet::new();
    for (number, peer) in peers.iter_mut().enumerate() {
        if peer.name.is_empty() || names.contains(&peer.name) {
            peer.name = format!("{} ({number})", peer.remote).into();
        }
        names.insert(Arc::clone(&peer.name));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PEER: &str = "[[peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nkey_chain = \"k\"\n";

    /// What is covered, in words, and what is doubted.
    fn read(text: &str, covered_last: &str, made_by_api: bool) -> (Vec<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let state_dir = format!("state_dir = {:?}\n", folder.path());
        fs::write(&file, state_dir + text).unwrap();
        fs::write(folder.path().join("protected-peers"), covered_last).unwrap();
        if made_by_api {
            fs::write(folder.path().join(CHANGES_FILE_NAME), "sealed").unwrap();
        }
        let Guarded { settings, doubts } = Guarded::read(&file, None);
        let words = |peer: &PeerSpec| {
            format!(
                "{} {}-{}",
                peer.remote,
                peer.ports.start(),
                peer.ports.end()
            )
        };
        let doubts = doubts.map_or_else(String::new, |doubts| doubts.to_string());
        (settings.peers.iter().map(words).collect(), doubts)
    }

    #[test]
    fn secrets_and_credentials_are_not_needed() {
        let text = "[store]\nsealing_key_file = \"/run/credentials/none/key\"\n\
                    [api]\nadmin_group = \"no-such-group\"\n\
                    [[key_chain]]\nname = \"k\"\n[[key_chain.key]]\nsecret_file = \"/none\"\n"
            .to_owned()
            + PEER;
        let (covered, doubts) = read(&text, "", false);
        assert_eq!(covered, ["192.0.2.1 179-179"]);
        assert_eq!(doubts, "");
    }

    #[test]
    fn whatever_can_be_read_is_covered_and_the_rest_told() {
        let text = PEER.to_owned()
            + "[[peer]]\nname = \"b\"\naddress = \"nonsense\"\n\
               [[peer]]\nname = \"a\"\naddress = \"192.0.2.3\"\nvrf = 3\n";
        let (covered, doubts) = read(&text, "192.0.2.9/32 1790-1791\n", false);
        assert_eq!(
            covered,
            [
                "192.0.2.1 179-179",
                "192.0.2.3 179-179",
                "192.0.2.9 1790-1791"
            ]
        );
        assert!(
            doubts.contains("nonsense") && doubts.contains("`vrf`"),
            "{doubts}"
        );
    }

    #[test]
    fn peers_in_each_others_way_are_covered_together() {
        let text = "[[peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nports = \"179-180\"\n\
                    [[peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nports = \"180-190\"\n";
        let (covered, _) = read(text, "192.0.2.1/32 100-180\n", true);
        assert_eq!(covered, ["192.0.2.1 100-190"]);
    }

    #[test]
    fn peers_made_by_api_are_those_covered_last() {
        let covered_last = "192.0.2.1/32 179-179\n192.0.2.9/32 179-179\n";
        let (covered, doubts) = read(PEER, covered_last, true);
        assert_eq!(covered, ["192.0.2.1 179-179", "192.0.2.9 179-179"]);
        assert_eq!(doubts, "");
        let (covered, _) = read(PEER, covered_last, false);
        assert_eq!(covered, ["192.0.2.1 179-179"], "the file says all");
    }

    #[test]
    fn nothing_to_guard_is_told() {
        let (covered, doubts) = read("", "", false);
        assert!(covered.is_empty());
        assert!(doubts.contains("no [[peer]]"), "{doubts}");
        let missing = Guarded::read(Path::new("/nonexistent/c.toml"), None);
        let doubts = missing.doubts.unwrap().to_string();
        assert!(doubts.contains("cannot be read"), "{doubts}");
    }
}
