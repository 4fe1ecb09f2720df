//! One cache: its configuration, its segment, and what tells a reader of the disk that somebody was faster.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use kv_proto::Version;
use kv_proto::segment::{Reader, SweepCursor, Writer};
use kv_proto::wire::Durability;

use super::heat::Reads;
use super::side::SideStore;
use crate::config::CacheConfig;
use crate::store::CacheId;
use crate::txn::Touched;

/// Shards of the keys of a cache; each remembers the newest sequence that changed one of its keys.
const SHARDS: usize = 1_024;

/// What every thread may use of a cache.
pub(crate) struct Cache {
    pub(crate) id: CacheId,
    /// Where its [`Memory`] stands in the engine's state.
    pub(crate) slot: usize,
    pub(crate) name: String,
    /// Declared in the configuration, rather than created by its first write.
    pub(crate) declared: bool,
    pub(crate) config: CacheConfig,
    pub(crate) view: ArcSwap<View>,
    pub(crate) counters: Counters,
    pub(crate) dropped: AtomicBool,
    changed: Box<[AtomicU64]>,
    stamped: AtomicU64,
    newest: AtomicU64,
}

/// The segment as readers inside the daemon see it.
pub(crate) struct View {
    pub(crate) reader: Reader,
    pub(crate) hits: Reads,
    /// Names the segment within this run of the daemon.
    pub(crate) segment: u64,
    /// What clients map; without it they cannot.
    pub(crate) descriptor: Option<OwnedFd>,
}

/// The part of a cache that only the holder of the engine's mutex touches.
pub(crate) struct Memory {
    pub(crate) writer: Writer,
    pub(crate) side: SideStore,
    pub(crate) sweep: SweepCursor,
    /// The sequence at which the sweep under way began; 0: none is.
    pub(crate) sweep_began: Version,
    /// The sequence at which the last whole sweep began: what was dead by then has left the rings.
    pub(crate) swept: Version,
}

/// What happened in a cache. Monotonic; lossless.
#[derive(Default)]
pub(crate) struct Counters {
    /// Told by clients that read the segment themselves, in arrears.
    pub(crate) hits_shared: AtomicU64,
    pub(crate) misses_shared: AtomicU64,
    pub(crate) hits_memory: AtomicU64,
    pub(crate) hits_disk: AtomicU64,
    pub(crate) hits_stale: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) removals: AtomicU64,
    pub(crate) clears: AtomicU64,
    pub(crate) conditions_refused: AtomicU64,
    pub(crate) leases_granted: AtomicU64,
    pub(crate) lease_fills: AtomicU64,
    pub(crate) lease_fills_refused: AtomicU64,
    pub(crate) lease_abandons: AtomicU64,
    /// How often somebody waited for another one's load.
    pub(crate) lease_waits: AtomicU64,
    /// Leases that ended because their key was written or cleared.
    pub(crate) leases_overtaken: AtomicU64,
    /// Leases that were held too long, and wanted by others.
    pub(crate) leases_expired: AtomicU64,
    /// Leases whose connection ended.
    pub(crate) leases_lost: AtomicU64,
}

/// The newest change a key may have seen: equal twice means nothing happened in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    changed: Version,
    stamped: Version,
}

impl Moment {
    pub(crate) fn is_at_most(self, version: Version) -> bool {
        self.changed <= version && self.stamped <= version
    }

    pub(crate) fn is_stamped_at_most(self, version: Version) -> bool {
        self.stamped <= version
    }
}

impl Cache {
    pub(crate) fn new(
        id: CacheId,
        slot: usize,
        name: String,
        declared: bool,
        config: CacheConfig,
        view: View,
        created: Version,
    ) -> Cache {
        Cache {
            id,
            slot,
            name,
            declared,
            config,
            view: ArcSwap::from_pointee(view),
            counters: Counters::default(),
            dropped: AtomicBool::new(false),
            changed: (0..SHARDS).map(|_| AtomicU64::new(created)).collect(),
            stamped: AtomicU64::new(created),
            newest: AtomicU64::new(created),
        }
    }

    pub(crate) fn on_disk(&self) -> bool {
        self.config.durability != Durability::Memory
    }

    pub(crate) fn moment(&self, hash: u64) -> Moment {
        Moment {
            changed: self.changed[shard(hash)].load(Ordering::Acquire),
            stamped: self.stamped.load(Ordering::Acquire),
        }
    }

    /// Called under the engine's mutex by every write, expiry and removal of a key.
    pub(crate) fn note_change(&self, hash: u64, version: Version) {
        self.changed[shard(hash)].store(version, Ordering::Release);
        self.newest.store(version, Ordering::Release);
    }

    /// The newest change of all.
    pub(crate) fn newest(&self) -> Version {
        self.newest.load(Ordering::Acquire)
    }

    /// What an operation on `key`, or on all of it, touches.
    pub(crate) fn touched<'k>(&self, key: Option<&'k [u8]>) -> Touched<'k> {
        Touched { cache: self.id, on_disk: self.on_disk(), key }
    }

    /// The newest clear.
    pub(crate) fn stamped(&self) -> Version {
        self.stamped.load(Ordering::Acquire)
    }

    /// Called under the engine's mutex by every clear.
    pub(crate) fn note_stamp(&self, version: Version) {
        self.stamped.store(version, Ordering::Release);
        self.newest.store(version, Ordering::Release);
    }
}

fn shard(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

/// All caches by name; replaced whole when one is created or dropped.
pub(crate) type Caches = HashMap<String, Arc<Cache>>;

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
