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
mod part;
mod ruleset;
#[cfg(test)]
mod snapshots;
mod tool;
mod watcher;
mod xt;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ao_sys::links::Links;
use ao_sys::xtables::Family;

pub use part::Part;
use part::{Installed, Place, Role};
pub use ruleset::{Queues, Ruleset};
pub use watcher::Watcher;

/// For how long counts of drops are told again, before the tools are run for newer ones.
const COUNTS_LAST: Duration = Duration::from_secs(1);
/// How long newer ones are waited for: longer than the tools take for some hundred rules.
const COUNTS_PATIENCE: Duration = Duration::from_millis(25);

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

#[derive(Default)]
struct State {
    /// The latest that a whole role has.
    ruleset: Option<Arc<Ruleset>>,
    installed: Vec<Installed>,
    /// What was counted by rules that have been replaced since.
    replaced: BTreeMap<&'static str, u64>,
}

/// Drops as they were counted last.
#[derive(Default)]
struct Counts {
    drops: BTreeMap<&'static str, u64>,
    read: Option<Instant>,
    /// Whether they are being read.
    reading: bool,
}

/// The rules in the kernel.
pub struct Firewall {
    queue: Mechanism,
    state: Mutex<State>,
    counts: Mutex<Counts>,
    restored: AtomicU64,
    /// Why the last look at the rules left them other than they should be.
    trouble: Mutex<Option<String>>,
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
            counts: Mutex::default(),
            restored: AtomicU64::new(0),
            trouble: Mutex::default(),
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

    /// Replaces what [`install`](Self::install) has installed: both roles or none. Packets that wait
    /// in a queue stay there if nobody has touched the rules.
    ///
    /// # Errors
    /// When a tool is missing or refuses; the earlier rules are back in place then, unless the log
    /// says otherwise.
    pub fn replace(&self, ruleset: &Ruleset) -> Result<(), Error> {
        let ruleset = Arc::new(ruleset.clone().with_vrfs(Links::read()?.vrfs()));
        let mut state = self.state();
        let former = state.ruleset.clone();
        if former.as_ref() == Some(&ruleset) {
            return Ok(());
        }
        let roles = [(Role::Guard, self.guard()), (Role::Queue, self.queue)];
        let put = |state: &mut State, ruleset: &Arc<Ruleset>| {
            let mut roles = roles.into_iter();
            roles.try_for_each(|(role, mechanism)| state.put(role, mechanism, ruleset))
        };
        put(&mut state, &ruleset).inspect_err(|_| {
            let put_back = former.as_ref().map(|former| put(&mut state, former));
            state.ruleset = former;
            if let Some(Err(error)) = put_back {
                tracing::error!(%error, "the earlier rules are not all back in place");
                // So that they are not taken for there when they are asked for again.
                state.ruleset = None;
            }
        })
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
        self.state().drops()
    }

    /// The same as it was a moment ago, or as long ago as it takes to read it anew: with thousands
    /// of peers, or while rules are being changed, that is more than anybody should wait.
    #[must_use]
    pub fn recent_drops(self: &Arc<Self>) -> BTreeMap<&'static str, u64> {
        let mut counts = self.counts();
        let is_recent = counts.read.is_some_and(|read| read.elapsed() < COUNTS_LAST);
        if is_recent || counts.reading {
            return counts.drops.clone();
        }
        counts.reading = true;
        drop(counts);
        let (tell, told) = mpsc::channel();
        let this = Arc::clone(self);
        let count = move || {
            this.count();
            let _ = tell.send(());
        };
        match thread::Builder::new()
            .name("ao-counts".to_owned())
            .spawn(count)
        {
            Ok(_) => drop(told.recv_timeout(COUNTS_PATIENCE)),
            Err(error) => {
                tracing::warn!(%error, "the firewall's counts cannot be read");
                self.counts().reading = false;
            }
        }
        self.counts().drops.clone()
    }

    /// Reads the counts, for those who ask next.
    fn count(&self) {
        let drops = self.drops();
        let mut counts = self.counts();
        counts.reading = false;
        match drops {
            Ok(drops) => {
                counts.drops = drops;
                counts.read = Some(Instant::now());
            }
            Err(error) => tracing::warn!(%error, "the firewall's counts cannot be read"),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Times rules had to be put back.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Why the rules are not as they should be, as far as was seen at the last look.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Compares what is in the kernel with what was installed and puts back what differs;
    /// returns the parts that were put back.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn restore(&self) -> Result<Vec<Part>, Error> {
        let mut state = self.state();
        let State {
            installed,
            replaced,
            ..
        } = &mut *state;
        let mut restored = Vec::new();
        let mut outcome = Ok(());
        for installed in installed {
            // What cannot be put back in one place is no reason to leave the others open.
            match installed.restore() {
                Ok(Some(drops)) => {
                    add(replaced, drops);
                    restored.push(installed.part);
                }
                Ok(None) => {}
                Err(error) => outcome = Err(error),
            }
        }
        drop(state);
        self.restored
            .fetch_add(restored.len() as u64, Ordering::Relaxed);
        let trouble = outcome.as_ref().err().map(Error::to_string);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
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
            let known = self.installed.iter().position(|known| known.part == part);
            let known = known.and_then(|place| self.installed.get_mut(place));
            let updated = known.as_ref().and_then(|known| known.update(ruleset));
            let drops = match (known, updated) {
                (Some(known), Some(updated)) => {
                    *known = updated;
                    continue;
                }
                (Some(known), None) => known.drops()?,
                (None, _) => part.drops()?,
            };
            let installed = part.install(ruleset)?;
            add(&mut self.replaced, drops);
            self.installed.retain(|known| known.part != part);
            if installed.has_rules() {
                self.installed.push(installed);
            }
        }
        self.ruleset = Some(Arc::clone(ruleset));
        Ok(())
    }

    fn drops(&mut self) -> Result<BTreeMap<&'static str, u64>, Error> {
        let mut drops = self.replaced.clone();
        for installed in &mut self.installed {
            add(&mut drops, installed.drops()?);
        }
        Ok(drops)
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
