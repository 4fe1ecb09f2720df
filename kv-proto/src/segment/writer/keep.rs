//! What is not a write of a user: installing from disk, enumerating, sweeping, walking, asking for a larger segment.

use super::super::item::{At, Meta, NewItem};
use super::super::layout::{BUCKET_WORDS, Geometry, POSITIONS_MAX, RINGS, Ring, SLOTS, Slot, slot};
use super::super::words::WORD_BYTES;
use super::{Backed, Install, Installed, Mark, PrefixClear, What, Writer};
use crate::wire::Effect;
use crate::{BootMs, Version};

/// The index is too small when more than one of this many writes displaces a key: with a disk behind it each of them makes misses
/// ask the daemon …
const FORGOTTEN_SHARE_DISK: u64 = 100;
/// … and without one it is an eviction, of the coldest of seven. Buckets filled as planned displace one of 30.
const FORGOTTEN_SHARE_MEMORY: u64 = 16;
/// … of at least this many writes.
const FORGOTTEN_AFTER: u64 = 1_000;
/// The mean size of items is known well enough when main is filled to one part in this many.
const SIZED_AT_SHARE: usize = 16;

/// Where a sweep over the rings stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepCursor {
    /// Next position, by ring; 0: from the tail.
    next: [u64; 2],
    /// Where the sweep ends, by ring; 0: it has not begun.
    end: [u64; 2],
}

/// What a walk meets.
#[derive(Debug)]
pub enum WalkItem<'a> {
    /// An item, perhaps gone by now.
    Item {
        /// Its key.
        key: &'a [u8],
        /// All about it.
        meta: &'a Meta,
        /// Its bytes, for [`Meta::value`] and [`Meta::tags`].
        bytes: &'a [u8],
    },
    /// A key in the side store, by its hash.
    AskMark {
        /// The hash of the key.
        hash: u64,
    },
    /// A key on disk, by its hash.
    DiskMark {
        /// The hash of the key.
        hash: u64,
    },
}

impl Writer {
    /// Puts an item from disk into memory, unless memory holds its key already. Takes effect with the commit of `version`.
    pub fn install(
        &mut self,
        version: Version,
        hash: u64,
        item: &NewItem<'_>,
        how: Install,
        now: BootMs,
    ) -> Installed {
        let place = self.find_slot(hash, item.key);
        if place.is_some_and(|place| matches!(self.slot(place), Slot::At(..) | Slot::Ask)) {
            return Installed::Present;
        }
        let words = item.words();
        let ring = match how {
            Install::Read => self.ring_for(place, hash, words),
            // Warm-up fills main: what was in memory before has proved itself.
            Install::WarmUp => Some(Ring::Main)
                .filter(|ring| words <= self.geometry.item_words_max(*ring) && self.has_room(*ring, words)),
        };
        let Some(ring) = ring else { return Installed::Declined };
        self.counts.puts += 1;
        self.words_put += words as u64;
        let at = self.append(version, ring, item, now);
        super::fence(super::Ordering::Release);
        self.publish_one(version, hash, item.key, What::Item(at));
        Installed::Resident
    }

    /// Notes that a key is on disk, unless memory knows it already.
    pub fn install_mark(&mut self, version: Version, hash: u64, key: &[u8]) {
        if self.find_slot(hash, key).is_none() {
            self.counts.puts += 1;
            self.put_mark(version, hash, key, Mark::Disk);
        }
    }

    /// Takes a key out of memory if it is a disk mark, or an item of exactly `item` if that is given.
    pub fn forget_key(&mut self, version: Version, hash: u64, key: &[u8], item: Option<Version>) {
        self.forget_in_successor(version, hash, key);
        let Some(place) = self.find_slot(hash, key) else { return };
        let goes = match self.slot(place) {
            Slot::Disk => true,
            Slot::Ask => false,
            Slot::At(ring, position) => item == Some(self.front(At { ring, position }).0.version),
        };
        if goes {
            self.leave(self.slot(place));
            self.empty(version, place);
        }
    }

    /// Drops dead items from the index, at most `items_max` visited; `true` when the whole of both rings was visited.
    pub fn sweep(
        &mut self,
        version: Version,
        cursor: &mut SweepCursor,
        items_max: usize,
        now: BootMs,
    ) -> bool {
        if cursor.end == [0; 2] {
            *cursor = SweepCursor { next: self.tail, end: self.head };
        }
        let mut left = items_max;
        for ring in RINGS {
            let r = ring as usize;
            cursor.next[r] = cursor.next[r].max(self.tail[r]);
            while cursor.next[r] < cursor.end[r] {
                if left == 0 {
                    return false;
                }
                left -= 1;
                let at = At { ring, position: cursor.next[r] };
                cursor.next[r] += self.words_here(at) as u64;
                if self.is_filler(at) {
                    continue;
                }
                let Some((place, hash)) = self.place_of(at) else { continue };
                if self.is_gone(at, now) {
                    self.counts.expired_dropped += 1;
                    self.leave(self.slot(place));
                    self.empty(version, place);
                } else if self.is_stale_by_prefix(at) {
                    self.settle_as_stale(version, at, hash, now);
                }
            }
        }
        *cursor = SweepCursor::default();
        true
    }

    /// Whether only a prefix clear makes this item stale: it must not become fresh when that is retired.
    fn is_stale_by_prefix(&self, at: At) -> bool {
        let (front, _) = self.front(at);
        let covers = |clear: &PrefixClear, key: &[u8]| {
            clear.effect == Effect::Stale && clear.version > front.version && key.starts_with(&clear.prefix)
        };
        !front.head.is_stale()
            && self.with_key(at, |key| self.prefix_entries().iter().any(|clear| covers(clear, key)))
    }

    /// Puts the same version of an item again, as stale by itself.
    fn settle_as_stale(&mut self, version: Version, at: At, hash: u64, now: BootMs) {
        let (meta, buffer) = self.whole(at);
        let tags: Vec<&[u8]> = meta.tags(&buffer).collect();
        let item = NewItem { stale: true, ..meta.as_new(&buffer, &tags) };
        let to = self.append(version, at.ring, &item, now);
        super::fence(super::Ordering::Release);
        self.publish_one(version, hash, item.key, What::Item(to));
    }

    /// An item with its bytes.
    pub(super) fn whole(&self, at: At) -> (Meta, Vec<u8>) {
        let (front, bytes) = self.front(at);
        let mut buffer = Vec::with_capacity(bytes);
        self.words.copy_out(self.at(at) + front.head.head_words(), bytes, &mut buffer);
        let nowhere = super::Place { bucket: 0, slot: 0 };
        (front.meta(0, bytes, super::Freshness::Fresh, nowhere), buffer)
    }

    /// A larger division of the same memory, if this index forgets too much or soon will.
    ///
    /// The same division when its positions have half run out: a successor begins with new ones.
    pub fn needs_larger_index(&mut self) -> Option<Geometry> {
        if self.head.iter().any(|&head| head > POSITIONS_MAX / 2) {
            return Some(self.geometry);
        }
        let bytes = self.geometry.bytes() as u64;
        let puts = self.counts.puts - self.checked.0;
        let forgotten = self.counts.forgotten - self.checked.1;
        let main = self.geometry.ring_words(Ring::Main);
        let used = (self.head[1] - self.tail[1] + self.head[0] - self.tail[0]) as usize;
        let mut wanted = 0;
        if !self.is_sized && used > main / SIZED_AT_SHARE && self.counts.puts > 0 {
            self.is_sized = true;
            let mean = (self.words_put / self.counts.puts).max(4) as usize;
            wanted = self.geometry.items_of(mean);
        }
        if puts >= FORGOTTEN_AFTER {
            self.checked = (self.counts.puts, self.counts.forgotten);
            let share = match self.backed {
                Backed::Disk => FORGOTTEN_SHARE_DISK,
                Backed::Memory => FORGOTTEN_SHARE_MEMORY,
            };
            if forgotten > puts / share {
                wanted = wanted.max(self.geometry.buckets() as u64 * 7);
            }
        }
        let larger = (wanted > 0).then(|| Geometry::new(bytes, wanted))?;
        (larger.buckets() > self.geometry.buckets() + self.geometry.buckets() / 8).then_some(larger)
    }

    /// Visits what is in the index from the bucket of `from_hash` on, in hash order, at most `buckets_max` buckets; where to
    /// go on, or `None` at the end.
    pub fn walk(
        &self,
        from_hash: u64,
        buckets_max: usize,
        now: BootMs,
        visit: &mut dyn FnMut(WalkItem<'_>),
    ) -> Option<u64> {
        let first = self.geometry.bucket(from_hash);
        let end = (first + buckets_max.max(1)).min(self.geometry.buckets());
        let mut bytes = Vec::new();
        for bucket in first..end {
            for i in 0..SLOTS {
                let word = self.words.load(self.geometry.bucket_at(bucket) + i);
                if word == 0 {
                    continue;
                }
                // A walk goes on in a successor of other buckets: then its first bucket holds what was visited before.
                let is_new = |hash: u64| bucket > first || hash >= from_hash;
                let hash = slot::mark_hash(word, bucket, self.geometry.buckets());
                match slot::kind(word) {
                    Slot::Disk if is_new(hash) => visit(WalkItem::DiskMark { hash }),
                    Slot::Ask if is_new(hash) => visit(WalkItem::AskMark { hash }),
                    Slot::Disk | Slot::Ask => {}
                    Slot::At(ring, position) => {
                        let at = At { ring, position };
                        if !self.with_key(at, |key| is_new(crate::hash_key(self.seed, key))) {
                            continue;
                        }
                        let (front, count) = self.front(at);
                        bytes.clear();
                        self.words.copy_out(self.at(at) + front.head.head_words(), count, &mut bytes);
                        let place = super::Place { bucket, slot: i };
                        let mut meta = front.meta(0, count, super::Freshness::Fresh, place);
                        meta.freshness = self.verdict(&meta.life(), front.tag_slots(), meta.key(&bytes), now);
                        visit(WalkItem::Item { key: meta.key(&bytes), meta: &meta, bytes: &bytes });
                    }
                }
            }
        }
        // The lowest hash of the next bucket.
        (end < self.geometry.buckets())
            .then(|| (((end as u128) << 64).div_ceil(self.geometry.buckets() as u128)) as u64)
    }

    /// Visits the keys in memory: main first, then probation, oldest first.
    pub fn for_each_resident(&self, visit: &mut dyn FnMut(&[u8])) {
        for ring in [Ring::Main, Ring::Probation] {
            let mut position = self.tail[ring as usize];
            while position < self.head[ring as usize] {
                let at = At { ring, position };
                position += self.words_here(at) as u64;
                if !self.is_filler(at) && self.place_of(at).is_some() {
                    self.with_key(at, &mut *visit);
                }
            }
        }
    }
}

const _: () = assert!(BUCKET_WORDS * WORD_BYTES == 64);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::super::words::Words;
    use super::*;

    #[test]
    fn a_successor_is_wanted_long_before_positions_run_out() {
        let geometry = Geometry::exact(4, 2, 64, 64);
        let mut writer = Writer::create(Words::heap(geometry.words()), geometry, 1, Backed::Disk, 1);
        assert_eq!(writer.needs_larger_index(), None);
        writer.head[1] = POSITIONS_MAX / 2 + 1;
        assert_eq!(writer.needs_larger_index(), Some(geometry));
    }
}
