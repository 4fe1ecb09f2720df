//! What was read without asking: counted exactly enough, remembered lossily, told in arrears.
//!
//! `seat` notes each read here and builds the report. Noting must cost a read next to nothing: a load and a store on a line
//! of the thread's own, no read-modify-write, no system call. What is lost when two threads share a stripe harms nobody.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use kv_proto::limits::HITS_PLACES_MAX;
use kv_proto::segment::Place;

/// Threads that read at once without sharing a line. A worker process has one.
const STRIPES: usize = 16;
/// Slots remembered by a stripe; a later one at the same place replaces an earlier.
const PLACES: usize = 1_024;

/// The record of one cache.
#[derive(Debug, Default)]
pub(super) struct Record {
    stripes: [Stripe; STRIPES],
}

/// Two cache lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    hits: AtomicU64,
    misses: AtomicU64,
    /// Place numbers plus one; zero is empty.
    places: OnceLock<Box<[AtomicU32]>>,
}

/// Reads so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) hits: u64,
    pub(super) misses: u64,
}

impl Record {
    /// Notes a hit on an item.
    #[inline]
    pub(super) fn hit(&self, place: Place) {
        let stripe = &self.stripes[stripe_of_thread()];
        stripe.hits.store(stripe.hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let Some(number) = place.number() else { return };
        let places = stripe.places.get_or_init(|| (0..PLACES).map(|_| AtomicU32::new(0)).collect());
        // The high bits of a product: neighbours in the index are not neighbours here.
        let at = (number.wrapping_mul(0x9e37_79b9) >> 22) as usize % PLACES;
        let noted = number.wrapping_add(1);
        // A key that is read again and again costs no store.
        if places[at].load(Ordering::Relaxed) != noted {
            places[at].store(noted, Ordering::Relaxed);
        }
    }

    /// Notes an authoritative miss.
    #[inline]
    pub(super) fn miss(&self) {
        let stripe = &self.stripes[stripe_of_thread()];
        stripe.misses.store(stripe.misses.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        let sum = |of: fn(&Stripe) -> &AtomicU64| {
            self.stripes.iter().map(|stripe| of(stripe).load(Ordering::Relaxed)).sum()
        };
        Totals { hits: sum(|stripe| &stripe.hits), misses: sum(|stripe| &stripe.misses) }
    }

    /// Takes out what is remembered, as much as one report holds.
    pub(super) fn take_places(&self) -> Vec<u32> {
        let mut taken = Vec::new();
        for places in self.stripes.iter().filter_map(|stripe| stripe.places.get()) {
            for place in places {
                if taken.len() == HITS_PLACES_MAX {
                    return taken;
                }
                if place.load(Ordering::Relaxed) != 0 {
                    taken.push(place.swap(0, Ordering::Relaxed).wrapping_sub(1));
                }
            }
        }
        taken
    }
}

#[inline]
fn stripe_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) });
    let known = STRIPE.get();
    if known < STRIPES {
        return known;
    }
    let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    STRIPE.set(stripe);
    stripe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_told_once() {
        let record = Record::default();
        for number in [7, 7, 9, 7] {
            record.hit(Place::of(number));
        }
        record.miss();
        assert_eq!(record.totals(), Totals { hits: 4, misses: 1 });
        let mut places = record.take_places();
        places.sort_unstable();
        assert_eq!(places, [7, 9]);
        assert!(record.take_places().is_empty());
        assert_eq!(record.totals().hits, 4, "totals only grow");
    }

    #[test]
    fn a_record_is_bounded_however_much_is_read() {
        let record = Record::default();
        for number in 0..1_000_000 {
            record.hit(Place::of(number));
        }
        assert_eq!(record.totals().hits, 1_000_000);
        let told = record.take_places().len();
        assert!((PLACES / 2..=PLACES).contains(&told), "{told} told");
    }

    #[test]
    fn threads_count_on_lines_of_their_own() {
        let record = Record::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| record.miss()));
            }
        });
        assert!(record.totals().misses >= 10_000);
    }
}
