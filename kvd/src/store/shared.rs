//! What the store's callers and its flush thread share, and the order of its locks.
//!
//! Locks, outer first: `marks` → `log` → `generations` → `overlay`; `done`, `work` and `db` are taken alone. Hooks are called with none
//! held: the engine takes its mutex in them, and holds it while it appends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use kv_proto::Version;
use parking_lot::{Condvar, Mutex, RwLock};
use redb::Database;

use super::append::NEVER_DURABLE;
use super::boots::Boots;
use super::disk::{Disk, FaultCell};
use super::marks::Marks;
use super::options::{CacheId, LogNumber, Options, StoreError};
use super::overlay::Overlay;
use super::pending::{Mark, Ring};
use super::record::RecordView;
use crate::clock::Clock;

/// What the sweep does with an item of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It lives.
    Keep,
    /// It is dead for ever: expired beyond its stale life, or cleared.
    Drop,
    /// A clear made it stale: it is rewritten as stale, so that the clear's entry can be retired.
    Stale,
}

type Judge = dyn Fn(CacheId, &[u8], &RecordView<'_>) -> Judgement + Send + Sync;
type Evict = dyn Fn(CacheId, &[u8], Version) -> bool + Send + Sync;
type Evicted = dyn Fn(CacheId, &[u8], Version) + Send + Sync;
type Swept = dyn Fn(Version) + Send + Sync;
type Rewrite = dyn Fn(CacheId) + Send + Sync;

/// What the flush thread asks and tells the engine. Called without any lock of the store.
pub struct Hooks {
    /// Whether an item of the tree is alive.
    pub judge: Box<Judge>,
    /// Whether an item may leave the disk because its cache is over its budget.
    pub evict: Box<Evict>,
    /// It has left, and no crash brings it back: its mark may go now. (Were the mark gone first, a delete would find nothing to
    /// log, and a crash could bring the item back after it.)
    pub evicted: Box<Evicted>,
    /// Everything up to this sequence is folded, and every item of the tree was judged since.
    pub swept: Box<Swept>,
    /// The disk has room again and the cache is logged again, but empty on disk: have somebody append what is in memory. Must
    /// not wait: room is made by the thread that calls this.
    pub rewrite: Box<Rewrite>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks")
    }
}

/// How the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// It works.
    Good = 0,
    /// It is full; durable writes are refused.
    Full = 1,
    /// It failed; the store is being rebuilt.
    Failed = 2,
}

/// The head of the pending log and what belongs to appending.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) head: Mark,
    /// Position from which records are still needed.
    pub(super) tail: u64,
    pub(super) reserved_words: u64,
    /// Newest sequence seen, of memory-only commits too.
    pub(super) sequence: Version,
    /// Newest sequence of a commit that came here.
    pub(super) appended: Version,
    pub(super) payload: Vec<u8>,
    pub(super) scratch: Vec<u8>,
    /// Caches that go on in memory only.
    pub(super) dirty: BTreeSet<CacheId>,
    /// Permits given out under which nothing is logged. Until they are gone the dirty caches stay so: a write that is in
    /// memory only must come before the engine writes down what it has.
    pub(super) unlogged_permits: usize,
    /// No more such permits: there is space again.
    pub(super) is_logging_again: bool,
    pub(super) durable_ever: BTreeSet<CacheId>,
    /// Of these, the ones not yet recorded.
    pub(super) durable_new: BTreeSet<CacheId>,
    pub(super) cache_first: CacheId,
    pub(super) is_closed: bool,
}

/// How far stable storage is.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) durable: LogNumber,
    /// Waiters up to here are told that the disk failed.
    pub(super) failed: LogNumber,
    pub(super) cause: String,
    pub(super) waiting: Vec<Waiter>,
}

/// A thread that waits until a record is on stable storage.
type Waiter = (LogNumber, std::thread::Thread);

/// What the flush thread is asked for.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) wanted: LogNumber,
    pub(super) must_stop: bool,
    /// Somebody waits for a pass begun after everything up to this sequence is folded.
    pub(super) sweep_for: Option<Version>,
    /// Who wants a snapshot.
    pub(super) snapshots: Vec<super::snapshot::Wish>,
    /// Who wants a compaction.
    pub(super) compactions: Vec<std::sync::mpsc::Sender<super::compact::CompactionNews>>,
    /// A journal beyond so many bytes is folded, whatever its budget.
    pub(super) fold_beyond: Option<u64>,
    /// Keys to record at the clean stop.
    pub(super) resident: Option<Vec<u8>>,
}

/// Numbers that are read without a lock.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) health: AtomicU8,
    /// Rounds of the flush thread.
    pub(super) rounds: AtomicU64,
    pub(super) sequence_limit: AtomicU64,
    /// As [`Done::durable`], to be read without its lock.
    pub(super) durable: AtomicU64,
    pub(super) active_bytes: AtomicU64,
    pub(super) frozen_bytes: AtomicU64,
    pub(super) journal_bytes: AtomicU64,
    pub(super) journal_records: AtomicU64,
    /// Of the journal, what was added since the layers were swapped.
    pub(super) journal_bytes_active: AtomicU64,
    /// Folded share of the frozen layer, 0..=1,000; 1,000 when no fold runs.
    pub(super) fold_permille: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) folds: AtomicU64,
    pub(super) folded_items: AtomicU64,
    pub(super) swept_items: AtomicU64,
    pub(super) evicted_items: AtomicU64,
    pub(super) sweeps: AtomicU64,
    pub(super) faults: AtomicU64,
    /// A read met an error: the flush thread looks at the fault.
    pub(super) read_failed: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) clock: Clock,
    pub(super) disk: Disk,
    pub(super) boots: Arc<Boots>,
    pub(super) ring: Ring,
    pub(super) log: Mutex<Log>,
    pub(super) room: Condvar,
    pub(super) generations: RwLock<BTreeMap<CacheId, u32>>,
    pub(super) overlay: RwLock<Overlay>,
    pub(super) done: Mutex<Done>,
    pub(super) work: Mutex<Work>,
    pub(super) wake: Condvar,
    pub(super) db: RwLock<Option<Arc<Database>>>,
    pub(super) fault: Mutex<FaultCell>,
    pub(super) marks: Mutex<Marks>,
    pub(super) damaged: RwLock<BTreeSet<CacheId>>,
    pub(super) tree_bytes: Mutex<BTreeMap<CacheId, u64>>,
    pub(super) disk_bytes_max: Mutex<BTreeMap<CacheId, u64>>,
    pub(super) hooks: RwLock<Option<Arc<Hooks>>>,
    pub(super) flush_us: Mutex<hdrhistogram::Histogram<u64>>,
    pub(super) flush_records: Mutex<hdrhistogram::Histogram<u64>>,
    pub(super) gauges: Gauges,
}

impl Shared {
    pub(super) fn health(&self) -> Health {
        match self.gauges.health.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::Full,
            _failed => Health::Failed,
        }
    }

    /// Changes the health and wakes whoever waits for room: what they wait for may not come.
    pub(super) fn set_health(&self, health: Health) {
        self.gauges.health.store(health as u8, Ordering::Release);
        {
            let _log = self.log.lock();
            self.room.notify_all();
        }
        self.wake_waiters();
    }

    /// The error for what the disk cannot do now.
    pub(super) fn unwell(&self, maybe_applied: bool) -> Option<StoreError> {
        match self.health() {
            Health::Good => None,
            Health::Full => Some(StoreError::Full),
            Health::Failed => {
                Some(StoreError::Failed { maybe_applied, cause: self.done.lock().cause.clone() })
            }
        }
    }

    pub(super) fn generation(&self, cache: CacheId) -> u32 {
        self.generations.read().get(&cache).copied().unwrap_or(0)
    }

    /// Whether writers may go on: what is not yet folded must not outgrow the fold. While one runs the second half of the
    /// budget is opened in step with it; without one, the fold is about to begin.
    pub(super) fn is_open(&self) -> bool {
        if self.health() != Health::Good {
            return true;
        }
        let budget = self.options.journal_bytes_max;
        let grown = self
            .gauges
            .active_bytes
            .load(Ordering::Relaxed)
            .max(self.gauges.journal_bytes_active.load(Ordering::Relaxed));
        let folded = self.gauges.fold_permille.load(Ordering::Relaxed);
        let is_folding = self.gauges.frozen_bytes.load(Ordering::Relaxed) > 0;
        let allowed = if is_folding { budget / 2 + budget / 2 * folded / 1_000 } else { budget + budget / 8 };
        grown <= allowed
    }

    /// Makes everything up to `number` wanted on stable storage and wakes the flush thread.
    pub(super) fn want(&self, number: LogNumber) {
        let mut work = self.work.lock();
        if work.wanted < number {
            work.wanted = number;
            self.wake.notify_one();
        }
    }

    /// Waits until `number` is on stable storage.
    ///
    /// Each waiter is woken by itself when its own flush is done: a condition variable would wake all of them into one mutex,
    /// those of the next flush too, which costs more than the flush.
    pub(super) fn wait_durable(&self, number: LogNumber, deadline: Instant) -> Result<(), StoreError> {
        if number == NEVER_DURABLE {
            return Err(StoreError::Failed { maybe_applied: true, cause: "the disk is full".to_owned() });
        }
        let mut is_listed = false;
        while self.gauges.durable.load(Ordering::Acquire) < number {
            let left = deadline.saturating_duration_since(self.clock.instant());
            {
                let mut done = self.done.lock();
                if done.durable >= number {
                    break;
                }
                if done.failed >= number || self.health() != Health::Good {
                    return Err(StoreError::Failed { maybe_applied: true, cause: done.cause.clone() });
                }
                let own = std::thread::current();
                if std::mem::replace(&mut is_listed, true) {
                    // Woken for another reason than the flush: perhaps still on the list.
                    done.waiting.retain(|(_, thread)| thread.id() != own.id());
                }
                if left.is_zero() {
                    return Err(StoreError::Timeout);
                }
                done.waiting.push((number, own));
            }
            self.want(number);
            std::thread::park_timeout(left);
        }
        Ok(())
    }

    /// Says that everything up to `number` is on stable storage, and wakes who waited for that.
    pub(super) fn set_durable(&self, number: LogNumber) {
        let mut done = self.done.lock();
        done.durable = done.durable.max(number);
        self.gauges.durable.store(done.durable, Ordering::Release);
        let durable = done.durable;
        let (woken, waiting) =
            std::mem::take(&mut done.waiting).into_iter().partition(|(n, _)| *n <= durable);
        done.waiting = waiting;
        drop(done);
        let woken: Vec<Waiter> = woken;
        woken.into_iter().for_each(|(_, thread)| thread.unpark());
    }

    /// Wakes all who wait for stable storage, to look again at how the disk is.
    pub(super) fn wake_waiters(&self) {
        let woken = std::mem::take(&mut self.done.lock().waiting);
        woken.into_iter().for_each(|(_, thread)| thread.unpark());
    }

    /// The database, unless it is being reopened.
    pub(super) fn database(&self) -> Result<Arc<Database>, StoreError> {
        let failed =
            || StoreError::Failed { maybe_applied: false, cause: "the store is being reopened".to_owned() };
        self.db.read().clone().ok_or_else(failed)
    }

    /// Notes an error of a read, and gives it as ours.
    pub(super) fn read_error(&self, error: &redb::Error) -> StoreError {
        self.gauges.read_failed.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        StoreError::Failed { maybe_applied: false, cause: error.to_string() }
    }
}
