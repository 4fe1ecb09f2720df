//! Threads for loads that their callers do not run themselves: begun when one is needed, kept for a while after.
//!
//! To wake a thread is what costs a caller most: where the processors are busy the one that is woken runs first. So while
//! there is much to do one idle thread is on watch: it looks by itself every millisecond, and a load that nobody waits for
//! is left to it. A load that somebody waits for wakes a thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::limits::{CREW_IDLE, DETACHED_LOADS_MAX};
use crate::lock::{Lock, Signal};

/// How late a load may begin that nobody waits for.
const WATCH_EVERY: Duration = Duration::from_millis(1);
/// Looks in vain, one after the other, until nobody is on watch any more.
const LOOKS_MAX: u32 = 50;

struct Job {
    work: Box<dyn FnOnce() + Send>,
    /// Somebody waits for what it loads.
    is_awaited: bool,
}

/// The threads of one client in one process.
#[derive(Default)]
pub(super) struct Crew(Arc<Deck>);

#[derive(Default)]
struct Deck {
    places: AtomicUsize,
    state: Lock<State>,
    changed: Signal,
}

#[derive(Default)]
struct State {
    /// Each with a thread that was woken for it.
    called: VecDeque<Job>,
    /// For whoever is on watch.
    left: Vec<Job>,
    /// Threads that sleep until they are woken.
    waiting: usize,
    is_watched: bool,
    is_over: bool,
}

/// One of the loads that may run at once, until it is dropped.
pub(super) struct Place {
    deck: Arc<Deck>,
    is_awaited: bool,
}

impl Crew {
    /// Room for a load; `None`: as many run as may. `is_awaited`: somebody waits for what it loads.
    pub(super) fn place(&self, is_awaited: bool) -> Option<Place> {
        let place = Place { deck: Arc::clone(&self.0), is_awaited };
        (self.0.places.fetch_add(1, Ordering::Relaxed) < DETACHED_LOADS_MAX).then_some(place)
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
    pub(super) fn run(self, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let (deck, is_awaited) = (Arc::clone(&self.deck), self.is_awaited);
        let work = Box::new(move || {
            let _place = self;
            work();
        });
        let job = Job { work, is_awaited };
        let mut state = deck.state.lock();
        if state.is_watched && !is_awaited {
            state.left.push(job);
            return Ok(());
        }
        drop(state);
        deck.set_to_work(job)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.deck.places.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deck {
    /// Gives a job to somebody who waits for one, or to a new thread.
    fn set_to_work(self: &Arc<Deck>, job: Job) -> std::io::Result<()> {
        let mut state = self.state.lock();
        if state.waiting > state.called.len() {
            state.called.push_back(job);
            drop(state);
            self.changed.one();
            return Ok(());
        }
        drop(state);
        let deck = Arc::clone(self);
        let thread = std::thread::Builder::new().name("kvd-load".to_owned());
        thread.spawn(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                (job.work)();
                if !job.is_awaited {
                    deck.watch();
                }
                next = deck.next();
            }
        })?;
        Ok(())
    }

    /// Stays on watch, if nobody is, as long as something is left to it now and then.
    fn watch(self: &Arc<Deck>) {
        if std::mem::replace(&mut self.state.lock().is_watched, true) {
            return;
        }
        let _watch = Watch(self);
        let mut looks = 0;
        while looks < LOOKS_MAX && !self.state.lock().is_over {
            std::thread::sleep(WATCH_EVERY);
            let left = std::mem::take(&mut self.state.lock().left);
            looks = if left.is_empty() { looks + 1 } else { 0 };
            self.set_all_to_work(left);
        }
    }

    fn set_all_to_work(self: &Arc<Deck>, jobs: Vec<Job>) {
        for job in jobs {
            if let Err(error) = self.set_to_work(job) {
                tracing::warn!(%error, "no thread for a load");
            }
        }
    }

    /// `None`: there was nothing to do for long.
    fn next(&self) -> Option<Job> {
        let until = Instant::now() + CREW_IDLE;
        let mut state = self.state.lock();
        state.waiting += 1;
        while state.called.is_empty() && !state.is_over && Instant::now() < until {
            state = self.changed.wait(state, Some(until));
        }
        state.waiting -= 1;
        state.called.pop_front()
    }
}

/// Somebody is on watch, until this is dropped, by a panic too; nothing is left to nobody.
struct Watch<'a>(&'a Arc<Deck>);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_watched = false;
        let left = std::mem::take(&mut state.left);
        drop(state);
        self.0.set_all_to_work(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn names(crew: &Crew, is_awaited: bool, told: &mpsc::Sender<std::thread::ThreadId>) {
        let told = told.clone();
        let place = crew.place(is_awaited).expect("few are taken");
        place
            .run(move || told.send(std::thread::current().id()).expect("the test listens"))
            .expect("a thread");
    }

    fn until(crew: &Crew, what: &str, is: impl Fn(&State) -> bool) {
        let since = Instant::now();
        while !is(&crew.0.state.lock()) {
            assert!(since.elapsed() < SOON, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_has_nothing_to_do_takes_the_next_job() {
        let crew = Crew::default();
        let (told, heard) = mpsc::channel();
        names(&crew, true, &told);
        let first = heard.recv_timeout(SOON).expect("it runs");
        until(&crew, "no thread waits for work", |state| state.waiting == 1);
        names(&crew, true, &told);
        assert_eq!(heard.recv_timeout(SOON).expect("it runs"), first);
        until(&crew, "it does not wait again", |state| state.waiting == 1);
        let deck = Arc::downgrade(&crew.0);
        drop(crew);
        let since = Instant::now();
        while deck.strong_count() > 0 {
            assert!(since.elapsed() < CREW_IDLE / 2, "a thread without a client waits on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_nobody_waits_for_is_left_to_whoever_is_on_watch() {
        let crew = Crew::default();
        let (told, heard) = mpsc::channel();
        let left = || crew.0.state.lock().left.len();
        // As if somebody were: nobody looks until this test does.
        crew.0.state.lock().is_watched = true;
        names(&crew, false, &told);
        names(&crew, false, &told);
        names(&crew, true, &told);
        heard.recv_timeout(SOON).expect("what is awaited runs at once");
        assert_eq!((left(), heard.try_recv()), (2, Err(mpsc::TryRecvError::Empty)));
        crew.0.state.lock().is_watched = false;
        crew.0.watch();
        assert_eq!((left(), crew.0.state.lock().is_watched), (0, false));
        (0..2).for_each(|_| assert!(heard.recv_timeout(SOON).is_ok(), "one is lost"));
    }

    #[test]
    fn what_is_left_when_a_watch_ends_is_not_lost() {
        let crew = Crew::default();
        let (told, heard) = mpsc::channel();
        crew.0.state.lock().is_watched = true;
        names(&crew, false, &told);
        drop(Watch(&crew.0));
        heard.recv_timeout(SOON).expect("it runs");
    }

    #[test]
    fn places_are_bounded_and_given_back_even_by_a_job_that_panics() {
        let crew = Crew::default();
        let places: Vec<Place> = std::iter::from_fn(|| crew.place(true)).collect();
        assert_eq!(places.len(), DETACHED_LOADS_MAX);
        drop(places);
        let place = crew.place(true).expect("all were given back");
        // Without the usual message.
        place.run(|| std::panic::resume_unwind(Box::new("a loader panics"))).expect("a thread");
        until(&crew, "its place is lost", |_| crew.0.places.load(Ordering::Relaxed) == 0);
        assert_eq!(crew.0.state.lock().waiting, 0);
    }
}
