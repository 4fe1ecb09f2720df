//! The bytes both sides must agree on: requests, responses, frames, limits, and the shared-memory segment.
//!
//! `kvd` and `kv-client` link this crate and nothing else of each other. It is the only crate with `unsafe`,
//! and only under `segment/`.

pub mod limits;
#[allow(unsafe_code)]
pub mod segment;
pub mod wire;

/// The sequence number of the change that wrote an item. Never zero, never used twice, below 2^62.
pub type Version = u64;

/// A point in time: milliseconds of `CLOCK_BOOTTIME`; negative for what was made before this boot.
pub type BootMs = i64;

/// Hashes a key for the index of a segment with the segment's `seed` (XXH3, 64 bits).
#[inline]
pub fn hash_key(seed: u64, key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, seed)
}

/// The seed of the tag table. A constant: tag stamps are stored on disk by slot and must find their slot again.
pub const TAG_SEED: u64 = 0x6b76_642d_7461_6773;

/// The slot of a tag in the largest tag table, `0..limits::TAG_SLOTS_MAX`; smaller tables use its low bits.
#[inline]
pub fn tag_slot(tag: &[u8]) -> u32 {
    (xxhash_rust::xxh3::xxh3_64_with_seed(tag, TAG_SEED) as u32) & (limits::TAG_SLOTS_MAX as u32 - 1)
}
