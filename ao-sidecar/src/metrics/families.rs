//! The families of metrics: names, types, labels, and what they mean. docs/METRICS.md lists the
//! same ones.

use prometheus_client::metrics::MetricType;

/// A family of metrics with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Family<const N: usize> {
    /// Its name without prefix, and without the `_total` of a counter.
    pub name: &'static str,
    /// What its values are.
    pub kind: MetricType,
    /// Names of its labels.
    pub labels: [&'static str; N],
    /// What it means, for people; no full stop.
    pub help: &'static str,
}

/// A family, however many labels it has.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name without prefix, and without the `_total` of a counter.
    pub name: &'static str,
    /// What its values are.
    pub kind: MetricType,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, for people; no full stop.
    pub help: &'static str,
}

const fn count(labels: &[&str]) -> usize {
    labels.len()
}

macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Family<{ count(&[$($label),*]) }> = Family {
                name: $name,
                kind: MetricType::$kind,
                labels: [$($label),*],
                help: $help,
            };
        )*

        /// All of them, in the order of the page.
        pub const ALL: &[Described] = &[$(Described {
            name: $name,
            kind: MetricType::$kind,
            labels: &[$($label),*],
            help: $help,
        },)*];
    };
}

families! {
    BUILD = Info "build" ["version"]
        "The version that runs";
    UPTIME = Gauge "uptime_seconds" []
        "Time since rules and guard became active";
    CONFIG_LOADED = Gauge "config_loaded_timestamp_seconds" []
        "When the configuration in use was taken over";
    API_MADE = Gauge "api_made" []
        "Peers, key chains and keys that were made by API";
    ALARMS = Gauge "alarms" []
        "What an operator should look at and concerns no single peer, as aoctl status shows it";
    EVENTS = Counter "events" ["kind", "severity"]
        "Events of this process, as aoctl events shows them";

    PEER = Info "peer" ["peer", "address", "datapath"]
        "A configured peer and the backend that signs and verifies for it";
    PEER_UP = Gauge "peer_up" ["peer"]
        "1 if the peer has an established session, else 0; absent for a prefix, which may have no far end";
    PEER_SESSIONS = Gauge "peer_sessions" ["peer"]
        "Established sessions of the peer";
    PEER_BLOCKED = Gauge "peer_blocked" ["peer"]
        "1 if the peer has no key, so that nothing passes, else 0";
    PEER_ALARMS = Gauge "peer_alarms" ["peer"]
        "What an operator should look at about the peer, as aoctl status shows it";
    PEER_SEGMENTS_GOOD = Counter "peer_segments_good" ["peer"]
        "Segments from the peer whose MAC verified";
    PEER_SEGMENTS_SENT = Counter "peer_segments_sent" ["peer"]
        "Segments signed and sent to the peer";
    PEER_DROPS = Counter "peer_drops" ["peer", "reason"]
        "Refused packets of the peer; only reasons that occurred";
    KEY_SEGMENTS = Counter "key_segments" ["peer", "key", "generation", "result"]
        "Segments by key and result: good and bad ones received, sent ones; only keys the peer has";

    SESSIONS = Gauge "sessions" ["state"]
        "Sessions by how far they are";
    DROPS = Counter "drops" ["reason"]
        "Refused packets that belong to no peer; only reasons that occurred";
    FIREWALL_DROPS = Counter "firewall_drops" ["rule"]
        "Packets that the firewall itself dropped, by rule";
    RULES_RESTORED = Counter "rules_restored" []
        "Times the watcher had to put firewall rules back that somebody had removed";
    RULES_IN_PLACE = Gauge "rules_in_place" []
        "1 if all firewall rules were in place at the last look, 0 if they cannot be put back or nobody looks";

    QUEUE_PACKETS = Counter "queue_packets" ["queue"]
        "Packets taken from a netfilter queue";
    QUEUE_OVERRUNS = Counter "queue_overruns" ["queue"]
        "Times the kernel found the queue's socket buffer full";
    QUEUE_DROPPED = Counter "queue_dropped" ["queue"]
        "Packets the kernel dropped because the queue was full";
    QUEUE_WAITING = Gauge "queue_waiting" ["queue"]
        "Packets that wait in a netfilter queue";
    MACS = Counter "macs" []
        "MACs that the userspace backend has computed";
    MAC_SECONDS = Counter "mac_seconds" []
        "Time it took to compute them, all workers together";

    KERNEL_DAEMONS = Gauge "kernel_daemons" []
        "Daemons that run under ao-sidecar exec";
    KERNEL_PROBLEMS = Gauge "kernel_problems" []
        "Things that sockets of the kernel backend lack";

    KEY_CHAIN_END = Gauge "key_chain_end_timestamp_seconds" ["chain"]
        "When the last key of a key chain is sent with no more; only chains that end";
    ROLLOVER_GENERATION = Gauge "rollover_active_generation" ["peer"]
        "Number of the generation that the peer's sessions are to use; 0 while there is none";
    ROLLOVER_RUNWAY_READY = Gauge "rollover_runway_ready" ["peer"]
        "Later generations that can be switched to without a channel to the far end";
    ROLLOVER_RUNWAY_WANTED = Gauge "rollover_runway_wanted" ["peer"]
        "How many of them there should be";
    ROLLOVER_NEXT = Gauge "rollover_next_timestamp_seconds" ["peer"]
        "When the next key change is due";
    ROLLOVERS = Counter "rollovers" ["peer", "trigger"]
        "Key changes completed by this process, by why they were begun";
    ROLLOVER_DURATION = Histogram "rollover_duration_seconds" ["trigger"]
        "Time from selecting a new key to the proof that every session uses it in both directions";
    FAR_END_HEARD = Gauge "far_end_heard_timestamp_seconds" ["peer"]
        "When the peer's sidecar was last heard by this process; absent before";
    FAR_END_UNREACHABLE = Gauge "far_end_unreachable_since_timestamp_seconds" ["peer"]
        "Since when calls of the peer's sidecar fail; absent while they succeed";
}
