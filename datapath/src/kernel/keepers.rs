//! The sidecar's side of the keeper socket: launched daemons register, and their calls are
//! decided.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ao_sys::pidfd::PidFd;
use ao_sys::{process, unix};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{Shutdown, shutdown};

use super::calls;
use super::{Launched, Shared};
use crate::abort::AbortOnPanic;
use crate::keeper::protocol::{
    MAX_MESSAGE, PeerRange, ToKeeper, ToSidecar, VERSION, decode, encode, peer_messages,
};

/// More daemons than these are no daemons.
const MAX_KEEPERS: usize = 256;
/// How long a keeper may take to take a message. Others wait meanwhile.
const SEND_PATIENCE: Duration = Duration::from_millis(50);

/// A daemon that registered, and the way to its keeper.
struct Registered {
    number: u64,
    launched: Launched,
    link: Weak<OwnedFd>,
    /// Users that its sockets were made by.
    users: BTreeSet<u32>,
    /// Whether it has been told its peers. Not before they are the kernel's: the daemon starts
    /// as soon as it knows them.
    welcomed: bool,
}

/// All daemons that are registered.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
    /// Held while a list of peers is sent, whose messages must not mix with another's.
    telling: Mutex<()>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    daemons: Vec<Registered>,
}

impl Registry {
    pub(super) fn daemons(&self) -> Vec<Launched> {
        let entries = self.entries();
        entries
            .daemons
            .iter()
            .map(|entry| entry.launched.clone())
            .collect()
    }

    /// Users that launched daemons make sockets as.
    pub(super) fn users(&self) -> BTreeSet<u32> {
        let entries = self.entries();
        let users = entries.daemons.iter().flat_map(|entry| &entry.users);
        users.copied().collect()
    }

    fn add_user(&self, number: u64, user: u32) {
        let mut entries = self.entries();
        let mut daemons = entries.daemons.iter_mut();
        if let Some(entry) = daemons.find(|entry| entry.number == number) {
            entry.users.insert(user);
        }
    }

    /// Tells all keepers their peers.
    pub(super) fn tell(&self, peers: impl Fn() -> Vec<PeerRange>) {
        let _one_list_at_a_time = self.telling();
        let links: Vec<Arc<OwnedFd>> = self
            .entries()
            .daemons
            .iter()
            .filter(|entry| entry.welcomed)
            .filter_map(|entry| entry.link.upgrade())
            .collect();
        let peers = peers();
        for link in links {
            if tell(&link, &peers).is_err() {
                // Half a list is worse than none: its thread ends, and it comes again.
                let _ = shutdown(link.as_raw_fd(), Shutdown::Both);
            }
        }
    }

    /// Tells a new keeper its peers, and from then on their changes.
    fn welcome(
        &self,
        number: u64,
        link: &OwnedFd,
        peers: impl Fn() -> Vec<PeerRange>,
    ) -> io::Result<()> {
        let _one_list_at_a_time = self.telling();
        let mut entries = self.entries();
        let mut daemons = entries.daemons.iter_mut();
        if let Some(entry) = daemons.find(|entry| entry.number == number) {
            entry.welcomed = true;
        }
        drop(entries);
        send(link, &ToKeeper::Welcome { version: VERSION })?;
        tell(link, &peers())
    }

    /// The number of the entry; nothing if there are too many.
    fn insert(&self, launched: Launched, users: Vec<u32>, link: &Arc<OwnedFd>) -> Option<u64> {
        let mut entries = self.entries();
        if entries.daemons.len() >= MAX_KEEPERS {
            return None;
        }
        let number = entries.next;
        entries.next += 1;
        entries.daemons.push(Registered {
            number,
            launched,
            link: Arc::downgrade(link),
            users: users.into_iter().collect(),
            welcomed: false,
        });
        Some(number)
    }

    fn remove(&self, number: u64) {
        self.entries()
            .daemons
            .retain(|entry| entry.number != number);
    }

    fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(link: &OwnedFd, peers: &[PeerRange]) -> io::Result<()> {
    peer_messages(peers)
        .iter()
        .try_for_each(|message| send(link, message))
}

fn send(link: &OwnedFd, message: &ToKeeper) -> io::Result<()> {
    unix::send(link.as_fd(), &encode(message), &[]).map(|_| ())
}

/// The socket, served.
pub(super) struct Server {
    path: PathBuf,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves keepers at `path`.
    pub(super) fn start(path: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        let socket = bind(path)?;
        let stop = Arc::new(EventFd::new()?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("ao-keepers".to_owned())
            .spawn(move || {
                let _abort = AbortOnPanic;
                serve(&socket, &shared, &stopped);
            })?;
        Ok(Self {
            path: path.to_owned(),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Keepers look for another sidecar from now on, not for this one.
        let _ = fs::remove_file(&self.path);
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds the socket, in place of one that a killed sidecar left.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    match unix::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if unix::connect(path).is_ok() {
                return Err(error);
            }
            fs::remove_file(path)?;
            unix::bind(path)
        }
        bound => bound,
    }
}

fn serve(socket: &OwnedFd, shared: &Arc<Shared>, stop: &Arc<EventFd>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while readable(socket, stop) {
        threads.retain(|thread| !thread.is_finished());
        let link = match unix::accept(socket.as_fd()) {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%error, "a keeper cannot be accepted");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (shared, stop) = (Arc::clone(shared), Arc::clone(stop));
        let attend = move || {
            let _abort = AbortOnPanic;
            let link = Arc::new(link);
            if let Err(error) = attend(&link, &shared, &stop) {
                tracing::debug!(%error, "the link to a keeper broke");
            }
        };
        match thread::Builder::new()
            .name("ao-keeper".to_owned())
            .spawn(attend)
        {
            Ok(thread) => threads.push(thread),
            Err(error) => tracing::warn!(%error, "a keeper cannot be served"),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Waits until there is something to read; false when it is time to stop.
fn readable(socket: &OwnedFd, stop: &EventFd) -> bool {
    loop {
        let mut ready = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted wait is as good as one that ended.
        let _ = poll(&mut ready, PollTimeout::NONE);
        let [stopped, readable] = ready.map(|ready| ready.any().unwrap_or(false));
        if stopped || readable {
            return !stopped;
        }
    }
}

/// Serves one keeper until it goes.
fn attend(link: &Arc<OwnedFd>, shared: &Shared, stop: &EventFd) -> io::Result<()> {
    unix::set_send_timeout(link.as_fd(), SEND_PATIENCE)?;
    let Some((
        ToSidecar::Hello {
            version,
            daemon,
            pid,
            network_namespace,
            users,
        },
        _,
    )) = receive(link, stop)?
    else {
        return Ok(());
    };
    let launched = Launched { name: daemon, pid };
    if let Err(why) = welcome(link, version, network_namespace) {
        tracing::error!(
            daemon = launched.name,
            pid,
            "launched daemon refused: {why}"
        );
        return send(link, &ToKeeper::Refused { why });
    }
    let Some(number) = shared.registry.insert(launched.clone(), users, link) else {
        let why = format!("{MAX_KEEPERS} daemons are registered already");
        return send(link, &ToKeeper::Refused { why });
    };
    tracing::info!(daemon = launched.name, pid, "launched daemon registered");
    // Its peers become the kernel's before it learns of them, and opens its first connection.
    shared.registered();
    let mut served = shared
        .registry
        .welcome(number, link, || shared.peer_ranges());
    while served.is_ok() {
        served = match receive(link, stop) {
            Ok(Some((message, attached))) => {
                if let ToSidecar::Call { user, .. } = message {
                    shared.registry.add_user(number, user);
                }
                answer(link, shared, &launched, message, attached)
            }
            Ok(None) => break,
            Err(error) => Err(error),
        };
    }
    shared.registry.remove(number);
    tracing::info!(daemon = launched.name, pid, "daemon or its keeper gone");
    if !stopping(stop) {
        shared.registered();
    }
    served
}

fn stopping(stop: &EventFd) -> bool {
    let mut ready = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut ready, PollTimeout::ZERO);
    ready[0].any().unwrap_or(false)
}

/// Whether this keeper is one to work with.
fn welcome(link: &OwnedFd, version: u32, network_namespace: u64) -> Result<(), String> {
    let of = |error: io::Error| error.to_string();
    let uid = unix::peer_credentials(link.as_fd()).map_err(of)?.uid;
    if uid != 0 {
        return Err(format!("the keeper runs as user {uid}, not as root"));
    }
    if version < 1 {
        return Err(format!(
            "version {version} of the keeper's protocol is unknown"
        ));
    }
    let own = process::network_namespace(None).map_err(of)?;
    if network_namespace != own {
        return Err(
            "the daemon runs in another network namespace than the sidecar, whose keys, guard and \
             rules do not reach it: run an ao-sidecar of its own in there"
                .to_owned(),
        );
    }
    Ok(())
}

/// The next message that is understood; nothing when the keeper is gone or it is time to stop.
fn receive(link: &OwnedFd, stop: &EventFd) -> io::Result<Option<(ToSidecar, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    while readable(link, stop) {
        let (length, attached) = unix::receive(link.as_fd(), &mut buffer)?;
        if length == 0 {
            return Ok(None);
        }
        if let Some(message) = buffer.get(..length).and_then(decode) {
            return Ok(Some((message, attached)));
        }
    }
    Ok(None)
}

fn answer(
    link: &OwnedFd,
    shared: &Shared,
    daemon: &Launched,
    message: ToSidecar,
    attached: Vec<OwnedFd>,
) -> io::Result<()> {
    match message {
        ToSidecar::Call {
            id,
            fd,
            cookie,
            call,
            user: _,
        } => {
            let process = attached.into_iter().next().map(PidFd::from);
            let errno = match process {
                Some(process) => calls::decide(shared, daemon, &process, fd, cookie, call),
                None => Some(libc::EHOSTUNREACH),
            };
            send(link, &ToKeeper::Verdict { id, errno })
        }
        ToSidecar::Notice { text } => {
            tracing::error!(daemon = daemon.name, "{text}");
            Ok(())
        }
        // Once is enough.
        ToSidecar::Hello { .. } => Ok(()),
    }
}
