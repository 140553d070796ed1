//! One comparison of all sockets with what they should have, and its result.
//!
//! A key is added everywhere before it is advertised anywhere, and nothing is deleted before that:
//! a SYN that names a key the listener lacks gets no answer at all (Linux), and a far end that
//! switches to a key early loses its segments.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ao_sys::sock_diag::TcpState;
use ao_sys::tcp_ao::Scope;
use ao_sys::tcp_socket::Facts;

use super::optmem::OptionMemory;
use super::plan::{Role, Wanted};
use super::sockets::{self, Concerned, Found, Missed, Opener, Trust};
use super::steps::{self, Missing, Problem};
use super::wanted::{Place, Target, of_connection};

/// What a round is to do beside what is always done.
#[derive(Debug)]
pub(super) struct Orders {
    /// Whose connections are looked at.
    pub(super) of: Concerned,
    /// Nothing is selected or deleted unless every key could be added everywhere.
    pub(super) strictly: bool,
    /// Keys by peer and SendID that go even where they are used.
    pub(super) forced: HashSet<(Arc<str>, u8)>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            of: Concerned::All,
            strictly: false,
            forced: HashSet::new(),
        }
    }
}

/// A key that stays because a session uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) peer: Arc<str>,
    pub(super) send_id: u8,
    pub(super) session: String,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            peer: _,
            send_id,
            session,
        } = self;
        write!(
            f,
            "{session}: the key with send_id {send_id} is still in use"
        )
    }
}

/// What a round did and found.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) listeners: u32,
    pub(super) connections: u32,
    pub(super) added: usize,
    pub(super) selected: usize,
    pub(super) deleted: usize,
    /// Keys that stay because the far end still uses them.
    pub(super) waiting: Vec<Used>,
    /// What could not be done: it will be tried again.
    pub(super) problems: Vec<String>,
    /// Peers some of whose keys could not be added.
    incomplete: HashSet<Arc<str>>,
    /// By peer: what could not be done at one of its sockets.
    pub(super) troubles: HashMap<Arc<str>, String>,
    /// What could not be done at a socket that is for many peers.
    pub(super) trouble_for_all: Option<String>,
    /// By peer: a session that nobody has accepted yet.
    pub(super) unaccepted: HashMap<Arc<str>, String>,
    /// Why not every socket has, as far as is known, all keys it should have.
    pub(super) refused: Vec<String>,
    /// Keys that others are in the way of.
    left_out: usize,
    /// Sockets that are to be looked at again soon.
    pub(super) unsettled: usize,
}

impl Round {
    /// Whether a further round is due soon.
    pub(super) fn is_unfinished(&self) -> bool {
        self.unsettled > 0 || !self.problems.is_empty() || !self.waiting.is_empty()
    }

    /// Logs what it did, and the problems that `last` did not have.
    pub(super) fn log_after(&self, last: &Self) {
        if self.added + self.selected + self.deleted > 0 {
            tracing::info!(
                listeners = self.listeners,
                connections = self.connections,
                added = self.added,
                selected = self.selected,
                deleted = self.deleted,
                "keys of sockets changed"
            );
        }
        let is_new = |text: &&String| !last.problems.contains(*text);
        for problem in self.problems.iter().filter(is_new) {
            tracing::warn!("{problem}");
        }
        let is_new = |used: &&Used| !last.waiting.contains(*used);
        for waiting in self.waiting.iter().filter(is_new) {
            tracing::info!("{waiting}: it goes as soon as the far end has moved on");
        }
    }

    /// Takes out sockets of users that may not have keys.
    fn leave_out_strangers(&mut self, found: &mut Vec<Found>, trust: &Trust) {
        let is_trusted =
            |found: &mut Found| trust.covers(found.socket.uid, found.socket.local.port());
        let strangers: Vec<Found> = found.extract_if(.., |found| !is_trusted(found)).collect();
        if let Some(first) = strangers.first() {
            self.problems.push(format!(
                "{} of user {} ({} such sockets) gets no keys, which it could read: it is \
                 neither root's, nor a launched daemon's, nor on a privileged port; start its \
                 daemon by `ao-sidecar exec -- …`",
                first.name(),
                first.socket.uid,
                strangers.len()
            ));
        }
        // A session of theirs is none of just anyone: it has keys of the peer's, or it would not be
        // there. A listener or a handshake is, and must not hold up the change of keys.
        for session in strangers.iter().filter(|stranger| stranger.is_session()) {
            let text = format!("{}: its user may have no keys", session.name());
            self.trouble(session.peer.as_ref().map(|peer| &peer.name), &text);
        }
    }

    fn problem(&mut self, found: &Found, problem: &Problem) {
        let text = format!("{}: {problem}", found.name());
        let of_connection = found.peer.as_ref().map(|peer| &peer.name);
        self.incomplete.extend(problem.peer().cloned());
        self.trouble(problem.peer().or(of_connection), &text);
        self.problems.push(text);
    }

    fn trouble(&mut self, peer: Option<&Arc<str>>, text: &str) {
        if let Some(peer) = peer {
            let known = self.troubles.entry(Arc::clone(peer));
            known.or_insert_with(|| text.to_owned());
        } else if self.trouble_for_all.is_none() {
            self.trouble_for_all = Some(text.to_owned());
        }
    }

    /// Takes note of sockets that were not worked on.
    fn missed(&mut self, missed: Missed<'_>) {
        for found in missed.orphans {
            self.unsettled += 1;
            match &found.peer {
                Some(peer) if found.waits() => {
                    let session = self.unaccepted.entry(Arc::clone(&peer.name));
                    session.or_insert_with(|| found.name());
                }
                Some(_) => {}
                None => self.trouble(None, &format!("{}: no process has it", found.name())),
            }
        }
        for (found, error) in missed.refused {
            self.unsettled += 1;
            let problem = found.refusal(&error);
            self.trouble(found.peer.as_ref().map(|peer| &peer.name), &problem);
            self.refused.push(problem.clone());
            self.problems.push(problem);
        }
    }
}

/// Makes all sockets have what they should have, as far as that is possible now.
pub(super) fn run(
    target: &Target,
    opener: &mut Opener,
    memory: &OptionMemory,
    trust: &Trust,
    orders: &Orders,
) -> io::Result<Round> {
    let mut round = Round::default();
    let all = sockets::find(target, &orders.of)?;
    let (mut found, mut connections): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|found| found.peer.is_none());
    round.leave_out_strangers(&mut found, trust);
    // Listeners first: what they have, connections have from birth.
    add(target, &found, opener, memory, Missing::Free, &mut round);
    if round.added > 0 {
        // Those born meanwhile, without the new keys, are looked at as well.
        connections = sockets::find(target, &orders.of)?;
        connections.retain(|found| found.peer.is_some());
    }
    round.leave_out_strangers(&mut connections, trust);
    add(
        target,
        &connections,
        opener,
        memory,
        Missing::Free,
        &mut round,
    );
    found.append(&mut connections);
    if round.left_out > 0 && (round.refused.is_empty() || !orders.strictly) {
        // Now that all others fit, keys may go that are in the way of some.
        let (listeners, connections) = (round.listeners, round.connections);
        add(target, &found, opener, memory, Missing::All, &mut round);
        (round.listeners, round.connections) = (listeners, connections);
    }
    if round.refused.is_empty() || !orders.strictly {
        select_and_delete(target, &found, opener, orders, &mut round);
        if round.deleted > 0 {
            // Those born meanwhile may have what their listener has lost since.
            let known: HashSet<u64> = found.iter().map(|found| found.socket.cookie).collect();
            let mut late = sockets::find(target, &orders.of)?;
            late.retain(|found| found.peer.is_some() && !known.contains(&found.socket.cookie));
            round.leave_out_strangers(&mut late, trust);
            add(target, &late, opener, memory, Missing::Free, &mut round);
            select_and_delete(target, &late, opener, orders, &mut round);
            found.append(&mut late);
        }
    }
    if matches!(orders.of, Concerned::All) {
        opener.retain(&found);
    }
    round.problems.sort();
    round.problems.dedup();
    Ok(round)
}

fn add(
    target: &Target,
    found: &[Found],
    opener: &mut Opener,
    memory: &OptionMemory,
    missing: Missing,
    round: &mut Round,
) {
    let mut naked = Vec::new();
    let missed = opener.for_each(found, |found, socket, facts| {
        let (role, wanted) = wanted(target, found, facts);
        match role {
            Role::Listener => round.listeners += 1,
            Role::Opening | Role::Connecting | Role::Connection => round.connections += 1,
        }
        if role.has_session() && is_naked(socket) {
            naked.push(found.clone());
            return;
        }
        let added = steps::add(socket.as_fd(), role, &wanted, missing, memory);
        round.added += added.keys;
        round.left_out += added.left_out;
        for problem in &added.problems {
            round.problem(found, problem);
            round.refused.push(problem.to_string());
        }
    });
    round.missed(missed);
    round.refused.dedup();
    for found in naked {
        let problem = describe_naked(&found, opener);
        round.problems.push(problem);
    }
}

fn select_and_delete(
    target: &Target,
    found: &[Found],
    opener: &mut Opener,
    orders: &Orders,
    round: &mut Round,
) {
    let incomplete = round.incomplete.clone();
    let missed = opener.for_each(found, |found, socket, facts| {
        let (role, wanted) = wanted(target, found, facts);
        let held = |want: &Wanted| incomplete.contains(&want.peer);
        if role.has_session() && (is_naked(socket) || wanted.iter().any(held)) {
            return;
        }
        let selected = match steps::select(socket.as_fd(), role, &wanted) {
            Ok(selected) => selected,
            Err(problem) => {
                round.problem(found, &problem);
                false
            }
        };
        round.selected += usize::from(selected);
        if selected && role == Role::Connecting {
            // The far end may be answering the SYN before, with the key that that one asked for.
            round.unsettled += 1;
            return;
        }
        let is_ours = |scope: &Scope| target.is_ours(scope);
        let peer = found.peer.as_ref().map(|peer| &peer.name);
        let forced = |send_id| {
            let key = peer.map(|peer| (Arc::clone(peer), send_id));
            key.is_some_and(|key| orders.forced.contains(&key))
        };
        match steps::delete(socket.as_fd(), role, &wanted, is_ours, forced) {
            Ok(deleted) => {
                round.deleted += deleted.keys;
                round
                    .waiting
                    .extend(deleted.waiting.iter().filter_map(|key| {
                        Some(Used {
                            peer: Arc::clone(peer?),
                            send_id: key.send_id,
                            session: found.name(),
                        })
                    }));
            }
            Err(problem) => round.problem(found, &problem),
        }
    });
    round.missed(missed);
}

/// What a socket is for, and the keys it should have.
fn wanted(target: &Target, found: &Found, facts: &Facts) -> (Role, Vec<Wanted>) {
    match &found.peer {
        Some(peer) => (
            match facts.state {
                TcpState::SynSent => Role::Connecting,
                _ => Role::Connection,
            },
            of_connection(peer, found.socket.remote.ip()),
        ),
        None => (Role::Listener, target.of_listener(&Place::of(facts))),
    }
}

/// Whether a connection has no TCP-AO: it can never get it.
fn is_naked(socket: &impl AsFd) -> bool {
    matches!(ao_sys::tcp_ao::info(socket.as_fd()), Ok(None))
}

fn describe_naked(found: &Found, opener: &Opener) -> String {
    let who = opener.owner(&found.socket).map_or_else(
        || "its process".to_owned(),
        |(pid, name)| format!("{name} (process {pid})"),
    );
    let name = found.name();
    if found.socket.state == TcpState::SynSent {
        format!(
            "{name}: {who} was not launched by `ao-sidecar exec`, so its own connections cannot \
             get keys and the guard blocks them: start it by `ao-sidecar exec -- …`"
        )
    } else {
        format!("{name}: {who} has this session without TCP-AO; the guard blocks it")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use ao_engine::crypto::{Algorithm, MasterKey};
    use ao_engine::policy::{Mkt, Peer, Policy, Prefix, Selector};
    use ao_sys::tcp_ao;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket,
    };
    use nix::time::{ClockId, clock_gettime};

    use super::*;

    const PEERS: u16 = 1000;
    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

    fn address(number: u16) -> Ipv4Addr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(127, 1, high, low)
    }

    fn key(id: u8) -> Arc<Mkt> {
        Arc::new(Mkt {
            send_id: id,
            recv_id: id,
            algorithm: Algorithm::HmacSha1_96,
            master_key: MasterKey::new(&[id; 20]).unwrap(),
            include_options: true,
        })
    }

    fn peer(number: u16) -> Peer {
        Peer {
            name: format!("peer {number}").into(),
            selector: Selector {
                remote: Prefix::host(address(number).into()),
                local: None,
                ports: 179..=179,
                interface: None,
                domain: None,
            },
            keys: vec![key(1), key(2)],
            accept_only: Vec::new(),
            ttl_min: 0,
        }
    }

    /// A peer's end of a session, with the keys for ours.
    fn connected(number: u16) -> OwnedFd {
        let client = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        let end = |ip: Ipv4Addr, port| SockaddrStorage::from(SocketAddr::new(ip.into(), port));
        bind(
            std::os::fd::AsRawFd::as_raw_fd(&client),
            &end(address(number), 0),
        )
        .unwrap();
        for id in [1, 2] {
            let wanted = Wanted {
                peer: "here".into(),
                scope: Scope {
                    address: IpAddr::V4(HERE),
                    prefix: 32,
                    vrf: None,
                },
                mkt: key(id),
                accept_only: false,
            };
            tcp_ao::add_key(client.as_fd(), &wanted.new_key(false)).unwrap();
        }
        connect(std::os::fd::AsRawFd::as_raw_fd(&client), &end(HERE, 179)).unwrap();
        client
    }

    fn processor_time() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
            .unwrap()
            .into()
    }

    /// The median of five.
    fn cost(mut work: impl FnMut()) -> Duration {
        let mut costs: Vec<Duration> = (0..5)
            .map(|_| {
                let before = processor_time();
                work();
                processor_time() - before
            })
            .collect();
        costs.sort();
        costs[2]
    }

    #[test]
    #[ignore = "needs the lab's kernel"]
    fn a_round_over_a_thousand_sessions_costs_a_few_system_calls_each() {
        let done = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            setrlimit(Resource::RLIMIT_NOFILE, 8192, 8192).unwrap();
            let policy = Policy::new((0..PEERS).map(peer).collect()).unwrap();
            let names = policy
                .peers()
                .iter()
                .map(|peer| peer.name.clone())
                .collect();
            let target = Target::after(
                &Target::default(),
                Arc::new(policy),
                names,
                Arc::new(ao_sys::links::Links::read().unwrap()),
            );
            let (mut opener, memory) = (Opener::default(), OptionMemory::default());
            let trust = Trust::new(BTreeSet::new());
            let mut round =
                || run(&target, &mut opener, &memory, &trust, &Orders::default()).unwrap();

            let listener = TcpListener::bind((HERE, 179)).unwrap();
            let first = round();
            assert_eq!((first.listeners, first.added), (1, 2000), "{first:?}");
            let mut ends: Vec<(OwnedFd, TcpStream)> = Vec::new();
            for number in 0..PEERS {
                let client = connected(number);
                ends.push((client, listener.accept().unwrap().0));
            }
            let settled = round();
            assert_eq!(
                settled.connections,
                u32::from(PEERS),
                "{:?}",
                settled.problems
            );
            assert_eq!(settled.problems, [] as [String; 0]);

            let plain = cost(|| {
                for (_, accepted) in &ends {
                    assert!(tcp_ao::info(accepted.as_fd()).unwrap().is_some());
                    assert_eq!(tcp_ao::keys(accepted.as_fd()).unwrap().len(), 2);
                }
            });
            let ours = cost(|| {
                let round = round();
                assert_eq!(round.added + round.selected + round.deleted, 0, "{round:?}");
            });
            let ratio = ours.as_secs_f64() / plain.as_secs_f64();
            eprintln!("a round: {ours:?}; plain getsockopt of all: {plain:?}; ratio {ratio:.1}");
            assert!(ratio < 12.0, "a round: {ours:?}; plain: {plain:?}");
        });
        done.join().unwrap();
    }
}
