//! The structures of linux/tcp.h. Bit fields are flags in one integer, low bit first, as all
//! compilers for little-endian machines lay them out.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void};
use zeroize::Zeroize;

use crate::socket::{self, Plain};

#[cfg(not(target_endian = "little"))]
compile_error!("the bit fields of linux/tcp.h are laid out for little-endian machines");

/// TCP_AO_MAXKEYLEN.
pub(super) const KEY_MAX: usize = 80;

const ALGORITHM_SIZE: usize = 64;

/// TCP_AO_KEYF_IFINDEX and TCP_AO_KEYF_EXCLUDE_OPT.
pub(super) const KEY_HAS_INTERFACE: u8 = 1 << 0;
pub(super) const KEY_EXCLUDES_OPTIONS: u8 = 1 << 1;

/// In `flags` of all structures that are set, and of [`InfoOption`] when read.
pub(super) const SET_CURRENT: u32 = 1 << 0;
pub(super) const SET_RNEXT: u32 = 1 << 1;
/// In [`Delete::flags`].
pub(super) const DELETE_ASYNCHRONOUSLY: u32 = 1 << 2;
/// In [`InfoOption::flags`].
pub(super) const AO_REQUIRED: u32 = 1 << 2;
pub(super) const ACCEPT_ICMPS: u32 = 1 << 4;
/// In [`GetKeys::flags`].
pub(super) const IS_CURRENT: u16 = 1 << 0;
pub(super) const IS_RNEXT: u16 = 1 << 1;
const GET_ALL: u16 = 1 << 2;

/// `struct sockaddr_storage` with an IP address and no port.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Address([u8; 128]);

impl Address {
    const FAMILY: usize = 0;
    const V4: usize = 4;
    const V6: usize = 8;

    pub(super) fn new(address: IpAddr) -> Self {
        let mut octets = [0; 128];
        let mut put = |at: usize, what: &[u8]| {
            if let Some(field) = octets.get_mut(at..at + what.len()) {
                field.copy_from_slice(what);
            }
        };
        match address {
            IpAddr::V4(v4) => {
                put(Self::FAMILY, &socket::AF_INET.to_ne_bytes());
                put(Self::V4, &v4.octets());
            }
            IpAddr::V6(v6) => {
                put(Self::FAMILY, &socket::AF_INET6.to_ne_bytes());
                put(Self::V6, &v6.octets());
            }
        }
        Self(octets)
    }

    /// The address, unless it is of another family.
    pub(super) fn get(&self) -> Option<IpAddr> {
        match u16::from_ne_bytes(self.octets(Self::FAMILY)?) {
            socket::AF_INET => self.octets::<4>(Self::V4).map(IpAddr::from),
            socket::AF_INET6 => self.octets::<16>(Self::V6).map(IpAddr::from),
            _ => None,
        }
    }

    fn octets<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }
}

impl Default for Address {
    fn default() -> Self {
        Self([0; 128])
    }
}

/// `struct tcp_ao_add`.
#[repr(C, align(8))]
pub(super) struct Add {
    pub(super) address: Address,
    pub(super) algorithm: [u8; ALGORITHM_SIZE],
    pub(super) interface: u32,
    pub(super) flags: u32,
    pub(super) reserved: u16,
    pub(super) prefix: u8,
    pub(super) send_id: u8,
    pub(super) recv_id: u8,
    pub(super) mac_length: u8,
    pub(super) key_flags: u8,
    pub(super) key_length: u8,
    pub(super) key: [u8; KEY_MAX],
}

impl Default for Add {
    fn default() -> Self {
        Self {
            address: Address::default(),
            algorithm: [0; ALGORITHM_SIZE],
            interface: 0,
            flags: 0,
            reserved: 0,
            prefix: 0,
            send_id: 0,
            recv_id: 0,
            mac_length: 0,
            key_flags: 0,
            key_length: 0,
            key: [0; KEY_MAX],
        }
    }
}

impl Drop for Add {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// `struct tcp_ao_del`.
#[derive(Default)]
#[repr(C, align(8))]
pub(super) struct Delete {
    pub(super) address: Address,
    pub(super) interface: u32,
    pub(super) flags: u32,
    pub(super) reserved: u16,
    pub(super) prefix: u8,
    pub(super) send_id: u8,
    pub(super) recv_id: u8,
    pub(super) current_key: u8,
    pub(super) rnext_key: u8,
    pub(super) key_flags: u8,
}

/// `struct tcp_ao_info_opt`.
#[derive(Default)]
#[repr(C, align(8))]
pub(super) struct InfoOption {
    pub(super) flags: u32,
    pub(super) reserved: u16,
    pub(super) current_key: u8,
    pub(super) rnext_key: u8,
    pub(super) good: u64,
    pub(super) bad: u64,
    pub(super) key_not_found: u64,
    pub(super) r#unsigned: u64,
    pub(super) dropped_icmp: u64,
}

/// `struct tcp_ao_getsockopt`.
#[repr(C, align(8))]
pub(super) struct GetKeys {
    pub(super) address: Address,
    pub(super) algorithm: [u8; ALGORITHM_SIZE],
    pub(super) key: [u8; KEY_MAX],
    count: u32,
    pub(super) flags: u16,
    pub(super) send_id: u8,
    pub(super) recv_id: u8,
    pub(super) prefix: u8,
    pub(super) mac_length: u8,
    pub(super) key_flags: u8,
    pub(super) key_length: u8,
    pub(super) interface: u32,
    pub(super) good: u64,
    pub(super) bad: u64,
}

impl Default for GetKeys {
    fn default() -> Self {
        Self {
            address: Address::default(),
            algorithm: [0; ALGORITHM_SIZE],
            key: [0; KEY_MAX],
            count: 0,
            flags: 0,
            send_id: 0,
            recv_id: 0,
            prefix: 0,
            mac_length: 0,
            key_flags: 0,
            key_length: 0,
            interface: 0,
            good: 0,
            bad: 0,
        }
    }
}

impl Drop for GetKeys {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// `struct tcp_ao_repair`; the initial sequence numbers are in network order.
#[derive(Default)]
#[repr(C, align(8))]
pub(super) struct RepairOption {
    pub(super) snt_isn: u32,
    pub(super) rcv_isn: u32,
    pub(super) snd_sne: u32,
    pub(super) rcv_sne: u32,
}

// SAFETY: integers and arrays of octets only; the tests below show that there is no padding.
unsafe impl Plain for Add {}
// SAFETY: as above.
unsafe impl Plain for Delete {}
// SAFETY: as above.
unsafe impl Plain for InfoOption {}
// SAFETY: as above.
unsafe impl Plain for GetKeys {}
// SAFETY: as above.
unsafe impl Plain for RepairOption {}

/// Fills `entries` with keys of the socket; returns how many keys it has, which may be more.
pub(super) fn list(
    socket: BorrowedFd<'_>,
    name: c_int,
    entries: &mut [GetKeys],
) -> io::Result<usize> {
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let Some(first) = entries.first_mut() else {
        return Ok(0);
    };
    first.count = count;
    first.flags = GET_ALL;
    // The size of one entry, of which the kernel writes up to `count`.
    let mut length = socket::length_of::<GetKeys>();
    let pointer = entries.as_mut_ptr().cast::<c_void>();
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes at most `count` structures of `length` octets, which is what
    // `entries` has, and whatever it writes is a valid `Plain`.
    let status = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, name, pointer, &raw mut length) };
    socket::check(status)?;
    Ok(entries.first().map_or(0, |first| first.count as usize))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Numbers that a C compiler gives for linux/tcp.h. The offsets cover all fields, so equal
    /// numbers leave no room for padding.
    #[test]
    fn add_is_laid_out_as_in_c() {
        assert_eq!((size_of::<Add>(), align_of::<Add>()), (288, 8));
        assert_eq!(offset_of!(Add, address), 0);
        assert_eq!(offset_of!(Add, algorithm), 128);
        assert_eq!(offset_of!(Add, interface), 192);
        assert_eq!(offset_of!(Add, flags), 196);
        assert_eq!(offset_of!(Add, reserved), 200);
        assert_eq!(offset_of!(Add, prefix), 202);
        assert_eq!(offset_of!(Add, send_id), 203);
        assert_eq!(offset_of!(Add, recv_id), 204);
        assert_eq!(offset_of!(Add, mac_length), 205);
        assert_eq!(offset_of!(Add, key_flags), 206);
        assert_eq!(offset_of!(Add, key_length), 207);
        assert_eq!(offset_of!(Add, key), 208);
    }

    #[test]
    fn delete_is_laid_out_as_in_c() {
        assert_eq!((size_of::<Delete>(), align_of::<Delete>()), (144, 8));
        assert_eq!(offset_of!(Delete, address), 0);
        assert_eq!(offset_of!(Delete, interface), 128);
        assert_eq!(offset_of!(Delete, flags), 132);
        assert_eq!(offset_of!(Delete, reserved), 136);
        assert_eq!(offset_of!(Delete, prefix), 138);
        assert_eq!(offset_of!(Delete, send_id), 139);
        assert_eq!(offset_of!(Delete, recv_id), 140);
        assert_eq!(offset_of!(Delete, current_key), 141);
        assert_eq!(offset_of!(Delete, rnext_key), 142);
        assert_eq!(offset_of!(Delete, key_flags), 143);
    }

    #[test]
    fn info_is_laid_out_as_in_c() {
        assert_eq!((size_of::<InfoOption>(), align_of::<InfoOption>()), (48, 8));
        assert_eq!(offset_of!(InfoOption, flags), 0);
        assert_eq!(offset_of!(InfoOption, reserved), 4);
        assert_eq!(offset_of!(InfoOption, current_key), 6);
        assert_eq!(offset_of!(InfoOption, rnext_key), 7);
        assert_eq!(offset_of!(InfoOption, good), 8);
        assert_eq!(offset_of!(InfoOption, bad), 16);
        assert_eq!(offset_of!(InfoOption, key_not_found), 24);
        assert_eq!(offset_of!(InfoOption, r#unsigned), 32);
        assert_eq!(offset_of!(InfoOption, dropped_icmp), 40);
    }

    #[test]
    fn get_keys_is_laid_out_as_in_c() {
        assert_eq!((size_of::<GetKeys>(), align_of::<GetKeys>()), (304, 8));
        assert_eq!(offset_of!(GetKeys, address), 0);
        assert_eq!(offset_of!(GetKeys, algorithm), 128);
        assert_eq!(offset_of!(GetKeys, key), 192);
        assert_eq!(offset_of!(GetKeys, count), 272);
        assert_eq!(offset_of!(GetKeys, flags), 276);
        assert_eq!(offset_of!(GetKeys, send_id), 278);
        assert_eq!(offset_of!(GetKeys, recv_id), 279);
        assert_eq!(offset_of!(GetKeys, prefix), 280);
        assert_eq!(offset_of!(GetKeys, mac_length), 281);
        assert_eq!(offset_of!(GetKeys, key_flags), 282);
        assert_eq!(offset_of!(GetKeys, key_length), 283);
        assert_eq!(offset_of!(GetKeys, interface), 284);
        assert_eq!(offset_of!(GetKeys, good), 288);
        assert_eq!(offset_of!(GetKeys, bad), 296);
    }

    #[test]
    fn repair_is_laid_out_as_in_c() {
        let size = (size_of::<RepairOption>(), align_of::<RepairOption>());
        assert_eq!(size, (16, 8));
        assert_eq!(offset_of!(RepairOption, snt_isn), 0);
        assert_eq!(offset_of!(RepairOption, rcv_isn), 4);
        assert_eq!(offset_of!(RepairOption, snd_sne), 8);
        assert_eq!(offset_of!(RepairOption, rcv_sne), 12);
    }

    #[test]
    fn address_is_a_sockaddr_without_port() {
        let v4 = Address::new(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(v4.0[..8], [2, 0, 0, 0, 192, 0, 2, 1]);
        assert!(v4.0[8..].iter().all(|&octet| octet == 0));
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let raw = Address::new(v6);
        assert_eq!(raw.0[..12], [10, 0, 0, 0, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8]);
        assert_eq!(raw.0[23], 1);
        assert_eq!(raw.get(), Some(v6));
        assert_eq!(v4.get(), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(Address::default().get(), None);
    }
}
