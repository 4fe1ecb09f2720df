//! The bytes a connection has received and not yet executed.
//!
//! Grows with what really arrives, never with what a length prefix promises, and gives memory back when the connection
//! falls quiet.

use std::io::Read;

use kv_proto::wire::{FrameError, split_frame};

/// Size while frames are small.
const INPUT_BYTES_MIN: usize = 16 << 10;
/// A quiet connection keeps no more than this.
pub(super) const QUIET_BYTES_MAX: usize = 64 << 10;

/// A buffer of received bytes: `consumed..filled` are those not yet executed.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    consumed: usize,
    filled: usize,
}

impl Input {
    pub(super) fn new() -> Input {
        Input { bytes: Vec::new(), consumed: 0, filled: 0 }
    }

    /// Reads what is there, waiting for at least a byte; 0 is the end.
    pub(super) fn fill(&mut self, mut from: impl Read) -> std::io::Result<usize> {
        self.make_room();
        let count = from.read(&mut self.bytes[self.filled..])?;
        self.filled += count;
        Ok(count)
    }

    /// The next complete frame; `None` until more is read.
    pub(super) fn next_frame(&mut self, bytes_max: usize) -> Result<Option<&[u8]>, FrameError> {
        let pending = &self.bytes[self.consumed..self.filled];
        let Some((frame, rest)) = split_frame(pending, bytes_max)? else { return Ok(None) };
        self.consumed = self.filled - rest.len();
        Ok(Some(frame))
    }

    /// Whether a frame has begun and is not whole.
    pub(super) fn has_part(&self) -> bool {
        self.consumed < self.filled
    }

    /// Whether a complete frame waits, or one that is refused.
    pub(super) fn has_frame(&self, bytes_max: usize) -> bool {
        !matches!(split_frame(&self.bytes[self.consumed..self.filled], bytes_max), Ok(None))
    }

    /// Whether it holds more memory than a quiet connection should.
    pub(super) fn is_large(&self) -> bool {
        self.bytes.len() > QUIET_BYTES_MAX
    }

    /// Gives memory back; nothing may be pending.
    pub(super) fn shrink(&mut self) {
        assert!(!self.has_part(), "received bytes are not thrown away");
        *self = Input::new();
    }

    fn make_room(&mut self) {
        if self.consumed > 0 {
            self.bytes.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.bytes.len() - self.filled < INPUT_BYTES_MIN / 2 {
            // At most twice what has arrived, and a step: frames are bounded before they get here.
            self.bytes.resize(INPUT_BYTES_MIN.max(self.bytes.len() * 2), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::wire::{Response, decode, encode_into};

    use super::*;

    #[test]
    fn frames_cut_anywhere_come_out_whole() {
        let mut sent = Vec::new();
        for version in 1..=20 {
            encode_into(&mut sent, &Response::Written { version: version * 1_000 });
        }
        for step in 1..sent.len() {
            let mut input = Input::new();
            let mut seen = 0;
            for piece in sent.chunks(step) {
                assert_eq!(input.fill(piece).unwrap(), piece.len());
                while let Some(frame) = input.next_frame(64).unwrap() {
                    seen += 1;
                    assert_eq!(
                        decode::<Response<'_>>(frame).unwrap(),
                        Response::Written { version: seen * 1_000 }
                    );
                }
            }
            assert_eq!(seen, 20);
            assert!(!input.has_part());
        }
    }

    #[test]
    fn a_promise_of_length_costs_nothing_and_a_broken_one_is_refused() {
        let mut input = Input::new();
        input.fill(&(16_u32 << 20).to_le_bytes()[..]).unwrap();
        assert!(input.next_frame(32 << 20).unwrap().is_none());
        assert_eq!(input.bytes.len(), INPUT_BYTES_MIN);
        assert!(input.has_part() && !input.has_frame(32 << 20));
        assert!(matches!(input.next_frame(1 << 20), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_large_frame_grows_the_buffer_and_quiet_shrinks_it() {
        let body = vec![7_u8; 1 << 20];
        let mut sent = (1_u32 << 20).to_le_bytes().to_vec();
        sent.extend_from_slice(&body);
        let mut input = Input::new();
        let mut rest = &sent[..];
        while !rest.is_empty() {
            input.fill(&mut rest).unwrap();
        }
        assert_eq!(input.next_frame(2 << 20).unwrap().unwrap(), body);
        assert!(input.is_large() && input.bytes.len() <= 4 << 20);
        input.shrink();
        assert!(!input.is_large());
    }
}
