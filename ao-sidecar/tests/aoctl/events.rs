//! Events, as they come.

use std::io::{self, BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use grpc_api::operator::{NewEvent, Severity};
use insta::assert_snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::snapshot;
use crate::server::Server;

pub(crate) fn proven(peer: &str) -> NewEvent {
    NewEvent {
        peer: Some(peer.into()),
        kind: "proven",
        severity: Severity::Info,
        generation: Some(5),
        key_id: Some(7),
        trigger: Some("schedule"),
        proof: Some("2 sessions use it in both directions".into()),
        took: Some(Duration::from_millis(412)),
        message: "generation 5 is proven".into(),
    }
}

#[test]
fn events_are_shown_one_a_line() {
    let server = Server::start(Some(snapshot()));
    assert_eq!(server.answer(&["events"]), "");
    server.events.push(proven("as64502"));
    server.events.push(NewEvent {
        severity: Severity::Alarm,
        kind: "peer-unreachable",
        generation: None,
        key_id: None,
        trigger: None,
        proof: None,
        took: None,
        message: "no answer\nfor 15 minutes".into(),
        ..proven("as64503")
    });
    let text = server.answer(&["events"]);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
            rest
        })
        .collect();
    assert_eq!(
        lines,
        [
            "      1  info     as64502  proven  generation 5 is proven",
            "      2  alarm    as64503  peer-unreachable  no answer\u{fffd}for 15 minutes",
        ]
    );

    let json = server.answer(&["events", "--json", "--peer", "as64502"]);
    assert_eq!(json.lines().count(), 1);
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["log"], server.events.id());
    json["log"] = 1.into();
    json["time"] = "then".into();
    assert_snapshot!(json, @r#"
{"generation":5,"key_id":7,"kind":"proven","log":1,"message":"generation 5 is proven","peer":"as64502","proof":"2 sessions use it in both directions","sequence":1,"severity":"info","time":"then","took_ms":412,"trigger":"schedule"}
"#);

    let after = server.answer(&["events", "--after", "1", "--json"]);
    assert_eq!(after.lines().count(), 1);
    assert!(after.contains("\"sequence\":2,"), "{after}");
    let earlier = server.answer(&["events", "--after", "1", "--log", "1"]);
    let earlier: Vec<&str> = earlier.lines().collect();
    assert_eq!(earlier.len(), 3);
    assert!(
        earlier[0].ends_with(
            "     0  warning  -  gap  the sidecar was started again: what followed event 1 of its \
             earlier log is lost"
        ),
        "{}",
        earlier[0]
    );
}

/// `aoctl events --follow`; it is ended with this value.
struct Follower {
    process: Child,
}

impl Follower {
    fn start(socket: &Path) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_aoctl"))
            .arg("--socket")
            .arg(socket)
            .args(["events", "--follow", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process }
    }

    /// Exit code and what stderr says.
    fn end(&mut self) -> (Option<i32>, String) {
        let text = io::read_to_string(self.process.stderr.take().unwrap()).unwrap();
        (self.process.wait().unwrap().code(), text)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn events_are_followed_until_interrupted() {
    let server = Server::start(Some(snapshot()));
    let mut follower = Follower::start(&server.socket());
    let mut lines = BufReader::new(follower.process.stdout.take().unwrap()).lines();
    for sequence in 1..=3 {
        // Each is there before the next one happens.
        server.events.push(proven("as64502"));
        let event: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(event["sequence"], sequence);
    }
    let pid = Pid::from_raw(follower.process.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(follower.end(), (Some(0), String::new()));
    assert!(lines.next().is_none());
}

#[test]
fn a_sidecar_that_stops_ends_the_events_with_exit_code_3() {
    let server = Server::start(Some(snapshot()));
    let mut follower = Follower::start(&server.socket());
    let mut lines = BufReader::new(follower.process.stdout.take().unwrap()).lines();
    server.events.push(proven("as64502"));
    assert!(lines.next().is_some());
    let socket = server.socket().display().to_string();
    drop(server);
    let (code, text) = follower.end();
    assert_eq!(code, Some(3));
    assert_eq!(
        text,
        format!("aoctl: ao-sidecar on {socket} went away: the sidecar is stopping\n")
    );
}

#[test]
fn a_sidecar_that_is_killed_ends_the_events_with_exit_code_3() {
    let server = Server::start(Some(snapshot()));
    let socket = server.folder.path().join("relay.sock");
    let relay = Relay::start(&socket, &server.socket());
    let mut follower = Follower::start(&socket);
    let mut lines = BufReader::new(follower.process.stdout.take().unwrap()).lines();
    server.events.push(proven("as64502"));
    assert!(lines.next().is_some());
    relay.cut();
    let (code, text) = follower.end();
    assert_eq!(code, Some(3), "{text}");
    let said = format!("aoctl: ao-sidecar on {} went away: ", socket.display());
    assert!(text.starts_with(&said), "{text}");
}

/// Stands between aoctl and a sidecar, and ends the connection as a killed sidecar does.
struct Relay {
    joined: std::thread::JoinHandle<(UnixStream, UnixStream)>,
}

impl Relay {
    fn start(socket: &Path, server: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let server = UnixStream::connect(server).unwrap();
        let joined = std::thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                // It ends when the connection is cut, with or without an error.
                std::thread::spawn(move || io::copy(&mut from, &mut to));
            }
            (client, server)
        });
        Self { joined }
    }

    fn cut(self) {
        let (client, server) = self.joined.join().unwrap();
        client.shutdown(Shutdown::Both).unwrap();
        server.shutdown(Shutdown::Both).unwrap();
    }
}
