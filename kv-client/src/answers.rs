//! What callers get: items, pages, counts, figures. Owned copies of what the wire borrows.
//!
//! Made by `ops`, read by applications and the command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kv_proto::segment::{self, Meta};
use kv_proto::wire::{self, Durability, Effect, RestartState, What};
use kv_proto::{BootMs, Version};

use crate::observe::Source;
use crate::shared::Parts;

/// Whether an item may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is in its life.
    Fresh,
    /// It is past its life, or was made stale, and is kept.
    Stale,
    /// It is in its life, and says that there is nothing to be had. Only typed caches know such.
    Negative,
}

impl From<wire::Freshness> for Freshness {
    fn from(freshness: wire::Freshness) -> Freshness {
        match freshness {
            wire::Freshness::Fresh => Freshness::Fresh,
            wire::Freshness::Stale => Freshness::Stale,
        }
    }
}

/// An item with all that is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The value; empty in the answer to `describe` and in scans without values.
    pub value: Vec<u8>,
    /// Length of the value, also where it was not fetched.
    pub value_bytes: u32,
    /// The sequence that wrote it.
    pub version: Version,
    /// Fresh or stale, at the moment of the answer.
    pub freshness: Freshness,
    /// How long ago it was put.
    pub age: Duration,
    /// Milliseconds until it expires, negative when that is past; `None`: never.
    pub expires_in_ms: Option<i64>,
    /// How long after its expiry it may be served as stale.
    pub stale_for: Duration,
    /// What the value cost to make.
    pub load_cost: Duration,
    /// Its tags.
    pub tags: Vec<Vec<u8>>,
    /// Whether shared memory or the daemon answered.
    pub source: Source,
    /// When that was.
    pub seen: SystemTime,
}

impl Entry {
    /// When it was put.
    #[must_use]
    pub fn created(&self) -> SystemTime {
        self.seen - self.age
    }

    /// When it expires; `None`: never.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        let ms = self.expires_in_ms?;
        let far = Duration::from_millis(ms.unsigned_abs());
        if ms < 0 { self.seen.checked_sub(far) } else { self.seen.checked_add(far) }
    }

    /// Until when it may be served as stale; `None`: it never expires.
    #[must_use]
    pub fn stale_until(&self) -> Option<SystemTime> {
        self.expires()?.checked_add(self.stale_for)
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.freshness == Freshness::Stale
    }

    /// What is left of its life; `None`: all there is.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.expires_in_ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
    }

    /// How long it still lives, as of the answer.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use kv_client::Life;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", std::time::Duration::from_secs(60))?;
    /// let entry = cache.get_entry("42")?.expect("just put");
    /// assert!(matches!(entry.life(), Life::Left(left) if left.as_secs() >= 59));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn life(&self) -> Life {
        if self.freshness == Freshness::Stale {
            return Life::Stale;
        }
        self.expires_in_ms
            .map_or(Life::Forever, |ms| Life::Left(Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
    }

    pub(crate) fn from_wire(item: &wire::Item<'_>) -> Option<Entry> {
        let entry = item.entry.as_ref()?;
        Some(Entry {
            value: item.value.to_vec(),
            value_bytes: entry.value_bytes,
            version: item.version,
            freshness: entry.freshness.into(),
            age: Duration::from_millis(entry.age_ms),
            expires_in_ms: entry.expires_in_ms,
            stale_for: Duration::from_millis(entry.stale_for_ms),
            load_cost: Duration::from_millis(u64::from(entry.load_cost_ms)),
            tags: entry.tags.iter().map(|tag| tag.0.to_vec()).collect(),
            source: Source::Socket,
            seen: moment(),
        })
    }
}

impl Entry {
    /// An item read from shared memory at `now`.
    pub(crate) fn from_shared(meta: &Meta, buffer: &[u8], now: BootMs, parts: Parts) -> Option<Entry> {
        let freshness = match meta.freshness {
            segment::Freshness::Fresh => Freshness::Fresh,
            segment::Freshness::Stale => Freshness::Stale,
            segment::Freshness::Gone => return None,
        };
        let value = meta.value(buffer);
        Some(Entry {
            value: if parts == Parts::All { value.to_vec() } else { Vec::new() },
            value_bytes: u32::try_from(value.len()).unwrap_or(u32::MAX),
            version: meta.version,
            freshness,
            age: Duration::from_millis(u64::try_from(now.saturating_sub(meta.created)).unwrap_or(0)),
            expires_in_ms: meta.expires.map(|expires| expires.saturating_sub(now)),
            stale_for: Duration::from_millis(meta.stale_for_ms),
            load_cost: Duration::from_millis(u64::from(meta.load_cost_ms)),
            tags: meta.tags(buffer).map(<[u8]>::to_vec).collect(),
            source: Source::Shared,
            seen: moment(),
        })
    }
}

/// When an answer came, for those who want a date of what it says is so and so long from now. Nothing is decided by it.
#[allow(clippy::disallowed_methods, reason = "a client has no clock but the machine's")]
fn moment() -> SystemTime {
    SystemTime::now()
}

/// How long an item still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Life {
    /// It does not expire.
    Forever,
    /// It expires after this.
    Left(Duration),
    /// It has expired, or was made stale, and is kept as stale.
    Stale,
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// Written, as this version.
    Written {
        /// The version.
        version: Version,
    },
    /// The condition did not hold.
    Refused {
        /// The version that is there, if any.
        version: Option<Version>,
    },
}

impl PutOutcome {
    /// Whether it was written.
    #[must_use]
    pub fn is_written(self) -> bool {
        matches!(self, PutOutcome::Written { .. })
    }

    /// The version that is there now: the one written, or the one that was in the way.
    #[must_use]
    pub fn version(self) -> Option<Version> {
        match self {
            PutOutcome::Written { version } => Some(version),
            PutOutcome::Refused { version } => version,
        }
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The version of all it wrote.
    pub version: Version,
    /// How many of its writes found something to change.
    pub changed: u32,
}

/// A page of a scan: one state of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Keys in order, each with its item.
    pub items: Vec<(Vec<u8>, Entry)>,
    /// Where the next page begins; empty: this is the last one.
    pub cursor: Vec<u8>,
}

/// A cache as the daemon lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheInfo {
    /// Its name.
    pub name: String,
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
    /// Default life; `None`: forever.
    pub ttl_default: Option<Duration>,
    /// Longest life; `None`: no bound.
    pub ttl_max: Option<Duration>,
    /// Default durability.
    pub durability: Durability,
}

impl CacheInfo {
    pub(crate) fn from_wire(info: &wire::CacheInfo<'_>) -> CacheInfo {
        CacheInfo {
            name: info.name.to_owned(),
            declared: info.declared,
            memory_bytes: info.memory_bytes,
            disk_bytes_max: info.disk_bytes_max,
            resident_items: info.resident_items,
            disk_bytes: info.disk_bytes,
            ttl_default: info.ttl_default_ms.map(Duration::from_millis),
            ttl_max: info.ttl_max_ms.map(Duration::from_millis),
            durability: info.durability,
        }
    }
}

/// One number of `stats`, named as Prometheus would.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// For example `kvd_requests_total`; the unit last.
    pub name: String,
    /// Label pairs in order, for example `("cache", "product")`.
    pub labels: Vec<(String, String)>,
    /// The number.
    pub value: f64,
}

impl Metric {
    pub(crate) fn from_wire(metric: &wire::Metric<'_>) -> Metric {
        let labels =
            metric.labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Metric { name: metric.name.to_owned(), labels, value: metric.value }
    }
}

/// How reads of a cache travel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadPath {
    /// Through shared memory; single reads may still have to ask.
    Shared,
    /// Each is a request.
    Socket {
        /// Why.
        because: String,
    },
}

impl ReadPath {
    /// Whether reads go through shared memory.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.because().is_none()
    }

    /// Why each read is a request; `None`: it is not.
    #[must_use]
    pub fn because(&self) -> Option<&str> {
        match self {
            ReadPath::Shared => None,
            ReadPath::Socket { because } => Some(because),
        }
    }
}

impl std::fmt::Display for ReadPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReadPath::Shared => f.write_str("shared"),
            ReadPath::Socket { because } => write!(f, "socket: {because}"),
        }
    }
}

/// What a client counted, of itself alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// By cache, those it was asked for.
    pub caches: Vec<CacheStats>,
}

/// What a client counted about one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// The cache.
    pub name: String,
    /// How it is read now.
    pub path: ReadPath,
    /// Items found without asking. Threads that share a counter may lose one now and then.
    pub shared_hits: u64,
    /// Keys known, without asking, not to be there.
    pub shared_misses: u64,
    /// How often the writer has reused memory while it was being copied; those reads started over.
    pub times_overtaken: u64,
    /// Reads that had to ask, by reason.
    pub fallbacks: Fallbacks,
    /// What `get_or_load` and its kin did.
    pub loads: Loads,
}

/// What `get_or_load` and its kin did with one cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loads {
    /// Answered by an item of the daemon. (Those of shared memory are [`CacheStats::shared_hits`].)
    pub hits_socket: u64,
    /// Answered by what this process loaded while the daemon was away.
    pub hits_standby: u64,
    /// Answers that said "there is none".
    pub hits_negative: u64,
    /// Answers that were past their life.
    pub stale_served: u64,
    /// Loaders that ended.
    pub loads: u64,
    /// Those of them that failed.
    pub loads_failed: u64,
    /// Reloads ahead of the end of a life.
    pub refreshes: u64,
    /// Callers that got what another one of this process loaded.
    pub coalesced: u64,
    /// Values that were not stored, because something newer had happened or the lease was lost.
    pub leases_lost: u64,
    /// Values that could not be stored: too large, too many tags, or the daemon failed. Their callers have got them.
    pub not_stored: u64,
    /// Loads without a lease: inside a transaction, in a ring of loads, after waiting in vain, or with the daemon away.
    pub loads_alone: u64,
    /// Reads that missed because the daemon is away.
    pub outage_misses: u64,
    /// Stored bytes that were of another schema version, or no value.
    pub undecodable: u64,
}

/// Reads that could not be answered from shared memory, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fallbacks {
    /// There was no segment: see [`ReadPath::Socket`].
    pub not_attached: u64,
    /// On disk, or too large for the rings.
    pub not_resident: u64,
    /// The index did not know: it had forgotten a key of that bucket, or not all keys on disk were enumerated yet.
    pub forgotten: u64,
    /// The writer overtook the read too often.
    pub lapped: u64,
    /// The daemon had stopped, gave no sign of life, or had replaced the segment.
    pub not_live: u64,
}

/// A connection as the daemon lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Names it within this run of the daemon.
    pub id: u64,
    /// What the client calls itself.
    pub name: String,
    /// Its user, when it connected.
    pub uid: u32,
    /// Its process, when it connected.
    pub pid: u32,
    /// How long it has been connected.
    pub connected: Duration,
    /// How long ago it last asked something.
    pub idle: Duration,
    /// Requests it has made.
    pub requests: u64,
    /// How it reads each cache that it told about: cache, reads without a request, path.
    pub paths: Vec<(String, u64, ReadPath)>,
}

impl ClientInfo {
    pub(crate) fn from_wire(info: &wire::ClientInfo<'_>) -> ClientInfo {
        let path = |path: &wire::ReadPath<'_>| {
            let read = match path.socket_because {
                None => ReadPath::Shared,
                Some(because) => ReadPath::Socket { because: because.to_owned() },
            };
            (path.cache.to_owned(), path.shared_reads, read)
        };
        ClientInfo {
            id: info.id,
            name: info.name.to_owned(),
            uid: info.uid,
            pid: info.pid,
            connected: Duration::from_millis(info.connected_ms),
            idle: Duration::from_millis(info.idle_ms),
            requests: info.requests,
            paths: info.paths.iter().map(path).collect(),
        }
    }
}

/// What a check of a serving daemon found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// The newest sequence.
    pub sequence: Version,
    /// Items whose checksums were verified.
    pub items: u64,
    /// Of these, how many are in memory too and were held against it.
    pub compared: u64,
    /// What is wrong; nothing: all that was looked at is as it should be.
    pub wrong: Vec<String>,
}

/// What a compaction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Disk space of the store's file before.
    pub bytes_before: u64,
    /// Disk space of the one that took its place.
    pub bytes_after: u64,
    /// The longest that a flush had to wait for it.
    pub pause: Duration,
}

/// What is heard of a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compacting {
    Progress { done: u64, total: u64 },
    Done(Compacted),
}

/// A daemon that was told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopping {
    /// Its process.
    pub pid: u32,
    /// It is gone when nobody holds the lock on this file any more.
    pub lock: PathBuf,
}

/// A configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// What has changed and holds from now on.
    pub applied: Vec<String>,
    /// What has changed in the configuration and only a restart would change in the daemon.
    pub needs_restart: Vec<String>,
}

/// How the newest restart in place went, or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restart {
    /// Its number, as `restart` said; 0: there was none.
    pub number: u64,
    /// Whether it is over, and how.
    pub state: RestartState,
    /// Why it failed, or what there is to say.
    pub message: String,
    /// The process that serves.
    pub pid: u32,
    /// How long nothing was answered.
    pub paused: Duration,
    /// How long all of it took.
    pub took: Duration,
    /// Items that were in memory afterwards.
    pub items: u64,
    /// Bytes of the segments that were taken over.
    pub bytes: u64,
}

impl Restart {
    pub(crate) fn from_wire(restart: &wire::Restart<'_>) -> Restart {
        Restart {
            number: restart.number,
            state: restart.state,
            message: restart.message.to_owned(),
            pid: restart.pid,
            paused: Duration::from_micros(restart.paused_us),
            took: Duration::from_millis(restart.took_ms),
            items: restart.items,
            bytes: restart.bytes,
        }
    }
}

/// Who holds and who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transactions {
    /// The daemon's locking mode: `database`, `key` or `optimistic`.
    pub mode: String,
    /// Transactions, and writes that wait for one; the oldest first.
    pub transactions: Vec<TransactionInfo>,
}

/// A transaction, or a write that waits for one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionInfo {
    /// Its number.
    pub number: u64,
    /// The connection, as in [`ClientInfo::id`].
    pub client: u64,
    /// What its client calls itself.
    pub name: String,
    /// Its process, when it connected.
    pub pid: u32,
    /// `transaction`, `snapshot`, or `write`.
    pub kind: String,
    /// How long it has been open.
    pub open: Duration,
    /// How long it has sent nothing; zero while a request of it is being served.
    pub quiet: Duration,
    /// How many locks it holds.
    pub held: u64,
    /// Some of them: how, and what.
    pub holds: Vec<(String, String)>,
    /// How and what it waits for, and for how long.
    pub waits: Option<(String, String, Duration)>,
    /// The numbers of those it waits for.
    pub behind: Vec<u64>,
}

impl TransactionInfo {
    pub(crate) fn from_wire(info: &wire::TransactionInfo<'_>) -> TransactionInfo {
        let text = |bytes: wire::Bytes<'_>| String::from_utf8_lossy(bytes.0).into_owned();
        TransactionInfo {
            number: info.transaction,
            client: info.client,
            name: info.name.to_owned(),
            pid: info.pid,
            kind: info.kind.to_owned(),
            open: Duration::from_millis(info.open_ms),
            quiet: Duration::from_millis(info.quiet_ms),
            held: info.held,
            holds: info.holds.iter().map(|(mode, name)| ((*mode).to_owned(), text(*name))).collect(),
            waits: info
                .waits
                .map(|(mode, name, ms)| (mode.to_owned(), text(name), Duration::from_millis(ms))),
            behind: info.behind.clone(),
        }
    }
}

/// What the daemon remembers of requests that took long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowLog {
    /// What counts as slow; `None`: nothing does.
    pub threshold: Option<Duration>,
    /// How many there were since the daemon's start.
    pub total: u64,
    /// Those that were asked for, as far as they are remembered.
    pub requests: Vec<SlowRequest>,
}

/// A request that took long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowRequest {
    /// What was asked, as in the labels of [`Metric`].
    pub operation: String,
    /// The cache; empty: none was named.
    pub cache: String,
    /// The beginning of its first key, or of the tag, prefix or lock that it names instead.
    pub key: Vec<u8>,
    /// The length of the whole key.
    pub key_bytes: u32,
    /// The connection, as in [`ClientInfo::id`].
    pub client: u64,
    /// What its client calls itself.
    pub name: String,
    /// Its user, when it connected.
    pub uid: u32,
    /// Its process, when it connected.
    pub pid: u32,
    /// When it was answered, by the daemon's clock.
    pub ended: SystemTime,
    /// How long it took, the waits included.
    pub took: Duration,
    /// How long it waited for locks, leases and named locks that others held.
    pub waited_lock: Duration,
    /// How long it waited for the disk.
    pub waited_disk: Duration,
    /// The kind of its error.
    pub failure: Option<String>,
}

impl SlowRequest {
    pub(crate) fn from_wire(request: &wire::SlowRequest<'_>) -> SlowRequest {
        let since_1970 = Duration::from_millis(u64::try_from(request.ended_ms).unwrap_or(0));
        SlowRequest {
            operation: request.operation.to_owned(),
            cache: request.cache.to_owned(),
            key: request.key.0.to_vec(),
            key_bytes: request.key_bytes,
            client: request.client,
            name: request.name.to_owned(),
            uid: request.uid,
            pid: request.pid,
            ended: SystemTime::UNIX_EPOCH + since_1970,
            took: Duration::from_micros(request.took_us),
            waited_lock: Duration::from_micros(request.lock_us),
            waited_disk: Duration::from_micros(request.disk_us),
            failure: request.failure.map(str::to_owned),
        }
    }
}

/// A key that is read often.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotKey {
    /// The cache.
    pub cache: String,
    /// The key.
    pub key: Vec<u8>,
    /// Reads of the last seconds, estimated from a sample; to be compared with those of other keys.
    pub reads: u64,
    /// Length of the value, in bytes.
    pub value_bytes: u32,
}

impl HotKey {
    pub(crate) fn from_wire(key: &wire::HotKey<'_>) -> HotKey {
        HotKey {
            cache: key.cache.to_owned(),
            key: key.key.0.to_vec(),
            reads: key.reads,
            value_bytes: key.value_bytes,
        }
    }
}

/// Something that happened to a watched cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A key has a new item.
    Put {
        /// The cache.
        cache: String,
        /// The key.
        key: Vec<u8>,
        /// The item's version.
        version: Version,
        /// The length of its value.
        value_bytes: u32,
    },
    /// A key has no item any more: deleted, taken, or expired by hand. An expiry that comes by itself is not told.
    Removed {
        /// The cache.
        cache: String,
        /// The key.
        key: Vec<u8>,
        /// The sequence.
        version: Version,
    },
    /// Many items were made gone or stale at once.
    Cleared {
        /// The cache.
        cache: String,
        /// Which.
        scope: ClearedScope,
        /// What they are now.
        effect: Effect,
        /// The sequence.
        version: Version,
    },
    /// The cache is no more.
    Dropped {
        /// The cache.
        cache: String,
        /// The sequence.
        version: Version,
    },
    /// Changes were left out: this client did not keep up, or was not connected for a while.
    Missed {
        /// How many there were at least; 0: nobody knows.
        at_least: u64,
    },
}

/// What a clear covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClearedScope {
    /// The whole cache.
    All,
    /// Keys that start so.
    Prefix(Vec<u8>),
    /// Items with this tag.
    Tag(Vec<u8>),
}

impl Change {
    pub(crate) fn from_wire(change: &wire::Change<'_>) -> Change {
        let (cache, version) = (change.cache.to_owned(), change.version);
        let cleared =
            |scope, effect| Change::Cleared { cache: change.cache.to_owned(), scope, effect, version };
        match change.what {
            What::Put { key, value_bytes } => Change::Put { cache, key: key.to_vec(), version, value_bytes },
            What::Removed { key } => Change::Removed { cache, key: key.to_vec(), version },
            What::Cleared { effect } => cleared(ClearedScope::All, effect),
            What::ClearedPrefix { prefix, effect } => cleared(ClearedScope::Prefix(prefix.to_vec()), effect),
            What::ClearedTag { tag, effect } => cleared(ClearedScope::Tag(tag.to_vec()), effect),
            What::Dropped => Change::Dropped { cache, version },
        }
    }
}
