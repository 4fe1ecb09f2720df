//! The ghost list of S3-FIFO: fingerprints of what left probation unread, so that what returns soon goes straight to main.
//!
//! A table instead of a queue: an entry is a fingerprint and the time it was made, counted in insertions; it is valid for
//! as many insertions as the list is long. A collision overwrites, which forgets a ghost early and harms nothing.
//! Private to the writer. Four bytes an entry.

const FINGERPRINT_BITS: u32 = 18;
const EPOCH_BITS: u32 = 32 - FINGERPRINT_BITS;
/// Entries live for this many epochs. The counter wraps after sixteen lives; by then hardly an entry is left that could be
/// taken for young.
const EPOCHS: u64 = 1 << (EPOCH_BITS - 4);

pub(super) struct Ghost {
    entries: Vec<u32>,
    insertions: u64,
    /// How many insertions an entry lives.
    length: u64,
}

impl Ghost {
    /// A list for about `length` fingerprints.
    pub(super) fn new(length: usize) -> Ghost {
        let length = length.max(64);
        Ghost {
            entries: vec![0; (length + length / 2).next_power_of_two()],
            insertions: 0,
            length: length as u64,
        }
    }

    /// Follows the number of items that main holds; grows only.
    pub(super) fn set_length(&mut self, length: usize) {
        if length > self.entries.len() {
            // Starting anew forgets the ghosts of a time when there was less to remember.
            *self = Ghost::new(length);
        } else {
            self.length = length.max(64) as u64;
        }
    }

    pub(super) fn insert(&mut self, hash: u64) {
        self.insertions += 1;
        let epoch = self.epoch() as u32 & ((1 << EPOCH_BITS) - 1);
        let at = self.at(hash);
        self.entries[at] = fingerprint(hash) << EPOCH_BITS | epoch;
    }

    /// Whether this was dropped lately; forgets it.
    pub(super) fn take(&mut self, hash: u64) -> bool {
        let at = self.at(hash);
        let entry = self.entries[at];
        let mask = (1 << EPOCH_BITS) - 1;
        let age = (self.epoch() as u32).wrapping_sub(entry) & mask;
        let found = entry != 0 && entry >> EPOCH_BITS == fingerprint(hash) && u64::from(age) <= EPOCHS;
        if found {
            self.entries[at] = 0;
        }
        found
    }

    fn epoch(&self) -> u64 {
        self.insertions * EPOCHS / self.length
    }

    fn at(&self, hash: u64) -> usize {
        (hash >> 20) as usize & (self.entries.len() - 1)
    }
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
        assert!(lately > 500, "{lately} of 800 known");
        assert!(long_ago < 40, "{long_ago} of 3,900 known");
        assert!(!ghost.take(hash(4_999)), "taken once");
    }

    #[test]
    fn strangers_are_rarely_taken_for_ghosts() {
        let mut ghost = Ghost::new(1_000);
        (0..1_000).for_each(|i| ghost.insert(hash(i)));
        assert!((10_000..110_000).filter(|&i| ghost.take(hash(i))).count() < 10);
    }
}
