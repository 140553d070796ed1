//! Which packets the rules hand to the engine, proven by forged packets and bound queues.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ao_sys::links::Links;
use ao_sys::nfqueue::{Arena, Queue, Queued};
use datapath::firewall::{Firewall, Queues, Ruleset, Watcher};
use datapath::settings::Backend;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    sockopt,
};

use crate::support::{
    FarEnd, MARK, in_namespace, listen, ruleset_with, run, spec, start_connect, wait_for,
};

const ONE_WORKER: Queues = Queues {
    first: 310,
    workers: 1,
};
const WORKER: u16 = 310;
const ICMP: u16 = 311;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const HERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

/// A header with a 16-octet TCP-AO option.
fn signed(source: u16, destination: u16) -> Vec<u8> {
    let mut tcp = tcp(source, destination);
    tcp[12] = 9 << 4;
    tcp.extend([29, 16, 1, 1]);
    tcp.resize(36, 0);
    tcp
}

fn tcp(source: u16, destination: u16) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&source.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 0x10;
    tcp
}

fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// A header of eight octets, for destination options (empty) and for atomic fragments alike.
fn extended(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 0, 0, 0, 0, 0, 0], payload].concat()
}

fn icmp(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0, 0, 0, 0x05, 0x78], quoted].concat()
}

/// Sends packets with their numbers as IPv4 identification or flow label.
fn inject(packets: &[Vec<u8>]) {
    for (number, packet) in packets.iter().enumerate() {
        let mut packet = packet.clone();
        let number = u16::try_from(number + 1).unwrap().to_be_bytes();
        let place = if packet[0] >> 4 == 4 { 4 } else { 2 };
        packet[place..place + 2].copy_from_slice(&number);
        assert_eq!(send(&packet), Ok(packet.len()));
    }
}

/// Sends a packet as it is to its destination.
fn send(packet: &[u8]) -> nix::Result<usize> {
    let raw = |family| {
        socket::socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap()
    };
    if packet[0] >> 4 == 4 {
        let to = <[u8; 4]>::try_from(&packet[16..20]).unwrap();
        let to = SockaddrIn::from(SocketAddrV4::new(to.into(), 0));
        let socket = raw(AddressFamily::Inet);
        socket::sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())
    } else {
        let to = <[u8; 16]>::try_from(&packet[24..40]).unwrap();
        let to = SockaddrIn6::from(SocketAddrV6::new(to.into(), 0, 0, 0));
        let socket = raw(AddressFamily::Inet6);
        socket::sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())
    }
}

fn number_of(packet: &[u8]) -> usize {
    let octets = if packet[0] >> 4 == 4 {
        &packet[4..6]
    } else {
        &packet[2..4]
    };
    usize::from(u16::from_be_bytes([octets[0], octets[1]]))
}

/// Bound queues that only collect.
struct Collector {
    queues: Vec<Queue>,
    arena: Arena,
}

impl Collector {
    fn new() -> Self {
        let queues = [WORKER, ICMP]
            .map(|number| Queue::bind(number, 1024, 1 << 20).unwrap())
            .into();
        Self {
            queues,
            arena: Arena::default(),
        }
    }

    /// Packets that arrive until none has for a quarter of a second.
    fn collect(&mut self) -> Vec<(u16, Queued, Vec<u8>)> {
        let mut found = Vec::new();
        let mut batch = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(250) {
            let mut descriptors: Vec<PollFd> = self
                .queues
                .iter()
                .map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN))
                .collect();
            poll(&mut descriptors, PollTimeout::from(50_u8)).unwrap();
            for queue in &self.queues {
                if queue.receive(&mut self.arena, &mut batch).is_err() {
                    continue;
                }
                last = Instant::now();
                let slots: Vec<&mut [u8]> = self.arena.slots().collect();
                for packet in batch.drain(..) {
                    let octets = slots[packet.slot][packet.payload.clone()].to_vec();
                    found.push((queue.number(), packet, octets));
                }
            }
        }
        found
    }
}

type Case = (&'static str, Vec<u8>, Option<u16>);

fn ipv4_cases() -> Vec<Case> {
    let ours = |protocol, to: Ipv4Addr| ipv4(protocol, HERE, to, &tcp(40000, 179));
    let error = |kind, quoted: Vec<u8>| ipv4(1, OTHER, HERE, &icmp(kind, 4, &quoted));
    let mut options = error(3, ours(TCP, PEER));
    options[0] = 0x46;
    options.splice(20..20, [1, 1, 1, 0]);
    let from_peer = |payload: &[u8]| ipv4(TCP, PEER, HERE, payload);
    vec![
        (
            "signed to port 179",
            from_peer(&signed(40000, 179)),
            Some(WORKER),
        ),
        (
            "signed from port 179",
            from_peer(&signed(179, 40000)),
            Some(WORKER),
        ),
        ("unsigned", from_peer(&tcp(40000, 179)), Some(WORKER)),
        ("another port", from_peer(&signed(40000, 180)), None),
        (
            "another host",
            ipv4(TCP, OTHER, HERE, &signed(40000, 179)),
            None,
        ),
        ("unreachable", error(3, ours(TCP, PEER)), Some(ICMP)),
        ("time exceeded", error(11, ours(TCP, PEER)), Some(ICMP)),
        ("behind IP options", options, Some(ICMP)),
        (
            "in a peer prefix",
            error(3, ours(TCP, Ipv4Addr::new(10, 7, 1, 2))),
            Some(ICMP),
        ),
        ("about a datagram", error(3, ours(UDP, PEER)), None),
        ("about another host", error(3, ours(TCP, OTHER)), None),
        ("a redirect", error(5, ours(TCP, PEER)), None),
    ]
}

fn ipv6_cases() -> Vec<Case> {
    let ours = |next, to: Ipv6Addr| ipv6(next, HERE6, to, &tcp(40000, 179));
    let error = |kind, quoted: Vec<u8>| ipv6(ICMPV6, OTHER6, HERE6, &icmp(kind, 0, &quoted));
    let hidden = extended(ICMPV6, &icmp(2, 0, &ours(TCP, PEER6)));
    let quoted_extension = ipv6(
        DESTINATION_OPTIONS,
        HERE6,
        PEER6,
        &extended(TCP, &tcp(40000, 179)),
    );
    let from_peer = |next, payload: &[u8]| ipv6(next, PEER6, HERE6, payload);
    let in_prefix = "2001:db8:7::1234".parse().unwrap();
    vec![
        ("signed", from_peer(TCP, &signed(40000, 179)), Some(WORKER)),
        ("unsigned", from_peer(TCP, &tcp(179, 40000)), Some(WORKER)),
        (
            "behind destination options",
            from_peer(DESTINATION_OPTIONS, &extended(TCP, &signed(40000, 179))),
            Some(WORKER),
        ),
        (
            "atomic fragment",
            from_peer(FRAGMENT, &extended(TCP, &signed(40000, 179))),
            None,
        ),
        (
            "another host",
            ipv6(TCP, OTHER6, HERE6, &signed(40000, 179)),
            None,
        ),
        ("too big", error(2, ours(TCP, PEER6)), Some(ICMP)),
        ("parameter problem", error(4, ours(TCP, PEER6)), Some(ICMP)),
        (
            "in a peer prefix",
            error(1, ours(TCP, in_prefix)),
            Some(ICMP),
        ),
        (
            "quoting an extension header",
            error(1, quoted_extension),
            Some(ICMP),
        ),
        (
            "error behind an extension header",
            ipv6(DESTINATION_OPTIONS, OTHER6, HERE6, &hidden),
            Some(ICMP),
        ),
        (
            "error in an atomic fragment",
            ipv6(FRAGMENT, OTHER6, HERE6, &hidden),
            None,
        ),
        ("about a datagram", error(1, ours(UDP, PEER6)), None),
        ("about another host", error(2, ours(TCP, OTHER6)), None),
    ]
}

fn peers_of_both_families() -> Ruleset {
    let peers = [
        spec("v4", "10.0.0.2"),
        spec("v6", "2001:db8::2"),
        spec("net4", "10.7.0.0/16"),
        spec("net6", "2001:db8:7::/49"),
    ];
    ruleset_with(ONE_WORKER, &peers, &[])
}

#[test]
fn packets_reach_the_queues_they_belong_to() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        firewall.install(&peers_of_both_families()).unwrap();
        let mut collector = Collector::new();
        let cases: Vec<Case> = ipv4_cases().into_iter().chain(ipv6_cases()).collect();
        let packets: Vec<Vec<u8>> = cases.iter().map(|case| case.1.clone()).collect();
        let _far = FarEnd::new(move || inject(&packets));
        let mut queued: BTreeMap<usize, u16> = BTreeMap::new();
        for (queue, packet, octets) in collector.collect() {
            assert_eq!(packet.hook, 1);
            // Neighbour discovery and the like has no number.
            if let number @ 1.. = number_of(&octets) {
                assert_eq!(queued.insert(number, queue), None, "{number} came twice");
            }
        }
        for (index, (name, packet, expected)) in cases.iter().enumerate() {
            let version = packet[0] >> 4;
            assert_eq!(
                queued.get(&(index + 1)),
                expected.as_ref(),
                "IPv{version}: {name}"
            );
        }
        // The atomic fragment of the peer and the fragmented error.
        assert_eq!(firewall.drops().unwrap()["fragment"], 2);
    });
}

#[test]
fn guard_alone_drops_what_nobody_verified() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        firewall.install_guard(&peers_of_both_families()).unwrap();
        let _far = FarEnd::new(|| {
            inject(&[
                ipv4(TCP, PEER, HERE, &signed(40000, 179)),
                ipv4(TCP, PEER, HERE, &tcp(40000, 179)),
                ipv6(TCP, PEER6, HERE6, &signed(40000, 179)),
                ipv6(FRAGMENT, PEER6, HERE6, &extended(TCP, &signed(40000, 179))),
                ipv4(TCP, PEER, HERE, &signed(40000, 180)),
            ]);
        });
        wait_for("drops", Duration::from_secs(5), || {
            let drops = firewall.drops().unwrap();
            ["guard", "guard-unverified", "fragment"].map(|name| drops[name]) == [1, 2, 1]
        });
    });
}

type Install = fn(&Firewall, &Ruleset) -> Result<(), datapath::firewall::Error>;

/// The guard alone, both, the queue rules alone.
const ARRANGEMENTS: [Install; 3] = [
    Firewall::install_guard,
    Firewall::install,
    |firewall, rules| {
        firewall.install(rules)?;
        firewall.remove_guard()
    },
];

#[test]
fn fragments_are_dropped_where_they_may_be_of_a_segment() {
    for install in ARRANGEMENTS {
        in_namespace(move || {
            let firewall = Firewall::probe().unwrap();
            install(&firewall, &peers_of_both_families()).unwrap();
            let receivers = [
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4000)).unwrap(),
                UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 4001)).unwrap(),
            ];
            let _far = FarEnd::new(|| {
                let datagram = [7; 4000];
                let v4 = UdpSocket::bind((PEER, 0)).unwrap();
                v4.send_to(&datagram, (HERE, 4000)).unwrap();
                let v6 = UdpSocket::bind((PEER6, 0)).unwrap();
                v6.send_to(&datagram, (HERE6, 4001)).unwrap();
                inject(&may_be_segments(PEER, HERE, PEER6, HERE6));
                inject(&no_segments(PEER, HERE, PEER6, HERE6));
                inject(&may_be_segments(OTHER, HERE, OTHER6, HERE6));
            });
            for receiver in receivers {
                receiver
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                assert_eq!(receiver.recv(&mut [0; 5000]).unwrap(), 4000);
            }
            let dropped = may_be_segments(PEER, HERE, PEER6, HERE6).len() as u64;
            wait_for("drops", Duration::from_secs(5), || {
                firewall.drops().unwrap()["fragment"] >= dropped
            });
            assert_eq!(firewall.drops().unwrap()["fragment"], dropped);
        });
    }
}

#[test]
fn the_guard_lets_no_fragment_of_a_segment_out() {
    in_namespace(|| {
        let _far = FarEnd::new(|| {});
        let firewall = Firewall::probe().unwrap();
        firewall.install_guard(&peers_of_both_families()).unwrap();
        for packet in may_be_segments(HERE, PEER, HERE6, PEER6) {
            assert_eq!(send(&packet), Err(Errno::EPERM), "{packet:x?}");
        }
        for packet in no_segments(HERE, PEER, HERE6, PEER6) {
            assert_eq!(send(&packet), Ok(packet.len()), "{packet:x?}");
        }
    });
}

/// Fragments of segments, and of what may turn out to be one.
fn may_be_segments(from: Ipv4Addr, to: Ipv4Addr, from6: Ipv6Addr, to6: Ipv6Addr) -> Vec<Vec<u8>> {
    let mut segment = signed(40000, 179);
    segment.resize(40, 0);
    let v4 = |place| fragment(ipv4(TCP, from, to, &segment), place);
    let mut packets = vec![v4(MORE), v4(MORE | 5), v4(5)];
    for next in [0, TCP, 41, 43, FRAGMENT, 51, DESTINATION_OPTIONS, 135] {
        for place in [ATOMIC, MORE, MORE | 5, 5] {
            packets.push(fragment6(next, from6, to6, &segment, place));
        }
    }
    // Behind another extension header.
    packets.push(ipv6(
        DESTINATION_OPTIONS,
        from6,
        to6,
        &extended(FRAGMENT, &extended(TCP, &segment)),
    ));
    packets
}

fn no_segments(from: Ipv4Addr, to: Ipv4Addr, from6: Ipv6Addr, to6: Ipv6Addr) -> Vec<Vec<u8>> {
    let payload = [0x80; 40];
    let mut packets = Vec::new();
    for protocol in [1, UDP, 47, 50, 89] {
        for place in [MORE, MORE | 5, 5] {
            packets.push(fragment(ipv4(protocol, from, to, &payload), place));
        }
    }
    for next in [UDP, 47, 50, ICMPV6, 89] {
        for place in [ATOMIC, MORE, MORE | 5, 5] {
            packets.push(fragment6(next, from6, to6, &payload, place));
        }
    }
    packets
}

/// Where a fragment belongs: whether more follow, and its offset in units of eight octets.
const MORE: u16 = 0x2000;
const ATOMIC: u16 = 0;

fn fragment(mut packet: Vec<u8>, place: u16) -> Vec<u8> {
    packet[6..8].copy_from_slice(&place.to_be_bytes());
    packet
}

fn fragment6(next: u8, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8], place: u16) -> Vec<u8> {
    let mut payload = extended(next, payload);
    let field = (place & !MORE) << 3 | u16::from(place & MORE > 0);
    payload[2..4].copy_from_slice(&field.to_be_bytes());
    ipv6(FRAGMENT, from, to, &payload)
}

#[test]
fn own_segments_are_queued_once_unless_the_engine_made_them() {
    in_namespace(|| {
        let _far = FarEnd::new(listen);
        let firewall = Firewall::probe().unwrap();
        firewall.install(&peers_of_both_families()).unwrap();
        let mut collector = Collector::new();
        let socket = start_connect("10.0.0.1", "10.0.0.2:179");
        let queued = collector.collect();
        assert_eq!(queued.len(), 1, "{queued:?}");
        let (queue, packet, octets) = &queued[0];
        assert_eq!((*queue, packet.hook, octets[9]), (WORKER, 3, TCP));
        drop(socket);
        let signed = marked_raw_socket();
        let segment = ipv4(TCP, HERE, PEER, &self::signed(40000, 179));
        let to = SockaddrIn::new(10, 0, 0, 2, 0);
        socket::sendto(signed.as_raw_fd(), &segment, &to, MsgFlags::empty()).unwrap();
        // The RST that answers it comes back unsigned; what left was not queued.
        for (_, packet, octets) in collector.collect() {
            assert_eq!(packet.hook, 1, "{octets:?}");
        }
        assert_eq!(firewall.drops().unwrap()["guard"], 0);
        // The mark does not excuse a missing option: sockets inherit it from a verified SYN.
        let unsigned = ipv4(TCP, HERE, PEER, &tcp(40000, 179));
        socket::sendto(signed.as_raw_fd(), &unsigned, &to, MsgFlags::empty()).unwrap();
        let queued = collector.collect();
        let queued: Vec<_> = queued
            .iter()
            .filter(|(_, packet, _)| packet.hook == 3)
            .map(|(queue, _, octets)| (*queue, &octets[20..]))
            .collect();
        assert_eq!(queued, [(WORKER, &tcp(40000, 179)[..])]);
        // Nor does it with the guard alone.
        firewall.remove_queue_rules().unwrap();
        let refused = socket::sendto(signed.as_raw_fd(), &unsigned, &to, MsgFlags::empty());
        assert_eq!(refused, Err(Errno::EPERM));
        assert_eq!(firewall.drops().unwrap()["guard"], 1);
    });
}

/// Hosts with one backend inside prefixes with the other.
fn nested(hosts: Backend) -> Ruleset {
    let narrow = [spec("host4", "10.0.0.2"), spec("host6", "2001:db8::2")];
    let wide = [spec("net4", "10.0.0.0/24"), spec("net6", "2001:db8::/64")];
    match hosts {
        Backend::Kernel => ruleset_with(ONE_WORKER, &wide, &narrow),
        Backend::Userspace => ruleset_with(ONE_WORKER, &narrow, &wide),
    }
}

/// Signed and unsigned segments between these ends, told apart by their ports.
fn segments(from: Ends, to: Ends, first_port: u16) -> [Vec<u8>; 4] {
    let port = |offset| first_port + offset;
    [
        ipv4(TCP, from.0, to.0, &signed(port(0), 179)),
        ipv6(TCP, from.1, to.1, &signed(port(1), 179)),
        ipv4(TCP, from.0, to.0, &tcp(port(2), 179)),
        ipv6(TCP, from.1, to.1, &tcp(port(3), 179)),
    ]
}

type Ends = (Ipv4Addr, Ipv6Addr);

/// What reaches the local TCP.
struct Delivered([OwnedFd; 2]);

impl Delivered {
    fn new() -> Self {
        let families = [AddressFamily::Inet, AddressFamily::Inet6];
        Self(families.map(|family| {
            let flags = SockFlag::SOCK_NONBLOCK;
            socket::socket(family, SockType::Raw, flags, SockProtocol::Tcp).unwrap()
        }))
    }

    /// Source ports of the segments to port 179 since the last look.
    fn ports(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        for (socket, header) in self.0.iter().zip([20, 0]) {
            let mut buffer = [0; 200];
            while let Ok(length) = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            {
                ports.extend(to_bgp(&buffer[header..length]));
            }
        }
        ports
    }
}

/// Source port of a segment to port 179.
fn to_bgp(segment: &[u8]) -> Option<u16> {
    let port = |place| u16::from_be_bytes([segment[place], segment[place + 1]]);
    (port(2) == 179).then(|| port(0))
}

#[test]
fn segments_of_kernel_peers_pass_signed_and_unqueued() {
    const KERNEL: u16 = 40000;
    const USERSPACE: u16 = 50000;
    for arrangement in ARRANGEMENTS {
        for hosts in [Backend::Kernel, Backend::Userspace] {
            in_namespace(move || {
                let here = (HERE, HERE6);
                let (kernel, userspace) = match hosts {
                    Backend::Kernel => ((PEER, PEER6), (OTHER, OTHER6)),
                    Backend::Userspace => ((OTHER, OTHER6), (PEER, PEER6)),
                };
                let firewall = Firewall::probe().unwrap();
                arrangement(&firewall, &nested(hosts)).unwrap();
                let queued = firewall.drops().unwrap().contains_key("unsigned");
                let mut collector = Collector::new();
                let delivered = Delivered::new();
                let _far = FarEnd::new(move || {
                    inject(&segments(kernel, here, KERNEL));
                    inject(&segments(userspace, here, USERSPACE));
                });
                let ports_queued = |found: Vec<(u16, Queued, Vec<u8>)>| {
                    let segment = |octets: &[u8]| match octets[0] >> 4 {
                        4 => (octets[9] == TCP).then(|| to_bgp(&octets[20..])),
                        _ => (octets[6] == TCP).then(|| to_bgp(&octets[40..])),
                    };
                    let mut ports: Vec<u16> = found
                        .iter()
                        .filter_map(|(_, _, octets)| segment(octets).flatten())
                        .collect();
                    ports.sort_unstable();
                    ports
                };
                let all: Vec<u16> = if queued {
                    (USERSPACE..USERSPACE + 4).collect()
                } else {
                    Vec::new()
                };
                assert_eq!(ports_queued(collector.collect()), all);
                assert_eq!(delivered.ports(), [KERNEL, KERNEL + 1]);

                // Nor does an unsigned segment leave.
                let [signed4, signed6, unsigned4, unsigned6] = segments(here, kernel, KERNEL);
                for signed in [signed4, signed6] {
                    assert_eq!(send(&signed), Ok(signed.len()));
                }
                for unsigned in [unsigned4, unsigned6] {
                    assert_eq!(send(&unsigned), Err(Errno::EPERM));
                }
                let [signed4, ..] = segments(here, userspace, USERSPACE);
                assert_eq!(send(&signed4), Ok(signed4.len()));
                let all: &[u16] = if queued { &[USERSPACE] } else { &[] };
                assert_eq!(ports_queued(collector.collect()), all);
            });
        }
    }
}

#[test]
fn errors_about_kernel_peers_are_not_queued() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        firewall.install(&nested(Backend::Kernel)).unwrap();
        let mut collector = Collector::new();
        let about = |to: Ipv4Addr| {
            let quoted = ipv4(TCP, HERE, to, &tcp(40000, 179));
            ipv4(1, OTHER, HERE, &icmp(3, 4, &quoted))
        };
        let about6 = |to: Ipv6Addr| {
            let quoted = ipv6(TCP, HERE6, to, &tcp(40000, 179));
            ipv6(ICMPV6, OTHER6, HERE6, &icmp(2, 0, &quoted))
        };
        let packets = [about(PEER), about(OTHER), about6(PEER6), about6(OTHER6)];
        let _far = FarEnd::new(move || inject(&packets));
        let mut numbers: Vec<usize> = collector
            .collect()
            .iter()
            .filter(|(queue, _, _)| *queue == ICMP)
            .map(|(_, _, octets)| number_of(octets))
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [2, 4]);
    });
}

fn marked_raw_socket() -> OwnedFd {
    let socket = socket::socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::Raw,
    )
    .unwrap();
    socket::setsockopt(&socket, sockopt::Mark, &MARK).unwrap();
    socket
}

#[test]
#[ignore = "needs a kernel with VRF: runs in the kernel lab"]
fn with_a_vrf_segments_are_queued_once() {
    in_namespace(|| {
        let mut peer = spec("v4", "10.0.0.2");
        peer.vrf = Some("red".into());
        let mut foreign = spec("foreign", "10.0.0.3");
        foreign.vrf = Some("blue".into());
        let firewall = Arc::new(Firewall::probe().unwrap());
        firewall
            .install(&ruleset_with(ONE_WORKER, &[peer, foreign], &[]))
            .unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let _watcher = Watcher::spawn(Arc::clone(&firewall), move |links| {
            let _ = tell.send(Arc::clone(links));
        })
        .unwrap();
        run("ip link add red type vrf table 10; ip link set red up");
        let links = loop {
            let links = told.recv_timeout(Duration::from_secs(30)).unwrap();
            if links.vrfs() == ["red"] {
                break links;
            }
        };
        let red = links.index_of("red").unwrap();
        let mut collector = Collector::new();
        let _far = FarEnd::new(|| {
            listen();
            run("ip neigh replace 10.0.0.1 dev eth0 lladdr 02:00:00:00:00:01");
        });
        run(
            "ip link set eth0 address 02:00:00:00:00:01; ip link set eth0 master red
             ip addr replace 10.0.0.1/24 dev eth0",
        );
        let links = Links::read().unwrap();
        let eth0 = links.index_of("eth0").unwrap();
        assert_eq!(links.domain_of(eth0), red);

        let socket = socket::socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK,
            None,
        )
        .unwrap();
        socket::setsockopt(&socket, sockopt::BindToDevice, &"red".into()).unwrap();
        let to = SockaddrIn::new(10, 0, 0, 2, 179);
        let _ = socket::connect(socket.as_raw_fd(), &to);
        let queued = collector.collect();
        let seen: Vec<_> = queued
            .iter()
            .map(|(queue, packet, _)| (*queue, packet.hook, packet.output))
            .collect();
        assert_eq!(seen, [(WORKER, 3, eth0)]);
    });
}
