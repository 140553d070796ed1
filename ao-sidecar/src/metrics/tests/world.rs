//! A daemon as the metrics see it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datapath::report::{
    KernelReport, KeyUse, LaunchedDaemon, PeerReport, QueueReport, Report, Session, SessionState,
};
use datapath::settings::Backend;
use grpc_api::operator::{
    CompletedRollover, ControlError, EventLog, GenerationReport, IdentityReport, KeyControl,
    KeyOrigin, KeyReport, KeyState, Lifetime, NewEvent, PeerKeys, RolloverReport, Severity,
};
use grpc_api::{Alarm, Snapshot, Source};

use crate::metrics::page::Moment;

/// What the daemon would answer.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) report: Report,
    pub(crate) keys: Vec<KeyReport>,
    pub(crate) rollovers: Vec<RolloverReport>,
    pub(crate) alarms: Vec<Alarm>,
    /// How often it was asked.
    pub(crate) asked: AtomicUsize,
    /// Whether what it says is not all.
    pub(crate) partial: AtomicBool,
    /// How long it takes to answer.
    pub(crate) takes: Duration,
    /// How many answers are being given, and most of them at once.
    pub(crate) answering: (AtomicUsize, AtomicUsize),
    /// Whether it is about to stop.
    pub(crate) stopping: bool,
}

impl World {
    /// A peer with automatic keys, one whose keys are the kernel's, and one without a key.
    pub(crate) fn example() -> Self {
        let mut automatic = peer("as64502", Backend::Userspace);
        automatic.drops = [("bad-mac", 4), ("unsigned", 9)].into();
        let mut kernel = peer("kernel", Backend::Kernel);
        (kernel.segments_good, kernel.segments_sent) = (40, 50);
        let mut blocked = peer("blocked", Backend::Userspace);
        (blocked.keys, blocked.sessions) = (0, 0);
        (blocked.segments_good, blocked.segments_sent) = (0, 0);
        let mut by_kernel = session("kernel", 2, Backend::Kernel, (5, 6));
        (by_kernel.segments_good, by_kernel.segments_sent) = (40, 50);
        (by_kernel.segments_bad, by_kernel.segments_unsigned) = (3, 2);
        (by_kernel.keys[0].good, by_kernel.keys[0].sent) = (40, None);
        Self {
            report: Report {
                queue_rules: "nftables",
                guard: "iptables",
                strips: true,
                rules_restored: 1,
                queues: vec![QueueReport {
                    number: 100,
                    packets: 1234,
                    overruns: 1,
                    waiting: 2,
                    dropped: 3,
                }],
                peers: vec![automatic, kernel, blocked],
                sessions: vec![session("as64502", 1, Backend::Userspace, (7, 7)), by_kernel],
                drops: [("no-peer", 5)].into(),
                firewall_drops: [("guard", 6), ("unsigned", 7)].into(),
                macs: 2345,
                mac_time: Duration::from_micros(6789),
                kernel: Some(KernelReport {
                    tcp_ao: true,
                    daemons: vec![LaunchedDaemon {
                        name: "bird".into(),
                        pid: 42,
                    }],
                    problems: vec!["no option memory left".into()],
                    ..KernelReport::default()
                }),
                ..Report::default()
            },
            keys: vec![
                generation("as64502", 3, 7),
                chain_key("kernel", "transit", Some(2_000_000_000)),
            ],
            rollovers: vec![rollover("as64502")],
            alarms: vec![
                Alarm {
                    peer: Some("as64502".into()),
                    text: "nothing heard from the peer's sidecar".into(),
                },
                Alarm {
                    peer: None,
                    text: "rules were put back".into(),
                },
            ],
            ..Self::default()
        }
    }

    /// Many automatic peers with two keys each.
    pub(crate) fn of(peers: u32, sessions_each: u32) -> Self {
        let mut world = Self::default();
        for number in 0..peers {
            let name = format!("as{number}");
            let mut peer = peer(&name, Backend::Userspace);
            peer.drops = [("bad-mac", 1), ("unsigned", 2)].into();
            world.report.peers.push(peer);
            world.keys.push(generation(&name, 1, 1));
            world.keys.push(generation(&name, 2, 2));
            world.rollovers.push(rollover(&name));
            for port in 0..sessions_each {
                let place = number * sessions_each + port;
                let mut session = session(&name, place, Backend::Userspace, (1, 1));
                session.keys.push(key_use((2, 2)));
                world.report.sessions.push(session);
            }
        }
        world
    }

    pub(crate) fn peer(&mut self, name: &str) -> &mut PeerReport {
        let mut peers = self.report.peers.iter_mut();
        peers.find(|peer| &*peer.name == name).expect("the peer")
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment {
            snapshot: Source::snapshot(self).expect("a snapshot"),
            rollovers: self.rollovers.clone(),
            keys: self.keys.clone(),
        }
    }
}

impl Source for World {
    fn snapshot(&self) -> Option<Snapshot> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (answering, most) = &self.answering;
        most.fetch_max(
            answering.fetch_add(1, Ordering::Relaxed) + 1,
            Ordering::Relaxed,
        );
        thread::sleep(self.takes);
        answering.fetch_sub(1, Ordering::Relaxed);
        let mut report = self.report.clone();
        report.partial = self.partial.load(Ordering::Relaxed);
        if report.partial {
            report.sessions.clear();
        }
        (!self.stopping).then(|| Snapshot {
            version: "1.2.3",
            uptime: Duration::from_secs(3600),
            datapath: "kernel and userspace",
            peers: Arc::default(),
            report,
            alarms: self.alarms.clone(),
            config_file: "/etc/ao-sidecar/config.toml".into(),
            config_loaded_at: at(1_800_000_000),
            api_made: 4,
        })
    }
}

impl KeyControl for World {
    fn peers(&self) -> Vec<PeerKeys> {
        unreachable!("metrics need no list")
    }

    async fn keys(&self, _: Option<&str>) -> Result<Vec<KeyReport>, ControlError> {
        Ok(self.keys.clone())
    }

    async fn rollovers(&self, _: Option<&str>) -> Result<Vec<RolloverReport>, ControlError> {
        Ok(self.rollovers.clone())
    }

    async fn start(&self, _: &str, _: bool) -> Result<String, ControlError> {
        unreachable!("metrics change nothing")
    }

    async fn abort(&self, _: &str) -> Result<String, ControlError> {
        unreachable!("metrics change nothing")
    }

    async fn force(&self, _: &str) -> Result<String, ControlError> {
        unreachable!("metrics change nothing")
    }

    async fn identity(&self) -> Result<IdentityReport, ControlError> {
        unreachable!("metrics need no identity")
    }
}

/// Tells the log of a key change by schedule.
pub(crate) fn key_change(log: &EventLog, peer: &str, took: Duration) {
    for (kind, trigger) in [("selected", Some("schedule")), ("proven", None)] {
        log.push(NewEvent {
            peer: Some(peer.into()),
            kind,
            severity: Severity::Info,
            generation: Some(3),
            key_id: Some(7),
            trigger,
            proof: None,
            took: Some(took),
            message: "it happened".into(),
        });
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn peer(name: &str, backend: Backend) -> PeerReport {
    PeerReport {
        name: name.into(),
        address: "192.0.2.1".into(),
        backend,
        backend_reason: "configured".into(),
        keys: 1,
        sessions: 1,
        segments_good: 100,
        segments_sent: 90,
        drops: [].into(),
        last_refused: None,
    }
}

fn key_use((send_id, recv_id): (u8, u8)) -> KeyUse {
    KeyUse {
        send_id,
        recv_id,
        good: 100,
        bad: 4,
        sent: Some(90),
    }
}

/// A session; `place` makes its ends its own.
fn session(peer: &str, place: u32, backend: Backend, ids: (u8, u8)) -> Session {
    let [_, _, high, low] = place.to_be_bytes();
    let end = |net, port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, net, high, low)), port);
    Session {
        peer: peer.into(),
        local: end(0, 179),
        remote: end(1, 40_000),
        vrf: None,
        backend,
        state: SessionState::Established,
        current_key: ids.0,
        rnext_key: ids.1,
        segments_good: 100,
        segments_bad: 4,
        segments_unsigned: 0,
        segments_sent: 90,
        key_not_found: 0,
        dropped_icmp: 0,
        keys: vec![key_use(ids)],
        snd_sne: None,
        rcv_sne: None,
    }
}

fn key(peer: &str, origin: KeyOrigin, ids: (u8, u8), end: Option<SystemTime>) -> KeyReport {
    KeyReport {
        peer: peer.into(),
        origin,
        ids: Some(ids),
        algorithm: "hmac-sha-1-96",
        state: KeyState::Active,
        send: Lifetime { start: None, end },
        accept: Lifetime { start: None, end },
        last_use: None,
        segments_verified: 0,
    }
}

/// A key of a chain, which ends so many seconds after 1970.
pub(crate) fn chain_key(peer: &str, chain: &str, end: Option<u64>) -> KeyReport {
    let origin = KeyOrigin::Chain { name: chain.into() };
    key(peer, origin, (5, 6), end.map(at))
}

/// A key that was agreed.
pub(crate) fn generation(peer: &str, generation: u64, id: u8) -> KeyReport {
    let origin = KeyOrigin::Rollover {
        generation,
        there: None,
        agreed_at: None,
        segments_verified_there: 0,
    };
    key(peer, origin, (id, id), None)
}

fn rollover(peer: &str) -> RolloverReport {
    RolloverReport {
        peer: peer.into(),
        endpoint: "192.0.2.1:7179".into(),
        trust: "sha256:00".into(),
        interval: Duration::from_secs(3600),
        overlap: Duration::from_secs(60),
        active: Some(GenerationReport {
            number: 3,
            key_id: Some(7),
            state: KeyState::Proven,
            there: Some(KeyState::Proven),
        }),
        target: None,
        runway_ready: 1,
        runway_wanted: 2,
        next: Some(at(1_900_000_000)),
        last: Some(CompletedRollover {
            at: at(1_800_000_000),
            took: Duration::from_secs(1),
            trigger: "schedule",
        }),
        last_heard: Some(at(1_800_000_100)),
        unreachable: Some((at(1_800_000_200), "connection refused".into())),
        waiting: None,
        alarms: Vec::new(),
    }
}
