//! The shared-memory segment.

mod memfd;
pub(crate) mod sync;
mod words;

pub use memfd::AttachError;
pub use words::{WORD_BYTES, Words, words_for};
