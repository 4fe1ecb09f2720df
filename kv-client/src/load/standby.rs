//! What this process loaded while the daemon is away, so that it loads each key once and not once a request.
//!
//! Consulted only while the daemon cannot be asked, and emptied as soon as it answers again: what other processes did
//! meanwhile is not known here. Bounded; the oldest go first.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::course::Served;
use crate::limits::{STANDBY_BYTES_MAX, STANDBY_MAX};
use crate::lock::Lock;
use crate::observe::Source;

/// How long what never expires is kept at most, without hearing of the daemon.
const LIFE_MAX: Duration = Duration::from_secs(60);

/// One process's.
#[derive(Debug, Default)]
pub(crate) struct Standby {
    is_used: AtomicBool,
    /// Counts invalidations by this process: what was loaded before one is not kept after it.
    invalidations: AtomicU64,
    kept: Lock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    values: HashMap<(u64, Box<[u8]>), (Served, Instant)>,
    order: VecDeque<(u64, Box<[u8]>)>,
    bytes: usize,
}

impl Standby {
    /// What was loaded of a key of the seat's cache during this outage.
    pub(crate) fn get(&self, seat: u64, key: &[u8]) -> Option<Served> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        let kept = self.kept.lock();
        let (served, until) = kept.values.get(&(seat, key.into()))?;
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some(Served { source: Source::Standby, left: served.left.map(|_| left), ..served.clone() })
    }

    /// Before a load; for [`Standby::keep`].
    pub(crate) fn moment(&self) -> u64 {
        self.invalidations.load(Ordering::SeqCst)
    }

    /// Keeps what was loaded since `moment`, unless something was invalidated meanwhile: whether it was not.
    pub(crate) fn keep(&self, moment: u64, seat: u64, key: &[u8], served: &Served) -> bool {
        let mut kept = self.kept.lock();
        // SYNC(standby-invalidated): either this sees the invalidation, or that sees that there is something to forget.
        self.is_used.store(true, Ordering::SeqCst);
        if self.moment() != moment {
            return false;
        }
        let until = Instant::now() + served.left.unwrap_or(LIFE_MAX).min(LIFE_MAX);
        let place = (seat, Box::from(key));
        kept.bytes += served.bytes.len();
        if let Some((old, _)) = kept.values.insert(place.clone(), (served.clone(), until)) {
            kept.bytes -= old.bytes.len();
        } else {
            kept.order.push_back(place);
        }
        while kept.order.len() > STANDBY_MAX || kept.bytes > STANDBY_BYTES_MAX {
            let Some(oldest) = kept.order.pop_front() else { break };
            if let Some((old, _)) = kept.values.remove(&oldest) {
                kept.bytes -= old.bytes.len();
            }
        }
        true
    }

    /// An invalidation by this process.
    pub(crate) fn forget(&self, seat: u64, key: &[u8]) {
        // SYNC(standby-invalidated): pairs with `keep`.
        self.invalidations.fetch_add(1, Ordering::SeqCst);
        if self.is_used.load(Ordering::SeqCst) {
            let mut kept = self.kept.lock();
            if let Some((old, _)) = kept.values.remove(&(seat, key.into())) {
                kept.bytes -= old.bytes.len();
                kept.order.retain(|(other, name)| (*other, &**name) != (seat, key));
            }
        }
    }

    /// This process invalidated many keys at once.
    pub(crate) fn forget_all(&self) {
        self.invalidations.fetch_add(1, Ordering::SeqCst);
        self.clear();
    }

    /// The daemon has answered.
    #[inline]
    pub(crate) fn clear(&self) {
        if self.is_used.load(Ordering::SeqCst) && self.is_used.swap(false, Ordering::SeqCst) {
            *self.kept.lock() = Kept::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(bytes: usize, left: Option<Duration>) -> Served {
        Served { left, ..Served::loaded(vec![7; bytes].into()) }
    }

    #[test]
    fn what_was_loaded_is_there_until_its_life_ends_it_is_forgotten_or_the_daemon_is_back() {
        let standby = Standby::default();
        standby.keep(standby.moment(), 1, b"a", &served(10, None));
        standby.keep(standby.moment(), 1, b"over", &served(10, Some(Duration::ZERO)));
        assert!(standby.get(1, b"a").is_some_and(|served| served.source == Source::Standby));
        assert!(standby.get(1, b"over").is_none());
        assert!(standby.get(2, b"a").is_none(), "another cache");
        standby.forget(1, b"a");
        assert!(standby.get(1, b"a").is_none());
        standby.keep(standby.moment(), 1, b"b", &served(10, None));
        standby.clear();
        assert!(standby.get(1, b"b").is_none());
    }

    #[test]
    fn what_was_loaded_before_an_invalidation_is_not_kept_after_it() {
        let standby = Standby::default();
        let before = standby.moment();
        standby.forget(1, b"k");
        assert!(!standby.keep(before, 1, b"k", &served(10, None)));
        let before = standby.moment();
        standby.forget_all();
        assert!(!standby.keep(before, 1, b"k", &served(10, None)));
        assert!(standby.get(1, b"k").is_none());
    }

    #[test]
    fn it_is_bounded_in_number_and_bytes() {
        let standby = Standby::default();
        for n in 0..STANDBY_MAX + 5 {
            standby.keep(standby.moment(), 1, &n.to_be_bytes(), &served(1, None));
        }
        assert!(standby.get(1, &4_usize.to_be_bytes()).is_none(), "the oldest went");
        assert!(standby.get(1, &5_usize.to_be_bytes()).is_some());
        standby.keep(standby.moment(), 1, b"large", &served(STANDBY_BYTES_MAX, None));
        assert!(standby.get(1, b"large").is_some());
        assert!(standby.get(1, &5_usize.to_be_bytes()).is_none());
    }
}
