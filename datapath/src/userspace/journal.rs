//! Connection records that outlive the process.
//!
//! A file of fixed slots, written in place by `pwrite`: what the kernel took is safe from
//! `kill -9`, and a reboot ends the connections anyway, so nothing is ever synced. Each slot has
//! two copies, written in turn; a copy that was torn has a wrong check sum, and the other counts.
//! The file is bound to the boot it was written in.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ao_engine::record::Record;
use nix::fcntl::{Flock, FlockArg};

const NAME: &str = "connections.journal";
const MAGIC: [u8; 8] = *b"ao-conns";
const VERSION: u32 = 1;

/// Header: magic, version, number of slots, boot ID (text), check sum.
const HEADER: usize = 64;
const BOOT_ID: usize = 36;

/// A copy: generation, length of the record (0: the slot is free), record, check sum.
const COPY: usize = 128;
const COPY_CONTENT: usize = COPY - 8;
const RECORD_AT: usize = 16;
const _: () = assert!(
    RECORD_AT + Record::LEN <= COPY_CONTENT,
    "a copy holds a record"
);
const SLOT: usize = 2 * COPY;

/// Why the journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another sidecar works with the same state directory.
    #[error("state directory {} is in use by another sidecar", .0.display())]
    InUse(PathBuf),
    /// The file cannot be made or read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A slot of the journal, owned by whoever owns the connection.
#[derive(Debug)]
pub(super) struct Slot {
    index: u32,
    /// Generation of the copy written last; odd ones stand first in the slot.
    generation: u64,
}

/// The open journal, shared by all workers.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    free: Mutex<Vec<Slot>>,
    _lock: Flock<File>,
}

impl Journal {
    /// Opens the journal in `directory` and reads back what an earlier process of this boot
    /// recorded. `slots` connections can be recorded, or as many as were found if that is more.
    pub(super) fn open(
        directory: &Path,
        slots: u32,
    ) -> Result<(Self, Vec<(Slot, Record)>), JournalError> {
        let path = directory.join(NAME);
        let failed = |source| JournalError::Io {
            path: path.clone(),
            source,
        };
        let lock = lock(directory)?;
        let boot_id = boot_id().map_err(failed)?;
        let records = read_back(&path, &boot_id).map_err(failed)?;

        let count = slots.max(u32::try_from(records.len()).unwrap_or(u32::MAX));
        let fresh = directory.join("connections.journal.new");
        let file = create(&fresh, &boot_id, count).map_err(failed)?;
        let mut slots = (0..count).map(|index| Slot {
            index,
            generation: 0,
        });
        let mut restored = Vec::with_capacity(records.len());
        // Records first: whichever side of a zip is asked first loses an item at the end.
        for (record, mut slot) in records.into_iter().zip(slots.by_ref()) {
            write(&file, &mut slot, Some(&record)).map_err(failed)?;
            restored.push((slot, record));
        }
        let free = Mutex::new(slots.rev().collect());
        fs::rename(&fresh, &path).map_err(failed)?;
        Ok((
            Self {
                file,
                free,
                _lock: lock,
            },
            restored,
        ))
    }

    /// Takes a free slot; `None` when all are taken.
    pub(super) fn allocate(&self) -> Option<Slot> {
        self.free().pop()
    }

    /// Puts a record on file. When it fails, the record before counts.
    pub(super) fn save(&self, slot: &mut Slot, record: &Record) -> io::Result<()> {
        write(&self.file, slot, Some(record))
    }

    /// Takes a record off the file and frees its slot. When that fails the slot stays taken, and
    /// after a restart the record is found to be of no socket.
    pub(super) fn forget(&self, mut slot: Slot) -> io::Result<()> {
        write(&self.file, &mut slot, None)?;
        self.free().push(slot);
        Ok(())
    }

    fn free(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, JournalError> {
    let path = directory.join("connections.lock");
    let failed = |source| JournalError::Io {
        path: path.clone(),
        source,
    };
    let file = private()
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => JournalError::InUse(directory.to_owned()),
        errno => failed(errno.into()),
    })
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn boot_id() -> io::Result<[u8; BOOT_ID]> {
    let text = fs::read("/proc/sys/kernel/random/boot_id")?;
    text.first_chunk()
        .copied()
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Makes a journal of `slots` free slots, its space reserved so that no later write can fail for
/// want of it.
fn create(path: &Path, boot_id: &[u8; BOOT_ID], slots: u32) -> io::Result<File> {
    let file = private().create(true).truncate(true).open(path)?;
    let length = HEADER as u64 + u64::from(slots) * SLOT as u64;
    let length = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    nix::fcntl::posix_fallocate(&file, 0, length)?;
    file.write_all_at(&header(boot_id, slots), 0)?;
    Ok(file)
}

fn header(boot_id: &[u8; BOOT_ID], slots: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&slots.to_le_bytes());
    header.extend_from_slice(boot_id);
    header.resize(HEADER - 8, 0);
    let sum = check_sum(0, &header);
    header.extend_from_slice(&sum.to_le_bytes());
    header
}

/// The records of the journal at `path`, if it is of this boot. A file that cannot be a journal
/// is moved aside.
fn read_back(path: &Path, boot_id: &[u8; BOOT_ID]) -> io::Result<Vec<Record>> {
    let contents = match fs::read(path) {
        Ok(contents) => contents,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Some((found, slots)) = contents.split_at_checked(HEADER).and_then(|(head, rest)| {
        let slots = u32::from_le_bytes(*head.get(12..)?.first_chunk()?);
        let found: &[u8; BOOT_ID] = head.get(16..)?.first_chunk()?;
        (head == header(found, slots)).then_some((found, rest))
    }) else {
        let aside = path.with_extension("journal.damaged");
        fs::rename(path, &aside)?;
        tracing::warn!(
            file = %path.display(),
            moved_to = %aside.display(),
            "the connection journal is damaged or not ours: it was moved aside, and live \
             sessions will be re-established",
        );
        return Ok(Vec::new());
    };
    if found != boot_id {
        return Ok(Vec::new());
    }
    let mut damaged = 0_u32;
    let records = (0_u64..)
        .zip(slots.chunks(SLOT))
        .filter_map(|(index, slot)| match read_slot(index, slot) {
            Ok(record) => record,
            Err(Damaged) => {
                damaged += 1;
                None
            }
        })
        .collect();
    if damaged > 0 {
        tracing::warn!(
            file = %path.display(),
            entries = damaged,
            "entries of the connection journal are damaged: their sessions will be \
             re-established",
        );
    }
    Ok(records)
}

/// A slot that was written, but of which no copy can be read.
struct Damaged;

fn read_slot(index: u64, slot: &[u8]) -> Result<Option<Record>, Damaged> {
    let newest = slot
        .chunks_exact(COPY)
        .filter_map(|copy| read_copy(index, copy))
        .max_by_key(|&(generation, _)| generation);
    match newest {
        Some((_, record)) => Ok(record),
        None if slot.iter().all(|&octet| octet == 0) => Ok(None),
        None => Err(Damaged),
    }
}

/// Generation and record of a copy; `None` when its check sum is wrong.
fn read_copy(index: u64, copy: &[u8]) -> Option<(u64, Option<Record>)> {
    let (content, sum) = copy.split_last_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != check_sum(index, content) {
        return None;
    }
    let generation = u64::from_le_bytes(*content.first_chunk()?);
    let length = u64::from_le_bytes(*content.get(8..)?.first_chunk()?);
    if length == 0 {
        return Some((generation, None));
    }
    let record = Record::decode(content.get(RECORD_AT..)?.first_chunk()?)?;
    Some((generation, Some(record)))
}

fn write(file: &File, slot: &mut Slot, record: Option<&Record>) -> io::Result<()> {
    let generation = slot.generation + 1;
    let length = if record.is_some() { Record::LEN } else { 0 };
    let mut copy = Vec::with_capacity(COPY);
    copy.extend_from_slice(&generation.to_le_bytes());
    copy.extend_from_slice(&(length as u64).to_le_bytes());
    if let Some(record) = record {
        copy.extend_from_slice(&record.encode());
    }
    copy.resize(COPY_CONTENT, 0);
    let sum = check_sum(u64::from(slot.index), &copy);
    copy.extend_from_slice(&sum.to_le_bytes());

    let second = if generation.is_multiple_of(2) {
        COPY as u64
    } else {
        0
    };
    let at = HEADER as u64 + u64::from(slot.index) * SLOT as u64 + second;
    file.write_all_at(&copy, at)?;
    slot.generation = generation;
    Ok(())
}

/// FNV-1a over a position and octets: finds torn and misplaced copies. It is no MAC; the file is
/// root's alone.
fn check_sum(position: u64, octets: &[u8]) -> u64 {
    position
        .to_le_bytes()
        .iter()
        .chain(octets)
        .fold(0xcbf2_9ce4_8422_2325, |sum, &octet| {
            (sum ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ao_engine::policy::ConnectionId;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    fn record(port: u16, sent: u64) -> Record {
        Record {
            connection: ConnectionId {
                domain: 0,
                interface: 0,
                local: Ipv4Addr::new(10, 0, 0, 1).into(),
                remote: Ipv4Addr::new(10, 0, 0, 2).into(),
                local_port: 179,
                remote_port: port,
            },
            local_isn: Some(1),
            remote_isn: Some(2),
            sent,
            received: 7,
            current_key: 3,
            rnext_key: 4,
            proven: true,
        }
    }

    fn reopen(directory: &Path) -> Vec<Record> {
        let (_, found) = Journal::open(directory, 4).unwrap();
        found.into_iter().map(|(_, record)| record).collect()
    }

    #[test]
    fn records_are_found_again() {
        let directory = tempfile::tempdir().unwrap();
        {
            let (journal, found) = Journal::open(directory.path(), 4).unwrap();
            assert!(found.is_empty());
            let mut first = journal.allocate().unwrap();
            let mut second = journal.allocate().unwrap();
            journal.save(&mut first, &record(1, 10)).unwrap();
            journal.save(&mut second, &record(2, 10)).unwrap();
            journal.save(&mut second, &record(2, 11)).unwrap();
            journal.forget(first).unwrap();
        }
        assert_eq!(reopen(directory.path()), [record(2, 11)]);
        assert_eq!(reopen(directory.path()), [record(2, 11)], "and once more");
    }

    #[test]
    fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        reopen(directory.path());
        let mode = fs::metadata(directory.path().join(NAME))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_one_process_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Journal::open(directory.path(), 4).unwrap();
        let second = Journal::open(directory.path(), 4);
        assert!(matches!(second, Err(JournalError::InUse(_))));
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path(), 2).unwrap();
        let first = journal.allocate().unwrap();
        assert!(journal.allocate().is_some());
        assert!(journal.allocate().is_none());
        journal.forget(first).unwrap();
        assert!(journal.allocate().is_some());
    }

    #[test]
    fn more_records_than_slots_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        {
            let (journal, _) = Journal::open(directory.path(), 8).unwrap();
            for port in 0..8 {
                let mut slot = journal.allocate().unwrap();
                journal.save(&mut slot, &record(port, 1)).unwrap();
            }
        }
        assert_eq!(Journal::open(directory.path(), 2).unwrap().1.len(), 8);
    }

    #[test]
    fn another_boot_starts_afresh() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let file = create(&path, &[b'x'; BOOT_ID], 4).unwrap();
        write(
            &file,
            &mut Slot {
                index: 0,
                generation: 0,
            },
            Some(&record(1, 1)),
        )
        .unwrap();
        assert!(reopen(directory.path()).is_empty());
    }

    #[test]
    fn a_foreign_file_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        fs::write(&path, b"something else").unwrap();
        assert!(reopen(directory.path()).is_empty());
        let aside = path.with_extension("journal.damaged");
        assert_eq!(fs::read(aside).unwrap(), b"something else");
    }

    /// One thing done to the journal.
    #[derive(Clone, Debug)]
    enum Step {
        Save(u16, u64),
        Forget(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..6_u16, any::<u64>()).prop_map(|(port, sent)| Step::Save(port, sent)),
            1 => (0..6_u16).prop_map(Step::Forget),
        ]
    }

    /// Does the steps; returns what should be on file, and everything that ever was.
    fn play(directory: &Path, steps: &[Step]) -> (HashMap<u16, Record>, Vec<Record>) {
        let (journal, _) = Journal::open(directory, 8).unwrap();
        let mut slots = HashMap::new();
        let (mut current, mut ever) = (HashMap::new(), Vec::new());
        for step in steps {
            match *step {
                Step::Save(port, sent) => {
                    let slot = slots
                        .entry(port)
                        .or_insert_with(|| journal.allocate().unwrap());
                    journal.save(slot, &record(port, sent)).unwrap();
                    current.insert(port, record(port, sent));
                    ever.push(record(port, sent));
                }
                Step::Forget(port) => {
                    if let Some(slot) = slots.remove(&port) {
                        journal.forget(slot).unwrap();
                        current.remove(&port);
                    }
                }
            }
        }
        (current, ever)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_saved_last_is_found(steps in prop::collection::vec(step(), 0..40)) {
            let directory = tempfile::tempdir().unwrap();
            let (current, _) = play(directory.path(), &steps);
            let found: HashMap<u16, Record> = reopen(directory.path())
                .into_iter()
                .map(|record| (record.connection.remote_port, record))
                .collect();
            prop_assert_eq!(found, current);
        }

        #[test]
        fn damage_never_yields_what_was_not_saved(
            steps in prop::collection::vec(step(), 1..40),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 0..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let (_, ever) = play(directory.path(), &steps);
            let path = directory.path().join(NAME);
            let mut contents = fs::read(&path).unwrap();
            for (at, flip) in flips {
                let at = at.index(contents.len());
                contents[at] ^= flip;
            }
            if let Some(cut) = cut {
                contents.truncate(cut.index(contents.len()));
            }
            fs::write(&path, contents).unwrap();
            for record in reopen(directory.path()) {
                prop_assert!(ever.contains(&record));
            }
        }

        /// The process dies within a write: the record before it counts.
        #[test]
        fn a_torn_copy_leaves_the_one_before(sent in any::<u64>(), written in 0..COPY) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(NAME);
            let (journal, _) = Journal::open(directory.path(), 1).unwrap();
            let mut slot = journal.allocate().unwrap();
            journal.save(&mut slot, &record(1, sent)).unwrap();
            let before = fs::read(&path).unwrap();
            journal.save(&mut slot, &record(1, sent ^ 1)).unwrap();
            let after = fs::read(&path).unwrap();
            drop(journal);
            let tear = HEADER + COPY + written;
            let torn = [&after[..tear], &before[tear..]].concat();
            fs::write(&path, &torn).unwrap();
            let expected = if torn == after { sent ^ 1 } else { sent };
            prop_assert_eq!(reopen(directory.path()), [record(1, expected)]);
        }
    }
}
