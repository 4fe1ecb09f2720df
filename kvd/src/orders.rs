//! What the daemon's main thread is asked to do: stop, reload, report, restart in place.
//!
//! Signals and admins' requests give orders, `cli::serve` takes them one at a time. It must never do anything itself: what an
//! order means is decided where the engine, the socket and the configuration are at hand.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use kv_proto::wire::RestartState;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

/// Orders that wait. Beyond: refused; whoever sends so many signals has no use for each.
const WAITING_MAX: usize = 64;
/// Longest wait of a request for its order to be carried out.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// What changed when the configuration was read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What holds from now on.
    pub applied: Vec<String>,
    /// What only a restart would change.
    pub needs_restart: Vec<String>,
}

/// How a reload went.
pub type ReloadOutcome = Result<Reloaded, String>;

/// Something to be done by the main thread.
#[derive(Debug)]
pub enum Order {
    /// Stop; the text names who asked.
    Stop(&'static str),
    /// Read the configuration again, and tell who asked.
    Reload(Option<SyncSender<ReloadOutcome>>),
    /// Log what the daemon does.
    Report,
    /// Restart in place; these caches are empty afterwards.
    Restart(Vec<String>),
}

/// How the newest restart in place went; handed on from process to process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartReport {
    /// Its number; 0: there was none.
    pub number: u64,
    /// Whether it is over, and how.
    pub state: RestartState,
    /// Why it failed, or what there is to say.
    pub message: String,
    /// The process that serves.
    pub pid: u32,
    /// How long nothing was answered, in microseconds.
    pub paused_us: u64,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// Items in memory afterwards.
    pub items: u64,
    /// Bytes of the segments taken over.
    pub bytes: u64,
}

type Hurry = Box<dyn Fn() + Send>;

/// The orders of one daemon.
#[derive(Default)]
pub struct Orders {
    state: Mutex<State>,
    given: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Order>,
    /// Somebody takes orders: not in an embedded engine.
    is_attended: bool,
    stops: u32,
    hurry: Option<Hurry>,
    restart: RestartReport,
}

/// Nobody carries out orders here, or too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// An engine inside an application: that one starts and stops it.
    #[error("this engine is part of an application, which starts and stops it")]
    Embedded,
    /// The main thread is busy.
    #[error("{WAITING_MAX} orders wait already")]
    Busy,
    /// One restart at a time.
    #[error("restart {0} is under way")]
    Restarting(u64),
}

impl Orders {
    /// From here on orders are taken.
    pub fn attend(&self) {
        self.state.lock().is_attended = true;
    }

    /// Gives an order.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn give(&self, order: Order) -> Result<(), Declined> {
        let mut state = self.state.lock();
        state.check()?;
        state.waiting.push_back(order);
        self.given.notify_all();
        Ok(())
    }

    /// Waits for the next order.
    pub fn take(&self) -> Order {
        let mut state = self.state.lock();
        loop {
            let is_stop = |order: &Order| matches!(order, Order::Stop(_));
            // Whoever wants it stopped does not wait for a restart; the rest is done in a moment.
            let next = match state.waiting.front() {
                Some(Order::Restart(_)) => state.waiting.iter().position(is_stop).unwrap_or(0),
                Some(Order::Stop(_) | Order::Reload(_) | Order::Report) | None => 0,
            };
            if let Some(order) = state.waiting.remove(next) {
                return order;
            }
            self.given.wait(&mut state);
        }
    }

    /// Asks for a reload and waits for how it went.
    ///
    /// # Errors
    /// When nobody takes the order.
    pub(crate) fn reload(&self) -> Result<Receiver<ReloadOutcome>, Declined> {
        let (sender, receiver) = sync_channel(1);
        self.give(Order::Reload(Some(sender)))?;
        Ok(receiver)
    }

    /// Whether a stop waits: long work gives way to it.
    #[must_use]
    pub fn is_stop_wanted(&self) -> bool {
        self.state.lock().waiting.iter().any(|order| matches!(order, Order::Stop(_)))
    }

    /// A signal to stop; gives how many there were.
    pub(crate) fn stop_by_signal(&self, name: &'static str) -> u32 {
        let mut state = self.state.lock();
        state.stops += 1;
        match state.stops {
            1 => state.waiting.push_back(Order::Stop(name)),
            _ => {
                if let Some(hurry) = &state.hurry {
                    hurry();
                }
            }
        }
        self.given.notify_all();
        state.stops
    }

    /// What a second signal does while the stop goes on; at once if it was there already.
    pub fn on_hurry(&self, hurry: Hurry) {
        let mut state = self.state.lock();
        if state.stops > 1 {
            hurry();
        }
        state.hurry = Some(hurry);
    }

    /// Orders a restart in place; gives its number.
    ///
    /// # Errors
    /// When nobody takes the order, or one is under way.
    pub fn restart(&self, clear: Vec<String>) -> Result<u64, Declined> {
        let mut state = self.state.lock();
        state.check()?;
        if state.restart.state == RestartState::Running {
            return Err(Declined::Restarting(state.restart.number));
        }
        let number = state.restart.number + 1;
        state.restart = RestartReport {
            number,
            state: RestartState::Running,
            pid: std::process::id(),
            ..RestartReport::default()
        };
        state.waiting.push_back(Order::Restart(clear));
        self.given.notify_all();
        Ok(number)
    }

    /// How the newest restart went.
    #[must_use]
    pub fn last_restart(&self) -> RestartReport {
        self.state.lock().restart.clone()
    }

    /// Notes how it went.
    pub fn note_restart(&self, report: RestartReport) {
        self.state.lock().restart = report;
    }
}

impl State {
    fn check(&self) -> Result<(), Declined> {
        match (self.is_attended, self.waiting.len() < WAITING_MAX) {
            (true, true) => Ok(()),
            (true, false) => Err(Declined::Busy),
            (false, _) => Err(Declined::Embedded),
        }
    }
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_goes_ahead_of_a_restart_and_of_nothing_else() {
        let orders = Orders::default();
        assert_eq!(orders.give(Order::Report).unwrap_err(), Declined::Embedded);
        orders.attend();
        orders.give(Order::Report).unwrap();
        orders.restart(Vec::new()).unwrap();
        orders.stop_by_signal("TERM");
        assert!(orders.is_stop_wanted());
        assert!(matches!(orders.take(), Order::Report));
        assert!(matches!(orders.take(), Order::Stop("TERM")));
        assert!(matches!(orders.take(), Order::Restart(_)));
    }

    #[test]
    fn one_restart_at_a_time() {
        let orders = Orders::default();
        orders.attend();
        assert_eq!(orders.restart(Vec::new()), Ok(1));
        assert_eq!(orders.restart(Vec::new()), Err(Declined::Restarting(1)));
        orders.note_restart(RestartReport { number: 1, state: RestartState::Done, ..Default::default() });
        assert_eq!(orders.restart(Vec::new()), Ok(2));
    }
}
