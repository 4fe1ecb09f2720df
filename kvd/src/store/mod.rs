//! The store on disk: what survives the daemon.
//!
//! Called by the engine alone. It knows caches, keys, records and sequences; no request and no socket. Nothing outside this
//! module names redb. In: [`Store::admit`], then [`Store::append`] under the engine's mutex, then perhaps
//! [`Store::wait_durable`]. Out: [`Store::read`], [`Store::snapshot_page`], [`Store::enumerate`].
//!
//! ```text
//! append ─► pending log (ring in a mapped file) ─ flush ─► journal (redb) ─ fold ─► tree (redb) ─ sweep
//!        └► overlay: the same changes in memory, until the fold is on stable storage
//! ```

mod append;
mod archive;
mod boots;
mod compact;
mod convert;
mod disk;
mod flusher;
mod fold;
mod marks;
mod options;
mod overlay;
mod pending;
mod record;
mod recovery;
mod replay;
mod restore;
mod scan;
mod shadow;
mod shared;
mod snapshot;
mod sweep;
mod tables;
mod trouble;
mod verify;

#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Instant;

use kv_proto::Version;
use kv_proto::wire::Durability;
use parking_lot::{Condvar, Mutex, RwLock};

pub use append::Permit;
pub use archive::{
    ArchiveCache, ArchiveCounts, ArchiveError, ArchiveItem, ArchiveReader, ArchiveRecord, ArchiveWriter,
};
pub use compact::{CompactionNews, OldFile};
pub use disk::Disk;
pub use options::{
    CacheId, CacheStamps, HEADROOM_BYTES, LogNumber, OpenError, Options, Recovered, RecoveredCache, Report,
    StoreError,
};
pub use record::{
    COMMIT_OVERHEAD_BYTES, Change, ItemFields, PUT_OVERHEAD_BYTES, RecordView, Scope, StoredItem,
    commit_bytes_max,
};
pub use restore::{RestoreError, Restored, restore};
pub use scan::{Enumerated, Enumeration, PageSource};
pub use shared::{Health, Hooks, Judgement};
pub use snapshot::{Snapshot, SnapshotCache, SnapshotItem};
pub use tables::FORMAT;
pub use verify::{Verified, verify};

use crate::clock::Clock;
use flusher::Flusher;
use shared::{Done, Gauges, Log, Shared, Work};

/// An open store.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    thread: Mutex<Option<mpsc::Receiver<Result<(), String>>>>,
}

/// Numbers of a store.
#[derive(Debug, Clone)]
pub struct Stats {
    /// How the disk is.
    pub health: Health,
    /// Records not yet flushed.
    pub pending_records: u64,
    /// Bytes of the pending log in use, of these and of lap ends.
    pub pending_bytes: u64,
    /// Size of the pending log.
    pub pending_bytes_max: u64,
    /// Records of the journal.
    pub journal_records: u64,
    /// Their bytes.
    pub journal_bytes: u64,
    /// Memory of the overlay, about.
    pub overlay_bytes: u64,
    /// Flushes since open.
    pub flushes: u64,
    /// Folds ended since open.
    pub folds: u64,
    /// Items folded since open.
    pub folded_items: u64,
    /// Passes of the sweep ended since open.
    pub sweeps: u64,
    /// Items the sweep dropped since open.
    pub swept_items: u64,
    /// Items evicted for disk budgets since open.
    pub evicted_items: u64,
    /// Failures of the disk since open.
    pub faults: u64,
    /// Bytes of keys and records in the tree, a cache.
    pub tree_bytes: Vec<(CacheId, u64)>,
    /// Caches that go on in memory only.
    pub dirty: Vec<CacheId>,
    /// Disk space of the redb file. (Its length is more: redb grows it by doubling and leaves the new part unwritten.)
    pub file_bytes: u64,
    /// Time of a flush, in microseconds.
    pub flush_us: hdrhistogram::Histogram<u64>,
    /// Records that one flush made durable together.
    pub flush_records: hdrhistogram::Histogram<u64>,
}

/// Flushes that take longer count as this: ten minutes, in microseconds.
const FLUSH_US_MAX: u64 = 600_000_000;
/// Flushes of more records count as this.
const FLUSH_RECORDS_MAX: u64 = 1 << 30;

/// A histogram of two digits. With bounds from the start: one that grows does so for `record` only, and `saturating_record` would
/// count everything as its first, tiny bound.
fn histogram_up_to(most: u64) -> hdrhistogram::Histogram<u64> {
    hdrhistogram::Histogram::new_with_bounds(1, most, 2).expect("the bounds are constants that fit")
}

impl Store {
    /// Opens the store and starts its flush thread.
    ///
    /// # Errors
    /// See [`OpenError`]; a refused store is left as it is.
    pub fn open(options: Options, clock: Clock, disk: Disk) -> Result<(Arc<Store>, Recovered), OpenError> {
        let dir = options.dir.clone();
        let (store, recovered, flusher) = Store::open_by_hand(options, &clock, disk)?;
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new().name("kvd-flush".to_owned()).spawn(move || {
            let _ = sender.send(flusher.run().map_err(|error| error.to_string()));
        });
        thread.map_err(|cause| OpenError::Io { doing: "starting the flush thread of", path: dir, cause })?;
        *store.thread.lock() = Some(receiver);
        Ok((store, recovered))
    }

    /// Opens the store and leaves the work of the flush thread to the caller.
    fn open_by_hand(
        options: Options,
        clock: &Clock,
        disk: Disk,
    ) -> Result<(Arc<Store>, Recovered, Flusher), OpenError> {
        let opened = recovery::open(&options, clock, &disk)?;
        let fixed = opened.fixed;
        let log = Log {
            head: fixed.mark,
            tail: fixed.mark.position,
            reserved_words: 0,
            sequence: opened.recovered.sequence_first - 1,
            appended: fixed.sequence,
            payload: Vec::new(),
            scratch: Vec::new(),
            dirty: Default::default(),
            unlogged_permits: 0,
            is_logging_again: false,
            durable_ever: opened.state.durable.clone(),
            durable_new: Default::default(),
            cache_first: fixed.cache_first,
            is_closed: false,
        };
        let gauges = Gauges::default();
        gauges.active_bytes.store(opened.layer.bytes as u64, Ordering::Relaxed);
        gauges.journal_bytes.store(opened.journal_bytes, Ordering::Relaxed);
        gauges.journal_bytes_active.store(opened.journal_bytes, Ordering::Relaxed);
        gauges.journal_records.store(opened.journal_records, Ordering::Relaxed);
        gauges.fold_permille.store(1_000, Ordering::Relaxed);
        gauges.sequence_limit.store(fixed.sequence_limit, Ordering::Relaxed);
        gauges.durable.store(fixed.mark.number, Ordering::Relaxed);
        let shared = Shared {
            options,
            clock: clock.clone(),
            disk,
            boots: Arc::new(opened.boots),
            ring: opened.ring,
            log: Mutex::new(log),
            room: Condvar::new(),
            generations: RwLock::new(opened.state.generations.clone()),
            overlay: RwLock::new(recovery::share(opened.layer)),
            done: Mutex::new(Done { durable: fixed.mark.number, ..Done::default() }),
            work: Mutex::new(Work::default()),
            wake: Condvar::new(),
            db: RwLock::new(Some(Arc::new(opened.db))),
            fault: Mutex::new(opened.fault),
            marks: Mutex::new(opened.marks),
            damaged: RwLock::new(opened.state.damaged.clone()),
            tree_bytes: Mutex::new(opened.state.tree_bytes.clone()),
            disk_bytes_max: Mutex::default(),
            hooks: RwLock::new(None),
            flush_us: Mutex::new(histogram_up_to(FLUSH_US_MAX)),
            flush_records: Mutex::new(histogram_up_to(FLUSH_RECORDS_MAX)),
            gauges,
        };
        let shared = Arc::new(shared);
        let flusher = Flusher::new(shared.clone(), fixed, opened.state.dropped);
        Ok((Arc::new(Store { shared, thread: Mutex::new(None) }), opened.recovered, flusher))
    }

    /// Gets room for a commit of at most `bytes` bytes (see [`commit_bytes_max`]) over `caches`. May wait, and may touch the
    /// disk: call it without the engine's mutex. Dropping the permit gives the room back.
    ///
    /// # Errors
    /// `TooLarge`; `Full` or `Failed` if the durability asked cannot be had (nothing was applied); `Timeout`; `Closed`.
    pub fn admit(
        &self,
        caches: &[CacheId],
        bytes: usize,
        durability: Durability,
        deadline: Instant,
    ) -> Result<Permit, StoreError> {
        self.shared.admit(caches, bytes, durability, deadline)
    }

    /// Logs a commit. Under the engine's mutex, before anything of it is published; in the order of the sequences.
    /// It neither waits nor fails nor enters the kernel. From here on it survives the death of this process.
    ///
    /// # Panics
    /// If the changes take more than was admitted.
    pub fn append(&self, permit: Permit, sequence: Version, changes: &[Change<'_>]) -> LogNumber {
        self.shared.append(permit, sequence, changes)
    }

    /// Waits until a commit is on stable storage.
    ///
    /// # Errors
    /// `Failed` (it may be durable all the same) or `Timeout` (it is applied, and will be durable if the disk lives).
    pub fn wait_durable(&self, number: LogNumber, deadline: Instant) -> Result<(), StoreError> {
        self.shared.wait_durable(number, deadline)
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// As [`Store::wait_durable`].
    pub fn sync(&self, deadline: Instant) -> Result<(), StoreError> {
        let head = self.shared.log.lock().head.number;
        self.shared.wait_durable(head, deadline)
    }

    /// The item of a key, by overlay and tree. The caller judges whether it is alive. Never under the engine's mutex.
    ///
    /// # Errors
    /// `Failed` if the disk fails, the item is damaged, or was lost with a broken disk.
    pub fn read(&self, cache: CacheId, key: &[u8]) -> Result<Option<StoredItem>, StoreError> {
        self.shared.read(cache, key)
    }

    /// The items of some keys of a cache, in order, as of now. Call it under the engine's mutex, so that it is of one moment;
    /// take the items outside.
    ///
    /// # Errors
    /// `Failed` if the disk fails; so may each item.
    pub fn snapshot_keys<'k>(
        &self,
        cache: CacheId,
        keys: &[&'k [u8]],
    ) -> Result<impl Iterator<Item = Result<Option<StoredItem>, StoreError>> + use<'k>, StoreError> {
        self.shared.keys(cache, keys)
    }

    /// Whether the overlay has something of a key: a newer state than the tree's.
    #[must_use]
    pub fn is_overlaid(&self, cache: CacheId, key: &[u8]) -> bool {
        self.shared.overlay.read().get(overlay::TreeKey::new(cache, key).as_slice()).is_some()
    }

    /// The newest record of the pending log: what [`Store::wait_durable`] waits for to have everything so far.
    #[must_use]
    pub fn head(&self) -> LogNumber {
        self.shared.log.lock().head.number
    }

    /// The items of a cache whose keys start with `prefix`, after `after`, at most about `keys_max`. Call it under the engine's
    /// mutex, so that it is of one moment; read it outside.
    ///
    /// # Errors
    /// `Failed` if the disk fails.
    pub fn snapshot_page(
        &self,
        cache: CacheId,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: usize,
    ) -> Result<PageSource, StoreError> {
        let begin = overlay::TreeKey::new(cache, after.unwrap_or(prefix));
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(begin.as_slice()),
            _before => Bound::Included(begin.as_slice()),
        };
        let first = overlay::TreeKey::new(cache, prefix);
        let from =
            if after.is_some_and(|after| after < prefix) { Bound::Included(first.as_slice()) } else { from };
        let end = scan::end_of(cache, prefix);
        self.shared.page(from, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded), keys_max)
    }

    /// Bytes of keys and records a cache has in the tree.
    #[must_use]
    pub fn tree_bytes(&self, cache: CacheId) -> u64 {
        self.shared.tree_bytes.lock().get(&cache).copied().unwrap_or(0)
    }

    /// Asks for all of the store as of one moment, soon; it comes when the fold under way has ended. It keeps space from being
    /// freed, so it must be dropped in a while.
    #[must_use]
    pub fn snapshot(&self) -> mpsc::Receiver<Result<Snapshot, StoreError>> {
        self.shared.wish_for_snapshot()
    }

    /// Asks for a compaction; what is received says how it goes. Dropping the receiver does not end it.
    #[must_use]
    pub fn compact(&self) -> mpsc::Receiver<CompactionNews> {
        self.shared.wish_for_compaction()
    }

    /// A step of the walk over all keys of all caches in key order, at most `keys_max`.
    ///
    /// # Errors
    /// `Failed` if the disk fails.
    pub fn enumerate(
        &self,
        after: Option<&(CacheId, Vec<u8>)>,
        keys_max: usize,
    ) -> Result<Enumeration, StoreError> {
        let begin = after.map(|(cache, key)| overlay::TreeKey::new(*cache, key));
        let from = begin.as_ref().map_or(Bound::Unbounded, |begin| Bound::Excluded(begin.as_slice()));
        let mut page = self.shared.page(from, Bound::Unbounded, keys_max)?;
        let mut keys = Vec::with_capacity(keys_max);
        while keys.len() < keys_max {
            let Some((cache, key, item)) = page.next()? else {
                let next = page.resume().map(|(cache, key)| (cache, key.to_vec()));
                return Ok(Enumeration { keys, next });
            };
            let version = record::generation_and_version(&item.bytes).1;
            keys.push(Enumerated { cache, key, version, bytes: item.bytes.len() });
        }
        let next = keys.last().map(|last| (last.cache, last.key.clone()));
        Ok(Enumeration { keys, next })
    }

    /// The keys of the overlay, newest first, at most `keys_max`: what to bring into memory first after a start.
    #[must_use]
    pub fn newest(&self, keys_max: usize) -> Vec<(CacheId, Vec<u8>)> {
        let (entries, _) =
            self.shared.overlay.read().copy_range(Bound::Unbounded, Bound::Unbounded, usize::MAX);
        let mut keys: Vec<_> = entries
            .into_iter()
            .filter(|(_, entry)| entry.record.is_some())
            .map(|(key, entry)| (entry.version, key))
            .collect();
        keys.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
        keys.truncate(keys_max);
        let split = |key: &[u8]| {
            let (cache, key) = overlay::split(key);
            (cache, key.to_vec())
        };
        keys.iter().map(|(_, key)| split(key)).collect()
    }

    /// A sign of life, for the next start to know how long the daemon was down. No system call.
    pub fn alive(&self) {
        self.shared.ring.set_alive(self.shared.clock.wall_ms(), self.shared.clock.now());
    }

    /// Tells how far sequence numbers are used, of commits that do not come here too; more are reserved in time. No wait.
    pub fn reserve(&self, sequence: Version) {
        let mut log = self.shared.log.lock();
        log.sequence = log.sequence.max(sequence);
    }

    /// Sequences below this are reserved on disk; going beyond could give one out twice after a crash.
    #[must_use]
    pub fn sequence_limit(&self) -> Version {
        self.shared.gauges.sequence_limit.load(Ordering::Relaxed)
    }

    /// Sets what the flush thread asks and tells the engine.
    pub fn set_hooks(&self, hooks: Hooks) {
        *self.shared.hooks.write() = Some(Arc::new(hooks));
    }

    /// Bounds the bytes a cache has in the tree; none lifts the bound.
    pub fn set_disk_bytes_max(&self, cache: CacheId, bytes_max: Option<u64>) {
        let mut budgets = self.shared.disk_bytes_max.lock();
        match bytes_max {
            Some(bytes_max) => budgets.insert(cache, bytes_max),
            None => budgets.remove(&cache),
        };
    }

    /// Asks for a fold and a whole pass of the sweep now; [`Hooks::swept`] tells when it is done.
    pub fn sweep_now(&self) {
        let appended = self.shared.log.lock().appended;
        self.shared.work.lock().sweep_for = Some(appended);
        self.shared.wake.notify_one();
    }

    /// Folds a journal beyond so many bytes, whatever its budget: what the next start has to replay. `None`: as configured.
    pub fn fold_beyond(&self, bytes: Option<u64>) {
        self.shared.work.lock().fold_beyond = bytes;
        self.shared.wake.notify_one();
    }

    /// How the disk is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Whether a cache goes on in memory only, its disk part void.
    #[must_use]
    pub fn is_dirty(&self, cache: CacheId) -> bool {
        self.shared.log.lock().dirty.contains(&cache)
    }

    /// Whether a cache ever took a durable write.
    #[must_use]
    pub fn has_durable(&self, cache: CacheId) -> bool {
        self.shared.log.lock().durable_ever.contains(&cache)
    }

    /// How often the flush thread has gone round: it does so even when there is nothing to do.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.shared.gauges.rounds.load(Ordering::Relaxed)
    }

    /// Numbers of now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let gauges = &self.shared.gauges;
        let get = |gauge: &std::sync::atomic::AtomicU64| gauge.load(Ordering::Relaxed);
        let durable = self.shared.done.lock().durable;
        let log = self.shared.log.lock();
        let (pending_records, used) = (log.head.number.saturating_sub(durable), log.head.position - log.tail);
        let dirty = log.dirty.iter().copied().collect();
        drop(log);
        Stats {
            health: self.shared.health(),
            pending_records,
            pending_bytes: used * 8,
            pending_bytes_max: self.shared.ring.capacity() * 8,
            journal_records: get(&gauges.journal_records),
            journal_bytes: get(&gauges.journal_bytes),
            overlay_bytes: get(&gauges.active_bytes) + get(&gauges.frozen_bytes),
            flushes: get(&gauges.flushes),
            folds: get(&gauges.folds),
            folded_items: get(&gauges.folded_items),
            sweeps: get(&gauges.sweeps),
            swept_items: get(&gauges.swept_items),
            evicted_items: get(&gauges.evicted_items),
            faults: get(&gauges.faults),
            tree_bytes: self.shared.tree_bytes.lock().iter().map(|(cache, bytes)| (*cache, *bytes)).collect(),
            dirty,
            file_bytes: std::fs::metadata(self.shared.options.dir.join(disk::STORE_FILE))
                .map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512),
            flush_us: self.shared.flush_us.lock().clone(),
            flush_records: self.shared.flush_records.lock().clone(),
        }
    }

    /// Gives the keys resident in memory to the clean stop, to be found by [`Store::load_resident`]. Before [`Store::close`].
    pub fn save_resident<'a>(&self, keys: impl Iterator<Item = (CacheId, &'a [u8])>) {
        self.shared.work.lock().resident = Some(scan::encode_resident(keys));
    }

    /// The keys that were resident at the last clean stop, in the order they were given. A hint: they may be gone.
    #[must_use]
    pub fn load_resident(&self) -> Vec<(CacheId, Vec<u8>)> {
        let Ok(db) = self.shared.database() else { return Vec::new() };
        match flusher::load_resident(&db) {
            Ok(bytes) => scan::decode_resident(&bytes),
            Err(error) => {
                tracing::warn!(%error, "the list of resident keys cannot be read");
                Vec::new()
            }
        }
    }

    /// Flushes what is pending, records that the stop was clean, and closes. Nothing is lost if it fails or is cut short: the
    /// next start replays.
    ///
    /// # Errors
    /// `Timeout`, or `Failed` with what the disk said.
    pub fn close(&self, deadline: Instant) -> Result<(), StoreError> {
        let Some(receiver) = self.thread.lock().take() else { return Ok(()) };
        self.shared.work.lock().must_stop = true;
        self.shared.wake.notify_one();
        let left = deadline.saturating_duration_since(self.shared.clock.instant());
        match receiver.recv_timeout(left) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(StoreError::Failed { maybe_applied: true, cause }),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(StoreError::Timeout),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(StoreError::Failed {
                maybe_applied: true,
                cause: "the flush thread has ended".to_owned(),
            }),
        }
    }
}

impl Drop for Store {
    /// A store that is not closed stops its thread after the last flush, without waiting for it.
    fn drop(&mut self) {
        self.shared.work.lock().must_stop = true;
        self.shared.wake.notify_one();
    }
}
