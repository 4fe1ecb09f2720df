//! Getting a segment from the daemon: one request on a connection of its own, two descriptors back, checked and mapped.
//!
//! Called by both clients after the daemon has answered them, never on the way of a read. Every step has the deadline it was
//! given. Nothing is mapped whose size somebody could still change.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::segment::{AttachError, Control, Reader, Words};
use kv_proto::wire::{ErrorKind, Response, decode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::blocking::Connection;
use crate::error::Error;
use crate::ops;
use crate::options::Settings;

/// After what will pass by itself: the daemon restarts, the cache is not there yet.
const AGAIN_SOON: Duration = Duration::from_millis(250);
/// After what somebody would have to change.
const AGAIN_LATER: Duration = Duration::from_secs(30);

/// A mapped segment.
#[derive(Debug)]
pub(super) struct Attached {
    /// Names it within the run of its daemon.
    pub(super) segment: u64,
    pub(super) control: Arc<Control>,
    pub(super) reader: Reader,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) because: String,
    pub(super) again: Duration,
    /// Worth a line in the log: it will not pass by itself.
    pub(super) is_lasting: bool,
}

/// Asks for the segment of a cache and maps it.
pub(super) fn attach(settings: &Settings, cache: &str, deadline: Instant) -> Result<Attached, Refusal> {
    let sending = ops::attach(cache).map_err(refused)?;
    let mut connection = Connection::open(settings, deadline).map_err(refused)?;
    let (frame, descriptors) = connection.exchange_with_descriptors(&sending, deadline).map_err(refused)?;
    let segment = match decode::<Response<'_>>(connection.answer(frame)) {
        Ok(Response::Attached { segment }) => segment,
        Ok(Response::Error(error)) => return Err(refused(Error::from_wire(&error))),
        Ok(other) => return Err(refused(ops::unexpected("attach", &other))),
        Err(cause) => return Err(refused(crate::frames::not_ours(cause, false))),
    };
    let [control, words] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|descriptors| {
        let count = descriptors.len();
        lasting(format!("the daemon sent {count} descriptors instead of 2"))
    })?;
    let control = Control::attach(control).map_err(unusable)?;
    let words = Words::attach(words).map_err(unusable)?;
    populate(&words);
    let reader = Reader::attach(Arc::clone(&control), words).map_err(unusable)?;
    Ok(Attached { segment, control, reader })
}

/// Maps all pages in, beside whatever else this process does. Where there is no thread to be had they come one by one.
fn populate(words: &Arc<Words>) {
    let words = Arc::clone(words);
    let populate = move || {
        // Before Linux 5.14 it cannot be asked for; pages then come when they are touched.
        let _ = words.populate();
    };
    let _ = std::thread::Builder::new().name("kvd-populate".to_owned()).spawn(populate);
}

/// Reads what is there, and keeps the descriptors that come with it.
pub(crate) fn receive(
    stream: &UnixStream,
    space: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut rights = RecvAncillaryBuffer::new(&mut room);
    let got = recvmsg(stream, &mut [IoSliceMut::new(space)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel could not pass all descriptors: too many are open here, or a security policy forbids it",
        ));
    }
    Ok(got.bytes)
}

fn refused(error: Error) -> Refusal {
    let is_lasting = match error.kind() {
        ErrorKind::Denied | ErrorKind::Config | ErrorKind::Protocol | ErrorKind::Invalid => true,
        // Those of the connection, and a cache that its first write will make.
        _ => false,
    };
    let again = if is_lasting { AGAIN_LATER } else { AGAIN_SOON };
    Refusal { because: error.to_string(), again, is_lasting }
}

fn unusable(error: AttachError) -> Refusal {
    lasting(error.to_string())
}

fn lasting(because: String) -> Refusal {
    Refusal { because, again: AGAIN_LATER, is_lasting: true }
}
