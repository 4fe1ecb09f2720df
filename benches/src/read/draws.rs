//! Chooses the keys that a process reads, before it reads: their text lies in a row, so that choosing costs nothing and
//! costs everybody the same. Behind the last of the row they begin again.

use serde::{Deserialize, Serialize};

use super::mechanisms::Key;
use crate::protocol::Shape;

/// Keys drawn where nobody says how many.
pub(crate) const DRAWS: usize = 1 << 18;

/// Which keys are read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Pick {
    /// All alike.
    Uniform,
    /// The rank `r` with a likelihood of `r` to the power of minus this.
    Zipf(f64),
    /// Keys that nobody has put.
    Absent,
}

/// A row of keys.
#[derive(Debug)]
pub(crate) struct Draws {
    text: String,
    numbers: Vec<u64>,
    key_bytes: usize,
    next: usize,
}

impl Draws {
    /// A row of `count` keys out of `0..keys`.
    pub(crate) fn new(pick: Pick, keys: u64, shape: Shape, seed: u64, count: usize) -> Draws {
        let mut random = fastrand::Rng::with_seed(seed);
        let numbers: Vec<u64> = match pick {
            Pick::Uniform => (0..count).map(|_| random.u64(0..keys)).collect(),
            Pick::Absent => (0..count).map(|_| keys + random.u64(0..keys)).collect(),
            Pick::Zipf(exponent) => zipf(exponent, keys, &mut random, count),
        };
        let text: String = numbers.iter().map(|&number| shape.key_of(number)).collect();
        Draws { key_bytes: shape.key_of(0).len(), text, numbers, next: 0 }
    }

    /// The next key.
    #[inline]
    pub(crate) fn draw(&mut self) -> Key<'_> {
        let at = self.next;
        self.next = (at + 1) % self.numbers.len();
        Key { text: &self.text[at * self.key_bytes..][..self.key_bytes], number: self.numbers[at] }
    }

    /// The next keys, fewer where the row ends.
    pub(crate) fn draw_many(&mut self, count: usize) -> Vec<Key<'_>> {
        let from = if self.next + count > self.numbers.len() { 0 } else { self.next };
        self.next = from + count;
        let key = |at: usize| Key {
            text: &self.text[at * self.key_bytes..][..self.key_bytes],
            number: self.numbers[at],
        };
        (from..from + count).map(key).collect()
    }
}

/// Which key has which rank is the same for all seeds of draws, and has nothing to do with its number.
fn zipf(exponent: f64, keys: u64, random: &mut fastrand::Rng, count: usize) -> Vec<u64> {
    let mut by_rank: Vec<u64> = (0..keys).collect();
    fastrand::Rng::with_seed(keys).shuffle(&mut by_rank);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    let draw = |random: &mut fastrand::Rng| {
        let at = random.f64() * sum;
        by_rank[sums.partition_point(|&upto| upto <= at).min(by_rank.len() - 1)]
    };
    (0..count).map(|_| draw(random)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{DRAWS, Draws, Pick};
    use crate::protocol::Shape;

    const SHAPE: Shape = Shape { key_digits: 8, value_bytes: 64 };

    #[test]
    fn a_few_keys_have_most_of_a_zipf_row() {
        let draws = Draws::new(Pick::Zipf(0.99), 100_000, SHAPE, 1, DRAWS);
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for &number in &draws.numbers {
            *counts.entry(number).or_default() += 1;
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let share = counts.iter().take(1_000).sum::<usize>() as f64 / DRAWS as f64;
        // The sum of 1/r^0.99 to 1,000 over that to 100,000.
        assert!((0.60..0.66).contains(&share), "{share}");
    }

    #[test]
    fn keys_carry_their_numbers() {
        let mut draws = Draws::new(Pick::Absent, 1_000, SHAPE, 1, DRAWS);
        for _ in 0..3 {
            let key = draws.draw();
            assert_eq!(key.text, SHAPE.key_of(key.number));
            assert!(key.number >= 1_000);
        }
        assert_eq!(draws.draw_many(100).len(), 100);
    }
}
