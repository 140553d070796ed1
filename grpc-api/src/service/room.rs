//! Room for connections and calls, so that no caller takes that of the others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of callers with a role.
const CONNECTIONS: usize = 256;
/// Of these, kept for admins.
const FOR_ADMINS: usize = 64;
/// Connections of one caller.
const CONNECTIONS_EACH: usize = 64;
/// Calls of one caller at a time, streams and answers that it has not read included.
const CALLS_EACH: usize = 64;
/// Connections of those who are only told why they may not call.
const REFUSED: usize = 32;

/// Whose connections are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// A user of this machine.
    User(u32),
    /// Who has a certificate with this name.
    Certificate(String),
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{CONNECTIONS_EACH} connections of this caller are open already")]
    Caller,
    #[error("too many connections are open already")]
    All,
}

/// The room there is.
pub(super) struct Room {
    seats: Mutex<Seats>,
    refused: Arc<Semaphore>,
}

#[derive(Default)]
struct Seats {
    all: usize,
    each: HashMap<Whose, (usize, Arc<Semaphore>)>,
}

/// A connection's place; given back when dropped.
pub(super) struct Seat {
    room: Arc<Room>,
    whose: Whose,
    calls: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            seats: Mutex::default(),
            refused: Arc::new(Semaphore::new(REFUSED)),
        }
    }

    /// A place for a connection.
    pub(super) fn enter(self: &Arc<Self>, whose: Whose, admin: bool) -> Result<Seat, Full> {
        let mut seats = self.seats();
        let open = if admin {
            CONNECTIONS
        } else {
            CONNECTIONS - FOR_ADMINS
        };
        if seats.all >= open {
            return Err(Full::All);
        }
        let (count, calls) = seats
            .each
            .entry(whose.clone())
            .or_insert_with(|| (0, Arc::new(Semaphore::new(CALLS_EACH))));
        if *count >= CONNECTIONS_EACH {
            return Err(Full::Caller);
        }
        *count += 1;
        let calls = Arc::clone(calls);
        seats.all += 1;
        let room = Arc::clone(self);
        Ok(Seat { room, whose, calls })
    }

    /// A place for a connection that is only told why it may not call; nothing when there are many
    /// of them.
    pub(super) fn refuse(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.refused).try_acquire_owned().ok()
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// A place for a call; nothing when the caller has too many under way.
    pub(super) fn call(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.calls).try_acquire_owned().ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.room.seats();
        seats.all = seats.all.saturating_sub(1);
        if let Entry::Occupied(mut each) = seats.each.entry(self.whose.clone()) {
            let (count, _) = each.get_mut();
            *count = count.saturating_sub(1);
            if *count == 0 {
                each.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_takes_the_room_of_others() {
        let room = Arc::new(Room::new());
        let enter = |uid, admin| room.enter(Whose::User(uid), admin);
        let mut seats = Vec::new();
        for uid in 1..=3 {
            for _ in 0..CONNECTIONS_EACH {
                seats.push(enter(uid, false).unwrap());
            }
            assert_eq!(
                enter(uid, false).err(),
                (uid < 3).then_some(Full::Caller).or(Some(Full::All))
            );
        }
        assert_eq!(enter(4, false).err(), Some(Full::All));
        let ann = || Whose::Certificate("ann".into());
        assert_eq!(room.enter(ann(), false).err(), Some(Full::All));
        for _ in 0..FOR_ADMINS {
            seats.push(enter(0, true).unwrap());
        }
        assert_eq!(enter(0, true).err(), Some(Full::All));
        seats.clear();
        assert_eq!(room.seats().all, 0);
        assert!(room.seats().each.is_empty());
        assert!(room.enter(ann(), false).is_ok());
    }

    #[test]
    fn calls_are_counted_over_all_connections_of_a_caller() {
        let room = Arc::new(Room::new());
        let one = room.enter(Whose::User(7), false).unwrap();
        let other = room.enter(Whose::User(7), false).unwrap();
        let calls: Vec<_> = (0..CALLS_EACH / 2)
            .flat_map(|_| [one.call().unwrap(), other.call().unwrap()])
            .collect();
        assert!(one.call().is_none());
        assert!(other.call().is_none());
        let stranger = room.enter(Whose::User(8), false).unwrap();
        assert!(stranger.call().is_some());
        drop(calls);
        assert!(other.call().is_some());
    }
}
