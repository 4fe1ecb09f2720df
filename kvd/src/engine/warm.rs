//! Warm-up: fills memory in the background after a start, and enumerates every key on disk into the index.
//!
//! Order: what the journal holds, newest first; the keys that were in memory at the last clean stop; all others in
//! key order, as items while there is room and as marks after. Until it is done, a miss asks the disk.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::segment::{Install, Installed};

use super::Engine;
use super::cache::Cache;
use crate::store::CacheId;

/// Keys of the journal brought into memory first, at most; the rest comes in key order.
const NEWEST_MAX: usize = 1 << 20;
/// Keys enumerated between two looks at whether the daemon is stopping.
const KEYS_A_STEP: usize = 512;

impl Engine {
    pub(crate) fn warm(&self) {
        let started = self.clock.instant();
        let mut full = HashSet::new();
        // What was taken over whole from another process needs no warming.
        let is_cold = |cache: &Arc<Cache>| !self.lock().memory_ref(cache).writer.is_complete();
        let caches: Vec<_> = self.caches.load().values().filter(|cache| cache.on_disk()).cloned().collect();
        let caches: Vec<_> = caches.into_iter().filter(is_cold).collect();
        if caches.is_empty() {
            return;
        }
        for (cache, key) in self.store.newest(NEWEST_MAX).into_iter().chain(self.store.load_resident()) {
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            if caches.iter().any(|cold| cold.id == cache) {
                self.warm_key(cache, &key, &mut full);
            }
        }
        for cache in caches {
            self.enumerate(&cache, &mut full);
        }
        tracing::debug!(ms = started.elapsed().as_millis() as u64, "memory is warm");
    }

    /// Puts every key of a cache on disk into its index; then a miss in memory is a miss.
    pub(crate) fn enumerate(&self, cache: &Arc<Cache>, full: &mut HashSet<CacheId>) {
        let segment = cache.view.load().segment;
        // Every key comes after the empty one.
        let mut after = (cache.id, Vec::new());
        loop {
            if self.closing.load(Ordering::Acquire) || cache.dropped.load(Ordering::Acquire) {
                return;
            }
            let step = match self.store.enumerate(Some(&after), KEYS_A_STEP) {
                Ok(step) => step,
                Err(error) => {
                    tracing::warn!(cache = cache.name, %error, "warm-up stopped; misses of this cache ask the disk");
                    return;
                }
            };
            for found in step.keys.iter().filter(|found| found.cache == cache.id) {
                self.warm_key(cache.id, &found.key, full);
            }
            match step.next {
                Some(next) if next.0 == cache.id => after = next,
                Some(_) | None => break,
            }
        }
        self.complete(cache, segment);
    }

    /// All keys on disk are in the index of this segment. Nothing is known of one that has taken its place meanwhile: marks do not
    /// move with it, and whoever made it enumerates it.
    pub(super) fn complete(&self, cache: &Cache, segment: u64) {
        let mut state = self.lock();
        if cache.view.load().segment != segment {
            return;
        }
        let version = self.next_sequence(&mut state);
        state.memory(cache).writer.complete(version);
        self.control.commit(version);
    }

    /// Installs a key with its value, or only marks it when the cache's memory is full.
    fn warm_key(&self, id: CacheId, key: &[u8], full: &mut HashSet<CacheId>) {
        let Some(cache) = self.cache_by_id(id).filter(|cache| cache.on_disk()) else { return };
        let target = self.target(&cache, key, true);
        if !full.contains(&id) {
            let moment = cache.moment(target.hash);
            match self.read_disk(&cache, key, self.clock.now()) {
                Ok(Some(current)) => {
                    let installed = self.install(&target, moment, Some(&current), Install::WarmUp);
                    if installed == Some(Installed::Declined) {
                        full.insert(id);
                    } else {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(cache = cache.name, %error, "a key could not be read while warming up");
                    return;
                }
            }
        }
        let mut state = self.lock();
        let version = self.next_sequence(&mut state);
        state.memory(&cache).writer.install_mark(version, target.hash, key);
        self.control.commit(version);
    }

    /// The keys a cache has in memory now.
    pub(crate) fn resident_keys(&self, cache: &Cache) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        self.lock().memory_ref(cache).writer.for_each_resident(&mut |key| keys.push(key.to_vec()));
        keys
    }

    /// Saves which keys are in memory, for the next warm-up. Best effort: without it the warm-up goes in key order.
    pub(crate) fn save_resident(&self) {
        let mut keys: Vec<(CacheId, Vec<u8>)> = Vec::new();
        let caches: Vec<_> = self.caches.load().values().filter(|cache| cache.on_disk()).cloned().collect();
        let state = self.lock();
        for cache in caches {
            state.memory_ref(&cache).writer.for_each_resident(&mut |key| keys.push((cache.id, key.to_vec())));
        }
        drop(state);
        self.store.save_resident(keys.iter().map(|(cache, key)| (*cache, &key[..])));
    }
}
