use std::collections::HashSet;

use ao_engine::crypto::{
    Algorithm, KdfContext, MacJob, MacProvider, MasterKey, RustCrypto, derive,
};
use ao_engine::examine::Hint;
use ao_engine::policy::{Policy, Prefix, Selector};
use ao_engine::wire::{
    HEADROOM, MacHeader, PacketBuf, fill_checksum, insert_ao, mac_header, set_mac,
};
use ao_sys::links::Links;

use super::*;
use crate::evidence::Strangers;

const ETH0: u32 = 2;
const FAR: &str = "192.0.2.2";
const HERE: &str = "192.0.2.1";

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(id: u8, secret: &[u8]) -> Arc<Mkt> {
    Arc::new(Mkt {
        send_id: id,
        recv_id: id,
        algorithm: Algorithm::HmacSha1_96,
        master_key: MasterKey::new(secret).unwrap(),
        include_options: true,
    })
}

fn peer(name: &str, remote: &str, keys: &[Arc<Mkt>]) -> Peer {
    Peer {
        name: name.into(),
        selector: Selector {
            remote: Prefix::host(ip(remote)),
            local: None,
            ports: 179..=179,
            interface: None,
            domain: None,
        },
        keys: keys.to_vec(),
        accept_only: Vec::new(),
        ttl_min: 0,
    }
}

fn question<'a>(
    peers: Vec<Peer>,
    asked: &'a [Arc<str>],
    extra: &'a [(Arc<str>, Arc<Mkt>)],
) -> Question<'a> {
    Question {
        policy: Arc::new(Policy::new(peers).unwrap()),
        links: Arc::new(Links::default()),
        asked,
        extra,
        addresses: [ip(HERE), ip("127.0.0.1"), ip("2001:db8::1")].into(),
    }
}

/// A segment of `from` (address and port) to `to`, without TCP-AO.
fn segment(from: (&str, u16), to: (&str, u16), flags: u8, seq: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0];
    for (address, _) in [from, to] {
        let IpAddr::V4(v4) = ip(address) else {
            panic!("IPv4")
        };
        packet.extend(v4.octets());
    }
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(99_u32.to_be_bytes());
    packet.extend([6 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend([2, 4, 5, 0xb4]);
    packet
}

fn signed(packet: &[u8], key: &Mkt) -> Vec<u8> {
    let mut storage = [&[0; HEADROOM][..], packet].concat();
    let end = storage.len();
    let mut buf = PacketBuf::new(&mut storage, HEADROOM, end).unwrap();
    let mut segment = Segment::parse(buf.bytes()).unwrap();
    let ids = (key.send_id, key.recv_id);
    let len = key.algorithm.mac_len();
    let ao = insert_ao(&mut buf, &mut segment, ids.0, ids.1, len).unwrap();
    let context = KdfContext {
        src: segment.src,
        dst: segment.dst,
        src_port: segment.src_port,
        dst_port: segment.dst_port,
        src_isn: segment.seq,
        dst_isn: if segment.flags.ack() {
            segment.ack - 1
        } else {
            0
        },
    };
    let traffic_key = derive(key.algorithm, &key.master_key, &context);
    let prepared = RustCrypto.prepare(key.algorithm, &traffic_key);
    let mut header = MacHeader::default();
    mac_header(buf.bytes(), &segment, &ao, 0, true, &mut header);
    let mut job = [MacJob::new(&prepared, header.as_bytes(), &[])];
    RustCrypto.compute(&mut job);
    let mac = job[0].mac;
    set_mac(buf.bytes_mut(), &ao, &mac);
    fill_checksum(buf.bytes_mut(), &segment);
    buf.bytes().to_vec()
}

fn syn(seq: u32) -> Vec<u8> {
    segment((FAR, 40000), (HERE, 179), SYN, seq)
}

fn names(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|name| (*name).into()).collect()
}

#[test]
fn handshakes_are_counted_by_kind_and_direction() {
    let keys = [key(5, b"one secret")];
    let asked = names(&["p", "p", "nobody"]);
    let mut collector = Collector::new(question(vec![peer("p", FAR, &keys)], &asked, &[]));
    assert!(!collector.is_conclusive());
    let good = signed(&syn(1), &keys[0]);
    collector.take(&good, &[ETH0]);
    assert!(!collector.is_conclusive(), "the session may come up now");
    let answer = segment((HERE, 179), (FAR, 40000), SYN | ACK, 7);
    collector.take(&signed(&answer, &keys[0]), &[ETH0]);
    collector.take(&good, &[ETH0]);
    assert!(collector.is_conclusive(), "the far end tries again");
    let own = segment((HERE, 40001), (FAR, 179), SYN, 8);
    collector.take(&signed(&own, &keys[0]), &[ETH0]);
    collector.take(&segment((FAR, 179), (HERE, 40001), RST | ACK, 9), &[ETH0]);
    collector.take(&segment((HERE, 40001), (FAR, 179), RST, 9), &[ETH0]);

    let evidence = collector.finish(Duration::from_secs(3), 5);
    assert_eq!((evidence.listened.as_secs(), evidence.missed), (3, 5));
    let [found] = &evidence.peers[..] else {
        panic!("{evidence:?}")
    };
    let verified = Examined::Verified {
        key_id: 5,
        rnext_key_id: 5,
        rnext_known: true,
    };
    let seen = |step, port, count| Seen {
        examined: verified,
        step,
        remote: ip(FAR),
        local: ip(HERE),
        port,
        ttl: 64,
        interface: String::new(),
        count,
    };
    assert_eq!(found.received, [seen(Step::Syn, 179, 2)]);
    let sent = [seen(Step::SynAck, 179, 1), seen(Step::Syn, 179, 1)];
    assert_eq!(found.sent, sent);
    assert_eq!((found.resets_received, found.resets_sent), (1, 1));
    assert_eq!(evidence.strangers, Strangers::default());
}

#[test]
fn what_is_wrong_is_conclusive_and_the_lowest_ttl_counts() {
    let keys = [key(5, b"one secret")];
    let asked = names(&["p"]);
    let peers = || vec![peer("p", FAR, &keys)];
    let mut collector = Collector::new(question(peers(), &asked, &[]));
    let mut low = syn(2);
    low[8] = 3;
    for packet in [&syn(1), &low] {
        collector.take(packet, &[ETH0]);
    }
    assert!(collector.is_conclusive());
    let evidence = collector.finish(Duration::ZERO, 0);
    let [seen] = &evidence.peers[0].received[..] else {
        panic!("{evidence:?}")
    };
    assert_eq!(
        (seen.examined, seen.count, seen.ttl),
        (Examined::NoAo, 2, 3)
    );

    let extra = [("p".into(), key(6, b"of last year"))];
    let mut collector = Collector::new(question(peers(), &asked, &extra));
    collector.take(&signed(&syn(1), &extra[0].1), &[ETH0]);
    let evidence = collector.finish(Duration::ZERO, 0);
    let Examined::UnknownKeyId { hint, .. } = evidence.peers[0].received[0].examined else {
        panic!("{evidence:?}")
    };
    assert!(matches!(
        hint,
        Hint::OtherKey {
            active: false,
            recv_id: 6,
            ..
        }
    ));
}

#[test]
fn what_is_forwarded_or_of_other_peers_is_passed_over() {
    let keys = [key(5, b"one secret")];
    let peers = vec![peer("p", FAR, &keys), peer("q", "192.0.2.3", &keys)];
    let asked = names(&["p"]);
    let mut collector = Collector::new(question(peers, &asked, &[]));
    collector.take(
        &segment((FAR, 40000), ("203.0.113.1", 179), SYN, 1),
        &[ETH0],
    );
    collector.take(&segment(("192.0.2.3", 40000), (HERE, 179), SYN, 1), &[ETH0]);
    collector.take(&segment((FAR, 40000), (HERE, 22), SYN, 1), &[ETH0]);
    collector.take(&segment((FAR, 40000), (HERE, 179), ACK, 1), &[ETH0]);
    collector.take(&[], &[ETH0]);
    collector.take(&syn(1)[..43], &[ETH0]);
    let evidence = collector.finish(Duration::ZERO, 0);
    assert_eq!(evidence.peers, [PeerEvidence::nothing("p".into())]);
    assert_eq!(evidence.strangers.count, 0);
}

#[test]
fn strangers_are_counted_and_those_who_know_a_secret_are_told() {
    let keys = [key(5, b"one secret")];
    let asked = names(&["p"]);
    let mut collector = Collector::new(question(vec![peer("p", FAR, &keys)], &asked, &[]));
    let from = |source: &str, seq| segment((source, 40000), (HERE, 179), SYN, seq);
    collector.take(&from("198.51.100.1", 1), &[ETH0]);
    collector.take(&from("198.51.100.1", 2), &[ETH0]);
    collector.take(&signed(&from("198.51.100.2", 1), &keys[0]), &[ETH0]);
    collector.take(
        &signed(&from("198.51.100.3", 1), &key(5, b"another")),
        &[ETH0],
    );
    // No SYN, no protected port, or this host's own.
    collector.take(
        &segment(("198.51.100.4", 179), (HERE, 4), SYN | ACK, 1),
        &[ETH0],
    );
    collector.take(&segment(("198.51.100.4", 4), (HERE, 22), SYN, 1), &[ETH0]);
    collector.take(
        &segment(("127.0.0.1", 4), ("127.0.0.1", 179), SYN, 1),
        &[LOOPBACK],
    );
    for last in 10..50 {
        collector.take(&from(&format!("198.51.100.{last}"), 1), &[ETH0]);
    }
    assert!(!collector.is_conclusive());
    let evidence = collector.finish(Duration::ZERO, 0);
    assert_eq!(evidence.strangers.count, 44);
    let examples = &evidence.strangers.examples;
    assert_eq!(examples.len(), MAX_KINDS);
    assert_eq!((examples[0].count, examples[0].key_id), (2, None));
    let told = |at: usize| (examples[at].key_id, examples[at].verifies_as.as_deref());
    assert_eq!(told(1), (Some(5), Some("p")));
    assert_eq!(told(2), (Some(5), None));
    assert_eq!(examples[1].to, SocketAddr::new(ip(HERE), 179));
}

#[test]
fn the_device_that_makes_it_the_peers_counts() {
    let mut on_a_link = peer("p", "fe80::2", &[]);
    on_a_link.selector.interface = Some(7);
    let asked = names(&["p"]);
    let mut asking = question(vec![on_a_link], &asked, &[]);
    asking.addresses = HashSet::from([ip("fe80::1")]);
    let mut collector = Collector::new(asking);
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 6, 64];
    for address in ["fe80::2", "fe80::1"] {
        let IpAddr::V6(v6) = ip(address) else {
            panic!("IPv6")
        };
        packet.extend(v6.octets());
    }
    packet.extend_from_slice(&syn(1)[20..]);
    // A VLAN: seen on the device below it first.
    collector.take(&packet, &[ETH0, 7]);
    let evidence = collector.finish(Duration::ZERO, 0);
    assert_eq!(evidence.peers[0].received_count(), 1);
    assert_eq!(evidence.strangers.count, 0);
}

#[test]
fn errors_about_own_segments_are_told() {
    let asked = names(&["p"]);
    let mut collector = Collector::new(question(vec![peer("p", FAR, &[])], &asked, &[]));
    let error_of = |source: [u8; 4], about: &[u8], code| {
        let mut packet = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend(source);
        packet.extend([192, 0, 2, 1]);
        packet.extend([3, code, 0, 0, 0, 0, 0, 0]);
        packet.extend(&about[..28]);
        packet
    };
    let error = |about: &[u8], code| error_of([198, 51, 100, 9], about, code);
    let own = segment((HERE, 40001), (FAR, 179), SYN, 8);
    collector.take(&error_of([192, 0, 2, 1], &own, 1), &[LOOPBACK]);
    assert!(!collector.is_conclusive(), "it may come from elsewhere");
    collector.take(&error(&own, 13), &[ETH0]);
    collector.take(&error(&own, 13), &[ETH0]);
    collector.take(&error(&own, 1), &[ETH0]);
    collector.take(&error(&syn(1), 1), &[ETH0]);
    assert!(collector.is_conclusive());
    let evidence = collector.finish(Duration::ZERO, 0);
    let icmp = &evidence.peers[0].icmp;
    let told: Vec<_> = icmp.iter().map(|one| (one.meaning, one.count)).collect();
    assert_eq!(
        told,
        [("administratively prohibited", 2), ("host unreachable", 1)]
    );
    assert_eq!(icmp[0].from, ip("198.51.100.9"));
    assert_eq!(evidence.peers[0].unresolved, 1);
}

#[test]
fn the_work_for_one_peer_has_a_bound() {
    let keys = [key(5, b"one secret")];
    let asked = names(&["p"]);
    let mut collector = Collector::new(question(vec![peer("p", FAR, &keys)], &asked, &[]));
    for id in 0..200 {
        let packet = signed(&syn(u32::from(id)), &key(id, b"another"));
        collector.take(&packet, &[ETH0]);
    }
    let evidence = collector.finish(Duration::ZERO, 0);
    let found = &evidence.peers[0];
    assert_eq!(found.received.len(), MAX_KINDS);
    assert_eq!(found.received_count(), 200);
    assert!(found.unexamined >= 200 - u64::from(MAX_EXAMINED));
}
