//! Filling a store from a backup, while no daemon has it.
//!
//! Called by the command line under the directory's lock. The new file is filled under the name of a draft and gets the
//! store's name when it is whole; until then nothing that is there is touched. What is made looks as if the daemon had gone
//! down when the backup was made: the next start treats each cache as its `recover` says.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;

use kv_proto::Version;
use redb::{Database, ReadableDatabase};

use super::archive::{ArchiveCounts, ArchiveError, ArchiveItem, ArchiveReader, ArchiveRecord};
use super::boots::Boots;
use super::disk::{Disk, LOG_FILE, MARKS_FILE, STORE_FILE};
use super::marks::Marks;
use super::options::{CacheId, OpenError, Options};
use super::overlay::{CacheRow, TreeKey};
use super::pending::{Mark, header_bytes};
use super::record::{ItemFields, encode_item};
use super::recovery::{DRAFT_FILE, open_database};
use super::tables::{
    BOOTS, CACHES, FORMAT, Fixed, JOURNAL, META, META_FORMAT, RESIDENT, STATE, StateKey, TREE, put_fixed,
    put_number, row,
};
use crate::clock::Clock;

/// Bytes put in one transaction.
const COMMIT_BYTES: usize = 8 << 20;

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The state is the one after this commit.
    pub sequence: Version,
    /// What there was.
    pub counts: ArchiveCounts,
    /// Items whose life has ended since.
    pub expired: u64,
    /// Items of caches in memory only, which no store holds.
    pub in_memory: u64,
    /// Where the store is that was there before.
    pub aside: Option<PathBuf>,
}

/// Why nothing was restored. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup is none, or not whole.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    /// There is a store already.
    #[error("{} holds a store already: give --replace to set it aside, or another --dir", .0.display())]
    Occupied(PathBuf),
    /// The disk does not take it.
    #[error("{0}")]
    Disk(#[from] OpenError),
    /// redb does not take it.
    #[error("the store cannot be filled: {0}")]
    Store(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for RestoreError {
    fn from(error: E) -> RestoreError {
        RestoreError::Store(error.into())
    }
}

fn io(doing: &'static str, options: &Options, cause: std::io::Error) -> RestoreError {
    RestoreError::Disk(OpenError::Io { doing, path: options.dir.clone(), cause })
}

/// Fills a store in the directory of `options` from a backup. The caller holds the directory's lock.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore(
    options: &Options,
    clock: &Clock,
    input: impl Read,
    may_replace: bool,
    mut progress: impl FnMut(u64),
) -> Result<Restored, RestoreError> {
    let disk = Disk::Files;
    let dir = &options.dir;
    let is_occupied = disk.exists(dir, STORE_FILE);
    if is_occupied && !may_replace {
        return Err(RestoreError::Occupied(dir.clone()));
    }
    let mut reader = ArchiveReader::new(input)?;
    disk.remove(dir, DRAFT_FILE);
    let filled = fill(options, clock, &disk, &mut reader, &mut progress);
    let (restored, durable) = match filled {
        Ok(filled) => filled,
        Err(error) => {
            disk.remove(dir, DRAFT_FILE);
            return Err(error);
        }
    };
    let aside = if is_occupied { Some(set_aside(options, clock, &disk)?) } else { None };
    let bytes = options.log_bytes();
    disk.create_log(dir, &header_bytes(FORMAT, bytes), bytes)
        .map_err(|e| io("making the pending log in", options, e))?;
    let mut marks = Marks::default();
    marks.has_durable = !durable.is_empty();
    marks.store(&disk, dir).map_err(|e| io("writing the marks in", options, e))?;
    disk.rename(dir, DRAFT_FILE, STORE_FILE).map_err(|e| io("naming the store in", options, e))?;
    Ok(Restored { aside, ..restored })
}

fn set_aside(options: &Options, clock: &Clock, disk: &Disk) -> Result<PathBuf, RestoreError> {
    let suffix = format!("replaced-{}", clock.wall_ms());
    for name in [STORE_FILE, LOG_FILE, MARKS_FILE] {
        if disk.exists(&options.dir, name) {
            let to = format!("{name}.{suffix}");
            disk.rename(&options.dir, name, &to).map_err(|e| io("setting aside the store in", options, e))?;
        }
    }
    Ok(options.dir.join(format!("{STORE_FILE}.{suffix}")))
}

/// A store being filled.
struct Filling<'a> {
    db: &'a Database,
    boots: &'a Boots,
    clock: &'a Clock,
    pending: Vec<(TreeKey, std::sync::Arc<[u8]>)>,
    pending_bytes: usize,
    tree_bytes: std::collections::BTreeMap<CacheId, u64>,
    /// Caches whose items are kept.
    on_disk: BTreeSet<CacheId>,
    durable: BTreeSet<CacheId>,
    version: Version,
    scratch: Vec<u8>,
}

impl Filling<'_> {
    fn begin(&self) -> Result<redb::WriteTransaction, RestoreError> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(redb::Durability::Immediate)?;
        txn.set_quick_repair(true);
        Ok(txn)
    }

    /// Keeps an item, unless its life is over; says whether it did.
    fn take(&mut self, item: &ArchiveItem<'_>) -> Result<bool, RestoreError> {
        let (now, wall) = (self.clock.now(), self.clock.wall_ms());
        let to_boot = |at: i64| at.saturating_sub(wall).saturating_add(now);
        let expires = item.expires_ms.map(to_boot);
        self.version = self.version.max(item.version);
        if expires.is_some_and(|at| now >= at.saturating_add_unsigned(item.stale_for_ms)) {
            return Ok(false);
        }
        let tags: Vec<&[u8]> = item.tags.iter().map(|tag| &tag[..]).collect();
        let fields = ItemFields {
            version: item.version,
            created: to_boot(item.created_ms),
            expires,
            stale_for_ms: item.stale_for_ms,
            load_cost_ms: item.load_cost_ms,
            stale: item.stale,
            tags: &tags,
            value: item.value,
        };
        let record = encode_item(item.cache, item.key, &fields, 0, self.boots, &mut self.scratch);
        let bytes = 4 + item.key.len() + record.len();
        *self.tree_bytes.entry(item.cache).or_insert(0) += bytes as u64;
        self.pending_bytes += bytes;
        self.pending.push((TreeKey::new(item.cache, item.key), record));
        if self.pending_bytes >= COMMIT_BYTES {
            self.commit()?;
        }
        Ok(true)
    }

    fn commit(&mut self) -> Result<(), RestoreError> {
        let txn = self.begin()?;
        {
            let mut tree = txn.open_table(TREE)?;
            for (tree_key, record) in self.pending.drain(..) {
                tree.insert(tree_key.as_slice(), &*record)?;
            }
        }
        self.pending_bytes = 0;
        txn.commit()?;
        Ok(())
    }
}

fn fill(
    options: &Options,
    clock: &Clock,
    disk: &Disk,
    reader: &mut ArchiveReader<impl Read>,
    progress: &mut impl FnMut(u64),
) -> Result<(Restored, BTreeSet<CacheId>), RestoreError> {
    let (db, _fault) = open_database(disk, options, DRAFT_FILE, false)?;
    let boots = Boots::find(Default::default(), clock, 0).0;
    let mut filling = Filling {
        db: &db,
        boots: &boots,
        clock,
        pending: Vec::new(),
        pending_bytes: 0,
        tree_bytes: Default::default(),
        on_disk: BTreeSet::new(),
        durable: BTreeSet::new(),
        version: 0,
        scratch: Vec::new(),
    };
    let mut caches: Vec<(CacheId, CacheRow)> = Vec::new();
    let (mut sequence, mut made_ms, mut expired, mut in_memory) = (0, 0, 0, 0);
    let mut highest = 0;
    loop {
        match reader.next()? {
            None => break,
            Some(ArchiveRecord::Header { sequence: of_backup, wall_ms, .. }) => {
                (sequence, made_ms) = (of_backup, wall_ms);
            }
            Some(ArchiveRecord::Cache(cache)) => {
                highest = highest.max(cache.id);
                if !cache.is_memory {
                    filling.on_disk.insert(cache.id);
                    caches.push((cache.id, CacheRow { name: cache.name.to_owned(), settings: Vec::new() }));
                }
                if cache.has_durable {
                    filling.durable.insert(cache.id);
                }
            }
            Some(ArchiveRecord::Item(item)) if !filling.on_disk.contains(&item.cache) => in_memory += 1,
            Some(ArchiveRecord::Item(item)) => expired += u64::from(!filling.take(&item)?),
            Some(ArchiveRecord::End { .. }) => {}
        }
        progress(reader.position());
    }
    filling.commit()?;
    let down_ms = clock.wall_ms().saturating_sub(made_ms).max(0);
    let fixed = Fixed {
        mark: Mark { number: 0, checksum: fastrand::u64(1..), position: 0 },
        flush: 0,
        sequence,
        sequence_limit: sequence.max(filling.version) + 1,
        cache_first: highest + 1,
        boot: boots.current,
        wall_ms: made_ms,
        boot_ms: clock.now().saturating_sub(down_ms),
        is_clean: false,
    };
    let txn = filling.begin()?;
    {
        txn.open_table(META)?.insert(META_FORMAT, row(&FORMAT).as_slice())?;
        txn.open_table(JOURNAL)?;
        txn.open_table(RESIDENT)?;
        txn.open_table(BOOTS)?.insert(boots.current, row(boots.this()).as_slice())?;
        let mut table = txn.open_table(CACHES)?;
        for (cache, cache_row) in &caches {
            table.insert(cache, row(cache_row).as_slice())?;
        }
        let mut state = txn.open_table(STATE)?;
        for (cache, bytes) in &filling.tree_bytes {
            put_number(&mut state, *cache, StateKey::Bytes, *bytes).map_err(RestoreError::Store)?;
        }
        for cache in &filling.durable {
            put_number(&mut state, *cache, StateKey::Durable, 1).map_err(RestoreError::Store)?;
        }
    }
    put_fixed(&txn, &fixed).map_err(RestoreError::Store)?;
    txn.commit()?;
    let durable = filling.durable;
    db.begin_read()?.open_table(TREE)?;
    db.close()?;
    Ok((Restored { sequence, counts: reader.counts, expired, in_memory, aside: None }, durable))
}
