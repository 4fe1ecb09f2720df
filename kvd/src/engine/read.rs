//! Reads: the segment first, without any lock; then, for what it cannot answer, the disk.

use std::sync::Arc;

use kv_proto::segment::{Freshness, Install, Installed, ManyOutcome, Meta, NewItem, Outcome};
use kv_proto::wire::{self, ErrorKind, Response, encode_into};
use kv_proto::{BootMs, Version, limits};

use super::cache::{Cache, Memory, Moment, count};
use super::change::{Look, OnDisk, Target, look_at};
use super::error::Failure;
use super::item::{Current, Shape, freshness_on_wire};
use super::{Engine, Session};
use crate::store::StoredItem;

/// How often a read from disk is repeated because the key changed meanwhile; then what was read last is the answer
/// of a moment that has been, and is given without being kept.
const INSTALLS_MAX: usize = 4;

/// How a read ended, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Memory,
    Disk,
}

impl Engine {
    /// Answers a read of one key.
    pub(crate) fn get(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if session.transaction.is_some() {
            return self.get_inside(session, cache, key, shape, out);
        }
        let now = self.clock.now();
        let view = cache.view.load();
        let hash = view.reader.hash(key);
        match view.reader.get(hash, key, now, &mut session.buffer) {
            Outcome::Hit(meta) => {
                view.hits.touch(meta.place);
                answer_meta(cache, &meta, &session.buffer, now, shape, out);
                Ok(())
            }
            Outcome::Miss => {
                count(&cache.counters.misses);
                encode_into(out, &Response::Missing);
                Ok(())
            }
            Outcome::Ask(_) => {
                drop(view);
                self.get_slowly(&self.target(cache, key, true), shape, out)
            }
        }
    }

    /// A read that the segment could not answer: exact memory lookup under the mutex, then the disk outside it.
    fn get_slowly(&self, target: &Target<'_>, shape: Shape, out: &mut Vec<u8>) -> Result<(), Failure> {
        let (found, source) = self.look(target, self.clock.now())?;
        let now = self.clock.now();
        let fresh = found.as_ref().and_then(|item| {
            freshness_on_wire(self.freshness(&target.cache, target.key, item))
                .map(|freshness| (item, freshness))
        });
        match fresh {
            Some((item, freshness)) if shape != Shape::Value || freshness == wire::Freshness::Fresh => {
                count_hit(&target.cache, source, freshness);
                encode_into(out, &Response::Item(item.to_wire(freshness, now, shape)));
            }
            Some(_) | None => {
                count(&target.cache.counters.misses);
                encode_into(out, &Response::Missing);
            }
        }
        Ok(())
    }

    /// What is there, from memory or disk; what came from disk is installed in memory if nothing was faster.
    pub(super) fn look(&self, target: &Target<'_>, now: BootMs) -> Result<(Look, Source), Failure> {
        let mut last = None;
        for _ in 0..INSTALLS_MAX {
            {
                let mut state = self.lock();
                let memory = state.memory(&target.cache);
                if let Ok(look) = look_at(memory, target, now) {
                    return Ok((look, Source::Memory));
                }
            }
            let moment = target.cache.moment(target.hash);
            last = self.read_disk(&target.cache, target.key, now)?.map(Arc::new);
            if self.install(target, moment, last.as_deref(), Install::Read).is_some() {
                break;
            }
        }
        Ok((last, Source::Disk))
    }

    /// Keeps in memory what was read from disk at `moment`; `None` if the key changed since.
    pub(crate) fn install(
        &self,
        target: &Target<'_>,
        moment: Moment,
        found: Option<&Current>,
        how: Install,
    ) -> Option<Installed> {
        let mut state = self.lock();
        if target.cache.moment(target.hash) != moment {
            return None;
        }
        let version = self.next_sequence(&mut state);
        let writer = &mut state.memory(&target.cache).writer;
        let installed = match found {
            Some(item) => {
                let tags: Vec<&[u8]> = item.tags.iter().map(|tag| &**tag).collect();
                let item = NewItem {
                    key: target.key,
                    value: &item.value,
                    version: item.version,
                    created: item.created,
                    expires: item.expires,
                    stale_for_ms: item.stale_for_ms,
                    load_cost_ms: item.load_cost_ms,
                    stale: item.stale,
                    tags: &tags,
                };
                writer.install(version, target.hash, &item, how, self.clock.now())
            }
            // The mark led to nothing that lives: without it the next miss needs no disk.
            None => {
                writer.forget_key(version, target.hash, target.key, None);
                Installed::Declined
            }
        };
        self.control.commit(version);
        Some(installed)
    }

    /// Answers `get_many`: one moment for all keys.
    pub(crate) fn get_many(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        keys: &[wire::Bytes<'_>],
        snapshot: Option<Version>,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if keys.len() > limits::GET_MANY_KEYS_MAX {
            return Err(Failure::too_many("keys in a get_many", keys.len(), limits::GET_MANY_KEYS_MAX));
        }
        if session.transaction.is_some() {
            return self.get_many_inside(session, cache, keys, out);
        }
        let now = self.clock.now();
        if snapshot.is_none() {
            let view = cache.view.load();
            session.keys.clear();
            session.buffer.clear();
            let hashed: Vec<(u64, &[u8])> = keys.iter().map(|key| (view.reader.hash(key.0), key.0)).collect();
            if let Ok(at) = view.reader.get_many(&hashed, now, &mut session.buffer, &mut session.keys) {
                let items: Vec<Option<wire::Item<'_>>> = session
                    .keys
                    .iter()
                    .map(|outcome| many_item(cache, &view.hits, outcome, &session.buffer))
                    .collect();
                encode_items(items, at, out);
                return Ok(());
            }
        }
        self.get_many_slowly(cache, keys, snapshot, now, out)
    }

    /// `get_many` where some key is not in memory: memory, overlay and tree of one moment, taken under the mutex.
    fn get_many_slowly(
        &self,
        cache: &Arc<Cache>,
        keys: &[wire::Bytes<'_>],
        snapshot: Option<Version>,
        now: BootMs,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let targets: Vec<Target<'_>> = keys.iter().map(|key| self.target(cache, key.0, true)).collect();
        let mut found: Vec<Option<Arc<Current>>> = Vec::with_capacity(keys.len());
        let mut on_disk: Vec<usize> = Vec::new();
        let mut moments: Vec<Moment> = Vec::new();
        let (at, disk) = {
            let mut state = self.lock();
            let at = self.control.committed();
            if let Some(earlier) = snapshot
                && !targets.iter().all(|target| cache.moment(target.hash).is_at_most(earlier))
            {
                encode_into(out, &Response::Moved);
                return Ok(());
            }
            let mut bytes = 0;
            for (index, target) in targets.iter().enumerate() {
                let look = look_at(state.memory(cache), target, now).unwrap_or_else(|OnDisk| {
                    on_disk.push(index);
                    moments.push(cache.moment(target.hash));
                    None
                });
                bytes += look.as_ref().map_or(0, |item| item.value.len());
                found.push(look);
                if bytes > limits::ANSWER_BYTES_SOFT_MAX {
                    break;
                }
            }
            let wanted: Vec<&[u8]> = on_disk.iter().map(|&index| keys[index].0).collect();
            (at, self.store.snapshot_keys(cache.id, &wanted)?)
        };
        for ((&index, moment), stored) in on_disk.iter().zip(moments).zip(disk) {
            let stored: Option<StoredItem> = stored?;
            let current = stored.map(|stored| Current::from_store(&stored.view()));
            let lives = |item: &Current| self.freshness(cache, keys[index].0, item) != Freshness::Gone;
            let current = current.filter(lives).map(Arc::new);
            self.install(&targets[index], moment, current.as_deref(), Install::Read);
            found[index] = current;
        }
        let items = found.iter().zip(keys).map(|(item, key)| {
            let item = item.as_ref()?;
            let fresh = self.freshness(cache, key.0, item) == Freshness::Fresh;
            count_read(cache, fresh);
            fresh.then(|| item.to_wire(wire::Freshness::Fresh, now, Shape::Value))
        });
        encode_items(items.collect(), snapshot.unwrap_or(at), out);
        Ok(())
    }

    /// The cache of this name.
    pub(crate) fn cache(&self, name: &str) -> Result<Arc<Cache>, Failure> {
        self.caches.load().get(name).cloned().ok_or_else(|| self.unknown_cache(name))
    }

    pub(super) fn unknown_cache(&self, name: &str) -> Failure {
        let caches = self.caches.load();
        let nearest = caches.keys().min_by_key(|known| strsim::damerau_levenshtein(known, name));
        let hint = match nearest {
            Some(nearest) => format!("; the nearest is {nearest}"),
            None => "; there is none yet: the first write creates one".to_owned(),
        };
        Failure::new(ErrorKind::UnknownCache, format!("no cache is called {name:?}{hint}"))
    }
}

impl Memory {
    /// A large value from the side store, unless its life is over.
    pub(crate) fn side_item(&self, key: &[u8], now: BootMs) -> Option<Arc<Current>> {
        let item = self.side.get(key)?;
        (self.writer.verdict(&item.life(), item.tag_slots(), key, now) != Freshness::Gone).then_some(item)
    }
}

/// Answers with an item straight from the segment's copy.
fn answer_meta(cache: &Cache, meta: &Meta, buffer: &[u8], now: BootMs, shape: Shape, out: &mut Vec<u8>) {
    let Some(freshness) = freshness_on_wire(meta.freshness) else {
        count(&cache.counters.misses);
        return encode_into(out, &Response::Missing);
    };
    if shape == Shape::Value {
        if freshness == wire::Freshness::Stale {
            count(&cache.counters.misses);
            return encode_into(out, &Response::Missing);
        }
        count(&cache.counters.hits_memory);
        let item = wire::Item { value: meta.value(buffer), version: meta.version, entry: None };
        return encode_into(out, &Response::Item(item));
    }
    count_hit(cache, Source::Memory, freshness);
    let current = Current::from_segment(meta, buffer);
    encode_into(out, &Response::Item(current.to_wire(freshness, now, shape)));
}

fn many_item<'b>(
    cache: &Cache,
    hits: &super::heat::Reads,
    outcome: &ManyOutcome,
    buffer: &'b [u8],
) -> Option<wire::Item<'b>> {
    let meta = outcome.as_ref().filter(|meta| meta.freshness == Freshness::Fresh);
    count_read(cache, meta.is_some());
    let meta = meta?;
    hits.touch(meta.place);
    Some(wire::Item { value: meta.value(buffer), version: meta.version, entry: None })
}

/// Encodes as many items as the soft bound allows; the client asks for the rest.
fn encode_items(mut items: Vec<Option<wire::Item<'_>>>, snapshot: Version, out: &mut Vec<u8>) {
    let mut bytes = 0;
    let fitting = items.iter().take_while(|item| {
        let fits = bytes <= limits::ANSWER_BYTES_SOFT_MAX;
        bytes += item.as_ref().map_or(1, |item| item.value.len() + 16);
        fits
    });
    let keep = fitting.count();
    items.truncate(keep);
    encode_into(out, &Response::Items { items, snapshot });
}

fn count_read(cache: &Cache, hit: bool) {
    count(if hit { &cache.counters.hits_memory } else { &cache.counters.misses });
}

pub(super) fn count_hit(cache: &Cache, source: Source, freshness: wire::Freshness) {
    count(match (freshness, source) {
        (wire::Freshness::Stale, _) => &cache.counters.hits_stale,
        (wire::Freshness::Fresh, Source::Memory) => &cache.counters.hits_memory,
        (wire::Freshness::Fresh, Source::Disk) => &cache.counters.hits_disk,
    });
}
