//! All of a store at one moment, for a backup.
//!
//! The flush thread takes it between two folds: it swaps the layers, which is a matter of microseconds under the log's lock, and
//! opens a snapshot of the tree before the fold that follows touches it. The frozen layer over that tree is the state after
//! exactly the commits up to one sequence, whatever is written meanwhile. Its stamps are of that moment too: what they cover
//! is told as stale, or left out.
//!
//! It keeps pages of the tree and the layer from being freed: whoever holds one must not hold it for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kv_proto::{BootMs, Version, tag_slot};
use redb::{Database, OwnedRange, ReadableDatabase};

use super::flusher::Flusher;
use super::options::{CacheId, StoreError};
use super::overlay::{CacheRow, Entry, Layer, MapKey, Stamps, split};
use super::record::{RecordView, check, decode, generation_and_version, view};
use super::replay::{State, read_state};
use super::shared::{Health, Shared};
use super::tables::{CACHES, STATE, TREE};

/// Who wants a snapshot.
pub(super) type Wish = SyncSender<Result<Snapshot, StoreError>>;

/// A cache of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotCache {
    /// Its number.
    pub id: CacheId,
    /// Its name.
    pub name: String,
    /// Whether it ever took a durable write.
    pub has_durable: bool,
}

/// An item of a snapshot that lives.
#[derive(Debug)]
pub struct SnapshotItem<'a> {
    /// Its cache.
    pub cache: CacheId,
    /// Its key.
    pub key: &'a [u8],
    /// The item; stale if a clear made it so.
    pub item: RecordView<'a>,
}

/// A store at one moment.
pub struct Snapshot {
    /// Every commit up to this one is in it, and none after it.
    pub sequence: Version,
    /// The caches.
    pub caches: Vec<SnapshotCache>,
    /// Bytes of keys and records, about.
    pub bytes: u64,
    shared: Arc<Shared>,
    generations: BTreeMap<CacheId, u32>,
    stamps: BTreeMap<CacheId, Stamps>,
    layer: LayerWalk,
    tree: Peekable<OwnedRange<&'static [u8], &'static [u8]>>,
    key: Vec<u8>,
    record: Vec<u8>,
    // After the range, so that it is dropped last.
    _db: Arc<Database>,
}

/// A walk through a layer, by key, that owns the layer.
struct LayerWalk {
    layer: Arc<Layer>,
    at: Option<MapKey>,
    is_end: bool,
}

impl LayerWalk {
    fn peek(&self) -> Option<(&MapKey, &Entry)> {
        if self.is_end {
            return None;
        }
        let from = self.at.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.layer.map.range::<[u8], _>((from, Bound::Unbounded)).next()
    }

    fn advance(&mut self) {
        let next = self.peek().map(|(key, _)| key.clone());
        self.is_end = next.is_none();
        self.at = next.or(self.at.take());
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Shared {
    /// Asks the flush thread for a snapshot; it comes when the fold under way has ended.
    pub(super) fn wish_for_snapshot(&self) -> Receiver<Result<Snapshot, StoreError>> {
        let (sender, receiver) = sync_channel(1);
        self.work.lock().snapshots.push(sender);
        self.wake.notify_one();
        receiver
    }
}

impl Flusher {
    /// Gives snapshots to those who want one, if no fold is under way; says whether the layers were swapped for it.
    pub(super) fn give_snapshots(&mut self) -> Result<bool, redb::Error> {
        if self.fold.is_some() || self.freezing.is_some() {
            return Ok(false);
        }
        let wishes = std::mem::take(&mut self.shared.work.lock().snapshots);
        if wishes.is_empty() {
            return Ok(false);
        }
        self.freeze();
        for wish in wishes {
            let snapshot = self.snapshot()?;
            // Who does not want it any more has gone.
            drop(wish.send(Ok(snapshot)));
        }
        Ok(true)
    }

    /// Tells those who want a snapshot that there is none to be had.
    pub(super) fn refuse_snapshots(&self) {
        let wishes = std::mem::take(&mut self.shared.work.lock().snapshots);
        for wish in wishes {
            let refusal = self.shared.unwell(false).unwrap_or(StoreError::Closed);
            drop(wish.send(Err(refusal)));
        }
    }

    fn snapshot(&self) -> Result<Snapshot, redb::Error> {
        let layer = self.shared.overlay.read().frozen.clone().expect("freeze put it there");
        let db = self.database()?;
        let txn = db.begin_read()?;
        let State { mut stamps, durable, tree_bytes, .. } = read_state(&txn.open_table(STATE)?)?;
        let mut caches: BTreeMap<CacheId, CacheRow> = BTreeMap::new();
        for found in txn.open_table(CACHES)?.range::<u32>(..)? {
            let (cache, row) = found?;
            caches.insert(cache.value(), decode(row.value()).unwrap_or_default());
        }
        caches.extend(layer.created.iter().map(|(cache, row)| (*cache, row.clone())));
        caches.retain(|cache, _| !layer.dropped.contains(cache));
        for (cache, newer) in &layer.stamps {
            stamps.entry(*cache).or_default().merge(newer);
        }
        let durable: BTreeSet<CacheId> =
            durable.union(&self.shared.log.lock().durable_ever).copied().collect();
        let of_row = |(id, row): (CacheId, CacheRow)| SnapshotCache {
            id,
            name: row.name,
            has_durable: durable.contains(&id),
        };
        let caches: Vec<SnapshotCache> = caches.into_iter().map(of_row).collect();
        Ok(Snapshot {
            sequence: self.frozen_sequence,
            bytes: layer.bytes as u64 + tree_bytes.values().sum::<u64>(),
            generations: caches.iter().map(|cache| (cache.id, self.shared.generation(cache.id))).collect(),
            caches,
            shared: self.shared.clone(),
            stamps,
            layer: LayerWalk { layer, at: None, is_end: false },
            tree: txn.open_table(TREE)?.range_owned::<&[u8]>(..)?.peekable(),
            key: Vec::new(),
            record: Vec::new(),
            _db: db,
        })
    }
}

impl Snapshot {
    /// The next item in order of cache and key that lives at `now`.
    ///
    /// # Errors
    /// `Failed` if the disk fails or an item is damaged.
    pub fn next(&mut self, now: BootMs) -> Result<Option<SnapshotItem<'_>>, StoreError> {
        loop {
            if self.shared.health() != Health::Good {
                // The file may have to be given up, which cannot be while somebody reads it.
                return Err(self.shared.unwell(false).unwrap_or(StoreError::Closed));
            }
            if !self.step()? {
                return Ok(None);
            }
            if self.lives(now) {
                break;
            }
        }
        let (cache, key) = split(&self.key);
        let mut item = view(&self.record, &self.shared.boots);
        item.stale |= self.is_stamped(cache, key, &item, |pair| pair.1);
        Ok(Some(SnapshotItem { cache, key, item }))
    }

    /// Copies the next entry that is not deleted into `key` and `record`; `false`: there is none.
    fn step(&mut self) -> Result<bool, StoreError> {
        loop {
            let tree_key = match self.tree.peek() {
                Some(Ok((key, _))) => Some(key.value()),
                Some(Err(_)) => {
                    let error = self.tree.next().and_then(Result::err).expect("just seen");
                    return Err(self.shared.read_error(&error.into()));
                }
                None => None,
            };
            let entry = self.layer.peek();
            let (is_layers, is_both) = match (&entry, tree_key) {
                (None, None) => return Ok(false),
                (Some(_), None) => (true, false),
                (None, Some(_)) => (false, false),
                (Some((key, _)), Some(tree_key)) => (***key <= *tree_key, ***key == *tree_key),
            };
            if !is_layers {
                let Some(Ok((key, record))) = self.tree.next() else { continue };
                put(&mut self.key, key.value());
                put(&mut self.record, record.value());
                let (cache, key) = split(&self.key);
                if !check(cache, key, &self.record) {
                    let cause = "an item has a wrong checksum".to_owned();
                    return Err(StoreError::Failed { maybe_applied: false, cause });
                }
                return Ok(true);
            }
            let is_there = match entry {
                Some((key, Entry { record: Some(record), .. })) => {
                    put(&mut self.key, key);
                    put(&mut self.record, record);
                    true
                }
                Some((_, Entry { record: None, .. })) | None => false,
            };
            self.layer.advance();
            if is_both {
                self.tree.next();
            }
            if is_there {
                return Ok(true);
            }
        }
    }

    fn lives(&self, now: BootMs) -> bool {
        let (cache, key) = split(&self.key);
        let Some(generation) = self.generations.get(&cache) else { return false };
        let item = view(&self.record, &self.shared.boots);
        generation_and_version(&self.record).0 == *generation
            && !item.is_over(now)
            && !self.is_stamped(cache, key, &item, |pair| pair.0)
    }

    /// Whether a stamp covers the item, of those that `which` picks of (gone, stale).
    fn is_stamped(
        &self,
        cache: CacheId,
        key: &[u8],
        item: &RecordView<'_>,
        which: impl Fn(&(Version, Version)) -> Version,
    ) -> bool {
        let Some(stamps) = self.stamps.get(&cache) else { return false };
        let covers = |pair: &(Version, Version)| which(pair) > item.version;
        covers(&(stamps.clear, stamps.stale))
            || item.tags.iter().any(|tag| stamps.tags.get(&tag_slot(tag)).is_some_and(covers))
            || stamps.prefixes.iter().any(|(prefix, pair)| key.starts_with(prefix) && covers(pair))
    }
}

fn put(into: &mut Vec<u8>, bytes: &[u8]) {
    into.clear();
    into.extend_from_slice(bytes);
}
