//! Facts of a host where all is well, and what may change about them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Prefix;
use datapath::evidence::{
    Examined, Hint, Listener, LocalFacts, PeerEvidence, PeerLocal, Route, Seen, Socket, Step,
    Stranger, Strangers, TcpState,
};
use datapath::report::{KernelReport, LastRefused, PeerReport, Report, Session, SessionState};
use datapath::settings::{Backend, Choice, PeerSpec};
use grpc_api::operator::administration::Finding;
use grpc_api::operator::{GenerationReport, KeyState, RolloverReport};
use keymgr::chain::OnExpiry;

use crate::doctor::facts::{ChainFacts, Facts, KeyFacts, Keys, PeerFacts};

pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// 2026-11-21T12:00:00Z.
pub(super) fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_262_400)
}

pub(super) fn far() -> IpAddr {
    "10.0.0.2".parse().unwrap()
}

pub(super) fn near() -> IpAddr {
    "10.0.0.1".parse().unwrap()
}

/// A peer as the configuration has it.
pub(in crate::doctor) fn spec() -> PeerSpec {
    PeerSpec {
        name: "as64502".into(),
        remote: Prefix::host(far()),
        local: None,
        ports: 179..=179,
        interface: None,
        vrf: None,
        keys: Vec::new(),
        algorithms: Vec::new(),
        ttl_min: 0,
        datapath: Choice::Auto,
    }
}

/// A finding as people read it.
pub(in crate::doctor) fn shown(finding: &Finding) -> String {
    let mut text = format!("{:?} {}", finding.severity, finding.code);
    if let Some(peer) = &finding.peer {
        let _ = write!(text, " {peer}");
    }
    for part in [&finding.seen, &finding.matters, &finding.remedy] {
        if !part.is_empty() {
            let _ = write!(text, "\n  {part}");
        }
    }
    text + "\n\n"
}

pub(super) fn key(send_id: u8, recv_id: u8) -> KeyFacts {
    KeyFacts {
        send_id,
        recv_id,
        algorithm: Algorithm::HmacSha1_96,
        include_options: true,
        active: true,
        made_by_api: false,
    }
}

pub(super) fn session() -> Session {
    Session {
        peer: "as64502".into(),
        local: (near(), 179).into(),
        remote: (far(), 40_000).into(),
        vrf: None,
        backend: Backend::Userspace,
        state: SessionState::Established,
        current_key: 1,
        rnext_key: 2,
        segments_good: 120,
        segments_bad: 0,
        segments_unsigned: 0,
        segments_sent: 118,
        key_not_found: 0,
        dropped_icmp: 0,
        keys: Vec::new(),
        snd_sne: Some(0),
        rcv_sne: Some(0),
    }
}

pub(super) fn seen(step: Step, examined: Examined, count: u64) -> Seen {
    Seen {
        examined,
        step,
        remote: far(),
        local: near(),
        port: 179,
        ttl: 64,
        interface: "eth0".into(),
        count,
    }
}

pub(super) const VERIFIED: Examined = Examined::Verified {
    key_id: 2,
    rnext_key_id: 1,
    rnext_known: true,
};

pub(super) const OURS: Examined = Examined::Verified {
    key_id: 1,
    rnext_key_id: 2,
    rnext_known: true,
};

pub(super) fn wrong_mac(hint: Hint) -> Examined {
    Examined::WrongMac {
        key_id: 2,
        rnext_key_id: 1,
        hint,
    }
}

pub(super) fn other_key(send_id: u8, recv_id: u8, active: bool) -> Hint {
    Hint::OtherKey {
        send_id,
        recv_id,
        active,
        algorithm: Algorithm::HmacSha1_96,
        include_options: true,
    }
}

/// A peer whose session is up and well.
pub(super) fn healthy_peer() -> PeerFacts {
    PeerFacts {
        name: "as64502".into(),
        remote: Prefix::host(far()),
        local: None,
        interface: None,
        vrf: None,
        ports: 179..=179,
        ttl_min: 0,
        datapath: Choice::Auto,
        made_by_api: false,
        report: PeerReport {
            name: "as64502".into(),
            address: "10.0.0.2".into(),
            backend: Backend::Userspace,
            backend_reason: "this kernel has no TCP-AO".into(),
            keys: 1,
            sessions: 1,
            segments_good: 120,
            segments_sent: 118,
            drops: BTreeMap::new(),
            last_refused: None,
        },
        sessions: vec![session()],
        keys: Keys::Chain(ChainFacts {
            name: "transit".into(),
            keys: vec![key(1, 2)],
            on_expiry: OnExpiry::Keep,
            expired: None,
            ends: None,
            next: None,
            has_lifetimes: false,
        }),
        evidence: None,
        host: Some(PeerLocal {
            peer: "as64502".into(),
            listeners: vec![Listener {
                address: "0.0.0.0:179".parse().unwrap(),
                interface: None,
                program: Some("bird".into()),
                pid: Some(4711),
            }],
            md5_keys: Vec::new(),
            sockets: vec![Socket {
                local: session().local,
                remote: session().remote,
                state: TcpState::Established,
                program: Some("bird".into()),
            }],
            route: Some(Ok(Route {
                device: "eth0".into(),
                device_mtu: 1500,
                mtu: 1500,
                gateway: None,
                source: Some(near()),
            })),
        }),
        tried: false,
    }
}

pub(super) fn healthy() -> Facts {
    Facts {
        now: noon(),
        trusted: None,
        uptime: 3 * DAY,
        config_file: "/etc/ao-sidecar/config.toml".into(),
        peers: vec![healthy_peer()],
        report: Report {
            queue_rules: "iptables",
            guard: "nftables",
            ..Report::default()
        },
        before: None,
        host: LocalFacts {
            peers: Vec::new(),
            clock_synchronised: Some(true),
            kernel_tcp_ao: false,
            net_admin: true,
            net_raw: true,
            sys_ptrace: true,
        },
        listened: Duration::ZERO,
        strangers: Strangers::default(),
        left_out: Vec::new(),
        unknown: Vec::new(),
    }
}

/// No session; it was listened for ten seconds, and nothing was seen.
pub(super) fn down() -> Facts {
    let mut facts = healthy();
    facts.listened = Duration::from_secs(10);
    let peer = &mut facts.peers[0];
    peer.sessions.clear();
    peer.host.as_mut().unwrap().sockets.clear();
    peer.report.sessions = 0;
    peer.evidence = Some(PeerEvidence::nothing(Arc::clone(&peer.name)));
    facts
}

impl Facts {
    /// The peer.
    pub(super) fn peer(&mut self) -> &mut PeerFacts {
        &mut self.peers[0]
    }

    /// What was seen of it.
    pub(super) fn wire(&mut self) -> &mut PeerEvidence {
        self.peer().evidence.as_mut().unwrap()
    }

    pub(super) fn host(&mut self) -> &mut PeerLocal {
        self.peer().host.as_mut().unwrap()
    }

    pub(super) fn chain(&mut self) -> &mut ChainFacts {
        match &mut self.peer().keys {
            Keys::Chain(chain) => chain,
            Keys::Agreed { .. } => unreachable!("the fixture has a chain"),
        }
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Three SYNs of ours left.
    pub(super) fn trying(self) -> Self {
        self.with(|facts| facts.wire().sent.push(seen(Step::Syn, OURS, 3)))
    }

    /// Three SYNs arrived.
    pub(super) fn receiving(self, examined: Examined) -> Self {
        self.with(|facts| facts.wire().received.push(seen(Step::Syn, examined, 3)))
    }

    pub(super) fn refused(self, reason: &'static str, ago: u64) -> Self {
        self.with(|facts| {
            let report = &mut facts.peer().report;
            report.drops.insert(reason, 7);
            report.last_refused = Some(LastRefused {
                reason,
                ago: Duration::from_secs(ago),
                key_id: Some(9),
            });
        })
    }
}

pub(super) fn agreed(unreachable: Option<&str>, active: bool) -> Keys {
    let generation = GenerationReport {
        number: 3,
        key_id: Some(3),
        state: KeyState::Proven,
        there: Some(KeyState::Proven),
    };
    Keys::Agreed {
        rollover: Some(Box::new(RolloverReport {
            peer: "as64502".into(),
            endpoint: "10.0.0.2:7179".into(),
            trust: "sha256:00".into(),
            interval: DAY,
            overlap: Duration::from_secs(3600),
            active: active.then_some(generation),
            target: None,
            runway_ready: 2,
            runway_wanted: 2,
            next: None,
            last: None,
            last_heard: None,
            unreachable: unreachable.map(|reason| (noon() - DAY, reason.to_owned())),
            waiting: None,
            alarms: Vec::new(),
        })),
        keys: match active {
            true => vec![key(3, 3)],
            false => Vec::new(),
        },
    }
}

/// Facts with agreed keys: no session without one.
pub(super) fn automatic(unreachable: Option<&str>, active: bool) -> Facts {
    let mut facts = if active { healthy() } else { down() };
    facts.peer().keys = agreed(unreachable, active);
    facts.peer().report.keys = u32::from(active);
    if !active {
        facts.peer().evidence = None;
    }
    facts
}

pub(super) fn stranger(from: &str) -> Stranger {
    Stranger {
        from: from.parse().unwrap(),
        to: (near(), 179).into(),
        interface: "eth0".into(),
        vrf: None,
        key_id: Some(2),
        md5: false,
        verifies_as: None,
        count: 4,
    }
}

pub(super) fn strangers(example: Stranger) -> Strangers {
    Strangers {
        count: example.count,
        examples: vec![example],
    }
}

pub(super) fn synchronised(facts: &mut Facts, synchronised: bool) {
    facts.host.clock_synchronised = Some(synchronised);
    facts.chain().has_lifetimes = true;
}

pub(super) fn kernel(problem: Option<&str>) -> KernelReport {
    KernelReport {
        tcp_ao: true,
        problems: problem.map(str::to_owned).into_iter().collect(),
        ..KernelReport::default()
    }
}
