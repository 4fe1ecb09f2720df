//! Reading: single items, pages of one moment, the walk that fills the index, and the list of resident keys.
//!
//! Every read looks at the overlay first and begins its redb transaction after that: an entry leaves the overlay only when
//! the tree has it, so what the overlay lacks the later snapshot shows. No snapshot is held over a wait.

use std::ops::Bound;
use std::sync::Arc;

use kv_proto::Version;
use kv_proto::limits::KEY_BYTES_MAX;
use redb::{Database, OwnedRange, ReadOnlyTable, ReadableDatabase, WriteTransaction};

use super::options::{CacheId, StoreError};
use super::overlay::{Entry, KeyEntry, KeyRecord, TreeKey, split};
use super::record::{StoredItem, check, generation_and_version};
use super::shared::Shared;
use super::tables::{RESIDENT, TREE};

/// Overlay entries copied for a page beyond its keys: deleted ones take room too.
const PAGE_ENTRIES_EXTRA: usize = 256;
const RESIDENT_PART_BYTES: usize = 1 << 20;

/// A key of the store, as the walk gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enumerated {
    /// Its cache.
    pub cache: CacheId,
    /// The key.
    pub key: Vec<u8>,
    /// The version of its item.
    pub version: Version,
    /// Bytes of its record.
    pub bytes: usize,
}

impl Shared {
    pub(super) fn read(&self, cache: CacheId, key: &[u8]) -> Result<Option<StoredItem>, StoreError> {
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let tree_key = TreeKey::new(cache, key);
        let found = self.overlay.read().get(tree_key.as_slice()).cloned();
        if let Some(entry) = found {
            return Ok(entry.record.and_then(|record| self.if_counts(cache, record)));
        }
        let db = self.database()?;
        let found = open_tree(&db).and_then(|tree| read_from(&tree, tree_key.as_slice()));
        self.judged(cache, key, found)
    }

    /// The items of some keys of a cache. Under the engine's mutex, so that overlay and tree are of one moment; the tree is
    /// read outside, by the iterator.
    pub(super) fn keys<'k>(
        self: &Arc<Self>,
        cache: CacheId,
        keys: &[&'k [u8]],
    ) -> Result<impl Iterator<Item = Result<Option<StoredItem>, StoreError>> + use<'k>, StoreError> {
        let overlay = self.overlay.read();
        let entries: Vec<(&'k [u8], Option<Entry>)> = keys
            .iter()
            .map(|key| (*key, overlay.get(TreeKey::new(cache, key).as_slice()).cloned()))
            .collect();
        drop(overlay);
        let db = self.database()?;
        let tree = open_tree(&db).map_err(|error| self.read_error(&error))?;
        let shared = self.clone();
        Ok(entries.into_iter().map(move |(key, entry)| {
            let Some(entry) = entry else {
                let found = read_from(&tree, TreeKey::new(cache, key).as_slice());
                return shared.judged(cache, key, found);
            };
            // The database must live as long as its table is read.
            let _ = &db;
            Ok(entry.record.and_then(|record| shared.if_counts(cache, record)))
        }))
    }

    /// What the tree gave, checked.
    fn judged(
        &self,
        cache: CacheId,
        key: &[u8],
        found: Result<Option<Arc<[u8]>>, redb::Error>,
    ) -> Result<Option<StoredItem>, StoreError> {
        let found = found.map_err(|error| self.read_error(&error))?;
        let Some(record) = found else { return self.missing(cache) };
        if !check(cache, key, &record) {
            tracing::error!(cache, "an item of the store has a wrong checksum");
            let cause = "an item has a wrong checksum".to_owned();
            return Err(StoreError::Failed { maybe_applied: false, cause });
        }
        Ok(self.if_counts(cache, record))
    }

    /// A record of another generation than its cache's is void.
    fn if_counts(&self, cache: CacheId, record: Arc<[u8]>) -> Option<StoredItem> {
        let counts = generation_and_version(&record).0 == self.generation(cache);
        counts.then(|| StoredItem { bytes: record, boots: self.boots.clone() })
    }

    /// What nothing found means: a miss, unless items of this cache were lost with a broken disk.
    fn missing(&self, cache: CacheId) -> Result<Option<StoredItem>, StoreError> {
        if self.damaged.read().contains(&cache) {
            let cause = "items of this cache were lost with a broken disk; clear it to begin anew".to_owned();
            return Err(StoreError::Failed { maybe_applied: false, cause });
        }
        Ok(None)
    }

    /// A page over tree keys between two bounds. Under the engine's mutex, so that overlay and tree are of one moment.
    pub(super) fn page(
        self: &Arc<Self>,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        keys_max: usize,
    ) -> Result<PageSource, StoreError> {
        let entries_max = keys_max + PAGE_ENTRIES_EXTRA;
        let (entries, has_more) = self.overlay.read().copy_range(from, to, entries_max);
        let stop = has_more.then(|| entries.last().map(|(key, _)| key.clone())).flatten();
        let db = self.database()?;
        let range = tree_range(&db, from, to).map_err(|error| self.read_error(&error))?;
        Ok(PageSource {
            shared: self.clone(),
            entries: entries.into_iter().peekable(),
            range: Some(range),
            ahead: None,
            stop,
            last: None,
            is_cut: false,
            _db: db,
        })
    }
}

type Tree = ReadOnlyTable<&'static [u8], &'static [u8]>;

fn open_tree(db: &Database) -> Result<Tree, redb::Error> {
    Ok(db.begin_read()?.open_table(TREE)?)
}

fn read_from(tree: &Tree, tree_key: &[u8]) -> Result<Option<Arc<[u8]>>, redb::Error> {
    Ok(tree.get_owned(tree_key)?.map(|found| Arc::from(found.value())))
}

type TreeRange = OwnedRange<&'static [u8], &'static [u8]>;

fn tree_range(db: &Database, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Result<TreeRange, redb::Error> {
    let tree = db.begin_read()?.open_table(TREE)?;
    Ok(tree.range_owned::<&[u8]>((from, to))?)
}

/// The first tree key beyond those that start with `prefix` in `cache`; none if that is the end of all.
pub(super) fn end_of(cache: CacheId, prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = cache.to_be_bytes().to_vec();
    end.extend_from_slice(prefix);
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// A tree key, its record unless it is deleted, and whether that is from the tree.
type Found = (Box<[u8]>, Option<Arc<[u8]>>, bool);

/// Items of one moment in key order. It holds a snapshot: drop it before waiting for anything.
pub struct PageSource {
    shared: Arc<Shared>,
    entries: std::iter::Peekable<std::vec::IntoIter<KeyEntry>>,
    range: Option<TreeRange>,
    ahead: Option<KeyRecord>,
    /// The overlay was copied up to here only: beyond, the page would not be of one moment.
    stop: Option<Box<[u8]>>,
    last: Option<Box<[u8]>>,
    is_cut: bool,
    // After the range, so that it is dropped last.
    _db: Arc<Database>,
}

impl std::fmt::Debug for PageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageSource").field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// A step of the walk over all keys.
#[derive(Debug)]
pub struct Enumeration {
    /// Keys in order.
    pub keys: Vec<Enumerated>,
    /// Where to go on; none at the end.
    pub next: Option<(CacheId, Vec<u8>)>,
}

impl PageSource {
    /// The next item: cache, key and item. A page that had to stop early ends here too: see [`PageSource::resume`].
    ///
    /// # Errors
    /// `Failed` if the disk fails, or an item is damaged.
    #[allow(clippy::should_implement_trait)] // It fails, and lends nothing an iterator's adaptors are good for.
    pub fn next(&mut self) -> Result<Option<(CacheId, Vec<u8>, StoredItem)>, StoreError> {
        loop {
            let Some((tree_key, record, is_from_tree)) = self.next_entry()? else { return Ok(None) };
            if self.stop.as_ref().is_some_and(|stop| tree_key > *stop) {
                self.is_cut = true;
                return Ok(None);
            }
            self.last = Some(tree_key.clone());
            let (cache, key) = split(&tree_key);
            let Some(record) = record else { continue };
            if is_from_tree && !check(cache, key, &record) {
                let cause = "an item has a wrong checksum".to_owned();
                return Err(StoreError::Failed { maybe_applied: false, cause });
            }
            if let Some(item) = self.shared.if_counts(cache, record) {
                return Ok(Some((cache, key.to_vec(), item)));
            }
        }
    }

    /// After the end: the key after which the next page must begin, if this one stopped before the end of its range.
    #[must_use]
    pub fn resume(&self) -> Option<(CacheId, &[u8])> {
        if !self.is_cut && self.stop.is_none() {
            return None;
        }
        self.last.as_deref().or(self.stop.as_deref()).map(split)
    }

    fn next_entry(&mut self) -> Result<Option<Found>, StoreError> {
        if self.ahead.is_none() && self.range.is_some() {
            self.ahead = self.pull()?;
        }
        let overlay_first = match (self.entries.peek(), &self.ahead) {
            (Some((a, _)), Some((b, _))) => {
                let is_same = a == b;
                let is_first = a <= b;
                if is_same {
                    self.ahead = None;
                }
                is_first
            }
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return Ok(None),
        };
        if overlay_first {
            return Ok(self.entries.next().map(|(key, entry)| (key, entry.record, false)));
        }
        Ok(self.ahead.take().map(|(key, record)| (key, Some(record), true)))
    }

    fn pull(&mut self) -> Result<Option<KeyRecord>, StoreError> {
        match self.range.as_mut().and_then(Iterator::next) {
            Some(Ok((key, record))) => Ok(Some((Box::from(key.value()), Arc::from(record.value())))),
            Some(Err(error)) => Err(self.shared.read_error(&error.into())),
            None => {
                self.range = None;
                Ok(None)
            }
        }
    }
}

/// Keys as one string of bytes: cache, length, key.
pub(super) fn encode_resident<'a>(keys: impl Iterator<Item = (CacheId, &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    for (cache, key) in keys {
        out.extend_from_slice(&cache.to_le_bytes());
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key);
    }
    out
}

pub(super) fn decode_resident(mut bytes: &[u8]) -> Vec<(CacheId, Vec<u8>)> {
    let mut keys = Vec::new();
    while let Some((cache, rest)) = bytes.split_first_chunk::<4>() {
        let Some((len, rest)) = rest.split_first_chunk::<2>() else { break };
        let Some((key, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else { break };
        keys.push((CacheId::from_le_bytes(*cache), key.to_vec()));
        bytes = rest;
    }
    keys
}

/// Replaces the list of resident keys.
pub(super) fn put_resident(txn: &WriteTransaction, keys: &[u8]) -> Result<(), redb::Error> {
    let mut table = txn.open_table(RESIDENT)?;
    table.retain(|_, _| false)?;
    for (part, bytes) in (0u32..).zip(keys.chunks(RESIDENT_PART_BYTES)) {
        table.insert(part, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_in_order() {
        assert_eq!(end_of(1, b"ab"), Some(vec![0, 0, 0, 1, b'a', b'c']));
        assert_eq!(end_of(1, &[7, 255, 255]), Some(vec![0, 0, 0, 1, 8]));
        assert_eq!(end_of(1, b""), Some(vec![0, 0, 0, 2]));
        assert_eq!(end_of(u32::MAX, &[255]), None);
    }

    #[test]
    fn resident_keys_come_back_and_a_cut_list_ends() {
        let keys = [(1, &b"a"[..]), (7, b""), (2, b"long key")];
        let bytes = encode_resident(keys.into_iter());
        let back = decode_resident(&bytes);
        assert_eq!(back.iter().map(|(c, k)| (*c, &k[..])).collect::<Vec<_>>(), keys);
        assert_eq!(decode_resident(&bytes[..bytes.len() - 1]).len(), 2);
    }
}
