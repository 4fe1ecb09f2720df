//! One async connection: connect, hello, bytes out, frames in; and whole exchanges for those that have it to themselves.
//!
//! Called by `client` and `pipe`. A link that failed, or whose exchange was dropped half-way, is never used again.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use kv_proto::wire::Response;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout_at};

use crate::error::{Attempt, Error, Result};
use crate::frames::{self, Inbox, Terms};
use crate::ops::{Call, Sending};
use crate::options::Settings;
use crate::places::{self, Place};
use crate::retry::{Attempts, Failure, Step, fits};

#[derive(Debug)]
pub(crate) struct Link {
    pub(super) stream: UnixStream,
    pub(super) inbox: Inbox,
    pub(super) terms: Terms,
    /// An exchange is under way, was dropped, or failed: what is read next would be the answer to something else.
    owes: bool,
}

/// Why there is no answer.
pub(super) enum Broken {
    Io(io::Error),
    Frame(kv_proto::wire::FrameError),
}

impl Broken {
    /// The error for a request that was under way. Not for a clone of it: each gets its own.
    pub(super) fn error(&self, maybe_applied: bool) -> Error {
        match self {
            Broken::Io(error) => Error::lost(maybe_applied, io::Error::new(error.kind(), error.to_string())),
            Broken::Frame(cause) => frames::not_ours(cause.clone(), maybe_applied),
        }
    }
}

impl Link {
    /// Connects to the first daemon there is.
    pub(crate) async fn open(settings: &Settings, deadline: Instant) -> Result<Link> {
        let mut tried = Vec::new();
        for Place { path, origin } in places::search(settings.socket.as_deref()) {
            let opened = timeout_at(deadline.into(), Link::open_at(&path, &settings.name)).await;
            match opened.unwrap_or_else(|_elapsed| Err(Refusal::Nobody(io::ErrorKind::TimedOut.into()))) {
                Ok(link) => return Ok(link),
                Err(Refusal::Nobody(reason)) => {
                    tried.push(Attempt { path, origin, reason: reason.into() });
                }
                Err(Refusal::Said(error)) => return Err(error),
            }
        }
        Err(Error::Unreachable { tried })
    }

    async fn open_at(path: &Path, name: &str) -> Result<Link, Refusal> {
        places::check_path(path).map_err(Refusal::Nobody)?;
        let stream = UnixStream::connect(path).await.map_err(Refusal::Nobody)?;
        let terms = Terms { value_bytes_max: 0, frame_bytes_max: 0 };
        let mut link = Link { stream, inbox: Inbox::new(), terms, owes: false };
        // A daemon that turns us away by our credentials closes before it reads; its reason, if any, is still to be had.
        let said = write_all(&link.stream, &frames::hello(name), &mut 0).await;
        let frame = match read_frame(&mut link.stream, &mut link.inbox).await {
            Ok(frame) => frame,
            Err(Broken::Io(error)) => {
                return Err(Refusal::Nobody(frames::no_welcome(said.err().unwrap_or(error))));
            }
            Err(Broken::Frame(cause)) => return Err(Refusal::Said(frames::not_ours(cause, false))),
        };
        link.terms = frames::welcome(link.inbox.frame(frame)).map_err(Refusal::Said)?;
        link.inbox.welcomed(link.terms);
        Ok(link)
    }

    /// Sends a request and waits for its answer, with the link to itself.
    pub(super) async fn exchange(
        &mut self,
        sending: &Sending,
        attempts: &Attempts,
    ) -> Result<Range<usize>, Failure> {
        fits(sending, self.terms).map_err(Failure::NotSent)?;
        if !self.inbox.is_empty() {
            let message = "the daemon sent something nobody asked for".to_owned();
            return Err(Failure::NotSent(Error::Protocol { message, maybe_applied: false, source: None }));
        }
        if self.owes {
            return Err(Failure::NotSent(Error::lost(false, io::ErrorKind::NotConnected)));
        }
        let deadline = attempts.deadline().into();
        let mut written = 0;
        self.owes = true;
        match timeout_at(deadline, write_all(&self.stream, &sending.frame, &mut written)).await {
            Ok(Ok(())) => {}
            // The daemon executes whole frames only.
            Ok(Err(source)) => return Err(Failure::NotSent(Error::lost(false, source))),
            Err(_elapsed) => return Err(Failure::NotSent(attempts.timed_out(false))),
        }
        match timeout_at(deadline, read_frame(&mut self.stream, &mut self.inbox)).await {
            Ok(Ok(frame)) => {
                self.owes = false;
                Ok(frame)
            }
            Ok(Err(broken)) => Err(Failure::Sent(broken.error(true))),
            Err(_elapsed) => Err(Failure::Sent(attempts.timed_out(true))),
        }
    }

    /// One request and its answer; again while the daemon asks for it and the deadline allows.
    pub(super) async fn converse<T>(
        &mut self,
        call: &Call<T>,
        attempts: &mut Attempts,
    ) -> Result<Result<T>, Failure> {
        loop {
            let frame = self.exchange(&call.sending, attempts).await?;
            let mut read = |response: Response<'_>| (call.read)(response);
            match attempts.answered(self.inbox.frame(frame), &mut read) {
                Step::Done(answer) => return Ok(answer),
                Step::Again(pause) => sleep(pause).await,
                Step::Broken(error) => {
                    self.owes = true;
                    return Err(Failure::Sent(error));
                }
            }
        }
    }

    /// Whether the next exchange gets its own answer.
    pub(super) fn is_sound(&self) -> bool {
        !self.owes
    }
}

enum Refusal {
    Nobody(io::Error),
    Said(Error),
}

/// Writes everything, counting in `written` how far it got.
pub(super) async fn write_all(stream: &UnixStream, bytes: &[u8], written: &mut u64) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // NOSIGNAL: a host program may not ignore SIGPIPE. A closed peer is known here, before anything is sent.
        let n = stream.async_io(Interest::WRITABLE, || Ok(send(stream, rest, SendFlags::NOSIGNAL)?)).await?;
        rest = &rest[n..];
        *written += n as u64;
    }
    Ok(())
}

/// Waits for the next frame, to be read from the inbox.
pub(super) async fn read_frame(
    // Not `try_read` when it is readable: a read that came short tells tokio that there is no more, else the next wait begins
    // with a read in vain.
    stream: &mut (impl AsyncRead + Unpin),
    inbox: &mut Inbox,
) -> Result<Range<usize>, Broken> {
    loop {
        if let Some(frame) = inbox.next().map_err(Broken::Frame)? {
            return Ok(frame);
        }
        match stream.read(inbox.space()).await {
            Ok(0) => return Err(Broken::Io(frames::closed())),
            Ok(n) => inbox.received(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Io(error)),
        }
    }
}
