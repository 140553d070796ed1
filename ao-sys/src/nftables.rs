//! Word of changes to nftables tables.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NlasIterator;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink;

/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
const NFNLGRP_NFTABLES: u32 = 7;
/// NFNL_SUBSYS_NFTABLES, the upper octet of a message type.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// Octets of struct nfgenmsg.
const NFGENMSG: usize = 4;
/// The table's name in messages about tables, chains, rules, sets, elements and objects alike.
const NFTA_TABLE: u16 = 1;

/// Names of changed tables, or the news that notifications were lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These tables changed.
    Tables(BTreeSet<String>),
    /// Any table may have changed.
    Unknown,
}

/// Hears of every change to nftables in one network namespace.
///
/// The descriptor becomes readable when something changed; then call [`NftMonitor::changes`].
pub struct NftMonitor {
    events: Socket,
}

impl NftMonitor {
    /// Begins to listen in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be had, or CAP_NET_ADMIN is missing.
    pub fn new() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_NETFILTER)?;
        events.bind_auto()?;
        events.set_non_blocking(true)?;
        events.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { events })
    }

    /// What has changed since the last call, without waiting.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn changes(&self) -> io::Result<Changes> {
        let mut tables = BTreeSet::new();
        let mut lost = false;
        loop {
            match netlink::receive(&self.events) {
                Ok(datagram) => tables.extend(
                    netlink::messages(&datagram)
                        .filter(|(kind, _)| kind >> 8 == NFNL_SUBSYS_NFTABLES)
                        .filter_map(|(_, message)| table_of(netlink::payload(message))),
                ),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(error),
            }
        }
        Ok(if lost {
            Changes::Unknown
        } else {
            Changes::Tables(tables)
        })
    }
}

impl AsFd for NftMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn table_of(payload: &[u8]) -> Option<String> {
    NlasIterator::new(payload.get(NFGENMSG..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NFTA_TABLE)
        .map(|attribute| {
            let name = attribute
                .value()
                .split(|octet| *octet == 0)
                .next()
                .unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_name_is_read_from_the_first_attribute() {
        let mut payload = vec![1, 0, 0, 0];
        payload.extend(8_u16.to_ne_bytes());
        payload.extend(NFTA_TABLE.to_ne_bytes());
        payload.extend(b"abc\0");
        assert_eq!(table_of(&payload).as_deref(), Some("abc"));
        for length in 0..payload.len() {
            assert_eq!(table_of(&payload[..length]), None);
        }
    }
}
