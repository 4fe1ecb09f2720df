//! What is counted of requests and objects: sums that workers add up, and what can be said of them.

use serde::{Deserialize, Serialize};

use crate::metrics::Route;
use crate::visit::Kind;

/// Upper bounds of the latencies, in microseconds: each a quarter more than the one before, from 50 µs to 10 s.
pub(crate) const BUCKETS: usize = 56;
/// What one kind of request came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteCounts {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) queries: u64,
    pub(crate) took_us: u64,
    pub(crate) buckets: Vec<u64>,
}

/// Counts of one worker, or of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// By [`Route`].
    pub(crate) routes: Vec<RouteCounts>,
    /// Wanted and loaded, by [`Kind`].
    pub(crate) objects: Vec<(u64, u64)>,
    pub(crate) throttled: u64,
    pub(crate) conflicts_retried: u64,
    pub(crate) losses_retried: u64,
}

impl Default for Counts {
    fn default() -> Counts {
        let route =
            RouteCounts { requests: 0, failures: 0, queries: 0, took_us: 0, buckets: vec![0; BUCKETS] };
        Counts {
            routes: vec![route; Route::ALL.len()],
            objects: vec![(0, 0); Kind::ALL.len()],
            throttled: 0,
            conflicts_retried: 0,
            losses_retried: 0,
        }
    }
}

impl Counts {
    /// Adds what others counted.
    pub(crate) fn add(&mut self, other: &Counts) {
        for (own, other) in self.routes.iter_mut().zip(&other.routes) {
            own.requests += other.requests;
            own.failures += other.failures;
            own.queries += other.queries;
            own.took_us += other.took_us;
            own.buckets.iter_mut().zip(&other.buckets).for_each(|(own, other)| *own += other);
        }
        for (own, other) in self.objects.iter_mut().zip(&other.objects) {
            *own = (own.0 + other.0, own.1 + other.1);
        }
        self.throttled += other.throttled;
        self.conflicts_retried += other.conflicts_retried;
        self.losses_retried += other.losses_retried;
    }

    /// How many of a kind were wanted, and how many of them a cache had, of a thousand.
    pub(crate) fn hits_per_mille(&self, kinds: &[Kind]) -> Option<u64> {
        let sum = |of: fn(&(u64, u64)) -> u64| {
            kinds.iter().map(|kind| of(&self.objects[*kind as usize])).sum::<u64>()
        };
        let (asked, loaded) = (sum(|counts| counts.0), sum(|counts| counts.1));
        (asked > 0).then(|| asked.saturating_sub(loaded) * 1_000 / asked)
    }

    /// What was counted since `before`.
    pub(crate) fn since(&self, before: &Counts) -> Counts {
        let mut since = self.clone();
        for (own, before) in since.routes.iter_mut().zip(&before.routes) {
            own.requests = own.requests.saturating_sub(before.requests);
            own.failures = own.failures.saturating_sub(before.failures);
            own.queries = own.queries.saturating_sub(before.queries);
            own.took_us = own.took_us.saturating_sub(before.took_us);
            own.buckets
                .iter_mut()
                .zip(&before.buckets)
                .for_each(|(own, before)| *own = own.saturating_sub(*before));
        }
        for (own, before) in since.objects.iter_mut().zip(&before.objects) {
            *own = (own.0.saturating_sub(before.0), own.1.saturating_sub(before.1));
        }
        since
    }
}

impl RouteCounts {
    /// The latency, in microseconds, that so many of a hundred requests stay below, to the next bucket.
    pub(crate) fn percentile_us(&self, percent: u64) -> u64 {
        let wanted = (self.buckets.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        let at = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        bound_us(at.unwrap_or(BUCKETS - 1))
    }
}

/// Up to where a bucket goes.
pub(crate) fn bound_us(bucket: usize) -> u64 {
    (50.0 * 1.25_f64.powi(i32::try_from(bucket).unwrap_or(i32::MAX))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_the_next_bucket() {
        let mut route = Counts::default().routes.swap_remove(0);
        for us in 1..=10_000_u64 {
            let bucket = (0..BUCKETS).find(|at| us <= bound_us(*at)).unwrap();
            route.buckets[bucket] += 1;
        }
        let (p50, p99) = (route.percentile_us(50), route.percentile_us(99));
        assert!((5_000..6_250).contains(&p50) && (9_900..12_375).contains(&p99), "{p50} {p99}");
        assert!(bound_us(BUCKETS - 1) > 10_000_000);
    }
}
