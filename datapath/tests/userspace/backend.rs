//! Two backends that protect a session between two namespaces.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Prefix;
use datapath::report::{Report, SessionState};
use datapath::settings::{OnExit, Settings, Strip};
use datapath::{Datapath, StartError};

use crate::support::{Namespace, PORT, echo, give_up_in_time, pattern, settings};

/// A namespace and the backend in it.
pub(crate) struct End {
    pub(crate) namespace: Namespace,
    state: tempfile::TempDir,
    pub(crate) peer: &'static str,
    algorithm: Algorithm,
    strip: Strip,
    backend: Option<Datapath>,
}

impl End {
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            strip: self.strip,
            ..settings(self.state.path(), self.peer, self.algorithm)
        }
    }

    pub(crate) fn start(&mut self) {
        self.start_with(self.settings());
    }

    pub(crate) fn start_with(&mut self, settings: Settings) {
        self.backend = Some(
            self.namespace
                .run(move || Datapath::start(settings))
                .unwrap(),
        );
    }

    pub(crate) fn stop(&mut self) {
        if let Some(backend) = self.backend.take() {
            self.namespace.run(move || backend.stop()).unwrap();
        }
    }

    pub(crate) fn report(&mut self) -> Report {
        self.ask(Datapath::report)
    }

    /// Its firewall is the one of the namespace it is asked in.
    pub(crate) fn ask<T: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&Datapath) -> T + Send + 'static,
    ) -> T {
        let backend = self.backend.take().unwrap();
        let asking = move || (ask(&backend), backend);
        let (answer, backend) = self.namespace.run(asking);
        self.backend = Some(backend);
        answer
    }

    /// Counts what arrives with and without TCP-AO, before anything of ours sees it.
    fn count_arrivals(&self, tool: &str) {
        self.namespace.shell(&format!(
            "{tool} -w -t raw -I PREROUTING -p tcp --tcp-option 29 -m comment --comment signed
             {tool} -w -t raw -I PREROUTING -p tcp ! --tcp-option 29 -m comment --comment naked"
        ));
    }

    fn arrivals(&self, tool: &str) -> (u64, u64) {
        let matched = |comment| {
            self.namespace
                .matched(tool, "-t raw -L PREROUTING", comment)
        };
        (matched("signed"), matched("naked"))
    }
}

/// Two ends; neither backend runs yet.
pub(crate) fn ends(algorithm: Algorithm, strip: Strip, v6: bool) -> (End, End) {
    let (one, two) = Namespace::pair();
    let end = |namespace, peer| End {
        namespace,
        state: tempfile::tempdir().unwrap(),
        peer,
        algorithm,
        strip,
        backend: None,
    };
    match v6 {
        false => (end(one, "10.0.0.2"), end(two, "10.0.0.1")),
        true => (end(one, "2001:db8::2"), end(two, "2001:db8::1")),
    }
}

pub(crate) fn listen(end: &End) -> TcpListener {
    end.namespace
        .run(|| TcpListener::bind(("::", PORT)).unwrap())
}

/// Connects to the peer of `end`.
pub(crate) fn connect(end: &End) -> TcpStream {
    let address = SocketAddr::new(end.peer.parse().unwrap(), PORT);
    let connect = move || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let stream = end.namespace.run(connect).unwrap();
    give_up_in_time(&stream);
    stream
}

fn a_transfer_is_signed_and_arrives(algorithm: Algorithm, strip: Strip, v6: bool) {
    let (mut one, mut two) = ends(algorithm, strip, v6);
    let tool = if v6 {
        "ip6tables-legacy"
    } else {
        "iptables-legacy"
    };
    one.count_arrivals(tool);
    two.count_arrivals(tool);
    one.start();
    two.start();
    let listener = listen(&two);
    let echoing = thread::spawn(move || echo(&listener));
    let mut stream = connect(&one);
    let data = pattern(3_000_000);
    let sent = data.clone();
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    echoing.join().unwrap();
    assert!(back == data, "{} octets came back, or others", back.len());

    for end in [&mut one, &mut two] {
        let (signed, naked) = end.arrivals(tool);
        assert!(signed > 1000, "only {signed} signed segments");
        assert_eq!(naked, 0, "unsigned segments on the wire");
        let report = end.report();
        assert_eq!(report.peers.len(), 1);
        assert!(report.peers[0].segments_good > 1000, "{:?}", report.peers);
        assert!(report.peers[0].segments_sent > 1000, "{:?}", report.peers);
        assert!(report.peers[0].drops.is_empty(), "{:?}", report.peers);
        assert_eq!(report.strips, strip == Strip::Always);
        let [session] = &report.sessions[..] else {
            panic!("{:?}", report.sessions)
        };
        assert_eq!((session.current_key, session.rnext_key), (5, 5));
    }
    one.stop();
    two.stop();
}

#[test]
fn ipv4_with_sha_1() {
    a_transfer_is_signed_and_arrives(Algorithm::HmacSha1_96, Strip::Never, false);
}

#[test]
fn ipv4_with_cmac_stripped() {
    a_transfer_is_signed_and_arrives(Algorithm::Aes128Cmac96, Strip::Always, false);
}

#[test]
fn ipv6_with_sha_256_and_the_long_mac() {
    a_transfer_is_signed_and_arrives(Algorithm::HmacSha256_128, Strip::Always, true);
}

#[test]
fn a_restart_under_transfer_keeps_the_session() {
    let (mut one, mut two) = ends(Algorithm::Aes128Cmac96, Strip::Never, false);
    one.start();
    two.start();
    let listener = listen(&two);
    let data = pattern(200_000);
    let total = 40;
    let (progress, progressed) = mpsc::channel();
    let expected = data.clone();
    let reading = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        give_up_in_time(&stream);
        let mut part = vec![0; expected.len()];
        for _ in 0..total {
            stream.read_exact(&mut part).unwrap();
            assert!(part == expected, "the stream is damaged");
            progress.send(()).unwrap();
        }
    });
    let mut stream = connect(&one);
    let (go, gone) = mpsc::channel::<()>();
    let writing = thread::spawn(move || {
        for _ in 0..total {
            gone.recv().unwrap();
            stream.write_all(&data).unwrap();
        }
    });
    let transfer = |parts: usize| {
        for _ in 0..parts {
            go.send(()).unwrap();
        }
    };
    transfer(5);
    progressed.recv().unwrap();
    // Both ends go on from what they recorded; data is under way all the time.
    for end in [&mut one, &mut two] {
        transfer(10);
        end.stop();
        end.start();
        for _ in 0..10 {
            progressed
                .recv_timeout(Duration::from_secs(20))
                .expect("the session stalled");
        }
        let report = end.report();
        let [session] = &report.sessions[..] else {
            panic!("{:?}", report.sessions)
        };
        assert_eq!(session.state, SessionState::Established);
    }
    transfer(15);
    writing.join().unwrap();
    reading.join().unwrap();
    one.stop();
    two.stop();
}

#[test]
fn a_stopped_backend_lets_nothing_through() {
    let (mut one, mut two) = ends(Algorithm::HmacSha1_96, Strip::Never, false);
    one.count_arrivals("iptables-legacy");
    one.start();
    two.start();
    two.stop();
    one.stop();
    // One's daemon goes on trying, and so does two's.
    let _listeners = (listen(&one), listen(&two));
    for end in [&one, &two] {
        let address = SocketAddr::new(end.peer.parse().unwrap(), PORT);
        let attempt = end.namespace.run(move || {
            TcpStream::connect_timeout(&address, Duration::from_millis(1500)).map(drop)
        });
        assert!(attempt.is_err(), "a session came up without the sidecar");
    }
    assert_eq!(
        one.arrivals("iptables-legacy"),
        (0, 0),
        "something left the other end"
    );
}

#[test]
fn on_exit_remove_opens_the_way_again() {
    let (mut one, two) = ends(Algorithm::HmacSha1_96, Strip::Never, false);
    let settings = Settings {
        on_exit: OnExit::Remove,
        ..one.settings()
    };
    let backend = one
        .namespace
        .run(move || Datapath::start(settings))
        .unwrap();
    one.backend = Some(backend);
    one.stop();
    let listener = listen(&two);
    let echoing = thread::spawn(move || echo(&listener));
    drop(connect(&one));
    echoing.join().unwrap();
}

#[test]
fn an_unprotected_session_is_named_and_closed_only_on_request() {
    let (mut one, two) = ends(Algorithm::HmacSha1_96, Strip::Never, false);
    let listener = listen(&two);
    let mut stream = connect(&one);
    let (mut far, _) = listener.accept().unwrap();
    give_up_in_time(&far);

    let refused = one.settings();
    let error = one
        .namespace
        .run(move || Datapath::start(refused).map(drop))
        .unwrap_err();
    assert!(
        matches!(error, StartError::UnprotectedSessions { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("10.0.0.2:179") && text.contains("--replace-sessions"),
        "{text}"
    );
    stream.write_all(b"it lives on").unwrap();
    far.read_exact(&mut [0; 11]).unwrap();

    let forced = Settings {
        replace_sessions: true,
        ..one.settings()
    };
    one.backend = Some(one.namespace.run(move || Datapath::start(forced)).unwrap());
    assert!(
        stream.read(&mut [0; 1]).is_err(),
        "it should have been aborted"
    );
    one.stop();
}

#[test]
fn a_peer_added_later_has_its_unprotected_session_named_too() {
    let (mut one, two) = ends(Algorithm::HmacSha1_96, Strip::Never, false);
    let mut before = one.settings();
    for peer in &mut before.peers {
        peer.remote = Prefix::host("10.0.0.99".parse().unwrap());
    }
    one.backend = Some(one.namespace.run(move || Datapath::start(before)).unwrap());
    let listener = listen(&two);
    let mut stream = connect(&one);
    let (mut far, _) = listener.accept().unwrap();
    give_up_in_time(&far);
    // The guard of the other peer stays.
    one.stop();

    let newcomers = |settings: Settings| {
        let started = one
            .namespace
            .run(move || Datapath::start(settings).map(drop));
        match started.unwrap_err() {
            StartError::UnprotectedSessions { newcomers, .. } => newcomers,
            error => panic!("{error}"),
        }
    };
    let added = one.settings();
    let name = Arc::clone(&added.peers[0].name);
    assert_eq!(newcomers(added), [name]);
    // It has the place of one that was protected, who would be unprotected without it.
    let mut wider = one.settings();
    wider.peers[0].remote = Prefix::new("10.0.0.0".parse().unwrap(), 24).unwrap();
    assert!(newcomers(wider).is_empty());
    // Nobody was protected.
    let elsewhere = tempfile::tempdir().unwrap();
    let first = Settings {
        state_dir: elsewhere.path().to_owned(),
        ..one.settings()
    };
    assert!(newcomers(first).is_empty());
    stream.write_all(b"it lives on").unwrap();
    far.read_exact(&mut [0; 11]).unwrap();
}

#[test]
fn a_second_backend_is_refused_and_changes_nothing() {
    let (mut one, two) = ends(Algorithm::HmacSha1_96, Strip::Never, false);
    one.start();
    let refused = |end: &End, settings: Settings| {
        end.namespace
            .run(move || Datapath::start(settings).map(drop))
            .unwrap_err()
    };

    let error = refused(&one, one.settings());
    assert!(matches!(error, StartError::QueueHeld(_)), "{error}");
    assert!(error.to_string().contains("first_queue"), "{error}");

    let elsewhere = tempfile::tempdir().unwrap();
    let other_queues = Settings {
        first_queue: 900,
        state_dir: elsewhere.path().to_owned(),
        ..one.settings()
    };
    let error = refused(&one, other_queues);
    assert!(matches!(error, StartError::AnotherSidecar), "{error}");

    let same_state = Settings {
        state_dir: one.settings().state_dir,
        ..two.settings()
    };
    let error = refused(&two, same_state);
    assert!(
        error.to_string().contains("in use by another sidecar"),
        "{error}"
    );
    one.stop();
}

#[test]
fn the_last_refusal_the_queues_and_the_macs_are_told() {
    let (mut one, mut two) = ends(Algorithm::HmacSha1_96, Strip::Never, false);
    one.start();
    let mut settings = two.settings();
    settings.peers[0].keys = vec![crate::rollover::key(9)];
    two.start_with(settings);
    let _listener = listen(&two);
    let address = SocketAddr::new(one.peer.parse().unwrap(), PORT);
    let attempt = one
        .namespace
        .run(move || TcpStream::connect_timeout(&address, Duration::from_millis(1500)).map(drop));
    assert!(attempt.is_err(), "a session came up with different keys");
    let report = two.report();
    let last = report.peers[0].last_refused.unwrap();
    assert_eq!((last.reason, last.key_id), ("unknown-key-id", Some(5)));
    assert!(last.ago < Duration::from_secs(10), "{last:?}");
    let report = one.report();
    assert_eq!(report.peers[0].last_refused, None);
    assert!(report.macs >= 1 && report.mac_time > Duration::ZERO);
    assert!(report.mac_time < Duration::from_secs(1), "{report:?}");
    let queues: Vec<_> = report.queues.iter().map(|queue| queue.number).collect();
    assert_eq!(queues, [400, 401, 402]);
    for queue in &report.queues {
        assert_eq!((queue.waiting, queue.dropped), (0, 0));
    }
    for end in [&mut one, &mut two] {
        end.ask(|datapath| datapath.health()).unwrap();
        end.stop();
    }
}
