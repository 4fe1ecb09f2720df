//! The atomics of the segment: the machine's, or loom's when a model is run.
//!
//! Everything under `segment/` takes its atomics from here, so that a model checks the lines that ship.
//! Must never grow an operation that std does not promise on read-only pages: readers load 8 bytes, Relaxed, and fence.

pub(crate) use std::sync::atomic::Ordering;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, fence};
