//! The bytes of a backup: a file that says itself whether it is whole.
//!
//! Made by the engine, a part at a time, and sent to whoever asked; read by restore and by check. Times are wall time, so
//! that it means the same on another machine. Must never panic on what a file holds.
//!
//! ```text
//! "kvdback\x01" | record | record | ...          record: length u32 LE | checksum u64 LE | postcard(Record)
//! records: Header, Cache ..., Item ..., End      checksum = xxh3(payload, seed = the checksum before it)
//! ```
//!
//! The checksums are a chain, so that a record left out, doubled or moved is found, and `End` has the counts, so that a file cut
//! anywhere is.

use std::io::{self, Read};

use kv_proto::Version;
use kv_proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::options::CacheId;
use super::record::{decode, encode_into};

/// The format of a backup. A newer one is refused.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"kvdback\x01";
/// Length and checksum.
const HEAD_BYTES: usize = 12;
/// The longest record: an item, and what is known about it.
const RECORD_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX + (64 << 10);

/// A record. Append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveRecord<'a> {
    /// The first record.
    Header {
        /// The format of what follows.
        format: u32,
        /// Every commit up to this one is in it, and none after it (of caches on disk).
        sequence: Version,
        /// When that was, in milliseconds since 1970.
        wall_ms: i64,
    },
    /// A cache.
    Cache(#[serde(borrow)] ArchiveCache<'a>),
    /// An item, of a cache that came before.
    Item(#[serde(borrow)] ArchiveItem<'a>),
    /// The last record.
    End {
        /// How many of each came before, and the bytes of keys and values.
        counts: ArchiveCounts,
    },
}

/// A cache of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveCache<'a> {
    /// Its number.
    pub id: CacheId,
    /// Its name.
    pub name: &'a str,
    /// Its settings when the backup was made, in JSON; for people.
    pub settings: &'a str,
    /// In memory only: its items are not of one moment.
    pub is_memory: bool,
    /// It took a durable write at some time.
    pub has_durable: bool,
}

/// An item of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveItem<'a> {
    /// Its cache.
    pub cache: CacheId,
    /// Its key.
    #[serde(with = "serde_bytes")]
    pub key: &'a [u8],
    /// The sequence that wrote it.
    pub version: Version,
    /// When it was put, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: Option<i64>,
    /// How long after that it may be served as stale.
    pub stale_for_ms: u64,
    /// What it cost to load.
    pub load_cost_ms: u32,
    /// Made stale before its expiry.
    pub stale: bool,
    /// Its tags.
    #[serde(borrow)]
    pub tags: Vec<&'a Bytes>,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: &'a [u8],
}

/// What is in a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveCounts {
    /// Caches.
    pub caches: u64,
    /// Items.
    pub items: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl ArchiveCounts {
    fn count(&mut self, record: &ArchiveRecord<'_>) {
        match record {
            ArchiveRecord::Cache(_) => self.caches += 1,
            ArchiveRecord::Item(item) => {
                self.items += 1;
                self.bytes += (item.key.len() + item.value.len()) as u64;
            }
            ArchiveRecord::Header { .. } | ArchiveRecord::End { .. } => {}
        }
    }
}

/// Why a file is no backup, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("it is not a backup of kvd")]
    Foreign,
    /// Written by a later version.
    #[error("it has format {found}, this version knows up to {FORMAT}: use the newer kvd")]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It ends before its end.
    #[error("it is cut off after {items} items: it is not whole")]
    Cut {
        /// What came before.
        items: u64,
    },
    /// It is not what was written.
    #[error("it is damaged at byte {at}: {what}")]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// Writes a backup.
#[derive(Debug, Default)]
pub struct ArchiveWriter {
    sum: u64,
    /// What was written so far.
    pub counts: ArchiveCounts,
}

impl ArchiveWriter {
    /// Begins one in `out`.
    #[must_use]
    pub fn begin(sequence: Version, wall_ms: i64, out: &mut Vec<u8>) -> ArchiveWriter {
        let mut writer = ArchiveWriter::default();
        out.extend_from_slice(MAGIC);
        writer.push(&ArchiveRecord::Header { format: FORMAT, sequence, wall_ms }, out);
        writer
    }

    /// Appends a record to `out`.
    pub fn push(&mut self, record: &ArchiveRecord<'_>, out: &mut Vec<u8>) {
        self.counts.count(record);
        let begin = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        encode_into(record, out);
        let payload = begin + HEAD_BYTES;
        let bytes = u32::try_from(out.len() - payload).expect("items are far below 4 GiB");
        self.sum = xxh3_64_with_seed(&out[payload..], self.sum);
        out[begin..begin + 4].copy_from_slice(&bytes.to_le_bytes());
        out[begin + 4..payload].copy_from_slice(&self.sum.to_le_bytes());
    }

    /// Appends the end.
    pub fn end(mut self, out: &mut Vec<u8>) -> ArchiveCounts {
        let counts = self.counts;
        self.push(&ArchiveRecord::End { counts }, out);
        counts
    }
}

/// Reads a backup and finds whatever is wrong with it.
#[derive(Debug)]
pub struct ArchiveReader<R> {
    input: R,
    sum: u64,
    at: u64,
    /// What was read so far.
    pub counts: ArchiveCounts,
    is_begun: bool,
    is_ended: bool,
    payload: Vec<u8>,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads from the beginning of a file.
    ///
    /// # Errors
    /// When it begins with something else.
    pub fn new(mut input: R) -> Result<ArchiveReader<R>, ArchiveError> {
        let mut magic = [0; MAGIC.len()];
        match input.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            Ok(()) | Err(_) => return Err(ArchiveError::Foreign),
        }
        let at = MAGIC.len() as u64;
        let counts = ArchiveCounts::default();
        Ok(ArchiveReader { input, sum: 0, at, counts, is_begun: false, is_ended: false, payload: Vec::new() })
    }

    /// The next record; `None` behind the last, when all was whole.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or ends early.
    #[allow(clippy::should_implement_trait)] // It fails, and lends nothing an iterator's adaptors are good for.
    pub fn next(&mut self) -> Result<Option<ArchiveRecord<'_>>, ArchiveError> {
        let at = self.at;
        let damaged = |what| ArchiveError::Damaged { at, what };
        let mut head = [0; HEAD_BYTES];
        let read = read_up_to(&mut self.input, &mut head)?;
        if self.is_ended {
            return if read == 0 { Ok(None) } else { Err(damaged("there is more behind its end")) };
        }
        let cut = ArchiveError::Cut { items: self.counts.items };
        if read < HEAD_BYTES {
            return Err(cut);
        }
        let bytes = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
        if bytes > RECORD_BYTES_MAX {
            return Err(damaged("a record longer than any"));
        }
        self.payload.resize(bytes, 0);
        if read_up_to(&mut self.input, &mut self.payload)? < bytes {
            return Err(cut);
        }
        let sum = xxh3_64_with_seed(&self.payload, self.sum);
        if head[4..] != sum.to_le_bytes() {
            return Err(damaged("a record with a wrong checksum"));
        }
        self.sum = sum;
        self.at += (HEAD_BYTES + bytes) as u64;
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let record: ArchiveRecord<'_> = match decode(&self.payload) {
            Some(record) => record,
            // A later format may say more than is known here.
            None => return Err(newer(&self.payload).unwrap_or(damaged("a record that cannot be read"))),
        };
        match &record {
            ArchiveRecord::Header { format, .. } if *format > FORMAT => {
                return Err(ArchiveError::Newer { found: *format });
            }
            ArchiveRecord::Header { .. } if !is_first => return Err(damaged("a second header")),
            ArchiveRecord::Header { .. } => {}
            _other if is_first => return Err(damaged("no header")),
            ArchiveRecord::End { counts } if *counts != self.counts => {
                return Err(damaged("its end counts other records than there are"));
            }
            ArchiveRecord::End { .. } => self.is_ended = true,
            ArchiveRecord::Cache(_) | ArchiveRecord::Item(_) => self.counts.count(&record),
        }
        Ok(Some(record))
    }

    /// Bytes read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }
}

fn newer(payload: &[u8]) -> Option<ArchiveError> {
    let (variant, rest) = postcard::take_from_bytes::<u32>(payload).ok()?;
    let (found, _) = postcard::take_from_bytes::<u32>(rest).ok()?;
    (variant == 0 && found > FORMAT).then_some(ArchiveError::Newer { found })
}

fn read_up_to(input: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match input.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = ArchiveWriter::begin(42, 7, &mut out);
        let cache = ArchiveCache { id: 1, name: "c", settings: "{}", is_memory: false, has_durable: true };
        writer.push(&ArchiveRecord::Cache(cache), &mut out);
        for key in [&b"a"[..], b"b"] {
            let item = ArchiveItem {
                cache: 1,
                key,
                version: 9,
                created_ms: 3,
                expires_ms: Some(8),
                stale_for_ms: 5,
                load_cost_ms: 6,
                stale: false,
                tags: vec![Bytes::new(b"t")],
                value: b"value",
            };
            writer.push(&ArchiveRecord::Item(item), &mut out);
        }
        assert_eq!(writer.end(&mut out), ArchiveCounts { caches: 1, items: 2, bytes: 12 });
        out
    }

    fn read(bytes: &[u8]) -> Result<ArchiveCounts, ArchiveError> {
        let mut reader = ArchiveReader::new(bytes)?;
        while reader.next()?.is_some() {}
        Ok(reader.counts)
    }

    #[test]
    fn a_backup_comes_back_and_whatever_happens_to_its_bytes_is_found() {
        let file = file();
        assert_eq!(read(&file).unwrap().items, 2);
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {at}");
            assert!(read(&file[..at]).is_err(), "cut at {at}");
        }
        let mut more = file.clone();
        more.push(0);
        assert!(matches!(read(&more), Err(ArchiveError::Damaged { .. })));
        let begin = file.len() / 2;
        let mut doubled = file.clone();
        doubled.splice(begin..begin, file[MAGIC.len()..].iter().copied());
        assert!(read(&doubled).is_err());
    }

    /// The bytes of format 1, held still: a change here makes the backups in the field unreadable.
    #[test]
    fn the_format_keeps_its_bytes() {
        let hex: String = file().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN, "the bytes of a backup changed");
        let mut out = Vec::new();
        let mut writer = ArchiveWriter::default();
        out.extend_from_slice(MAGIC);
        writer.push(&ArchiveRecord::Header { format: 2, sequence: 1, wall_ms: 1 }, &mut out);
        assert!(matches!(read(&out), Err(ArchiveError::Newer { found: 2 })));
    }

    const GOLDEN: &str = "\
        6b76646261636b0104000000770bb161c9e8c24700012a0e09000000da0918e14c8c5b1001010163027b7d0001\
        14000000a8ecf48c03bd774102010161090601100506000101740576616c7565140000000ba6f565d9ca783d02\
        010162090601100506000101740576616c75650400000052723fa803c5e66f0301020c";
}
