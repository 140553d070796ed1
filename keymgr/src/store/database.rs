//! Tables of the store, and what is in a row.

use std::collections::BTreeMap;

use redb::{
    Database, Error, ReadTransaction, ReadableTable, TableDefinition, TableError, TableHandle,
    WriteTransaction,
};

use super::sealing::{Seal, SealedSecret, SealingKey};
use super::{Entry, Stored};
use crate::rollover::message::Instance;
use crate::secret::{Secret, SecretKind, SecretName};

/// Format of the tables. Whatever changes in them makes it another one.
pub(super) const FORMAT: u32 = 1;

/// Format, instance, and which key sealed the store.
const HEADER: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("header");
/// By name, the sealed record of a peer: the names of its secrets, and what the caller says.
const PEERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("peers");
/// By peer, generation and kind: a secret, sealed under a key of its own.
const SECRETS: TableDefinition<'_, (&str, u64, u8), &[u8]> = TableDefinition::new("secrets");
/// By peer, generation and kind: that key, sealed with the sealing key.
const SLOTS: TableDefinition<'_, (&str, u64, u8), &[u8]> = TableDefinition::new("slots");

const FORMAT_ROW: &str = "format";
const INSTANCE_ROW: &str = "instance";
const KEY_ROW: &str = "sealing key";
const CHECK_ROW: &str = "check";

/// Whose a database is.
pub(super) enum Owner {
    /// Ours.
    Us(Instance),
    /// Somebody else's.
    Stranger,
    /// Ours, in another format.
    Version(u32),
    /// Ours, sealed with another key.
    OtherKey,
}

/// What a save changes. What a row is bound to never changes, so rows can be copied as they are.
#[derive(Default)]
pub(super) struct Changes {
    /// Sealed records; `None` takes the peer away.
    peers: BTreeMap<String, Option<Vec<u8>>>,
    /// Secrets; `None` destroys one.
    secrets: BTreeMap<(String, SecretName), Option<SealedSecret>>,
    /// Whether a secret that is there now must be gone afterwards.
    pub(super) destroy: bool,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.secrets.is_empty()
    }
}

/// Reads and makes the rows of one store.
pub(super) struct Rows {
    pub(super) instance: Instance,
    key_id: [u8; 32],
    seal: Seal,
}

/// Whose the database is, and whether `key` opens it.
pub(super) fn owner(database: &Database, key: &SealingKey) -> Result<Owner, Error> {
    let transaction = redb::ReadableDatabase::begin_read(database)?;
    let header = match transaction.open_table(HEADER) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Ok(Owner::Stranger),
    };
    let row = |name| -> Result<Option<Vec<u8>>, Error> {
        Ok(header.get(name)?.map(|octets| octets.value().to_vec()))
    };
    match row(FORMAT_ROW)?.map(<[u8; 4]>::try_from) {
        Some(Ok(format)) if format == FORMAT.to_be_bytes() => {}
        Some(Ok(format)) => return Ok(Owner::Version(u32::from_be_bytes(format))),
        _ => return Ok(Owner::Stranger),
    }
    if row(KEY_ROW)?.as_deref() != Some(&key.id()) {
        return Ok(Owner::OtherKey);
    }
    let instance = row(INSTANCE_ROW)?.and_then(|octets| <[u8; 16]>::try_from(octets).ok());
    let instance = Instance(instance.ok_or_else(|| corrupt("it has no instance"))?);
    let check = row(CHECK_ROW)?.unwrap_or_default();
    match key
        .seal()
        .open(&place(instance, CHECK_ROW, "", None), &check)
    {
        Some(_) => Ok(Owner::Us(instance)),
        None => Err(corrupt("its header was changed")),
    }
}

impl Rows {
    pub(super) fn new(instance: Instance, key: &SealingKey) -> Self {
        Self {
            instance,
            key_id: key.id(),
            seal: key.seal(),
        }
    }

    /// Everything in the database, by name of the peer. Whatever does not fit is an error.
    pub(super) fn read(&self, database: &Database) -> Result<Vec<Stored>, Error> {
        let transaction = redb::ReadableDatabase::begin_read(database)?;
        let peers = transaction.open_table(PEERS)?;
        let tables = Sealed::open(&transaction)?;
        let mut all = Vec::new();
        let mut secrets = 0;
        for row in peers.iter()? {
            let (peer, record) = row?;
            let stored = self.stored(peer.value(), record.value(), &tables)?;
            secrets += stored.secrets.len() as u64;
            all.push(stored);
        }
        let rows = redb::ReadableTableMetadata::len(&tables.secrets)?;
        let slots = redb::ReadableTableMetadata::len(&tables.slots)?;
        if rows != secrets || slots != secrets {
            return Err(corrupt("it has secrets of no peer"));
        }
        Ok(all)
    }

    fn stored(&self, peer: &str, record: &[u8], tables: &Sealed) -> Result<Stored, Error> {
        let (names, meta) = self
            .record(peer, record)
            .ok_or_else(|| corrupt(format!("the record of peer {peer:?} was changed")))?;
        let mut secrets = Vec::with_capacity(names.len());
        for name in names {
            let secret = tables.get(peer, name)?.and_then(|sealed| {
                let opened = self
                    .seal
                    .open_secret(&self.of_secret(peer, name), &sealed)?;
                Some(Secret::new(&opened))
            });
            let secret = secret.ok_or_else(|| {
                let number = name.number;
                corrupt(format!(
                    "a secret of generation {number} of peer {peer:?} was changed"
                ))
            })?;
            secrets.push((name, secret));
        }
        Ok(Stored {
            peer: peer.to_owned(),
            meta,
            secrets,
        })
    }

    /// What must change so that each peer is as its entry says; a peer without one goes.
    pub(super) fn changes(
        &self,
        database: &Database,
        wanted: &BTreeMap<&str, Option<&Entry<'_>>>,
    ) -> Result<Changes, Error> {
        let transaction = redb::ReadableDatabase::begin_read(database)?;
        let peers = transaction.open_table(PEERS)?;
        let tables = Sealed::open(&transaction)?;
        let mut changes = Changes::default();
        for (&peer, entry) in wanted {
            let present = match peers.get(peer)? {
                Some(record) => Some(self.stored(peer, record.value(), &tables)?),
                None => None,
            };
            self.compare(peer, present.as_ref(), *entry, &mut changes)?;
        }
        Ok(changes)
    }

    fn compare(
        &self,
        peer: &str,
        present: Option<&Stored>,
        entry: Option<&Entry<'_>>,
        changes: &mut Changes,
    ) -> Result<(), Error> {
        let present_secrets: BTreeMap<SecretName, &Secret> = present
            .iter()
            .flat_map(|stored| &stored.secrets)
            .map(|(name, secret)| (*name, secret))
            .collect();
        let wanted_secrets: BTreeMap<SecretName, &Secret> = entry
            .iter()
            .flat_map(|entry| &entry.secrets)
            .copied()
            .collect();
        for &name in present_secrets.keys() {
            if !wanted_secrets.contains_key(&name) {
                changes.secrets.insert((peer.to_owned(), name), None);
                changes.destroy = true;
            }
        }
        for (&name, &secret) in &wanted_secrets {
            let former = present_secrets.get(&name);
            if former != Some(&secret) {
                let place = self.of_secret(peer, name);
                let sealed = self.seal.seal_secret(&place, secret.expose())?;
                changes
                    .secrets
                    .insert((peer.to_owned(), name), Some(sealed));
                changes.destroy |= former.is_some();
            }
        }
        let record = match (present, entry) {
            (None, None) => return Ok(()),
            (_, None) => None,
            (Some(stored), Some(entry))
                if stored.meta == entry.meta && present_secrets == wanted_secrets =>
            {
                return Ok(());
            }
            (_, Some(entry)) => {
                let plain = encode(wanted_secrets.keys().copied(), entry.meta)?;
                Some(self.seal.seal(&self.of_record(peer), &plain)?)
            }
        };
        changes.peers.insert(peer.to_owned(), record);
        Ok(())
    }

    /// Changes the database in one transaction. Destroys nothing: that is what [`Self::fill`] into
    /// another file is for.
    pub(super) fn commit(&self, database: &Database, changes: &Changes) -> Result<(), Error> {
        let transaction = database.begin_write()?;
        insert(&transaction, changes)?;
        Ok(transaction.commit()?)
    }

    /// Fills an empty database with what `from` has after the changes. Nothing that goes is ever
    /// written to it.
    pub(super) fn fill(
        &self,
        database: &Database,
        from: Option<&Database>,
        changes: &Changes,
    ) -> Result<(), Error> {
        let transaction = database.begin_write()?;
        self.write_header(&transaction)?;
        if let Some(from) = from {
            copy(
                &redb::ReadableDatabase::begin_read(from)?,
                &transaction,
                changes,
            )?;
        }
        insert(&transaction, changes)?;
        Ok(transaction.commit()?)
    }

    /// All slots, for a test that looks for them.
    #[cfg(test)]
    pub(super) fn slots(
        &self,
        database: &Database,
    ) -> Result<Vec<(String, SecretName, Vec<u8>)>, Error> {
        let tables = Sealed::open(&redb::ReadableDatabase::begin_read(database)?)?;
        let mut slots = Vec::new();
        for stored in self.read(database)? {
            for (name, _) in stored.secrets {
                let slot = tables.get(&stored.peer, name)?.map(|sealed| sealed.slot);
                slots.extend(slot.map(|slot| (stored.peer.clone(), name, slot)));
            }
        }
        Ok(slots)
    }

    /// Whether `slot` is one of that secret, for a test that tries all places.
    #[cfg(test)]
    pub(super) fn opens_slot(&self, peer: &str, name: SecretName, slot: &[u8]) -> bool {
        self.seal.open(&self.of_secret(peer, name), slot).is_some()
    }

    /// The secret that slot and sealed secret are of, if they are.
    #[cfg(test)]
    pub(super) fn opened(
        &self,
        peer: &str,
        name: SecretName,
        secret: &[u8],
        slot: &[u8],
    ) -> Option<Secret> {
        let sealed = SealedSecret {
            secret: secret.to_vec(),
            slot: slot.to_vec(),
        };
        let opened = self
            .seal
            .open_secret(&self.of_secret(peer, name), &sealed)?;
        Some(Secret::new(&opened))
    }

    fn write_header(&self, transaction: &WriteTransaction) -> Result<(), Error> {
        let check = self
            .seal
            .seal(&place(self.instance, CHECK_ROW, "", None), &[])?;
        let mut header = transaction.open_table(HEADER)?;
        header.insert(FORMAT_ROW, &FORMAT.to_be_bytes()[..])?;
        header.insert(INSTANCE_ROW, &self.instance.0[..])?;
        header.insert(KEY_ROW, &self.key_id[..])?;
        header.insert(CHECK_ROW, &check[..])?;
        Ok(())
    }

    /// Names of a peer's secrets, and what the caller said; `None` if somebody changed it.
    fn record(&self, peer: &str, sealed: &[u8]) -> Option<(Vec<SecretName>, Vec<u8>)> {
        let plain = self.seal.open(&self.of_record(peer), sealed)?;
        decode(&plain)
    }

    fn of_record(&self, peer: &str) -> Vec<u8> {
        place(self.instance, PEERS.name(), peer, None)
    }

    fn of_secret(&self, peer: &str, name: SecretName) -> Vec<u8> {
        place(self.instance, SECRETS.name(), peer, Some(name))
    }
}

/// What is sealed is bound to its place, so that rows cannot be exchanged: the store, the table,
/// the peer, and the secret's name.
fn place(instance: Instance, table: &str, peer: &str, secret: Option<SecretName>) -> Vec<u8> {
    let mut place = FORMAT.to_be_bytes().to_vec();
    place.extend(instance.0);
    for text in [table, peer] {
        place.extend((text.len() as u64).to_be_bytes());
        place.extend(text.as_bytes());
    }
    if let Some(name) = secret {
        place.extend(name.number.to_be_bytes());
        place.push(name.kind as u8);
    }
    place
}

/// A record: how many secrets (4 octets), for each its generation (8) and kind (1), and the rest
/// is the caller's.
fn encode(names: impl ExactSizeIterator<Item = SecretName>, meta: &[u8]) -> Result<Vec<u8>, Error> {
    let count = u32::try_from(names.len()).map_err(|_| Error::ValueTooLarge(names.len()))?;
    let mut record = count.to_be_bytes().to_vec();
    for name in names {
        record.extend(name.number.to_be_bytes());
        record.push(name.kind as u8);
    }
    record.extend(meta);
    Ok(record)
}

fn decode(record: &[u8]) -> Option<(Vec<SecretName>, Vec<u8>)> {
    let (count, mut rest) = record.split_first_chunk::<4>()?;
    let mut names = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (number, tail) = rest.split_first_chunk::<8>()?;
        let (&kind, tail) = tail.split_first()?;
        names.push(SecretName {
            number: u64::from_be_bytes(*number),
            kind: kind_of(kind)?,
        });
        rest = tail;
    }
    Some((names, rest.to_vec()))
}

fn kind_of(octet: u8) -> Option<SecretKind> {
    [SecretKind::Contribution, SecretKind::MasterKey]
        .into_iter()
        .find(|kind| *kind as u8 == octet)
}

type SealedTable = redb::ReadOnlyTable<(&'static str, u64, u8), &'static [u8]>;

/// The two tables that a secret is in.
struct Sealed {
    secrets: SealedTable,
    slots: SealedTable,
}

impl Sealed {
    fn open(transaction: &ReadTransaction) -> Result<Self, Error> {
        Ok(Self {
            secrets: transaction.open_table(SECRETS)?,
            slots: transaction.open_table(SLOTS)?,
        })
    }

    fn get(&self, peer: &str, name: SecretName) -> Result<Option<SealedSecret>, Error> {
        let row = (peer, name.number, name.kind as u8);
        let (Some(secret), Some(slot)) = (self.secrets.get(row)?, self.slots.get(row)?) else {
            return Ok(None);
        };
        Ok(Some(SealedSecret {
            secret: secret.value().to_vec(),
            slot: slot.value().to_vec(),
        }))
    }
}

/// Copies what the changes leave alone, sealed as it is.
fn copy(from: &ReadTransaction, to: &WriteTransaction, changes: &Changes) -> Result<(), Error> {
    let mut peers = to.open_table(PEERS)?;
    for row in from.open_table(PEERS)?.iter()? {
        let (peer, record) = row?;
        if !changes.peers.contains_key(peer.value()) {
            peers.insert(peer.value(), record.value())?;
        }
    }
    for table in [SECRETS, SLOTS] {
        let mut fresh = to.open_table(table)?;
        for row in from.open_table(table)?.iter()? {
            let (key, sealed) = row?;
            let (peer, number, kind) = key.value();
            let kind = kind_of(kind).ok_or_else(|| corrupt("it has a secret of unknown kind"))?;
            let secret = (peer.to_owned(), SecretName { number, kind });
            if !changes.secrets.contains_key(&secret) {
                fresh.insert(key.value(), sealed.value())?;
            }
        }
    }
    Ok(())
}

/// Inserts what is new or changed, and takes away peers.
fn insert(transaction: &WriteTransaction, changes: &Changes) -> Result<(), Error> {
    let mut peers = transaction.open_table(PEERS)?;
    let mut secrets = transaction.open_table(SECRETS)?;
    let mut slots = transaction.open_table(SLOTS)?;
    for (peer, record) in &changes.peers {
        match record {
            Some(record) => peers.insert(peer.as_str(), record.as_slice())?,
            None => peers.remove(peer.as_str())?,
        };
    }
    for ((peer, name), sealed) in &changes.secrets {
        if let Some(sealed) = sealed {
            let row = (peer.as_str(), name.number, name.kind as u8);
            secrets.insert(row, sealed.secret.as_slice())?;
            slots.insert(row, sealed.slot.as_slice())?;
        }
    }
    Ok(())
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::Corrupted(what.into())
}
