//! Which peers the rules covered when they were last installed: a session of such a peer cannot
//! be unprotected, one of a peer added since can. And the guard can cover them again when it is not
//! to be had from elsewhere who they are.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ao_engine::policy::Prefix;

use crate::settings::{Choice, PeerSpec};

const NAME: &str = "protected-peers";

/// Peers without keys.
#[derive(Debug, Default)]
pub(crate) struct Protected(Vec<PeerSpec>);

/// The peers that the rules covered when they were last installed, as noted in `state_dir`: without
/// keys, each named by its line there.
#[must_use]
pub fn covered_last(state_dir: &Path) -> Vec<PeerSpec> {
    Protected::load(state_dir).0
}

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
        let mut written = HashSet::new();
        let lines = peers.into_iter().map(line);
        let text: String = lines.filter(|line| written.insert(line.clone())).collect();
        // Other keys need no other note, so that a full disk is in nobody's way.
        if fs::read_to_string(state_dir.join(NAME)).is_ok_and(|noted| noted == text) {
            return Ok(());
        }
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

    /// Notes nothing any more.
    pub(crate) fn forget(state_dir: &Path) -> io::Result<()> {
        match fs::remove_file(state_dir.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Who was covered.
    pub(crate) fn peers(&self) -> &[PeerSpec] {
        &self.0
    }

    /// Whether some connection of `peer` may have been covered.
    pub(crate) fn touches(&self, peer: &PeerSpec) -> bool {
        self.0.iter().any(|noted| {
            let meet = |one: Prefix, other: Prefix| one.contains(other.address());
            (meet(noted.remote, peer.remote) || meet(peer.remote, noted.remote))
                && noted.ports.start() <= peer.ports.end()
                && peer.ports.start() <= noted.ports.end()
        })
    }

    /// Whether a connection between these ends was covered.
    pub(crate) fn covers(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.iter().any(|peer| {
            peer.remote.contains(remote.ip())
                && (peer.ports.contains(&local.port()) || peer.ports.contains(&remote.port()))
        })
    }
}

/// Such as `192.0.2.2/32 179-179 vrf=red`.
fn line(peer: &PeerSpec) -> String {
    let (address, length) = (peer.remote.address(), peer.remote.length());
    let (first, last) = (peer.ports.start(), peer.ports.end());
    let mut line = format!("{address}/{length} {first}-{last}");
    let local = peer.local.map(|local| local.to_string());
    let kernel = (peer.datapath == Choice::Kernel).then(|| "kernel".to_owned());
    let details = [
        ("local", &local),
        ("interface", &peer.interface),
        ("vrf", &peer.vrf),
        ("datapath", &kernel),
    ];
    for (key, value) in details {
        if let Some(value) = value {
            line.push_str(&format!(" {key}={value}"));
        }
    }
    line.push('\n');
    line
}

fn parse(line: &str) -> Option<PeerSpec> {
    let mut fields = line.split(' ');
    let (address, length) = fields.next()?.split_once('/')?;
    let (first, last) = fields.next()?.split_once('-')?;
    let mut peer = PeerSpec {
        name: line.into(),
        remote: Prefix::new(address.parse().ok()?, length.parse().ok()?).ok()?,
        local: None,
        ports: first.parse().ok()?..=last.parse().ok()?,
        interface: None,
        vrf: None,
        keys: Vec::new(),
        algorithms: Vec::new(),
        ttl_min: 0,
        datapath: Choice::Auto,
    };
    for field in fields {
        match field.split_once('=')? {
            ("local", local) => peer.local = Some(local.parse().ok()?),
            ("interface", name) => peer.interface = Some(name.to_owned()),
            ("vrf", name) => peer.vrf = Some(name.to_owned()),
            ("datapath", "kernel") => peer.datapath = Choice::Kernel,
            _ => return None,
        }
    }
    Some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_peer_touches_what_it_shares_addresses_and_ports_with() {
        let noted = "10.0.0.0/24 179-180\n".lines().filter_map(parse).collect();
        let noted = Protected(noted);
        let touches = |line: &str| noted.touches(&parse(line).unwrap());
        assert!(touches("10.0.0.2/32 179-179"));
        assert!(touches("10.0.0.0/8 1-65535"));
        assert!(touches("10.0.0.2/32 180-200 vrf=red"));
        assert!(!touches("10.0.1.2/32 179-179"));
        assert!(!touches("10.0.0.2/32 181-200"));
        assert!(!touches("fe80::1/128 179-179"));
    }

    #[test]
    fn what_was_noted_is_there_again() {
        let directory = tempfile::tempdir().unwrap();
        let noted = "10.0.0.0/24 179-180\n\
                     fe80::1/128 179-179 interface=eth0 vrf=red datapath=kernel\n\
                     10.0.1.1/32 179-179 local=10.0.1.2\n";
        fs::write(directory.path().join(NAME), noted).unwrap();
        let peers = covered_last(directory.path());
        assert_eq!(peers[1].interface.as_deref(), Some("eth0"));
        assert_eq!(peers[2].local, Some("10.0.1.2".parse().unwrap()));
        // Nobody is noted twice.
        Protected::save(directory.path(), peers.iter().chain(&peers)).unwrap();
        let again = fs::read_to_string(directory.path().join(NAME)).unwrap();
        assert_eq!(again, noted);
    }

    #[test]
    fn a_missing_or_damaged_note_covers_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), "10.0.0.0/33 1-2\nnonsense\n").unwrap();
        assert!(Protected::load(directory.path()).0.is_empty());
        assert!(Protected::load(Path::new("/nonexistent")).0.is_empty());
    }
}
