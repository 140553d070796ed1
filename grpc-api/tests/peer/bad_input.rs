//! Bad input is refused with a reason, reaches no handler, and costs nobody else anything.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grpc_api::peer::{CallError, Limits};
use grpc_api::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::Code;

use crate::support::{PATIENCE, call, pair, reply};

fn view() -> v1::View {
    v1::View {
        instance: vec![1; 16],
        ..v1::View::default()
    }
}

#[tokio::test]
async fn an_unknown_version_is_answered_with_those_served() {
    let pair = pair(Limits::default());
    let mut client = pair.client().await;
    for version in [0, 2, u32::MAX] {
        let request = v1::ExchangeRequest {
            version,
            label: "ipv4".to_owned(),
            view: Some(view()),
        };
        let status = client.exchange(request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.metadata().get("ao-versions").unwrap(), "1-1");
        assert!(
            status.message().contains(&format!("version {version} ")),
            "{status}"
        );
    }
    assert_eq!(pair.handler.calls(), 0);
    let request = v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: Some(view()),
    };
    assert_eq!(
        client.exchange(request).await.unwrap().into_inner().version,
        1
    );
    assert_eq!(pair.handler.calls(), 1);
}

#[tokio::test]
async fn a_malformed_view_is_named_and_not_delivered() {
    let pair = pair(Limits::default());
    let mut client = pair.client().await;
    let short = v1::View {
        instance: vec![1; 15],
        ..view()
    };
    for (view, reason) in [
        (None, "the view is missing"),
        (Some(short), "15 octets instead of 16"),
    ] {
        let status = client
            .exchange(v1::ExchangeRequest {
                version: 1,
                view,
                label: "ipv4".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(reason), "{status}");
    }
    assert_eq!(pair.handler.calls(), 0);
    pair.assert_serves().await;
}

#[tokio::test]
async fn an_oversized_message_is_refused() {
    let pair = pair(Limits::default());
    let mut client = pair.client().await;
    let sized = |octets| v1::View {
        yours: vec![0; octets],
        ..view()
    };
    let request = v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: Some(sized(33 << 10)),
    };
    let status = client.exchange(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    // One that fits is read, and refused for what it is.
    let request = v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: Some(sized(31 << 10)),
    };
    let status = client.exchange(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(pair.handler.calls(), 0);
    pair.assert_serves().await;
}

#[tokio::test]
async fn too_many_calls_are_refused_until_later() {
    let limits = Limits {
        calls_per_second: 1,
        calls_burst: 3,
        ..Limits::default()
    };
    let pair = pair(limits);
    let mut client = pair.client().await;
    let request = || v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: Some(view()),
    };
    for _ in 0..3 {
        client.exchange(request()).await.unwrap();
    }
    let status = client.exchange(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let error = pair.call().await.unwrap_err();
    assert!(
        matches!(&error, CallError::Rejected(why) if why.contains("too many")),
        "{error}"
    );
    assert_eq!(pair.handler.calls(), 3);
}

#[tokio::test]
async fn tls_1_2_is_refused_with_its_alert() {
    let pair = pair(Limits::default());
    let mut tcp = TcpStream::connect(pair.running.address).await.unwrap();
    tcp.write_all(&tls12_client_hello()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, tcp.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    // One record: alert, fatal, protocol_version (RFC 8446 §6).
    assert_eq!(answer, [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 70]);
    pair.assert_serves().await;
}

/// What a client that knows nothing later than TLS 1.2 begins with (RFC 5246 §7.4.1.2).
fn tls12_client_hello() -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x5a; 32]);
    // No session; ECDHE-ECDSA with AES-128-GCM and AES-256-GCM; no compression.
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2c, 1, 0]);
    // supported_groups: x25519; signature_algorithms: ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let length = hello.len() as u8;
    let mut record = vec![0x16, 0x03, 0x01, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn garbage_ends_its_own_connection() {
    let pair = pair(Limits::default());
    let noise: Vec<u8> = (0..5000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let http1 = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    // A record that announces more than any may have.
    let record = vec![0x16, 0x03, 0x01, 0xff, 0xff, 1, 2, 3];
    for garbage in [noise, http1, record] {
        let mut tcp = TcpStream::connect(pair.running.address).await.unwrap();
        // The server may close before it has taken everything.
        let _ = tcp.write_all(&garbage).await;
        assert_closes(&mut tcp, PATIENCE).await;
    }
    pair.assert_serves().await;
    assert_eq!(pair.handler.calls(), 1);
}

/// Waits until the far end closes or resets.
pub(crate) async fn assert_closes(stream: &mut (impl AsyncReadExt + Unpin), within: Duration) {
    let mut ignored = [0; 1024];
    let closed = async { while matches!(stream.read(&mut ignored).await, Ok(1..)) {} };
    timeout(within, closed)
        .await
        .expect("the server keeps the connection open");
}

/// Octets of both directions of a connection.
#[derive(Clone, Default)]
struct Recording {
    to_server: Arc<Mutex<Vec<u8>>>,
    to_client: Arc<Mutex<Vec<u8>>>,
}

/// Passes one connection on to `server` and records it.
async fn record(server: SocketAddr) -> (SocketAddr, Recording) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let recording = Recording::default();
    let Recording {
        to_server,
        to_client,
    } = recording.clone();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(server).await.unwrap();
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        tokio::spawn(pass(client_read, server_write, to_server));
        pass(server_read, client_write, to_client).await;
    });
    (address, recording)
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    copy: Arc<Mutex<Vec<u8>>>,
) {
    let mut buffer = [0; 4096];
    while let Ok(octets @ 1..) = from.read(&mut buffer).await {
        copy.lock().unwrap().extend(&buffer[..octets]);
        if to.write_all(&buffer[..octets]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_replayed_conversation_is_refused_and_ours_uses_the_hybrid_group() {
    let pair = pair(Limits::default());
    let (proxy, recording) = record(pair.running.address).await;
    let answer = call(&proxy.into(), &pair.client, &pair.server.pinned()).await;
    assert_eq!(answer.unwrap(), reply());
    assert_eq!(pair.handler.calls(), 1);

    let to_client = recording.to_client.lock().unwrap().clone();
    assert_eq!(server_group(&to_client), Some(0x11ec), "X25519MLKEM768");

    let replayed = recording.to_server.lock().unwrap().clone();
    assert!(replayed.len() > 2000, "{} octets recorded", replayed.len());
    let mut tcp = TcpStream::connect(pair.running.address).await.unwrap();
    let _ = tcp.write_all(&replayed).await;
    assert_closes(&mut tcp, PATIENCE).await;
    assert_eq!(pair.handler.calls(), 1);
    pair.assert_serves().await;
}

/// The group of the key share in the ServerHello that `octets` begin with (RFC 8446 §4.1.3).
fn server_group(octets: &[u8]) -> Option<u16> {
    let record = octets.get(5..)?;
    // Type and length, version, random; then the session ID, the suite, the compression.
    let session_len = usize::from(*record.get(4 + 2 + 32)?);
    let mut extensions = record.get(4 + 2 + 32 + 1 + session_len + 2 + 1 + 2..)?;
    loop {
        let (header, rest) = extensions.split_at_checked(4)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let (body, rest) = rest.split_at_checked(length)?;
        if header[..2] == [0, 51] {
            return Some(u16::from_be_bytes([body[0], body[1]]));
        }
        extensions = rest;
    }
}
