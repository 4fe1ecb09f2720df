//! Threads for loads that their callers do not run themselves: begun when one is needed, kept for a while after, so that a
//! read that finds something stale hands its load over and goes on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::limits::{CREW_IDLE, DETACHED_LOADS_MAX};
use crate::lock::{Lock, Signal};

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one client in one process.
#[derive(Default)]
pub(super) struct Crew(Arc<Deck>);

#[derive(Default)]
struct Deck {
    state: Lock<State>,
    changed: Signal,
}

#[derive(Default)]
struct State {
    /// Handed over, and not yet taken by one of those who wait.
    jobs: VecDeque<Job>,
    waiting: usize,
    places: usize,
    is_over: bool,
}

/// One of the loads that may run at once, until it is dropped.
pub(super) struct Place(Arc<Deck>);

impl Crew {
    /// Room for a load; `None`: as many run as may.
    pub(super) fn place(&self) -> Option<Place> {
        let mut state = self.0.state.lock();
        (state.places < DETACHED_LOADS_MAX).then(|| {
            state.places += 1;
            Place(Arc::clone(&self.0))
        })
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.0.state.lock().is_over = true;
        self.0.changed.all();
    }
}

impl Place {
    /// Runs a job in a thread of the crew.
    ///
    /// # Errors
    /// When there is no thread to be had; the job is dropped.
    pub(super) fn run(self, job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let deck = Arc::clone(&self.0);
        let job = move || {
            let _place = self;
            job();
        };
        let mut state = deck.state.lock();
        if state.waiting > state.jobs.len() {
            state.jobs.push_back(Box::new(job));
            drop(state);
            deck.changed.one();
            return Ok(());
        }
        drop(state);
        let thread = std::thread::Builder::new().name("kvd-load".to_owned());
        thread.spawn(move || {
            job();
            while let Some(job) = deck.next() {
                job();
            }
        })?;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.lock().places -= 1;
    }
}

impl Deck {
    /// `None`: there was nothing to do for long.
    fn next(&self) -> Option<Job> {
        let until = Instant::now() + CREW_IDLE;
        let mut state = self.state.lock();
        state.waiting += 1;
        while state.jobs.is_empty() && !state.is_over && Instant::now() < until {
            state = self.changed.wait(state, Some(until));
        }
        state.waiting -= 1;
        state.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn names(crew: &Crew, told: &mpsc::Sender<std::thread::ThreadId>) {
        let told = told.clone();
        let place = crew.place().expect("few are taken");
        place
            .run(move || told.send(std::thread::current().id()).expect("the test listens"))
            .expect("a thread");
    }

    /// Until the thread of a job that has said something waits for the next.
    fn until_waiting(crew: &Crew, threads: usize) {
        let since = Instant::now();
        while crew.0.state.lock().waiting < threads {
            assert!(since.elapsed() < SOON, "no thread waits for work");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_has_nothing_to_do_takes_the_next_job() {
        let crew = Crew::default();
        let (told, heard) = mpsc::channel();
        names(&crew, &told);
        let first = heard.recv_timeout(SOON).expect("it runs");
        until_waiting(&crew, 1);
        names(&crew, &told);
        assert_eq!(heard.recv_timeout(SOON).expect("it runs"), first);
        let deck = Arc::downgrade(&crew.0);
        drop(crew);
        let since = Instant::now();
        while deck.strong_count() > 0 {
            assert!(since.elapsed() < SOON / 4, "a thread without a client waits on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn places_are_bounded_and_given_back_even_by_a_job_that_panics() {
        let crew = Crew::default();
        let places: Vec<Place> = std::iter::from_fn(|| crew.place()).collect();
        assert_eq!(places.len(), DETACHED_LOADS_MAX);
        drop(places);
        let place = crew.place().expect("all were given back");
        // Without the usual message.
        place.run(|| std::panic::resume_unwind(Box::new("a loader panics"))).expect("a thread");
        let since = Instant::now();
        while crew.0.state.lock().places > 0 {
            assert!(since.elapsed() < SOON, "its place is lost");
            std::thread::yield_now();
        }
        assert_eq!(crew.0.state.lock().waiting, 0);
    }
}
