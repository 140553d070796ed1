//! Who is answered, and how often.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use grpc_api::operator::EventLog;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::openmetrics::parse;
use super::world::{World, key_change};
use crate::metrics::Endpoint;
use crate::metrics::endpoint::{CONNECTION_TIMEOUT, MAX_CONNECTIONS, PAGE_AGE, REQUEST_TIMEOUT};

/// An endpoint that serves `world`.
struct Server {
    address: SocketAddr,
    world: Arc<World>,
    log: EventLog,
    _serving: Aborted,
}

/// Ends with its owner.
struct Aborted(JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    fn start(world: World) -> Self {
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, world, log) = (
            endpoint.address().unwrap(),
            Arc::new(world),
            EventLog::new(),
        );
        let (source, control) = (Arc::clone(&world), Arc::clone(&world));
        let serving = endpoint.serve(source, control, log.clone(), std::future::pending());
        Self {
            address,
            world,
            log,
            _serving: Aborted(tokio::spawn(serving)),
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request and reads until the other end closes.
    async fn send(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        read(stream).await
    }

    async fn ask(&self, method: &str, path: &str) -> String {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: sidecar\r\n\r\n");
        self.send(request.as_bytes()).await
    }

    fn asked(&self) -> usize {
        self.world.asked.load(Ordering::Relaxed)
    }
}

async fn read(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends an answer, too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_scraper_gets_the_page() {
    let server = Server::start(World::example());
    key_change(&server.log, "as64502", Duration::from_secs(1));
    let answer = server.ask("GET", "/metrics").await;
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(kind), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    parse(page);
}

#[tokio::test]
async fn head_has_no_body() {
    let server = Server::start(World::example());
    let answer = server.ask("HEAD", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn nothing_else_is_there() {
    let server = Server::start(World::example());
    for path in ["/", "/metrics/", "/metricss", "/%6detrics", "*"] {
        let answer = server.ask("GET", path).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let answer = server.ask(method, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
        assert!(answer.contains("allow: GET, HEAD"), "{answer}");
    }
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let server = Server::start(World::example());
    let large = format!(
        "GET /metrics HTTP/1.1\r\nHost: sidecar\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let many = format!(
        "GET /metrics HTTP/1.1\r\nHost: sidecar\r\n{}\r\n",
        "X: y\r\n".repeat(100)
    );
    let hostile: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"\r\n\0\xff\xfe\r\n\r\n",
        large.as_bytes(),
        many.as_bytes(),
    ];
    for request in hostile {
        let start = String::from_utf8_lossy(&request[..request.len().min(20)]);
        let answer = server.send(request).await;
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused, "{start}: {answer}");
    }
    assert_eq!(server.asked(), 0);
    let answer = server.ask("GET", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn however_many_ask_the_daemon_is_asked_once_a_second() {
    let server = Arc::new(Server::start(World::example()));
    let begun = Instant::now();
    let mut scrapers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let server = Arc::clone(&server);
        scrapers.spawn(async move { server.ask("GET", "/metrics").await });
    }
    while let Some(answer) = scrapers.join_next().await {
        assert!(answer.unwrap().starts_with("HTTP/1.1 200 "));
    }
    let pages = begun.elapsed().as_millis() / PAGE_AGE.as_millis() + 1;
    assert!(server.asked() as u128 <= pages, "{}", server.asked());
    sleep(PAGE_AGE).await;
    let before = server.asked();
    server.ask("GET", "/metrics").await;
    assert_eq!(server.asked(), before + 1);
}

#[tokio::test]
async fn scrapers_that_come_and_go_make_one_page_at_a_time() {
    let server = Server::start(World {
        takes: Duration::from_millis(300),
        ..World::example()
    });
    for _ in 0..4 {
        let mut stream = server.connect().await;
        let request = b"GET /metrics HTTP/1.1\r\nHost: sidecar\r\n\r\n";
        stream.write_all(request).await.unwrap();
        while server.asked() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let answer = server.ask("GET", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(server.world.answering.1.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_page_that_would_lack_something_is_not_made() {
    let server = Server::start(World::example());
    let body = |answer: String| {
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        body.to_owned()
    };
    let whole = body(server.ask("GET", "/metrics").await);
    server.world.partial.store(true, Ordering::Relaxed);
    sleep(PAGE_AGE).await;
    assert_eq!(body(server.ask("GET", "/metrics").await), whole);
    assert_eq!(server.asked(), 2);
    // For the first one there is nothing else.
    let other = World {
        partial: true.into(),
        ..World::example()
    };
    let answer = Server::start(other).ask("GET", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_sidecar_that_stops_says_so() {
    let server = Server::start(World {
        stopping: true,
        ..World::example()
    });
    let answer = server.ask("GET", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_ask_is_cut_off_and_others_wait_no_longer() {
    let server = Server::start(World::example());
    let mut idle = Vec::new();
    for place in 0..MAX_CONNECTIONS {
        let mut stream = server.connect().await;
        // Some say nothing, some begin.
        if place % 2 == 0 {
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\n")
                .await
                .unwrap();
        }
        idle.push(stream);
    }
    let begun = Instant::now();
    let answer = server.ask("GET", "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let waited = begun.elapsed();
    assert!(
        waited <= CONNECTION_TIMEOUT + Duration::from_secs(1),
        "{waited:?}"
    );
    for stream in idle {
        let answer = read(stream).await;
        assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(begun.elapsed() <= REQUEST_TIMEOUT + CONNECTION_TIMEOUT);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = Endpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.address().unwrap();
    let refused = Endpoint::bind(address).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "metrics cannot be served at {address}: Address already in use (os error 98); does \
             another sidecar or program listen there? Set [metrics] listen to another port"
        )
    );
}

#[tokio::test]
async fn an_address_that_comes_later_is_taken() {
    for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
        let endpoint = Endpoint::bind(address.parse().unwrap()).unwrap();
        let taken = endpoint.address().unwrap();
        assert_eq!(taken.ip(), address.parse::<SocketAddr>().unwrap().ip());
    }
}
