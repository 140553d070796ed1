//! The keeper: a small process beside a launched daemon that owns the descriptor of the daemon's
//! seccomp notifications.
//!
//! Whoever holds that descriptor must never go away, for then every filtered call fails for good,
//! and must never be silent, for then the daemon hangs. The sidecar can do both: it restarts, and
//! it can be stopped. The keeper does neither. It decides what concerns no configured peer, asks
//! the sidecar about the rest, and has an answer when none comes (`core`).

mod core;
pub(crate) mod protocol;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ao_sys::pidfd::PidFd;
use ao_sys::seccomp::{self, Listener, Notification};
use ao_sys::tcp_socket::{self, Facts};
use ao_sys::{process, unix};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;

use self::core::{Action, Core};
pub use self::protocol::socket_path;
use self::protocol::{Call, MAX_MESSAGE, ToKeeper, ToSidecar, VERSION, decode, encode};

/// How often a sidecar that is absent is looked for.
const RETRY: Duration = Duration::from_millis(250);
/// How long one that refused us is left alone.
const REFUSED_RETRY: Duration = Duration::from_secs(5);
/// How often the same peer's want of a sidecar is told.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Peers remembered as told.
const WARNED: usize = 1024;
/// Users of one daemon that are remembered.
const USERS: usize = 16;
/// Longest socket address that holds an IP address (struct sockaddr_storage).
const ADDRESS_ROOM: usize = 128;

/// Whom a keeper serves.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The sidecar's keeper socket ([`socket_path`]).
    pub socket: PathBuf,
    /// What is launched, for people.
    pub daemon: String,
    /// Its process id.
    pub pid: u32,
    /// Inode of its network namespace.
    pub network_namespace: u64,
}

/// Why a keeper found no sidecar to work with.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// None answered in time.
    #[error(
        "no ao-sidecar answers at {} after {} s ({source}): start it first, or give its --api-socket",
        socket.display(),
        waited.as_secs()
    )]
    Absent {
        /// Where it was looked for.
        socket: PathBuf,
        /// How long.
        waited: Duration,
        /// What came instead of an answer.
        source: io::Error,
    },
    /// It will not serve this daemon.
    #[error("the sidecar refuses: {0}")]
    Refused(String),
}

/// A keeper that has been in touch with the sidecar.
pub struct Keeper {
    launch: Launch,
    core: Core,
    /// The connection to the sidecar. Never blocks.
    link: Option<OwnedFd>,
    retry_at: Instant,
    /// What the sidecar is asked about.
    asked: BTreeMap<u64, Question>,
    /// Users that the daemon's sockets were made by, for a sidecar that starts later.
    users: BTreeSet<u32>,
    warned: HashMap<IpAddr, Instant>,
}

/// A call, ready to be sent to the sidecar.
struct Question {
    process: PidFd,
    fd: i32,
    cookie: u64,
    user: u32,
    call: Call,
}

/// The socket of a call, and the process that has it.
struct Caller {
    process: PidFd,
    facts: Facts,
    /// User that the socket was made by.
    user: u32,
}

impl Keeper {
    /// Gets in touch with the sidecar and learns the peers, within `wait`.
    ///
    /// # Errors
    /// When there is none, or it refuses to serve the daemon.
    pub fn register(launch: Launch, wait: Duration) -> Result<Self, RegisterError> {
        let deadline = Instant::now() + wait;
        let mut keeper = Self {
            launch,
            core: Core::new(),
            link: None,
            retry_at: Instant::now(),
            asked: BTreeMap::new(),
            users: BTreeSet::new(),
            warned: HashMap::new(),
        };
        loop {
            let failure = match keeper.connect() {
                Ok(()) => match keeper.await_peers(deadline)? {
                    true => return Ok(keeper),
                    false => io::ErrorKind::TimedOut.into(),
                },
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(RegisterError::Absent {
                    socket: keeper.launch.socket,
                    waited: wait,
                    source: failure,
                });
            }
            thread::sleep(RETRY.min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// Answers notifications until no filtered process is left.
    pub fn keep(mut self, listener: &Listener) {
        loop {
            let ready = self.wait(listener);
            // First, as it may tell that the sidecar is back.
            if ready.link {
                self.hear(listener);
            }
            if ready.notified {
                self.notified(listener);
            }
            // The last filtered process is gone.
            if ready.hung_up {
                return;
            }
            let actions = self.core.tick(Instant::now());
            self.act(listener, actions);
            if self.link.is_none() && self.retry_at <= Instant::now() {
                self.retry_at = Instant::now() + RETRY;
                // It will be tried again; that it is absent has been told.
                let _ = self.connect();
            }
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        let link = unix::connect(&self.launch.socket)?;
        fcntl(&link, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let hello = ToSidecar::Hello {
            version: VERSION,
            daemon: self.launch.daemon.clone(),
            pid: self.launch.pid,
            network_namespace: self.launch.network_namespace,
            users: self.users.iter().copied().collect(),
        };
        unix::send(link.as_fd(), &encode(&hello), &[])?;
        self.link = Some(link);
        Ok(())
    }

    /// Whether the whole list of peers came before the deadline.
    fn await_peers(&mut self, deadline: Instant) -> Result<bool, RegisterError> {
        while let Some(link) = &self.link {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, timeout(Some(left)));
            if !ready[0].any().unwrap_or(false) {
                return Ok(false);
            }
            while let Some(message) = self.receive() {
                match message {
                    ToKeeper::Refused { why } => return Err(RegisterError::Refused(why)),
                    ToKeeper::Peers { first, last, peers } => {
                        self.core.peers(first, last, peers);
                        if last {
                            return Ok(true);
                        }
                    }
                    ToKeeper::Welcome { .. } | ToKeeper::Verdict { .. } => {}
                }
            }
        }
        Ok(false)
    }

    fn wait(&self, listener: &Listener) -> Ready {
        let now = Instant::now();
        let retry = self.link.is_none().then_some(self.retry_at);
        let until = self.core.next_deadline().into_iter().chain(retry).min();
        let patience = until.map(|until| until.saturating_duration_since(now));
        let mut descriptors = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if let Some(link) = &self.link {
            descriptors.push(PollFd::new(link.as_fd(), PollFlags::POLLIN));
        }
        // An interrupted wait is as good as one that ended.
        let _ = poll(&mut descriptors, timeout(patience));
        let events = |index: usize| {
            let descriptor: Option<&PollFd<'_>> = descriptors.get(index);
            descriptor
                .and_then(PollFd::revents)
                .unwrap_or(PollFlags::empty())
        };
        Ready {
            notified: events(0).contains(PollFlags::POLLIN),
            hung_up: events(0).intersects(PollFlags::POLLHUP | PollFlags::POLLERR),
            link: !events(1).is_empty(),
        }
    }

    /// A filtered process waits in a call.
    fn notified(&mut self, listener: &Listener) {
        let notification = match listener.receive() {
            Ok(Some(notification)) => notification,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "a notification of the kernel cannot be read");
                return;
            }
        };
        let id = notification.id;
        let actions = match notification.call {
            seccomp::Call::Connect => self.connecting(listener, &notification),
            seccomp::Call::Listen => self.listening(listener, &notification),
            seccomp::Call::Foreign { .. } => {
                self.notice(foreign(&notification));
                vec![Action::Refuse(id, libc::ENOSYS)]
            }
            seccomp::Call::Other(_) => vec![Action::Proceed(id)],
        };
        self.act(listener, actions);
    }

    fn connecting(&mut self, listener: &Listener, notification: &Notification) -> Vec<Action> {
        let id = notification.id;
        let remote = match remote_end(notification) {
            Ok(Some(remote)) => remote,
            // No IP address, or none the kernel can read, either.
            Ok(None) => return vec![Action::Proceed(id)],
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                return vec![Action::Proceed(id)];
            }
            Err(error) => {
                // It may be a Unix socket as well. Without keys the guard stops what it sends.
                self.notice(format!(
                    "a connect of thread {} goes on unexamined: its address cannot be read \
                     ({error}); CAP_SYS_PTRACE is needed",
                    notification.thread
                ));
                return vec![Action::Proceed(id)];
            }
        };
        if !self.core.concerns(remote.ip()) || !listener.is_valid(id) {
            return vec![Action::Proceed(id)];
        }
        match caller(listener, notification) {
            Ok(Some(caller)) => {
                if !self.core.is_peer(remote, caller.facts.local.port()) {
                    return vec![Action::Proceed(id)];
                }
                self.ask(notification, caller, Call::Connect { remote })
            }
            Ok(None) => vec![Action::Proceed(id)],
            Err(error) => {
                self.notice(format!(
                    "connect to {remote} refused: its process cannot be looked into ({error}; \
                     CAP_SYS_PTRACE is needed, and kernel.yama.ptrace_scope below 3)"
                ));
                vec![Action::Refuse(id, libc::EHOSTUNREACH)]
            }
        }
    }

    fn listening(&mut self, listener: &Listener, notification: &Notification) -> Vec<Action> {
        match caller(listener, notification) {
            Ok(Some(caller)) => self.ask(notification, caller, Call::Listen),
            // No TCP socket; or the sidecar will find the listener by itself.
            Ok(None) | Err(_) => vec![Action::Proceed(notification.id)],
        }
    }

    fn ask(&mut self, notification: &Notification, caller: Caller, call: Call) -> Vec<Action> {
        if self.users.len() < USERS {
            self.users.insert(caller.user);
        }
        let question = Question {
            process: caller.process,
            fd: descriptor(notification),
            cookie: caller.facts.cookie,
            user: caller.user,
            call,
        };
        self.asked.insert(notification.id, question);
        self.core.call(Instant::now(), notification.id, call)
    }

    /// Takes in what the sidecar has sent.
    fn hear(&mut self, listener: &Listener) {
        while let Some(message) = self.receive() {
            match message {
                ToKeeper::Verdict { id, errno } => {
                    let actions = self.core.verdict(id, errno);
                    self.act(listener, actions);
                }
                ToKeeper::Peers { first, last, peers } => self.core.peers(first, last, peers),
                ToKeeper::Refused { why } => {
                    tracing::error!("the sidecar refuses to serve this daemon: {why}");
                    self.link = None;
                    self.retry_at = Instant::now() + REFUSED_RETRY;
                }
                ToKeeper::Welcome { .. } => {}
            }
        }
        if self.link.is_none() {
            let actions = self.core.lost();
            self.act(listener, actions);
        }
    }

    /// The next message of the sidecar that is understood; the link is gone afterwards if it broke.
    fn receive(&mut self) -> Option<ToKeeper> {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let link = self.link.as_ref()?;
            match unix::receive(link.as_fd(), &mut buffer) {
                Ok((0, _)) => self.link = None,
                Ok((length, _)) => {
                    if let Some(message) = decode(buffer.get(..length)?) {
                        return Some(message);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => self.link = None,
            }
        }
    }

    fn act(&mut self, listener: &Listener, actions: Vec<Action>) {
        let mut lost = false;
        for action in actions {
            match action {
                Action::Ask(id) => lost |= !self.put(id),
                Action::Proceed(id) => {
                    self.asked.remove(&id);
                    report(listener.proceed(id));
                }
                Action::Refuse(id, errno) => {
                    self.asked.remove(&id);
                    report(listener.refuse(id, errno));
                }
                Action::Warn(remote) => self.warn(remote),
            }
        }
        if lost {
            self.link = None;
            let actions = self.core.lost();
            // Without a sidecar nothing is asked, so this goes no deeper.
            self.act(listener, actions);
        }
    }

    /// Sends the question about a call; whether that went well.
    fn put(&mut self, id: u64) -> bool {
        let (Some(link), Some(question)) = (&self.link, self.asked.get(&id)) else {
            return false;
        };
        let message = ToSidecar::Call {
            id,
            fd: question.fd,
            cookie: question.cookie,
            user: question.user,
            call: question.call,
        };
        match unix::send(link.as_fd(), &encode(&message), &[question.process.as_fd()]) {
            // Its queue is full, so it is silent: the call's deadline will tell.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            sent => sent.is_ok(),
        }
    }

    fn warn(&mut self, remote: SocketAddr) {
        let now = Instant::now();
        let told = self.warned.get(&remote.ip());
        if told.is_some_and(|&told| now < told + WARN_EVERY) {
            return;
        }
        if self.warned.len() >= WARNED {
            self.warned.clear();
        }
        self.warned.insert(remote.ip(), now);
        tracing::warn!(
            daemon = self.launch.daemon,
            "connect to {remote} refused (EHOSTUNREACH): it is a configured peer, and ao-sidecar \
             does not answer, so that its keys cannot be installed; start ao-sidecar"
        );
    }

    /// Tells the operator, here and in the sidecar's log.
    fn notice(&self, text: String) {
        tracing::error!(daemon = self.launch.daemon, "{text}");
        if let Some(link) = &self.link {
            // It is in our own log.
            let _ = unix::send(link.as_fd(), &encode(&ToSidecar::Notice { text }), &[]);
        }
    }
}

struct Ready {
    notified: bool,
    hung_up: bool,
    link: bool,
}

fn timeout(patience: Option<Duration>) -> PollTimeout {
    patience.map_or(PollTimeout::NONE, |patience| {
        // Rounded up, so that a deadline has passed when the wait is over.
        let milliseconds = patience.as_millis() + 1;
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    })
}

/// A call that is gone needs no answer; another failure of the kernel can only be told.
fn report(answered: io::Result<bool>) {
    if let Err(error) = answered {
        tracing::error!(%error, "a waiting call cannot be answered");
    }
}

/// The descriptor a call is about: its first argument, an int.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel takes 32 bits of it"
)]
fn descriptor(notification: &Notification) -> i32 {
    notification.args[0] as i32
}

/// The calling process and the TCP socket of its call; nothing if the socket is no TCP socket or
/// nobody waits any more.
fn caller(listener: &Listener, notification: &Notification) -> io::Result<Option<Caller>> {
    let opened = process::group_of(notification.thread).and_then(PidFd::open);
    // Only now is it sure that the process opened is the one that waits, and not one that got
    // its number.
    if !listener.is_valid(notification.id) {
        return Ok(None);
    }
    let process = opened?;
    let socket = match process.get(descriptor(notification)) {
        Ok(socket) => socket,
        // The kernel will say so, too.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(None),
        Err(error) => return Err(error),
    };
    let user = fstat(&socket)?.st_uid;
    let facts = tcp_socket::facts(socket.as_fd())?;
    Ok(facts.map(|facts| Caller {
        process,
        facts,
        user,
    }))
}

/// The IP address a connect is for; nothing for other address families.
fn remote_end(notification: &Notification) -> io::Result<Option<SocketAddr>> {
    let [_, address, length, ..] = notification.args;
    let mut buffer = [0; ADDRESS_ROOM];
    let length = usize::try_from(length).map_or(ADDRESS_ROOM, |length| length.min(ADDRESS_ROOM));
    let room = buffer.get_mut(..length).unwrap_or_default();
    let read = process::read_memory(notification.thread, address, room)?;
    Ok(buffer.get(..read).and_then(parse_address))
}

/// A struct sockaddr_in or sockaddr_in6. Linux takes an IPv6 one without its scope, too.
fn parse_address(octets: &[u8]) -> Option<SocketAddr> {
    let field = |from: usize, to: usize| octets.get(from..to);
    let family = u16::from_ne_bytes(field(0, 2)?.try_into().ok()?);
    let port = u16::from_be_bytes(field(2, 4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let address: [u8; 4] = field(4, 8)?.try_into().ok()?;
            field(8, 16)?;
            Some(SocketAddrV4::new(address.into(), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(field(4, 8)?.try_into().ok()?);
            let address: [u8; 16] = field(8, 24)?.try_into().ok()?;
            let scope = field(24, 28).and_then(|scope| scope.try_into().ok());
            let scope = scope.map_or(0, u32::from_ne_bytes);
            Some(SocketAddrV6::new(address.into(), port, flow, scope).into())
        }
        _ => None,
    }
}

fn foreign(notification: &Notification) -> String {
    let process = process::group_of(notification.thread).unwrap_or(notification.thread);
    let name = process::name(process).unwrap_or_else(|| "?".to_owned());
    format!(
        "process {process} ({name}) makes system calls of a foreign ABI (32-bit or x32): refused, \
         for its sockets could not be protected; run a 64-bit program"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let mut v4 = vec![2, 0, 0, 179, 10, 0, 0, 2];
        assert_eq!(parse_address(&v4), None, "too short for the kernel");
        v4.resize(16, 0);
        let expected: SocketAddr = "10.0.0.2:179".parse().unwrap();
        assert_eq!(parse_address(&v4), Some(expected));

        let mut v6 = vec![10, 0, 0, 179, 0, 0, 0, 0];
        let address: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        v6.extend(address.octets());
        assert_eq!(parse_address(&v6), "[fe80::1]:179".parse().ok());
        v6.extend(3_u32.to_ne_bytes());
        assert_eq!(parse_address(&v6), "[fe80::1%3]:179".parse().ok());

        assert_eq!(parse_address(&[1, 0, b'/', b'x']), None, "a Unix socket");
        assert_eq!(parse_address(&[]), None);
    }
}
