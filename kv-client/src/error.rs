//! What can go wrong, said so that the caller knows what to do next.
//!
//! Made by every module here, read by applications and the command line. It never drops the cause, and never says
//! "not applied" of a write that may have been.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::wire::{ErrorKind, FrameError, WireError};

use crate::limits;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. The variants follow what the caller does next; [`Error::kind`] is the coarse view.
///
/// ```
/// use kv_client::{ErrorKind, RetryAdvice, blocking::Client};
/// let error = Client::builder().socket("/nowhere/kvd.sock").build().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Unavailable);
/// assert!(error.is_retryable() && !error.maybe_applied());
/// assert_eq!(error.retry_advice(), RetryAdvice::Reconnect);
/// assert!(error.to_string().contains("/nowhere/kvd.sock"));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No daemon at any place looked at.
    #[error("no daemon answers: {}", Listed(.tried))]
    Unreachable {
        /// Each place tried, and why not.
        tried: Vec<Attempt>,
    },
    /// The connection broke while the request was under way.
    #[error("the connection was lost{}: {source}", maybe(*.maybe_applied))]
    Lost {
        /// Whether the write may have happened all the same.
        maybe_applied: bool,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// The deadline passed.
    #[error("no answer within {waited:?}{}", maybe(*.maybe_applied))]
    Timeout {
        /// How long was waited.
        waited: Duration,
        /// Whether the write may have happened all the same.
        maybe_applied: bool,
    },
    /// The daemon says no.
    #[error("{message}{}", maybe(*.maybe_applied))]
    Refused {
        /// What to do next.
        kind: ErrorKind,
        /// The daemon's sentence, naming value and limit.
        message: String,
        /// Whether the write may have happened all the same.
        maybe_applied: bool,
        /// When a retry makes sense; zero: at once.
        retry_after: Duration,
    },
    /// A check of a commit did not hold; nothing was written.
    #[error("check {index} of the commit does not hold: {}", Found(.version))]
    Conflict {
        /// Which one: checks first, then conditions of puts, in order.
        index: u32,
        /// The version that is there, if any.
        version: Option<Version>,
    },
    /// Something is beyond a limit; nothing was sent.
    #[error("{what} is {amount} {unit}, limit is {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much there is.
        amount: u64,
        /// Of what.
        unit: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// Input that no daemon would take; nothing was sent.
    #[error("{message}")]
    Invalid {
        /// A sentence that names the value and the rule.
        message: String,
    },
    /// The peer does not speak our protocol.
    #[error("{message}")]
    Protocol {
        /// What it did.
        message: String,
        /// Whether the write may have happened all the same.
        maybe_applied: bool,
        /// What the decoder says.
        source: Option<FrameError>,
    },
    /// The caller's own loader failed, and there was nothing stale to serve instead.
    #[error("loading {key} of cache {cache} failed: {source}")]
    Loader {
        /// The cache.
        cache: Box<str>,
        /// The key, or how many there were; what is not ASCII escaped.
        key: Box<str>,
        /// What the loader said. All who waited for it get the same.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A value cannot be encoded, or stored bytes are not a value of this type.
    #[error("{message}")]
    Codec {
        /// What, and what the codec says.
        message: String,
    },
}

/// A place where a daemon was looked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// The socket's path.
    pub path: PathBuf,
    /// Why this path was tried: for example `KVD_SOCKET`.
    pub origin: &'static str,
    /// Why it did not do.
    pub reason: Arc<io::Error>,
}

/// When the same call is worth making again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// Not at all, or not without knowing more: change the input, or look whether it was applied.
    Never,
    /// At once; where something was read before, with fresh data.
    Now,
    /// After this long.
    After(Duration),
    /// When the daemon is back. The client reconnects by itself: call again, without haste.
    Reconnect,
}

impl Error {
    /// The coarse view, the same as on the wire.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Unreachable { .. } | Error::Lost { .. } => ErrorKind::Unavailable,
            Error::Timeout { .. } => ErrorKind::Timeout,
            Error::Refused { kind, .. } => *kind,
            Error::Invalid { .. } => ErrorKind::Invalid,
            Error::Conflict { .. } => ErrorKind::Conflict,
            Error::TooLarge { .. } => ErrorKind::TooLarge,
            Error::Protocol { .. } => ErrorKind::Protocol,
            Error::Loader { .. } => ErrorKind::Loader,
            Error::Codec { .. } => ErrorKind::Codec,
        }
    }

    /// Whether the same call may be made again, is safe to make again, and may succeed then. Never true when
    /// [`Error::maybe_applied`] is.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retry_advice() != RetryAdvice::Never
    }

    /// When the same call is worth making again.
    #[must_use]
    pub fn retry_advice(&self) -> RetryAdvice {
        if self.maybe_applied() {
            return RetryAdvice::Never;
        }
        let said = match self {
            Error::Unreachable { .. } | Error::Lost { .. } => return RetryAdvice::Reconnect,
            Error::Refused { retry_after, .. } => *retry_after,
            Error::Timeout { .. }
            | Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::Invalid { .. }
            | Error::Loader { .. }
            | Error::Codec { .. }
            | Error::Protocol { .. } => Duration::ZERO,
        };
        match self.kind() {
            ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::LeaseLost if said.is_zero() => {
                RetryAdvice::Now
            }
            ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::LeaseLost => RetryAdvice::After(said),
            ErrorKind::Timeout | ErrorKind::Unavailable => RetryAdvice::After(said.max(limits::BUSY_RETRY)),
            ErrorKind::StoreFull => RetryAdvice::After(said.max(limits::STORE_FULL_RETRY)),
            // Kinds this build does not know are not worth a blind retry either.
            _ => RetryAdvice::Never,
        }
    }

    /// Whether the write may have happened although this call failed. Reads are never "applied".
    #[must_use]
    pub fn maybe_applied(&self) -> bool {
        match self {
            Error::Lost { maybe_applied, .. }
            | Error::Timeout { maybe_applied, .. }
            | Error::Refused { maybe_applied, .. }
            | Error::Protocol { maybe_applied, .. } => *maybe_applied,
            Error::Unreachable { .. }
            | Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::Loader { .. }
            | Error::Codec { .. }
            | Error::Invalid { .. } => false,
        }
    }

    /// Whether the daemon is away, or as good as that: nobody there, no answer, or on its way out.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Lost { .. } | Error::Timeout { .. } => true,
            // A daemon that says that somebody waited too long is there.
            Error::Refused { kind, .. } => *kind == ErrorKind::Unavailable,
            Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::Invalid { .. }
            | Error::Protocol { .. }
            | Error::Loader { .. }
            | Error::Codec { .. } => false,
        }
    }

    /// What the caller's own loader failed with, if it is of this type.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let failing = |_: &_| Err::<Vec<u8>, _>(std::io::Error::from(std::io::ErrorKind::NotFound));
    /// let error = client.cache("product").get_or_load("42", None, failing).unwrap_err();
    /// assert_eq!(error.loader_error::<std::io::Error>().map(|e| e.kind()), Some(std::io::ErrorKind::NotFound));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn loader_error<E: std::error::Error + 'static>(&self) -> Option<&E> {
        if let Error::Loader { source, .. } = self { source.downcast_ref() } else { None }
    }

    /// The same for a request that was not sent at all.
    pub(crate) fn of_unsent(mut self) -> Error {
        match &mut self {
            Error::Lost { maybe_applied, .. }
            | Error::Timeout { maybe_applied, .. }
            | Error::Refused { maybe_applied, .. }
            | Error::Protocol { maybe_applied, .. } => *maybe_applied = false,
            Error::Unreachable { .. }
            | Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::Invalid { .. }
            | Error::Loader { .. }
            | Error::Codec { .. } => {}
        }
        self
    }

    pub(crate) fn lost(maybe_applied: bool, source: impl Into<io::Error>) -> Error {
        Error::Lost { maybe_applied, source: Arc::new(source.into()) }
    }

    /// The error for whoever would wait for what it holds itself.
    pub(crate) fn deadlock(message: String) -> Error {
        Error::Refused {
            kind: ErrorKind::Deadlock,
            message,
            maybe_applied: false,
            retry_after: Duration::ZERO,
        }
    }

    /// The error of a wait for a lock in vain.
    pub(crate) fn lock_busy(name: &str, waited: Duration, holder: &str) -> Error {
        let message = format!("waited {waited:?} for lock {name}, which {holder} has");
        Error::Refused {
            kind: ErrorKind::Timeout,
            message,
            maybe_applied: false,
            retry_after: Duration::ZERO,
        }
    }

    /// The error of somebody who held a lock.
    pub(crate) fn lock_lost(name: &str) -> Error {
        let message = format!("lock {name} is lost: its connection ended");
        Error::Refused {
            kind: ErrorKind::LeaseLost,
            message,
            maybe_applied: false,
            retry_after: Duration::ZERO,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::Invalid { message: message.into() }
    }

    pub(crate) fn from_wire(error: &WireError<'_>) -> Error {
        Error::Refused {
            kind: error.kind,
            message: error.message.to_owned(),
            maybe_applied: error.maybe_applied,
            retry_after: Duration::from_millis(u64::from(error.retry_after_ms)),
        }
    }

    /// `within` the limit, or the error that names both.
    pub(crate) fn check(what: &'static str, unit: &'static str, amount: usize, limit: usize) -> Result<()> {
        if amount <= limit {
            return Ok(());
        }
        Err(Error::TooLarge { what, amount: amount as u64, unit, limit: limit as u64 })
    }
}

fn maybe(maybe_applied: bool) -> &'static str {
    if maybe_applied { " (the write may have been applied)" } else { "" }
}

struct Listed<'a>(&'a [Attempt]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, attempt) in self.0.iter().enumerate() {
            let comma = if n > 0 { "; " } else { "" };
            write!(f, "{comma}{} ({}): {}", attempt.path.display(), attempt.origin, attempt.reason)?;
        }
        Ok(())
    }
}

struct Found<'a>(&'a Option<Version>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(version) => write!(f, "the item has version {version}"),
            None => f.write_str("there is no item"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_may_have_been_applied_is_never_called_retryable() {
        let lost = |maybe_applied| Error::lost(maybe_applied, io::ErrorKind::BrokenPipe);
        assert_eq!(lost(false).retry_advice(), RetryAdvice::Reconnect);
        assert_eq!(lost(true).retry_advice(), RetryAdvice::Never);
        assert!(!lost(true).is_retryable());
        assert!(lost(true).to_string().contains("may have been applied"));
    }

    #[test]
    fn messages_name_value_and_limit() {
        let error = Error::check("value", "bytes", 1_048_577, 1_048_576).unwrap_err();
        assert_eq!(error.to_string(), "value is 1048577 bytes, limit is 1048576");
        assert_eq!(error.retry_advice(), RetryAdvice::Never);
    }
}
