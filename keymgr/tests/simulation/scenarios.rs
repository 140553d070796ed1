//! What operators rely on, one at a time.

use std::time::Duration;

use ao_engine::crypto::Algorithm;
use keymgr::rollover::message::{Instance, Stage};
use keymgr::rollover::{Alarm, Event, Parameters, Record};

use crate::world::{Choice, Operator, World, quick};

const HOUR: Duration = Duration::from_secs(3600);

/// Both ends in service, with one session each way.
fn in_service(seed: u64, parameters: &Parameters) -> World {
    let mut world = World::new(seed, [parameters.clone(), parameters.clone()]);
    let until = world.now + Duration::from_secs(5);
    assert!(
        world.run(until, |world| world.has_runway()),
        "{}",
        world.views()
    );
    world.open(0);
    world.open(1);
    settle(&mut world, Duration::from_secs(5));
    world
}

fn settle(world: &mut World, limit: Duration) {
    let until = world.now + limit;
    assert!(world.run(until, World::has_converged), "{}", world.views());
}

fn pass(world: &mut World, time: Duration) {
    let until = world.now + time;
    world.run(until, |_| false);
}

fn active(world: &World, end: usize) -> u64 {
    world.status(end).active.unwrap()
}

fn daily() -> Parameters {
    Parameters {
        interval: 24 * HOUR,
        overlap: HOUR,
        runway: 3,
        ..Parameters::default()
    }
}

#[test]
fn two_fresh_ends_get_to_a_proven_key_without_any_secret_in_common() {
    let mut world = World::new(1, [quick(), quick()]);
    settle(&mut world, Duration::from_secs(5));
    for end in 0..2 {
        for generation in world.status(end).generations {
            let proven = generation.since + Duration::from_secs(1);
            assert!(generation.agreed_at.is_some_and(|agreed| agreed <= proven));
        }
    }
}

#[test]
fn with_the_channel_cut_the_runway_is_used_up_then_the_present_key_stays() {
    let parameters = Parameters {
        interval: HOUR,
        overlap: Duration::from_secs(60),
        runway: 3,
        ..Parameters::default()
    };
    let mut world = in_service(2, &parameters);
    let before = active(&world, 0);
    world.channel = false;
    pass(&mut world, 24 * HOUR);
    for end in 0..2 {
        let status = world.status(end);
        assert_eq!(status.active, Some(before + 3), "exactly the runway");
        assert!(
            status.alarms.contains(&Alarm::RunwayExhausted),
            "{status:#?}"
        );
        assert!(
            status
                .alarms
                .iter()
                .any(|alarm| matches!(alarm, Alarm::PeerUnreachable { .. })),
            "{status:#?}"
        );
    }
    assert_eq!(world.sessions.iter().flatten().count(), 2);
    world.channel = true;
    settle(&mut world, Duration::from_secs(300));
    assert!(active(&world, 0) > before + 3, "it goes on by itself");
    assert_eq!(world.sessions.iter().flatten().count(), 2);
}

#[test]
fn both_ends_may_start_at_once() {
    let mut world = in_service(3, &daily());
    let before = active(&world, 0);
    world.operate(0, Operator::Start);
    world.operate(1, Operator::Start);
    settle(&mut world, 2 * HOUR);
    assert_eq!(active(&world, 0), before + 1);
}

#[test]
fn crossed_offers_make_one_generation_each() {
    for seed in 0..50 {
        let mut world = World::new(seed, [quick(), quick()]);
        for end in [0, 1, 0, 1] {
            let choice = if world.choices(false).contains(&Choice::Act(end)) {
                Choice::Act(end)
            } else {
                Choice::Tick(end)
            };
            world.apply(choice);
        }
        settle(&mut world, Duration::from_secs(5));
        assert!(active(&world, 0) <= 2, "{}", world.views());
    }
}

#[test]
fn an_overtaken_or_repeated_message_changes_nothing() {
    let mut world = in_service(4, &daily());
    let old = world.ends[0].core.clone();
    world.operate(0, Operator::Start);
    settle(&mut world, 2 * HOUR);
    let record = world.ends[1].core.record().clone();
    let message = World::message_of(old, world.now);
    world.tell(1, Event::Request { message });
    assert_eq!(&record, world.ends[1].core.record());
}

#[test]
fn a_message_of_another_store_changes_nothing_until_it_answers() {
    let mut world = in_service(5, &daily());
    let record = world.ends[1].core.record().clone();
    let mut message = World::message_of(world.ends[0].core.clone(), world.now);
    message.instance = Instance([9; 16]);
    message.yours = None;
    message.generations.clear();
    world.tell(1, Event::Request { message });
    assert_eq!(&record, world.ends[1].core.record());
    settle(&mut world, Duration::from_secs(60));
}

#[test]
fn a_malformed_message_is_refused_with_a_reason_and_changes_nothing() {
    let mut world = in_service(6, &daily());
    let record = world.ends[1].core.record().clone();
    let good = World::message_of(world.ends[0].core.clone(), world.now);
    let mut far = good.clone();
    far.generations.last_mut().unwrap().number = u64::MAX;
    let mut twice = good.clone();
    twice.generations.push(good.generations[0].clone());
    let mut long = good.clone();
    long.generations = vec![good.generations[0].clone(); 65];
    let mut ours = good;
    ours.instance = world.ends[1].instance;
    for message in [far, twice, long, ours] {
        world.tell(1, Event::Request { message });
    }
    assert_eq!(world.ends[1].rejections.len(), 4);
    assert_eq!(&record, world.ends[1].core.record());
}

#[test]
fn a_lost_store_is_agreed_anew() {
    let mut world = in_service(7, &quick());
    let before = active(&world, 1);
    world.replace_store(0, Record::default(), Instance([7; 16]));
    // The sessions' other sides time out.
    world.sessions.clear();
    settle(&mut world, Duration::from_secs(120));
    assert!(active(&world, 1) > before);
}

#[test]
fn a_store_that_went_back_in_time_is_agreed_anew() {
    let mut world = in_service(8, &quick());
    let (old, instance) = (world.ends[0].disk.clone(), world.ends[0].instance);
    pass(&mut world, Duration::from_secs(120));
    let before = active(&world, 1);
    world.replace_store(0, old, instance);
    world.sessions.clear();
    settle(&mut world, Duration::from_secs(120));
    assert!(active(&world, 1) > before);
}

#[test]
fn a_wall_clock_that_jumps_selects_and_deletes_nothing() {
    const YEARS: i64 = 5 * 365 * 24 * 3600;
    let mut world = in_service(9, &daily());
    pass(&mut world, 2 * HOUR);
    let before = [world.keys(0), world.keys(1)];
    for offset in [YEARS, -YEARS, 0] {
        world.ends[0].wall_offset = offset;
        world.tell(0, Event::Tick);
        pass(&mut world, HOUR);
        assert_eq!([world.keys(0), world.keys(1)], before);
    }
    // After a restart too, a clock that went back does not hold the schedule up for years.
    world.ends[0].wall_offset = -YEARS;
    world.crash(0);
    assert!(world.status(0).next_rollover <= Some(24 * HOUR));
    pass(&mut world, HOUR);
    assert_eq!([world.keys(0), world.keys(1)], before);
}

#[test]
fn an_abort_is_overtaken_by_the_peers_selection() {
    let mut world = in_service(10, &daily());
    let before = active(&world, 0);
    world.channel = false;
    world.operate(0, Operator::Abort);
    world.operate(1, Operator::Start);
    pass(&mut world, Duration::from_secs(60));
    assert_eq!([active(&world, 0), active(&world, 1)], [before + 1; 2]);
    world.channel = true;
    settle(&mut world, 2 * HOUR);
    assert_eq!(world.ends[0].refusals.len(), 0);
}

#[test]
fn an_abort_replaces_the_runway_and_is_refused_after_the_selection() {
    let mut world = in_service(11, &daily());
    let before = active(&world, 0);
    world.operate(0, Operator::Abort);
    settle(&mut world, 2 * HOUR);
    assert_eq!(active(&world, 0), before);
    assert!(!world.keys(0).contains(&(before + 1)));
    world.chatty = false;
    world.operate(0, Operator::Start);
    pass(&mut world, Duration::from_millis(10));
    world.operate(0, Operator::Abort);
    assert!(
        world.ends[0].refusals[0].contains("is selected already"),
        "{:?}",
        world.ends[0].refusals
    );
}

#[test]
fn after_a_compromise_only_fresh_keys_are_left() {
    let mut world = in_service(12, &daily());
    let highest = *world.keys(0).iter().max().unwrap();
    world.operate(0, Operator::Compromise);
    pass(&mut world, Duration::from_secs(10));
    for end in 0..2 {
        assert!(active(&world, end) > highest);
        assert!(
            world.keys(end).iter().all(|number| *number > highest),
            "{}",
            world.views()
        );
    }
    assert_eq!(world.sessions.iter().flatten().count(), 2);
}

#[test]
fn force_deletes_at_once_and_is_refused_without_anything_superseded() {
    let mut world = in_service(13, &daily());
    world.operate(0, Operator::Force);
    assert_eq!(world.ends[0].refusals, ["there is no superseded key"]);
    let before = active(&world, 0);
    world.operate(0, Operator::Start);
    pass(&mut world, Duration::from_secs(10));
    assert!(world.keys(0).contains(&before), "the overlap is an hour");
    world.operate(0, Operator::Force);
    pass(&mut world, Duration::from_secs(10));
    assert!(!world.keys(0).contains(&before));
    assert_eq!(world.sessions.iter().flatten().count(), 2);
}

#[test]
fn a_thousand_rollovers_with_64_ids() {
    let parameters = Parameters {
        highest_id: 63,
        ..quick()
    };
    let mut world = in_service(14, &parameters);
    let until = world.now + 4 * HOUR;
    assert!(world.run(until, |world| world.status(0).active > Some(1001)));
    assert!(world.status(0).generations.iter().all(|g| g.id <= 63));
}

#[test]
fn one_quiet_session_of_three_holds_the_deletion_up_until_it_speaks() {
    let mut world = in_service(15, &quick());
    world.open(0);
    settle(&mut world, Duration::from_secs(60));
    world.chatty = false;
    let before = active(&world, 0);
    world.operate(0, Operator::Start);
    pass(&mut world, Duration::from_secs(30));
    for quiet in 1..3 {
        world.speak(quiet);
    }
    pass(&mut world, Duration::from_secs(30));
    let status = world.status(0);
    assert_eq!(status.active, Some(before + 1));
    assert!(!status.proven);
    assert!(world.keys(0).contains(&before));
    assert!(
        status.alarms.contains(&Alarm::ProofOverdue {
            waiting_for: vec!["session 0".into()]
        }),
        "{status:#?}"
    );
    world.chatty = true;
    settle(&mut world, Duration::from_secs(60));
}

#[test]
fn without_any_session_the_peers_word_is_the_proof() {
    let mut world = World::new(16, [quick(), quick()]);
    settle(&mut world, Duration::from_secs(10));
    let before = active(&world, 0);
    pass(&mut world, Duration::from_secs(60));
    assert!(active(&world, 0) >= before + 5);
    assert!(!world.keys(0).contains(&before));
}

#[test]
fn ends_without_an_algorithm_in_common_stay_blocked_and_say_so() {
    let other = Parameters {
        algorithms: vec![Algorithm::HmacSha1_96],
        ..quick()
    };
    let mut world = World::new(17, [quick(), other]);
    pass(&mut world, Duration::from_secs(60));
    for end in 0..2 {
        let status = world.status(end);
        assert_eq!(status.active, None);
        assert!(
            status.alarms.contains(&Alarm::NoCommonAlgorithm),
            "{status:#?}"
        );
        assert!(world.ends[end].core.mkts().is_empty());
    }
}

#[test]
fn the_preferred_algorithm_that_both_accept_is_taken() {
    let ours = Parameters {
        algorithms: vec![Algorithm::HmacSha256_128, Algorithm::Aes128Cmac96],
        ..quick()
    };
    let mut world = World::new(18, [ours, quick()]);
    settle(&mut world, Duration::from_secs(10));
    assert!(
        world
            .status(0)
            .generations
            .iter()
            .all(|g| g.algorithm == Algorithm::Aes128Cmac96)
    );
}

#[test]
fn a_record_comes_back_from_its_parts() {
    let mut world = in_service(19, &quick());
    for _ in 0..300 {
        let Some(choice) = world.choices(false).first().copied() else {
            break;
        };
        world.apply(choice);
        let record = world.ends[0].core.record();
        let secrets = record
            .secrets()
            .map(|(name, secret)| (name, secret.clone()))
            .collect();
        assert_eq!(
            &Record::from_parts(&record.to_meta(), secrets).unwrap(),
            record
        );
    }
    let record = world.ends[0].core.record();
    assert!(Record::from_parts(&record.to_meta(), Vec::new()).is_err());
    assert!(Record::from_parts(b"{}", Vec::new()).is_err());
}

#[test]
fn a_deleted_generation_has_no_secret_in_the_record() {
    let mut world = in_service(20, &quick());
    pass(&mut world, Duration::from_secs(35));
    let status = world.status(0);
    let deleted = status
        .generations
        .iter()
        .filter(|g| g.stage == Stage::Deleted);
    let record = world.ends[0].core.record();
    let mut any = false;
    for g in deleted {
        any = true;
        assert!(record.secrets().all(|(name, _)| name.number != g.number));
    }
    assert!(any);
}
