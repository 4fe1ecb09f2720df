//! Writing: one at a time, under the engine's mutex. Appends items, swings slots, stamps clears, evicts.
//!
//! A commit is staged (`stage_put`, `stage_remove`, `stage_mark`, `stamp_*`: items are appended, nothing is visible), then
//! published (`publish`, W2), then committed by the control page (W3). The engine decides; nothing here knows durability.

mod evict;
#[cfg(not(loom))]
mod handover;
mod index;
mod keep;
#[cfg(not(loom))]
mod salvage;
mod successor;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::control::{Control, SegmentState};
use super::ghost::Ghost;
use super::hits::Hits;
use super::item::{At, Freshness, Front, Head, Life, Meta, NewItem, Place};
use super::layout::{
    Geometry, H_CLEAR, H_INDEX_COMPLETE, H_NEWEST_PREFIX, H_NEWEST_TAG, H_STALE, H_STATE, H_TAIL, RINGS,
    Ring, SLOTS, Slot, bucket,
};
use super::reader::Reader;
use super::stamps::{self, PrefixClear};
use super::sync::{Ordering, fence};
use super::words::Words;
use crate::wire::Effect;
use crate::{BootMs, Version, limits};

#[cfg(not(loom))]
pub use handover::{Heads, SegmentCopy, WriterState};
pub use keep::{SweepCursor, WalkItem};
use successor::Successor;

/// What stands behind a cache's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backed {
    /// Nothing: what is evicted is lost.
    Memory,
    /// A disk: what is evicted leaves a mark.
    Disk,
}

/// A slot without a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// On disk, not in memory.
    Disk,
    /// In the daemon's side store.
    Ask,
}

/// What the writer finds for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// In memory; perhaps gone by now ([`Meta::freshness`]).
    Item(Meta),
    /// On disk, perhaps.
    DiskMark,
    /// In the side store, perhaps.
    AskMark,
    /// Nothing in memory.
    Absent {
        /// Nothing on disk either.
        known: bool,
    },
}

/// What became of an item from disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// It is in memory now.
    Resident,
    /// Memory holds this key already, perhaps newer.
    Present,
    /// No room: too large, or a warm-up met a full memory.
    Declined,
}

/// Why an item is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Install {
    /// It was asked for: room is made as for a write.
    Read,
    /// Warm-up: only into room that is free.
    WarmUp,
}

/// The table of prefix clears is full: wait until one is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixTableFull;

/// What happened and what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Items in memory.
    pub items: u64,
    /// Keys known to be on disk only.
    pub disk_marks: u64,
    /// Keys in the side store.
    pub ask_marks: u64,
    /// Live items that left memory for others.
    pub evicted: u64,
    /// Dead items dropped.
    pub expired_dropped: u64,
    /// Keys whose slot was needed by others.
    pub forgotten: u64,
    /// Items appended by writes and reads.
    pub puts: u64,
    /// Items that moved from probation to main.
    pub promoted: u64,
    /// Items that returned soon after they had left.
    pub ghost_hits: u64,
    /// Bytes of the rings in use.
    pub ring_bytes_used: u64,
}

/// Something to be done to the index when the commit is published.
#[derive(Debug)]
struct Staged {
    hash: u64,
    /// Where the key lies in `staged_keys`.
    key: std::ops::Range<usize>,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Item(At),
    Mark(Mark),
    Remove,
}

/// The writer of one segment.
pub struct Writer {
    words: Arc<Words>,
    geometry: Geometry,
    seed: u64,
    backed: Backed,
    head: [u64; 2],
    tail: [u64; 2],
    /// Tails that readers see; they move in steps.
    tail_seen: [u64; 2],
    /// Words of the largest item of main in this lap and the last: room for it stays free.
    largest: [usize; 2],
    hits: Arc<Hits>,
    ghost: Ghost,
    staged: Vec<Staged>,
    staged_keys: Vec<u8>,
    staged_stamps: Vec<(usize, Version)>,
    staged_prefixes: Vec<(usize, Effect, Vec<u8>, Version)>,
    /// Reused for payloads and keys.
    scratch: Vec<u8>,
    counts: Counts,
    /// Items by ring.
    items: [u64; 2],
    /// Words that live items were given, to know their mean.
    words_put: u64,
    checked: (u64, u64),
    is_sized: bool,
    successor: Option<Box<Successor>>,
}

impl Writer {
    /// Lays out an empty segment in `words`.
    ///
    /// # Panics
    /// When the memory is smaller than the geometry.
    #[must_use]
    pub fn create(
        words: Arc<Words>,
        geometry: Geometry,
        seed: u64,
        backed: Backed,
        committed: Version,
    ) -> Writer {
        assert!(words.len() >= geometry.words(), "the segment is made for its geometry");
        for bucket in 0..geometry.buckets() {
            // A reader that began before this segment must not take its emptiness for an answer.
            words.store(geometry.bucket_at(bucket) + SLOTS, bucket::word(committed, 0));
        }
        let start = RINGS.map(|ring| geometry.ring_words(ring) as u64);
        for ring in RINGS {
            words.store(H_TAIL[ring as usize], start[ring as usize]);
        }
        words.store(H_STATE, SegmentState::Live.word());
        for (at, value) in geometry.constants(seed, backed == Backed::Disk) {
            words.store(at, value);
        }
        let hits = Arc::new(Hits::new(geometry.buckets()));
        Writer {
            words,
            geometry,
            seed,
            backed,
            head: start,
            tail: start,
            tail_seen: start,
            largest: [0; 2],
            hits,
            ghost: Ghost::new(0),
            staged: Vec::new(),
            staged_keys: Vec::new(),
            staged_stamps: Vec::new(),
            staged_prefixes: Vec::new(),
            scratch: Vec::new(),
            counts: Counts::default(),
            items: [0; 2],
            words_put: 0,
            checked: (0, 0),
            is_sized: false,
            successor: None,
        }
    }

    /// A reader inside this process.
    #[must_use]
    pub fn reader(&self, control: &Arc<Control>) -> Reader {
        Reader::of_writer(Arc::clone(control), Arc::clone(&self.words), self.geometry, self.seed)
    }

    /// The counters of reads.
    #[must_use]
    pub fn hits(&self) -> Arc<Hits> {
        Arc::clone(&self.hits)
    }

    /// The seed of its hashes.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What stands behind it.
    #[must_use]
    pub fn backed(&self) -> Backed {
        self.backed
    }

    /// Bytes of the largest item, key and header included, that memory takes.
    #[must_use]
    pub fn item_bytes_max(&self) -> usize {
        self.geometry.item_bytes_max()
    }

    /// Says that the segment is live, superseded or closed.
    pub fn set_state(&self, state: SegmentState) {
        self.words.store(H_STATE, state.word());
        // SYNC(state): stored before the first commit into a successor.
        fence(Ordering::Release);
    }

    /// What happened and what is there.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let used = RINGS.map(|ring| self.head[ring as usize] - self.tail[ring as usize]);
        Counts {
            items: self.items[0] + self.items[1],
            ring_bytes_used: (used[0] + used[1]) * 8,
            ..self.counts
        }
    }

    /// Appends an item; it becomes visible with `publish`. `false`: too large for any ring, and nothing was done.
    /// Each key may be staged once a commit; what is staged later for the same key wins.
    pub fn stage_put(&mut self, version: Version, hash: u64, item: &NewItem<'_>, now: BootMs) -> bool {
        let place = self.find_slot(hash, item.key);
        let Some(ring) = self.ring_for(place, hash, item.words()) else { return false };
        let at = self.append(version, ring, item, now);
        self.counts.puts += 1;
        self.words_put += item.words() as u64;
        self.stage(hash, item.key, What::Item(at));
        true
    }

    /// Takes a key out of memory with `publish`.
    pub fn stage_remove(&mut self, _version: Version, hash: u64, key: &[u8]) {
        self.stage(hash, key, What::Remove);
    }

    /// Puts a mark in the place of a key with `publish`.
    pub fn stage_mark(&mut self, _version: Version, hash: u64, key: &[u8], mark: Mark) {
        self.stage(hash, key, What::Mark(mark));
    }

    fn stage(&mut self, hash: u64, key: &[u8], what: What) {
        let start = self.staged_keys.len();
        self.staged_keys.extend_from_slice(key);
        self.staged.push(Staged { hash, key: start..self.staged_keys.len(), what });
    }

    /// Which ring a new item goes to; `None`: it is too large for both.
    fn ring_for(&mut self, place: Option<Place>, hash: u64, words: usize) -> Option<Ring> {
        if words > self.geometry.item_words_max(Ring::Main) {
            return None;
        }
        if words > self.geometry.item_words_max(Ring::Probation) {
            return Some(Ring::Main);
        }
        match place.map(|place| self.slot(place)) {
            Some(Slot::At(ring, _)) => Some(ring),
            Some(Slot::Disk | Slot::Ask) | None => {
                if self.ghost.take(hash) {
                    self.counts.ghost_hits += 1;
                    Some(Ring::Main)
                } else {
                    Some(Ring::Probation)
                }
            }
        }
    }

    /// Makes what was staged visible to readers who know `version` to be whole (W2).
    pub fn publish(&mut self, version: Version) {
        // SYNC(publish): items before slots.
        fence(Ordering::Release); // MUTANT(publish-fence)
        let staged = std::mem::take(&mut self.staged);
        let keys = std::mem::take(&mut self.staged_keys);
        for change in &staged {
            self.publish_one(version, change.hash, &keys[change.key.clone()], change.what);
        }
        for (at, stamp) in self.staged_stamps.drain(..) {
            self.words.store(at, stamp);
        }
        for (entry, effect, prefix, stamp) in self.staged_prefixes.drain(..) {
            stamps::put_prefix(&self.words, entry, stamp, effect, &prefix);
        }
        (self.staged, self.staged_keys) = (staged, keys);
        self.staged.clear();
        self.staged_keys.clear();
    }

    fn publish_one(&mut self, version: Version, hash: u64, key: &[u8], what: What) {
        match what {
            What::Item(at) if at.position >= self.tail[at.ring as usize] => {
                self.swing(version, hash, key, at)
            }
            // A commit larger than the ring has run over its own beginning.
            What::Item(_) => match self.backed {
                Backed::Disk => self.put_mark(version, hash, key, Mark::Disk),
                Backed::Memory => self.remove_key(version, hash, key),
            },
            What::Mark(mark) => self.put_mark(version, hash, key, mark),
            What::Remove => self.remove_key(version, hash, key),
        }
        self.forget_in_successor(version, hash, key);
    }

    /// Clears everything older than `version`, with `publish`.
    pub fn stamp_all(&mut self, version: Version, effect: Effect) {
        self.staged_stamps.push((if effect == Effect::Gone { H_CLEAR } else { H_STALE }, version));
    }

    /// Clears what has a tag of this slot and is older than `version`, with `publish`.
    pub fn stamp_tag(&mut self, version: Version, tag_slot: u32, effect: Effect) {
        let at = self.geometry.tag_at(tag_slot) + usize::from(effect == Effect::Stale);
        self.staged_stamps.extend([(at, version), (H_NEWEST_TAG, version)]);
    }

    /// Clears what begins with `prefix` and is older than `version`, with `publish`.
    ///
    /// # Errors
    /// When the table is full; nothing was done.
    pub fn stamp_prefix(
        &mut self,
        version: Version,
        prefix: &[u8],
        effect: Effect,
    ) -> Result<(), PrefixTableFull> {
        let taken = |entry: &usize| self.staged_prefixes.iter().any(|staged| staged.0 == *entry);
        let entries = 0..limits::PREFIX_CLEARS_MAX;
        let mut same = entries.clone().filter_map(|entry| stamps::prefix(&self.words, entry));
        if let Some(clear) = same.find(|clear| clear.prefix == prefix && clear.effect == effect) {
            // A newer clear of the same prefix covers the older one; its bytes stay, so that it covers at every moment.
            self.staged_stamps.push((Geometry::prefix_at(clear.index), version));
        } else {
            let is_free = |entry: &usize| !taken(entry) && stamps::prefix(&self.words, *entry).is_none();
            let entry = entries.clone().find(is_free).ok_or(PrefixTableFull)?;
            self.staged_prefixes.push((entry, effect, prefix.to_vec(), version));
        }
        self.staged_stamps.push((H_NEWEST_PREFIX, version));
        Ok(())
    }

    /// The prefix clears that are still remembered.
    #[must_use]
    pub fn prefix_entries(&self) -> Vec<PrefixClear> {
        (0..limits::PREFIX_CLEARS_MAX).filter_map(|entry| stamps::prefix(&self.words, entry)).collect()
    }

    /// Forgets a prefix clear that nothing older matches any more, after the commit of the sweep that saw to that: a reader who
    /// finds it forgotten then finds the slots of what it covered emptied.
    pub fn retire_prefix(&mut self, entry: usize) {
        self.words.store(Geometry::prefix_at(entry), 0);
    }

    /// Stores stamps before anybody reads: clear, stale, tags as (slot, gone, stale), prefixes.
    pub fn load_stamps(
        &mut self,
        clear: Version,
        stale: Version,
        tags: impl IntoIterator<Item = (u32, Version, Version)>,
        prefixes: impl IntoIterator<Item = (Vec<u8>, Effect, Version)>,
    ) {
        self.words.store(H_CLEAR, clear);
        self.words.store(H_STALE, stale);
        let raise = |at: usize, stamp: Version| self.words.store(at, self.words.load(at).max(stamp));
        for (tag_slot, gone, stale) in tags {
            let at = self.geometry.tag_at(tag_slot);
            raise(at, gone);
            raise(at + 1, stale);
            raise(H_NEWEST_TAG, gone.max(stale));
        }
        for (entry, (prefix, effect, stamp)) in prefixes.into_iter().enumerate() {
            assert!(entry < limits::PREFIX_CLEARS_MAX, "no more were ever remembered");
            stamps::put_prefix(&self.words, entry, stamp, effect, &prefix);
            raise(H_NEWEST_PREFIX, stamp);
        }
    }

    /// Every key on disk has a slot, or its bucket says that it forgot one: from `version` on a miss is a miss.
    pub fn complete(&mut self, version: Version) {
        self.words.store(H_INDEX_COMPLETE, version);
    }

    /// Whether every key on disk has been enumerated.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.words.load(H_INDEX_COMPLETE) != 0
    }

    /// Whether an item may be served now.
    #[must_use]
    pub fn verdict(
        &self,
        life: &Life,
        tags: impl Iterator<Item = u32>,
        key: &[u8],
        now: BootMs,
    ) -> Freshness {
        stamps::verdict(self.words.view(), &self.geometry, life, tags, key, now, Version::MAX)
            .expect("nobody else writes while the writer reads")
    }

    fn front(&self, at: At) -> (Front, usize) {
        let words_at = self.at(at);
        let front = Front::read(Head::new(self.words.load(words_at)), |i| self.words.load(words_at + i));
        let bytes = front.payload_bytes().expect("the writer reads what it wrote");
        (front, bytes)
    }

    #[inline]
    fn at(&self, at: At) -> usize {
        self.geometry.ring_at(at.ring) + self.geometry.offset(at.ring, at.position)
    }
}
