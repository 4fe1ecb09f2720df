//! What the daemon answers.

#![allow(
    missing_docs,
    reason = "fields of variants are named for what they are; the variant's own line says the rest"
)]

use serde::{Deserialize, Serialize};

use super::error::WireError;
use super::request::{Bytes, Effect};
use super::rights::Rights;
use crate::Version;

/// The answers. Append new ones at the end: the position is the byte on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response<'a> {
    /// It was done, and there is nothing to tell.
    Done,
    /// There is no such item.
    Missing,
    /// An item.
    Item(#[serde(borrow)] Item<'a>),
    /// The first `items.len()` keys asked for, in order. If there are fewer than asked, go on with the rest and `snapshot`.
    Items {
        #[serde(borrow)]
        items: Vec<Option<Item<'a>>>,
        snapshot: Version,
    },
    /// The moment a partial `get_many` began at is gone: start over.
    Moved,
    /// A page of a scan; an empty `cursor` is the end.
    Page {
        #[serde(borrow)]
        items: Vec<ScanItem<'a>>,
        #[serde(with = "serde_bytes")]
        cursor: &'a [u8],
    },
    /// Written, by this sequence.
    Written { version: Version },
    /// The condition did not hold; the version that is there, if any.
    Refused { version: Option<Version> },
    /// A counter after `increment`.
    Counter { value: i64, version: Version },
    /// The whole commit has this sequence. `changed`: how many of its writes found something to change.
    Committed { version: Version, changed: u32 },
    /// The check with this index (checks first, then conditions of writes, in order) did not hold; nothing was written.
    Conflict { index: u32, version: Option<Version> },
    /// Counters, gauges and latencies.
    Metrics(#[serde(borrow)] Vec<Metric<'a>>),
    /// The caches.
    Caches(#[serde(borrow)] Vec<CacheInfo<'a>>),
    /// It failed.
    Error(#[serde(borrow)] WireError<'a>),
    /// The descriptors came with it: control page, then segment. `segment` names it within this run of the daemon.
    Attached { segment: u64 },
    /// The connections.
    Clients(#[serde(borrow)] Vec<ClientInfo<'a>>),
    /// The transaction's number, which is its fencing token too.
    Begun { transaction: u64 },
    /// The locking mode, and the transactions and waiting writes, the oldest first.
    Transactions {
        mode: &'a str,
        #[serde(borrow)]
        transactions: Vec<TransactionInfo<'a>>,
    },
    /// The first of the keys asked for, in order. If there are fewer than asked, ask again for the rest.
    Loans(#[serde(borrow)] Vec<Loan<'a>>),
    /// The version of each fill; `None`: it was refused, because something newer happened to the key or the lease was lost.
    Filled(Vec<Option<Version>>),
    /// The lock's number, which is its fencing token too.
    Locked { fence: u64 },
    /// Somebody else has the lock.
    Busy { holder: &'a str },
    /// Changes follow.
    Watching,
    /// What changed, in order. `missed`: so many changes before these were left out, because this client did not keep up.
    Changes {
        #[serde(borrow)]
        changes: Vec<Change<'a>>,
        missed: u64,
    },
    /// Slow requests. `threshold_us`: what counts as slow; `None`: nothing does. `total`: how many there were since the start.
    SlowRequests {
        threshold_us: Option<u64>,
        total: u64,
        #[serde(borrow)]
        requests: Vec<SlowRequest<'a>>,
    },
    /// The keys that were read most lately, the hottest first.
    HotKeys(#[serde(borrow)] Vec<HotKey<'a>>),
    /// The next bytes of what was asked for.
    Part {
        #[serde(with = "serde_bytes")]
        bytes: &'a [u8],
    },
    /// What a check found.
    Checked(#[serde(borrow)] Checked<'a>),
    /// How far a compaction is, in bytes of keys and records, of about so many.
    Compacting { done: u64, total: u64 },
    /// The store's file is another one now. The bytes are disk space; the pause is the longest that a flush had to wait.
    Compacted { bytes_before: u64, bytes_after: u64, pause_us: u64 },
    /// The daemon stops. It is gone when nobody holds the lock on the file `lock` any more.
    Stopping { pid: u32, lock: &'a str },
    /// The configuration was read again: what holds from now on, and what only a restart would change.
    Reloaded {
        #[serde(borrow)]
        applied: Vec<&'a str>,
        #[serde(borrow)]
        needs_restart: Vec<&'a str>,
    },
    /// A restart in place was begun; `LastRestart` tells how it goes, whoever serves by then.
    Restarting { number: u64 },
    /// The newest restart in place.
    Restarted(#[serde(borrow)] Restart<'a>),
    /// What a user may do.
    Access(#[serde(borrow)] AccessReport<'a>),
}

/// What a user may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessReport<'a> {
    /// The user.
    pub uid: u32,
    /// Its groups, as far as they count: none where the lists name no groups.
    pub groups: Vec<u32>,
    /// What `[access]` gives it; nothing: it may not connect.
    pub rights: Rights,
    /// What it may do with a cache that is not there yet.
    pub of_new: Rights,
    /// What it may do with each cache there is.
    #[serde(borrow)]
    pub caches: Vec<CacheRights<'a>>,
}

/// What a user may do with a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRights<'a> {
    /// The cache.
    pub cache: &'a str,
    /// Whether the cache has a list of its own.
    pub is_listed: bool,
    /// The verbs.
    pub rights: Rights,
}

/// What a check of a serving daemon found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked<'a> {
    /// The newest sequence.
    pub sequence: Version,
    /// Items whose checksums were verified.
    pub items: u64,
    /// Of these, how many are in memory too and were held against it.
    pub compared: u64,
    /// What is wrong; nothing: all that was looked at is as it should be.
    #[serde(borrow)]
    pub wrong: Vec<&'a str>,
}

/// What became of a wish for an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Loan<'a> {
    /// The item, with its entry: fresh, or stale while somebody else reloads it or nobody may yet.
    Hit(#[serde(borrow)] Item<'a>),
    /// The caller is to load it.
    Leased {
        lease: u64,
        /// What may be served meanwhile, with its entry.
        #[serde(borrow)]
        stale: Option<Item<'a>>,
    },
    /// Somebody else is loading it, and the wait is over.
    Busy,
    /// Waiting would never end: the caller has to load it for itself, and cannot fill.
    Alone,
}

/// A change as `watch` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<'a> {
    /// The sequence.
    pub version: Version,
    /// The cache.
    pub cache: &'a str,
    /// What happened.
    #[serde(borrow)]
    pub what: What<'a>,
}

/// What happened to a key, or to many. An expiry is not a change: nothing happens when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum What<'a> {
    /// It has a new item.
    Put {
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        value_bytes: u32,
    },
    /// It has none any more.
    Removed {
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
    },
    /// All were cleared.
    Cleared { effect: Effect },
    /// Those whose keys start so were cleared.
    ClearedPrefix {
        #[serde(with = "serde_bytes")]
        prefix: &'a [u8],
        effect: Effect,
    },
    /// Those with this tag were cleared.
    ClearedTag {
        #[serde(with = "serde_bytes")]
        tag: &'a [u8],
        effect: Effect,
    },
    /// The cache is no more.
    Dropped,
}

/// An item as the wire carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item<'a> {
    /// The value; empty in the answer to `describe`.
    #[serde(with = "serde_bytes")]
    pub value: &'a [u8],
    /// The sequence that wrote it.
    pub version: Version,
    /// Present when an entry was asked for.
    #[serde(borrow)]
    pub entry: Option<Entry<'a>>,
}

/// All about an item but its value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// Fresh or stale now.
    pub freshness: Freshness,
    /// Length of the value, in bytes.
    pub value_bytes: u32,
    /// How long ago it was put, in milliseconds.
    pub age_ms: u64,
    /// Milliseconds until it expires; negative when it is past; `None`: never.
    pub expires_in_ms: Option<i64>,
    /// How long after expiry it may be served as stale, in milliseconds.
    pub stale_for_ms: u64,
    /// What it cost to make, in milliseconds.
    pub load_cost_ms: u32,
    /// Its tags.
    #[serde(borrow)]
    pub tags: Tags<'a>,
}

/// The tags of an item, at most `limits::TAGS_MAX`.
pub type Tags<'a> = Vec<Bytes<'a>>;

/// Whether an item is in its first life or its stale one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freshness {
    /// Before its expiry, and not made stale.
    Fresh,
    /// Past its expiry but within its stale life, or made stale by `expire` or `clear`.
    Stale,
}

/// One row of a page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanItem<'a> {
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: &'a [u8],
    /// The item; the value is empty unless values were asked for, the entry is always there.
    #[serde(borrow)]
    pub item: Item<'a>,
}

/// What a write must outlive before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: memory only.
    Memory,
    /// The death of the daemon (the pending log); power loss up to the last flushes.
    Behind,
    /// Power loss.
    Durable,
}

/// One number of `stats`, named as Prometheus would.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric<'a> {
    /// For example `kvd_requests_total`; the unit last.
    pub name: &'a str,
    /// Label pairs in order, for example `("cache", "product")`.
    #[serde(borrow)]
    pub labels: Vec<(&'a str, &'a str)>,
    /// The number.
    pub value: f64,
}

/// A cache as `caches` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Declared in the configuration, or created by its first write.
    pub declared: bool,
    /// Its share of memory, in bytes.
    pub memory_bytes: u64,
    /// Its share of the disk, in bytes; 0 for `memory` caches.
    pub disk_bytes_max: u64,
    /// Items in memory now.
    pub resident_items: u64,
    /// Bytes of live data on disk now, roughly.
    pub disk_bytes: u64,
    /// Default life, in milliseconds; `None`: forever.
    pub ttl_default_ms: Option<u64>,
    /// Longest life, in milliseconds; `None`: no bound.
    pub ttl_max_ms: Option<u64>,
    /// Default durability.
    pub durability: Durability,
}

/// A connection as `clients` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo<'a> {
    /// Names it within this run of the daemon.
    pub id: u64,
    /// What it calls itself.
    pub name: &'a str,
    /// Its user, when it connected.
    pub uid: u32,
    /// Its process, when it connected.
    pub pid: u32,
    /// How long ago it connected, in milliseconds.
    pub connected_ms: u64,
    /// How long ago it last asked something, in milliseconds.
    pub idle_ms: u64,
    /// Requests it has made.
    pub requests: u64,
    /// How it reads each cache that it told about.
    #[serde(borrow)]
    pub paths: Vec<ReadPath<'a>>,
}

/// A transaction, a write that waits for one, a lease to load, or a named lock, as `locks` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionInfo<'a> {
    /// Its number.
    pub transaction: u64,
    /// The connection.
    pub client: u64,
    /// What its client calls itself.
    pub name: &'a str,
    /// Its process, when it connected.
    pub pid: u32,
    /// `transaction`, `snapshot`, `write`, `load`, or `lock`.
    pub kind: &'a str,
    /// How long it has been open, in milliseconds.
    pub open_ms: u64,
    /// How long it has sent nothing, in milliseconds; 0 while a request of it is being served.
    pub quiet_ms: u64,
    /// How many locks it holds.
    pub held: u64,
    /// Some of them, by mode and name.
    #[serde(borrow)]
    pub holds: Vec<(&'a str, Bytes<'a>)>,
    /// What it waits for, by mode and name, and how long it has, in milliseconds.
    #[serde(borrow)]
    pub waits: Option<(&'a str, Bytes<'a>, u64)>,
    /// The transactions it waits for.
    pub behind: Vec<u64>,
}

/// A request that took long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowRequest<'a> {
    /// What was asked, as `stats` names it.
    pub operation: &'a str,
    /// The cache; empty: none was named.
    pub cache: &'a str,
    /// The beginning of the first key, at most `limits::SLOW_KEY_BYTES_MAX`; of a clear, its tag or prefix; of a named lock, its name.
    #[serde(borrow)]
    pub key: Bytes<'a>,
    /// The length of the whole key.
    pub key_bytes: u32,
    /// The connection.
    pub client: u64,
    /// What its client calls itself.
    pub name: &'a str,
    /// Its user, when it connected.
    pub uid: u32,
    /// Its process, when it connected.
    pub pid: u32,
    /// When it was answered, in milliseconds since 1970.
    pub ended_ms: i64,
    /// How long it took, in microseconds, the waits included.
    pub took_us: u64,
    /// How long it waited for locks, leases and named locks that others held, in microseconds.
    pub lock_us: u64,
    /// How long it waited for the disk, in microseconds.
    pub disk_us: u64,
    /// The kind of its error, as `stats` names it.
    pub failure: Option<&'a str>,
}

/// A key that is read often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotKey<'a> {
    /// The cache.
    pub cache: &'a str,
    /// The key.
    #[serde(borrow)]
    pub key: Bytes<'a>,
    /// Reads of the last seconds, estimated from a sample; to be compared with those of other keys.
    pub reads: u64,
    /// Length of the value, in bytes.
    pub value_bytes: u32,
}

/// How a client reads a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadPath<'a> {
    /// The cache.
    pub cache: &'a str,
    /// Reads that needed no request, told so far.
    pub shared_reads: u64,
    /// Why it reads over the socket; `None`: it reads shared memory.
    pub socket_because: Option<&'a str>,
}

/// How a restart in place went, or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart<'a> {
    /// Its number, as [`Response::Restarting`] said; 0: there was none.
    pub number: u64,
    /// Whether it is over, and how.
    pub state: RestartState,
    /// Why it failed, or what there is to say.
    pub message: &'a str,
    /// The process that serves.
    pub pid: u32,
    /// How long nothing was answered, in microseconds.
    pub paused_us: u64,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// Items that were in memory afterwards.
    pub items: u64,
    /// Bytes of the segments that were taken over.
    pub bytes: u64,
}

/// How far a restart in place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartState {
    /// There was none.
    #[default]
    Never,
    /// It goes on.
    Running,
    /// The new process serves.
    Done,
    /// The old process serves on.
    Failed,
}
