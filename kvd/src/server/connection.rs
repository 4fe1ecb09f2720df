//! One connection: a thread that reads what is there, executes all complete frames, waits once if any of them must be
//! durable, and answers with one write.
//!
//! Spawned by `accept` with a slot and checked credentials. Every wait here has a deadline, every buffer a bound; bytes
//! that are wrong get a typed answer and end the connection. It must never decide what a request means.

use std::io::{ErrorKind as IoKind, IoSlice, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::limits::{
    CLIENT_NAME_BYTES_MAX, HELLO_BYTES_MAX, OUTPUT_BYTES_MAX, OUTPUT_STALL_MAX, PARTIAL_FRAME_MAX,
};
use kv_proto::wire::{
    Envelope, ErrorKind, FrameError, Hello, PROTOCOL_MAGIC, PROTOCOL_OLDEST, PROTOCOL_VERSION, Response,
    Welcome, WireError, decode, encode_into,
};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::Shared;
use super::input::{Input, QUIET_BYTES_MAX};
use super::linger::linger;
use super::park::{Seen, SocketPark, Watch};
use super::peer::Guest;
use super::slots::Slot;
use crate::engine::{Handed, LogNumber, Parked, Session, Subject};
use crate::metrics::{CutFor, Operation, Sample};
use crate::units::cut_text;
use crate::waited::{self, Waited};

/// Requests executed before the first of them is answered, so that a deep pipeline does not wait for its own end.
const BATCH_REQUESTS_MAX: usize = 32;
/// Longest wait of a batch for the disk. Beyond: `Timeout`, maybe applied.
const DURABLE_WAIT_MAX: Duration = Duration::from_secs(10);
/// A connection with large buffers that asks nothing for this long gives them back.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// How often a connection that waits for changes looks by itself; it is woken when there are some.
const CHANGES_WAIT_MAX: Duration = Duration::from_secs(60);
/// Enough for redb's and our own frames; only touched pages cost memory.
const STACK_BYTES: usize = 512 << 10;

/// Starts serving `stream`.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    stream: UnixStream,
    guest: Guest,
    slot: Slot,
) -> std::io::Result<()> {
    let client_id = shared.next_client_id();
    let stream = Arc::new(stream);
    if !shared.list(client_id, &stream, &guest) {
        return Ok(());
    }
    shared.engine.metrics().connected();
    // From here on the guard takes everything back, also when there is no thread to be had.
    let listed = Listed { shared: Arc::clone(shared), client_id, slot: Some(slot) };
    let serve = move || Connection::new(&listed, stream).run(guest);
    std::thread::Builder::new().name(format!("kvd-conn-{client_id}")).stack_size(STACK_BYTES).spawn(serve)?;
    Ok(())
}

/// A connection's place in the books.
struct Listed {
    shared: Arc<Shared>,
    client_id: u64,
    slot: Option<Slot>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        // Free before it is told: who sees one connection less must find the room.
        drop(self.slot.take());
        self.shared.engine.metrics().disconnected();
        self.shared.unlist(self.client_id);
    }
}

/// Why a connection ends.
enum End {
    /// The peer closed it, or the daemon stops.
    Closed,
    /// The daemon had enough.
    Cut(CutFor),
}

/// An answer in `output` that may not go out before the disk has its write.
struct Awaiting {
    sample: usize,
    start: usize,
    end: usize,
    number: LogNumber,
    /// What it took without the disk, for the slow log.
    own: Duration,
    waited: Waited,
    subject: Subject,
}

struct Connection<'a> {
    shared: &'a Shared,
    client_id: u64,
    stream: Arc<UnixStream>,
    input: Input,
    output: Vec<u8>,
    awaiting: Vec<Awaiting>,
    samples: Vec<Sample>,
    /// When the last request of the batch had been executed.
    executed: Instant,
    /// Descriptors that go out with the answers in `output`.
    handed: Option<Handed>,
    frame_bytes_max: usize,
    // What the socket's read timeout is now; most requests need not change it.
    read_timeout: Option<Duration>,
}

impl<'a> Connection<'a> {
    fn new(listed: &'a Listed, stream: Arc<UnixStream>) -> Connection<'a> {
        Connection {
            shared: &listed.shared,
            client_id: listed.client_id,
            stream,
            input: Input::new(),
            output: Vec::new(),
            awaiting: Vec::new(),
            samples: Vec::with_capacity(BATCH_REQUESTS_MAX),
            executed: listed.shared.engine.clock().instant(),
            handed: None,
            frame_bytes_max: HELLO_BYTES_MAX,
            read_timeout: None,
        }
    }

    fn run(&mut self, guest: Guest) {
        let peer = guest.peer;
        match self.serve(guest) {
            End::Closed => {}
            End::Cut(reason) => {
                self.shared.engine.metrics().cut(reason);
                tracing::info!(
                    client = self.client_id,
                    uid = peer.uid,
                    pid = peer.pid,
                    reason = reason.label(),
                    "a connection was cut"
                );
                if reason == CutFor::Protocol {
                    linger(&self.stream, self.shared.engine.clock());
                }
            }
        }
    }

    fn serve(&mut self, guest: Guest) -> End {
        let peer = guest.peer;
        let mut session = match self.greet(guest) {
            Ok(session) => session,
            Err(end) => return end,
        };
        let mut watch = Watch::new(&self.stream, peer);
        loop {
            let served = self
                .await_client(&session, &mut watch)
                .and_then(|()| self.receive(None))
                .and_then(|()| self.execute_batch(&mut session))
                .and_then(|()| self.go_on(&mut session))
                .and_then(|()| self.send_changes(&mut session));
            if let Err(end) = served {
                self.shared.engine.leave(&mut session);
                return end;
            }
        }
    }

    /// What takes long is answered piece by piece; the client's next request has to wait for the end of it.
    fn go_on(&mut self, session: &mut Session) -> Result<(), End> {
        while session.is_at_work() {
            self.shared.engine.go_on(session, &mut self.output);
            self.send()?;
        }
        Ok(())
    }

    /// Once the client watches, its connection only tells what changes, until it ends.
    fn send_changes(&mut self, session: &mut Session) -> Result<(), End> {
        let engine = &self.shared.engine;
        while session.is_watching() {
            engine.take_changes(session, &mut self.output);
            self.send()?;
            match session.await_changes(engine.clock().instant() + CHANGES_WAIT_MAX) {
                Parked::Woken | Parked::TimedOut => {}
                Parked::Gone => return Err(End::Closed),
            }
        }
        Ok(())
    }

    /// While the client holds something that others may want: waits for the next request, for the end of its process, or for the
    /// end of its transaction's life, whichever comes first.
    fn await_client(&self, session: &Session, watch: &mut Watch) -> Result<(), End> {
        let engine = &self.shared.engine;
        while let Some(ends) = engine.watched_until(session) {
            if self.input.has_frame(self.frame_bytes_max) {
                return Ok(());
            }
            match watch.wait(ends) {
                Ok(Seen::Readable) => return Ok(()),
                Ok(Seen::Dead) | Err(_) => return Err(End::Closed),
                Ok(Seen::TimedOut) => engine.end_if_old(session),
            }
        }
        Ok(())
    }

    /// Exchanges hellos; the peer has the time of one frame for its own.
    fn greet(&mut self, guest: Guest) -> Result<Session, End> {
        // Only a closed descriptor refuses this, and then nothing can be read or written either.
        self.stream.set_write_timeout(Some(OUTPUT_STALL_MAX / 2)).map_err(|_| End::Closed)?;
        self.receive(Some(self.shared.engine.clock().instant()))?;
        let greeting = match self.input.next_frame(HELLO_BYTES_MAX) {
            Ok(frame) => read_hello(frame.expect("receive returns when a frame is there")),
            Err(error) => Err(error.to_string()),
        };
        let config = &self.shared.config;
        match greeting {
            Ok((version, name)) => {
                self.frame_bytes_max = config.frame_bytes_max();
                let bytes = |n: usize| u32::try_from(n).expect("limits are far below 4 GiB");
                let welcome = Welcome::Accepted {
                    version,
                    run_id: self.shared.engine.run_id(),
                    client_id: self.client_id,
                    value_bytes_max: bytes(config.value_bytes_max),
                    frame_bytes_max: bytes(self.frame_bytes_max),
                };
                encode_into(&mut self.output, &welcome);
                self.send()?;
                let peer = guest.peer;
                tracing::debug!(client = self.client_id, uid = peer.uid, pid = peer.pid, name, "connected");
                let park = Box::new(SocketPark::new(&self.stream, peer));
                Ok(self.shared.engine.join(guest.caller(self.client_id, name), park))
            }
            Err(message) => {
                let message = cut_text(&message, kv_proto::limits::ERROR_MESSAGE_BYTES_MAX);
                let error =
                    WireError { kind: ErrorKind::Protocol, message, maybe_applied: false, retry_after_ms: 0 };
                encode_into(&mut self.output, &Welcome::Refused(error));
                self.send()?;
                Err(End::Cut(CutFor::Protocol))
            }
        }
    }

    /// Reads until a complete frame is there (or one that must be refused). `begun`: the frame counts as begun then.
    fn receive(&mut self, mut begun: Option<Instant>) -> Result<(), End> {
        if self.input.has_frame(self.frame_bytes_max) {
            return Ok(());
        }
        let clock = self.shared.engine.clock();
        let mut is_quiet = false;
        loop {
            if begun.is_none() && self.input.has_part() {
                begun = Some(clock.instant());
            }
            let is_large = self.input.is_large() || self.output.capacity() > QUIET_BYTES_MAX;
            let wait = match begun {
                Some(begun) => {
                    let left = (begun + PARTIAL_FRAME_MAX).saturating_duration_since(clock.instant());
                    Some(left)
                        .filter(|left| !left.is_zero())
                        .ok_or(End::Cut(CutFor::PartialFrame))
                        .map(Some)?
                }
                None if is_large && !is_quiet => Some(QUIET_AFTER),
                None => self.shared.live.load().idle_timeout,
            };
            self.set_read_timeout(wait)?;
            match self.input.fill(&*self.stream) {
                Ok(0) => return Err(End::Closed),
                Ok(count) => {
                    self.shared.engine.metrics().received(count);
                    if self.input.has_frame(self.frame_bytes_max) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) if !is_timeout(&error) => return Err(End::Closed),
                Err(_) if begun.is_some() => return Err(End::Cut(CutFor::PartialFrame)),
                Err(_) if is_large && !is_quiet => {
                    is_quiet = true;
                    self.input.shrink();
                    self.output = Vec::new();
                }
                Err(_) => return Err(End::Cut(CutFor::Idle)),
            }
        }
    }

    fn set_read_timeout(&mut self, wait: Option<Duration>) -> Result<(), End> {
        if self.read_timeout != wait {
            self.stream.set_read_timeout(wait).map_err(|_| End::Closed)?;
            self.read_timeout = wait;
        }
        Ok(())
    }

    /// Executes the complete frames that are there and answers them with one write.
    fn execute_batch(&mut self, session: &mut Session) -> Result<(), End> {
        let received = self.shared.engine.clock().instant();
        self.executed = received;
        let mut fault = None;
        let is_full = |this: &Connection<'_>| {
            this.samples.len() >= BATCH_REQUESTS_MAX
                || this.output.len() >= OUTPUT_BYTES_MAX
                // One set of descriptors a write: which answer they belong to must be plain.
                || this.handed.is_some()
        };
        while !is_full(self) && !session.is_watching() && !session.is_at_work() {
            match self.execute_one(session, received) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        self.await_disk(session, received);
        self.shared.engine.metrics().record(self.client_id, &self.samples);
        self.samples.clear();
        if let Some(error) = &fault {
            encode_fault(&mut self.output, error);
        }
        self.send()?;
        fault.map_or(Ok(()), |_| Err(End::Cut(CutFor::Protocol)))
    }

    /// Executes the next frame; false when there is none.
    fn execute_one(&mut self, session: &mut Session, received: Instant) -> Result<bool, FrameError> {
        let Some(frame) = self.input.next_frame(self.frame_bytes_max)? else { return Ok(false) };
        let envelope: Envelope<'_> = decode(frame)?;
        let engine = &self.shared.engine;
        let start = self.output.len();
        let applied = engine.apply(session, &envelope.request, &mut self.output);
        let now = engine.clock().instant();
        let latency = now.duration_since(received);
        // Without the other requests of the batch: they have lines of their own.
        let own = now.duration_since(std::mem::replace(&mut self.executed, now));
        let waited = waited::take();
        if let Some(number) = applied.durable {
            let (sample, end) = (self.samples.len(), self.output.len());
            let subject = Subject::of(&envelope.request);
            self.awaiting.push(Awaiting { sample, start, end, number, own, waited, subject });
        } else if engine.is_slow(own) {
            engine.note_slow(session, Subject::of(&envelope.request), own, waited, applied.failure);
        }
        self.handed = applied.handed;
        let operation = Operation::of(&envelope.request);
        self.samples.push(Sample { operation, latency, error: applied.failure });
        Ok(true)
    }

    /// Waits once for all durable writes of the batch. If the disk fails them, their answers say so instead.
    fn await_disk(&mut self, session: &Session, received: Instant) {
        let Some(last) = self.awaiting.iter().map(|a| a.number).max() else { return };
        let engine = &self.shared.engine;
        let deadline = engine.clock().instant() + DURABLE_WAIT_MAX;
        let failure = engine.wait_durable(last, deadline).err();
        let now = engine.clock().instant();
        let (latency, disk) = (now.duration_since(received), now.duration_since(self.executed));
        let is_failed = failure.is_some();
        if let Some(failure) = failure {
            let message = failure.to_string();
            let kind = ErrorKind::StoreFailed;
            self.replace_awaiting(&WireError {
                kind,
                message: &message,
                maybe_applied: true,
                retry_after_ms: 0,
            });
            self.awaiting.iter().for_each(|a| self.samples[a.sample].error = Some(kind));
        }
        self.awaiting.iter().for_each(|a| self.samples[a.sample].latency = latency);
        for Awaiting { own, waited, subject, .. } in self.awaiting.drain(..) {
            if engine.is_slow(own + disk) {
                let waited = Waited { disk: waited.disk + disk, ..waited };
                let failure = is_failed.then_some(ErrorKind::StoreFailed);
                engine.note_slow(session, subject, own + disk, waited, failure);
            }
        }
    }

    fn replace_awaiting(&mut self, error: &WireError<'_>) {
        let answers = std::mem::take(&mut self.output);
        let mut kept = 0;
        for awaiting in &self.awaiting {
            self.output.extend_from_slice(&answers[kept..awaiting.start]);
            encode_into(&mut self.output, &Response::Error(error.clone()));
            kept = awaiting.end;
        }
        self.output.extend_from_slice(&answers[kept..]);
    }

    /// Writes all answers. A peer that reads none for too long is cut off; one that reads slowly holds up nobody else.
    fn send(&mut self) -> Result<(), End> {
        let mut rest = &self.output[..];
        // A write that ends early had half of the time without progress behind it; one that wrote nothing, too.
        let mut halves_stalled = 0;
        while !rest.is_empty() {
            let written = match &self.handed {
                Some(handed) => send_with(&self.stream, rest, handed),
                None => (&*self.stream).write(rest),
            };
            match written {
                Ok(0) => return Err(End::Closed),
                Ok(count) => {
                    self.handed = None;
                    rest = &rest[count..];
                    halves_stalled = 1;
                }
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) if is_timeout(&error) && halves_stalled == 0 => halves_stalled = 1,
                Err(error) if is_timeout(&error) => return Err(End::Cut(CutFor::Stalled)),
                Err(_) => return Err(End::Closed),
            }
        }
        self.shared.engine.metrics().sent(self.output.len());
        self.output.clear();
        Ok(())
    }
}

/// Writes as `write` does, with descriptors on the first byte.
fn send_with(stream: &UnixStream, bytes: &[u8], handed: &Handed) -> std::io::Result<usize> {
    let descriptors = handed.descriptors().map(|descriptor| descriptor.as_raw_fd());
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)?)
}

/// The protocol version both speak and the client's name, or what to tell it.
fn read_hello(frame: &[u8]) -> Result<(u16, String), String> {
    let hello: Hello<'_> = decode(frame).map_err(|e| format!("this is not a kvd client: {e}"))?;
    if hello.magic != PROTOCOL_MAGIC {
        return Err(format!("this is not a kvd client: it begins with {:#010x}", hello.magic));
    }
    let version = hello.version.min(PROTOCOL_VERSION);
    if version < hello.oldest.max(PROTOCOL_OLDEST) {
        let (oldest, newest) = (hello.oldest, hello.version);
        return Err(format!(
            "the client speaks protocol {oldest} to {newest}, the daemon {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}: \
             upgrade the older of the two"
        ));
    }
    Ok((version, cut_text(hello.name, CLIENT_NAME_BYTES_MAX).to_owned()))
}

fn encode_fault(output: &mut Vec<u8>, error: &FrameError) {
    let kind = match error {
        FrameError::TooLong { .. } => ErrorKind::TooLarge,
        FrameError::Malformed { .. } | FrameError::Trailing { .. } => ErrorKind::Protocol,
    };
    let message = error.to_string();
    let error = WireError { kind, message: &message, maybe_applied: false, retry_after_ms: 0 };
    encode_into(output, &Response::Error(error));
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), IoKind::WouldBlock | IoKind::TimedOut)
}
