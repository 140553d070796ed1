//! A sidecar with a thousand automatic peers. In a file of its own, so that it runs alone.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::sidecar::{Key, PeerConfig, Rollover, Sidecar, Terms};
use ao_tests::simulated_peers::{FarSidecar, SimulatedPeers};
use ao_tests::wait;
use grpc_api::Client;
use grpc_api::v1::{GetRolloverRequest, KeyState, Rollover as Told, StartRolloverRequest};
use keymgr::rollover::message::Stage;
use keymgr::rollover::{Parameters, Status};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const PEERS: usize = 1000;
const RUNWAY: u8 = 2;
const OVERLAP: &str = "1s";

/// How long a change of all keys may take, from the operator's word to the last deletion.
const CHANGE: Duration = Duration::from_secs(30);
/// How long it may take until all have a key and a runway, from the start of the sidecar.
const FIRST_CONTACT: Duration = Duration::from_secs(60);
/// What the sidecar may need at any time, in KiB: less than 60 MB.
const MEMORY: u64 = 60_000_000 / 1024;

#[test]
fn the_keys_of_a_thousand_peers_change_within_half_a_minute() {
    let namespace = Namespace::new("scale");
    let mut sidecar = Sidecar::bare(&namespace, "userspace");
    let parameters = Parameters {
        overlap: Duration::from_secs(1),
        runway: RUNWAY,
        ..Parameters::default()
    };
    let far_sidecar = FarSidecar {
        address: (Ipv4Addr::LOCALHOST, 7179).into(),
        fingerprint: sidecar.fingerprint(),
    };
    let far_ends = SimulatedPeers::start(&namespace, PEERS, &parameters, &far_sidecar);
    sidecar.configure(&peers(&far_ends));

    let begun = Instant::now();
    sidecar.launch(&[]);
    sidecar.wait_ready();
    progress!("{PEERS} peers: ready after {:?}", begun.elapsed());
    let operator = Operator::new(&sidecar);
    operator.wait_changed("the first contact", &far_ends, &[0; PEERS], FIRST_CONTACT);
    progress!("all have keys after {:?}", begun.elapsed());
    let first = Footprint::of(&mut sidecar);
    progress!("{first:?}");

    let before = far_ends.statuses().map(|status| status.active.unwrap_or(0));
    let before: Vec<u64> = before.collect();
    let begun = Instant::now();
    operator.start_all();
    progress!("all changes begun after {:?}", begun.elapsed());
    operator.wait_changed("the change of all keys", &far_ends, &before, CHANGE);
    let took = begun.elapsed();
    let then = Footprint::of(&mut sidecar);
    progress!("all keys changed after {took:?}");
    progress!("{then:?}");
    assert!(took <= CHANGE, "the change of all keys took {took:?}");
    assert!(
        then.peak <= MEMORY,
        "the sidecar had {} KiB resident",
        then.peak
    );
}

/// Their addresses lead nowhere: there is no session.
fn peers(far_ends: &SimulatedPeers) -> Vec<PeerConfig> {
    let address = |index: u32| Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + index);
    let terms = Terms {
        interval: "24h",
        overlap: OVERLAP,
        runway: RUNWAY.into(),
        ..Terms::default()
    };
    (0..)
        .zip(far_ends.far_ends())
        .map(|(index, (endpoint, fingerprint))| PeerConfig {
            keys: Vec::new(),
            rollover: Some(Rollover {
                endpoint,
                fingerprint,
                terms,
            }),
            ..PeerConfig::new(address(index).to_string(), Key::default())
        })
        .collect()
}

/// Someone at the sidecar's API.
struct Operator {
    runtime: Runtime,
    client: Client,
}

impl Operator {
    fn new(sidecar: &Sidecar) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        // A thousand calls at once wait for one another.
        let target = sidecar.socket().as_path().into();
        let client = runtime.block_on(grpc_api::connect_for(&target, CHANGE, CHANGE));
        Self {
            client: client.expect("the sidecar's API"),
            runtime,
        }
    }

    /// Begins a change of every peer's key.
    fn start_all(&self) {
        let start = |index| {
            let mut client = self.client.clone();
            let request = StartRolloverRequest {
                peer: format!("peer-{index}"),
                compromised: false,
            };
            async move { client.start_rollover(request).await }
        };
        self.runtime.block_on(async {
            let mut starts: JoinSet<_> = (0..PEERS).map(start).collect();
            while let Some(started) = starts.join_next().await {
                started.expect("a task").expect("a change that is begun");
            }
        });
    }

    fn rollovers(&self) -> Vec<Told> {
        let mut client = self.client.clone();
        let answer = client.get_rollover(GetRolloverRequest::default());
        let answer = self
            .runtime
            .block_on(answer)
            .expect("how all changes stand");
        answer.into_inner().rollovers
    }

    /// Waits until the key of every peer is a later one than `before`, proven at both ends, all
    /// former ones are gone from both, and the runway is full again.
    fn wait_changed(&self, what: &str, far_ends: &SimulatedPeers, before: &[u64], limit: Duration) {
        wait::poll(what, limit, || {
            let mut all = far_ends.statuses().zip(before).zip(0..);
            match all.find(|((status, before), _)| !changed(status, **before)) {
                None => Ok(()),
                Some(((status, _), index)) => Err(format!("far end {index}: {status:?}")),
            }
        });
        wait::poll(what, limit, || {
            let all = self.rollovers();
            assert_eq!(all.len(), before.len());
            let late = all.into_iter().zip(before);
            match late
                .into_iter()
                .find(|(told, before)| !settled(told, **before))
            {
                None => Ok(()),
                Some((told, _)) => Err(format!("{told:?}")),
            }
        });
    }
}

fn changed(status: &Status, before: u64) -> bool {
    let Some(active) = status.active.filter(|active| *active > before) else {
        return false;
    };
    let gone = |stage| stage == Stage::Deleted;
    let mut former = status.generations.iter().filter(|one| one.number < active);
    let ready = status.generations.iter().filter(|one| one.ready).count();
    status.proven
        && former.all(|one| gone(one.stage) && one.there.is_some_and(gone))
        && ready >= usize::from(RUNWAY)
}

fn settled(told: &Told, before: u64) -> bool {
    let active = told.active.unwrap_or_default();
    active.number > before
        && active.state == i32::from(KeyState::Proven)
        && active.there == i32::from(KeyState::Proven)
        && told.runway_ready >= RUNWAY.into()
        && told.alarms.is_empty()
}

/// What a process takes of the machine.
#[derive(Debug)]
#[expect(dead_code, reason = "shown by Debug")]
struct Footprint {
    /// Memory now, in KiB.
    resident: u64,
    /// The most it ever had, in KiB.
    peak: u64,
    /// Processor time so far, in clock ticks of 10 ms.
    ticks: u64,
}

impl Footprint {
    fn of(sidecar: &mut Sidecar) -> Self {
        let process = format!("/proc/{}", sidecar.process().id());
        let status = fs::read_to_string(format!("{process}/status")).expect("its status");
        let kib = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let size = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            size.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        let stat = fs::read_to_string(format!("{process}/stat")).expect("its times");
        let (_, fields) = stat.rsplit_once(')').expect("the end of its name");
        // utime and stime: see proc_pid_stat(5).
        let times = fields.split_whitespace().skip(11).take(2);
        Self {
            resident: kib("VmRSS:"),
            peak: kib("VmHWM:"),
            ticks: times.filter_map(|time| time.parse::<u64>().ok()).sum(),
        }
    }
}
