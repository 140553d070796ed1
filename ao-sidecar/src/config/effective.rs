//! The settings of a configuration as they are written, defaults included: what its text and the
//! differences of two are made of. There are no secrets among them.

use std::net::SocketAddr;
use std::path::Path;

use datapath::settings::{Choice, OnExit, PeerSpec, Strip};
use grpc_api::operator::Lifetime as Span;
use keymgr::chain::{Key, KeyChain, OnExpiry};
use keymgr::lifetime::{Lifetime, Tolerance};

use super::overlay::lifetime_text;
use super::{
    ApiConfig, ApiTcpConfig, Config, IdentityConfig, KeySource, Log, LogFormat, Peer,
    RolloverConfig, TrustConfig, Userspace,
};

/// Names and values of one table, as they are written. Absent are those without a value.
pub(super) type Settings = Vec<(&'static str, String)>;

/// A table that is there once, and its settings; the first one, without a title, is the top.
pub(super) type Table = (&'static str, Settings);

impl Config {
    /// The tables that are there once, in the order in which they are written. Those without a
    /// setting are among them.
    pub(super) fn tables(&self) -> Vec<Table> {
        let Self {
            state_dir,
            api_socket,
            on_exit,
            api,
            metrics_listen,
            log,
            userspace,
            identity,
            listen,
            sealing_key_file,
            // These have tables of their own.
            chains: _,
            peers,
            // These are of no effect.
            left_out: _,
            warnings: _,
            source: _,
            files: _,
        } = self;
        let top = vec![
            ("state_dir", path(state_dir)),
            ("api_socket", path(api_socket)),
            ("on_exit", on_exit_text(*on_exit)),
        ];
        // Without an automatic peer, nobody is listened for.
        let automatic = peers.iter().any(|peer| peer.keys.rollover().is_some());
        let peering = automatic.then(|| ("listen", addresses(listen)));
        let metrics = metrics_listen.map(|listen| ("listen", quoted(&listen.to_string())));
        let store = sealing_key_file.iter().map(|file| ("key_file", path(file)));
        vec![
            ("", top),
            ("[api]", api_settings(api)),
            ("[api.tcp]", api.tcp.as_ref().map(tcp).unwrap_or_default()),
            ("[metrics]", metrics.into_iter().collect()),
            ("[log]", log_settings(*log)),
            ("[userspace]", userspace_settings(*userspace)),
            ("[identity]", identity_settings(identity)),
            ("[peering]", peering.into_iter().collect()),
            ("[store]", store.collect()),
        ]
    }
}

fn api_settings(api: &ApiConfig) -> Settings {
    let ApiConfig {
        viewer_group,
        operator_group,
        admin_group,
        tcp: _,
    } = api;
    let groups = [
        ("viewer_group", viewer_group),
        ("operator_group", operator_group),
        ("admin_group", admin_group),
    ];
    let setting = |(key, group): (_, &Option<String>)| Some((key, quoted(group.as_ref()?)));
    groups.into_iter().filter_map(setting).collect()
}

fn tcp(tcp: &ApiTcpConfig) -> Settings {
    let ApiTcpConfig {
        listen,
        certificate_file,
        key_file,
        ca_file,
        viewers,
        operators,
        admins,
    } = tcp;
    vec![
        ("listen", addresses(listen)),
        ("certificate_file", path(certificate_file)),
        ("key_file", path(key_file)),
        ("ca_file", path(ca_file)),
        ("viewers", list(viewers)),
        ("operators", list(operators)),
        ("admins", list(admins)),
    ]
}

fn log_settings(log: Log) -> Settings {
    let Log { format, level } = log;
    let format = match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let level = level.as_str().to_ascii_lowercase();
    vec![("format", quoted(format)), ("level", quoted(&level))]
}

fn userspace_settings(userspace: Userspace) -> Settings {
    let Userspace {
        first_queue,
        workers,
        queue_length,
        mark_bit,
        max_connections,
        strip,
    } = userspace;
    let strip = match strip {
        Strip::Auto => "auto",
        Strip::Always => "always",
        Strip::Never => "never",
    };
    vec![
        ("first_queue", first_queue.to_string()),
        ("workers", workers.to_string()),
        ("queue_length", queue_length.to_string()),
        ("mark_bit", format!("0x{mark_bit:08x}")),
        ("max_connections", max_connections.to_string()),
        ("strip", quoted(strip)),
    ]
}

fn identity_settings(identity: &IdentityConfig) -> Settings {
    match identity {
        IdentityConfig::Own => Vec::new(),
        IdentityConfig::Files {
            cert_file,
            key_file,
        } => vec![("cert_file", path(cert_file)), ("key_file", path(key_file))],
    }
}

/// Those of a key chain, without its keys.
pub(super) fn chain_settings(chain: &KeyChain) -> Settings {
    let rules = chain.rules();
    let tolerance = match rules.tolerance {
        Tolerance::Forever => "forever".to_owned(),
        Tolerance::Within(margin) => humantime::format_duration(margin).to_string(),
    };
    let on_expiry = match rules.on_expiry {
        OnExpiry::Keep => "keep",
        OnExpiry::Close => "close",
    };
    vec![
        ("name", quoted(chain.name())),
        ("accept_tolerance", quoted(&tolerance)),
        ("allow_gaps", rules.allow_gaps.to_string()),
        ("on_expiry", quoted(on_expiry)),
    ]
}

/// Those of a key of a key chain, without its secret.
pub(super) fn key_settings(key: &Key) -> Settings {
    let Key { mkt, send, accept } = key;
    vec![
        ("send_id", mkt.send_id.to_string()),
        ("recv_id", mkt.recv_id.to_string()),
        ("algorithm", quoted(mkt.algorithm.name())),
        ("include_tcp_options", mkt.include_options.to_string()),
        ("send_lifetime", lifetime_text(span(*send))),
        ("accept_lifetime", lifetime_text(span(*accept))),
    ]
}

fn span(lifetime: Lifetime) -> Span {
    Span {
        start: lifetime.start(),
        end: lifetime.end(),
    }
}

/// Those of a peer, without its `[peer.rollover]`.
pub(super) fn peer_settings(peer: &Peer) -> Settings {
    let PeerSpec {
        name,
        remote,
        local,
        ports,
        interface,
        vrf,
        // They follow from where the keys come from.
        keys: _,
        algorithms: _,
        ttl_min,
        datapath,
    } = &peer.spec;
    let optional = |key, value: Option<String>| value.map(|value| (key, quoted(&value)));
    let datapath = match datapath {
        Choice::Auto => "auto",
        Choice::Kernel => "kernel",
        Choice::Userspace => "userspace",
    };
    let chain = peer.keys.chain();
    [
        Some(("name", quoted(name))),
        Some(("address", quoted(&remote.to_string()))),
        optional("key_chain", chain.map(|chain| chain.name().to_owned())),
        Some((
            "ports",
            quoted(&format!("{}-{}", ports.start(), ports.end())),
        )),
        optional("local_address", local.map(|local| local.to_string())),
        optional("interface", interface.clone()),
        optional("vrf", vrf.clone()),
        Some(("ttl_min", ttl_min.to_string())),
        Some(("datapath", quoted(datapath))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Those of a peer's `[peer.rollover]`; none where it has a key chain.
pub(super) fn rollover_settings(keys: &KeySource) -> Settings {
    let KeySource::Rollover(rollover) = keys else {
        return Vec::new();
    };
    let RolloverConfig {
        endpoint,
        trust,
        algorithms,
        interval,
        overlap,
        runway,
        highest_id,
        label,
    } = rollover;
    let mut settings = vec![("endpoint", quoted(&endpoint.to_string()))];
    match trust {
        TrustConfig::Pinned(fingerprint) => {
            settings.push(("fingerprint", quoted(&fingerprint.to_string())));
        }
        TrustConfig::Authority { ca_file, name } => {
            settings.push(("ca_file", path(ca_file)));
            settings.push(("name", quoted(name)));
        }
    }
    let duration = |duration| quoted(&humantime::format_duration(duration).to_string());
    let algorithms: Vec<&str> = algorithms
        .iter()
        .map(|algorithm| algorithm.name())
        .collect();
    settings.extend([
        ("algorithm", list(&algorithms)),
        ("interval", duration(*interval)),
        ("overlap", duration(*overlap)),
        ("runway", runway.to_string()),
        ("highest_id", highest_id.to_string()),
        ("label", quoted(label)),
    ]);
    settings
}

fn on_exit_text(on_exit: OnExit) -> String {
    quoted(match on_exit {
        OnExit::Keep => "keep",
        OnExit::Remove => "remove",
    })
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn addresses(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    list(&texts)
}

fn list(texts: &[impl AsRef<str>]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// A basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                quoted.push_str(&format!("\\U{:08X}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
