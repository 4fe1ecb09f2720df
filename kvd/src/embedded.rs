//! The engine inside one application, without a socket, with the same operations.
//!
//! For a program of one process: no daemon to run, the same store on disk, the same client type. What it gives up is
//! sharing: the directory is locked, and no other process sees the caches until it is served by a daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::blocking::{Client, Direct, DirectSession};
use kv_proto::wire::{Envelope, Response, WireError, decode, encode_into};

use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{Engine, Failure, Session, StartError};

/// How long closing may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// An engine of this process; closed when dropped.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use std::time::Duration;
/// let kvd = kvd::Embedded::open(dir.path())?;
/// let sessions = kvd.client().cache("session");
/// sessions.put("s1", "anna", Duration::from_secs(1_800))?;
/// assert_eq!(sessions.get("s1")?.as_deref(), Some(&b"anna"[..]));
/// kvd.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Embedded {
    engine: Arc<Engine>,
    client: Client,
}

impl Embedded {
    /// Opens a directory with the default configuration.
    ///
    /// # Errors
    /// When the directory is held by another process or its store cannot be opened.
    pub fn open(dir: impl AsRef<Path>) -> Result<Embedded, StartError> {
        Embedded::with(Config::in_dir(dir))
    }

    /// Opens with a configuration; its socket is not used.
    ///
    /// # Errors
    /// As [`Embedded::open`], and when the configuration does not hold together.
    pub fn with(config: Config) -> Result<Embedded, StartError> {
        let engine = Engine::open(config, Clock::system())?;
        let client = direct(&engine);
        Ok(Embedded { engine, client })
    }

    /// The client: every operation there is, applied in this thread.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Flushes and closes; clients that are left get `Unavailable`.
    ///
    /// # Errors
    /// When the last flush fails. What was acknowledged is in the pending log all the same.
    pub fn close(self) -> Result<(), Failure> {
        self.close_by(Instant::now() + CLOSE_WITHIN)
    }

    /// As [`Embedded::close`], with a deadline of one's own.
    ///
    /// # Errors
    /// As [`Embedded::close`].
    pub fn close_by(self, deadline: Instant) -> Result<(), Failure> {
        self.engine.close(deadline)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(failure) = self.engine.close(Instant::now() + CLOSE_WITHIN) {
            tracing::error!(%failure, "the store was not closed cleanly; the next open replays its log");
        }
    }
}

/// A client that calls the engine in its own thread.
pub(crate) fn direct(engine: &Arc<Engine>) -> Client {
    Client::builder().direct(Arc::new(Calls(Arc::clone(engine))))
}

/// The engine as a client's way to the data.
struct Calls(Arc<Engine>);

impl Direct for Calls {
    fn call(&self, frame: &[u8], answer: &mut Vec<u8>, deadline: Instant) {
        thread_local!(static SESSION: std::cell::RefCell<Session> = std::cell::RefCell::new(Session::of_process()));
        SESSION.with_borrow_mut(|session| {
            answer_to(&self.0, session, frame, answer, deadline);
            // Shared by all who call in this thread, of whatever engine: nothing is held from one call to the next.
            self.0.leave(session);
        });
    }

    fn session(&self) -> Box<dyn DirectSession> {
        Box::new(OwnSession { engine: Arc::clone(&self.0), session: Session::of_process() })
    }
}

/// What a transaction, leases, or a named lock have for themselves.
struct OwnSession {
    engine: Arc<Engine>,
    session: Session,
}

impl DirectSession for OwnSession {
    fn call(&mut self, frame: &[u8], answer: &mut Vec<u8>, deadline: Instant) {
        answer_to(&self.engine, &mut self.session, frame, answer, deadline);
    }
}

impl Drop for OwnSession {
    fn drop(&mut self) {
        self.engine.leave(&mut self.session);
    }
}

fn answer_to(engine: &Engine, session: &mut Session, frame: &[u8], answer: &mut Vec<u8>, deadline: Instant) {
    let envelope: Envelope<'_> = decode(frame).expect("our own client encodes what we decode");
    let applied = engine.apply(session, &envelope.request, answer);
    if let Some(number) = applied.durable
        && let Err(failure) = engine.wait_durable(number, deadline)
    {
        answer.clear();
        let error: WireError<'_> = failure.to_wire();
        encode_into(answer, &Response::Error(error));
    }
}
