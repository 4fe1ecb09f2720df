//! Invalidations that could not be delivered: kept, bounded, until the daemon is back.
//!
//! A cache that goes on serving what its application has invalidated is worse than an empty one. So `delete`, `expire` and
//! `clear` are kept while the daemon is away, and delivered before any other request of this process is. What does not find
//! room is replaced by a clear of its whole cache. Called by `outage`; it must never lose one silently.

use std::collections::{BTreeSet, VecDeque};

use kv_proto::wire::{Effect, ErrorKind, Response, Scope, decode};

use crate::blocking::Connection;
use crate::error::{Error, Result};
use crate::frames::not_ours;
use crate::limits::{UNDELIVERED_BYTES_MAX, UNDELIVERED_CACHES_MAX, UNDELIVERED_MAX};
use crate::lock::Lock;
use crate::ops::{self, Lane, Repeat, Sending};
use crate::options::Settings;
use crate::retry::{Attempts, Failure};

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
    /// One has been taken out and is being sent: what comes now may be newer than what it does, and is kept beside it.
    is_sending: bool,
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
        kept.queue.is_empty() && kept.cleared.is_empty() && !kept.clear_all && !kept.is_sending
    }

    /// Sends them all, in their order. What was not answered stays.
    pub(crate) fn deliver(&self, connection: &mut Connection, settings: &Settings) -> Result<()> {
        while let Some(next) = self.take() {
            if let Err(error) = send(&next, connection, settings) {
                self.sent(Some(next));
                return Err(error);
            }
            self.sent(None);
        }
        Ok(())
    }

    /// Takes out the next to be sent, until [`Undelivered::sent`] says what became of it.
    fn take(&self) -> Option<Next> {
        let mut kept = self.0.lock();
        let next = if std::mem::take(&mut kept.clear_all) {
            Next::All
        } else if let Some(cache) = kept.cleared.pop_first() {
            Next::Cache(cache)
        } else {
            let one = kept.queue.pop_front()?;
            kept.bytes -= one.frame.len();
            Next::One(one)
        };
        kept.is_sending = true;
        Some(next)
    }

    /// It was delivered, or comes back to be delivered later.
    fn sent(&self, back: Option<Next>) {
        let mut kept = self.0.lock();
        kept.is_sending = false;
        match back {
            None => {}
            Some(Next::All) => kept.clear_all = true,
            Some(Next::Cache(cache)) => drop(kept.cleared.insert(cache)),
            Some(Next::One(one)) => {
                kept.bytes += one.frame.len();
                kept.queue.push_front(one);
            }
        }
    }
}

#[derive(Debug)]
enum Next {
    All,
    Cache(Box<str>),
    One(Invalidation),
}

fn send(next: &Next, connection: &mut Connection, settings: &Settings) -> Result<()> {
    let clear = |scope| ops::clear(scope, Effect::Gone).map(|call| call.sending.frame);
    let frame = match next {
        Next::All => clear(Scope::Everything)?,
        Next::Cache(cache) => clear(Scope::Cache(cache))?,
        Next::One(one) => one.frame.clone(),
    };
    let attempts = Attempts::new(settings, settings.op_timeout, Repeat::Harmless);
    let sending = Sending { frame, value_bytes: 0, lane: Lane::Writes, repeat: Repeat::Harmless };
    let frame = connection.exchange(&sending, None, &attempts).map_err(Failure::into_error)?;
    match decode::<Response<'_>>(connection.answer(frame)).map_err(|cause| not_ours(cause, true))? {
        // A daemon that is on its way out has to be told again.
        Response::Error(error)
            if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::StoreFull) =>
        {
            Err(Error::from_wire(&error))
        }
        // A cache that is not there holds nothing.
        Response::Error(error) if error.kind != ErrorKind::UnknownCache => {
            tracing::warn!(error = error.message, "an invalidation made during the outage was refused");
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It used to be dropped, because the clear that was under way seemed to stand for it.
    #[test]
    fn what_is_invalidated_while_a_clear_of_its_cache_is_sent_is_kept() {
        let undelivered = Undelivered::default();
        for number in 0..=UNDELIVERED_MAX {
            undelivered.keep(format!("delete {number}").as_bytes(), Some("page"));
        }
        let Some(Next::Cache(cache)) = undelivered.take() else { panic!("the cache is cleared") };
        assert_eq!(&*cache, "page");
        undelivered.keep(b"delete after the clear", Some("page"));
        undelivered.sent(None);
        assert!(!undelivered.is_empty());
        let Some(Next::One(one)) = undelivered.take() else { panic!("it is kept by itself") };
        assert_eq!(one.frame, b"delete after the clear");
        undelivered.sent(None);
        assert!(undelivered.is_empty());
    }

    /// Another one used to be counted as delivered in its place.
    #[test]
    fn what_finds_no_room_while_another_is_sent_takes_none_along() {
        let undelivered = Undelivered::default();
        undelivered.keep(b"first", Some("page"));
        undelivered.keep(b"other", Some("user"));
        let first = undelivered.take();
        for number in 0..UNDELIVERED_MAX {
            undelivered.keep(format!("delete {number}").as_bytes(), Some("page"));
        }
        assert!(matches!(first, Some(Next::One(_))));
        undelivered.sent(None);
        assert!(matches!(undelivered.take(), Some(Next::Cache(cache)) if &*cache == "page"));
        undelivered.sent(None);
        assert!(matches!(undelivered.take(), Some(Next::One(one)) if one.frame == b"other"));
    }

    #[test]
    fn what_was_not_answered_is_sent_again_and_until_then_the_rest_waits() {
        let undelivered = Undelivered::default();
        undelivered.keep(b"first", None);
        undelivered.keep(b"second", Some("page"));
        let first = undelivered.take();
        assert!(!undelivered.is_empty());
        undelivered.sent(first);
        for frame in [b"first".as_slice(), b"second"] {
            assert!(matches!(undelivered.take(), Some(Next::One(one)) if one.frame == frame));
            assert!(!undelivered.is_empty(), "one that is being sent is not delivered");
            undelivered.sent(None);
        }
        assert!(undelivered.is_empty());
    }
}
