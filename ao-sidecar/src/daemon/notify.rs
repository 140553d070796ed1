//! Tells the service manager how far we are, and that we are well (sd_notify(3),
//! sd_watchdog_enabled(3)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{process, thread};

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};

/// Signs of life in the time after which the service manager takes us for dead: one may be late.
const SIGNS: u32 = 3;

/// The service manager, if there is one.
#[derive(Clone)]
pub(super) struct Notifier {
    socket: Option<OsString>,
    /// Time after which it takes us for dead.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The service manager named by `NOTIFY_SOCKET`, which watches us if `WATCHDOG_USEC` says so.
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()),
            watchdog: watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID")),
        }
    }

    /// Sends `state`, such as `READY=1`. A failure is logged: the service manager will notice.
    pub(super) fn send(&self, state: &str) {
        let Some(name) = &self.socket else { return };
        if let Err(error) = send(name, state) {
            warn!(socket = ?name, "cannot notify the service manager of {state}: {error}");
        }
    }

    /// Gives signs of life as long as `healthy` answers and finds nothing wrong; for ever, or not
    /// at all if nobody watches. `healthy` may block; it is not asked again before it has answered.
    pub(super) async fn stay_alive<F>(self, healthy: F)
    where
        F: Fn() -> Result<(), String> + Send + Sync + 'static,
    {
        let Some(every) = self.watchdog.map(|limit| limit / SIGNS) else {
            return;
        };
        info!(?every, "the service manager watches");
        let healthy = Arc::new(healthy);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut well = true;
        loop {
            ticks.tick().await;
            let found = ask(&healthy, every).await;
            match &found {
                Ok(()) => {
                    self.send("WATCHDOG=1");
                    if !well {
                        info!("well again");
                    }
                }
                Err(problem) => {
                    error!("not well, which the service manager gets to know: {problem}");
                }
            }
            well = found.is_ok();
        }
    }
}

/// Whether we are well. When the answer takes longer than `patience`, that is told at once, and
/// the answer awaited all the same.
async fn ask<F>(healthy: &Arc<F>, patience: Duration) -> Result<(), String>
where
    F: Fn() -> Result<(), String> + Send + Sync + 'static,
{
    let healthy = Arc::clone(healthy);
    let mut answer = pin!(on_own_thread(move || healthy()));
    let answered = match timeout(patience, &mut answer).await {
        Ok(answered) => answered,
        Err(_) => {
            error!("no answer to whether all is well, which the service manager gets to know");
            answer.await
        }
    };
    answered.unwrap_or_else(|failure| Err(failure.to_string()))
}

/// Does what blocks on a thread that nothing else waits for: callers of the API may keep all others
/// busy, and that is no reason to take us for dead.
pub(super) async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // Whoever asked may have gone.
        let _ = sender.send(work());
    };
    thread::Builder::new()
        .name("health".to_owned())
        .spawn(work)?;
    receiver
        .await
        .map_err(|_| io::Error::other("the health check broke"))
}

/// When the service manager takes us for dead, by the values of its variables.
fn watchdog(limit: Option<String>, process: Option<String>) -> Option<Duration> {
    let micros = limit.filter(|limit| !limit.is_empty())?;
    if process.is_some_and(|process| process.parse() != Ok(process::id())) {
        // It watches another process, whose environment we have inherited.
        return None;
    }
    match micros.parse() {
        Ok(micros @ 1..) => Some(Duration::from_micros(micros)),
        _ => {
            warn!("WATCHDOG_USEC={micros} is no time: the service manager gets no sign of life");
            None
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
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};

    use tokio::task::spawn_blocking;

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
        let name = format!("ao-sidecar-test-{}", process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn a_missing_manager_is_an_error_not_a_crash() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
        let nobody = Notifier {
            socket: None,
            watchdog: None,
        };
        nobody.send("READY=1");
    }

    #[test]
    fn the_watchdog_is_the_one_of_this_process() {
        let limit = |limit: &str, process: Option<u32>| {
            watchdog(Some(limit.to_owned()), process.map(|id| id.to_string()))
        };
        let own = process::id();
        let second = Some(Duration::from_secs(1));
        assert_eq!(limit("1000000", Some(own)), second);
        assert_eq!(limit("1000000", None), second);
        assert_eq!(limit("1000000", Some(own + 1)), None);
        for nonsense in ["", "0", "-1", "soon", "99999999999999999999"] {
            assert_eq!(limit(nonsense, Some(own)), None, "{nonsense}");
        }
        assert_eq!(watchdog(None, Some(own.to_string())), None);
        assert_eq!(watchdog(Some("1".into()), Some("me".into())), None);
    }

    /// Time after which [`Manager`] takes us for dead.
    const PATIENCE: Duration = Duration::from_millis(900);

    /// A service manager that waits for signs of life.
    struct Manager {
        socket: UnixDatagram,
        _folder: tempfile::TempDir,
    }

    impl Manager {
        fn new() -> (Self, Notifier) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            let notifier = Notifier {
                socket: Some(path.into()),
                watchdog: Some(PATIENCE),
            };
            let manager = Self {
                socket,
                _folder: folder,
            };
            (manager, notifier)
        }

        /// Whether a sign of life comes before it takes us for dead.
        async fn hears(&self) -> bool {
            let socket = self.socket.try_clone().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let heard = spawn_blocking(move || {
                let mut buffer = [0; 64];
                socket
                    .recv(&mut buffer)
                    .map(|length| buffer[..length].to_vec())
            });
            match heard.await.unwrap() {
                Ok(said) => {
                    assert_eq!(said, b"WATCHDOG=1");
                    true
                }
                Err(_) => false,
            }
        }

        async fn hears_nothing_soon(&self) {
            // One may be under way.
            for _ in 0..3 {
                if !self.hears().await {
                    return;
                }
            }
            panic!("signs of life from what is not well");
        }

        async fn hears_again(&self) {
            for _ in 0..20 {
                if self.hears().await {
                    return;
                }
            }
            panic!("no sign of life from what is well again");
        }
    }

    #[tokio::test]
    async fn signs_of_life_stop_while_something_is_wrong() {
        let (manager, notifier) = Manager::new();
        let well = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&well);
        let healthy = move || match asked.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("a worker does not answer".to_owned()),
        };
        let life = tokio::spawn(notifier.stay_alive(healthy));
        for _ in 0..3 {
            assert!(manager.hears().await);
        }
        well.store(false, Ordering::Relaxed);
        manager.hears_nothing_soon().await;
        assert!(!manager.hears().await);
        well.store(true, Ordering::Relaxed);
        manager.hears_again().await;
        life.abort();
    }

    #[tokio::test]
    async fn signs_of_life_stop_while_nobody_answers() {
        let (manager, notifier) = Manager::new();
        let hanging = Arc::new((Mutex::new(false), Condvar::new()));
        let asked = Arc::new(AtomicUsize::new(0));
        let healthy = {
            let (hanging, asked) = (Arc::clone(&hanging), Arc::clone(&asked));
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                let (hangs, changed) = &*hanging;
                drop(changed.wait_while(hangs.lock().unwrap(), |hangs| *hangs));
                Ok(())
            }
        };
        let hang = |hangs| {
            *hanging.0.lock().unwrap() = hangs;
            hanging.1.notify_all();
        };
        let life = tokio::spawn(notifier.stay_alive(healthy));
        assert!(manager.hears().await);
        hang(true);
        manager.hears_nothing_soon().await;
        let before = asked.load(Ordering::Relaxed);
        assert!(!manager.hears().await);
        // Or threads would pile up.
        assert_eq!(asked.load(Ordering::Relaxed), before);
        hang(false);
        manager.hears_again().await;
        life.abort();
    }

    #[test]
    fn what_keeps_other_threads_busy_does_not_matter() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (done, busy) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            // The only thread waits until `done` goes.
            spawn_blocking(move || busy.recv());
            let healthy = Arc::new(|| Ok(()));
            let found = timeout(
                Duration::from_secs(60),
                ask(&healthy, Duration::from_secs(60)),
            );
            assert_eq!(found.await, Ok(Ok(())));
        });
        drop(done);
    }

    #[tokio::test]
    async fn nobody_who_watches_needs_no_sign_of_life() {
        let nobody = Notifier {
            socket: None,
            watchdog: None,
        };
        nobody.stay_alive(|| unreachable!("nobody asks")).await;
    }
}
