//! Stamps: clears of everything, of a tag, of a prefix, each one word however many items it covers.
//!
//! An item older than a stamp that covers it is gone, or stale. Read by readers and writer alike.

use super::control::Time;
use super::item::{Freshness, Life};
use super::layout::{Geometry, H_CLEAR, H_NEWEST_PREFIX, H_NEWEST_TAG, H_STALE};
use super::sync::{Ordering, fence};
use super::words::{View, WORD_BYTES, Words, words_for};
use crate::wire::Effect;
use crate::{Version, limits};

/// A stamp is newer than what is whole: what it covers cannot be told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotYet;

/// A prefix clear that is still remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixClear {
    /// Where it stands in the table.
    pub index: usize,
    /// Its sequence: covers what is older.
    pub version: Version,
    /// What it does.
    pub effect: Effect,
    /// The beginning of the keys it covers.
    pub prefix: Vec<u8>,
}

/// Whether an item of this life, with tags in these slots and this key, may be served now as of `committed`.
#[inline]
pub(super) fn verdict(
    words: View<'_>,
    geometry: &Geometry,
    life: &Life,
    tags: impl Iterator<Item = u32>,
    key: &[u8],
    time: impl Time,
    committed: Version,
) -> Result<Freshness, NotYet> {
    let mut freshness = by_time(life, time);
    let covers = |stamp: Version| {
        if stamp <= life.version {
            Ok(false)
        } else if stamp <= committed {
            Ok(true)
        } else {
            // The stamp it replaced may have covered the item and cannot be read any more.
            Err(NotYet) // MUTANT(not-yet)
        }
    };
    let mut apply = |gone: Version, stale: Version| -> Result<(), NotYet> {
        if covers(gone)? {
            freshness = Freshness::Gone;
        } else if covers(stale)? && freshness == Freshness::Fresh {
            freshness = Freshness::Stale;
        }
        Ok(())
    };
    apply(words.load(H_CLEAR), words.load(H_STALE))?;
    if words.load(H_NEWEST_TAG) > life.version {
        for tag in tags {
            let at = geometry.tag_at(tag);
            apply(words.load(at), words.load(at + 1))?;
        }
    }
    if consults_prefixes(words, life.version) {
        for entry in 0..limits::PREFIX_CLEARS_MAX {
            if let Some((stamp, effect)) = prefix_that_covers(words, entry, key, life.version)? {
                match effect {
                    Effect::Gone => apply(stamp, 0)?,
                    Effect::Stale => apply(0, stamp)?,
                }
            }
        }
    }
    Ok(freshness)
}

/// Whether the verdict on an item of this version depends on prefix clears, which are forgotten some day.
#[inline]
pub(super) fn consults_prefixes(words: View<'_>, version: Version) -> bool {
    words.load(H_NEWEST_PREFIX) > version
}

#[inline]
fn by_time(life: &Life, time: impl Time) -> Freshness {
    if let Some(expires) = life.expires {
        let now = time.now();
        if now >= expires {
            let is_stale = now < expires.saturating_add_unsigned(life.stale_for_ms);
            return if is_stale { Freshness::Stale } else { Freshness::Gone };
        }
    }
    if life.stale { Freshness::Stale } else { Freshness::Fresh }
}

/// The stamp of this entry if it is newer than `version` and the key begins with its prefix.
fn prefix_that_covers(
    words: View<'_>,
    entry: usize,
    key: &[u8],
    version: Version,
) -> Result<Option<(Version, Effect)>, NotYet> {
    let at = Geometry::prefix_at(entry);
    let stamp = words.load(at);
    // SYNC(prefix): pairs with `put_prefix`, which zeroes the stamp before it touches the bytes.
    fence(Ordering::Acquire);
    if stamp <= version {
        return Ok(None);
    }
    let info = words.load(at + 1);
    let bytes = (info >> 1) as usize;
    let matches = bytes <= key.len() && matches_words(words, at + 2, &key[..bytes]);
    fence(Ordering::Acquire);
    if words.load(at) != stamp {
        return Err(NotYet); // MUTANT(prefix-check)
    }
    Ok(matches.then_some((stamp, if info & 1 == 0 { Effect::Gone } else { Effect::Stale })))
}

fn matches_words(words: View<'_>, at: usize, bytes: &[u8]) -> bool {
    bytes.chunks(WORD_BYTES).enumerate().all(|(i, part)| {
        let mut word = [0; WORD_BYTES];
        word[..part.len()].copy_from_slice(part);
        words.load(at + i) == u64::from_le_bytes(word)
    })
}

/// Writes a prefix clear into an empty entry.
pub(super) fn put_prefix(words: &Words, entry: usize, stamp: Version, effect: Effect, prefix: &[u8]) {
    let at = Geometry::prefix_at(entry);
    // SYNC(prefix): nobody believes the bytes while the stamp is zero.
    words.store(at, 0);
    fence(Ordering::Release);
    words.store(at + 1, (prefix.len() as u64) << 1 | u64::from(effect == Effect::Stale));
    words.copy_in(at + 2, prefix);
    fence(Ordering::Release);
    words.store(at, stamp);
}

/// What an entry holds, for the writer.
pub(super) fn prefix(words: &Words, entry: usize) -> Option<PrefixClear> {
    let at = Geometry::prefix_at(entry);
    let version = words.load(at);
    let info = words.load(at + 1);
    let mut prefix = Vec::new();
    if version == 0 {
        return None;
    }
    let bytes = ((info >> 1) as usize).min(limits::KEY_BYTES_MAX);
    debug_assert!(words_for(bytes) <= Geometry::prefix_bytes_at(entry).len());
    words.copy_out(at + 2, bytes, &mut prefix);
    let effect = if info & 1 == 0 { Effect::Gone } else { Effect::Stale };
    Some(PrefixClear { index: entry, version, effect, prefix })
}
