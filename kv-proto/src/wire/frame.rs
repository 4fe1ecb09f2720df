//! Length-prefixed postcard frames, and the hello that opens a connection.
//!
//! The decoder only ever sees a complete slice of bounded length and refuses bytes behind the message, so a
//! hostile length costs nothing and a half frame decodes to nothing.

use serde::{Deserialize, Serialize};

use super::error::WireError;

/// A frame's length prefix: a little-endian `u32`, not counting itself.
pub const FRAME_HEADER_BYTES: usize = 4;
/// The first field of a hello: "kvd1" in ASCII.
pub const PROTOCOL_MAGIC: u32 = u32::from_le_bytes(*b"kvd1");
/// The version this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest version this build still speaks.
pub const PROTOCOL_OLDEST: u16 = 1;

/// The client's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// [`PROTOCOL_MAGIC`].
    pub magic: u32,
    /// The newest version the client speaks.
    pub version: u16,
    /// The oldest version the client speaks.
    pub oldest: u16,
    /// A name for `kvd clients`, at most `limits::CLIENT_NAME_BYTES_MAX` bytes.
    pub name: &'a str,
}

/// The daemon's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome<'a> {
    /// Go on.
    Accepted {
        /// The version spoken from here on.
        version: u16,
        /// Names this run of the daemon; another one after a restart.
        run_id: u64,
        /// Names this client towards this run of the daemon.
        client_id: u64,
        /// Longest value the daemon takes, in bytes.
        value_bytes_max: u32,
        /// Longest frame the daemon takes, in bytes.
        frame_bytes_max: u32,
    },
    /// Closed after this.
    Refused(#[serde(borrow)] WireError<'a>),
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is beyond the bound.
    #[error("frame is {bytes} bytes, limit is {limit}")]
    TooLong {
        /// What the prefix says.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The bytes do not decode.
    #[error("frame of {bytes} bytes does not decode: {cause}")]
    Malformed {
        /// Length of the frame.
        bytes: usize,
        /// What the decoder says.
        cause: postcard::Error,
    },
    /// The message ends before the frame does.
    #[error("frame of {bytes} bytes has {trailing} bytes behind its message")]
    Trailing {
        /// Length of the frame.
        bytes: usize,
        /// How many are too many.
        trailing: usize,
    },
}

/// Appends `message` to `out` as one frame.
///
/// ```
/// use kv_proto::wire::{Response, encode_into, split_frame, decode};
/// let mut bytes = Vec::new();
/// encode_into(&mut bytes, &Response::Written { version: 7 });
/// let (frame, rest) = split_frame(&bytes, 1024).unwrap().unwrap();
/// assert_eq!(decode::<Response<'_>>(frame).unwrap(), Response::Written { version: 7 });
/// assert!(rest.is_empty());
/// ```
pub fn encode_into<T: Serialize>(out: &mut Vec<u8>, message: &T) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    let taken = std::mem::take(out);
    *out = postcard::to_extend(message, taken).expect("our messages have no unsized sequences");
    let bytes =
        u32::try_from(out.len() - start - FRAME_HEADER_BYTES).expect("frames are bounded far below 4 GiB");
    out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&bytes.to_le_bytes());
}

/// A frame's body, and what follows it.
pub type Split<'a> = (&'a [u8], &'a [u8]);

/// The first complete frame in `input` and what follows it, `None` while it is incomplete.
///
/// # Errors
/// [`FrameError::TooLong`] as soon as the prefix can be read, before any of the body is awaited.
pub fn split_frame(input: &[u8], bytes_max: usize) -> Result<Option<Split<'_>>, FrameError> {
    let Some((prefix, rest)) = input.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let bytes = u32::from_le_bytes(*prefix) as usize;
    if bytes > bytes_max {
        return Err(FrameError::TooLong { bytes, limit: bytes_max });
    }
    Ok(rest.split_at_checked(bytes))
}

/// Decodes the body of one frame.
///
/// # Errors
/// When the bytes are not exactly one message.
pub fn decode<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(frame)
        .map_err(|cause| FrameError::Malformed { bytes: frame.len(), cause })?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Trailing { bytes: frame.len(), trailing: rest.len() })
    }
}
