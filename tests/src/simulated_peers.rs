//! Far ends without hosts: many rollover cores in this process, with the real channel.
//!
//! Each far end has its own identity, port and state machine, as a sidecar has. In place of a
//! datapath there is one that does everything at once and has no sessions, and nothing is stored.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use grpc_api::peer::{
    Caller, Endpoint, Handler, Limits, Partner, Partners, PeerIdentity, PeerServer, Refused, Trust,
    exchange,
};
use keymgr::rollover::message::{Instance, Message};
use keymgr::rollover::{Action, Event, Now, Parameters, Record, Rollover, Status};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::netns::Namespace;
use crate::process::allow_descriptors;

/// Longest time for a call, as the sidecar has it.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The label of the only peering of each: see `peer.proto`.
const FAMILY: &str = "ipv4";
/// Far ends of one sidecar. Dropping them ends them.
#[derive(Debug)]
pub struct SimulatedPeers {
    peers: Vec<Arc<Peer>>,
    /// Runs in the sidecar's namespace.
    _runtime: Runtime,
}

/// The sidecar that far ends talk to.
#[derive(Clone, Debug)]
pub struct FarSidecar {
    /// Where it answers.
    pub address: SocketAddr,
    /// Who it is, as `ao-sidecar identity` prints it.
    pub fingerprint: String,
}

impl SimulatedPeers {
    /// Starts `count` far ends on the loopback of the namespace. They call at once.
    ///
    /// # Panics
    /// When the machine does not let us, or the fingerprint is none.
    #[must_use]
    pub fn start(
        namespace: &Namespace,
        count: usize,
        parameters: &Parameters,
        sidecar: &FarSidecar,
    ) -> Self {
        // A listener each, and connections in both directions.
        allow_descriptors(count * 2);
        let runtime = namespace.runtime();
        let fingerprint = sidecar.fingerprint.parse().expect("a fingerprint");
        let far = Far {
            endpoint: sidecar.address.into(),
            trust: Trust::Pinned(fingerprint),
        };
        let far = Arc::new(far);
        let parameters = parameters.clone();
        // Sockets are of the namespace of the thread that makes them.
        let peers = runtime.spawn(async move {
            let peer = |_| Peer::start(parameters.clone(), Arc::clone(&far));
            (0..count).map(peer).collect()
        });
        let peers = runtime.block_on(peers).expect("far ends that start");
        Self {
            peers,
            _runtime: runtime,
        }
    }

    /// Where each answers, and its fingerprint.
    pub fn far_ends(&self) -> impl Iterator<Item = (String, String)> {
        let far_end = |peer: &Arc<Peer>| {
            let fingerprint = peer.identity.fingerprint().to_string();
            (peer.endpoint.to_string(), fingerprint)
        };
        self.peers.iter().map(far_end)
    }

    /// How each stands.
    pub fn statuses(&self) -> impl Iterator<Item = Status> {
        self.peers.iter().map(|peer| peer.core().status(peer.now()))
    }
}

/// The one that all far ends talk to.
struct Far {
    endpoint: Endpoint,
    trust: Trust,
}

/// A far end.
struct Peer {
    core: Mutex<Rollover>,
    /// Told when the core may have another deadline.
    moved: Notify,
    began: Instant,
    identity: PeerIdentity,
    endpoint: Endpoint,
    far: Arc<Far>,
}

impl Peer {
    fn start(parameters: Parameters, far: Arc<Far>) -> Arc<Self> {
        let identity = new_identity();
        let partner = Partner {
            name: "sidecar".into(),
            trust: far.trust.clone(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
        };
        let server = PeerServer::bind(
            &[(Ipv4Addr::LOCALHOST, 0).into()],
            &identity,
            Arc::new(Partners::new(vec![partner])),
            Limits::default(),
        )
        .expect("listen for the sidecar");
        let mut instance = Instance([0; 16]);
        random(&mut instance.0);
        let began = Instant::now();
        let core = Rollover::new(parameters, instance, Record::default(), now_since(began));
        let peer = Arc::new(Self {
            core: Mutex::new(core),
            moved: Notify::new(),
            began,
            identity,
            endpoint: server.addresses()[0].into(),
            far,
        });
        let door = Arc::new(Door(Arc::clone(&peer)));
        tokio::spawn(server.serve(door, std::future::pending()));
        tokio::spawn(Arc::clone(&peer).keep_time());
        peer
    }

    fn core(&self) -> MutexGuard<'_, Rollover> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        now_since(self.began)
    }

    async fn keep_time(self: Arc<Self>) {
        loop {
            let tick = self.core().next_tick();
            let due = async {
                match tick {
                    Some(tick) => sleep_until(self.began + tick).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => drop(self.take(Event::Tick)),
                () = self.moved.notified() => {}
            }
        }
    }

    /// Takes an event, and all that the backend makes of it. The answer, if it asks for one.
    fn take(self: &Arc<Self>, event: Event) -> Option<Result<Message, String>> {
        let mut core = self.core();
        let mut reply = None;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in core.handle(self.now(), event, &mut random) {
                match action {
                    Action::Install { number, .. } => events.push_back(Event::Installed { number }),
                    Action::Select { number, .. } => events.push_back(Event::Selected { number }),
                    Action::Delete { number, .. } => events.push_back(Event::Deleted { number }),
                    Action::Observe { .. } => events.push_back(Event::Observed {
                        sessions: Vec::new(),
                    }),
                    Action::Call(message) => drop(tokio::spawn(Arc::clone(self).call(message))),
                    Action::Reply(message) => reply = Some(Ok(message)),
                    Action::Reject(reason) => reply = Some(Err(reason)),
                    Action::Refused(_) | Action::Tell(_) => {}
                }
            }
        }
        drop(core);
        self.moved.notify_one();
        reply
    }

    async fn call(self: Arc<Self>, message: Message) {
        let Far { endpoint, trust } = &*self.far;
        let answer = exchange(
            endpoint,
            &self.identity,
            trust,
            FAMILY,
            &message,
            CALL_TIMEOUT,
        )
        .await;
        self.take(match answer {
            Ok(message) => Event::Response { message },
            Err(failure) => Event::CallFailed {
                reason: failure.to_string(),
            },
        });
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Peer").field(&self.endpoint).finish()
    }
}

/// Where the sidecar calls.
struct Door(Arc<Peer>);

impl Handler for Door {
    async fn exchange(&self, _: Caller, message: Message) -> Result<Message, Refused> {
        let answer = self.0.take(Event::Request { message });
        let answer = answer.expect("an answer to every request");
        answer.map_err(Refused::Invalid)
    }
}

fn new_identity() -> PeerIdentity {
    let made = rcgen::generate_simple_self_signed(["far-end".to_owned()]).expect("a certificate");
    let key = made.signing_key.serialize_der();
    PeerIdentity::new(vec![made.cert.der().to_vec()], &key).expect("an identity")
}

fn now_since(began: Instant) -> Now {
    Now {
        steady: began.elapsed(),
        wall: SystemTime::now(),
    }
}

fn random(octets: &mut [u8]) {
    getrandom::fill(octets).expect("random numbers");
}
