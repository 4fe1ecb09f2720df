//! The writer's side of the index: finding, swinging, removing, displacing.
//!
//! Order of stores (SHARED-MEMORY): what a removal leaves in the bucket word comes before the slot it empties.

use super::super::item::{At, Freshness, Place};
use super::super::layout::{Ring, SLOTS, Slot, bucket, slot};
use super::super::sync::{Ordering, fence};
use super::super::words::{WORD_BYTES, words_for};
use super::{Backed, Found, Mark, Writer};
use crate::{BootMs, Version};

/// Keys that lie in so many words are looked at without asking the allocator.
const SHORT_KEY_WORDS: usize = 9;

impl Writer {
    /// What memory holds for a key. An item's bytes are in `buffer`.
    pub fn find(&self, hash: u64, key: &[u8], now: BootMs, buffer: &mut Vec<u8>) -> Found {
        buffer.clear();
        let Some(place) = self.find_slot(hash, key) else {
            let word = self.words.load(self.geometry.bucket_at(self.geometry.bucket(hash)) + SLOTS);
            let known = !bucket::forgot(word) && self.is_complete();
            return Found::Absent { known: known || self.backed == Backed::Memory };
        };
        match self.slot(place) {
            Slot::Disk => Found::DiskMark,
            Slot::Ask => Found::AskMark,
            Slot::At(ring, position) => {
                let at = At { ring, position };
                let (front, bytes) = self.front(at);
                self.words.copy_out(self.at(at) + front.head.head_words(), bytes, buffer);
                let freshness = self.verdict(&front.life(), front.tag_slots(), key, now);
                Found::Item(front.meta(0, bytes, freshness, place))
            }
        }
    }

    /// The key of the item in a slot, and the length of its value; `None`: there is none.
    #[must_use]
    pub fn item_at(&self, place: Place) -> Option<(Vec<u8>, usize)> {
        if place.bucket >= self.geometry.buckets() || place.slot >= SLOTS {
            return None;
        }
        let word = self.words.load(self.geometry.bucket_at(place.bucket) + place.slot);
        match slot::kind(word) {
            _ if word == 0 => None,
            Slot::Disk | Slot::Ask => None,
            Slot::At(ring, position) => {
                let at = At { ring, position };
                Some((self.with_key(at, <[u8]>::to_vec), self.front(at).0.head.value_bytes()))
            }
        }
    }

    pub(super) fn slot(&self, place: Place) -> Slot {
        slot::kind(self.words.load(self.geometry.bucket_at(place.bucket) + place.slot))
    }

    /// The slot of a key: an item with this key, or a mark with this hash.
    pub(super) fn find_slot(&self, hash: u64, key: &[u8]) -> Option<Place> {
        let bucket = self.geometry.bucket(hash);
        let at = self.geometry.bucket_at(bucket);
        (0..SLOTS).map(|slot| Place { bucket, slot }).find(|place| {
            let word = self.words.load(at + place.slot);
            slot::has_tag(word, hash)
                && match slot::kind(word) {
                    Slot::At(ring, position) => self.key_is(At { ring, position }, key),
                    Slot::Disk | Slot::Ask => slot::mark_is(word, hash),
                }
        })
    }

    fn key_is(&self, at: At, key: &[u8]) -> bool {
        let (front, _) = self.front(at);
        front.head.key_bytes() == key.len() && self.with_key(at, |found| found == key)
    }

    /// Hands the key of an item to `look`.
    pub(super) fn with_key<T>(&self, at: At, look: impl FnOnce(&[u8]) -> T) -> T {
        let (front, _) = self.front(at);
        // The key follows the value, which need not end on a word: copy from the word it begins in.
        let (value, key) = (front.head.value_bytes(), front.head.key_bytes());
        let (from, skip) = (value / WORD_BYTES, value % WORD_BYTES);
        let at = self.at(at) + front.head.head_words() + from;
        let count = words_for(skip + key);
        let mut short = [[0; WORD_BYTES]; SHORT_KEY_WORDS];
        if let Some(short) = short.get_mut(..count) {
            for (i, word) in short.iter_mut().enumerate() {
                *word = self.words.load(at + i).to_le_bytes();
            }
            return look(&short.as_flattened()[skip..skip + key]);
        }
        let mut bytes = Vec::with_capacity(count * WORD_BYTES);
        self.words.copy_out(at, skip + key, &mut bytes);
        look(&bytes[skip..])
    }

    /// The slot of a key, its content booked out; a free one for a key that has none.
    fn slot_for(&mut self, version: Version, hash: u64, key: &[u8]) -> Place {
        if let Some(place) = self.find_slot(hash, key) {
            self.leave(self.slot(place));
            return place;
        }
        let place = self.free_slot(version, hash);
        self.hits.set(place, 0);
        place
    }

    /// Lets the slot of a key point at an item.
    pub(super) fn swing(&mut self, version: Version, hash: u64, key: &[u8], at: At) {
        let place = self.slot_for(version, hash, key);
        self.items[at.ring as usize] += 1;
        self.store_slot(place, slot::at(at.ring, hash, at.position));
    }

    pub(super) fn put_mark(&mut self, version: Version, hash: u64, key: &[u8], mark: Mark) {
        let place = self.slot_for(version, hash, key);
        self.enter_mark(place, hash, mark);
    }

    pub(super) fn enter_mark(&mut self, place: Place, hash: u64, mark: Mark) {
        let kind = match mark {
            Mark::Disk => {
                self.counts.disk_marks += 1;
                Slot::Disk
            }
            Mark::Ask => {
                self.counts.ask_marks += 1;
                Slot::Ask
            }
        };
        self.store_slot(place, slot::mark(kind, hash));
    }

    pub(super) fn remove_key(&mut self, version: Version, hash: u64, key: &[u8]) {
        if let Some(place) = self.find_slot(hash, key) {
            self.leave(self.slot(place));
            self.empty(version, place);
        }
    }

    /// Empties a slot. The bucket says so first: a reader that misses the slot must not believe it too early.
    pub(super) fn empty(&mut self, version: Version, place: Place) {
        self.note_removal(version, place.bucket, 0);
        self.store_slot(place, 0);
    }

    /// Lets a bucket say that a key without a slot was removed with `version`.
    pub(super) fn remember_removal(&mut self, version: Version, hash: u64) {
        self.note_removal(version, self.geometry.bucket(hash), 0);
    }

    fn note_removal(&mut self, version: Version, bucket: usize, flags: u64) {
        let at = self.geometry.bucket_at(bucket) + SLOTS;
        let forgot = self.words.load(at) & bucket::FORGOT;
        self.words.store(at, bucket::word(version, forgot | flags)); // MUTANT(removed-seq)
        // SYNC(removed): the bucket word before the slot, else a reader believes the empty slot.
        fence(Ordering::Release); // MUTANT(removed-fence)
    }

    fn store_slot(&mut self, place: Place, word: u64) {
        self.words.store(self.geometry.bucket_at(place.bucket) + place.slot, word);
    }

    /// Books that a slot's content goes.
    pub(super) fn leave(&mut self, slot: Slot) {
        match slot {
            Slot::At(ring, _) => self.items[ring as usize] -= 1,
            Slot::Disk => self.counts.disk_marks -= 1,
            Slot::Ask => self.counts.ask_marks -= 1,
        }
    }

    /// An empty slot in the bucket of `hash`, emptied if need be.
    pub(super) fn free_slot(&mut self, version: Version, hash: u64) -> Place {
        let bucket = self.geometry.bucket(hash);
        let at = self.geometry.bucket_at(bucket);
        if let Some(slot) = (0..SLOTS).find(|slot| self.words.load(at + slot) == 0) {
            return Place { bucket, slot };
        }
        let place = self.coldest(bucket);
        let slot = self.slot(place);
        if let Slot::At(ring, position) = slot {
            let at = At { ring, position };
            self.leave_successor(version, at, self.with_key(at, |key| crate::hash_key(self.seed, key)));
        }
        self.leave(slot);
        self.counts.forgotten += 1;
        let flags = if self.backed == Backed::Disk { bucket::FORGOT } else { 0 };
        self.note_removal(version, bucket, flags);
        self.store_slot(place, 0);
        fence(Ordering::Release);
        place
    }

    /// The slot of a full bucket that is missed least: a disk mark, else the item read least.
    fn coldest(&self, bucket: usize) -> Place {
        let places = (0..SLOTS).map(|slot| Place { bucket, slot });
        places
            .min_by_key(|place| match self.slot(*place) {
                Slot::Disk => 0,
                Slot::At(Ring::Probation, _) => 1 + self.hits.get(*place),
                Slot::At(Ring::Main, _) => 5 + self.hits.get(*place),
                Slot::Ask => 10,
            })
            .expect("a bucket has slots")
    }

    /// Whether the item at `at` is the current one of its key, and where its slot is.
    pub(super) fn place_of(&self, at: At) -> Option<(Place, u64)> {
        let hash = self.with_key(at, |key| crate::hash_key(self.seed, key));
        let bucket = self.geometry.bucket(hash);
        let word = slot::at(at.ring, hash, at.position);
        let bucket_at = self.geometry.bucket_at(bucket);
        let slot = (0..SLOTS).find(|slot| self.words.load(bucket_at + slot) == word)?;
        Some((Place { bucket, slot }, hash))
    }

    pub(super) fn is_gone(&self, at: At, now: BootMs) -> bool {
        let (front, _) = self.front(at);
        let life = front.life();
        self.with_key(at, |key| self.verdict(&life, front.tag_slots(), key, now)) == Freshness::Gone
    }
}
