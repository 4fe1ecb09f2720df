//! Loads under way in this process, so that its callers of one key share one, and what it knows to be under way elsewhere.
//!
//! How callers wait differs between threads and tasks; a flight is `F` here. A load inside a load never joins one: only the
//! daemon sees who waits for whom across processes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::limits::{ELSEWHERE, ELSEWHERE_MAX};
use crate::lock::Lock;

/// Those of one process, by cache and key.
#[derive(Debug)]
pub(crate) struct Flights<F> {
    by_seat: Lock<HashMap<u64, HashMap<Box<[u8]>, Arc<F>>>>,
    /// Keys that somebody else reloads, and until when nobody here asks again.
    elsewhere: Lock<HashMap<(u64, Box<[u8]>), Instant>>,
}

impl<F> Default for Flights<F> {
    fn default() -> Flights<F> {
        Flights { by_seat: Lock::default(), elsewhere: Lock::default() }
    }
}

/// Whose flight it is.
pub(crate) enum Boarded<F> {
    /// Somebody else's, to be waited for.
    Joined(Arc<F>),
    /// The caller's, who is to fly it and to [`land`](Flights::land) it.
    Led(Arc<F>),
}

impl<F> Flights<F> {
    /// The flight of a key; begun by `make` if there is none.
    pub(crate) fn board(&self, seat: u64, key: &[u8], make: impl FnOnce() -> F) -> Boarded<F> {
        let mut by_seat = self.by_seat.lock();
        let flights = by_seat.entry(seat).or_default();
        if let Some(flight) = flights.get(key) {
            return Boarded::Joined(Arc::clone(flight));
        }
        let flight = Arc::new(make());
        flights.insert(key.into(), Arc::clone(&flight));
        Boarded::Led(flight)
    }

    /// It is over: who comes now begins another. Only if it is still this one.
    pub(crate) fn land(&self, seat: u64, key: &[u8], flight: &Arc<F>) {
        let mut by_seat = self.by_seat.lock();
        if let Some(flights) = by_seat.get_mut(&seat)
            && flights.get(key).is_some_and(|current| Arc::ptr_eq(current, flight))
        {
            flights.remove(key);
        }
    }

    /// Whether a load of the key is under way, here or, as far as is known, elsewhere.
    pub(crate) fn is_under_way(&self, seat: u64, key: &[u8]) -> bool {
        if self.by_seat.lock().get(&seat).is_some_and(|flights| flights.contains_key(key)) {
            return true;
        }
        let elsewhere = self.elsewhere.lock();
        !elsewhere.is_empty()
            && elsewhere.get(&(seat, key.into())).is_some_and(|until| Instant::now() < *until)
    }

    /// Somebody else reloads the key: for a moment nobody here need ask.
    pub(crate) fn is_elsewhere(&self, seat: u64, key: &[u8]) {
        let mut elsewhere = self.elsewhere.lock();
        let now = Instant::now();
        if elsewhere.len() >= ELSEWHERE_MAX {
            elsewhere.retain(|_, until| now < *until);
        }
        if elsewhere.len() < ELSEWHERE_MAX {
            elsewhere.insert((seat, key.into()), now + ELSEWHERE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_a_key_share_a_flight_until_it_has_landed() {
        let flights = Flights::default();
        let Boarded::Led(first) = flights.board(1, b"k", || 7) else { panic!("there was none") };
        assert!(matches!(flights.board(1, b"k", || 8), Boarded::Joined(flight) if *flight == 7));
        assert!(matches!(flights.board(2, b"k", || 8), Boarded::Led(_)), "another cache");
        flights.land(1, b"k", &first);
        let Boarded::Led(second) = flights.board(1, b"k", || 9) else { panic!("it has landed") };
        flights.land(1, b"k", &first);
        assert!(flights.is_under_way(1, b"k"), "landing twice does not end another's");
        flights.land(1, b"k", &second);
        assert!(!flights.is_under_way(1, b"k"));
    }

    #[test]
    fn what_is_loaded_elsewhere_is_known_for_a_moment_and_in_bounds() {
        let flights = Flights::<()>::default();
        for n in 0..ELSEWHERE_MAX + 10 {
            flights.is_elsewhere(1, &n.to_be_bytes());
        }
        assert!(flights.elsewhere.lock().len() <= ELSEWHERE_MAX);
        assert!(!flights.is_under_way(1, b"other"));
    }
}
