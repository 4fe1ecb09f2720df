//! What the shop measures of itself: latency by kind of page, hits by kind of object, queries a page.
//!
//! From "Experience feedback in running a SaaS application": measure requests inside the application from the first day; outside monitoring is too
//! coarse, and production teaches more than the bench. The pitfall of pre-forked workers: whoever asks one of them gets a fraction. Each
//! worker puts its counts into kvd once a second, under the number of its place; whoever asks gets the sum. A worker that replaces a dead
//! one goes on from what that one had counted, so no total ever goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use kv_client::{Cache, Client, PutOptions, PutOutcome, SchemaVersion, Typed};
use tokio::time::interval;

use crate::counts::{BUCKETS, Counts, RouteCounts, bound_us};
use crate::faults;
use crate::pages::address::Address;
use crate::visit::{Kind, Visit};

/// How often counts are put where others see them.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// How long the counts of a place are kept that has no worker any more.
const KEEP: Duration = Duration::from_secs(3_600);

/// Kinds of requests, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Home,
    Category,
    Product,
    Search,
    Private,
    Form,
    Other,
}

impl Route {
    pub(crate) const ALL: [Route; 7] = [
        Route::Home,
        Route::Category,
        Route::Product,
        Route::Search,
        Route::Private,
        Route::Form,
        Route::Other,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Route::Home => "home",
            Route::Category => "category",
            Route::Product => "product",
            Route::Search => "search",
            Route::Private => "private",
            Route::Form => "form",
            Route::Other => "other",
        }
    }

    pub(crate) fn of(address: &Address) -> Route {
        match address {
            Address::Home => Route::Home,
            Address::Category { .. } => Route::Category,
            Address::Product(_) => Route::Product,
            Address::Search(_) => Route::Search,
        }
    }
}

/// One worker's counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    routes: [[AtomicU64; BUCKETS + 3]; Route::ALL.len()],
    objects: [[AtomicU64; 2]; Kind::ALL.len()],
    throttled: AtomicU64,
    shared: Typed<Cache, Counts>,
    slot: u16,
    slots: u16,
}

impl Metrics {
    pub(crate) fn new(client: &Client, slot: u16, slots: u16) -> Metrics {
        let zero = |_| AtomicU64::new(0);
        Metrics {
            routes: std::array::from_fn(|_| std::array::from_fn(zero)),
            objects: std::array::from_fn(|_| std::array::from_fn(zero)),
            throttled: AtomicU64::new(0),
            shared: client.cache("metrics").typed(SchemaVersion(1)),
            slot,
            slots,
        }
    }

    pub(crate) fn record(&self, route: Route, took: Duration, visit: &Visit, status: StatusCode) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS).find(|at| us <= bound_us(*at)).unwrap_or(BUCKETS - 1);
        let counts = &self.routes[route as usize];
        let add = |at: usize, more: u64| counts[at].fetch_add(more, Ordering::Relaxed);
        add(bucket, 1);
        add(BUCKETS, u64::from(status.is_server_error()));
        add(BUCKETS + 1, u64::from(visit.queries()));
        add(BUCKETS + 2, us);
        for kind in Kind::ALL {
            let (asked, loaded) = visit.objects(kind);
            self.objects[kind as usize][0].fetch_add(u64::from(asked), Ordering::Relaxed);
            self.objects[kind as usize][1].fetch_add(u64::from(loaded), Ordering::Relaxed);
        }
    }

    pub(crate) fn throttled(&self) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
    }

    fn own(&self) -> Counts {
        let read = |counts: &[AtomicU64]| {
            counts.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        let route = |counts: &[AtomicU64; BUCKETS + 3]| {
            let mut buckets = read(counts);
            let rest = buckets.split_off(BUCKETS);
            RouteCounts {
                requests: buckets.iter().sum(),
                failures: rest[0],
                queries: rest[1],
                took_us: rest[2],
                buckets,
            }
        };
        let object =
            |counts: &[AtomicU64; 2]| (counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed));
        let (conflicts_retried, losses_retried) = faults::retries();
        Counts {
            routes: self.routes.iter().map(route).collect(),
            objects: self.objects.iter().map(object).collect(),
            throttled: self.throttled.load(Ordering::Relaxed),
            conflicts_retried,
            losses_retried,
        }
    }

    /// Puts the counts where others see them, until it is dropped.
    pub(crate) async fn publish(self: Arc<Self>) {
        let mut before = None;
        let mut ticks = interval(PUBLISH_EVERY);
        loop {
            ticks.tick().await;
            // While kvd is away it may have counts that this worker must go on from, and nobody knows them.
            let Some(before) = self.before(&mut before).await else { continue };
            let mut counts = before.clone();
            counts.add(&self.own());
            // With kvd away there is nobody to tell; the next second is soon.
            drop(self.shared.put(key(self.slot), &counts, KEEP).await);
        }
    }

    /// What those before this one had counted, once that is known.
    async fn before<'a>(&self, known: &'a mut Option<Counts>) -> Option<&'a Counts> {
        if known.is_none() {
            // A daemon that is away is a miss to whoever reads, and an error to whoever writes.
            let options = PutOptions::new().ttl(KEEP).if_absent();
            let first = self.shared.put_with(key(self.slot), &Counts::default(), options).await;
            *known = match first.ok()? {
                PutOutcome::Written { .. } => Some(Counts::default()),
                PutOutcome::Refused { .. } => self.shared.get(key(self.slot)).await.ok()?,
            };
        }
        known.as_ref()
    }

    /// The counts of all workers; of this one alone while kvd is away.
    pub(crate) async fn all(&self) -> Counts {
        let keys: Vec<String> = (0..self.slots).map(key).collect();
        let workers = self.shared.get_many(&keys).await.unwrap_or_default();
        let mut all = Counts::default();
        workers.iter().flatten().for_each(|counts| all.add(counts));
        if workers.iter().all(Option::is_none) { self.own() } else { all }
    }
}

fn key(slot: u16) -> String {
    format!("worker:{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_successor_goes_on_where_the_dead_one_stopped() {
        let server = kvd::testing::server();
        let client = Client::builder().socket(server.socket()).build().await.unwrap();
        for round in 1..=2 {
            let worker = Arc::new(Metrics::new(&client, 0, 2));
            worker.record(Route::Home, Duration::from_millis(1), &Visit::default(), StatusCode::OK);
            let publishing = tokio::spawn(Arc::clone(&worker).publish());
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            let published = async || worker.shared.get(key(0)).await.ok().flatten();
            while published().await.is_none_or(|counts| counts.routes[0].requests != round) {
                assert!(tokio::time::Instant::now() < deadline, "round {round}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            publishing.abort();
            assert_eq!(worker.all().await.routes[0].requests, round);
        }
    }

    #[tokio::test]
    async fn what_nobody_knows_yet_is_not_taken_for_nothing() {
        let away = Client::builder().socket("/nowhere/kvd.sock").build_lazy();
        assert_eq!(Metrics::new(&away, 0, 2).before(&mut None).await, None);
        let server = kvd::testing::server();
        let client = Client::builder().socket(server.socket()).build().await.unwrap();
        assert_eq!(Metrics::new(&client, 0, 2).before(&mut None).await, Some(&Counts::default()));
    }
}
