//! Two engines joined by a simulated path lose nothing that TCP would not lose.
//!
//! Each run asserts that every octet arrives, that every segment on the wire carries TCP-AO and
//! verifies by the signer of the tests, and that no genuine segment is refused; only those that
//! the path damaged are, for their checksum. `AO_SOAK=1` runs many more and longer ones.

mod path;
mod tcp;
mod world;

use std::sync::Arc;

use ao_engine::crypto::Algorithm::{self, Aes128Cmac96, HmacSha1_96, HmacSha256_128};
use ao_engine::engine::SessionState;
use ao_engine::policy::Mkt;
use proptest::prelude::*;

use crate::support::key;
use path::Weather;
use world::{Event, Plan, World};

const V4: [&str; 2] = ["10.0.0.1:40000", "10.0.0.2:179"];
const V6: [&str; 2] = ["[2001:db8::1]:40000", "[2001:db8::2]:179"];

fn soak() -> bool {
    std::env::var_os("AO_SOAK").is_some()
}

fn cases() -> u32 {
    if soak() { 400 } else { 200 }
}

fn size() -> usize {
    if soak() { 500_000 } else { 100_000 }
}

fn plan() -> Plan {
    Plan {
        addresses: V4,
        isns: [1000, 9000],
        octets: [size(), size() / 2],
        seed: 1,
        weather: Weather::default(),
        events: vec![],
        simultaneous: false,
        protected: true,
    }
}

/// The same MKTs as each end sees them.
fn keys(algorithms: &[Algorithm]) -> [Vec<Arc<Mkt>>; 2] {
    let ids = (1u8..).step_by(2).zip(algorithms);
    let here = ids
        .clone()
        .map(|(id, &algorithm)| Arc::new(key(id, id + 1, algorithm)));
    let there = ids.map(|(id, &algorithm)| Arc::new(key(id + 1, id, algorithm)));
    [here.collect(), there.collect()]
}

fn run(plan: Plan, algorithms: &[Algorithm]) -> World {
    let mut world = World::new(plan, keys(algorithms));
    world.run();
    world
}

fn rough() -> Weather {
    Weather {
        loss: 30,
        duplication: 20,
        reordering: 50,
        ..Weather::default()
    }
}

fn any_weather() -> impl Strategy<Value = Weather> {
    let mtu = prop_oneof![Just(1500usize), 552usize..1500];
    let mtus = proptest::collection::vec((0u64..2000, mtu), 0..3);
    (0u64..120, 0u64..80, 0u64..200, 0u64..40, mtus).prop_map(
        |(loss, duplication, reordering, damage, mut mtus)| {
            mtus.sort_unstable();
            Weather {
                loss,
                duplication,
                reordering,
                damage,
                mtus,
            }
        },
    )
}

prop_compose! {
    fn any_plan()(
        v6 in any::<bool>(),
        isns in any::<[u32; 2]>(),
        wraps in any::<[bool; 2]>(),
        octets in [0..size(), 0..size() / 4],
        seed in any::<u64>(),
        mut weather in any_weather(),
        restarts in proptest::collection::vec((0u64..3000, 0usize..2), 0..4),
        simultaneous in any::<bool>(),
    ) -> Plan {
        let events = restarts.into_iter().map(|(at, end)| (at, Event::Restart(end)));
        if v6 {
            for (_, mtu) in &mut weather.mtus {
                *mtu = 1280.max(*mtu);
            }
        }
        // Half of the runs wrap early.
        let isn = |end: usize| match wraps[end] {
            true => u32::MAX - isns[end] % 50_000,
            false => isns[end],
        };
        Plan {
            addresses: if v6 { V6 } else { V4 },
            isns: [isn(0), isn(1)],
            octets,
            seed,
            weather,
            events: events.collect(),
            simultaneous,
            protected: true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default()
    })]

    #[test]
    fn any_path_that_tcp_gets_through(
        plan in any_plan(),
        algorithm in proptest::sample::select(Algorithm::ALL.to_vec()),
    ) {
        let events = vec![];
        World::new(Plan { protected: false, events, ..plan.clone() }, keys(&[algorithm])).run();
        run(plan, &[algorithm]);
    }
}

#[test]
fn a_calm_path() {
    for addresses in [V4, V6] {
        let world = run(
            Plan {
                addresses,
                ..plan()
            },
            &[HmacSha1_96],
        );
        for host in &world.hosts {
            let views: Vec<_> = host.engine.sessions().collect();
            assert_eq!(views.len(), 1);
            assert_eq!(views[0].state, SessionState::Closing);
            assert_eq!((views[0].counters.bad, views[0].counters.unsigned), (0, 0));
            assert_eq!(host.counters("far").drops.total(), 0);
        }
        // The MSS made room: nothing had to be sent in another way.
        assert_eq!((world.transmitted, world.split), (0, 0));
    }
}

#[test]
fn a_rough_path_with_numbers_that_wrap_at_every_point_of_the_handshake() {
    for back in [0, 1, 2, 3, 1000, 1460, 30_000] {
        let isns = [u32::MAX - back, u32::MAX - back / 2];
        let seed = u64::from(back);
        let plan = Plan {
            isns,
            seed,
            weather: rough(),
            ..plan()
        };
        let world = run(plan, &[Aes128Cmac96]);
        for host in &world.hosts {
            let snes = host
                .engine
                .sessions()
                .map(|view| (view.snd_sne, view.rcv_sne));
            assert_eq!(snes.collect::<Vec<_>>(), [(1, 1)]);
        }
    }
}

#[test]
fn a_damaging_path() {
    let weather = Weather {
        damage: 100,
        ..rough()
    };
    let world = run(Plan { weather, ..plan() }, &[HmacSha256_128]);
    assert!(world.damaged > 0);
    for host in &world.hosts {
        assert!(host.engine.sessions().all(|view| view.counters.bad == 0));
    }
}

/// Routers narrow in the middle of the transfer, down to what the families allow.
#[test]
fn the_path_mtu_shrinks() {
    for (addresses, mtu, split) in [
        (V4, 1400, false),
        (V4, 576, false),
        // The local TCP does not go below these: the engine sends pieces.
        (V4, 552, true),
        (V6, 1400, false),
        (V6, 1280, true),
    ] {
        for weather in [Weather::default(), rough()] {
            let weather = Weather {
                mtus: vec![(0, 1500), (150, mtu)],
                ..weather
            };
            let world = run(
                Plan {
                    addresses,
                    weather,
                    ..plan()
                },
                &[HmacSha1_96],
            );
            assert!(world.split > 0 || !split, "{mtu}");
            assert!(world.transmitted + world.split > 0, "{mtu}");
            assert!(world.tcps[0].route_mtu < 1500);
        }
    }
}

#[test]
fn the_path_mtu_was_small_all_along() {
    for (addresses, mtu) in [(V4, 1000), (V6, 1300)] {
        let weather = Weather {
            mtus: vec![(0, mtu)],
            ..rough()
        };
        run(
            Plan {
                addresses,
                weather,
                ..plan()
            },
            &[HmacSha256_128],
        );
    }
}

/// Both ends ask for the other key, one after the other, while segments are lost and late.
#[test]
fn keys_roll_over_in_both_directions() {
    for (seed, weather) in [(1, Weather::default()), (2, rough()), (3, rough())] {
        let events = vec![
            (200, Event::Advertise(0, 1)),
            (300, Event::Advertise(1, 1)),
            (500, Event::Advertise(0, 0)),
            (700, Event::Advertise(0, 1)),
        ];
        let octets = [4 * size(), 4 * size()];
        let plan = Plan {
            seed,
            weather,
            events,
            octets,
            ..plan()
        };
        let world = run(plan, &[HmacSha1_96, Aes128Cmac96]);
        assert_eq!(world.events_in_time, 4);
        for (host, keys) in world.hosts.iter().zip([(3, 4), (4, 3)]) {
            let view = host.engine.sessions().next().unwrap();
            assert_eq!((view.current_key, view.rnext_key), keys);
        }
    }
}

/// Restarts from the records alone, at moments that hit every step of a run.
#[test]
fn engines_restart_in_mid_transfer() {
    let mut restarts = 0;
    for (seed, at) in (0u64..).zip((0..600).step_by(if soak() { 6 } else { 24 })) {
        let both = [Event::Restart(0), Event::Restart(1)];
        let events = both.into_iter().map(|event| (at, event)).collect();
        let isns = [u32::MAX - 20_000, u32::MAX - 20_000];
        let plan = Plan {
            seed,
            weather: rough(),
            events,
            isns,
            ..plan()
        };
        let world = run(plan, &[HmacSha1_96]);
        restarts += world.events_in_time;
    }
    assert!(restarts >= 40, "{restarts}");
}

#[test]
fn both_ends_call_at_once() {
    for seed in 0..8 {
        run(
            Plan {
                seed,
                simultaneous: true,
                weather: rough(),
                ..plan()
            },
            &[HmacSha1_96],
        );
    }
}
