//! Whatever is refused is counted and logged, also what never gets as far as our own code.

use grpc_api::peer::Limits;
use grpc_api::v1::{ExchangeRequest, View};
use tonic::Code;

use crate::support::{
    GROUPS, LABEL, Log, Pair, RawClient, Recorder, call, pair, partner, self_signed, start,
    tls_connect,
};

const EXCHANGE: &str = "/aosidecar.v1.PeerKeyService/Exchange";

async fn raw(pair: &Pair) -> RawClient {
    let tls = tls_connect(pair.running.address, Some(&pair.client), &GROUPS);
    RawClient::new(tls.await.unwrap()).await
}

#[tokio::test]
async fn calls_that_reach_no_method_count_and_are_logged() {
    let log = Log::begin();
    let limits = Limits {
        calls_per_second: 0,
        calls_burst: 3,
        ..Limits::default()
    };
    let pair = pair(limits);
    let mut client = raw(&pair).await;
    let unknown = client.call("/aosidecar.v1.PeerKeyService/Nothing", ());
    assert_eq!(unknown.await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(log.lines_with("peering refused: a: "), 1, "{log}");
    // A view in the place of a request: its first field is of another type.
    let view = View {
        instance: vec![1; 16],
        ..View::default()
    };
    let undecodable = client.call(EXCHANGE, view);
    assert_eq!(undecodable.await.unwrap_err().code(), Code::InvalidArgument);
    let long = ExchangeRequest {
        label: "x".repeat(33 << 10),
        ..ExchangeRequest::default()
    };
    let oversized = client.call(EXCHANGE, long);
    assert_eq!(oversized.await.unwrap_err().code(), Code::OutOfRange);
    let fourth = client.call("/Nothing", ()).await.unwrap_err();
    assert_eq!(fourth.code(), Code::ResourceExhausted);
    assert_eq!(log.lines_with("a: too many calls"), 1, "{log}");
}

#[tokio::test]
async fn a_flood_of_refusals_is_not_one_of_lines() {
    let log = Log::begin();
    let limits = Limits {
        calls_burst: 100,
        ..Limits::default()
    };
    let pair = pair(limits);
    let mut client = raw(&pair).await;
    for _ in 0..50 {
        client.call("/Nothing", ()).await.unwrap_err();
    }
    let lines = log.lines_with("peering refused");
    assert!((1..25).contains(&lines), "{lines} lines: {log}");
}

#[tokio::test]
async fn partners_with_one_certificate_may_call_as_often_as_all_of_them() {
    let log = Log::begin();
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let known = ["a4", "a6"].map(|name| partner(name, client.pinned(), &[]));
    let limits = Limits {
        calls_per_second: 0,
        calls_burst: 2,
        ..Limits::default()
    };
    let handler = Recorder::default().into();
    let running = start("127.0.0.1:0", &server, known.into(), limits, &handler);
    let (endpoint, trust) = (running.endpoint(), server.pinned());
    for _ in 0..4 {
        call(&endpoint, &client, &trust).await.unwrap();
    }
    call(&endpoint, &client, &trust).await.unwrap_err();
    assert_eq!(handler.calls(), 4);
    let all = "a4 or another of 2 with its certificate";
    assert_eq!(log.lines_with(all), 1, "{log}");
}

#[tokio::test]
async fn the_peering_that_is_refused_is_named() {
    let log = Log::begin();
    let pair = pair(Limits::default());
    let request = ExchangeRequest {
        version: 1,
        label: LABEL.to_owned(),
        view: None,
    };
    let refused = pair.client().await.exchange(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let line = "a, label \"ipv4\": the view is missing";
    assert_eq!(log.lines_with(line), 1, "{log}");
}
