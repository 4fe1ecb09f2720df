//! What is pending or journalled and not yet folded, in key order.
//!
//! Written by `append` and by replay, read by every read that misses memory, frozen and dropped by the fold. Two layers:
//! `active` takes what is appended; `frozen` is exactly the newest versions up to the flush a running fold moves. An entry
//! must not leave before the tree that holds it is on stable storage.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Deref};
use std::sync::Arc;

use kv_proto::Version;
use kv_proto::limits::KEY_BYTES_MAX;
use kv_proto::wire::Effect;
use serde::{Deserialize, Serialize};

use super::options::CacheId;
use super::record::Scope;

/// Memory an entry takes beyond its key and record: nodes, pointers, allocator.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// A key of the tree: cache, big-endian, and key. On the stack, because every read makes one.
pub(super) struct TreeKey {
    bytes: [u8; 4 + KEY_BYTES_MAX],
    len: usize,
}

impl TreeKey {
    pub(super) fn new(cache: CacheId, key: &[u8]) -> TreeKey {
        assert!(key.len() <= KEY_BYTES_MAX, "keys are checked where they come in");
        let mut bytes = [0; 4 + KEY_BYTES_MAX];
        bytes[..4].copy_from_slice(&cache.to_be_bytes());
        bytes[4..4 + key.len()].copy_from_slice(key);
        TreeKey { bytes, len: 4 + key.len() }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Takes a tree key apart; a shorter one than a cache's number is cache 0, which is never given out.
pub(super) fn split(tree_key: &[u8]) -> (CacheId, &[u8]) {
    match tree_key.split_first_chunk::<4>() {
        Some((cache, key)) => (CacheId::from_be_bytes(*cache), key),
        None => (0, &[]),
    }
}

/// Keys of at most this many bytes lie in the nodes of a layer's map.
const INLINE_BYTES: usize = 30;

/// A tree key in a layer's map. A search compares with some thirty keys; each that lies behind a pointer is a miss of the
/// processor's caches, under the engine's mutex.
#[derive(Debug, Clone)]
pub(super) enum MapKey {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Boxed(Box<[u8]>),
}

impl MapKey {
    fn new(tree_key: &[u8]) -> MapKey {
        let mut bytes = [0; INLINE_BYTES];
        match bytes.get_mut(..tree_key.len()) {
            Some(inline) => {
                inline.copy_from_slice(tree_key);
                MapKey::Inline { len: tree_key.len() as u8, bytes }
            }
            None => MapKey::Boxed(tree_key.into()),
        }
    }
}

impl Deref for MapKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            MapKey::Inline { len, bytes } => &bytes[..usize::from(*len)],
            MapKey::Boxed(bytes) => bytes,
        }
    }
}

// Compared as the slice that the map is asked with: `Borrow` demands it.
impl Borrow<[u8]> for MapKey {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Ord for MapKey {
    fn cmp(&self, other: &MapKey) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl PartialOrd for MapKey {
    fn partial_cmp(&self, other: &MapKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for MapKey {
    fn eq(&self, other: &MapKey) -> bool {
        **self == **other
    }
}

impl Eq for MapKey {}

/// The newest change of a key in a layer: a record, or that there is none.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) version: Version,
    pub(super) record: Option<Arc<[u8]>>,
}

pub(super) type Map = BTreeMap<MapKey, Entry>;
/// A tree key and what a layer has of it.
pub(super) type KeyEntry = (Box<[u8]>, Entry);
/// A tree key and a record.
pub(super) type KeyRecord = (Box<[u8]>, Arc<[u8]>);

/// The stamps of one cache. They only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamps {
    pub(super) clear: Version,
    pub(super) stale: Version,
    /// Slot to (gone, stale).
    pub(super) tags: BTreeMap<u32, (Version, Version)>,
    /// Prefix to (gone, stale).
    pub(super) prefixes: BTreeMap<Vec<u8>, (Version, Version)>,
}

impl Stamps {
    pub(super) fn stamp(&mut self, scope: Scope<'_>, effect: Effect, sequence: Version) {
        match scope {
            Scope::All => match effect {
                Effect::Gone => self.clear = self.clear.max(sequence),
                Effect::Stale => self.stale = self.stale.max(sequence),
            },
            Scope::Tag(slot) => raise(self.tags.entry(slot).or_default(), effect, sequence),
            Scope::Prefix(prefix) => {
                raise(self.prefixes.entry(prefix.to_vec()).or_default(), effect, sequence)
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Stamps) {
        self.clear = self.clear.max(other.clear);
        self.stale = self.stale.max(other.stale);
        for (slot, stamps) in &other.tags {
            merge_pair(self.tags.entry(*slot).or_default(), *stamps);
        }
        for (prefix, stamps) in &other.prefixes {
            merge_pair(self.prefixes.entry(prefix.clone()).or_default(), *stamps);
        }
    }
}

fn raise(pair: &mut (Version, Version), effect: Effect, sequence: Version) {
    match effect {
        Effect::Gone => pair.0 = pair.0.max(sequence),
        Effect::Stale => pair.1 = pair.1.max(sequence),
    }
}

pub(super) fn merge_pair(pair: &mut (Version, Version), with: (Version, Version)) {
    *pair = (pair.0.max(with.0), pair.1.max(with.1));
}

/// What happened to the list of caches in a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheRow {
    pub(super) name: String,
    pub(super) settings: Vec<u8>,
}

/// Changes and what they add up to.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) map: Map,
    /// Memory of the map, about.
    pub(super) bytes: usize,
    pub(super) stamps: BTreeMap<CacheId, Stamps>,
    pub(super) created: BTreeMap<CacheId, CacheRow>,
    pub(super) dropped: BTreeSet<CacheId>,
    /// Newest sequence in here.
    pub(super) sequence: Version,
}

impl Layer {
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty() && self.stamps.is_empty() && self.created.is_empty() && self.dropped.is_empty()
    }

    pub(super) fn set(&mut self, cache: CacheId, key: &[u8], entry: Entry) {
        let tree_key = TreeKey::new(cache, key);
        let record_bytes = entry.record.as_ref().map_or(0, |record| record.len());
        if let Some(found) = self.map.get_mut(tree_key.as_slice()) {
            self.bytes += record_bytes;
            self.bytes -= found.record.as_ref().map_or(0, |record| record.len());
            *found = entry;
        } else {
            self.bytes += tree_key.as_slice().len() + record_bytes + ENTRY_OVERHEAD_BYTES;
            self.map.insert(MapKey::new(tree_key.as_slice()), entry);
        }
    }

    /// Puts what came later on top.
    pub(super) fn merge(&mut self, later: &Layer) {
        for cache in &later.dropped {
            self.drop_cache(*cache);
        }
        for (cache, row) in &later.created {
            self.create(*cache, row.clone());
        }
        for (key, entry) in &later.map {
            let (cache, key) = split(key);
            self.set(cache, key, entry.clone());
        }
        for (cache, stamps) in &later.stamps {
            self.stamps.entry(*cache).or_default().merge(stamps);
        }
        self.sequence = self.sequence.max(later.sequence);
    }

    pub(super) fn create(&mut self, cache: CacheId, row: CacheRow) {
        self.dropped.remove(&cache);
        self.created.insert(cache, row);
    }

    pub(super) fn drop_cache(&mut self, cache: CacheId) {
        self.created.remove(&cache);
        self.stamps.remove(&cache);
        self.dropped.insert(cache);
    }
}

/// Both layers.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) active: Layer,
    pub(super) frozen: Option<Arc<Layer>>,
}

impl Overlay {
    pub(super) fn get(&self, tree_key: &[u8]) -> Option<&Entry> {
        let in_frozen = || self.frozen.as_ref().and_then(|layer| layer.map.get(tree_key));
        self.active.map.get(tree_key).or_else(in_frozen)
    }

    /// Copies entries between two bounds in key order, at most `entries_max`; says whether there were more.
    pub(super) fn copy_range(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        entries_max: usize,
    ) -> (Vec<KeyEntry>, bool) {
        let empty = Map::new();
        let frozen = self.frozen.as_ref().map_or(&empty, |layer| &layer.map);
        let mut newer = self.active.map.range::<[u8], _>((from, to)).peekable();
        let mut older = frozen.range::<[u8], _>((from, to)).peekable();
        let mut copied = Vec::new();
        loop {
            let order = match (newer.peek(), older.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return (copied, false),
            };
            let next = match order {
                Ordering::Less => newer.next(),
                Ordering::Equal => {
                    older.next();
                    newer.next()
                }
                Ordering::Greater => older.next(),
            };
            let Some((key, entry)) = next else { return (copied, false) };
            if copied.len() == entries_max {
                return (copied, true);
            }
            copied.push((Box::from(&**key), entry.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: Version) -> Entry {
        Entry { version, record: Some(Arc::from(&b"r"[..])) }
    }

    #[test]
    fn the_active_layer_hides_the_frozen_one_and_ranges_stop_where_told() {
        let mut frozen = Layer::default();
        for (key, version) in [("a", 1), ("b", 2), ("d", 3)] {
            frozen.set(1, key.as_bytes(), entry(version));
        }
        let mut overlay = Overlay { active: Layer::default(), frozen: Some(Arc::new(frozen)) };
        overlay.active.set(1, b"b", Entry { version: 5, record: None });
        overlay.active.set(1, b"c", entry(6));
        assert_eq!(overlay.get(TreeKey::new(1, b"b").as_slice()).map(|e| e.version), Some(5));
        let (all, more) = overlay.copy_range(Bound::Unbounded, Bound::Unbounded, 10);
        assert!(!more);
        assert_eq!(all.iter().map(|(_, e)| e.version).collect::<Vec<_>>(), [1, 5, 6, 3]);
        let (some, more) = overlay.copy_range(Bound::Unbounded, Bound::Unbounded, 2);
        assert!(more);
        assert_eq!(some.len(), 2);
        let (none, more) = overlay.copy_range(Bound::Unbounded, Bound::Unbounded, 0);
        assert!(more && none.is_empty());
    }

    #[test]
    fn bytes_are_counted_when_an_entry_is_replaced() {
        let mut layer = Layer::default();
        layer.set(1, b"k", Entry { version: 1, record: Some(Arc::from(vec![0; 100])) });
        let before = layer.bytes;
        layer.set(1, b"k", Entry { version: 2, record: Some(Arc::from(vec![0; 10])) });
        assert_eq!(layer.bytes, before - 90);
        layer.set(1, b"k", Entry { version: 3, record: None });
        assert_eq!(layer.bytes, before - 100);
    }
}
