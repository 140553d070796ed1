//! Keys of single peers: on peers as they are kept, and in the kernel, on sockets of this process,
//! where the far end is a plain socket with keys of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::Prefix;
use ao_sys::tcp_ao::{self, NewKey, Scope};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, socket,
};

use super::*;
use crate::choice::Decision;
use crate::settings::{Choice, OnExit, PeerSpec, Settings, Strip};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const FAR: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
/// Nobody answers there.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const PATIENCE: Duration = Duration::from_secs(20);

fn key(id: u8) -> Arc<Mkt> {
    Arc::new(Mkt {
        send_id: id,
        recv_id: id,
        algorithm: Algorithm::HmacSha1_96,
        master_key: MasterKey::new(&[id; 20]).unwrap(),
        include_options: true,
    })
}

fn spec(name: &str, remote: Ipv4Addr) -> PeerSpec {
    PeerSpec {
        name: name.into(),
        remote: Prefix::host(remote.into()),
        local: None,
        ports: 179..=179,
        interface: None,
        vrf: None,
        keys: Vec::new(),
        algorithms: Vec::new(),
        ttl_min: 0,
        datapath: Choice::Kernel,
    }
}

fn served(ids: &[u8]) -> Served {
    Served {
        spec: PeerSpec {
            keys: ids.iter().map(|&id| key(id)).collect(),
            ..spec("p", FAR)
        },
        accept_only: Vec::new(),
        decision: Decision {
            backend: Backend::Kernel,
            reason: String::new(),
        },
    }
}

fn ids(peer: &Served) -> Vec<u8> {
    peer.spec.keys.iter().map(|key| key.send_id).collect()
}

#[test]
fn keys_come_behind_and_are_moved_to_the_front() {
    let mut peer = served(&[1, 2]);
    peer.install(&key(3)).unwrap();
    peer.install(&key(1)).unwrap();
    assert_eq!(ids(&peer), [1, 2, 3]);
    peer.select(3).unwrap();
    assert_eq!(ids(&peer), [3, 1, 2]);
    peer.select(3).unwrap();
    assert_eq!(ids(&peer), [3, 1, 2]);
    let mut other = (*key(9)).clone_with_recv_id(2);
    assert_eq!(
        peer.install(&Arc::new(other)),
        Err(KeyError::Taken {
            send_id: 9,
            recv_id: 2
        })
    );
    other = (*key(2)).clone_with_recv_id(9);
    assert!(peer.install(&Arc::new(other)).is_err());
    assert_eq!(peer.select(7), Err(KeyError::UnknownKey(7)));
}

#[test]
fn the_first_key_is_always_one_to_send_with() {
    let mut peer = served(&[1, 2, 3]);
    assert_eq!(peer.retire(1), Err(KeyError::First(1)));
    peer.retire(2).unwrap();
    peer.retire(3).unwrap();
    peer.retire(3).unwrap();
    assert_eq!(peer.accept_only, [2, 3]);
    peer.select(2).unwrap();
    assert_eq!(peer.accept_only, [3]);
    peer.delete(2);
    peer.delete(1);
    assert_eq!((ids(&peer), &peer.accept_only[..]), (vec![3], &[][..]));
    // A reload keeps what it does not touch.
    let mut peer = served(&[1, 2, 3]);
    peer.retire(2).unwrap();
    peer.retire(3).unwrap();
    assert!(!peer.replace(&[key(1), key(2), key(3)]));
    assert_eq!(peer.accept_only, [2, 3]);
    assert!(peer.replace(&[key(3), key(2)]));
    assert_eq!(peer.accept_only, [2]);
}

fn session(current_key: u8, rnext_key: u8) -> Session {
    Session {
        peer: "p".into(),
        local: (HERE, 179).into(),
        remote: (FAR, 40_000).into(),
        vrf: None,
        backend: Backend::Kernel,
        state: SessionState::Established,
        current_key,
        rnext_key,
        segments_good: 0,
        segments_bad: 0,
        segments_unsigned: 0,
        segments_sent: 0,
        key_not_found: 0,
        dropped_icmp: 0,
        keys: Vec::new(),
        snd_sne: None,
        rcv_sne: None,
    }
}

#[test]
fn a_key_is_unused_only_where_all_sessions_can_be_seen() {
    let peer = served(&[1, 2, 3]);
    let sessions = Ok(vec![session(1, 2)]);
    for (send_id, is_used) in [(1, true), (2, true), (3, false)] {
        let checked = check_unused(&peer, send_id, Some(&sessions));
        assert_eq!(checked.is_err(), is_used, "{send_id}: {checked:?}");
    }
    check_unused(&peer, 3, Some(&Ok(Vec::new()))).unwrap();
    assert_eq!(
        check_unused(&peer, 3, Some(&Err(KeyError::Unanswered))),
        Err(KeyError::Unanswered)
    );
    assert_eq!(check_unused(&peer, 3, None), Err(KeyError::UnknownPeer));
}

#[test]
fn one_socket_that_cannot_be_closed_keeps_no_other_open() {
    let tried = std::cell::RefCell::new(Vec::new());
    let close = |&errno: &i32| {
        tried.borrow_mut().push(errno);
        match errno {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    };
    assert_eq!(close_each(&[0, libc::ENOENT, 0], close).unwrap(), 3);
    tried.borrow_mut().clear();
    let sockets = [libc::ENOENT, libc::EPERM, libc::EOPNOTSUPP, 0];
    let error = close_each(&sockets, close).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(*tried.borrow(), sockets);
}

trait WithRecvId {
    fn clone_with_recv_id(&self, recv_id: u8) -> Mkt;
}

impl WithRecvId for Mkt {
    fn clone_with_recv_id(&self, recv_id: u8) -> Mkt {
        Mkt {
            send_id: self.send_id,
            recv_id,
            algorithm: self.algorithm,
            master_key: MasterKey::new(self.master_key.expose()).unwrap(),
            include_options: true,
        }
    }
}

/// In a network namespace of its own.
fn apart(test: impl FnOnce() + Send + 'static) {
    let run = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let commands = "ip link set lo up; ip addr add 10.0.0.1/24 dev lo";
        let done = Command::new("sh").args(["-ec", commands]).status();
        assert!(done.unwrap().success());
        test();
    });
    if let Err(panic) = run.join() {
        std::panic::resume_unwind(panic);
    }
}

struct Lab {
    datapath: Datapath,
    _state: tempfile::TempDir,
}

impl Lab {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let settings = Settings {
            peers: vec![spec("far", FAR), spec("nowhere", NOWHERE)],
            first_queue: 400,
            workers: 1,
            queue_length: 1024,
            mark_bit: 0x0400_0000,
            max_connections: 64,
            strip: Strip::Auto,
            on_exit: OnExit::Remove,
            state_dir: state.path().to_owned(),
            keeper_socket: state.path().join("keeper.sock"),
            replace_sessions: false,
        };
        Self {
            datapath: Datapath::start(settings).unwrap(),
            _state: state,
        }
    }

    fn install(&self, peer: &str, id: u8) -> Result<(), KeyError> {
        self.datapath.install(&[(peer.into(), key(id))]).remove(0)
    }

    fn select(&self, peer: &str, id: u8) -> Result<(), KeyError> {
        self.datapath.select(&[(peer.into(), id)]).remove(0)
    }

    fn sessions(&self) -> Vec<Session> {
        let observed = self.datapath.observe(&["far".into()]).remove("far");
        observed.unwrap().unwrap()
    }

    fn delete(&self, id: u8, removal: Removal) -> Result<(), KeyError> {
        self.datapath
            .delete(&[("far".into(), id, removal)])
            .remove(0)
    }
}

/// A socket with keys for `remote`, the first of which it begins with.
fn with_keys(remote: Ipv4Addr, ids: &[u8]) -> OwnedFd {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )
    .unwrap();
    for (place, &id) in ids.iter().enumerate() {
        add(socket.as_fd(), remote, id, place == 0);
    }
    socket
}

fn add(socket: BorrowedFd<'_>, remote: Ipv4Addr, id: u8, first: bool) {
    let mkt = key(id);
    let new = NewKey {
        scope: Scope {
            address: IpAddr::V4(remote),
            prefix: 32,
            vrf: None,
        },
        send_id: id,
        recv_id: id,
        algorithm: "hmac(sha1)",
        mac_length: 12,
        exclude_options: false,
        secret: mkt.master_key.expose(),
        set_current: first,
        set_rnext: first,
    };
    tcp_ao::add_key(socket, &new).unwrap();
}

fn begin(socket: &OwnedFd, local: Ipv4Addr, remote: Ipv4Addr) {
    let end = |ip: Ipv4Addr, port| SockaddrStorage::from(SocketAddr::new(ip.into(), port));
    bind(socket.as_raw_fd(), &end(local, 0)).unwrap();
    let begun = connect(socket.as_raw_fd(), &end(remote, 179));
    assert!(matches!(begun, Ok(()) | Err(nix::Error::EINPROGRESS)));
}

/// The far end of a session with the listener here.
fn far_end(ids: &[u8]) -> TcpStream {
    let socket = with_keys(HERE, ids);
    begin(&socket, FAR, HERE);
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn accepted(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    wait_until("a connection", || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (stream, _) = stream.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

fn installed(socket: &impl AsFd) -> Vec<u8> {
    let keys = tcp_ao::keys(socket.as_fd()).unwrap();
    let mut ids: Vec<u8> = keys.iter().map(|key| key.send_id).collect();
    ids.sort_unstable();
    ids
}

fn in_use(socket: &impl AsFd) -> (u8, u8) {
    let info = tcp_ao::info(socket.as_fd()).unwrap().unwrap();
    (info.current_key.unwrap(), info.rnext_key.unwrap())
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"keepalive").unwrap();
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    to.read_exact(&mut [0; 9]).unwrap();
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// From no key at all to a key that is gone, with the proof of each step.
#[test]
#[ignore = "needs the lab's kernel"]
fn a_session_of_the_kernel_goes_from_key_to_key() {
    apart(|| {
        let lab = Lab::start();
        let listener = TcpListener::bind((HERE, 179)).unwrap();
        assert_eq!(installed(&listener), [0_u8; 0]);
        lab.install("far", 1).unwrap();
        assert_eq!(installed(&listener), [1]);

        let mut far = far_end(&[1, 2]);
        let mut near = accepted(&listener);
        lab.install("far", 2).unwrap();
        assert_eq!(
            (installed(&listener), installed(&near)),
            (vec![1, 2], vec![1, 2])
        );
        assert_eq!(in_use(&near), (1, 1));
        lab.select("far", 2).unwrap();
        assert_eq!(in_use(&near), (1, 2));
        say(&mut near, &mut far);
        assert_eq!(in_use(&far), (2, 1), "the far end follows");
        let refused = lab.delete(1, Removal::Unused).unwrap_err();
        assert!(
            matches!(refused, KeyError::InUse { send_id: 1, .. }),
            "{refused}"
        );
        assert_eq!(installed(&listener), [1, 2], "nothing has changed");

        tcp_ao::select(far.as_fd(), None, Some(2)).unwrap();
        say(&mut far, &mut near);
        let [session] = &lab.sessions()[..] else {
            panic!("one session")
        };
        assert_eq!((session.current_key, session.rnext_key), (2, 2));
        let second = session.keys.iter().find(|key| key.send_id == 2).unwrap();
        assert!(second.good > 0 && second.sent.is_none());
        lab.delete(1, Removal::Unused).unwrap();
        assert_eq!((installed(&listener), installed(&near)), (vec![2], vec![2]));
        say(&mut near, &mut far);
        say(&mut far, &mut near);

        assert_eq!(lab.datapath.close("far").unwrap(), 1);
        assert!(far.read(&mut [0; 1]).is_err());
        lab.datapath.stop().unwrap();
    });
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_retired_key_is_left_and_a_forced_one_replaced() {
    apart(|| {
        let lab = Lab::start();
        let listener = TcpListener::bind((HERE, 179)).unwrap();
        for id in [1, 2] {
            lab.install("far", id).unwrap();
        }
        let mut far = far_end(&[1, 2]);
        let mut near = accepted(&listener);
        lab.select("far", 2).unwrap();
        let retire = || lab.datapath.retire(&[("far".into(), 1)]).remove(0);
        retire().unwrap();
        assert_eq!(in_use(&near), (2, 2));
        // The far end asks for it once more.
        say(&mut far, &mut near);
        assert_eq!(in_use(&near).0, 1);
        retire().unwrap();
        assert_eq!(in_use(&near), (2, 2));

        say(&mut far, &mut near);
        assert_eq!(in_use(&near).0, 1);
        lab.delete(1, Removal::Forced).unwrap();
        assert_eq!((in_use(&near), installed(&near)), ((2, 2), vec![2]));
        assert_eq!(installed(&listener), [2]);
        lab.datapath.stop().unwrap();
    });
}

/// A connection that its daemon has not accepted cannot be looked at; one that nobody has answered
/// begins anew.
#[test]
#[ignore = "needs the lab's kernel"]
fn sessions_that_begin_in_mid_change_get_the_new_key() {
    apart(|| {
        let lab = Lab::start();
        let listener = TcpListener::bind((HERE, 179)).unwrap();
        lab.install("far", 1).unwrap();
        let mut far = far_end(&[1, 2]);
        let is_up = || {
            let state = lab.datapath.running.state();
            let sockets = sockets::of_peers(&state.policy, &state.links);
            !sockets.unwrap().is_empty()
        };
        wait_until("the far end's connection is up", is_up);
        let waits = lab.install("far", 2).unwrap_err();
        assert!(matches!(waits, KeyError::NotAccepted { .. }), "{waits}");
        // What cannot be looked at may use the key.
        let unseen = lab.datapath.observe(&["far".into()]).remove("far");
        assert!(
            matches!(unseen, Some(Err(KeyError::NotAccepted { .. }))),
            "{unseen:?}"
        );
        let refused = lab.delete(2, Removal::Unused).unwrap_err();
        assert!(matches!(refused, KeyError::NotAccepted { .. }), "{refused}");
        assert_eq!(installed(&listener), [1, 2], "done where it can be");
        let mut near = accepted(&listener);
        lab.install("far", 2).unwrap();
        assert_eq!(installed(&near), [1, 2]);
        lab.select("far", 2).unwrap();
        // The far end still calls with the old key.
        let _second = far_end(&[1, 2]);
        let late = accepted(&listener);
        assert_eq!(installed(&late), [1, 2]);
        assert_eq!(lab.sessions().len(), 2);
        wait_until("the late session asks for the new key", || {
            in_use(&late).1 == 2
        });
        say(&mut near, &mut far);

        lab.install("nowhere", 1).unwrap();
        let calling = with_keys(NOWHERE, &[1]);
        begin(&calling, Ipv4Addr::new(10, 0, 0, 1), NOWHERE);
        assert_eq!(in_use(&calling), (1, 1));
        lab.install("nowhere", 2).unwrap();
        lab.select("nowhere", 2).unwrap();
        assert_eq!(in_use(&calling), (2, 2));
        lab.datapath.stop().unwrap();
    });
}

/// Its user could read the keys, but without them no step is done everywhere.
#[test]
#[ignore = "needs the lab's kernel"]
fn a_session_of_just_any_user_is_no_proof_of_a_change() {
    apart(|| {
        let lab = Lab::start();
        lab.install("far", 1).unwrap();
        let far = with_keys(HERE, &[1]);
        let end = SockaddrStorage::from(SocketAddr::new(FAR.into(), 179));
        bind(far.as_raw_fd(), &end).unwrap();
        listen(&far, Backlog::new(1).unwrap()).unwrap();
        let far = TcpListener::from(far);
        let near = with_keys(FAR, &[1]);
        fchown(&near, Some(1000), None).unwrap();
        begin(&near, HERE, FAR);
        let _far_end = accepted(&far);
        let refused = lab.install("far", 2).unwrap_err();
        assert!(matches!(refused, KeyError::Socket(_)), "{refused}");
        assert_eq!(installed(&near), [1]);
        fchown(&near, Some(0), None).unwrap();
        lab.install("far", 2).unwrap();
        assert_eq!(installed(&near), [1, 2]);
        lab.datapath.stop().unwrap();
    });
}

/// The first peer of the userspace backend comes, another one's keys change, and it goes.
#[test]
#[ignore = "needs the lab's kernel"]
fn a_session_of_the_kernel_lives_until_its_peer_goes() {
    apart(|| {
        let lab = Lab::start();
        let listener = TcpListener::bind((HERE, 179)).unwrap();
        lab.install("far", 1).unwrap();
        let mut far = far_end(&[1, 2]);
        let mut near = accepted(&listener);
        let keyed = |name, remote, ids: &[u8]| PeerSpec {
            keys: ids.iter().map(|&id| key(id)).collect(),
            ..spec(name, remote)
        };
        let queued = PeerSpec {
            datapath: Choice::Userspace,
            ..keyed("queued", Ipv4Addr::new(10, 0, 0, 8), &[1])
        };
        let reconfigure = |peers: &[PeerSpec]| {
            let done = lab.datapath.reconfigure(peers, &HashSet::new(), false);
            done.unwrap()
        };
        assert!(lab.datapath.report().queues.is_empty());
        let done = reconfigure(&[queued.clone(), keyed("far", FAR, &[1])]);
        assert_eq!((done.added, done.removed, done.closed), (1, 1, 0));
        let report = lab.datapath.report();
        let backends: Vec<Backend> = report.peers.iter().map(|peer| peer.backend).collect();
        assert_eq!(backends, [Backend::Userspace, Backend::Kernel]);
        assert_eq!(report.queues.len(), 2);
        lab.datapath.health().unwrap();
        say(&mut near, &mut far);

        let done = reconfigure(&[keyed("far", FAR, &[2, 1]), queued.clone()]);
        assert_eq!((done.rekeyed, done.changed, done.closed), (1, 0, 0));
        assert_eq!((installed(&near), in_use(&near)), (vec![1, 2], (1, 2)));
        say(&mut near, &mut far);

        let done = reconfigure(&[queued]);
        assert_eq!((done.removed, done.closed), (1, 1));
        assert_eq!(installed(&listener), [0_u8; 0]);
        assert!(near.read(&mut [0; 1]).is_err());
        let error = far.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        lab.datapath.stop().unwrap();
    });
}
