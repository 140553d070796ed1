//! The wrong far end, the wrong store: nothing unsigned, nothing overwritten, and the way back.

use ao_tests::daemon::wait_converged;
use ao_tests::progress;
use ao_tests::rollover::{Pair, Session};
use ao_tests::settings::{CONVERGENCE, SIDECAR_START};
use ao_tests::sidecar::{PeerConfig, Sidecar};
use ao_tests::topology::Family;
use ao_tests::wait;

use super::{ENGINE, by_hand, session};

#[test]
fn a_far_end_with_another_fingerprint_stays_blocked_and_both_are_named() {
    let mut pair = Pair::prepare(ENGINE, by_hand());
    let seen = pair.b.fingerprint();
    let mut expected = seen.clone();
    let digit = if expected.ends_with('0') { "1" } else { "0" };
    expected.replace_range(expected.len() - 1.., digit);
    let wrong = PeerConfig::agreeing(&pair.lan.b, Family::V4, expected.clone(), by_hand());
    pair.a.configure(&[wrong]);
    for sidecar in [&mut pair.a, &mut pair.b] {
        sidecar.launch(&[]);
        sidecar.wait_ready();
    }
    let names_both = |text: &str| text.contains(&expected) && text.contains(&seen);
    wait::poll("the status naming both fingerprints", CONVERGENCE, || {
        let rolling = pair.a.try_rolling()?;
        match rolling.complaints.iter().any(|text| names_both(text)) {
            true => Ok(()),
            false => Err(format!("{rolling:?}")),
        }
    });
    wait::poll("the log naming both fingerprints", CONVERGENCE, || {
        let log = pair.a.process().log();
        match log.lines().any(names_both) {
            true => Ok(()),
            false => Err(log),
        }
    });
    let complaints = wait::poll("the far end being told", CONVERGENCE, || {
        let rolling = pair.b.try_rolling()?;
        match rolling.complaints.is_empty() {
            true => Err(format!("{rolling:?}")),
            false => Ok(rolling.complaints),
        }
    });
    progress!("{complaints:?}");
    for sidecar in pair.both() {
        assert_eq!(sidecar.ask("peers")[0]["state"], "blocked");
        assert_eq!(sidecar.rolling().active, 0);
    }
}

/// Starts a sidecar that must refuse to; returns what it says.
fn refusal(sidecar: &mut Sidecar) -> String {
    sidecar.launch(&[]);
    let status = sidecar.process().wait(SIDECAR_START);
    let said = sidecar.process().log();
    assert!(!status.success(), "it ran: {said}");
    let last = said.lines().last().unwrap_or_default().to_owned();
    progress!("{last}");
    last
}

/// Octets that are no store, or one that was damaged.
fn damages(store: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut torn = store.to_vec();
    let middle = torn.len() / 2;
    for octet in &mut torn[middle..] {
        *octet ^= 0x5a;
    }
    let mut header = store.to_vec();
    header[..64].fill(0);
    vec![
        ("a text", b"not a store, but somebody's letter\n".to_vec()),
        ("the second half overwritten", torn),
        ("the header overwritten", header),
        ("the second half missing", store[..middle].to_vec()),
    ]
}

#[test]
fn a_damaged_store_is_refused_and_kept_and_moving_it_away_helps() {
    let pair = Pair::start(ENGINE, by_hand(), CONVERGENCE);
    let mut session = Session::bird_frr(pair, |speaker| speaker.hold_time = 9, CONVERGENCE);
    let sidecar = &mut session.pair.a;
    assert!(sidecar.stop().success());
    let path = sidecar.state_dir().join("keys.redb");
    let store = std::fs::read(&path).expect("the store");
    for (damage, octets) in damages(&store) {
        std::fs::write(&path, &octets).expect("damage the store");
        let said = refusal(sidecar);
        for word in ["keys.redb", "move it away"] {
            assert!(said.contains(word), "{damage}: {word} is not named: {said}");
        }
        let kept = std::fs::read(&path).expect("the store");
        assert!(kept == octets, "{damage}: the file was changed");
    }
    // The far end keeps its keys and agrees on new ones. What the session was signed with is gone
    // here, so it ends with the hold time, and comes back by itself.
    std::fs::remove_file(&path).expect("move the store away");
    sidecar.restart();
    session.pair.wait_runway(2, CONVERGENCE);
    wait::until("the session being up again", CONVERGENCE * 2, || {
        let mut both = [&session.a, &session.b].into_iter();
        both.all(|daemon| {
            let standing = daemon.standing();
            standing.is_ok_and(|now| now.established && now.times_established == 2)
        })
    });
    wait_converged(&*session.a, &*session.b, CONVERGENCE);
    assert_eq!(session.pair.wire().count("unsigned"), 0);
}

#[test]
fn a_wrong_sealing_key_is_refused_and_the_right_one_goes_on() {
    let mut session = session(by_hand());
    let active = session.pair.wait_proven(1, CONVERGENCE);
    let sidecar = &mut session.pair.a;
    assert!(sidecar.stop().success());
    let [store, key] = ["keys.redb", "store.key"].map(|name| sidecar.state_dir().join(name));
    let right = std::fs::read(&key).expect("the sealing key");
    let before = std::fs::read(&store).expect("the store");
    let mut wrong = right.clone();
    wrong[0] = if wrong[0] == b'0' { b'1' } else { b'0' };
    std::fs::write(&key, wrong).expect("another sealing key");
    let said = refusal(sidecar);
    for word in ["keys.redb", "store.key"] {
        assert!(said.contains(word), "{word} is not named: {said}");
    }
    assert!(
        std::fs::read(&store).expect("the store") == before,
        "the store was changed"
    );
    std::fs::write(&key, right).expect("the right sealing key");
    sidecar.restart();
    assert_eq!(session.pair.wait_proven(1, CONVERGENCE), active);
    session.assert_never_down();
}
