//! The engine's side of a restart in place: telling what memory there is while it serves, ending so that the next engine can go on
//! with it, and beginning with what another one left.
//!
//! Called by `handover`, which moves bytes between processes. It must never let anything be written to a segment once its state was
//! taken: the copy would lack it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kv_proto::Version;
use kv_proto::segment::{
    AttachError, Geometry, Heads, SegmentCopy, SegmentState, SweepCursor, Words, Writer, WriterState,
};
use kv_proto::wire::{Durability, Effect, What};
use serde::{Deserialize, Serialize};

use super::cache::{Memory, View};
use super::create::{Made, make_huge, side_bytes};
use super::item::Current;
use super::open::Planned;
use super::side::SideStore;
use super::{Engine, Failure, Session};
use crate::config::CacheConfig;
use crate::lock::FileLock;
use crate::store::{CacheId, Scope};

/// A cache's segment while it is in use: what the next process begins to copy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) name: String,
    /// Names the segment within this run.
    pub(crate) segment: u64,
    /// Its rings are written up to here.
    pub(crate) heads: Heads,
    /// Of a cache that is in memory only: what is needed to save it from a process that dies. Its configuration, and the bound of
    /// what stands beside the segment.
    pub(crate) in_memory: Option<(CacheConfig, u64)>,
}

/// A cache's memory when nothing is written to it any more, but for the words of its segment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    id: CacheId,
    name: String,
    pub(crate) segment: u64,
    config: CacheConfig,
    side_bytes_max: u64,
    state: WriterState,
    side: Vec<SideItem>,
}

impl Ended {
    pub(crate) fn state(&self) -> &WriterState {
        &self.state
    }

    /// As it is told to who did not know of it.
    pub(crate) fn told(&self) -> Told {
        let (name, heads) = (self.name.clone(), self.state.heads());
        Told { name, segment: self.segment, heads, in_memory: None }
    }

    /// What is left of a cache in memory whose daemon died, by a whole copy of its segment.
    pub(crate) fn salvaged(
        told: Told,
        words: Arc<Words>,
        committed: Version,
    ) -> Result<Option<Ended>, AttachError> {
        let Told { name, segment, in_memory, .. } = told;
        let Some((config, side_bytes_max)) = in_memory else { return Ok(None) };
        let state = Writer::salvage(words, committed)?.state();
        Ok(Some(Ended { id: 0, name, segment, config, side_bytes_max, state, side: Vec::new() }))
    }

    pub(crate) fn items(&self) -> u64 {
        self.state.items() + self.side.len() as u64
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct SideItem {
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    hash: u64,
    item: Current,
}

/// An engine that has ended and left its memory.
pub(crate) struct Estate {
    pub(crate) lock: FileLock,
    pub(crate) caches: Vec<Ended>,
    /// The words of their segments, in the same order.
    pub(crate) words: Vec<Arc<Words>>,
    /// By which other processes map them; `None` where there is no sealed memory.
    pub(crate) descriptors: Vec<Option<OwnedFd>>,
}

/// A fresh segment with everything that another engine's held.
pub(crate) struct Inheritance {
    pub(crate) ended: Ended,
    pub(crate) words: Arc<Words>,
    pub(crate) descriptor: Option<OwnedFd>,
}

/// What an engine begins with that follows another one.
pub(crate) struct Inherited {
    /// Of the directory; it was never free in between.
    pub(crate) lock: FileLock,
    /// What memory held; empty when the other one died.
    pub(crate) caches: Vec<Inheritance>,
    /// The other one has said good-bye to its readers, so nobody reads its memory behind a newer write.
    pub(crate) is_clean: bool,
}

impl Engine {
    /// Prepares for the end: segments stay what they are, and what the next start has to replay is kept short.
    pub(crate) fn begin_handover(&self, journal_bytes: u64) {
        self.handing_over.store(true, Ordering::Release);
        self.store.fold_beyond(Some(journal_bytes));
    }

    /// There will be no end after all.
    pub(crate) fn give_up_handover(&self) {
        self.handing_over.store(false, Ordering::Release);
        self.store.fold_beyond(None);
    }

    /// What the next start has to replay, in bytes.
    pub(crate) fn replay_bytes(&self) -> u64 {
        self.store.stats().journal_bytes
    }

    /// A copy of the descriptor of the directory's lock.
    pub(crate) fn lock_descriptor(&self) -> std::io::Result<OwnedFd> {
        let lock = self.lock.lock();
        lock.as_ref().ok_or_else(|| std::io::Error::other("the engine is closed"))?.descriptor()
    }

    /// Bytes of all caches' memory.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.caches.load().values().map(|cache| cache.config.memory_bytes).sum()
    }

    /// A copy of the control page's descriptor; `None` where there is no sealed memory.
    pub(crate) fn control_descriptor(&self) -> std::io::Result<Option<OwnedFd>> {
        self.control.descriptor().map(OwnedFd::try_clone).transpose()
    }

    /// Every segment that another process can map, with its descriptor.
    pub(crate) fn tell_segments(&self) -> std::io::Result<Vec<(Told, OwnedFd)>> {
        let mut told = Vec::new();
        for cache in self.caches.load().values() {
            let state = self.lock();
            let view = cache.view.load();
            let memory = state.memory_ref(cache);
            let heads = memory.writer.heads();
            let in_memory = (!cache.on_disk()).then(|| (cache.config.clone(), memory.side.bytes_max()));
            drop(state);
            if let Some(descriptor) = &view.descriptor {
                let segment = view.segment;
                let name = cache.name.clone();
                told.push((Told { name, segment, heads, in_memory }, descriptor.try_clone()?));
            }
        }
        Ok(told)
    }

    /// How far the rings of each segment are written.
    pub(crate) fn tell_heads(&self) -> Vec<(u64, Heads)> {
        let caches: Vec<_> = self.caches.load().values().cloned().collect();
        let state = self.lock();
        let heads = caches.iter().map(|cache| {
            let segment = cache.view.load().segment;
            (segment, state.memory_ref(cache).writer.heads())
        });
        heads.collect()
    }

    /// Ends as `close` does, and leaves its memory to who comes next. No request may be under way.
    ///
    /// # Errors
    /// With what it leaves all the same: the store was not closed cleanly, and the next start replays its log.
    pub(crate) fn bequeath(&self, deadline: Instant) -> (Estate, Result<(), Failure>) {
        self.closing.store(true, Ordering::Release);
        self.end_threads();
        let caches: Vec<_> = self.caches.load().values().cloned().collect();
        let (mut ended, mut words, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut state = self.lock();
            for memory in state.memories.iter_mut().flatten() {
                memory.writer.abandon_move();
                memory.writer.set_state(SegmentState::Superseded);
            }
            self.control.set_state(SegmentState::Closed);
            for cache in &caches {
                let memory = state.memory_ref(cache);
                let view = cache.view.load();
                ended.push(Ended {
                    id: cache.id,
                    name: cache.name.clone(),
                    segment: view.segment,
                    config: cache.config.clone(),
                    side_bytes_max: memory.side.bytes_max(),
                    state: memory.writer.state(),
                    side: memory.side.in_order().map(SideItem::of).collect(),
                });
                words.push(memory.writer.words());
                descriptors.push(view.descriptor.as_ref().and_then(|fd| fd.try_clone().ok()));
            }
        }
        let closed = self.store.close(deadline).map_err(Failure::from);
        let lock = self.lock.lock().take().expect("an open engine has its lock");
        (Estate { lock, caches: ended, words, descriptors }, closed)
    }

    /// The memory of a cache that another engine left, if it is there and fits; else a fresh one.
    pub(super) fn make_planned(
        &self,
        plan: &Planned,
        inherited: &mut Vec<Inheritance>,
    ) -> Result<(Made, bool), Failure> {
        let fits = |one: &Inheritance| plan.is_of(one.ended.id, &one.ended.name, &one.ended.config);
        let Some(at) = inherited.iter().position(fits) else {
            return Ok((self.make(&plan.config, 0, &plan.stamps)?, false));
        };
        match self.resume(inherited.swap_remove(at)) {
            Ok(made) => Ok((made, true)),
            Err(error) => {
                tracing::warn!(cache = plan.name, %error, "its memory could not be taken over");
                Ok((self.make(&plan.config, 0, &plan.stamps)?, false))
            }
        }
    }

    fn resume(&self, left: Inheritance) -> Result<Made, AttachError> {
        let Inheritance { ended, words, descriptor } = left;
        let writer = Writer::resume(Arc::clone(&words), &ended.state)?;
        let view = View {
            reader: writer.reader(&self.control),
            hits: super::heat::Reads::new(writer.hits()),
            segment: self.segments.fetch_add(1, Ordering::Relaxed) + 1,
            descriptor,
        };
        let mut side = SideStore::new(ended.side_bytes_max);
        for SideItem { key, hash, item } in ended.side {
            side.put(&key, hash, Arc::new(item), |_, _| {});
        }
        make_huge(&words);
        let memory = Memory { writer, side, sweep: SweepCursor::default(), sweep_began: 0, swept: 0 };
        Ok(Made { memory, view, words })
    }

    /// The division that a cache's configuration wants, if what it inherited has another amount of memory.
    pub(super) fn geometry_wanted(&self, config: &CacheConfig, made: &Made) -> Option<Geometry> {
        let side_bytes = side_bytes(config, self.config.value_bytes_max);
        let wanted = Geometry::new(config.memory_bytes - side_bytes, 0);
        let (has, wants) = (made.memory.writer.geometry().bytes() as u64, wanted.bytes() as u64);
        // Rounding differs by some words with the number of buckets.
        (has.abs_diff(wants) > wants / 16).then_some(wanted)
    }

    /// Empties caches before anybody is served.
    pub(crate) fn clear_by_name(&self, names: &[String]) -> Result<(), Failure> {
        for name in names {
            let cache = self.cache(name)?;
            let deadline = self.clock.instant() + kv_proto::limits::WRITE_WAIT_MAX;
            let effect = Effect::Gone;
            let mut session = Session::of_process();
            let what = What::Cleared { effect };
            self.stamp_by(&mut session, std::slice::from_ref(&cache), Scope::All, effect, what, deadline)?;
        }
        Ok(())
    }
}

impl SideItem {
    fn of((key, hash, item): (&[u8], u64, Arc<Current>)) -> SideItem {
        SideItem { key: key.to_vec(), hash, item: (*item).clone() }
    }
}

impl Planned {
    /// Whether this is the cache that another engine had: on disk by its number, else by its name.
    fn is_of(&self, id: CacheId, name: &str, config: &CacheConfig) -> bool {
        let is_memory = |config: &CacheConfig| config.durability == Durability::Memory;
        let is_same_kind = is_memory(config) == is_memory(&self.config);
        is_same_kind && self.name == name && (is_memory(config) || self.id == id)
    }
}

impl Inheritance {
    /// The cache's name, if it was in memory only.
    pub(super) fn name_in_memory(&self) -> Option<&str> {
        (self.ended.config.durability == Durability::Memory).then_some(&*self.ended.name)
    }
}

impl Estate {
    /// What this process itself goes on with, since the other one does not: fresh segments, because clients were told that these
    /// are no longer read.
    pub(crate) fn take_back(self) -> std::io::Result<Inherited> {
        let mut caches = Vec::new();
        for (ended, from) in self.caches.into_iter().zip(self.words) {
            let geometry = SegmentCopy::geometry_of(&from).map_err(std::io::Error::other)?;
            let (to, descriptor) = Words::memfd_or_private(c"kvd-segment", geometry.bytes())?;
            let copy = SegmentCopy::begin(from, to).map_err(std::io::Error::other)?;
            let words = copy.finish_whole();
            caches.push(Inheritance { ended, words, descriptor: descriptor.ok() });
        }
        Ok(Inherited { lock: self.lock, caches, is_clean: true })
    }
}
