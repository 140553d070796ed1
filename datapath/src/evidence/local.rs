//! What the kernel of this host knows of peers.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ao_engine::policy::{Policy, Prefix};
use ao_sys::links::Links;
use ao_sys::process::{self, Holder};
use ao_sys::sock_diag::{self, Filter, TcpSocket, TcpState};
use ao_sys::{capabilities, clock, probe, route};

use crate::policy;
use crate::settings::PeerSpec;
use crate::sockets::connection_of;

/// What concerns this host and its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalFacts {
    /// The peers asked about, in the order of the configuration.
    pub peers: Vec<PeerLocal>,
    /// Whether the kernel's clock follows a source of time (adjtimex); `None` when it does not
    /// tell.
    pub clock_synchronised: Option<bool>,
    /// Whether this kernel has TCP-AO.
    pub kernel_tcp_ao: bool,
    /// Whether this thread has CAP_NET_ADMIN. MD5 keys are not seen without it.
    pub net_admin: bool,
    /// Whether this thread has CAP_NET_RAW.
    pub net_raw: bool,
    /// Whether this thread has CAP_SYS_PTRACE.
    pub sys_ptrace: bool,
}

/// What concerns one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLocal {
    /// Its name.
    pub peer: Arc<str>,
    /// Sockets that listen on its ports, at addresses and in VRFs where it may connect to.
    pub listeners: Vec<Listener>,
    /// TCP-MD5 keys for it, of any socket on its ports and in its VRF.
    pub md5_keys: Vec<Md5Key>,
    /// Sockets with a connection to it, or that try to have one.
    pub sockets: Vec<Socket>,
    /// The way to it, or why there is none; `None` for a peer that is a prefix.
    pub route: Option<Result<Route, String>>,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// The device or VRF it is bound to.
    pub interface: Option<String>,
    /// Name of its program, if it can be found.
    pub program: Option<String>,
    /// Process that holds it, if it can be found.
    pub pid: Option<u32>,
}

/// A TCP-MD5 key on a socket. Without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Md5Key {
    /// Far ends it is for.
    pub remote: Prefix,
    /// Where its socket is bound to.
    pub socket: SocketAddr,
    /// State of its socket.
    pub state: TcpState,
    /// Name of its program, if it can be found.
    pub program: Option<String>,
}

/// A socket with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// This end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// Its state.
    pub state: TcpState,
    /// Name of its program, if it can be found.
    pub program: Option<String>,
}

/// The way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Device that packets leave by.
    pub device: String,
    /// The device's MTU, 0 if the kernel does not tell.
    pub device_mtu: u32,
    /// MTU of the route: its own, or the path's as learned so far.
    pub mtu: u32,
    /// The next hop, if the peer is not on the link.
    pub gateway: Option<IpAddr>,
    /// Address of this end that the kernel prefers.
    pub source: Option<IpAddr>,
}

/// Reads what concerns those of these peers that are asked about, in the calling thread's network
/// namespace. Takes some milliseconds.
///
/// # Errors
/// When devices or sockets cannot be listed.
pub fn local(peers: &[PeerSpec], asked: &[Arc<str>]) -> io::Result<LocalFacts> {
    let links = Links::read()?;
    let policy = policy::resolve(peers, &links).map_err(io::Error::other)?;
    let sockets = Sockets::read()?;
    let host = Host {
        links: &links,
        connections: connections(&sockets, &policy, &links),
        sockets: &sockets,
        listeners_serve_vrfs: sysctl_is_set("net/ipv4/tcp_l3mdev_accept"),
    };
    let asked: HashSet<&str> = asked.iter().map(|name| &**name).collect();
    let asked = peers.iter().filter(|peer| asked.contains(&*peer.name));
    Ok(LocalFacts {
        peers: asked.map(|peer| host.facts_of(peer)).collect(),
        clock_synchronised: clock::is_synchronised().ok(),
        kernel_tcp_ao: probe::kernel_has_tcp_ao()?,
        net_admin: capabilities::have_net_admin(),
        net_raw: capabilities::have_net_raw(),
        sys_ptrace: capabilities::have_sys_ptrace(),
    })
}

/// The TCP sockets of this host, with the programs that hold them.
struct Sockets {
    all: Vec<TcpSocket>,
    md5_keys: Vec<sock_diag::Md5Key>,
    /// By inode.
    holders: HashMap<u32, Holder>,
    /// By process.
    programs: HashMap<u32, String>,
}

impl Sockets {
    fn read() -> io::Result<Self> {
        let mut all = sock_diag::tcp_sockets(Filter::All)?;
        all.retain(|socket| !matches!(socket.state, TcpState::TimeWait | TcpState::Closed));
        let md5_keys = sock_diag::md5_keys()?;
        let keyed = md5_keys.iter().map(|key| &key.socket);
        let inodes = all.iter().chain(keyed).map(|socket| socket.inode);
        let inodes: HashSet<u32> = inodes.filter(|inode| *inode != 0).collect();
        let holders = process::holders(&inodes, &[])?;
        let pids: HashSet<u32> = holders.values().map(|holder| holder.pid).collect();
        let named = |pid| Some((pid, process::name(pid)?));
        Ok(Self {
            all,
            md5_keys,
            holders,
            programs: pids.into_iter().filter_map(named).collect(),
        })
    }

    fn pid(&self, socket: &TcpSocket) -> Option<u32> {
        self.holders.get(&socket.inode).map(|holder| holder.pid)
    }

    fn program(&self, socket: &TcpSocket) -> Option<String> {
        self.programs.get(&self.pid(socket)?).cloned()
    }
}

/// Sockets with a connection, by name of its peer.
fn connections<'a>(
    sockets: &'a Sockets,
    policy: &'a Policy,
    links: &Links,
) -> HashMap<&'a str, Vec<&'a TcpSocket>> {
    let mut by_peer: HashMap<&str, Vec<&TcpSocket>> = HashMap::new();
    for socket in &sockets.all {
        let found = match socket.state {
            TcpState::Listen => None,
            _ => policy.find(&connection_of(socket, links)),
        };
        if let Some(peer) = found.and_then(|place| policy.peers().get(place)) {
            by_peer.entry(&peer.name).or_default().push(socket);
        }
    }
    by_peer
}

/// What there is to look at.
struct Host<'a> {
    links: &'a Links,
    sockets: &'a Sockets,
    /// By name of the peer.
    connections: HashMap<&'a str, Vec<&'a TcpSocket>>,
    /// Whether a listener bound to no device takes connections in VRFs.
    listeners_serve_vrfs: bool,
}

impl Host<'_> {
    fn facts_of(&self, peer: &PeerSpec) -> PeerLocal {
        PeerLocal {
            peer: Arc::clone(&peer.name),
            listeners: self.listeners(peer),
            md5_keys: self.md5_keys(peer),
            sockets: self.connections_of(peer),
            route: peer.remote.is_host().then(|| self.route(peer)),
        }
    }

    fn listeners(&self, peer: &PeerSpec) -> Vec<Listener> {
        let listening = self.sockets.all.iter().filter(|socket| {
            socket.state == TcpState::Listen
                && peer.ports.contains(&socket.local.port())
                && self.reachable_at(peer, socket)
                && self.reachable_by(peer, socket.interface)
        });
        let listener = |socket: &TcpSocket| Listener {
            address: socket.local,
            interface: self.name_of(socket.interface),
            program: self.sockets.program(socket),
            pid: self.sockets.pid(socket),
        };
        listening.map(listener).collect()
    }

    /// Whether a listener's address is one that the peer may connect to.
    fn reachable_at(&self, peer: &PeerSpec, socket: &TcpSocket) -> bool {
        let (far, near) = (peer.remote.address(), socket.local.ip());
        if near.is_unspecified() {
            return far.is_ipv4() == near.is_ipv4() || (far.is_ipv4() && !socket.ipv6_only);
        }
        far.is_ipv4() == near.is_ipv4() && peer.local.is_none_or(|local| local == near)
    }

    /// Whether a listener bound to this device, or to none, takes connections of the peer.
    fn reachable_by(&self, peer: &PeerSpec, bound: u32) -> bool {
        self.domain_of(peer) == Some(self.links.domain_of(bound))
            || (bound == 0 && self.listeners_serve_vrfs)
    }

    /// The L3 domain that the peer is in: the index of its VRF, or 0; nothing while its device is
    /// not there.
    fn domain_of(&self, peer: &PeerSpec) -> Option<u32> {
        match (&peer.vrf, &peer.interface) {
            (Some(vrf), _) => self.links.index_of(vrf),
            (None, Some(link)) => Some(self.links.domain_of(self.links.index_of(link)?)),
            (None, None) => Some(0),
        }
    }

    /// Whether a socket may have a connection with the peer, as far as ports and VRF say.
    fn may_serve(&self, peer: &PeerSpec, socket: &TcpSocket) -> bool {
        let has_port = |end: SocketAddr| peer.ports.contains(&end.port());
        match socket.state {
            TcpState::Listen => has_port(socket.local) && self.reachable_by(peer, socket.interface),
            _ => {
                (has_port(socket.local) || has_port(socket.remote))
                    && self.domain_of(peer) == Some(self.links.domain_of(socket.interface))
            }
        }
    }

    fn md5_keys(&self, peer: &PeerSpec) -> Vec<Md5Key> {
        let key = |key: &sock_diag::Md5Key| {
            let remote = network(key.remote, key.prefix)?;
            let overlaps =
                remote.contains(peer.remote.address()) || peer.remote.contains(remote.address());
            (overlaps && self.may_serve(peer, &key.socket)).then(|| Md5Key {
                remote,
                socket: key.socket.local,
                state: key.socket.state,
                program: self.sockets.program(&key.socket),
            })
        };
        self.sockets.md5_keys.iter().filter_map(key).collect()
    }

    fn connections_of(&self, peer: &PeerSpec) -> Vec<Socket> {
        let socket = |socket: &&TcpSocket| Socket {
            local: socket.local,
            remote: socket.remote,
            state: socket.state,
            program: self.sockets.program(socket),
        };
        let of_peer = self.connections.get(&*peer.name);
        of_peer.into_iter().flatten().map(socket).collect()
    }

    fn route(&self, peer: &PeerSpec) -> Result<Route, String> {
        let device = match (&peer.interface, &peer.vrf) {
            (Some(name), _) | (None, Some(name)) => self
                .links
                .index_of(name)
                .ok_or_else(|| format!("there is no device {name}"))?,
            (None, None) => 0,
        };
        let far = peer.remote.address();
        let way = route::find(far, device).map_err(|error| error.to_string())?;
        let link = self.links.get(way.interface);
        let device_mtu = link.map_or(0, |link| link.mtu);
        Ok(Route {
            device: link.map_or_else(String::new, |link| link.name.clone()),
            device_mtu,
            mtu: route::mtu(far, device).unwrap_or(device_mtu),
            gateway: way.gateway,
            source: way.source,
        })
    }

    fn name_of(&self, index: u32) -> Option<String> {
        self.links.get(index).map(|link| link.name.clone())
    }
}

/// The prefix that an address lies in.
fn network(address: IpAddr, length: u8) -> Option<Prefix> {
    let masked = match address {
        IpAddr::V4(v4) => {
            let free = 32_u32.checked_sub(u32::from(length))?;
            let mask = u32::MAX.checked_shl(free).unwrap_or(0);
            IpAddr::from((u32::from(v4) & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let free = 128_u32.checked_sub(u32::from(length))?;
            let mask = u128::MAX.checked_shl(free).unwrap_or(0);
            IpAddr::from((u128::from(v6) & mask).to_be_bytes())
        }
    };
    Prefix::new(masked, length).ok()
}

fn sysctl_is_set(name: &str) -> bool {
    let value = fs::read_to_string(Path::new("/proc/sys").join(name));
    value.is_ok_and(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_whole_address_is_for_its_network() {
        let prefix = |address: &str, length| {
            network(address.parse().unwrap(), length).map(|prefix| prefix.to_string())
        };
        assert_eq!(prefix("192.0.2.77", 24).unwrap(), "192.0.2.0/24");
        assert_eq!(prefix("192.0.2.77", 32).unwrap(), "192.0.2.77");
        assert_eq!(prefix("192.0.2.77", 0).unwrap(), "0.0.0.0/0");
        assert_eq!(prefix("2001:db8::77", 64).unwrap(), "2001:db8::/64");
        assert_eq!(prefix("::1", 0).unwrap(), "::/0");
        assert_eq!(prefix("192.0.2.77", 33), None);
    }
}
