//! The marks file: the few facts that must reach stable storage without redb.
//!
//! Which caches went on in memory only because the disk was full (their disk part is void), and whether the store ever took a
//! durable write (then it is never set aside silently). Two slots written in turn, so that a torn write leaves the one before.
//! All blocks are taken when the file is made: marking must work on a full disk.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use kv_proto::limits::CACHES_MAX;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::disk::{Disk, MARKS_FILE};
use super::options::CacheId;
use super::record::encode_into;

const SLOT_BYTES: usize = 8 << 10;
const HEADER_BYTES: usize = 16;
const _: () = assert!(CACHES_MAX * 5 + 64 < SLOT_BYTES - HEADER_BYTES, "every cache can be marked");

/// The facts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marks {
    turn: u64,
    /// A durable write was taken at some time.
    pub(super) has_durable: bool,
    /// Caches whose disk part is void.
    pub(super) dirty: BTreeSet<CacheId>,
    /// The redb file failed to sync and was not yet replaced.
    pub(super) is_suspect: bool,
}

/// What the file says.
pub(super) enum Found {
    Missing,
    Good(Marks),
    Damaged,
}

impl Marks {
    /// What is assumed when the file is damaged.
    pub(super) fn worst() -> Marks {
        Marks { has_durable: true, ..Marks::default() }
    }

    pub(super) fn load(disk: &Disk, dir: &Path) -> io::Result<Found> {
        let Some(bytes) = disk.read_small(dir, MARKS_FILE)? else { return Ok(Found::Missing) };
        let newest = bytes.chunks(SLOT_BYTES).filter_map(parse).max_by_key(|marks| marks.turn);
        Ok(newest.map_or(Found::Damaged, Found::Good))
    }

    /// Writes the slot whose turn it is; on stable storage when it returns.
    pub(super) fn store(&mut self, disk: &Disk, dir: &Path) -> io::Result<()> {
        let mut bytes = match disk.read_small(dir, MARKS_FILE)? {
            Some(bytes) if bytes.len() == 2 * SLOT_BYTES => bytes,
            Some(_) | None => vec![0; 2 * SLOT_BYTES],
        };
        self.turn += 1;
        let at = (self.turn % 2) as usize * SLOT_BYTES;
        let mut body = Vec::new();
        encode_into(self, &mut body);
        let slot = &mut bytes[at..at + SLOT_BYTES];
        slot.fill(0);
        slot[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
        slot[8..16].copy_from_slice(&xxh3_64(&body).to_le_bytes());
        slot[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(&body);
        disk.write_small(dir, MARKS_FILE, &bytes)
    }
}

fn parse(slot: &[u8]) -> Option<Marks> {
    let (bytes, rest) = slot.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let body = rest.get(..usize::try_from(u64::from_le_bytes(*bytes)).ok()?)?;
    if body.is_empty() || u64::from_le_bytes(*sum) != xxh3_64(body) {
        return None;
    }
    super::record::decode(body)
}
