//! A batch of requests, built once; only the digits of its keys and values are written anew for each use.

use serde::{Deserialize, Serialize};

use super::{Op, Wire, write_digits};

/// What keys begin with; their number follows.
pub const KEY_PREFIX: &str = "product:";
/// What values begin with; the number of their key follows, then filler without a colon.
const VALUE_PREFIX: &[u8] = b"value:";

/// The form of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Digits of a key's number.
    pub key_digits: u8,
    /// Length of every value, in bytes; at least 32.
    pub value_bytes: u32,
}

impl Shape {
    /// The key with this number.
    #[must_use]
    pub fn key_of(self, number: u64) -> String {
        let digits = usize::from(self.key_digits);
        format!("{KEY_PREFIX}{number:0digits$}")
    }

    /// What is put under that key.
    #[must_use]
    pub fn value_of(self, number: u64) -> Vec<u8> {
        let mut value = self.value();
        let digits = usize::from(self.key_digits);
        write_digits(&mut value[VALUE_PREFIX.len()..][..digits], number);
        value
    }

    /// Where in a value the digits of its key's number stand.
    #[must_use]
    pub fn digits_in_value(self) -> std::ops::Range<usize> {
        VALUE_PREFIX.len()..VALUE_PREFIX.len() + usize::from(self.key_digits)
    }

    /// Whether `value` was put under `key`: its length, and eight digits, as one word. For keys of eight digits.
    #[inline]
    #[must_use]
    pub fn is_value_under(self, value: &[u8], key: &str) -> bool {
        debug_assert_eq!(self.key_digits, 8);
        let told = value.get(VALUE_PREFIX.len()..).and_then(<[u8]>::first_chunk::<8>);
        value.len() == self.value_bytes as usize && told == key.as_bytes().last_chunk()
    }

    fn key(self) -> Vec<u8> {
        let mut key = KEY_PREFIX.as_bytes().to_vec();
        key.resize(key.len() + usize::from(self.key_digits), b'0');
        key
    }

    fn value(self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(u64::from(self.value_bytes));
        let mut value = VALUE_PREFIX.to_vec();
        value.resize(value.len() + usize::from(self.key_digits), b'0');
        assert!(
            value.len() <= self.value_bytes as usize,
            "a value of {} bytes has no room for its number",
            self.value_bytes
        );
        value.resize_with(self.value_bytes as usize, || random.lowercase() as u8);
        value
    }

    /// Whether `value` is what was put under the key with this `number`.
    #[inline]
    pub(super) fn is_value_of(self, value: &[u8], number: u64) -> bool {
        let mut digits = [0; 20];
        let digits = &mut digits[..usize::from(self.key_digits)];
        write_digits(digits, number);
        value.len() == self.value_bytes as usize
            && value.strip_prefix(VALUE_PREFIX).is_some_and(|rest| rest.starts_with(digits))
    }
}

/// Where the digits of one key stand in a batch.
#[derive(Debug)]
struct Spot {
    key_at: usize,
    value_at: Option<usize>,
}

/// `depth` requests in a row, to be written at once.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    spots: Vec<Spot>,
    digits: usize,
}

impl Batch {
    /// Builds `depth` requests of `op`.
    #[must_use]
    pub fn new(wire: Wire, op: Op, shape: Shape, depth: usize) -> Batch {
        let keys = vec![shape.key(); op.keys()];
        let value = shape.value();
        let mut bytes = Vec::new();
        let mut spots = Vec::new();
        for _ in 0..depth {
            let from = bytes.len();
            wire.push_request(&mut bytes, op, &keys, &value);
            let mut values_at = find_all(&bytes, from, VALUE_PREFIX).into_iter();
            let keys_at = find_all(&bytes, from, KEY_PREFIX.as_bytes());
            assert_eq!(keys_at.len(), op.keys(), "every key of a request stands in it once, as it is");
            spots.extend(keys_at.into_iter().map(|key_at| Spot { key_at, value_at: values_at.next() }));
        }
        Batch { bytes, spots, digits: usize::from(shape.key_digits) }
    }

    /// The bytes to send for the keys with these numbers: as many as the batch has keys.
    pub fn fill(&mut self, numbers: &[u64]) -> &[u8] {
        assert_eq!(numbers.len(), self.spots.len(), "one number a key");
        for (spot, &number) in self.spots.iter().zip(numbers) {
            write_digits(&mut self.bytes[spot.key_at..spot.key_at + self.digits], number);
            if let Some(at) = spot.value_at {
                write_digits(&mut self.bytes[at..at + self.digits], number);
            }
        }
        &self.bytes
    }
}

/// The positions behind each occurrence of `marker` from `from` on.
fn find_all(bytes: &[u8], from: usize, marker: &[u8]) -> Vec<usize> {
    let windows = bytes[from..].windows(marker.len()).enumerate();
    windows.filter(|(_, window)| *window == marker).map(|(at, _)| from + at + marker.len()).collect()
}
