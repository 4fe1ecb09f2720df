//! A client's way to an engine in its own process: no socket, the same operations.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use kv_proto::wire::{FRAME_HEADER_BYTES, Response};

use super::client::Client;
use crate::error::Result;
use crate::ops::Sending;
use crate::options::Builder;
use crate::retry::{Attempts, Step};

/// An engine that answers requests in the caller's thread. `kvd::Embedded` is one.
pub trait Direct: Send + Sync {
    /// A session of its own, for a transaction.
    fn session(&self) -> Box<dyn DirectSession>;

    /// Answers the request in `request` (one frame's body) with one whole frame appended to the empty `answer`, by
    /// `deadline`.
    fn call(&self, request: &[u8], answer: &mut Vec<u8>, deadline: Instant);
}

/// One session with an engine: what it has begun belongs to it, and ends with it.
pub trait DirectSession: Send {
    /// As [`Direct::call`].
    fn call(&mut self, request: &[u8], answer: &mut Vec<u8>, deadline: Instant);
}

impl Builder<Client> {
    /// A client of an engine in this process.
    #[must_use]
    pub fn direct(self, engine: Arc<dyn Direct>) -> Client {
        Client::of_engine(self.settings, engine)
    }
}

impl fmt::Debug for dyn Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an engine of this process")
    }
}

/// One request and its answer; again while the engine asks for it and the deadline allows.
pub(super) fn call<T>(
    mut engine: impl FnMut(&[u8], &mut Vec<u8>, Instant),
    sending: &Sending,
    attempts: &mut Attempts,
    mut read: impl FnMut(Response<'_>) -> Result<T>,
) -> Result<T> {
    let mut answer = Vec::new();
    loop {
        answer.clear();
        engine(&sending.frame[FRAME_HEADER_BYTES..], &mut answer, attempts.deadline());
        match attempts.answered(&answer[FRAME_HEADER_BYTES..], &mut read) {
            Step::Done(result) => return result,
            Step::Again(pause) => std::thread::sleep(pause),
            Step::Broken(error) => return Err(error),
        }
    }
}
