//! How a failure travels.

use serde::{Deserialize, Serialize};

/// What went wrong, by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A deadline passed. Retry if it is safe.
    Timeout,
    /// Busy, full or going away for now. Retry later.
    Unavailable,
    /// Somebody else changed what this relied on. Retry with fresh data.
    Conflict,
    /// The wait would never have ended. Retry.
    Deadlock,
    /// The lease or transaction was lost. Begin anew.
    LeaseLost,
    /// A value, key, tag or request beyond a limit. Fix the input.
    TooLarge,
    /// Malformed input that is not a matter of size: an empty key, a counter that is not a number. Fix the input.
    Invalid,
    /// Not allowed for this user.
    Denied,
    /// No such cache.
    UnknownCache,
    /// The disk has no room; writes resume by themselves when it has.
    StoreFull,
    /// The disk failed.
    StoreFailed,
    /// Bytes that are not of this protocol, or of another version of it.
    Protocol,
    /// The daemon's configuration forbids it.
    Config,
    /// A value that does not decode. Made by clients only.
    Codec,
    /// The caller's loader failed. Made by clients only.
    Loader,
}

/// A failure on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError<'a> {
    /// What to do next.
    pub kind: ErrorKind,
    /// A sentence that names the value and the limit.
    pub message: &'a str,
    /// Whether the write may have happened all the same.
    pub maybe_applied: bool,
    /// When a retry makes sense, in milliseconds from now; 0: at once.
    pub retry_after_ms: u32,
}
