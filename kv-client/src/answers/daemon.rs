//! What the daemon says of itself: caches, connections, transactions, figures, and how its tasks went.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kv_proto::Version;
use kv_proto::wire::{self, Durability, RestartState, Rights};

use super::client::ReadPath;

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

/// What a user may do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessReport {
    /// The user.
    pub uid: u32,
    /// Its groups, as far as they count: none where no list names groups.
    pub groups: Vec<u32>,
    /// What the daemon's `[access]` gives it. Nothing: it may not connect. With [`Rights::ADMIN`]: everything.
    pub rights: Rights,
    /// What it may do with a cache that is not there yet.
    pub of_new: Rights,
    /// What it may do with each cache there is, by name.
    pub caches: Vec<CacheRights>,
}

/// What a user may do with a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheRights {
    /// The cache.
    pub cache: String,
    /// Whether the cache has a list of its own, which counts instead of the daemon's.
    pub is_listed: bool,
    /// The verbs.
    pub rights: Rights,
}

impl AccessReport {
    pub(crate) fn from_wire(report: &wire::AccessReport<'_>) -> AccessReport {
        let caches = report.caches.iter().map(|cache| CacheRights {
            cache: cache.cache.to_owned(),
            is_listed: cache.is_listed,
            rights: cache.rights,
        });
        AccessReport {
            uid: report.uid,
            groups: report.groups.clone(),
            rights: report.rights,
            of_new: report.of_new,
            caches: caches.collect(),
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
