//! Opening a store: what the last run left, made whole before anything is served.
//!
//! Called by [`Store::open`](super::Store::open) alone. Replays the journal, then the longest run of pending records that continues
//! the fixed row, journals those at once, and begins a new chain of the pending log in the same transaction: a crash at any
//! point of this leaves either the old state or the new one. A refused store is left as it is.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::limits::VERSION_MAX;
use redb::{Database, Durability};

use super::boots::Boots;
use super::disk::{Disk, FaultCell, LOG_FILE, MARKS_FILE, STORE_FILE, is_no_space};
use super::marks::{Found, Marks};
use super::options::{CacheId, CacheStamps, OpenError, Options, Recovered, RecoveredCache, Report};
use super::overlay::{CacheRow, Layer};
use super::pending::{Header, Mark, Ring, header_bytes};
use super::replay::{Read, State, Trouble, load, peek_format};
use super::tables::{
    BOOTS, CACHES, FORMAT, Fixed, JOURNAL, META, META_FORMAT, RESIDENT, STATE, StateKey, TREE, put_fixed,
    put_number, row,
};
use crate::clock::Clock;

/// 2026-11-01, in milliseconds since 1970: a wall clock before this is wrong.
const BUILD_DATE_MS: i64 = 1_793_491_200_000;
const PLAUSIBLE_MS: i64 = 20 * 366 * 24 * 3_600 * 1_000;
/// How far a run jumps over what the last one may have given out.
const SEQUENCE_JUMP: u64 = 1 << 32;
/// Free space without which a store is not even opened.
const OPEN_BYTES_MIN: u64 = 1 << 20;
/// Beside a new pending log.
const CREATE_BYTES: u64 = 4 << 20;
/// So many attempts to open in a row did not end: the next one checks the whole file.
const OPENS_BEFORE_VERIFY: u64 = 2;
pub(super) const DRAFT_FILE: &str = "store.redb.new";

/// Everything an open store begins with.
pub(super) struct Opened {
    pub(super) db: Database,
    pub(super) fault: FaultCell,
    pub(super) ring: Ring,
    pub(super) boots: Boots,
    pub(super) marks: Marks,
    pub(super) fixed: Fixed,
    pub(super) layer: Layer,
    pub(super) state: State,
    pub(super) journal_bytes: u64,
    pub(super) journal_records: u64,
    pub(super) recovered: Recovered,
}

impl Trouble {
    fn explain(self, dir: &Path) -> OpenError {
        let path = dir.join(STORE_FILE);
        match self {
            Trouble::Damage(what) => OpenError::Corrupt { path, what },
            Trouble::Newer(found) => OpenError::Newer { path, found, known: FORMAT },
            Trouble::Older(found) => OpenError::Older { path, found, known: FORMAT },
            Trouble::Held => OpenError::Held { path },
            Trouble::Io(cause) => explain_io("opening", dir, cause),
        }
    }
}

fn explain_io(doing: &'static str, dir: &Path, cause: io::Error) -> OpenError {
    let path = dir.to_owned();
    if is_no_space(&cause) {
        return OpenError::NoSpace { path, needed_bytes: OPEN_BYTES_MIN };
    }
    match cause.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
            OpenError::Permission {
                path,
                why: format!("{cause}: check its owner and mode, or choose another --dir"),
            }
        }
        _other => OpenError::Io { doing, path, cause },
    }
}

/// Opens redb on a file of the store.
pub(super) fn open_database(
    disk: &Disk,
    options: &Options,
    name: &str,
    must_verify: bool,
) -> Result<(Database, FaultCell), redb::Error> {
    let (backend, fault) = disk.store_backend(&options.dir, name).map_err(redb::Error::Io)?;
    let db = Database::builder()
        .set_cache_size(options.redb_cache_bytes)
        .set_check_integrity_on_open(must_verify)
        .set_repair_callback(|session| {
            tracing::info!(percent = session.progress() * 100.0, "repairing the store after an unclean stop");
        })
        .create_with_backend(backend)?;
    Ok((db, fault))
}

/// Opens the store.
pub(super) fn open(options: &Options, clock: &Clock, disk: &Disk) -> Result<Opened, OpenError> {
    let dir = &options.dir;
    disk.prepare_dir(dir).map_err(|cause| explain_io("creating", dir, cause))?;
    if let Some((path, why)) = disk.rights(dir) {
        return Err(OpenError::Permission { path, why });
    }
    let words = disk.open_log(dir).map_err(|cause| explain_io("opening the pending log in", dir, cause))?;
    let ring = words.map(Ring::new);
    let header = ring.as_ref().map(|ring| ring.header(FORMAT));
    if let Some(Header::Newer { format }) = header {
        return Err(OpenError::Newer { path: dir.join(LOG_FILE), found: format, known: FORMAT });
    }
    let ring = ring.filter(|_| matches!(header, Some(Header::Good)));
    check_space(options, disk, ring.is_some())?;
    let found = Marks::load(disk, dir).map_err(|cause| explain_io("reading the marks in", dir, cause))?;
    let (mut marks, are_marks_lost) = match found {
        Found::Good(marks) => (marks, false),
        Found::Missing => (Marks::default(), false),
        Found::Damaged => (Marks::worst(), true),
    };
    let mut floor = ring.as_ref().map_or(0, Ring::sequence_limit);
    let mut ring = ring;
    let mut set_aside = None;
    let unended = ring.as_ref().map_or(0, Ring::begin_open);
    if marks.is_suspect {
        disk.forget_cached(dir, STORE_FILE);
    }
    // redb may panic on a file damaged from outside, unless it checks all of it first, which takes long.
    let must_verify = marks.is_suspect || unended >= OPENS_BEFORE_VERIFY;
    if let Some(older) = peek_format(disk, options).filter(|format| *format < FORMAT) {
        super::convert::convert(options, disk, older)?;
    }
    let loaded = load(options, disk, ring.as_ref(), must_verify);
    if let Some(ring) = &ring {
        ring.end_open();
    }
    let read = match loaded {
        Ok(read) => read,
        Err(Trouble::Damage(what)) => {
            if marks.has_durable && !options.set_aside {
                return Err(OpenError::Corrupt { path: dir.join(STORE_FILE), what });
            }
            tracing::error!(what, "the store is damaged and is set aside; beginning empty");
            set_aside = Some(put_aside(options, clock, disk)?);
            floor = floor.max(SEQUENCE_JUMP);
            ring = None;
            marks = Marks::default();
            load(options, disk, None, false).map_err(|trouble| trouble.explain(dir))?
        }
        Err(other) => return Err(other.explain(dir)),
    };
    if !read.is_new && ring.is_none() {
        tracing::error!("the pending log is missing or damaged: writes that were not flushed are lost");
    }
    disk.remove(dir, DRAFT_FILE);
    let mut opened = begin_run(options, clock, disk, read, ring, marks, are_marks_lost, floor)?;
    opened.recovered.report.set_aside = set_aside;
    Ok(opened)
}

fn check_space(options: &Options, disk: &Disk, has_log: bool) -> Result<(), OpenError> {
    let needed_bytes = if has_log { OPEN_BYTES_MIN } else { options.log_bytes() as u64 + CREATE_BYTES };
    let (free, _) =
        disk.space(&options.dir).map_err(|cause| explain_io("asking for space in", &options.dir, cause))?;
    if free < needed_bytes {
        return Err(OpenError::NoSpace { path: options.dir.clone(), needed_bytes });
    }
    Ok(())
}

fn put_aside(options: &Options, clock: &Clock, disk: &Disk) -> Result<std::path::PathBuf, OpenError> {
    let suffix = clock.wall_ms();
    let to = format!("{STORE_FILE}.damaged-{suffix}");
    for name in [LOG_FILE, MARKS_FILE, STORE_FILE] {
        if disk.exists(&options.dir, name) {
            disk.rename(&options.dir, name, &format!("{name}.damaged-{suffix}"))
                .map_err(|cause| explain_io("setting aside", &options.dir, cause))?;
        }
    }
    Ok(options.dir.join(to))
}

/// The first sequence of a run, and whether the wall clock was left out of it.
fn sequence_first(recovered: Version, wall_ms: i64) -> (Version, bool) {
    let after = recovered.saturating_add(SEQUENCE_JUMP);
    if (BUILD_DATE_MS..BUILD_DATE_MS + PLAUSIBLE_MS).contains(&wall_ms) {
        (after.max(wall_ms.cast_unsigned() << 20), false)
    } else {
        (after, true)
    }
}

#[allow(clippy::too_many_arguments)] // Called once; the parts come from different files and a struct would only rename them.
fn begin_run(
    options: &Options,
    clock: &Clock,
    disk: &Disk,
    read: Read,
    ring: Option<Ring>,
    mut marks: Marks,
    are_marks_lost: bool,
    floor: Version,
) -> Result<Opened, OpenError> {
    let dir = &options.dir;
    let Read { db, fault, is_new, fixed: last, boots, mut caches, mut state, layer, .. } = read;
    let (alive_wall, alive_boot) = ring.as_ref().map_or((0, 0), Ring::alive);
    let last_alive = last.boot_ms.max(alive_boot);
    let (boots, is_new_boot) = Boots::find(boots, clock, last_alive);
    let known = last.sequence_limit.max(last.sequence).max(layer.sequence).max(floor);
    let (first, clock_ignored) = sequence_first(known, clock.wall_ms());
    if first >= VERSION_MAX {
        return Err(OpenError::Sequence { found: first, limit: VERSION_MAX });
    }
    if clock_ignored {
        tracing::warn!(
            wall_ms = clock.wall_ms(),
            "the wall clock is not plausible: ignored for sequence numbers"
        );
    }
    let is_ring_kept = ring.as_ref().is_some_and(|ring| {
        ring.capacity() as usize == options.log_bytes() / 8 - super::pending::HEADER_WORDS
    });
    let dirty = take_dirty(&mut state, &marks, are_marks_lost, &caches);
    for (cache, cache_row) in &layer.created {
        caches.insert(*cache, cache_row.clone());
    }
    caches.retain(|cache, _| !layer.dropped.contains(cache));
    let has_pending = read.pending_end != last.mark;
    let highest = caches.keys().chain(layer.dropped.iter()).max().map_or(1, |cache| cache + 1);
    let fixed = Fixed {
        mark: Mark {
            number: read.pending_end.number,
            // A new chain: nothing any earlier run wrote to the ring can continue it.
            checksum: fastrand::u64(1..),
            position: if is_ring_kept { read.pending_end.position } else { 0 },
        },
        flush: last.flush + u64::from(has_pending),
        sequence: last.sequence.max(layer.sequence),
        sequence_limit: first + SEQUENCE_JUMP,
        cache_first: last.cache_first.max(highest),
        boot: boots.current,
        wall_ms: clock.wall_ms(),
        boot_ms: clock.now(),
        is_clean: false,
    };
    let pending = has_pending.then_some(read.pending.as_slice());
    commit_run(&db, &fixed, pending, is_new, is_new_boot.then_some(&boots), &state, &dirty)
        .map_err(|error| Trouble::from(error).explain(dir))?;
    if !dirty.is_empty() || marks.is_suspect || is_new || are_marks_lost {
        marks.dirty.clear();
        marks.is_suspect = false;
        marks.store(disk, dir).map_err(|cause| explain_io("writing the marks in", dir, cause))?;
    }
    let ring = match ring.filter(|_| is_ring_kept) {
        Some(ring) => ring,
        None => {
            let bytes = options.log_bytes();
            let words = disk.create_log(dir, &header_bytes(FORMAT, bytes), bytes);
            Ring::new(words.map_err(|cause| explain_io("creating the pending log in", dir, cause))?)
        }
    };
    ring.set_alive(clock.wall_ms(), clock.now());
    ring.set_sequence_limit(fixed.sequence_limit);
    let report = Report {
        created: is_new,
        clean: last.is_clean && !has_pending,
        same_boot: !is_new_boot,
        down_for: down_for(clock, is_new_boot, last_alive, last.wall_ms.max(alive_wall)),
        journal_records: read.journal_records,
        journal_bytes: read.journal_bytes,
        pending_records: read.pending_end.number - last.mark.number,
        pending_bytes: read.pending.len() as u64,
        set_aside: None,
        clock_ignored,
    };
    let recovered = Recovered {
        sequence_first: first,
        cache_first: fixed.cache_first,
        stamps: stamps(&state, &layer),
        caches: recovered_caches(caches, &state),
        dirty,
        report,
    };
    let journal_bytes = read.journal_bytes + pending.map_or(0, |record| record.len() as u64);
    let journal_records = read.journal_records + u64::from(has_pending);
    Ok(Opened {
        db,
        fault,
        ring,
        boots,
        marks,
        fixed,
        layer,
        state,
        journal_bytes,
        journal_records,
        recovered,
    })
}

/// Starts a new generation of every cache that went on in memory only.
fn take_dirty(
    state: &mut State,
    marks: &Marks,
    are_marks_lost: bool,
    caches: &BTreeMap<CacheId, CacheRow>,
) -> Vec<CacheId> {
    let mut dirty: Vec<CacheId> = marks.dirty.iter().copied().collect();
    if are_marks_lost {
        tracing::error!(
            "the marks file is damaged: the disk parts of caches without durable writes count as void"
        );
        dirty.extend(caches.keys().filter(|cache| !state.durable.contains(cache)));
    }
    for cache in &dirty {
        *state.generations.entry(*cache).or_insert(0) += 1;
    }
    dirty
}

fn commit_run(
    db: &Database,
    fixed: &Fixed,
    pending: Option<&[u8]>,
    is_new: bool,
    new_boot: Option<&Boots>,
    state: &State,
    dirty: &[CacheId],
) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_quick_repair(true);
    {
        let mut journal = txn.open_table(JOURNAL)?;
        if let Some(record) = pending {
            journal.insert(fixed.flush, record)?;
        }
        if is_new {
            txn.open_table(META)?.insert(META_FORMAT, row(&FORMAT).as_slice())?;
            txn.open_table(TREE)?;
            txn.open_table(CACHES)?;
            txn.open_table(RESIDENT)?;
        }
        let mut boots = txn.open_table(BOOTS)?;
        if let Some(new) = new_boot {
            boots.insert(new.current, row(new.this()).as_slice())?;
        }
        let mut table = txn.open_table(STATE)?;
        for cache in dirty {
            put_number(&mut table, *cache, StateKey::Generation, u64::from(state.generations[cache]))?;
        }
    }
    put_fixed(&txn, fixed)?;
    txn.commit()?;
    Ok(())
}

fn down_for(clock: &Clock, is_new_boot: bool, last_boot_ms: i64, last_wall_ms: i64) -> Duration {
    let ms = if is_new_boot { clock.wall_ms() - last_wall_ms } else { clock.now() - last_boot_ms };
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn stamps(state: &State, layer: &Layer) -> Vec<CacheStamps> {
    let mut merged = state.stamps.clone();
    for (cache, stamps) in &layer.stamps {
        merged.entry(*cache).or_default().merge(stamps);
    }
    merged
        .into_iter()
        .filter(|(cache, _)| !layer.dropped.contains(cache))
        .map(|(cache, stamps)| CacheStamps {
            cache,
            clear: stamps.clear,
            stale: stamps.stale,
            tags: stamps.tags.into_iter().map(|(slot, (gone, stale))| (slot, gone, stale)).collect(),
            prefixes: stamps
                .prefixes
                .into_iter()
                .map(|(prefix, (gone, stale))| (prefix, gone, stale))
                .collect(),
        })
        .collect()
}

fn recovered_caches(caches: BTreeMap<CacheId, CacheRow>, state: &State) -> Vec<RecoveredCache> {
    let one = |(id, cache_row): (CacheId, CacheRow)| RecoveredCache {
        id,
        name: cache_row.name,
        settings: cache_row.settings,
        has_durable: state.durable.contains(&id),
    };
    caches.into_iter().map(one).collect()
}

/// The layer a store begins with, as the overlay takes it.
pub(super) fn share(layer: Layer) -> super::overlay::Overlay {
    super::overlay::Overlay { active: layer, frozen: None::<Arc<Layer>> }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_begins_above_everything_given_out_whatever_the_clock_says() {
        let now = BUILD_DATE_MS + 1;
        assert_eq!(sequence_first(0, now), (now.cast_unsigned() << 20, false));
        assert_eq!(sequence_first(1 << 61, now), ((1 << 61) + SEQUENCE_JUMP, false));
        assert_eq!(sequence_first(5, 0), (5 + SEQUENCE_JUMP, true));
        assert_eq!(sequence_first(5, BUILD_DATE_MS + PLAUSIBLE_MS), (5 + SEQUENCE_JUMP, true));
    }
}
