//! What the backend asks of the kernel: queues, raw senders, routes.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use ao_sys::nfqueue::{Arena, BindError, Queue, Queued, VerdictBuffer, Verdicts};
use ao_sys::raw::{Family, Sender};
use ao_sys::route;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use crate::support::{Namespace, PATIENCE};

const QUEUE: u16 = 77;
/// Offset of the data in an IPv4 UDP packet.
const DATA: usize = 28;

/// A namespace whose UDP packets to port 9 wait in the queue, and then are counted if they bear
/// the mark.
fn queued_loopback() -> Namespace {
    let namespace = Namespace::new();
    namespace.shell(&format!(
        "iptables-legacy -w -t mangle -A INPUT -p udp --dport 9 -j NFQUEUE --queue-num {QUEUE}
         iptables-legacy -w -A INPUT -p udp --dport 9 -m mark --mark 8/8 -m comment \
         --comment marked"
    ));
    namespace
}

struct Loopback {
    queue: Queue,
    arena: Arena,
    batch: Vec<Queued>,
    receiver: UdpSocket,
}

impl Loopback {
    fn new() -> Self {
        let receiver = UdpSocket::bind("127.0.0.1:9").unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let queue = Queue::bind(QUEUE, 1024, 1 << 20).unwrap();
        Self {
            queue,
            arena: Arena::default(),
            batch: Vec::new(),
            receiver,
        }
    }

    fn send(&self, messages: &[&str]) {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for message in messages {
            sender.send_to(message.as_bytes(), "127.0.0.1:9").unwrap();
        }
    }

    /// Takes a batch from the queue.
    fn take(&mut self) {
        let mut ready = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
        let timeout = u16::try_from(PATIENCE.as_millis()).unwrap();
        assert_eq!(
            poll(&mut ready, PollTimeout::from(timeout)),
            Ok(1),
            "nothing is queued"
        );
        let received = self
            .queue
            .receive(&mut self.arena, &mut self.batch)
            .unwrap();
        assert_eq!(
            (received.messages, received.unreadable),
            (self.batch.len(), 0)
        );
    }

    /// The packets of the batch with their text in upper case.
    fn in_upper_case(&mut self) -> Vec<Vec<u8>> {
        let slots: Vec<&mut [u8]> = self.arena.slots().collect();
        let packets = self.batch.iter().map(|queued| {
            let mut packet = slots[queued.slot][queued.payload.clone()].to_vec();
            packet[DATA..].make_ascii_uppercase();
            packet[26..28].fill(0); // no UDP check sum
            packet
        });
        packets.collect()
    }

    fn receive(&self) -> String {
        let mut buffer = [0; 2048];
        let count = self.receiver.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    fn nothing_more(&self) {
        self.receiver
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert!(
            self.receiver.recv(&mut [0; 16]).is_err(),
            "a dropped packet arrived"
        );
    }
}

#[test]
fn packets_pass_change_and_end_in_the_queue() {
    let namespace = queued_loopback();
    namespace.run(|| {
        let mut loopback = Loopback::new();
        loopback.send(&["accept", "modify", "drop", "accept too"]);
        loopback.take();
        assert_eq!(
            loopback.batch.len(),
            4,
            "loopback queues before the sender returns"
        );
        assert_eq!((loopback.batch[0].id, loopback.batch[0].hook), (1, 1));
        assert_eq!((loopback.batch[0].input, loopback.batch[0].output), (1, 0));

        let changed = loopback.in_upper_case();
        let mut buffer = VerdictBuffer::default();
        let mut verdicts = Verdicts::new(&loopback.queue, &mut buffer);
        verdicts.accept(1, None);
        verdicts.replace(2, Some(8), &changed[1]);
        verdicts.drop(3);
        verdicts.accept(4, Some(9));
        verdicts.send().unwrap();

        let arrived: Vec<String> = (0..3).map(|_| loopback.receive()).collect();
        assert_eq!(arrived, ["accept", "MODIFY", "accept too"]);
        loopback.nothing_more();
    });
    assert_eq!(
        namespace.matched("iptables-legacy", "-L INPUT", "marked"),
        2
    );
}

/// Verdicts of one message, whose packets begin and end at any octet.
#[test]
fn packets_of_any_length_change_beside_each_other() {
    let namespace = queued_loopback();
    namespace.run(|| {
        let mut loopback = Loopback::new();
        let texts = [
            "a", "bc", "def", "ghij", "klm", "n", "op", "q", "rst", "uvw",
        ];
        loopback.send(&texts);
        loopback.take();
        let changed = loopback.in_upper_case();
        assert_eq!(changed.len(), texts.len());
        let mut buffer = VerdictBuffer::default();
        let mut verdicts = Verdicts::new(&loopback.queue, &mut buffer);
        for (index, (queued, changed)) in loopback.batch.iter().zip(&changed).enumerate() {
            match index % 4 {
                3 => verdicts.accept(queued.id, Some(8)),
                _ => verdicts.replace(queued.id, Some(8), changed),
            }
        }
        verdicts.send().unwrap();
        let arrived: Vec<String> = texts.iter().map(|_| loopback.receive()).collect();
        assert_eq!(
            arrived,
            [
                "A", "BC", "DEF", "ghij", "KLM", "N", "OP", "q", "RST", "UVW"
            ]
        );
    });
    assert_eq!(
        namespace.matched("iptables-legacy", "-L INPUT", "marked"),
        10
    );
}

#[test]
fn a_packet_that_was_passed_over_is_never_released_by_a_later_verdict() {
    let namespace = queued_loopback();
    namespace.run(|| {
        let mut loopback = Loopback::new();
        loopback.send(&["1", "2", "3", "4", "5", "6"]);
        loopback.take();
        let mut buffer = VerdictBuffer::default();
        let mut verdicts = Verdicts::new(&loopback.queue, &mut buffer);
        // As if the messages of the others had been unreadable.
        for id in [2, 5, 6] {
            verdicts.accept(id, None);
        }
        verdicts.send().unwrap();
        let arrived: Vec<String> = (0..3).map(|_| loopback.receive()).collect();
        assert_eq!(arrived, ["2", "5", "6"]);
        loopback.nothing_more();
    });
}

#[test]
fn many_packets_come_in_batches_and_pass_in_order() {
    let namespace = queued_loopback();
    namespace.run(|| {
        let mut loopback = Loopback::new();
        let messages: Vec<String> = (0..200).map(|number| format!("packet {number}")).collect();
        loopback.send(&messages.iter().map(String::as_str).collect::<Vec<_>>());
        let mut buffer = VerdictBuffer::default();
        let mut seen = 0;
        while seen < messages.len() {
            loopback.take();
            seen += loopback.batch.len();
            let mut verdicts = Verdicts::new(&loopback.queue, &mut buffer);
            for queued in &loopback.batch {
                verdicts.accept(queued.id, Some(8));
            }
            verdicts.send().unwrap();
        }
        for message in &messages {
            assert_eq!(loopback.receive(), *message);
        }
    });
    assert_eq!(
        namespace.matched("iptables-legacy", "-L INPUT", "marked"),
        200
    );
}

#[test]
fn without_the_queue_nothing_passes() {
    let namespace = queued_loopback();
    namespace.run(|| {
        let mut loopback = Loopback::new();
        loopback.send(&["waiting when the queue closes"]);
        loopback.take();
        drop(loopback.queue);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = sender.send_to(b"sent after it closed", "127.0.0.1:9");
        loopback
            .receiver
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert!(loopback.receiver.recv(&mut [0; 16]).is_err());
    });
}

#[test]
fn a_queue_in_use_is_refused_by_name() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let first = Queue::bind(QUEUE, 64, 65536).unwrap();
        let second = Queue::bind(QUEUE, 64, 65536).unwrap_err();
        assert!(
            matches!(second, BindError::Held { number: QUEUE, .. }),
            "{second}"
        );
        assert!(
            second
                .to_string()
                .contains("queue 77 is held by another program"),
            "{second}"
        );
        drop(first);
        Queue::bind(QUEUE, 64, 65536).expect("it is free again");
    });
}

/// An IPv4 or IPv6 UDP packet to port 9 of the far end, `length` octets in all.
fn packet(family: Family, length: usize) -> Vec<u8> {
    let mut packet = vec![0_u8; length];
    let total = u16::try_from(length).unwrap();
    let udp = match family {
        Family::V4 => {
            packet[..2].copy_from_slice(&[0x45, 0]);
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[6..10].copy_from_slice(&[0x40, 0, 64, 17]); // DF, TTL, UDP
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            20
        }
        Family::V6 => {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
            packet[6..8].copy_from_slice(&[17, 64]);
            for (at, last) in [(8, 1), (24, 2)] {
                packet[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
                packet[at + 15] = last;
            }
            40
        }
    };
    let length = total - u16::try_from(udp).unwrap();
    packet[udp..udp + 2].copy_from_slice(&999_u16.to_be_bytes());
    packet[udp + 2..udp + 4].copy_from_slice(&9_u16.to_be_bytes());
    packet[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    if family == Family::V6 {
        let sum = checksum(&packet[8..], u32::from(length) + 17);
        packet[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn checksum(octets: &[u8], start: u32) -> u16 {
    let words = octets.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

#[test]
fn raw_packets_exceed_the_routes_mtu_but_not_the_devices() {
    let (here, there) = Namespace::pair();
    here.shell(
        "ip route add 10.0.0.2/32 dev eth0 mtu 1400
         ip -6 route add 2001:db8::2/128 dev eth0 mtu 1400
         iptables-legacy -w -A OUTPUT -p udp -m mark --mark 8 -m comment --comment marked
         ip6tables-legacy -w -A OUTPUT -p udp -m mark --mark 8 -m comment --comment marked",
    );
    for (family, far, any, overhead) in [
        (Family::V4, "10.0.0.2", "0.0.0.0:9", 28),
        (Family::V6, "2001:db8::2", "[::]:9", 48),
    ] {
        let receiver = there.run(move || UdpSocket::bind(any).unwrap());
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let far: IpAddr = far.parse().unwrap();
        here.run(move || {
            let device = nix::net::if_::if_nametoindex("eth0").unwrap();
            assert_eq!(route::mtu(far, 0).unwrap(), 1400);
            assert_eq!(route::mtu(far, device).unwrap(), 1400);
            let sender = Sender::open(family, device, 8).unwrap();
            sender.send(&packet(family, 1500)).unwrap();
            let error = sender.send(&packet(family, 1501)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        });
        let mut buffer = [0; 2048];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 1500 - overhead);
    }
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        assert_eq!(here.matched(tool, "-L OUTPUT", "marked"), 1);
    }
}

#[test]
fn the_route_mtu_follows_the_kernel() {
    let (here, _there) = Namespace::pair();
    let mtu = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        here.run(move || route::mtu(address, 0).ok())
    };
    assert_eq!(mtu("10.0.0.2"), Some(1500));
    assert_eq!(mtu("192.0.2.1"), None, "there is no route");
    here.shell("ip link set eth0 mtu 1380");
    assert_eq!(
        (mtu("10.0.0.2"), mtu("2001:db8::2")),
        (Some(1380), Some(1380))
    );
}
