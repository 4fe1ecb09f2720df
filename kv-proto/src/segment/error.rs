//! Why a segment cannot be read: told to whoever attaches, who then goes on over the socket.
//!
//! Made by `memfd.rs` and `reader.rs`. Must stay free of mappings: models compile it where there are none.

use std::io;

use thiserror::Error;

/// Why a segment or control page could not be used. The caller goes on over the socket.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The descriptor could be changed under the reader: not one a daemon of ours made.
    #[error("descriptor is not sealed: has seals {found:#x}, needs {needed:#x}")]
    NotSealed {
        /// Seals it has.
        found: u32,
        /// Seals a daemon sets.
        needed: u32,
    },
    /// The mapping failed.
    #[error("cannot map the segment: {0}")]
    Io(#[from] io::Error),
    /// It does not begin like what it should be.
    #[error("not a {what}: begins with {found:#018x}")]
    Magic {
        /// What was expected.
        what: &'static str,
        /// The first word.
        found: u64,
    },
    /// Another layout version than this build reads.
    #[error("{what} has layout {found}, this build reads {known}")]
    Layout {
        /// Segment or control page.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What this build knows.
        known: u64,
    },
    /// The sizes in the header do not fit each other or the mapping.
    #[error("segment header contradicts itself: {0}")]
    Geometry(&'static str),
}

/// Holds what memory begins with against what it should.
pub(super) fn check_front(
    what: &'static str,
    magic: u64,
    magic_known: u64,
    layout: u64,
    layout_known: u64,
) -> Result<(), AttachError> {
    if magic != magic_known {
        return Err(AttachError::Magic { what, found: magic });
    }
    if layout != layout_known {
        return Err(AttachError::Layout { what, found: layout, known: layout_known });
    }
    Ok(())
}
