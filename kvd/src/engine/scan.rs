//! Scans: pages of keys, each page one state, of fresh items or of stale ones too.
//!
//! A cache on disk is scanned in key order, overlay and tree taken together under the mutex. A cache in memory only
//! has no key order: it is scanned in the order of its index, and the cursor is a hash.

use std::sync::Arc;

use kv_proto::segment::{Freshness, WalkItem};
use kv_proto::wire::{self, Response, encode_into};
use kv_proto::{BootMs, Version, limits};

use super::cache::Cache;
use super::error::Failure;
use super::item::{Current, Shape, freshness_on_wire};
use super::{Engine, Session};

/// Buckets of the index walked under the mutex at a time, at most: some tens of microseconds.
const BUCKETS_A_STEP: usize = 512;

/// How often a page is read again because of clears.
const TRIES_MAX: usize = 16;

/// What a page is made of before it becomes bytes.
struct Page {
    items: Vec<(Vec<u8>, Current, wire::Freshness)>,
    cursor: Vec<u8>,
}

/// What a page is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) prefix: &'a [u8],
    /// What the last page gave; empty: the first.
    pub(crate) cursor: &'a [u8],
    pub(crate) keys_max: u32,
    pub(crate) values: bool,
    /// Stale items too.
    pub(crate) stale: bool,
}

impl Wanted<'_> {
    /// How an item of this freshness is told; `None`: it is not.
    fn shown(&self, freshness: Freshness) -> Option<wire::Freshness> {
        freshness_on_wire(freshness).filter(|shown| self.stale || *shown == wire::Freshness::Fresh)
    }
}

impl Engine {
    pub(crate) fn scan(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        wanted: Wanted<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let Wanted { prefix, cursor, keys_max, values, .. } = wanted;
        if prefix.len() > limits::KEY_BYTES_MAX {
            return Err(Failure::too_large("prefix", prefix.len(), limits::KEY_BYTES_MAX));
        }
        let keys_max = (keys_max.max(1) as usize).min(limits::SCAN_KEYS_MAX);
        let is_inside = session.transaction.is_some();
        let now = if is_inside { self.begin_scan(session, cache)? } else { self.clock.now() };
        let in_key_order = cache.on_disk() && !self.store.is_dirty(cache.id);
        let mut page = if in_key_order {
            self.scan_disk(cache, wanted, keys_max, now)?
        } else {
            self.scan_memory(cache, wanted, keys_max, now)?
        };
        if is_inside {
            let (from, to) = (cursor, &page.cursor[..]);
            let is_in_page = |key: &[u8], hash: u64| {
                // A cursor is the last key that was looked at, or the first hash that was not.
                let hash = hash.to_be_bytes();
                let after = |at: &[u8]| if in_key_order { key > at } else { hash[..] >= *at };
                key.starts_with(prefix) && (from.is_empty() || after(from)) && (to.is_empty() || !after(to))
            };
            self.end_scan(session, cache, &mut page.items, is_in_page)?;
            if in_key_order {
                page.items.sort_by(|(one, ..), (other, ..)| one.cmp(other));
            }
        }
        let shape = if values { Shape::Entry } else { Shape::Description };
        let items = page
            .items
            .iter()
            .map(|(key, item, freshness)| wire::ScanItem { key, item: item.to_wire(*freshness, now, shape) });
        encode_into(out, &Response::Page { items: items.collect(), cursor: &page.cursor });
        Ok(())
    }

    /// A page in key order. A clear that comes while it is read would leave it with items from before and after: then it is
    /// read again.
    fn scan_disk(
        &self,
        cache: &Cache,
        wanted: Wanted<'_>,
        keys_max: usize,
        now: BootMs,
    ) -> Result<Page, Failure> {
        for _ in 0..TRIES_MAX {
            let (page, stamped) = self.try_scan_disk(cache, wanted, keys_max, now)?;
            if cache.stamped() == stamped {
                return Ok(page);
            }
        }
        Err(Failure::unavailable("the cache is being cleared again and again; try the page later", 100))
    }

    fn try_scan_disk(
        &self,
        cache: &Cache,
        wanted: Wanted<'_>,
        keys_max: usize,
        now: BootMs,
    ) -> Result<(Page, Version), Failure> {
        let Wanted { prefix, cursor, .. } = wanted;
        let after = (!cursor.is_empty()).then_some(cursor);
        let (mut source, stamped) = {
            let _state = self.lock();
            (self.store.snapshot_page(cache.id, prefix, after, keys_max)?, cache.stamped())
        };
        let deadline = self.clock.instant() + limits::SCAN_TIME_MAX;
        let mut page = Page { items: Vec::new(), cursor: Vec::new() };
        let mut bytes = 0;
        while let Some((_, key, stored)) = source.next()? {
            page.cursor.clear();
            page.cursor.extend_from_slice(&key);
            let current = Current::from_store(&stored.view());
            if let Some(shown) = wanted.shown(self.freshness_at(cache, &key, &current, now)) {
                bytes += key.len() + current.value.len();
                page.items.push((key, current, shown));
            }
            let full = page.items.len() >= keys_max || bytes > limits::ANSWER_BYTES_SOFT_MAX;
            if full || self.clock.instant() > deadline {
                return Ok((page, stamped));
            }
        }
        page.cursor = source.resume().map(|(_, key)| key.to_vec()).unwrap_or_default();
        Ok((page, stamped))
    }

    /// A page of a cache in memory: keys, items, and whether each is stale before its expiry; and where the next begins.
    pub(super) fn memory_page(
        &self,
        cache: &Cache,
        wanted: Wanted<'_>,
        now: BootMs,
    ) -> Result<(Vec<(Vec<u8>, Current, bool)>, Vec<u8>), Failure> {
        let page = self.scan_memory(cache, wanted, limits::SCAN_KEYS_MAX, now)?;
        let of_item = |(key, item, freshness): (Vec<u8>, Current, wire::Freshness)| {
            let is_stale = freshness == wire::Freshness::Stale && !item.is_expired(now);
            (key, item, is_stale)
        };
        Ok((page.items.into_iter().map(of_item).collect(), page.cursor))
    }

    fn scan_memory(
        &self,
        cache: &Cache,
        wanted: Wanted<'_>,
        keys_max: usize,
        now: BootMs,
    ) -> Result<Page, Failure> {
        let Wanted { prefix, cursor, .. } = wanted;
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
                    WalkItem::Item { key, meta, bytes } => (key.to_vec(), Current::from_segment(meta, bytes)),
                    WalkItem::AskMark { hash } => match side.by_hash(hash) {
                        Some((key, item)) => (key.to_vec(), (*item).clone()),
                        None => return,
                    },
                    WalkItem::DiskMark { .. } => return,
                };
                if !key.starts_with(prefix) {
                    return;
                }
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
        page.items.retain_mut(|(key, item, freshness)| {
            let shown = wanted.shown(memory.writer.verdict(&item.life(), item.tag_slots(), key, now));
            *freshness = shown.unwrap_or(*freshness);
            shown.is_some()
        });
        if from != u64::MAX {
            page.cursor = from.to_be_bytes().to_vec();
        }
        Ok(page)
    }
}
