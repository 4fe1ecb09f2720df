//! Making caches and ending them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::limits;
use kv_proto::segment::{Backed, Geometry, SegmentState, SweepCursor, Words, Writer};
use kv_proto::wire::{Durability, Effect, ErrorKind, Response, What, encode_into};

use super::cache::{Cache, Memory, View};
use super::error::Failure;
use super::side::SideStore;
use super::waiting::Passage;
use super::write::Durable;
use super::{Engine, Session, State};
use crate::config::{CacheConfig, check_cache_name};
use crate::store::{CacheId, CacheStamps, Change, Scope};

/// A fresh segment and what belongs to it, not yet known to anybody.
pub(crate) struct Made {
    pub(crate) memory: Memory,
    pub(crate) view: View,
    pub(crate) words: Arc<Words>,
}

impl Engine {
    /// The cache of this name, created from the `[default]` template by its first write.
    pub(crate) fn cache_for_writing(&self, name: &str) -> Result<Arc<Cache>, Failure> {
        if let Some(cache) = self.caches.load().get(name) {
            return Ok(Arc::clone(cache));
        }
        check_cache_name(name).map_err(Failure::invalid)?;
        let _one_at_a_time = self.creating.lock();
        if let Ok(cache) = self.cache(name) {
            return Ok(cache);
        }
        self.create_on_demand(name)
    }

    fn create_on_demand(&self, name: &str) -> Result<Arc<Cache>, Failure> {
        let adjustable = self.adjustable.load();
        let config = adjustable.default.clone();
        let caches = self.caches.load();
        let on_demand = caches.values().filter(|cache| !cache.declared).count();
        if on_demand >= limits::CACHES_ON_DEMAND_MAX {
            return Err(Failure::new(
                ErrorKind::UnknownCache,
                format!(
                    "cache {name} would be number {} created by a first write, limit is {}: declare it in the configuration, or drop one",
                    on_demand + 1,
                    limits::CACHES_ON_DEMAND_MAX
                ),
            ));
        }
        let used: u64 = caches.values().map(|cache| cache.config.memory_bytes).sum();
        if used + config.memory_bytes > adjustable.memory_bytes {
            return Err(Failure::new(
                ErrorKind::Config,
                format!(
                    "cache {name} needs {} bytes of memory, but {used} of {} are given away: raise `memory`, lower `memory` in [default], or drop a cache",
                    config.memory_bytes, adjustable.memory_bytes
                ),
            ));
        }
        drop(caches);
        let deadline = self.clock.instant() + limits::WRITE_WAIT_MAX;
        self.wait_until_writable(deadline)?;
        let permit = if config.durability == Durability::Memory {
            None
        } else {
            Some(self.store.admit(&[], 256, Durability::Behind, deadline)?)
        };
        let made = self.make(&config, 0, &CacheStamps::default())?;
        let mut state = self.lock();
        state.cache_id += 1;
        let id = state.cache_id;
        let version = self.next_sequence(&mut state);
        if let Some(permit) = permit {
            self.store.append(permit, version, &[Change::CacheCreated { cache: id, name, settings: &[] }]);
        }
        let cache = self.adopt(&mut state, id, name, false, config, made);
        state.memory(&cache).writer.complete(version);
        self.control.commit(version);
        tracing::info!(cache = name, "created by its first write");
        Ok(cache)
    }

    /// A segment for a cache; takes milliseconds, so never under the mutex.
    pub(crate) fn make(
        &self,
        config: &CacheConfig,
        items: u64,
        stamps: &CacheStamps,
    ) -> Result<Made, Failure> {
        let side_bytes = side_bytes(config, self.config.value_bytes_max);
        let geometry = Geometry::new(config.memory_bytes - side_bytes, items);
        let made = self.make_of(config, geometry, fastrand::u64(..), side_bytes, stamps)?;
        make_huge(&made.words);
        Ok(made)
    }

    /// A segment of a given division. A cache keeps its `seed` for life: hashes are taken before the mutex is.
    pub(crate) fn make_of(
        &self,
        config: &CacheConfig,
        geometry: Geometry,
        seed: u64,
        side_bytes: u64,
        stamps: &CacheStamps,
    ) -> Result<Made, Failure> {
        let (words, descriptor) =
            Words::memfd_or_private(c"kvd-segment", geometry.bytes()).map_err(|cause| {
                Failure::new(
                    ErrorKind::Config,
                    format!("a segment of {} bytes cannot be made: {cause}", geometry.bytes()),
                )
            })?;
        let backed = if config.durability == Durability::Memory { Backed::Memory } else { Backed::Disk };
        let mut writer = Writer::create(Arc::clone(&words), geometry, seed, backed, self.control.committed());
        let prefixes = stamps.prefixes.iter().flat_map(|(prefix, gone, stale)| {
            [(prefix.clone(), Effect::Gone, *gone), (prefix.clone(), Effect::Stale, *stale)]
        });
        let prefixes = prefixes.filter(|(_, _, stamp)| *stamp > 0);
        writer.load_stamps(stamps.clear, stamps.stale, stamps.tags.iter().copied(), prefixes);
        let segment = self.segments.fetch_add(1, Ordering::Relaxed) + 1;
        let view = View {
            reader: writer.reader(&self.control),
            hits: super::heat::Reads::new(writer.hits()),
            segment,
            descriptor: descriptor.ok(),
        };
        let side = SideStore::new(side_bytes);
        let memory = Memory { writer, side, sweep: SweepCursor::default(), sweep_began: 0, swept: 0 };
        Ok(Made { memory, view, words })
    }

    /// Makes a cache known under `id`.
    pub(crate) fn adopt(
        &self,
        state: &mut State,
        id: CacheId,
        name: &str,
        declared: bool,
        config: CacheConfig,
        made: Made,
    ) -> Arc<Cache> {
        let slot = state.memories.len();
        self.store.set_disk_bytes_max(id, Some(config.disk_bytes_max));
        let cache =
            Cache::new(id, slot, name.to_owned(), declared, config, made.view, self.control.committed());
        let cache = Arc::new(cache);
        state.memories.push(Some(made.memory));
        let mut caches = (**self.caches.load()).clone();
        caches.insert(name.to_owned(), Arc::clone(&cache));
        self.caches.store(Arc::new(caches));
        cache
    }

    pub(crate) fn drop_cache(
        &self,
        session: &mut Session,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        session.must_be_outside("dropping a cache")?;
        let cache = self.cache(name)?;
        if cache.declared {
            return Err(Failure::new(
                ErrorKind::Config,
                format!("cache {name} is declared in the configuration: clear it, or remove it there"),
            ));
        }
        let deadline = self.clock.instant() + limits::WRITE_WAIT_MAX;
        self.wait_until_writable(deadline)?;
        let permit = if cache.on_disk() {
            Some(self.store.admit(&[cache.id], 64, Durability::Behind, deadline)?)
        } else {
            None
        };
        let mut passage = Passage::of_write(self);
        let needs = || self.locking.to_write_plainly(cache.touched(None));
        let mut state = passage.enter(self.lock(), session, needs, deadline)?;
        if self.caches.load().get(name).is_none_or(|now| now.id != cache.id) {
            // Somebody dropped it while we waited.
            return Err(self.unknown_cache(name));
        }
        let version = self.next_sequence(&mut state);
        let durable = permit
            .map(|permit| self.store.append(permit, version, &[Change::CacheDropped { cache: cache.id }]));
        let mut caches = (**self.caches.load()).clone();
        caches.remove(name);
        self.caches.store(Arc::new(caches));
        // Those who still hold the cache find it empty; its memory goes with the next sweep of dropped ones.
        let memory = state.memory(&cache);
        memory.writer.set_state(SegmentState::Closed);
        memory.writer.stamp_all(version, Effect::Gone);
        memory.side.clear();
        memory.writer.publish(version);
        cache.note_stamp(version);
        cache.dropped.store(true, Ordering::Release);
        self.control.commit(version);
        self.overtake_cleared(&mut state, std::slice::from_ref(&cache), Scope::All);
        self.tell(version, &cache, What::Dropped);
        state.dropped.push(cache);
        drop(state);
        tracing::info!(cache = name, "dropped");
        encode_into(out, &Response::Written { version });
        Ok(durable.filter(|_| self.adjustable.load().default.durability == Durability::Durable))
    }
}

/// Beside everything else: huge pages for a segment. Without them it is only slower.
pub(super) fn make_huge(words: &Arc<Words>) {
    let words = Arc::clone(words);
    let collapse = move || {
        if let Err(error) = words.collapse() {
            tracing::debug!(%error, "a segment has no huge pages");
        }
    };
    drop(std::thread::Builder::new().name("kvd-huge".to_owned()).spawn(collapse));
}

/// What of a memory cache's budget is kept for values too large for its rings: nothing unless they can come.
pub(super) fn side_bytes(config: &CacheConfig, value_bytes_max: usize) -> u64 {
    let eighth = config.memory_bytes / 8;
    let fits =
        Geometry::new(config.memory_bytes, 0).item_bytes_max() > value_bytes_max + limits::FRAME_OVERHEAD_MAX;
    if config.durability != Durability::Memory || fits { 0 } else { eighth }
}
