//! A small stand-in daemon that can fail on demand: it loses answers, cuts frames, hangs, goes away and comes back.
//!
//! Used by the tests of this folder only. What a real daemon does is tested against a real daemon; this one speaks just
//! enough of the wire to be failed by.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use kv_proto::limits;
use kv_proto::wire::{
    Check, Condition, Entry, Envelope, ErrorKind, Expect, Freshness, Hello, Item, Request, Response,
    ScanItem, Welcome, WireError, Write as WireWrite, decode, encode_into, split_frame,
};
use parking_lot::Mutex;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection closes before the request is applied.
    LostBefore,
    /// The connection closes after the request was applied.
    LostAfter,
    /// Half of the answer comes, then the connection closes.
    HalfAnswer,
    /// Half of the answer comes, then nothing.
    HalfThenNothing,
    /// No answer comes.
    Nothing,
    /// "Busy", retry at once.
    Busy,
    /// An answer as long as no answer is.
    GiantLength,
    /// An answer that is no answer.
    Nonsense,
    /// The answer comes a byte at a time.
    Dribble,
    /// Applied, answered, and then the connection closes.
    CloseAfterAnswer,
}

#[derive(Default)]
struct Kept {
    items: BTreeMap<(String, Vec<u8>), (Vec<u8>, u64)>,
    version: u64,
}

#[derive(Default)]
struct State {
    kept: Mutex<Kept>,
    faults: Mutex<VecDeque<Fault>>,
    open: Mutex<Vec<UnixStream>>,
    welcomes: AtomicUsize,
    requests: AtomicUsize,
    answer_items_max: AtomicUsize,
    refuse_hello: Mutex<Option<ErrorKind>>,
    // The faults `Nothing` and `CloseAfterAnswer` report themselves here when they have happened.
    stuck: Mutex<Option<Sender<()>>>,
}

/// The stand-in daemon. Dropping it stops it.
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    state: Arc<State>,
    accept: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start() -> Fake {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = Arc::new(State::default());
        state.answer_items_max.store(usize::MAX, Ordering::Relaxed);
        let mut fake = Fake { dir, state, accept: None };
        fake.begin();
        fake
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("kvd.sock")
    }

    /// The next requests fail so, one each.
    pub(crate) fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().extend(faults);
    }

    /// Told of each request that gets no answer.
    pub(crate) fn stuck(&self) -> Receiver<()> {
        let (sender, receiver) = channel();
        *self.state.stuck.lock() = Some(sender);
        receiver
    }

    /// Every answer of `get_many` and `scan` stops at so many items.
    pub(crate) fn answer_items_max(&self, items: usize) {
        self.state.answer_items_max.store(items, Ordering::Relaxed);
    }

    pub(crate) fn refuse_hello(&self, kind: Option<ErrorKind>) {
        *self.state.refuse_hello.lock() = kind;
    }

    /// How many connections were welcomed, ever.
    pub(crate) fn welcomes(&self) -> usize {
        self.state.welcomes.load(Ordering::Relaxed)
    }

    /// How many requests arrived whole, ever.
    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// What is stored under a key.
    pub(crate) fn value(&self, cache: &str, key: &str) -> Option<Vec<u8>> {
        let kept = self.state.kept.lock();
        kept.items.get(&(cache.to_owned(), key.as_bytes().to_vec())).map(|(value, _)| value.clone())
    }

    /// Goes away as a killed process does: every stream closed, the socket's file left behind.
    pub(crate) fn kill(&mut self) {
        let Some(accept) = self.accept.take() else { return };
        // A connection to ourselves ends the accept loop: it looks at what is left of `accept`'s listener.
        self.state.faults.lock().clear();
        let _ = std::fs::write(self.dir.path().join("stop"), b"");
        let _ = UnixStream::connect(self.socket());
        accept.join().expect("the accept loop ends");
        for stream in self.state.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Comes back with what it had.
    pub(crate) fn begin(&mut self) {
        let stop = self.dir.path().join("stop");
        let _ = std::fs::remove_file(&stop);
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).expect("the socket is free");
        let state = Arc::clone(&self.state);
        self.accept = Some(std::thread::spawn(move || accept_until(&listener, &stop, &state)));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

fn accept_until(listener: &UnixListener, stop: &Path, state: &Arc<State>) {
    for stream in listener.incoming() {
        if stop.exists() {
            return;
        }
        let Ok(stream) = stream else { return };
        state.open.lock().push(stream.try_clone().expect("a descriptor"));
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            let _ = serve(&stream, &state);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

fn read_frame(mut stream: &UnixStream, pending: &mut Vec<u8>) -> std::io::Result<Vec<u8>> {
    loop {
        let limit = limits::frame_bytes_max(limits::VALUE_BYTES_DEFAULT);
        if let Some((frame, rest)) = split_frame(pending, limit).map_err(std::io::Error::other)? {
            let frame = frame.to_vec();
            *pending = rest.to_vec();
            return Ok(frame);
        }
        let mut bytes = [0; 65_536];
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        pending.extend_from_slice(&bytes[..n]);
    }
}

fn serve(mut stream: &UnixStream, state: &State) -> std::io::Result<()> {
    let mut pending = Vec::new();
    let hello = read_frame(stream, &mut pending)?;
    decode::<Hello<'_>>(&hello).expect("our client says hello");
    let mut out = Vec::new();
    if let Some(kind) = *state.refuse_hello.lock() {
        let error = WireError { kind, message: "not now", maybe_applied: false, retry_after_ms: 0 };
        encode_into(&mut out, &Welcome::Refused(error));
        return stream.write_all(&out);
    }
    state.welcomes.fetch_add(1, Ordering::Relaxed);
    let value_bytes_max = limits::VALUE_BYTES_DEFAULT;
    encode_into(
        &mut out,
        &Welcome::Accepted {
            version: 1,
            run_id: 1,
            client_id: 1,
            value_bytes_max: value_bytes_max as u32,
            frame_bytes_max: limits::frame_bytes_max(value_bytes_max) as u32,
        },
    );
    stream.write_all(&out)?;
    loop {
        let frame = read_frame(stream, &mut pending)?;
        let envelope = decode::<Envelope<'_>>(&frame).expect("our client sends requests");
        state.requests.fetch_add(1, Ordering::Relaxed);
        let fault = state.faults.lock().pop_front();
        if !answer(stream, state, &envelope.request, fault)? {
            return Ok(());
        }
    }
}

/// Whether the connection goes on.
fn answer(
    mut stream: &UnixStream,
    state: &State,
    request: &Request<'_>,
    fault: Option<Fault>,
) -> std::io::Result<bool> {
    let mut out = Vec::new();
    match fault {
        Some(Fault::LostBefore) => return Ok(false),
        Some(Fault::Nothing) => {
            report(state);
            // Until the client goes.
            let _ = stream.read(&mut [0; 1]);
            return Ok(false);
        }
        Some(Fault::Busy) => {
            let error = WireError {
                kind: ErrorKind::Unavailable,
                message: "busy",
                maybe_applied: false,
                retry_after_ms: 0,
            };
            encode_into(&mut out, &Response::Error(error));
        }
        Some(Fault::GiantLength) => out.extend_from_slice(&u32::MAX.to_le_bytes()),
        Some(Fault::Nonsense) => out.extend_from_slice(&[1, 0, 0, 0, 0xff]),
        _ => apply(state, request, &mut out),
    }
    match fault {
        Some(Fault::LostAfter) => Ok(false),
        Some(Fault::HalfAnswer) => stream.write_all(&out[..out.len() / 2]).map(|()| false),
        Some(Fault::HalfThenNothing) => {
            stream.write_all(&out[..out.len() / 2])?;
            let _ = stream.read(&mut [0; 1]);
            Ok(false)
        }
        Some(Fault::Dribble) => {
            for byte in out {
                stream.write_all(&[byte])?;
                std::thread::yield_now();
            }
            Ok(true)
        }
        Some(Fault::CloseAfterAnswer) => {
            stream.write_all(&out)?;
            stream.shutdown(std::net::Shutdown::Both)?;
            report(state);
            Ok(false)
        }
        _ => stream.write_all(&out).map(|()| true),
    }
}

/// Tells the test that a fault has happened.
fn report(state: &State) {
    if let Some(stuck) = &*state.stuck.lock() {
        let _ = stuck.send(());
    }
}

fn entry(value: &[u8]) -> Entry<'static> {
    Entry {
        freshness: Freshness::Fresh,
        value_bytes: value.len() as u32,
        age_ms: 0,
        expires_in_ms: None,
        stale_for_ms: 0,
        load_cost_ms: 0,
        tags: Vec::new(),
    }
}

fn apply(state: &State, request: &Request<'_>, out: &mut Vec<u8>) {
    let mut kept = state.kept.lock();
    let items_max = state.answer_items_max.load(Ordering::Relaxed);
    let place = |cache: &str, key: &[u8]| (cache.to_owned(), key.to_vec());
    match request {
        Request::Ping | Request::Sync => encode_into(out, &Response::Done),
        Request::Get { cache, key, .. } => match kept.items.get(&place(cache, key)) {
            Some((value, version)) => {
                encode_into(
                    out,
                    &Response::Item(Item { value, version: *version, entry: Some(entry(value)) }),
                );
            }
            None => encode_into(out, &Response::Missing),
        },
        Request::GetMany { cache, keys, snapshot } => {
            if snapshot.is_some_and(|moment| moment != kept.version) {
                return encode_into(out, &Response::Moved);
            }
            let item = |key: &[u8]| {
                let (value, version) = kept.items.get(&place(cache, key))?;
                Some(Item { value, version: *version, entry: None })
            };
            let items = keys.iter().take(items_max).map(|key| item(key.0)).collect();
            encode_into(out, &Response::Items { items, snapshot: kept.version });
        }
        Request::Scan { cache, prefix, cursor, keys_max, .. } => {
            let after = kept.items.range(place(cache, cursor)..).filter(|((c, key), _)| {
                c == cache && key.starts_with(prefix) && (cursor.is_empty() || key.as_slice() > *cursor)
            });
            let found: Vec<_> = after.take((*keys_max as usize).min(items_max) + 1).collect();
            let full = found.len() > (*keys_max as usize).min(items_max);
            let shown = &found[..found.len() - usize::from(full)];
            let items = shown.iter().map(|((_, key), (value, version))| ScanItem {
                key,
                item: Item { value, version: *version, entry: Some(entry(value)) },
            });
            let cursor = if full { shown.last().map_or(&[][..], |((_, key), _)| key) } else { &[] };
            encode_into(out, &Response::Page { items: items.collect(), cursor });
        }
        Request::Put { cache, key, value, options } => {
            let there = kept.items.get(&place(cache, key)).map(|(_, version)| *version);
            if !holds(options.condition, there) {
                return encode_into(out, &Response::Refused { version: there });
            }
            let version = kept.write(place(cache, key), Some(value));
            encode_into(out, &Response::Written { version });
        }
        Request::Delete { cache, key } => {
            let there = kept.items.contains_key(&place(cache, key));
            let version = kept.write(place(cache, key), None);
            encode_into(out, &if there { Response::Written { version } } else { Response::Missing });
        }
        Request::Commit { checks, writes, .. } => commit(&mut kept, checks, writes, out),
        _ => {
            let error = WireError {
                kind: ErrorKind::Invalid,
                message: "the stand-in does not know this",
                maybe_applied: false,
                retry_after_ms: 0,
            };
            encode_into(out, &Response::Error(error));
        }
    }
}

fn commit(kept: &mut Kept, checks: &[Check<'_>], writes: &[WireWrite<'_>], out: &mut Vec<u8>) {
    for (index, check) in checks.iter().enumerate() {
        let there =
            kept.items.get(&(check.cache.to_owned(), check.key.to_vec())).map(|(_, version)| *version);
        let holds = match check.expect {
            Expect::Absent => there.is_none(),
            Expect::Version(version) => there == Some(version),
        };
        if !holds {
            return encode_into(out, &Response::Conflict { index: index as u32, version: there });
        }
    }
    for write in writes {
        if let WireWrite::Put { cache, key, value, .. } = write {
            kept.write(((*cache).to_owned(), key.to_vec()), Some(value));
        } else if let WireWrite::Delete { cache, key } = write {
            kept.write(((*cache).to_owned(), key.to_vec()), None);
        }
    }
    encode_into(out, &Response::Committed { version: kept.version, changed: writes.len() as u32 });
}

fn holds(condition: Condition, there: Option<u64>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::IfAbsent => there.is_none(),
        Condition::IfVersion(version) => there == Some(version),
    }
}

impl Kept {
    fn write(&mut self, place: (String, Vec<u8>), value: Option<&[u8]>) -> u64 {
        self.version += 1;
        match value {
            Some(value) => self.items.insert(place, (value.to_vec(), self.version)),
            None => self.items.remove(&place),
        };
        self.version
    }
}
