//! What is compared: a file each, behind two small traits.
//!
//! The parent reads [`Mechanism`]s off [`ALL`] and tells its children their names; each child opens one as a [`Worker`].
//! To add one, add a file here and its line in [`ALL`]. A mechanism must wait as its users let it wait, and must tell
//! [`Why`] something has to begin again instead of beginning again by itself, unless its own library does that.

mod bdb;
mod copy;
mod flock;
mod kvd;
mod lmdb;
mod redb;
mod slots;
mod sqlite;

use std::path::Path;

use crate::BenchError;
use crate::protocol::Shape;
pub(super) use crate::read::Key;

/// Everything that is compared, in the order of the tables.
pub(super) static ALL: [&dyn Mechanism; 11] = [
    &kvd::DATABASE,
    &kvd::KEY,
    &kvd::OPTIMISTIC,
    &bdb::CDS,
    &bdb::TDS,
    &flock::Flock,
    &copy::CopyOnRead,
    &lmdb::Lmdb,
    &sqlite::Sqlite,
    &redb::SINGLE_WRITER,
    &redb::MULTI_WRITER,
];

/// The one that tables call so.
pub(super) fn find(name: &str) -> Option<&'static dyn Mechanism> {
    ALL.into_iter().find(|mechanism| mechanism.name() == name)
}

/// What processes share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store<'a> {
    /// The directory, or the daemon's socket.
    pub(super) place: &'a Path,
    /// The form of keys and values.
    pub(super) shape: Shape,
    /// How many there are.
    pub(super) keys: u64,
    /// Whether whatever the mechanism has for the time after a crash is done first; nobody else has it open.
    pub(super) recover: bool,
}

impl Store<'_> {
    /// Length of all keys and values, generously.
    pub(super) fn item_bytes(self) -> usize {
        self.keys as usize * (self.shape.value_bytes as usize + 256)
    }
}

/// What a reader of the tables has to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    /// What tables call it.
    pub(super) name: &'static str,
    /// How it is set: durability, memory, who goes at a deadlock, how long it waits.
    pub(super) settings: &'static str,
}

/// A way for processes to share items.
pub(super) trait Mechanism: Sync {
    /// What a reader of the tables has to know.
    fn about(&self) -> About;

    /// What tables call it.
    fn name(&self) -> &'static str {
        self.about().name
    }

    /// Its version, or why it cannot be run and how to get it.
    fn version(&self) -> Result<String, String>;

    /// The locking mode of the daemon that holds the items, if it is one.
    fn locking(&self) -> Option<&'static str> {
        None
    }

    /// Makes an empty store in a fresh directory. Only for those where opening does not do it.
    fn create(&self, _store: Store<'_>) -> Result<(), BenchError> {
        Ok(())
    }

    /// Opens it in this process.
    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError>;
}

/// Why something has to begin again: somebody else was in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Chosen to resolve a deadlock.
    Deadlock,
    /// Something it had read has changed.
    Conflict,
    /// The lock was not to be had in time.
    Busy,
    /// Its lock was taken away because it was silent for too long.
    Lease,
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// To be begun again.
    Again(Why),
    /// The measurement ends here.
    Broken(BenchError),
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Failure {
        Failure::Broken(error)
    }
}

/// What sees the keys of a transaction and what is under them.
pub(super) type SeeKey<'a> = &'a mut dyn FnMut(Key<'_>, Option<&[u8]>) -> Result<(), Failure>;

/// Within one transaction.
pub(super) trait Inside {
    /// Reads a value into a buffer that is used again: whether there is one.
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure>;

    /// Reads several; for those who have a call for that.
    fn read_all(&mut self, keys: &[Key<'_>], see: SeeKey<'_>) -> Result<(), Failure> {
        let mut value = Vec::new();
        for &key in keys {
            let is_there = self.read(key, &mut value)?;
            see(key, is_there.then_some(&value))?;
        }
        Ok(())
    }

    /// Writes a value.
    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure>;
}

/// What is done within a transaction.
pub(super) type Work<'a> = &'a mut dyn FnMut(&mut dyn Inside) -> Result<(), Failure>;

/// What sees the items of a scan.
pub(super) type See<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), BenchError>;

/// A mechanism open in this process.
pub(super) trait Worker {
    /// Reads a value into a buffer that is used again: whether there is one.
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure>;

    /// Writes a value; afterwards every other process reads it.
    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure>;

    /// Does the work as one transaction, or what the mechanism has instead of it. `Again` has been taken back already.
    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure>;

    /// Sees all items, as the mechanism lets a program walk over them.
    fn scan(&mut self, see: See<'_>) -> Result<(), Failure>;
}
