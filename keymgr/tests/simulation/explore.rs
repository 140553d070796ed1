//! A million schedules: every choice up to a depth, and random ones beyond it.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::world::{Choice, Operator, Random, TALLY, World, quick};

/// Random schedules: a trunk of this many steps …
const TRUNK: usize = 120;
/// … with branches of this many …
const BRANCH: usize = 6;
/// … at every so many steps of the trunk.
const BRANCHES: usize = 8;
/// After this time without faults, the ends have converged.
const SETTLED: Duration = Duration::from_secs(900);
/// Schedules that one seed makes.
const PER_SEED: u64 = (TRUNK * BRANCHES + 1) as u64;

/// One random step; faults and the operator are rarer than progress.
fn random_step(world: &mut World, random: &mut Random, taken: &mut Vec<Choice>) {
    let choices = world.choices(true);
    let mut choice = choices[random.below(choices.len())];
    for _ in 0..2 {
        let rare = matches!(
            choice,
            Choice::Crash(_) | Choice::CrashUnsaved(_) | Choice::Operate(..) | Choice::Close(_)
        );
        if rare {
            choice = choices[random.below(choices.len())];
        }
    }
    taken.push(choice);
    world.apply(choice);
    world.check();
}

/// Two ends in service with two sessions.
fn in_service() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let mut world = World::new(1, [quick(), quick()]);
        let until = world.now + SETTLED;
        assert!(world.run(until, World::has_runway));
        world.open(0);
        world.open(1);
        assert!(world.run(until, World::has_converged));
        world
    })
}

/// Every other seed begins with fresh ends, the others in service.
fn beginning(seed: u64) -> World {
    if seed.is_multiple_of(2) {
        return World::new(seed, [quick(), quick()]);
    }
    let mut world = in_service().clone();
    world.random = Random(seed);
    world
}

/// Says which schedule broke a rule and what led there, then fails.
fn reported(seed: u64, taken: &mut Vec<Choice>, run: impl FnOnce(&mut Vec<Choice>)) {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(taken)));
    if let Err(panic) = outcome {
        eprintln!("seed {seed}, after {} steps: {taken:?}", taken.len());
        let mut world = beginning(seed);
        world.history = Some(Vec::new());
        let again = AssertUnwindSafe(|| {
            for choice in taken.iter() {
                world.apply(*choice);
                world.check();
            }
            let until = world.now + SETTLED;
            world.run(until, World::has_converged)
        });
        let _ = catch_unwind(again);
        eprintln!("{}", world.history.unwrap_or_default().join("\n"));
        resume_unwind(panic);
    }
}

fn signature(taken: &[Choice]) -> u64 {
    let mut hasher = DefaultHasher::new();
    taken.hash(&mut hasher);
    hasher.finish()
}

/// Every choice at every point, up to a depth, and never on from the same joint state twice.
/// Each transition from a new state is a schedule of its own; their number.
fn every_choice(world: World, depth: usize) -> u64 {
    let mut seen = HashSet::new();
    let mut frontier = vec![world];
    let mut schedules = 0;
    for _ in 0..depth {
        let mut next = Vec::new();
        for world in frontier {
            for choice in world.choices(true) {
                let mut other = world.clone();
                other.apply(choice);
                other.check();
                schedules += 1;
                if seen.insert(other.fingerprint()) {
                    next.push(other);
                }
            }
        }
        frontier = next;
    }
    schedules
}

#[test]
fn every_choice_from_the_points_that_matter_keeps_every_rule() {
    let mut schedules = every_choice(World::new(1, [quick(), quick()]), 5);
    // In service; then just after the switch began at one end, and at both.
    let mut world = beginning(1);
    for operator in [(0, Operator::Start), (1, Operator::Abort)] {
        schedules += every_choice(world.clone(), 3);
        world.operate(operator.0, operator.1);
    }
    schedules += every_choice(world, 3);
    println!("{schedules} schedules, every choice");
    assert!(schedules > 10_000, "{schedules}");
}

/// A trunk and its branches; the number of distinct schedules.
fn random_tree(seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut taken = Vec::new();
    let mut distinct = HashSet::new();
    reported(seed, &mut taken, |taken| {
        let mut world = beginning(seed);
        for step in 0..TRUNK {
            random_step(&mut world, &mut random, taken);
            for branch in 0..BRANCHES {
                let mut other = world.clone();
                let kept = taken.len();
                for _ in 0..BRANCH {
                    random_step(&mut other, &mut random, taken);
                }
                distinct.insert(signature(taken));
                if branch == 0 && step % 60 == 59 {
                    let until = other.now + SETTLED;
                    assert!(
                        other.run(until, World::has_converged),
                        "no convergence: {:#?} {:#?}",
                        other.status(0),
                        other.status(1)
                    );
                }
                taken.truncate(kept);
            }
        }
        distinct.insert(signature(taken));
    });
    distinct.len() as u64
}

#[test]
fn a_million_random_schedules_keep_every_rule() {
    const SEEDS: u64 = 1_010_000 / PER_SEED;
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let schedules: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    (0..SEEDS)
                        .filter(|seed| seed % threads == worker)
                        .map(random_tree)
                        .sum::<u64>()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    println!("{schedules} distinct random schedules");
    let tally = TALLY.each_ref().map(|count| count.load(Ordering::Relaxed));
    println!(
        "agreed, selected, proven by word, proven, deleted, forced, dropped, overtaken: {tally:?}"
    );
    assert!(schedules >= 1_000_000, "{schedules}");
    assert!(tally.iter().all(|count| *count > 100), "{tally:?}");
}
