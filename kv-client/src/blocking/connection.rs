//! One blocking connection: connect, hello, one request and its answer at a time, each with a deadline.
//!
//! Called by `client`. It never hands out a stream that has an answer outstanding: whoever gets an error from
//! [`Connection::exchange`] drops it.

use kv_proto::segment::process_id;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

use crate::error::{Attempt, Error, Result};
use crate::frames::{self, Inbox, Terms};
use crate::ops::Sending;
use crate::options::Settings;
use crate::places::{self, Place};
use crate::retry::{Attempts, Failure, fits};
use crate::shared;

/// A call that finds the socket's timeouts set may end so much after its deadline.
const LATE_MAX: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    terms: Terms,
    /// What the socket's timeouts are set to, so that a call that begins anew needs no system call to set them.
    timeout: Duration,
    /// A request is under way, or its answer never came: what is read next would be the answer to something else.
    owes: bool,
    /// Whose it is: what a child inherited is its parent's.
    process: u32,
}

impl Connection {
    /// Connects to the first daemon there is.
    pub(crate) fn open(settings: &Settings, deadline: Instant) -> Result<Connection> {
        let mut tried = Vec::new();
        for Place { path, origin } in places::search(settings.socket.as_deref()) {
            match Connection::open_at(&path, &settings.name, deadline) {
                Ok(connection) => return Ok(connection),
                Err(Refusal::Nobody(reason)) => {
                    tried.push(Attempt { path, origin, reason: reason.into() });
                }
                Err(Refusal::Said(error)) => return Err(error),
            }
        }
        Err(Error::Unreachable { tried })
    }

    fn open_at(path: &Path, name: &str, deadline: Instant) -> Result<Connection, Refusal> {
        let stream = dial(path, deadline)?;
        let terms = Terms { value_bytes_max: 0, frame_bytes_max: 0 };
        let mut connection = Connection {
            stream,
            inbox: Inbox::new(),
            terms,
            timeout: Duration::ZERO,
            owes: false,
            process: process_id(),
        };
        connection.wait_until(deadline)?;
        let hello = frames::hello(name);
        // A daemon that turns us away by our credentials closes before it reads; its reason, if any, is still to be had.
        let said = connection.write(&hello, deadline);
        let frame = match connection.read_frame(deadline) {
            Ok(frame) => frame,
            Err(Broken::Io(error)) => {
                let error = said.err().map_or(error, |(_, error)| error);
                return Err(Refusal::Nobody(frames::no_welcome(error)));
            }
            Err(Broken::Frame(cause)) => return Err(Refusal::Said(frames::not_ours(cause, false))),
        };
        let terms = frames::welcome(connection.inbox.frame(frame)).map_err(Refusal::Said)?;
        connection.terms = terms;
        connection.inbox.welcomed(terms);
        Ok(connection)
    }

    /// Sends a request and waits for its answer, to be read with [`Connection::answer`].
    pub(crate) fn exchange(
        &mut self,
        sending: &Sending,
        along: Option<&Sending>,
        attempts: &Attempts,
    ) -> Result<Range<usize>, Failure> {
        fits(sending, self.terms).map_err(Failure::NotSent)?;
        if !self.is_sound() {
            return Err(Failure::NotSent(Error::lost(false, io::ErrorKind::NotConnected)));
        }
        if !self.inbox.is_empty() {
            let message = "the daemon sent something nobody asked for".to_owned();
            return Err(Failure::NotSent(Error::Protocol { message, maybe_applied: false, source: None }));
        }
        let deadline = attempts.deadline();
        self.owes = true;
        self.begin(deadline, attempts.op_timeout())
            .map_err(|error| Failure::NotSent(lost(error, false, attempts)))?;
        let both;
        let bytes = match along {
            None => &sending.frame,
            Some(along) => {
                both = [&along.frame[..], &sending.frame].concat();
                &both
            }
        };
        self.write(bytes, deadline).map_err(|(written, error)| {
            // The daemon executes whole frames only.
            debug_assert!(written < bytes.len());
            Failure::NotSent(lost(error, false, attempts))
        })?;
        // What the sending and the first answer took is not given twice.
        let mut frame = self.next_answer(deadline, attempts);
        if along.is_some() && frame.is_ok() {
            // Its answer says nothing.
            frame = self.next_answer(deadline, attempts);
        }
        self.owes = frame.is_err();
        frame.map_err(|broken| match broken {
            Broken::Io(error) => Failure::Sent(lost(error, true, attempts)),
            Broken::Frame(cause) => Failure::Sent(frames::not_ours(cause, true)),
        })
    }

    fn next_answer(&mut self, deadline: Instant, attempts: &Attempts) -> Result<Range<usize>, Broken> {
        self.begin(deadline, attempts.op_timeout()).map_err(Broken::Io)?;
        self.read_frame(deadline)
    }

    /// Whether the next exchange gets its own answer. One that failed half-way does not, nor does a child on its parent's stream.
    pub(crate) fn is_sound(&self) -> bool {
        !self.owes && self.process == process_id()
    }

    /// It said something that is no answer: it is not to be used again.
    pub(crate) fn spoil(&mut self) {
        self.owes = true;
    }

    /// As `exchange`, for an answer that descriptors come with. For a connection that serves this one request.
    pub(crate) fn exchange_with_descriptors(
        &mut self,
        sending: &Sending,
        deadline: Instant,
    ) -> Result<(Range<usize>, Vec<OwnedFd>)> {
        let lost = |source: io::Error| Error::lost(false, source);
        self.write(&sending.frame, deadline).map_err(|(_, error)| lost(error))?;
        let mut descriptors = Vec::new();
        loop {
            if let Some(frame) = self.inbox.next().map_err(|cause| frames::not_ours(cause, false))? {
                return Ok((frame, descriptors));
            }
            self.wait_until(deadline).map_err(lost)?;
            match shared::receive(&self.stream, self.inbox.space(), &mut descriptors) {
                Ok(0) => return Err(lost(frames::closed())),
                Ok(n) => self.inbox.received(n),
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// The next frame of those that come by themselves, or `None` when there is none by the deadline.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Result<Option<Range<usize>>> {
        let is_late =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        if !self.is_sound() {
            return Err(Error::lost(false, io::ErrorKind::NotConnected));
        }
        match self.wait_until(deadline).map_err(Broken::Io).and_then(|()| self.read_frame(deadline)) {
            Ok(frame) => Ok(Some(frame)),
            Err(Broken::Io(error)) if is_late(&error) => Ok(None),
            Err(Broken::Io(error)) => Err(Error::lost(false, error)),
            Err(Broken::Frame(cause)) => Err(frames::not_ours(cause, false)),
        }
    }

    /// The body of an answer, until the next call.
    pub(crate) fn answer(&self, frame: Range<usize>) -> &[u8] {
        self.inbox.frame(frame)
    }

    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            // NOSIGNAL: a host program may not ignore SIGPIPE. A closed peer is known here, before anything is sent.
            match send(&self.stream, &bytes[written..], SendFlags::NOSIGNAL) {
                Ok(n) => {
                    written += n;
                    if written < bytes.len() {
                        self.wait_until(deadline).map_err(|error| (written, error))?;
                    }
                }
                // What it has waited is not given twice.
                Err(Errno::INTR | Errno::AGAIN) => {
                    self.wait_until(deadline).map_err(|error| (written, error))?;
                }
                Err(error) => return Err((written, error.into())),
            }
        }
        Ok(())
    }

    fn read_frame(&mut self, deadline: Instant) -> Result<Range<usize>, Broken> {
        loop {
            if let Some(frame) = self.inbox.next().map_err(Broken::Frame)? {
                return Ok(frame);
            }
            match self.stream.read(self.inbox.space()) {
                Ok(0) => return Err(Broken::Io(frames::closed())),
                Ok(n) => {
                    self.inbox.received(n);
                    // Only a partial answer comes round again; what it has used of the time is not given twice.
                    match self.inbox.next().map_err(Broken::Frame)? {
                        Some(frame) => return Ok(frame),
                        None => self.wait_until(deadline).map_err(Broken::Io)?,
                    }
                }
                Err(error) if is_early(&error) => self.wait_until(deadline).map_err(Broken::Io)?,
                Err(error) => return Err(Broken::Io(error)),
            }
        }
    }

    /// Lets the socket wait for what is left until `deadline`, or wake earlier and be told so again.
    fn wait_until(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.set_timeouts(left)
    }

    /// The kernel's timers for sockets are late by up to an eighth of their time (its timer wheel has 8 steps a level), so they are
    /// set an eighth earlier.
    fn set_timeouts(&mut self, left: Duration) -> io::Result<()> {
        let early = (left - left / 8).max(LATE_MAX);
        self.stream.set_read_timeout(Some(early))?;
        self.stream.set_write_timeout(Some(early))?;
        self.timeout = left;
        Ok(())
    }

    /// As `wait_until`, for what begins here: a call that has all its time before it finds the timeouts as its
    /// predecessor had them, and costs no system call. It may end a little late, by a 64th of its time and [`LATE_MAX`] at most.
    fn begin(&mut self, deadline: Instant, op_timeout: Duration) -> io::Result<()> {
        let used = op_timeout.saturating_sub(deadline.saturating_duration_since(Instant::now()));
        if used > (op_timeout / 64).min(LATE_MAX) {
            return self.wait_until(deadline);
        }
        if self.timeout == op_timeout { Ok(()) } else { self.set_timeouts(op_timeout) }
    }
}

/// The wait ended, and its time may not be over.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

enum Refusal {
    Nobody(io::Error),
    Said(Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Nobody(error)
    }
}

enum Broken {
    Io(io::Error),
    Frame(kv_proto::wire::FrameError),
}

fn lost(source: io::Error, maybe_applied: bool, attempts: &Attempts) -> Error {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => attempts.timed_out(maybe_applied),
        _ => Error::lost(maybe_applied, source),
    }
}

/// Connects within the deadline: on a Unix socket, connecting waits while the daemon's backlog is full.
fn dial(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    places::check_path(path)?;
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(left))?;
    match connect(&socket, &address) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon does not accept connections"))
        }
        Err(error) => Err(error.into()),
    }
}
