//! Real BGP daemons, unmodified, as Debian packages them.

mod bird;
mod frr;
mod gobgp;
mod openbgpd;
mod site;

use std::collections::BTreeMap;
use std::time::Duration;

pub use site::{At, Launcher};

use crate::netns::Namespace;
use crate::topology::{Family, Host};
use crate::wait;

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// BIRD 2.
    Bird,
    /// FRR's bgpd; with zebra only where link-local peers or a VRF need it.
    Frr,
    /// GoBGP.
    GoBgp,
    /// OpenBGPD.
    OpenBgpd,
}

/// One end of a BGP session, as its daemon is configured.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// Kind of the session's addresses.
    pub family: Family,
    /// Own address, without zone.
    pub local: String,
    /// The far end's address, without zone.
    pub remote: String,
    /// Own AS number.
    pub local_as: u32,
    /// The far end's AS number.
    pub remote_as: u32,
    /// Whether it only waits for the far end to connect.
    pub passive: bool,
    /// Seconds.
    pub hold_time: u16,
    /// Index of the first route it announces, see [`prefix`].
    pub first_route: u32,
    /// Number of routes it announces.
    pub routes: u32,
    /// VRF device the session is in.
    pub vrf: Option<String>,
    /// Takes any neighbor in this prefix and only waits: the daemon's own dynamic neighbors.
    pub range: Option<String>,
    /// TCP-MD5 password of the session; only BIRD is given it.
    pub password: Option<String>,
}

impl Speaker {
    /// The speakers at two hosts; the first connects. Each announces ten routes.
    #[must_use]
    pub fn pair(a: &Host, b: &Host, family: Family) -> (Self, Self) {
        let one = |own: &Host, far: &Host, local_as, remote_as, passive, first_route| Self {
            family,
            local: own.address(family).to_string(),
            remote: far.address(family).to_string(),
            local_as,
            remote_as,
            passive,
            hold_time: 90,
            first_route,
            routes: 10,
            vrf: None,
            range: None,
            password: None,
        };
        (
            one(a, b, 64501, 64502, false, 0),
            one(b, a, 64502, 64501, true, 1 << 20),
        )
    }

    /// What the far end must have received: metric by prefix.
    #[must_use]
    pub fn announced(&self) -> BTreeMap<String, u32> {
        (self.first_route..self.first_route + self.routes)
            .map(|index| (prefix(self.family, index), index))
            .collect()
    }
}

/// The route of an index: a /24 from 20.0.0.0 on, or a /64 below 2001:db8::/32.
#[must_use]
pub fn prefix(family: Family, index: u32) -> String {
    if family == Family::V4 {
        format!("{}/24", std::net::Ipv4Addr::from((20 << 24) + (index << 8)))
    } else {
        let network = (0x2001_0db8_u128 << 96) | (u128::from(index) << 64);
        format!("{}/64", std::net::Ipv6Addr::from(network))
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it is Established now.
    pub established: bool,
    /// How often it became Established since the daemon started.
    pub times_established: u32,
}

/// A running daemon with one session.
pub trait Daemon: std::fmt::Debug {
    /// How it is configured.
    fn speaker(&self) -> &Speaker;

    /// Where its session stands.
    ///
    /// # Errors
    /// When it does not answer (yet).
    fn standing(&self) -> Result<Standing, String>;

    /// The number of routes it has received from its peer.
    ///
    /// # Errors
    /// When it does not answer (yet).
    fn received_count(&self) -> Result<u32, String>;

    /// The routes it has received from its peer, metric by prefix.
    ///
    /// # Errors
    /// When it does not answer.
    fn received(&self) -> Result<BTreeMap<String, u32>, String>;

    /// Announces its routes again, or withdraws them all.
    ///
    /// # Errors
    /// When it does not, or is one whose routes no test moves (GoBGP, OpenBGPD).
    fn announce(&self, on: bool) -> Result<(), String> {
        let word = if on { "announced" } else { "withdrawn" };
        Err(format!("routes of {self:?} cannot be {word}"))
    }

    /// Process id of the part that holds the session.
    fn id(&self) -> u32;
}

/// Starts a daemon.
#[must_use]
pub fn start(
    implementation: Implementation,
    namespace: &Namespace,
    speaker: &Speaker,
) -> Box<dyn Daemon> {
    start_at(implementation, At::plain(namespace), speaker)
}

/// Starts a daemon under `ao-sidecar exec`; of FRR's programs only bgpd.
#[must_use]
pub fn start_under(
    implementation: Implementation,
    namespace: &Namespace,
    speaker: &Speaker,
    launcher: &Launcher,
) -> Box<dyn Daemon> {
    start_at(implementation, At::under(namespace, launcher), speaker)
}

fn start_at(implementation: Implementation, at: At<'_>, speaker: &Speaker) -> Box<dyn Daemon> {
    match implementation {
        Implementation::Bird => Box::new(bird::Bird::start(&at, speaker)),
        Implementation::Frr => Box::new(frr::Frr::start(&at, speaker)),
        Implementation::GoBgp => Box::new(gobgp::GoBgp::start(&at, speaker)),
        Implementation::OpenBgpd => Box::new(openbgpd::OpenBgpd::start(at, speaker)),
    }
}

/// Waits until both ends are Established and each has all the other's routes, intact.
///
/// # Panics
/// When that takes longer than `limit`.
pub fn wait_converged(a: &dyn Daemon, b: &dyn Daemon, limit: Duration) {
    for (here, there) in [(a, b), (b, a)] {
        let wanted = there.speaker().routes;
        wait::poll("session Established and all routes received", limit, || {
            let standing = here.standing()?;
            let count = here.received_count()?;
            if standing.established && count == wanted {
                return Ok(());
            }
            Err(format!(
                "{standing:?}, {count} of {wanted} routes at {}",
                here.speaker().local
            ))
        });
        let received = here.received().expect("list the routes");
        assert_same_routes(&received, &there.speaker().announced());
    }
}

/// Asserts that a session has been Established all the time, from its first time on.
///
/// # Panics
/// When it has not.
pub fn assert_never_down(daemon: &dyn Daemon) {
    let standing = daemon.standing().expect("ask the daemon");
    let wanted = Standing {
        established: true,
        times_established: 1,
    };
    assert_eq!(standing, wanted, "at {}", daemon.speaker().local);
}

fn assert_same_routes(received: &BTreeMap<String, u32>, announced: &BTreeMap<String, u32>) {
    let wrong = announced
        .iter()
        .find(|(prefix, metric)| received.get(*prefix) != Some(*metric));
    if let Some((prefix, metric)) = wrong {
        panic!(
            "{prefix} with metric {metric} came as {:?}",
            received.get(prefix)
        );
    }
    assert_eq!(received.len(), announced.len(), "routes nobody announced");
}

/// Index of the route a prefix written by [`prefix`] stands for.
fn parse_index(text: &str) -> Option<u32> {
    let (address, _) = text.split_once('/')?;
    match address.parse().ok()? {
        std::net::IpAddr::V4(v4) => u32::from(v4).checked_sub(20 << 24).map(|value| value >> 8),
        std::net::IpAddr::V6(v6) => u32::try_from((u128::from(v6) >> 64) & 0xffff_ffff).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_gives_its_index_back() {
        for family in Family::ALL {
            for index in [0, 1, 255, 256, 1 << 20, (1 << 20) + 499_999] {
                assert_eq!(parse_index(&prefix(family, index)), Some(index));
            }
        }
    }
}
