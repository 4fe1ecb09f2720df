//! The control page: one a daemon. What is whole, whether the daemon lives, and its clock.

#[cfg(not(loom))]
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::sync::{Ordering, fence};
use super::words::Words;
use crate::{BootMs, Version};

const MAGIC: u64 = u64::from_le_bytes(*b"kvd-ctl\0");
const LAYOUT_VERSION: u64 = 1;
const C_MAGIC: usize = 0;
const C_VERSION: usize = 1;
const C_RUN_ID: usize = 2;
const C_TIME_OFFSET: usize = 3;
const C_STATE: usize = 8;
const C_HEARTBEAT: usize = 16;
const C_COMMITTED: usize = 24;
const CONTROL_WORDS: usize = 512;

/// A heartbeat older than this, in milliseconds, or in the future: the daemon is not trusted to be alive.
pub const HEARTBEAT_STALE_MS: i64 = 500;

/// Where a read takes the time from: it asks only for what it needs. Tests and the daemon give a plain moment.
pub trait Time: Copy {
    /// Milliseconds of the clock of heartbeats, `CLOCK_MONOTONIC_COARSE`: cheap, asked for by every read.
    fn beat_ms(self) -> i64;
    /// The moment that lives of items are held against; asked for only where an item has an end. Reading an exact clock waits
    /// for all earlier loads of the processor, so that reads in a row cannot overlap.
    fn now(self) -> BootMs;
}

impl Time for BootMs {
    #[inline]
    fn beat_ms(self) -> i64 {
        self
    }

    #[inline]
    fn now(self) -> BootMs {
        self
    }
}

/// What a state word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// In use.
    Live,
    /// Another segment has taken its place: attach again.
    Superseded,
    /// The daemon has stopped.
    Closed,
}

impl SegmentState {
    pub(super) fn word(self) -> u64 {
        match self {
            SegmentState::Live => 1,
            SegmentState::Superseded => 2,
            SegmentState::Closed => 3,
        }
    }
}

/// The control page.
#[derive(Debug)]
pub struct Control {
    words: Arc<Words>,
    fd: Option<OwnedFd>,
    why_private: Option<String>,
}

impl Control {
    /// A new page in sealed shared memory; in this process's own where the kernel has none.
    ///
    /// # Errors
    /// When there is no memory or no descriptor.
    #[cfg(not(loom))]
    pub fn create(run_id: u64) -> io::Result<Arc<Control>> {
        let bytes = CONTROL_WORDS * super::words::WORD_BYTES;
        let (words, fd) = Words::memfd_or_private(c"kvd-control", bytes)?;
        Ok(Control::on(words, fd.map_err(|refusal| refusal.to_string()), run_id))
    }

    /// A new page in this process's own memory.
    #[must_use]
    pub fn private(run_id: u64) -> Arc<Control> {
        let words = Words::heap(if cfg!(loom) { C_COMMITTED + 1 } else { CONTROL_WORDS });
        Control::on(words, Err("it was made so".to_owned()), run_id)
    }

    /// The page of a daemon, by the descriptor it handed out.
    ///
    /// # Errors
    /// When the descriptor is not sealed, cannot be mapped, or holds no control page this build reads.
    #[cfg(not(loom))]
    pub fn attach(fd: impl std::os::fd::AsFd) -> Result<Arc<Control>, super::AttachError> {
        let words = Words::attach(fd)?;
        if words.len() < CONTROL_WORDS {
            return Err(super::AttachError::Geometry("the control page is too short"));
        }
        super::error::check_front(
            "control page",
            words.load(C_MAGIC),
            MAGIC,
            words.load(C_VERSION),
            LAYOUT_VERSION,
        )?;
        Ok(Arc::new(Control { words, fd: None, why_private: None }))
    }

    fn on(words: Arc<Words>, fd: Result<OwnedFd, String>, run_id: u64) -> Arc<Control> {
        for (at, value) in [
            (C_VERSION, LAYOUT_VERSION),
            (C_RUN_ID, run_id),
            (C_STATE, SegmentState::Live.word()),
            (C_MAGIC, MAGIC),
        ] {
            words.store(at, value);
        }
        let (fd, why_private) = match fd {
            Ok(fd) => (Some(fd), None),
            Err(why) => (None, Some(why)),
        };
        Arc::new(Control { words, fd, why_private })
    }

    /// The descriptor to hand to clients; `None` for a private page.
    #[must_use]
    pub fn descriptor(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Why there is no descriptor: what the kernel said when it was to be made in sealed memory.
    #[must_use]
    pub fn why_private(&self) -> Option<&str> {
        self.why_private.as_deref()
    }

    /// The run of the daemon that made it.
    #[must_use]
    pub fn run_id(&self) -> u64 {
        self.words.load(C_RUN_ID)
    }

    /// The newest sequence that is whole. What is read after this call sees all of it.
    #[inline]
    #[must_use]
    pub fn committed(&self) -> Version {
        let committed = self.words.load(C_COMMITTED);
        // SYNC(committed): pairs with `commit`.
        fence(Ordering::Acquire); // MUTANT(committed-fence)
        committed
    }

    /// Makes everything of `version` visible at once (W3). Versions only grow.
    pub fn commit(&self, version: Version) {
        // SYNC(committed): what was stored before is seen by whoever sees this number.
        fence(Ordering::Release); // MUTANT(commit-fence)
        self.words.store(C_COMMITTED, version);
    }

    /// Stamps the heartbeat, by the clock of [`Time::beat_ms`]: awake time, as a new daemon measures its wait.
    pub fn heartbeat(&self, beat_ms: i64) {
        self.words.store(C_HEARTBEAT, beat_ms as u64);
    }

    /// Whether the daemon was alive within the bound and has not said good-bye.
    #[inline]
    #[must_use]
    pub fn is_live(&self, time: impl Time) -> bool {
        let stamped = self.words.load(C_HEARTBEAT) as i64;
        // The clock after the stamp: whoever loses the processor in between must not find a stamp from the future.
        fence(Ordering::Acquire);
        let age = time.beat_ms().wrapping_sub(stamped);
        self.words.load(C_STATE) == SegmentState::Live.word() && (0..=HEARTBEAT_STALE_MS).contains(&age)
    }

    /// Changes the state.
    pub fn set_state(&self, state: SegmentState) {
        self.words.store(C_STATE, state.word());
    }

    /// What tests have added to the time since boot, in milliseconds; zero for a daemon.
    #[must_use]
    pub fn time_offset_ms(&self) -> i64 {
        self.words.load(C_TIME_OFFSET) as i64
    }

    /// Lets readers in other processes follow a clock that tests move.
    pub fn set_time_offset(&self, offset_ms: i64) {
        self.words.store(C_TIME_OFFSET, offset_ms as u64);
    }
}
