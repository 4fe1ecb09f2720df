//! What both clients know of transactions: which outcomes are worth another try, how often, and after which pause.
//!
//! Used by `blocking::transaction` and `asynchronous::transaction`, which differ in how bytes travel. Does no I/O.

use std::time::{Duration, Instant};

use kv_proto::limits::LOCK_WAIT_MAX;
use kv_proto::wire::ErrorKind;

use crate::error::Error;
use crate::limits::{TRANSACTION_PAUSE_FIRST, TRANSACTION_PAUSE_MAX, TRANSACTION_TRIES_MAX};
use crate::ops::{self, Call, Wish};
use crate::retry::deadline_after;

/// Whether a transaction that failed like this has left no trace and may succeed when it is tried again.
pub(crate) fn is_worth_another_try(error: &Error) -> bool {
    let is_lost = matches!(error, Error::Lost { maybe_applied: false, .. });
    is_lost || matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::LeaseLost)
}

/// The error of a transaction whose connection is gone.
pub(crate) fn connection_lost(number: u64) -> Error {
    Error::Refused {
        kind: ErrorKind::LeaseLost,
        message: format!("transaction {number} ended with its connection; begin anew"),
        maybe_applied: false,
        retry_after: Duration::ZERO,
    }
}

/// An error of a request inside a transaction, before its commit.
pub(crate) fn nothing_applied(error: Error, number: u64) -> Error {
    match error {
        Error::Lost { .. } => connection_lost(number),
        Error::Timeout { waited, .. } => Error::Timeout { waited, maybe_applied: false },
        Error::Refused { kind, message, retry_after, .. } => {
            Error::Refused { kind, message, maybe_applied: false, retry_after }
        }
        other => other,
    }
}

/// The tries of one piece of work.
#[derive(Debug)]
pub(crate) struct Tries {
    deadline: Instant,
    first: u64,
    done: u32,
}

impl Tries {
    /// All of them together may take `time`.
    pub(crate) fn within(time: Duration) -> Tries {
        Tries { deadline: deadline_after(time), first: 0, done: 0 }
    }

    /// What the next one begins with. It is as old as the first, so that it wins in the end.
    pub(crate) fn begin(&self, op_timeout: Duration) -> Call<u64> {
        let wish =
            Wish { read_only: false, wait: lock_wait(op_timeout), first: self.first, tries: self.done };
        ops::begin(wish)
    }

    pub(crate) fn began(&mut self, number: u64) {
        if self.first == 0 {
            self.first = number;
        }
    }

    /// One has failed: the pause before the next; `None`: that was the last.
    pub(crate) fn again(&mut self) -> Option<Duration> {
        self.done += 1;
        let pause = TRANSACTION_PAUSE_FIRST * (1 << self.done.min(8));
        let pause = pause.min(TRANSACTION_PAUSE_MAX).mul_f64(fastrand::f64());
        (self.done < TRANSACTION_TRIES_MAX && Instant::now() + pause < self.deadline).then_some(pause)
    }
}

/// How long the daemon lets a request wait for a lock: so much less than the request's own time that its answer comes in time.
pub(crate) fn lock_wait(op_timeout: Duration) -> Duration {
    (op_timeout - op_timeout / 10).min(LOCK_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_bounded_in_number_and_time() {
        let mut tries = Tries::within(Duration::from_secs(60));
        let mut count = 1;
        while let Some(pause) = tries.again() {
            assert!(pause <= TRANSACTION_PAUSE_MAX);
            count += 1;
        }
        assert_eq!(count, TRANSACTION_TRIES_MAX);
        assert_eq!(Tries::within(Duration::ZERO).again(), None);
    }

    #[test]
    fn what_may_have_been_applied_is_not_tried_again() {
        let lost = |maybe_applied| Error::lost(maybe_applied, std::io::ErrorKind::BrokenPipe);
        assert!(is_worth_another_try(&lost(false)) && !is_worth_another_try(&lost(true)));
        assert!(is_worth_another_try(&connection_lost(7)));
        assert!(!is_worth_another_try(&Error::invalid("no")));
    }
}
