//! Two sidecars call each other: real TCP on the loopback, real TLS, real certificates.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod bad_input;
mod floods;
mod refusals;
mod support;
mod trust;

use std::sync::Arc;
use std::time::{Duration, Instant};

use grpc_api::peer::{
    BindError, CallError, Caller, Handler, Limits, Partner, Partners, PeerServer, Refused, exchange,
};
use keymgr::rollover::message::Message;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::support::{
    LABEL, Log, PATIENCE, call, message, pair, partner, reply, self_signed, start,
};

#[tokio::test]
async fn a_message_arrives_with_its_callers_name_and_is_answered() {
    let pair = pair(Limits::default());
    assert_eq!(pair.call().await.unwrap(), reply());
    let seen = pair.handler.seen.lock().unwrap();
    let (caller, arrived) = &seen[0];
    assert_eq!(*arrived, message());
    assert_eq!(*caller.partners, [Arc::from("a")]);
    assert_eq!(caller.fingerprint, pair.client.fingerprint());
    assert!(caller.address.ip().is_loopback());
}

#[tokio::test]
async fn both_wildcards_are_listened_on_side_by_side() {
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let known = || Arc::new(Partners::new(vec![partner("a", client.pinned(), &[])]));
    let bind = |listen: &str| {
        let listen = [listen.parse().unwrap()];
        PeerServer::bind(&listen, &server.identity, known(), Limits::default())
    };
    let v4 = bind("0.0.0.0:0").unwrap();
    let port = v4.addresses()[0].port();
    drop(v4);
    let both = [format!("0.0.0.0:{port}"), format!("[::]:{port}")].map(|a| a.parse().unwrap());
    let running = PeerServer::bind(&both, &server.identity, known(), Limits::default()).unwrap();
    // Taken is taken, and the address is named.
    let taken = bind(&format!("[::]:{port}")).unwrap_err();
    assert!(matches!(taken, BindError::Listen { address, .. } if address == both[1]));
    assert!(
        taken.to_string().contains(&format!("[::]:{port}")),
        "{taken}"
    );

    let handler = Arc::new(support::Recorder::default());
    let serving = tokio::spawn(running.serve(Arc::clone(&handler), std::future::pending()));
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let endpoint = format!("{host}:{port}").parse().unwrap();
        assert_eq!(
            call(&endpoint, &client, &server.pinned()).await.unwrap(),
            reply()
        );
    }
    let callers: Vec<bool> = handler
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|(caller, _)| caller.address.is_ipv4())
        .collect();
    assert_eq!(callers[..2], [true, false]);
    serving.abort();
}

#[tokio::test]
async fn partners_are_replaced_while_serving() {
    let (old, new, server) = (
        self_signed("a", 2099),
        self_signed("a", 2099),
        self_signed("b", 2099),
    );
    let known = |end: &support::End| -> Vec<Partner> { vec![partner("a", end.pinned(), &[])] };
    let partners = Arc::new(Partners::new(known(&old)));
    let listen = ["127.0.0.1:0".parse().unwrap()];
    let bound = PeerServer::bind(
        &listen,
        &server.identity,
        Arc::clone(&partners),
        Limits::default(),
    );
    let bound = bound.unwrap();
    let endpoint = bound.addresses()[0].into();
    let handler = Arc::new(support::Recorder::default());
    let serving = tokio::spawn(bound.serve(handler, std::future::pending()));
    assert!(call(&endpoint, &old, &server.pinned()).await.is_ok());
    assert!(call(&endpoint, &new, &server.pinned()).await.is_err());
    partners.replace(known(&new));
    assert!(call(&endpoint, &old, &server.pinned()).await.is_err());
    assert!(call(&endpoint, &new, &server.pinned()).await.is_ok());
    serving.abort();
}

/// Answers when it is let.
struct Slow {
    entered: Semaphore,
    may_answer: Semaphore,
}

impl Slow {
    fn new() -> Arc<Self> {
        let (entered, may_answer) = (Semaphore::new(0), Semaphore::new(0));
        Arc::new(Self {
            entered,
            may_answer,
        })
    }
}

impl Handler for Slow {
    async fn exchange(&self, _: Caller, _: Message) -> Result<Message, Refused> {
        self.entered.add_permits(1);
        let _permit = self.may_answer.acquire().await.unwrap();
        Ok(reply())
    }
}

#[tokio::test]
async fn a_stopping_server_completes_the_calls_in_progress() {
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let handler = Slow::new();
    let known = vec![partner("a", client.pinned(), &[])];
    let running = start("127.0.0.1:0", &server, known, Limits::default(), &handler);
    let endpoint = running.endpoint();
    let trust = server.pinned();
    let in_progress = call(&endpoint, &client, &trust);
    let stopping = async {
        let _entered = handler.entered.acquire().await.unwrap();
        let stopped = tokio::spawn(running.stop());
        // It has stopped listening once a connection is refused.
        while tokio::net::TcpStream::connect((endpoint.host(), endpoint.port()))
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
        handler.may_answer.add_permits(1);
        stopped.await.unwrap();
    };
    let both = async { tokio::join!(in_progress, stopping) };
    let (answer, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert_eq!(answer.unwrap(), reply());
    let refused = call(&endpoint, &client, &trust).await.unwrap_err();
    assert!(
        matches!(refused, CallError::Unreachable { .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn a_handler_that_hangs_costs_the_call_only() {
    let log = Log::begin();
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let handler = Slow::new();
    let limits = Limits {
        call: Duration::from_millis(200),
        ..Limits::default()
    };
    let known = vec![partner("a", client.pinned(), &[])];
    let running = start("127.0.0.1:0", &server, known, limits, &handler);
    let error = call(&running.endpoint(), &client, &server.pinned())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CallError::Rejected(why) if why.contains("too slow")),
        "{error}"
    );
    assert_eq!(log.lines_with("a, label \"ipv4\": too slow"), 1, "{log}");
    handler.may_answer.add_permits(1);
    assert!(
        call(&running.endpoint(), &client, &server.pinned())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap().into();
    let own = self_signed("a", 2099);
    let begun = Instant::now();
    let timeout = Duration::from_millis(300);
    let error = exchange(
        &endpoint,
        &own.identity,
        &own.pinned(),
        LABEL,
        &message(),
        timeout,
    )
    .await;
    let error = error.unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn what_the_handler_refuses_is_told_with_its_reason() {
    struct Refuses;
    impl Handler for Refuses {
        async fn exchange(&self, _: Caller, _: Message) -> Result<Message, Refused> {
            Err(Refused::Invalid(
                "number 9 is far off\nand this is another line".into(),
            ))
        }
    }
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let known = vec![partner("a", client.pinned(), &[])];
    let running = start(
        "127.0.0.1:0",
        &server,
        known,
        Limits::default(),
        &Arc::new(Refuses),
    );
    let error = call(&running.endpoint(), &client, &server.pinned())
        .await
        .unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.contains("number 9 is far off") && !shown.contains('\n'),
        "{shown}"
    );
}
