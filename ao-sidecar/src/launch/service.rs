//! `ao-sidecar keeper`: keeps the notifications of programs that cannot have a keeper of their own,
//! as containers and units that run as an unprivileged user.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ao_sys::{process, unix};
use datapath::keeper::{Keeper, Launch, socket_path};
use nix::unistd::User;
use tracing::{error, info, warn};

use super::oci::{self, HandedOver};
use super::{LaunchError, check_privileges};

/// Pause after a connection could not be taken, as when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where programs are handed over.
    pub socket: PathBuf,
    /// Unix socket of the sidecar's API.
    pub api_socket: PathBuf,
    /// How long to wait for the sidecar when a program is handed over.
    pub wait: Duration,
    /// Users, besides root, that may hand over programs.
    pub allowed_users: Vec<String>,
}

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A privilege is missing.
    #[error(transparent)]
    Privileges(#[from] LaunchError),
    /// The socket cannot be served.
    #[error("{} cannot be served: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Serves until the process is ended.
///
/// # Errors
/// See [`ServiceError`].
pub fn serve(service: &Service) -> Result<(), ServiceError> {
    crate::logging::init_keeper();
    check_privileges()?;
    let failed = |source| ServiceError::Socket {
        path: service.socket.clone(),
        source,
    };
    let listener = bind(&service.socket, !service.allowed_users.is_empty()).map_err(failed)?;
    info!(socket = %service.socket.display(), "keeper service ready");
    let settings = Arc::new(service.clone());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // To end would break the calls of every program that is kept.
            Err(error) => {
                error!(%error, "a program cannot be handed over");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if let Err(why) = authenticate(&stream, &settings.allowed_users) {
            refuse(stream, &why);
            continue;
        }
        let settings = Arc::clone(&settings);
        let attend = move || attend(stream, &settings);
        if let Err(error) = thread::Builder::new()
            .name("ao-keeper".to_owned())
            .spawn(attend)
        {
            error!(%error, "a program that was handed over cannot be served");
        }
    }
}

/// Binds the socket in place of one that an earlier service left. Others may connect only if some
/// user is allowed; who it is, the kernel tells.
fn bind(path: &Path, for_others: bool) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let mode = if for_others { 0o666 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Keeps one program. Whenever that is impossible its notifications are dropped, so that its calls
/// fail: it does not come up unprotected.
fn attend(mut stream: UnixStream, service: &Service) {
    let outcome = oci::receive(&mut stream)
        .map_err(|error| error.to_string())
        .and_then(|program| Ok((register(&program, service)?, program)));
    match outcome {
        Ok((keeper, program)) => {
            info!(
                name = program.name,
                pid = program.pid,
                "program handed over"
            );
            // A container runtime does not wait for an answer.
            let _ = stream.write_all(oci::ACCEPTED.as_bytes());
            drop(stream);
            keeper.keep(&program.listener);
            info!(name = program.name, pid = program.pid, "program gone");
        }
        Err(why) => refuse(stream, &why),
    }
}

fn refuse(mut stream: UnixStream, why: &str) {
    warn!("a program was handed over and refused: {why}; its calls fail");
    // A fresh connection has room for it.
    let _ = stream.write_all(why.as_bytes());
}

/// Users are looked up each time: that of a unit with DynamicUser exists only while it runs.
fn authenticate(stream: &UnixStream, allowed: &[String]) -> Result<(), String> {
    let uid = unix::peer_credentials(stream.as_fd())
        .map_err(|error| error.to_string())?
        .uid;
    let is_allowed = |name: &String| {
        let user = User::from_name(name).ok().flatten();
        user.is_some_and(|user| user.uid.as_raw() == uid)
    };
    if uid == 0 || allowed.iter().any(is_allowed) {
        Ok(())
    } else {
        Err(format!(
            "user {uid} may not hand over programs: start the keeper with --allow-user"
        ))
    }
}

fn register(program: &HandedOver, service: &Service) -> Result<Keeper, String> {
    let network_namespace = process::network_namespace(Some(program.pid))
        .map_err(|error| format!("process {}: {error}", program.pid))?;
    let launch = Launch {
        socket: socket_path(&service.api_socket),
        daemon: program.name.clone(),
        pid: program.pid,
        network_namespace,
    };
    Keeper::register(launch, service.wait).map_err(|error| error.to_string())
}
