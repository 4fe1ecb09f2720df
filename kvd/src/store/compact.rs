//! Compaction without stopping: the live rows are copied into a new file, which then takes the old one's place.
//!
//! Run by the flush thread in chunks between flushes, so that nobody waits longer than for one chunk.
//!
//! 1. *Tree*: rows are copied in key order. What folds and the sweep change behind the cursor is noted and copied again.
//! 2. *Settle*: once more everything is folded, so that the journal is short.
//! 3. *Close*: no fold begins, nothing is swept; small tables and the journal are copied while flushes go on.
//! 4. The last rows of the journal and the fixed row go into the new file in one durable commit, and it is renamed. The rename is
//!    the commit point: before it the old file is the store, after it the new one, and both hold everything that was flushed.
//!
//! A crash leaves a draft, which the next start removes. Trouble with the draft ends the compaction and nothing else; trouble
//! with the store ends the compaction too.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, WriteTransaction};

use super::disk::{FaultCell, STORE_FILE};
use super::flusher::Flusher;
use super::recovery::{DRAFT_FILE, open_database};
use super::shared::{Health, Shared};
use super::tables::{
    BOOTS, CACHES, FORMAT, JOURNAL, META, META_FORMAT, RESIDENT, STATE, StateKey, TREE, put_fixed,
    put_number, row,
};

/// Bytes of a chunk at most: what one sync writes in some milliseconds.
const CHUNK_BYTES: usize = 256 << 10;
/// Rows between two looks at the clock.
const ROWS_A_LOOK: usize = 16;
/// A journal of at most this many bytes is copied as it is; a longer one is folded first.
const JOURNAL_BYTES_SHORT: u64 = 1 << 20;
/// So much of the journal may be left to the last step.
const LAST_ROWS_MAX: u64 = 4;
/// How often whoever asked hears how far it is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What whoever asked for a compaction hears.
#[derive(Debug)]
pub enum CompactionNews {
    /// How far it is, in bytes of keys and records.
    Progress {
        /// Copied.
        done: u64,
        /// Of about so many.
        total: u64,
    },
    /// The store is another file now.
    Done {
        /// Disk space before.
        bytes_before: u64,
        /// Disk space now.
        bytes_after: u64,
        /// The longest that a flush had to wait for it.
        pause: Duration,
        /// Drop it where nobody waits: it closes the old file.
        old: OldFile,
    },
    /// It did not come about; the store is as it was.
    Failed(String),
}

/// The file that was the store.
#[derive(Debug)]
pub struct OldFile {
    _db: Option<Arc<Database>>,
}

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Compaction {
    news: Sender<CompactionNews>,
    db: Database,
    fault: FaultCell,
    stage: Stage,
    /// Rows of the tree whose copies are not as they are any more.
    changed: BTreeSet<Box<[u8]>>,
    done: u64,
    total: u64,
    bytes_before: u64,
    pause: Duration,
    told: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// Rows up to here are copied.
    Tree(Option<Box<[u8]>>),
    /// Until more folds than these have ended.
    Settle(u64),
    /// Journal rows up to this one are copied; `None`: the small tables are not yet, either.
    Close(Option<u64>),
}

/// What a chunk does.
#[derive(Debug, Clone, Copy)]
enum Step {
    Changed,
    Tree,
    Settle(u64),
    Small,
    Journal(u64),
    Last(u64),
}

impl Compaction {
    fn next_step(&self, flush: u64) -> Step {
        match self.stage {
            _ if !self.changed.is_empty() => Step::Changed,
            Stage::Tree(_) => Step::Tree,
            Stage::Settle(folds) => Step::Settle(folds),
            Stage::Close(None) => Step::Small,
            Stage::Close(Some(upto)) if flush.saturating_sub(upto) > LAST_ROWS_MAX => Step::Journal(upto),
            Stage::Close(Some(upto)) => Step::Last(upto),
        }
    }

    /// Whether a row that changes now has a copy.
    fn has_copied(&self, tree_key: &[u8]) -> bool {
        match &self.stage {
            Stage::Tree(cursor) => cursor.as_deref().is_some_and(|cursor| tree_key <= cursor),
            Stage::Settle(_) | Stage::Close(_) => true,
        }
    }

    fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(redb::Durability::Immediate)?;
        txn.set_quick_repair(true);
        Ok(txn)
    }
}

impl Shared {
    /// Asks the flush thread for a compaction.
    pub(super) fn wish_for_compaction(&self) -> Receiver<CompactionNews> {
        let (sender, receiver) = channel();
        self.work.lock().compactions.push(sender);
        self.wake.notify_one();
        receiver
    }

    fn file_bytes(&self) -> u64 {
        let path = self.options.dir.join(STORE_FILE);
        std::fs::metadata(path).map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
}

impl Flusher {
    /// Begins a compaction that somebody wishes for, or does a chunk of the one under way; says whether there is more to do.
    /// Only an error that leaves unknown which file is the store is one.
    pub(super) fn compact_some(&mut self) -> Result<bool, redb::Error> {
        let wishes = std::mem::take(&mut self.shared.work.lock().compactions);
        for news in wishes {
            self.begin_compaction(news);
        }
        let Some(compaction) = self.compaction.take() else { return Ok(false) };
        let begin = self.shared.clock.instant();
        self.compact_chunk(compaction, begin)
    }

    /// Whether folds and the sweep have to wait for the end of a compaction.
    pub(super) fn is_closing_compaction(&self) -> bool {
        matches!(self.compaction, Some(Compaction { stage: Stage::Close(_), .. }))
    }

    /// Whether a compaction wants everything to be folded.
    pub(super) fn does_compaction_settle(&self) -> bool {
        matches!(self.compaction, Some(Compaction { stage: Stage::Settle(_), .. }))
            && self.shared.gauges.journal_bytes.load(Ordering::Relaxed) > JOURNAL_BYTES_SHORT
    }

    /// Rows of the tree were changed: what was copied of them is copied again.
    pub(super) fn note_changed<'k>(&mut self, tree_keys: impl Iterator<Item = &'k [u8]>) {
        let Some(compaction) = &mut self.compaction else { return };
        for tree_key in tree_keys {
            if compaction.has_copied(tree_key) {
                compaction.changed.insert(tree_key.into());
            }
        }
        self.unsettle();
    }

    /// Small tables or the journal were changed otherwise than by a flush: they are copied again.
    pub(super) fn unsettle(&mut self) {
        if let Some(Compaction { stage: stage @ Stage::Close(_), .. }) = &mut self.compaction {
            *stage = Stage::Settle(0);
        }
    }

    /// Ends a compaction, and those that somebody wishes for; the store is as it was.
    pub(super) fn abandon_compaction(&mut self, why: &str) {
        let mut told: Vec<_> = std::mem::take(&mut self.shared.work.lock().compactions);
        if let Some(compaction) = self.compaction.take() {
            told.push(compaction.news);
            drop(compaction.db);
            self.shared.disk.remove(&self.shared.options.dir, DRAFT_FILE);
        }
        for news in told {
            // Who does not want to know any more has gone.
            drop(news.send(CompactionNews::Failed(why.to_owned())));
        }
    }

    pub(super) fn begin_compaction(&mut self, news: Sender<CompactionNews>) {
        if self.compaction.is_some() {
            drop(news.send(CompactionNews::Failed("a compaction is under way already".to_owned())));
            return;
        }
        match self.open_draft(&news) {
            Ok(compaction) => self.compaction = Some(compaction),
            Err(why) => {
                self.shared.disk.remove(&self.shared.options.dir, DRAFT_FILE);
                drop(news.send(CompactionNews::Failed(why)));
            }
        }
    }

    fn open_draft(&self, news: &Sender<CompactionNews>) -> Result<Compaction, String> {
        let shared = &self.shared;
        let total: u64 = shared.tree_bytes.lock().values().sum();
        // Pages are not full, and what is written meanwhile comes on top.
        let needed = total + total / 2 + shared.options.journal_bytes_max + shared.options.headroom_bytes;
        let (free, _) = shared.disk.space(&shared.options.dir).map_err(|error| error.to_string())?;
        if free < needed {
            return Err(format!(
                "{needed} bytes are needed for the new file beside the old one, {free} are free: make room first"
            ));
        }
        shared.disk.remove(&shared.options.dir, DRAFT_FILE);
        let (db, fault) = open_database(&shared.disk, &shared.options, DRAFT_FILE, false)
            .map_err(|error| format!("the new file cannot be made: {error}"))?;
        Ok(Compaction {
            news: news.clone(),
            db,
            fault,
            stage: Stage::Tree(None),
            changed: BTreeSet::new(),
            done: 0,
            total,
            bytes_before: shared.file_bytes(),
            pause: Duration::ZERO,
            told: None,
        })
    }

    fn compact_chunk(&mut self, mut compaction: Compaction, begin: Instant) -> Result<bool, redb::Error> {
        let copied = match compaction.next_step(self.fixed.flush) {
            Step::Changed => self.copy_changed(&mut compaction),
            Step::Tree => self.copy_tree(&mut compaction),
            Step::Settle(folds) => {
                let gauges = &self.shared.gauges;
                let has_folded = gauges.folds.load(Ordering::Relaxed) > folds;
                let is_short = gauges.journal_bytes.load(Ordering::Relaxed) <= JOURNAL_BYTES_SHORT;
                if self.fold.is_none() && self.freezing.is_none() && (has_folded || is_short) {
                    compaction.stage = Stage::Close(None);
                }
                Ok(())
            }
            Step::Small => self.copy_small(&mut compaction),
            Step::Journal(upto) => self.copy_journal(&mut compaction, upto),
            Step::Last(upto) => return self.end_compaction(compaction, upto, begin),
        };
        let now = self.shared.clock.instant();
        compaction.pause = compaction.pause.max(now.duration_since(begin));
        if compaction.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            compaction.told = Some(now);
            let (done, total) = (compaction.done, compaction.total.max(compaction.done));
            drop(compaction.news.send(CompactionNews::Progress { done, total }));
        }
        let is_waiting = matches!(compaction.stage, Stage::Settle(_)) && compaction.changed.is_empty();
        self.compaction = Some(compaction);
        if let Err(error) = copied {
            self.abandon_compaction(&format!("the new file cannot be filled: {error}"));
            return Ok(false);
        }
        Ok(!is_waiting)
    }

    fn copy_tree(&self, compaction: &mut Compaction) -> Result<(), redb::Error> {
        let Stage::Tree(cursor) = &compaction.stage else { return Ok(()) };
        let begin = self.shared.clock.instant();
        let old = self.database()?.begin_read()?.open_table(TREE)?;
        let from = cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let txn = compaction.begin()?;
        let (mut bytes, mut last) = (0, None);
        {
            let mut tree = txn.open_table(TREE)?;
            for (count, found) in old.range_owned::<&[u8]>((from, Bound::Unbounded))?.enumerate() {
                let (tree_key, record) = found?;
                // As it is, also if damaged: a read of it fails as it did.
                tree.insert(tree_key.value(), record.value())?;
                bytes += tree_key.value().len() + record.value().len();
                let is_late = count % ROWS_A_LOOK == 0
                    && self.shared.clock.instant().duration_since(begin) > self.chunk_time();
                if bytes >= CHUNK_BYTES || is_late {
                    last = Some(Box::from(tree_key.value()));
                    break;
                }
            }
        }
        txn.commit()?;
        compaction.done += bytes as u64;
        compaction.stage = match last {
            Some(last) => Stage::Tree(Some(last)),
            None => Stage::Settle(self.shared.gauges.folds.load(Ordering::Relaxed)),
        };
        Ok(())
    }

    fn copy_changed(&self, compaction: &mut Compaction) -> Result<(), redb::Error> {
        let begin = self.shared.clock.instant();
        let old = self.database()?.begin_read()?.open_table(TREE)?;
        let txn = compaction.begin()?;
        let mut bytes = 0;
        {
            let mut tree = txn.open_table(TREE)?;
            for count in 1.. {
                let Some(tree_key) = compaction.changed.pop_first() else { break };
                match old.get_owned(&*tree_key)? {
                    Some(record) => {
                        bytes += tree_key.len() + record.value().len();
                        tree.insert(&*tree_key, record.value())?;
                    }
                    None => drop(tree.remove(&*tree_key)?),
                }
                let is_late = count % ROWS_A_LOOK == 0
                    && self.shared.clock.instant().duration_since(begin) > self.chunk_time();
                if bytes >= CHUNK_BYTES || is_late {
                    break;
                }
            }
        }
        txn.commit()?;
        compaction.done += bytes as u64;
        Ok(())
    }

    /// Everything but the tree and the journal.
    fn copy_small(&self, compaction: &mut Compaction) -> Result<(), redb::Error> {
        let old = self.database()?.begin_read()?;
        let txn = compaction.begin()?;
        txn.delete_table(JOURNAL)?;
        txn.delete_table(STATE)?;
        txn.delete_table(CACHES)?;
        {
            txn.open_table(META)?.insert(META_FORMAT, row(&FORMAT).as_slice())?;
            txn.open_table(JOURNAL)?;
            txn.open_table(TREE)?;
            // What was resident at the last stop says nothing any more.
            txn.open_table(RESIDENT)?;
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
            let mut state = txn.open_table(STATE)?;
            for found in old.open_table(STATE)?.range::<&[u8]>(..)? {
                let (key, value) = found?;
                state.insert(key.value(), value.value())?;
            }
        }
        txn.commit()?;
        compaction.stage = Stage::Close(Some(0));
        Ok(())
    }

    fn copy_journal(&self, compaction: &mut Compaction, upto: u64) -> Result<(), redb::Error> {
        let old = self.database()?.begin_read()?.open_table(JOURNAL)?;
        let txn = compaction.begin()?;
        let (mut bytes, mut last) = (0, self.fixed.flush);
        {
            let mut journal = txn.open_table(JOURNAL)?;
            for found in old.range(upto + 1..)? {
                let (flush, record) = found?;
                journal.insert(flush.value(), record.value())?;
                bytes += record.value().len();
                if bytes >= CHUNK_BYTES {
                    last = flush.value();
                    break;
                }
            }
        }
        txn.commit()?;
        compaction.stage = Stage::Close(Some(last));
        Ok(())
    }

    /// The last rows, and the new file takes the old one's place.
    fn end_compaction(
        &mut self,
        compaction: Compaction,
        upto: u64,
        begin: Instant,
    ) -> Result<bool, redb::Error> {
        let is_troubled = self.shared.health() != Health::Good || !self.shared.log.lock().dirty.is_empty();
        let filled =
            if is_troubled { Err(redb::Error::PreviousIo) } else { self.fill_last(&compaction, upto) };
        if let Err(error) = filled {
            self.compaction = Some(compaction);
            self.abandon_compaction(&format!("the new file cannot be filled: {error}"));
            return Ok(false);
        }
        let shared = self.shared.clone();
        // If this fails nobody knows which file has the name. Both hold all that was flushed, but only one can be written.
        if let Err(error) = shared.disk.rename(&shared.options.dir, DRAFT_FILE, STORE_FILE) {
            drop(compaction.news.send(CompactionNews::Failed(error.to_string())));
            return Err(redb::Error::Io(error));
        }
        let Compaction { news, db, fault, bytes_before, pause, .. } = compaction;
        *shared.fault.lock() = fault;
        let old = shared.db.write().replace(Arc::new(db));
        // What was not synced in the old file is in the new one.
        self.has_unsynced = false;
        let pause = pause.max(shared.clock.instant().duration_since(begin));
        let bytes_after = shared.file_bytes();
        tracing::info!(bytes_before, bytes_after, ?pause, "the store was compacted");
        let done = CompactionNews::Done { bytes_before, bytes_after, pause, old: OldFile { _db: old } };
        drop(news.send(done));
        Ok(true)
    }

    fn fill_last(&self, compaction: &Compaction, upto: u64) -> Result<(), redb::Error> {
        let old = self.database()?.begin_read()?.open_table(JOURNAL)?;
        let durable = self.shared.log.lock().durable_ever.clone();
        let txn = compaction.begin()?;
        {
            let mut journal = txn.open_table(JOURNAL)?;
            for found in old.range(upto + 1..)? {
                let (flush, record) = found?;
                journal.insert(flush.value(), record.value())?;
            }
            let mut state = txn.open_table(STATE)?;
            for cache in &durable {
                put_number(&mut state, *cache, StateKey::Durable, 1)?;
            }
        }
        put_fixed(&txn, &self.fixed)?;
        txn.commit()?;
        Ok(())
    }
}
