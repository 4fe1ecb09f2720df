//! Time that all processes of the demo count alike.
//!
//! Workers stamp their requests with it and the conductor compares the stamps. Only for the demo's own figures: the life of
//! items is counted by `kvd::clock`.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the machine's steady clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u64);

/// The unit in which requests are recorded: an eighth of a millisecond, so that 31 bits last for three days.
pub(super) const TICK: Duration = Duration::from_micros(125);

impl Moment {
    pub(super) fn now() -> Moment {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has a steady clock");
        Moment(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    }

    pub(super) fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(super) fn plus(self, wait: Duration) -> Moment {
        Moment(self.0 + wait.as_nanos() as u64)
    }

    /// Whole ticks since the start of the run.
    pub(super) fn ticks(self, start: Moment) -> u32 {
        u32::try_from(self.since(start).as_nanos() / TICK.as_nanos())
            .unwrap_or(u32::MAX >> 1)
            .min(u32::MAX >> 1)
    }
}
