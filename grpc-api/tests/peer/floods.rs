//! Those who say nothing, or say it slowly, keep nobody out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use grpc_api::peer::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::bad_input::assert_closes;
use crate::support::{
    GROUPS, Log, PATIENCE, Recorder, call, pair, partner, reply, self_signed, start, tls_connect,
    tls_from,
};

const FLOOD: usize = 10_000;

/// How long a peer may have to wait for an answer in the flood.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

/// Connects from one of `127.1.0.0/16` and says nothing.
async fn silent(server: SocketAddr, number: usize) -> TcpStream {
    let [.., high, low] = (number as u32 / 16).to_be_bytes();
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0)))
        .unwrap();
    socket.connect(server).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_connections_keep_no_peer_out() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(
        hard > FLOOD as u64 + 2000,
        "this test wants more than {hard} descriptors"
    );

    let (at_home, roaming, server) = (
        self_signed("a", 2099),
        self_signed("c", 2099),
        self_signed("b", 2099),
    );
    let handler = Arc::new(Recorder::default());
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let known = vec![
        partner("a", at_home.pinned(), &[loopback]),
        partner("c", roaming.pinned(), &[]),
    ];
    // The partners call without a pause here.
    let limits = Limits {
        calls_burst: u32::MAX,
        ..Limits::default()
    };
    let running = start("0.0.0.0:0", &server, known, limits, &handler);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, running.address.port()));

    let flood = tokio::spawn(async move {
        let mut connections = Vec::with_capacity(FLOOD);
        while connections.len() < FLOOD {
            let mut some = JoinSet::new();
            for number in connections.len()..connections.len() + 100 {
                some.spawn(silent(at, number));
            }
            connections.extend(some.join_all().await);
        }
        connections
    });
    let served = async |end, from| {
        let begun = Instant::now();
        let endpoint = SocketAddr::from((from, at.port())).into();
        assert_eq!(
            call(&endpoint, end, &server.pinned()).await.unwrap(),
            reply()
        );
        assert!(
            begun.elapsed() < SERVED_WITHIN,
            "waited {:?}",
            begun.elapsed()
        );
    };
    let mut during = 0;
    while !flood.is_finished() {
        served(&at_home, Ipv4Addr::LOCALHOST).await;
        served_as_stranger(&roaming, at).await;
        during += 1;
    }
    assert!(during > 0);
    let connections = flood.await.unwrap();
    assert_eq!(connections.len(), FLOOD);
    served(&at_home, Ipv4Addr::LOCALHOST).await;
    served_as_stranger(&roaming, at).await;
}

/// A partner that calls from where nobody expects it is served as well.
async fn served_as_stranger(end: &crate::support::End, at: SocketAddr) {
    let begun = Instant::now();
    let tls = tls_from(Ipv4Addr::new(127, 2, 0, 1), at, end)
        .await
        .unwrap();
    let mut client = crate::support::grpc(tls).await;
    let view = grpc_api::v1::View {
        instance: vec![1; 16],
        ..Default::default()
    };
    let request = grpc_api::v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: Some(view),
    };
    client.exchange(request).await.unwrap();
    assert!(
        begun.elapsed() < SERVED_WITHIN,
        "waited {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn partners_that_all_call_at_once_wait_for_room() {
    let (client, server) = (Arc::new(self_signed("a", 2099)), self_signed("b", 2099));
    let handler = Arc::new(Recorder::default());
    let known = vec![partner("a", client.pinned(), &[Ipv4Addr::LOCALHOST.into()])];
    let limits = Limits {
        connections: 1,
        pending_per_source: 20,
        ..Limits::default()
    };
    let running = start("127.0.0.1:0", &server, known, limits, &handler);
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let (at, own, trust) = (running.endpoint(), Arc::clone(&client), server.pinned());
        calls.spawn(async move { call(&at, &own, &trust).await });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap(), reply());
    }
}

#[tokio::test]
async fn those_that_wait_for_room_hold_up_nobody_and_are_given_up_in_time() {
    let log = Log::begin();
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let handler = Arc::new(Recorder::default());
    let known = vec![partner("a", client.pinned(), &[Ipv4Addr::LOCALHOST.into()])];
    let limits = Limits {
        connections: 1,
        handshake: Duration::from_secs(2),
        first_call: PATIENCE,
        ..Limits::default()
    };
    let running = start("127.0.0.1:0", &server, known, limits, &handler);
    let idle = tls_connect(running.address, Some(&client), &GROUPS);
    let idle = idle.await.unwrap();
    let mut waiting = TcpStream::connect(running.address).await.unwrap();
    // Behind it, and yet refused long before it is given up.
    let begun = Instant::now();
    let socket = TcpSocket::new_v4().unwrap();
    let elsewhere = SocketAddr::from((Ipv4Addr::new(127, 3, 0, 1), 0));
    socket.bind(elsewhere).unwrap();
    let mut stranger = socket.connect(running.address).await.unwrap();
    assert_closes(&mut stranger, PATIENCE).await;
    assert!(begun.elapsed() < SERVED_WITHIN, "{:?}", begun.elapsed());
    assert_closes(&mut waiting, PATIENCE).await;
    // One line of the stranger, one of the partner's address.
    assert_eq!(log.lines_with("too many connections at once"), 2, "{log}");
    drop(idle);
    let served = call(&running.endpoint(), &client, &server.pinned()).await;
    assert_eq!(served.unwrap(), reply());
}

#[tokio::test]
async fn a_partner_that_connects_and_calls_nothing_is_cut_off() {
    let log = Log::begin();
    let pair = pair(Limits {
        first_call: Duration::from_millis(200),
        connection: Duration::from_secs(60),
        ..Limits::default()
    });
    let connect = || tls_connect(pair.running.address, Some(&pair.client), &GROUPS);
    let mut silent = connect().await.unwrap();
    assert_closes(&mut silent, PATIENCE).await;
    assert_eq!(log.lines_with("a: no call within 200ms"), 1, "{log}");
    let mut polite = connect().await.unwrap();
    polite.write_all(PREFACE).await.unwrap();
    assert_closes(&mut polite, PATIENCE).await;
    pair.assert_serves().await;
}

#[tokio::test]
async fn failing_strangers_hide_no_partner_from_the_log() {
    let log = Log::begin();
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let handler = Arc::new(Recorder::default());
    let known = vec![partner("a", client.pinned(), &[Ipv4Addr::LOCALHOST.into()])];
    let running = start("127.0.0.1:0", &server, known, Limits::default(), &handler);
    let misconfigured = self_signed("a", 2099);
    for source in [Ipv4Addr::new(127, 4, 0, 1), Ipv4Addr::LOCALHOST] {
        // In TLS 1.3 the client is done before it hears that it is refused.
        let tls = tls_from(source, running.address, &misconfigured).await;
        if let Ok(mut tls) = tls {
            assert_closes(&mut tls, PATIENCE).await;
        }
        log.line_with(&format!("from={source}:")).await;
    }
}

/// Sends `octets` one by one for as long as the far end takes them.
async fn dribble(stream: impl AsyncRead + AsyncWrite, octets: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(Box::pin(stream));
    let slowly = async {
        for octet in octets.iter().cycle() {
            if writer.write_all(&[*octet]).await.is_err() || writer.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = assert_closes(&mut reader, PATIENCE) => {}
        () = slowly => {}
    }
}

fn impatient() -> Limits {
    let soon = Duration::from_millis(300);
    Limits {
        handshake: soon,
        connection: soon,
        call: soon,
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_handshake_in_single_octets_is_cut_off() {
    let pair = pair(impatient());
    let tcp = TcpStream::connect(pair.running.address).await.unwrap();
    // The beginning of a record of 512 octets, which never ends.
    let hello = [
        &[
            0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
        ][..],
        &[0; 501],
    ];
    dribble(tcp, &hello.concat()).await;
    pair.assert_serves().await;
}

/// The preface and SETTINGS of an HTTP/2 client (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn a_partner_that_begins_http_slowly_is_cut_off() {
    let pair = pair(impatient());
    let tls = tls_connect(pair.running.address, Some(&pair.client), &GROUPS)
        .await
        .unwrap();
    dribble(tls, &PREFACE[..20]).await;
    // Not a word.
    let mut tls = tls_connect(pair.running.address, Some(&pair.client), &GROUPS)
        .await
        .unwrap();
    assert_closes(&mut tls, PATIENCE).await;
    pair.assert_serves().await;
}

#[tokio::test]
async fn a_call_whose_body_never_comes_is_cut_off() {
    let pair = pair(impatient());
    let mut tls = tls_connect(pair.running.address, Some(&pair.client), &GROUPS)
        .await
        .unwrap();
    tls.write_all(PREFACE).await.unwrap();
    tls.write_all(&headers("/aosidecar.v1.PeerKeyService/Exchange"))
        .await
        .unwrap();
    tls.flush().await.unwrap();
    assert_closes(&mut tls, PATIENCE).await;
    assert_eq!(pair.handler.calls(), 0);
    pair.assert_serves().await;
}

/// A HEADERS frame that opens stream 1 with a POST to `path` (RFC 9113 §6.2, RFC 7541 §6).
fn headers(path: &str) -> Vec<u8> {
    // :method POST and :scheme https from the static table; :path, :authority and content-type as
    // literals with names from it.
    let mut block = vec![0x83, 0x87];
    for (name, value) in [
        (&[0x04][..], path),
        (&[0x01], "a"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    // END_HEADERS, and no END_STREAM.
    let mut frame = vec![0, 0, block.len() as u8, 0x01, 0x04, 0, 0, 0, 1];
    frame.extend(block);
    frame
}
