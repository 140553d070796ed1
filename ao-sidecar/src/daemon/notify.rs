//! Tells the service manager how far we are (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// The service manager's socket, if there is one.
pub(super) struct Notifier(Option<OsString>);

impl Notifier {
    /// The socket named by `NOTIFY_SOCKET`.
    pub(super) fn from_environment() -> Self {
        Self(std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()))
    }

    /// Sends `state`, such as `READY=1`. A failure is logged: the service manager will notice.
    pub(super) fn send(&self, state: &str) {
        let Some(name) = &self.0 else { return };
        if let Err(error) = send(name, state) {
            warn!(socket = ?name, "cannot notify the service manager of {state}: {error}");
        }
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_in_the_file_system_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("ao-sidecar-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn a_missing_manager_is_an_error_not_a_crash() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
        Notifier(None).send("READY=1");
    }
}
