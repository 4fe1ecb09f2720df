//! A backup while everything goes on: the store as of one moment, sent part by part to whoever asked.
//!
//! The moment is the flush thread's (`store/snapshot`): nobody waits for it. Caches in memory only have no such moment; who
//! wants them gets each page of them as it is when its turn comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kv_proto::wire::{ErrorKind, Response, encode_into};
use kv_proto::{BootMs, limits};
use serde_bytes::Bytes;

use super::cache::Cache;
use super::error::Failure;
use super::item::Current;
use super::scan::Wanted;
use super::work::Work;
use super::{Engine, Session};
use crate::store::{
    ArchiveCache, ArchiveItem, ArchiveRecord, ArchiveWriter, CacheId, Health, Snapshot, StoreError,
};

/// How long one frame may wait for the snapshot; an empty one shows that we are still there.
const AWAIT_MAX: Duration = Duration::from_millis(500);

/// A backup under way.
pub(super) struct Sending {
    stage: Stage,
    /// With these caches that are in memory only.
    memory: VecDeque<Arc<Cache>>,
    ends: Instant,
    buffer: Vec<u8>,
}

enum Stage {
    Awaited(Receiver<Result<Snapshot, StoreError>>),
    Snapshot(Box<Snapshot>, ArchiveWriter),
    Memory(ArchiveWriter, Vec<u8>),
}

impl Engine {
    /// Answers `backup` with the first of its parts, an empty one.
    pub(super) fn back_up(
        &self,
        session: &mut Session,
        memory: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        session.must_be_outside("a backup")?;
        if session.viewer().is_none() {
            let message = "an engine of this process sends no backup: copy its directory when it is closed";
            return Err(Failure::invalid(message));
        }
        let stats = self.store.stats();
        if stats.health != Health::Good || !stats.dirty.is_empty() {
            let message = "the disk is in trouble, so not all of the caches are on it: see `kvd stats`";
            return Err(Failure::new(ErrorKind::StoreFailed, message));
        }
        let mut caches: VecDeque<_> =
            self.caches.load().values().filter(|cache| memory && !cache.on_disk()).cloned().collect();
        caches.make_contiguous().sort_by(|a, b| a.name.cmp(&b.name));
        session.work = Some(Work::Backup(Box::new(Sending {
            stage: Stage::Awaited(self.store.snapshot()),
            memory: caches,
            ends: self.clock.instant() + limits::BACKUP_LIFE_MAX,
            buffer: Vec::new(),
        })));
        encode_into(out, &Response::Part { bytes: &[] });
        Ok(())
    }

    /// The next part; `false`: that was the end.
    pub(super) fn send_part(&self, sending: &mut Sending, out: &mut Vec<u8>) -> Result<bool, Failure> {
        if self.clock.instant() > sending.ends {
            let minutes = limits::BACKUP_LIFE_MAX.as_secs() / 60;
            let message = format!("the backup took longer than {minutes} minutes, which is the limit");
            return Err(Failure::new(ErrorKind::Timeout, message));
        }
        sending.buffer.clear();
        let Sending { stage, memory, buffer, .. } = sending;
        let is_end = match stage {
            Stage::Awaited(receiver) => {
                match receiver.recv_timeout(AWAIT_MAX) {
                    Ok(snapshot) => {
                        let snapshot = snapshot.map_err(Failure::from)?;
                        let writer = self.begin_archive(&snapshot, memory, buffer);
                        *stage = Stage::Snapshot(Box::new(snapshot), writer);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Err(StoreError::Closed.into()),
                }
                false
            }
            Stage::Snapshot(snapshot, writer) => {
                if !self.archive_some(snapshot, writer, buffer)? {
                    // What it kept from being freed is free from here on.
                    *stage = Stage::Memory(std::mem::take(writer), Vec::new());
                }
                false
            }
            Stage::Memory(writer, cursor) => match memory.front() {
                Some(cache) => {
                    if !self.archive_page(cache, writer, cursor, buffer)? {
                        memory.pop_front();
                    }
                    false
                }
                None => {
                    std::mem::take(writer).end(buffer);
                    true
                }
            },
        };
        if buffer.is_empty() {
            encode_into(out, &Response::Part { bytes: &[] });
        }
        // An item may be larger than what else a frame may hold.
        for bytes in buffer.chunks(limits::PART_BYTES_MAX) {
            encode_into(out, &Response::Part { bytes });
        }
        if is_end {
            encode_into(out, &Response::Done);
        }
        Ok(!is_end)
    }

    fn begin_archive(
        &self,
        snapshot: &Snapshot,
        memory: &VecDeque<Arc<Cache>>,
        out: &mut Vec<u8>,
    ) -> ArchiveWriter {
        let mut writer = ArchiveWriter::begin(snapshot.sequence, self.clock.wall_ms(), out);
        let caches = self.caches.load();
        let settings = |name: &str| {
            let config = caches.get(name).map(|cache| &cache.config);
            config.and_then(|config| serde_json::to_string(config).ok()).unwrap_or_default()
        };
        for cache in &snapshot.caches {
            let (id, name, has_durable) = (cache.id, cache.name.as_str(), cache.has_durable);
            let settings = &settings(name);
            writer.push(
                &ArchiveRecord::Cache(ArchiveCache { id, name, settings, is_memory: false, has_durable }),
                out,
            );
        }
        for cache in memory {
            let (id, name) = (cache.id, cache.name.as_str());
            let settings = &settings(name);
            writer.push(
                &ArchiveRecord::Cache(ArchiveCache {
                    id,
                    name,
                    settings,
                    is_memory: true,
                    has_durable: false,
                }),
                out,
            );
        }
        writer
    }

    /// Items of the snapshot for one part; `false`: there are no more.
    fn archive_some(
        &self,
        snapshot: &mut Snapshot,
        writer: &mut ArchiveWriter,
        out: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        let (now, wall) = (self.clock.now(), self.clock.wall_ms());
        let to_wall = |at: BootMs| at.saturating_sub(now).saturating_add(wall);
        while out.len() < limits::PART_BYTES_MAX {
            let Some(found) = snapshot.next(now)? else { return Ok(false) };
            let item = ArchiveItem {
                cache: found.cache,
                key: found.key,
                version: found.item.version,
                created_ms: to_wall(found.item.created),
                expires_ms: found.item.expires.map(to_wall),
                stale_for_ms: found.item.stale_for_ms,
                load_cost_ms: found.item.load_cost_ms,
                stale: found.item.stale,
                tags: found.item.tags.iter().map(|tag| Bytes::new(tag)).collect(),
                value: found.item.value,
            };
            writer.push(&ArchiveRecord::Item(item), out);
        }
        Ok(true)
    }

    /// A page of a cache in memory; `false`: it was the last.
    fn archive_page(
        &self,
        cache: &Cache,
        writer: &mut ArchiveWriter,
        cursor: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        let (now, wall) = (self.clock.now(), self.clock.wall_ms());
        let to_wall = |at: BootMs| at.saturating_sub(now).saturating_add(wall);
        let wanted = Wanted { prefix: &[], cursor, keys_max: u32::MAX, values: true, stale: true };
        let (items, next) = self.memory_page(cache, wanted, now)?;
        for (key, item, is_stale) in &items {
            writer.push(&ArchiveRecord::Item(archive_item(cache.id, key, item, *is_stale, to_wall)), out);
        }
        *cursor = next;
        Ok(!cursor.is_empty())
    }
}

fn archive_item<'a>(
    cache: CacheId,
    key: &'a [u8],
    item: &'a Current,
    stale: bool,
    to_wall: impl Fn(BootMs) -> i64,
) -> ArchiveItem<'a> {
    ArchiveItem {
        cache,
        key,
        version: item.version,
        created_ms: to_wall(item.created),
        expires_ms: item.expires.map(&to_wall),
        stale_for_ms: item.stale_for_ms,
        load_cost_ms: item.load_cost_ms,
        stale,
        tags: item.tags.iter().map(|tag| Bytes::new(tag)).collect(),
        value: &item.value,
    }
}
