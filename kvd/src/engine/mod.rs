//! The engine: applies requests to memory and store, one change at a time, in one order.
//!
//! Called by `server` (a thread a connection), by `embedded`, and by nothing else. It knows no socket.
//! Its mutex is held for microseconds, never over disk or socket. The path of a request is the file list:
//! `apply` → `read` | `write` | `clear` | `scan` | `stats`; every change ends in `change`.

mod access;
mod apply;
mod attach;
mod backup;
mod cache;
mod change;
mod check;
mod clear;
mod clients;
mod compact;
mod create;
mod error;
mod fill;
mod handover;
mod heat;
mod item;
mod lease;
mod locks;
mod named;
mod open;
mod orders;
mod read;
mod scan;
mod side;
mod slow;
mod stats;
mod tidy;
mod transaction;
mod waiting;
mod warm;
mod watch;
mod work;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kv_proto::Version;
use kv_proto::segment::{Control, Geometry, ManyOutcome};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use apply::Applied;
pub use attach::Handed;
pub use clients::Caller;
pub use error::Failure;
pub(crate) use handover::{Ended, Estate, Inheritance, Inherited, Told};
pub use open::StartError;
pub use slow::Subject;

pub use crate::txn::{Park, Parked, ThreadPark, Unpark};

use crate::clock::Clock;
use crate::config::{Access, CacheConfig, Config};
use crate::lock::FileLock;
use crate::metrics::Metrics;
use crate::orders::Orders;
use crate::store::{CacheId, Store, StoreError};

pub use crate::store::LogNumber;
use crate::txn::{Locking, Locks, Number};
use cache::{Cache, Caches, Memory};
use lease::{Cooling, Holding};
use transaction::Transaction;

use crate::units::show_bytes;

/// The store is told this often how far sequences are used; it reserves far more at a time.
const RESERVE_EVERY: Version = 1 << 16;

/// The data of one directory, in memory and on disk.
pub struct Engine {
    config: Config,
    /// What of it can change while it serves.
    adjustable: ArcSwap<Adjustable>,
    orders: Arc<Orders>,
    clock: Clock,
    locking: &'static dyn Locking,
    store: Arc<Store>,
    control: Arc<Control>,
    caches: ArcSwap<Caches>,
    state: Mutex<State>,
    /// Woken when a prefix clear was retired, so that one that waits for room can go on.
    prefix_retired: Condvar,
    /// One cache is created at a time, outside the mutex: making a segment takes milliseconds.
    creating: Mutex<()>,
    /// No change is applied before this: nobody may read a dead daemon's memory behind a newer write.
    writable_from: Instant,
    closing: AtomicBool,
    /// Another process copies the segments: none is replaced meanwhile.
    handing_over: AtomicBool,
    /// Caches whose memory is to be another amount than what they inherited.
    resizes: Mutex<Vec<(CacheId, Geometry)>>,
    wake: Mutex<()>,
    wake_tidy: Condvar,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    run_id: u64,
    /// The newest segment's number.
    segments: AtomicU64,
    clients: Arc<clients::Clients>,
    watchers: Arc<watch::Watchers>,
    slow_log: slow::SlowLog,
    started: Instant,
    /// Caches to be written to disk again.
    rewrites: Mutex<Vec<CacheId>>,
    found: Mutex<open::Found>,
    /// One engine a directory; given up by `close`.
    lock: Mutex<Option<FileLock>>,
    metrics: Metrics,
}

/// What of the configuration a reload changes.
#[derive(Debug)]
struct Adjustable {
    memory_bytes: u64,
    access: Access,
    default: CacheConfig,
}

impl Adjustable {
    fn of(config: &Config) -> Adjustable {
        let Config { memory_bytes, access, default, .. } = config;
        Adjustable { memory_bytes: *memory_bytes, access: access.clone(), default: default.clone() }
    }
}

/// How far the engine was when it was looked at; see [`Engine::progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    rounds: u64,
    /// The newest change.
    pub sequence: Version,
}

/// What the mutex guards.
pub(crate) struct State {
    /// The newest sequence given away.
    sequence: Version,
    /// By [`Cache::slot`]; `None` once dropped.
    memories: Vec<Option<Memory>>,
    /// The newest cache number given away.
    cache_id: CacheId,
    /// Dropped caches that somebody still holds.
    dropped: Vec<Arc<Cache>>,
    /// Every prefix clear up to this sequence has left the tree.
    swept: Version,
    locks: Locks,
    cooling: Cooling,
}

impl State {
    fn memory(&mut self, cache: &Cache) -> &mut Memory {
        self.memories[cache.slot]
            .as_mut()
            .expect("a dropped cache keeps its memory until its last user is gone")
    }

    fn memory_ref(&self, cache: &Cache) -> &Memory {
        self.memories[cache.slot]
            .as_ref()
            .expect("a dropped cache keeps its memory until its last user is gone")
    }
}

/// One connection: who is behind it, and what it reuses from request to request.
pub struct Session {
    client: Option<clients::Client>,
    /// Where its thread waits for locks.
    park: Box<dyn Park>,
    transaction: Option<Box<Transaction>>,
    /// Leases and named locks, by number.
    held: BTreeMap<Number, Holding>,
    watching: Option<watch::Watching>,
    work: Option<work::Work>,
    buffer: Vec<u8>,
    keys: Vec<ManyOutcome>,
    /// For the client, beside the answer that is being made.
    handed: Option<Handed>,
}

impl Engine {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The next sequence. Never given twice, not even across crashes: the store has reserved it (I2).
    fn next_sequence(&self, state: &mut State) -> Version {
        state.sequence += 1;
        if state.sequence.is_multiple_of(RESERVE_EVERY) {
            self.store.reserve(state.sequence);
        }
        state.sequence
    }

    /// Waits until what `number` stands for is on stable storage.
    ///
    /// # Errors
    /// When the disk fails, is full, or does not answer by `deadline`.
    pub fn wait_durable(&self, number: LogNumber, deadline: Instant) -> Result<(), Failure> {
        self.store.wait_durable(number, deadline).map_err(Failure::from)
    }

    /// Names this run of the daemon; another one after a restart.
    #[must_use]
    pub fn run_id(&self) -> u64 {
        self.run_id
    }

    /// Whether it works: the heart beats, the mutex is to be had, the flush thread goes round. `None`: it does not, or not since
    /// `last`. Waits at most `within` for the mutex.
    #[must_use]
    pub fn progress(&self, last: Progress, within: Duration) -> Option<Progress> {
        let is_beating = self.control.is_live(self.clock.beat_ms());
        let sequence = self.state.try_lock_for(within)?.sequence;
        let rounds = self.store.rounds();
        (is_beating && rounds != last.rounds).then_some(Progress { rounds, sequence })
    }

    /// Whether its end has begun.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The clock that items live by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What is counted about its requests and connections.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Takes over what a running engine can of a configuration that holds together.
    ///
    /// # Errors
    /// When the caches there are have more memory than it gives; nothing is changed then.
    pub fn adjust(&self, config: &Config) -> Result<(), String> {
        // No cache is made meanwhile.
        let _creating = self.creating.lock();
        let used: u64 = self.caches.load().values().map(|cache| cache.config.memory_bytes).sum();
        if used > config.memory_bytes {
            let (used, limit) = (show_bytes(used), show_bytes(config.memory_bytes));
            return Err(format!("the caches there are have {used} of memory, limit is memory = {limit}"));
        }
        self.adjustable.store(Arc::new(Adjustable::of(config)));
        self.slow_log.set_threshold(config.slow_log_threshold);
        Ok(())
    }

    /// The configuration it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        use kv_proto::wire::ErrorKind;
        let message = error.to_string();
        match error {
            StoreError::Full => {
                Failure { retry_after_ms: 1_000, ..Failure::new(ErrorKind::StoreFull, message) }
            }
            StoreError::Failed { maybe_applied, .. } => Failure {
                maybe_applied,
                retry_after_ms: 1_000,
                ..Failure::new(ErrorKind::StoreFailed, message)
            },
            StoreError::Timeout => Failure {
                maybe_applied: true,
                retry_after_ms: 100,
                ..Failure::new(ErrorKind::Timeout, message)
            },
            StoreError::Closed => Failure::unavailable(message, 200),
            StoreError::TooLarge { .. } => Failure::new(ErrorKind::TooLarge, message),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("dir", &self.config.dir)
            .field("run_id", &self.run_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
