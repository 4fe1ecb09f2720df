//! What the service manager is told: systemd's notification protocol, and the sockets it passes.
//!
//! `cli::serve` calls it; without `NOTIFY_SOCKET` nothing is sent. Ready means that the socket serves. The watchdog is fed only
//! while the engine works: it must never be a thread that merely lives.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::engine::{Engine, Progress};

/// How often within the interval of the watchdog it is looked whether the engine works.
const LOOKS: u32 = 4;

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// The socket serves.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for people.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The stop has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// A reload has begun; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Another process is the daemon from here on. To be sent by the one that was.
pub fn main_process(pid: u32, text: &str) {
    notify(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status(text)]);
}

/// The socket that systemd listens on for us, if it does (`LISTEN_FDS`). Before any thread is started.
///
/// # Errors
/// When what it passed is not a listening Unix stream socket.
pub fn activated() -> std::io::Result<Option<UnixListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    if passed.len() > 1 {
        return Err(std::io::Error::other(format!("{} sockets were passed, limit is 1", passed.len())));
    }
    let Some(listener) = passed.take_unix_listener(0)? else { return Ok(None) };
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
    Ok(Some(listener))
}

/// Feeds the watchdog while the engine works, if the service manager has one, until the engine is gone.
///
/// # Errors
/// When there is no thread to be had.
pub fn watch(engine: &Arc<Engine>) -> std::io::Result<()> {
    let Some(interval) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let engine = Arc::downgrade(engine);
    let feed = move || feed(&engine, interval);
    std::thread::Builder::new().name("kvd-watchdog".to_owned()).spawn(feed).map(drop)
}

fn feed(engine: &Weak<Engine>, interval: Duration) {
    let pause = interval / LOOKS;
    let mut last = Progress::default();
    loop {
        std::thread::sleep(pause);
        let Some(engine) = engine.upgrade() else { return };
        match engine.progress(last, pause) {
            Some(progress) => {
                last = progress;
                notify(&[NotifyState::Watchdog]);
            }
            // Its end is not watched here: the manager has a time for that.
            None if engine.is_closing() => return,
            None => tracing::warn!("the engine does not move: the watchdog is not fed"),
        }
    }
}
