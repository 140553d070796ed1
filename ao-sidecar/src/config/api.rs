//! `[api]` and `[metrics]`: who may ask and change what, and where.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::files::Files;
use super::rollover::{existing_file, is_dns_name};
use super::section::{Schema, Section};

pub(super) const API: Schema = Schema {
    title: "[api]",
    required: &[],
    optional: &["viewer_group", "operator_group", "admin_group", "tcp"],
};
pub(super) const TCP: Schema = Schema {
    title: "[api.tcp]",
    required: &["listen", "certificate_file", "key_file", "ca_file"],
    optional: &["viewers", "operators", "admins"],
};
pub(super) const METRICS: Schema = Schema {
    title: "[metrics]",
    required: &["listen"],
    optional: &[],
};

/// Most names of one role: a list beyond that belongs into groups of an authority.
const MAX_NAMES: usize = 1024;

/// Who may use the API, and how from afar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiConfig {
    /// Group whose members are viewers.
    pub viewer_group: Option<String>,
    /// Group whose members are operators.
    pub operator_group: Option<String>,
    /// Group whose members are admins.
    pub admin_group: Option<String>,
    /// The API over TCP with mutual TLS; nowhere when absent.
    pub tcp: Option<ApiTcpConfig>,
}

impl ApiConfig {
    /// The groups that are named.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        let groups = [&self.viewer_group, &self.operator_group, &self.admin_group];
        groups.into_iter().flatten().map(String::as_str)
    }
}

/// The API over TCP with mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTcpConfig {
    /// Addresses and ports; at least one.
    pub listen: Vec<SocketAddr>,
    /// PEM file with the certificate that clients see, and those between it and their authority's.
    pub certificate_file: PathBuf,
    /// PEM file with its private key.
    pub key_file: PathBuf,
    /// PEM file with the certificates of the clients' authority.
    pub ca_file: PathBuf,
    /// DNS names (subjectAltName) in the certificates of viewers, in lower case.
    pub viewers: Vec<String>,
    /// Those of operators. No name is in two lists.
    pub operators: Vec<String>,
    /// Those of admins.
    pub admins: Vec<String>,
}

/// Reads `[api]`. Looks at `files`.
pub(super) fn api(root: &mut Section<'_, '_>, files: &Files) -> ApiConfig {
    let Some(mut section) = root.table("api", &API) else {
        return ApiConfig::default();
    };
    let tcp = section.table("tcp", &TCP);
    let group = |key| section.parsed(key, group_name);
    let config = ApiConfig {
        viewer_group: group("viewer_group"),
        operator_group: group("operator_group"),
        admin_group: group("admin_group"),
        tcp: tcp.and_then(|tcp| api_tcp(&tcp, files)),
    };
    let mut seen: Vec<&String> = Vec::new();
    let groups = [
        ("viewer_group", &config.viewer_group),
        ("operator_group", &config.operator_group),
        ("admin_group", &config.admin_group),
    ];
    for (key, name) in groups {
        let Some(name) = name else { continue };
        if seen.contains(&name) {
            let text = format!(
                "group {name:?} has two roles; write it for the higher one only, which may do all \
                 that the lower one may"
            );
            section.problem(key, text);
        }
        seen.push(name);
    }
    config
}

fn api_tcp(section: &Section<'_, '_>, files: &Files) -> Option<ApiTcpConfig> {
    let listen = addresses(section, "listen", "10.0.0.1:7180");
    if listen.as_ref().is_some_and(Vec::is_empty) {
        section.problem(
            "listen",
            "`listen` is empty; write at least one address and port, or remove [api.tcp]",
        );
    }
    let certificate_file = existing_file(
        section,
        "certificate_file",
        files,
        "the certificate of the API",
    );
    let key_file = existing_file(section, "key_file", files, "its private key");
    let ca_file = existing_file(
        section,
        "ca_file",
        files,
        "the certificates of the clients' authority",
    );
    let [viewers, operators, admins] = role_names(section);
    if viewers.is_empty() && operators.is_empty() && admins.is_empty() {
        let text = "[api.tcp] lets nobody in; write names of certificates into `viewers`, \
                    `operators` or `admins`";
        section.problem("viewers", text);
    }
    Some(ApiTcpConfig {
        listen: listen?,
        certificate_file: certificate_file?,
        key_file: key_file?,
        ca_file: ca_file?,
        viewers,
        operators,
        admins,
    })
}

/// The names of each role, of which none is there twice.
fn role_names(section: &Section<'_, '_>) -> [Vec<String>; 3] {
    let mut seen: Vec<(String, &str)> = Vec::new();
    ["viewers", "operators", "admins"].map(|role| {
        let mut names = Vec::new();
        let written = section.texts(role, "a name, or a list of names");
        for (text, span) in written.unwrap_or_default() {
            let name = text.to_ascii_lowercase();
            if !is_dns_name(&name) {
                let text = format!(
                    "{text:?} is no DNS name; write one that is in the client's certificate as \
                     subjectAltName"
                );
                section.problem_at(&span, text);
            } else if let Some((_, other)) = seen.iter().find(|(other, _)| *other == name) {
                let text = format!("{text:?} is in `{other}` already; remove one");
                section.problem_at(&span, text);
            } else if names.len() == MAX_NAMES {
                let text = format!("`{role}` has more than {MAX_NAMES} names");
                section.problem_at(&span, text);
                break;
            } else {
                seen.push((name.clone(), role));
                names.push(name);
            }
        }
        names
    })
}

/// Reads `[metrics]`.
pub(super) fn metrics_listen(root: &mut Section<'_, '_>) -> Option<SocketAddr> {
    let section = root.table("metrics", &METRICS)?;
    section.parsed("listen", |text| parse_address(text, "127.0.0.1:9179"))
}

/// Addresses and ports under `key`: one, or a list of them, none twice.
pub(super) fn addresses(
    section: &Section<'_, '_>,
    key: &str,
    example: &str,
) -> Option<Vec<SocketAddr>> {
    let written = section.texts(key, "an address and port, or a list of them")?;
    let mut addresses = Vec::with_capacity(written.len());
    for (text, span) in &written {
        match parse_address(text, example) {
            Ok(address) if addresses.contains(&address) => {
                section.problem_at(span, format!("{text:?} is there twice; remove one"));
            }
            Ok(address) => addresses.push(address),
            Err(problem) => section.problem_at(span, problem),
        }
    }
    Some(addresses)
}

fn parse_address(text: &str, example: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(format!("{text:?} has port 0; write 1 to 65535")),
        Ok(address) => Ok(address),
        Err(_) => Err(format!(
            "{text:?} is no address and port; write one like {example:?} or \"[2001:db8::1]:{}\"",
            example.rsplit(':').next().unwrap_or_default()
        )),
    }
}

/// A name that groupadd(8) would take.
fn group_name(name: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&name.len())
        && !name.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && name
            .bytes()
            .all(|octet| octet.is_ascii_alphanumeric() || b"_-.$@\\".contains(&octet));
    if fits {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is no name of a group; write one that `getent group` knows"
        ))
    }
}
