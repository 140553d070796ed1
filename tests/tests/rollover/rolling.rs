//! Keys that are agreed in advance and change every 10 s.

use std::time::Duration;

use ao_tests::progress;
use ao_tests::random::Random;
use ao_tests::rollover::{CHANGE, Pair, Session, refused_for_key};
use ao_tests::settings::{CONVERGENCE, rolling, rolling_kills};
use ao_tests::sidecar::Terms;
use ao_tests::wait;

use super::{ENGINE, session};

#[test]
fn keys_roll_over_under_route_churn() {
    let session = session(Terms::default());
    let (changes, limit) = rolling();
    session.roll_under_churn(changes, limit);
    let wire = session.pair.wire();
    assert_eq!(wire.count("unsigned"), 0, "{wire:?}");
}

/// The proof needs a segment with the new key from either end: the engine sends one by itself.
#[test]
fn keys_of_a_quiet_session_roll_over() {
    let pair = Pair::start(ENGINE, Terms::default(), CONVERGENCE);
    let session = Session::bird_frr(pair, |speaker| speaker.hold_time = 180, CONVERGENCE);
    let pair = &session.pair;
    let first = pair.wait_next(CHANGE);
    let data = pair.wire().count("with_data");
    let last = pair.wait_proven(first + 2, CHANGE);
    let wire = pair.wire();
    assert_eq!(
        wire.count("with_data"),
        data,
        "the session was not quiet: {wire:?}"
    );
    assert_eq!(wire.count("unsigned"), 0, "{wire:?}");
    for sidecar in pair.both() {
        let events = sidecar.events();
        let proven = events.iter().filter(|event| event["kind"] == "proven");
        for event in proven.filter(|event| event["generation"].as_u64() > Some(first)) {
            let took = event["took_ms"].as_u64();
            assert!(took < Some(5000), "{event}");
        }
    }
    progress!("generations {first} to {last} without a single BGP message");
    session.assert_never_down();
}

#[test]
fn a_sidecar_killed_at_any_moment_goes_on_rolling() {
    let mut session = session(Terms::default());
    let mut random = Random::new();
    let rounds = rolling_kills();
    for round in 1..=rounds {
        std::thread::sleep(random.span(Duration::from_secs(10)));
        let pair = &mut session.pair;
        let (sidecar, name) = match random.below(2) {
            0 => (&mut pair.a, "a"),
            _ => (&mut pair.b, "b"),
        };
        sidecar.kill();
        std::thread::sleep(random.span(Duration::from_secs(2)));
        sidecar.restart();
        let generation = session.pair.wait_next(CHANGE);
        session.assert_never_down();
        progress!("round {round} of {rounds}: {name} was killed, generation {generation} proven");
    }
    for sidecar in session.pair.both() {
        let mut refused = refused_for_key(sidecar);
        refused.retain(|_, count| *count > 0);
        assert!(refused.is_empty(), "{refused:?}");
    }
    assert_eq!(session.pair.wire().count("unsigned"), 0);
}

#[test]
fn without_a_channel_keys_roll_along_the_runway_and_then_wait() {
    let terms = Terms::default();
    let session = session(terms);
    let pair = &session.pair;
    pair.wait_next(CHANGE);
    let before = pair.wait_runway(terms.runway.into(), CHANGE);
    pair.cut();
    let last = pair.wait_proven(before + u64::from(terms.runway), CHANGE * 2);
    assert_eq!(last, before + u64::from(terms.runway));
    let exhausted = |text: &String| text.contains("none is ready at both ends");
    pair.wait_rolling("the alarm", CHANGE, |rolling| {
        rolling.complaints.iter().any(exhausted)
    });
    wait::hold("the last key staying", Duration::from_secs(5), || {
        for sidecar in pair.both() {
            let rolling = sidecar.try_rolling()?;
            if rolling.active != last || rolling.ready > 0 {
                return Err(format!("{rolling:?}"));
            }
        }
        Ok(())
    });
    for sidecar in pair.both() {
        let events = sidecar.events();
        let told = events
            .iter()
            .any(|event| event["kind"] == "runway-exhausted");
        assert!(told, "{events:?}");
    }
    session.assert_never_down();
    pair.mend();
    pair.wait_proven(last + 1, CHANGE);
    pair.wait_rolling("the alarms being over", CHANGE, |rolling| {
        rolling.complaints.is_empty() && rolling.ready == u64::from(terms.runway)
    });
    pair.wait_next(CHANGE);
    session.assert_never_down();
}
