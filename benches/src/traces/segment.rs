//! kvd as a candidate: the segment's writer, driven as the engine drives it, and its reader.
//!
//! Called by [`super::candidates`]. Time is counted in accesses, a millisecond each.

use std::sync::Arc;

use kv_proto::segment::{Backed, Control, Geometry, Hits, NewItem, Outcome, Place, Reader, Words, Writer};

use super::candidates::Candidate;
use super::sources::{KEY_BYTES, Object};

const SEED: u64 = 7;
/// Of so many hits one is told, chosen at random.
const LOSSY_ONE_OF: u32 = 10;
/// Places that a client remembers until its next request. The hash of a key chooses which one, so that what is read over and
/// over has one. At 25 % of `orm-busy`, 64 of them cost 0.5 points, 256 0.3, 1,024 0.1; the newest 64 reads cost 0.7, because
/// most were of the same few objects.
const BATCH: usize = 256;
/// The first moment; before it there is nothing.
const START_MS: i64 = 1_000_000;

/// What the budget pays for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rings {
    /// The rings: items with their headers, and the gap that must stay free.
    Budget,
    /// The whole segment: header, stamps and index too.
    WithinBudget,
}

/// How the daemon gets to know what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Of each hit at once: its own reads.
    AtOnce,
    /// With the next put of the client, up to `BATCH` places read since the last.
    Batched,
    /// At once, but only one of `LOSSY_ONE_OF`.
    Lossy,
}

/// A segment of a `memory` cache.
pub struct Kvd {
    control: Arc<Control>,
    writer: Writer,
    reader: Reader,
    hits: Arc<Hits>,
    told: Told,
    batch: [Option<Place>; BATCH],
    random: fastrand::Rng,
    version: u64,
    value: Vec<u8>,
    buffer: Vec<u8>,
}

impl Kvd {
    /// For so many bytes and about so many items.
    #[must_use]
    pub fn new(rings: Rings, budget_bytes: u64, items: u64, told: Told) -> Kvd {
        let geometry = match rings {
            Rings::Budget => geometry_of_rings(budget_bytes, items),
            Rings::WithinBudget => Geometry::new(budget_bytes, items),
        };
        let control = Control::private(1);
        // Buckets of a fresh segment begin at what is committed; before that is said a miss is no answer.
        control.commit(1);
        let mut writer = Writer::create(
            Words::heap(geometry.bytes().div_ceil(kv_proto::segment::WORD_BYTES)),
            geometry,
            SEED,
            Backed::Memory,
            1,
        );
        // There is no disk whose keys must be enumerated first.
        writer.complete(1);
        Kvd {
            reader: writer.reader(&control),
            hits: writer.hits(),
            control,
            writer,
            told,
            batch: [None; BATCH],
            random: fastrand::Rng::with_seed(SEED),
            version: 1,
            value: Vec::new(),
            buffer: Vec::new(),
        }
    }

    fn note(&mut self, hash: u64, place: Place) {
        match self.told {
            Told::AtOnce => self.hits.touch(place),
            Told::Lossy => {
                if self.random.u32(0..LOSSY_ONE_OF) == 0 {
                    self.hits.touch(place);
                }
            }
            Told::Batched => self.batch[hash as usize % BATCH] = Some(place),
        }
    }
}

/// The least segment whose rings have so many bytes, divided as the daemon divides. (No segment is below 256 KiB: the
/// sources are so large that this does not matter.)
fn geometry_of_rings(ring_bytes: u64, items: u64) -> Geometry {
    let (mut low, mut high) = (ring_bytes, ring_bytes * 2 + (8 << 20));
    while low < high {
        let middle = low + (high - low) / 2;
        if Geometry::new(middle, items).ring_bytes() as u64 >= ring_bytes {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Geometry::new(low, items)
}

fn key(number: u32) -> [u8; KEY_BYTES as usize] {
    let mut key = [0; KEY_BYTES as usize];
    for (i, digit) in key.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(u64::from(number) >> (60 - 4 * i)) as usize & 15];
    }
    key
}

fn moment(now: u64) -> i64 {
    START_MS + now as i64
}

impl Candidate for Kvd {
    fn get(&mut self, number: u32, _: &Object, now: u64) -> bool {
        let key = key(number);
        let hash = self.reader.hash(&key);
        match self.reader.get(hash, &key, moment(now), &mut self.buffer) {
            Outcome::Hit(meta) => {
                self.note(hash, meta.place);
                true
            }
            Outcome::Miss => false,
            Outcome::Ask(reason) => unreachable!("one thread and no disk: {reason:?}"),
        }
    }

    fn put(&mut self, number: u32, object: &Object, now: u64) {
        for place in self.batch.iter_mut().filter_map(Option::take) {
            self.hits.touch(place);
        }
        self.version += 1;
        self.value.resize(object.value_bytes(), b'v');
        let (key, now) = (key(number), moment(now));
        let item = NewItem {
            key: &key,
            value: &self.value,
            version: self.version,
            created: now,
            expires: object.life.map(|life| now + life as i64),
            stale_for_ms: 0,
            load_cost_ms: 0,
            stale: false,
            tags: &[],
        };
        let hash = kv_proto::hash_key(SEED, &key);
        // An item over a sixteenth of a ring would be in the daemon's side store; here it is not kept.
        if self.writer.stage_put(self.version, hash, &item, now) {
            self.writer.publish(self.version);
        }
        self.control.commit(self.version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_weighs_what_it_takes_in_a_ring() {
        for life in [None, Some(50)] {
            for bytes in [64, 72, 1_024] {
                let mut kvd = Kvd::new(Rings::Budget, 1 << 20, 1_000, Told::AtOnce);
                kvd.put(7, &Object { bytes, life }, 0);
                assert_eq!(kvd.writer.counts().ring_bytes_used, u64::from(bytes));
            }
        }
    }

    #[test]
    fn rings_have_the_whole_budget_and_hardly_more() {
        for (budget_bytes, items) in [(836_000, 204), (5_000_000, 5_000), (20_000_000, 60_000)] {
            let bytes = geometry_of_rings(budget_bytes, items).ring_bytes() as u64;
            assert!((budget_bytes..budget_bytes + 256).contains(&bytes), "{bytes} for {budget_bytes}");
        }
    }
}
