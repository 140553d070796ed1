//! TCP-MD5 keys (RFC 2385) that sockets have. Their secrets are not looked at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::{ExtensionFlags, StateFlags};

use super::{TcpSocket, attributes, dump, parse};

/// INET_DIAG_MD5SIG of linux/inet_diag.h.
const INET_DIAG_MD5SIG: u16 = 18;
/// Octets of `struct tcp_diag_md5sig`: family, prefix length, length of the secret (2), address
/// (16), secret (80).
const KEY: usize = 100;

/// A TCP-MD5 key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Md5Key {
    /// The socket that has it.
    pub socket: TcpSocket,
    /// Address of the far ends it is for.
    pub remote: IpAddr,
    /// How many bits of that address count.
    pub prefix: u8,
}

/// Lists the TCP-MD5 keys of all TCP sockets of the calling thread's network namespace, listeners
/// included. Without CAP_NET_ADMIN, and on a kernel without TCP-MD5, there are none to see.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn md5_keys() -> io::Result<Vec<Md5Key>> {
    let mut found = Vec::new();
    // The kernel shows keys to whoever asks for INET_DIAG_INFO.
    let states = StateFlags::all() - StateFlags::TIME_WAIT;
    dump(&states, &ExtensionFlags::INFO, |message| {
        keys_of(message, &mut found);
    })?;
    Ok(found)
}

fn keys_of(message: &[u8], found: &mut Vec<Md5Key>) {
    let keys = attributes(message).filter(|attribute| attribute.kind() == INET_DIAG_MD5SIG);
    for attribute in keys {
        let Some(socket) = parse(message) else {
            return;
        };
        let (keys, _) = attribute.value().as_chunks::<KEY>();
        found.extend(keys.iter().filter_map(|key| {
            let (remote, prefix) = remote_of(key)?;
            Some(Md5Key {
                socket: socket.clone(),
                remote,
                prefix,
            })
        }));
    }
}

fn remote_of(key: &[u8; KEY]) -> Option<(IpAddr, u8)> {
    let prefix = key[1];
    let address: [u8; 16] = *key[4..].first_chunk()?;
    match key[0] {
        AF_INET => {
            let address: [u8; 4] = *address.first_chunk()?;
            Some((Ipv4Addr::from(address).into(), prefix))
        }
        AF_INET6 => Some((Ipv6Addr::from(address).into(), prefix)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;
    use crate::sock_diag::TcpState;
    use crate::socket::{self, Plain};

    const TCP_MD5SIG_EXT: libc::c_int = 32;
    const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;

    /// Octets of `struct tcp_md5sig`.
    const NEW_KEY: usize = 216;

    // SAFETY: octets.
    unsafe impl Plain for [u8; NEW_KEY] {}

    fn add_key(fd: impl AsFd, remote: IpAddr, prefix: u8) {
        let mut key = [0_u8; NEW_KEY];
        match remote {
            IpAddr::V4(v4) => {
                key[..2].copy_from_slice(&u16::from(AF_INET).to_ne_bytes());
                key[4..8].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                key[..2].copy_from_slice(&u16::from(AF_INET6).to_ne_bytes());
                key[8..24].copy_from_slice(&v6.octets());
            }
        }
        key[128] = TCP_MD5SIG_FLAG_PREFIX;
        key[129] = prefix;
        key[130..132].copy_from_slice(&9_u16.to_ne_bytes());
        key[136..145].copy_from_slice(b"testvector".first_chunk::<9>().unwrap());
        socket::set_value(fd.as_fd(), libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &key).unwrap();
    }

    #[test]
    fn keys_of_listeners_of_either_family_are_listed() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::]:0").unwrap();
        let without = TcpListener::bind("127.0.0.1:0").unwrap();
        let [one, net, six, mapped] = [
            "192.0.2.1",
            "198.51.100.0",
            "2001:db8::",
            "::ffff:192.0.2.9",
        ]
        .map(|address| address.parse().unwrap());
        add_key(&v4, one, 32);
        add_key(&v4, net, 24);
        add_key(&v6, six, 64);
        add_key(&v6, mapped, 32);
        let keys = md5_keys().unwrap();
        let of = |listener: &TcpListener| {
            let local = listener.local_addr().unwrap();
            let mut found: Vec<_> = keys
                .iter()
                .filter(|key| key.socket.local.port() == local.port())
                .map(|key| (key.remote.to_string(), key.prefix, key.socket.state))
                .collect();
            found.sort_by(|one, other| one.0.cmp(&other.0));
            found
        };
        let listed = |remote: &str, prefix| (remote.to_owned(), prefix, TcpState::Listen);
        assert_eq!(
            of(&v4),
            [listed("192.0.2.1", 32), listed("198.51.100.0", 24)]
        );
        assert_eq!(of(&v6), [listed("192.0.2.9", 32), listed("2001:db8::", 64)]);
        assert_eq!(of(&without), []);
    }

    #[test]
    fn the_key_of_a_connecting_socket_is_listed() {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
        let client = socket::open(libc::AF_INET, kind, 0).unwrap();
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = far.local_addr().unwrap();
        add_key(&client, address.ip(), 32);
        let kernel = socket::KernelAddress::new(address.ip(), address.port(), 0);
        let (pointer, length) = kernel.as_raw();
        // SAFETY: pointer and length describe `kernel`, which outlives the call.
        let connecting =
            socket::check(unsafe { libc::connect(client.as_raw_fd(), pointer, length) });
        // The far end expects no key and drops the SYN.
        assert_eq!(
            connecting.unwrap_err().raw_os_error(),
            Some(libc::EINPROGRESS)
        );
        let keys = md5_keys().unwrap();
        let found = keys.iter().find(|key| key.socket.remote == address);
        let found = found.expect("the key of the connecting socket");
        assert_eq!((found.socket.state, found.prefix), (TcpState::SynSent, 32));
        assert!(TcpStream::connect(address).is_ok(), "without a key it goes");
    }

    #[test]
    fn cut_off_answers_hold_no_key() {
        for length in 0..200 {
            let mut found = Vec::new();
            keys_of(&vec![0; length], &mut found);
            assert_eq!(found, []);
        }
    }
}
