//! Disk trouble: a full disk, a failing disk, and the way back without a restart.
//!
//! Run by the flush thread. A full disk loses nothing: redb is reopened, its fixed row says whether the failed commit happened,
//! and the pending log holds the rest. After a failed sync the file cannot be believed any more, not even by reading it back
//! (the kernel marks unwritten pages clean), so a new one is filled from the overlay and from the old tree, item by item with
//! its checksum, and takes the old one's place. It must never acknowledge what only the old file may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redb::{Database, ReadableDatabase};

use super::disk::{Fault, STORE_FILE};
use super::flusher::{Flusher, Sync};
use super::options::CacheId;
use super::overlay::{Layer, split};
use super::pending::Mark;
use super::record::{check, decode, generation_and_version};
use super::recovery::{DRAFT_FILE, open_database};
use super::replay::{State, read_state};
use super::shared::Health;
use super::tables::{
    BOOTS, CACHES, FORMAT, Fixed, JOURNAL, META, META_FIXED, META_FORMAT, RESIDENT, STATE, StateKey, TREE,
    merge_stamps, put_fixed, put_number, row,
};

/// How often free space is asked for.
const SPACE_CHECK: Duration = Duration::from_millis(100);
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the old tree copied in one transaction.
const COPY_BYTES: usize = 8 << 20;

impl Flusher {
    /// Looks at the free space now and then; says whether there is too little, and then refuses durable writes.
    pub(super) fn is_space_short(&mut self) -> bool {
        let now = self.shared.clock.instant();
        if self.last_space_check.is_some_and(|last| now.duration_since(last) < SPACE_CHECK) {
            return false;
        }
        self.last_space_check = Some(now);
        if self.has_space() {
            return false;
        }
        tracing::warn!("the disk is full: durable writes are refused until there is space again");
        self.shared.log.lock().is_logging_again = false;
        self.tell_waiters("the disk is full");
        self.shared.set_health(Health::Full);
        true
    }

    fn has_space(&self) -> bool {
        let options = &self.shared.options;
        self.shared
            .disk
            .space(&options.dir)
            .is_ok_and(|(free, all)| free >= options.headroom_bytes.min(all / 20))
    }

    /// Everybody who waits hears that it may have happened.
    fn tell_waiters(&self, cause: &str) {
        let head = self.shared.log.lock().head.number;
        {
            let mut done = self.shared.done.lock();
            done.failed = head;
            cause.clone_into(&mut done.cause);
        }
        self.shared.wake_waiters();
    }

    /// An error of redb: it refuses everything from here on, so it is closed, and `heal` goes on.
    pub(super) fn fail(&mut self, cause: &str) {
        let fault = *self.shared.fault.lock().lock();
        let health = match fault {
            Some(Fault::Space) => Health::Full,
            Some(Fault::Suspect) | None => Health::Failed,
        };
        tracing::error!(cause, ?health, "the store failed");
        self.shared.gauges.faults.fetch_add(1, Ordering::Relaxed);
        self.shared.log.lock().is_logging_again = false;
        // Health first: a durable write admitted from here on is refused, those before are told.
        self.shared.done.lock().cause = cause.to_owned();
        self.shared.set_health(health);
        self.tell_waiters(cause);
        if let Some(db) = self.shared.db.write().take() {
            self.leaving = Some(db);
        }
        self.has_unsynced = false;
        self.abandon_compaction(cause);
        if let Some(fold) = &mut self.fold {
            fold.restart();
        }
    }

    /// One try at getting well; gives how long to wait for the next step.
    pub(super) fn heal(&mut self) -> Duration {
        if !self.has_left() {
            return Duration::from_millis(1);
        }
        match self.shared.health() {
            Health::Good => Duration::ZERO,
            Health::Full => match self.heal_full() {
                Ok(true) => self.well(),
                Ok(false) => SPACE_CHECK,
                Err(error) => {
                    tracing::error!(%error, "cannot reopen the store");
                    self.fail(&error.to_string());
                    SPACE_CHECK
                }
            },
            Health::Failed => match self.rebuild() {
                Ok(()) => self.well(),
                Err(error) => {
                    tracing::error!(%error, "cannot fill a new store");
                    REBUILD_PAUSE
                }
            },
        }
    }

    fn well(&mut self) -> Duration {
        self.shared.done.lock().failed = 0;
        self.shared.set_health(Health::Good);
        tracing::info!("the store works again");
        self.log_again();
        Duration::ZERO
    }

    /// Closes the database that failed once its last reader has left.
    fn has_left(&mut self) -> bool {
        match self.leaving.take().map(Arc::try_unwrap) {
            None | Some(Ok(_)) => true,
            Some(Err(shared)) => {
                self.leaving = Some(shared);
                false
            }
        }
    }

    fn heal_full(&mut self) -> Result<bool, redb::Error> {
        if self.shared.db.read().is_none() {
            self.reopen()?;
        }
        Ok(self.has_space())
    }

    /// Opens the same file again. Its fixed row decides whether the commit that failed happened.
    fn reopen(&mut self) -> Result<(), redb::Error> {
        let shared = self.shared.clone();
        let (db, fault) = open_database(&shared.disk, &shared.options, STORE_FILE, false)?;
        let (fixed, state, bytes, records) = read_back(&db)?;
        if fixed.mark.number < self.fixed.mark.number || fixed.flush < self.fixed.flush {
            return Err(redb::Error::Corrupted("the reopened store has lost flushes".to_owned()));
        }
        *shared.tree_bytes.lock() = state.tree_bytes;
        *shared.fault.lock() = fault;
        *shared.db.write() = Some(Arc::new(db));
        let durable: Vec<CacheId> = state.durable.into_iter().collect();
        self.flushed(fixed, 0, &durable);
        shared.gauges.journal_bytes.store(bytes, Ordering::Relaxed);
        shared.gauges.journal_records.store(records, Ordering::Relaxed);
        Ok(())
    }

    /// Records that what earlier generations of the dirty caches left on disk is void.
    fn persist_generations(&mut self) -> Result<(), redb::Error> {
        let dirty: Vec<CacheId> = self.shared.log.lock().dirty.iter().copied().collect();
        if dirty.is_empty() {
            return Ok(());
        }
        let txn = self.begin(Sync::Durable)?;
        {
            let mut state = txn.open_table(STATE)?;
            for cache in &dirty {
                put_number(
                    &mut state,
                    *cache,
                    StateKey::Generation,
                    u64::from(self.shared.generation(*cache)),
                )?;
            }
        }
        self.unsettle();
        self.commit(txn, Sync::Durable)
    }

    /// Logs dirty caches again once no write is under way that counts on their not being logged, and asks the engine to write down what it has of them.
    pub(super) fn log_again(&mut self) {
        {
            let mut log = self.shared.log.lock();
            log.is_logging_again = !log.dirty.is_empty();
            if log.dirty.is_empty() || log.unlogged_permits > 0 {
                return;
            }
        }
        if let Err(error) = self.persist_generations() {
            self.fail(&error.to_string());
            return;
        }
        let dirty = {
            let mut marks = self.shared.marks.lock();
            if marks.dirty.is_empty() {
                return;
            }
            // One marked since the generations were written stays marked until they are written again.
            let mut next = marks.clone();
            let recorded = self.recorded_generations();
            let dirty: Vec<CacheId> = marks
                .dirty
                .iter()
                .copied()
                .filter(|cache| recorded.get(cache) == Some(&self.shared.generation(*cache)))
                .collect();
            next.dirty.retain(|cache| !dirty.contains(cache));
            if let Err(error) = next.store(&self.shared.disk, &self.shared.options.dir) {
                tracing::error!(%error, "cannot unmark caches; they stay in memory only");
                return;
            }
            *marks = next;
            let mut log = self.shared.log.lock();
            log.dirty.retain(|cache| !dirty.contains(cache));
            log.is_logging_again = !log.dirty.is_empty();
            dirty
        };
        if let Some(hooks) = self.shared.hooks.read().clone() {
            for cache in dirty {
                (hooks.rewrite)(cache);
            }
        }
    }

    fn recorded_generations(&self) -> BTreeMap<CacheId, u32> {
        let read = || -> Result<State, redb::Error> {
            let txn = self.database()?.begin_read()?;
            read_state(&txn.open_table(STATE)?)
        };
        read().map(|state| state.generations).unwrap_or_default()
    }

    /// Fills a new file and puts it in the old one's place.
    fn rebuild(&mut self) -> Result<(), redb::Error> {
        let shared = self.shared.clone();
        {
            let mut marks = shared.marks.lock();
            marks.is_suspect = true;
            let mut next = marks.clone();
            if let Err(error) = next.store(&shared.disk, &shared.options.dir) {
                tracing::error!(%error, "cannot mark the store as suspect");
            } else {
                *marks = next;
            }
        }
        let (layer, mark) = self.freeze_all();
        shared.disk.remove(&shared.options.dir, DRAFT_FILE);
        let copied = self.copy_to_draft(&layer, mark)?;
        shared.disk.rename(&shared.options.dir, DRAFT_FILE, STORE_FILE).map_err(redb::Error::Io)?;
        *shared.tree_bytes.lock() = copied.tree_bytes;
        *shared.damaged.write() = copied.damaged;
        *shared.fault.lock() = copied.fault;
        *shared.db.write() = Some(Arc::new(copied.db));
        shared.overlay.write().frozen = None;
        self.fold = None;
        self.freezing = None;
        self.flushed(copied.fixed, 0, &copied.durable);
        self.sweep.folded_sequence = self.sweep.folded_sequence.max(self.frozen_sequence);
        let gauges = &shared.gauges;
        for gauge in [&gauges.journal_bytes, &gauges.journal_records, &gauges.frozen_bytes] {
            gauge.store(0, Ordering::Relaxed);
        }
        gauges.fold_permille.store(1_000, Ordering::Relaxed);
        let mut marks = shared.marks.lock();
        let mut next = marks.clone();
        next.is_suspect = false;
        next.store(&shared.disk, &shared.options.dir).map_err(redb::Error::Io)?;
        *marks = next;
        Ok(())
    }

    /// Both layers as one frozen one, and the newest record in it.
    fn freeze_all(&mut self) -> (Arc<Layer>, Mark) {
        let log = self.shared.log.lock();
        let mut overlay = self.shared.overlay.write();
        let active = std::mem::take(&mut overlay.active);
        let layer = match overlay.frozen.take() {
            None => active,
            Some(frozen) => {
                let mut layer = Layer::default();
                layer.merge(&frozen);
                layer.merge(&active);
                layer
            }
        };
        let layer = Arc::new(layer);
        overlay.frozen = Some(layer.clone());
        let gauges = &self.shared.gauges;
        gauges.active_bytes.store(0, Ordering::Relaxed);
        gauges.journal_bytes_active.store(0, Ordering::Relaxed);
        gauges.frozen_bytes.store(1 + layer.bytes as u64, Ordering::Relaxed);
        self.fold = None;
        self.freezing = Some(log.head.number);
        self.frozen_sequence = log.appended;
        (layer, log.head)
    }

    fn copy_to_draft(&mut self, layer: &Layer, mark: Mark) -> Result<Copied, redb::Error> {
        let shared = self.shared.clone();
        let (db, fault) = open_database(&shared.disk, &shared.options, DRAFT_FILE, false)?;
        let (old, _old_fault) = open_old(&shared)?;
        let old = old.begin_read()?;
        let mut state = read_state(&old.open_table(STATE)?)?;
        let mut copy = Copy { db: &db, deltas: BTreeMap::new() };
        copy.rows(&old)?;
        let lost = copy.tree(&old, &shared, layer, &state)?;
        copy.layer(layer, &shared)?;
        for (cache, stamps) in &layer.stamps {
            state.stamps.entry(*cache).or_default().merge(stamps);
        }
        let (durable, durable_new) = {
            let log = shared.log.lock();
            (log.durable_ever.clone(), log.durable_new.iter().copied().collect::<Vec<_>>())
        };
        // Caches that can lose items have lost some; the others say so at every miss.
        state.damaged.extend(lost.intersection(&durable));
        let mut fixed = self.fixed;
        fixed.mark = mark;
        fixed.flush += 1;
        let txn = copy.begin()?;
        {
            let mut table = txn.open_table(STATE)?;
            for (cache, stamps) in state.stamps.iter().filter(|(cache, _)| !layer.dropped.contains(cache)) {
                merge_stamps(&mut table, *cache, stamps)?;
            }
            for cache in &durable {
                put_number(&mut table, *cache, StateKey::Durable, 1)?;
            }
            for cache in &state.damaged {
                put_number(&mut table, *cache, StateKey::Damaged, 1)?;
            }
            for (cache, generation) in &state.generations {
                put_number(&mut table, *cache, StateKey::Generation, u64::from(*generation))?;
            }
            for (cache, bytes) in &copy.deltas {
                put_number(&mut table, *cache, StateKey::Bytes, *bytes)?;
            }
        }
        put_fixed(&txn, &fixed)?;
        txn.commit()?;
        let tree_bytes = copy.deltas;
        Ok(Copied { tree_bytes, fixed, fault, durable: durable_new, damaged: state.damaged, db })
    }
}

struct Copied {
    db: Database,
    fault: super::disk::FaultCell,
    fixed: Fixed,
    tree_bytes: BTreeMap<CacheId, u64>,
    damaged: BTreeSet<CacheId>,
    durable: Vec<CacheId>,
}

/// The old file, such that nothing is written to it.
fn open_old(shared: &super::shared::Shared) -> Result<(Database, super::disk::FaultCell), redb::Error> {
    let (backend, fault) =
        shared.disk.store_backend(&shared.options.dir, STORE_FILE).map_err(redb::Error::Io)?;
    let shadow = super::shadow::Shadow::new(backend)?;
    let db =
        Database::builder().set_cache_size(shared.options.redb_cache_bytes).create_with_backend(shadow)?;
    Ok((db, fault))
}

/// The fixed row, the state, and how much the journal holds.
fn read_back(db: &Database) -> Result<(Fixed, State, u64, u64), redb::Error> {
    let txn = db.begin_read()?;
    let meta = txn.open_table(META)?;
    let fixed = meta.get(META_FIXED)?.and_then(|found| decode::<Fixed>(found.value()));
    let fixed = fixed.ok_or_else(|| redb::Error::Corrupted("the fixed row is missing".to_owned()))?;
    let state = read_state(&txn.open_table(STATE)?)?;
    let (mut bytes, mut records) = (0, 0);
    for found in txn.open_table(JOURNAL)?.range::<u64>(..)? {
        bytes += found?.1.value().len() as u64;
        records += 1;
    }
    Ok((fixed, state, bytes, records))
}

/// Fills a new file.
struct Copy<'a> {
    db: &'a Database,
    deltas: BTreeMap<CacheId, u64>,
}

impl Copy<'_> {
    fn begin(&self) -> Result<redb::WriteTransaction, redb::Error> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(redb::Durability::Immediate)?;
        txn.set_quick_repair(true);
        Ok(txn)
    }

    /// The small tables, without which the rest means nothing: an error here gives up this try.
    fn rows(&self, old: &redb::ReadTransaction) -> Result<(), redb::Error> {
        let txn = self.begin()?;
        {
            txn.open_table(META)?.insert(META_FORMAT, row(&FORMAT).as_slice())?;
            txn.open_table(JOURNAL)?;
            txn.open_table(RESIDENT)?;
            txn.open_table(TREE)?;
            let mut boots = txn.open_table(BOOTS)?;
            for found in old.open_table(BOOTS)?.range::<u32>(..)? {
                let (number, boot) = found?;
                boots.insert(number.value(), boot.value())?;
            }
            let mut caches = txn.open_table(CACHES)?;
            for found in old.open_table(CACHES)?.range::<u32>(..)? {
                let (cache, cache_row) = found?;
                caches.insert(cache.value(), cache_row.value())?;
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// What can be read of the old tree and is not in the layer; gives the caches of which something could not be read.
    fn tree(
        &mut self,
        old: &redb::ReadTransaction,
        shared: &super::shared::Shared,
        layer: &Layer,
        state: &State,
    ) -> Result<BTreeSet<CacheId>, redb::Error> {
        let mut lost = BTreeSet::new();
        let mut all = old.open_table(TREE)?.range_owned::<&[u8]>(..)?;
        loop {
            let txn = self.begin()?;
            let mut bytes = 0;
            let mut is_end = false;
            {
                let mut tree = txn.open_table(TREE)?;
                while bytes < COPY_BYTES && !is_end {
                    match all.next() {
                        Some(Ok((tree_key, record))) => {
                            let (tree_key, record) = (tree_key.value(), record.value());
                            let (cache, key) = split(tree_key);
                            if !check(cache, key, record) {
                                lost.insert(cache);
                                continue;
                            }
                            let counts = generation_and_version(record).0 == shared.generation(cache);
                            let is_dropped = layer.dropped.contains(&cache) || state.dropped.contains(&cache);
                            if counts && !is_dropped && !layer.map.contains_key(tree_key) {
                                tree.insert(tree_key, record)?;
                                bytes += tree_key.len() + record.len();
                                *self.deltas.entry(cache).or_insert(0) +=
                                    (tree_key.len() + record.len()) as u64;
                            }
                        }
                        Some(Err(error)) => {
                            // Nobody knows which keys lay there.
                            tracing::error!(%error, "a part of the old store cannot be read");
                            lost.extend(state.tree_bytes.keys());
                            is_end = true;
                        }
                        None => is_end = true,
                    }
                }
            }
            txn.commit()?;
            if is_end {
                return Ok(lost);
            }
        }
    }

    fn layer(&mut self, layer: &Layer, shared: &super::shared::Shared) -> Result<(), redb::Error> {
        let txn = self.begin()?;
        {
            let mut caches = txn.open_table(CACHES)?;
            for cache in &layer.dropped {
                caches.remove(cache)?;
            }
            for (cache, cache_row) in &layer.created {
                caches.insert(cache, row(cache_row).as_slice())?;
            }
            let mut tree = txn.open_table(TREE)?;
            for (tree_key, entry) in &layer.map {
                let (cache, _) = split(tree_key);
                let Some(record) = &entry.record else { continue };
                let counts = generation_and_version(record).0 == shared.generation(cache);
                if counts && !layer.dropped.contains(&cache) {
                    tree.insert(&**tree_key, &**record)?;
                    *self.deltas.entry(cache).or_insert(0) += (tree_key.len() + record.len()) as u64;
                }
            }
        }
        txn.commit()?;
        Ok(())
    }
}
