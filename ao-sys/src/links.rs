//! Network devices: names, VRF membership, and word of their changes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink;

/// RTNLGRP_LINK of linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
/// Masters stacked on masters: bond, bridge, VRF. The kernel allows 8 levels.
const MAX_DEPTH: usize = 8;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it is an L3 master (a VRF device).
    pub vrf: bool,
    /// Interface index of the device it is enslaved to, 0 if none.
    pub master: u32,
    /// Its MTU, 0 if the kernel does not tell.
    pub mtu: u32,
}

/// All devices of a network namespace at one moment, by interface index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    by_index: BTreeMap<u32, Link>,
}

impl Links {
    /// Reads the devices of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn read() -> io::Result<Self> {
        Self::dump(&netlink::open(NETLINK_ROUTE)?)
    }

    /// The device with this index.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Link> {
        self.by_index.get(&index)
    }

    /// Index of the device with this name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<u32> {
        self.iter()
            .find(|(_, link)| link.name == name)
            .map(|(index, _)| index)
    }

    /// All devices with their indices, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Link)> {
        self.by_index.iter().map(|(index, link)| (*index, link))
    }

    /// Names of the VRF devices, sorted.
    #[must_use]
    pub fn vrfs(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .by_index
            .values()
            .filter(|link| link.vrf)
            .map(|link| link.name.clone())
            .collect();
        names.sort();
        names
    }

    /// The L3 domain of a device: the index of the VRF it is or belongs to (directly, or through
    /// a bridge or bond), 0 for the default one and for an unknown device.
    #[must_use]
    pub fn domain_of(&self, index: u32) -> u32 {
        let mut index = index;
        for _ in 0..MAX_DEPTH {
            match self.by_index.get(&index) {
                Some(link) if link.vrf => return index,
                Some(link) if link.master != 0 => index = link.master,
                _ => return 0,
            }
        }
        0
    }

    fn dump(socket: &Socket) -> io::Result<Self> {
        let mut links = Self::default();
        netlink::exchange(socket, &dump_request(), |message| {
            links.apply(message);
        })?;
        Ok(links)
    }

    /// Takes in one message of the kernel; whether it changed anything.
    fn apply(&mut self, message: &[u8]) -> bool {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(new))) => {
                // A bridge port's own notifications (AF_BRIDGE) lack most attributes.
                let Some(link) = link_of(&new) else {
                    return false;
                };
                self.by_index.insert(new.header.index, link.clone()) != Some(link)
            }
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(old)))
                if u8::from(old.header.interface_family) == 0 =>
            {
                self.by_index.remove(&old.header.index).is_some()
            }
            _ => false,
        }
    }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    if u8::from(message.header.interface_family) != 0 {
        return None;
    }
    let mut link = Link {
        name: String::new(),
        vrf: false,
        master: 0,
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = *master,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.vrf = infos.contains(&LinkInfo::Kind(InfoKind::Vrf));
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn dump_request() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(
        header,
        NetlinkPayload::from(RouteNetlinkMessage::GetLink(LinkMessage::default())),
    );
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Keeps a snapshot of the devices up to date.
///
/// The descriptor becomes readable when a device changed; then call [`LinkMonitor::update`].
pub struct LinkMonitor {
    events: Socket,
    /// Another socket, so that answers and notifications do not mix; it stays in the same
    /// namespace whatever the calling thread does.
    queries: Socket,
    links: Arc<Links>,
}

impl LinkMonitor {
    /// Begins to watch the devices of the calling thread's network namespace.
    ///
    /// # Errors
    /// When a socket cannot be had or the kernel refuses the dump.
    pub fn new() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind_auto()?;
        events.set_non_blocking(true)?;
        // Subscribed before the dump, so that no change falls between the two.
        events.add_membership(RTNLGRP_LINK)?;
        let queries = netlink::open(NETLINK_ROUTE)?;
        let links = Arc::new(Links::dump(&queries)?);
        Ok(Self {
            events,
            queries,
            links,
        })
    }

    /// The devices as of the last update.
    #[must_use]
    pub fn links(&self) -> Arc<Links> {
        Arc::clone(&self.links)
    }

    /// Takes in what has changed since, without waiting; whether names, masters, VRFs or MTUs differ.
    ///
    /// # Errors
    /// When the socket fails. Lost notifications are no error: the devices are read again.
    pub fn update(&mut self) -> io::Result<bool> {
        let before = Arc::clone(&self.links);
        loop {
            match netlink::receive(&self.events) {
                Ok(datagram) => {
                    for (_, message) in netlink::messages(&datagram) {
                        Arc::make_mut(&mut self.links).apply(message);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.links = Arc::new(Links::dump(&self.queries)?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(before != self.links)
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(devices: &[(u32, &str, bool, u32)]) -> Links {
        Links {
            by_index: devices
                .iter()
                .map(|&(index, name, vrf, master)| {
                    (
                        index,
                        Link {
                            name: name.to_owned(),
                            vrf,
                            master,
                            mtu: 1500,
                        },
                    )
                })
                .collect(),
        }
    }

    #[test]
    fn domain_is_found_through_bridges() {
        let links = links(&[
            (1, "lo", false, 0),
            (2, "eth0", false, 3),
            (3, "br0", false, 4),
            (4, "red", true, 0),
            (5, "eth1", false, 0),
        ]);
        assert_eq!(
            [1, 2, 3, 4, 5, 99].map(|index| links.domain_of(index)),
            [0, 4, 4, 4, 0, 0]
        );
        assert_eq!(links.vrfs(), ["red"]);
        assert_eq!(links.index_of("br0"), Some(3));
    }

    #[test]
    fn a_loop_of_masters_ends() {
        assert_eq!(
            links(&[(2, "a", false, 3), (3, "b", false, 2)]).domain_of(2),
            0
        );
    }

    #[test]
    fn loopback_is_read_from_the_kernel() {
        let links = Links::read().unwrap();
        assert_eq!(links.get(1).unwrap().name, "lo");
        assert_eq!(*LinkMonitor::new().unwrap().links(), links);
    }
}
