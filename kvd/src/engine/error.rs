//! How an operation fails, before it becomes bytes.

use kv_proto::limits;
use kv_proto::wire::{ErrorKind, WireError};

/// A refused or failed operation: what to do next, and a sentence that names the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the caller does next.
    pub kind: ErrorKind,
    /// Names the value and the limit.
    pub message: String,
    /// Whether a write may have happened all the same.
    pub maybe_applied: bool,
    /// When a retry makes sense, in milliseconds.
    pub retry_after_ms: u32,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), maybe_applied: false, retry_after_ms: 0 }
    }

    pub(crate) fn too_large(what: &str, bytes: usize, limit: usize) -> Failure {
        Failure::new(ErrorKind::TooLarge, format!("{what} is {bytes} bytes, limit is {limit}"))
    }

    pub(crate) fn too_many(what: &str, count: usize, limit: usize) -> Failure {
        Failure::new(ErrorKind::TooLarge, format!("{count} {what}, limit is {limit}"))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>, retry_after_ms: u32) -> Failure {
        Failure { retry_after_ms, ..Failure::new(ErrorKind::Unavailable, message) }
    }

    /// As the wire carries it.
    #[must_use]
    pub fn to_wire(&self) -> WireError<'_> {
        WireError {
            kind: self.kind,
            message: cut(&self.message, limits::ERROR_MESSAGE_BYTES_MAX),
            maybe_applied: self.maybe_applied,
            retry_after_ms: self.retry_after_ms,
        }
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
