//! How a thread waits for a lock: until somebody wakes it, time is up, or nobody wants its answer any more.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Wakes one thread.
pub trait Unpark: Send + Sync {
    /// Wakes the thread that parks, or the next one that will. Never waits.
    fn unpark(&self);
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parked {
    /// Somebody called [`Unpark::unpark`], perhaps for nothing.
    Woken,
    /// The time is up.
    TimedOut,
    /// Whoever asked is not there any more.
    Gone,
}

/// A place to wait at. `server` has one that watches the caller's socket and process meanwhile.
pub trait Park: Send {
    /// What wakes it.
    ///
    /// # Errors
    /// When the system has no means left.
    fn unparker(&mut self) -> io::Result<Arc<dyn Unpark>>;

    /// Waits until `until`.
    fn park(&mut self, until: Instant) -> Parked;
}

/// For threads of this process, which nobody has to watch.
#[derive(Default)]
pub struct ThreadPark(Arc<Bell>);

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ringing: Condvar,
}

impl Unpark for Bell {
    fn unpark(&self) {
        *self.rung.lock() = true;
        self.ringing.notify_one();
    }
}

impl Park for ThreadPark {
    fn unparker(&mut self) -> io::Result<Arc<dyn Unpark>> {
        Ok(Arc::clone(&self.0) as Arc<dyn Unpark>)
    }

    fn park(&mut self, until: Instant) -> Parked {
        let mut rung = self.0.rung.lock();
        while !*rung {
            if self.0.ringing.wait_until(&mut rung, until).timed_out() {
                return Parked::TimedOut;
            }
        }
        *rung = false;
        Parked::Woken
    }
}
