//! What the load generator speaks: the same work in the words of each server.
//!
//! Called by [`crate::client`]. Requests are built once as a [`Batch`] and only their digits change, for every server
//! alike, so that the generator costs all of them the same. Every answer is checked: a value must have the right
//! length and carry the number of its key. Nothing here reads or writes a socket.

mod batch;
mod kvd;
mod memcached;
mod redis;
mod replies;

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

pub use batch::{Batch, KEY_PREFIX, Shape};
pub use replies::Replies;

use crate::BenchError;

/// The cache that kvd is asked for; the others have no such thing.
pub const CACHE: &str = "product";

/// Whose words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wire {
    /// Postcard frames.
    Kvd,
    /// The text protocol.
    Memcached,
    /// RESP 2.
    Redis,
}

/// What one request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Reads one key.
    Get,
    /// Writes one key; how durable is the server's default.
    Put,
    /// Writes one key and waits for stable storage (kvd; another server must be configured so).
    PutDurable,
    /// Reads this many keys at once.
    GetMany(u16),
}

impl Op {
    /// Keys of one request.
    #[must_use]
    pub fn keys(self) -> usize {
        match self {
            Op::Get | Op::Put | Op::PutDurable => 1,
            Op::GetMany(keys) => usize::from(keys),
        }
    }
}

impl Wire {
    /// The name that tables and messages use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Wire::Kvd => "kvd",
            Wire::Memcached => "memcached",
            Wire::Redis => "redis",
        }
    }

    /// Appends one request for `keys` (for a put: exactly one key) to `out`.
    fn push_request(self, out: &mut Vec<u8>, op: Op, keys: &[Vec<u8>], value: &[u8]) {
        match self {
            Wire::Kvd => kvd::push_request(out, op, keys, value),
            Wire::Memcached => memcached::push_request(out, op, keys, value),
            Wire::Redis => redis::push_request(out, op, keys, value),
        }
    }

    /// Says hello on a fresh connection, if that is the custom.
    ///
    /// # Errors
    /// When the connection fails or the server refuses.
    pub fn greet(self, stream: &mut (impl Read + Write)) -> Result<(), BenchError> {
        match self {
            Wire::Kvd => kvd::greet(stream),
            Wire::Memcached | Wire::Redis => Ok(()),
        }
    }
}

/// Writes `number` in decimal over all of `digits`, with leading zeros.
#[inline]
fn write_digits(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// What was answered instead, short enough for a message.
fn excerpt(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 80;
    bytes[..bytes.len().min(SHOWN_BYTES_MAX)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
