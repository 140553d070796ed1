//! Facts of each fault, and what must come of them.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Prefix;
use ao_engine::reason::DropReason;
use datapath::evidence::{
    Examined, Hint, IcmpSeen, Listener, LocalFacts, Md5Key, PeerEvidence, PeerLocal, Route, Seen,
    Socket, Step, Stranger, Strangers, TcpState,
};
use datapath::report::{
    KernelReport, LastRefused, PeerReport, QueueReport, Report, Session, SessionState,
};
use datapath::settings::{Backend, Choice, PeerSpec};
use grpc_api::operator::administration::{Finding, FindingSeverity};
use grpc_api::operator::{GenerationReport, KeyState, RolloverReport};
use keymgr::chain::OnExpiry;
use proptest::prelude::*;

use super::judge;
use crate::doctor::code::Code;
use crate::doctor::facts::{Before, ChainFacts, Facts, KeyFacts, Keys, PeerFacts};

const DAY: Duration = Duration::from_secs(86_400);

/// 2026-11-21T12:00:00Z.
fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_262_400)
}

fn far() -> IpAddr {
    "10.0.0.2".parse().unwrap()
}

fn near() -> IpAddr {
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

fn key(send_id: u8, recv_id: u8) -> KeyFacts {
    KeyFacts {
        send_id,
        recv_id,
        algorithm: Algorithm::HmacSha1_96,
        include_options: true,
        active: true,
        made_by_api: false,
    }
}

fn session() -> Session {
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

fn seen(step: Step, examined: Examined, count: u64) -> Seen {
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

const VERIFIED: Examined = Examined::Verified {
    key_id: 2,
    rnext_key_id: 1,
    rnext_known: true,
};

const OURS: Examined = Examined::Verified {
    key_id: 1,
    rnext_key_id: 2,
    rnext_known: true,
};

fn wrong_mac(hint: Hint) -> Examined {
    Examined::WrongMac {
        key_id: 2,
        rnext_key_id: 1,
        hint,
    }
}

fn other_key(send_id: u8, recv_id: u8, active: bool) -> Hint {
    Hint::OtherKey {
        send_id,
        recv_id,
        active,
        algorithm: Algorithm::HmacSha1_96,
        include_options: true,
    }
}

/// A peer whose session is up and well.
fn healthy_peer() -> PeerFacts {
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

fn healthy() -> Facts {
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
        unknown: Vec::new(),
    }
}

/// No session; it was listened for ten seconds, and nothing was seen.
fn down() -> Facts {
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
    fn peer(&mut self) -> &mut PeerFacts {
        &mut self.peers[0]
    }

    /// What was seen of it.
    fn wire(&mut self) -> &mut PeerEvidence {
        self.peer().evidence.as_mut().unwrap()
    }

    fn host(&mut self) -> &mut PeerLocal {
        self.peer().host.as_mut().unwrap()
    }

    fn chain(&mut self) -> &mut ChainFacts {
        match &mut self.peer().keys {
            Keys::Chain(chain) => chain,
            Keys::Agreed { .. } => unreachable!("the fixture has a chain"),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Three SYNs of ours left.
    fn trying(self) -> Self {
        self.with(|facts| facts.wire().sent.push(seen(Step::Syn, OURS, 3)))
    }

    /// Three SYNs arrived.
    fn receiving(self, examined: Examined) -> Self {
        self.with(|facts| facts.wire().received.push(seen(Step::Syn, examined, 3)))
    }

    fn refused(self, reason: &'static str, ago: u64) -> Self {
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

fn agreed(unreachable: Option<&str>, active: bool) -> Keys {
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
fn automatic(unreachable: Option<&str>, active: bool) -> Facts {
    let mut facts = if active { healthy() } else { down() };
    facts.peer().keys = agreed(unreachable, active);
    facts.peer().report.keys = u32::from(active);
    if !active {
        facts.peer().evidence = None;
    }
    facts
}

fn stranger(from: &str) -> Stranger {
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

fn strangers(example: Stranger) -> Strangers {
    Strangers {
        count: example.count,
        examples: vec![example],
    }
}

fn synchronised(facts: &mut Facts, synchronised: bool) {
    facts.host.clock_synchronised = Some(synchronised);
    facts.chain().has_lifetimes = true;
}

fn kernel(problem: Option<&str>) -> KernelReport {
    KernelReport {
        tcp_ao: true,
        problems: problem.map(str::to_owned).into_iter().collect(),
        ..KernelReport::default()
    }
}

/// Each fault with the only code, beside those of what is well, that it must get. All codes that
/// are judged are here.
#[allow(clippy::too_many_lines, reason = "a table")]
fn faults() -> Vec<(&'static str, Code, Facts)> {
    let unknown = |key_id, rnext_key_id, hint| Examined::UnknownKeyId {
        key_id,
        rnext_key_id,
        hint,
    };
    let hidden_algorithm = Hint::Algorithm {
        algorithm: Algorithm::Aes128Cmac96,
        include_options: true,
    };
    let length = |hint| Examined::MacLength {
        key_id: 2,
        rnext_key_id: 1,
        got: 16,
        expected: 12,
        hint,
    };
    let flag = Hint::OptionsFlag {
        include_options: false,
    };
    vec![
        (
            "a capability",
            Code::CapabilityMissing,
            healthy().with(|facts| facts.host.net_raw = false),
        ),
        (
            "no route",
            Code::NoRoute,
            down().with(|facts| facts.host().route = Some(Err("Network is unreachable".into()))),
        ),
        (
            "a chain that is over",
            Code::ChainExpired,
            down().with(|facts| {
                let chain = facts.chain();
                chain.keys[0].active = false;
                chain.on_expiry = OnExpiry::Close;
                chain.expired = Some(noon() - DAY);
                chain.has_lifetimes = true;
            }),
        ),
        (
            "a chain that is over, its key kept",
            Code::ChainExpired,
            healthy().with(|facts| {
                let chain = facts.chain();
                chain.expired = Some(noon() - DAY);
                chain.ends = chain.expired;
                chain.next = Some(noon() + DAY);
            }),
        ),
        (
            "a chain that has not begun",
            Code::ChainNotBegun,
            down().with(|facts| {
                let chain = facts.chain();
                chain.keys[0].active = false;
                chain.next = Some(noon() + DAY);
            }),
        ),
        (
            "another fingerprint",
            Code::FarEndUntrusted,
            automatic(
                Some("10.0.0.2:7179 has the fingerprint sha256:1, and not sha256:0 as configured"),
                false,
            ),
        ),
        (
            "our fingerprint is not known there, later",
            Code::FarEndUntrusted,
            automatic(
                Some("10.0.0.2:7179 refuses us (AccessDenied): is sha256:2 the fingerprint it …"),
                true,
            ),
        ),
        (
            "other versions",
            Code::FarEndVersion,
            automatic(
                Some("the peer speaks versions 2 to 3 of the protocol, and we 1 to 1"),
                false,
            ),
        ),
        (
            "another label",
            Code::FarEndRefuses,
            automatic(
                Some("the peer refused the call: PermissionDenied: label"),
                false,
            ),
        ),
        (
            "no sidecar there",
            Code::FarEndUnreachable,
            automatic(
                Some("10.0.0.2:7179 cannot be reached: Connection refused"),
                false,
            ),
        ),
        (
            "no sidecar there, later",
            Code::FarEndUnreachable,
            automatic(
                Some("10.0.0.2:7179 cannot be reached: Connection refused"),
                true,
            ),
        ),
        ("no key yet", Code::NoKeyYet, automatic(None, false)),
        (
            "no key at all",
            Code::Blocked,
            down().with(|facts| facts.peer().report.keys = 0),
        ),
        (
            "no launched daemon",
            Code::KernelWithoutLaunch,
            down().with(|facts| {
                facts.report.kernel = Some(kernel(Some(
                    "peer \"as64502\": bird was not launched by `ao-sidecar exec`, so …",
                )));
                facts.peer().datapath = Choice::Kernel;
                facts.peer().report.backend = Backend::Kernel;
            }),
        ),
        (
            "no option memory",
            Code::Optmem,
            healthy().with(|facts| {
                let problem = "peer \"as64502\": no option memory left for its keys and …";
                facts.report.kernel = Some(kernel(Some(problem)));
            }),
        ),
        (
            "an MD5 password here",
            Code::LocalMd5,
            down().with(|facts| {
                facts.host().md5_keys.push(Md5Key {
                    remote: Prefix::host(far()),
                    socket: "0.0.0.0:179".parse().unwrap(),
                    state: TcpState::Listen,
                    program: Some("bird".into()),
                });
            }),
        ),
        (
            "an MD5 password that only segments show",
            Code::LocalMd5,
            down().refused("local-md5", 2),
        ),
        (
            "keys in the daemon",
            Code::AlreadySigned,
            down().refused("already-signed", 2),
        ),
        (
            "a socket without its key",
            Code::KernelSockets,
            healthy().with(|facts| {
                let problem = "listener on 0.0.0.0:179: the kernel refuses the key …";
                facts.report.kernel = Some(kernel(Some(problem)));
            }),
        ),
        (
            "two options",
            Code::MalformedOption,
            down().receiving(Examined::Malformed(DropReason::DuplicateAo)),
        ),
        (
            "an option that comes and goes",
            Code::ForeignOption,
            down().trying().receiving(VERIFIED).with(|facts| {
                facts
                    .wire()
                    .received
                    .push(seen(Step::SynAck, Examined::NoAo, 2));
            }),
        ),
        (
            "IDs not mirrored",
            Code::IdsSwapped,
            down().receiving(unknown(1, 2, other_key(1, 2, true))),
        ),
        (
            "IDs not mirrored, and another secret",
            Code::IdsSwapped,
            down().receiving(unknown(1, 2, Hint::Nothing)),
        ),
        (
            "a key of tomorrow",
            Code::KeyOutOfTime,
            down()
                .receiving(unknown(4, 3, other_key(3, 4, false)))
                .with(|facts| {
                    let tomorrow = KeyFacts {
                        active: false,
                        ..key(3, 4)
                    };
                    facts.chain().keys.push(tomorrow);
                }),
        ),
        (
            "the flag",
            Code::OptionsFlag,
            down().receiving(wrong_mac(flag)),
        ),
        (
            "the algorithm",
            Code::WrongAlgorithm,
            down().receiving(wrong_mac(hidden_algorithm)),
        ),
        (
            "an algorithm with longer MACs",
            Code::WrongAlgorithm,
            down().receiving(length(Hint::Algorithm {
                algorithm: Algorithm::HmacSha256_128,
                include_options: false,
            })),
        ),
        (
            "the secret of another key",
            Code::SecretOfOtherKey,
            down()
                .receiving(wrong_mac(other_key(3, 4, true)))
                .with(|facts| {
                    facts.chain().keys.push(key(3, 4));
                }),
        ),
        (
            "long MACs",
            Code::MacLength,
            down().receiving(length(Hint::Nothing)),
        ),
        (
            "an unknown KeyID",
            Code::UnknownKeyId,
            down().receiving(unknown(9, 9, Hint::Nothing)),
        ),
        (
            "an unknown KeyID with the right secret",
            Code::UnknownKeyId,
            down().receiving(unknown(9, 8, other_key(1, 2, true))),
        ),
        (
            "another secret",
            Code::WrongSecret,
            down().trying().receiving(wrong_mac(Hint::Nothing)),
        ),
        (
            "MD5 there",
            Code::Md5Instead,
            down().receiving(Examined::Md5),
        ),
        (
            "no TCP-AO there",
            Code::NoAo,
            down().receiving(Examined::NoAo),
        ),
        (
            "unsigned answers",
            Code::NoAo,
            down().trying().with(|facts| {
                facts
                    .wire()
                    .received
                    .push(seen(Step::SynAck, Examined::NoAo, 3));
            }),
        ),
        (
            "a low TTL",
            Code::TtlLow,
            down()
                .receiving(VERIFIED)
                .with(|facts| facts.peer().ttl_min = 254),
        ),
        (
            "no daemon",
            Code::NobodyListens,
            down().with(|facts| facts.host().listeners.clear()),
        ),
        (
            "no daemon, seen without listening",
            Code::NobodyListens,
            down().with(|facts| {
                facts.host().listeners.clear();
                facts.peer().evidence = None;
            }),
        ),
        (
            "no daemon, and the far end calls",
            Code::NobodyListens,
            down()
                .receiving(VERIFIED)
                .with(|facts| facts.host().listeners.clear()),
        ),
        (
            "the kernel lacks the key asked for",
            Code::UnknownRnextKeyId,
            down()
                .receiving(Examined::Verified {
                    key_id: 2,
                    rnext_key_id: 7,
                    rnext_known: false,
                })
                .with(|facts| facts.peer().report.backend = Backend::Kernel),
        ),
        (
            "another address that knows the key",
            Code::Stranger,
            down().trying().with(|facts| {
                facts.strangers = strangers(Stranger {
                    verifies_as: Some("as64502".into()),
                    ..stranger("192.0.2.7")
                });
            }),
        ),
        (
            "another address on the link",
            Code::Stranger,
            down().with(|facts| facts.strangers = strangers(stranger("10.0.0.3"))),
        ),
        (
            "another address on the link, unsigned",
            Code::Stranger,
            down().with(|facts| {
                let unsigned = Stranger {
                    key_id: None,
                    ..stranger("10.0.0.3")
                };
                facts.strangers = strangers(unsigned);
            }),
        ),
        (
            "the address in another VRF",
            Code::Stranger,
            down().with(|facts| {
                facts.strangers = strangers(Stranger {
                    vrf: Some("red".into()),
                    ..stranger("10.0.0.2")
                });
            }),
        ),
        (
            "somebody, and a session",
            Code::Stranger,
            healthy().with(|facts| facts.strangers = strangers(stranger("198.51.100.9"))),
        ),
        (
            "a reset",
            Code::PeerRefuses,
            down()
                .trying()
                .with(|facts| facts.wire().resets_received = 3),
        ),
        (
            "a filter that says so",
            Code::PeerRefuses,
            down().trying().with(|facts| {
                facts.wire().icmp.push(IcmpSeen {
                    from: "10.0.0.254".parse().unwrap(),
                    kind: 3,
                    code: 13,
                    meaning: "administratively prohibited",
                    count: 3,
                });
            }),
        ),
        (
            "answers that are not taken",
            Code::NotAccepted,
            down().receiving(VERIFIED).with(|facts| {
                facts.wire().sent.push(seen(Step::SynAck, OURS, 5));
            }),
        ),
        (
            "a daemon that hangs up",
            Code::DaemonCloses,
            down().trying().with(|facts| {
                facts.wire().received.push(seen(Step::SynAck, VERIFIED, 3));
            }),
        ),
        (
            "a rule of somebody else",
            Code::LocalDrop,
            down().receiving(VERIFIED),
        ),
        (
            "answers that a rule of somebody else drops",
            Code::LocalDrop,
            down().trying().with(|facts| {
                facts.wire().received.push(seen(Step::SynAck, VERIFIED, 3));
                facts.peer().sessions.push(session());
                facts.peer().tried = true;
            }),
        ),
        (
            "an engine that is full",
            Code::LocalDrop,
            down().receiving(VERIFIED).refused("table-full", 3),
        ),
        ("silence", Code::NoSegments, down().trying()),
        (
            "a SYN that does not leave",
            Code::NoSegments,
            down().with(|facts| {
                facts.host().listeners.clear();
                facts.peer().tried = true;
            }),
        ),
        (
            "silence, but for path-MTU discovery",
            Code::NoSegments,
            down().trying().with(|facts| {
                facts.wire().icmp.push(IcmpSeen {
                    from: "10.0.0.254".parse().unwrap(),
                    kind: 3,
                    code: 4,
                    meaning: "fragmentation needed",
                    count: 1,
                });
            }),
        ),
        ("both passive", Code::NoAttempts, down()),
        (
            "not listened",
            Code::NoSession,
            down().with(|facts| facts.peer().evidence = None),
        ),
        (
            "more kinds than were examined",
            Code::NoSession,
            down().with(|facts| facts.wire().unexamined = 100),
        ),
        (
            "a prefix whose far ends are away",
            Code::NoSession,
            down().with(|facts| {
                facts.peer().remote = Prefix::new("10.0.0.0".parse().unwrap(), 24).unwrap();
                facts.host().route = None;
            }),
        ),
        (
            "a flood",
            Code::QueueOverrun,
            healthy().with(|facts| {
                facts.before = Some(Before::default());
                facts.report.queues.push(QueueReport {
                    number: 7900,
                    packets: 100_000,
                    overruns: 2,
                    waiting: 1,
                    dropped: 40,
                });
            }),
        ),
        (
            "a narrow path",
            Code::MtuSmall,
            healthy().with(|facts| {
                if let Some(Ok(route)) = &mut facts.host().route {
                    route.mtu = 560;
                }
            }),
        ),
        (
            "a clock that jumped",
            Code::ClockJumped,
            healthy().with(|facts| {
                facts.trusted = Some(noon() - DAY);
                facts.chain().has_lifetimes = true;
            }),
        ),
        (
            "a clock of its own",
            Code::ClockUnsynchronised,
            healthy().with(|facts| synchronised(facts, false)),
        ),
        (
            "rules that cannot be put back",
            Code::RulesMissing,
            healthy().with(|facts| {
                facts.report.rules_trouble = Some("nft: Operation not permitted".into());
            }),
        ),
        (
            "rules flushed again and again",
            Code::RulesFlushed,
            healthy().with(|facts| facts.report.rules_restored = 9),
        ),
        (
            "rules flushed once",
            Code::RulesFlushed,
            healthy().with(|facts| facts.report.rules_restored = 1),
        ),
        (
            "a chain about to end",
            Code::ChainEnding,
            healthy().with(|facts| facts.chain().ends = Some(noon() + 3 * DAY)),
        ),
        (
            "an alarm",
            Code::RolloverAlarm,
            automatic(None, true).with(|facts| {
                if let Keys::Agreed {
                    rollover: Some(rollover),
                    ..
                } = &mut facts.peer().keys
                {
                    rollover.alarms = vec!["no KeyID is free at both ends".into()];
                }
            }),
        ),
        (
            "a forger beside a session",
            Code::SegmentsRefused,
            healthy().refused("bad-mac", 5),
        ),
        (
            "refusals of long ago",
            Code::SegmentsRefused,
            healthy().refused("unsigned", 5000),
        ),
        (
            "no answer of this host",
            Code::NotFoundOut,
            healthy().with(|facts| facts.unknown.push("sockets cannot be listed: EPERM".into())),
        ),
    ]
}

/// Codes that are told of what is well.
const WELL: [Code; 2] = [Code::SessionOk, Code::SidecarOk];

fn is_well(finding: &Finding) -> bool {
    WELL.iter().any(|code| code.as_str() == finding.code)
}

#[test]
fn each_fault_gets_its_code_and_no_other() {
    for (fault, code, facts) in faults() {
        let found = judge(&facts);
        let codes: Vec<_> = found
            .iter()
            .filter(|finding| !is_well(finding))
            .map(|finding| finding.code)
            .collect();
        assert_eq!(codes, [code.as_str()], "{fault}");
        let first = &found[0];
        assert_eq!(first.code, code.as_str(), "{fault}");
        assert!(
            !first.seen.is_empty() && !first.matters.is_empty(),
            "{fault}"
        );
        assert_eq!(
            first.remedy.is_empty(),
            code == Code::NotFoundOut,
            "{fault}"
        );
    }
}

/// Codes that only [`crate::doctor::local`] gives.
const WITHOUT_SIDECAR: [Code; 8] = [
    Code::ConfigWrong,
    Code::KernelMissing,
    Code::FirewallMissing,
    Code::NoAccess,
    Code::Hanging,
    Code::NotRunning,
    Code::BlockedPeers,
    Code::Unprotected,
];

#[test]
fn each_code_has_a_fault() {
    let faults = faults();
    let had: HashSet<Code> = faults.iter().map(|(_, code, _)| *code).collect();
    for code in Code::ALL {
        let elsewhere = WELL.contains(code) || WITHOUT_SIDECAR.contains(code);
        assert_ne!(had.contains(code), elsewhere, "{code:?}");
    }
}

#[test]
fn what_is_healthy_is_well() {
    let found = judge(&healthy());
    let codes: Vec<_> = found.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["session-ok", "sidecar-ok"]);
    assert!(found.iter().all(|it| it.severity == FindingSeverity::Ok));
    for facts in [
        automatic(None, true),
        healthy().with(|facts| synchronised(facts, true)),
        // Nothing depends on the clock.
        healthy().with(|facts| facts.host.clock_synchronised = Some(false)),
        healthy().with(|facts| facts.chain().ends = Some(noon() + 90 * DAY)),
        healthy().with(|facts| facts.peer().host = None),
        healthy().with(|facts| facts.peer().sessions[0].state = SessionState::Restored),
    ] {
        assert!(judge(&facts).iter().all(is_well));
    }
}

/// What has nothing to do with one another is told side by side, the cause that is sure first.
#[test]
fn independent_causes_stand_side_by_side() {
    let problems = |facts: &Facts| -> Vec<&'static str> {
        let found = judge(facts).into_iter();
        let problems = found.filter(|it| it.severity == FindingSeverity::Problem);
        problems.map(|it| it.code).collect()
    };
    let facts = down()
        .receiving(wrong_mac(Hint::Nothing))
        .with(|facts| facts.peer().ttl_min = 254)
        .with(|facts| facts.host().listeners.clear());
    let all = ["wrong-secret", "ttl-low", "nobody-listens"];
    assert_eq!(problems(&facts), all);
    // A password and a missing key each keep the session down.
    let facts = down()
        .refused("local-md5", 1)
        .with(|facts| facts.peer().report.keys = 0);
    assert_eq!(problems(&facts), ["blocked", "local-md5"]);
    // What follows from a cause is not told.
    let facts = down().trying().receiving(wrong_mac(Hint::Nothing));
    assert_eq!(problems(&facts), ["wrong-secret"]);
}

/// Who knows a secret says more than who sends more.
#[test]
fn a_proof_outweighs_a_flood() {
    let facts = down().receiving(Examined::NoAo).with(|facts| {
        let flag = Hint::OptionsFlag {
            include_options: false,
        };
        facts.wire().received[0].count = 100_000;
        facts
            .wire()
            .received
            .push(seen(Step::Syn, wrong_mac(flag), 1));
    });
    assert_eq!(judge(&facts)[0].code, "options-flag");
    // A peer whose segments verify is not blamed for those of others.
    let facts = down().receiving(Examined::NoAo).receiving(VERIFIED);
    assert_eq!(judge(&facts)[0].code, "local-drop");
}

/// A far end that comes from elsewhere is not told twice.
#[test]
fn a_stranger_is_told_once() {
    let facts = down().with(|facts| {
        facts.strangers.examples = vec![stranger("10.0.0.3"), stranger("203.0.113.5")];
    });
    let codes: Vec<_> = judge(&facts)
        .iter()
        .map(|it| (it.code, it.peer.is_some()))
        .collect();
    let told = [
        ("stranger", true),
        ("stranger", false),
        ("sidecar-ok", false),
    ];
    assert_eq!(codes, told);
    // Scans from anywhere say nothing about the peer.
    let scan = stranger("198.51.100.9");
    let facts = down().with(|facts| facts.strangers = strangers(scan));
    assert_eq!(judge(&facts)[0].code, "no-attempts");
}

#[test]
fn only_those_are_listened_to_whose_cause_is_open() {
    let needs = |facts: &Facts| super::needs_listening(facts, &facts.peers[0]);
    assert!(needs(&down()));
    assert!(!needs(&healthy()));
    assert!(!needs(&healthy().refused("bad-mac", 5)));
    assert!(!needs(&automatic(None, false)));
    assert!(!needs(&down().refused("local-md5", 5)));
    let restored = healthy().with(|facts| facts.peer().sessions[0].state = SessionState::Restored);
    assert!(!needs(&restored));
}

/// What cannot be sent is not for want of trying.
#[test]
fn a_far_end_that_is_not_on_the_link_is_told() {
    let facts = down().with(|facts| facts.wire().unresolved = 2);
    let first = &judge(&facts)[0];
    assert_eq!(first.code, "no-segments");
    assert!(
        first.seen.contains("does not answer ARP on"),
        "{}",
        first.seen
    );
}

/// Read by people: each text of each fault.
#[test]
fn texts() {
    let mut text = String::new();
    for (fault, _, facts) in faults() {
        let found = judge(&facts);
        let first = &found[0];
        let _ = write!(text, "# {fault}\n{}", shown(first));
    }
    for finding in judge(&healthy()) {
        text.push_str(&shown(&finding));
    }
    insta::assert_snapshot!(text);
}

fn any_hint() -> impl Strategy<Value = Hint> {
    prop_oneof![
        Just(Hint::Nothing),
        any::<bool>().prop_map(|include_options| Hint::OptionsFlag { include_options }),
        any::<bool>().prop_map(|include_options| Hint::Algorithm {
            algorithm: Algorithm::Aes128Cmac96,
            include_options
        }),
        (0_u8..5, 0_u8..5, any::<bool>()).prop_map(|(send, recv, on)| other_key(send, recv, on)),
    ]
}

fn any_examined() -> impl Strategy<Value = Examined> {
    let ids = (0_u8..5, 0_u8..5);
    prop_oneof![
        (ids.clone(), any::<bool>()).prop_map(|((key_id, rnext_key_id), rnext_known)| {
            Examined::Verified {
                key_id,
                rnext_key_id,
                rnext_known,
            }
        }),
        Just(Examined::NoAo),
        Just(Examined::Md5),
        (ids.clone(), any_hint()).prop_map(|((key_id, rnext_key_id), hint)| {
            Examined::UnknownKeyId {
                key_id,
                rnext_key_id,
                hint,
            }
        }),
        (ids.clone(), any_hint(), any::<u8>(), any::<u8>()).prop_map(
            |((key_id, rnext_key_id), hint, got, expected)| Examined::MacLength {
                key_id,
                rnext_key_id,
                got,
                expected,
                hint,
            }
        ),
        (ids, any_hint()).prop_map(|((key_id, rnext_key_id), hint)| Examined::WrongMac {
            key_id,
            rnext_key_id,
            hint,
        }),
        prop::sample::select(DropReason::ALL).prop_map(Examined::Malformed),
    ]
}

fn any_seen() -> impl Strategy<Value = Vec<Seen>> {
    let one = (any_examined(), any::<bool>(), any::<u8>(), any::<u32>());
    let one = one.prop_map(|(examined, is_syn, ttl, count)| Seen {
        ttl,
        ..seen(
            if is_syn { Step::Syn } else { Step::SynAck },
            examined,
            count.into(),
        )
    });
    prop::collection::vec(one, 0..4)
}

proptest! {
    /// Whatever is seen: never a panic, always the same answer, in order, with one cause at least
    /// for a peer that is down.
    #[test]
    fn any_facts_can_be_judged(
        base in prop::sample::select((0..faults().len()).collect::<Vec<_>>()),
        sent in any_seen(),
        received in any_seen(),
        (resets, unexamined, ttl_min) in (0_u64..3, 0_u64..2, any::<u8>()),
        (up, heard, chain_time) in (any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let mut facts = faults().swap_remove(base).2;
        let peer = facts.peer();
        peer.ttl_min = ttl_min;
        peer.sessions = if up { vec![session()] } else { Vec::new() };
        peer.evidence = heard.then(|| PeerEvidence {
            sent,
            received,
            resets_received: resets,
            unexamined,
            ..PeerEvidence::nothing("as64502".into())
        });
        facts.trusted = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(chain_time));
        let found = judge(&facts);
        prop_assert_eq!(&found, &judge(&facts.clone()));
        prop_assert!(found.is_sorted_by(|one, other| one.severity >= other.severity));
        let of_peer = found.iter().filter(|finding| finding.peer.is_some());
        prop_assert!(of_peer.count() >= 1);
    }
}
