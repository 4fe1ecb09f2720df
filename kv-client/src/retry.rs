//! When a call is made again, and when it is not: one answer for both clients, without any I/O.
//!
//! The rule: what certainly was not sent is sent again. What may have been applied is sent again only if a repetition
//! changes nothing more, or if its own version condition guards it; and then a refusal of the repetition is reported
//! as "may have been applied". It never repeats beyond the call's deadline or the policy's bound.

use std::time::{Duration, Instant};

use kv_proto::wire::{ErrorKind, Response, decode};

use crate::error::{Error, Result};
use crate::frames;
use crate::ops::{Repeat, Sending};
use crate::options::{RetryPolicy, Settings};
use crate::outage::Outage;

/// How far a request got when its connection failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The daemon cannot have the whole of it.
    NotSent(Error),
    /// The daemon may have it.
    Sent(Error),
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Failure::NotSent(error) | Failure::Sent(error) => error,
        }
    }
}

/// One call's tries.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    restart_grace: Duration,
    connect_timeout: Duration,
    op_timeout: Duration,
    deadline: Instant,
    repeat: Repeat,
    failures: u32,
    /// An earlier sending may have been applied.
    ambiguous: bool,
}

/// What an answer came to.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// This is the call's result.
    Done(Result<T>),
    /// Pause so long, then send again.
    Again(Duration),
    /// This is the call's result, and the connection must not be used again.
    Broken(Error),
}

impl Attempts {
    pub(crate) fn new(settings: &Settings, op_timeout: Duration, repeat: Repeat) -> Attempts {
        Attempts {
            policy: settings.retry,
            restart_grace: settings.restart_grace,
            connect_timeout: settings.connect_timeout,
            op_timeout,
            deadline: deadline_after(op_timeout),
            repeat,
            failures: 0,
            ambiguous: false,
        }
    }

    /// For a request that ends what it belongs to, whatever the answer is.
    pub(crate) fn once(mut self) -> Attempts {
        self.policy.sends_max = 1;
        self
    }

    /// When the call ends, whatever happens.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When an attempt to connect that begins now ends.
    pub(crate) fn connect_deadline(&self) -> Instant {
        self.deadline.min(deadline_after(self.connect_timeout))
    }

    /// How long the call was to take at most.
    pub(crate) fn op_timeout(&self) -> Duration {
        self.op_timeout
    }

    /// Whether a connection that was not made proves nothing about the daemon, because the caller had less time than others have.
    pub(crate) fn is_too_brief_for(&self, settings: &Settings, error: &Error) -> bool {
        let is_late = |kind| matches!(kind, std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock);
        self.op_timeout < settings.op_timeout
            && matches!(error, Error::Unreachable { tried } if tried.iter().any(|place| is_late(place.reason.kind())))
    }

    /// The connection failed with the request under way: the pause before it is sent again, or the error.
    pub(crate) fn lost(&mut self, failure: Failure) -> Result<Duration> {
        let error = match failure {
            Failure::NotSent(error) => error,
            Failure::Sent(error) => {
                self.ambiguous |= self.repeat != Repeat::Harmless;
                if self.repeat == Repeat::Never {
                    return Err(self.settle(error));
                }
                error
            }
        };
        // Only a lost connection is worth another one: a peer that talks nonsense will do so again.
        if !matches!(error, Error::Lost { .. }) {
            return Err(self.settle(error));
        }
        self.pause(Duration::ZERO, error)
    }

    /// No connection could be made: the pause before the next attempt, or the error.
    pub(crate) fn not_connected(&mut self, error: Error, outage: &Outage) -> Result<Duration> {
        let worth_it = match &error {
            Error::Unreachable { .. } => outage.has_grace(self.restart_grace, &error),
            // A daemon that is there but full, or on its way out.
            Error::Refused { kind: ErrorKind::Unavailable, .. } => self.failures + 1 < self.policy.sends_max,
            _ => false,
        };
        if !worth_it {
            return Err(self.settle(error));
        }
        self.failures += 1;
        let pause = self.backoff();
        if Instant::now() + pause >= self.deadline { Err(self.settle(error)) } else { Ok(pause) }
    }

    /// Reads the body of an answer, unless it says to try again.
    pub(crate) fn answered<T>(
        &mut self,
        body: &[u8],
        read: &mut impl FnMut(Response<'_>) -> Result<T>,
    ) -> Step<T> {
        let response = match decode::<Response<'_>>(body) {
            Ok(response) => response,
            Err(cause) => return Step::Broken(self.settle(frames::not_ours(cause, true))),
        };
        match &response {
            Response::Error(error) if error.kind == ErrorKind::Unavailable && !error.maybe_applied => {
                let wait = Duration::from_millis(u64::from(error.retry_after_ms));
                match self.pause(wait, Error::from_wire(error)) {
                    Ok(pause) => Step::Again(pause),
                    Err(error) => Step::Done(Err(error)),
                }
            }
            Response::Error(error) => Step::Done(Err(self.settle(Error::from_wire(error)))),
            Response::Refused { .. } | Response::Conflict { .. } if self.ambiguous => {
                let source =
                    std::io::Error::other("an earlier sending of this write may be what it is refused for");
                Step::Done(Err(Error::lost(true, source)))
            }
            _ => Step::Done(read(response).map_err(|error| self.settle(error))),
        }
    }

    /// The error as it is true of the whole call, not only of the last try.
    pub(crate) fn settle(&self, mut error: Error) -> Error {
        match &mut error {
            Error::Lost { maybe_applied, .. }
            | Error::Timeout { maybe_applied, .. }
            | Error::Refused { maybe_applied, .. }
            | Error::Protocol { maybe_applied, .. } => {
                *maybe_applied = (*maybe_applied || self.ambiguous) && self.repeat != Repeat::Harmless;
                error
            }
            _ if self.ambiguous => Error::lost(true, std::io::Error::other(error)),
            _ => error,
        }
    }

    /// The error for a deadline that passed; `sent`: with the request perhaps under way.
    pub(crate) fn timed_out(&self, sent: bool) -> Error {
        self.settle(Error::Timeout { waited: self.op_timeout, maybe_applied: sent })
    }

    fn pause(&mut self, at_least: Duration, error: Error) -> Result<Duration> {
        self.failures += 1;
        let pause = self.backoff().max(at_least);
        if self.failures >= self.policy.sends_max || Instant::now() + pause >= self.deadline {
            return Err(self.settle(error));
        }
        Ok(pause)
    }

    /// Exponential, with the second half of each pause left to chance.
    fn backoff(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let pause = self.policy.pause_first.saturating_mul(1 << doublings).min(self.policy.pause_max);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Holds a request against what this daemon takes.
pub(crate) fn fits(sending: &Sending, terms: crate::frames::Terms) -> Result<()> {
    Error::check("value", "bytes", sending.value_bytes, terms.value_bytes_max)?;
    Error::check("request", "bytes", sending.frame.len(), terms.frame_bytes_max)
}

/// A deadline that cannot overflow, however long somebody is willing to wait.
pub(crate) fn deadline_after(wait: Duration) -> Instant {
    Instant::now() + wait.min(Duration::from_secs(365 * 24 * 3_600))
}

#[cfg(test)]
mod tests {
    use std::io;

    use kv_proto::wire::{FRAME_HEADER_BYTES, WireError, encode_into};

    use super::*;
    use crate::options::Builder;

    fn attempts(repeat: Repeat) -> Attempts {
        let settings = Builder::<()>::new().settings;
        Attempts::new(&settings, Duration::from_secs(5), repeat)
    }

    fn gone() -> Error {
        Error::lost(true, io::ErrorKind::ConnectionReset)
    }

    #[test]
    fn what_was_not_sent_is_always_sent_again_within_the_bound() {
        for repeat in [Repeat::Harmless, Repeat::Guarded, Repeat::Never] {
            let mut attempts = attempts(repeat);
            let not_sent = || Failure::NotSent(Error::lost(false, io::ErrorKind::BrokenPipe));
            for _ in 1..RetryPolicy::default().sends_max {
                attempts.lost(not_sent()).unwrap();
            }
            assert!(!attempts.lost(not_sent()).unwrap_err().maybe_applied());
        }
    }

    #[test]
    fn a_lost_answer_is_repeated_only_where_that_is_safe() {
        assert!(attempts(Repeat::Harmless).lost(Failure::Sent(gone())).is_ok());
        assert!(attempts(Repeat::Guarded).lost(Failure::Sent(gone())).is_ok());
        assert!(attempts(Repeat::Never).lost(Failure::Sent(gone())).unwrap_err().maybe_applied());
    }

    fn step(attempts: &mut Attempts, response: Response<'_>) -> Step<()> {
        let mut frame = Vec::new();
        encode_into(&mut frame, &response);
        attempts.answered(&frame[FRAME_HEADER_BYTES..], &mut |_| Ok(()))
    }

    #[test]
    fn a_refused_repetition_may_mean_that_the_first_sending_was_applied() {
        let mut attempts = attempts(Repeat::Guarded);
        assert!(matches!(step(&mut attempts, Response::Refused { version: None }), Step::Done(Ok(()))));
        attempts.lost(Failure::Sent(gone())).unwrap();
        let Step::Done(Err(error)) = step(&mut attempts, Response::Refused { version: Some(9) }) else {
            panic!("taken")
        };
        assert!(error.maybe_applied());
        assert!(matches!(step(&mut attempts, Response::Written { version: 9 }), Step::Done(Ok(()))));
    }

    #[test]
    fn an_error_after_an_ambiguous_sending_says_so_whatever_it_is() {
        let mut attempts = attempts(Repeat::Guarded);
        attempts.lost(Failure::Sent(gone())).unwrap();
        let error =
            attempts.not_connected(Error::Unreachable { tried: Vec::new() }, &Outage::default()).unwrap_err();
        assert!(error.maybe_applied());
        let denied =
            WireError { kind: ErrorKind::Denied, message: "no", maybe_applied: false, retry_after_ms: 0 };
        let Step::Done(Err(error)) = step(&mut attempts, Response::Error(denied)) else { panic!("taken") };
        assert!(error.maybe_applied());
    }

    #[test]
    fn a_read_is_never_said_to_be_applied() {
        let mut attempts = attempts(Repeat::Harmless);
        while let Ok(_pause) = attempts.lost(Failure::Sent(gone())) {}
        assert!(!attempts.lost(Failure::Sent(gone())).unwrap_err().maybe_applied());
        assert!(!attempts.timed_out(true).maybe_applied());
    }
}
