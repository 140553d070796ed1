//! The manual way in.

use std::time::Duration;

use ao_tests::rollover::{PEER, Pair, Session};
use ao_tests::settings::CONVERGENCE;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::Lan;
use ao_tests::wait;

use super::{ENGINE, by_hand, session};

/// How long a change may take that is asked for by hand.
const SOON: Duration = Duration::from_secs(20);

fn operate(sidecar: &Sidecar, words: &[&str]) -> String {
    sidecar
        .operate(words)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(sidecar: &Sidecar, words: &[&str]) -> String {
    match sidecar.operate(words) {
        Ok(done) => panic!("{words:?}: {done}"),
        Err(refusal) => refusal,
    }
}

fn generations(sidecar: &Sidecar) -> Result<Vec<u64>, String> {
    let keys = sidecar.agreed_keys()?;
    Ok(keys.iter().map(|key| key.generation).collect())
}

/// Why generation `number` was selected, as its events tell.
fn trigger(sidecar: &Sidecar, number: u64) -> String {
    let events = sidecar.events();
    let mut selected = events
        .iter()
        .filter(|event| event["kind"] == "selected" && event["generation"] == number);
    let trigger = selected.next().and_then(|event| event["trigger"].as_str());
    trigger.unwrap_or_else(|| panic!("{events:?}")).to_owned()
}

#[test]
fn a_start_changes_to_the_next_key_and_force_ends_the_former_one_at_once() {
    let session = session(by_hand());
    let pair = &session.pair;
    let before = pair.wait_proven(1, SOON);
    operate(&pair.a, &["rollover", "start", PEER]);
    let after = pair.wait_proven(before + 1, SOON);
    assert_eq!(after, before + 1);
    assert_eq!(trigger(&pair.a, after), "operator");
    assert_eq!(trigger(&pair.b, after), "peer");
    pair.wait_runway(2, SOON);
    for sidecar in pair.both() {
        let keys = sidecar.agreed_keys().expect("the keys");
        let former = keys.iter().find(|key| key.generation == before);
        assert_eq!(former.map(|key| &*key.state), Some("retiring"), "{keys:?}");
    }

    operate(&pair.a, &["rollover", "force", PEER]);
    wait::poll(
        "the former key being deleted",
        SOON,
        || match generations(&pair.a)? {
            left if left.contains(&before) => Err(format!("{left:?}")),
            _ => Ok(()),
        },
    );
    pair.wait_proven(after, SOON);
    session.assert_never_down();
}

#[test]
fn after_a_compromise_every_older_key_is_gone_within_seconds() {
    let session = session(by_hand());
    let pair = &session.pair;
    pair.wait_proven(1, SOON);
    let newest = pair
        .both()
        .map(|sidecar| generations(sidecar).expect("the keys"));
    let newest = newest.iter().flatten().max().copied().expect("a key");
    operate(&pair.b, &["rollover", "start", "--compromised", PEER]);
    let after = pair.wait_proven(newest + 1, SOON);
    assert_eq!(trigger(&pair.b, after), "compromise");
    for sidecar in pair.both() {
        wait::poll("older keys being deleted", SOON, || {
            match generations(sidecar)? {
                left if left.iter().any(|&one| one <= newest) => Err(format!("{left:?}")),
                _ => Ok(()),
            }
        });
    }
    pair.wait_runway(2, SOON);
    session.assert_never_down();
}

#[test]
fn a_change_that_has_not_selected_its_key_is_given_up() {
    let session = session(by_hand());
    let pair = &session.pair;
    let before = pair.wait_proven(1, SOON);
    pair.cut();
    // A fresh key cannot be agreed on now, so this waits.
    operate(&pair.a, &["rollover", "start", "--compromised", PEER]);
    operate(&pair.a, &["rollover", "abort", PEER]);
    pair.mend();
    // What both had in advance is given up, and replaced.
    let newest = before + 2;
    wait::poll("a new runway", Duration::from_secs(75), || {
        for sidecar in pair.both() {
            let (rolling, all) = (sidecar.try_rolling()?, generations(sidecar)?);
            let fresh = all.iter().filter(|&&one| one > newest).count();
            if rolling.active != before || rolling.ready != 2 || fresh != 2 {
                return Err(format!("{rolling:?} {all:?}"));
            }
        }
        Ok(())
    });
    operate(&pair.b, &["rollover", "start", PEER]);
    pair.wait_proven(newest + 1, SOON);
    session.assert_never_down();
}

/// The far end hangs, so the new key is selected and cannot be proven.
#[test]
fn a_change_that_has_selected_its_key_is_not_given_up() {
    let mut session = session(by_hand());
    let before = session.pair.wait_proven(1, SOON);
    session.pair.b.freeze();
    let pair = &session.pair;
    operate(&pair.a, &["rollover", "start", PEER]);
    wait::until("the next key being selected", SOON, || {
        let rolling = pair.a.rolling();
        rolling.active == before + 1 && rolling.told["active"]["state"] == "selected"
    });
    let said = refusal(&pair.a, &["rollover", "abort", PEER]);
    assert!(said.contains("selected already"), "{said}");
    session.pair.b.thaw();
    session.pair.wait_proven(before + 1, SOON);
    session.assert_never_down();
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let mut pair = Pair::prepare(ENGINE, by_hand());
    pair.a.launch(&[]);
    pair.a.wait_ready();
    for command in ["force", "abort"] {
        let said = refusal(&pair.a, &["rollover", command, PEER]);
        assert!(said.contains("no key is in use yet"), "{said}");
    }
    let said = refusal(&pair.a, &["rollover", "start", "peer-O"]);
    assert!(said.contains(PEER), "the near miss is not named: {said}");

    let lan = Lan::new();
    let chain = PeerConfig::new("10.0.0.2", Key::default());
    let sidecar = Sidecar::start_with_peers(&lan.a.namespace, &[chain]);
    for command in ["start", "abort", "force"] {
        let said = refusal(&sidecar, &["rollover", command, PEER]);
        assert!(said.contains("key chain"), "{said}");
    }
}

#[test]
fn either_end_may_be_asked_at_the_same_time() {
    let Session { a, b, pair } = session(by_hand());
    let before = pair.wait_proven(1, SOON);
    std::thread::scope(|scope| {
        for sidecar in pair.both() {
            scope.spawn(|| operate(sidecar, &["rollover", "start", PEER]));
        }
    });
    let after = pair.wait_proven(before + 1, CONVERGENCE);
    assert!(after <= before + 2, "generation {after} after {before}");
    for daemon in [&a, &b] {
        ao_tests::daemon::assert_never_down(&**daemon);
    }
}
