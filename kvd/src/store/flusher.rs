//! The flush thread: the only writer of redb.
//!
//! It journals what is pending, one record and one durable commit a batch, and between flushes does the rest in chunks of a few
//! milliseconds: folds, the sweep, touching pages of the log ahead of the head. Nobody else may begin a write transaction.
//! Tests drive a [`Flusher`] by hand, so that a crash can be put between any two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kv_proto::Version;
use redb::{Database, ReadableDatabase, WriteTransaction};

use super::compact::Compaction;
use super::fold::Fold;
use super::options::{CacheId, LogNumber};
use super::pending::Mark;
use super::shared::{Health, Shared};
use super::sweep::Sweep;
use super::tables::{Fixed, JOURNAL, RESIDENT, STATE, StateKey, journal, put_fixed, put_number};

/// A flush takes no more records after this many bytes, or an eighth of a small journal: until it is committed, redb has them
/// in memory once more.
const FLUSH_BYTES_MAX: u64 = 8 << 20;
/// Most bytes of a row of the journal; a larger record goes alone. Just below a power of two, to which redb rounds what it
/// allocates in one piece, and small: large pieces are hard to find between the pages of the tree, and the file would grow.
const ROW_BYTES: usize = (1 << 20) - (4 << 10);
/// A chunk of background work ends after this long …
const CHUNK_TIME: Duration = Duration::from_millis(5);
/// … or this long, while somebody waits for flushes.
const CHUNK_TIME_WAITED: Duration = Duration::from_millis(2);
/// A flush was waited for within this time: somebody does.
const WAITED_RECENTLY: Duration = Duration::from_millis(50);
/// Nothing was appended for this long: what is journalled is folded.
const IDLE_BEFORE_FOLD: Duration = Duration::from_secs(1);
/// Reserved sequences are extended when less than this is left.
const SEQUENCE_MARGIN: u64 = 1 << 31;
/// Longest pause of the thread: bounds how late it sees what nobody woke it for.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    /// On stable storage, and the next open is quick.
    Durable,
    /// With the next durable one.
    Later,
}

/// The flush thread's own state.
#[derive(Debug)]
pub(super) struct Flusher {
    pub(super) shared: Arc<Shared>,
    pub(super) fixed: Fixed,
    /// The newest record a swap of layers took in, until its flush is done.
    pub(super) freezing: Option<LogNumber>,
    /// Every change up to this sequence is in the frozen layer or in the tree.
    pub(super) frozen_sequence: Version,
    /// The flush that took in the last record of the frozen layer.
    pub(super) frozen_flush: u64,
    pub(super) fold: Option<Fold>,
    pub(super) sweep: Sweep,
    pub(super) compaction: Option<Compaction>,
    pub(super) dropped: BTreeSet<CacheId>,
    /// A commit without sync waits for the next durable one.
    pub(super) has_unsynced: bool,
    /// A database that is to be closed when its last reader has left.
    pub(super) leaving: Option<Arc<Database>>,
    record: Vec<u8>,
    touched: u64,
    last_flush: Instant,
    last_waited: Instant,
    last_growth: (LogNumber, Instant),
    pub(super) last_space_check: Option<Instant>,
}

impl Flusher {
    pub(super) fn new(shared: Arc<Shared>, fixed: Fixed, dropped: BTreeSet<CacheId>) -> Flusher {
        let now = shared.clock.instant();
        Flusher {
            fixed,
            freezing: None,
            frozen_sequence: 0,
            frozen_flush: 0,
            fold: None,
            sweep: Sweep::new(now),
            compaction: None,
            dropped,
            has_unsynced: false,
            leaving: None,
            record: Vec::new(),
            touched: fixed.mark.position,
            last_flush: now,
            last_waited: now,
            last_growth: (fixed.mark.number, now),
            last_space_check: None,
            shared,
        }
    }

    /// The thread: works until told to stop, then closes the store.
    pub(super) fn run(mut self) -> Result<(), redb::Error> {
        loop {
            self.shared.gauges.rounds.fetch_add(1, Ordering::Relaxed);
            let pause = self.step();
            let mut work = self.shared.work.lock();
            if work.must_stop {
                drop(work);
                return self.finish();
            }
            let is_waited_for = work.wanted > self.fixed.mark.number && self.shared.health() == Health::Good;
            if !is_waited_for && !pause.is_zero() {
                self.shared.wake.wait_for(&mut work, pause);
            }
        }
    }

    /// One round of work; gives how long it may rest.
    pub(super) fn step(&mut self) -> Duration {
        if self.shared.health() != Health::Good {
            self.refuse_snapshots();
            self.abandon_compaction("the disk is in trouble");
            return self.heal();
        }
        if self.shared.gauges.read_failed.swap(false, Ordering::Relaxed)
            && self.shared.fault.lock().lock().is_some()
        {
            self.fail("a read failed");
            return Duration::ZERO;
        }
        if self.is_space_short() {
            return self.heal();
        }
        let has_dirty = !self.shared.log.lock().dirty.is_empty();
        if has_dirty {
            self.log_again();
        }
        if self.shared.health() != Health::Good {
            return Duration::ZERO;
        }
        match self.work() {
            Ok(pause) => pause,
            Err(error) => {
                self.fail(&error.to_string());
                Duration::ZERO
            }
        }
    }

    fn work(&mut self) -> Result<Duration, redb::Error> {
        let now = self.shared.clock.instant();
        // First, because a flush up to the swap may go beyond a head that was read before it.
        self.give_snapshots()?;
        let (head, position) = {
            let log = self.shared.log.lock();
            (log.head.number, log.head.position)
        };
        self.touch_ahead(position);
        if head != self.last_growth.0 {
            self.last_growth = (head, now);
        }
        if let Some(upto) = self.freezing {
            self.flush_upto(upto)?;
            self.begin_fold();
        }
        if self.is_flush_due(head, position, now) {
            self.flush(head)?;
        }
        let is_compacting = self.compact_some()?;
        if self.is_closing_compaction() {
            return Ok(Duration::ZERO);
        }
        if self.fold.is_some() {
            self.fold_chunk()?;
            self.evict_chunk()?;
            // Folds can follow each other for hours.
            self.sweep_step(now)?;
            return Ok(Duration::ZERO);
        }
        if self.evict_chunk()? {
            return Ok(Duration::ZERO);
        }
        if self.is_fold_due(now) {
            self.freeze();
            return Ok(Duration::ZERO);
        }
        let must_go_on = self.sweep_step(now)?;
        if self.has_unsynced && now.duration_since(self.last_flush) >= IDLE_BEFORE_FOLD {
            self.flush_now(head)?;
        }
        if must_go_on || is_compacting {
            return Ok(Duration::ZERO);
        }
        Ok(self.shared.options.flush_interval.clamp(Duration::from_millis(1), PAUSE_MAX))
    }

    fn is_flush_due(&mut self, head: LogNumber, position: u64, now: Instant) -> bool {
        let wanted = self.shared.work.lock().wanted;
        let is_waited_for = wanted > self.fixed.mark.number;
        let is_filling = position - self.fixed.mark.position > self.shared.ring.capacity() / 4;
        let is_late = now.duration_since(self.last_flush) >= self.shared.options.flush_interval;
        if is_waited_for {
            self.last_waited = now;
        }
        let is_new = head > self.fixed.mark.number || self.sequence_limit().is_some();
        is_new && (is_waited_for || is_filling || is_late)
    }

    fn is_fold_due(&self, now: Instant) -> bool {
        let (sweep_for, fold_beyond) = {
            let work = self.shared.work.lock();
            (work.sweep_for, work.fold_beyond)
        };
        if sweep_for.is_some_and(|sequence| self.sweep.folded_sequence < sequence) && !self.is_all_folded() {
            return true;
        }
        if self.does_compaction_settle() && !self.is_all_folded() {
            return true;
        }
        let gauges = &self.shared.gauges;
        let budget = self.shared.options.journal_bytes_max;
        let budget = fold_beyond.map_or(budget, |bytes| bytes.min(budget));
        let grown = gauges
            .active_bytes
            .load(Ordering::Relaxed)
            .max(gauges.journal_bytes_active.load(Ordering::Relaxed));
        if grown > budget {
            return true;
        }
        let is_idle = now.duration_since(self.last_growth.1) >= IDLE_BEFORE_FOLD;
        is_idle && gauges.journal_records.load(Ordering::Relaxed) > 0
    }

    /// The sequence limit to record, if the present one is near.
    fn sequence_limit(&self) -> Option<u64> {
        let sequence = self.shared.log.lock().sequence;
        (sequence + SEQUENCE_MARGIN > self.fixed.sequence_limit).then(|| sequence + 2 * SEQUENCE_MARGIN)
    }

    fn is_all_folded(&self) -> bool {
        let overlay = self.shared.overlay.read();
        overlay.active.is_empty() && overlay.frozen.is_none()
    }

    /// How long a chunk of background work may take now.
    pub(super) fn chunk_time(&self) -> Duration {
        let is_waited_for = self.shared.clock.instant().duration_since(self.last_waited) < WAITED_RECENTLY;
        if is_waited_for { CHUNK_TIME_WAITED } else { CHUNK_TIME }
    }

    fn touch_ahead(&mut self, position: u64) {
        let upto = position + self.shared.ring.capacity() / 4;
        if self.touched < upto {
            self.shared.ring.touch(self.touched.max(position), upto);
            self.touched = upto;
        }
    }

    /// Journals pending records up to `upto`, as many as one flush takes. Nothing pending is no work.
    pub(super) fn flush(&mut self, upto: LogNumber) -> Result<(), redb::Error> {
        let has_new = upto > self.fixed.mark.number || self.sequence_limit().is_some();
        if has_new { self.flush_now(upto) } else { Ok(()) }
    }

    /// Flushes until `upto` is on stable storage.
    pub(super) fn flush_upto(&mut self, upto: LogNumber) -> Result<(), redb::Error> {
        while self.fixed.mark.number < upto {
            self.flush(upto)?;
        }
        Ok(())
    }

    fn flush_now(&mut self, upto: LogNumber) -> Result<(), redb::Error> {
        let begin = self.shared.clock.instant();
        let durable_new: Vec<CacheId> = self.shared.log.lock().durable_new.iter().copied().collect();
        if !durable_new.is_empty() {
            self.mark_durable()?;
        }
        let mut fixed = self.fixed;
        fixed.sequence_limit = self.sequence_limit().unwrap_or(fixed.sequence_limit);
        {
            let log = self.shared.log.lock();
            fixed.sequence = log.sequence;
            fixed.cache_first = log.cache_first;
        }
        fixed.wall_ms = self.shared.clock.wall_ms();
        fixed.boot_ms = self.shared.clock.now();
        let txn = self.begin(Sync::Durable)?;
        let (flush, mark, bytes) = self.journal(&txn, upto)?;
        fixed.flush = flush;
        fixed.mark = mark;
        if !durable_new.is_empty() {
            let mut state = txn.open_table(STATE)?;
            for cache in &durable_new {
                put_number(&mut state, *cache, StateKey::Durable, 1)?;
            }
        }
        put_fixed(&txn, &fixed)?;
        self.commit(txn, Sync::Durable)?;
        // Before anybody is told that it is done: who asks then sees it counted.
        let records = fixed.mark.number - self.fixed.mark.number;
        let micros = self.shared.clock.instant().duration_since(begin).as_micros();
        self.shared.flush_us.lock().saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
        if records > 0 {
            self.shared.flush_records.lock().saturating_record(records);
        }
        self.flushed(fixed, bytes, &durable_new);
        self.last_flush = self.shared.clock.instant();
        Ok(())
    }

    /// Journals what is pending up to `upto`, as much as one flush takes, in rows of their own; gives the last row's number, the
    /// mark of the last record and the bytes. No flush reaches across the point where the layers were swapped: the fold
    /// removes whole rows, so none may hold what is not in the frozen layer.
    fn journal(&mut self, txn: &WriteTransaction, upto: LogNumber) -> Result<(u64, Mark, u64), redb::Error> {
        let mut mark = self.fixed.mark;
        let mut flush = self.fixed.flush;
        let mut bytes = 0;
        let upto = self.freezing.filter(|swap| mark.number < *swap).map_or(upto, |swap| upto.min(swap));
        let flush_bytes = (self.shared.options.journal_bytes_max / 8).min(FLUSH_BYTES_MAX);
        let mut journal = txn.open_table(JOURNAL)?;
        while mark.number < upto && bytes < flush_bytes {
            mark = self.gather(mark, upto);
            flush += 1;
            journal.insert(flush, self.record.as_slice())?;
            bytes += self.record.len() as u64;
        }
        self.record.shrink_to(ROW_BYTES);
        Ok((flush, mark, bytes))
    }

    /// Copies records after `mark` into `self.record`, as many as a row takes and at least one; gives the last one's mark.
    fn gather(&mut self, mut mark: Mark, upto: LogNumber) -> Mark {
        let begin = mark;
        journal::begin(&mut self.record);
        while mark.number < upto {
            let at = journal::open(&mut self.record);
            let next = self.shared.ring.read(mark, &mut self.record);
            let next =
                next.expect("records between tail and head are whole: they are ours until the tail moves");
            if self.record.len() > ROW_BYTES && mark != begin {
                self.record.truncate(at);
                break;
            }
            mark = next;
            journal::close(&mut self.record, at);
        }
        journal::end(&mut self.record);
        mark
    }

    /// Before the first durable write is acknowledged it is on record, outside redb, that there was one.
    fn mark_durable(&self) -> Result<(), redb::Error> {
        let mut marks = self.shared.marks.lock();
        if !marks.has_durable {
            let mut next = marks.clone();
            next.has_durable = true;
            next.store(&self.shared.disk, &self.shared.options.dir).map_err(redb::Error::Io)?;
            *marks = next;
        }
        Ok(())
    }

    /// Takes over what a flush has put on stable storage: frees the log and wakes who waits.
    pub(super) fn flushed(&mut self, fixed: Fixed, bytes: u64, durable_new: &[CacheId]) {
        let gauges = &self.shared.gauges;
        if fixed.flush > self.fixed.flush {
            gauges.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
            gauges.journal_records.fetch_add(fixed.flush - self.fixed.flush, Ordering::Relaxed);
            let is_of_frozen = self.freezing.is_some_and(|upto| fixed.mark.number <= upto);
            if !is_of_frozen {
                gauges.journal_bytes_active.fetch_add(bytes, Ordering::Relaxed);
            }
            gauges.flushes.fetch_add(1, Ordering::Relaxed);
        }
        // No flush crosses the swap, so the first to reach it ends there.
        if self.freezing.is_some_and(|swap| self.fixed.mark.number < swap && fixed.mark.number >= swap) {
            self.frozen_flush = fixed.flush;
        }
        gauges.sequence_limit.store(fixed.sequence_limit, Ordering::Relaxed);
        if fixed.sequence_limit != self.fixed.sequence_limit {
            self.shared.ring.set_sequence_limit(fixed.sequence_limit);
        }
        self.fixed = fixed;
        {
            let mut log = self.shared.log.lock();
            log.tail = fixed.mark.position;
            for cache in durable_new {
                log.durable_new.remove(cache);
            }
            self.shared.room.notify_all();
        }
        self.shared.set_durable(fixed.mark.number);
    }

    /// Begins a write transaction.
    pub(super) fn begin(&self, sync: Sync) -> Result<WriteTransaction, redb::Error> {
        let db = self.database()?;
        let mut txn = db.begin_write()?;
        match sync {
            Sync::Durable => {
                txn.set_durability(redb::Durability::Immediate)?;
                txn.set_quick_repair(true);
            }
            Sync::Later => txn.set_durability(redb::Durability::None)?,
        }
        Ok(txn)
    }

    pub(super) fn commit(&mut self, txn: WriteTransaction, sync: Sync) -> Result<(), redb::Error> {
        txn.commit()?;
        self.has_unsynced = sync == Sync::Later;
        Ok(())
    }

    pub(super) fn database(&self) -> Result<Arc<Database>, redb::Error> {
        self.shared.db.read().clone().ok_or(redb::Error::PreviousIo)
    }

    /// Changes the bytes a cache has in the tree, in the transaction that changes the tree.
    pub(super) fn count_bytes(
        &self,
        txn: &WriteTransaction,
        deltas: &BTreeMap<CacheId, i64>,
    ) -> Result<(), redb::Error> {
        let mut state = txn.open_table(STATE)?;
        let mut bytes = self.shared.tree_bytes.lock();
        for (cache, delta) in deltas {
            let now = bytes.entry(*cache).or_insert(0);
            *now = now.saturating_add_signed(*delta);
            put_number(&mut state, *cache, StateKey::Bytes, *now)?;
        }
        Ok(())
    }

    /// The last flush, the clean row, and a checked close. No fold: the next start replays.
    pub(super) fn finish(mut self) -> Result<(), redb::Error> {
        if self.shared.health() != Health::Good {
            self.heal();
        }
        let head = {
            let mut log = self.shared.log.lock();
            log.is_closed = true;
            self.shared.room.notify_all();
            log.head.number
        };
        self.refuse_snapshots();
        self.abandon_compaction("the daemon is stopping");
        self.flush_upto(head)?;
        let resident = self.shared.work.lock().resident.take();
        let txn = self.begin(Sync::Durable)?;
        if let Some(keys) = resident {
            super::scan::put_resident(&txn, &keys)?;
        }
        let mut fixed = self.fixed;
        fixed.is_clean = true;
        fixed.wall_ms = self.shared.clock.wall_ms();
        fixed.boot_ms = self.shared.clock.now();
        put_fixed(&txn, &fixed)?;
        self.commit(txn, Sync::Durable)?;
        let db = self.shared.db.write().take();
        let Some(mut db) = db else { return Ok(()) };
        let deadline = self.shared.clock.instant() + Duration::from_secs(1);
        loop {
            match Arc::try_unwrap(db) {
                Ok(db) => return Ok(db.close()?),
                Err(shared) if self.shared.clock.instant() < deadline => {
                    db = shared;
                    std::thread::yield_now();
                }
                // A reader that never lets go: everything is on stable storage, only the next open takes longer.
                Err(_shared) => return Ok(()),
            }
        }
    }
}

/// The keys recorded at the last clean stop, if the store is open.
pub(super) fn load_resident(db: &Database) -> Result<Vec<u8>, redb::Error> {
    let txn = db.begin_read()?;
    let mut keys = Vec::new();
    for found in txn.open_table(RESIDENT)?.range::<u32>(..)? {
        keys.extend_from_slice(found?.1.value());
    }
    Ok(keys)
}
