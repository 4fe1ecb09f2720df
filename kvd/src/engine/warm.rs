//! Warm-up: fills memory in the background after a start, and enumerates every key on disk into the index.
//!
//! Order: what the journal holds, newest first; the keys that were in memory at the last clean stop; all others in
//! key order, as items while there is room and as marks after. Until it is done, a miss asks the disk.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::segment::Installed;

use super::Engine;
use super::cache::Cache;
use super::item::Current;
use crate::store::CacheId;

/// Keys enumerated between two looks at whether the daemon is stopping.
const KEYS_A_STEP: usize = 512;

impl Engine {
    pub(crate) fn warm(&self) {
        let started = self.clock.instant();
        let mut full = HashSet::new();
        for (cache, key) in self.store.journalled_newest_first().into_iter().chain(self.store.load_resident()) {
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            self.warm_key(cache, &key, &mut full);
        }
        let caches: Vec<_> = self.caches.load().values().filter(|cache| cache.on_disk()).cloned().collect();
        for cache in caches {
            self.enumerate(&cache, &mut full);
        }
        tracing::debug!(ms = started.elapsed().as_millis() as u64, "memory is warm");
    }

    /// Puts every key of a cache on disk into its index; then a miss in memory is a miss.
    pub(crate) fn enumerate(&self, cache: &Arc<Cache>, full: &mut HashSet<CacheId>) {
        let mut after: Option<Vec<u8>> = None;
        loop {
            if self.closing.load(Ordering::Acquire) || cache.dropped.load(Ordering::Acquire) {
                return;
            }
            let keys = match self.store.enumerate(cache.id, after.as_deref(), KEYS_A_STEP) {
                Ok(keys) => keys,
                Err(error) => {
                    tracing::warn!(cache = cache.name, %error, "warm-up stopped; misses of this cache ask the disk");
                    return;
                }
            };
            for key in &keys {
                self.warm_key(cache.id, key, full);
            }
            match keys.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        let mut state = self.lock();
        let version = self.next_sequence(&mut state);
        state.memory(cache).writer.complete(version);
        self.control.commit(version);
    }

    /// Installs a key with its value, or only marks it when the cache's memory is full.
    fn warm_key(&self, id: CacheId, key: &[u8], full: &mut HashSet<CacheId>) {
        let Some(cache) = self.caches.load().values().find(|cache| cache.id == id).cloned() else { return };
        let target = self.target(&cache, key, true);
        if !full.contains(&id) {
            let moment = cache.moment(target.hash);
            match self.read_disk(&cache, key) {
                Ok(Some(current)) => {
                    if self.install(&target, moment, Some(&current)) == Some(Installed::Declined) {
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

    /// Saves which keys are in memory, for the next warm-up. Best effort: without it the warm-up goes in key order.
    pub(crate) fn save_resident(&self) {
        let mut keys: Vec<(CacheId, Vec<u8>)> = Vec::new();
        let caches: Vec<_> = self.caches.load().values().filter(|cache| cache.on_disk()).cloned().collect();
        let state = self.lock();
        for cache in caches {
            state.memory_ref(&cache).writer.for_each_resident(&mut |key| keys.push((cache.id, key.to_vec())));
        }
        drop(state);
        if let Err(error) = self.store.save_resident(&keys) {
            tracing::warn!(%error, "the list of keys in memory could not be saved; the next warm-up is in key order");
        }
    }

    /// Whether what the disk holds is still wanted.
    pub(crate) fn lives(&self, cache: &Cache, key: &[u8], item: &Current) -> bool {
        self.freshness(cache, key, item) != kv_proto::segment::Freshness::Gone
    }
}
