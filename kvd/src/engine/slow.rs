//! The slow log: requests that took longer than a threshold, the newest and the slowest of them.
//!
//! `server` asks [`Engine::is_slow`] after each request, which is one comparison, and tells the few that are. Bounded, in memory
//! only; values are never kept, and of keys no more than is shown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_proto::limits::{SLOW_KEY_BYTES_MAX, SLOW_NEWEST_MAX, SLOW_SLOWEST_MAX};
use kv_proto::wire::{
    Bytes, ErrorKind, Request, Response, Scope, SlowOrder, SlowRequest, Write, encode_into,
};
use parking_lot::Mutex;

use super::{Engine, Session};
use crate::metrics::{Operation, error_label};
use crate::waited::Waited;

/// The log, and what is kept in it.
pub(super) struct SlowLog {
    /// In nanoseconds; the largest number: nothing is slow.
    threshold_ns: AtomicU64,
    total: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The newest last.
    newest: VecDeque<Arc<Slow>>,
    /// The slowest first.
    slowest: Vec<Arc<Slow>>,
}

/// What a request was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    operation: Operation,
    cache: Box<str>,
    /// Its first key, or what it names instead, cut.
    key: Box<[u8]>,
    key_bytes: u32,
}

/// A request that was slow.
struct Slow {
    subject: Subject,
    client: u64,
    name: String,
    uid: u32,
    pid: u32,
    ended_ms: i64,
    took: Duration,
    waited: Waited,
    failure: Option<ErrorKind>,
}

impl Subject {
    /// What is kept of a request.
    #[must_use]
    pub fn of(request: &Request<'_>) -> Subject {
        let (cache, key) = place_of(request);
        Subject {
            operation: Operation::of(request),
            cache: cache.into(),
            key: key[..key.len().min(SLOW_KEY_BYTES_MAX)].into(),
            key_bytes: u32::try_from(key.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The cache and the first key of a request, or what it names instead of a key; empty where there is none.
fn place_of<'a>(request: &Request<'a>) -> (&'a str, &'a [u8]) {
    match request {
        Request::Get { cache, key, .. }
        | Request::Describe { cache, key }
        | Request::Put { cache, key, .. }
        | Request::Expire { cache, key, .. }
        | Request::Delete { cache, key }
        | Request::Take { cache, key }
        | Request::Increment { cache, key, .. } => (cache, key),
        Request::GetMany { cache, keys, .. } => (cache, keys.first().map_or(b"", |key| key.0)),
        Request::Lease { cache, keys, .. } => (cache, keys.first().map_or(b"", |wanted| wanted.key)),
        Request::Scan { cache, prefix, .. } | Request::ScanAll { cache, prefix, .. } => (cache, prefix),
        Request::ClearVersions { cache, items, .. } => (cache, items.first().map_or(b"", |item| item.key)),
        Request::Watch { cache, prefix } => (cache.unwrap_or_default(), prefix),
        Request::Commit { writes, .. } => writes.first().map_or(("", b""), |write| match write {
            Write::Put { cache, key, .. }
            | Write::Expire { cache, key, .. }
            | Write::Delete { cache, key } => (cache, key),
        }),
        Request::Clear { scope, .. } => match scope {
            Scope::Everything => ("", b""),
            Scope::Cache(cache) => (cache, b""),
            Scope::Tag { cache, tag } => (cache.unwrap_or_default(), tag),
            Scope::Prefix { cache, prefix } => (cache, prefix),
        },
        Request::Drop { cache } | Request::Attach { cache } | Request::Hits { cache, .. } => (cache, b""),
        Request::Hottest { cache, .. } => (cache.unwrap_or_default(), b""),
        Request::Lock { name, .. } => ("", name.as_bytes()),
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
        | Request::Fill { .. }
        | Request::Abandon { .. }
        | Request::RenewLock { .. }
        | Request::Unlock { .. }
        | Request::Backup { .. }
        | Request::Check { .. }
        | Request::Compact
        | Request::Shutdown
        | Request::Reload
        | Request::Restart { .. }
        | Request::LastRestart
        | Request::Access { .. }
        | Request::SlowLog { .. } => ("", b""),
    }
}

impl SlowLog {
    pub(super) fn new(threshold: Option<Duration>) -> SlowLog {
        let log =
            SlowLog { threshold_ns: AtomicU64::new(0), total: AtomicU64::new(0), kept: Mutex::default() };
        log.set_threshold(threshold);
        log
    }

    pub(super) fn set_threshold(&self, threshold: Option<Duration>) {
        let ns = threshold.map_or(u64::MAX, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
        self.threshold_ns.store(ns, Ordering::Relaxed);
    }

    fn keep(&self, slow: Slow) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let slow = Arc::new(slow);
        let mut kept = self.kept.lock();
        if kept.newest.len() == SLOW_NEWEST_MAX {
            kept.newest.pop_front();
        }
        kept.newest.push_back(Arc::clone(&slow));
        let at = kept.slowest.partition_point(|other| other.took >= slow.took);
        if at < SLOW_SLOWEST_MAX {
            kept.slowest.truncate(SLOW_SLOWEST_MAX - 1);
            kept.slowest.insert(at, slow);
        }
    }

    fn list(&self, order: SlowOrder) -> Vec<Arc<Slow>> {
        let kept = self.kept.lock();
        match order {
            SlowOrder::Newest => kept.newest.iter().rev().cloned().collect(),
            SlowOrder::Slowest => kept.slowest.clone(),
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Whether a request that took so long is worth a line.
    #[must_use]
    pub fn is_slow(&self, took: Duration) -> bool {
        // A request of more than 584 years would be taken for a short one.
        took.as_nanos() as u64 >= self.slow_log.threshold_ns.load(Ordering::Relaxed)
    }

    /// Keeps a request that [`Engine::is_slow`].
    pub fn note_slow(
        &self,
        session: &Session,
        subject: Subject,
        took: Duration,
        waited: Waited,
        failure: Option<ErrorKind>,
    ) {
        let who = session.who();
        self.slow_log.keep(Slow {
            subject,
            client: who.client,
            name: who.name,
            uid: session.uid(),
            pid: who.pid,
            ended_ms: self.clock.wall_ms(),
            took,
            waited,
            failure,
        });
    }

    /// Answers `slow_log`. What was about a cache that the caller may not use is left out.
    pub(super) fn list_slow(
        &self,
        session: &Session,
        order: SlowOrder,
        requests_max: u32,
        longer_than_us: u64,
        out: &mut Vec<u8>,
    ) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let viewer = session.viewer();
        let caches = self.caches.load();
        let may_see = |subject: &Subject| {
            let Some(viewer) = &viewer else { return true };
            // A tag, prefix or name that concerns no single cache is of whom it does not say.
            let says_nothing = subject.cache.is_empty() && subject.key.is_empty();
            let cache = caches.get(&*subject.cache);
            says_nothing || cache.map_or(viewer.sees_all(), |cache| viewer.may_see(cache))
        };
        let mut slow = self.slow_log.list(order);
        slow.retain(|slow| us(slow.took) >= longer_than_us && may_see(&slow.subject));
        slow.truncate(requests_max as usize);
        let requests = slow.iter().map(|slow| SlowRequest {
            operation: slow.subject.operation.label(),
            cache: &slow.subject.cache,
            key: Bytes(&slow.subject.key),
            key_bytes: slow.subject.key_bytes,
            client: slow.client,
            name: &slow.name,
            uid: slow.uid,
            pid: slow.pid,
            ended_ms: slow.ended_ms,
            took_us: us(slow.took),
            lock_us: us(slow.waited.lock),
            disk_us: us(slow.waited.disk),
            failure: slow.failure.map(error_label),
        });
        let threshold_ns = self.slow_log.threshold_ns.load(Ordering::Relaxed);
        encode_into(
            out,
            &Response::SlowRequests {
                threshold_us: (threshold_ns < u64::MAX).then_some(threshold_ns / 1_000),
                total: self.slow_log.total(),
                requests: requests.collect(),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(ms: u64) -> Slow {
        Slow {
            subject: Subject::of(&Request::Ping),
            client: 1,
            name: String::new(),
            uid: 0,
            pid: 1,
            ended_ms: 0,
            took: Duration::from_millis(ms),
            waited: Waited::default(),
            failure: None,
        }
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest_and_the_slowest() {
        let log = SlowLog::new(None);
        log.keep(slow(1_000_000));
        (0..10_000).for_each(|ms| log.keep(slow(ms % 100)));
        let newest = log.list(SlowOrder::Newest);
        assert_eq!((newest.len(), newest[0].took), (SLOW_NEWEST_MAX, Duration::from_millis(99)));
        let slowest = log.list(SlowOrder::Slowest);
        assert_eq!((slowest.len(), slowest[0].took), (SLOW_SLOWEST_MAX, Duration::from_millis(1_000_000)));
        assert!(slowest.is_sorted_by(|one, next| one.took >= next.took));
        assert_eq!(log.total(), 10_001);
    }

    #[test]
    fn of_a_long_key_only_the_beginning_is_kept() {
        let key = [7; 1_000];
        let subject = Subject::of(&Request::Delete { cache: "c", key: &key });
        assert_eq!((subject.key.len(), subject.key_bytes), (SLOW_KEY_BYTES_MAX, 1_000));
    }
}
