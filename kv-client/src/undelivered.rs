//! Invalidations that could not be delivered: kept, bounded, until the daemon is back.
//!
//! A cache that goes on serving what its application has invalidated is worse than an empty one. So `delete`, `expire` and
//! `clear` are kept while the daemon is away, and delivered before any other request of this process is. What does not find
//! room is replaced by a clear of its whole cache. Called by `outage`; it must never lose one silently.

use std::collections::{BTreeSet, VecDeque};

use kv_proto::wire::{Effect, ErrorKind, Response, Scope, decode};

use crate::blocking::Connection;
use crate::error::Result;
use crate::limits::{UNDELIVERED_BYTES_MAX, UNDELIVERED_CACHES_MAX, UNDELIVERED_MAX};
use crate::lock::Lock;
use crate::ops::{self, Lane, Repeat, Sending};
use crate::options::Settings;
use crate::retry::Attempts;

/// Those of one process.
#[derive(Debug, Default)]
pub(crate) struct Undelivered(Lock<Kept>);

#[derive(Debug, Default)]
struct Kept {
    queue: VecDeque<Invalidation>,
    bytes: usize,
    /// Caches of which something did not find room.
    cleared: BTreeSet<Box<str>>,
    /// Something of all caches, or of too many, did not find room.
    clear_all: bool,
}

#[derive(Debug)]
struct Invalidation {
    frame: Vec<u8>,
    /// `None`: it concerns them all.
    cache: Option<Box<str>>,
}

impl Undelivered {
    /// Keeps one: a whole frame, and the cache that has to be cleared where there is no room for it.
    pub(crate) fn keep(&self, frame: &[u8], cache: Option<&str>) {
        let mut kept = self.0.lock();
        if kept.clear_all || cache.is_some_and(|cache| kept.cleared.contains(cache)) {
            return;
        }
        if kept.queue.len() < UNDELIVERED_MAX && kept.bytes + frame.len() <= UNDELIVERED_BYTES_MAX {
            kept.bytes += frame.len();
            kept.queue.push_back(Invalidation { frame: frame.to_vec(), cache: cache.map(Into::into) });
            return;
        }
        match cache {
            Some(cache) if kept.cleared.len() < UNDELIVERED_CACHES_MAX => {
                kept.cleared.insert(cache.into());
                kept.queue.retain(|one| one.cache.as_deref() != Some(cache));
            }
            Some(_) | None => {
                kept.clear_all = true;
                kept.cleared.clear();
                kept.queue.clear();
            }
        }
        kept.bytes = kept.queue.iter().map(|one| one.frame.len()).sum();
    }

    pub(crate) fn is_empty(&self) -> bool {
        let kept = self.0.lock();
        kept.queue.is_empty() && kept.cleared.is_empty() && !kept.clear_all
    }

    /// Sends them all, in their order. What was not answered stays.
    pub(crate) fn deliver(&self, connection: &mut Connection, settings: &Settings) -> Result<()> {
        loop {
            let Some((next, clears)) = self.next() else { return Ok(()) };
            let attempts = Attempts::new(settings, settings.op_timeout, Repeat::Harmless);
            let sending =
                Sending { frame: next, value_bytes: 0, lane: Lane::Writes, repeat: Repeat::Harmless };
            let frame =
                connection.exchange(&sending, None, &attempts).map_err(crate::retry::Failure::into_error)?;
            let answer = decode::<Response<'_>>(connection.answer(frame));
            if let Ok(Response::Error(error)) = &answer {
                // A cache that is not there holds nothing; a daemon that is on its way out has to be told again.
                if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::StoreFull) {
                    return Err(crate::error::Error::from_wire(error));
                }
                if error.kind != ErrorKind::UnknownCache {
                    tracing::warn!(
                        error = error.message,
                        "an invalidation made during the outage was refused"
                    );
                }
            }
            self.delivered(clears);
        }
    }

    /// The next to be sent, and whether it is a clear that stands for many.
    fn next(&self) -> Option<(Vec<u8>, Next)> {
        let kept = self.0.lock();
        if kept.clear_all {
            let call =
                ops::clear(Scope::Everything, Effect::Gone).expect("a clear of everything is well formed");
            return Some((call.sending.frame, Next::All));
        }
        if let Some(cache) = kept.cleared.first() {
            let call = ops::clear(Scope::Cache(cache), Effect::Gone).expect("the name was checked before");
            return Some((call.sending.frame, Next::Cache(cache.clone())));
        }
        kept.queue.front().map(|one| (one.frame.clone(), Next::One))
    }

    fn delivered(&self, what: Next) {
        let mut kept = self.0.lock();
        match what {
            Next::All => kept.clear_all = false,
            Next::Cache(cache) => drop(kept.cleared.remove(&cache)),
            Next::One => {
                if let Some(one) = kept.queue.pop_front() {
                    kept.bytes -= one.frame.len();
                }
            }
        }
    }
}

enum Next {
    All,
    Cache(Box<str>),
    One,
}
