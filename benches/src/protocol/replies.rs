//! Takes answers apart as they arrive.
//!
//! An answer may come in pieces; what was understood is not looked at again, so that a long answer costs its length once.

use super::{Op, Shape, Wire, kvd, memcached, redis};
use crate::BenchError;

/// How far the answers to one batch have been read.
#[derive(Debug)]
pub struct Replies {
    wire: Wire,
    pub(super) op: Op,
    pub(super) shape: Shape,
    /// How much of the input is understood, in bytes.
    pub(super) at: usize,
    /// Keys of the present answer that are dealt with.
    pub(super) keys_done: usize,
    /// Whether the head of the present answer (where there is one) is behind us.
    pub(super) head_done: bool,
    replies_done: usize,
    hits: u64,
}

/// What one step found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    Incomplete,
    /// Found the value of the key at this index of the present request. Go on.
    Hit(usize),
    /// Nothing that counts. Go on.
    Skip,
    /// The present answer ends here; the number of keys it found besides those told as `Hit`.
    End(u64),
}

impl Replies {
    /// For answers to requests of `op`.
    #[must_use]
    pub fn new(wire: Wire, op: Op, shape: Shape) -> Replies {
        Replies { wire, op, shape, at: 0, keys_done: 0, head_done: false, replies_done: 0, hits: 0 }
    }

    /// Forgets everything: the next input starts with a new answer.
    pub fn restart(&mut self) {
        *self = Replies::new(self.wire, self.op, self.shape);
    }

    /// Keys found since the last restart (for puts: done).
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Reads on in `input`, which starts where the first answer does. True when all answers for `numbers` are there.
    ///
    /// # Errors
    /// When an answer is an error, has a wrong value, or is followed by bytes nobody asked for.
    pub fn advance(&mut self, input: &[u8], numbers: &[u64]) -> Result<bool, BenchError> {
        let keys = self.op.keys();
        let replies = numbers.len() / keys;
        while self.replies_done < replies {
            let asked = &numbers[self.replies_done * keys..][..keys];
            let step = match self.wire {
                Wire::Kvd => kvd::step(self, input, asked),
                Wire::Memcached => memcached::step(self, input, asked),
                Wire::Redis => redis::step(self, input, asked),
            }?;
            match step {
                Step::Incomplete => return Ok(false),
                Step::Hit(index) => {
                    self.keys_done = index + 1;
                    self.hits += 1;
                }
                Step::Skip => {}
                Step::End(hits) => {
                    self.hits += hits;
                    self.replies_done += 1;
                    self.keys_done = 0;
                    self.head_done = false;
                }
            }
        }
        if self.at == input.len() { Ok(true) } else { Err(self.unexpected(&input[self.at..])) }
    }

    /// The error for an answer that is not what was asked for.
    pub(super) fn unexpected(&self, bytes: &[u8]) -> BenchError {
        BenchError::Answer { server: self.wire.name(), what: super::excerpt(bytes) }
    }

    /// One line of a text protocol from where we are, without its end; `None` while it is incomplete.
    #[inline]
    pub(super) fn line<'a>(&self, input: &'a [u8]) -> Option<&'a [u8]> {
        let rest = &input[self.at..];
        rest.iter().position(|&byte| byte == b'\n').map(|end| rest[..end].trim_ascii_end())
    }
}

/// A decimal number that is all of `digits`.
#[inline]
pub(super) fn parse_number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |number: usize, digit| {
        digit.is_ascii_digit().then(|| number * 10 + usize::from(digit - b'0'))
    })
}
