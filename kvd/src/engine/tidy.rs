//! Housekeeping: what is dead leaves the index, an index that forgets too much is replaced by a larger one, prefix
//! clears that nothing older matches any more are retired, dropped caches give their memory back.
//!
//! Runs on a thread of its own, in steps short enough to hold the engine's mutex; also what the store's sweep asks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::segment::{Freshness, Geometry, SegmentState};
use kv_proto::wire::{Durability, ErrorKind};
use parking_lot::MutexGuard;

use super::cache::Cache;
use super::change::{Action, Decision};
use super::create::{Made, make_huge};
use super::item::{Current, Draft};
use super::{Engine, Session};
use crate::store::{CacheId, Judgement, RecordView};

/// How often it looks, unless woken.
const TIDY_EVERY: Duration = Duration::from_millis(200);
/// How often what was read before loses half of its weight in the ranking of the hottest keys, and how often the loads that
/// failed a while ago are forgotten.
const COOL_EVERY: Duration = Duration::from_secs(10);
/// Items of a ring visited in one hold of the mutex.
const ITEMS_A_STEP: usize = 256;
/// Steps a cache and round: 5,000 items a second cost no one anything …
const STEPS_A_ROUND: usize = 4;
/// … and more while a prefix clear waits to be retired.
const STEPS_A_ROUND_IN_HASTE: usize = 64;
/// A move into a larger segment takes at most so many times the steps of what was there when it began.
const MOVE_ROUNDS_MAX: usize = 4;

impl Engine {
    pub(crate) fn tidy(&self) {
        let mut cooled = self.clock.instant();
        self.resize();
        while !self.closing.load(Ordering::Acquire) {
            let now = self.clock.instant();
            if now.duration_since(cooled) >= COOL_EVERY {
                self.cool();
                self.lock().cooling.sweep(now);
                cooled = now;
            }
            let caches: Vec<_> = self.caches.load().values().cloned().collect();
            for cache in caches {
                self.sweep_memory(&cache);
                self.retire_prefixes(&cache);
                self.enlarge_index(&cache);
            }
            self.free_dropped();
            let rewrites = std::mem::take(&mut *self.rewrites.lock());
            rewrites.into_iter().for_each(|cache| self.rewrite(cache));
            let mut guard = self.wake.lock();
            if !self.closing.load(Ordering::Acquire) {
                self.wake_tidy.wait_for(&mut guard, TIDY_EVERY);
            }
        }
        self.prefix_retired.notify_all();
    }

    /// Wakes the housekeeping.
    pub(crate) fn tidy_now(&self) {
        let _guard = self.wake.lock();
        self.wake_tidy.notify_all();
    }

    /// Drops from the index what expired or was cleared, a few items at a time.
    fn sweep_memory(&self, cache: &Cache) {
        let in_haste = !self.lock().memory(cache).writer.prefix_entries().is_empty();
        for _ in 0..if in_haste { STEPS_A_ROUND_IN_HASTE } else { STEPS_A_ROUND } {
            let mut state = self.lock();
            let version = self.next_sequence(&mut state);
            let now = self.clock.now();
            let memory = state.memory(cache);
            if memory.sweep_began == 0 {
                memory.sweep_began = version;
            }
            let done = memory.writer.sweep(version, &mut memory.sweep, ITEMS_A_STEP, now);
            if done {
                memory.swept = std::mem::take(&mut memory.sweep_began);
            }
            self.control.commit(version);
            MutexGuard::unlock_fair(state);
            if done {
                return;
            }
        }
    }

    /// A prefix clear is forgotten when nothing older is left in rings, overlay, journal or tree.
    fn retire_prefixes(&self, cache: &Cache) {
        let mut state = self.lock();
        let disk_swept = if cache.on_disk() { state.swept } else { Version::MAX };
        let memory = state.memory(cache);
        let swept = disk_swept.min(memory.swept);
        let entries = memory.writer.prefix_entries();
        let retired: Vec<_> =
            entries.iter().filter(|entry| entry.version < swept).map(|entry| entry.index).collect();
        if retired.is_empty() {
            return;
        }
        let version = self.next_sequence(&mut state);
        let memory = state.memory(cache);
        for index in retired {
            memory.writer.retire_prefix(index);
        }
        memory.writer.publish(version);
        self.control.commit(version);
        self.prefix_retired.notify_all();
    }

    /// Gives caches that took over memory of another amount what their configuration says.
    fn resize(&self) {
        let resizes = std::mem::take(&mut *self.resizes.lock());
        for (id, geometry) in resizes {
            let Some(cache) = self.cache_by_id(id) else { continue };
            if let Err(failure) = self.supersede(&cache, geometry) {
                tracing::warn!(cache = cache.name, %failure, "its memory keeps its size until the next restart");
                continue;
            }
            if cache.on_disk() {
                self.enumerate(&cache, &mut HashSet::from([cache.id]));
            }
        }
    }

    /// Replaces a segment whose index forgets more than 1 % of the puts, or soon will.
    fn enlarge_index(&self, cache: &Arc<Cache>) {
        if self.handing_over.load(Ordering::Acquire) {
            return;
        }
        let Some(geometry) = self.lock().memory(cache).writer.needs_larger_index() else { return };
        if let Err(failure) = self.supersede(cache, geometry) {
            tracing::warn!(cache = cache.name, %failure, "the index could not be enlarged; misses ask the disk");
            return;
        }
        tracing::info!(cache = cache.name, buckets = geometry.buckets(), "index enlarged");
        if cache.on_disk() {
            self.enumerate(cache, &mut HashSet::from([cache.id]));
        }
    }

    /// Moves what is in memory into a segment of this division, in steps. On the thread that retires prefix clears: none is
    /// meanwhile.
    pub(super) fn supersede(&self, cache: &Arc<Cache>, geometry: Geometry) -> Result<(), super::Failure> {
        let (seed, side_bytes, items) = {
            let mut state = self.lock();
            let memory = state.memory(cache);
            (memory.writer.seed(), memory.side.bytes_max(), memory.writer.counts().items)
        };
        let Made { memory: mut new, view, words } =
            self.make_of(&cache.config, geometry, seed, side_bytes, &Default::default())?;
        self.lock().memory(cache).writer.begin_move(new.writer);
        // Whoever writes faster than this copies is overtaken by the last step.
        for _ in 0..MOVE_ROUNDS_MAX * (items as usize / ITEMS_A_STEP + 1) {
            let mut state = self.lock();
            if self.closing.load(Ordering::Acquire) {
                state.memory(cache).writer.abandon_move();
                return Ok(());
            }
            let version = self.next_sequence(&mut state);
            let done = state.memory(cache).writer.move_step(version, ITEMS_A_STEP, self.clock.now());
            self.control.commit(version);
            MutexGuard::unlock_fair(state);
            if done {
                break;
            }
        }
        let mut state = self.lock();
        let version = self.next_sequence(&mut state);
        let memory = state.memory(cache);
        if cache.dropped.load(Ordering::Acquire) {
            memory.writer.abandon_move();
            self.control.commit(version);
            return Ok(());
        }
        new.writer = memory.writer.finish_move(version, self.clock.now());
        memory.writer.set_state(SegmentState::Superseded);
        std::mem::swap(&mut memory.side, &mut new.side);
        *memory = new;
        cache.view.store(Arc::new(view));
        if !cache.on_disk() {
            memory.writer.complete(version);
        }
        self.control.commit(version);
        drop(state);
        // Not before: all of it is resident then, and the other one was, too.
        make_huge(&words);
        Ok(())
    }

    fn free_dropped(&self) {
        let mut state = self.lock();
        let dropped = std::mem::take(&mut state.dropped);
        let (free, held): (Vec<_>, Vec<_>) =
            dropped.into_iter().partition(|cache| Arc::strong_count(cache) == 1);
        for cache in free {
            state.memories[cache.slot] = None;
        }
        state.dropped = held;
    }

    /// What the store's sweep and fold ask: is this item still wanted on disk?
    pub(crate) fn judge(&self, id: CacheId, key: &[u8], view: &RecordView<'_>) -> Judgement {
        let Some(cache) = self.cache_by_id(id) else { return Judgement::Drop };
        let item = Current { value: Vec::new(), ..Current::from_store(view) };
        let now = self.clock.now();
        match self.freshness_at(&cache, key, &item, now) {
            Freshness::Gone => Judgement::Drop,
            Freshness::Stale if !item.is_expired(now) => Judgement::Stale,
            Freshness::Stale | Freshness::Fresh => Judgement::Keep,
        }
    }

    /// The disk budget has made this item leave the disk: it leaves memory too, unless it was written anew.
    pub(crate) fn evicted_from_disk(&self, id: CacheId, key: &[u8], version: Version) {
        let Some(cache) = self.cache_by_id(id) else { return };
        let target = self.target(&cache, key, false);
        let mut state = self.lock();
        if self.store.is_overlaid(id, key) {
            return;
        }
        let at = self.next_sequence(&mut state);
        state.memory(&cache).writer.forget_key(at, target.hash, key, Some(version));
        cache.note_change(target.hash, at);
        self.control.commit(at);
    }

    /// The disk has room again, and holds nothing of this cache: what is in memory is logged anew.
    pub(crate) fn rewrite(&self, id: CacheId) {
        let Some(cache) = self.cache_by_id(id) else { return };
        let keys = self.resident_keys(&cache);
        let mut rewritten = 0_u64;
        let mut session = Session::of_process();
        for key in keys {
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            // As `expire` does: what is there now is put again, whatever has happened since the list was made.
            let again = self.change(
                &mut session,
                &[self.target(&cache, &key, true)],
                Some(Durability::Behind),
                |looks, _| {
                    let action =
                        looks[0].as_deref().map_or(Action::Keep, |item| Action::Put(Draft::again(item)));
                    Ok(Decision { answer: (), actions: vec![action] })
                },
            );
            match again {
                Ok(_) => rewritten += 1,
                Err(failure) if matches!(failure.kind, ErrorKind::Timeout | ErrorKind::Deadlock) => {
                    // A transaction was in the way. What is done is done again, which changes nothing.
                    self.rewrites.lock().push(id);
                    return;
                }
                Err(failure) => {
                    tracing::warn!(cache = cache.name, %failure, "an item could not be written to disk again");
                    return;
                }
            }
        }
        tracing::info!(
            cache = cache.name,
            rewritten,
            "the disk has room again: what is in memory is on disk again"
        );
    }

    pub(crate) fn cache_by_id(&self, id: CacheId) -> Option<Arc<Cache>> {
        self.caches.load().values().find(|cache| cache.id == id).cloned()
    }
}
