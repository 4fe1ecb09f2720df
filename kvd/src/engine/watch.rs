//! Watching: who wants to know what changes is told, in order, or told how much of it was left out.
//!
//! `apply` begins it for a session, whose connection does nothing but send from then on. Changes are published under the engine's
//! mutex, right after their commit, and wait in a bounded queue until they are taken. It must never hold up a change: a
//! watcher that is too slow misses something, and knows how much.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kv_proto::wire::{self, Effect, Response, What, encode_into};
use kv_proto::{Version, limits};
use parking_lot::Mutex;

use super::cache::Cache;
use super::change::{Action, Target};
use super::clients::Viewer;
use super::error::Failure;
use super::waiting::no_means;
use super::{Engine, Session};
use crate::txn::{Parked, Unpark};

/// Those who watch.
#[derive(Default)]
pub(super) struct Watchers {
    /// The length of `list`, raised and read under the engine's mutex: a change costs one plain load while nobody watches.
    count: AtomicUsize,
    list: Mutex<Vec<Arc<Watcher>>>,
}

/// A watcher's place in the list; leaves it when dropped.
pub(super) struct Watching {
    watchers: Arc<Watchers>,
    watcher: Arc<Watcher>,
}

struct Watcher {
    viewer: Viewer,
    /// `None`: all.
    cache: Option<String>,
    prefix: Box<[u8]>,
    queue: Mutex<Queue>,
    wake: Arc<dyn Unpark>,
}

/// What was not taken yet: first `told`, then `missed` more.
#[derive(Default)]
struct Queue {
    told: VecDeque<Arc<Told>>,
    bytes: usize,
    missed: u64,
}

/// One change, the same for all who watch.
struct Told {
    version: Version,
    cache: Box<str>,
    what: Happened,
}

/// [`What`] that owns its bytes.
enum Happened {
    Put { key: Box<[u8]>, value_bytes: u32 },
    Removed { key: Box<[u8]> },
    Cleared { effect: Effect },
    ClearedPrefix { prefix: Box<[u8]>, effect: Effect },
    ClearedTag { tag: Box<[u8]>, effect: Effect },
    Dropped,
}

impl Engine {
    /// Answers `watch`.
    pub(super) fn watch(
        &self,
        session: &mut Session,
        cache: Option<&str>,
        prefix: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        session.must_be_outside("a watch")?;
        let Some(viewer) = session.viewer() else {
            let message = "an engine of this process cannot be watched: nobody would send what changes";
            return Err(Failure::invalid(message));
        };
        if prefix.len() > limits::KEY_BYTES_MAX {
            return Err(Failure::too_large("prefix", prefix.len(), limits::KEY_BYTES_MAX));
        }
        let cache = cache.map(|name| self.cache(name)).transpose()?.map(|cache| cache.name.clone());
        let wake = session.park.unparker().map_err(no_means)?;
        let watcher =
            Arc::new(Watcher { viewer, cache, prefix: prefix.into(), queue: Mutex::default(), wake });
        // What is committed from here on it is told.
        let _state = self.lock();
        let mut list = self.watchers.list.lock();
        if list.len() >= limits::WATCHERS_MAX {
            let message = format!("{} connections watch, which is the limit", limits::WATCHERS_MAX);
            return Err(Failure::unavailable(message, 1_000));
        }
        list.push(Arc::clone(&watcher));
        self.watchers.count.store(list.len(), Ordering::Relaxed);
        drop(list);
        session.watching = Some(Watching { watchers: Arc::clone(&self.watchers), watcher });
        encode_into(out, &Response::Watching);
        Ok(())
    }

    /// Appends what a watching session has not been told yet.
    pub fn take_changes(&self, session: &Session, out: &mut Vec<u8>) {
        let Some(Watching { watcher, .. }) = &session.watching else { return };
        let Queue { told, missed, .. } = std::mem::take(&mut *watcher.queue.lock());
        if !told.is_empty() {
            let changes = told.iter().map(|told| told.as_wire()).collect();
            encode_into(out, &Response::Changes { changes, missed: 0 });
        }
        // They came when the queue was full of those.
        if missed > 0 {
            encode_into(out, &Response::Changes { changes: Vec::new(), missed });
        }
    }

    /// Under the mutex, after each commit of changes to keys.
    pub(super) fn tell_changes(&self, version: Version, targets: &[Target<'_>], actions: &[Action<'_>]) {
        if !self.watchers.are_there() {
            return;
        }
        for (target, action) in targets.iter().zip(actions) {
            let key = target.key;
            match action {
                Action::Keep | Action::KeepAbsent => {}
                Action::Remove => self.tell(version, &target.cache, What::Removed { key }),
                Action::Put(draft) => {
                    let value_bytes = u32::try_from(draft.value.len()).expect("values are far below 4 GiB");
                    self.tell(version, &target.cache, What::Put { key, value_bytes });
                }
            }
        }
    }

    /// Under the mutex, after the commit.
    pub(super) fn tell(&self, version: Version, cache: &Cache, what: What<'_>) {
        if !self.watchers.are_there() {
            return;
        }
        let mut told = None;
        for watcher in &*self.watchers.list.lock() {
            if watcher.wants(cache, what) {
                let told = told.get_or_insert_with(|| Arc::new(Told::new(version, cache, what)));
                watcher.push(told);
            }
        }
    }

    /// How many watch.
    pub(super) fn watchers_count(&self) -> usize {
        self.watchers.count.load(Ordering::Relaxed)
    }
}

impl Session {
    /// Whether it does nothing any more but to be told what changes.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.watching.is_some()
    }

    /// Waits until there is something to be told, or whoever asked has gone, or `until`.
    pub fn await_changes(&mut self, until: Instant) -> Parked {
        self.park.park(until)
    }
}

impl Watchers {
    fn are_there(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut list = self.watchers.list.lock();
        list.retain(|watcher| !Arc::ptr_eq(watcher, &self.watcher));
        // A change that does not see this at once finds nobody in the list.
        self.watchers.count.store(list.len(), Ordering::Relaxed);
    }
}

impl Watcher {
    fn wants(&self, cache: &Cache, what: What<'_>) -> bool {
        let covers = match what {
            What::Put { key, .. } | What::Removed { key } => key.starts_with(&self.prefix),
            What::ClearedPrefix { prefix, .. } => {
                prefix.starts_with(&self.prefix) || self.prefix.starts_with(prefix)
            }
            // Perhaps of such keys too.
            What::Cleared { .. } | What::ClearedTag { .. } | What::Dropped => true,
        };
        covers && self.cache.as_ref().is_none_or(|name| *name == cache.name) && self.viewer.may_see(cache)
    }

    fn push(&self, told: &Arc<Told>) {
        let mut queue = self.queue.lock();
        let was_empty = queue.told.is_empty() && queue.missed == 0;
        let bytes = told.bytes();
        // Once something is left out, so is all that follows until the queue is taken: the order is kept.
        if queue.missed > 0
            || queue.told.len() >= limits::WATCH_CHANGES_MAX
            || queue.bytes + bytes > limits::WATCH_BYTES_MAX
        {
            queue.missed += 1;
        } else {
            queue.bytes += bytes;
            queue.told.push_back(Arc::clone(told));
        }
        drop(queue);
        if was_empty {
            self.wake.unpark();
        }
    }
}

impl Told {
    fn new(version: Version, cache: &Cache, what: What<'_>) -> Told {
        let what = match what {
            What::Put { key, value_bytes } => Happened::Put { key: key.into(), value_bytes },
            What::Removed { key } => Happened::Removed { key: key.into() },
            What::Cleared { effect } => Happened::Cleared { effect },
            What::ClearedPrefix { prefix, effect } => {
                Happened::ClearedPrefix { prefix: prefix.into(), effect }
            }
            What::ClearedTag { tag, effect } => Happened::ClearedTag { tag: tag.into(), effect },
            What::Dropped => Happened::Dropped,
        };
        Told { version, cache: cache.name.as_str().into(), what }
    }

    fn bytes(&self) -> usize {
        self.cache.len()
            + match &self.what {
                Happened::Put { key, .. } | Happened::Removed { key } => key.len(),
                Happened::ClearedPrefix { prefix, .. } => prefix.len(),
                Happened::ClearedTag { tag, .. } => tag.len(),
                Happened::Cleared { .. } | Happened::Dropped => 0,
            }
    }

    fn as_wire(&self) -> wire::Change<'_> {
        let what = match &self.what {
            Happened::Put { key, value_bytes } => What::Put { key, value_bytes: *value_bytes },
            Happened::Removed { key } => What::Removed { key },
            Happened::Cleared { effect } => What::Cleared { effect: *effect },
            Happened::ClearedPrefix { prefix, effect } => What::ClearedPrefix { prefix, effect: *effect },
            Happened::ClearedTag { tag, effect } => What::ClearedTag { tag, effect: *effect },
            Happened::Dropped => What::Dropped,
        };
        wire::Change { version: self.version, cache: &self.cache, what }
    }
}
