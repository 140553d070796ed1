//! The connection table: bounded, and never at the cost of a live session.

use std::net::SocketAddr;

use ao_engine::crypto::Algorithm::HmacSha1_96;
use ao_engine::engine::{Action, Limits, SessionState};
use ao_engine::reason::DropReason;

use crate::support::{ACK, FIN, Host, RST, Session, key};

fn with_room_for(max_connections: usize) -> Session {
    let mut session = Session::passive(vec![key(1, 2, HmacSha1_96)]);
    let limits = Limits {
        max_connections,
        ..Host::LIMITS
    };
    session.host = Host::with_limits(vec![Host::peer(session.far, &session.keys)], limits);
    session
}

fn far(port: u16) -> SocketAddr {
    SocketAddr::new("10.0.0.2".parse().unwrap(), port)
}

fn establish(session: &mut Session, ports: impl Iterator<Item = u16>) {
    for port in ports {
        session.far = far(port);
        session.accept_call();
    }
}

#[test]
fn a_live_session_is_never_evicted() {
    let mut session = with_room_for(3);
    establish(&mut session, 1..=3);
    session.far = far(4);
    assert_eq!(
        session.receive(&session.far_syn()).dropped(),
        DropReason::TableFull
    );
    assert_eq!(session.drops(DropReason::TableFull), 1);
    session.local = "10.0.0.1:5".parse().unwrap();
    session.far = far(179);
    assert_eq!(
        session.send(&session.local_syn()).dropped(),
        DropReason::TableFull
    );
    session.local = "10.0.0.1:179".parse().unwrap();
    session.host.wait(365 * 24 * 3_600_000);
    for port in 1..=3 {
        session.far = far(port);
        session.assert_alive();
    }
}

#[test]
fn closed_connections_make_room_first_then_the_oldest_handshake() {
    let mut session = with_room_for(3);
    establish(&mut session, 1..=1);
    session.far = far(2);
    session.receive(&session.far_syn()).passed();
    session.host.wait(10);
    establish(&mut session, 3..=3);
    session.receive(&session.of_far(RST, 1, 1)).passed();
    assert_eq!(session.state(), Some(SessionState::Closing));

    session.far = far(4);
    session.receive(&session.far_syn()).passed();
    session.far = far(3);
    assert_eq!(session.state(), None, "the closed one went");
    session.far = far(5);
    session.receive(&session.far_syn()).passed();
    // The SYN of port 2 was the oldest; that of port 4 is still answered from its entry.
    session.far = far(4);
    assert!(session.host.engine.knows(&session.id()));
    session.far = far(2);
    assert!(!session.host.engine.knows(&session.id()));
    session.far = far(1);
    session.assert_alive();
}

/// Old SYNs verify for ever: four of one pair of addresses and ports are remembered.
#[test]
fn replayed_syns_of_one_connection_are_bounded() {
    let mut session = with_room_for(100);
    let genuine = session.far_isn;
    session.receive(&session.far_syn()).passed();
    session.send(&session.local_syn_ack()).passed();
    for isn in 0..50 {
        session.far_isn = 100_000 * isn + 7;
        session.receive(&session.far_syn()).passed();
    }
    // The handshake that this end answered outlives the flood.
    session.far_isn = genuine;
    session.receive(&session.of_far(ACK, 1, 1)).passed();
    assert_eq!(session.state(), Some(SessionState::Established));
    session.assert_alive();
}

#[test]
fn replayed_syns_of_many_connections_are_bounded_by_the_table() {
    let mut session = with_room_for(20);
    establish(&mut session, 1..=5);
    for port in 1000..3000 {
        session.far = far(port);
        session.receive(&session.far_syn()).passed();
        session.host.now += 1;
    }
    let known = (1000..3000)
        .filter(|&port| {
            session.far = far(port);
            session.host.engine.knows(&session.id())
        })
        .count();
    assert_eq!(known, 15);
    for port in 1..=5 {
        session.far = far(port);
        session.assert_alive();
    }
}

/// An attempt of this end is not pushed out by replayed SYNs on the same ports.
#[test]
fn replayed_syns_do_not_spoil_an_active_open() {
    let mut session = Session::active(vec![key(1, 2, HmacSha1_96)]);
    session.send(&session.local_syn()).passed();
    let genuine = session.far_isn;
    for isn in 0..20 {
        session.far_isn = 100_000 * isn + 7;
        session.receive(&session.far_syn()).passed();
    }
    session.far_isn = genuine;
    session.receive(&session.far_syn_ack()).passed();
    session.assert_alive();
}

#[test]
fn handshakes_expire_after_130_seconds_of_silence() {
    let mut session = with_room_for(10);
    session.receive(&session.far_syn()).passed();
    session.host.wait(130_000);
    assert!(session.host.engine.knows(&session.id()));
    session.receive(&session.far_syn()).passed();
    session.host.wait(130_000);
    assert!(session.host.engine.knows(&session.id()), "it was repeated");
    session.host.wait(1);
    assert!(!session.host.engine.knows(&session.id()));
}

#[test]
fn a_closed_connection_expires_after_120_seconds() {
    for by_reset in [true, false] {
        let mut session = with_room_for(10);
        session.accept_call();
        if by_reset {
            session.send(&session.of_local(RST | ACK, 1, 1)).passed();
        } else {
            session.receive(&session.of_far(FIN | ACK, 1, 1)).passed();
            session.send(&session.of_local(FIN | ACK, 1, 2)).passed();
        }
        session.host.wait(120_000);
        assert_eq!(session.state(), Some(SessionState::Closing));
        session.host.wait(1);
        assert_eq!(session.state(), None);
    }
}

#[test]
fn a_connection_that_the_local_tcp_lost_is_removed_on_order() {
    let mut session = with_room_for(10);
    session.accept_call();
    session.far_isn = 7;
    session.receive(&session.far_syn()).passed();
    session.host.engine.remove(&session.id());
    assert!(!session.host.engine.knows(&session.id()));
    let changes = session.host.take_changes();
    assert_eq!(changes.len(), 2);
    assert!(changes.iter().all(|change| change.action == Action::Forget));
    assert!(session.host.records.is_empty());
}
