//! What can be saved of a segment whose daemon died: for caches of which there is nothing on disk.
//!
//! Used by `kvd` when the old daemon dies in the middle of a restart in place; the new one has its segments mapped. The words say what
//! the writer was about to say: every slot points at a whole item, since an item is written before its slot, and its place is
//! not reused before the tail has passed it. An item of a commit that was not committed goes, and with it what it replaced.

use std::sync::Arc;

use super::super::error::AttachError;
use super::super::ghost::Ghost;
use super::super::hits::Hits;
use super::super::item::{At, Place};
use super::super::layout::{Geometry, H_BACKED, H_SEED, H_STATE, H_TAIL, RINGS, Ring, SLOTS, Slot, slot};
use super::super::words::Words;
use super::{Backed, Counts, SegmentState, Writer};
use crate::Version;

impl Writer {
    /// Goes on with a whole copy of a dead writer's words: with every item that was `committed`. Values in the dead daemon's own memory
    /// are gone, and what it knew of hits.
    ///
    /// # Errors
    /// When the words are no segment of this layout, or what they hold does not fit together.
    pub fn salvage(words: Arc<Words>, committed: Version) -> Result<Writer, AttachError> {
        let geometry = Geometry::parse(&words)?;
        let tail = H_TAIL.map(|at| words.load(at));
        let backed = if words.load(H_BACKED) == 0 { Backed::Memory } else { Backed::Disk };
        words.store(H_STATE, SegmentState::Live.word());
        let mut writer = Writer {
            seed: words.load(H_SEED),
            backed,
            head: tail,
            tail,
            tail_seen: tail,
            largest: [0; 2],
            hits: Arc::new(Hits::new(geometry.buckets())),
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
            is_sized: true,
            successor: None,
            geometry,
            words,
        };
        writer.take_stock(committed)?;
        // Main is a whole lap to the writer: nothing in it is older than its tail, and nothing younger than its head.
        for ring in RINGS {
            let r = ring as usize;
            let most = writer.tail[r] + writer.geometry.ring_words(ring) as u64;
            if writer.head[r] > most {
                return Err(AttachError::Geometry("an item lies beyond its ring"));
            }
        }
        Ok(writer)
    }

    /// Counts what the index holds, empties the slots of what was not committed or is not there.
    fn take_stock(&mut self, committed: Version) -> Result<(), AttachError> {
        for bucket in 0..self.geometry.buckets() {
            for slot in 0..SLOTS {
                let place = Place { bucket, slot };
                if self.words.load(self.geometry.bucket_at(bucket) + slot) == 0 {
                    continue;
                }
                let Slot::At(ring, position) = self.slot(place) else {
                    // On disk or in the dead daemon's memory: nobody knows any more.
                    self.empty(committed, place);
                    continue;
                };
                let words = self.words_if_whole(At { ring, position }, committed)?;
                let Some(words) = words else {
                    self.empty(committed, place);
                    continue;
                };
                let r = ring as usize;
                self.items[r] += 1;
                self.head[r] = self.head[r].max(position + words as u64);
                self.counts.puts += 1;
                self.words_put += words as u64;
                if ring == Ring::Main {
                    self.largest = [self.largest[0].max(words); 2];
                }
            }
        }
        Ok(())
    }

    /// The words of an item that was committed and lies in its ring; `None`: it is not to be kept.
    fn words_if_whole(&self, at: At, committed: Version) -> Result<Option<usize>, AttachError> {
        let ring_words = self.geometry.ring_words(at.ring) as u64;
        let tail = self.tail[at.ring as usize];
        if !(tail..tail + ring_words).contains(&at.position) {
            return Ok(None);
        }
        let head = super::Head::new(self.words.load(self.at(at)));
        let left = ring_words - self.geometry.offset(at.ring, at.position) as u64;
        if head.is_filler() || (head.head_words() as u64) > left {
            return Err(AttachError::Geometry("a slot points at no item"));
        }
        let front = super::Front::read(head, |i| self.words.load(self.at(at) + i));
        let bytes = front.payload_bytes().ok_or(AttachError::Geometry("an item contradicts itself"))?;
        let words = head.head_words() + super::super::words::words_for(bytes);
        if words as u64 > left {
            return Err(AttachError::Geometry("an item is longer than its ring"));
        }
        let hash = self.with_key(at, |key| crate::hash_key(self.seed, key));
        let is_its_slot = slot::has_tag(slot::at(at.ring, hash, at.position), hash);
        Ok((front.version <= committed && is_its_slot).then_some(words))
    }
}
