//! Handing a segment to the daemon that comes next: its words are copied while this one writes, and what the writer knows beside
//! them is told.
//!
//! A sealed segment can never be mapped writable again, so the next daemon needs a fresh one. It gets the same division and the
//! same positions: a ring is a log, so that what was copied stays true and only what was appended since is copied again; header,
//! stamps and index are copied at last, when nobody writes any more. What the old index still holds is thereby all that the new one
//! holds. Used by `kvd`'s restart in place; nobody reads the copy before [`Writer::resume`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::error::AttachError;
use super::super::ghost::Ghost;
use super::super::hits::Hits;
use super::super::layout::{Geometry, H_BACKED, H_SEED, H_STATE, H_TAIL, RINGS, Ring, TAGS_AT};
use super::super::words::Words;
use super::{Backed, Counts, SegmentState, Writer};

/// What a writer knows that does not stand in its words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WriterState {
    head: [u64; 2],
    tail: [u64; 2],
    largest: [usize; 2],
    counts: Counts,
    items: [u64; 2],
    words_put: u64,
    checked: (u64, u64),
    is_sized: bool,
    #[serde(with = "serde_bytes")]
    hits: Vec<u8>,
    #[serde(with = "serde_bytes")]
    ghosts: Vec<u8>,
    ghost_time: u64,
    ghost_length: u64,
}

impl WriterState {
    /// How far its rings are written.
    #[must_use]
    pub fn heads(&self) -> Heads {
        self.head
    }

    /// Items in memory.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.items[0] + self.items[1]
    }
}

/// The heads of a segment's two rings: everything before them is written.
pub type Heads = [u64; 2];

/// A copy in the making of a segment that somebody else writes.
pub struct SegmentCopy {
    from: Arc<Words>,
    to: Arc<Words>,
    geometry: Geometry,
    /// Up to here the rings were copied; `None`: nothing yet.
    copied: Option<Heads>,
}

impl SegmentCopy {
    /// How large the copy of `from` has to be.
    ///
    /// # Errors
    /// When it is no segment of this layout: then its items have to be loaded anew.
    pub fn geometry_of(from: &Words) -> Result<Geometry, AttachError> {
        Geometry::parse(from)
    }

    /// Begins to copy `from` into `to`, which is as large as `geometry_of` said.
    ///
    /// # Errors
    /// As `geometry_of`.
    ///
    /// # Panics
    /// When `to` is smaller.
    pub fn begin(from: Arc<Words>, to: Arc<Words>) -> Result<SegmentCopy, AttachError> {
        let geometry = Geometry::parse(&from)?;
        assert!(to.len() >= geometry.words(), "the copy is made for the geometry");
        Ok(SegmentCopy { from, to, geometry, copied: None })
    }

    /// Copies what was appended to the rings since, up to `heads`, which the writer told; gives how many bytes that was.
    /// The first time all of it, header and index too, so that every page is there.
    pub fn follow(&mut self, heads: Heads) -> u64 {
        let Some(copied) = self.copied.replace(heads) else {
            self.copy(0, self.geometry.words());
            return self.geometry.bytes() as u64;
        };
        RINGS.iter().map(|&ring| self.follow_ring(ring, copied[ring as usize], heads[ring as usize])).sum()
    }

    fn follow_ring(&self, ring: Ring, from: u64, to: u64) -> u64 {
        let ring_words = self.geometry.ring_words(ring);
        let count = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX).min(ring_words);
        let first = self.geometry.offset(ring, to - count as u64);
        let at = self.geometry.ring_at(ring);
        let before_end = count.min(ring_words - first);
        self.copy(at + first, before_end);
        self.copy(at, count - before_end);
        count as u64 * 8
    }

    /// Copies what is left when the writer has ended, and gives the words.
    #[must_use]
    pub fn finish(mut self, state: &WriterState) -> Arc<Words> {
        if self.copied.is_none() {
            return self.finish_whole();
        }
        self.follow(state.head);
        self.copy(0, self.geometry.ring_at(Ring::Probation));
        self.to
    }

    /// Copies all of it at once, when the writer has ended or is dead.
    #[must_use]
    pub fn finish_whole(self) -> Arc<Words> {
        self.copy(0, self.geometry.words());
        self.to
    }

    fn copy(&self, at: usize, count: usize) {
        self.from.copy_to(&self.to, at, count);
    }
}

impl std::fmt::Debug for SegmentCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentCopy").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Writer {
    /// How far its rings are written. Under the lock that the writer is used under.
    #[must_use]
    pub fn heads(&self) -> Heads {
        self.head
    }

    /// Its words; whoever holds them reads what it wrote.
    #[must_use]
    pub fn words(&self) -> Arc<Words> {
        Arc::clone(&self.words)
    }

    /// What the next writer has to know beside the words. Nothing may be written afterwards.
    #[must_use]
    pub fn state(&self) -> WriterState {
        let (ghosts, ghost_time, ghost_length) = self.ghost.to_parts();
        WriterState {
            head: self.head,
            tail: self.tail,
            largest: self.largest,
            counts: self.counts,
            items: self.items,
            words_put: self.words_put,
            checked: self.checked,
            is_sized: self.is_sized,
            hits: self.hits.to_bytes(),
            ghosts,
            ghost_time,
            ghost_length,
        }
    }

    /// Goes on where another writer ended, on a whole copy of its words.
    ///
    /// # Errors
    /// When the words are no segment of this layout, or do not fit the state: the other one was of another version.
    pub fn resume(words: Arc<Words>, state: &WriterState) -> Result<Writer, AttachError> {
        let geometry = Geometry::parse(&words)?;
        let misfit = Err(AttachError::Geometry("its writer's state does not fit it"));
        for ring in RINGS {
            let (head, tail) = (state.head[ring as usize], state.tail[ring as usize]);
            if head < tail || head - tail > geometry.ring_words(ring) as u64 {
                return misfit;
            }
        }
        let (Some(hits), Some(ghost)) = (
            Hits::of_bytes(&state.hits, geometry.buckets()),
            Ghost::of_parts(&state.ghosts, state.ghost_time, state.ghost_length),
        ) else {
            return misfit;
        };
        words.store(H_STATE, SegmentState::Live.word());
        for ring in RINGS {
            words.store(H_TAIL[ring as usize], state.tail[ring as usize]);
        }
        let backed = if words.load(H_BACKED) == 0 { Backed::Memory } else { Backed::Disk };
        Ok(Writer {
            geometry,
            seed: words.load(H_SEED),
            backed,
            head: state.head,
            tail: state.tail,
            tail_seen: state.tail,
            largest: state.largest,
            hits: Arc::new(hits),
            ghost,
            staged: Vec::new(),
            staged_keys: Vec::new(),
            staged_stamps: Vec::new(),
            staged_prefixes: Vec::new(),
            scratch: Vec::new(),
            counts: state.counts,
            items: state.items,
            words_put: state.words_put,
            checked: state.checked,
            is_sized: state.is_sized,
            successor: None,
            words,
        })
    }

    /// How its memory is divided.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
}

const _: () = assert!(TAGS_AT > H_STATE, "what is copied at last begins with the header");

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::super::item::NewItem;
    use super::super::{Control, Found};
    use super::*;
    use crate::wire::Effect;

    fn put(writer: &mut Writer, control: &Control, version: u64, key: &[u8], value: &[u8]) {
        let hash = crate::hash_key(writer.seed(), key);
        let item = NewItem {
            key,
            value,
            version,
            created: 0,
            expires: None,
            stale_for_ms: 0,
            load_cost_ms: 0,
            stale: false,
            tags: &[],
        };
        assert!(writer.stage_put(version, hash, &item, 0));
        writer.publish(version);
        control.commit(version);
    }

    fn value_of(writer: &Writer, key: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        match writer.find(crate::hash_key(writer.seed(), key), key, 0, &mut buffer) {
            Found::Item(meta) => Some(meta.value(&buffer).to_vec()),
            Found::DiskMark | Found::AskMark | Found::Absent { .. } => None,
        }
    }

    #[test]
    fn a_copy_made_while_the_ring_laps_holds_what_the_index_held() {
        let geometry = Geometry::exact(64, 16, 1_024, 4_096);
        let control = Control::private(1);
        let mut old = Writer::create(Words::heap(geometry.words()), geometry, 9, Backed::Memory, 1);
        let mut copy = SegmentCopy::begin(old.words(), Words::heap(geometry.words())).unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        let mut version = 1;
        for round in 0..40 {
            for _ in 0..random.usize(0..120) {
                version += 1;
                let key = format!("k{}", random.u32(0..200));
                put(&mut old, &control, version, key.as_bytes(), &vec![version as u8; random.usize(0..300)]);
            }
            if round % 3 == 0 {
                copy.follow(old.heads());
            }
        }
        version += 1;
        old.stamp_tag(version, 3, Effect::Gone);
        old.publish(version);
        let state = old.state();
        let bytes = postcard::to_allocvec(&state).unwrap();
        let state: WriterState = postcard::from_bytes(&bytes).unwrap();
        let mut new = Writer::resume(copy.finish(&state), &state).unwrap();
        let mut there = 0;
        for key in (0..200).map(|key| format!("k{key}")) {
            let value = value_of(&old, key.as_bytes());
            there += usize::from(value.is_some());
            assert_eq!(value_of(&new, key.as_bytes()), value, "{key}");
        }
        assert!(there > 20, "{there}");
        assert_eq!(new.counts(), old.counts());
        // It goes on as if nothing had been.
        for i in 0..2_000_u64 {
            put(&mut new, &control, version + 1 + i, format!("n{}", i % 300).as_bytes(), &[7; 100]);
        }
        assert_eq!(value_of(&new, b"n199").unwrap(), [7; 100]);
    }

    #[test]
    fn a_dead_writers_segment_gives_what_was_committed_and_nothing_else() {
        let geometry = Geometry::exact(64, 16, 1_024, 4_096);
        let control = Control::private(1);
        let mut old = Writer::create(Words::heap(geometry.words()), geometry, 9, Backed::Memory, 1);
        for version in 2..600 {
            put(&mut old, &control, version, format!("k{}", version % 90).as_bytes(), &[version as u8; 60]);
        }
        // It dies between publishing and committing.
        let hash = crate::hash_key(9, b"k7");
        let item = NewItem {
            key: b"k7",
            value: b"never acknowledged",
            version: 600,
            created: 0,
            expires: None,
            stale_for_ms: 0,
            load_cost_ms: 0,
            stale: false,
            tags: &[],
        };
        assert!(old.stage_put(600, hash, &item, 0));
        old.publish(600);
        let copy = SegmentCopy::begin(old.words(), Words::heap(geometry.words())).unwrap();
        let mut new = Writer::salvage(copy.finish_whole(), control.committed()).unwrap();
        assert_eq!(value_of(&new, b"k7"), None);
        let others = (0..90).filter(|k| *k != 7).map(|k| format!("k{k}"));
        let there = others.filter(|key| {
            let value = value_of(&old, key.as_bytes());
            assert_eq!(value_of(&new, key.as_bytes()), value, "{key}");
            value.is_some()
        });
        assert!(there.count() > 20);
        assert_eq!(new.counts().items, old.counts().items - 1);
        for i in 0..2_000_u64 {
            put(&mut new, &control, 601 + i, format!("n{}", i % 300).as_bytes(), &[7; 100]);
        }
        assert_eq!(value_of(&new, b"n199").unwrap(), [7; 100]);
        let state = new.state();
        Writer::resume(new.words(), &state).unwrap();
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let geometry = Geometry::exact(8, 2, 64, 256);
        let writer = Writer::create(Words::heap(geometry.words()), geometry, 9, Backed::Memory, 1);
        let mut state = writer.state();
        state.head[1] += 1_000;
        assert!(Writer::resume(writer.words(), &state).is_err());
        let mut state = writer.state();
        state.hits.pop();
        assert!(Writer::resume(writer.words(), &state).is_err());
        assert!(Writer::resume(Words::heap(4_096), &writer.state()).is_err());
    }
}
