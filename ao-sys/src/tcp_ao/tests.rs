use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use super::*;
use crate::probe;
use crate::socket::KernelAddress;

const SECRET: &[u8] = b"sixteen octets!!";

fn scope(address: &str, prefix: u8) -> Scope {
    Scope {
        address: address.parse().unwrap(),
        prefix,
        vrf: None,
    }
}

fn key(scope: Scope, id: u8) -> NewKey<'static> {
    NewKey {
        scope,
        send_id: id,
        recv_id: id + 100,
        algorithm: "hmac(sha1)",
        mac_length: 12,
        exclude_options: false,
        secret: SECRET,
        set_current: false,
        set_rnext: false,
    }
}

fn deletion(scope: Scope, id: u8) -> Deletion {
    Deletion {
        scope,
        send_id: id,
        recv_id: id + 100,
        replace_current: None,
        replace_rnext: None,
        asynchronous: false,
    }
}

fn fresh(domain: libc::c_int) -> OwnedFd {
    socket::open(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).unwrap()
}

fn errno<T: fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn scopes_that_no_kernel_takes_are_refused_first() {
    let v4 = fresh(libc::AF_INET);
    let v6 = fresh(libc::AF_INET6);
    let refused = |socket: &OwnedFd, key: &NewKey<'_>| {
        let error = add_key(socket.as_fd(), key).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{key:?}");
    };
    refused(&v4, &key(scope("2001:db8::1", 128), 1));
    refused(&v6, &key(scope("0.0.0.0", 0), 1));
    let name = "x".repeat(64);
    let mut long = key(scope("192.0.2.1", 32), 1);
    long.algorithm = &name;
    refused(&v4, &long);
    let secret = [0; SECRET_MAX + 1];
    let mut long = key(scope("192.0.2.1", 32), 1);
    long.secret = &secret;
    refused(&v4, &long);
    let (unix, _) = crate::unix::pair().unwrap();
    refused(&unix, &key(scope("192.0.2.1", 32), 1));
}

#[test]
fn kernel_without_tcp_ao_says_so() {
    let socket = fresh(libc::AF_INET);
    let fd = socket.as_fd();
    let key = key(scope("192.0.2.1", 32), 1);
    if probe::kernel_has_tcp_ao().unwrap() {
        assert_eq!(info(fd).unwrap(), None);
        assert_eq!(keys(fd).unwrap(), []);
        assert_eq!(errno(select(fd, Some(1), None)), libc::ENOENT);
    } else {
        assert_eq!(errno(add_key(fd, &key)), libc::ENOPROTOOPT);
        let deletion = deletion(key.scope, 1);
        assert_eq!(errno(delete_key(fd, &deletion)), libc::ENOPROTOOPT);
        assert_eq!(errno(info(fd)), libc::ENOPROTOOPT);
        assert_eq!(errno(keys(fd)), libc::ENOPROTOOPT);
        assert_eq!(errno(select(fd, Some(1), None)), libc::ENOPROTOOPT);
        assert_eq!(errno(repair(fd)), libc::ENOPROTOOPT);
    }
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", key(scope("192.0.2.1", 32), 1));
    assert!(shown.contains("hmac(sha1)") && !shown.contains("secret"));
}

/// Gives the calling thread a network namespace of its own, with loopback up.
fn own_network() {
    // SAFETY: takes an integer; only this thread's namespace changes.
    socket::check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).unwrap();
    ip("link set lo up");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

fn connect(to: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let address = KernelAddress::new(address.ip(), address.port(), 0);
    let (pointer, length) = address.as_raw();
    // SAFETY: pointer and length describe `address`.
    socket::check(unsafe { libc::connect(to.as_raw_fd(), pointer, length) })
}

/// Connects with one key at both ends; returns the client's and the server's socket.
fn session(
    listen: &str,
    connect_to: &str,
    client: libc::c_int,
    peer: Scope,
) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((listen, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    add_key(listener.as_fd(), &key(peer, 1)).unwrap();
    let socket = fresh(client);
    let mut mirrored = key(peer, 1);
    (mirrored.send_id, mirrored.recv_id) = (mirrored.recv_id, mirrored.send_id);
    add_key(socket.as_fd(), &mirrored).unwrap();
    connect(&socket, SocketAddr::new(connect_to.parse().unwrap(), port)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    (stream, accepted)
}

#[test]
#[ignore = "needs the lab's kernel"]
fn listener_takes_lists_and_deletes_keys() {
    own_network();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let fd = listener.as_fd();
    // More than fit into the first list.
    for id in 0..40 {
        let mut new = key(scope(&format!("192.0.2.{}", id + 1), 32), id);
        new.exclude_options = id == 7;
        add_key(fd, &new).unwrap();
    }
    let network = scope("198.51.100.0", 24);
    let vrfless = Scope {
        vrf: Some(0),
        ..network
    };
    add_key(
        fd,
        &NewKey {
            algorithm: "cmac(aes128)",
            ..key(vrfless, 41)
        },
    )
    .unwrap();
    assert_eq!(errno(add_key(fd, &key(network, 41))), libc::EEXIST);
    let host_bits = key(scope("198.51.100.1", 24), 42);
    assert_eq!(errno(add_key(fd, &host_bits)), libc::EINVAL);
    let unknown = NewKey {
        algorithm: "hmac(none)",
        ..key(network, 42)
    };
    assert_eq!(errno(add_key(fd, &unknown)), libc::ENOENT);
    let mut found = keys(fd).unwrap();
    found.sort_by_key(|key| key.send_id);
    assert_eq!(found.len(), 41);
    let seventh = &found[7];
    assert_eq!(seventh.scope, scope("192.0.2.8", 32));
    assert_eq!((seventh.send_id, seventh.recv_id), (7, 107));
    assert_eq!(
        (seventh.algorithm.as_str(), seventh.mac_length),
        ("hmac(sha1)", 12)
    );
    assert!(seventh.exclude_options && !found[6].exclude_options);
    assert_eq!(seventh.secret.as_slice(), SECRET);
    assert!(!seventh.is_current && !seventh.is_rnext);
    assert!(!format!("{seventh:?}").contains("secret"));
    assert_eq!(
        (found[40].scope, found[40].algorithm.as_str()),
        (vrfless, "cmac(aes128)")
    );
    let before = info(fd).unwrap().unwrap();
    assert_eq!((before.current_key, before.rnext_key), (None, None));
    assert_eq!(errno(select(fd, Some(7), None)), libc::EINVAL);
    assert_eq!(errno(delete_key(fd, &deletion(network, 41))), libc::ENOENT);
    let asynchronous = Deletion {
        asynchronous: true,
        ..deletion(vrfless, 41)
    };
    delete_key(fd, &asynchronous).unwrap();
    delete_key(fd, &deletion(scope("192.0.2.1", 32), 0)).unwrap();
    assert_eq!(keys(fd).unwrap().len(), 39);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn connection_moves_to_another_key() {
    own_network();
    let peer = scope("127.0.0.1", 32);
    let (client, server) = session("127.0.0.1", "127.0.0.1", libc::AF_INET, peer);
    let state = info(client.as_fd()).unwrap().unwrap();
    assert_eq!((state.current_key, state.rnext_key), (Some(101), Some(1)));
    assert!(state.good >= 1 && state.bad == 0);
    let [installed] = &keys(server.as_fd()).unwrap()[..] else {
        panic!("not one key");
    };
    assert!(installed.is_current && installed.is_rnext && installed.good >= 1);
    let fd = server.as_fd();
    add_key(fd, &key(peer, 2)).unwrap();
    let options = layout::AO_REQUIRED | layout::ACCEPT_ICMPS;
    let both = InfoOption {
        flags: options,
        ..InfoOption::default()
    };
    socket::set_value(fd, libc::IPPROTO_TCP, TCP_AO_INFO, &both).unwrap();
    select(fd, None, Some(102)).unwrap();
    let state = info(fd).unwrap().unwrap();
    assert_eq!((state.current_key, state.rnext_key), (Some(1), Some(102)));
    assert!(state.ao_required && state.accept_icmps);
    assert_eq!(errno(delete_key(fd, &deletion(peer, 1))), libc::EBUSY);
    assert_eq!(errno(select(fd, Some(77), None)), libc::ENOENT);
    let replaced = Deletion {
        replace_current: Some(2),
        ..deletion(peer, 1)
    };
    delete_key(fd, &replaced).unwrap();
    let state = info(fd).unwrap().unwrap();
    assert_eq!((state.current_key, state.rnext_key), (Some(2), Some(102)));
    assert_eq!(errno(repair(fd)), libc::EPERM);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn ipv6_socket_takes_keys_of_both_families() {
    own_network();
    let (client, _server) = session("::1", "::1", libc::AF_INET6, scope("::1", 128));
    assert_eq!(keys(client.as_fd()).unwrap()[0].scope, scope("::1", 128));
    // The listener is of IPv6, and so is the socket that it accepts.
    let peer = scope("127.0.0.0", 8);
    let (_client, server) = session("::", "127.0.0.1", libc::AF_INET, peer);
    assert_eq!(keys(server.as_fd()).unwrap()[0].scope, peer);
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(plain.local_addr().unwrap()).unwrap();
    let late = key(scope("127.0.0.1", 32), 1);
    assert_eq!(errno(add_key(stream.as_fd(), &late)), libc::EISCONN);
    let everybody = TcpListener::bind("[::]:0").unwrap();
    add_key(everybody.as_fd(), &key(scope("::", 0), 1)).unwrap();
}

#[test]
#[ignore = "needs the lab's kernel"]
fn key_is_for_one_vrf() {
    own_network();
    ip("link add ao-blue type vrf table 77");
    ip("link set ao-blue up");
    let index = interface("ao-blue");
    let peer = Scope {
        vrf: Some(index),
        ..scope("192.0.2.1", 32)
    };
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    add_key(listener.as_fd(), &key(peer, 1)).unwrap();
    assert_eq!(keys(listener.as_fd()).unwrap()[0].scope, peer);
    let no_vrf = Scope {
        vrf: Some(1),
        ..peer
    };
    assert_eq!(
        errno(add_key(listener.as_fd(), &key(no_vrf, 2))),
        libc::EINVAL
    );
    delete_key(listener.as_fd(), &deletion(peer, 1)).unwrap();
}

fn interface(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name ends with a zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

#[test]
#[ignore = "needs the lab's kernel"]
fn initial_sequence_numbers_are_read_in_repair_mode() {
    own_network();
    let peer = scope("127.0.0.1", 32);
    let (client, server) = session("127.0.0.1", "127.0.0.1", libc::AF_INET, peer);
    for stream in [&client, &server] {
        socket::set(stream.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, 1).unwrap();
    }
    let (one, other) = (
        repair(client.as_fd()).unwrap(),
        repair(server.as_fd()).unwrap(),
    );
    assert_eq!((one.snt_isn, one.rcv_isn), (other.rcv_isn, other.snt_isn));
    set_repair(client.as_fd(), &one).unwrap();
    assert_eq!(repair(client.as_fd()).unwrap(), one);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn probe_finds_all_and_a_socket_has_an_end() {
    own_network();
    let found = probe::kernel_ao().unwrap();
    assert!(found.tcp_ao && found.vrf_keys);
    assert!(
        found
            .algorithms
            .iter()
            .all(|algorithm| algorithm.refused.is_none())
    );
    assert_eq!(probe::keys_per_listener(3).unwrap(), 3);
    let room = probe::keys_per_listener(5000).unwrap();
    assert!((100..5000).contains(&room));
}
