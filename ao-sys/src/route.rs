//! What the kernel's routing knows.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_int;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::ifaddrs::getifaddrs;

use crate::netlink;
use crate::raw::SO_BINDTOIFINDEX;
use crate::socket::{self, KernelAddress};

/// The MTU of the route to `destination` by the device with index `interface` (0: any), as it is
/// now: configured on the route, learned by path MTU discovery, or the device's own.
///
/// Asks by connecting a UDP socket, which sends nothing.
///
/// # Errors
/// ENETUNREACH and the like by routing, ENODEV when the device is gone.
pub fn mtu(destination: IpAddr, interface: u32) -> io::Result<u32> {
    let (domain, level, name) = match destination {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let socket = socket::open(domain, libc::SOCK_DGRAM, 0)?;
    let device = c_int::try_from(interface).unwrap_or(c_int::MAX);
    socket::set(socket.as_fd(), libc::SOL_SOCKET, SO_BINDTOIFINDEX, device)?;
    // Port 9 is "discard"; IPv4 does not connect to port 0.
    let address = KernelAddress::new(destination, 9, interface);
    let (pointer, length) = address.as_raw();
    // SAFETY: pointer and length describe `address`, which outlives the call.
    socket::check(unsafe { libc::connect(socket.as_raw_fd(), pointer, length) })?;
    let mtu = socket::get(socket.as_fd(), level, name)?;
    u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// How packets get to an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Index of the device they leave by.
    pub interface: u32,
    /// The next hop, if the address is not on the link.
    pub gateway: Option<IpAddr>,
    /// Address of this host that the kernel would send from.
    pub source: Option<IpAddr>,
}

/// The way to `destination` by the device or VRF with index `interface` (0: any), as `ip route get`
/// tells it, in the calling thread's network namespace.
///
/// # Errors
/// ENETUNREACH, EHOSTUNREACH and the like when there is none, ENODEV when the device is gone.
pub fn find(destination: IpAddr, interface: u32) -> io::Result<Way> {
    let mut message = RouteMessage::default();
    (
        message.header.address_family,
        message.header.destination_prefix_length,
    ) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message
        .attributes
        .push(RouteAttribute::Destination(destination.into()));
    if interface != 0 {
        message.attributes.push(RouteAttribute::Oif(interface));
    }
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetRoute(message));
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut way = None;
    netlink::exchange(&netlink::open(NETLINK_ROUTE)?, &bytes, |answer| {
        way = way.take().or_else(|| way_of(answer));
    })?;
    way.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn way_of(answer: &[u8]) -> Option<Way> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = message.payload else {
        return None;
    };
    let ip = |address: RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(v6)),
        _ => None,
    };
    let mut way = Way::default();
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.interface = index,
            RouteAttribute::Gateway(address) => way.gateway = ip(address),
            RouteAttribute::PrefSource(address) => way.source = ip(address),
            _ => {}
        }
    }
    Some(way)
}

/// The addresses of this host, on all devices of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses the list.
pub fn addresses() -> io::Result<HashSet<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_its_own_way() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let way = find("127.0.0.2".parse().unwrap(), 0).unwrap();
        assert_eq!((way.interface, way.gateway), (1, None));
        assert!(addresses().unwrap().contains(&loopback));
    }

    #[test]
    fn an_absent_device_has_no_way() {
        assert!(find("192.0.2.1".parse().unwrap(), 0x7fff_fffe).is_err());
    }

    #[test]
    fn truncated_answers_are_no_way() {
        for length in 0..64 {
            assert_eq!(way_of(&vec![0; length]), None);
        }
    }
}
