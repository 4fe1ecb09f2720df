//! The only place of this package that reads time or sleeps.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share: so a parent can tell its
//! client processes the moment to begin.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
#[inline]
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on every Linux");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Nanoseconds of processor that this process has used, its threads and what the kernel did for it included.
#[must_use]
pub fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every Linux counts it");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Sleeps until `at_ns`; returns at once if that is past.
pub fn sleep_until_ns(at_ns: u64) {
    let at = TimeSpec::new((at_ns / 1_000_000_000) as i64, (at_ns % 1_000_000_000) as i64);
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at)
        == Err(Errno::EINTR)
    {}
}

/// Sleeps this long.
pub fn sleep(time: Duration) {
    sleep_until_ns(now_ns() + time.as_nanos() as u64);
}
