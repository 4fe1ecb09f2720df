//! The new daemon's part of a restart in place.
//!
//! Called by `cli::serve` in a process that a running daemon has started. It serves nobody before the old one said `Go`, or is dead.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::segment::{Control, SegmentCopy, Words};
use kv_proto::wire::RestartState;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{FromNew, FromOld, Link, PROTOCOL, Silence, room, step};
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{Ended, Engine, Inheritance, Inherited, Told};
use crate::lock::FileLock;
use crate::orders::{Orders, RestartReport};
use crate::server::{Ear, Server};

/// The old one tells something at least this often, or it hangs, and nothing is taken over.
const TOLD_WITHIN: Duration = Duration::from_secs(180);
/// An old one that has closed its end is dead within this, or nothing is taken over.
const DEAD_WITHIN: Duration = Duration::from_secs(5);

/// Why this process does not become the daemon.
#[derive(Debug, thiserror::Error)]
#[error("not taken over: {0}")]
pub struct TakeOverError(String);

impl From<Silence> for TakeOverError {
    fn from(silence: Silence) -> TakeOverError {
        TakeOverError(silence.to_string())
    }
}

fn because<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> TakeOverError + '_ {
    move |error| TakeOverError(format!("{what}: {error}"))
}

/// A process that is to become the daemon.
pub struct Successor {
    link: Link,
    old: OwnedFd,
    begin: Begin,
    listener: UnixListener,
    lock: FileLock,
    socket_lock: Option<OwnedFd>,
}

struct Begin {
    dir: PathBuf,
    socket_configured: PathBuf,
    socket: PathBuf,
    number: u64,
    began_us: u64,
    clear: Vec<String>,
}

/// A daemon that has taken over and serves.
pub struct Taken {
    /// Its memory and store.
    pub engine: Arc<Engine>,
    /// Its socket.
    pub server: Server,
}

/// A segment of the old one and the fresh one that becomes its copy.
struct Copying {
    told: Told,
    copy: SegmentCopy,
    descriptor: Option<OwnedFd>,
}

/// All of them, by the old one's number of the segment, and its control page.
#[derive(Default)]
struct Copies {
    segments: HashMap<u64, Copying>,
    control: Option<Arc<Control>>,
}

impl Successor {
    /// What the old daemon says at first, over standard input.
    ///
    /// # Errors
    /// When nobody is there who would hand over.
    pub fn meet() -> Result<Successor, TakeOverError> {
        let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(because("standard input"))?;
        let link = Link(UnixStream::from(input));
        let (message, descriptors) = link.receive(Clock::system().instant() + DEAD_WITHIN)?;
        let FromOld::Begin { protocol, pid, dir, socket_configured, socket, number, began_us, clear } =
            message
        else {
            return Err(TakeOverError("the old process is out of step".to_owned()));
        };
        if protocol != PROTOCOL {
            let why = format!(
                "the old process hands over by protocol {protocol}, this one by {PROTOCOL}: stop and start"
            );
            return Err(refuse(&link, why));
        }
        let mut descriptors = descriptors.into_iter();
        let (Some(listener), Some(lock), socket_lock) =
            (descriptors.next(), descriptors.next(), descriptors.next())
        else {
            return Err(TakeOverError("the old process has passed too few descriptors".to_owned()));
        };
        let pid = Pid::from_raw(pid.cast_signed()).ok_or_else(|| TakeOverError("no process".to_owned()))?;
        let old = pidfd_open(pid, PidfdFlags::empty()).map_err(because("watching the old process"))?;
        let begin = Begin { dir, socket_configured, socket, number, began_us, clear };
        let lock = FileLock::of_descriptor(lock);
        Ok(Successor { link, old, begin, listener: UnixListener::from(listener), lock, socket_lock })
    }

    /// Tells the old daemon why it has to go on.
    pub fn refuse(&self, why: impl ToString) {
        drop(refuse(&self.link, why.to_string()));
    }

    /// Copies, waits for the old one's end, and serves.
    ///
    /// # Errors
    /// When it is not to be: the old daemon was told, or is gone without a trace; either way this process has served nobody.
    pub fn take_over(
        self,
        config: &Config,
        clock: &Clock,
        orders: &Arc<Orders>,
    ) -> Result<Taken, TakeOverError> {
        let (wanted, has) = ((&config.dir, &config.socket), (&self.begin.dir, &self.begin.socket_configured));
        if wanted != has {
            let why = format!(
                "the configuration now says dir {} and socket {}, the daemon runs with {} and {}: stop and start",
                wanted.0.display(),
                wanted.1.display(),
                has.0.display(),
                has.1.display()
            );
            return Err(refuse(&self.link, why));
        }
        let mut copies = Copies::default();
        let left = match self.copy(&mut copies, clock) {
            Ok(left) => left,
            Err(Broken::Old(silence)) => {
                self.await_death(&silence)?;
                tracing::warn!("the old process died: going on as after any unclean stop");
                let pause_began_us = clock.monotonic_us();
                Left { caches: salvage(copies), is_clean: false, pause_began_us }
            }
            Err(Broken::Here(why)) => return Err(refuse(&self.link, why)),
        };
        self.begin(left, config, clock, orders)
    }

    fn begin(
        self,
        left: Left,
        config: &Config,
        clock: &Clock,
        orders: &Arc<Orders>,
    ) -> Result<Taken, TakeOverError> {
        let Successor { link, old, begin, listener, lock, socket_lock } = self;
        let items = left.caches.iter().map(|left| left.ended.items()).sum();
        let bytes = left.caches.iter().map(|left| left.words.len() as u64 * 8).sum();
        let inherited = Inherited { lock, caches: left.caches, is_clean: left.is_clean };
        let engine = Engine::open_after(config.clone(), clock.clone(), Arc::clone(orders), inherited)
            .map_err(|error| refuse(&link, error.to_string()))?;
        engine.clear_by_name(&begin.clear).map_err(|error| refuse(&link, error.to_string()))?;
        let ear = Ear::inherited(listener, socket_lock, &begin.socket)
            .map_err(|error| refuse(&link, format!("the socket: {error}")))?;
        step::at("new", "opened");
        // If it cannot be told, the old one is dead or about to end this process.
        let told = link.send(&FromNew::Prepared, &[]);
        step::at("new", "prepared");
        let go = told.map_err(|_| Silence::Ended).and_then(|()| link.receive(clock.instant() + TOLD_WITHIN));
        match go {
            Ok((FromOld::Go, _)) => {}
            Ok(_) => return Err(TakeOverError("the old process is out of step".to_owned())),
            Err(silence) => await_death(&old, &silence)?,
        }
        step::at("new", "told");
        let server = Server::start_at(Arc::clone(&engine), config, ear).map_err(because("the socket"))?;
        let now_us = clock.monotonic_us();
        let paused_us = now_us.saturating_sub(left.pause_began_us);
        orders.note_restart(RestartReport {
            number: begin.number,
            state: RestartState::Done,
            message: if left.is_clean { String::new() } else { "the old process died meanwhile".to_owned() },
            pid: std::process::id(),
            paused_us,
            took_ms: now_us.saturating_sub(begin.began_us) / 1_000,
            items,
            bytes,
        });
        step::at("new", "serving");
        // Whether it is heard changes nothing any more.
        let _ = link.send(&FromNew::Serving { paused_us }, &[]);
        Ok(Taken { engine, server })
    }

    /// Follows the old one until it has ended.
    fn copy(&self, copies: &mut Copies, clock: &Clock) -> Result<Left, Broken> {
        let mut bytes = 0;
        let mut told = Vec::new();
        let mut is_begun = false;
        loop {
            let (message, mut descriptors) = self.link.receive(clock.instant() + TOLD_WITHIN)?;
            match message {
                FromOld::Segment(segment) => {
                    let descriptor = descriptors.pop().ok_or("a segment came without its descriptor")?;
                    told.push((segment, descriptor));
                    if is_begun {
                        bytes += begin_copies(&mut copies.segments, &mut told)?;
                    }
                }
                FromOld::Segments => {
                    is_begun = true;
                    copies.control = descriptors.pop().and_then(|control| Control::attach(control).ok());
                    step::at("new", "met");
                    bytes += begin_copies(&mut copies.segments, &mut told)?;
                    step::at("new", "copied");
                    self.link.send(&FromNew::Copied { bytes }, &[]).map_err(|_| Silence::Ended)?;
                }
                FromOld::Heads(heads) => {
                    bytes = heads
                        .iter()
                        .filter_map(|(segment, heads)| {
                            Some(copies.segments.get_mut(segment)?.copy.follow(*heads))
                        })
                        .sum();
                    self.link.send(&FromNew::Copied { bytes }, &[]).map_err(|_| Silence::Ended)?;
                }
                FromOld::Ended { pause_began_us, is_closed_well } => {
                    step::at("new", "ended");
                    let file = descriptors.pop().ok_or("the memory came without its file")?;
                    let caches = finish(&mut copies.segments, file)?;
                    return Ok(Left { caches, is_clean: is_closed_well, pause_began_us });
                }
                FromOld::Begin { .. } | FromOld::Go => return Err("the old process is out of step".into()),
            }
        }
    }

    fn await_death(&self, silence: &Silence) -> Result<(), TakeOverError> {
        await_death(&self.old, silence)
    }
}

/// What the old one left.
struct Left {
    caches: Vec<Inheritance>,
    is_clean: bool,
    pause_began_us: u64,
}

/// Why there is nothing to take over.
enum Broken {
    /// The old one is gone, or hangs.
    Old(Silence),
    /// This process cannot.
    Here(String),
}

impl From<Silence> for Broken {
    fn from(silence: Silence) -> Broken {
        Broken::Old(silence)
    }
}

impl From<&str> for Broken {
    fn from(why: &str) -> Broken {
        Broken::Here(why.to_owned())
    }
}

fn refuse(link: &Link, why: String) -> TakeOverError {
    // If it cannot be told, the old one is gone, and so is this process in a moment.
    let _ = link.send(&FromNew::Refused { why: why.clone() }, &[]);
    TakeOverError(why)
}

/// The channel is closed or silent: only a dead process is certain to serve nobody.
fn await_death(old: &OwnedFd, silence: &Silence) -> Result<(), TakeOverError> {
    let mut fds = [PollFd::new(old, PollFlags::IN)];
    let within = Timespec::try_from(DEAD_WITHIN).ok();
    match poll(&mut fds, within.as_ref()) {
        Ok(1..) => Ok(()),
        Ok(0) => Err(TakeOverError(format!("{silence}, and it lives"))),
        Err(error) => Err(TakeOverError(format!("{silence}, and it cannot be watched: {error}"))),
    }
}

/// Makes room for all that was told of, then copies it.
fn begin_copies(copies: &mut HashMap<u64, Copying>, told: &mut Vec<(Told, OwnedFd)>) -> Result<u64, Broken> {
    let mut mapped = Vec::new();
    for (told, descriptor) in told.drain(..) {
        let usable = Words::attach(&descriptor).and_then(|words| {
            let geometry = SegmentCopy::geometry_of(&words)?;
            Ok((words, geometry))
        });
        match usable {
            Ok((words, geometry)) => mapped.push((told, words, geometry)),
            // Of another layout: it is warmed from disk, or begins empty.
            Err(error) => tracing::warn!(cache = told.name, %error, "its memory cannot be taken over"),
        }
    }
    let needed = mapped.iter().map(|(_, _, geometry)| geometry.bytes() as u64).sum();
    room::check(needed).map_err(Broken::Here)?;
    let mut bytes = 0;
    for (told, from, geometry) in mapped {
        let unmade =
            |error: &dyn std::fmt::Display| Broken::Here(format!("cache {}: no segment: {error}", told.name));
        let (to, descriptor) =
            Words::memfd_or_private(c"kvd-segment", geometry.bytes()).map_err(|error| unmade(&error))?;
        let mut copy = SegmentCopy::begin(from, to).map_err(|error| unmade(&error))?;
        bytes += copy.follow(told.heads);
        copies.insert(told.segment, Copying { told, copy, descriptor: descriptor.ok() });
    }
    Ok(bytes)
}

fn finish(copies: &mut HashMap<u64, Copying>, file: OwnedFd) -> Result<Vec<Inheritance>, Broken> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).map_err(|error| Broken::Here(error.to_string()))?;
    let ended: Vec<Ended> = postcard::from_bytes(&bytes)
        .map_err(|error| Broken::Here(format!("the memory's description: {error}")))?;
    let taken = ended.into_iter().filter_map(|ended| {
        let Copying { copy, descriptor, .. } = copies.remove(&ended.segment)?;
        let words = copy.finish(ended.state());
        Some(Inheritance { ended, words, descriptor })
    });
    Ok(taken.collect())
}

/// What can be saved of the caches that are in memory only, when the old one died. Those on disk are warmed from there: what was
/// logged and not yet to be seen in memory is in force.
fn salvage(copies: Copies) -> Vec<Inheritance> {
    let Some(control) = copies.control else { return Vec::new() };
    let committed = control.committed();
    let saved = copies.segments.into_values().filter_map(|Copying { told, copy, descriptor }| {
        told.in_memory.as_ref()?;
        let (name, words) = (told.name.clone(), copy.finish_whole());
        match Ended::salvaged(told, Arc::clone(&words), committed) {
            Ok(ended) => Some(Inheritance { ended: ended?, words, descriptor }),
            Err(error) => {
                tracing::warn!(cache = name, %error, "its memory could not be saved");
                None
            }
        }
    });
    saved.collect()
}
