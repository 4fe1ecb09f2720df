//! The tables of the redb file, and the fixed row.
//!
//! The fixed row says how far the pending log is journalled. It is rewritten by every flush in the same transaction as the
//! journal record, and no fold removes it: it alone decides, after any crash, which pending records still count.

use kv_proto::{BootMs, Version};
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::options::CacheId;
use super::overlay::{Stamps, merge_pair};
use super::pending::Mark;
use super::record::{decode, encode_into};

/// The format of the store's files. A newer one is refused.
pub const FORMAT: u64 = 1;

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Row number to records, in order. A flush makes one row or a few.
pub(super) const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
/// Cache, big-endian, and key to record.
pub(super) const TREE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tree");
pub(super) const CACHES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("caches");
pub(super) const BOOTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("boots");
/// Kind, cache big-endian and more to numbers: see [`StateKey`].
pub(super) const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
/// Part number to the keys that were resident at the last clean stop.
pub(super) const RESIDENT: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("resident");

pub(super) const META_FORMAT: &str = "format";
pub(super) const META_FIXED: &str = "fixed";

/// The fixed row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fixed {
    /// The last pending record that is journalled.
    pub(super) mark: Mark,
    /// The last row of the journal ever written.
    pub(super) flush: u64,
    /// Newest sequence journalled.
    pub(super) sequence: Version,
    /// Sequences below this may have been given out.
    pub(super) sequence_limit: Version,
    /// Cache numbers below this were given out.
    pub(super) cache_first: CacheId,
    /// The boot of the run that wrote this, and when.
    pub(super) boot: u32,
    pub(super) wall_ms: i64,
    pub(super) boot_ms: BootMs,
    /// The run closed the store.
    pub(super) is_clean: bool,
}

type StateTable<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

/// What a row of the state table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateKey<'a> {
    /// Which generation of a cache's records counts.
    Generation,
    /// The cache took a durable write.
    Durable,
    /// Bytes of its records in the tree.
    Bytes,
    /// Clear stamps: (gone, stale).
    Clear,
    /// Stamps of a tag slot: (gone, stale).
    Tag(u32),
    /// Stamps of a prefix: (gone, stale).
    Prefix(&'a [u8]),
    /// Items may be missing that were there: a miss is a failure.
    Damaged,
    /// The cache was dropped; its items are still being removed.
    Dropped,
}

impl StateKey<'_> {
    pub(super) fn bytes(self, cache: CacheId) -> Vec<u8> {
        let kind = match self {
            StateKey::Generation => b'g',
            StateKey::Durable => b'd',
            StateKey::Bytes => b'b',
            StateKey::Clear => b'c',
            StateKey::Tag(_) => b't',
            StateKey::Prefix(_) => b'p',
            StateKey::Damaged => b'x',
            StateKey::Dropped => b'z',
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&cache.to_be_bytes());
        match self {
            StateKey::Tag(slot) => bytes.extend_from_slice(&slot.to_be_bytes()),
            StateKey::Prefix(prefix) => bytes.extend_from_slice(prefix),
            StateKey::Generation
            | StateKey::Durable
            | StateKey::Bytes
            | StateKey::Clear
            | StateKey::Damaged
            | StateKey::Dropped => {}
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<(CacheId, StateKey<'_>)> {
        let (kind, rest) = bytes.split_first()?;
        let (cache, rest) = rest.split_first_chunk::<4>()?;
        let key = match kind {
            b'g' => StateKey::Generation,
            b'd' => StateKey::Durable,
            b'b' => StateKey::Bytes,
            b'c' => StateKey::Clear,
            b't' => StateKey::Tag(u32::from_be_bytes(rest.try_into().ok()?)),
            b'p' => StateKey::Prefix(rest),
            b'x' => StateKey::Damaged,
            b'z' => StateKey::Dropped,
            _unknown => return None,
        };
        Some((CacheId::from_be_bytes(*cache), key))
    }
}

/// Encodes a row.
pub(super) fn row<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes);
    bytes
}

pub(super) fn put_fixed(txn: &WriteTransaction, fixed: &Fixed) -> Result<(), redb::Error> {
    txn.open_table(META)?.insert(META_FIXED, row(fixed).as_slice())?;
    Ok(())
}

pub(super) fn put_number(
    table: &mut StateTable<'_>,
    cache: CacheId,
    key: StateKey<'_>,
    value: u64,
) -> Result<(), redb::Error> {
    table.insert(key.bytes(cache).as_slice(), row(&value).as_slice())?;
    Ok(())
}

/// Raises the stamps of a cache to at least these.
pub(super) fn merge_stamps(
    table: &mut StateTable<'_>,
    cache: CacheId,
    stamps: &Stamps,
) -> Result<(), redb::Error> {
    merge_one(table, cache, StateKey::Clear, (stamps.clear, stamps.stale))?;
    for (slot, pair) in &stamps.tags {
        merge_one(table, cache, StateKey::Tag(*slot), *pair)?;
    }
    for (prefix, pair) in &stamps.prefixes {
        merge_one(table, cache, StateKey::Prefix(prefix), *pair)?;
    }
    Ok(())
}

fn merge_one(
    table: &mut StateTable<'_>,
    cache: CacheId,
    key: StateKey<'_>,
    with: (Version, Version),
) -> Result<(), redb::Error> {
    let key = key.bytes(cache);
    let mut pair: (Version, Version) =
        table.get(key.as_slice())?.and_then(|found| decode(found.value())).unwrap_or_default();
    merge_pair(&mut pair, with);
    if pair != (0, 0) {
        table.insert(key.as_slice(), row(&pair).as_slice())?;
    }
    Ok(())
}

/// Journal records are the payloads of a flush, one after the other, each with its length, after a checksum of it all.
pub(super) mod journal {
    use xxhash_rust::xxh3::xxh3_64;

    const HEADER_BYTES: usize = 8;

    /// Begins a record in `out`.
    pub(in crate::store) fn begin(out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&[0; HEADER_BYTES]);
    }

    /// Reserves the length of a payload; gives where it lies.
    pub(in crate::store) fn open(out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&[0; 4]);
        out.len() - 4
    }

    /// Fills in the length of the payload appended since `open`.
    pub(in crate::store) fn close(out: &mut [u8], at: usize) {
        let bytes = u32::try_from(out.len() - at - 4).expect("a payload is at most a quarter of the log");
        out[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    /// Seals the record.
    pub(in crate::store) fn end(out: &mut [u8]) {
        let sum = xxh3_64(&out[HEADER_BYTES..]);
        out[..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    }

    /// The payloads of a record, or `None` if it is damaged.
    pub(in crate::store) fn payloads(record: &[u8]) -> Option<Vec<&[u8]>> {
        let (sum, mut rest) = record.split_first_chunk::<HEADER_BYTES>()?;
        if u64::from_le_bytes(*sum) != xxh3_64(rest) {
            return None;
        }
        let mut payloads = Vec::new();
        while let Some((bytes, after)) = rest.split_first_chunk::<4>() {
            let (payload, after) = after.split_at_checked(u32::from_le_bytes(*bytes) as usize)?;
            payloads.push(payload);
            rest = after;
        }
        rest.is_empty().then_some(payloads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_records_come_back_and_damage_is_seen() {
        let mut record = Vec::new();
        journal::begin(&mut record);
        for payload in [&b"one"[..], b"", b"three"] {
            let at = journal::open(&mut record);
            record.extend_from_slice(payload);
            journal::close(&mut record, at);
        }
        journal::end(&mut record);
        assert_eq!(journal::payloads(&record), Some(vec![&b"one"[..], b"", b"three"]));
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert_eq!(journal::payloads(&bad), None);
        }
    }

    #[test]
    fn state_keys_come_back() {
        for key in [StateKey::Clear, StateKey::Tag(7), StateKey::Prefix(b"p"), StateKey::Damaged] {
            assert_eq!(StateKey::parse(&key.bytes(9)), Some((9, key)));
        }
    }
}
