//! Namespaces, peers and packets for the tests.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ao_engine::policy::Prefix;
use datapath::firewall::{Queues, Ruleset};
use datapath::settings::{Backend, Choice, PeerSpec};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use nix::unistd::{geteuid, gettid};

pub(crate) const QUEUES: Queues = Queues {
    first: 300,
    workers: 2,
};
pub(crate) const MARK: u32 = 0x0400_0000;

/// Runs a test in a network namespace of its own, which ends with it.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    assert!(geteuid().is_root(), "this test must run as root");
    let outcome = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        // The built-in chains of a table appear with the first look at it.
        run(&in_tables("-L >/dev/null"));
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A shell command that does something to every x_tables table.
pub(crate) fn in_tables(arguments: &str) -> String {
    format!(
        "for t in raw mangle filter; do iptables-legacy -w -t $t {arguments}; \
         ip6tables-legacy -w -t $t {arguments}; done"
    )
}

/// Everything both firewalls hold, without counts and times.
pub(crate) fn all_rules() -> String {
    run("nft -s list ruleset; iptables-legacy-save; ip6tables-legacy-save")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

pub(crate) fn spec(name: &str, remote: &str) -> PeerSpec {
    let (address, length) = remote.split_once('/').unwrap_or((remote, ""));
    let address: IpAddr = address.parse().unwrap();
    PeerSpec {
        name: name.into(),
        remote: length.parse().map_or(Prefix::host(address), |length| {
            Prefix::new(address, length).unwrap()
        }),
        local: None,
        ports: 179..=179,
        interface: None,
        vrf: None,
        keys: Vec::new(),
        algorithms: Vec::new(),
        ttl_min: 0,
        datapath: Choice::Auto,
    }
}

/// Peers of every kind.
pub(crate) fn peers() -> Vec<PeerSpec> {
    let mut link_local = spec("link local", "fe80::1");
    link_local.interface = Some("eth0".into());
    let mut in_vrf = spec("vrf", "10.0.0.2");
    in_vrf.vrf = Some("red".into());
    let mut hops = spec("hops", "2001:db8::2");
    hops.ttl_min = 255;
    let mut ports = spec("ports", "10.2.0.0/16");
    ports.ports = 1790..=1799;
    ports.local = Some("10.0.0.1".parse().unwrap());
    ports.ttl_min = 254;
    vec![
        spec("plain", "10.0.0.2"),
        link_local,
        in_vrf,
        hops,
        ports,
        spec("net6", "2001:db8:1::/48"),
    ]
}

/// Rules for peers that the userspace engine serves.
pub(crate) fn ruleset(peers: &[PeerSpec]) -> Ruleset {
    ruleset_with(QUEUES, peers, &[])
}

/// Rules for peers of both backends.
pub(crate) fn ruleset_with(queues: Queues, userspace: &[PeerSpec], kernel: &[PeerSpec]) -> Ruleset {
    let peers = userspace
        .iter()
        .map(|peer| (peer, Backend::Userspace))
        .chain(kernel.iter().map(|peer| (peer, Backend::Kernel)));
    Ruleset::new(peers, queues, MARK).unwrap()
}

pub(crate) fn wait_for(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

pub(crate) fn connect(address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_millis(700))
}

/// A second namespace joined by a veth pair: 10.0.0.1 and 2001:db8::1 here, 2 and 3 there.
pub(crate) struct FarEnd {
    stop: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FarEnd {
    /// Returns when `there` has run in it.
    pub(crate) fn new(there: impl FnOnce() + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        let (joined, ready) = mpsc::channel::<()>();
        let (finish, finished) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid()).unwrap();
            ready.recv().unwrap();
            run("ip link set lo up; ip link set eth0 up
                 ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.0.3/24 dev eth0
                 ip addr add 2001:db8::2/64 dev eth0 nodad
                 ip addr add 2001:db8::3/64 dev eth0 nodad");
            there();
            finish.send(()).unwrap();
            let _ = stopped.recv();
        });
        let tid = told.recv().unwrap();
        run(&format!(
            "ip link add eth0 type veth peer name eth0 netns {tid}; ip link set eth0 up
             ip addr add 10.0.0.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad"
        ));
        joined.send(()).unwrap();
        finished.recv().expect("the far end failed");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts connections over both families, to port 179 and to an unprotected one.
pub(crate) fn listen() {
    for port in [179, 180] {
        let listener = TcpListener::bind(("::", port)).unwrap();
        thread::spawn(move || for _ in listener.incoming() {});
    }
}

/// A socket that has sent its SYN.
pub(crate) fn start_connect(from: &str, to: &str) -> OwnedFd {
    let socket = socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )
    .unwrap();
    let address = |text: &str| text.parse::<SockaddrIn>().unwrap();
    socket::bind(socket.as_raw_fd(), &address(&format!("{from}:0"))).unwrap();
    let started = socket::connect(socket.as_raw_fd(), &address(to));
    assert_eq!(started, Err(nix::errno::Errno::EINPROGRESS));
    socket
}
