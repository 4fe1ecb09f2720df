//! The client's own bounds, and what happens there. Those of the wire are in `kv_proto::limits`.
//!
//! Used by everything here; a number that bounds a queue, a wait or a repetition stands nowhere else.

use std::time::Duration;

/// How long a call may take altogether unless configured, reconnecting and repeating included. Beyond: `Timeout`.
pub(crate) const OP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long one attempt to connect may take unless configured, hello included. Beyond: the next place, or an error.
pub(crate) const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
/// How long calls wait for a daemon that was there and is gone, unless configured. Beyond: `Unreachable` at once.
pub(crate) const RESTART_GRACE_DEFAULT: Duration = Duration::from_secs(2);
/// Connections a blocking client keeps while nobody uses them. Beyond: the one given back is closed.
pub(crate) const IDLE_CONNECTIONS_MAX: usize = 32;
/// Requests queued before a pipelined connection of an async client. Beyond: callers wait, each until its deadline.
#[cfg(feature = "tokio")]
pub(crate) const PIPELINE_QUEUE_MAX: usize = 1_024;
/// Requests a pipelined connection takes into one write.
#[cfg(feature = "tokio")]
pub(crate) const PIPELINE_BATCH_MAX: usize = 128;
/// Requests an async client has under way at once that may wait in the daemon (durable writes, sync), each on a
/// connection of its own. Beyond: callers queue, each until its deadline.
#[cfg(feature = "tokio")]
pub(crate) const WAITING_CONNECTIONS_MAX: usize = 64;
/// How often `transact` tries. Beyond: the last error.
pub(crate) const TRANSACTION_TRIES_MAX: u32 = 64;
/// What the pause before another try grows from, doubling …
pub(crate) const TRANSACTION_PAUSE_FIRST: Duration = Duration::from_micros(100);
/// … and to; a random part of it is taken.
pub(crate) const TRANSACTION_PAUSE_MAX: Duration = Duration::from_millis(10);
/// How often a `get_many` starts over because its moment is gone. Beyond: `Conflict`.
pub(crate) const SNAPSHOT_RESTARTS_MAX: u32 = 8;
/// Bytes a connection reads at once, and what its buffer shrinks back to after a large answer.
pub(crate) const RECEIVE_BYTES: usize = 16 << 10;
/// A receive buffer that grew beyond this is given back as soon as it is empty.
pub(crate) const RECEIVE_BYTES_KEPT_MAX: usize = 256 << 10;
/// How long after `StoreFull` a retry makes sense when the daemon does not say.
pub(crate) const STORE_FULL_RETRY: Duration = Duration::from_secs(1);
/// How long after a timeout or a busy daemon a retry makes sense when the daemon does not say.
pub(crate) const BUSY_RETRY: Duration = Duration::from_millis(50);
