//! Admission and appending: the way in.
//!
//! `admit` may wait and touch the disk and is called without the engine's mutex; `append` is called under it, copies into the
//! ring and the overlay, and does nothing else: no system call, no disk, and it cannot fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kv_proto::Version;
use kv_proto::wire::Durability;

use super::options::{CacheId, LogNumber, StoreError};
use super::overlay::{CacheRow, Entry, Layer};
use super::pending::record_words;
use super::record::{Change, LogChange, LogCommit, encode_into, encode_item, generation_and_version};
use super::shared::{Health, Log, Shared};
use crate::waited;

/// What the encoding buffers keep after a large commit.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// What `append` answers for a durable commit whose caches went on in memory only after it was admitted: waiting for it fails.
pub(super) const NEVER_DURABLE: LogNumber = LogNumber::MAX;

/// Room for one commit. Given back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    words: u64,
    bytes: usize,
    durability: Durability,
    state: PermitState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PermitState {
    /// Room is reserved.
    Logged,
    /// Nothing will be logged; the caches are not logged again before this permit is gone.
    Unlogged,
    Spent,
}

impl Permit {
    /// The most bytes a commit may take with it; without bound if nothing of it will be logged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.is_unlogged() { usize::MAX } else { self.bytes }
    }

    /// Whether nothing of the commit will be logged: its caches go on in memory only.
    #[must_use]
    pub fn is_unlogged(&self) -> bool {
        self.state == PermitState::Unlogged
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.state {
            PermitState::Logged => {
                let mut log = self.shared.log.lock();
                log.reserved_words -= self.words;
                self.shared.room.notify_all();
            }
            PermitState::Unlogged => self.shared.log.lock().unlogged_permits -= 1,
            PermitState::Spent => {}
        }
    }
}

/// Words to reserve for a record: it may have to leave the rest of a lap unused, which is less than itself.
fn words_to_reserve(bytes: usize) -> u64 {
    2 * record_words(bytes)
}

impl Shared {
    pub(super) fn admit(
        self: &Arc<Self>,
        caches: &[CacheId],
        bytes: usize,
        durability: Durability,
        deadline: Instant,
    ) -> Result<Permit, StoreError> {
        let limit = self.ring.capacity() as usize * 8 / 4;
        if bytes > limit {
            return Err(StoreError::TooLarge { bytes, limit });
        }
        let words = words_to_reserve(bytes);
        let mut log = self.log.lock();
        loop {
            if log.is_closed {
                return Err(StoreError::Closed);
            }
            if durability == Durability::Durable
                && let Some(error) = self.unwell(false)
            {
                return Err(error);
            }
            let is_unlogged = !caches.is_empty() && caches.iter().all(|cache| log.dirty.contains(cache));
            if is_unlogged && !log.is_logging_again {
                log.unlogged_permits += 1;
                let state = PermitState::Unlogged;
                return Ok(Permit { shared: self.clone(), words: 0, bytes, durability, state });
            }
            let used = log.head.position - log.tail + log.reserved_words;
            let has_room = used + words <= self.ring.capacity();
            if has_room && self.is_open() {
                log.reserved_words += words;
                let state = PermitState::Logged;
                return Ok(Permit { shared: self.clone(), words, bytes, durability, state });
            }
            if !has_room && self.health() != Health::Good {
                if caches.is_empty() {
                    return Err(self.unwell(false).unwrap_or(StoreError::Full));
                }
                if let Some(cache) = caches.iter().find(|cache| log.durable_ever.contains(cache)) {
                    tracing::debug!(cache, "refused: the log is full and the cache has durable writes");
                    return Err(self.unwell(false).unwrap_or(StoreError::Full));
                }
                parking_lot::MutexGuard::unlocked(&mut log, || self.go_on_in_memory(caches))?;
                continue;
            }
            let head = log.head.number;
            parking_lot::MutexGuard::unlocked(&mut log, || self.want(head));
            let began = self.clock.instant();
            let timed_out = self.room.wait_until(&mut log, deadline).timed_out();
            waited::for_disk(self.clock.instant() - began);
            if timed_out {
                return Err(StoreError::Timeout);
            }
        }
    }

    /// Marks caches so that nothing of them on disk counts any more. The marks are on stable storage before the first write
    /// goes unlogged; else nothing changes and the write is refused.
    fn go_on_in_memory(&self, caches: &[CacheId]) -> Result<(), StoreError> {
        let mut marks = self.marks.lock();
        let mut next = marks.clone();
        next.dirty.extend(caches);
        if let Err(error) = next.store(&self.disk, &self.options.dir) {
            tracing::error!(%error, "cannot mark caches as memory-only");
            return Err(StoreError::Full);
        }
        *marks = next;
        let mut log = self.log.lock();
        let mut generations = self.generations.write();
        for cache in caches {
            if log.dirty.insert(*cache) {
                *generations.entry(*cache).or_insert(0) += 1;
                tracing::warn!(
                    cache,
                    "the disk is full: this cache goes on in memory only, its disk part is void"
                );
            }
        }
        Ok(())
    }

    pub(super) fn append(&self, mut permit: Permit, sequence: Version, changes: &[Change<'_>]) -> LogNumber {
        let mut guard = self.log.lock();
        let log = &mut *guard;
        let words = permit.words;
        match std::mem::replace(&mut permit.state, PermitState::Spent) {
            PermitState::Logged => log.reserved_words -= words,
            PermitState::Unlogged | PermitState::Spent => log.unlogged_permits -= 1,
        }
        log.sequence = log.sequence.max(sequence);
        log.appended = log.appended.max(sequence);
        let records = self.encode(log, sequence, changes);
        if records.is_empty() {
            let is_lost = permit.durability == Durability::Durable && !changes.is_empty();
            return if is_lost { NEVER_DURABLE } else { log.head.number };
        }
        let before = log.head;
        log.head = self.ring.write(before, &log.payload);
        let taken = log.head.position - before.position;
        assert!(taken <= words, "the commit takes {taken} words of the log, {words} were admitted");
        if permit.durability == Durability::Durable {
            let new = records.iter().map(|(change, _)| change.cache());
            let new: Vec<CacheId> = new.filter(|cache| !log.durable_ever.contains(cache)).collect();
            log.durable_ever.extend(&new);
            log.durable_new.extend(&new);
        }
        let mut overlay = self.overlay.write();
        for (change, record) in records {
            if let Change::CacheCreated { cache, .. } = change {
                log.cache_first = log.cache_first.max(cache + 1);
            }
            apply(&mut overlay.active, sequence, &change.logged(record.as_ref()), record.as_ref());
        }
        self.gauges.active_bytes.store(overlay.active.bytes as u64, Ordering::Relaxed);
        log.payload.shrink_to(BUFFER_BYTES_KEPT);
        log.scratch.shrink_to(BUFFER_BYTES_KEPT);
        log.head.number
    }

    /// Encodes what is to be logged into `log.payload`; gives it with the records made.
    fn encode<'a>(
        &self,
        log: &mut Log,
        sequence: Version,
        changes: &[Change<'a>],
    ) -> Vec<(Change<'a>, Option<Arc<[u8]>>)> {
        let generations = self.generations.read();
        let mut records = Vec::with_capacity(changes.len());
        for change in changes.iter().filter(|change| !log.dirty.contains(&change.cache())) {
            let record = match change {
                Change::Put { cache, key, item } => {
                    let generation = generations.get(cache).copied().unwrap_or(0);
                    Some(encode_item(*cache, key, item, generation, &self.boots, &mut log.scratch))
                }
                Change::Delete { .. }
                | Change::Clear { .. }
                | Change::CacheCreated { .. }
                | Change::CacheDropped { .. } => None,
            };
            records.push((*change, record));
        }
        let logged = records.iter().map(|(change, record)| change.logged(record.as_ref())).collect();
        log.payload.clear();
        encode_into(&LogCommit { sequence, changes: logged }, &mut log.payload);
        records
    }
}

impl<'a> Change<'a> {
    fn logged<'b>(&self, record: Option<&'b Arc<[u8]>>) -> LogChange<'b>
    where
        'a: 'b,
    {
        match *self {
            Change::Put { cache, key, .. } => {
                LogChange::Put { cache, key, record: record.expect("puts have a record") }
            }
            Change::Delete { cache, key } => LogChange::Delete { cache, key },
            Change::Clear { cache, scope, effect } => LogChange::Clear { cache, scope, effect },
            Change::CacheCreated { cache, name, settings } => {
                LogChange::CacheCreated { cache, name, settings }
            }
            Change::CacheDropped { cache } => LogChange::CacheDropped { cache },
        }
    }
}

/// Applies a logged change to a layer: the same for appending and for replay. `shared` is the record, if it is at hand.
pub(super) fn apply(
    layer: &mut Layer,
    sequence: Version,
    change: &LogChange<'_>,
    shared: Option<&Arc<[u8]>>,
) {
    layer.sequence = layer.sequence.max(sequence);
    match *change {
        LogChange::Put { cache, key, record } => {
            let (_, version) = generation_and_version(record);
            let record = shared.cloned().unwrap_or_else(|| Arc::from(record));
            layer.set(cache, key, Entry { version, record: Some(record) });
        }
        LogChange::Delete { cache, key } => layer.set(cache, key, Entry { version: sequence, record: None }),
        LogChange::Clear { cache, scope, effect } => {
            layer.stamps.entry(cache).or_default().stamp(scope, effect, sequence);
        }
        LogChange::CacheCreated { cache, name, settings } => {
            layer.create(cache, CacheRow { name: name.to_owned(), settings: settings.to_vec() });
        }
        LogChange::CacheDropped { cache } => layer.drop_cache(cache),
    }
}
