use std::sync::OnceLock;

use ao_engine::policy::Mkt;
use grpc_api::operator::EventLog;
use keymgr::backend::Removal;
use keymgr::rollover::message::Stage;
use keymgr::rollover::{Parameters, SessionKeys};
use keymgr::store::SealingKey;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;

/// Long enough on any machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The SendIDs of a peer without sessions.
#[derive(Default)]
struct Fake(Mutex<Vec<u8>>);

impl Fake {
    fn keys(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }
}

impl Backend for Fake {
    fn install(&self, keys: &[(Arc<str>, Arc<Mkt>)]) -> Vec<Result<(), String>> {
        let mut held = self.keys();
        for (_, mkt) in keys {
            if !held.contains(&mkt.send_id) {
                held.push(mkt.send_id);
            }
        }
        vec![Ok(()); keys.len()]
    }

    fn select(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>> {
        let mut held = self.keys();
        for (_, id) in keys {
            assert!(held.contains(id), "{id} is not there");
            held.retain(|key| key != id);
            held.insert(0, *id);
        }
        vec![Ok(()); keys.len()]
    }

    fn retire(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>> {
        vec![Ok(()); keys.len()]
    }

    fn delete(&self, keys: &[Removal]) -> Vec<Result<(), String>> {
        let mut held = self.keys();
        for removal in keys {
            assert_ne!(held.first(), Some(&removal.send_id), "it is in use");
            held.retain(|key| *key != removal.send_id);
        }
        vec![Ok(()); keys.len()]
    }

    fn observe(&self, peers: &[Arc<str>]) -> Vec<Result<Vec<SessionKeys>, String>> {
        vec![Ok(Vec::new()); peers.len()]
    }

    fn nudge(&self, _: &[Arc<str>]) {}

    fn close(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Calls the other manager of the process.
#[derive(Default)]
struct Line(OnceLock<Handle>);

impl Caller for Line {
    fn call(self: Arc<Self>, peer: Arc<str>, message: Message) -> Call {
        Box::pin(async move {
            let other = self.0.get().ok_or("nobody is there yet")?;
            let answer = other.exchange(peer, message).await;
            answer.map_err(|_| "refused".to_owned())
        })
    }
}

/// One end, with a peer that is called "peer" at both.
struct End {
    handle: Handle,
    line: Arc<Line>,
    backend: Arc<Fake>,
    log: EventLog,
    folder: TempDir,
    task: JoinHandle<()>,
}

impl End {
    fn start(folder: TempDir) -> Self {
        Self::start_with(folder, "the far end")
    }

    fn start_with(folder: TempDir, far_end: &str) -> Self {
        let sealing_key = SealingKey::load(folder.path(), None).unwrap();
        let mut store = Store::open(&folder.path().join("keys.redb"), &sealing_key).unwrap();
        let record = store
            .load()
            .unwrap()
            .pop()
            .map_or_else(Record::default, |stored| {
                Record::from_parts(&stored.meta, stored.secrets).unwrap()
            });
        let parameters = Parameters {
            far_end: far_end.to_owned(),
            overlap: Duration::ZERO,
            ..Parameters::default()
        };
        let core = Rollover::new(parameters, store.instance(), record, Clock.now());
        let backend = Arc::new(Fake::default());
        *backend.keys() = core.mkts().iter().map(|mkt| mkt.send_id).collect();
        let line = Arc::new(Line::default());
        let log = EventLog::new();
        let (manager, handle) = Manager::new(
            vec![("peer".into(), core)],
            store,
            Arc::clone(&backend),
            Arc::clone(&line),
            Events(log.clone()),
            Clock,
            Duration::from_secs(1),
        );
        Self {
            task: tokio::spawn(manager.run()),
            handle,
            line,
            backend,
            log,
            folder,
        }
    }

    /// Stops as by a kill, and waits until the store is free.
    async fn stop(self) -> TempDir {
        let Self { folder, task, .. } = self;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // A transaction under way goes on.
        let free = async {
            let path = folder.path().join("keys.redb");
            let sealing_key = SealingKey::load(folder.path(), None).unwrap();
            while Store::open(&path, &sealing_key).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, free).await.unwrap();
        folder
    }

    /// The generation in use, once it is proven, above `former`, and alone with the runway.
    async fn settled_above(&self, former: u64) -> u64 {
        let settled = async {
            loop {
                let (_, view) = self.handle.status(None).await.unwrap().remove(0);
                let live = view.status.generations.iter();
                let oldest = live
                    .filter(|g| g.stage < Stage::Deleted)
                    .map(|g| g.number)
                    .min();
                match view.status.active {
                    Some(active) if active > former && oldest == Some(active) => return active,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap()
    }
}

fn pair() -> (End, End) {
    let ends = (
        End::start(TempDir::new().unwrap()),
        End::start(TempDir::new().unwrap()),
    );
    connect(&ends.0, &ends.1);
    ends
}

fn connect(a: &End, b: &End) {
    a.line.0.set(b.handle.clone()).ok().unwrap();
    b.line.0.set(a.handle.clone()).ok().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ends_get_a_key_and_change_it_when_asked() {
    let (a, b) = pair();
    let first = a.settled_above(0).await;
    assert_eq!(b.settled_above(0).await, first);
    let start = Command::Start { compromised: false };
    a.handle.command("peer".into(), start).await.unwrap();
    let second = b.settled_above(first).await;
    assert_eq!(a.settled_above(first).await, second);
    assert_eq!(a.backend.keys().first(), b.backend.keys().first());
    let page = a.log.after(0);
    let of_second = page
        .events
        .iter()
        .filter(|event| event.what.generation == Some(second));
    let kinds: Vec<&str> = of_second.map(|event| event.what.kind).collect();
    for kind in [
        "agreed",
        "installed-here",
        "installed-there",
        "selected",
        "proven",
    ] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
}

/// The far end is not there; the store is.
#[tokio::test(flavor = "multi_thread")]
async fn keys_outlive_the_process() {
    let (a, b) = pair();
    let first = a.settled_above(0).await;
    b.settled_above(0).await;
    let keys = a.backend.keys().clone();
    let folder = a.stop().await;
    let a = End::start(folder);
    assert_eq!(a.backend.keys().first(), keys.first());
    assert_eq!(a.settled_above(0).await, first);

    // Whoever had to be there before may have kept them.
    let a = End::start_with(a.stop().await, "another far end");
    assert_eq!(*a.backend.keys(), [0_u8; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_learns_why_not() {
    // Nobody is at the other end, so there is no key and nothing to give up.
    let a = End::start(TempDir::new().unwrap());
    let refused = a.handle.command("peer".into(), Command::Abort).await;
    let reason = refused.unwrap_err();
    assert!(reason.contains("no key"), "{reason}");
}
