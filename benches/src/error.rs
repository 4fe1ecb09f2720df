//! Why a measurement could not be made.
//!
//! Everything in this package returns it. A missed goal is not an error, and neither is a peer that is not installed.

use std::io;

/// What ended a benchmark early.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The system refused something.
    #[error("{doing}: {cause}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A server answered something a benchmark has no use for: an error, a wrong value, a miss where there is none.
    #[error("{server} answered {what}")]
    Answer {
        /// Who.
        server: &'static str,
        /// What, shortened.
        what: String,
    },
    /// A client process failed.
    #[error("client process {index}: {what}")]
    Client {
        /// Which one.
        index: usize,
        /// What it said last.
        what: String,
    },
    /// A server did not start or did not go on.
    #[error("{server}: {what}")]
    Server {
        /// Which one.
        server: &'static str,
        /// What happened.
        what: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// Wraps what the system said; for `map_err`.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> BenchError {
        let doing = doing.into();
        move |cause| BenchError::Io { doing, cause }
    }
}
