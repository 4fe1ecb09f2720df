//! Scans: pages of keys, each page one state.
//!
//! A cache on disk is scanned in key order, overlay and tree taken together under the mutex. A cache in memory only
//! has no key order: it is scanned in the order of its index, and the cursor is a hash.

use kv_proto::segment::{Freshness, WalkItem};
use kv_proto::wire::{self, Response, encode_into};
use kv_proto::{BootMs, limits};

use super::Engine;
use super::cache::Cache;
use super::error::Failure;
use super::item::{Current, Shape, freshness_on_wire};

/// Buckets of the index walked under the mutex at a time, at most: some tens of microseconds.
const BUCKETS_A_STEP: usize = 512;

/// What a page is made of before it becomes bytes.
struct Page {
    items: Vec<(Vec<u8>, Current, wire::Freshness)>,
    cursor: Vec<u8>,
}

impl Engine {
    pub(crate) fn scan(
        &self,
        cache: &Cache,
        prefix: &[u8],
        cursor: &[u8],
        keys_max: u32,
        values: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if prefix.len() > limits::KEY_BYTES_MAX {
            return Err(Failure::too_large("prefix", prefix.len(), limits::KEY_BYTES_MAX));
        }
        let keys_max = (keys_max.max(1) as usize).min(limits::SCAN_KEYS_MAX);
        let now = self.clock.now();
        let page = if cache.disk_readable() {
            self.scan_disk(cache, prefix, cursor, keys_max, now)?
        } else {
            self.scan_memory(cache, prefix, cursor, keys_max, now)?
        };
        let shape = if values { Shape::Entry } else { Shape::Description };
        let items = page.items.iter().map(|(key, item, freshness)| wire::ScanItem {
            key,
            item: item.to_wire(*freshness, now, shape),
        });
        encode_into(out, &Response::Page { items: items.collect(), cursor: &page.cursor });
        Ok(())
    }

    fn scan_disk(&self, cache: &Cache, prefix: &[u8], cursor: &[u8], keys_max: usize, now: BootMs)
    -> Result<Page, Failure> {
        let after = (!cursor.is_empty()).then_some(cursor);
        let (mut source, stamps) = {
            let state = self.lock();
            let source = self.store.snapshot_page(cache.id, prefix, after, keys_max)?;
            (source, state.memory_ref(cache).writer.stamps())
        };
        let deadline = self.clock.instant() + limits::SCAN_TIME_MAX;
        let mut page = Page { items: Vec::new(), cursor: Vec::new() };
        let mut bytes = 0;
        while let Some((key, stored)) = source.next()? {
            page.cursor.clear();
            page.cursor.extend_from_slice(&key);
            let current = Current::from_store(&stored.view());
            let tags = current.tags.iter().map(|tag| kv_proto::tag_slot(tag));
            if stamps.verdict(&current.life(), tags, &key, now) == Freshness::Fresh {
                bytes += key.len() + current.value.len();
                page.items.push((key, current, wire::Freshness::Fresh));
            }
            let full = page.items.len() >= keys_max || bytes > limits::ANSWER_BYTES_SOFT_MAX;
            if full || self.clock.instant() > deadline {
                return Ok(page);
            }
        }
        match source.stopped_at() {
            Some(last) => page.cursor = last,
            None => page.cursor.clear(),
        }
        Ok(page)
    }

    fn scan_memory(&self, cache: &Cache, prefix: &[u8], cursor: &[u8], keys_max: usize, now: BootMs)
    -> Result<Page, Failure> {
        let mut from = match cursor {
            [] => 0,
            bytes => u64::from_be_bytes(
                bytes.try_into().map_err(|_| Failure::invalid("this cursor is not one of this cache's"))?,
            ),
        };
        let mut page = Page { items: Vec::new(), cursor: Vec::new() };
        let mut bytes = 0;
        // One hold of the mutex a page: a page is one state. Its work is bounded by keys, bytes and buckets.
        let mut state = self.lock();
        for _ in 0..limits::SCAN_KEYS_MAX {
            let memory = state.memory(cache);
            let side = &memory.side;
            let next = memory.writer.walk(from, BUCKETS_A_STEP.min(keys_max), now, &mut |item| {
                let (key, current) = match item {
                    WalkItem::Item { key, meta, bytes } => (key.to_vec(), Some(Current::from_segment(&meta, bytes))),
                    WalkItem::AskMark { key_hash } => match side.by_hash(key_hash) {
                        Some((key, item)) => (key.to_vec(), Some((*item).clone())),
                        None => return,
                    },
                    WalkItem::DiskMark { .. } => return,
                };
                let Some(current) = current.filter(|_| key.starts_with(prefix)) else { return };
                bytes += key.len() + current.value.len();
                page.items.push((key, current, wire::Freshness::Fresh));
            });
            match next {
                None => {
                    from = u64::MAX;
                    break;
                }
                Some(next) => from = next,
            }
            if page.items.len() >= keys_max || bytes > limits::ANSWER_BYTES_SOFT_MAX {
                break;
            }
        }
        let memory = state.memory(cache);
        page.items.retain(|(key, item, _)| {
            let tags = item.tags.iter().map(|tag| kv_proto::tag_slot(tag));
            freshness_on_wire(memory.writer.verdict(&item.life(), tags, key, now)) == Some(wire::Freshness::Fresh)
        });
        if from != u64::MAX {
            page.cursor = from.to_be_bytes().to_vec();
        }
        Ok(page)
    }
}
