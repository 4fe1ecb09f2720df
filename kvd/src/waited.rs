//! How long the request of this thread has waited for others and for the disk, for the slow log.
//!
//! Whoever waits says so here; `server` takes the sums after each request. A thread serves one connection, so no request needs to
//! carry them through all layers, and one that waits for nothing pays two loads.

use std::cell::Cell;
use std::time::Duration;

thread_local!(static WAITED: Cell<Waited> = const { Cell::new(Waited { lock: Duration::ZERO, disk: Duration::ZERO }) });

/// What a request waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// Locks, leases and named locks that others held.
    pub lock: Duration,
    /// Reads from disk, room in the pending log, and stable storage.
    pub disk: Duration,
}

/// The request waited for others.
pub(crate) fn for_lock(time: Duration) {
    let waited = WAITED.get();
    WAITED.set(Waited { lock: waited.lock + time, ..waited });
}

/// The request waited for the disk.
pub(crate) fn for_disk(time: Duration) {
    let waited = WAITED.get();
    WAITED.set(Waited { disk: waited.disk + time, ..waited });
}

/// What this thread has waited since it was asked last.
pub(crate) fn take() -> Waited {
    let waited = WAITED.get();
    if waited != Waited::default() {
        WAITED.set(Waited::default());
    }
    waited
}
