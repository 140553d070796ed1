//! What this kernel can do, found by trying on sockets of our own, never by its version.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::pidfd::PidFd;
use crate::tcp_ao::{self, NewKey, Scope};
use crate::{seccomp, socket};

/// What is tried: the kernel's name of an algorithm, and the octets of the MAC.
const ALGORITHMS: [(&str, u8); 4] = [
    ("hmac(sha1)", 12),
    ("cmac(aes128)", 12),
    ("hmac(sha256)", 12),
    ("hmac(sha256)", 16),
];

/// For documentation (RFC 5737): no packet is sent.
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// What the kernel backend needs of the kernel, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelAo {
    /// TCP-AO at all.
    pub tcp_ao: bool,
    /// The algorithms; all refused without TCP-AO.
    pub algorithms: Vec<Algorithm>,
    /// Whether a key can be for the connections of one VRF or of none.
    pub vrf_keys: bool,
    /// Whether copies of another process's descriptors can be had at all. Whether those of a given
    /// process can is a matter of permissions: CAP_SYS_PTRACE and [`yama_forbids_attach`].
    pub pidfd_getfd: bool,
    /// Whether a program's system calls can be held.
    pub seccomp_notification: bool,
}

/// Whether the kernel takes keys of an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// The kernel's name.
    pub name: &'static str,
    /// Octets of the MAC.
    pub mac_length: u8,
    /// Why not: an errno, as ENOENT when the kernel was built without the algorithm.
    pub refused: Option<i32>,
}

impl KernelAo {
    /// Whether keys of the algorithm, by the kernel's name, with a MAC of so many octets can be
    /// had.
    #[must_use]
    pub fn supports(&self, algorithm: &str, mac_length: u8) -> bool {
        self.algorithms.iter().any(|known| {
            (known.name, known.mac_length, known.refused) == (algorithm, mac_length, None)
        })
    }
}

/// Tries what the kernel backend needs.
///
/// # Errors
/// When no TCP socket can be opened.
pub fn kernel_ao() -> io::Result<KernelAo> {
    let mut algorithms = Vec::new();
    for (name, mac_length) in ALGORITHMS {
        let tried = try_key(None, name, mac_length)?;
        algorithms.push(Algorithm {
            name,
            mac_length,
            refused: tried.err().map(|error| error.raw_os_error().unwrap_or(0)),
        });
    }
    let usable = algorithms
        .iter()
        .find(|algorithm| algorithm.refused.is_none());
    let vrf_keys = match usable {
        Some(usable) => try_key(Some(0), usable.name, usable.mac_length)?.is_ok(),
        None => false,
    };
    Ok(KernelAo {
        tcp_ao: kernel_has_tcp_ao()?,
        algorithms,
        vrf_keys,
        pidfd_getfd: can_copy_descriptors()?,
        seccomp_notification: seccomp::is_available(),
    })
}

/// Whether this kernel's TCP knows TCP-AO. One that does drops segments whose option it has no
/// key for; one that does not ignores the option.
///
/// # Errors
/// When no TCP socket can be opened.
pub fn kernel_has_tcp_ao() -> io::Result<bool> {
    let answer = tcp_ao::info(open()?.as_fd());
    // A kernel that knows the option has no complaint about a socket without keys.
    Ok(!answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOPROTOOPT)))
}

/// Whether Yama forbids all tracing, and with it copying descriptors and reading memory of other
/// processes, to root too; it stays so until the machine is started again.
#[must_use]
pub fn yama_forbids_attach() -> bool {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() == "3")
}

/// How many keys one socket takes within today's net.core.optmem_max, up to `most`: tried with
/// keys of HMAC-SHA-1 on a socket of our own, in time that grows with the square of the number.
///
/// # Errors
/// The kernel's, as ENOPROTOOPT without TCP-AO.
pub fn keys_per_listener(most: u32) -> io::Result<u32> {
    let socket = open()?;
    let first = u32::from(Ipv4Addr::new(10, 0, 0, 1));
    for count in 0..most {
        let address = Ipv4Addr::from(first.wrapping_add(count));
        match tcp_ao::add_key(socket.as_fd(), &key(address.into(), None, "hmac(sha1)", 12)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(most)
}

fn open() -> io::Result<OwnedFd> {
    socket::open(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP)
}

/// The kernel's answer to a key on a fresh socket.
fn try_key(vrf: Option<u32>, algorithm: &str, mac_length: u8) -> io::Result<io::Result<()>> {
    let socket = open()?;
    let key = key(PEER, vrf, algorithm, mac_length);
    Ok(tcp_ao::add_key(socket.as_fd(), &key))
}

fn key(address: IpAddr, vrf: Option<u32>, algorithm: &str, mac_length: u8) -> NewKey<'_> {
    NewKey {
        scope: Scope {
            address,
            prefix: 32,
            vrf,
        },
        send_id: 1,
        recv_id: 1,
        algorithm,
        mac_length,
        exclude_options: false,
        secret: b"not a secret",
        set_current: false,
        set_rnext: false,
    }
}

fn can_copy_descriptors() -> io::Result<bool> {
    let socket = open()?;
    let this = PidFd::open(std::process::id());
    Ok(this.is_ok_and(|this| this.get(socket.as_raw_fd()).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_setting_agree() {
        const TCP_AO_ADD_KEY: libc::c_int = 38;
        let socket = open().unwrap();
        // Far too short for a key: a kernel that knows the option says so.
        let error = socket::set(socket.as_fd(), libc::IPPROTO_TCP, TCP_AO_ADD_KEY, 0).unwrap_err();
        let known = error.raw_os_error() != Some(libc::ENOPROTOOPT);
        assert_eq!(kernel_has_tcp_ao().unwrap(), known);
        let found = kernel_ao().unwrap();
        assert_eq!(found.tcp_ao, known);
        let refused = found.algorithms.iter().map(|algorithm| algorithm.refused);
        if known {
            assert!(found.supports("hmac(sha1)", 12));
        } else {
            assert!(refused.eq([Some(libc::ENOPROTOOPT); ALGORITHMS.len()]));
            assert!(!found.vrf_keys);
            let error = keys_per_listener(1).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
        }
        assert!(found.pidfd_getfd && found.seccomp_notification);
        assert!(!found.supports("hmac(sha1)", 13));
    }
}
