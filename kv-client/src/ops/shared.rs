//! A cache's segment: its descriptors, and reports of what was read without asking.

use kv_proto::wire::Request;

use super::checks::check_cache;
use super::{Call, Lane, Repeat, Sending, read_done};
use crate::error::Result;

/// The descriptors of a cache's segment; they come beside the answer.
pub(crate) fn attach(cache: &str) -> Result<Sending> {
    check_cache(cache)?;
    Ok(Call::new(Request::Attach { cache }, Lane::Waits, Repeat::Harmless, read_done).sending)
}

/// What was read without asking.
pub(crate) struct SharedReads {
    pub(crate) segment: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) places: Vec<u32>,
}

/// A report of reads. Sent twice it would count twice, so a lost one is lost.
pub(crate) fn hits(cache: &str, reads: SharedReads, socket_because: Option<&str>) -> Result<Sending> {
    check_cache(cache)?;
    let SharedReads { segment, hits, misses, places } = reads;
    let frame_bytes = 128 + 5 * places.len();
    let request = Request::Hits { cache, segment, hits, misses, places, socket_because };
    Ok(Call::sized(request, frame_bytes, 0, Lane::Reads, Repeat::Never, read_done).sending)
}
