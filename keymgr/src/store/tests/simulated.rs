//! A disk that crashes where it is told to, and then has what a real one might have.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::disk::Disk;
use super::*;

/// What a device writes at once.
const SECTOR: usize = 512;

static ZEROS: [u8; 4096] = [0; 4096];

/// When the disk stops, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Never,
    /// The process is killed in that operation.
    Kill(u64),
    /// That operation and all later ones find the disk full, as far as they need room.
    Full(u64),
    /// That operation alone fails.
    Error(u64),
}

/// What a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The process alone has ended.
    Nothing,
    /// Power was lost: of what was not synced, any part is on disk.
    Power { seed: u64 },
}

type Inode = usize;

#[derive(Clone, Debug, Default)]
struct File {
    /// As processes see it.
    seen: Vec<u8>,
    /// As it is on disk for sure.
    synced: Vec<u8>,
    /// What happened since, in order.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Clone, Debug)]
enum Naming {
    Give(String, Inode),
    Take(String),
    Move(String, String),
}

#[derive(Clone, Debug)]
struct State {
    files: Vec<File>,
    seen: BTreeMap<String, Inode>,
    synced: BTreeMap<String, Inode>,
    pending: Vec<Naming>,
    failure: Failure,
    operations: u64,
    killed: bool,
}

/// Handles of one disk are clones of this.
#[derive(Clone, Debug)]
pub(super) struct Simulated(Arc<Mutex<State>>);

#[derive(Debug)]
struct Open {
    disk: Simulated,
    inode: Inode,
}

impl Simulated {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            files: Vec::new(),
            seen: BTreeMap::new(),
            synced: BTreeMap::new(),
            pending: Vec::new(),
            failure: Failure::Never,
            operations: 0,
            killed: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts operations from now on, and fails as told.
    pub(super) fn fail(&self, failure: Failure) {
        let mut state = self.state();
        state.operations = 0;
        state.failure = failure;
    }

    /// Operations since the last [`Self::fail`].
    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(super) fn killed(&self) -> bool {
        self.state().killed
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.state().seen.keys().cloned().collect()
    }

    /// Every octet on the disk, file by file, those without a name included.
    pub(super) fn contents(&self) -> Vec<Vec<u8>> {
        self.state()
            .files
            .iter()
            .map(|file| file.seen.clone())
            .collect()
    }

    /// The disk that the next boot finds.
    pub(super) fn after_crash(&self, loss: Loss) -> Self {
        let state = self.state();
        let mut random = match loss {
            Loss::Nothing => None,
            Loss::Power { seed } => Some(Random(seed)),
        };
        let files = state
            .files
            .iter()
            .map(|file| file.after_crash(random.as_mut()));
        let files: Vec<File> = files.collect();
        let names = match &mut random {
            None => state.seen.clone(),
            Some(random) => {
                let mut names = state.synced.clone();
                // A journal keeps the order of what it keeps.
                let kept = random.below(state.pending.len() as u64 + 1);
                let kept = usize::try_from(kept).unwrap();
                state.pending[..kept]
                    .iter()
                    .for_each(|change| change.apply(&mut names));
                names
            }
        };
        Self(Arc::new(Mutex::new(State {
            files,
            seen: names.clone(),
            // What a process left to the kernel may still be lost.
            synced: if random.is_some() {
                names
            } else {
                state.synced.clone()
            },
            pending: if random.is_some() {
                Vec::new()
            } else {
                state.pending.clone()
            },
            failure: Failure::Never,
            operations: 0,
            killed: false,
        })))
    }
}

impl State {
    /// Counts one operation; says how much of it is done.
    fn step(&mut self, needs_room: bool) -> io::Result<Done> {
        if self.killed {
            return Err(io::Error::other("the process was killed"));
        }
        self.operations += 1;
        match self.failure {
            Failure::Kill(at) if at == self.operations => {
                self.killed = true;
                Ok(Done::InPart)
            }
            Failure::Full(at) if needs_room && at <= self.operations => {
                Err(io::ErrorKind::StorageFull.into())
            }
            Failure::Error(at) if at == self.operations => Err(io::Error::other("the disk failed")),
            _ => Ok(Done::All),
        }
    }

    fn rename(&mut self, change: Naming) -> io::Result<()> {
        // In part is not at all: a folder's entry is changed as a whole.
        if self.step(matches!(change, Naming::Give(..)))? == Done::All {
            change.apply(&mut self.seen);
            self.pending.push(change);
        }
        self.alive()
    }

    /// Files without a name that have nothing in them need no room here.
    fn forget_empty(&mut self) {
        let Self { files, seen, .. } = self;
        for (inode, file) in files.iter_mut().enumerate() {
            let named = seen.values().any(|&named| named == inode);
            if !named && file.pending.is_empty() && is_empty(&file.seen) {
                *file = File::default();
            }
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.killed {
            return Err(io::Error::other("the process was killed"));
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
enum Done {
    All,
    InPart,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        match self {
            Self::Give(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Take(name) => {
                names.remove(name);
            }
            Self::Move(name, other) => {
                if let Some(inode) = names.remove(name) {
                    names.insert(other.clone(), inode);
                }
            }
        }
    }
}

/// `Vec::resize`, which takes its time when it is not optimised.
fn resize(octets: &mut Vec<u8>, len: usize) {
    octets.truncate(len);
    if octets.len() < len {
        let mut longer = vec![0; len];
        longer[..octets.len()].copy_from_slice(octets);
        *octets = longer;
    }
}

/// Whether there are only zeros.
pub(super) fn is_empty(octets: &[u8]) -> bool {
    octets
        .chunks(ZEROS.len())
        .all(|chunk| *chunk == ZEROS[..chunk.len()])
}

impl File {
    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.synced);
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }

    fn after_crash(&self, random: Option<&mut Random>) -> Self {
        let Some(random) = random else {
            return self.clone();
        };
        let mut octets = self.synced.clone();
        for change in &self.pending {
            change.apply_in_part(&mut octets, random);
        }
        Self {
            seen: octets.clone(),
            synced: octets,
            pending: Vec::new(),
        }
    }
}

impl Change {
    fn apply(&self, octets: &mut Vec<u8>) {
        match self {
            Self::Resize(len) => resize(octets, *len),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                resize(octets, octets.len().max(end));
                octets[*offset..end].copy_from_slice(data);
            }
        }
    }

    /// Each sector of each write is on disk or not, independent of all others.
    fn apply_in_part(&self, octets: &mut Vec<u8>, random: &mut Random) {
        match (self, random.below(3)) {
            (_, 0) => {}
            (_, 1) | (Self::Resize(_), _) => self.apply(octets),
            (Self::Write(offset, data), _) => {
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    if random.below(2) == 0 {
                        Self::Write(offset + n * SECTOR, sector.to_vec()).apply(octets);
                    }
                }
            }
        }
    }
}

/// Good enough to choose from; the same seed gives the same choices (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn failed(name: &str) -> impl FnOnce(io::Error) -> StoreError {
    let path = PathBuf::from(name);
    move |error| StoreError::io(&path, error)
}

impl Disk for Simulated {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn create(&self, name: &str) -> Result<Box<dyn StorageBackend>, StoreError> {
        let mut state = self.state();
        if state.seen.contains_key(name) {
            return Err(failed(name)(io::ErrorKind::AlreadyExists.into()));
        }
        let inode = state.files.len();
        state.files.push(File::default());
        let given = state.rename(Naming::Give(name.to_owned(), inode));
        given.map_err(failed(name))?;
        Ok(Box::new(Open {
            disk: self.clone(),
            inode,
        }))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn StorageBackend>>, StoreError> {
        let state = self.state();
        state.alive().map_err(failed(name))?;
        let inode = state.seen.get(name).copied();
        Ok(inode.map(|inode| -> Box<dyn StorageBackend> {
            Box::new(Open {
                disk: self.clone(),
                inode,
            })
        }))
    }

    fn same(&self, name: &str, other: &str) -> Result<bool, StoreError> {
        let state = self.state();
        let inode = state.seen.get(name);
        Ok(inode.is_some() && inode == state.seen.get(other))
    }

    fn link(&self, name: &str, second: &str) -> Result<(), StoreError> {
        let mut state = self.state();
        let inode = state.seen.get(name).copied();
        let inode = inode.ok_or_else(|| failed(name)(io::ErrorKind::NotFound.into()))?;
        let given = state.rename(Naming::Give(second.to_owned(), inode));
        given.map_err(failed(second))
    }

    fn rename(&self, name: &str, other: &str) -> Result<(), StoreError> {
        let moved = self
            .state()
            .rename(Naming::Move(name.to_owned(), other.to_owned()));
        moved.map_err(failed(name))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let taken = self.state().rename(Naming::Take(name.to_owned()));
        taken.map_err(failed(name))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.step(false).map_err(failed("folder"))? == Done::All {
            state.synced = state.seen.clone();
            state.pending.clear();
            state.forget_empty();
        }
        state.alive().map_err(failed("folder"))
    }
}

impl Open {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.state();
        let grows = match &change {
            Change::Write(offset, data) => offset + data.len(),
            Change::Resize(len) => *len,
        };
        let grows = grows > state.files[self.inode].seen.len();
        let done = state.step(grows)?;
        let file = &mut state.files[self.inode];
        match (done, change) {
            (Done::All, change) => file.change(change),
            // Torn where the process was killed.
            (Done::InPart, Change::Write(offset, mut data)) => {
                data.truncate(data.len() / 2);
                file.change(Change::Write(offset, data));
            }
            (Done::InPart, Change::Resize(_)) => {}
        }
        state.alive()
    }
}

impl StorageBackend for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.inode].seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let state = self.disk.state();
        let seen = state.files[self.inode].seen.get(offset..offset + out.len());
        out.copy_from_slice(seen.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Resize(usize::try_from(len).unwrap()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(
            usize::try_from(offset).unwrap(),
            data.to_vec(),
        ))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.step(false)? == Done::All {
            state.files[self.inode].sync();
        }
        state.alive()
    }
}
