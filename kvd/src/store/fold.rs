//! The fold: moves what is journalled up to a flush into the tree, and then removes those journal records.
//!
//! Run by the flush thread in chunks, between flushes. The order is what makes a crash harmless anywhere: first the stamps and
//! the list of caches, then the items in key order, then the journal records from the oldest on, and only when the removal is
//! on stable storage does the frozen layer go. Until then replaying the journal gives the same state again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{ReadableTable, WriteTransaction};

use super::flusher::{Flusher, Sync};
use super::options::CacheId;
use super::overlay::{Entry, Layer, split};
use super::record::{generation_and_version, view};
use super::tables::{CACHES, JOURNAL, STATE, StateKey, TREE, merge_stamps, put_number, row};

/// What was folded without sync at most; bounds the pages redb must keep for a rollback.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;
/// Entries between two looks at the clock.
const ENTRIES_A_LOOK: usize = 16;

/// A fold under way.
#[derive(Debug)]
pub(super) struct Fold {
    layer: Arc<Layer>,
    /// The last flush whose records it removes.
    upto: u64,
    stage: Stage,
    unsynced_bytes: u64,
    items: usize,
}

#[derive(Debug, Clone)]
enum Stage {
    Stamps,
    Items { after: Option<Box<[u8]>> },
    Journal,
}

/// What a chunk folded.
struct Folded {
    /// The last key, if there are more.
    last: Option<Box<[u8]>>,
    bytes: u64,
    items: usize,
}

impl Fold {
    pub(super) fn new(layer: Arc<Layer>, upto: u64) -> Fold {
        Fold { layer, upto, stage: Stage::Stamps, unsynced_bytes: 0, items: 0 }
    }

    /// From the beginning: what was not synced is lost when redb is reopened.
    pub(super) fn restart(&mut self) {
        *self = Fold::new(self.layer.clone(), self.upto);
    }
}

impl Flusher {
    /// Swaps the layers. Under the log's lock, so that the frozen layer is exactly what the records up to the head say.
    pub(super) fn freeze(&mut self) {
        assert!(self.fold.is_none() && self.freezing.is_none(), "one fold at a time");
        self.unsettle();
        let log = self.shared.log.lock();
        let mut overlay = self.shared.overlay.write();
        let layer = Arc::new(std::mem::take(&mut overlay.active));
        let gauges = &self.shared.gauges;
        gauges.frozen_bytes.store(1 + layer.bytes as u64, Ordering::Relaxed);
        gauges.active_bytes.store(0, Ordering::Relaxed);
        gauges.journal_bytes_active.store(0, Ordering::Relaxed);
        gauges.fold_permille.store(0, Ordering::Relaxed);
        overlay.frozen = Some(layer);
        self.freezing = Some(log.head.number);
        self.frozen_sequence = log.appended;
        self.frozen_flush = self.fixed.flush;
    }

    /// Begins to fold the frozen layer, all of which is journalled now.
    pub(super) fn begin_fold(&mut self) {
        let layer = self.shared.overlay.read().frozen.clone().expect("freeze put it there");
        let swap = self.freezing.take().expect("freeze came first");
        assert!(
            self.fixed.mark.number >= swap,
            "what is folded is journalled, or a crash loses what the fold overwrites"
        );
        self.fold = Some(Fold::new(layer, self.frozen_flush));
    }

    /// One chunk.
    pub(super) fn fold_chunk(&mut self) -> Result<(), redb::Error> {
        let Some(mut fold) = self.fold.take() else { return Ok(()) };
        let result = self.fold_some(&mut fold);
        match result {
            Ok(true) => {
                self.end_fold();
                Ok(())
            }
            Ok(false) => {
                self.fold = Some(fold);
                Ok(())
            }
            Err(error) => {
                self.fold = Some(fold);
                Err(error)
            }
        }
    }

    fn fold_some(&mut self, fold: &mut Fold) -> Result<bool, redb::Error> {
        // Removal is made durable at once in the same transaction that ends it; whether it ends is known only there.
        let mut txn = self.begin(Sync::Later)?;
        let next = match &fold.stage {
            Stage::Stamps => {
                self.fold_stamps(&txn, &fold.layer)?;
                Some(Stage::Items { after: None })
            }
            Stage::Items { after } => {
                let folded = self.fold_items(&txn, &fold.layer, after.as_deref())?;
                fold.unsynced_bytes += folded.bytes;
                fold.items += folded.items;
                Some(folded.last.map_or(Stage::Journal, |after| Stage::Items { after: Some(after) }))
            }
            Stage::Journal => {
                let has_more = self.remove_journal(&txn, fold.upto)?;
                has_more.then_some(Stage::Journal)
            }
        };
        let sync = if next.is_none() || fold.unsynced_bytes > UNSYNCED_BYTES_MAX {
            Sync::Durable
        } else {
            Sync::Later
        };
        if sync == Sync::Durable {
            txn.set_durability(redb::Durability::Immediate)?;
            txn.set_quick_repair(true);
            fold.unsynced_bytes = 0;
        }
        self.commit(txn, sync)?;
        let folded = (fold.items * 1_000 / fold.layer.map.len().max(1)).min(1_000);
        self.shared.gauges.fold_permille.store(folded as u64, Ordering::Relaxed);
        {
            let _log = self.shared.log.lock();
            self.shared.room.notify_all();
        }
        match next {
            Some(stage) => {
                fold.stage = stage;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    fn fold_stamps(&mut self, txn: &WriteTransaction, layer: &Layer) -> Result<(), redb::Error> {
        let mut state = txn.open_table(STATE)?;
        for (cache, stamps) in &layer.stamps {
            merge_stamps(&mut state, *cache, stamps)?;
        }
        let mut caches = txn.open_table(CACHES)?;
        for cache in &layer.dropped {
            caches.remove(cache)?;
            remove_state(&mut state, *cache)?;
            put_number(&mut state, *cache, StateKey::Dropped, 1)?;
            self.dropped.insert(*cache);
        }
        for (cache, cache_row) in &layer.created {
            caches.insert(cache, row(cache_row).as_slice())?;
        }
        Ok(())
    }

    /// Folds entries for a while.
    fn fold_items(
        &mut self,
        txn: &WriteTransaction,
        layer: &Layer,
        after: Option<&[u8]>,
    ) -> Result<Folded, redb::Error> {
        let begin = self.shared.clock.instant();
        let now = self.shared.clock.now();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut deltas: BTreeMap<CacheId, i64> = BTreeMap::new();
        let (mut bytes, mut items) = (0, 0);
        let mut last = None;
        let mut changed: Vec<Box<[u8]>> = Vec::new();
        {
            let mut tree = txn.open_table(TREE)?;
            for (key, entry) in layer.map.range::<[u8], _>((from, Bound::Unbounded)) {
                let (cache, _) = split(key);
                let delta = deltas.entry(cache).or_insert(0);
                let old = match self.record_to_fold(cache, layer, entry, now) {
                    Some(record) => {
                        bytes += record.len() as u64;
                        *delta += (key.len() + record.len()) as i64;
                        tree.insert(&**key, record)?
                    }
                    None => tree.remove(&**key)?,
                };
                if let Some(old) = old {
                    *delta -= (key.len() + old.value().len()) as i64;
                }
                if self.compaction.is_some() {
                    changed.push(Box::from(&**key));
                }
                items += 1;
                if items % ENTRIES_A_LOOK == 0
                    && self.shared.clock.instant().duration_since(begin) > self.chunk_time()
                {
                    last = Some(Box::from(&**key));
                    break;
                }
            }
        }
        self.note_changed(changed.iter().map(|key| &**key));
        self.count_bytes(txn, &deltas)?;
        self.shared.gauges.folded_items.fetch_add(items as u64, Ordering::Relaxed);
        Ok(Folded { last, bytes, items })
    }

    /// The record to put into the tree; none if the key is deleted, its item expired, or its cache's disk part void.
    fn record_to_fold<'a>(
        &self,
        cache: CacheId,
        layer: &Layer,
        entry: &'a Entry,
        now: i64,
    ) -> Option<&'a [u8]> {
        let record = entry.record.as_deref()?;
        let (generation, _) = generation_and_version(record);
        let is_void = generation != self.shared.generation(cache) || layer.dropped.contains(&cache);
        let is_over = !is_void && view(record, &self.shared.boots).is_over(now);
        (!is_void && !is_over).then_some(record)
    }

    /// Removes journal records up to `upto`, oldest first, for a while; says whether there are more.
    fn remove_journal(&self, txn: &WriteTransaction, upto: u64) -> Result<bool, redb::Error> {
        let begin = self.shared.clock.instant();
        let mut journal = txn.open_table(JOURNAL)?;
        let (mut bytes, mut records) = (0, 0);
        let has_more = loop {
            let is_due = journal.first()?.is_some_and(|(flush, _)| flush.value() <= upto);
            if !is_due {
                break false;
            }
            if let Some((_, record)) = journal.pop_first()? {
                bytes += record.value().len() as u64;
                records += 1;
            }
            if self.shared.clock.instant().duration_since(begin) > self.chunk_time() {
                break true;
            }
        };
        let gauges = &self.shared.gauges;
        let minus = |gauge: &std::sync::atomic::AtomicU64, by: u64| {
            gauge.store(gauge.load(Ordering::Relaxed).saturating_sub(by), Ordering::Relaxed);
        };
        minus(&gauges.journal_bytes, bytes);
        minus(&gauges.journal_records, records);
        Ok(has_more)
    }

    fn end_fold(&mut self) {
        let frozen = {
            let mut overlay = self.shared.overlay.write();
            overlay.frozen.take()
        };
        let gauges = &self.shared.gauges;
        gauges.frozen_bytes.store(0, Ordering::Relaxed);
        gauges.fold_permille.store(1_000, Ordering::Relaxed);
        gauges.folds.fetch_add(1, Ordering::Relaxed);
        self.sweep.folded_sequence = self.sweep.folded_sequence.max(self.frozen_sequence);
        {
            let _log = self.shared.log.lock();
            self.shared.room.notify_all();
        }
        // A large layer takes a while to free; it was taken out of the lock for that.
        drop(frozen);
    }
}

/// Removes the rows of a cache that is no more. Its number is never given out again.
fn remove_state(
    state: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    cache: CacheId,
) -> Result<(), redb::Error> {
    let of_cache = |key: &[u8], _value: &[u8]| StateKey::parse(key).is_none_or(|(owner, _)| owner != cache);
    state.retain(of_cache)?;
    Ok(())
}
