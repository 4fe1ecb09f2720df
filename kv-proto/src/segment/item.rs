//! An item as it lies in a ring, and the copies made of it.
//!
//! ```text
//! word 0  key bytes:11 | value bytes:25 | tags:4 | flags:4 | created, 64 s steps:20
//! word 1  version
//! then    expires, created                 if it has a life      (milliseconds of CLOCK_BOOTTIME, signed)
//!         stale_for ms:42 | load cost ms:22  if either is not zero
//!         tag bytes:16, tag slots:16 each   if it has tags
//! then    value, key, per tag a length byte and the tag; padded to a word
//! ```
//! A filler is a word 0 with its flag: the rest of the lap is empty.

use std::ops::Range;

use super::layout::{BUCKET_WORDS, Ring};
use super::words::{WORD_BYTES, words_for};
use crate::limits;
use crate::{BootMs, Version, tag_slot};

const KEY_BITS: u32 = 11;
const VALUE_BITS: u32 = 25;
const TAGS_AT_BIT: u32 = KEY_BITS + VALUE_BITS;
const FLAGS_AT_BIT: u32 = TAGS_AT_BIT + 4;
const CREATED_AT_BIT: u32 = FLAGS_AT_BIT + 4;
const CREATED_MAX: i64 = (1 << (64 - CREATED_AT_BIT)) - 1;
/// An item without a life knows when it was made to about a minute; that costs it no word.
const CREATED_STEP_MS: i64 = 1 << 16;
const STALE_FOR_BITS: u32 = 42;
const LOAD_COST_MAX: u64 = (1 << (64 - STALE_FOR_BITS)) - 1;

const HAS_LIFE: u64 = 1 << FLAGS_AT_BIT;
const HAS_EXTRA: u64 = 2 << FLAGS_AT_BIT;
const IS_STALE: u64 = 4 << FLAGS_AT_BIT;
const IS_FILLER: u64 = 8 << FLAGS_AT_BIT;

/// Words before the payload, at most.
pub(super) const HEAD_WORDS_MAX: usize = 5 + TAG_WORDS_MAX;
const TAG_WORDS_MAX: usize = 3;
const _: () = assert!(TAG_WORDS_MAX == (limits::TAGS_MAX + 1).div_ceil(4));
const TAG_BYTES_MAX: usize = limits::TAGS_MAX * (limits::TAG_BYTES_MAX + 1);
/// The word that fills the rest of a lap.
pub(super) const FILLER: u64 = IS_FILLER;

const _: () = assert!(limits::KEY_BYTES_MAX < 1 << KEY_BITS);
const _: () = assert!(limits::VALUE_BYTES_MAX < 1 << VALUE_BITS);
const _: () = assert!(limits::TAGS_MAX < 16 && limits::TAG_BYTES_MAX < 256);
const _: () = assert!(limits::TTL_MS_MAX < 1 << STALE_FOR_BITS);
const _: () = assert!(limits::TAG_SLOTS_MAX <= 1 << 16 && TAG_BYTES_MAX < 1 << 16);

/// An item to be put into memory.
#[derive(Debug, Clone, Copy)]
pub struct NewItem<'a> {
    /// 1 to 1,024 bytes.
    pub key: &'a [u8],
    /// Up to 16 MiB.
    pub value: &'a [u8],
    /// The sequence that wrote it.
    pub version: Version,
    /// When it was put.
    pub created: BootMs,
    /// When it expires; `None`: never.
    pub expires: Option<BootMs>,
    /// How long after that it may be served as stale, in milliseconds.
    pub stale_for_ms: u64,
    /// What it cost to make, in milliseconds.
    pub load_cost_ms: u32,
    /// Made stale by `expire`.
    pub stale: bool,
    /// At most eight, of at most 64 bytes.
    pub tags: &'a [&'a [u8]],
}

/// What decides whether an item lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The sequence that wrote it.
    pub version: Version,
    /// When it expires; `None`: never.
    pub expires: Option<BootMs>,
    /// How long after that it may be served as stale, in milliseconds.
    pub stale_for_ms: u64,
    /// Made stale by `expire`.
    pub stale: bool,
}

/// Whether an item may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Yes.
    Fresh,
    /// As stale only: past its expiry but within its stale life, or made stale.
    Stale,
    /// No: past all life, or cleared.
    Gone,
}

/// A slot of the index, for [`Hits`](super::Hits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) bucket: usize,
    pub(super) slot: usize,
}

impl Place {
    /// As a client tells it; `None` in an index so large that it has no number.
    #[inline]
    #[must_use]
    pub fn number(self) -> Option<u32> {
        u32::try_from(self.bucket * BUCKET_WORDS + self.slot).ok()
    }

    /// The slot of this number; one that no index has is nobody's ([`Hits::touch`](super::Hits::touch) ignores it).
    #[must_use]
    pub fn of(number: u32) -> Place {
        Place { bucket: number as usize / BUCKET_WORDS, slot: number as usize % BUCKET_WORDS }
    }
}

/// What was found, beside the bytes copied into the caller's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The sequence that wrote it.
    pub version: Version,
    /// When it was put; to about a minute for items that never expire.
    pub created: BootMs,
    /// When it expires; `None`: never.
    pub expires: Option<BootMs>,
    /// How long after that it may be served as stale, in milliseconds.
    pub stale_for_ms: u64,
    /// What it cost to make, in milliseconds.
    pub load_cost_ms: u32,
    /// Made stale by `expire`.
    pub stale: bool,
    /// Whether it may be served now.
    pub freshness: Freshness,
    /// Its slot.
    pub place: Place,
    pub(super) value: Range<usize>,
    pub(super) key_bytes: usize,
    pub(super) end: usize,
}

impl Meta {
    /// The value, in the buffer it was read into.
    #[must_use]
    pub fn value<'b>(&self, buffer: &'b [u8]) -> &'b [u8] {
        &buffer[self.value.clone()]
    }

    /// Where the value lies in the buffer it was read into.
    #[must_use]
    pub fn value_range(&self) -> Range<usize> {
        self.value.clone()
    }

    /// The key.
    #[must_use]
    pub fn key<'b>(&self, buffer: &'b [u8]) -> &'b [u8] {
        &buffer[self.value.end..self.value.end + self.key_bytes]
    }

    /// The tags.
    pub fn tags<'b>(&self, buffer: &'b [u8]) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        let mut rest = buffer.get(self.value.end + self.key_bytes..self.end).unwrap_or_default();
        std::iter::from_fn(move || {
            let (&bytes, tail) = rest.split_first()?;
            let (tag, tail) = tail.split_at_checked(usize::from(bytes))?;
            rest = tail;
            Some(tag)
        })
    }

    /// The item to be put again, from the buffer it was read into and its tags.
    #[must_use]
    pub fn as_new<'b>(&self, buffer: &'b [u8], tags: &'b [&'b [u8]]) -> NewItem<'b> {
        NewItem {
            key: self.key(buffer),
            value: self.value(buffer),
            version: self.version,
            created: self.created,
            expires: self.expires,
            stale_for_ms: self.stale_for_ms,
            load_cost_ms: self.load_cost_ms,
            stale: self.stale,
            tags,
        }
    }

    /// What decides whether it lives.
    #[must_use]
    pub fn life(&self) -> Life {
        Life {
            version: self.version,
            expires: self.expires,
            stale_for_ms: self.stale_for_ms,
            stale: self.stale,
        }
    }
}

/// The first word of an item, taken apart. Every field is bounded whatever the word was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head(u64);

impl Head {
    pub(super) fn new(word: u64) -> Head {
        Head(word)
    }

    pub(super) fn is_filler(self) -> bool {
        self.0 & IS_FILLER != 0
    }

    #[inline]
    pub(super) fn key_bytes(self) -> usize {
        (self.0 & ((1 << KEY_BITS) - 1)) as usize
    }

    #[inline]
    pub(super) fn value_bytes(self) -> usize {
        (self.0 >> KEY_BITS & ((1 << VALUE_BITS) - 1)) as usize
    }

    #[inline]
    pub(super) fn tags(self) -> usize {
        (self.0 >> TAGS_AT_BIT & 15) as usize
    }

    #[inline]
    pub(super) fn is_stale(self) -> bool {
        self.0 & IS_STALE != 0
    }

    #[inline]
    pub(super) fn has_life(self) -> bool {
        self.0 & HAS_LIFE != 0
    }

    #[inline]
    pub(super) fn has_extra(self) -> bool {
        self.0 & HAS_EXTRA != 0
    }

    fn created(self) -> BootMs {
        (self.0 >> CREATED_AT_BIT) as i64 * CREATED_STEP_MS
    }

    /// Whether there is nothing but the version between head and payload: no life, no stale life, no tag.
    #[inline]
    fn is_plain(self) -> bool {
        self.0 & (HAS_LIFE | HAS_EXTRA | 15 << TAGS_AT_BIT) == 0
    }

    /// Words before the payload.
    #[inline]
    pub(super) fn head_words(self) -> usize {
        if self.is_plain() {
            return 2;
        }
        2 + 2 * usize::from(self.has_life()) + usize::from(self.has_extra()) + tag_words(self.tags())
    }

    /// Whether these are lengths that an item can have.
    #[inline]
    pub(super) fn is_plausible(self) -> bool {
        !self.is_filler()
            && self.key_bytes() >= 1
            && self.key_bytes() <= limits::KEY_BYTES_MAX
            && self.value_bytes() <= limits::VALUE_BYTES_MAX
            && self.tags() <= limits::TAGS_MAX
    }
}

/// The words before the payload, read once and not yet validated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    pub(super) head: Head,
    pub(super) version: Version,
    life: [u64; 2],
    extra: u64,
    /// Units of 16 bits: the bytes of all tags, then a slot each.
    tag_units: [u64; TAG_WORDS_MAX],
}

impl Front {
    /// Reads word by word; `load(i)` loads word `i` of the item.
    #[inline]
    pub(super) fn read(head: Head, load: impl Fn(usize) -> u64) -> Front {
        let mut front =
            Front { head, version: load(1), life: [0; 2], extra: 0, tag_units: [0; TAG_WORDS_MAX] };
        if head.is_plain() {
            return front;
        }
        let mut at = 2;
        if head.has_life() {
            front.life = [load(2), load(3)];
            at = 4;
        }
        if head.has_extra() {
            front.extra = load(at);
            at += 1;
        }
        // No loop and no index that is not a constant: so that all of this stays in registers.
        let count = tag_words(head.tags());
        if count > 0 {
            front.tag_units[0] = load(at);
        }
        if count > 1 {
            front.tag_units[1] = load(at + 1);
        }
        if count > 2 {
            front.tag_units[2] = load(at + 2);
        }
        front
    }

    pub(super) fn life(&self) -> Life {
        Life {
            version: self.version,
            expires: self.head.has_life().then_some(self.life[0] as i64),
            stale_for_ms: self.extra & ((1 << STALE_FOR_BITS) - 1),
            stale: self.head.is_stale(),
        }
    }

    /// The slots of its tags in the largest tag table.
    pub(super) fn tag_slots(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=self.head.tags().min(limits::TAGS_MAX)).map(|i| u32::from(self.tag_unit(i)))
    }

    #[inline]
    fn tag_unit(&self, i: usize) -> u16 {
        let [first, second, third] = self.tag_units;
        let word = match i / 4 {
            0 => first,
            1 => second,
            _ => third,
        };
        (word >> (16 * (i % 4))) as u16
    }

    /// Bytes of value, key and tags; `None`: no item has so many.
    #[inline]
    pub(super) fn payload_bytes(&self) -> Option<usize> {
        let tag_bytes = if self.head.tags() == 0 { 0 } else { usize::from(self.tag_unit(0)) };
        (tag_bytes <= TAG_BYTES_MAX).then(|| self.head.value_bytes() + self.head.key_bytes() + tag_bytes)
    }

    /// Everything about the item; its payload of `bytes` bytes begins at `start` of the buffer.
    #[inline(always)]
    pub(super) fn meta(&self, start: usize, bytes: usize, freshness: Freshness, place: Place) -> Meta {
        let life = self.life();
        Meta {
            version: self.version,
            created: if self.head.has_life() { self.life[1] as i64 } else { self.head.created() },
            expires: life.expires,
            stale_for_ms: life.stale_for_ms,
            load_cost_ms: (self.extra >> STALE_FOR_BITS) as u32,
            stale: life.stale,
            freshness,
            place,
            value: start..start + self.head.value_bytes(),
            key_bytes: self.head.key_bytes(),
            end: start + bytes,
        }
    }
}

impl NewItem<'_> {
    fn tag_bytes(&self) -> usize {
        self.tags.iter().map(|tag| tag.len() + 1).sum()
    }

    fn has_extra(&self) -> bool {
        self.stale_for_ms > 0 || self.load_cost_ms > 0
    }

    /// Bytes of value, key and tags.
    pub(super) fn payload_bytes(&self) -> usize {
        self.value.len() + self.key.len() + self.tag_bytes()
    }

    /// Words it takes in a ring.
    pub(super) fn words(&self) -> usize {
        self.head().head_words() + words_for(self.payload_bytes())
    }

    fn head(&self) -> Head {
        let created = (self.created / CREATED_STEP_MS).clamp(0, CREATED_MAX) as u64;
        let mut word = self.key.len() as u64
            | (self.value.len() as u64) << KEY_BITS
            | (self.tags.len() as u64) << TAGS_AT_BIT
            | created << CREATED_AT_BIT;
        for (flag, is_set) in
            [(HAS_LIFE, self.expires.is_some()), (HAS_EXTRA, self.has_extra()), (IS_STALE, self.stale)]
        {
            word |= if is_set { flag } else { 0 };
        }
        Head(word)
    }

    /// The words before the payload, and how many.
    pub(super) fn front_words(&self) -> ([u64; HEAD_WORDS_MAX], usize) {
        assert!(self.head().is_plausible(), "callers check keys, values and tags against their limits");
        let mut words = [0; HEAD_WORDS_MAX];
        words[0] = self.head().0;
        words[1] = self.version;
        let mut count = 2;
        let mut push = |word| {
            words[count] = word;
            count += 1;
        };
        if let Some(expires) = self.expires {
            push(expires as u64);
            push(self.created as u64);
        }
        if self.has_extra() {
            push(self.stale_for_ms | u64::from(self.load_cost_ms).min(LOAD_COST_MAX) << STALE_FOR_BITS);
        }
        let mut units = [0; TAG_WORDS_MAX];
        units[0] = self.tag_bytes() as u64;
        for (i, tag) in (1..).zip(self.tags) {
            units[i / 4] |= u64::from(tag_slot(tag)) << (16 * (i % 4));
        }
        units[..tag_words(self.tags.len())].iter().for_each(|&unit| push(unit));
        (words, count)
    }

    /// Appends value, key and tags to `out`, as they lie in the ring.
    pub(super) fn payload_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.value);
        out.extend_from_slice(self.key);
        for tag in self.tags {
            out.push(tag.len() as u8);
            out.extend_from_slice(tag);
        }
    }
}

/// Words that hold the units of `tags` tags.
fn tag_words(tags: usize) -> usize {
    if tags == 0 { 0 } else { (tags.min(limits::TAGS_MAX) + 1).div_ceil(4) }
}

/// The rest of a lap from a position.
pub(super) fn lap_left(position: u64, ring_words: usize) -> usize {
    ring_words - (position % ring_words as u64) as usize
}

/// Where an item lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) ring: Ring,
    pub(super) position: u64,
}

const _: () = assert!(WORD_BYTES == 8);
