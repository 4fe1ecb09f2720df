//! The ghost list of S3-FIFO: fingerprints of what left probation unread, so that what returns soon goes straight to main.
//!
//! A table instead of a queue: an entry is a fingerprint and the time it was made; a hash has eight places, and the oldest
//! of them is overwritten. Time runs in insertions: an entry is valid for as many as the list is long. The length may
//! change at every insertion, so time is summed up and never computed from a count: else a list longer by one would move
//! all of the past. Private to the writer. Six bytes a fingerprint.

const FINGERPRINT_BITS: u32 = 18;
const EPOCH_BITS: u32 = 32 - FINGERPRINT_BITS;
const EPOCH_MASK: u32 = (1 << EPOCH_BITS) - 1;
/// Entries live for this many epochs. The counter wraps after sixteen lives; by then hardly an entry is left that could be
/// taken for young.
const EPOCHS: u64 = 1 << (EPOCH_BITS - 4);
/// Time is kept in this part of an epoch, so that the life of a list of a billion has no rounding to speak of.
const EPOCH_FRACTION_BITS: u32 = 32;
/// Places of a hash. With one, half of the list was overwritten before its time, which cost 1.3 points of hits at 1 % of a
/// shop's objects.
const WAYS: usize = 8;

pub(super) struct Ghost {
    sets: Vec<[u32; WAYS]>,
    /// Now, in fractions of epochs.
    time: u64,
    /// How many insertions an entry lives.
    length: u64,
}

impl Ghost {
    /// A list for about `length` fingerprints.
    pub(super) fn new(length: usize) -> Ghost {
        let length = length.max(64);
        let sets = (length + length / 2).div_ceil(WAYS);
        Ghost { sets: vec![[0; WAYS]; sets], time: 0, length: length as u64 }
    }

    /// Its table, time and length, for another process.
    #[cfg(not(loom))]
    pub(super) fn to_parts(&self) -> (Vec<u8>, u64, u64) {
        let bytes = self.sets.as_flattened().iter().flat_map(|entry| entry.to_le_bytes()).collect();
        (bytes, self.time, self.length)
    }

    /// What `to_parts` gave.
    #[cfg(not(loom))]
    pub(super) fn of_parts(bytes: &[u8], time: u64, length: u64) -> Option<Ghost> {
        let (entries, rest) = bytes.as_chunks::<4>();
        let (sets, left) = entries.as_chunks::<WAYS>();
        if sets.is_empty() || !rest.is_empty() || !left.is_empty() || length == 0 {
            return None;
        }
        let sets = sets.iter().map(|set| set.map(u32::from_le_bytes)).collect();
        Some(Ghost { sets, time, length })
    }

    /// Follows the number of items that main holds; its table grows only.
    pub(super) fn set_length(&mut self, length: usize) {
        if length + length / 4 > self.sets.len() * WAYS {
            // Starting anew forgets the ghosts of a time when there was less to remember.
            *self = Ghost::new(length);
        } else {
            self.length = length.max(64) as u64;
        }
    }

    pub(super) fn insert(&mut self, hash: u64) {
        self.time += (EPOCHS << EPOCH_FRACTION_BITS) / self.length;
        let epoch = self.epoch();
        let set = self.set(hash);
        let oldest = self.sets[set].iter_mut().max_by_key(|entry| age(**entry, epoch));
        *oldest.expect("a set has places") = fingerprint(hash) << EPOCH_BITS | epoch;
    }

    /// Whether this was dropped lately; forgets it.
    pub(super) fn take(&mut self, hash: u64) -> bool {
        let epoch = self.epoch();
        let set = self.set(hash);
        let is_it =
            |entry: &&mut u32| **entry >> EPOCH_BITS == fingerprint(hash) && age(**entry, epoch) <= EPOCHS;
        self.sets[set].iter_mut().find(is_it).map(|entry| *entry = 0).is_some()
    }

    fn epoch(&self) -> u32 {
        (self.time >> EPOCH_FRACTION_BITS) as u32 & EPOCH_MASK
    }

    /// The high bits of a hash say its bucket in the index; here too they scale to any number of sets.
    fn set(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize
    }
}

/// Epochs since an entry was made; an empty one is older than all.
fn age(entry: u32, epoch: u32) -> u64 {
    if entry == 0 { u64::MAX } else { u64::from(epoch.wrapping_sub(entry) & EPOCH_MASK) }
}

fn fingerprint(hash: u64) -> u32 {
    (hash as u32 & ((1 << FINGERPRINT_BITS) - 1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(i: u64) -> u64 {
        crate::hash_key(3, &i.to_le_bytes())
    }

    #[test]
    fn what_left_lately_is_known_and_what_left_long_ago_is_not() {
        let mut ghost = Ghost::new(1_000);
        for i in 0..5_000 {
            ghost.insert(hash(i));
        }
        let lately = (4_200..5_000).filter(|&i| ghost.take(hash(i))).count();
        let long_ago = (0..3_900).filter(|&i| ghost.take(hash(i))).count();
        assert!(lately > 780, "{lately} of 800 known");
        assert!(long_ago < 40, "{long_ago} of 3,900 known");
        assert!(!ghost.take(hash(4_999)), "taken once");
    }

    #[test]
    fn a_length_that_changes_does_not_move_the_past() {
        let mut ghost = Ghost::new(1_000);
        for i in 0..1_000_000 {
            // An epoch computed from the count of insertions jumped by lives here, and hardly anything was known.
            ghost.set_length(1_000 + i as usize % 2);
            ghost.insert(hash(i));
        }
        let known = (999_200..1_000_000).filter(|&i| ghost.take(hash(i))).count();
        assert!(known > 780, "{known} of 800 known");
    }

    #[test]
    fn strangers_are_rarely_taken_for_ghosts() {
        let mut ghost = Ghost::new(1_000);
        (0..1_000).for_each(|i| ghost.insert(hash(i)));
        assert!((10_000..110_000).filter(|&i| ghost.take(hash(i))).count() < 10);
    }
}
