//! Compaction as whoever asked for it sees it; the store does it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use kv_proto::wire::{ErrorKind, Response, encode_into};

use super::error::Failure;
use super::work::Work;
use super::{Engine, Session};
use crate::store::{CompactionNews, StoreError};

/// How long one frame may wait for news; one that says nothing new shows that we are still there.
const NEWS_WAIT_MAX: Duration = Duration::from_millis(500);

impl Engine {
    /// Answers `compact` with its beginning.
    pub(super) fn compact(&self, session: &mut Session, out: &mut Vec<u8>) -> Result<(), Failure> {
        session.must_be_outside("a compaction")?;
        if session.viewer().is_none() {
            return Err(Failure::invalid("an engine of this process is compacted by nobody"));
        }
        session.work = Some(Work::Compaction(self.store.compact()));
        encode_into(out, &Response::Compacting { done: 0, total: 0 });
        Ok(())
    }

    /// The next news; `false`: that was the end.
    pub(super) fn tell_compaction(
        news: &Receiver<CompactionNews>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        match news.recv_timeout(NEWS_WAIT_MAX) {
            Ok(CompactionNews::Progress { done, total }) => {
                encode_into(out, &Response::Compacting { done, total });
                Ok(true)
            }
            Ok(CompactionNews::Done { bytes_before, bytes_after, pause, old }) => {
                // Here, where nobody waits for it.
                drop(old);
                let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
                encode_into(out, &Response::Compacted { bytes_before, bytes_after, pause_us });
                Ok(false)
            }
            Ok(CompactionNews::Failed(why)) => {
                Err(Failure::new(ErrorKind::StoreFailed, format!("not compacted: {why}")))
            }
            Err(RecvTimeoutError::Timeout) => {
                encode_into(out, &Response::Compacting { done: 0, total: 0 });
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Err(StoreError::Closed.into()),
        }
    }
}
