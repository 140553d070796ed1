//! What can be found out on this machine when the sidecar does not answer.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ao_sys::capabilities::have_net_admin;
use ao_sys::{probe, unix};
use datapath::evidence::{self, TcpState};
use datapath::firewall::Firewall;
use datapath::settings::{Choice, PeerSpec};
use grpc_api::operator::administration::Finding;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

use super::code::Code;
use super::judge::{Draft, ordered};
use super::text::count;
use crate::config::{Config, DEFAULT_API_SOCKET, DEFAULT_STATE_DIR, Overlay};

/// How long the sidecar has to say the first word.
const PATIENCE: Duration = Duration::from_secs(2);

/// How every HTTP/2 connection begins: the preface and empty settings (RFC 9113 §3.4).
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Most names that a finding lists.
const LISTED: usize = 10;

/// Finds out why the sidecar does not answer on `socket`, and what its peers have of it; `config` is
/// its configuration, if it may be read. Takes a second or two at most. Never empty.
#[must_use]
pub fn local(socket: &Path, config: &Path) -> Vec<Finding> {
    judge(&Here::look(socket, config))
}

/// What is known without the sidecar.
#[derive(Clone, Debug)]
struct Here {
    socket: PathBuf,
    config_file: PathBuf,
    answer: Answer,
    config: Seen,
    /// The process that has the state folder.
    holder: Option<u32>,
    /// Whether the guard is in place; absent when only root could tell.
    guard: Option<Result<bool, String>>,
    /// Live sessions with configured peers.
    sessions: Vec<String>,
    kernel_tcp_ao: bool,
}

/// What is at the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// No file.
    Absent,
    /// A file, and nobody behind it.
    Refused,
    /// It may not be used.
    Denied,
    /// Somebody takes connections and says nothing.
    Silent {
        /// The process, as far as it is known.
        pid: Option<u32>,
        /// Whether it is stopped by a signal.
        stopped: bool,
    },
    /// Somebody speaks.
    Speaks,
    /// The system said something else.
    Odd(String),
}

/// What the configuration is like.
#[derive(Clone, Debug)]
enum Seen {
    Correct {
        api_socket: PathBuf,
        peers: Vec<PeerSpec>,
    },
    Wrong(String),
    /// It may not be read.
    Hidden,
}

impl Here {
    fn look(socket: &Path, config_file: &Path) -> Self {
        let loaded = match fs::File::open(config_file) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Seen::Hidden),
            // Whatever else is wrong, loading it says so.
            _ => Config::load(config_file, &Overlay::default())
                .map_err(|error| Seen::Wrong(error.to_string())),
        };
        let state_dir = loaded
            .as_ref()
            .map_or(Path::new(DEFAULT_STATE_DIR), |config| &config.state_dir);
        let holder = holder(&state_dir.join("lock"));
        let config = loaded.map_or_else(
            |seen| seen,
            |config| Seen::Correct {
                peers: config.settings(false).peers,
                api_socket: config.api_socket,
            },
        );
        let sessions = match &config {
            Seen::Correct { peers, .. } => sessions(peers),
            Seen::Wrong(_) | Seen::Hidden => Vec::new(),
        };
        Self {
            socket: socket.to_owned(),
            config_file: config_file.to_owned(),
            answer: ask(socket),
            config,
            holder,
            guard: have_net_admin().then(|| {
                let guard = Firewall::probe().and_then(|firewall| firewall.has_guard());
                guard.map_err(|error| error.to_string())
            }),
            sessions,
            kernel_tcp_ao: probe::kernel_ao().is_ok_and(|kernel| kernel.tcp_ao),
        }
    }

    fn peers(&self) -> &[PeerSpec] {
        match &self.config {
            Seen::Correct { peers, .. } => peers,
            Seen::Wrong(_) | Seen::Hidden => &[],
        }
    }
}

/// Says a first word, and waits for one.
fn ask(socket: &Path) -> Answer {
    let mut pid = None;
    let spoken = connect(socket).and_then(|mut stream| {
        let credentials = unix::peer_credentials(stream.as_fd())?;
        pid = Some(credentials.pid).filter(|pid| *pid != 0);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(GREETING)?;
        stream.read(&mut [0; 9])
    });
    match spoken {
        // Who has no role is hung up on.
        Ok(0) => Answer::Denied,
        Ok(_) => Answer::Speaks,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Answer::Absent,
            io::ErrorKind::ConnectionRefused => Answer::Refused,
            io::ErrorKind::PermissionDenied => Answer::Denied,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Answer::Silent {
                pid,
                stopped: pid.is_some_and(is_stopped),
            },
            _ => Answer::Odd(error.to_string()),
        },
    }
}

/// Whether a process is stopped by a signal.
fn is_stopped(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines();
    lines.any(|line| line.starts_with("State:") && line.contains("stopped"))
}

/// Connects at once or not at all: a sidecar that hangs takes nobody any more, and once its backlog is
/// full, connecting would wait for ever.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Who holds a lock on a file, by the kernel's list of locks: trying it could keep a sidecar that
/// starts now from having it.
fn holder(lock: &Path) -> Option<u32> {
    let inode = fs::metadata(lock).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| locked_by(line, inode))
}

/// The process of a line like `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`.
fn locked_by(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let kind = words.next()?;
    let pid = words.nth(2)?.parse().ok()?;
    let file = words.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
    (kind == "FLOCK" && file == inode).then_some(pid)
}

fn sessions(peers: &[PeerSpec]) -> Vec<String> {
    let names: Vec<_> = peers.iter().map(|peer| peer.name.clone()).collect();
    let facts = evidence::local(peers, &names).unwrap_or_default();
    let live = facts.peers.iter().flat_map(|peer| {
        let established = |socket: &&evidence::Socket| socket.state == TcpState::Established;
        let sockets = peer.sockets.iter().filter(established);
        sockets.map(|socket| format!("{} – {}", socket.local, socket.remote))
    });
    live.collect()
}

fn judge(here: &Here) -> Vec<Finding> {
    let mut found = vec![answer(here)];
    found.extend(config(here));
    found.extend(kernel_missing(here));
    let is_down = matches!(here.answer, Answer::Absent | Answer::Refused);
    if is_down && here.holder.is_none() {
        found.extend(protection(here));
    }
    ordered(found)
}

fn answer(here: &Here) -> Draft {
    let socket = here.socket.display();
    match &here.answer {
        Answer::Absent => not_running(here, format!("there is no socket {socket}")),
        Answer::Refused => not_running(
            here,
            format!("nobody listens on {socket}: the sidecar that made it has ended"),
        ),
        Answer::Odd(error) => not_running(here, format!("{socket} cannot be used: {error}")),
        Answer::Denied => Draft::new(
            Code::NoAccess,
            format!("you may not use {socket}"),
            "The socket is for root, for the sidecar's own user, and for the groups that the \
             configuration names.",
            format!(
                "run aoctl as root (`sudo aoctl doctor`), or have yourself added to a group that is \
                 viewer_group, operator_group or admin_group in [api] of {}",
                here.config_file.display()
            ),
        ),
        Answer::Silent { pid, stopped } => hanging(here, *pid, *stopped),
        Answer::Speaks => Draft::new(
            Code::NotFoundOut,
            format!("the sidecar on {socket} answers now"),
            "It may have been starting, or too busy to answer in time.",
            "ask again",
        ),
    }
}

fn hanging(here: &Here, pid: Option<u32>, stopped: bool) -> Draft {
    let (who, remedy) = match (pid, stopped) {
        (Some(pid), true) => (
            format!(" (process {pid} is stopped by a signal)"),
            format!("`kill -CONT {pid}` lets it go on"),
        ),
        (Some(pid), false) => (
            format!(" (process {pid})"),
            format!(
                "see its log (`journalctl -u ao-sidecar`) and load (`top -H -p {pid}`); if it stays \
                 so, restart it: sessions go on if it takes less than their hold time"
            ),
        ),
        (None, _) => (
            String::new(),
            "see its log (`journalctl -u ao-sidecar`), and restart it".to_owned(),
        ),
    };
    Draft::new(
        Code::Hanging,
        format!(
            "the sidecar{who} takes connections on {} and says nothing for {} s",
            here.socket.display(),
            PATIENCE.as_secs()
        ),
        "While it hangs, segments of the engine's peers wait in queues and are lost: sessions end with \
         their hold timers. Nothing is let through unsigned.",
        remedy,
    )
}

fn not_running(here: &Here, mut seen: String) -> Draft {
    if let Some(pid) = here.holder {
        seen.push_str(&format!(
            "; process {pid} has the state folder: a sidecar is starting, or serves another socket"
        ));
    }
    let config_file = here.config_file.display();
    let remedy = match &here.config {
        Seen::Correct { api_socket, .. }
            if *api_socket != here.socket && here.socket == Path::new(DEFAULT_API_SOCKET) =>
        {
            format!(
                "the configuration has another socket: `aoctl --socket {} doctor`",
                api_socket.display()
            )
        }
        _ => format!(
            "`systemctl start ao-sidecar`, or `ao-sidecar run --config {config_file}`; if it ends \
             again, `journalctl -u ao-sidecar` has the reason in its last lines"
        ),
    };
    Draft::new(
        Code::NotRunning,
        seen,
        "Without it, no session of the engine's peers comes up or stays up.",
        remedy,
    )
}

fn config(here: &Here) -> Option<Draft> {
    let file = here.config_file.display();
    match &here.config {
        Seen::Correct { .. } => None,
        Seen::Wrong(error) => Some(Draft::new(
            Code::ConfigWrong,
            error.clone(),
            "The sidecar does not start with a wrong configuration.",
            format!("correct it; `ao-sidecar check {file}` shows what is left"),
        )),
        Seen::Hidden => Some(Draft::new(
            Code::NotFoundOut,
            format!("{file} is not for you to read"),
            "Whether it is right, and what its peers have, was not looked at.",
            "run `aoctl doctor` as root",
        )),
    }
}

fn kernel_missing(here: &Here) -> Option<Draft> {
    let wants = |peer: &&PeerSpec| peer.datapath == Choice::Kernel;
    let peer = here.peers().iter().find(wants)?;
    (!here.kernel_tcp_ao).then(|| {
        Draft::new(
            Code::KernelMissing,
            format!(
                "peer {:?} has datapath = \"kernel\", and this kernel has no TCP-AO",
                peer.name
            ),
            "The sidecar does not start with a peer that cannot be served as configured.",
            "boot a kernel with CONFIG_TCP_AO (Linux 6.7 or later), or write datapath = \"auto\" or \
             \"userspace\"",
        )
    })
}

/// What the peers have while no sidecar runs.
fn protection(here: &Here) -> Option<Draft> {
    let file = here.config_file.display();
    let guard = match &here.guard {
        None => {
            return Some(Draft::new(
                Code::NotFoundOut,
                "the firewall is not for you to read",
                "Whether configured peers are blocked or unprotected now was not looked at.",
                "run `aoctl doctor` as root",
            ));
        }
        Some(Err(error)) => {
            return Some(Draft::new(
                Code::FirewallMissing,
                error.clone(),
                "The sidecar needs nftables and legacy iptables: one has the queue rules, the other \
                 the guard.",
                "install what is missing (`apt-get install nftables iptables`), load the kernel's \
                 modules for it, run as root",
            ));
        }
        Some(Ok(guard)) => *guard,
    };
    let names: Vec<&str> = (here.peers().iter().take(LISTED))
        .map(|peer| &*peer.name)
        .collect();
    if guard {
        let which = match (names.as_slice(), here.peers().len()) {
            ([], _) => String::new(),
            (_, peers) if peers > LISTED => format!(": {} and others", names.join(", ")),
            _ => format!(": {}", names.join(", ")),
        };
        return Some(Draft::new(
            Code::BlockedPeers,
            format!("the guard is in place and no sidecar runs: its peers are blocked{which}"),
            "That is what it is for: nothing leaves or arrives unsigned while nobody signs. Sessions \
             that the kernel signs go on.",
            "start the sidecar; to give up protection instead: `ao-sidecar guard remove`",
        ));
    }
    if names.is_empty() {
        return None;
    }
    let sessions = match here.sessions.as_slice() {
        [] => String::new(),
        [first, ..] => format!(
            "; there {} {}, such as {first}",
            if here.sessions.len() == 1 {
                "is"
            } else {
                "are"
            },
            count(here.sessions.len() as u64, "live session")
        ),
    };
    Some(Draft::new(
        Code::Unprotected,
        format!(
            "there is neither a guard nor a sidecar for {}{sessions}",
            count(here.peers().len() as u64, "configured peer")
        ),
        "Their sessions come up unsigned, if the far end lets them: anybody could inject or reset \
         them.",
        format!(
            "`ao-sidecar guard install --config {file}` blocks them at once; have it run before the \
             network comes up (unit ao-sidecar-guard.service), and start the sidecar"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn locks_are_read() {
        let line = "12: FLOCK  ADVISORY  WRITE 4711 00:2d:131 0 EOF";
        assert_eq!(locked_by(line, 131), Some(4711));
        assert_eq!(locked_by(line, 132), None);
        assert_eq!(
            locked_by("1: POSIX  ADVISORY  WRITE 4711 00:2d:131 0 EOF", 131),
            None
        );
        assert_eq!(locked_by("", 131), None);
    }

    #[test]
    fn sockets_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        assert_eq!(ask(&path), Answer::Absent);
        let listener = UnixListener::bind(&path).unwrap();
        let silent = Answer::Silent {
            pid: Some(std::process::id()),
            stopped: false,
        };
        assert_eq!(ask(&path), silent);
        drop(listener);
        assert_eq!(ask(&path), Answer::Refused);
    }

    fn here(answer: Answer) -> Here {
        Here {
            socket: DEFAULT_API_SOCKET.into(),
            config_file: "/etc/ao-sidecar/config.toml".into(),
            answer,
            config: Seen::Correct {
                api_socket: DEFAULT_API_SOCKET.into(),
                peers: vec![crate::doctor::judge::tests::spec()],
            },
            holder: None,
            guard: Some(Ok(true)),
            sessions: Vec::new(),
            kernel_tcp_ao: false,
        }
    }

    fn codes(here: &Here) -> Vec<&'static str> {
        judge(here).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_is_wrong_here_is_named() {
        let absent = here(Answer::Absent);
        assert_eq!(codes(&absent), ["not-running", "blocked-peers"]);
        let open = Here {
            guard: Some(Ok(false)),
            sessions: vec!["10.0.0.1:179 – 10.0.0.2:40000".into()],
            ..absent.clone()
        };
        assert_eq!(codes(&open), ["not-running", "unprotected"]);
        let starting = Here {
            holder: Some(4711),
            ..absent.clone()
        };
        assert_eq!(codes(&starting), ["not-running"]);
        let toolless = Here {
            guard: Some(Err("nft is missing: apt-get install nftables".into())),
            ..absent.clone()
        };
        assert_eq!(codes(&toolless), ["firewall-missing", "not-running"]);
        let unprivileged = Here {
            guard: None,
            config: Seen::Hidden,
            ..absent.clone()
        };
        let told = ["not-running", "not-found-out", "not-found-out"];
        assert_eq!(codes(&unprivileged), told);
        let wrong = Here {
            config: Seen::Wrong("config.toml:3:1: unknown key".into()),
            ..absent
        };
        let told = ["config-wrong", "not-running", "blocked-peers"];
        assert_eq!(codes(&wrong), told);
        assert_eq!(codes(&here(Answer::Denied)), ["no-access"]);
        let silent = Answer::Silent {
            pid: None,
            stopped: false,
        };
        assert_eq!(codes(&here(silent)), ["hanging"]);
        assert_eq!(codes(&here(Answer::Speaks)), ["not-found-out"]);
        assert_eq!(codes(&here(Answer::Odd("?".into()))), ["not-running"]);
    }

    #[test]
    fn a_kernel_that_is_wanted_and_missing_is_named_first() {
        let mut here = here(Answer::Absent);
        if let Seen::Correct { peers, .. } = &mut here.config {
            peers[0].datapath = Choice::Kernel;
        }
        assert_eq!(codes(&here)[0], "kernel-missing");
        here.kernel_tcp_ao = true;
        assert_eq!(codes(&here)[0], "not-running");
    }

    #[test]
    fn texts() {
        let mut text = String::new();
        let mut add = |here: &Here| {
            for finding in judge(here) {
                text.push_str(&crate::doctor::judge::tests::shown(&finding));
            }
        };
        let absent = here(Answer::Absent);
        add(&absent);
        add(&Here {
            guard: Some(Ok(false)),
            sessions: vec!["10.0.0.1:179 – 10.0.0.2:40000".into()],
            holder: None,
            ..absent.clone()
        });
        add(&Here {
            config: Seen::Hidden,
            guard: None,
            ..absent.clone()
        });
        for stopped in [true, false] {
            add(&here(Answer::Silent {
                pid: Some(4711),
                stopped,
            }));
        }
        add(&here(Answer::Denied));
        add(&Here {
            config: Seen::Wrong("/etc/ao-sidecar/config.toml:3:1: unknown key `prot`".into()),
            guard: Some(Err("nft is missing: apt-get install nftables".into())),
            ..absent
        });
        insta::assert_snapshot!(text);
    }
}
