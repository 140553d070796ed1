//! The firewall rules that hand a peer's segments to the engine, and the guard that lets nothing
//! through when they do not.
//!
//! The two are independent: one is made of nftables, the other of x_tables (legacy iptables), so
//! that flushing either leaves configured peers blocked rather than unprotected. Which is which
//! depends on the kernel: where nftables can queue packets it has the queue rules, else x_tables.
//!
//! Read in this order: [`Ruleset`] (what the rules are about), the two renderers `nft` and `xt`,
//! then [`Firewall`] (install, check, remove) and [`Watcher`] (put back what somebody flushed).
//! Everything acts in the network namespace of the calling thread.

mod nft;
mod ruleset;
#[cfg(test)]
mod snapshots;
mod tool;
mod watcher;
mod xt;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ao_sys::links::Links;
use ao_sys::xtables::Family;

pub use ruleset::{Queues, Ruleset};
pub use watcher::Watcher;

/// Unsigned segments of one peer that reach the engine, which counts them by session and tells
/// why they were refused; the rest is dropped and counted in the firewall.
const UNSIGNED_PER_SECOND: u32 = 200;

/// Next headers of IPv6 fragments that are not of a segment, however they continue: UDP, GRE, ESP,
/// ICMPv6, OSPF. Linux takes the one of the first fragment (RFC 8200 §4.5), which is enough: the
/// others alone make no packet.
const NEVER_TCP: &str = "17,47,50,58,89";

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Names under which the firewall counts what it drops.
const DROP_NAMES: [&str; 5] = ["fragment", "guard", "guard-unverified", "ttl", "unsigned"];

fn drop_name(name: &str) -> Option<&'static str> {
    DROP_NAMES.into_iter().find(|known| *known == name)
}

/// Why the firewall could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command is not installed.
    #[error("{tool} is missing: apt-get install {package}")]
    MissingTool {
        /// The command.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A command refused.
    #[error("{tool}: {reason}")]
    Tool {
        /// The command.
        tool: &'static str,
        /// What it said.
        reason: String,
    },
    /// Neither firewall can queue packets.
    #[error(
        "packets cannot be queued: this kernel's nftables has no queue expression (NFT_QUEUE), \
         and iptables refused the NFQUEUE target (NETFILTER_XT_TARGET_NFQUEUE): {0}"
    )]
    NoQueue(Box<Error>),
    /// A configured device name is none.
    #[error("peer {peer:?}: {device:?} is no name of a network device")]
    DeviceName {
        /// The peer.
        peer: String,
        /// The name.
        device: String,
    },
    /// What the kernel has after an installation is not what was installed.
    #[error("{0} changed while they were being installed: does another program manage them?")]
    Disturbed(Part),
    /// Devices could not be read, or changes not be watched.
    #[error("cannot read network devices or watch the firewall: {0}")]
    Io(#[from] io::Error),
}

/// A firewall of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// nf_tables.
    Nftables,
    /// x_tables, by the legacy iptables commands.
    Iptables,
}

impl Mechanism {
    /// The stable lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Nftables => Self::Iptables,
            Self::Iptables => Self::Nftables,
        }
    }
}

/// What a set of rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Queue,
    Guard,
}

/// A set of rules that the kernel replaces as a whole, up to one x_tables table at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    role: Role,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nft,
    Xt(Family),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.place {
            Place::Nft => "nftables",
            Place::Xt(Family::V4) => "iptables",
            Place::Xt(Family::V6) => "ip6tables",
        })?;
        f.write_str(match self.role {
            Role::Queue => " queue rules",
            Role::Guard => " guard rules",
        })
    }
}

impl Part {
    fn all(role: Role, mechanism: Mechanism) -> Vec<Self> {
        match mechanism {
            Mechanism::Nftables => vec![Place::Nft],
            Mechanism::Iptables => FAMILIES.map(Place::Xt).to_vec(),
        }
        .into_iter()
        .map(|place| Self { role, place })
        .collect()
    }

    /// Whether the rules say anything here.
    fn concerns(self, ruleset: &Ruleset) -> bool {
        match self.place {
            Place::Nft => true,
            Place::Xt(family) => ruleset.of(family).next().is_some(),
        }
    }

    /// Installs the rules in place of those there may be, and returns how they look then.
    fn install(self, ruleset: &Ruleset) -> Result<String, Error> {
        match self.place {
            Place::Nft => nft::install(self.role, ruleset)?,
            Place::Xt(family) => xt::install(self.role, family, ruleset)?,
        }
        if !self.concerns(ruleset) {
            return Ok(String::new());
        }
        let observed = self.observe()?;
        let undisturbed = match self.place {
            Place::Nft => !observed.is_empty(),
            Place::Xt(family) => {
                xt::observed_rules(self.role, &observed)
                    == xt::rendered_rules(self.role, family, ruleset)
            }
        };
        if undisturbed {
            Ok(observed)
        } else {
            Err(Error::Disturbed(self))
        }
    }

    fn remove(self) -> Result<(), Error> {
        match self.place {
            Place::Nft => nft::remove(self.role),
            Place::Xt(family) => xt::remove(self.role, family),
        }
    }

    fn observe(self) -> Result<String, Error> {
        match self.place {
            Place::Nft => nft::observe(self.role),
            Place::Xt(family) => xt::observe(self.role, family),
        }
    }

    fn drops(self) -> Result<BTreeMap<&'static str, u64>, Error> {
        match self.place {
            Place::Nft => nft::drops(self.role),
            Place::Xt(family) => xt::drops(self.role, family),
        }
    }
}

/// A part in the kernel as we know it.
struct Installed {
    part: Part,
    ruleset: Arc<Ruleset>,
    looks: String,
}

impl Installed {
    /// Installs the rules again if they are not as they were; whether that was so.
    fn restore(&self) -> Result<bool, Error> {
        if self.part.observe()? == self.looks {
            return Ok(false);
        }
        // The same rules look the same: what differs is somebody else's.
        if self.part.install(&self.ruleset)? != self.looks {
            return Err(Error::Disturbed(self.part));
        }
        tracing::warn!(part = %self.part, "rules were gone or changed; put back");
        Ok(true)
    }
}

#[derive(Default)]
struct State {
    /// The latest that a whole role has.
    ruleset: Option<Arc<Ruleset>>,
    installed: Vec<Installed>,
    /// What was counted by rules that have been replaced since.
    replaced: BTreeMap<&'static str, u64>,
    restored: u64,
}

/// The rules in the kernel.
pub struct Firewall {
    queue: Mechanism,
    state: Mutex<State>,
}

impl Firewall {
    /// Finds out which firewall can queue packets; that one gets the queue rules, the other the
    /// guard. Leaves nothing changed.
    ///
    /// # Errors
    /// When a tool is missing.
    pub fn probe() -> Result<Self, Error> {
        xt::check_tools()?;
        let queue = if nft::has_queue()? {
            Mechanism::Nftables
        } else {
            Mechanism::Iptables
        };
        Ok(Self {
            queue,
            state: Mutex::default(),
        })
    }

    /// Which firewall carries the queue rules.
    #[must_use]
    pub fn queue_rules(&self) -> Mechanism {
        self.queue
    }

    /// Which firewall carries the guard.
    #[must_use]
    pub fn guard(&self) -> Mechanism {
        self.queue.other()
    }

    /// Installs guard and queue rules for all peers, in this order, in place of those there may
    /// be of an earlier configuration or process. Configured peers are covered at every moment;
    /// their segments may be dropped meanwhile.
    ///
    /// # Errors
    /// When a tool is missing or refuses. The guard stays if it was installed.
    pub fn install(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let ruleset = Arc::new(ruleset.clone().with_vrfs(Links::read()?.vrfs()));
        let mut state = self.state();
        state.put(Role::Guard, self.guard(), &ruleset)?;
        // Queue rules in both firewalls would sign twice: the stale ones go first.
        take_away(Role::Queue, self.guard())?;
        state
            .put(Role::Queue, self.queue, &ruleset)
            .map_err(|error| match error {
                Error::Tool { .. } if self.queue == Mechanism::Iptables => {
                    Error::NoQueue(Box::new(error))
                }
                other => other,
            })?;
        take_away(Role::Guard, self.queue)
    }

    /// Whether guard rules of any peers are in place, of this process or an earlier one.
    ///
    /// # Errors
    /// When a tool is missing.
    pub fn has_guard(&self) -> Result<bool, Error> {
        let parts = Part::all(Role::Guard, self.guard());
        parts.into_iter().try_fold(false, |found, part| {
            let observed = part.observe()?;
            Ok(found
                || match part.place {
                    Place::Nft => !observed.is_empty(),
                    Place::Xt(_) => xt::observed_rules(part.role, &observed) > 0,
                })
        })
    }

    /// Installs the guard alone: configured peers are blocked. Needs neither the peers' devices
    /// nor the engine.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn install_guard(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let ruleset = Arc::new(ruleset.clone().with_vrfs(Links::read()?.vrfs()));
        self.state().put(Role::Guard, self.guard(), &ruleset)
    }

    /// Removes queue rules and guard, in this order, also those of another process.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn remove(&self) -> Result<(), Error> {
        self.remove_queue_rules()?;
        self.remove_guard()
    }

    /// Removes the queue rules; the guard, if there, blocks all peers.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn remove_queue_rules(&self) -> Result<(), Error> {
        self.state().forget(Role::Queue);
        take_away(Role::Queue, self.queue)?;
        take_away(Role::Queue, self.guard())
    }

    /// Removes the guard.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn remove_guard(&self) -> Result<(), Error> {
        self.state().forget(Role::Guard);
        take_away(Role::Guard, self.guard())?;
        take_away(Role::Guard, self.queue)
    }

    /// Packets dropped by the firewall itself since the rules were first installed, by name:
    /// `fragment`, `ttl`, `unsigned`, `guard`, `guard-unverified`. Reads the kernel's counts by
    /// the tools: not for every second.
    ///
    /// # Errors
    /// When a tool is missing.
    pub fn drops(&self) -> Result<BTreeMap<&'static str, u64>, Error> {
        let state = self.state();
        let mut drops = state.replaced.clone();
        for installed in &state.installed {
            add(&mut drops, installed.part.drops()?);
        }
        Ok(drops)
    }

    /// Times rules had to be put back.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.state().restored
    }

    /// Compares what is in the kernel with what was installed and puts back what differs;
    /// returns the parts that were put back.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn restore(&self) -> Result<Vec<Part>, Error> {
        let mut state = self.state();
        let mut restored = Vec::new();
        let mut outcome = Ok(());
        for installed in &state.installed {
            // What cannot be put back in one place is no reason to leave the others open.
            match installed.restore() {
                Ok(true) => restored.push(installed.part),
                Ok(false) => {}
                Err(error) => outcome = Err(error),
            }
        }
        state.restored += restored.len() as u64;
        outcome.map(|()| restored)
    }

    /// Renders the rules anew when the set of L3 masters has changed.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn update_links(&self, links: &Links) -> Result<(), Error> {
        let mut state = self.state();
        let Some(old) = state.ruleset.clone() else {
            return Ok(());
        };
        let new = Arc::new(Ruleset::clone(&old).with_vrfs(links.vrfs()));
        if new == old {
            return Ok(());
        }
        for role in [Role::Guard, Role::Queue] {
            let there = state.installed.iter().any(|known| known.part.role == role);
            let mechanism = match role {
                Role::Queue => self.queue,
                Role::Guard => self.guard(),
            };
            // nftables asks each device for its kind instead.
            if there && mechanism == Mechanism::Iptables {
                state.put(role, mechanism, &new)?;
            }
        }
        state.ruleset = Some(new);
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        let state = self.state();
        state.installed.iter().map(|known| known.part).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Installs one role's rules. A part that fails stays known with its earlier rules, which
    /// [`Installed::restore`] then keeps in place.
    fn put(
        &mut self,
        role: Role,
        mechanism: Mechanism,
        ruleset: &Arc<Ruleset>,
    ) -> Result<(), Error> {
        for part in Part::all(role, mechanism) {
            let drops = part.drops()?;
            let looks = part.install(ruleset)?;
            add(&mut self.replaced, drops);
            self.installed.retain(|known| known.part != part);
            if part.concerns(ruleset) {
                self.installed.push(Installed {
                    part,
                    ruleset: Arc::clone(ruleset),
                    looks,
                });
            }
        }
        self.ruleset = Some(Arc::clone(ruleset));
        Ok(())
    }

    fn forget(&mut self, role: Role) {
        self.installed.retain(|known| known.part.role != role);
    }
}

fn take_away(role: Role, mechanism: Mechanism) -> Result<(), Error> {
    Part::all(role, mechanism)
        .into_iter()
        .try_for_each(Part::remove)
}

fn add(sum: &mut BTreeMap<&'static str, u64>, drops: BTreeMap<&'static str, u64>) {
    for (name, packets) in drops {
        *sum.entry(name).or_default() += packets;
    }
}
