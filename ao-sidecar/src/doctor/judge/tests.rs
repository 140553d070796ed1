//! Facts of each fault, and what must come of them.

mod faults;
mod fixture;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use ao_engine::crypto::Algorithm;
use ao_engine::reason::DropReason;
use datapath::evidence::{Examined, Hint, PeerEvidence, Seen, Step, Stranger};
use datapath::report::SessionState;
use grpc_api::operator::administration::{Finding, FindingSeverity};
use proptest::prelude::*;

use self::faults::faults;
use self::fixture::{
    DAY, VERIFIED, automatic, down, healthy, noon, other_key, seen, session, stranger, strangers,
    synchronised, wrong_mac,
};
pub(in crate::doctor) use self::fixture::{shown, spec};
use super::judge;
use crate::doctor::code::Code;
use crate::doctor::facts::Facts;

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
    // Nothing proves that one of these is the peer.
    let unsigned = Stranger {
        key_id: None,
        ..stranger("10.0.0.9")
    };
    for somebody in [stranger("198.51.100.9"), unsigned] {
        let facts = down().with(|facts| facts.strangers = strangers(somebody));
        assert_eq!(judge(&facts)[0].code, "no-attempts");
    }
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
        text.push_str(&shown(&finding).replace(crate::VERSION, "VERSION"));
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
