//! Which backend protects which peer, and why: pure but for the probe.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ao_engine::crypto::Algorithm;
use ao_sys::capabilities;
use ao_sys::probe::{self, KernelAo};

use crate::kernel::{kernel_name, mac_length};
use crate::settings::{Backend, Choice, PeerSpec};

/// What this kernel can do, found by trying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Whether it has TCP-AO at all.
    pub(crate) tcp_ao: bool,
    /// Algorithms it takes keys of.
    pub(crate) algorithms: Vec<Algorithm>,
    /// Whether it takes keys for the sessions of one VRF.
    pub(crate) vrf_keys: bool,
    /// Why sockets of other processes are out of reach, if they are.
    pub(crate) out_of_reach: Option<String>,
    /// Whether system calls of launched daemons can be held (seccomp user notification).
    pub(crate) can_launch: bool,
}

impl Abilities {
    /// Tries everything on sockets of our own.
    ///
    /// # Errors
    /// When no TCP socket can be opened.
    pub(crate) fn probe() -> io::Result<Self> {
        let kernel = probe::kernel_ao()?;
        let usable = |algorithm: &Algorithm| {
            kernel.supports(kernel_name(*algorithm), mac_length(*algorithm))
        };
        Ok(Self {
            tcp_ao: kernel.tcp_ao,
            algorithms: Algorithm::ALL.into_iter().filter(usable).collect(),
            vrf_keys: kernel.vrf_keys,
            out_of_reach: out_of_reach(&kernel).map(str::to_owned),
            can_launch: kernel.seccomp_notification,
        })
    }
}

/// Logs what was decided: one line for all peers with the same reason.
pub(crate) fn log(peers: &[PeerSpec], decisions: &[Decision]) {
    let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (peer, Decision { backend, reason }) in peers.iter().zip(decisions) {
        let group = groups.entry((backend.as_str(), reason)).or_default();
        group.push(&peer.name);
    }
    for ((backend, reason), names) in groups {
        let peers = match names.as_slice() {
            [first, .., last] => format!("{} ({first} to {last})", names.len()),
            names => names.concat(),
        };
        tracing::info!(backend, peers, "datapath chosen: {reason}");
    }
}

fn out_of_reach(kernel: &KernelAo) -> Option<&'static str> {
    if !capabilities::have_sys_ptrace() {
        Some("CAP_SYS_PTRACE is missing, without which a daemon's sockets are out of reach")
    } else if probe::yama_forbids_attach() {
        Some("kernel.yama.ptrace_scope is 3, which puts a daemon's sockets out of reach")
    } else if !kernel.pidfd_getfd {
        Some("this kernel has no pidfd_getfd, without which a daemon's sockets are out of reach")
    } else {
        None
    }
}

/// How things are with one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Circumstances {
    /// A daemon launched by `ao-sidecar exec` is registered.
    pub(crate) launched: bool,
    /// A live session of the peer has TCP-AO in the kernel.
    pub(crate) kernel_session: bool,
    /// A live session of the peer is signed by the engine.
    pub(crate) userspace_session: bool,
}

/// What was decided for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Who signs.
    pub backend: Backend,
    /// Why, in a few words.
    pub reason: String,
}

/// A peer that is to be the kernel's and cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer {peer:?} cannot have datapath = \"kernel\": {reason}")]
pub struct Impossible {
    /// Its name.
    pub peer: Arc<str>,
    /// What stands in the way.
    pub reason: String,
}

/// Decides for each peer, in their order.
///
/// # Errors
/// When a peer demands what cannot be.
pub(crate) fn decide(
    peers: &[PeerSpec],
    abilities: &Abilities,
    of: impl Fn(&PeerSpec) -> Circumstances,
) -> Result<Vec<Decision>, Impossible> {
    peers
        .iter()
        .map(|peer| {
            let obstacle = obstacle(peer, peers, abilities);
            match (peer.datapath, obstacle) {
                (Choice::Kernel, Some(reason)) => Err(Impossible {
                    peer: Arc::clone(&peer.name),
                    reason,
                }),
                (Choice::Kernel, None) => Ok(decision(Backend::Kernel, "configured")),
                (Choice::Userspace, _) => Ok(decision(Backend::Userspace, "configured")),
                (Choice::Auto, obstacle) => Ok(automatic(obstacle, abilities, of(peer))),
            }
        })
        .collect()
}

fn decision(backend: Backend, reason: impl Into<String>) -> Decision {
    Decision {
        backend,
        reason: reason.into(),
    }
}

fn automatic(obstacle: Option<String>, abilities: &Abilities, now: Circumstances) -> Decision {
    // Signed by the kernel already: signed again, it would be lost.
    if now.kernel_session {
        return decision(Backend::Kernel, "a live session has TCP-AO in the kernel");
    }
    if let Some(obstacle) = obstacle {
        return decision(Backend::Userspace, obstacle);
    }
    if !abilities.can_launch {
        let reason = "this kernel cannot hold system calls (seccomp user notification)";
        return decision(Backend::Userspace, reason);
    }
    if !now.launched {
        let reason = "no daemon is launched by `ao-sidecar exec`";
        return decision(Backend::Userspace, reason);
    }
    if now.userspace_session {
        let reason = "a live session is signed by the engine; later ones will be by the kernel";
        return decision(Backend::Userspace, reason);
    }
    decision(
        Backend::Kernel,
        "the kernel can, and a daemon is launched by `ao-sidecar exec`",
    )
}

/// Why the kernel cannot sign for a peer.
pub(crate) fn obstacle(
    peer: &PeerSpec,
    peers: &[PeerSpec],
    abilities: &Abilities,
) -> Option<String> {
    if !abilities.tcp_ao {
        return Some("this kernel has no TCP-AO (CONFIG_TCP_AO, Linux 6.7 or later)".to_owned());
    }
    if let Some(reason) = &abilities.out_of_reach {
        return Some(reason.clone());
    }
    let keys = peer.keys.iter().map(|key| key.algorithm);
    let mut algorithms = keys.chain(peer.algorithms.iter().copied());
    if let Some(missing) = algorithms.find(|algorithm| !abilities.algorithms.contains(algorithm)) {
        return Some(format!("this kernel refuses {missing}"));
    }
    if peer.vrf.is_some() && !abilities.vrf_keys {
        return Some("this kernel refuses keys for one VRF".to_owned());
    }
    let inner = peers
        .iter()
        .find(|other| other.name != peer.name && contains(peer, other));
    inner.map(|other| {
        format!(
            "its addresses contain those of peer {:?}, whose key chain the kernel could not prefer",
            other.name
        )
    })
}

/// Whether a listener's keys for `outer` would be tried for segments of `inner`: Linux takes the
/// first key that matches, not the most specific one, and knows neither ports nor local addresses.
fn contains(outer: &PeerSpec, inner: &PeerSpec) -> bool {
    let shares_ports =
        outer.ports.start() <= inner.ports.end() && inner.ports.start() <= outer.ports.end();
    let shares_vrf = outer.vrf.is_none() || inner.vrf.is_none() || outer.vrf == inner.vrf;
    shares_ports
        && shares_vrf
        && outer.remote.length() <= inner.remote.length()
        && outer.remote.contains(inner.remote.address())
}

#[cfg(test)]
mod tests {
    use ao_engine::crypto::MasterKey;
    use ao_engine::policy::{Mkt, Prefix};

    use super::*;

    fn peer(name: &str, remote: &str, length: u8) -> PeerSpec {
        let mkt = Mkt {
            send_id: 1,
            recv_id: 1,
            algorithm: Algorithm::HmacSha1_96,
            master_key: MasterKey::new(b"secret").unwrap(),
            include_options: true,
        };
        PeerSpec {
            name: name.into(),
            remote: Prefix::new(remote.parse().unwrap(), length).unwrap(),
            local: None,
            ports: 179..=179,
            interface: None,
            vrf: None,
            keys: vec![Arc::new(mkt)],
            algorithms: Vec::new(),
            ttl_min: 0,
            datapath: Choice::Auto,
        }
    }

    fn able() -> Abilities {
        Abilities {
            tcp_ao: true,
            algorithms: Algorithm::ALL.to_vec(),
            vrf_keys: true,
            out_of_reach: None,
            can_launch: true,
        }
    }

    const LAUNCHED: Circumstances = Circumstances {
        launched: true,
        kernel_session: false,
        userspace_session: false,
    };

    fn one(peer: &PeerSpec, abilities: &Abilities, now: Circumstances) -> Decision {
        decide(std::slice::from_ref(peer), abilities, |_| now)
            .unwrap()
            .remove(0)
    }

    #[test]
    fn the_kernel_is_taken_where_it_can_and_a_daemon_is_launched() {
        let peer = peer("p", "10.0.0.2", 32);
        assert_eq!(one(&peer, &able(), LAUNCHED).backend, Backend::Kernel);
        let idle = Circumstances::default();
        assert_eq!(one(&peer, &able(), idle).backend, Backend::Userspace);
        let without = [
            Abilities::default(),
            Abilities {
                algorithms: vec![],
                ..able()
            },
            Abilities {
                out_of_reach: Some("Yama".into()),
                ..able()
            },
            Abilities {
                can_launch: false,
                ..able()
            },
        ];
        for abilities in without {
            let decision = one(&peer, &abilities, LAUNCHED);
            assert_eq!(decision.backend, Backend::Userspace, "{abilities:?}");
        }
    }

    /// It has no keys yet, but it is known of which algorithms they will be.
    #[test]
    fn a_peer_without_keys_is_the_kernels_if_that_has_all_its_algorithms() {
        let mut peer = peer("p", "10.0.0.2", 32);
        peer.keys.clear();
        peer.algorithms = vec![Algorithm::Aes128Cmac96, Algorithm::HmacSha1_96];
        assert_eq!(one(&peer, &able(), LAUNCHED).backend, Backend::Kernel);
        let without = Abilities {
            algorithms: vec![Algorithm::HmacSha1_96],
            ..able()
        };
        assert_eq!(one(&peer, &without, LAUNCHED).backend, Backend::Userspace);
    }

    #[test]
    fn a_vrf_needs_a_kernel_that_knows_them() {
        let mut peer = peer("p", "10.0.0.2", 32);
        peer.vrf = Some("red".into());
        let without = Abilities {
            vrf_keys: false,
            ..able()
        };
        assert_eq!(one(&peer, &able(), LAUNCHED).backend, Backend::Kernel);
        assert_eq!(one(&peer, &without, LAUNCHED).backend, Backend::Userspace);
    }

    #[test]
    fn a_live_session_stays_with_its_backend() {
        let peer = peer("p", "10.0.0.2", 32);
        let signed_by_engine = Circumstances {
            userspace_session: true,
            ..LAUNCHED
        };
        assert_eq!(
            one(&peer, &able(), signed_by_engine).backend,
            Backend::Userspace
        );
        let signed_by_kernel = Circumstances {
            kernel_session: true,
            ..Circumstances::default()
        };
        assert_eq!(
            one(&peer, &able(), signed_by_kernel).backend,
            Backend::Kernel
        );
        let unable = Abilities {
            algorithms: vec![],
            ..able()
        };
        assert_eq!(
            one(&peer, &unable, signed_by_kernel).backend,
            Backend::Kernel
        );
    }

    #[test]
    fn what_is_configured_is_done_or_refused() {
        let mut peer = peer("p", "10.0.0.2", 32);
        peer.datapath = Choice::Kernel;
        let now = Circumstances::default();
        assert_eq!(one(&peer, &able(), now).backend, Backend::Kernel);
        let refused = decide(std::slice::from_ref(&peer), &Abilities::default(), |_| now);
        let error = refused.unwrap_err().to_string();
        assert!(
            error.starts_with("peer \"p\" cannot have datapath = \"kernel\": "),
            "{error}"
        );
        peer.datapath = Choice::Userspace;
        assert_eq!(one(&peer, &able(), LAUNCHED).backend, Backend::Userspace);
    }

    #[test]
    fn a_prefix_around_another_peer_is_not_for_the_kernel() {
        let peers = [peer("net", "10.0.0.0", 24), peer("host", "10.0.0.2", 32)];
        let backends = |peers: &[PeerSpec]| -> Vec<Backend> {
            let decisions = decide(peers, &able(), |_| LAUNCHED).unwrap();
            decisions.iter().map(|decision| decision.backend).collect()
        };
        assert_eq!(backends(&peers), [Backend::Userspace, Backend::Kernel]);
        let mut apart = peers.clone();
        apart[0].vrf = Some("red".into());
        apart[1].vrf = Some("blue".into());
        assert_eq!(backends(&apart), [Backend::Kernel; 2]);
        let mut twins = [peer("a", "10.0.0.2", 32), peer("b", "10.0.0.2", 32)];
        twins[0].local = Some("10.0.0.1".parse().unwrap());
        assert_eq!(backends(&twins), [Backend::Userspace; 2]);
        twins[0].ports = 180..=180;
        assert_eq!(backends(&twins), [Backend::Kernel; 2]);
        let mut demanded = peers;
        demanded[0].datapath = Choice::Kernel;
        let error = decide(&demanded, &able(), |_| LAUNCHED).unwrap_err();
        assert!(error.reason.contains("\"host\""), "{error}");
    }
}
