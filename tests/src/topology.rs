//! The networks the tests run on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netns::Namespace;

/// Kind of address a session runs between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// Routed IPv6.
    V6,
    /// IPv6 link-local.
    LinkLocal,
}

impl Family {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::LinkLocal];

    /// `ipv4` or `ipv6`.
    #[must_use]
    pub fn name(self) -> &'static str {
        if self == Self::V4 { "ipv4" } else { "ipv6" }
    }
}

/// Name of the only interface of a [`Lan`]'s and a [`Chain`]'s ends.
pub const INTERFACE: &str = "eth0";

/// One end of a network.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its routed address.
    pub v6: Ipv6Addr,
    /// Its link-local address, on [`INTERFACE`].
    pub link_local: Ipv6Addr,
}

impl Host {
    fn new(label: &str, v4: &str, v6: &str, link_local: &str) -> Self {
        Self {
            namespace: Namespace::new(label),
            v4: v4.parse().expect("an address"),
            v6: v6.parse().expect("an address"),
            link_local: link_local.parse().expect("an address"),
        }
    }

    /// Its address of a kind.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
            Family::LinkLocal => self.link_local.into(),
        }
    }

    /// Its address as other programs on the link write it: `fe80::1%eth0` for a link-local one.
    #[must_use]
    pub fn address_text(&self, family: Family) -> String {
        match family {
            Family::LinkLocal => format!("{}%{INTERFACE}", self.link_local),
            _ => self.address(family).to_string(),
        }
    }

    /// Address and port as `connect` and `listen` take them.
    #[must_use]
    pub fn socket_text(&self, family: Family, port: u16) -> String {
        match family {
            Family::V4 => format!("{}:{port}", self.v4),
            Family::V6 => format!("[{}]:{port}", self.v6),
            // Interface indices are the same in every end: 1 is lo, 2 is eth0.
            Family::LinkLocal => format!("[{}%{LINK_INDEX}]:{port}", self.link_local),
        }
    }

    fn configure(&self, prefix_v4: u8, prefix_v6: u8) {
        let namespace = &self.namespace;
        namespace.ip(&format!("link set {INTERFACE} addrgenmode none"));
        namespace.ip(&format!("link set {INTERFACE} up"));
        namespace.ip(&format!("addr add {}/{prefix_v4} dev {INTERFACE}", self.v4));
        namespace.ip(&format!(
            "addr add {}/{prefix_v6} dev {INTERFACE} nodad",
            self.v6
        ));
        namespace.ip(&format!(
            "addr add {}/64 dev {INTERFACE} nodad",
            self.link_local
        ));
        let shown = namespace.ip(&format!("-o link show {INTERFACE}"));
        assert!(
            shown.starts_with(&format!("{LINK_INDEX}:")),
            "unexpected index: {shown}"
        );
    }
}

const LINK_INDEX: u32 = 2;

/// Two hosts on one link. The link is a bridge in a namespace of its own, where captures are
/// taken and attacks come from: what is seen there has really left a host, and what is put there
/// passes no rule of the other one.
#[derive(Debug)]
pub struct Lan {
    /// The host whose link is [`Lan::PORT_A`].
    pub a: Host,
    /// The host whose link is [`Lan::PORT_B`].
    pub b: Host,
    /// The namespace of the bridge.
    pub wire: Namespace,
}

impl Lan {
    /// The wire's port towards host a.
    pub const PORT_A: &str = "to-a";
    /// The wire's port towards host b.
    pub const PORT_B: &str = "to-b";
    /// The MTU of the link.
    pub const MTU: u32 = 1500;

    /// Makes the network.
    #[must_use]
    pub fn new() -> Self {
        let a = Host::new("a", "10.0.0.1", "fd00::1", "fe80::1");
        let b = Host::new("b", "10.0.0.2", "fd00::2", "fe80::2");
        let wire = Namespace::new("wire");
        wire.ip("link add lan type bridge");
        wire.ip("link set lan addrgenmode none");
        wire.ip("link set lan up");
        for (port, host) in [(Self::PORT_A, &a), (Self::PORT_B, &b)] {
            let peer = host.namespace.name();
            wire.ip(&format!(
                "link add {port} type veth peer name {INTERFACE} netns {peer}"
            ));
            wire.ip(&format!("link set {port} master lan addrgenmode none"));
            wire.ip(&format!("link set {port} up"));
            host.configure(24, 64);
        }
        Self { a, b, wire }
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

/// Two hosts with three routers between them; the middle links can be narrowed, and seen from
/// either host the narrowing router is two hops away.
#[derive(Debug)]
pub struct Chain {
    /// One end.
    pub a: Host,
    /// The other end.
    pub b: Host,
    /// The routers, in order from a to b.
    pub routers: [Namespace; 3],
}

impl Chain {
    /// Interface of the last router towards host b, and of the first towards host a.
    pub const TO_HOST: &str = "host";

    /// Makes the network: links 10.0.1.0/24 to 10.0.4.0/24 and fd00:1::/64 to fd00:4::/64.
    #[must_use]
    pub fn new() -> Self {
        let a = Host::new("a", "10.0.1.1", "fd00:1::1", "fe80::1");
        let b = Host::new("b", "10.0.4.2", "fd00:4::2", "fe80::2");
        let routers = [
            Namespace::new("r1"),
            Namespace::new("r2"),
            Namespace::new("r3"),
        ];
        for router in &routers {
            router.sysctl("net.ipv4.ip_forward", "1");
            router.sysctl("net.ipv6.conf.all.forwarding", "1");
            // Every error is wanted, also right after another one.
            router.sysctl("net.ipv4.icmp_ratelimit", "0");
            router.sysctl("net.ipv6.icmp.ratelimit", "0");
        }
        let [first, middle, last] = &routers;
        for (router, host, link, own) in [(first, &a, 1, 2), (last, &b, 4, 1)] {
            let (to, peer) = (Self::TO_HOST, host.namespace.name());
            router.ip(&format!(
                "link add {to} type veth peer name {INTERFACE} netns {peer}"
            ));
            up(router, to, link, own);
            host.configure(24, 64);
            host.namespace
                .ip(&format!("route add default via 10.0.{link}.{own}"));
            host.namespace
                .ip(&format!("-6 route add default via fd00:{link}::{own}"));
        }
        for (left, right, link) in [(first, middle, 2), (middle, last, 3)] {
            let peer = right.name();
            left.ip(&format!(
                "link add right type veth peer name left netns {peer}"
            ));
            up(left, "right", link, 1);
            up(right, "left", link, 2);
        }
        for (router, next, far) in [
            (first, "10.0.2.2", "10.0.3.0/24"),
            (first, "10.0.2.2", "10.0.4.0/24"),
            (middle, "10.0.2.1", "10.0.1.0/24"),
            (middle, "10.0.3.2", "10.0.4.0/24"),
            (last, "10.0.3.1", "10.0.1.0/24"),
            (last, "10.0.3.1", "10.0.2.0/24"),
            (first, "fd00:2::2", "fd00:3::/64"),
            (first, "fd00:2::2", "fd00:4::/64"),
            (middle, "fd00:2::1", "fd00:1::/64"),
            (middle, "fd00:3::2", "fd00:4::/64"),
            (last, "fd00:3::1", "fd00:1::/64"),
            (last, "fd00:3::1", "fd00:2::/64"),
        ] {
            router.ip(&format!("route add {far} via {next}"));
        }
        Self { a, b, routers }
    }

    /// Narrows the link from the middle router towards host b: from host a, the second hop
    /// answers that packets are too big.
    pub fn narrow_towards_b(&self, mtu: u32) {
        self.routers[1].ip(&format!("link set right mtu {mtu}"));
        self.routers[2].ip(&format!("link set left mtu {mtu}"));
    }

    /// Narrows the link from the middle router towards host a.
    pub fn narrow_towards_a(&self, mtu: u32) {
        self.routers[1].ip(&format!("link set left mtu {mtu}"));
        self.routers[0].ip(&format!("link set right mtu {mtu}"));
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

fn up(router: &Namespace, interface: &str, link: u32, own: u32) {
    router.ip(&format!("link set {interface} up"));
    router.ip(&format!("addr add 10.0.{link}.{own}/24 dev {interface}"));
    router.ip(&format!(
        "addr add fd00:{link}::{own}/64 dev {interface} nodad"
    ));
}
