//! What a client can ask. Everything borrows from the frame it came in.

#![allow(
    missing_docs,
    reason = "fields of variants are named for what they are; the variant's own line says the rest"
)]

use serde::{Deserialize, Serialize};

use super::response::Durability;
use crate::Version;

/// A request and the number its client gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<'a> {
    /// The client's own number for a request that may be repeated after a lost connection; 0: none.
    pub number: u64,
    /// What is asked.
    #[serde(borrow)]
    pub request: Request<'a>,
}

/// The operations. Append new ones at the end: the position is the byte on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Answers [`Response::Done`](super::Response::Done).
    Ping,
    /// The value of a key: `Item`, or `Missing`.
    Get {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        sliding: Option<Sliding>,
        want: Want,
    },
    /// The values of many keys of one cache, of one moment: `Items`.
    /// `snapshot` is the moment of an earlier, partial answer that this request goes on with; if it is gone: `Moved`.
    GetMany {
        cache: &'a str,
        #[serde(borrow)]
        keys: Vec<Bytes<'a>>,
        snapshot: Option<Version>,
    },
    /// All about an item but its value, stale ones included: `Item` with an empty value, or `Missing`.
    Describe {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
    },
    /// A page of the keys that start with `prefix`: `Page`. `cursor` is empty at first, then what the last page gave.
    Scan {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        prefix: &'a [u8],
        #[serde(with = "serde_bytes")]
        cursor: &'a [u8],
        keys_max: u32,
        values: bool,
    },
    /// `Written`, or `Refused` when the condition does not hold.
    Put {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        #[serde(with = "serde_bytes")]
        value: &'a [u8],
        #[serde(borrow)]
        options: PutOptions<'a>,
    },
    /// Changes the life of an item: `Written`, or `Missing`.
    Expire {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        expiry: Expiry,
    },
    /// `Written`, or `Missing` when there was nothing.
    Delete {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
    },
    /// Reads and deletes in one: `Item`, or `Missing`.
    Take {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
    },
    /// Adds to a decimal integer: `Counter`. A missing key begins at `initial` *instead of* adding, with the life
    /// `ttl_ms`; an existing one keeps its life.
    Increment {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        by: i64,
        initial: i64,
        ttl_ms: Option<u64>,
        durability: Option<Durability>,
    },
    /// Checks, then writes, all or nothing: `Committed`, or `Conflict`.
    Commit {
        #[serde(borrow)]
        checks: Vec<Check<'a>>,
        #[serde(borrow)]
        writes: Vec<Write<'a>>,
        durability: Option<Durability>,
    },
    /// Makes many items gone or stale at once: `Written`.
    Clear {
        #[serde(borrow)]
        scope: Scope<'a>,
        effect: Effect,
    },
    /// Removes a cache and all its items: `Written`.
    Drop { cache: &'a str },
    /// `Metrics`.
    Stats,
    /// `Caches`.
    Caches,
    /// Makes everything written so far durable: `Done` when it is.
    Sync,
    /// The descriptors of the control page and of this cache's segment, sent with the answer: `Attached`.
    Attach { cache: &'a str },
    /// What was read from a segment without asking, told in arrears; what is lost of it harms nothing: `Done`.
    Hits {
        cache: &'a str,
        /// Whose segment: what [`Response::Attached`](super::Response::Attached) said. 0: the client has none.
        segment: u64,
        /// Hits and authoritative misses since the last report.
        hits: u64,
        misses: u64,
        /// The slots that were read, each once, at most `limits::HITS_PLACES_MAX`.
        places: Vec<u32>,
        /// Why this client reads over the socket; `None`: it does not.
        socket_because: Option<&'a str>,
    },
    /// `Clients`.
    Clients,
    /// Begins a transaction: `Begun`. Until it ends, all requests of this connection that read or write items are part of it.
    Begin {
        /// Reads only, all of one moment; needs no lock.
        read_only: bool,
        /// Longest wait for each lock, in milliseconds; at most `limits::LOCK_WAIT_MAX`.
        wait_ms: u32,
        /// The number that its first try got, so that a retry is as old as that; 0: this is the first.
        first: u64,
        /// How often it was tried before.
        tries: u32,
    },
    /// Ends the transaction of this number: `Committed`.
    CommitTransaction { transaction: u64, durability: Option<Durability> },
    /// Ends a transaction without a trace: `Done`, or `Missing` when there is none. The daemon's own user and root may name
    /// that of another connection, or a lease or named lock.
    Rollback { transaction: u64 },
    /// Lets the transaction of this number live on: `Done`.
    Renew { transaction: u64 },
    /// Who holds and who waits: `Transactions`.
    Transactions,
    /// Items, or leases to load them: `Loans`, in the order of `keys`. Of all who ask for a missing or stale item one gets the
    /// lease. It belongs to this connection, and ends with `Fill`, `Abandon`, the connection, or when others want it after `lease_ms`.
    Lease {
        cache: &'a str,
        #[serde(borrow)]
        keys: Vec<Wanted<'a>>,
        /// Longest wait for somebody else's load, in milliseconds, at most `limits::LEASE_WAIT_MAX`. With several keys nothing is
        /// waited for.
        wait_ms: u32,
        /// How long the lease is safe from others who want it, in milliseconds, at most `limits::LEASE_LIFE_MAX`.
        lease_ms: u32,
        /// The numbers of the leases, locks and transactions that the caller holds already, at most `limits::HOLDS_MAX`.
        holds: Vec<u64>,
    },
    /// Puts what was loaded, each item by the right of its lease, which ends: `Filled`.
    Fill {
        #[serde(borrow)]
        fills: Vec<Filling<'a>>,
    },
    /// Ends leases without a value: `Done`. For `retry_after_ms` nobody gets a lease for those of the keys that have a stale item;
    /// at most `limits::LEASE_LIFE_MAX`.
    Abandon { leases: Vec<u64>, retry_after_ms: u32 },
    /// Locks a name for the processes of this host: `Locked`, or `Busy` when the wait was in vain. The lock belongs to this
    /// connection.
    Lock {
        name: &'a str,
        /// How long it is safe from others who want it, in milliseconds, at most `limits::NAMED_LOCK_LIFE_MAX`.
        lock_ms: u32,
        /// Longest wait, in milliseconds, at most `limits::LEASE_WAIT_MAX`.
        wait_ms: u32,
        /// As in `Lease`.
        holds: Vec<u64>,
    },
    /// Keeps a lock for another `lock_ms` from now: `Done`.
    RenewLock { fence: u64, lock_ms: u32 },
    /// Gives a lock back: `Done`.
    Unlock { fence: u64 },
    /// `Watching`, then `Changes` as they happen until the connection ends; nothing else is answered any more.
    Watch {
        /// `None`: all that the caller may use.
        cache: Option<&'a str>,
        /// Only keys that start so.
        #[serde(with = "serde_bytes")]
        prefix: &'a [u8],
    },
    /// Requests that took longer than the daemon's threshold, as many as it remembers: `SlowRequests`.
    SlowLog {
        order: SlowOrder,
        requests_max: u32,
        /// Only those that took at least so long.
        longer_than_us: u64,
    },
    /// The keys in memory that were read most lately, at most `limits::HOT_KEYS_MAX`: `HotKeys`.
    Hottest {
        /// `None`: of all caches that the caller may use.
        cache: Option<&'a str>,
        keys_max: u32,
    },
    /// As `Scan`, stale items too: `Page`.
    ScanAll {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        prefix: &'a [u8],
        #[serde(with = "serde_bytes")]
        cursor: &'a [u8],
        keys_max: u32,
        values: bool,
    },
    /// Makes items gone or stale, each only if it still has the version said: `Committed`, with how many had. At most
    /// `limits::COMMIT_CHECKS_MAX`.
    ClearVersions {
        cache: &'a str,
        #[serde(borrow)]
        items: Vec<Versioned<'a>>,
        effect: Effect,
    },
    /// `Part`s of a backup as of one moment, empty ones while it is awaited, then `Done`. For the daemon's own user and root.
    Backup {
        /// With the caches that are in memory only, each as it is when its turn comes.
        memory: bool,
    },
    /// Looks whether store and memory are sound, at no more than `samples` items a cache: `Checked`. For the daemon's own user
    /// and root.
    Check { samples: u32 },
    /// Copies the store's file into a smaller one and puts that in its place: `Compacting`, several times, then `Compacted`. For
    /// the daemon's own user and root.
    Compact,
    /// Stops the daemon as TERM does: `Stopping`. Like the next two, for the daemon's own user and root.
    Shutdown,
    /// Reads the configuration again: `Reloaded`. One that does not hold together changes nothing.
    Reload,
    /// Begins a restart in place: `Restarting`.
    Restart {
        /// Caches that are empty afterwards.
        #[serde(borrow)]
        clear: Vec<&'a str>,
    },
    /// How the newest restart in place went: `Restarted`.
    LastRestart,
    /// What a user may do: `Access`.
    Access {
        /// `None`: the caller. Others only for who has [`Rights::ADMIN`](super::Rights::ADMIN).
        uid: Option<u32>,
    },
}

/// Which slow requests come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SlowOrder {
    /// The newest.
    #[default]
    Newest,
    /// Those that took longest since the daemon's start.
    Slowest,
}

/// A key and the version that its item had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<'a> {
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: &'a [u8],
    /// The version.
    pub version: Version,
}

/// A key that somebody wants an item of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted<'a> {
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: &'a [u8],
    /// An item of this version counts as missing: the caller has seen it, and it will not do.
    pub except: Option<Version>,
}

/// What was loaded under a lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Filling<'a> {
    /// The lease.
    pub lease: u64,
    /// The value.
    #[serde(with = "serde_bytes")]
    pub value: &'a [u8],
    /// How it is put; the condition must be [`Condition::Always`].
    #[serde(borrow)]
    pub options: PutOptions<'a>,
}

/// A byte string inside a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes<'a>(#[serde(borrow, with = "serde_bytes")] pub &'a [u8]);

/// How much of an item a `get` wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// The value of a fresh item; a stale one is `Missing`.
    Value,
    /// The value with everything known about it; stale ones too.
    Entry,
}

/// A sliding `get`: if less than `below_ms` of life is left, the item gets `ttl_ms` from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sliding {
    /// Milliseconds of remaining life below which it is extended.
    pub below_ms: u64,
    /// The new life, in milliseconds from now.
    pub ttl_ms: u64,
}

/// A new life for an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiry {
    /// Expires this many milliseconds from now (stale life kept as it was).
    After(u64),
    /// Never expires (or at the cache's longest, if it has one).
    Never,
    /// Gone at once.
    Now,
    /// Kept, but stale from now on, until its own expiry and stale life end.
    Stale,
}

/// When a `put` takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Condition {
    /// Always.
    #[default]
    Always,
    /// Only if there is no item (a stale one counts as present).
    IfAbsent,
    /// Only if the item has exactly this version.
    IfVersion(Version),
}

/// How an item is put.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PutOptions<'a> {
    /// Life in milliseconds; `None`: the cache's default.
    pub ttl_ms: Option<u64>,
    /// How long after expiry it may be served as stale, in milliseconds.
    pub stale_for_ms: u64,
    /// What the value cost to make, in milliseconds; kept with the item.
    pub load_cost_ms: u32,
    /// Tags to clear it by.
    #[serde(borrow)]
    pub tags: Vec<Bytes<'a>>,
    /// `None`: the cache's.
    pub durability: Option<Durability>,
    /// When the put takes place.
    pub condition: Condition,
}

/// A precondition of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check<'a> {
    /// The cache.
    pub cache: &'a str,
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: &'a [u8],
    /// What must be there.
    pub expect: Expect,
}

/// What a [`Check`] expects of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// No item, fresh or stale.
    Absent,
    /// An item of exactly this version.
    Version(Version),
}

/// A write of a commit. Conditions inside `Put` options count as checks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Write<'a> {
    /// As [`Request::Put`].
    Put {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        #[serde(with = "serde_bytes")]
        value: &'a [u8],
        #[serde(borrow)]
        options: PutOptions<'a>,
    },
    /// As [`Request::Expire`]; a missing key is skipped.
    Expire {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
        expiry: Expiry,
    },
    /// As [`Request::Delete`]; a missing key is skipped.
    Delete {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        key: &'a [u8],
    },
}

/// What a `clear` covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope<'a> {
    /// All caches.
    Everything,
    /// One cache.
    Cache(&'a str),
    /// Items with this tag, in one cache or in all.
    Tag {
        cache: Option<&'a str>,
        #[serde(with = "serde_bytes")]
        tag: &'a [u8],
    },
    /// Items of a cache whose keys start so.
    Prefix {
        cache: &'a str,
        #[serde(with = "serde_bytes")]
        prefix: &'a [u8],
    },
}

/// What a `clear` does to items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// They are gone.
    Gone,
    /// They stay servable as stale until their own expiry and stale life end.
    Stale,
}
