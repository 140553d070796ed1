//! Connections that are many, silent, or never read.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::support::{PATIENCE, Raw, Served, call};

/// Until the connection is closed from the other side.
async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut octets = [0; 1024];
    let end = async {
        // A reset is an end, too.
        while stream.read(&mut octets).await.is_ok_and(|read| read > 0) {}
    };
    timeout(PATIENCE, end).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_takes_no_more_than_its_connections() {
    let served = Served::start();
    let mut held = Vec::new();
    for _ in 0..64 {
        let channel = served.user("operator").await;
        assert_eq!(
            call(channel.clone(), "GetStatus", Vec::new()).await.0,
            Code::Ok
        );
        held.push(channel);
    }
    let one_more = served.user("operator").await;
    let refused = call(one_more, "GetStatus", Vec::new()).await;
    let reason = "64 connections of this caller are open already".to_owned();
    assert_eq!(refused, (Code::ResourceExhausted, reason));
    served.still_serves().await;
    drop(held);
    let again = async {
        while call(served.user("operator").await, "GetStatus", Vec::new())
            .await
            .0
            != Code::Ok
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_keep_their_places() {
    let served = Served::start();
    // 16 calls on a connection, 64 of a caller; each answer is larger than what the connection
    // takes unread.
    let mut held = Vec::new();
    for _ in 0..4 {
        let channel = served.user("viewer").await;
        for _ in 0..16 {
            held.push(begin(channel.clone()).await.unwrap());
        }
    }
    let refused = begin(served.user("viewer").await).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(begin(served.user("operator").await).await.is_ok());
    drop(held);
    let again = async {
        while begin(served.user("viewer").await).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    served.stop().await;
}

/// Asks for a large answer, and does not read it.
async fn begin(channel: Channel) -> Result<Streaming<Vec<u8>>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_static("/aosidecar.v1.OperatorService/GetConfig");
    let answer = grpc.server_streaming(Request::new(Vec::new()), path, Raw);
    Ok(answer.await?.into_inner())
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed() {
    let served = Served::start();
    let mut unix = UnixStream::connect(served.socket()).await.unwrap();
    closed(&mut unix).await;
    let mut tcp = TcpStream::connect(served.address()).await.unwrap();
    closed(&mut tcp).await;
    // The beginning of HTTP/2, then silence.
    let mut unix = UnixStream::connect(served.socket()).await.unwrap();
    unix.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    closed(&mut unix).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_nobody_out() {
    let served = Served::start();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(served.address()).await.unwrap());
    }
    served.still_serves().await;
    // Strangers on the Unix socket are told that they may not, and more of them are closed.
    let mut strangers = Vec::new();
    for _ in 0..64 {
        strangers.push(served.try_user("nobody").await);
    }
    served.still_serves().await;
    served.stop().await;
}
