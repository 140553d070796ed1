//! `[api]`, `[api.tcp]` and `[metrics]`.

use super::*;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["api.crt", "api.key", "clients.crt"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

fn parse_in(folder: &tempfile::TempDir, text: &str) -> Result<Config, ConfigError> {
    parse_as(
        &format!("{text}\n{CHAIN}{PEER}"),
        &folder.path().join("ao.toml"),
        0o600,
    )
}

fn refused_in(folder: &tempfile::TempDir, text: &str) -> String {
    told(parse_in(folder, text)).replace(folder.path().to_str().unwrap(), "DIR")
}

const TCP: &str = r#"[api.tcp]
listen = ["192.0.2.1:7180", "[2001:db8::1]:7180"]
certificate_file = "api.crt"
key_file = "api.key"
ca_file = "clients.crt"
viewers = ["noc.example.net", "Grafana.example.net"]
admins = "ann.example.net"
"#;

#[test]
fn who_may_use_the_api_is_read() {
    let folder = folder();
    let config = parse_in(&folder, "").unwrap();
    assert_eq!(
        (config.api, config.metrics_listen),
        (ApiConfig::default(), None)
    );
    let text = format!(
        "[metrics]\nlisten = \"127.0.0.1:9179\"\n[api]\nviewer_group = \"adm\"\n\
         operator_group = \"noc\"\nadmin_group = \"net-admins\"\n{TCP}"
    );
    let config = parse_in(&folder, &text).unwrap();
    assert_eq!(
        config.metrics_listen,
        Some("127.0.0.1:9179".parse().unwrap())
    );
    let file = |name| folder.path().join(name);
    let expected = ApiConfig {
        viewer_group: Some("adm".to_owned()),
        operator_group: Some("noc".to_owned()),
        admin_group: Some("net-admins".to_owned()),
        tcp: Some(ApiTcpConfig {
            listen: vec![
                "192.0.2.1:7180".parse().unwrap(),
                "[2001:db8::1]:7180".parse().unwrap(),
            ],
            certificate_file: file("api.crt"),
            key_file: file("api.key"),
            ca_file: file("clients.crt"),
            viewers: vec![
                "noc.example.net".to_owned(),
                "grafana.example.net".to_owned(),
            ],
            operators: Vec::new(),
            admins: vec!["ann.example.net".to_owned()],
        }),
    };
    assert_eq!(config.api, expected);
}

#[test]
fn what_would_let_in_nobody_or_the_wrong_ones_is_refused() {
    let folder = folder();
    let without = |key: &str| -> String {
        let lines = TCP.lines().filter(|line| !line.starts_with(key));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let all = [
        "[api]\nviewer_group = \"\"".to_owned(),
        "[api]\nviewer_group = \"a b\"\nadmin_group = \"1000\"".to_owned(),
        "[api]\nviewer_group = \"adm\"\nadmin_group = \"adm\"".to_owned(),
        "[api]\nadmins = \"a\"\ntcp = 5".to_owned(),
        without("key_file"),
        without("ca_file"),
        format!("{}ca_file = \"absent\"\n", without("ca_file")),
        format!("{}listen = []\n", without("listen")),
        format!(
            "{}listen = [\"192.0.2.1\", \"192.0.2.1:0\", \"[::]:1\", \"[::]:1\"]\n",
            without("listen")
        ),
        without("viewers").replace("admins = \"ann.example.net\"\n", ""),
        format!("{TCP}operators = [\"NOC.example.net\", \"a b\", \"b\", \"b\"]\n"),
        "[metrics]".to_owned(),
        "[metrics]\nlisten = \"9179\"".to_owned(),
    ];
    let all: Vec<String> = all.iter().map(|text| refused_in(&folder, text)).collect();
    assert_snapshot!(all.join("\n"), @r##"
DIR/ao.toml:2:16: "" is no name of a group; write one that `getent group` knows
DIR/ao.toml:2:16: "a b" is no name of a group; write one that `getent group` knows
DIR/ao.toml:3:15: "1000" is no name of a group; write one that `getent group` knows
DIR/ao.toml:3:15: group "adm" has two roles; write it for the higher one only, which may do all that the lower one may
DIR/ao.toml:2:1: unknown key `admins` in [api]; write one of `viewer_group`, `operator_group`, `admin_group`, `tcp`
DIR/ao.toml:3:7: `tcp` is no table; write [api.tcp]
DIR/ao.toml:1:1: [api.tcp] has no `key_file`; add it
DIR/ao.toml:1:1: [api.tcp] has no `ca_file`; add it
DIR/ao.toml:7:11: `ca_file`: DIR/absent cannot be read: No such file or directory (os error 2); write the name of a file with the certificates of the clients' authority
DIR/ao.toml:7:10: `listen` is empty; write at least one address and port, or remove [api.tcp]
DIR/ao.toml:7:11: "192.0.2.1" is no address and port; write one like "10.0.0.1:7180" or "[2001:db8::1]:7180"
DIR/ao.toml:7:24: "192.0.2.1:0" has port 0; write 1 to 65535
DIR/ao.toml:7:49: "[::]:1" is there twice; remove one
DIR/ao.toml:1:1: [api.tcp] lets nobody in; write names of certificates into `viewers`, `operators` or `admins`
DIR/ao.toml:8:14: "NOC.example.net" is in `viewers` already; remove one
DIR/ao.toml:8:33: "a b" is no DNS name; write one that is in the client's certificate as subjectAltName
DIR/ao.toml:8:45: "b" is in `operators` already; remove one
DIR/ao.toml:1:1: [metrics] has no `listen`; add it
DIR/ao.toml:2:10: "9179" is no address and port; write one like "127.0.0.1:9179" or "[2001:db8::1]:9179"
"##);
}

#[test]
fn the_places_of_the_state_are_read_before_the_rest() {
    let folder = folder();
    let file = folder.path().join("ao.toml");
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        StatePlaces::read(&file)
    };
    let places =
        read("state_dir = \"/a\"\nnonsense = 1\n[store]\nkey_file = \"api.key\"\n").unwrap();
    assert_eq!(places.state_dir, Path::new("/a"));
    assert_eq!(places.sealing_key_file, Some(folder.path().join("api.key")));
    let places = read("").unwrap();
    assert_eq!(places.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!(places.sealing_key_file, None);
    let error = read("secret = hunter2").unwrap_err();
    assert!(!error.to_string().contains(MARK), "{error}");
    fs::remove_file(&file).unwrap();
    assert!(StatePlaces::read(&file).is_err());
}
