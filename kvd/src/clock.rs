//! The only place that reads time.
//!
//! Life of items is counted in milliseconds of `CLOCK_BOOTTIME`: it runs through suspend and no one can step it.
//! The wall clock serves what must outlive a boot. Tests hold a clock they can move; a daemon's clock is the machine's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kv_proto::BootMs;
use kv_proto::segment::Control;
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

/// A clock: the machine's, plus an offset that only tests move. Clones share the offset.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    boot_offset_ms: Arc<AtomicI64>,
    wall_offset_ms: Arc<AtomicI64>,
    /// Where other processes see the offset.
    shown_on: Arc<Mutex<Option<Arc<Control>>>>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Clock {
        Clock::default()
    }

    /// Milliseconds since this machine booted.
    #[must_use]
    pub fn now(&self) -> BootMs {
        read_ms(ClockId::CLOCK_BOOTTIME) + self.boot_offset_ms.load(Ordering::Relaxed)
    }

    /// What heartbeats are stamped with, in milliseconds; never moved by tests.
    #[must_use]
    pub fn beat_ms(&self) -> i64 {
        read_ms(ClockId::CLOCK_MONOTONIC_COARSE)
    }

    /// Milliseconds since 1970, by the wall clock: may step.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        read_ms(ClockId::CLOCK_REALTIME)
            + self.boot_offset_ms.load(Ordering::Relaxed)
            + self.wall_offset_ms.load(Ordering::Relaxed)
    }

    /// The wall clock as the standard library has it.
    #[must_use]
    pub fn wall_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.wall_ms()).unwrap_or(0))
    }

    /// Microseconds of `CLOCK_MONOTONIC`: the same for all processes of the host; never moved by tests.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
        time.tv_sec().unsigned_abs() * 1_000_000 + time.tv_nsec().unsigned_abs() / 1_000
    }

    /// For deadlines and latencies inside this process; never moved by tests.
    #[must_use]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// The kernel's name for this boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
    }

    /// Lets time pass: both clocks go forward.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX / 4);
        self.boot_offset_ms.fetch_add(ms, Ordering::Relaxed);
        if let Some(control) = &*self.shown_on.lock() {
            control.set_time_offset(self.offset_ms());
        }
    }

    /// Lets readers in other processes follow from here on.
    pub(crate) fn show_on(&self, control: &Arc<Control>) {
        control.set_time_offset(self.offset_ms());
        *self.shown_on.lock() = Some(Arc::clone(control));
    }

    /// Steps the wall clock alone, as an administrator or a time server would.
    pub fn step_wall(&self, by_ms: i64) {
        self.wall_offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// What tests have added to the time since boot, in milliseconds; zero for a daemon.
    #[must_use]
    pub fn offset_ms(&self) -> i64 {
        self.boot_offset_ms.load(Ordering::Relaxed)
    }
}

fn read_ms(id: ClockId) -> i64 {
    let time =
        clock_gettime(id).expect("CLOCK_BOOTTIME and CLOCK_REALTIME exist on every Linux since 2.6.39");
    time.tv_sec() * 1_000 + time.tv_nsec() / 1_000_000
}
