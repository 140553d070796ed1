//! Which peers the rules covered when they were last installed: a session of such a peer cannot
//! be unprotected, one of a peer added since can.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ao_engine::policy::Prefix;

use crate::settings::PeerSpec;

const NAME: &str = "protected-peers";

/// Remote prefixes and ports.
#[derive(Debug, Default)]
pub(crate) struct Protected(Vec<(Prefix, RangeInclusive<u16>)>);

impl Protected {
    /// What was noted last; nothing if nothing was, or nothing that can be read.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let text = fs::read_to_string(state_dir.join(NAME)).unwrap_or_default();
        Self(text.lines().filter_map(parse).collect())
    }

    /// Notes what is covered from now on.
    pub(crate) fn save<'a>(
        state_dir: &Path,
        peers: impl IntoIterator<Item = &'a PeerSpec>,
    ) -> io::Result<()> {
        let line = |peer: &PeerSpec| {
            let (address, length) = (peer.remote.address(), peer.remote.length());
            format!(
                "{address}/{length} {}-{}\n",
                peer.ports.start(),
                peer.ports.end()
            )
        };
        let text: String = peers.into_iter().map(line).collect();
        fs::create_dir_all(state_dir)?;
        let fresh = state_dir.join("protected-peers.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        fs::rename(fresh, state_dir.join(NAME))
    }

    /// Whether a connection between these ends was covered.
    pub(crate) fn covers(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.iter().any(|(prefix, ports)| {
            prefix.contains(remote.ip())
                && (ports.contains(&local.port()) || ports.contains(&remote.port()))
        })
    }
}

fn parse(line: &str) -> Option<(Prefix, RangeInclusive<u16>)> {
    let (prefix, ports) = line.split_once(' ')?;
    let (address, length) = prefix.split_once('/')?;
    let (first, last) = ports.split_once('-')?;
    let prefix = Prefix::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    Some((prefix, first.parse().ok()?..=last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Choice;

    #[test]
    fn what_was_noted_is_covered_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let peer = PeerSpec {
            name: "p".into(),
            remote: Prefix::new("10.0.0.0".parse().unwrap(), 24).unwrap(),
            local: None,
            ports: 179..=180,
            interface: None,
            vrf: None,
            keys: Vec::new(),
            algorithms: Vec::new(),
            ttl_min: 0,
            datapath: Choice::Auto,
        };
        Protected::save(directory.path(), &[peer]).unwrap();
        let protected = Protected::load(directory.path());
        let covers = |local: &str, remote: &str| {
            protected.covers(local.parse().unwrap(), remote.parse().unwrap())
        };
        assert!(covers("10.9.9.9:40000", "10.0.0.2:179"));
        assert!(covers("10.9.9.9:180", "10.0.0.2:40000"));
        assert!(!covers("10.9.9.9:40000", "10.0.1.2:179"));
        assert!(!covers("10.9.9.9:40000", "10.0.0.2:181"));
    }

    #[test]
    fn a_missing_or_damaged_note_covers_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), "10.0.0.0/33 1-2\nnonsense\n").unwrap();
        assert!(Protected::load(directory.path()).0.is_empty());
        assert!(Protected::load(Path::new("/nonexistent")).0.is_empty());
    }
}
