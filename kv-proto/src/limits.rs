//! Every bound of the wire and of an item, and what happens there (invariant I9).
//!
//! A request beyond a bound gets an error that names the value and the bound, and loses nothing.

use std::time::Duration;

/// Longest key, in bytes; the shortest is 1. Beyond: `TooLarge`.
pub const KEY_BYTES_MAX: usize = if cfg!(loom) { 16 } else { 1_024 };
/// Longest value unless configured, in bytes. Beyond: `TooLarge`.
pub const VALUE_BYTES_DEFAULT: usize = 1 << 20;
/// The most `value_bytes_max` can be configured to, in bytes. Beyond: the configuration is refused.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Most tags an item. Beyond: `TooLarge`.
pub const TAGS_MAX: usize = 8;
/// Longest tag, in bytes; the shortest is 1. Beyond: `TooLarge`.
pub const TAG_BYTES_MAX: usize = 64;
/// Longest name of a cache, in bytes: `[a-z0-9._-]`, starting with a letter or digit. Beyond: `Invalid`.
pub const CACHE_NAME_BYTES_MAX: usize = 64;
/// Most caches created by their first write. Beyond: `UnknownCache`, saying to declare it.
pub const CACHES_ON_DEMAND_MAX: usize = 64;
/// Most caches altogether. Beyond: the configuration is refused.
pub const CACHES_MAX: usize = 1_024;
/// Most writes a commit. Beyond: `TooLarge`.
pub const COMMIT_WRITES_MAX: usize = 1_024;
/// Most preconditions a commit. Beyond: `TooLarge`.
pub const COMMIT_CHECKS_MAX: usize = 1_024;
/// Most bytes of keys and values a commit of several writes. Beyond: `TooLarge`. (One write may be as large as its value may.)
pub const COMMIT_BYTES_MAX: usize = 4 << 20;
/// Most keys a `get_many`. Beyond: `TooLarge`.
pub const GET_MANY_KEYS_MAX: usize = 1_024;
/// An answer of `get_many` or `scan` stops growing beyond this many bytes and says where to go on.
pub const ANSWER_BYTES_SOFT_MAX: usize = 1 << 20;
/// Most keys a page of `scan`. A larger wish is cut to this.
pub const SCAN_KEYS_MAX: usize = 1_024;
/// Longest time the daemon spends on one page of `scan` before it answers with what it has.
pub const SCAN_TIME_MAX: Duration = Duration::from_millis(5);
/// Longest time to live and longest stale life: 100 years, in milliseconds. Beyond: `TooLarge`.
pub const TTL_MS_MAX: u64 = 100 * 366 * 24 * 3_600 * 1_000;
/// Sequence numbers stay below this: index and bucket words keep two flag bits beside one. Start refuses beyond.
pub const VERSION_MAX: u64 = 1 << 62;
/// Slots of the largest tag table; what the disk knows. A power of two.
pub const TAG_SLOTS_MAX: usize = 1 << 16;
/// Prefix clears remembered at once, a cache. Beyond: the next one waits for the sweep, up to its deadline.
pub const PREFIX_CLEARS_MAX: usize = if cfg!(loom) { 2 } else { 8 };

/// A transaction ends this long after it began, or was renewed. Beyond: it is rolled back, `LeaseLost`.
pub const TRANSACTION_LIFE: Duration = Duration::from_secs(1);
/// … and this long after it began whether renewed or not.
pub const TRANSACTION_LIFE_MAX: Duration = Duration::from_secs(10);
/// A transaction that sends nothing for this long while somebody waits for it is rolled back, `LeaseLost`.
pub const TRANSACTION_SILENCE_MAX: Duration = Duration::from_millis(50);
/// A transaction that has sent nothing at all since it began loses the database to the next who waits after this long, and gets
/// it back behind that one when it asks.
pub const GRANT_UNUSED_MAX: Duration = Duration::from_millis(5);
/// Most keys a transaction reads and writes. Beyond: `TooLarge`. (It writes no more than a commit may.)
pub const TRANSACTION_KEYS_MAX: usize = 16_384;
/// Most bytes of keys and values that a transaction keeps. Beyond: `TooLarge`.
pub const TRANSACTION_BYTES_MAX: usize = 64 << 20;
/// Most things locked at once. Beyond: `Unavailable`.
pub const LOCKS_MAX: usize = 1 << 20;
/// Longest wait for a lock; a longer wish is cut to this. Beyond: `Timeout`.
pub const LOCK_WAIT_MAX: Duration = WRITE_WAIT_MAX;

/// Longest time a lease to load is safe from others who want it; a longer wish is cut to this. Beyond: the next gets it, and a
/// late fill is refused.
pub const LEASE_LIFE_MAX: Duration = Duration::from_secs(600);
/// Longest wait for somebody else's load or named lock; a longer wish is cut to this. Beyond: `Busy`.
pub const LEASE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest time a named lock is safe from others who want it, unless renewed; a longer wish is cut to this.
pub const NAMED_LOCK_LIFE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Leases and named locks a connection holds. Beyond: `TooLarge`.
pub const HELD_MAX: usize = GET_MANY_KEYS_MAX;
/// What a caller says that it holds. Beyond: `TooLarge`.
pub const HOLDS_MAX: usize = 2 * HELD_MAX;
/// Keys whose failed load is not tried again for a while. Beyond: the next one is tried again at once.
pub const COOLING_MAX: usize = 16_384;
/// Changes that wait for a slow watcher. Beyond: they are left out, and counted.
pub const WATCH_CHANGES_MAX: usize = 4_096;
/// Bytes of the keys of changes that wait for a slow watcher. Beyond: they are left out, and counted.
pub const WATCH_BYTES_MAX: usize = 1 << 20;
/// Watchers at once. Beyond: `Unavailable`.
pub const WATCHERS_MAX: usize = 256;

/// Slow requests that the daemon remembers because they are new …
pub const SLOW_NEWEST_MAX: usize = 256;
/// … and because they took longest. Beyond: the oldest, or the fastest, is forgotten.
pub const SLOW_SLOWEST_MAX: usize = 128;
/// Of a slow request's key the daemon remembers so many bytes. Beyond: cut.
pub const SLOW_KEY_BYTES_MAX: usize = 64;
/// Most keys an answer of `hottest`. A larger wish is cut to this.
pub const HOT_KEYS_MAX: usize = 256;
/// Most bytes of a part of a backup; what is more comes with the next.
pub const PART_BYTES_MAX: usize = 1 << 20;
/// A backup that takes longer is ended, `Timeout`: until then what it reads cannot be freed.
pub const BACKUP_LIFE_MAX: Duration = Duration::from_secs(3_600);

/// Bytes of a frame beyond keys and values: header, options, tags.
pub const FRAME_OVERHEAD_MAX: usize = 4_096;
/// Longest frame before the hello was accepted. Beyond: the connection is closed.
pub const HELLO_BYTES_MAX: usize = 4_096;
/// Longest name a client gives itself, in bytes. Beyond: cut.
pub const CLIENT_NAME_BYTES_MAX: usize = 64;
/// Most slots a client tells at once that it has read. Beyond: the rest is not told.
pub const HITS_PLACES_MAX: usize = 4_096;
/// Longest reason a client gives for reading over the socket, in bytes. Beyond: cut.
pub const PATH_REASON_BYTES_MAX: usize = 256;
/// Longest message in an error, in bytes. Beyond: cut.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 1_024;
/// Longest path a Unix socket can have, in bytes without the closing zero (`sun_path` is 108).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Connections beyond this get `Unavailable` and are closed.
pub const CONNECTIONS_MAX_DEFAULT: usize = 4_096;
/// Connections kept free for the daemon's own user and root beyond `CONNECTIONS_MAX_DEFAULT`.
pub const CONNECTIONS_ADMIN: usize = 8;
/// Answers a client has not read: beyond this the daemon stops reading its requests …
pub const OUTPUT_BYTES_MAX: usize = 2 << 20;
/// … and after this long without progress cuts it off.
pub const OUTPUT_STALL_MAX: Duration = Duration::from_secs(10);
/// A frame once begun must be complete within this, else the connection is closed.
pub const PARTIAL_FRAME_MAX: Duration = Duration::from_secs(5);
/// Longest wait of a write for room (pending log, journal), before `Unavailable`.
pub const WRITE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest frame for a daemon whose values may have `value_bytes_max` bytes.
pub const fn frame_bytes_max(value_bytes_max: usize) -> usize {
    let one = value_bytes_max + KEY_BYTES_MAX + FRAME_OVERHEAD_MAX;
    let many = COMMIT_BYTES_MAX + COMMIT_WRITES_MAX * (TAGS_MAX * (TAG_BYTES_MAX + 2) + 192);
    if one > many { one } else { many }
}

const _: () = assert!(VALUE_BYTES_DEFAULT <= VALUE_BYTES_MAX);
const _: () =
    assert!(GET_MANY_KEYS_MAX * (KEY_BYTES_MAX + 2) < COMMIT_BYTES_MAX, "a full get_many fits a frame");
const _: () = assert!(TAG_SLOTS_MAX.is_power_of_two() && TAG_SLOTS_MAX <= 1 << 16);
const _: () = assert!(frame_bytes_max(VALUE_BYTES_MAX) < u32::MAX as usize);
