//! Who was read: two bits a slot, private to the daemon, lossy.

use super::item::Place;
use super::layout::SLOTS;
use std::sync::atomic::{AtomicU16, Ordering};

/// Saturating two-bit counters, one a slot of the index. Any thread may count; a lost count harms nothing.
#[derive(Debug)]
pub struct Hits {
    buckets: Box<[AtomicU16]>,
}

impl Hits {
    pub(super) fn new(buckets: usize) -> Hits {
        Hits { buckets: (0..buckets).map(|_| AtomicU16::new(0)).collect() }
    }

    /// Notes a hit.
    #[inline]
    pub fn touch(&self, place: Place) {
        let Some(bucket) = self.buckets.get(place.bucket).filter(|_| place.slot < SLOTS) else { return };
        let counts = bucket.load(Ordering::Relaxed);
        if counts >> (2 * place.slot) & 3 < 3 {
            bucket.store(counts + (1 << (2 * place.slot)), Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self, place: Place) -> u16 {
        debug_assert!(place.slot < SLOTS);
        self.buckets[place.bucket].load(Ordering::Relaxed) >> (2 * place.slot) & 3
    }

    pub(super) fn set(&self, place: Place, count: u16) {
        let bucket = &self.buckets[place.bucket];
        let counts = bucket.load(Ordering::Relaxed) & !(3 << (2 * place.slot));
        bucket.store(counts | count.min(3) << (2 * place.slot), Ordering::Relaxed);
    }
}
