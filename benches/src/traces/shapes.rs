//! What is made up: whom a generator asks for, how large things are, how long they live.
//!
//! Called by [`super::sources`]. Everything follows from a seed; nothing here knows a cache.

/// The exponent of Zipf's law that YCSB uses ("Benchmarking cloud serving systems with YCSB", SoCC 2010).
const ZIPF_EXPONENT: f64 = 0.99;

/// Ranks after Zipf's law: rank `r` (from 0) comes up in proportion to `1 / (r + 1)^0.99`.
#[derive(Debug)]
pub struct Zipf {
    /// Sums of the weights up to each rank.
    sums: Vec<f64>,
}

impl Zipf {
    /// Of so many ranks, at least one.
    #[must_use]
    pub fn new(ranks: usize) -> Zipf {
        let mut sum = 0.0;
        let weight = |rank: usize| ((rank + 1) as f64).powf(-ZIPF_EXPONENT);
        let add = |rank| {
            sum += weight(rank);
            sum
        };
        Zipf { sums: (0..ranks.max(1)).map(add).collect() }
    }

    /// One rank.
    pub fn next(&self, random: &mut fastrand::Rng) -> u32 {
        let at = random.f64() * self.sums[self.sums.len() - 1];
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1) as u32
    }
}

/// `accesses` after Zipf's law over `objects`, whose ranks have nothing to do with their numbers.
#[must_use]
pub fn zipf(accesses: usize, objects: usize, seed: u64) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut names: Vec<u32> = (0..objects as u32).collect();
    random.shuffle(&mut names);
    let ranks = Zipf::new(objects);
    (0..accesses).map(|_| names[ranks.next(&mut random) as usize]).collect()
}

/// The objects one after the other, over and over.
#[must_use]
pub fn looped(accesses: usize, objects: usize) -> Vec<u32> {
    (0..accesses).map(|i| (i % objects) as u32).collect()
}

/// Zipf's law over the first third of the objects, and now and then somebody reads a long stretch of the others once.
#[must_use]
pub fn scanned(accesses: usize, objects: usize, seed: u64) -> Vec<u32> {
    const POPULAR_SHARE: usize = 3;
    /// Between two scans.
    const CALM: usize = 40_000;
    const SCAN: usize = 10_000;
    let popular = objects.div_ceil(POPULAR_SHARE);
    let others = (objects - popular).max(1);
    let calm = zipf(accesses, popular, seed);
    let mut scanned = 0;
    let at = |(i, object): (usize, u32)| {
        if i % (CALM + SCAN) < CALM {
            return object;
        }
        scanned += 1;
        (popular + scanned % others).min(objects - 1) as u32
    };
    calm.into_iter().enumerate().map(at).collect()
}

/// Bytes of a value of Facebook's ETC pool: a generalized Pareto distribution of location 15, scale 214.476, shape 0.348238
/// ("Workload analysis of a large-scale key-value store", SIGMETRICS 2012), mean some 340, cut at 8 KiB.
pub fn etc_value_bytes(random: &mut fastrand::Rng) -> u32 {
    const LOCATION: f64 = 15.0;
    const SCALE: f64 = 214.476;
    const SHAPE: f64 = 0.348238;
    const VALUE_BYTES_MAX: f64 = 8_192.0;
    // Above zero, so that it can be raised to a negative power.
    let at = 1.0 - random.f64();
    (LOCATION + SCALE * (at.powf(-SHAPE) - 1.0) / SHAPE).min(VALUE_BYTES_MAX) as u32
}

/// How many accesses an object lives: a third of them for ever, a third for a quarter of the whole run, a third for a fiftieth.
pub fn mixed_life(random: &mut fastrand::Rng, accesses: usize) -> Option<u64> {
    let accesses = accesses as u64;
    [None, Some(accesses / 4), Some(accesses / 50)][random.usize(0..3)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_asks_for_the_first_rank_as_often_as_the_law_says() {
        let ranks = Zipf::new(1_000);
        let mut random = fastrand::Rng::with_seed(1);
        let mut counts = vec![0_u32; 1_000];
        (0..200_000).for_each(|_| counts[ranks.next(&mut random) as usize] += 1);
        let all: f64 = (1..=1_000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [1_u32, 2, 10] {
            let expected = 200_000.0 * f64::from(rank).powf(-0.99) / all;
            let counted = f64::from(counts[rank as usize - 1]);
            assert!((counted / expected - 1.0).abs() < 0.05, "rank {rank}: {counted} instead of {expected}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_accesses() {
        assert_eq!(zipf(100, 50, 3), zipf(100, 50, 3));
        assert_ne!(zipf(100, 50, 3), zipf(100, 50, 4));
        assert_eq!(looped(5, 2), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn a_scan_meets_nothing_twice_until_it_has_met_all() {
        let accesses = scanned(50_000, 30_000, 1);
        assert!(accesses[..40_000].iter().all(|&object| object < 10_000));
        let mut scan = accesses[40_000..].to_vec();
        scan.sort_unstable();
        scan.dedup();
        assert_eq!(scan.len(), 10_000);
        assert!(scan.iter().all(|&object| (10_000..30_000).contains(&object)));
    }

    #[test]
    fn values_are_as_large_as_at_facebook() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut bytes: Vec<u32> = (0..100_000).map(|_| etc_value_bytes(&mut random)).collect();
        let mean = f64::from(bytes.iter().sum::<u32>()) / 100_000.0;
        assert!((320.0..350.0).contains(&mean), "mean {mean}");
        bytes.sort_unstable();
        // 15 + 214.476 * (2^0.348238 - 1) / 0.348238
        assert!((180..=184).contains(&bytes[50_000]), "median {}", bytes[50_000]);
    }
}
