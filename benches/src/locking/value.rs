//! Values that tell what they are: so that a wrong, an old or a torn one is found by whoever reads it.
//!
//! ```text
//! | number of the key (8) | stamp (8) | the same stamp, again and again |
//! ```
//!
//! A stamp is of whoever wrote it, and of when; 0 is what a store is filled with.

/// Values have this many bytes at least, and a multiple of [`WORD_BYTES`].
pub(super) const VALUE_BYTES_MIN: u32 = 32;
pub(super) const WORD_BYTES: usize = 8;
/// A process numbers its writes in so many bits of a stamp.
const COUNT_BITS: u32 = 40;

/// The stamp of the `count`-th write of a process.
pub(super) fn stamp(process: u64, count: u64) -> u64 {
    (process + 1) << COUNT_BITS | count
}

/// Makes the value of a key, in a buffer that is used again.
pub(super) fn make(value: &mut Vec<u8>, value_bytes: u32, number: u64, stamp: u64) {
    value.clear();
    value.extend_from_slice(&number.to_le_bytes());
    while value.len() < value_bytes as usize {
        value.extend_from_slice(&stamp.to_le_bytes());
    }
}

/// The stamp of a key's value; `None` when the value is another key's, or of two writes, or too short.
pub(super) fn stamp_of(value: &[u8], value_bytes: u32, number: u64) -> Option<u64> {
    let (words, rest) = value.as_chunks::<WORD_BYTES>();
    let [first, stamp, others @ ..] = words else { return None };
    let is_whole = value.len() == value_bytes as usize && rest.is_empty();
    let is_right = *first == number.to_le_bytes() && others.iter().all(|word| word == stamp);
    (is_whole && is_right).then_some(u64::from_le_bytes(*stamp))
}

#[cfg(test)]
mod tests {
    use super::{make, stamp, stamp_of};

    #[test]
    fn a_torn_or_foreign_value_has_no_stamp() {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        make(&mut old, 64, 7, stamp(0, 1));
        make(&mut new, 64, 7, stamp(3, 2));
        assert_eq!(stamp_of(&new, 64, 7), Some(stamp(3, 2)));
        assert_eq!(stamp_of(&new, 64, 8), None);
        assert_eq!(stamp_of(&new[..56], 64, 7), None);
        new[32..].copy_from_slice(&old[32..]);
        assert_eq!(stamp_of(&new, 64, 7), None);
    }
}
