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
/// How long the answers of a pipelined connection are awaited that takes no more requests. Beyond: they count as lost.
#[cfg(feature = "tokio")]
pub(crate) const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Requests an async client has under way at once that may wait in the daemon (durable writes, sync), each on a
/// connection of its own. Beyond: callers queue, each until its deadline.
#[cfg(feature = "tokio")]
pub(crate) const WAITING_CONNECTIONS_MAX: usize = 64;
/// The first pause before the daemon is looked for that was not there, doubling; a random half is left out …
pub(crate) const PROBE_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// … to this: so long a daemon that is back may be missed.
pub(crate) const PROBE_PAUSE_MAX: Duration = Duration::from_millis(400);
/// Invalidations kept while the daemon is away, and their bytes. Beyond: the cache is cleared when it is back.
pub(crate) const UNDELIVERED_MAX: usize = 4_096;
/// See [`UNDELIVERED_MAX`].
pub(crate) const UNDELIVERED_BYTES_MAX: usize = 1 << 20;
/// Caches to be cleared for want of room. Beyond: everything is.
pub(crate) const UNDELIVERED_CACHES_MAX: usize = 64;
/// How long a loader's lease is safe from others unless said. Beyond: the next who asks loads, and a late fill is refused.
pub(crate) const LEASE_DEFAULT: Duration = Duration::from_secs(10);
/// How long a stale value is served after its loader failed before anybody tries again, unless said.
pub(crate) const THROTTLE_DEFAULT: Duration = Duration::from_secs(1);
/// How long a process serves a stale value without asking again, once it heard that somebody else reloads it.
pub(crate) const ELSEWHERE: Duration = Duration::from_millis(20);
/// Keys a process remembers as reloaded elsewhere. Beyond: it asks again.
pub(crate) const ELSEWHERE_MAX: usize = 4_096;
/// Loads inside loads. Beyond: `Deadlock`.
pub(crate) const CHAIN_MAX: usize = 16;
/// How often a caller looks again because what it waited for was overtaken. Beyond: it takes what was loaded.
pub(crate) const OVERTAKEN_MAX: u32 = 8;
/// Loads of an async client that hold a connection at once. Beyond: callers queue, each until its deadline; a load inside a
/// load goes on without a lease.
#[cfg(feature = "tokio")]
pub(crate) const LOADS_MAX: usize = 256;
/// Loads of a blocking client in threads of their own at once. Beyond: the caller's thread loads.
pub(crate) const DETACHED_LOADS_MAX: usize = 64;
/// How long such a thread waits for the next load. Beyond: it ends.
pub(crate) const CREW_IDLE: Duration = Duration::from_secs(10);
/// Values that a process keeps for itself while the daemon is away, and their bytes. Beyond: the oldest are dropped.
pub(crate) const STANDBY_MAX: usize = 1_024;
/// See [`STANDBY_MAX`].
pub(crate) const STANDBY_BYTES_MAX: usize = 16 << 20;
/// A value that decompresses to more is not ours.
#[cfg(feature = "lz4")]
pub(crate) const DECOMPRESSED_BYTES_MAX: usize = 64 << 20;
/// From this length on a value is compressed, where that is wanted and nothing else said.
#[cfg(feature = "lz4")]
pub(crate) const COMPRESS_FROM_DEFAULT: usize = 1 << 10;
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
