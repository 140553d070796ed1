//! Counter-examples that the exploration found, as short as they could be made.

use keymgr::rollover::Event;
use keymgr::rollover::SessionKeys;
use std::time::Duration;

use keymgr::rollover::message::{IdSet, Stage};

use crate::world::{Choice, Operator, World, quick};

fn session(name: &str, current: u8, rnext: u8, verified: &[(u8, u64)]) -> SessionKeys {
    SessionKeys {
        name: name.into(),
        send_id_current: current,
        recv_id_rnext: rnext,
        verified: verified.to_vec(),
        established: true,
    }
}

/// Before the first selection an end's own session uses whatever key was installed first; that
/// was taken for the peer's selection, and a key selected that the peer did not have.
#[test]
fn a_session_before_the_first_selection_is_not_the_peers_word() {
    let mut world = World::new(1, [quick(), quick()]);
    let unselected = |world: &World| {
        (0..2).find(|&end| !world.keys(end).is_empty() && world.status(end).active.is_none())
    };
    let end = loop {
        let choice = world.next_orderly().unwrap();
        world.apply(choice);
        if let Some(end) = unselected(&world) {
            break end;
        }
    };
    let id = world.ends[end].backend.first().unwrap().mkt.send_id;
    let sessions = vec![session("own", id, id, &[])];
    world.tell(end, Event::Observed { sessions });
    assert_eq!(world.status(end).active, None);
}

/// A SYN came with the new key, and its answer, with the former RNextKeyID, took the opener's
/// current_key back: that one segment was taken for proof, and the key in use deleted.
#[test]
fn segments_verified_before_the_selection_prove_nothing() {
    let mut world = World::new(2, [quick(), quick()]);
    let until = world.now + Duration::from_secs(60);
    assert!(world.run(until, World::has_converged));
    world.operate(0, Operator::Start);
    world.act(0, false);
    let status = world.status(0);
    let id = |number| {
        status
            .generations
            .iter()
            .find(|g| g.number == number)
            .unwrap()
            .id
    };
    let active = status.active.unwrap();
    let new = id(active);
    for _ in 0..2 {
        let sessions = vec![session("opened in mid-change", new, new, &[(new, 1)])];
        world.tell(0, Event::Observed { sessions });
        assert!(!world.status(0).proven);
    }
    let sessions = vec![session("opened in mid-change", new, new, &[(new, 2)])];
    world.tell(0, Event::Observed { sessions });
    assert!(world.status(0).proven);
}

/// Keys were installed in any order before the first selection, so that a restart put another
/// one first, and RNextKeyID went back to a lower generation.
#[test]
fn before_the_first_selection_the_backend_has_one_key() {
    let mut world = World::new(1, [quick(), quick()]);
    let mut fails = 2;
    while let Some(choice) = world.next_orderly() {
        match choice {
            Choice::Act(end) if fails > 0 && world.ends[end].next_is_install() => {
                fails -= 1;
                world.apply(Choice::Fail(end));
            }
            choice => world.apply(choice),
        }
        for end in 0..2 {
            if world.status(end).active.is_none() {
                assert!(world.ends[end].core.mkts().len() < 2, "{}", world.views());
            }
        }
    }
    assert!(world.status(0).generations.len() > 1);
}

/// A restart after an abort kept a key from the backend that the peer had selected meanwhile.
#[test]
fn a_restart_keeps_what_is_revoked_here_only() {
    let mut world = World::new(3, [quick(), quick()]);
    let until = world.now + Duration::from_secs(60);
    assert!(world.run(until, World::has_converged));
    let next = world.status(0).active.unwrap() + 1;
    world.channel = false;
    world.operate(0, Operator::Start);
    world.act(0, false);
    assert_eq!(world.ends[0].backend.selected, Some(next));
    for choice in [Choice::Operate(1, Operator::Abort), Choice::Crash(1)] {
        world.apply(choice);
        world.check();
    }
    assert!(world.keys(1).contains(&next));
}

/// A selection was carried out, but the process ended before it had stored that; following the
/// peer to a later key, it took the former one for never selected and deleted it unproven.
#[test]
fn what_was_to_be_selected_is_never_given_up() {
    let mut world = World::new(4, [quick(), quick()]);
    let until = world.now + Duration::from_secs(60);
    assert!(world.run(until, World::has_converged));
    world.open(1);
    let until = world.now + Duration::from_secs(60);
    assert!(world.run(until, World::has_converged));
    let second = world.status(0).active.unwrap() + 1;
    world.channel = false;
    world.operate(0, Operator::Start);
    for choice in [
        Choice::CrashUnsaved(0),
        Choice::Act(0),
        Choice::Operate(1, Operator::Abort),
    ] {
        world.apply(choice);
    }
    // The session's other side moves to the key.
    world.speak(0);
    world.channel = true;
    world.operate(1, Operator::Compromise);
    while world.status(0).active == Some(second) {
        let choice = match world.next_orderly() {
            Some(Choice::Act(0)) if world.ends[0].next_is_selection() => Choice::Fail(0),
            Some(choice) => choice,
            None => {
                let next = world.now + Duration::from_secs(1);
                world.pass(next);
                continue;
            }
        };
        world.apply(choice);
        world.check();
    }
    let until = world.now;
    world.run(until, |_| false);
    let status = world.status(0);
    let former = status
        .generations
        .iter()
        .find(|g| g.number == second)
        .unwrap();
    assert_eq!(former.there, Some(Stage::Revoked));
    assert_eq!(former.stage, Stage::Installed);
    // Every step checks that nothing goes unproven.
    let until = world.now + Duration::from_secs(120);
    assert!(world.run(until, World::has_converged), "{}", world.views());
}

/// With no KeyID free at both, each end took the other's higher offer for a reason to make a
/// higher one still, without a pause.
#[test]
fn an_offer_that_cannot_be_answered_is_not_outbid() {
    let mut world = World::new(5, [quick(), quick()]);
    world.tell(1, Event::Tick);
    assert!(world.status(1).offering);
    let mut message = World::message_of(world.ends[0].core.clone(), world.now);
    let offer = message.offer.as_mut().unwrap();
    offer.number = 5;
    offer.free_ids = IdSet::default();
    world.tell(1, Event::Request { message });
    assert!(!world.status(1).offering);
    assert_eq!(world.status(1).generations, []);
}

/// A key is not even asked to be deleted while a session was just seen with it.
#[test]
fn a_deletion_waits_for_a_look_that_shows_no_user() {
    let mut world = World::new(6, [quick(), quick()]);
    let until = world.now + Duration::from_secs(60);
    assert!(world.run(until, World::has_converged));
    let former = world.status(0).active.unwrap();
    world.operate(0, Operator::Start);
    let until = world.now + Duration::from_secs(1);
    assert!(world.run(until, |world| world.status(0).proven
        && world.status(1).proven));
    assert!(world.keys(0).contains(&former), "the overlap is 2 s");
    let status = world.status(0);
    let id = |number| {
        status
            .generations
            .iter()
            .find(|g| g.number == number)
            .unwrap()
            .id
    };
    let (old, new) = (id(former), id(former + 1));
    world.now += Duration::from_secs(3);
    for late in [true, false] {
        let mut sessions = vec![session("one", new, new, &[(new, 1)])];
        world.tell(
            0,
            Event::Observed {
                sessions: sessions.clone(),
            },
        );
        sessions[0].verified = vec![(new, 2)];
        if late {
            sessions.push(session("late", old, new, &[]));
        }
        world.tell(0, Event::Observed { sessions });
        assert_eq!(world.ends[0].asks_deletion(), !late);
    }
}
