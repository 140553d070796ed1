//! Connections whose socket is gone.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use ao_engine::policy::ConnectionId;
use ao_sys::sock_diag::{self, Filter};

use super::reports::WorkerReport;
use super::worker::{Command, Handle, Shared};
use crate::sockets::{connection_of, remote_end};

/// Connections seen this recently are not doubted: the dump may be older than they are.
const RECENT: Duration = Duration::from_secs(5);

/// Forgets what had no socket last time, and has none now: one dump may miss a socket when others
/// of its hash bucket close meanwhile. `missing` is what had none last time.
pub(super) fn reconcile(
    shared: &Shared,
    reports: &[(&Handle, WorkerReport)],
    missing: &mut HashSet<ConnectionId>,
) -> io::Result<()> {
    let links = shared.links();
    let sockets = sock_diag::tcp_sockets(Filter::All)?;
    let alive: HashSet<ConnectionId> = sockets
        .iter()
        .map(|socket| key(&connection_of(socket, &links)))
        .collect();
    let views = || reports.iter().flat_map(|(_, report)| &report.sessions);
    let quiet = views().filter(|view| view.silent_for > RECENT);
    let known = quiet
        .map(|view| view.connection)
        .chain(shared.restored.connections());
    let gone: HashSet<ConnectionId> = known.filter(|id| !alive.contains(&key(id))).collect();
    let doomed: HashSet<ConnectionId> = gone.intersection(missing).copied().collect();
    *missing = gone;

    shared
        .restored
        .retain(&shared.journal, |id| !doomed.contains(id));
    for (worker, report) in reports {
        for view in report
            .sessions
            .iter()
            .filter(|view| doomed.contains(&view.connection))
        {
            tracing::info!(
                peer = %view.peer,
                remote = %remote_end(&view.connection),
                "connection forgotten: the local TCP has closed it"
            );
            worker.send(Command::Remove(view.connection));
        }
    }
    Ok(())
}

/// The same connection as sockets and segments name it: a socket need not be bound to a device,
/// so addresses and ports decide. Two VRFs with equal tuples keep each other's entries alive.
fn key(id: &ConnectionId) -> ConnectionId {
    ConnectionId {
        domain: 0,
        interface: 0,
        ..*id
    }
}
