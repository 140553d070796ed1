//! `ao-sidecar exec` and its keeper, with a sidecar of the test's own at the other end of the
//! keeper socket: which calls are asked about, and what becomes of them when no answer comes.
//!
//! Needs root. No kernel with TCP-AO is needed: the keys are the sidecar's business.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ao_sys::pidfd::PidFd;
use ao_sys::{tcp_socket, unix};
use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_ao-sidecar");
/// Longest time anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What the daemons of these tests have at hand. `PEER` is configured, `OTHER` is not; nobody
/// listens at either, so a connect that goes on fails with ECONNREFUSED.
const PRELUDE: &str = r#"
import ctypes, errno, json, os, signal, socket, sys, threading, time
PEER, OTHER = ("127.9.9.9", 179), ("127.9.9.8", 179)
def name(error):
    return errno.errorcode.get(error, error)
def connect(to, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    with socket.socket(family, kind) as sock:
        sock.settimeout(None)
        return name(sock.connect_ex(to))
def listen():
    sock = socket.socket()
    sock.bind(("127.9.9.1", 0))
    try:
        sock.listen()
        return "listening"
    except OSError as error:
        return name(error.errno)
def say(*words):
    print(json.dumps(words), flush=True)
"#;

/// A folder with the place of an API socket.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn api(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `exec` with a daemon in Python.
    fn daemon(&self, script: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("exec").arg("--api-socket").arg(self.api());
        command.args(["--wait", "5", "--", "/usr/bin/python3", "-c"]);
        command.arg(format!("{PRELUDE}\n{script}"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn sidecar(&self) -> Sidecar {
        Sidecar::start(&self.api())
    }
}

/// The sidecar's end of the keeper socket, by hand.
struct Sidecar {
    listener: OwnedFd,
    path: PathBuf,
}

impl Sidecar {
    fn start(api: &Path) -> Self {
        let mut path = api.as_os_str().to_owned();
        path.push(".keeper");
        let path = PathBuf::from(path);
        let listener = unix::bind(&path).unwrap();
        Self { listener, path }
    }

    /// Awaits a keeper and tells it the one peer.
    fn keeper(&self) -> Keeper {
        let (keeper, _) = self.greeted();
        keeper.send(&json!({ "welcome": { "version": 1 } }));
        let peer = json!({ "address": "127.9.9.9", "length": 32, "ports": [179, 179] });
        keeper.send(&json!({ "peers": { "first": true, "last": true, "peers": [peer] } }));
        keeper
    }

    /// A keeper, and its greeting.
    fn greeted(&self) -> (Keeper, Value) {
        let link = unix::accept(self.listener.as_fd()).unwrap();
        unix::set_receive_timeout(link.as_fd(), LIMIT).unwrap();
        let keeper = Keeper { link };
        let (hello, _) = keeper.receive().expect("a greeting");
        assert_eq!(hello["hello"]["version"], 1, "{hello}");
        assert_ne!(hello["hello"]["network_namespace"], 0, "{hello}");
        (keeper, hello["hello"].clone())
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Keeper {
    link: OwnedFd,
}

impl Keeper {
    fn send(&self, message: &Value) {
        unix::send(self.link.as_fd(), message.to_string().as_bytes(), &[]).unwrap();
    }

    /// Nothing when the keeper is gone.
    fn receive(&self) -> Option<(Value, Vec<OwnedFd>)> {
        let mut buffer = vec![0; 65_536];
        let (length, attached) = unix::receive(self.link.as_fd(), &mut buffer).unwrap();
        let message = (length > 0).then(|| serde_json::from_slice(&buffer[..length]).unwrap());
        message.map(|message| (message, attached))
    }

    /// The next call, with its socket reached as a sidecar reaches it.
    fn call(&self) -> Asked {
        let (message, attached) = self.receive().expect("a call");
        let call = &message["call"];
        let process = PidFd::from(attached.into_iter().next().expect("a pidfd"));
        let fd = i32::try_from(call["fd"].as_i64().unwrap()).unwrap();
        let facts = process
            .get(fd)
            .and_then(|socket| tcp_socket::facts(socket.as_fd()))
            .unwrap()
            .expect("a TCP socket");
        assert_eq!(call["cookie"], facts.cookie);
        assert_eq!(call["user"], 0, "the socket was made by root");
        Asked {
            id: call["id"].as_u64().unwrap(),
            call: call["call"].clone(),
        }
    }

    fn answer(&self, asked: &Asked, errno: Option<i32>) {
        self.send(&json!({ "verdict": { "id": asked.id, "errno": errno } }));
    }

    /// Lets everything pass until the keeper is gone; the calls, in their order.
    fn let_all_pass(self) -> Vec<Value> {
        let mut calls = Vec::new();
        while let Some((message, attached)) = self.receive() {
            if message.get("call").is_none() {
                continue;
            }
            assert_eq!(attached.len(), 1);
            let id = message["call"]["id"].as_u64().unwrap();
            calls.push(message["call"]["call"].clone());
            self.answer(
                &Asked {
                    id,
                    call: Value::Null,
                },
                None,
            );
        }
        calls
    }
}

struct Asked {
    id: u64,
    call: Value,
}

/// A daemon under way; killed when the test is over.
struct Daemon {
    child: Child,
    lines: Receiver<String>,
}

impl Daemon {
    fn start(mut command: Command) -> Self {
        use std::io::{BufRead, BufReader};
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// What it says next.
    fn says(&self) -> Value {
        match self.lines.recv_timeout(LIMIT) {
            Ok(line) => serde_json::from_str(&line).unwrap(),
            Err(RecvTimeoutError::Timeout) => panic!("the daemon says nothing"),
            Err(RecvTimeoutError::Disconnected) => panic!("the daemon is gone"),
        }
    }

    /// Lets it go on that waits for a line.
    fn go_on(&mut self) {
        use std::io::Write;
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a daemon to its end while a sidecar lets everything pass: what it said, and the calls.
fn passing(script: &str) -> (Vec<Value>, Vec<Value>) {
    let place = Place::new();
    let sidecar = place.sidecar();
    let serving = thread::spawn(move || sidecar.keeper().let_all_pass());
    let output = place.daemon(script).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (said(&output), serving.join().unwrap())
}

fn said(output: &Output) -> Vec<Value> {
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn to_peer() -> Value {
    json!({ "connect": { "remote": "127.9.9.9:179" } })
}

#[test]
fn a_connect_to_a_peer_waits_for_the_sidecars_word() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let daemon =
        Daemon::start(place.daemon("say(connect(PEER)); say(connect(PEER)); say(listen())"));
    let keeper = sidecar.keeper();
    let first = keeper.call();
    assert_eq!(first.call, to_peer());
    keeper.answer(&first, None);
    assert_eq!(daemon.says(), json!(["ECONNREFUSED"]));
    let second = keeper.call();
    keeper.answer(&second, Some(nix::errno::Errno::EHOSTUNREACH as i32));
    assert_eq!(daemon.says(), json!(["EHOSTUNREACH"]));
    let third = keeper.call();
    assert_eq!(third.call, "listen");
    keeper.answer(&third, None);
    assert_eq!(daemon.says(), json!(["listening"]));
}

#[test]
fn what_concerns_no_peer_is_never_asked_about() {
    let (said, calls) = passing(
        r#"
server = socket.socket(socket.AF_UNIX)
server.bind("\0exec-test-%d" % os.getpid())
server.listen()
say(connect(OTHER), connect(("127.9.9.9", 180)))
say(connect("\0exec-test-%d" % os.getpid(), family=socket.AF_UNIX))
say(connect(PEER, socket.SOCK_DGRAM))
"#,
    );
    assert_eq!(
        said,
        [
            json!(["ECONNREFUSED", "ECONNREFUSED"]),
            json!([0]),
            json!([0])
        ]
    );
    assert_eq!(calls, [] as [Value; 0]);
}

#[test]
fn mapped_addresses_threads_children_and_other_users_are_asked_about() {
    let (said, calls) = passing(
        r#"
say(connect(("::ffff:127.9.9.9", 179), family=socket.AF_INET6))
thread = threading.Thread(target=lambda: say(connect(PEER)))
thread.start()
thread.join()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.setgid(65534)
        os.setuid(65534)
        say(connect(PEER))
    os._exit(0)
os.wait()
"#,
    );
    assert_eq!(said, vec![json!(["ECONNREFUSED"]); 3]);
    let mapped = json!({ "connect": { "remote": "[::ffff:127.9.9.9]:179" } });
    assert_eq!(calls, [mapped, to_peer(), to_peer()]);
}

#[test]
fn ways_around_the_filter_are_closed() {
    let (said, calls) = passing(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
def attempt(work):
    try:
        return work() and "worked"
    except OSError as error:
        return name(error.errno)
say(attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)))
def io_uring():
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "")
    return True
say(attempt(io_uring))
def fast_open():
    return socket.socket().sendto(b"x", 0x20000000, PEER)
say(attempt(fast_open))
"#,
    );
    let refused = ["EPROTONOSUPPORT", "ENOSYS", "ENOTSUP"];
    assert_eq!(said, refused.map(|errno| json!([errno])));
    assert_eq!(calls, [] as [Value; 0]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_32_bit_call_is_refused_and_explained() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let told = thread::spawn(move || {
        let keeper = sidecar.keeper();
        let (notice, _) = keeper.receive().expect("a notice");
        notice["notice"]["text"].as_str().unwrap().to_owned()
    });
    // mov eax, 20 (getpid of the i386 ABI); int 0x80; ret
    let output = place
        .daemon(
            r#"
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
say(name(-call()))
os._exit(0)
"#,
        )
        .output()
        .unwrap();
    assert_eq!(
        said(&output),
        [json!(["ENOSYS"])],
        "{}",
        text(&output.stderr)
    );
    let told = told.join().unwrap();
    for log in [told, text(&output.stderr)] {
        assert!(log.contains("foreign ABI (32-bit or x32)"), "{log}");
    }
}

#[test]
fn without_a_sidecar_peers_are_unreachable_and_all_else_goes_on() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
for _ in range(3):
    say(connect(PEER), connect(OTHER), listen())
    sys.stdin.readline()
"#;
    let mut daemon = Daemon::start(place.daemon(script));
    let keeper = sidecar.keeper();
    let answer_both = |keeper: &Keeper| {
        for _ in 0..2 {
            let asked = keeper.call();
            keeper.answer(&asked, None);
        }
    };
    answer_both(&keeper);
    let passed = json!(["ECONNREFUSED", "ECONNREFUSED", "listening"]);
    assert_eq!(daemon.says(), passed);

    drop((keeper, sidecar));
    daemon.go_on();
    let alone = json!(["EHOSTUNREACH", "ECONNREFUSED", "listening"]);
    assert_eq!(daemon.says(), alone);

    let sidecar = place.sidecar();
    let keeper = sidecar.keeper();
    daemon.go_on();
    answer_both(&keeper);
    assert_eq!(daemon.says(), passed);
}

#[test]
fn a_later_sidecar_learns_who_made_the_daemons_sockets() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
os.setgid(65534)
os.setuid(65534)
say(connect(PEER))
sys.stdin.readline()
"#;
    let daemon = Daemon::start(place.daemon(script));
    let keeper = sidecar.keeper();
    let (call, _) = keeper.receive().expect("a call");
    assert_eq!(call["call"]["user"], 65534, "{call}");
    drop((keeper, sidecar));
    assert_eq!(daemon.says(), json!(["EHOSTUNREACH"]));
    let (_, hello) = place.sidecar().greeted();
    assert_eq!(hello["users"], json!([65534]));
}

#[test]
fn a_keeper_that_nobody_listens_to_goes_on() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
for _ in range(2):
    say(connect(PEER), connect(OTHER))
    sys.stdin.readline()
"#;
    let mut daemon = Daemon::start(place.daemon(script));
    let keeper = sidecar.keeper();
    let _asked = keeper.call();
    // As when a terminal is closed: what the keeper has to say of the lost sidecar, nobody reads.
    drop(daemon.child.stderr.take());
    drop((keeper, sidecar));
    for _ in 0..2 {
        assert_eq!(daemon.says(), json!(["EHOSTUNREACH", "ECONNREFUSED"]));
        daemon.go_on();
    }
}

#[test]
fn a_sidecar_killed_while_a_call_waits_leaves_it_refused_at_once() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let daemon = Daemon::start(place.daemon("say(connect(PEER))"));
    let keeper = sidecar.keeper();
    let _asked = keeper.call();
    drop((keeper, sidecar));
    assert_eq!(daemon.says(), json!(["EHOSTUNREACH"]));
}

#[test]
fn a_silent_sidecar_costs_a_fraction_of_a_second_once() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
started = time.monotonic()
errors = [connect(PEER) for _ in range(20)]
say(sorted(set(errors)), time.monotonic() - started)
sys.stdin.readline()
say(connect(PEER))
"#;
    let mut daemon = Daemon::start(place.daemon(script));
    let keeper = sidecar.keeper();
    let asked = keeper.call();
    let said = daemon.says();
    assert_eq!(said[0], json!(["EHOSTUNREACH"]));
    let seconds = said[1].as_f64().unwrap();
    assert!((0.2..1.0).contains(&seconds), "{seconds} s for 20 connects");
    // It comes back: its late word for the first call is of no effect, the next call is asked.
    keeper.answer(&asked, None);
    daemon.go_on();
    let asked = keeper.call();
    keeper.answer(&asked, None);
    assert_eq!(daemon.says(), json!(["ECONNREFUSED"]));
}

#[test]
fn signals_do_not_disturb_a_call_that_waits() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
rung = []
signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
result = connect(PEER)
signal.setitimer(signal.ITIMER_REAL, 0)
say(result, bool(rung))
"#;
    let daemon = Daemon::start(place.daemon(script));
    let keeper = sidecar.keeper();
    let asked = keeper.call();
    // Several alarms ring meanwhile.
    thread::sleep(Duration::from_millis(80));
    keeper.answer(&asked, None);
    assert_eq!(daemon.says(), json!(["ECONNREFUSED", true]));
}

#[test]
fn a_daemon_killed_while_its_call_waits_harms_nobody() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
child = os.fork()
if child == 0:
    connect(PEER)
    os._exit(0)
sys.stdin.readline()
os.kill(child, signal.SIGKILL)
say(os.waitstatus_to_exitcode(os.wait()[1]))
say(connect(PEER))
"#;
    let mut daemon = Daemon::start(place.daemon(script));
    let keeper = sidecar.keeper();
    let first = keeper.call();
    daemon.go_on();
    assert_eq!(daemon.says(), json!([-9]));
    keeper.answer(&first, None);
    let second = keeper.call();
    assert_ne!(first.id, second.id);
    keeper.answer(&second, None);
    assert_eq!(daemon.says(), json!(["ECONNREFUSED"]));
}

#[test]
fn the_keeper_goes_with_the_last_process() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let script = r#"
if os.fork() == 0:
    os.setsid()
    time.sleep(0.5)
    connect(PEER)
    os._exit(0)
say("parent gone")
"#;
    let output = thread::spawn({
        let mut command = place.daemon(script);
        move || command.status()
    });
    let calls = sidecar.keeper().let_all_pass();
    assert_eq!(calls, [to_peer()]);
    assert!(output.join().unwrap().unwrap().success());
}

#[test]
fn what_prevents_a_launch_is_said_with_its_exit_code() {
    let place = Place::new();
    let run = |arguments: &[&str]| {
        let output = Command::new(BINARY)
            .args(["exec", "--wait", "1", "--api-socket"])
            .arg(place.api())
            .arg("--")
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code().unwrap(), text(&output.stderr))
    };
    let (code, message) = run(&["/usr/bin/true"]);
    assert_eq!(code, 125, "{message}");
    assert!(message.contains("no ao-sidecar answers at "), "{message}");

    let (code, message) = run(&["no-such-daemon"]);
    assert_eq!(code, 127, "{message}");
    let plain = place.file("plain");
    std::fs::write(&plain, "").unwrap();
    let (code, message) = run(&[plain.to_str().unwrap()]);
    assert_eq!(code, 126, "{message}");

    let elf32 = place.file("elf32");
    std::fs::write(&elf32, b"\x7fELF\x01\x01\x01").unwrap();
    let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&elf32, runnable).unwrap();
    let (code, message) = run(&[elf32.to_str().unwrap()]);
    assert_eq!(code, 126, "{message}");
    assert!(message.contains("is a 32-bit program"), "{message}");

    let sidecar = place.sidecar();
    let refusing = thread::spawn(move || {
        let (keeper, _) = sidecar.greeted();
        keeper.send(&json!({ "refused": { "why": "not today" } }));
        sidecar
    });
    let (code, message) = run(&["/usr/bin/true"]);
    assert_eq!(code, 125, "{message}");
    assert_eq!(message, "ao-sidecar exec: the sidecar refuses: not today\n");
    drop(refusing.join().unwrap());
}

#[test]
fn without_capabilities_the_daemon_is_not_started() {
    let place = Place::new();
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"])
        .args([BINARY, "exec", "--", "/usr/bin/echo", "started"])
        .current_dir(place.folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let message = text(&output.stderr);
    assert!(message.contains("CAP_SYS_PTRACE is missing"), "{message}");
}

/// A keeper service; ended when dropped.
struct Service(Child);

impl Service {
    fn start(place: &Place, more: &[&str]) -> Self {
        let socket = place.file("launch.sock");
        let child = Command::new(BINARY)
            .arg("keeper")
            .arg("--socket")
            .arg(&socket)
            .arg("--api-socket")
            .arg(place.api())
            .args(["--wait", "5"])
            .args(more)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LIMIT;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "no keeper service");
            thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `exec` as an unprivileged user, by way of a keeper service.
fn unprivileged(place: &Place) -> Command {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.folder.path(), open).unwrap();
    // The build's folder may be closed to other users.
    let binary = place.file("ao-sidecar");
    std::fs::copy(BINARY, &binary).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(binary)
        .args(["exec", "--launch-socket"])
        .arg(place.file("launch.sock"))
        .args(["--", "/usr/bin/python3", "-c"])
        .arg(format!(
            "{PRELUDE}\nsay(os.getuid(), connect(PEER), connect(OTHER))"
        ));
    command
}

#[test]
fn an_unprivileged_daemon_is_kept_by_the_service() {
    let place = Place::new();
    let sidecar = place.sidecar();
    let _service = Service::start(&place, &["--allow-user", "nobody"]);
    let serving = thread::spawn(move || sidecar.keeper().let_all_pass());
    let output = unprivileged(&place).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        said(&output),
        [json!([65534, "ECONNREFUSED", "ECONNREFUSED"])]
    );
    assert_eq!(serving.join().unwrap(), [to_peer()]);
}

#[test]
fn a_user_that_is_not_allowed_is_refused_by_the_service() {
    let place = Place::new();
    let _sidecar = place.sidecar();
    let _service = Service::start(&place, &["--allow-user", "daemon"]);
    let output = unprivileged(&place).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let message = text(&output.stderr);
    assert!(
        message.contains("user 65534 may not hand over programs"),
        "{message}"
    );
}
