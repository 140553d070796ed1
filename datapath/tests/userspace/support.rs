//! Namespaces, and settings of a backend in them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::{Mkt, Prefix};
use datapath::settings::{Choice, OnExit, PeerSpec, Settings, Strip};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, gettid};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const MARK: u32 = 0x0400_0000;
pub(crate) const PORT: u16 = 179;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it; both end with this.
pub(crate) struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    tid: i32,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        assert!(geteuid().is_root(), "this test must run as root");
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid().as_raw()).unwrap();
            for job in inbox {
                job();
            }
        });
        let tid = told.recv().unwrap();
        let namespace = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            tid,
        };
        namespace.shell("ip link set lo up");
        namespace
    }

    /// Two namespaces joined by a veth pair: 10.0.0.1 and 2001:db8::1 in the first, 2 in the
    /// second.
    pub(crate) fn pair() -> (Self, Self) {
        let (here, there) = (Self::new(), Self::new());
        here.shell(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}",
            there.tid
        ));
        for (namespace, number) in [(&here, 1), (&there, 2)] {
            namespace.shell(&format!(
                "ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0
                 ip addr add 2001:db8::{number}/64 dev eth0 nodad"
            ));
        }
        (here, there)
    }

    /// Runs something in the namespace; threads it starts stay in it.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::channel();
        let job = move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _ = reply.send(outcome);
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        match answer.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub(crate) fn shell(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &command]).output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command}: {complaint}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Packets that a rule in an x_tables chain matched; the rule is found by its comment.
    pub(crate) fn matched(&self, tool: &str, place: &str, comment: &str) -> u64 {
        let rules = self.shell(&format!("{tool} -w {place} -nvx"));
        let line = rules
            .lines()
            .find(|line| line.contains(comment))
            .expect("no such rule");
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Settings of a backend with one peer.
pub(crate) fn settings(state_dir: &Path, peer: &str, algorithm: Algorithm) -> Settings {
    let key = Mkt {
        send_id: 5,
        recv_id: 5,
        algorithm,
        master_key: MasterKey::new(b"one secret for both").unwrap(),
        include_options: true,
    };
    Settings {
        peers: vec![PeerSpec {
            name: "peer".into(),
            remote: Prefix::host(peer.parse().unwrap()),
            local: None,
            ports: PORT..=PORT,
            interface: None,
            vrf: None,
            keys: vec![Arc::new(key)],
            algorithms: Vec::new(),
            ttl_min: 0,
            datapath: Choice::Auto,
        }],
        first_queue: 400,
        workers: 2,
        queue_length: 4096,
        mark_bit: MARK,
        max_connections: 256,
        strip: Strip::Auto,
        on_exit: OnExit::Keep,
        state_dir: state_dir.to_owned(),
        keeper_socket: state_dir.join("keeper.sock"),
        replace_sessions: false,
    }
}

/// Octets that show when something is lost, doubled or out of order.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// Accepts one connection, reads all of it and sends it back.
pub(crate) fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    give_up_in_time(&stream);
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    stream.write_all(&data).unwrap();
}

/// No call on a socket may wait longer than a test may take.
pub(crate) fn give_up_in_time(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}
