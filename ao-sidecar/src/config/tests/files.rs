//! The files that a configuration names: read with it, and not again for a change by API.

use grpc_api::operator::administration::PeerSpec;

use super::*;

/// A configuration whose only secret is in a file.
struct Written(tempfile::TempDir);

impl Written {
    fn new() -> Self {
        let written = Self(tempfile::tempdir().unwrap());
        written.secret("first");
        fs::write(written.file(), with_secret("secret_file = \"one\"")).unwrap();
        written
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("ao.toml")
    }

    fn secret(&self, secret: &str) {
        let path = self.0.path().join("one");
        fs::write(&path, secret).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.file(), &Overlay::default())
    }
}

/// Another peer, made by API.
fn made() -> Overlay {
    Overlay {
        peers: vec![PeerSpec {
            name: "other".to_owned(),
            address: "10.0.0.9".to_owned(),
            key_chain: "transit".to_owned(),
            ..Default::default()
        }],
        chains: Vec::new(),
    }
}

fn secret_of(config: &Config) -> &[u8] {
    config.chains[0].keys.keys()[0].mkt.master_key.expose()
}

#[test]
fn a_change_by_api_reads_no_secret_again() {
    let written = Written::new();
    let running = written.load().unwrap();
    written.secret("second");
    let changed = running.with(&made()).unwrap();
    assert_eq!(changed.peers.len(), 2);
    assert_eq!(secret_of(&changed), b"first");
    assert!(changed.chains[0].keys.is_same(&running.chains[0].keys));

    fs::remove_file(written.0.path().join("one")).unwrap();
    let changed = changed.with(&Overlay::default()).unwrap();
    assert_eq!(secret_of(&changed), b"first");
    let refused = told(written.load());
    assert!(refused.contains("cannot be read"), "{refused}");

    written.secret("third");
    assert_eq!(secret_of(&written.load().unwrap()), b"third");
}

#[test]
fn a_change_by_api_needs_no_file_of_another_peer() {
    let written = Written::new();
    let authority = written.0.path().join("ca.pem");
    fs::write(&authority, "").unwrap();
    let peer = "[[peer]]\nname = \"agreed\"\naddress = \"10.0.0.3\"\n[peer.rollover]\n\
                endpoint = \"10.0.0.3:7179\"\nca_file = \"ca.pem\"\nname = \"a.example.net\"\n";
    let text = fs::read_to_string(written.file()).unwrap();
    fs::write(written.file(), format!("{text}{peer}")).unwrap();
    let running = written.load().unwrap();
    assert!(running.files().certificates(&authority).unwrap().is_empty());
    fs::remove_file(&authority).unwrap();
    let changed = running.with(&made()).unwrap();
    assert!(changed.files().certificates(&authority).unwrap().is_empty());
    assert!(written.load().is_err());
}

#[test]
fn a_checked_text_opens_only_files_that_are_in_use() {
    let written = Written::new();
    let running = written.load().unwrap();
    let check = |name: &str| {
        let text = with_secret(&format!("secret_file = {name:?}"));
        running.check_text(&text, &Overlay::default())
    };
    assert_eq!(check("one").unwrap(), []);
    // There, not there, a folder, and not for us: nothing tells which.
    fs::write(written.0.path().join("two"), "").unwrap();
    for name in ["two", "three", "/etc", "/etc/shadow"] {
        let warnings = check(name).unwrap();
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        let path = written.0.path().join(name);
        assert_eq!(warning.place, Some((7, 15)));
        assert_eq!(
            warning.text,
            format!(
                "`secret_file`: {} is not looked at, for the running configuration does not name it",
                path.display()
            )
        );
    }
    let identity = "[identity]\ncert_file = \"two\"\nkey_file = \"three\"\n";
    let text = with_secret("secret_file = \"one\"") + identity;
    let warnings = running.check_text(&text, &Overlay::default()).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    // What is in use is looked at again.
    written.secret("");
    assert!(check("one").is_err());
}
