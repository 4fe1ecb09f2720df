//! Tests of the store as its callers see it, and of what a crash leaves of it.

mod basic;
mod compact;
mod crash;
mod trouble;

use std::time::{Duration, Instant};

use kv_proto::Version;

use super::*;

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub(super) fn options(dir: impl Into<std::path::PathBuf>) -> Options {
    let mut options = Options::new(dir);
    options.pending_bytes = 256 << 10;
    options.value_bytes_max = 8 << 10;
    options.redb_cache_bytes = 1 << 20;
    options.headroom_bytes = 0;
    options
}

pub(super) fn item(version: Version, value: &[u8]) -> ItemFields<'_> {
    ItemFields {
        version,
        created: 0,
        expires: None,
        stale_for_ms: 0,
        load_cost_ms: 0,
        stale: false,
        tags: &[],
        value,
    }
}

pub(super) fn commit(
    store: &Store,
    sequence: Version,
    durability: Durability,
    changes: &[Change<'_>],
) -> LogNumber {
    let mut caches: Vec<CacheId> = changes.iter().map(Change::cache).collect();
    caches.dedup();
    let permit = store.admit(&caches, commit_bytes_max(changes), durability, soon()).expect("room");
    store.append(permit, sequence, changes)
}

pub(super) fn put(store: &Store, sequence: Version, cache: CacheId, key: &str, value: &str) -> LogNumber {
    let change = Change::Put { cache, key: key.as_bytes(), item: item(sequence, value.as_bytes()) };
    commit(store, sequence, Durability::Behind, &[change])
}

pub(super) fn get(store: &Store, cache: CacheId, key: &str) -> Option<String> {
    let found = store.read(cache, key.as_bytes()).expect("the disk works");
    found.map(|item| String::from_utf8(item.view().value.to_vec()).expect("tests write text"))
}
