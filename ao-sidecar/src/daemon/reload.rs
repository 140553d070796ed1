//! SIGHUP: the configuration is read again, and its keys take the place of the former ones.

use std::collections::BTreeMap;

use datapath::settings::Settings;
use nix::time::{ClockId, clock_gettime};

use crate::config::{Config, ConfigError, Peer, RolloverConfig};

/// Why the running configuration stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Settings differ that are read at the start only.
    #[error("only keys can change while ao-sidecar runs, restart it for the rest: other {}", .0.join(", "))]
    Settings(Vec<&'static str>),
    /// Peers differ, or keys cannot be as they are written.
    #[error(transparent)]
    Keys(#[from] datapath::ReloadError),
    /// There is nothing left to reload.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Settings, other than those of peers, that differ.
pub(super) fn differing_settings(running: &Config, fresh: &Config) -> Vec<&'static str> {
    let log = |config: &Config| (config.log.format, config.log.level);
    let (one, other) = (running.settings(false), fresh.settings(false));
    let Settings {
        first_queue,
        workers,
        queue_length,
        mark_bit,
        max_connections,
        strip,
        on_exit,
        state_dir,
        // Beside api_socket, which is compared.
        keeper_socket: _,
        // Compared by the datapath, which may take over their keys.
        peers: _,
        // Not of the configuration.
        replace_sessions: _,
    } = one;
    [
        ("api_socket", running.api_socket != fresh.api_socket),
        ("log", log(running) != log(fresh)),
        ("first_queue", first_queue != other.first_queue),
        ("workers", workers != other.workers),
        ("queue_length", queue_length != other.queue_length),
        ("mark_bit", mark_bit != other.mark_bit),
        ("max_connections", max_connections != other.max_connections),
        ("strip", strip != other.strip),
        ("on_exit", on_exit != other.on_exit),
        ("state_dir", state_dir != other.state_dir),
        ("identity", running.identity != fresh.identity),
        ("peering", running.listen != fresh.listen),
        ("store", running.sealing_key_file != fresh.sealing_key_file),
        ("peer.rollover", agreed(running) != agreed(fresh)),
    ]
    .into_iter()
    .filter_map(|(setting, differs)| differs.then_some(setting))
    .collect()
}

/// Peers whose keys are agreed, by name.
fn agreed(config: &Config) -> BTreeMap<&str, &RolloverConfig> {
    fn by_name(peer: &Peer) -> Option<(&str, &RolloverConfig)> {
        Some((&peer.spec.name, peer.keys.rollover()?))
    }
    config.peers.iter().filter_map(by_name).collect()
}

/// What the service manager is told when a reload begins (sd_notify(3)).
pub(super) fn reloading() -> String {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    let micros = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
    format!("RELOADING=1\nMONOTONIC_USEC={micros}")
}
