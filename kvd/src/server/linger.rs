//! The end of a connection whose bytes were wrong: its last answer must still be readable.
//!
//! Closing a socket with unread input resets it, and the peer may then find the reset before the answer that explains
//! it. So the rest of what it sends is read and thrown away, for a bounded time and length.

use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::clock::Clock;

/// Longest time spent on a peer that was wrong.
const LINGER_MAX: Duration = Duration::from_millis(500);
/// Most bytes read from it.
const LINGER_BYTES_MAX: usize = 32 << 20;

/// Says that nothing more comes, and reads until the peer has seen it or the bounds are met.
pub(super) fn linger(mut stream: &UnixStream, clock: &Clock) {
    let deadline = clock.instant() + LINGER_MAX;
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut waste = vec![0; 64 << 10];
    let mut left = LINGER_BYTES_MAX;
    while left > 0 {
        let wait = deadline.saturating_duration_since(clock.instant());
        if wait.is_zero() || stream.set_read_timeout(Some(wait)).is_err() {
            return;
        }
        match stream.read(&mut waste) {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}
