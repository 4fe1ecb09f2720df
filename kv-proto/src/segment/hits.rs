//! Who was read: two bits a slot, private to the daemon, lossy.

use super::item::Place;
use super::layout::SLOTS;
use std::sync::atomic::{AtomicU16, Ordering};

/// What a hit counts: two more laps of main, saturating at three. Most hits are never told, so one that is stands for others:
/// on recorded traces 0.05 points better than one when all are told, 0.1 to 0.4 when one of ten is; three is no better.
const HIT: u16 = 2;
const MOST: u16 = 3;

/// Saturating two-bit counters, one a slot of the index. Any thread may count; a lost count harms nothing.
#[derive(Debug)]
pub struct Hits {
    buckets: Box<[AtomicU16]>,
}

impl Hits {
    pub(super) fn new(buckets: usize) -> Hits {
        Hits { buckets: (0..buckets).map(|_| AtomicU16::new(0)).collect() }
    }

    /// All counts, for another process.
    #[cfg(not(loom))]
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.buckets.iter().flat_map(|bucket| bucket.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    /// What `to_bytes` gave, if it is of so many buckets.
    #[cfg(not(loom))]
    pub(super) fn of_bytes(bytes: &[u8], buckets: usize) -> Option<Hits> {
        let (counts, rest) = bytes.as_chunks::<2>();
        (counts.len() == buckets && rest.is_empty()).then(|| Hits {
            buckets: counts.iter().map(|count| AtomicU16::new(u16::from_le_bytes(*count))).collect(),
        })
    }

    /// Notes a hit.
    #[inline]
    pub fn touch(&self, place: Place) {
        let Some(bucket) = self.buckets.get(place.bucket).filter(|_| place.slot < SLOTS) else { return };
        let counts = bucket.load(Ordering::Relaxed);
        let count = counts >> (2 * place.slot) & MOST;
        if count < MOST {
            let more = (count + HIT).min(MOST) - count;
            bucket.store(counts + (more << (2 * place.slot)), Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self, place: Place) -> u16 {
        debug_assert!(place.slot < SLOTS);
        self.buckets[place.bucket].load(Ordering::Relaxed) >> (2 * place.slot) & MOST
    }

    pub(super) fn set(&self, place: Place, count: u16) {
        let bucket = &self.buckets[place.bucket];
        let counts = bucket.load(Ordering::Relaxed) & !(MOST << (2 * place.slot));
        bucket.store(counts | count.min(MOST) << (2 * place.slot), Ordering::Relaxed);
    }
}
