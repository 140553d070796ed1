//! The size of an x_tables (legacy iptables) ruleset: a cheap sign that somebody changed it.
//!
//! x_tables tells nobody about changes, so the only ways to notice one are to read the whole
//! table or to ask for its outline, which is one system call.

use std::ffi::c_void;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO of linux/netfilter_ipv4/ip_tables.h and its IPv6 twin.
const SO_GET_INFO: libc::c_int = 64;
/// Octets of the name field (XT_TABLE_MAXNAMELEN), terminator included.
const NAME: usize = 32;
/// NF_INET_NUMHOOKS.
const HOOKS: usize = 5;

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// ip_tables.
    V4,
    /// ip6_tables.
    V6,
}

/// struct ipt_getinfo and struct ip6t_getinfo, which are alike.
#[repr(C)]
struct GetInfo {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    num_entries: u32,
    size: u32,
}

const INFO_LENGTH: libc::socklen_t = 84;
const _: () = assert!(size_of::<GetInfo>() == INFO_LENGTH as usize);
const _: () = assert!(std::mem::offset_of!(GetInfo, num_entries) == 76);

/// Outline of a table: differs whenever rules were added, removed or flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Number of rules, with those the kernel adds for policies and chain ends.
    pub entries: u32,
    /// Octets of all rules.
    pub size: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
}

/// Asks for outlines of the tables of one network namespace.
pub struct Tables {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Tables {
    /// Opens the sockets in the calling thread's network namespace.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open() -> io::Result<Self> {
        // Any inet socket carries these options; neither of these sends or receives.
        Ok(Self {
            v4: UdpSocket::bind("0.0.0.0:0")?,
            v6: UdpSocket::bind("[::]:0").ok(),
        })
    }

    /// Outline of a table such as `mangle`.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_ADMIN, `Unsupported` when the kernel has no such table
    /// or family.
    pub fn outline(&self, family: Family, table: &str) -> io::Result<Outline> {
        let (socket, level) = match family {
            Family::V4 => (Some(&self.v4), libc::IPPROTO_IP),
            Family::V6 => (self.v6.as_ref(), libc::IPPROTO_IPV6),
        };
        let socket = socket.ok_or(io::ErrorKind::Unsupported)?;
        let mut info = GetInfo {
            name: [0; NAME],
            valid_hooks: 0,
            hook_entry: [0; HOOKS],
            underflow: [0; HOOKS],
            num_entries: 0,
            size: 0,
        };
        if table.len() >= NAME {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (place, octet) in info.name.iter_mut().zip(table.bytes()) {
            *place = octet;
        }
        let mut length = INFO_LENGTH;
        // SAFETY: the descriptor is open for the call, `info` is valid for writes of `length`
        // octets, and every bit pattern is a valid `GetInfo`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                SO_GET_INFO,
                (&raw mut info).cast::<c_void>(),
                &raw mut length,
            )
        };
        if result == 0 {
            return Ok(Outline {
                entries: info.num_entries,
                size: info.size,
                hook_entry: info.hook_entry,
                underflow: info.underflow,
            });
        }
        let error = io::Error::last_os_error();
        Err(match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOPROTOOPT) => io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel has no x_tables table {table}"),
            ),
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_table_is_unsupported() {
        let tables = Tables::open().unwrap();
        let error = tables.outline(Family::V4, "nosuchtable").unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ),
            "{error}"
        );
        let too_long = "x".repeat(NAME);
        let error = tables.outline(Family::V6, &too_long).unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
        ));
    }
}
