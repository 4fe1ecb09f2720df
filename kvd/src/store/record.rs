//! The bytes of an item and of a commit.
//!
//! An item's record is the same in the pending log, the journal, the overlay and the tree, so nothing is encoded twice:
//!
//! ```text
//! checksum u32 LE | postcard(Stored)      checksum = low half of xxh3(rest, seed = xxh3(key) ^ cache)
//! ```
//!
//! The checksum covers key and cache, so bytes that lie under a wrong key are found too. Must never panic on what a disk
//! gave: `check` first, then `view`.

use std::sync::Arc;

use kv_proto::wire::Effect;
use kv_proto::{BootMs, Version};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::boots::{Boots, Life};
use super::options::CacheId;

/// Bytes a put takes in a commit beyond key, value and tags, at most.
pub const PUT_OVERHEAD_BYTES: usize = 128;
/// Bytes a commit takes beyond its changes, at most.
pub const COMMIT_OVERHEAD_BYTES: usize = 32;

/// An item to be stored, in this boot's time.
#[derive(Debug, Clone, Copy)]
pub struct ItemFields<'a> {
    /// The sequence that wrote it.
    pub version: Version,
    /// When.
    pub created: BootMs,
    /// When it ends.
    pub expires: Option<BootMs>,
    /// How long after that it may be served as stale.
    pub stale_for_ms: u64,
    /// What it cost to load.
    pub load_cost_ms: u32,
    /// Made stale before its expiry.
    pub stale: bool,
    /// Its tags.
    pub tags: &'a [&'a [u8]],
    /// Its value.
    pub value: &'a [u8],
}

/// An item as read, in this boot's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// The sequence that wrote it.
    pub version: Version,
    /// When; negative if before this boot.
    pub created: BootMs,
    /// When it ends.
    pub expires: Option<BootMs>,
    /// How long after that it may be served as stale.
    pub stale_for_ms: u64,
    /// What it cost to load.
    pub load_cost_ms: u32,
    /// Made stale before its expiry.
    pub stale: bool,
    /// Its tags.
    pub tags: Vec<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
}

impl RecordView<'_> {
    /// Whether its life and its stale life are over at `now`.
    #[must_use]
    pub fn is_over(&self, now: BootMs) -> bool {
        self.expires.is_some_and(|at| now >= at.saturating_add_unsigned(self.stale_for_ms))
    }
}

/// What a clear covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope<'a> {
    /// Every item.
    All,
    /// Items with a tag of this slot of the largest tag table.
    Tag(u32),
    /// Items whose key starts with this.
    Prefix(#[serde(with = "serde_bytes")] &'a [u8]),
}

/// One change of a commit.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// An item takes its place.
    Put {
        /// The cache.
        cache: CacheId,
        /// The key.
        key: &'a [u8],
        /// The item.
        item: ItemFields<'a>,
    },
    /// A key has no item any more.
    Delete {
        /// The cache.
        cache: CacheId,
        /// The key.
        key: &'a [u8],
    },
    /// A clear, stamped with the commit's sequence.
    Clear {
        /// The cache.
        cache: CacheId,
        /// What it covers.
        scope: Scope<'a>,
        /// Gone or stale.
        effect: Effect,
    },
    /// A cache begins, or its settings change.
    CacheCreated {
        /// Its number.
        cache: CacheId,
        /// Its name.
        name: &'a str,
        /// Whatever the engine wants to find again.
        settings: &'a [u8],
    },
    /// A cache ends; its items are removed by the sweep.
    CacheDropped {
        /// Its number.
        cache: CacheId,
    },
}

impl Change<'_> {
    /// The cache it belongs to.
    #[must_use]
    pub fn cache(&self) -> CacheId {
        match *self {
            Change::Put { cache, .. }
            | Change::Delete { cache, .. }
            | Change::Clear { cache, .. }
            | Change::CacheCreated { cache, .. }
            | Change::CacheDropped { cache } => cache,
        }
    }

    /// The most bytes it takes in the pending log.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        match self {
            Change::Put { key, item, .. } => {
                let tags: usize = item.tags.iter().map(|tag| tag.len() + 2).sum();
                PUT_OVERHEAD_BYTES + key.len() + tags + item.value.len()
            }
            Change::Delete { key, .. } | Change::Clear { scope: Scope::Prefix(key), .. } => 32 + key.len(),
            Change::Clear { .. } | Change::CacheDropped { .. } => 32,
            Change::CacheCreated { name, settings, .. } => 32 + name.len() + settings.len(),
        }
    }
}

/// The most bytes a commit of `changes` takes in the pending log: what to ask [`admit`](super::Store::admit) for.
#[must_use]
pub fn commit_bytes_max(changes: &[Change<'_>]) -> usize {
    COMMIT_OVERHEAD_BYTES + changes.iter().map(Change::bytes_max).sum::<usize>()
}

/// The payload of a record of the pending log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LogCommit<'a> {
    pub(super) sequence: Version,
    #[serde(borrow)]
    pub(super) changes: Vec<LogChange<'a>>,
}

/// A change as logged. Append-only.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum LogChange<'a> {
    Put {
        cache: CacheId,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        #[serde(with = "serde_bytes")]
        record: &'a [u8],
    },
    Delete {
        cache: CacheId,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
    },
    Clear {
        cache: CacheId,
        #[serde(borrow)]
        scope: Scope<'a>,
        effect: Effect,
    },
    CacheCreated {
        cache: CacheId,
        name: &'a str,
        #[serde(with = "serde_bytes")]
        settings: &'a [u8],
    },
    CacheDropped {
        cache: CacheId,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    version: Version,
    /// Of the cache: a record of another generation than the cache's is void.
    generation: u32,
    boot: u32,
    created: BootMs,
    life: Option<Life>,
    stale_for_ms: u64,
    load_cost_ms: u32,
    stale: bool,
    #[serde(borrow)]
    tags: Vec<&'a Bytes>,
    #[serde(with = "serde_bytes")]
    value: &'a [u8],
}

const CHECKSUM_BYTES: usize = 4;

fn checksum(cache: CacheId, key: &[u8], rest: &[u8]) -> [u8; CHECKSUM_BYTES] {
    (xxh3_64_with_seed(rest, xxh3_64(key) ^ u64::from(cache)) as u32).to_le_bytes()
}

/// Encodes an item into `scratch` and gives the record.
pub(super) fn encode_item(
    cache: CacheId,
    key: &[u8],
    item: &ItemFields<'_>,
    generation: u32,
    boots: &Boots,
    scratch: &mut Vec<u8>,
) -> Arc<[u8]> {
    let stored = Stored {
        version: item.version,
        generation,
        boot: boots.current,
        created: item.created,
        life: item.expires.map(|expires| boots.stamp(expires)),
        stale_for_ms: item.stale_for_ms,
        load_cost_ms: item.load_cost_ms,
        stale: item.stale,
        tags: item.tags.iter().map(|tag| Bytes::new(tag)).collect(),
        value: item.value,
    };
    encode_stored(cache, key, &stored, scratch)
}

fn encode_stored(cache: CacheId, key: &[u8], stored: &Stored<'_>, scratch: &mut Vec<u8>) -> Arc<[u8]> {
    scratch.clear();
    scratch.extend_from_slice(&[0; CHECKSUM_BYTES]);
    encode_into(stored, scratch);
    let sum = checksum(cache, key, &scratch[CHECKSUM_BYTES..]);
    scratch[..CHECKSUM_BYTES].copy_from_slice(&sum);
    Arc::from(&scratch[..])
}

/// Appends the postcard of `value` to `out`.
pub(super) fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    let buffer = std::mem::take(out);
    *out = postcard::to_extend(value, buffer)
        .expect("a vector takes everything, and our types have known lengths");
}

/// Decodes a whole slice; trailing bytes are an error.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        Ok(_) | Err(_) => None,
    }
}

/// Whether `record` is what was written for this key.
pub(super) fn check(cache: CacheId, key: &[u8], record: &[u8]) -> bool {
    record.len() > CHECKSUM_BYTES
        && record[..CHECKSUM_BYTES] == checksum(cache, key, &record[CHECKSUM_BYTES..])
}

fn stored(record: &[u8]) -> Stored<'_> {
    decode(&record[CHECKSUM_BYTES..]).expect("the record was checked when it was read")
}

/// The generation and version of a checked record.
pub(super) fn generation_and_version(record: &[u8]) -> (u32, Version) {
    let (version, rest) =
        postcard::take_from_bytes::<u64>(&record[CHECKSUM_BYTES..]).expect("checked when read");
    let (generation, _) = postcard::take_from_bytes::<u32>(rest).expect("checked when read");
    (generation, version)
}

/// A checked record in this boot's time.
pub(super) fn view<'a>(record: &'a [u8], boots: &Boots) -> RecordView<'a> {
    let stored = stored(record);
    let (created, expires) = boots.life(stored.boot, stored.created, stored.life);
    RecordView {
        version: stored.version,
        created,
        expires,
        stale_for_ms: stored.stale_for_ms,
        load_cost_ms: stored.load_cost_ms,
        stale: stored.stale,
        tags: stored.tags.iter().map(|tag| &tag[..]).collect(),
        value: stored.value,
    }
}

/// The same record, made stale.
pub(super) fn with_stale(cache: CacheId, key: &[u8], record: &[u8], scratch: &mut Vec<u8>) -> Arc<[u8]> {
    let mut stored = stored(record);
    stored.stale = true;
    encode_stored(cache, key, &stored, scratch)
}

/// An item read from the store.
#[derive(Debug, Clone)]
pub struct StoredItem {
    pub(super) bytes: Arc<[u8]>,
    pub(super) boots: Arc<Boots>,
}

impl StoredItem {
    /// Its parts, in this boot's time.
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        view(&self.bytes, &self.boots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn an_item_comes_back_and_damage_is_seen() {
        let clock = Clock::system();
        let boots = Boots::find(Default::default(), &clock, 0).0;
        let tags: &[&[u8]] = &[b"a", b"sku:42"];
        let item = ItemFields {
            version: 9,
            created: 3,
            expires: Some(clock.now() + 10_000),
            stale_for_ms: 7,
            load_cost_ms: 5,
            stale: false,
            tags,
            value: b"hello",
        };
        let record = encode_item(1, b"k", &item, 2, &boots, &mut Vec::new());
        assert!(check(1, b"k", &record));
        assert!(!check(2, b"k", &record) && !check(1, b"l", &record));
        assert_eq!(generation_and_version(&record), (2, 9));
        let view = view(&record, &boots);
        assert_eq!((view.version, view.created, view.expires), (9, 3, item.expires));
        assert_eq!((view.tags.as_slice(), view.value), (tags, &b"hello"[..]));
        assert!(record.len() + b"k".len() <= Change::Put { cache: 1, key: b"k", item }.bytes_max());
        for at in 0..record.len() {
            let mut bad = record.to_vec();
            bad[at] ^= 0x10;
            assert!(!check(1, b"k", &bad), "byte {at}");
        }
        assert!(super::view(&with_stale(1, b"k", &record, &mut Vec::new()), &boots).stale);
    }

    #[test]
    fn no_put_exceeds_its_bound() {
        let boots = Boots::find(Default::default(), &Clock::system(), 0).0;
        let key = [7; 1024];
        let value = vec![1; 300];
        let item = ItemFields {
            version: u64::MAX,
            created: i64::MIN,
            expires: Some(i64::MAX),
            stale_for_ms: u64::MAX,
            load_cost_ms: u32::MAX,
            stale: true,
            tags: &[&[1u8; 64][..]; 8],
            value: &value,
        };
        let record = encode_item(u32::MAX, &key, &item, u32::MAX, &boots, &mut Vec::new());
        let mut out = Vec::new();
        let change = LogChange::Put { cache: u32::MAX, key: &key, record: &record };
        encode_into(&LogCommit { sequence: u64::MAX, changes: vec![change] }, &mut out);
        assert!(out.len() <= commit_bytes_max(&[Change::Put { cache: u32::MAX, key: &key, item }]));
    }
}
