//! Where a connection's thread waits for locks: it watches its client meanwhile.
//!
//! `engine` parks here and wakes it from other threads. A client that hangs up or whose process dies cancels its wait, though
//! forked siblings may keep the socket open. It must never read from the socket: what came early is the next request's.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use kv_proto::segment::peer_process;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::peer::Credentials;
use crate::engine::{Park, Parked, Unpark};

/// A client's socket and process.
pub(super) struct Watch {
    stream: Arc<UnixStream>,
    /// Until somebody needs it; `Some(None)`: the kernel has none, or the process is another one's by now.
    process: Option<Option<OwnedFd>>,
    pid: i32,
}

/// What a watch saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Bytes to be read, or that there will be no more.
    Readable,
    /// The process that connected is dead.
    Dead,
    /// Nothing.
    TimedOut,
}

impl Watch {
    pub(super) fn new(stream: &Arc<UnixStream>, peer: Credentials) -> Watch {
        Watch { stream: Arc::clone(stream), process: None, pid: peer.pid }
    }

    /// Waits for bytes or for the end of the client's process.
    pub(super) fn wait(&mut self, until: Instant) -> io::Result<Seen> {
        self.find_process();
        let process = self.process.iter().flatten();
        let stream = PollFd::new(&*self.stream, PollFlags::IN);
        let mut fds: Vec<_> =
            [stream].into_iter().chain(process.map(|fd| PollFd::new(fd, PollFlags::IN))).collect();
        poll_until(&mut fds, until)?;
        if fds.get(1).is_some_and(is_set) {
            return Ok(Seen::Dead);
        }
        Ok(if is_set(&fds[0]) { Seen::Readable } else { Seen::TimedOut })
    }

    /// Before Linux 6.5 the process is found by its number: a later one of the same number could only be watched in vain.
    fn find_process(&mut self) {
        if self.process.is_none() {
            let by_number = || pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok();
            self.process = Some(peer_process(&*self.stream).ok().or_else(by_number));
        }
    }
}

/// A place to wait at for one connection.
pub(super) struct SocketPark {
    watch: Watch,
    bell: Option<Arc<Bell>>,
}

struct Bell(OwnedFd);

impl Unpark for Bell {
    fn unpark(&self) {
        // It can only fail when it was rung 2^64 times unheard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl SocketPark {
    pub(super) fn new(stream: &Arc<UnixStream>, peer: Credentials) -> SocketPark {
        SocketPark { watch: Watch::new(stream, peer), bell: None }
    }
}

impl Park for SocketPark {
    fn unparker(&mut self) -> io::Result<Arc<dyn Unpark>> {
        let bell = match &self.bell {
            Some(bell) => Arc::clone(bell),
            None => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                Arc::clone(self.bell.insert(Arc::new(Bell(eventfd(0, flags)?))))
            }
        };
        Ok(bell)
    }

    fn park(&mut self, until: Instant) -> Parked {
        self.watch.find_process();
        let Some(bell) = &self.bell else { return Parked::TimedOut };
        // Only its end: bytes that came early say nothing.
        let stream = PollFd::new(&*self.watch.stream, PollFlags::RDHUP);
        let rung = PollFd::new(&bell.0, PollFlags::IN);
        let process = self.watch.process.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN));
        let mut fds: Vec<_> = [stream, rung].into_iter().chain(process).collect();
        if poll_until(&mut fds, until).is_err() {
            return Parked::Woken;
        }
        if is_set(&fds[1]) {
            let _ = rustix::io::read(&bell.0, &mut [0_u8; 8]);
            return Parked::Woken;
        }
        if is_set(&fds[0]) || fds.get(2).is_some_and(is_set) {
            return Parked::Gone;
        }
        Parked::TimedOut
    }
}

fn is_set(fd: &PollFd<'_>) -> bool {
    !fd.revents().is_empty()
}

fn poll_until(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<()> {
    let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
    match poll(fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
