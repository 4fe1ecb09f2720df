//! Reading a cache's segment in this process's own address space: no system call, and nothing anybody else could notice.
//!
//! Both clients keep a [`Seat`] for each cache they were asked for. In reading order: `attach` gets and maps a segment,
//! `seat` reads it and says when the daemon must be asked instead, `record` keeps what was read until it is told. None of
//! it takes a lock or asks which process it is: a child of `fork` reads on through the map it inherited.

mod attach;
mod counts;
mod record;
mod seat;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub(crate) use attach::receive;
pub(crate) use seat::{Found, Parts, Seat, give_back, scratch};

use crate::answers::CacheStats;

/// The seats of a client, by cache. Only ever grows: as many as an application names.
#[derive(Debug, Default)]
pub(crate) struct Seats(ArcSwap<HashMap<Arc<str>, Arc<Seat>>>);

impl Seats {
    /// The seat for a cache; made when it is first asked for.
    pub(crate) fn at(&self, cache: &str) -> Arc<Seat> {
        if let Some(seat) = self.0.load().get(cache) {
            return Arc::clone(seat);
        }
        let seat = Arc::new(Seat::new(cache));
        self.0.rcu(|seats| {
            let mut seats = HashMap::clone(seats);
            seats.entry(Arc::from(cache)).or_insert_with(|| Arc::clone(&seat));
            seats
        });
        Arc::clone(self.0.load().get(cache).unwrap_or(&seat))
    }

    /// Lets reads of a cache, or of all, ask from here on.
    pub(crate) fn detach(&self, cache: Option<&str>) {
        let seats = self.0.load();
        let named = seats.iter().filter(|(name, _)| cache.is_none_or(|cache| ***name == *cache));
        named.for_each(|(_, seat)| seat.detach());
    }

    /// What was counted about each, by name.
    pub(crate) fn stats(&self) -> Vec<CacheStats> {
        let mut stats: Vec<_> = self.0.load().values().map(|seat| seat.stats()).collect();
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }
}
