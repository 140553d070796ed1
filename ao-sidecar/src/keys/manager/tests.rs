use std::sync::OnceLock;

use ao_engine::policy::Mkt;
use grpc_api::operator::EventLog;
use keymgr::backend::Removal;
use keymgr::rollover::message::{Instance, Stage};
use keymgr::rollover::{Parameters, SessionKeys};
use keymgr::secret::{Secret, SecretKind, SecretName};
use keymgr::store::{SealingKey, Stored};
use tempfile::TempDir;
use tokio::sync::oneshot;
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
    fn call(self: Arc<Self>, _: Named, message: Message) -> Call {
        Box::pin(async move {
            let other = self.0.get().ok_or("nobody is there yet")?;
            let answer = other.exchange(named(0), message).await;
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
    instance: Instance,
    folder: TempDir,
    task: JoinHandle<()>,
}

/// What is on disk once nobody has it open.
fn stored(folder: &TempDir) -> Vec<Stored> {
    let sealing_key = SealingKey::load(folder.path(), None).unwrap();
    let mut store = Store::open(&folder.path().join("keys.redb"), &sealing_key).unwrap();
    store.load().unwrap()
}

fn named(incarnation: u64) -> Named {
    Named {
        name: "peer".into(),
        incarnation,
    }
}

fn parameters(far_end: &str) -> Parameters {
    Parameters {
        far_end: far_end.to_owned(),
        overlap: Duration::ZERO,
        ..Parameters::default()
    }
}

impl End {
    async fn start(folder: TempDir) -> Self {
        Self::start_with(folder, "the far end").await
    }

    async fn start_with(folder: TempDir, far_end: &str) -> Self {
        let sealing_key = SealingKey::load(folder.path(), None).unwrap();
        let mut store = Store::open(&folder.path().join("keys.redb"), &sealing_key).unwrap();
        let record = store
            .load()
            .unwrap()
            .pop()
            .map_or_else(Record::default, |stored| {
                Record::from_parts(&stored.meta, stored.secrets).unwrap()
            });
        let instance = store.instance();
        let core = Rollover::new(parameters(far_end), instance, record, Clock.now());
        let backend = Arc::new(Fake::default());
        *backend.keys() = core.mkts().iter().map(|mkt| mkt.send_id).collect();
        let line = Arc::new(Line::default());
        let log = EventLog::new();
        let (manager, handle) = Manager::new(
            store,
            Arc::clone(&backend),
            Arc::clone(&line),
            Events(log.clone()),
            Alarms::default(),
            Clock,
        );
        let end = Self {
            task: tokio::spawn(manager.run()),
            handle,
            line,
            backend,
            log,
            instance,
            folder,
        };
        end.plan(0, Course::Begun(Box::new(core))).await;
        end
    }

    /// Goes on with the peer that way, and waits until that is on disk.
    async fn plan(&self, incarnation: u64, course: Course) {
        let name = "peer".into();
        let peer = Planned {
            name,
            incarnation,
            course,
        };
        self.plan_all(vec![peer]).await;
    }

    async fn plan_all(&self, peers: Vec<Planned>) {
        let held = self.handle.hold().await.unwrap();
        let (done, on_disk) = oneshot::channel();
        let plan = Plan {
            peers,
            gone: Vec::new(),
            look_every: Duration::from_secs(1),
        };
        held.send((plan, done)).ok().unwrap();
        on_disk.await.unwrap().unwrap();
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

    async fn view(&self) -> View {
        self.handle.status(None).await.unwrap().remove(0).1
    }

    async fn until(&self, holds: impl Fn(&View) -> bool) {
        let waited = async {
            while !holds(&self.view().await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap();
    }

    /// The generation in use, once it is proven, above `former`, and alone with the runway.
    async fn settled_above(&self, former: u64) -> u64 {
        let settled = async {
            loop {
                let view = self.view().await;
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

async fn pair() -> (End, End) {
    let ends = (
        End::start(TempDir::new().unwrap()).await,
        End::start(TempDir::new().unwrap()).await,
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
    let (a, b) = pair().await;
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
    let (a, b) = pair().await;
    let first = a.settled_above(0).await;
    b.settled_above(0).await;
    let keys = a.backend.keys().clone();
    let folder = a.stop().await;
    let a = End::start(folder).await;
    assert_eq!(a.backend.keys().first(), keys.first());
    assert_eq!(a.settled_above(0).await, first);

    // Whoever had to be there before may have kept them.
    let a = End::start_with(a.stop().await, "another far end").await;
    assert_eq!(*a.backend.keys(), [0_u8; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_learns_why_not() {
    // Nobody is at the other end, so there is no key and nothing to give up.
    let a = End::start(TempDir::new().unwrap()).await;
    let refused = a.handle.command("peer".into(), Command::Abort).await;
    let reason = refused.unwrap_err();
    assert!(reason.contains("no key"), "{reason}");
}

/// The key in use stays, and the next one comes as the new settings say.
#[tokio::test(flavor = "multi_thread")]
async fn other_settings_keep_the_key_in_use() {
    let (a, b) = pair().await;
    let first = a.settled_above(0).await;
    b.settled_above(0).await;
    let key = a.backend.keys()[0];
    let every = |seconds| Parameters {
        interval: Duration::from_secs(seconds),
        ..parameters("the far end")
    };
    a.plan(0, Course::Reconfigured(every(7200))).await;
    assert_eq!(a.backend.keys()[0], key);
    a.plan(0, Course::Reconfigured(every(1))).await;
    let second = a.settled_above(first).await;
    assert!(b.settled_above(first).await >= second);
}

/// What a former far end had to do with is nothing to the peer's present state.
#[tokio::test(flavor = "multi_thread")]
async fn another_far_end_begins_with_nothing() {
    let (a, b) = pair().await;
    a.settled_above(0).await;
    b.settled_above(0).await;
    let told = Message {
        instance: b.instance,
        yours: None,
        generations: Vec::new(),
        offer: None,
        answer: None,
        refusal: None,
        overlap: Duration::ZERO,
    };
    b.stop().await;
    let core = Rollover::new(
        parameters("another far end"),
        a.instance,
        Record::default(),
        Clock.now(),
    );
    a.plan(1, Course::Begun(Box::new(core))).await;
    let view = a.view().await;
    assert_eq!(view.status.active, None);
    assert!(view.status.generations.is_empty());
    // The former far end may still have a connection.
    let answer = a.handle.exchange(named(0), told.clone()).await;
    assert!(matches!(answer, Err(NoAnswer::NotNow)));
    assert!(a.handle.exchange(named(1), told).await.is_ok());
    let folder = a.stop().await;
    let stored = stored(&folder).remove(0);
    let of_keys = |(name, _): &&(SecretName, Secret)| name.kind == SecretKind::MasterKey;
    assert_eq!(stored.secrets.iter().filter(of_keys).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_leaves_no_record() {
    let (a, b) = pair().await;
    a.settled_above(0).await;
    b.settled_above(0).await;
    a.plan_all(Vec::new()).await;
    assert!(a.handle.status(None).await.unwrap().is_empty());
    assert_eq!(stored(&a.stop().await), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_of_the_backend_while_it_is_held() {
    let (a, b) = pair().await;
    let first = a.settled_above(0).await;
    b.settled_above(0).await;
    let is_ready = |view: &View| view.status.generations.iter().any(|g| g.ready);
    a.until(|view| view.status.proven && is_ready(view)).await;
    let held = a.handle.hold().await.unwrap();
    let keys = a.backend.keys().clone();
    let start = Command::Start { compromised: false };
    a.handle.command("peer".into(), start).await.unwrap();
    a.until(|view| view.status.active > Some(first)).await;
    assert_eq!(*a.backend.keys(), keys);
    // Nobody has a plan after all.
    drop(held);
    a.settled_above(first).await;
}
