//! What the visitors of a load met: how long each kind of view took from when it was due, and what went wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use hyper::StatusCode;

/// Longest latency that is told from longer ones, in microseconds.
const US_MAX: u64 = 60_000_000;

/// Kinds of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Home,
    Welcome,
    Product,
    Category,
    Search,
    Add,
    Cart,
    Checkout,
    Buy,
    Order,
}

impl Kind {
    const ALL: [Kind; 10] = [
        Kind::Home,
        Kind::Welcome,
        Kind::Product,
        Kind::Category,
        Kind::Search,
        Kind::Add,
        Kind::Cart,
        Kind::Checkout,
        Kind::Buy,
        Kind::Order,
    ];
}

/// Counts of a load. Clones count together.
#[derive(Clone)]
pub(super) struct Tally(Arc<Mutex<Counted>>);

pub(super) struct Counted {
    kinds: Vec<Histogram<u64>>,
    pub(super) all: Histogram<u64>,
    /// No answer in time, or one of our own faults.
    pub(super) failures: u64,
    pub(super) throttled: u64,
    pub(super) sold_out: u64,
    pub(super) orders: u64,
    /// Refused otherwise; there should be none.
    pub(super) refused: u64,
}

impl Tally {
    pub(super) fn new() -> Tally {
        let empty = || Histogram::new_with_max(US_MAX, 3).expect("these bounds are good");
        Tally(Arc::new(Mutex::new(Counted {
            kinds: Kind::ALL.map(|_| empty()).into(),
            all: empty(),
            failures: 0,
            throttled: 0,
            sold_out: 0,
            orders: 0,
            refused: 0,
        })))
    }

    pub(super) fn note(&self, kind: Kind, took: Duration, status: Option<StatusCode>) {
        let us = u64::try_from(took.as_micros()).unwrap_or(US_MAX).clamp(1, US_MAX);
        let mut counted = self.counted();
        counted.kinds[kind as usize].saturating_record(us);
        counted.all.saturating_record(us);
        match status {
            None => counted.failures += 1,
            Some(status) if status.is_server_error() => counted.failures += 1,
            Some(StatusCode::TOO_MANY_REQUESTS) => counted.throttled += 1,
            Some(StatusCode::CONFLICT) => counted.sold_out += 1,
            Some(status) if status.is_client_error() => counted.refused += 1,
            Some(_) if kind == Kind::Buy => counted.orders += 1,
            Some(_) => {}
        }
    }

    pub(super) fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    pub(super) fn p99_ms(&self) -> f64 {
        ms(self.all.value_at_quantile(0.99))
    }

    /// A table, one line a kind.
    pub(super) fn table(&self) -> String {
        let line = |name: &str, own: &Histogram<u64>| {
            format!(
                "  {name:<10} {:>8} {:>10.2} {:>10.2} {:>10.2}\n",
                own.len(),
                ms(own.value_at_quantile(0.5)),
                ms(own.value_at_quantile(0.99)),
                ms(own.max())
            )
        };
        let mut table =
            format!("  {:<10} {:>8} {:>10} {:>10} {:>10}\n", "view", "count", "p50 ms", "p99 ms", "max ms");
        for kind in Kind::ALL {
            let own = &self.kinds[kind as usize];
            if !own.is_empty() {
                table.push_str(&line(&format!("{kind:?}").to_lowercase(), own));
            }
        }
        table.push_str(&line("all", &self.all));
        table
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}
