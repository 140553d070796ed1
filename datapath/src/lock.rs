//! One sidecar per network namespace: rules and guard have fixed names in it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::datapath::StartError;

/// Held for as long as rules in this namespace are this process's business. The name of an
/// abstract socket belongs to the network namespace, and is free again however the process ends.
#[derive(Debug)]
pub(crate) struct NamespaceLock {
    _socket: UnixListener,
}

impl NamespaceLock {
    pub(crate) fn acquire() -> Result<Self, StartError> {
        let bound = SocketAddr::from_abstract_name("ao-sidecar/rules")
            .and_then(|address| UnixListener::bind_addr(&address));
        match bound {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(StartError::AnotherSidecar)
            }
            Err(error) => Err(StartError::Io("namespace lock", error)),
        }
    }
}
