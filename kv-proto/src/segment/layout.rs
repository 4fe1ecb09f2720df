//! Where everything lies in a segment, in words of eight bytes. The drawing is here and nowhere else.
//!
//! ```text
//! word 0      magic, layout version, words in all, hash seed, backed by disk, buckets, tag slots,
//!             where tags, index and the two rings begin and how long the rings are
//! word 16     state: live, superseded, closed
//! word 24     index_complete, clear stamp, stale stamp, newest tag stamp, newest prefix stamp
//! word 32     probation: tail, head
//! word 40     main: tail, head
//! word 64     prefix clears: per entry stamp, length << 1 | stale, then 128 words of prefix
//!             tag table: per slot gone stamp, stale stamp
//!             index: per bucket seven slots and the bucket word
//!             probation ring, main ring
//! ```
//!
//! A slot: `kind:2 | tag:16 | position:46`; kind 0 probation, 1 main, 2 disk mark, 3 ask mark; a mark holds hash bits
//! 16..62 instead of a position. Zero is empty: positions begin at one lap. A bucket word: `removed_seq:62 | forgot:1`.

use std::ops::Range;

use super::error::{AttachError, check_front};
use super::words::{WORD_BYTES, Words};
use crate::limits;

/// The first word of every segment: "kvd-seg" and a zero.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"kvd-seg\0");
/// The version of a segment's layout, in its second word; raised whenever a word means something else.
pub const LAYOUT_VERSION: u64 = 1;

pub(super) const H_MAGIC: usize = 0;
pub(super) const H_VERSION: usize = 1;
pub(super) const H_WORDS: usize = 2;
pub(super) const H_SEED: usize = 3;
pub(super) const H_BACKED: usize = 4;
pub(super) const H_BUCKETS: usize = 5;
pub(super) const H_TAG_SLOTS: usize = 6;
pub(super) const H_RING_WORDS: [usize; 2] = [7, 8];
pub(super) const H_STATE: usize = 16;
pub(super) const H_INDEX_COMPLETE: usize = 24;
pub(super) const H_CLEAR: usize = 25;
pub(super) const H_STALE: usize = 26;
pub(super) const H_NEWEST_TAG: usize = 27;
pub(super) const H_NEWEST_PREFIX: usize = 28;
pub(super) const H_TAIL: [usize; 2] = [32, 40];
pub(super) const PREFIXES_AT: usize = 64;
pub(super) const PREFIX_WORDS: usize = 2 + limits::KEY_BYTES_MAX / WORD_BYTES;
pub(super) const TAGS_AT: usize = PREFIXES_AT + limits::PREFIX_CLEARS_MAX * PREFIX_WORDS;
/// Slots of a bucket; the eighth word is the bucket's own.
pub(super) const SLOTS: usize = 7;
pub(super) const BUCKET_WORDS: usize = SLOTS + 1;

const _: () = assert!(TAGS_AT.is_multiple_of(BUCKET_WORDS), "buckets begin on cache lines");

/// Probation has one part in this many of the rings' bytes (S3-FIFO's small queue). More of it is better for the recorded
/// traces at their smallest sizes and when hits are lost, less of it for Zipf's law without any memory: a tenth fell
/// behind LRU at 1 % of `orm-busy`.
const PROBATION_SHARE: usize = 8;
/// The largest item of main is this fraction of it; a gap of that size stays free.
const ITEM_SHARE: usize = if cfg!(loom) { 4 } else { 16 };
/// The largest item of probation is this fraction of it; what is larger goes straight to main, where it is not weeded out.
const PROBATION_ITEM_SHARE: usize = 4;
/// Then main takes whatever probation takes.
const _: () = assert!(PROBATION_ITEM_SHARE * (PROBATION_SHARE - 1) >= 16 || cfg!(loom));
/// Items a bucket when it is filled as planned: of seven slots, so that overflow is rare: it displaces 0.6 % of the items.
const ITEMS_A_BUCKET: f64 = 3.2;
/// Without a better guess the index has this fraction of the budget: right for items of some 400 bytes.
const INDEX_SHARE: usize = 16;

/// The two rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Probation = 0,
    Main = 1,
}

pub(super) const RINGS: [Ring; 2] = [Ring::Probation, Ring::Main];

/// How a byte budget is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    buckets: usize,
    tag_slots: usize,
    ring_words: [usize; 2],
    // What every read needs, computed once from the sizes above.
    index_at: usize,
    ring_at: [usize; 2],
    /// 2^64 / ring words, rounded down: dividing by a multiplication.
    ring_inverse: [u64; 2],
}

impl Geometry {
    /// How many items of a mean size fit this memory if each has its part of the index too.
    pub(super) fn items_of(&self, mean_words: usize) -> u64 {
        let words = self.words() - self.index_at;
        (words as f64 / (mean_words as f64 + BUCKET_WORDS as f64 / ITEMS_A_BUCKET)) as u64
    }

    /// Divides `memory_bytes` for about `items` items and marks; 0: nobody knows yet.
    #[must_use]
    pub fn new(memory_bytes: u64, items: u64) -> Geometry {
        let words = (memory_bytes as usize).max(256 << 10) / WORD_BYTES;
        let tag_slots = (words / 128).next_power_of_two().clamp(1 << 9, limits::TAG_SLOTS_MAX) / 2;
        let planned = (items as f64 / ITEMS_A_BUCKET) as usize;
        let unknown = words / INDEX_SHARE / BUCKET_WORDS;
        let most = words / 2 / BUCKET_WORDS;
        let buckets = if items == 0 { unknown } else { planned.max(unknown) }.min(most).next_multiple_of(4);
        let rest = words.saturating_sub(TAGS_AT + tag_slots * 2 + buckets * BUCKET_WORDS);
        let probation = (rest / PROBATION_SHARE / BUCKET_WORDS * BUCKET_WORDS).max(BUCKET_WORDS);
        let main = ((rest - probation) / BUCKET_WORDS * BUCKET_WORDS).max(BUCKET_WORDS);
        Geometry::of(buckets, tag_slots, [probation, main])
    }

    /// A geometry of exact sizes, for models and tests: buckets a multiple of 4, tag slots a power of two.
    #[must_use]
    pub fn exact(buckets: usize, tag_slots: usize, probation_words: usize, main_words: usize) -> Geometry {
        assert!(buckets.is_multiple_of(4) && tag_slots.is_power_of_two());
        Geometry::of(buckets, tag_slots, [probation_words, main_words])
    }

    fn of(buckets: usize, tag_slots: usize, ring_words: [usize; 2]) -> Geometry {
        let index_at = TAGS_AT + tag_slots * 2;
        let probation = index_at + buckets * BUCKET_WORDS;
        let inverse = |words: usize| ((1_u128 << 64) / words.max(2) as u128) as u64;
        Geometry {
            buckets,
            tag_slots,
            ring_words,
            index_at,
            ring_at: [probation, probation + ring_words[0]],
            ring_inverse: ring_words.map(inverse),
        }
    }

    /// What a foreign header says, if it fits its memory.
    pub(super) fn parse(words: &Words) -> Result<Geometry, AttachError> {
        if words.len() < TAGS_AT {
            return Err(AttachError::Geometry("it is shorter than its header"));
        }
        check_front("segment", words.load(H_MAGIC), MAGIC, words.load(H_VERSION), LAYOUT_VERSION)?;
        let read = |at: usize| {
            let count = usize::try_from(words.load(at)).ok().filter(|&count| count <= words.len());
            count.ok_or(AttachError::Geometry("a count is larger than the mapping"))
        };
        let ring_words = [read(H_RING_WORDS[0])?, read(H_RING_WORDS[1])?];
        let geometry = Geometry::of(read(H_BUCKETS)?, read(H_TAG_SLOTS)?, ring_words);
        let fits = geometry.words() <= words.len()
            && geometry.words() as u64 == words.load(H_WORDS)
            && geometry.buckets > 0
            && geometry.buckets.is_multiple_of(4)
            && geometry.tag_slots.is_power_of_two()
            && geometry.tag_slots <= limits::TAG_SLOTS_MAX
            && geometry.ring_words.iter().all(|&ring| ring > 1);
        fits.then_some(geometry).ok_or(AttachError::Geometry("its sizes do not add up"))
    }

    /// Bytes of a segment of this geometry.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.words() * WORD_BYTES
    }

    /// Bytes of both rings together.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.ring_words.iter().sum::<usize>() * WORD_BYTES
    }

    pub(super) fn words(&self) -> usize {
        self.ring_at(Ring::Main) + self.ring_words[1]
    }

    /// Buckets of its index.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    pub(super) fn tag_slots(&self) -> usize {
        self.tag_slots
    }

    #[inline]
    pub(super) fn ring_at(&self, ring: Ring) -> usize {
        self.ring_at[ring as usize]
    }

    /// Where a position lies in its ring: its remainder.
    #[inline]
    pub(super) fn offset(&self, ring: Ring, position: u64) -> usize {
        let words = self.ring_words[ring as usize] as u64;
        // The inverse is too small by less than one, so that the quotient is by at most one.
        let quotient = ((u128::from(position) * u128::from(self.ring_inverse[ring as usize])) >> 64) as u64;
        let remainder = position - quotient * words;
        (if remainder >= words { remainder - words } else { remainder }) as usize
    }

    #[inline]
    pub(super) fn ring_words(&self, ring: Ring) -> usize {
        self.ring_words[ring as usize]
    }

    /// Words of the largest item a ring takes.
    pub(super) fn item_words_max(&self, ring: Ring) -> usize {
        match ring {
            Ring::Probation => self.ring_words(ring) / PROBATION_ITEM_SHARE,
            Ring::Main => self.ring_words(ring) / ITEM_SHARE,
        }
    }

    /// Bytes of the largest item, header included, that memory takes.
    #[must_use]
    pub fn item_bytes_max(&self) -> usize {
        self.item_words_max(Ring::Main) * WORD_BYTES
    }

    /// The bucket of a hash: its high bits, scaled, so that buckets are in hash order whatever their number.
    #[inline]
    pub(super) fn bucket(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets as u128) >> 64) as usize
    }

    #[inline]
    pub(super) fn bucket_at(&self, bucket: usize) -> usize {
        self.index_at + bucket * BUCKET_WORDS
    }

    pub(super) fn tag_at(&self, tag_slot: u32) -> usize {
        TAGS_AT + (tag_slot as usize & (self.tag_slots - 1)) * 2
    }

    pub(super) fn prefix_at(entry: usize) -> usize {
        PREFIXES_AT + entry * PREFIX_WORDS
    }

    /// The words of the header that never change.
    pub(super) fn constants(&self, seed: u64, on_disk: bool) -> [(usize, u64); 9] {
        [
            (H_VERSION, LAYOUT_VERSION),
            (H_WORDS, self.words() as u64),
            (H_SEED, seed),
            (H_BACKED, u64::from(on_disk)),
            (H_BUCKETS, self.buckets as u64),
            (H_TAG_SLOTS, self.tag_slots as u64),
            (H_RING_WORDS[0], self.ring_words[0] as u64),
            (H_RING_WORDS[1], self.ring_words[1] as u64),
            (H_MAGIC, MAGIC),
        ]
    }

    pub(super) fn prefix_bytes_at(entry: usize) -> Range<usize> {
        let at = Geometry::prefix_at(entry) + 2;
        at..at + PREFIX_WORDS - 2
    }
}

const TAG_BITS: u32 = 16;
const POSITION_BITS: u32 = 46;
const POSITION_MASK: u64 = (1 << POSITION_BITS) - 1;
/// Positions end here, after 563 TB: the writer wants a successor when half of them are used.
pub(super) const POSITIONS_MAX: u64 = POSITION_MASK;

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    At(Ring, u64),
    Disk,
    Ask,
}

/// A slot word.
pub(super) mod slot {
    use super::{POSITION_BITS, POSITION_MASK, Ring, Slot, TAG_BITS};

    pub(in super::super) fn at(ring: Ring, hash: u64, position: u64) -> u64 {
        assert!(position <= POSITION_MASK, "a segment is superseded long before its positions run out");
        (ring as u64) << 62 | tag(hash) << POSITION_BITS | position
    }

    pub(in super::super) fn mark(kind: Slot, hash: u64) -> u64 {
        let kind = match kind {
            Slot::Disk => 2,
            Slot::Ask => 3,
            Slot::At(..) => unreachable!("a position is no mark"),
        };
        kind << 62 | tag(hash) << POSITION_BITS | hash >> TAG_BITS & POSITION_MASK
    }

    /// The tag of a hash: its low bits.
    #[inline]
    pub(in super::super) fn tag(hash: u64) -> u64 {
        hash & ((1 << TAG_BITS) - 1)
    }

    /// Whether a slot word is not empty and has this hash's tag.
    #[inline]
    pub(in super::super) fn has_tag(word: u64, hash: u64) -> bool {
        word != 0 && (word >> POSITION_BITS & ((1 << TAG_BITS) - 1) == tag(hash))
    }

    /// A bit for each slot that has this hash's tag, or perhaps is empty. Without branches: which slot it is cannot be foreseen.
    #[inline]
    pub(in super::super) fn with_tag<const N: usize>(slots: &[u64; N], hash: u64) -> u32 {
        let wanted = tag(hash) << POSITION_BITS;
        let tags = ((1 << TAG_BITS) - 1) << POSITION_BITS;
        let mut bits = 0;
        for (i, word) in slots.iter().enumerate() {
            bits |= u32::from((word ^ wanted) & tags == 0) << i;
        }
        bits
    }

    /// Ring and position of an item; `None` for a mark. One branch: which ring it is cannot be foreseen either.
    #[inline]
    pub(in super::super) fn item(word: u64) -> Option<(Ring, u64)> {
        let ring = if word >> 62 & 1 == 0 { Ring::Probation } else { Ring::Main };
        (word >> 63 == 0).then_some((ring, word & POSITION_MASK))
    }

    #[inline]
    pub(in super::super) fn kind(word: u64) -> Slot {
        match word >> 62 {
            0 => Slot::At(Ring::Probation, word & POSITION_MASK),
            1 => Slot::At(Ring::Main, word & POSITION_MASK),
            2 => Slot::Disk,
            _ => Slot::Ask,
        }
    }

    /// Whether a mark stands for this hash (its tag was compared already).
    #[inline]
    pub(in super::super) fn mark_is(word: u64, hash: u64) -> bool {
        word & POSITION_MASK == hash >> TAG_BITS & POSITION_MASK
    }

    /// The whole hash of a mark in `bucket` of `buckets`: the two highest bits are those of its bucket.
    pub(in super::super) fn mark_hash(word: u64, bucket: usize, buckets: usize) -> u64 {
        let high = (bucket * 4 / buckets) as u64;
        high << 62 | (word & POSITION_MASK) << TAG_BITS | word >> POSITION_BITS & ((1 << TAG_BITS) - 1)
    }
}

/// A bucket word.
pub(super) mod bucket {
    /// Some key of this bucket has no slot though the disk may hold it.
    pub(in super::super) const FORGOT: u64 = 1;

    pub(in super::super) fn word(removed: u64, flags: u64) -> u64 {
        removed << 2 | flags
    }

    #[inline]
    pub(in super::super) fn removed(word: u64) -> u64 {
        word >> 2
    }

    #[inline]
    pub(in super::super) fn forgot(word: u64) -> bool {
        word & FORGOT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_gives_its_whole_hash_back() {
        for buckets in [4, 12, 1_000, 65_536] {
            let geometry = Geometry::exact(buckets, 2, 64, 64);
            for i in 0..10_000_u64 {
                let hash = crate::hash_key(7, &i.to_le_bytes());
                let word = slot::mark(Slot::Disk, hash);
                assert!(slot::has_tag(word, hash) && slot::mark_is(word, hash));
                assert_eq!(slot::mark_hash(word, geometry.bucket(hash), buckets), hash);
            }
        }
    }

    #[test]
    fn a_position_lies_at_its_remainder() {
        let mut random = fastrand::Rng::with_seed(7);
        for words in [2, 3, 8, 12, 1_000, 4_099, 1 << 20, (1 << 27) + 8, (1 << 36) - 8] {
            let geometry = Geometry::of(4, 2, [words, words]);
            let near = (0..40).flat_map(|lap| [lap * words as u64, lap * words as u64 + words as u64 - 1]);
            let far = (0..10_000).map(|_| random.u64(..=POSITIONS_MAX));
            for position in near.chain(far).chain([POSITIONS_MAX, 0, 1]) {
                assert_eq!(geometry.offset(Ring::Main, position) as u64, position % words as u64);
            }
        }
    }

    #[test]
    fn a_geometry_fits_its_budget_and_is_read_back() {
        for bytes in [256 << 10, 1 << 20, 5_000_000, 64 << 20, 256 << 20] {
            for items in [0, 1_000, 100_000, 10_000_000] {
                let geometry = Geometry::new(bytes, items);
                assert!(geometry.bytes() as u64 <= bytes + 64, "{geometry:?} in {bytes}");
                assert!(geometry.bytes() as u64 > bytes / 100 * 98, "{geometry:?} in {bytes}");
            }
        }
        let geometry = Geometry::new(1 << 20, 0);
        let words = Words::heap(geometry.words());
        for (at, value) in geometry.constants(9, true) {
            words.store(at, value);
        }
        assert_eq!(Geometry::parse(&words).unwrap(), geometry);
        words.store(H_BUCKETS, 1 << 40);
        assert!(matches!(Geometry::parse(&words), Err(AttachError::Geometry(_))));
        words.store(H_VERSION, 2);
        assert!(matches!(Geometry::parse(&words), Err(AttachError::Layout { found: 2, .. })));
        words.store(H_MAGIC, 2);
        assert!(matches!(Geometry::parse(&words), Err(AttachError::Magic { .. })));
    }
}
