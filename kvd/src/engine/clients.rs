//! Who is connected: the connections, what each may use and how it reads.
//!
//! `server` joins one for each connection, `apply` counts its requests, `kvd clients` lists them. It must never know a
//! socket: what it tells about the peer is what `server` said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kv_proto::limits::{CACHES_MAX, PATH_REASON_BYTES_MAX};
use kv_proto::wire::{self, Response, Rights, encode_into};
use parking_lot::Mutex;

use super::cache::Cache;
use super::{Engine, Session};
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
    /// The groups of its user; only asked for where a list names groups.
    pub groups: BTreeSet<u32>,
    /// What it may do with caches that list nobody themselves, and with the daemon. With [`Rights::ADMIN`] everything.
    pub rights: Rights,
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

/// A user who sees only the keys of caches that it may scan.
pub(super) struct Viewer(Arc<Record>);

impl Viewer {
    pub(super) fn sees_all(&self) -> bool {
        self.0.caller.rights.contains(Rights::ADMIN)
    }

    pub(super) fn may_see(&self, cache: &Cache) -> bool {
        self.0.caller.rights_on(&cache.config.access).contains(Rights::SCAN)
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

    /// Who is behind it; `None`: this process itself.
    pub(super) fn caller(&self) -> Option<&Caller> {
        self.client.as_ref().map(|client| &client.record.caller)
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
