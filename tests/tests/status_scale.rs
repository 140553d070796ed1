//! `aoctl status` of a sidecar with a thousand peers and two thousand sessions. In a file of its
//! own, so that it runs alone.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ao_tests::process::allow_descriptors;
use ao_tests::progress;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::{INTERFACE, Lan};
use ao_tests::wait;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

const PEERS: u32 = 1000;
const SESSIONS_EACH: u32 = 2;
const SESSIONS: u32 = PEERS * SESSIONS_EACH;

/// How long an operator waits for `aoctl status`, from starting the program to its end.
const STATUS: Duration = Duration::from_millis(50);
/// How often it is asked for.
const ROUNDS: usize = 21;
/// How long the sessions may take to come up.
const COMING_UP: Duration = Duration::from_secs(60);

#[test]
fn status_answers_at_once_with_a_thousand_peers_and_two_thousand_sessions() {
    let lan = Lan::new();
    let far_addresses = lan.b.namespace.runtime();
    for address in (0..PEERS).map(far_address) {
        lan.b
            .namespace
            .ip(&format!("addr add {address}/16 dev {INTERFACE}"));
    }
    lan.a
        .namespace
        .ip(&format!("route add {} dev {INTERFACE}", "10.1.0.0/16"));
    let key = Key::default();
    let peers: Vec<PeerConfig> = (0..PEERS)
        .map(|index| PeerConfig::new(far_address(index).to_string(), key.clone()))
        .collect();
    let begun = Instant::now();
    let near = Sidecar::start_with_peers(&lan.a.namespace, &peers);
    progress!("{PEERS} peers: ready after {:?}", begun.elapsed());
    let back = PeerConfig::new(lan.a.v4.to_string(), key.mirrored());
    let _far = Sidecar::start_with_peers(&lan.b.namespace, &[back]);

    allow_descriptors(2 * SESSIONS as usize);
    let begun = Instant::now();
    let server = lan.a.namespace.runtime();
    let (listening, listens) = oneshot::channel();
    let accepted: JoinHandle<io::Result<Vec<TcpStream>>> =
        server.spawn(accept((lan.a.v4, 179).into(), listening));
    server.block_on(listens).expect("a listener");
    let opened = far_addresses.block_on(open(SocketAddr::from((lan.a.v4, 179))));
    let accepted = server
        .block_on(accepted)
        .expect("a task")
        .expect("sessions");
    wait::until("all sessions", COMING_UP, || {
        let status = near.ask("status");
        let peers = status["peers"].as_array().expect("peers");
        let sessions = |peer: &serde_json::Value| peer["sessions"].as_u64().unwrap_or(0);
        peers.iter().map(sessions).sum::<u64>() == u64::from(SESSIONS)
    });
    progress!("{SESSIONS} sessions after {:?}", begun.elapsed());

    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let shown = near.operate(&["status"]).expect("the status");
            let took = begun.elapsed();
            assert!(shown.lines().count() > PEERS as usize, "{shown}");
            took
        })
        .collect();
    times.sort();
    let median = times[ROUNDS / 2];
    progress!(
        "aoctl status: median {median:?}, {:?} to {:?}",
        times[0],
        times[ROUNDS - 1]
    );
    assert!(median <= STATUS, "aoctl status took {median:?}");
    drop((opened, accepted));
}

fn far_address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + index)
}

/// Takes as many as there are to be.
async fn accept(at: SocketAddr, listening: oneshot::Sender<()>) -> io::Result<Vec<TcpStream>> {
    let listener = TcpListener::bind(at).await?;
    let _ = listening.send(());
    let mut streams = Vec::new();
    while streams.len() < SESSIONS as usize {
        streams.push(listener.accept().await?.0);
    }
    Ok(streams)
}

/// Sessions from each address, as many at once as a listener's queue takes.
async fn open(to: SocketAddr) -> Vec<TcpStream> {
    const AT_ONCE: usize = 64;
    let mut streams = Vec::new();
    let mut opening = JoinSet::new();
    for index in 0..SESSIONS {
        let from = IpAddr::from(far_address(index / SESSIONS_EACH));
        opening.spawn(async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            socket.connect(to).await
        });
        if opening.len() >= AT_ONCE {
            let opened = opening.join_next().await.expect("one under way");
            streams.push(opened.expect("a task").expect("a session"));
        }
    }
    while let Some(opened) = opening.join_next().await {
        streams.push(opened.expect("a task").expect("a session"));
    }
    streams
}
