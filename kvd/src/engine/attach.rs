//! Handing a cache's segment to a client, and hearing from it what it read there.
//!
//! Called by `apply`. Only a cache that is shared, and only to who may use it: whoever holds the descriptor reads everything
//! in that segment.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::segment::Control;
use kv_proto::wire::{ErrorKind, Response, encode_into};

use super::cache::{Cache, View};
use super::{Engine, Failure, Session};

/// What goes to the client beside an answer: the descriptors of the control page and of one segment.
pub struct Handed {
    control: Arc<Control>,
    view: Arc<View>,
}

impl Handed {
    /// `None` where the kernel has no sealed memory.
    fn of(control: &Arc<Control>, view: Arc<View>) -> Option<Handed> {
        let has_both = control.descriptor().is_some() && view.descriptor.is_some();
        has_both.then(|| Handed { control: Arc::clone(control), view })
    }

    /// In the order in which clients expect them.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        let both = self.control.descriptor().zip(self.view.descriptor.as_ref());
        let (control, segment) = both.expect("`of` has seen both, and they never change");
        [control.as_fd(), segment.as_fd()]
    }
}

/// What a client read without asking.
pub(super) struct SharedReads<'a> {
    pub(super) segment: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) places: &'a [u32],
}

impl Engine {
    pub(super) fn attach(&self, cache: &Cache, out: &mut Vec<u8>) -> Result<Handed, Failure> {
        if !cache.config.shared {
            return Err(Failure::new(
                ErrorKind::Config,
                format!("cache {} is not shared: its configuration says shared = false", cache.name),
            ));
        }
        let handed = Handed::of(&self.control, cache.view.load_full()).ok_or_else(|| {
            let why = self.control.why_private().unwrap_or("the kernel gave it to the control page only");
            let message = format!("this machine gives the daemon no sealed memory to share: {why}");
            Failure::new(ErrorKind::Config, message)
        })?;
        encode_into(out, &Response::Attached { segment: handed.view.segment });
        Ok(handed)
    }

    /// Takes a report in. One about a segment that has been replaced still counts; its slots are somebody else's now.
    pub(super) fn hear(
        &self,
        session: &Session,
        cache: &Cache,
        reads: &SharedReads<'_>,
        because: Option<&str>,
    ) {
        let view = cache.view.load();
        if reads.segment == view.segment {
            view.hits.touch_told(reads.places, reads.hits);
        }
        cache.counters.hits_shared.fetch_add(reads.hits, Ordering::Relaxed);
        cache.counters.misses_shared.fetch_add(reads.misses, Ordering::Relaxed);
        session.note_path(&cache.name, reads.hits.saturating_add(reads.misses), because);
    }
}
