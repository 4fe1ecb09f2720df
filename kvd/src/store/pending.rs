//! The pending log: a ring of records in a file mapped shared.
//!
//! Written by `append` under the log's lock, read by the flush thread and by recovery. Appending copies memory and makes no
//! system call; the pages belong to the kernel, so no death of this process loses a record.
//!
//! ```text
//! word 0..512   header page: magic, format, capacity in words, checksum of these | alive: wall ms, boot ms | sequence limit |
//!               attempts to open that did not end
//! then the ring; a record lies in one piece:
//!   number | payload bytes | checksum | payload, padded to words
//! ```
//!
//! The checksum covers the previous record's checksum, the number, the length and the payload; the chain begins with a random
//! word that recovery writes to the fixed row *before* anything is appended. So nothing written in an earlier run can continue
//! a later one, and no filler needs to be written: record n lies at the next position or, if it did not fit there, at the
//! beginning of the next lap, and cannot be found at a place where it was not put.

use std::sync::Arc;

use kv_proto::segment::{Words, words_for};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::options::LogNumber;

/// Words before the ring: a page.
pub(super) const HEADER_WORDS: usize = 512;
const RECORD_WORDS: u64 = 3;
const MAGIC: u64 = u64::from_le_bytes(*b"kvdpend\x01");

const WORD_MAGIC: usize = 0;
const WORD_FORMAT: usize = 1;
const WORD_CAPACITY: usize = 2;
const WORD_CHECKSUM: usize = 3;
const WORD_ALIVE_WALL: usize = 8;
const WORD_ALIVE_BOOT: usize = 9;
const WORD_SEQUENCE: usize = 10;
const WORD_OPENS: usize = 11;

/// Where a run of records stands: the last one, and where the next is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) number: LogNumber,
    pub(super) checksum: u64,
    /// In words since ever; only grows within a run.
    pub(super) position: u64,
}

/// What a header says.
pub(super) enum Header {
    Good,
    Newer { format: u64 },
    Damaged,
}

/// The ring.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    words: Arc<Words>,
    capacity: u64,
}

/// The bytes of the header page of a log of `bytes` bytes in all.
pub(super) fn header_bytes(format: u64, bytes: usize) -> Vec<u8> {
    let capacity = (words_for(bytes) - HEADER_WORDS) as u64;
    let mut page = Vec::with_capacity(HEADER_WORDS * 8);
    for word in [MAGIC, format, capacity, header_checksum(format, capacity)] {
        page.extend_from_slice(&word.to_le_bytes());
    }
    page.resize(HEADER_WORDS * 8, 0);
    page
}

fn header_checksum(format: u64, capacity: u64) -> u64 {
    checksum_words([MAGIC, format, capacity, 0])
}

fn checksum_words(words: [u64; 4]) -> u64 {
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64(&bytes)
}

fn chain(previous: u64, number: LogNumber, payload: &[u8]) -> u64 {
    checksum_words([previous, number, payload.len() as u64, xxh3_64(payload)])
}

/// Words a record with this payload takes.
pub(super) fn record_words(payload_bytes: usize) -> u64 {
    RECORD_WORDS + words_for(payload_bytes) as u64
}

impl Ring {
    /// A ring over words whose header was found good, or is about to be checked.
    pub(super) fn new(words: Arc<Words>) -> Ring {
        let capacity = words.len().saturating_sub(HEADER_WORDS) as u64;
        Ring { words, capacity }
    }

    pub(super) fn header(&self, format_known: u64) -> Header {
        if self.capacity == 0 || self.words.load(WORD_MAGIC) != MAGIC {
            return Header::Damaged;
        }
        let format = self.words.load(WORD_FORMAT);
        let is_whole = self.words.load(WORD_CAPACITY) == self.capacity
            && self.words.load(WORD_CHECKSUM) == header_checksum(format, self.capacity);
        match (is_whole, format > format_known) {
            (false, _) => Header::Damaged,
            (true, true) => Header::Newer { format },
            (true, false) => Header::Good,
        }
    }

    /// Words of the ring.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Stamps a sign of life: wall and boot milliseconds. Boot first: a torn pair looks older, not newer.
    pub(super) fn set_alive(&self, wall_ms: i64, boot_ms: i64) {
        self.words.store(WORD_ALIVE_BOOT, boot_ms.cast_unsigned());
        self.words.store(WORD_ALIVE_WALL, wall_ms.cast_unsigned());
    }

    pub(super) fn alive(&self) -> (i64, i64) {
        (self.words.load(WORD_ALIVE_WALL).cast_signed(), self.words.load(WORD_ALIVE_BOOT).cast_signed())
    }

    /// A copy of the reserved sequence limit, for a start whose redb file is lost.
    pub(super) fn set_sequence_limit(&self, limit: u64) {
        self.words.store(WORD_SEQUENCE, limit);
    }

    pub(super) fn sequence_limit(&self) -> u64 {
        self.words.load(WORD_SEQUENCE)
    }

    /// Counts an attempt to open the store; gives how many before it did not end.
    pub(super) fn begin_open(&self) -> u64 {
        self.words.fetch_add(WORD_OPENS, 1)
    }

    /// The attempt has ended, well or with an error.
    pub(super) fn end_open(&self) {
        self.words.store(WORD_OPENS, 0);
    }

    fn next_lap(&self, position: u64) -> u64 {
        position.next_multiple_of(self.capacity)
    }

    /// Appends a record after `mark`. The caller has made sure that there is room.
    pub(super) fn write(&self, mark: Mark, payload: &[u8]) -> Mark {
        let words = record_words(payload.len());
        assert!(words <= self.capacity, "admission refuses what exceeds a quarter of the log");
        let left = self.capacity - mark.position % self.capacity;
        let position = if left < words { self.next_lap(mark.position) } else { mark.position };
        let at = HEADER_WORDS + (position % self.capacity) as usize;
        let number = mark.number + 1;
        let checksum = chain(mark.checksum, number, payload);
        self.words.copy_in(at + RECORD_WORDS as usize, payload);
        self.words.store(at + 1, payload.len() as u64);
        self.words.store(at + 2, checksum);
        self.words.store(at, number);
        Mark { number, checksum, position: position + words }
    }

    /// Appends to `out` the payload of the record that follows `mark`, if there is one.
    pub(super) fn read(&self, mark: Mark, out: &mut Vec<u8>) -> Option<Mark> {
        let begin = out.len();
        for position in [mark.position, self.next_lap(mark.position)] {
            if let Some(next) = self.read_at(mark, position, out) {
                return Some(next);
            }
            out.truncate(begin);
        }
        None
    }

    fn read_at(&self, mark: Mark, position: u64, out: &mut Vec<u8>) -> Option<Mark> {
        let offset = position % self.capacity;
        let room = (self.capacity - offset).checked_sub(RECORD_WORDS)?;
        let at = HEADER_WORDS + offset as usize;
        let (number, bytes, checksum) =
            (self.words.load(at), self.words.load(at + 1), self.words.load(at + 2));
        if number != mark.number + 1 || bytes > room * 8 {
            return None;
        }
        let begin = out.len();
        self.words.copy_out(at + RECORD_WORDS as usize, bytes as usize, out);
        if chain(mark.checksum, number, &out[begin..]) != checksum {
            return None;
        }
        Some(Mark { number, checksum, position: position + record_words(bytes as usize) })
    }

    /// Makes the pages from one position to another writable, changing nothing: the first store to a page after writeback can
    /// block, and must not do so under the engine's mutex.
    pub(super) fn touch(&self, from: u64, to: u64) {
        let mut position = from;
        while position < to {
            self.words.fetch_add(HEADER_WORDS + (position % self.capacity) as usize, 0);
            position += 512;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(words: usize) -> Ring {
        Ring::new(Words::heap(HEADER_WORDS + words))
    }

    fn mark(seed: u64) -> Mark {
        Mark { number: 0, checksum: seed, position: 0 }
    }

    #[test]
    fn records_come_back_across_laps() {
        let ring = ring(64);
        let mut head = mark(1);
        let mut tail = mark(1);
        for i in 0..1_000usize {
            let payload = vec![i as u8; i * 7 % 100];
            head = ring.write(head, &payload);
            let mut out = b"x".to_vec();
            tail = ring.read(tail, &mut out).expect("the record just written");
            assert_eq!((&out[1..], tail), (&payload[..], head));
            assert!(ring.read(tail, &mut out).is_none());
            assert_eq!(out.len(), payload.len() + 1);
        }
    }

    #[test]
    fn zeros_and_half_written_records_are_no_records() {
        let ring = ring(64);
        assert!(ring.read(mark(0), &mut Vec::new()).is_none());
        let head = ring.write(mark(5), b"0123456789");
        for word in 0..5 {
            let before = ring.words.load(HEADER_WORDS + word);
            ring.words.store(HEADER_WORDS + word, before ^ 4);
            assert!(ring.read(mark(5), &mut Vec::new()).is_none(), "word {word}");
            ring.words.store(HEADER_WORDS + word, before);
        }
        assert_eq!(ring.read(mark(5), &mut Vec::new()), Some(head));
    }

    #[test]
    fn an_earlier_history_never_continues_a_later_one() {
        // Power was lost with a hole at record 1; record 2 survived. The next run writes the very same record 1 again.
        let ring = ring(64);
        let old = ring.write(ring.write(mark(5), b"same"), b"old 2");
        let new = ring.write(mark(6), b"same");
        assert_eq!(ring.read(mark(6), &mut Vec::new()), Some(new));
        assert_ne!(new, old);
        assert_eq!(ring.read(new, &mut Vec::new()), None);
    }
}
