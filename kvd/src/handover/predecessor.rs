//! The old daemon's part of a restart in place.
//!
//! Called by the main thread of `cli::serve`. Either the successor serves and this process is to end, or this process serves as
//! before, with the reason.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use super::{FromNew, FromOld, Link, PROTOCOL, Silence, TAKE_OVER, step};
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{Engine, Estate, Inherited};
use crate::orders::Orders;
use crate::server::{Ear, Server};

/// The successor has this long to read its configuration and to copy all segments once.
const COPY_WITHIN: Duration = Duration::from_secs(5);
/// … and the time that copying takes at this pace, in bytes a second.
const COPY_PACE: u64 = 64 << 20;
/// … and to copy what was written meanwhile, a round.
const FOLLOW_WITHIN: Duration = Duration::from_secs(30);
/// A message that has begun is here within this.
const MESSAGE_WITHIN: Duration = Duration::from_secs(1);
/// Rounds at most; each copies what was written during the last.
const ROUNDS_MAX: usize = 8;
/// So little left to copy is copied in the pause.
const REST_BYTES: u64 = 512 << 10;
/// The successor replays the journal in the pause: before, it is folded down to this …
const JOURNAL_BYTES: u64 = 1 << 20;
/// … or to what is left of it after this time.
const FOLD_WITHIN: Duration = Duration::from_secs(10);
/// Requests that were read get this long to be answered: one that is cut is a failed request, and a longer pause is not. Clients wait for
/// three seconds by default.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The store gets this long to be closed.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// In the pause: clients wait for three seconds by default, and this process may have to take back over within them.
const PREPARE_WITHIN: Duration = Duration::from_millis(1_200);
/// All that the successor still does is to accept.
const SERVE_WITHIN: Duration = Duration::from_millis(500);
/// How often waiting gives way to a stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How this program was started, and so how its successor is.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// To be asked at the start, while the binary still has its name: later there may be another one of that name.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of_this_process() -> std::io::Result<Program> {
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != TAKE_OVER).collect();
        Ok(Program { path: std::env::current_exe()?, arguments })
    }

    fn start(&self) -> std::io::Result<(Heir, Link)> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .arg(TAKE_OVER)
            .stdin(OwnedFd::from(theirs))
            // It is not the process that these were meant for.
            .env_remove("WATCHDOG_PID")
            .spawn()?;
        ours.set_write_timeout(Some(FOLLOW_WITHIN))?;
        Ok((Heir(Some(child)), Link(ours)))
    }
}

/// The successor's process: killed and reaped unless it was set free.
struct Heir(Option<Child>);

impl Heir {
    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// Kills and reaps it: afterwards it is certain that it does nothing any more.
    fn end(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            if let Err(error) = child.wait() {
                tracing::error!(%error, "the successor could not be waited for");
            }
        }
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.end();
    }
}

/// A daemon that serves and is to be followed.
pub struct Predecessor {
    /// Its memory and store.
    pub engine: Arc<Engine>,
    /// Its socket.
    pub server: Server,
    /// What it runs with.
    pub config: Config,
    /// What it is asked to do.
    pub orders: Arc<Orders>,
    /// Its clock.
    pub clock: Clock,
}

/// How it ended.
pub enum Ended {
    /// The process of this number serves; this one is to end.
    Followed(u32),
    /// This one serves as before, or again.
    Serves(Box<Predecessor>, String),
    /// Nobody serves: the reason, after which this process can only end.
    Lost(String),
}

/// Why the successor did not come to serve.
struct Why(String);

impl<E: std::fmt::Display> From<E> for Why {
    fn from(error: E) -> Why {
        Why(error.to_string())
    }
}

impl Predecessor {
    /// Starts the successor and hands over to it. The caches in `clear` are empty afterwards.
    #[must_use]
    pub fn hand_over(self, program: &Program, number: u64, clear: Vec<String>) -> Ended {
        let began_us = self.clock.monotonic_us();
        let started = program.start().map_err(|error| format!("{}: {error}", program.path.display()));
        let (mut heir, link) = match started {
            Ok(started) => started,
            Err(why) => return Ended::Serves(Box::new(self), why),
        };
        self.engine.begin_handover(JOURNAL_BYTES);
        let told = self.let_copy(&link, number, began_us, clear);
        match told {
            Ok(told) => self.switch(heir, &link, told),
            Err(Why(why)) => {
                heir.end();
                self.engine.give_up_handover();
                Ended::Serves(Box::new(self), why)
            }
        }
    }

    /// While everybody is served: until the successor has nearly everything. Gives the segments it was told of.
    fn let_copy(
        &self,
        link: &Link,
        number: u64,
        began_us: u64,
        clear: Vec<String>,
    ) -> Result<HashSet<u64>, Why> {
        let (listener, socket_lock) = self.server.descriptors()?;
        let descriptors = [listener, self.engine.lock_descriptor()?].into_iter().chain(socket_lock);
        let begin = FromOld::Begin {
            protocol: PROTOCOL,
            pid: std::process::id(),
            dir: self.config.dir.clone(),
            socket_configured: self.config.socket.clone(),
            socket: self.server.socket().to_owned(),
            number,
            began_us,
            clear,
        };
        link.send(&begin, &descriptors.collect::<Vec<_>>())?;
        let mut told = HashSet::new();
        let segments = self.engine.tell_segments()?;
        let copying = Duration::from_secs(self.engine.segment_bytes() / COPY_PACE);
        for (segment, descriptor) in segments {
            told.insert(segment.segment);
            link.send(&FromOld::Segment(segment), &[descriptor])?;
        }
        let control: Vec<OwnedFd> = self.engine.control_descriptor()?.into_iter().collect();
        link.send(&FromOld::Segments, &control)?;
        step::at("old", "told");
        self.await_copied(link, COPY_WITHIN + copying)?;
        self.fold();
        for _ in 0..ROUNDS_MAX {
            link.send(&FromOld::Heads(self.engine.tell_heads()), &[])?;
            if self.await_copied(link, FOLLOW_WITHIN)? < REST_BYTES {
                break;
            }
        }
        step::at("old", "copied");
        Ok(told)
    }

    fn await_copied(&self, link: &Link, within: Duration) -> Result<u64, Why> {
        let deadline = self.clock.instant() + within;
        while !link.has_something(self.clock.instant() + LOOK_EVERY) {
            if self.orders.is_stop_wanted() {
                return Err(Why("the daemon is to stop".to_owned()));
            }
            if self.clock.instant() >= deadline {
                return Err(Why(format!("the new process has not copied the memory within {within:?}")));
            }
        }
        match link.receive(self.clock.instant() + MESSAGE_WITHIN) {
            Ok((FromNew::Copied { bytes }, _)) => Ok(bytes),
            Ok((FromNew::Refused { why }, _)) => Err(Why(why)),
            Ok((FromNew::Prepared | FromNew::Serving { .. }, _)) => {
                Err(Why("the new process is out of step".to_owned()))
            }
            Err(silence) => Err(Why(format!("the new process has not copied the memory: {silence}"))),
        }
    }

    /// Waits until there is little to be replayed.
    fn fold(&self) {
        let deadline = self.clock.instant() + FOLD_WITHIN;
        while self.engine.replay_bytes() > 2 * JOURNAL_BYTES
            && self.clock.instant() < deadline
            && !self.orders.is_stop_wanted()
        {
            std::thread::sleep(LOOK_EVERY / 10);
        }
    }

    /// Ends here and lets the successor begin.
    fn switch(self, mut heir: Heir, link: &Link, told: HashSet<u64>) -> Ended {
        let Predecessor { engine, server, config, orders, clock } = self;
        let pause_began_us = clock.monotonic_us();
        let (ear, stopped) = server.pause(DRAIN_MAX);
        if stopped.cut > 0 {
            tracing::warn!("{} connections were still busy and were cut", stopped.cut);
        }
        step::at("old", "paused");
        let (estate, closed) = engine.bequeath(clock.instant() + CLOSE_MAX);
        drop(engine);
        if let Err(failure) = &closed {
            tracing::error!(%failure, "the store was not closed cleanly; its log is replayed");
        }
        step::at("old", "closed");
        let mut left = Left { estate, ear, config, orders, clock };
        if let Err(Why(why)) = left.let_prepare(link, &told, pause_began_us, closed.is_ok()) {
            heir.end();
            return left.take_back(why);
        }
        step::at("old", "prepared");
        let went = match link.send(&FromOld::Go, &[]) {
            Ok(()) => {
                step::at("old", "gone");
                link.receive(left.clock.instant() + SERVE_WITHIN)
            }
            Err(_) => Err(Silence::Unheard),
        };
        match went {
            Ok((FromNew::Serving { paused_us }, _)) => {
                let pid = heir.pid();
                tracing::info!(pid, paused_us, "another process serves");
                crate::supervisor::main_process(pid, "restarted in place");
                // It lives on by itself.
                heir.0 = None;
                left.ear.give_away();
                Ended::Followed(pid)
            }
            Ok(_) => {
                heir.end();
                left.start_anew("the new process is out of step".to_owned())
            }
            Err(silence) => {
                heir.end();
                // Killed before it read that it is to serve: then it has served nobody.
                let is_unheard = matches!(silence, Silence::Unheard)
                    || matches!(
                        link.receive::<FromNew>(left.clock.instant() + MESSAGE_WITHIN),
                        Err(Silence::Unheard)
                    );
                let why = format!("the new process did not come to serve: {silence}");
                if is_unheard { left.take_back(why) } else { left.start_anew(why) }
            }
        }
    }
}

/// A daemon that has ended, and may have to begin again.
struct Left {
    estate: Estate,
    ear: Ear,
    config: Config,
    orders: Arc<Orders>,
    clock: Clock,
}

impl Left {
    fn let_prepare(
        &mut self,
        link: &Link,
        told: &HashSet<u64>,
        pause_began_us: u64,
        is_closed_well: bool,
    ) -> Result<(), Why> {
        let estate = &self.estate;
        for (ended, descriptor) in estate.caches.iter().zip(&estate.descriptors) {
            if let Some(descriptor) = descriptor.as_ref().filter(|_| !told.contains(&ended.segment)) {
                link.send(&FromOld::Segment(ended.told()), &[descriptor.try_clone()?])?;
            }
        }
        let mut file = File::from(memfd_create(c"kvd-handover", MemfdFlags::CLOEXEC)?);
        file.write_all(&postcard::to_allocvec(&estate.caches)?)?;
        file.rewind()?;
        link.send(&FromOld::Ended { pause_began_us, is_closed_well }, &[file.into()])?;
        step::at("old", "ended");
        let silence = match link.receive(self.clock.instant() + PREPARE_WITHIN) {
            Ok((FromNew::Prepared, _)) => return Ok(()),
            Ok((FromNew::Refused { why }, _)) => why,
            Ok((FromNew::Copied { .. } | FromNew::Serving { .. }, _)) => "it is out of step".to_owned(),
            Err(silence) => silence.to_string(),
        };
        Err(Why(format!("the new process did not come to serve: {silence}")))
    }

    /// The successor is dead and has served nobody: this process goes on with its own memory.
    fn take_back(self, why: String) -> Ended {
        let Left { estate, ear, config, orders, clock } = self;
        match estate.take_back() {
            Ok(inherited) => begin(inherited, ear, config, orders, clock, why),
            Err(error) => Ended::Lost(format!("{why}; and the memory could not be taken back: {error}")),
        }
    }

    /// The successor is dead and may have served somebody: memory is not to be believed any more.
    fn start_anew(self, why: String) -> Ended {
        let Left { estate, ear, config, orders, clock } = self;
        let inherited = Inherited { lock: estate.lock, caches: Vec::new(), is_clean: false };
        begin(inherited, ear, config, orders, clock, why)
    }
}

fn begin(
    inherited: Inherited,
    ear: Ear,
    config: Config,
    orders: Arc<Orders>,
    clock: Clock,
    why: String,
) -> Ended {
    let engine = match Engine::open_after(config.clone(), clock.clone(), Arc::clone(&orders), inherited) {
        Ok(engine) => engine,
        Err(error) => return Ended::Lost(format!("{why}; and the store could not be opened again: {error}")),
    };
    match Server::start_at(Arc::clone(&engine), &config, ear) {
        Ok(server) => Ended::Serves(Box::new(Predecessor { engine, server, config, orders, clock }), why),
        Err(error) => Ended::Lost(format!("{why}; and the socket could not be served again: {error}")),
    }
}
