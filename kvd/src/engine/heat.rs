//! Which items are read most lately, in bounded memory.
//!
//! The segment's own counters say what deserves to stay and end at three; a ranking needs more. Beside them stands a small
//! table of counted slots: two that share a place wear each other down, and the one read more stays (the vote of Boyer and
//! Moore, a place). Counts are halved now and then, so that what was hot an hour ago is not. All is lossy and relaxed: it costs a
//! read of the daemon some nanoseconds, and harms nothing when wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_proto::limits::{HITS_PLACES_MAX, HOT_KEYS_MAX};
use kv_proto::segment::{Hits, Place};
use kv_proto::wire::{Bytes, HotKey, Response, encode_into};

use super::{Engine, Failure, Session};

/// Slots that are counted at once, a cache. A power of two.
const PLACES: usize = 4_096;
/// Of what is counted, this many times the keys asked for are looked up: some have been overwritten or have left.
const LOOKED_UP: usize = 2;

/// Notes reads: for the segment's eviction, and for the ranking.
pub(crate) struct Reads {
    hits: Arc<Hits>,
    /// The number of a slot plus one, and its count below it.
    places: Box<[AtomicU64]>,
}

impl Reads {
    pub(crate) fn new(hits: Arc<Hits>) -> Reads {
        Reads { hits, places: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Notes a read by the daemon.
    pub(crate) fn touch(&self, place: Place) {
        self.hits.touch(place);
        self.count(place, 1);
    }

    /// Notes what a process says it has read: so many reads, of these slots and others.
    pub(super) fn touch_told(&self, places: &[u32], reads: u64) {
        let places = &places[..places.len().min(HITS_PLACES_MAX)];
        // It says how many reads there were but not of which: shared out evenly, what is told again and again is the hottest.
        let each = reads / (places.len() as u64).max(1);
        for place in places.iter().copied().map(Place::of) {
            self.hits.touch(place);
            self.count(place, u32::try_from(each).unwrap_or(u32::MAX).max(1));
        }
    }

    fn count(&self, place: Place, reads: u32) {
        let Some(number) = place.number().filter(|number| *number < u32::MAX) else { return };
        let own = u64::from(number + 1) << 32;
        // The high bits of a product: neighbours in the index are not neighbours here.
        let at = (number.wrapping_mul(0x9e37_79b9) >> 20) as usize % PLACES;
        let word = self.places[at].load(Ordering::Relaxed);
        let (holder, count) = (word & !u64::from(u32::MAX), word as u32);
        let next = if holder == own {
            own | u64::from(count.saturating_add(reads))
        } else if count >= reads {
            holder | u64::from(count - reads)
        } else {
            own | u64::from(reads - count)
        };
        self.places[at].store(next, Ordering::Relaxed);
    }

    /// Halves all counts.
    pub(super) fn cool(&self) {
        for place in &self.places {
            let word = place.load(Ordering::Relaxed);
            if word as u32 > 0 {
                place.store((word & !u64::from(u32::MAX)) | u64::from(word as u32 / 2), Ordering::Relaxed);
            }
        }
    }

    /// What is counted, in no order.
    fn counted(&self) -> impl Iterator<Item = (u32, Place)> {
        let words = self.places.iter().map(|place| place.load(Ordering::Relaxed));
        words.filter(|word| *word as u32 > 0).map(|word| (word as u32, Place::of((word >> 32) as u32 - 1)))
    }
}

impl Engine {
    /// Answers `hottest`: looks at what is counted, never at the whole index.
    pub(super) fn hottest(
        &self,
        session: &Session,
        cache: Option<&str>,
        keys_max: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let keys_max = (keys_max as usize).clamp(1, HOT_KEYS_MAX);
        let viewer = session.viewer();
        let caches = match cache {
            Some(name) => vec![self.cache(name)?],
            None => self.caches.load().values().cloned().collect(),
        };
        let mut counted: Vec<_> = caches
            .iter()
            .filter(|cache| viewer.as_ref().is_none_or(|viewer| viewer.may_see(cache)))
            .flat_map(|cache| {
                let view = cache.view.load_full();
                let counted: Vec<_> = view.hits.counted().collect();
                counted.into_iter().map(move |(reads, place)| (reads, cache, view.segment, place))
            })
            .collect();
        counted.sort_unstable_by_key(|(reads, ..)| std::cmp::Reverse(*reads));
        counted.truncate(keys_max * LOOKED_UP);
        let mut found = Vec::new();
        let state = self.lock();
        for (reads, cache, segment, place) in counted {
            if found.len() == keys_max {
                break;
            }
            // In another segment the slot is somebody else's.
            if cache.view.load().segment != segment {
                continue;
            }
            if let Some((key, value_bytes)) = state.memory_ref(cache).writer.item_at(place) {
                found.push((cache, key, reads, value_bytes));
            }
        }
        drop(state);
        let keys = found.iter().map(|(cache, key, reads, value_bytes)| HotKey {
            cache: &cache.name,
            key: Bytes(key),
            reads: u64::from(*reads),
            value_bytes: u32::try_from(*value_bytes).expect("values are far below 4 GiB"),
        });
        encode_into(out, &Response::HotKeys(keys.collect()));
        Ok(())
    }

    /// Lets what was read before weigh less.
    pub(super) fn cool(&self) {
        self.caches.load().values().for_each(|cache| cache.view.load().hits.cool());
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::segment::{Backed, Geometry, Words, Writer};

    use super::*;

    fn reads() -> Reads {
        let geometry = Geometry::exact(4, 16, 64, 64);
        let (words, _) = Words::memfd_or_private(c"kvd-test", geometry.bytes()).unwrap();
        Reads::new(Writer::create(words, geometry, 1, Backed::Memory, 0).hits())
    }

    #[test]
    fn what_is_read_most_is_first_however_many_others_are_read() {
        let reads = reads();
        for round in 0..1_000_u32 {
            (0..20).for_each(|hot| reads.touch(Place::of(hot)));
            (0..50).for_each(|cold| reads.touch(Place::of(1_000 + (round * 50 + cold) % 30_000)));
        }
        let mut counted: Vec<_> =
            reads.counted().map(|(count, place)| (count, place.number().unwrap())).collect();
        counted.sort_unstable_by_key(|(count, _)| std::cmp::Reverse(*count));
        let first: std::collections::BTreeSet<_> =
            counted.iter().take(20).map(|(_, number)| *number).collect();
        assert_eq!(first, (0..20).collect());
    }

    #[test]
    fn told_reads_are_shared_out_and_counts_cool() {
        let reads = reads();
        reads.touch_told(&[7, 9], 1_000);
        reads.touch_told(&[7], 100);
        let count =
            |of| reads.counted().find(|(_, place)| place.number() == Some(of)).map(|(count, _)| count);
        assert_eq!((count(7), count(9)), (Some(600), Some(500)));
        reads.cool();
        assert_eq!((count(7), count(9)), (Some(300), Some(250)));
    }
}
