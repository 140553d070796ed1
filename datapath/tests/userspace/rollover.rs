//! Keys changed one by one, under a session that hardly speaks.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::{Mkt, Prefix};
use ao_sys::tcp_ao::{self, NewKey, Scope};
use datapath::report::{KeyUse, Session, SessionState};
use datapath::settings::{PeerSpec, Settings, Strip};
use datapath::{Datapath, KeyError, Removal};

use crate::backend::{End, connect, ends, listen};
use crate::support::{Namespace, PATIENCE, give_up_in_time};

/// A key with the same IDs at both ends.
pub(crate) fn key(id: u8) -> Arc<Mkt> {
    Arc::new(Mkt {
        send_id: id,
        recv_id: id,
        algorithm: Algorithm::Aes128Cmac96,
        master_key: MasterKey::new(&[id; 16]).unwrap(),
        include_options: true,
    })
}

fn name() -> Arc<str> {
    "peer".into()
}

type Outcome = Result<(), KeyError>;

fn install(end: &mut End, id: u8) -> Outcome {
    end.ask(move |it| it.install(&[(name(), key(id))]))
        .remove(0)
}

fn select(end: &mut End, id: u8) -> Outcome {
    end.ask(move |it| it.select(&[(name(), id)])).remove(0)
}

fn retire(end: &mut End, id: u8) -> Outcome {
    end.ask(move |it| it.retire(&[(name(), id)])).remove(0)
}

fn delete(end: &mut End, id: u8, removal: Removal) -> Outcome {
    end.ask(move |it| it.delete(&[(name(), id, removal)]))
        .remove(0)
}

fn observe(end: &mut End) -> Vec<Session> {
    end.ask(|it| {
        let mut observed = it.observe(&[name(), "nobody".into()]);
        assert!(!observed.contains_key("nobody"));
        observed.remove(&name()).unwrap().unwrap()
    })
}

fn one_session(end: &mut End) -> Session {
    let mut sessions = observe(end);
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions.remove(0)
}

fn used(session: &Session, id: u8) -> KeyUse {
    let mut keys = session.keys.iter();
    *keys.find(|key| key.send_id == id).unwrap()
}

/// Nudges both ends until the sessions of both use this key both ways.
fn nudged_until_both_use(ends: [&mut End; 2], id: u8) {
    let deadline = Instant::now() + PATIENCE;
    let [one, two] = ends;
    loop {
        for end in [&mut *one, &mut *two] {
            end.ask(|it| it.nudge(&[name()]));
        }
        let uses = |session: &Session| {
            (session.current_key, session.rnext_key) == (id, id) && used(session, id).good > 0
        };
        if uses(&one_session(one)) && uses(&one_session(two)) {
            return;
        }
        assert!(Instant::now() < deadline, "{:?}", observe(one));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A connection of the two ends, with something said in both directions.
fn session(one: &End, two: &End) -> (TcpStream, TcpStream) {
    let listener = listen(two);
    let mut here = connect(one);
    let (mut there, _) = listener.accept().unwrap();
    give_up_in_time(&there);
    say(&mut here, &mut there);
    say(&mut there, &mut here);
    (here, there)
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"keepalive").unwrap();
    let mut heard = [0; 9];
    to.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"keepalive");
}

/// Without a key nothing passes; with one, a session comes up; from key to key it lives on.
#[test]
fn a_quiet_session_goes_from_key_to_key() {
    let (mut one, mut two) = ends(Algorithm::HmacSha1_96, Strip::Auto, false);
    for end in [&mut one, &mut two] {
        let mut settings = end.settings();
        settings.peers[0].keys.clear();
        end.start_with(settings);
    }
    let listener = listen(&two);
    let address = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 179).into();
    let refused = one
        .namespace
        .run(move || TcpStream::connect_timeout(&address, Duration::from_secs(1)));
    assert!(refused.is_err(), "a session without a key");
    assert!(listener.set_nonblocking(true).is_ok() && listener.accept().is_err());
    drop(listener);

    for end in [&mut one, &mut two] {
        install(end, 1).unwrap();
        install(end, 1).unwrap();
        select(end, 1).unwrap();
    }
    let (mut here, mut there) = session(&one, &two);
    for id in 2..=4 {
        for end in [&mut one, &mut two] {
            install(end, id).unwrap();
        }
        assert_eq!(
            delete(&mut one, id - 1, Removal::Unused),
            Err(KeyError::InUse {
                send_id: id - 1,
                session: format!(
                    "{} – {}",
                    here.local_addr().unwrap(),
                    here.peer_addr().unwrap()
                ),
            })
        );
        select(&mut one, id).unwrap();
        let session = one_session(&mut one);
        assert_eq!((session.current_key, session.rnext_key), (id - 1, id));
        one.ask(|it| it.nudge(&[name()]));
        select(&mut two, id).unwrap();
        nudged_until_both_use([&mut one, &mut two], id);
        for end in [&mut one, &mut two] {
            retire(end, id - 1).unwrap();
            delete(end, id - 1, Removal::Unused).unwrap();
            delete(end, id - 1, Removal::Unused).unwrap();
            let session = one_session(end);
            let ids: Vec<u8> = session.keys.iter().map(|key| key.send_id).collect();
            assert_eq!(ids, [id]);
            assert!(used(&session, id).sent > Some(0));
        }
    }
    say(&mut here, &mut there);
    say(&mut there, &mut here);
    for end in [&mut one, &mut two] {
        let report = end.report();
        let drops = &report.peers[0].drops;
        assert!(drops.keys().all(|reason| *reason == "no-key"), "{drops:?}");
        assert_eq!(report.sessions[0].segments_bad, 0);
    }
    one.stop();
    two.stop();
}

#[test]
fn what_contradicts_itself_is_refused_and_changes_nothing() {
    let (mut one, _two) = ends(Algorithm::HmacSha1_96, Strip::Auto, false);
    one.start();
    let stranger = one.ask(|it| it.install(&[("who".into(), key(1)), (name(), key(1))]));
    assert_eq!(stranger, [Err(KeyError::UnknownPeer), Ok(())]);
    // The settings' key has IDs 5.
    let taken = KeyError::Taken {
        send_id: 5,
        recv_id: 5,
    };
    assert_eq!(install(&mut one, 5), Err(taken));
    assert_eq!(select(&mut one, 9), Err(KeyError::UnknownKey(9)));
    assert_eq!(retire(&mut one, 9), Err(KeyError::UnknownKey(9)));
    assert_eq!(retire(&mut one, 5), Err(KeyError::First(5)));
    assert_eq!(delete(&mut one, 9, Removal::Unused), Ok(()));
    one.stop();
}

/// A retired key is not followed, a forced removal does not ask.
#[test]
fn a_forced_key_goes_at_once_and_close_ends_the_session() {
    let (mut one, mut two) = ends(Algorithm::HmacSha1_96, Strip::Auto, false);
    one.start();
    two.start();
    let (mut here, mut there) = session(&one, &two);
    for end in [&mut one, &mut two] {
        install(end, 6).unwrap();
    }
    for end in [&mut one, &mut two] {
        select(end, 6).unwrap();
        delete(end, 5, Removal::Forced).unwrap();
        let session = one_session(end);
        assert_eq!((session.current_key, session.rnext_key), (6, 6));
    }
    say(&mut here, &mut there);
    say(&mut there, &mut here);
    assert_eq!(one.ask(|it| it.close("nobody")).unwrap(), 0);
    assert_eq!(one.ask(|it| it.close("peer")).unwrap(), 1);
    assert!(
        there.read(&mut [0; 1]).is_err(),
        "reset at the far end, too"
    );
    one.stop();
    two.stop();
}

/// The sidecar was away while the preference changed.
#[test]
fn a_restored_session_asks_for_the_key_that_is_first_now() {
    let (mut one, mut two) = ends(Algorithm::HmacSha1_96, Strip::Auto, false);
    one.start();
    two.start();
    let (mut here, mut there) = session(&one, &two);
    install(&mut two, 6).unwrap();
    one.stop();
    let mut settings = one.settings();
    settings.peers[0].keys.insert(0, key(6));
    one.start_with(settings);
    assert_eq!(one_session(&mut one).state, SessionState::Restored);
    say(&mut here, &mut there);
    say(&mut there, &mut here);
    let session = one_session(&mut one);
    assert_eq!((session.current_key, session.rnext_key), (5, 6));
    assert_eq!(one_session(&mut two).current_key, 6);
    one.stop();
    two.stop();
}

#[test]
fn keys_of_a_thousand_peers_change_at_once() {
    const PEERS: u16 = 1000;
    let namespace = Namespace::new();
    let state = tempfile::tempdir().unwrap();
    let name = |number: u16| -> Arc<str> { format!("peer {number}").into() };
    let spec = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let one = crate::support::settings(state.path(), "10.0.0.2", Algorithm::Aes128Cmac96);
        PeerSpec {
            name: name(number),
            remote: Prefix::host(Ipv4Addr::new(10, 7, high, low).into()),
            ..one.peers[0].clone()
        }
    };
    let settings = Settings {
        peers: (0..PEERS).map(spec).collect(),
        ..crate::support::settings(state.path(), "10.0.0.2", Algorithm::Aes128Cmac96)
    };
    let names: Vec<Arc<str>> = (0..PEERS).map(name).collect();
    namespace.run(move || {
        let datapath = Datapath::start(settings).unwrap();
        let begun = Instant::now();
        let keys: Vec<_> = names.iter().map(|name| (name.clone(), key(9))).collect();
        let ids: Vec<_> = names.iter().map(|name| (name.clone(), 9)).collect();
        let old: Vec<_> = names
            .iter()
            .map(|name| (name.clone(), 5, Removal::Unused))
            .collect();
        for outcomes in [
            datapath.install(&keys),
            datapath.select(&ids),
            datapath.delete(&old),
        ] {
            assert!(outcomes.len() == usize::from(PEERS) && outcomes.iter().all(Result::is_ok));
        }
        let took = begun.elapsed();
        eprintln!("three steps for {PEERS} peers: {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        datapath.stop().unwrap();
    });
}

/// A far end that has TCP-AO in the kernel speaks when it is asked, as by a keep-alive.
#[test]
#[ignore = "needs the lab's kernel"]
fn a_quiet_session_with_a_kernel_goes_to_another_key() {
    let (mut one, two) = ends(Algorithm::Aes128Cmac96, Strip::Auto, false);
    let mut settings = one.settings();
    settings.peers[0].keys = vec![key(5)];
    one.start_with(settings);
    let listener = listen(&two);
    for id in [6, 5] {
        let mkt = key(id);
        let scope = Scope {
            address: Ipv4Addr::new(10, 0, 0, 1).into(),
            prefix: 32,
            vrf: None,
        };
        let new = NewKey {
            scope,
            send_id: id,
            recv_id: id,
            algorithm: "cmac(aes128)",
            mac_length: 12,
            exclude_options: false,
            secret: mkt.master_key.expose(),
            set_current: false,
            set_rnext: false,
        };
        tcp_ao::add_key(listener.as_fd(), &new).unwrap();
    }
    let mut here = connect(&one);
    let (mut there, _) = listener.accept().unwrap();
    say(&mut here, &mut there);
    say(&mut there, &mut here);

    install(&mut one, 6).unwrap();
    select(&mut one, 6).unwrap();
    let nudged_until = |one: &mut End, what: &str, holds: &dyn Fn(&Session) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&one_session(one)) {
            assert!(Instant::now() < deadline, "{what}: {:?}", observe(one));
            one.ask(|it| it.nudge(&[name()]));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    nudged_until(&mut one, "the kernel signs with the new key", &|session| {
        used(session, 6).good > 0
    });
    let info = tcp_ao::info(there.as_fd()).unwrap().unwrap();
    assert_eq!((info.current_key, info.rnext_key), (Some(6), Some(5)));
    tcp_ao::select(there.as_fd(), None, Some(6)).unwrap();
    nudged_until(
        &mut one,
        "the kernel has asked for the new key",
        &|session| session.current_key == 6,
    );
    let info = tcp_ao::info(there.as_fd()).unwrap().unwrap();
    assert_eq!((info.bad, info.key_not_found), (0, 0));
    delete(&mut one, 5, Removal::Unused).unwrap();
    say(&mut here, &mut there);
    say(&mut there, &mut here);
    one.stop();
}
