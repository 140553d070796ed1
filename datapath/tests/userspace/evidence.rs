//! What is seen of peers on real wires, and of the host they are the peers of.

use std::net::Shutdown;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ao_engine::crypto::{Algorithm, MasterKey};
use ao_engine::policy::{Mkt, Prefix};
use datapath::evidence::{Evidence, Examined, Hint, LocalFacts, PeerEvidence, Step, TcpState};
use datapath::settings::{PeerSpec, Strip};

use crate::backend::{End, connect, ends, listen};
use crate::support::{Namespace, PATIENCE, echo};

/// Tries to connect again and again, each time for half a second. Arguments: source or "", address.
const TRY: &str = "
import socket, sys
source, address = sys.argv[1:]
family = socket.AF_INET6 if ':' in address else socket.AF_INET
while True:
    one = socket.socket(family)
    one.settimeout(0.5)
    if source: one.bind((source, 0))
    try: one.connect((address, 179))
    except OSError: pass
    one.close()
";

/// Listens with a TCP-MD5 key for an address, and tries to connect there with one.
const WITH_MD5: &str = "
import socket, struct, sys
address = sys.argv[1]
key = struct.pack('=H2x4s120xBBHI80s', 2, socket.inet_aton(address), 0, 0, 6, 0, b'secret')
sockets = []
for kind in 'listen', 'connect':
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.IPPROTO_TCP, 14, key)
    sockets.append(one)
sockets[0].bind(('', 179))
sockets[0].listen()
print('listening', flush=True)
sockets[1].connect((address, 179))
";

/// A program in a namespace, ended with this.
struct Program(Child);

impl Program {
    fn start(namespace: &Namespace, script: &'static str, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let mut command = Command::new("python3");
        command.arg("-c").arg(script).args(arguments);
        command.stdout(Stdio::piped());
        Self(namespace.run(move || command.spawn().unwrap()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn two_ends(v6: bool) -> (End, End) {
    ends(Algorithm::HmacSha1_96, Strip::Never, v6)
}

fn listen_at(end: &mut End, at_most: Duration) -> Evidence {
    let asked: Vec<Arc<str>> = vec!["peer".into()];
    end.ask(move |datapath| datapath.listen(&asked, &[], at_most, true, &|| true))
        .unwrap()
}

/// What was seen of the peer while it was listened for as long as necessary.
fn seen_at(end: &mut End) -> PeerEvidence {
    let evidence = listen_at(end, PATIENCE);
    assert!(evidence.listened < PATIENCE / 2, "{evidence:?}");
    assert_eq!(evidence.missed, 0);
    evidence.peers.into_iter().next().unwrap()
}

fn local_facts(end: &mut End) -> LocalFacts {
    end.ask(|datapath| datapath.local(&["peer".into()]))
        .unwrap()
}

#[test]
fn the_far_end_with_another_secret_is_recognised_behind_firewall_and_engine() {
    for v6 in [false, true] {
        let (mut one, mut two) = two_ends(v6);
        one.start();
        let mut settings = two.settings();
        for PeerSpec { keys, .. } in &mut settings.peers {
            *keys = vec![Arc::new(Mkt {
                send_id: 5,
                recv_id: 5,
                algorithm: Algorithm::HmacSha1_96,
                master_key: MasterKey::new(b"another secret").unwrap(),
                include_options: true,
            })];
        }
        two.start_with(settings);
        let _trying = [
            Program::start(&one.namespace, TRY, &["", one.peer]),
            Program::start(&two.namespace, TRY, &["", two.peer]),
        ];
        let seen = seen_at(&mut one);
        let wrong = Examined::WrongMac {
            key_id: 5,
            rnext_key_id: 5,
            hint: Hint::Nothing,
        };
        let [received] = &seen.received[..] else {
            panic!("{seen:?}")
        };
        assert_eq!((received.examined, received.step), (wrong, Step::Syn));
        assert_eq!((received.port, received.ttl), (179, 64));
        assert_eq!(received.interface, "eth0");
        let [sent] = &seen.sent[..] else {
            panic!("{seen:?}")
        };
        // What left was signed by the engine before it was seen.
        assert!(matches!(
            sent.examined,
            Examined::Verified {
                key_id: 5,
                rnext_known: true,
                ..
            }
        ));
        assert!(sent.count <= 4, "seen twice: {sent:?}");
        one.stop();
        two.stop();
    }
}

#[test]
fn the_far_end_without_tcp_ao_is_recognised_by_its_answer_and_by_its_attempts() {
    let (mut one, two) = two_ends(false);
    one.start();
    let listener = listen(&two);
    let trying = Program::start(&one.namespace, TRY, &["", one.peer]);
    let seen = seen_at(&mut one);
    let [received] = &seen.received[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (received.examined, received.step),
        (Examined::NoAo, Step::SynAck)
    );
    drop((listener, trying));

    let _trying = Program::start(&two.namespace, TRY, &["", two.peer]);
    let seen = seen_at(&mut one);
    let syns = seen.received.iter().find(|seen| seen.step == Step::Syn);
    assert_eq!(syns.unwrap().examined, Examined::NoAo, "{seen:?}");
    one.stop();
}

#[test]
fn refusals_of_hosts_and_routers_are_told() {
    let (mut one, two) = two_ends(false);
    one.start();
    let _trying = Program::start(&one.namespace, TRY, &["", one.peer]);
    let seen = seen_at(&mut one);
    assert!(
        seen.resets_received > 0 && seen.received.is_empty(),
        "{seen:?}"
    );
    two.namespace.shell(
        "iptables-legacy -w -A INPUT -p tcp --dport 179 -j REJECT --reject-with \
         icmp-admin-prohibited",
    );
    let seen = seen_at(&mut one);
    let [error] = &seen.icmp[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(error.meaning, "administratively prohibited");
    assert_eq!(error.from.to_string(), "10.0.0.2");
    one.stop();
}

#[test]
fn a_healthy_handshake_ends_the_listening_and_silence_does_not() {
    let (mut one, mut two) = two_ends(false);
    one.start();
    two.start();
    let silence = Duration::from_millis(1200);
    let evidence = listen_at(&mut one, silence);
    assert!(evidence.listened >= silence, "{evidence:?}");
    assert_eq!(evidence.peers, [PeerEvidence::nothing("peer".into())]);

    let listener = listen(&two);
    let echoing = thread::spawn(move || echo(&listener));
    let one_namespace = Program::start(&one.namespace, TRY, &["", one.peer]);
    let seen = seen_at(&mut one);
    drop(one_namespace);
    let is_good =
        |seen: &datapath::evidence::Seen| matches!(seen.examined, Examined::Verified { .. });
    assert!(seen.sent.iter().all(is_good) && seen.received.iter().all(is_good));
    assert!(seen.received.iter().any(|seen| seen.step == Step::SynAck));
    echoing.join().unwrap();
    one.stop();
    two.stop();
}

#[test]
fn listening_ends_when_nobody_waits_for_it_any_more() {
    let (mut one, _two) = two_ends(false);
    one.start();
    let evidence = one.ask(|datapath| {
        let asked = std::cell::Cell::new(0);
        let go_on = || asked.replace(asked.get() + 1) < 3;
        datapath.listen(&["peer".into()], &[], PATIENCE, false, &go_on)
    });
    let listened = evidence.unwrap().listened;
    assert!(listened < PATIENCE / 4, "{listened:?}");
    one.stop();
}

#[test]
fn segments_from_another_address_are_strangers() {
    let (mut one, two) = two_ends(false);
    one.start();
    two.namespace.shell("ip addr add 10.0.0.77/24 dev eth0");
    let _trying = Program::start(&two.namespace, TRY, &["10.0.0.77", two.peer]);
    let evidence = listen_at(&mut one, Duration::from_millis(1500));
    let [stranger] = &evidence.strangers.examples[..] else {
        panic!("{evidence:?}")
    };
    assert_eq!(stranger.from.to_string(), "10.0.0.77");
    assert_eq!(stranger.to.to_string(), "10.0.0.1:179");
    assert_eq!(
        (stranger.interface.as_str(), stranger.key_id),
        ("eth0", None)
    );
    assert!(stranger.count >= 1);
    one.stop();
}

#[test]
fn listeners_md5_keys_and_the_way_to_a_peer_are_told() {
    let (mut one, two) = two_ends(false);
    one.start();
    let facts = local_facts(&mut one);
    let [peer] = &facts.peers[..] else {
        panic!("{facts:?}")
    };
    assert!(peer.listeners.is_empty() && peer.md5_keys.is_empty() && peer.sockets.is_empty());
    assert!(facts.net_admin && facts.net_raw);
    let route = peer.route.clone().unwrap().unwrap();
    assert_eq!(
        (route.device.as_str(), route.device_mtu, route.mtu),
        ("eth0", 1500, 1500)
    );
    assert_eq!(route.source.unwrap().to_string(), "10.0.0.1");
    assert_eq!(route.gateway, None);

    one.namespace
        .shell("ip route add 10.0.0.2/32 via 10.0.0.9 dev eth0 mtu 1400");
    let program = Program::start(&one.namespace, WITH_MD5, &[one.peer]);
    let deadline = std::time::Instant::now() + PATIENCE;
    let peer = loop {
        let peer = local_facts(&mut one).peers.remove(0);
        if (peer.md5_keys.len(), peer.sockets.len()) == (2, 1) && !peer.listeners.is_empty() {
            break peer;
        }
        assert!(std::time::Instant::now() < deadline, "{peer:?}");
    };
    let [listener] = &peer.listeners[..] else {
        panic!("{peer:?}")
    };
    assert_eq!(listener.address.to_string(), "0.0.0.0:179");
    assert_eq!(listener.pid, Some(program.0.id()));
    assert!(listener.program.as_deref().unwrap().starts_with("python3"));
    let states: Vec<TcpState> = peer.md5_keys.iter().map(|key| key.state).collect();
    assert!(states.contains(&TcpState::Listen) && states.contains(&TcpState::SynSent));
    let far = Prefix::host("10.0.0.2".parse().unwrap());
    assert!(peer.md5_keys.iter().all(|key| key.remote == far));
    let [socket] = &peer.sockets[..] else {
        panic!("{peer:?}")
    };
    assert_eq!(socket.state, TcpState::SynSent);
    let route = peer.route.unwrap().unwrap();
    assert_eq!(
        (route.mtu, route.gateway.unwrap().to_string()),
        (1400, "10.0.0.9".into())
    );

    one.namespace
        .shell("ip route replace unreachable 10.0.0.2/32");
    let peer = local_facts(&mut one).peers.remove(0);
    let error = peer.route.unwrap().unwrap_err();
    assert!(error.contains("route to host"), "{error}");
    drop((program, two));
    one.stop();
}

#[test]
fn an_established_session_is_told_with_its_program() {
    let (mut one, mut two) = two_ends(true);
    one.start();
    two.start();
    let listener = listen(&two);
    let echoing = thread::spawn(move || echo(&listener));
    let stream = connect(&one);
    let peer = local_facts(&mut one).peers.remove(0);
    let [socket] = &peer.sockets[..] else {
        panic!("{peer:?}")
    };
    assert_eq!(socket.state, TcpState::Established);
    assert_eq!(socket.local, stream.local_addr().unwrap());
    assert!(socket.program.is_some());
    stream.shutdown(Shutdown::Write).unwrap();
    echoing.join().unwrap();
    one.stop();
    two.stop();
}
