//! The shared-memory segment: the daemon's memory tier, laid out so that any process can read it and nobody can harm it.
//!
//! Writer, one at a time: appends items (words written once), then (W2, a Release fence) swings slots and stamps, then (W3)
//! stores `committed`. Before a place in a ring is reused the tail moves past it (W1, a Release fence).
//!
//! Reader, any process: `committed` first (R0), slots (R1), the item copied and then the tail looked at (R2), the key (R3),
//! stamps and expiry (R4), and on a miss the bucket word (R5); an Acquire fence after each load that pairs with one of the
//! writer's fences. An item's words are written once before its slot is published, and again only after the tail has
//! passed it: so if any word copied came from a later lap, the new tail is visible, and the read starts over. Because
//! `committed` is read first, everything of that sequence is visible to what is read after it. Bounded starts, then the daemon
//! answers.
//!
//! std guarantees only Relaxed loads of at most 8 bytes on read-only pages: no Acquire loads, no compare-exchange here.

mod arenas;
mod control;
mod error;
mod ghost;
mod hits;
mod item;
mod layout;
#[cfg(not(loom))]
mod memfd;
#[cfg(not(loom))]
mod process;
mod reader;
#[cfg(not(loom))]
mod rights;
mod stamps;
pub(crate) mod sync;
mod words;
mod writer;

pub use arenas::share_heaps;
pub use control::{Control, HEARTBEAT_STALE_MS, SegmentState, Time};
pub use error::AttachError;
pub use hits::Hits;
pub use item::{Freshness, Life, Meta, NewItem, Place};
pub use layout::{Geometry, LAYOUT_VERSION};
#[cfg(not(loom))]
pub use process::process_id;
pub use reader::{ManyOutcome, Outcome, Reader, Reason, Value};
#[cfg(not(loom))]
pub use rights::{peer_process, refuse_descriptors};
pub use stamps::PrefixClear;
pub use words::{WORD_BYTES, Words, words_for};
pub use writer::{
    Backed, Counts, Found, Install, Installed, Mark, PrefixTableFull, SweepCursor, WalkItem, Writer,
};
#[cfg(not(loom))]
pub use writer::{Heads, SegmentCopy, WriterState};
