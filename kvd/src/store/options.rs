//! What a store is opened with, what it found, and how it fails.
//!
//! Callers: the engine, which builds [`Options`] from the configuration and maps [`OpenError`] to exit codes.
//! Nothing here touches a disk.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::limits::VALUE_BYTES_DEFAULT;

/// The number of a cache on disk. Given out once, never reused.
pub type CacheId = u32;

/// The number of a record of the pending log: gapless, from 1 on.
pub type LogNumber = u64;

/// What the disk must have free before a durable write is taken, unless configured, in bytes.
pub const HEADROOM_BYTES: u64 = 64 << 20;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that holds the store's files. Created with mode 0700 when missing.
    pub dir: PathBuf,
    /// Size of the pending log, in bytes; at least four of the largest commits whatever is said here.
    pub pending_bytes: usize,
    /// A fold starts when the journal, or what is kept of it in memory, passes this. At twice this writers wait.
    pub journal_bytes_max: u64,
    /// Memory redb may use for pages.
    pub redb_cache_bytes: usize,
    /// Longest time a write stays out of stable storage when nobody waits for it.
    pub flush_interval: Duration,
    /// Largest value that will ever be written.
    pub value_bytes_max: usize,
    /// Free bytes below which the disk counts as full.
    pub headroom_bytes: u64,
    /// Allows a proven corrupt store with durable writes to be set aside at start.
    pub set_aside: bool,
}

impl Options {
    /// The defaults for a store in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            pending_bytes: 64 << 20,
            journal_bytes_max: 64 << 20,
            redb_cache_bytes: 32 << 20,
            flush_interval: Duration::from_millis(100),
            value_bytes_max: VALUE_BYTES_DEFAULT,
            headroom_bytes: HEADROOM_BYTES,
            set_aside: false,
        }
    }

    /// Bytes of the pending log: as configured, but room for four of the largest commits.
    pub(super) fn log_bytes(&self) -> usize {
        let bytes = self.pending_bytes.max(4 * (self.value_bytes_max + (64 << 10)));
        bytes.next_multiple_of(4096)
    }
}

/// Why a store was not opened. The files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path} is in use by another process: stop that one, or choose another --dir")]
    Held {
        /// The file that is locked.
        path: PathBuf,
    },
    /// It may not be used as it is.
    #[error("{path}: {why}")]
    Permission {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// No room on the disk.
    #[error(
        "no space for the store in {path}: {needed_bytes} bytes are needed; free some, or choose another --dir"
    )]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// What has to be free.
        needed_bytes: u64,
    },
    /// Written by a later version.
    #[error(
        "{path} has format {found}, this version knows up to {known}: use the newer kvd again, or another --dir"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u64,
    },
    /// Written by an earlier version, and left half done by it.
    #[error(
        "{path} has format {found}, which is converted to {known} only after a clean stop: start and stop the version \
         that wrote it once more"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format of this version.
        known: u64,
    },
    /// Proven damage in a store that took durable writes.
    #[error(
        "{path} is damaged ({what}) and holds durable writes: restore a backup, or start with --set-aside to keep \
         the damaged files under another name and begin empty"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: String,
    },
    /// Sequence numbers are used up.
    #[error("sequence number {found} is beyond {limit}: this store cannot be written any more")]
    Sequence {
        /// What the next run would begin with.
        found: Version,
        /// The limit.
        limit: Version,
    },
    /// Anything else the system said.
    #[error("{doing} {path}: {cause}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// Why an operation on an open store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is full; nothing was applied.
    #[error("the disk of the store is full: free some space, writing resumes by itself")]
    Full,
    /// The disk failed.
    #[error("the store failed: {cause}")]
    Failed {
        /// Whether what was asked may have happened, or may yet happen, all the same.
        maybe_applied: bool,
        /// What the disk said.
        cause: String,
    },
    /// The deadline passed. Of a wait for durability: the write is applied and may become durable.
    #[error("the store did not get to it in time")]
    Timeout,
    /// The commit does not fit.
    #[error("the commit takes {bytes} bytes in the pending log, limit is {limit}")]
    TooLarge {
        /// What it takes.
        bytes: usize,
        /// A quarter of the log.
        limit: usize,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// A cache as recorded on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredCache {
    /// Its number.
    pub id: CacheId,
    /// Its name.
    pub name: String,
    /// What the engine recorded with it.
    pub settings: Vec<u8>,
    /// Whether it ever took a durable write.
    pub has_durable: bool,
}

/// The stamps of one cache: sequences of clears, 0 where there was none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheStamps {
    /// The cache.
    pub cache: CacheId,
    /// The last clear of everything.
    pub clear: Version,
    /// The last clear of everything to stale.
    pub stale: Version,
    /// Tag slots: slot, gone stamp, stale stamp.
    pub tags: Vec<(u32, Version, Version)>,
    /// Prefixes: prefix, gone stamp, stale stamp.
    pub prefixes: Vec<(Vec<u8>, Version, Version)>,
}

/// What was found at open.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The first sequence number this run may use.
    pub sequence_first: Version,
    /// The first free cache number.
    pub cache_first: CacheId,
    /// The caches recorded.
    pub caches: Vec<RecoveredCache>,
    /// Their stamps.
    pub stamps: Vec<CacheStamps>,
    /// Caches whose disk part was void because they went on in memory only; they are empty now.
    pub dirty: Vec<CacheId>,
    /// What to tell people.
    pub report: Report,
}

/// How the last run ended and what was replayed.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// There was no store.
    pub created: bool,
    /// The last run closed the store.
    pub clean: bool,
    /// The machine has not been restarted since.
    pub same_boot: bool,
    /// Time since the last sign of life of the last run.
    pub down_for: Duration,
    /// Journal records replayed.
    pub journal_records: u64,
    /// Their bytes.
    pub journal_bytes: u64,
    /// Records replayed from the pending log.
    pub pending_records: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Where a damaged store was put.
    pub set_aside: Option<PathBuf>,
    /// The wall clock was outside the plausible range and was ignored for sequence numbers.
    pub clock_ignored: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.set_aside {
            write!(f, "a damaged store was set aside as {}; ", path.display())?;
        }
        if self.created {
            return write!(f, "new store");
        }
        let end = match (self.clean, self.same_boot) {
            (true, _) => "clean stop",
            (false, true) => "unclean stop, nothing acknowledged is lost",
            (false, false) => "the machine went down: writes not yet flushed then are lost",
        };
        write!(
            f,
            "{end}; down for {:.1} s; replayed {} journal records ({} bytes) and {} pending records ({} bytes)",
            self.down_for.as_secs_f64(),
            self.journal_records,
            self.journal_bytes,
            self.pending_records,
            self.pending_bytes
        )?;
        if self.clock_ignored {
            write!(f, "; the wall clock is not plausible and was ignored for sequence numbers")?;
        }
        Ok(())
    }
}
