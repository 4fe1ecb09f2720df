//! The thread that accepts connections: who is it, is there room, a thread for it.
//!
//! Started by `Server::start`, ended by `BoundSocket::refuse_more`. It must never wait for a client, and never spin:
//! without descriptors it gives up its spare one to close the next caller, and pauses.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind as IoKind, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kv_proto::segment::refuse_descriptors;
use kv_proto::wire::{ErrorKind, Welcome, WireError, encode_into};
use nix::errno::Errno;

use super::Shared;
use super::connection;
use super::peer::{Credentials, Doorkeeper};
use super::socket::BoundSocket;
use crate::metrics::RefusedFor;

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Callers closed at a time while there is no descriptor to serve them with.
const SHORT_CLOSED_MAX: usize = 64;
/// Refused connections kept half open, so that their clients can read why. Beyond: the oldest is closed.
const PARTING_MAX: usize = 16;
/// What a client refused for lack of room is told to wait before it tries again.
const RETRY_AFTER_MS: u32 = 250;

/// Starts the thread.
pub(super) fn spawn(shared: Arc<Shared>, socket: Arc<BoundSocket>) -> std::io::Result<JoinHandle<()>> {
    let door = Doorkeeper::new(Arc::clone(&shared.live.load().list));
    let mut accepting =
        Accepting { shared, door, spare: open_spare(), parting: VecDeque::new(), pause: PAUSE_MIN };
    std::thread::Builder::new().name("kvd-accept".to_owned()).spawn(move || accepting.run(&socket))
}

struct Accepting {
    shared: Arc<Shared>,
    door: Doorkeeper,
    spare: Option<File>,
    parting: VecDeque<UnixStream>,
    pause: Duration,
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Accepting {
    fn run(&mut self, socket: &BoundSocket) {
        loop {
            match socket.accept() {
                Ok(Some(stream)) => {
                    self.pause = PAUSE_MIN;
                    self.admit(stream);
                }
                Ok(None) => return,
                Err(_) if self.shared.open.lock().is_stopping => return,
                Err(error) if is_passing(&error) => {}
                Err(error) => self.run_short(socket, &error),
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let metrics = self.shared.engine.metrics();
        let peer = match Credentials::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a peer without credentials was closed");
                return metrics.refused(RefusedFor::Denied);
            }
        };
        let list = Arc::clone(&self.shared.live.load().list);
        self.door.renew(&list);
        let Some(guest) = self.door.admit(&peer, self.shared.engine.clock().instant()) else {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "this user may not use this daemon: see [access]");
            return metrics.refused(RefusedFor::Denied);
        };
        // Before Linux 6.16 there is no such thing, and nothing is lost without it.
        let _ = refuse_descriptors(&stream);
        match self.shared.slots.take(peer.uid, guest.is_admin()) {
            Ok(slot) => {
                if let Err(error) = connection::spawn(&self.shared, stream, guest, slot) {
                    tracing::warn!(%error, "no thread for a connection");
                    metrics.refused(RefusedFor::Resources);
                }
                // A reload that came in between has not seen it.
                let now = Arc::clone(&self.shared.live.load().list);
                if !Arc::ptr_eq(&list, &now) {
                    self.door.renew(&now);
                    self.shared.judge_anew(&mut self.door);
                }
            }
            Err(reason) => {
                metrics.refused(reason);
                let message = self.shared.slots.refusal(reason, peer.uid);
                self.refuse(stream, &message);
            }
        }
    }

    fn refuse(&mut self, mut stream: UnixStream, message: &str) {
        let mut answer = Vec::new();
        let kind = ErrorKind::Unavailable;
        let error = WireError { kind, message, maybe_applied: false, retry_after_ms: RETRY_AFTER_MS };
        encode_into(&mut answer, &Welcome::Refused(error));
        // A fresh socket's buffer has room for this; if it has not, the client finds the connection closed.
        if stream.set_nonblocking(true).is_err() || stream.write(&answer).is_err() {
            return;
        }
        // Closed at once, the client's hello would fail before it had read this.
        if stream.shutdown(Shutdown::Write).is_ok() {
            self.parting.push_back(stream);
        }
        if self.parting.len() > PARTING_MAX {
            self.parting.pop_front();
        }
    }

    /// Out of descriptors or memory: the caller at the head of the queue would wake us again and again, so it is
    /// closed with the help of the spare descriptor, and the rest wait a little.
    fn run_short(&mut self, socket: &BoundSocket, error: &std::io::Error) {
        if self.pause == PAUSE_MIN {
            tracing::warn!(%error, "connections cannot be accepted for now");
        }
        self.parting.clear();
        if self.spare.take().is_some() {
            for _ in 0..SHORT_CLOSED_MAX {
                if socket.listener().accept().is_err() {
                    break;
                }
                self.shared.engine.metrics().refused(RefusedFor::Resources);
            }
        }
        self.spare = open_spare();
        let mut open = self.shared.open.lock();
        if !open.is_stopping {
            self.shared.closed_one.wait_for(&mut open, self.pause);
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Errors of one caller, not of ours.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), IoKind::Interrupted | IoKind::ConnectionAborted | IoKind::WouldBlock)
        || error.raw_os_error() == Some(Errno::EPROTO as i32)
}
