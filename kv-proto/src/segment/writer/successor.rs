//! Moving into a successor: a segment with a larger index, or with new positions.
//!
//! In steps, each in a commit of its own, while this segment goes on being read and written: it is a log, so that what is written
//! meanwhile is met later at its head. A key that is written or removed leaves the successor at once, else an older version of it
//! could outlive the newer one there. Nobody reads the successor before the last step.

use super::super::item::{At, Meta, Place};
use super::super::layout::{H_CLEAR, H_STALE, RINGS, Ring, SLOTS, Slot, slot};
use super::{Backed, Counts, Mark, What, Writer};
use crate::{BootMs, Version};

/// The segment that is being filled.
pub(super) struct Successor {
    writer: Writer,
    /// Next position to be copied, by ring.
    next: [u64; 2],
}

impl Writer {
    /// Begins to move into a fresh segment of the same seed that is not yet known to anybody.
    ///
    /// Stamps come with [`Writer::finish_move`]: until then no prefix clear may be retired.
    ///
    /// # Panics
    /// When the seeds differ: marks could not be found again, and callers' hashes would be wrong.
    pub fn begin_move(&mut self, new: Writer) {
        assert_eq!(self.seed, new.seed, "a cache keeps its seed for life");
        self.successor = Some(Box::new(Successor { writer: new, next: self.tail }));
    }

    /// Gives up a move under way.
    pub fn abandon_move(&mut self) {
        self.successor = None;
    }

    /// Copies at most `items_max` items, in log order; `true` when nothing is left to copy.
    pub fn move_step(&mut self, version: Version, items_max: usize, now: BootMs) -> bool {
        let Some(mut successor) = self.successor.take() else { return true };
        let mut left = items_max;
        for ring in [Ring::Main, Ring::Probation] {
            let r = ring as usize;
            successor.next[r] = successor.next[r].max(self.tail[r]);
            while successor.next[r] < self.head[r] && left > 0 {
                left -= 1;
                let at = At { ring, position: successor.next[r] };
                successor.next[r] += self.words_here(at) as u64;
                if !self.is_filler(at)
                    && let Some((place, hash)) = self.place_of(at)
                    && !self.is_gone(at, now)
                {
                    let (meta, payload) = self.whole(at);
                    let new = &mut successor.writer;
                    if let Some(copy) = new.take_in(version, at.ring, hash, &meta, &payload, now) {
                        new.hits.set(copy, self.hits.get(place));
                    }
                }
            }
        }
        let done = RINGS.iter().all(|&ring| successor.next[ring as usize] == self.head[ring as usize]);
        self.successor = Some(successor);
        done
    }

    /// Copies what is left, and all stamps: from the commit of `version` on, the successor is the segment.
    ///
    /// Marks of what is on disk are not copied: the successor is not complete, and learns them as a new segment does.
    ///
    /// # Panics
    /// When no move was begun.
    pub fn finish_move(&mut self, version: Version, now: BootMs) -> Writer {
        self.move_step(version, usize::MAX, now);
        let mut new = self.successor.take().expect("a move was begun").writer;
        let tags = (0..self.geometry.tag_slots() as u32).map(|tag| {
            let at = self.geometry.tag_at(tag);
            (tag, self.words.load(at), self.words.load(at + 1))
        });
        let prefixes =
            self.prefix_entries().into_iter().map(|clear| (clear.prefix, clear.effect, clear.version));
        new.load_stamps(
            self.words.load(H_CLEAR),
            self.words.load(H_STALE),
            tags.collect::<Vec<_>>(),
            prefixes,
        );
        if self.counts.ask_marks > 0 {
            self.copy_ask_marks(&mut new, version);
        }
        new.is_sized = self.is_sized;
        new.counts = Counts {
            evicted: self.counts.evicted + new.counts.evicted,
            promoted: self.counts.promoted + new.counts.promoted,
            expired_dropped: self.counts.expired_dropped,
            ghost_hits: self.counts.ghost_hits,
            ..new.counts
        };
        new
    }

    /// Takes a key out of the successor, if there is one: what becomes of it here is met later at the head.
    #[inline]
    pub(super) fn forget_in_successor(&mut self, version: Version, hash: u64, key: &[u8]) {
        if let Some(successor) = &mut self.successor {
            successor.writer.remove_key(version, hash, key);
        }
    }

    /// What memory gives up here is gone from the successor too: else a key that was deleted while nobody knew it would be back.
    pub(super) fn leave_successor(&mut self, version: Version, at: At, hash: u64) {
        if self.successor.is_some() {
            let key = self.with_key(at, <[u8]>::to_vec);
            self.forget_in_successor(version, hash, &key);
        }
    }

    /// Puts a copy of an item of the segment this one succeeds: where its slot is, if it fits.
    fn take_in(
        &mut self,
        version: Version,
        from: Ring,
        hash: u64,
        meta: &Meta,
        payload: &[u8],
        now: BootMs,
    ) -> Option<Place> {
        let tags: Vec<&[u8]> = meta.tags(payload).collect();
        let item = meta.as_new(payload, &tags);
        let ring = if item.words() > self.geometry.item_words_max(from) { Ring::Main } else { from };
        if item.words() <= self.geometry.item_words_max(ring) {
            let to = self.append(version, ring, &item, now);
            self.publish_one(version, hash, item.key, What::Item(to));
        } else if self.backed == Backed::Disk {
            self.put_mark(version, hash, item.key, Mark::Disk);
        } else {
            // It leaves memory with this sequence: a snapshot of an older one must not miss it.
            self.remember_removal(version, hash);
        }
        self.find_slot(hash, item.key)
    }

    fn copy_ask_marks(&self, new: &mut Writer, version: Version) {
        for bucket in 0..self.geometry.buckets() {
            for i in 0..SLOTS {
                let word = self.words.load(self.geometry.bucket_at(bucket) + i);
                if word != 0 && slot::kind(word) == Slot::Ask {
                    let hash = slot::mark_hash(word, bucket, self.geometry.buckets());
                    let place = new.free_slot(version, hash);
                    new.enter_mark(place, hash, Mark::Ask);
                }
            }
        }
    }
}
