//! Frames out of a stream of bytes, and the hello, without any I/O.
//!
//! Both clients feed it what they read. It never holds more than one answer's bound, and never hands out half a frame.

use std::io;
use std::ops::Range;

use kv_proto::limits::{
    ANSWER_BYTES_SOFT_MAX, CLIENT_NAME_BYTES_MAX, HELLO_BYTES_MAX, VALUE_BYTES_MAX, frame_bytes_max,
};
use kv_proto::wire::{
    FRAME_HEADER_BYTES, FrameError, Hello, PROTOCOL_MAGIC, PROTOCOL_OLDEST, PROTOCOL_VERSION, Welcome,
    decode, encode_into, split_frame,
};

use crate::error::{Error, Result};
use crate::limits::{RECEIVE_BYTES, RECEIVE_BYTES_KEPT_MAX};

/// What a daemon said about itself when it took the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Longest value it takes.
    pub(crate) value_bytes_max: usize,
    /// Longest frame it takes.
    pub(crate) frame_bytes_max: usize,
}

/// Bytes received and not yet used.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    used: usize,
    filled: usize,
    frame_bytes_max: usize,
}

impl Inbox {
    /// For a connection that has not been welcomed: only short frames.
    pub(crate) fn new() -> Inbox {
        Inbox { bytes: vec![0; RECEIVE_BYTES], used: 0, filled: 0, frame_bytes_max: HELLO_BYTES_MAX }
    }

    /// From here on answers may be as long as this daemon's can be.
    pub(crate) fn welcomed(&mut self, terms: Terms) {
        self.frame_bytes_max = frame_bytes_max(terms.value_bytes_max) + ANSWER_BYTES_SOFT_MAX;
    }

    /// Where the next bytes go: never empty, and long enough for the frame that has begun.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.used == self.filled {
            self.used = 0;
            self.filled = 0;
            if self.bytes.len() > RECEIVE_BYTES_KEPT_MAX {
                self.bytes = vec![0; RECEIVE_BYTES];
            }
        }
        let wanted = self.begun_bytes().max(FRAME_HEADER_BYTES);
        if self.bytes.len() - self.used < wanted || self.filled == self.bytes.len() {
            self.bytes.copy_within(self.used..self.filled, 0);
            self.filled -= self.used;
            self.used = 0;
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
        }
        &mut self.bytes[self.filled..]
    }

    /// `bytes` have been put into `space`.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.filled += bytes;
        assert!(self.filled <= self.bytes.len(), "received more than there was space for");
    }

    /// The next complete frame, to be read with [`Inbox::frame`]; `None` while there is none.
    pub(crate) fn next(&mut self) -> Result<Option<Range<usize>>, FrameError> {
        let Some((frame, _)) = split_frame(&self.bytes[self.used..self.filled], self.frame_bytes_max)? else {
            return Ok(None);
        };
        let start = self.used + FRAME_HEADER_BYTES;
        let range = start..start + frame.len();
        self.used = range.end;
        Ok(Some(range))
    }

    /// The body of a frame, until `space` is called next.
    pub(crate) fn frame(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Whether bytes are left that nobody asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == self.filled
    }

    fn begun_bytes(&self) -> usize {
        match self.bytes[self.used..self.filled].first_chunk::<FRAME_HEADER_BYTES>() {
            // A longer one is refused by `next` before anybody asks for space for it.
            Some(prefix) => {
                FRAME_HEADER_BYTES + (u32::from_le_bytes(*prefix) as usize).min(self.frame_bytes_max)
            }
            None => FRAME_HEADER_BYTES,
        }
    }
}

/// The frame that opens a connection.
pub(crate) fn hello(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    let end = (0..=name.len().min(CLIENT_NAME_BYTES_MAX))
        .rev()
        .find(|end| name.is_char_boundary(*end))
        .unwrap_or(0);
    encode_into(
        &mut bytes,
        &Hello {
            magic: PROTOCOL_MAGIC,
            version: PROTOCOL_VERSION,
            oldest: PROTOCOL_OLDEST,
            name: &name[..end],
        },
    );
    bytes
}

/// What the answer to the hello says.
pub(crate) fn welcome(frame: &[u8]) -> Result<Terms> {
    match decode::<Welcome<'_>>(frame) {
        Ok(Welcome::Accepted { version, value_bytes_max, frame_bytes_max, .. }) => {
            if !(PROTOCOL_OLDEST..=PROTOCOL_VERSION).contains(&version) {
                return Err(Error::Protocol {
                    message: format!(
                        "the daemon chose protocol version {version}, this client speaks {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}"
                    ),
                    maybe_applied: false,
                    source: None,
                });
            }
            Ok(Terms {
                value_bytes_max: (value_bytes_max as usize).min(VALUE_BYTES_MAX),
                frame_bytes_max: frame_bytes_max as usize,
            })
        }
        Ok(Welcome::Refused(error)) => Err(Error::from_wire(&error)),
        Err(cause) => Err(not_ours(cause, false)),
    }
}

/// The error for bytes that are no frame of ours.
pub(crate) fn not_ours(cause: FrameError, maybe_applied: bool) -> Error {
    Error::Protocol {
        message: format!("the peer is not a kvd daemon: {cause}"),
        maybe_applied,
        source: Some(cause),
    }
}

/// The error for a peer that took the connection and did not say why it ended it.
pub(crate) fn no_welcome(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("no welcome, perhaps this user is not allowed: {error}"))
}

/// The error for a peer that closed, as the kernel would have put it.
pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection")
}

#[cfg(test)]
mod tests {
    use kv_proto::wire::Response;

    use super::*;

    fn fill(inbox: &mut Inbox, bytes: &[u8]) {
        for byte in bytes {
            inbox.space()[0] = *byte;
            inbox.received(1);
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_were_cut() {
        let mut bytes = Vec::new();
        encode_into(&mut bytes, &Response::Done);
        encode_into(&mut bytes, &Response::Written { version: 7 });
        for cut in 0..=bytes.len() {
            let mut inbox = Inbox::new();
            fill(&mut inbox, &bytes[..cut]);
            let mut frames = 0;
            while let Some(range) = inbox.next().unwrap() {
                assert!(decode::<Response<'_>>(inbox.frame(range)).is_ok());
                frames += 1;
            }
            fill(&mut inbox, &bytes[cut..]);
            while let Some(range) = inbox.next().unwrap() {
                assert!(decode::<Response<'_>>(inbox.frame(range)).is_ok());
                frames += 1;
            }
            assert_eq!(frames, 2, "cut at {cut}");
            assert!(inbox.is_empty());
        }
    }

    #[test]
    fn a_giant_length_is_refused_before_anything_is_allocated_for_it() {
        let mut inbox = Inbox::new();
        fill(&mut inbox, &u32::MAX.to_le_bytes());
        assert!(matches!(inbox.next(), Err(FrameError::TooLong { .. })));
        assert!(inbox.bytes.len() <= RECEIVE_BYTES);
    }

    #[test]
    fn a_buffer_grows_for_a_large_answer_and_shrinks_back() {
        let mut inbox = Inbox::new();
        inbox.welcomed(Terms { value_bytes_max: 1 << 20, frame_bytes_max: 8 << 20 });
        let mut bytes = Vec::new();
        let value = vec![7; 1 << 20];
        encode_into(&mut bytes, &Response::Page { items: Vec::new(), cursor: &value });
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let space = inbox.space();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            inbox.received(n);
            rest = &rest[n..];
        }
        let range = inbox.next().unwrap().unwrap();
        assert_eq!(range.len(), bytes.len() - FRAME_HEADER_BYTES);
        assert_eq!(inbox.space().len(), RECEIVE_BYTES);
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let bytes = hello(&"ä".repeat(60));
        let (frame, _) = split_frame(&bytes, HELLO_BYTES_MAX).unwrap().unwrap();
        assert_eq!(decode::<Hello<'_>>(frame).unwrap().name.len(), 64);
    }
}
