//! Who is connected: the connections, what each may use and how it reads.
//!
//! `server` joins one for each connection, `apply` counts its requests, `kvd clients` lists them. It must never know a
//! socket: what it tells about the peer is what `server` said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kv_proto::limits::{CACHES_MAX, PATH_REASON_BYTES_MAX};
use kv_proto::wire::{self, ErrorKind, Request, Response, Scope, Write, encode_into};
use parking_lot::Mutex;

use super::cache::Cache;
use super::{Engine, Failure, Session};
use crate::config::Access;
use crate::store::CacheId;
use crate::txn::{Park, ThreadPark, Who};

/// Who is behind a connection.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Names the connection within this run of the daemon.
    pub id: u64,
    /// What the client calls itself.
    pub name: String,
    /// Its user.
    pub uid: u32,
    /// Its process.
    pub pid: u32,
    /// The groups of its user; only asked for where a cache admits groups.
    pub groups: BTreeSet<u32>,
    /// The daemon's own user, or root.
    pub is_admin: bool,
    /// May use every cache: the daemon's own user, root, or where no cache says who may use it.
    pub uses_all_caches: bool,
}

/// The connections by number.
#[derive(Default)]
pub(super) struct Clients {
    joined: Mutex<BTreeMap<u64, Arc<Record>>>,
}

struct Record {
    caller: Caller,
    since: i64,
    asked: AtomicI64,
    requests: AtomicU64,
    paths: Mutex<BTreeMap<String, Path>>,
}

/// How a connection's client reads one cache.
#[derive(Default)]
struct Path {
    shared_reads: u64,
    socket_because: Option<String>,
}

/// A connection's place in the list; leaves it when dropped.
pub(super) struct Client {
    list: Arc<Clients>,
    record: Arc<Record>,
}

/// A user who sees only what it may use.
pub(super) struct Viewer(Arc<Record>);

impl Viewer {
    pub(super) fn sees_all(&self) -> bool {
        self.0.caller.uses_all_caches
    }

    pub(super) fn may_see(&self, cache: &Cache) -> bool {
        self.0.caller.uses_all_caches || admits(&cache.config.access, &self.0.caller)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.list.joined.lock().remove(&self.record.caller.id);
    }
}

impl Engine {
    /// A session for `caller`, whose thread waits for locks at `park`.
    #[must_use]
    pub fn join(&self, caller: Caller, park: Box<dyn Park>) -> Session {
        let now = self.clock.beat_ms();
        let record = Record {
            since: now,
            asked: AtomicI64::new(now),
            requests: AtomicU64::new(0),
            paths: Mutex::default(),
            caller,
        };
        let record = Arc::new(record);
        self.clients.joined.lock().insert(record.caller.id, Arc::clone(&record));
        let client = Some(Client { list: Arc::clone(&self.clients), record });
        Session { client, park, ..Session::of_process() }
    }

    /// Answers `clients`.
    pub(super) fn list_clients(&self, out: &mut Vec<u8>) {
        let now = self.clock.beat_ms();
        let records: Vec<_> = self.clients.joined.lock().values().cloned().collect();
        let paths: Vec<_> = records.iter().map(|record| record.paths.lock()).collect();
        let since = |then: i64| u64::try_from(now.saturating_sub(then)).unwrap_or(0);
        let infos = records.iter().zip(&paths).map(|(record, paths)| wire::ClientInfo {
            id: record.caller.id,
            name: &record.caller.name,
            uid: record.caller.uid,
            pid: record.caller.pid,
            connected_ms: since(record.since),
            idle_ms: since(record.asked.load(Ordering::Relaxed)),
            requests: record.requests.load(Ordering::Relaxed),
            paths: paths
                .iter()
                .map(|(cache, path)| wire::ReadPath {
                    cache,
                    shared_reads: path.shared_reads,
                    socket_because: path.socket_because.as_deref(),
                })
                .collect(),
        });
        encode_into(out, &Response::Clients(infos.collect()));
    }
}

impl Engine {
    /// Refuses a request that touches a cache whose list does not admit the caller.
    pub(super) fn check_access(&self, session: &Session, request: &Request<'_>) -> Result<(), Failure> {
        let Some(Client { record, .. }) = &session.client else { return Ok(()) };
        let caller = &record.caller;
        if caller.uses_all_caches {
            return Ok(());
        }
        let check = |name: &str, access: &Access| {
            if admits(access, caller) {
                return Ok(());
            }
            let message =
                format!("user {} may not use cache {name}: it lists its `users` and `groups`", caller.uid);
            Err(Failure::new(ErrorKind::Denied, message))
        };
        let caches = self.caches.load();
        let adjustable = self.adjustable.load();
        let (named, all) = touched(request);
        if all {
            caches.values().try_for_each(|cache| check(&cache.name, &cache.config.access))?;
        }
        named.into_iter().try_for_each(|name| {
            // What is not there yet would be made like this.
            check(name, &caches.get(name).map_or(&adjustable.default, |cache| &cache.config).access)
        })
    }
}

impl Engine {
    /// Whether the session's user may use this cache; one that is gone is anybody's.
    pub(super) fn may_use(&self, session: &Session, cache: CacheId) -> bool {
        let Some(Client { record, .. }) = &session.client else { return true };
        record.caller.uses_all_caches
            || self.cache_by_id(cache).is_none_or(|cache| admits(&cache.config.access, &record.caller))
    }
}

/// The caches a request names, and whether it touches all there are.
fn touched<'a>(request: &Request<'a>) -> (Vec<&'a str>, bool) {
    match request {
        Request::Get { cache, .. }
        | Request::GetMany { cache, .. }
        | Request::Describe { cache, .. }
        | Request::Scan { cache, .. }
        | Request::Put { cache, .. }
        | Request::Expire { cache, .. }
        | Request::Delete { cache, .. }
        | Request::Take { cache, .. }
        | Request::Increment { cache, .. }
        | Request::Drop { cache }
        | Request::Attach { cache }
        | Request::Hits { cache, .. }
        | Request::Lease { cache, .. }
        | Request::ScanAll { cache, .. }
        | Request::ClearVersions { cache, .. } => (vec![*cache], false),
        Request::Watch { cache, .. } | Request::Hottest { cache, .. } => {
            (cache.iter().copied().collect(), false)
        }
        Request::Commit { checks, writes, .. } => {
            let written = writes.iter().map(|write| match write {
                Write::Put { cache, .. } | Write::Expire { cache, .. } | Write::Delete { cache, .. } => {
                    *cache
                }
            });
            (checks.iter().map(|check| check.cache).chain(written).collect(), false)
        }
        Request::Clear { scope, .. } => match scope {
            Scope::Cache(cache) | Scope::Prefix { cache, .. } | Scope::Tag { cache: Some(cache), .. } => {
                (vec![*cache], false)
            }
            Scope::Everything | Scope::Tag { cache: None, .. } => (Vec::new(), true),
        },
        Request::Ping
        | Request::Stats
        | Request::Caches
        | Request::Sync
        | Request::Clients
        | Request::Begin { .. }
        | Request::CommitTransaction { .. }
        | Request::Rollback { .. }
        | Request::Renew { .. }
        | Request::Transactions
        // By right of leases, which were granted to who may use the cache.
        | Request::Fill { .. }
        | Request::Abandon { .. }
        | Request::Lock { .. }
        | Request::RenewLock { .. }
        | Request::Unlock { .. }
        | Request::Backup { .. }
        | Request::Check { .. }
        | Request::Compact
        // Each leaves out what the caller may not see.
        | Request::SlowLog { .. }
        // For admins, who may use every cache.
        | Request::Shutdown
        | Request::Reload
        | Request::Restart { .. }
        | Request::LastRestart => (Vec::new(), false),
    }
}

impl Session {
    /// A session of this process itself, which is listed nowhere and may use everything.
    #[must_use]
    pub fn of_process() -> Session {
        Session {
            client: None,
            park: Box::new(ThreadPark::default()),
            transaction: None,
            held: BTreeMap::new(),
            watching: None,
            work: None,
            buffer: Vec::new(),
            keys: Vec::new(),
            handed: None,
        }
    }

    /// What its user may see, for longer than a request; `None`: it is this process itself.
    pub(super) fn viewer(&self) -> Option<Viewer> {
        self.client.as_ref().map(|client| Viewer(Arc::clone(&client.record)))
    }

    /// Who waits and is waited for.
    pub(super) fn who(&self) -> Who {
        match &self.client {
            Some(Client { record, .. }) => {
                Who { client: record.caller.id, pid: record.caller.pid, name: record.caller.name.clone() }
            }
            None => Who { client: 0, pid: std::process::id(), name: "this process".to_owned() },
        }
    }

    /// The user behind it; that of this process, if it is its own.
    pub(super) fn uid(&self) -> u32 {
        self.client.as_ref().map_or_else(|| nix::unistd::geteuid().as_raw(), |c| c.record.caller.uid)
    }

    pub(super) fn is_admin(&self) -> bool {
        self.client.as_ref().is_none_or(|client| client.record.caller.is_admin)
    }

    /// Counts a request that came at `now`, by the cheap clock: nobody wants to know it to the millisecond.
    pub(super) fn asked(&self, now: i64) {
        let Some(Client { record, .. }) = &self.client else { return };
        // One thread a session: nobody else stores here.
        record.requests.store(record.requests.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        record.asked.store(now, Ordering::Relaxed);
    }

    /// Notes how the caller's process reads a cache.
    pub(super) fn note_path(&self, cache: &str, reads: u64, socket_because: Option<&str>) {
        let Some(Client { record, .. }) = &self.client else { return };
        let mut paths = record.paths.lock();
        if paths.len() >= CACHES_MAX && !paths.contains_key(cache) {
            return;
        }
        let path = paths.entry(cache.to_owned()).or_default();
        path.shared_reads = path.shared_reads.saturating_add(reads);
        path.socket_because =
            socket_because.map(|reason| crate::units::cut_text(reason, PATH_REASON_BYTES_MAX).to_owned());
    }
}

/// Whether a cache's own list admits the caller; one that lists nobody admits all who may connect.
fn admits(access: &Access, caller: &Caller) -> bool {
    access.is_private() || access.users.contains(&caller.uid) || !access.groups.is_disjoint(&caller.groups)
}
