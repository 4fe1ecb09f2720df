//! The three locking modes: what each locks, and when. Everything else is common to them.

use super::{Mode, Resource};
use crate::store::CacheId;

/// A lock that has to be held.
pub(crate) type Need = (Resource, Mode);
/// Those that have to be held, in the order in which they are taken.
pub(crate) type Needs = Vec<Need>;

/// What an operation touches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touched<'a> {
    pub(crate) cache: CacheId,
    /// Whether the cache is on disk too.
    pub(crate) on_disk: bool,
    /// `None`: all of the cache.
    pub(crate) key: Option<&'a [u8]>,
}

impl Touched<'_> {
    fn cache(&self) -> Resource {
        Resource::Cache(self.cache)
    }

    /// The cache with intent and the key, or the whole cache.
    fn key_or_all(&self, intent: Mode, itself: Mode) -> Needs {
        match self.key {
            Some(key) => vec![(self.cache(), intent), (Resource::Key(self.cache, key.into()), itself)],
            None => vec![(self.cache(), itself)],
        }
    }
}

/// What a mode locks.
pub(crate) trait Locking: Send + Sync + std::fmt::Debug {
    /// As `--locking` says it.
    fn name(&self) -> &'static str;

    /// By a transaction that begins; `tries`: how often it was tried before.
    fn at_begin(&self, tries: u32) -> Needs;

    /// By a transaction that reads.
    fn to_read(&self, touched: Touched<'_>) -> Needs;

    /// By a transaction that writes.
    fn to_write(&self, touched: Touched<'_>) -> Needs;

    /// By a transaction that commits, beyond what it holds.
    fn at_commit(&self) -> Needs;

    /// By a write outside transactions.
    fn to_write_plainly(&self, touched: Touched<'_>) -> Needs;

    /// Whether a commit has to look whether everything it read is still so, because nothing kept it so.
    fn validates(&self) -> bool;
}

/// The mode of this name.
pub(crate) fn mode(which: crate::config::LockingMode) -> &'static dyn Locking {
    match which {
        crate::config::LockingMode::Database => &Database,
        crate::config::LockingMode::Key => &Key,
        crate::config::LockingMode::Optimistic => &Optimistic,
    }
}

/// One transaction at a time. Plain writes are kept out of the disk-backed caches while it lasts, and out of those `memory`
/// caches that it has touched.
#[derive(Debug)]
struct Database;

impl Database {
    fn inside(touched: Touched<'_>) -> Needs {
        if touched.on_disk { Vec::new() } else { vec![(touched.cache(), Mode::Exclusive)] }
    }
}

impl Locking for Database {
    fn name(&self) -> &'static str {
        "database"
    }

    fn at_begin(&self, _tries: u32) -> Needs {
        vec![(Resource::Database, Mode::Exclusive)]
    }

    fn to_read(&self, touched: Touched<'_>) -> Needs {
        Database::inside(touched)
    }

    fn to_write(&self, touched: Touched<'_>) -> Needs {
        Database::inside(touched)
    }

    fn at_commit(&self) -> Needs {
        Vec::new()
    }

    fn to_write_plainly(&self, touched: Touched<'_>) -> Needs {
        let what = if touched.on_disk { Resource::Database } else { touched.cache() };
        // Plain writes do not exclude each other: the engine's mutex orders them.
        vec![(what, Mode::IntentExclusive)]
    }

    fn validates(&self) -> bool {
        false
    }
}

/// Strict two-phase locking by key.
#[derive(Debug)]
struct Key;

impl Locking for Key {
    fn name(&self) -> &'static str {
        "key"
    }

    fn at_begin(&self, _tries: u32) -> Needs {
        Vec::new()
    }

    fn to_read(&self, touched: Touched<'_>) -> Needs {
        touched.key_or_all(Mode::IntentShared, Mode::Shared)
    }

    fn to_write(&self, touched: Touched<'_>) -> Needs {
        touched.key_or_all(Mode::IntentExclusive, Mode::Exclusive)
    }

    fn at_commit(&self) -> Needs {
        Vec::new()
    }

    fn to_write_plainly(&self, touched: Touched<'_>) -> Needs {
        self.to_write(touched)
    }

    fn validates(&self) -> bool {
        false
    }
}

/// Nothing is locked; a commit looks again ("On Optimistic Methods for Concurrency Control", Kung and Robinson, 1981).
/// Who lost too often has the database for itself.
#[derive(Debug)]
struct Optimistic;

/// Tries that failed before a transaction gets the database for itself.
const TRIES_BEFORE_ALONE: u32 = 5;

impl Locking for Optimistic {
    fn name(&self) -> &'static str {
        "optimistic"
    }

    fn at_begin(&self, tries: u32) -> Needs {
        if tries >= TRIES_BEFORE_ALONE { vec![(Resource::Database, Mode::Exclusive)] } else { Vec::new() }
    }

    fn to_read(&self, _touched: Touched<'_>) -> Needs {
        Vec::new()
    }

    fn to_write(&self, _touched: Touched<'_>) -> Needs {
        Vec::new()
    }

    fn at_commit(&self) -> Needs {
        vec![(Resource::Database, Mode::IntentExclusive)]
    }

    fn to_write_plainly(&self, _touched: Touched<'_>) -> Needs {
        self.at_commit()
    }

    fn validates(&self) -> bool {
        true
    }
}
