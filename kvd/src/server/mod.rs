//! The socket and the connections on it. In reading order: a request comes in by `socket`, `accept`, `peer` and
//! `connection`; `stop` ends it all.
//!
//! `cli::serve`, tests and embedding applications start one with [`Server::start`]. It knows frames and sockets and
//! hands every request to the engine; it must never know what a store is or decide what a request means.

mod accept;
mod connection;
mod input;
mod linger;
mod park;
mod peer;
mod scrape;
mod slots;
mod socket;
mod stop;

pub use scrape::{Scrape, ScrapeError};
pub use socket::SocketError;
pub use stop::Signals;

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use crate::config::Config;
use crate::engine::Engine;
use peer::{Doorkeeper, Guest, List};
use slots::Slots;
use socket::BoundSocket;

/// After connections were cut at the deadline, their threads get this long to notice.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// A daemon's ear: one listening socket and a thread a connection.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    socket: Arc<BoundSocket>,
    accept: Option<JoinHandle<()>>,
}

/// What all threads of a server share.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    config: Config,
    slots: Arc<Slots>,
    live: ArcSwap<Live>,
    open: Mutex<Open>,
    closed_one: Condvar,
    next_client_id: AtomicU64,
}

/// What of the configuration a reload changes.
#[derive(Debug)]
struct Live {
    list: Arc<List>,
    idle_timeout: Option<Duration>,
}

impl Live {
    fn of(config: &Config) -> Live {
        Live { list: Arc::new(List::of(config)), idle_timeout: config.idle_timeout }
    }
}

/// A connection that is served, and what it was let in for.
#[derive(Debug, Clone)]
struct Joined {
    stream: Arc<UnixStream>,
    guest: Guest,
}

#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Joined>,
    is_stopping: bool,
    is_hurried: bool,
}

/// What a stop left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that were still busy at the deadline and were cut.
    pub cut: usize,
}

/// Hurries a stop that is under way.
#[derive(Debug, Clone)]
pub struct Hurry(Arc<Shared>);

impl Hurry {
    /// Connections that are still busy are cut now instead of at the deadline.
    pub fn now(&self) {
        self.0.open.lock().is_hurried = true;
        self.0.closed_one.notify_all();
    }
}

impl Server {
    /// Binds the socket and serves `engine` on it until [`Server::stop`].
    ///
    /// # Errors
    /// When the socket cannot be had; nothing is left behind then.
    pub fn start(engine: Arc<Engine>, config: &Config) -> Result<Server, SocketError> {
        let socket = BoundSocket::bind(&config.socket, &config.access, engine.clock())?;
        Server::start_on(engine, config, socket)
    }

    /// As `start`, on a socket that the service manager listens on and keeps.
    ///
    /// # Errors
    /// When it is none of the file system.
    pub fn start_activated(
        engine: Arc<Engine>,
        config: &Config,
        listener: UnixListener,
    ) -> Result<Server, SocketError> {
        Server::start_on(engine, config, BoundSocket::activated(listener)?)
    }

    fn start_on(engine: Arc<Engine>, config: &Config, socket: BoundSocket) -> Result<Server, SocketError> {
        Server::start_with(engine, config, Arc::new(socket))
    }

    fn start_with(
        engine: Arc<Engine>,
        config: &Config,
        socket: Arc<BoundSocket>,
    ) -> Result<Server, SocketError> {
        let shared = Arc::new(Shared {
            slots: Slots::new(config),
            live: ArcSwap::from_pointee(Live::of(config)),
            engine,
            config: config.clone(),
            open: Mutex::default(),
            closed_one: Condvar::new(),
            next_client_id: AtomicU64::new(1),
        });
        let accept = accept::spawn(Arc::clone(&shared), Arc::clone(&socket)).map_err(|source| {
            SocketError::Io { path: config.socket.clone(), doing: "start the accept thread", source }
        })?;
        Ok(Server { shared, socket, accept: Some(accept) })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// A handle that can hurry [`Server::stop`] from another thread.
    #[must_use]
    pub fn hurry(&self) -> Hurry {
        Hurry(Arc::clone(&self.shared))
    }

    /// Takes over what a running server can of a configuration that holds together. Connections of users who are no longer admitted,
    /// or may now do something else, end.
    pub fn adjust(&self, config: &Config) {
        let shared = &self.shared;
        shared.slots.adjust(config);
        let list = Arc::new(List::of(config).after(&shared.live.load().list));
        shared.live.store(Arc::new(Live { list: Arc::clone(&list), idle_timeout: config.idle_timeout }));
        shared.judge_anew(&mut Doorkeeper::new(list));
    }

    /// Stops accepting, lets what was sent be answered until `deadline`, cuts what remains, removes the socket.
    /// The engine is not closed: that is the caller's, who may have others to serve.
    pub fn stop(mut self, deadline: Duration) -> Stopped {
        self.stop_within(deadline)
    }

    fn stop_within(&mut self, deadline: Duration) -> Stopped {
        let Some(accept) = self.accept.take() else { return Stopped { cut: 0 } };
        self.shared.open.lock().is_stopping = true;
        self.socket.refuse_more();
        accept.join().expect("the accept thread does not panic");
        let cut = self.shared.drain(self.shared.engine.clock().instant() + deadline);
        self.socket.remove();
        Stopped { cut }
    }
}

/// A socket that nobody accepts from at the moment: who connects waits in the kernel's queue.
#[derive(Debug)]
pub(crate) struct Ear(Arc<BoundSocket>);

impl Ear {
    /// The socket at `path` that another process has served until now.
    pub(crate) fn inherited(
        listener: UnixListener,
        lock: Option<OwnedFd>,
        path: &Path,
    ) -> std::io::Result<Ear> {
        Ok(Ear(Arc::new(BoundSocket::inherited(listener, lock, path)?)))
    }

    /// Another process serves it from here on.
    pub(crate) fn give_away(self) {
        self.0.give_away();
    }
}

impl Server {
    /// Serves `engine` on a socket that was paused.
    pub(crate) fn start_at(engine: Arc<Engine>, config: &Config, ear: Ear) -> Result<Server, SocketError> {
        ear.0.resume(engine.clock());
        Server::start_with(engine, config, ear.0)
    }

    /// Copies of the descriptors of the listener and of the lock beside it, for the next daemon.
    pub(crate) fn descriptors(&self) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
        self.socket.descriptors()
    }

    /// Ends as `stop` does, except that the socket stays and who connects from now on waits.
    pub(crate) fn pause(mut self, deadline: Duration) -> (Ear, Stopped) {
        let accept = self.accept.take().expect("only stopping ends it");
        // First, so that nobody is accepted and not served.
        self.socket.pause();
        accept.join().expect("the accept thread does not panic");
        self.shared.open.lock().is_stopping = true;
        let cut = self.shared.drain(self.shared.engine.clock().instant() + deadline);
        (Ear(Arc::clone(&self.socket)), Stopped { cut })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_within(Duration::ZERO);
    }
}

impl Shared {
    fn next_client_id(&self) -> u64 {
        self.next_client_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Lists a connection so that a stop or a reload finds it; false when the stop has begun.
    fn list(&self, client_id: u64, stream: &Arc<UnixStream>, guest: &Guest) -> bool {
        let mut open = self.open.lock();
        if !open.is_stopping {
            open.connections.insert(client_id, Joined { stream: Arc::clone(stream), guest: guest.clone() });
        }
        !open.is_stopping
    }

    /// Ends the connections of those who would be let in for something else now, or not at all.
    fn judge_anew(&self, door: &mut Doorkeeper) {
        let now = self.engine.clock().instant();
        let joined: Vec<_> = self.open.lock().connections.values().cloned().collect();
        for Joined { stream, guest } in joined {
            if door.admit(&guest.peer, now).as_ref() != Some(&guest) {
                drop(stream.shutdown(Shutdown::Both));
            }
        }
    }

    fn unlist(&self, client_id: u64) {
        self.open.lock().connections.remove(&client_id);
        self.closed_one.notify_all();
    }

    /// Ends all connections, those that are busy at `deadline` by force; how many those were.
    fn drain(&self, deadline: Instant) -> usize {
        let mut open = self.open.lock();
        // What a client has already sent stays readable and is answered; its next write fails at once, so that it
        // knows for certain that this one was not seen.
        let shut = |open: &Open, how| {
            open.connections.values().for_each(|joined| drop(joined.stream.shutdown(how)));
        };
        shut(&open, Shutdown::Read);
        while !open.connections.is_empty() && !open.is_hurried {
            if self.closed_one.wait_until(&mut open, deadline).timed_out() {
                break;
            }
        }
        let cut = open.connections.len();
        shut(&open, Shutdown::Both);
        let grace = self.engine.clock().instant() + CUT_GRACE;
        while !open.connections.is_empty() && !self.closed_one.wait_until(&mut open, grace).timed_out() {}
        cut
    }
}

#[cfg(test)]
mod tests;
