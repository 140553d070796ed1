//! A part of the rules: those of one purpose in one firewall, replaced as a whole.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::Arc;

use ao_sys::xtables::Family;

use super::{Error, FAMILIES, Mechanism, Ruleset, nft, xt};

/// What a set of rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Queue,
    Guard,
}

/// A set of rules that the kernel replaces as a whole, up to one x_tables table at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub(super) role: Role,
    pub(super) place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
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
    pub(super) fn all(role: Role, mechanism: Mechanism) -> Vec<Self> {
        match mechanism {
            Mechanism::Nftables => vec![Place::Nft],
            Mechanism::Iptables => FAMILIES.map(Place::Xt).to_vec(),
        }
        .into_iter()
        .map(|place| Self { role, place })
        .collect()
    }

    /// Whether the rules say anything here.
    pub(super) fn concerns(self, ruleset: &Ruleset) -> bool {
        match self.place {
            Place::Nft => true,
            Place::Xt(family) => ruleset.of(family).next().is_some(),
        }
    }

    /// Installs the rules in place of those there may be.
    pub(super) fn install(self, ruleset: &Arc<Ruleset>) -> Result<Installed, Error> {
        match self.place {
            Place::Nft => nft::install(self.role, ruleset)?,
            Place::Xt(family) => xt::install(self.role, family, ruleset)?,
        }
        self.look(ruleset)
    }

    /// How rules look that have just been installed.
    fn look(self, ruleset: &Arc<Ruleset>) -> Result<Installed, Error> {
        let installed = |looks| Installed {
            part: self,
            ruleset: Arc::clone(ruleset),
            looks,
            counted: BTreeMap::new(),
        };
        if !self.concerns(ruleset) {
            return Ok(installed(String::new()));
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
            Ok(installed(observed))
        } else {
            Err(Error::Disturbed(self))
        }
    }

    pub(super) fn remove(self) -> Result<(), Error> {
        match self.place {
            Place::Nft => nft::remove(self.role),
            Place::Xt(family) => xt::remove(self.role, family),
        }
    }

    pub(super) fn observe(self) -> Result<String, Error> {
        match self.place {
            Place::Nft => nft::observe(self.role),
            Place::Xt(family) => xt::observe(self.role, family),
        }
    }

    pub(super) fn drops(self) -> Result<BTreeMap<&'static str, u64>, Error> {
        match self.place {
            Place::Nft => nft::drops(self.role),
            Place::Xt(family) => xt::drops(self.role, family),
        }
    }
}

/// A part in the kernel as we know it.
pub(super) struct Installed {
    pub(super) part: Part,
    pub(super) ruleset: Arc<Ruleset>,
    /// Nothing if no rule is needed.
    looks: String,
    /// Drops as they were read last.
    counted: BTreeMap<&'static str, u64>,
}

impl Installed {
    /// Whether there are rules at all.
    pub(super) fn has_rules(&self) -> bool {
        self.part.concerns(&self.ruleset)
    }

    /// Other rules instead, in one step and without a packet lost, with the counters going on;
    /// nothing if that cannot be.
    pub(super) fn update(&self, ruleset: &Arc<Ruleset>) -> Option<Self> {
        let Place::Nft = self.part.place else {
            return None;
        };
        let is_ours = self.part.observe().is_ok_and(|now| now == self.looks);
        if !is_ours || nft::update(self.part.role, &self.ruleset, ruleset).is_err() {
            return None;
        }
        let looks = self.part.look(ruleset).ok()?;
        Some(Self {
            counted: self.counted.clone(),
            ..looks
        })
    }

    /// Packets dropped by these rules, by name. What was counted before somebody flushed them counts.
    pub(super) fn drops(&mut self) -> Result<BTreeMap<&'static str, u64>, Error> {
        for (name, packets) in self.part.drops()? {
            let counted = self.counted.entry(name).or_default();
            *counted = packets.max(*counted);
        }
        Ok(self.counted.clone())
    }

    /// Installs the rules again if they are not as they were; what had been counted until then, if
    /// that was so: counters begin anew.
    pub(super) fn restore(&mut self) -> Result<Option<BTreeMap<&'static str, u64>>, Error> {
        if self.part.observe()? == self.looks {
            return Ok(None);
        }
        // What cannot be read now was read before; the rules matter more.
        let _ = self.drops();
        // The same rules look the same: what differs is somebody else's.
        if self.part.install(&self.ruleset)?.looks != self.looks {
            return Err(Error::Disturbed(self.part));
        }
        tracing::warn!(part = %self.part, "rules were gone or changed; put back");
        Ok(Some(mem::take(&mut self.counted)))
    }
}
