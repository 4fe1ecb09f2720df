//! The caches that are compared, all spoken to in one way: was this there? If not, it is put.
//!
//! Called by [`super::run`]. Every cache is told the same weights and the same limit. Peers know nothing of lives here: what they
//! hold past its life counts as a miss and is put again, as cache-aside does. Hashes are fixed, so that a run comes out the same;
//! only moka looks at the clock.

use std::hash::{BuildHasherDefault, DefaultHasher};

use lru::LruCache;
use quick_cache::OptionsBuilder;
use quick_cache::unsync::Cache as QuickCache;
use serde::Serialize;

use super::belady;
use super::segment::{Kvd, Rings, Told};
use super::sources::{Object, Source};

/// A cache and how it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// The best that could be had.
    Belady,
    /// kvd, rings of the whole budget, every hit known at once.
    Kvd,
    /// The same, hits told in batches that lose what does not fit.
    KvdBatched,
    /// The same, nine of ten hits never told.
    KvdLost,
    /// kvd, header and index paid for from the budget too.
    KvdWhole,
    /// moka 0.12: W-TinyLFU.
    Moka,
    /// `quick_cache` 0.7: a CLOCK-Pro.
    QuickCache,
    /// Least recently used.
    Lru,
}

impl Kind {
    /// All, in the order of the tables.
    pub const ALL: [Kind; 8] = [
        Kind::Belady,
        Kind::Kvd,
        Kind::KvdBatched,
        Kind::KvdLost,
        Kind::KvdWhole,
        Kind::Moka,
        Kind::QuickCache,
        Kind::Lru,
    ];

    /// The head of its column.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Kind::Belady => "Belady",
            Kind::Kvd => "kvd",
            Kind::KvdBatched => "kvd, hits in batches",
            Kind::KvdLost => "kvd, 90 % lost",
            Kind::KvdWhole => "kvd, whole segment",
            Kind::Moka => "moka",
            Kind::QuickCache => "quick_cache",
            Kind::Lru => "LRU",
        }
    }
}

/// A cache that something is asked of.
pub trait Candidate {
    /// Whether the object is there at this moment.
    fn get(&mut self, number: u32, object: &Object, now: u64) -> bool;

    /// Puts what was not there.
    fn put(&mut self, number: u32, object: &Object, now: u64);
}

/// Hits of one cache over one source.
pub fn replay(kind: Kind, source: &Source, nexts: &[u32], budget_bytes: u64) -> u64 {
    let mean_bytes = source.bytes() / source.objects.len() as u64;
    let items = (budget_bytes / mean_bytes).max(1);
    let kvd = |rings, told| Box::new(Kvd::new(rings, budget_bytes, items, told));
    let mut cache: Box<dyn Candidate> = match kind {
        Kind::Belady => return belady::hits(source, nexts, budget_bytes),
        Kind::Kvd => kvd(Rings::Budget, Told::AtOnce),
        Kind::KvdBatched => kvd(Rings::Budget, Told::Batched),
        Kind::KvdLost => kvd(Rings::Budget, Told::Lossy),
        Kind::KvdWhole => kvd(Rings::WithinBudget, Told::AtOnce),
        Kind::Moka => Box::new(Moka::new(budget_bytes)),
        Kind::QuickCache => Box::new(Quick::new(items, budget_bytes)),
        Kind::Lru => Box::new(Lru::new(budget_bytes)),
    };
    let mut hits = 0;
    for (now, &number) in source.accesses.iter().enumerate() {
        let object = &source.objects[number as usize];
        if cache.get(number, object, now as u64) {
            hits += 1;
        } else {
            cache.put(number, object, now as u64);
        }
    }
    hits
}

type FixedHasher = BuildHasherDefault<DefaultHasher>;

/// What peers keep for an object.
#[derive(Debug, Clone, Copy)]
struct Entry {
    weight: u32,
    /// The first access that it must not be served to.
    end: u64,
}

impl Entry {
    fn new(object: &Object, now: u64) -> Entry {
        Entry { weight: object.bytes, end: object.life.map_or(u64::MAX, |life| now + life) }
    }
}

struct Moka(moka::sync::Cache<u32, Entry, FixedHasher>);

impl Moka {
    fn new(budget_bytes: u64) -> Moka {
        let builder = moka::sync::Cache::builder().max_capacity(budget_bytes);
        Moka(builder.weigher(|_, entry: &Entry| entry.weight).build_with_hasher(FixedHasher::default()))
    }
}

impl Candidate for Moka {
    fn get(&mut self, number: u32, _: &Object, now: u64) -> bool {
        self.0.get(&number).is_some_and(|entry| now < entry.end)
    }

    fn put(&mut self, number: u32, object: &Object, now: u64) {
        // Not told to tidy up: it does so by itself after some 64 writes or 0.3 s and until then holds more than it may, which
        // does it much good in small caches (8 points at 1 % of `web07`), and is how it is used.
        self.0.insert(number, Entry::new(object, now));
    }
}

#[derive(Debug, Clone, Copy)]
struct ByWeight;

impl quick_cache::Weighter<u32, Entry> for ByWeight {
    fn weight(&self, _: &u32, entry: &Entry) -> u64 {
        u64::from(entry.weight)
    }
}

/// Without shards: those would divide a small cache into very small ones.
struct Quick(QuickCache<u32, Entry, ByWeight, FixedHasher>);

impl Quick {
    fn new(items: u64, budget_bytes: u64) -> Quick {
        let items = usize::try_from(items).expect("a source fits the memory");
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(budget_bytes)
            .build()
            .expect("both needed options are given");
        Quick(QuickCache::with_options(options, ByWeight, FixedHasher::default(), Default::default()))
    }
}

impl Candidate for Quick {
    fn get(&mut self, number: u32, _: &Object, now: u64) -> bool {
        self.0.get(&number).is_some_and(|entry| now < entry.end)
    }

    fn put(&mut self, number: u32, object: &Object, now: u64) {
        self.0.insert(number, Entry::new(object, now));
    }
}

struct Lru {
    cache: LruCache<u32, Entry, FixedHasher>,
    used_bytes: u64,
    budget_bytes: u64,
}

impl Lru {
    fn new(budget_bytes: u64) -> Lru {
        let cache = LruCache::unbounded_with_hasher(FixedHasher::default());
        Lru { cache, used_bytes: 0, budget_bytes }
    }
}

impl Candidate for Lru {
    fn get(&mut self, number: u32, _: &Object, now: u64) -> bool {
        self.cache.get(&number).is_some_and(|entry| now < entry.end)
    }

    fn put(&mut self, number: u32, object: &Object, now: u64) {
        let old = self.cache.put(number, Entry::new(object, now));
        self.used_bytes += u64::from(object.bytes);
        self.used_bytes -= old.map_or(0, |old| u64::from(old.weight));
        while self.used_bytes > self.budget_bytes {
            let (_, gone) = self.cache.pop_lru().expect("something is used");
            self.used_bytes -= u64::from(gone.weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(accesses: Vec<u32>, objects: usize, life: Option<u64>) -> Source {
        let objects = vec![Object { bytes: 1_024, life }; objects];
        Source { name: "zipf", what: String::new(), accesses, objects }
    }

    fn hits(kind: Kind, source: &Source, budget_bytes: u64) -> u64 {
        replay(kind, source, &belady::next_uses(&source.accesses), budget_bytes)
    }

    #[test]
    fn with_room_for_all_every_candidate_misses_first_times_and_ends_of_lives_only() {
        let mut random = fastrand::Rng::with_seed(1);
        let accesses: Vec<u32> = (0..5_000).map(|_| random.u32(0..300)).collect();
        for life in [None, Some(70), Some(1_000)] {
            let source = source(accesses.clone(), 300, life);
            let best = hits(Kind::Belady, &source, 1 << 20);
            for kind in Kind::ALL {
                assert_eq!(hits(kind, &source, 2 << 20), best, "{} with {life:?}", kind.title());
            }
        }
    }

    #[test]
    fn no_candidate_is_better_than_belady() {
        let accesses = super::super::shapes::zipf(20_000, 2_000, 1);
        for life in [None, Some(2_000)] {
            let source = source(accesses.clone(), 2_000, life);
            for budget_bytes in [100 << 10, 400 << 10, 1_000 << 10] {
                let best = hits(Kind::Belady, &source, budget_bytes);
                for kind in Kind::ALL {
                    let hits = hits(kind, &source, budget_bytes);
                    assert!(hits <= best, "{}: {hits} of {best} with {life:?}", kind.title());
                    assert!(hits > best / 2, "{}: {hits} of {best} with {life:?}", kind.title());
                }
            }
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let source = source(vec![0, 1, 0, 2, 0, 1], 3, None);
        assert_eq!(hits(Kind::Lru, &source, 2_048), 2);
    }
}
