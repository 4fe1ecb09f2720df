//! Restart in place: the running daemon starts its successor, which copies its memory while it serves, and then takes over socket,
//! lock and store without a request failing.
//!
//! ```text
//! old                                            new
//! starts it, sends socket, locks, segments  ──►  reads the configuration, makes room, copies
//!   serves on; folds its journal            ◄──  Copied
//! tells how far its rings are, some rounds  ──►  copies what was appended since
//! ── accepts no more, answers what it has read, closes memory and store: the pause begins ──
//! sends what its writers knew               ──►  copies the rest and all indexes, opens the store
//!                                           ◄──  Prepared
//! Go: from here on it never serves again    ──►  accepts: the pause ends
//!                                           ◄──  Serving
//! announces the new main process, ends
//! ```
//!
//! Until `Go` the old one takes back over, after it has killed *and reaped* the new one. The new one serves only after `Go`, or when
//! the old one is dead (seen by a pidfd, not only by a closed channel). So there is never a moment at which two may serve. Every step has a
//! deadline. `cli::serve` calls `predecessor` and `successor`; this module moves messages and descriptors between them.

mod predecessor;
mod room;
mod step;
mod successor;

pub use predecessor::{Ended, Predecessor, Program};
pub use successor::{Successor, TakeOverError, Taken};

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kv_proto::segment::Heads;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Told;

/// Raised whenever a message or what is handed over means something else. Another number: the successor starts without memory.
const PROTOCOL: u32 = 1;
/// Longest message. Beyond: the other side is broken. What is large travels in files.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// The argument that makes a daemon a successor.
pub const TAKE_OVER: &str = "--take-over";

/// What the old daemon tells the new one.
#[derive(Debug, Serialize, serde::Deserialize)]
enum FromOld {
    /// With the descriptors of the listener, the directory's lock and, unless the manager holds the socket, the socket's lock.
    Begin {
        protocol: u32,
        pid: u32,
        dir: PathBuf,
        /// Where the configuration said that it listens, and where it does.
        socket_configured: PathBuf,
        socket: PathBuf,
        number: u64,
        began_us: u64,
        clear: Vec<String>,
    },
    /// With the descriptor of the segment.
    Segment(Told),
    /// There are no more segments. With the descriptor of the control page, if other processes can map it.
    Segments,
    /// How far each segment is written.
    Heads(Vec<(u64, Heads)>),
    /// Nothing is written any more. With a file that holds the `Vec<Ended>`.
    Ended { pause_began_us: u64, is_closed_well: bool },
    /// Serve.
    Go,
}

/// What the new daemon tells the old one.
#[derive(Debug, Serialize, serde::Deserialize)]
enum FromNew {
    /// It will not be; the sentence says why.
    Refused { why: String },
    /// All that was told of is copied; so many bytes this time.
    Copied { bytes: u64 },
    /// Everything is open; nobody is served yet.
    Prepared,
    /// Clients are served.
    Serving { paused_us: u64 },
}

/// One end of the channel between the two.
#[derive(Debug)]
struct Link(UnixStream);

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("the other process has ended")]
    Ended,
    /// … before it has read what it was sent last: Linux resets a Unix socket that is closed with bytes to be read.
    #[error("the other process has ended")]
    Unheard,
    #[error("the other process did not answer in time")]
    TimedOut,
    #[error("the other process cannot be understood: {0}")]
    Broken(String),
}

impl Link {
    fn send(&self, message: &impl Serialize, descriptors: &[OwnedFd]) -> io::Result<()> {
        let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
        let raw: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        // The descriptors travel with the first byte; four always fit.
        let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&length)], rights, flags, None)?;
        if sent < length.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        (&self.0).write_all(&body)
    }

    /// The next message and what came with it.
    fn receive<T: DeserializeOwned>(&self, deadline: Instant) -> Result<(T, Vec<OwnedFd>), Silence> {
        let mut descriptors = Vec::new();
        let mut length = [0; 4];
        let mut read = 0;
        while read < length.len() {
            self.wait_until(deadline)?;
            match receive_some(&self.0, &mut length[read..], &mut descriptors) {
                Ok(0) => return Err(Silence::Ended),
                Ok(count) => read += count,
                Err(error) => Silence::check(&error)?,
            }
        }
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Silence::Broken(format!("a message of {bytes} bytes, limit is {MESSAGE_BYTES_MAX}")));
        }
        let mut body = vec![0; bytes];
        let mut read = 0;
        while read < bytes {
            self.wait_until(deadline)?;
            match (&self.0).read(&mut body[read..]) {
                Ok(0) => return Err(Silence::Ended),
                Ok(count) => read += count,
                Err(error) => Silence::check(&error)?,
            }
        }
        let message = postcard::from_bytes(&body).map_err(|error| Silence::Broken(error.to_string()))?;
        Ok((message, descriptors))
    }

    /// Waits until something comes, or the other end closes; `false`: not until then. What comes is received whole or not at all:
    /// a wait that ended inside a message would leave its rest behind.
    fn has_something(&self, until: Instant) -> bool {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, left.as_ref()), Ok(1..))
    }

    fn wait_until(&self, deadline: Instant) -> Result<(), Silence> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Silence::TimedOut);
        }
        self.0.set_read_timeout(Some(left.max(Duration::from_millis(1)))).map_err(|_| Silence::Ended)
    }
}

impl Silence {
    /// Whether to try again after an error of a read.
    fn check(error: &io::Error) -> Result<(), Silence> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::ConnectionReset => Err(Silence::Unheard),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(Silence::TimedOut),
            _ => Err(Silence::Ended),
        }
    }
}

fn receive_some(stream: &UnixStream, space: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut rights = RecvAncillaryBuffer::new(&mut room);
    let got = recvmsg(stream, &mut [IoSliceMut::new(space)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(got.bytes)
}
