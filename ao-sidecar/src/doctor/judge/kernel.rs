//! The kernel backend.

use datapath::settings::{Backend, Choice};

use super::Draft;
use crate::doctor::code::Code;
use crate::doctor::facts::{Facts, PeerFacts};

/// A peer that is the kernel's, and no daemon runs under `ao-sidecar exec`.
pub(super) fn not_launched(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let kernel = facts.report.kernel.as_ref()?;
    let stuck = peer.datapath == Choice::Kernel
        && peer.report.backend == Backend::Kernel
        && kernel.daemons.is_empty();
    stuck.then(|| {
        let draft = Draft::new(
            Code::KernelWithoutLaunch,
            "the peer has datapath = \"kernel\", and no daemon runs under `ao-sidecar exec`",
            "The kernel signs only sockets that have keys before they connect: the daemon's own \
             attempts are blocked, and only the far end could open the session.",
            "start the daemon by `ao-sidecar exec -- DAEMON …` (in its unit: ExecStart=), or write \
             datapath = \"userspace\" for the peer",
        );
        draft.of(peer)
    })
}

/// What sockets lack, as the backend tells it.
pub(super) fn rest(facts: &Facts) -> Vec<Draft> {
    let Some(kernel) = &facts.report.kernel else {
        return Vec::new();
    };
    let told = kernel.problems.iter().filter_map(|problem| {
        let named = |peer: &&PeerFacts| problem.contains(&format!("{:?}", peer.name));
        let peer = facts.peers.iter().find(named);
        let code = code(problem);
        // Told in other words.
        if peer.is_some_and(|peer| {
            code == Code::KernelWithoutLaunch && not_launched(facts, peer).is_some()
        }) {
            return None;
        }
        let draft = Draft::new(
            code,
            problem.clone(),
            "Sockets without their keys stay blocked, or cannot follow a change of keys. It is \
             tried again every second.",
            remedy(code),
        );
        Some(match peer {
            Some(peer) => draft.of(peer),
            None => draft,
        })
    });
    told.collect()
}

fn code(problem: &str) -> Code {
    let says = |words: &str| problem.contains(words);
    if says("option memory") {
        Code::Optmem
    } else if says("TCP-MD5") {
        Code::LocalMd5
    } else if says("was not launched by") {
        Code::KernelWithoutLaunch
    } else {
        Code::KernelSockets
    }
}

fn remedy(code: Code) -> &'static str {
    match code {
        Code::Optmem => {
            "let the sidecar raise it (CAP_NET_ADMIN, /proc/sys writable), or `sysctl -w \
             net.core.optmem_max=…` as told"
        }
        Code::LocalMd5 => "remove the password from the daemon's configuration, and restart it",
        Code::KernelWithoutLaunch => "start the daemon by `ao-sidecar exec -- DAEMON …`",
        _ => "docs/OPERATIONS.md, \"What it says, and what to do\", has a line for each message",
    }
}
