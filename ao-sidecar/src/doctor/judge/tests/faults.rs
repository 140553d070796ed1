//! Each fault with the only code, beside those of what is well, that it must get.

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Prefix;
use ao_engine::reason::DropReason;
use datapath::evidence::{Examined, Hint, IcmpSeen, Md5Key, Step, Stranger, TcpState};
use datapath::report::QueueReport;
use datapath::settings::{Backend, Choice};
use keymgr::chain::OnExpiry;

use super::fixture::{
    DAY, OURS, VERIFIED, automatic, down, far, healthy, kernel, key, noon, other_key, seen,
    session, stranger, strangers, synchronised, wrong_mac,
};
use crate::doctor::code::Code;
use crate::doctor::facts::{Before, Facts, KeyFacts, Keys};

/// What it is, what it must be called, and how it looks.
type Fault = (&'static str, Code, Facts);

/// All codes that are judged are in here.
pub(super) fn faults() -> Vec<Fault> {
    let all = [of_segments(), without_segments(), of_keys(), of_this_host()];
    all.into_iter().flatten().collect()
}

/// What arrives is not as it should be.
#[allow(clippy::too_many_lines, reason = "a table")]
fn of_segments() -> Vec<Fault> {
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
    ]
}

/// Nothing arrives, or nothing is wrong with it.
#[allow(clippy::too_many_lines, reason = "a table")]
fn without_segments() -> Vec<Fault> {
    vec![
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
    ]
}

/// Keys, and the way to the far end's sidecar.
#[allow(clippy::too_many_lines, reason = "a table")]
fn of_keys() -> Vec<Fault> {
    vec![
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
    ]
}

/// Firewall, clock, routes, sockets.
#[allow(clippy::too_many_lines, reason = "a table")]
fn of_this_host() -> Vec<Fault> {
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
            "a new peer beside an unprotected session",
            Code::LeftOut,
            healthy().with(|facts| facts.left_out = vec!["as64503".into()]),
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
            "no answer of this host",
            Code::NotFoundOut,
            healthy().with(|facts| facts.unknown.push("sockets cannot be listed: EPERM".into())),
        ),
    ]
}
