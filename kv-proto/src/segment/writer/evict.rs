//! Appending and making room: S3-FIFO on two append-only rings.
//!
//! "FIFO queues are all you need for cache eviction" (Yang et al., SOSP 2023). New items enter probation; one that was
//! read by the time the tail meets it moves to main, else it leaves memory and its fingerprint enters the ghost list; in main
//! an item read since the last visit is appended again. A gap of the largest item stays free, so that what is kept is
//! appended and published before the tail moves and its old place is reused.
//!
//! Nothing leaves memory while there is room: as long as main has never been full, what leaves probation moves there unread.

use super::super::item::{At, FILLER, Head, NewItem, Place, lap_left};
use super::super::layout::{H_TAIL, Ring, Slot, slot};
use super::super::sync::{Ordering, fence};
use super::super::words::words_for;
use super::{Backed, Mark, Writer};
use crate::{BootMs, Version};

/// Items of main given another round while room is made once; then they go even if they were read.
const SECOND_CHANCES_MAX: usize = 128;
/// Room is made in steps, because readers share the line of the tail: of this share of a ring …
const STEP_SHARE: usize = 256;
/// … but of no more words than this: the step is work of one write, under the engine's mutex.
const STEP_WORDS_MAX: usize = 1_024;
/// What nobody read moves to main while more than this share of it is free: more than what a step leaves.
const ROOMY_SHARE: usize = 128;
const _: () = assert!(ROOMY_SHARE < STEP_SHARE);

impl Writer {
    /// Puts an item at the head of a ring; nobody sees it yet.
    pub(super) fn append(&mut self, version: Version, ring: Ring, item: &NewItem<'_>, now: BootMs) -> At {
        let words = item.words();
        self.make_room(version, ring, words, now);
        let at = self.take(ring, words);
        let (front, count) = item.front_words();
        let to = self.at(at);
        for (i, word) in front[..count].iter().enumerate() {
            self.words.store(to + i, *word);
        }
        self.scratch.clear();
        item.payload_into(&mut self.scratch);
        self.words.copy_in(to + count, &self.scratch);
        at
    }

    /// Words not used, the gap among them.
    fn free(&self, ring: Ring) -> usize {
        self.geometry.ring_words(ring) - (self.head[ring as usize] - self.tail[ring as usize]) as usize
    }

    /// Words free for new items, the gap not counted.
    fn room(&self, ring: Ring) -> usize {
        self.free(ring).saturating_sub(self.gap(ring))
    }

    /// What the largest item that lies in main would take at its head, so that whatever the tail meets can be kept.
    fn gap(&self, ring: Ring) -> usize {
        match ring {
            Ring::Probation => 0,
            Ring::Main => self.words_at_head(ring, self.largest[0].max(self.largest[1])),
        }
    }

    /// Words an item takes at the head: itself, and the rest of the lap if it does not fit there.
    fn words_at_head(&self, ring: Ring, words: usize) -> usize {
        let left = lap_left(self.head[ring as usize], self.geometry.ring_words(ring));
        if left < words { left + words } else { words }
    }

    /// Whether an item fits without anything having to go.
    pub(super) fn has_room(&self, ring: Ring, words: usize) -> bool {
        self.room(ring) >= self.words_at_head(ring, words)
    }

    /// Takes words at the head. The room was made.
    fn take(&mut self, ring: Ring, words: usize) -> At {
        let ring_words = self.geometry.ring_words(ring);
        let head = self.head[ring as usize];
        let left = lap_left(head, ring_words);
        let position = if left < words { head + left as u64 } else { head };
        if ring == Ring::Main {
            if self.geometry.offset(ring, position) == 0 {
                // A new lap: what was appended before the last one is gone.
                self.largest = [0, self.largest[0]];
            }
            self.largest[0] = self.largest[0].max(words);
        }
        let next = position + words as u64;
        // Before the first word of it is written, the filler's too.
        if next - self.tail_seen[ring as usize] > ring_words as u64 {
            self.show_tail(ring);
        }
        assert!(next - self.tail_seen[ring as usize] <= ring_words as u64, "room is made before it is taken");
        if position != head {
            self.words.store(self.at(At { ring, position: head }), FILLER);
        }
        self.head[ring as usize] = next;
        At { ring, position }
    }

    /// Lets readers know that everything before the tail is about to be reused (W1).
    fn show_tail(&mut self, ring: Ring) {
        let tail = self.tail[ring as usize];
        if self.tail_seen[ring as usize] != tail {
            self.tail_seen[ring as usize] = tail;
            // SYNC(publish): the slots of what was dropped or kept before the tail, else a reader finds neither place.
            fence(Ordering::Release); // MUTANT(evict-order)
            self.words.store(H_TAIL[ring as usize], tail);
            // SYNC(ring-tail): before any word behind it is written.
            fence(Ordering::Release); // MUTANT(reuse-fence)
        }
    }

    fn make_room(&mut self, version: Version, ring: Ring, words: usize, now: BootMs) {
        if self.has_room(ring, words) {
            return;
        }
        let step = (self.geometry.ring_words(ring) / STEP_SHARE).min(STEP_WORDS_MAX);
        let mut second_chances = SECOND_CHANCES_MAX;
        while self.room(ring) < self.words_at_head(ring, words) + step
            && self.tail[ring as usize] < self.head[ring as usize]
        {
            self.visit(version, ring, &mut second_chances, now);
        }
        self.show_tail(ring);
    }

    /// Decides about the item at the tail and moves the tail past it.
    fn visit(&mut self, version: Version, ring: Ring, second_chances: &mut usize, now: BootMs) {
        let at = At { ring, position: self.tail[ring as usize] };
        let next = at.position + self.words_here(at) as u64;
        if !self.is_filler(at)
            && let Some((place, hash)) = self.place_of(at)
        {
            if self.is_gone(at, now) {
                self.counts.expired_dropped += 1;
                self.leave(Slot::At(ring, at.position));
                self.empty(version, place);
            } else if !self.keep(version, at, place, hash, second_chances, now) {
                self.evict(version, at, place, hash);
            }
        }
        self.tail[ring as usize] = next;
    }

    /// Words from here to the next item.
    pub(super) fn words_here(&self, at: At) -> usize {
        let head = Head::new(self.words.load(self.at(at)));
        if head.is_filler() {
            return lap_left(at.position, self.geometry.ring_words(at.ring));
        }
        let (front, bytes) = self.front(at);
        front.head.head_words() + words_for(bytes)
    }

    pub(super) fn is_filler(&self, at: At) -> bool {
        Head::new(self.words.load(self.at(at))).is_filler()
    }

    /// Whether main has so much room that nothing has to prove itself. What a step leaves free does not count: else unread
    /// items would follow each step into main, and it would be a plain queue.
    fn is_roomy(&self, words: usize) -> bool {
        let main = self.geometry.ring_words(Ring::Main);
        self.room(Ring::Main) > self.words_at_head(Ring::Main, words) + main / ROOMY_SHARE
    }

    /// Gives an item that was read another place, and one that was not if main has room to spare; `false`: it has to go.
    fn keep(
        &mut self,
        version: Version,
        at: At,
        place: Place,
        hash: u64,
        second_chances: &mut usize,
        now: BootMs,
    ) -> bool {
        let hits = self.hits.get(place);
        let words = self.words_here(at);
        match at.ring {
            Ring::Probation if hits > 0 || self.is_roomy(words) => {
                self.make_room(version, Ring::Main, words, now);
                self.hits.set(place, 0);
                self.counts.promoted += u64::from(hits > 0);
            }
            // Near the end of a lap the gap can be too small, because the rest of the lap is not used.
            Ring::Main
                if hits > 0
                    && *second_chances > 0
                    && self.free(at.ring) >= self.words_at_head(at.ring, words) =>
            {
                *second_chances -= 1;
                self.hits.set(place, hits - 1);
            }
            Ring::Probation | Ring::Main => return false,
        }
        let to = self.take(Ring::Main, words);
        self.words.copy_within(self.at(at), self.at(to), words);
        // SYNC(publish): the copy before its slot.
        fence(Ordering::Release);
        self.items[at.ring as usize] -= 1;
        self.items[Ring::Main as usize] += 1;
        let slot_at = self.geometry.bucket_at(place.bucket) + place.slot;
        self.words.store(slot_at, slot::at(Ring::Main, hash, to.position));
        true
    }

    /// Lets a live item leave memory.
    fn evict(&mut self, version: Version, at: At, place: Place, hash: u64) {
        self.counts.evicted += 1;
        self.leave_successor(version, at, hash);
        if at.ring == Ring::Probation {
            let main = self.items[Ring::Main as usize] as usize;
            self.ghost.set_length(main + main / 2);
            self.ghost.insert(hash);
        }
        self.leave(Slot::At(at.ring, at.position));
        match self.backed {
            Backed::Disk => self.enter_mark(place, hash, Mark::Disk),
            Backed::Memory => self.empty(version, place),
        }
    }
}
