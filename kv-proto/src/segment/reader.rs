//! Reading: a few loads, a copy, and the proof that the copy is of one piece. Nothing is ever written.
//!
//! The steps R0-R5 and why they suffice are in `mod.rs`. Works over memory that a daemon is writing, and over memory that
//! somebody hostile has made: every length is checked against the layout, every loop is bounded.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::control::{Control, SegmentState, Time};
use super::error::AttachError;
use super::item::{Freshness, Front, Head, Life, Meta, Place};
use super::layout::{Geometry, H_INDEX_COMPLETE, H_SEED, H_STATE, H_TAIL, Ring, SLOTS, Slot, bucket, slot};
use super::stamps::{self, NotYet};
use super::sync::{Ordering, fence};
use super::words::{View, Words, words_for};
use crate::{BootMs, Version, hash_key};

/// How often a read starts before it gives up.
const STARTS_MAX: usize = if cfg!(loom) { 2 } else { 8 };

/// Lines of an item fetched ahead: an item of some 600 bytes. Its length lies in its first line, and to wait for that
/// before asking for the others is another wait as long. Fetching too many was not seen to cost small items anything.
const PREFETCH_LINES: usize = 10;
const LINE_WORDS: usize = 8;

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An item, fresh or stale; its bytes are in the buffer.
    Hit(Meta),
    /// There is no such item, for certain.
    Miss,
    /// Memory cannot tell; ask the daemon.
    Ask(Reason),
}

/// What [`Reader::value`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// It is in the buffer.
    Fresh(Place),
    /// There is an item, but it is stale.
    Stale(Place),
    /// There is none, for certain.
    None,
    /// Memory cannot tell; ask the daemon.
    Ask(Reason),
}

/// Why memory cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// On disk, not in memory.
    Mark,
    /// In the daemon's side store.
    Side,
    /// The bucket has forgotten a key.
    Forgot,
    /// Not all keys on disk are known yet.
    Incomplete,
    /// Overtaken by the writer too often.
    Lapped,
    /// The segment is superseded or closed, or the daemon does not seem to live.
    State,
}

/// One answer of `get_many`; `None`: no such item.
pub type ManyOutcome = Option<Meta>;

/// Reads a segment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    words: Arc<Words>,
    control: Arc<Control>,
    geometry: Geometry,
    seed: u64,
    /// Readers in the daemon itself need no heartbeat.
    checks_heartbeat: bool,
    overtaken: Arc<AtomicU64>,
}

/// Overtaken, or half of a commit: start over.
struct Again;

/// Before each start but the first, twice as long each time, all of them together some microseconds: about as long as to ask the
/// daemon, which may well be in the middle of the commit that is waited for.
#[inline]
fn back_off(attempt: usize) {
    (1..1_u32 << attempt).for_each(|_| spin_loop());
}

impl Reader {
    /// A reader of a segment that another process writes.
    ///
    /// # Errors
    /// When the header is not one this build reads.
    pub fn attach(control: Arc<Control>, words: Arc<Words>) -> Result<Reader, AttachError> {
        let geometry = Geometry::parse(&words)?;
        let seed = words.load(H_SEED);
        Ok(Reader { words, control, geometry, seed, checks_heartbeat: true, overtaken: Arc::default() })
    }

    pub(super) fn of_writer(
        control: Arc<Control>,
        words: Arc<Words>,
        geometry: Geometry,
        seed: u64,
    ) -> Reader {
        Reader { words, control, geometry, seed, checks_heartbeat: false, overtaken: Arc::default() }
    }

    /// The hash that the other calls want.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        hash_key(self.seed, key)
    }

    /// Looks a key up. On a hit `buffer` holds the item's bytes, else it is empty.
    pub fn get(&self, hash: u64, key: &[u8], time: impl Time, buffer: &mut Vec<u8>) -> Outcome {
        for attempt in 0..STARTS_MAX {
            back_off(attempt);
            buffer.clear();
            let committed = self.control.committed(); // R0
            if !self.is_usable(time) {
                return Outcome::Ask(Reason::State);
            }
            match self.look(hash, key, time, committed, Some(&self.control), buffer) {
                Ok(Outcome::Hit(meta)) => return Outcome::Hit(meta),
                Ok(outcome) => {
                    buffer.clear();
                    return outcome;
                }
                Err(Again) => {}
            }
        }
        buffer.clear();
        Outcome::Ask(Reason::Lapped)
    }

    /// As [`Reader::get`], for callers who want the fresh value and nothing else: it alone is left in `buffer`. Nothing else about
    /// the item is put together, so that the processor can begin with the next read while this one waits for memory.
    pub fn value(&self, hash: u64, key: &[u8], time: impl Time, buffer: &mut Vec<u8>) -> Value {
        for attempt in 0..STARTS_MAX {
            back_off(attempt);
            buffer.clear();
            let committed = self.control.committed(); // R0
            if !self.is_usable(time) {
                return Value::Ask(Reason::State);
            }
            let value = match self.look(hash, key, time, committed, Some(&self.control), buffer) {
                Ok(Outcome::Hit(meta)) if meta.freshness == Freshness::Fresh => {
                    buffer.truncate(meta.value.end);
                    return Value::Fresh(meta.place);
                }
                Ok(Outcome::Hit(meta)) => Value::Stale(meta.place),
                Ok(Outcome::Miss) => Value::None,
                Ok(Outcome::Ask(reason)) => Value::Ask(reason),
                Err(Again) => continue,
            };
            buffer.clear();
            return value;
        }
        buffer.clear();
        Value::Ask(Reason::Lapped)
    }

    /// Looks many keys up as of one sequence, which is given back. Items' bytes are appended to `buffer`, answers to `found`.
    ///
    /// # Errors
    /// When memory cannot tell for some key: then the daemon answers for all of them.
    pub fn get_many(
        &self,
        keys: &[(u64, &[u8])],
        time: impl Time,
        buffer: &mut Vec<u8>,
        found: &mut Vec<ManyOutcome>,
    ) -> Result<Version, Reason> {
        let words = self.words.view();
        for (hash, _) in keys {
            words.prefetch(self.geometry.bucket_at(self.geometry.bucket(*hash)));
        }
        for (hash, _) in keys {
            self.prefetch_item(*hash);
        }
        for attempt in 0..STARTS_MAX {
            back_off(attempt);
            buffer.clear();
            found.clear();
            let committed = self.control.committed(); // S: fixed for all keys
            if !self.is_usable(time) {
                return Err(Reason::State);
            }
            let mut is_whole = true;
            for (hash, key) in keys {
                let start = buffer.len();
                match self.look(*hash, key, time, committed, None, buffer) {
                    Ok(Outcome::Hit(meta)) => found.push(Some(meta)),
                    Ok(Outcome::Miss) => {
                        buffer.truncate(start);
                        found.push(None);
                    }
                    Ok(Outcome::Ask(reason)) => return Err(reason),
                    Err(Again) => {
                        is_whole = false;
                        break;
                    }
                }
            }
            if is_whole {
                return Ok(committed);
            }
        }
        Err(Reason::Lapped)
    }

    /// Whether an item read from elsewhere may be served. Call it where no commit can be under way.
    #[must_use]
    pub fn verdict(
        &self,
        life: &Life,
        tags: impl Iterator<Item = u32> + Clone,
        key: &[u8],
        now: BootMs,
    ) -> Freshness {
        (0..STARTS_MAX)
            .find_map(|_| {
                // Fails when a prefix entry was replaced while it was read, which says nothing about this item.
                let tags = tags.clone();
                stamps::verdict(self.words.view(), &self.geometry, life, tags, key, now, Version::MAX).ok()
            })
            .unwrap_or(Freshness::Gone)
    }

    /// Why this segment answers nothing now; `None`: it does.
    #[must_use]
    pub fn why_not(&self, time: impl Time) -> Option<&'static str> {
        let state = self.words.load(H_STATE);
        if state == SegmentState::Superseded.word() {
            Some("another segment has taken its place")
        } else if state != SegmentState::Live.word() {
            Some("the segment is closed")
        } else if self.checks_heartbeat && !self.control.is_live(time) {
            Some("the daemon has stopped or gives no sign of life")
        } else {
            None
        }
    }

    #[inline]
    fn is_usable(&self, time: impl Time) -> bool {
        let is_live = self.words.load(H_STATE) == SegmentState::Live.word();
        is_live && (!self.checks_heartbeat || self.control.is_live(time))
    }

    /// How often the writer has reused memory while it was being copied here; those reads started over.
    #[must_use]
    pub fn times_overtaken(&self) -> u64 {
        self.overtaken.load(Ordering::Relaxed)
    }

    #[cold]
    fn overtaken(&self) -> Again {
        self.overtaken.fetch_add(1, Ordering::Relaxed);
        Again
    }

    fn prefetch_item(&self, hash: u64) {
        let words = self.words.view();
        let at = self.geometry.bucket_at(self.geometry.bucket(hash));
        for i in 0..SLOTS {
            let word = words.load(at + i);
            if slot::has_tag(word, hash)
                && let Slot::At(ring, position) = slot::kind(word)
            {
                let at = self.at(ring, position);
                (0..PREFETCH_LINES).for_each(|line| words.prefetch(at + line * LINE_WORDS));
            }
        }
    }

    #[inline]
    fn at(&self, ring: Ring, position: u64) -> usize {
        self.geometry.ring_at(ring) + self.geometry.offset(ring, position)
    }

    /// One try. `renew`: where to get a newer `committed` once, for single reads.
    // Inlined into its two callers, or an answer of a hundred bytes is copied twice more on its way out.
    #[inline(always)]
    fn look(
        &self,
        hash: u64,
        key: &[u8],
        time: impl Time,
        mut committed: Version,
        mut renew: Option<&Control>,
        buffer: &mut Vec<u8>,
    ) -> Result<Outcome, Again> {
        let words = self.words.view();
        let bucket = self.geometry.bucket(hash);
        let bucket_at = self.geometry.bucket_at(bucket);
        let slots: [u64; SLOTS] = words.load_some(bucket_at); // R1
        let mut matches = slot::with_tag(&slots, hash);
        while matches != 0 {
            let i = matches.trailing_zeros() as usize;
            matches &= matches - 1;
            let word = slots[i];
            if word == 0 {
                continue;
            }
            // SYNC(publish): pairs with W2.
            fence(Ordering::Acquire); // MUTANT(slot-fence)
            let Some((ring, position)) = slot::item(word) else {
                if !slot::mark_is(word, hash) {
                    continue;
                }
                let is_side = slot::kind(word) == Slot::Ask;
                return Ok(Outcome::Ask(if is_side { Reason::Side } else { Reason::Mark }));
            };
            let start = buffer.len();
            let Some((front, bytes)) = self.copy(words, ring, position, key, buffer)? else {
                buffer.truncate(start);
                continue; // R3: another key
            };
            if front.version > committed {
                if let Some(control) = renew.take() {
                    committed = control.committed();
                }
                if front.version > committed {
                    return Err(Again);
                }
            }
            let life = front.life();
            let verdict =
                stamps::verdict(words, &self.geometry, &life, front.tag_slots(), key, time, committed);
            let freshness = verdict.map_err(|NotYet| Again)?; // R4
            if freshness != Freshness::Fresh || stamps::consults_prefixes(words, front.version) {
                // An untagging or refreshing put may have swung the slot before the stamp: then this was not the newest.
                // Or the item was cleared by a prefix and is out of the index, and the prefix was forgotten after that.
                fence(Ordering::Acquire);
                if words.load(bucket_at + i) != word {
                    return Err(Again); // MUTANT(gone-recheck)
                }
            }
            if freshness == Freshness::Gone {
                return Ok(Outcome::Miss);
            }
            return Ok(Outcome::Hit(front.meta(start, bytes, freshness, Place { bucket, slot: i })));
        }
        self.miss(bucket_at, committed)
    }

    /// R5: no slot matched. Whether that means there is no such item.
    fn miss(&self, bucket_at: usize, committed: Version) -> Result<Outcome, Again> {
        fence(Ordering::Acquire); // MUTANT(miss-fence)
        let word = self.words.load(bucket_at + SLOTS);
        if bucket::removed(word) > committed {
            return Err(Again); // MUTANT(removed-check)
        }
        let complete = self.words.load(H_INDEX_COMPLETE);
        Ok(if bucket::forgot(word) {
            Outcome::Ask(Reason::Forgot)
        } else if complete == 0 || complete > committed {
            Outcome::Ask(Reason::Incomplete)
        } else {
            Outcome::Miss
        })
    }

    /// R2: copies value, key and tags to the end of `buffer`; `None` when it is another key's item.
    #[inline(always)]
    fn copy(
        &self,
        words: View<'_>,
        ring: Ring,
        position: u64,
        key: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<Option<(Front, usize)>, Again> {
        let ring_words = self.geometry.ring_words(ring);
        let offset = self.geometry.offset(ring, position);
        let at = self.geometry.ring_at(ring) + offset;
        // The lengths are in its first word: without this the rest would be waited for one line after the other.
        (1..PREFETCH_LINES).for_each(|line| words.prefetch(at + line * LINE_WORDS));
        let head = Head::new(words.load(at));
        if !head.is_plausible() || offset + head.head_words() > ring_words {
            return Err(Again);
        }
        if head.key_bytes() != key.len() {
            self.validate(words, ring, position)?;
            return Ok(None);
        }
        let front = Front::read(head, |i| words.load(at + i));
        let bytes = front.payload_bytes().ok_or(Again)?;
        if offset + head.head_words() + words_for(bytes) > ring_words {
            return Err(Again);
        }
        let start = buffer.len();
        words.copy_out(at + head.head_words(), bytes, buffer);
        self.validate(words, ring, position)?;
        let key_at = start + head.value_bytes();
        Ok(same(&buffer[key_at..][..key.len()], key).then_some((front, bytes)))
    }

    /// Whether what was read at `position` was still the item when it had been read.
    #[inline]
    fn validate(&self, words: View<'_>, ring: Ring, position: u64) -> Result<(), Again> {
        // SYNC(ring-tail): pairs with W1. If any word came from a later lap, this makes the tail of that lap visible.
        fence(Ordering::Acquire); // MUTANT(tail-fence)
        if words.load(H_TAIL[ring as usize]) > position {
            return Err(self.overtaken()); // MUTANT(tail-check)
        }
        Ok(())
    }
}

/// Whether two slices are equal. Keys are short: a call of the library's comparison costs more than they do.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    if b.len() < 8 || a.len() != b.len() {
        return a == b;
    }
    let ((words_a, _), (words_b, _)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut differs = 0;
    for (x, y) in words_a.iter().zip(words_b) {
        differs |= u64::from_ne_bytes(*x) ^ u64::from_ne_bytes(*y);
    }
    // The rest, with the end of what was compared already.
    let last = |bytes: &[u8]| bytes.last_chunk().map(|chunk| u64::from_ne_bytes(*chunk));
    differs == 0 && last(a) == last(b)
}
