//! TCP-AO (RFC 5925) of the kernel's own TCP: its socket options, in Linux since 6.7.
//!
//! Which socket takes what:
//! - A socket in LISTEN or CLOSED takes keys at any time. One with a connection takes keys only
//!   if it had one when the connection began; otherwise adding fails with EISCONN.
//! - Keys are matched by the far end's address, never by port.
//! - A connection has a current_key, named here by its SendID, and an rnext_key, named by its
//!   RecvID. A listener has neither; what accept(2) returns has them.
//!
//! A kernel without TCP-AO answers every call with ENOPROTOOPT.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use zeroize::Zeroizing;

use crate::socket;

mod layout;

use layout::{Add, Address, Delete, GetKeys, InfoOption, RepairOption};

const TCP_AO_ADD_KEY: libc::c_int = 38;
const TCP_AO_DEL_KEY: libc::c_int = 39;
const TCP_AO_INFO: libc::c_int = 40;
const TCP_AO_GET_KEYS: libc::c_int = 41;
const TCP_AO_REPAIR: libc::c_int = 42;

/// Longest secret that the kernel takes, in octets.
pub const SECRET_MAX: usize = layout::KEY_MAX;

/// Entries of the first attempt to list a socket's keys.
const KEYS_AT_FIRST: usize = 16;

/// Attempts to list keys of which ever more are being added.
const LIST_ATTEMPTS: usize = 8;

/// Whom a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The far end's address, or with a shorter prefix the network it is in, host bits zero.
    pub address: IpAddr,
    /// Length of the prefix: up to 32 for IPv4, up to 128 for IPv6. With 0, which goes with the
    /// unspecified address only, the key is for everybody.
    pub prefix: u8,
    /// Interface index of the VRF that the connection is in; 0 for connections in none. `None`
    /// matches in every VRF.
    pub vrf: Option<u32>,
}

/// A key to add.
#[derive(Clone, Copy)]
pub struct NewKey<'a> {
    /// Whom it is for.
    pub scope: Scope,
    /// KeyID of the segments that it signs.
    pub send_id: u8,
    /// KeyID of the segments that it verifies.
    pub recv_id: u8,
    /// The kernel's name of the algorithm: `hmac(sha1)`, `cmac(aes128)`, `hmac(sha256)`.
    pub algorithm: &'a str,
    /// Octets of the MAC; 0 is the kernel's default, 12.
    pub mac_length: u8,
    /// Whether TCP options other than TCP-AO are left out of the MAC.
    pub exclude_options: bool,
    /// The master key, up to [`SECRET_MAX`] octets.
    pub secret: &'a [u8],
    /// Sign with it from now on. Not for listeners.
    pub set_current: bool,
    /// Ask the far end to sign with it. Not for listeners.
    pub set_rnext: bool,
}

impl fmt::Debug for NewKey<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NewKey")
            .field("scope", &self.scope)
            .field("send_id", &self.send_id)
            .field("recv_id", &self.recv_id)
            .field("algorithm", &self.algorithm)
            .field("mac_length", &self.mac_length)
            .field("exclude_options", &self.exclude_options)
            .field("set_current", &self.set_current)
            .field("set_rnext", &self.set_rnext)
            .finish_non_exhaustive()
    }
}

/// Adds a key. On an IPv6 socket, an IPv4 scope is for connections over IPv4.
///
/// # Errors
/// `InvalidInput` for what no kernel could take: a scope that does not fit the socket or has host
/// bits, an algorithm's name or a secret that is too long; an IPv4 scope of prefix 0 on an IPv6
/// socket, for which the kernel has no form. Otherwise the kernel's error:
/// EEXIST (the socket has a key with one of these IDs for an overlapping scope), ENOMEM
/// (net.core.optmem_max), EKEYREJECTED (the socket has a TCP-MD5 key for the peer), EISCONN (see
/// the module), ENOENT (no such algorithm), EMSGSIZE (the MAC leaves no room in a SYN), EINVAL
/// (among others: no such VRF, or the MAC is longer than the algorithm's).
pub fn add_key(socket: BorrowedFd<'_>, key: &NewKey<'_>) -> io::Result<()> {
    let mut add = Add {
        address: kernel_address(socket, &key.scope)?,
        prefix: key.scope.prefix,
        send_id: key.send_id,
        recv_id: key.recv_id,
        mac_length: key.mac_length,
        ..Add::default()
    };
    let name = key.algorithm.as_bytes();
    // One octet stays zero: the name's end.
    let room = add.algorithm.len() - 1;
    let field = add.algorithm.get_mut(..name.len().min(room + 1));
    match field {
        Some(field) if name.len() <= room => field.copy_from_slice(name),
        _ => return Err(invalid("the algorithm's name is too long")),
    }
    let field = add.key.get_mut(..key.secret.len());
    field
        .ok_or_else(|| invalid("the secret is longer than 80 octets"))?
        .copy_from_slice(key.secret);
    add.key_length = u8::try_from(key.secret.len()).unwrap_or(u8::MAX);
    if let Some(vrf) = key.scope.vrf {
        add.interface = vrf;
        add.key_flags |= layout::KEY_HAS_INTERFACE;
    }
    if key.exclude_options {
        add.key_flags |= layout::KEY_EXCLUDES_OPTIONS;
    }
    if key.set_current {
        add.flags |= layout::SET_CURRENT;
    }
    if key.set_rnext {
        add.flags |= layout::SET_RNEXT;
    }
    socket::set_value(socket, libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &add)
}

/// A key to delete: the one whose scope and IDs are exactly these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Whom it is for.
    pub scope: Scope,
    /// Its SendID.
    pub send_id: u8,
    /// Its RecvID.
    pub recv_id: u8,
    /// SendID of the key that becomes current_key in the same step. Not for listeners.
    pub replace_current: Option<u8>,
    /// RecvID of the key that becomes rnext_key in the same step. Not for listeners.
    pub replace_rnext: Option<u8>,
    /// Do not wait for readers of the key. For listeners only.
    pub asynchronous: bool,
}

/// Deletes a key.
///
/// # Errors
/// ENOENT (there is no such key, or none of a replacement's ID), EBUSY (it is the current_key or
/// the rnext_key and is not being replaced), EINVAL (replacements on a listener, an asynchronous
/// deletion elsewhere), and `InvalidInput` as for [`add_key`].
pub fn delete_key(socket: BorrowedFd<'_>, deletion: &Deletion) -> io::Result<()> {
    let mut delete = Delete {
        address: kernel_address(socket, &deletion.scope)?,
        prefix: deletion.scope.prefix,
        send_id: deletion.send_id,
        recv_id: deletion.recv_id,
        ..Delete::default()
    };
    if let Some(vrf) = deletion.scope.vrf {
        delete.interface = vrf;
        delete.key_flags |= layout::KEY_HAS_INTERFACE;
    }
    if let Some(id) = deletion.replace_current {
        delete.flags |= layout::SET_CURRENT;
        delete.current_key = id;
    }
    if let Some(id) = deletion.replace_rnext {
        delete.flags |= layout::SET_RNEXT;
        delete.rnext_key = id;
    }
    if deletion.asynchronous {
        delete.flags |= layout::DELETE_ASYNCHRONOUSLY;
    }
    socket::set_value(socket, libc::IPPROTO_TCP, TCP_AO_DEL_KEY, &delete)
}

/// TCP-AO of a socket as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// SendID of the current_key; `None` on a listener.
    pub current_key: Option<u8>,
    /// RecvID of the rnext_key; `None` on a listener.
    pub rnext_key: Option<u8>,
    /// Whether unsigned segments are refused from peers without a key too.
    pub ao_required: bool,
    /// Whether ICMP errors that RFC 5925 section 7.8 wants ignored are heeded.
    pub accept_icmps: bool,
    /// Segments that verified.
    pub good: u64,
    /// Segments whose MAC was wrong.
    pub bad: u64,
    /// Signed segments with a KeyID of no key.
    pub key_not_found: u64,
    /// Segments that should have been signed and were not.
    pub r#unsigned: u64,
    /// ICMP errors that were ignored.
    pub dropped_icmp: u64,
}

/// What TCP-AO of a socket is doing; `None` when the socket has no TCP-AO.
///
/// # Errors
/// The kernel's.
pub fn info(socket: BorrowedFd<'_>) -> io::Result<Option<Info>> {
    let Some(raw) = read_info(socket)? else {
        return Ok(None);
    };
    let has = |flag| raw.flags & flag != 0;
    Ok(Some(Info {
        current_key: has(layout::SET_CURRENT).then_some(raw.current_key),
        rnext_key: has(layout::SET_RNEXT).then_some(raw.rnext_key),
        ao_required: has(layout::AO_REQUIRED),
        accept_icmps: has(layout::ACCEPT_ICMPS),
        good: raw.good,
        bad: raw.bad,
        key_not_found: raw.key_not_found,
        r#unsigned: raw.r#unsigned,
        dropped_icmp: raw.dropped_icmp,
    }))
}

/// Makes the key with SendID `current` the current_key and the one with RecvID `rnext` the
/// rnext_key of a connection; `None` leaves it to what it is. Nothing else of the socket changes.
///
/// # Errors
/// ENOENT (no TCP-AO or no such key), EINVAL (a listener).
pub fn select(socket: BorrowedFd<'_>, current: Option<u8>, rnext: Option<u8>) -> io::Result<()> {
    // What is not set again is cleared, so it is read first.
    let Some(before) = read_info(socket)? else {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    };
    let mut after = InfoOption {
        flags: before.flags & (layout::AO_REQUIRED | layout::ACCEPT_ICMPS),
        ..InfoOption::default()
    };
    if let Some(id) = current {
        after.flags |= layout::SET_CURRENT;
        after.current_key = id;
    }
    if let Some(id) = rnext {
        after.flags |= layout::SET_RNEXT;
        after.rnext_key = id;
    }
    socket::set_value(socket, libc::IPPROTO_TCP, TCP_AO_INFO, &after)
}

fn read_info(socket: BorrowedFd<'_>) -> io::Result<Option<InfoOption>> {
    let mut raw = InfoOption::default();
    match socket::get_value(socket, libc::IPPROTO_TCP, TCP_AO_INFO, &mut raw) {
        Ok(_) => Ok(Some(raw)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A key that a socket has.
#[derive(Clone, PartialEq, Eq)]
pub struct InstalledKey {
    /// Whom it is for; an IPv4 address for connections over IPv4, on an IPv6 socket too.
    pub scope: Scope,
    /// KeyID of the segments that it signs.
    pub send_id: u8,
    /// KeyID of the segments that it verifies.
    pub recv_id: u8,
    /// Name of the algorithm, as [`NewKey::algorithm`] has it.
    pub algorithm: String,
    /// Octets of the MAC.
    pub mac_length: u8,
    /// Whether TCP options other than TCP-AO are left out of the MAC.
    pub exclude_options: bool,
    /// The master key as the kernel keeps it: for `cmac(aes128)`, a secret that is not of 16
    /// octets comes back as the 16 octets that RFC 5926 section 3.1.1.2 makes of it.
    pub secret: Zeroizing<Vec<u8>>,
    /// Whether it is the current_key.
    pub is_current: bool,
    /// Whether it is the rnext_key.
    pub is_rnext: bool,
    /// Segments that it verified.
    pub good: u64,
    /// Segments with its KeyID and a wrong MAC.
    pub bad: u64,
}

impl fmt::Debug for InstalledKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("InstalledKey")
            .field("scope", &self.scope)
            .field("send_id", &self.send_id)
            .field("recv_id", &self.recv_id)
            .field("algorithm", &self.algorithm)
            .field("mac_length", &self.mac_length)
            .field("exclude_options", &self.exclude_options)
            .field("is_current", &self.is_current)
            .field("is_rnext", &self.is_rnext)
            .field("good", &self.good)
            .field("bad", &self.bad)
            .finish_non_exhaustive()
    }
}

/// All keys of a socket, in no particular order; none when it has no TCP-AO.
///
/// # Errors
/// The kernel's, or when keys are being added faster than they can be listed.
pub fn keys(socket: BorrowedFd<'_>) -> io::Result<Vec<InstalledKey>> {
    let mut room = KEYS_AT_FIRST;
    for _ in 0..LIST_ATTEMPTS {
        // Never grown in place, so that no copy of a secret stays behind.
        let mut entries = Vec::new();
        entries.resize_with(room, GetKeys::default);
        let matched = match layout::list(socket, TCP_AO_GET_KEYS, &mut entries) {
            Ok(matched) => matched,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if matched <= room {
            return entries.iter().take(matched).map(installed).collect();
        }
        room = matched;
    }
    Err(io::Error::other(
        "the socket's keys change too fast to be listed",
    ))
}

fn installed(entry: &GetKeys) -> io::Result<InstalledKey> {
    let address = entry.address.get();
    let secret = entry.key.get(..usize::from(entry.key_length));
    let (Some(address), Some(secret)) = (address, secret) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel listed a key in a form that is not known",
        ));
    };
    let name = entry.algorithm.iter().take_while(|&&octet| octet != 0);
    let name: Vec<u8> = name.copied().collect();
    // The kernel forgets under which of the two names it was added.
    let algorithm = match name.as_slice() {
        b"cmac(aes)" => "cmac(aes128)".to_owned(),
        other => String::from_utf8_lossy(other).into_owned(),
    };
    let has_interface = entry.key_flags & layout::KEY_HAS_INTERFACE != 0;
    Ok(InstalledKey {
        scope: Scope {
            address,
            prefix: entry.prefix,
            vrf: has_interface.then_some(entry.interface),
        },
        send_id: entry.send_id,
        recv_id: entry.recv_id,
        algorithm,
        mac_length: entry.mac_length,
        exclude_options: entry.key_flags & layout::KEY_EXCLUDES_OPTIONS != 0,
        secret: Zeroizing::new(secret.to_vec()),
        is_current: entry.flags & layout::IS_CURRENT != 0,
        is_rnext: entry.flags & layout::IS_RNEXT != 0,
        good: entry.good,
        bad: entry.bad,
    })
}

/// What a connection's traffic keys depend on beside its keys and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Initial sequence number of this end.
    pub snt_isn: u32,
    /// Initial sequence number of the far end.
    pub rcv_isn: u32,
    /// Sequence number extension of what is sent (RFC 5925 section 6.2).
    pub snd_sne: u32,
    /// Sequence number extension of what is received.
    pub rcv_sne: u32,
}

/// Reads a connection's initial sequence numbers and their extensions. The socket must be in
/// repair mode (TCP_REPAIR), which takes CAP_NET_ADMIN.
///
/// # Errors
/// EPERM (not in repair mode), ENOENT (no TCP-AO).
pub fn repair(socket: BorrowedFd<'_>) -> io::Result<Repair> {
    let mut raw = RepairOption::default();
    socket::get_value(socket, libc::IPPROTO_TCP, TCP_AO_REPAIR, &mut raw)?;
    Ok(Repair {
        snt_isn: u32::from_be(raw.snt_isn),
        rcv_isn: u32::from_be(raw.rcv_isn),
        snd_sne: raw.snd_sne,
        rcv_sne: raw.rcv_sne,
    })
}

/// Sets what [`repair`] reads; the traffic keys of all the socket's keys are made anew. The socket
/// must be in repair mode.
///
/// # Errors
/// EPERM (not in repair mode), ENOENT (no TCP-AO).
pub fn set_repair(socket: BorrowedFd<'_>, repair: &Repair) -> io::Result<()> {
    let raw = RepairOption {
        snt_isn: repair.snt_isn.to_be(),
        rcv_isn: repair.rcv_isn.to_be(),
        snd_sne: repair.snd_sne,
        rcv_sne: repair.rcv_sne,
    };
    socket::set_value(socket, libc::IPPROTO_TCP, TCP_AO_REPAIR, &raw)
}

/// The scope's address in the family of the socket.
fn kernel_address(socket: BorrowedFd<'_>, scope: &Scope) -> io::Result<Address> {
    let domain = socket::get(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    match (domain, scope.address) {
        (libc::AF_INET, IpAddr::V4(_)) | (libc::AF_INET6, IpAddr::V6(_)) => {
            Ok(Address::new(scope.address))
        }
        (libc::AF_INET6, IpAddr::V4(v4)) => {
            // Of a mapped address the kernel wants the prefix in bits of IPv4; and 0 only with
            // ::, which would be for IPv6 connections too.
            if scope.prefix == 0 || v4 == Ipv4Addr::UNSPECIFIED {
                return Err(invalid("an IPv6 socket takes no key for all of IPv4"));
            }
            let mapped: Ipv6Addr = v4.to_ipv6_mapped();
            Ok(Address::new(mapped.into()))
        }
        (libc::AF_INET, IpAddr::V6(_)) => Err(invalid("an IPv4 socket takes no key for IPv6")),
        _ => Err(invalid("not a socket of IPv4 or IPv6")),
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
mod tests;
