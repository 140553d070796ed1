//! The connection table: bounded, indexed by connection, with provisional entries beside a live
//! one.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::connection::Connection;
use crate::policy::ConnectionId;
use crate::record::EntryId;
use crate::time::Instant;

/// Provisional entries per connection: a legitimate handshake needs one, a simultaneous open two.
const OPENING_PER_CONNECTION: usize = 4;

/// Names an entry within one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    slot: usize,
    entry: EntryId,
}

impl Handle {
    pub(super) fn entry(self) -> EntryId {
        self.entry
    }
}

/// The entries of one connection identifier.
#[derive(Debug, Default)]
struct Entries {
    /// The entry whose far end has proven both ISNs.
    live: Option<Handle>,
    /// Handshakes under way, oldest first. A verified SYN proves nothing but its own ISN, so it
    /// never displaces `live`.
    opening: Vec<Handle>,
}

/// Nothing in the full table may be evicted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TableFull;

/// All connections of one worker.
#[derive(Debug)]
pub(super) struct Table<K> {
    slots: Vec<Option<Connection<K>>>,
    free: Vec<usize>,
    index: BTreeMap<ConnectionId, Entries>,
    capacity: usize,
    next_entry: u64,
    /// Entries that went since the last [`take_forgotten`](Self::take_forgotten).
    forgotten: Vec<EntryId>,
}

impl<K> Table<K> {
    /// `first_entry` starts the numbering of entries, so that workers do not share numbers.
    pub(super) fn new(capacity: usize, first_entry: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: BTreeMap::new(),
            capacity,
            next_entry: first_entry,
            forgotten: Vec::new(),
        }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Connection<K>> {
        self.slots
            .get(handle.slot)?
            .as_ref()
            .filter(|c| c.entry == handle.entry)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Connection<K>> {
        self.slots
            .get_mut(handle.slot)?
            .as_mut()
            .filter(|c| c.entry == handle.entry)
    }

    pub(super) fn live(&self, id: &ConnectionId) -> Option<Handle> {
        self.index.get(id)?.live
    }

    pub(super) fn opening(&self, id: &ConnectionId) -> &[Handle] {
        self.index.get(id).map_or(&[], |entries| &entries.opening)
    }

    /// The first provisional entry for which `wanted` holds.
    pub(super) fn find_opening(
        &self,
        id: &ConnectionId,
        wanted: impl Fn(&Connection<K>) -> bool,
    ) -> Option<Handle> {
        self.opening(id)
            .iter()
            .copied()
            .find(|&handle| self.get(handle).is_some_and(&wanted))
    }

    /// The entry that stands for the connection in counters: the live one, else the newest.
    pub(super) fn any(&self, id: &ConnectionId) -> Option<Handle> {
        let entries = self.index.get(id)?;
        entries.live.or(entries.opening.last().copied())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Connection<K>> {
        self.slots.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection<K>> {
        self.slots.iter_mut().flatten()
    }

    /// A number for a new entry.
    pub(super) fn number(&mut self) -> EntryId {
        let entry = EntryId(self.next_entry);
        self.next_entry = self.next_entry.wrapping_add(1);
        entry
    }

    /// Adds a provisional entry, evicting what may go when there is no room.
    pub(super) fn insert_opening(
        &mut self,
        now: Instant,
        connection: Connection<K>,
    ) -> Result<Handle, TableFull> {
        let id = connection.id;
        if self.opening(&id).len() >= OPENING_PER_CONNECTION {
            // A handshake this end began is worth more than one that any recorded SYN can start.
            let oldest = self
                .find_opening(&id, |other| other.local_isn.is_none())
                .or_else(|| self.opening(&id).first().copied());
            if let Some(oldest) = oldest {
                self.remove(oldest);
            }
        }
        let handle = self.store(now, connection)?;
        self.index.entry(id).or_default().opening.push(handle);
        Ok(handle)
    }

    /// Adds an entry that is live from the start: a recorded one. Handshakes beside it stay.
    pub(super) fn insert_live(
        &mut self,
        now: Instant,
        connection: Connection<K>,
    ) -> Result<Handle, TableFull> {
        let id = connection.id;
        let handle = self.store(now, connection)?;
        let replaced = self.index.entry(id).or_default().live.replace(handle);
        if let Some(replaced) = replaced {
            self.vacate(replaced);
        }
        Ok(handle)
    }

    /// Makes a provisional entry the live one. All others of the connection go: they were older
    /// or replayed.
    pub(super) fn promote(&mut self, handle: Handle) {
        let Some(id) = self.get(handle).map(|connection| connection.id) else {
            return;
        };
        let Some(entries) = self.index.get_mut(&id) else {
            return;
        };
        if entries.live == Some(handle) {
            return;
        }
        let replaced = entries.live.replace(handle);
        let others = core::mem::take(&mut entries.opening);
        for other in replaced
            .into_iter()
            .chain(others)
            .filter(|&other| other != handle)
        {
            self.vacate(other);
        }
    }

    pub(super) fn remove(&mut self, handle: Handle) {
        let Some(id) = self.get(handle).map(|connection| connection.id) else {
            return;
        };
        if let Some(entries) = self.index.get_mut(&id) {
            entries.opening.retain(|&other| other != handle);
            if entries.live == Some(handle) {
                entries.live = None;
            }
            if entries.live.is_none() && entries.opening.is_empty() {
                self.index.remove(&id);
            }
        }
        self.vacate(handle);
    }

    /// Every entry for which `wanted` holds.
    pub(super) fn handles(&self, wanted: impl Fn(&Connection<K>) -> bool) -> Vec<Handle> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(slot, held)| {
                let connection = held.as_ref().filter(|connection| wanted(connection))?;
                Some(Handle {
                    slot,
                    entry: connection.entry,
                })
            })
            .collect()
    }

    /// Removes every entry for which `gone` holds.
    pub(super) fn remove_where(&mut self, gone: impl Fn(&Connection<K>) -> bool) {
        for handle in self.handles(gone) {
            self.remove(handle);
        }
    }

    /// Entries that went since the last call.
    pub(super) fn take_forgotten(&mut self) -> Vec<EntryId> {
        core::mem::take(&mut self.forgotten)
    }

    fn store(&mut self, now: Instant, connection: Connection<K>) -> Result<Handle, TableFull> {
        if self.slots.len() - self.free.len() >= self.capacity {
            self.evict(now)?;
        }
        let entry = connection.entry;
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(vacant) => *vacant = Some(connection),
            None => self.slots.push(Some(connection)),
        }
        Ok(Handle { slot, entry })
    }

    /// Makes room: the entry longest unseen of those that closed, else of those that never
    /// opened. A live one is never evicted, however long it is silent.
    fn evict(&mut self, now: Instant) -> Result<(), TableFull> {
        let victim = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(slot, held)| {
                let connection = held.as_ref()?;
                let rank = connection.eviction_rank()?;
                let handle = Handle {
                    slot,
                    entry: connection.entry,
                };
                Some((
                    rank,
                    core::cmp::Reverse(now.since(connection.last_seen)),
                    handle,
                ))
            })
            .min_by_key(|&(rank, silent, _)| (rank, silent))
            .map(|(_, _, handle)| handle)
            .ok_or(TableFull)?;
        self.remove(victim);
        Ok(())
    }

    fn vacate(&mut self, handle: Handle) {
        if let Some(held) = self.slots.get_mut(handle.slot)
            && held
                .take_if(|connection| connection.entry == handle.entry)
                .is_some()
        {
            self.free.push(handle.slot);
            self.forgotten.push(handle.entry);
        }
    }
}
