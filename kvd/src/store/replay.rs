//! Reading what a store's files hold: the small tables, the journal, and the pending records that continue it.
//!
//! Called by recovery, and by the handling of disk trouble when it reopens. Reads only; whatever it finds wrong is either
//! proven damage or an error of the system, and the caller must treat the two differently.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

use kv_proto::Version;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableError};

use super::append::apply;
use super::boots::Boot;
use super::disk::{Disk, FaultCell, STORE_FILE};
use super::options::{CacheId, Options};
use super::overlay::{CacheRow, Layer, Stamps, merge_pair};
use super::pending::{Mark, Ring};
use super::record::{LogChange, LogCommit, check, decode};
use super::recovery::open_database;
use super::tables::{
    BOOTS, CACHES, FORMAT, Fixed, JOURNAL, META, META_FIXED, META_FORMAT, STATE, StateKey, journal,
};

/// The state table, read whole.
#[derive(Debug, Default, Clone)]
pub(super) struct State {
    pub(super) generations: BTreeMap<CacheId, u32>,
    pub(super) durable: BTreeSet<CacheId>,
    pub(super) tree_bytes: BTreeMap<CacheId, u64>,
    pub(super) stamps: BTreeMap<CacheId, Stamps>,
    pub(super) damaged: BTreeSet<CacheId>,
    pub(super) dropped: BTreeSet<CacheId>,
}

/// Damage that was proven, or an error of the system.
#[derive(Debug)]
pub(super) enum Trouble {
    Damage(String),
    Newer(u64),
    /// Of an older format, and not closed cleanly, or it would have been converted.
    Older(u64),
    Held,
    Io(io::Error),
}

impl From<redb::Error> for Trouble {
    fn from(error: redb::Error) -> Trouble {
        match error {
            redb::Error::Corrupted(what) => Trouble::Damage(what),
            redb::Error::DatabaseAlreadyOpen => Trouble::Held,
            redb::Error::UpgradeRequired(version) => Trouble::Newer(u64::from(version)),
            redb::Error::Io(error) => match error.kind() {
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Trouble::Damage(error.to_string()),
                _other => Trouble::Io(error),
            },
            redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. } => {
                Trouble::Damage(error.to_string())
            }
            other => Trouble::Io(io::Error::other(other)),
        }
    }
}

impl From<DatabaseError> for Trouble {
    fn from(error: DatabaseError) -> Trouble {
        redb::Error::from(error).into()
    }
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Trouble {
        redb::Error::from(error).into()
    }
}

impl From<TableError> for Trouble {
    fn from(error: TableError) -> Trouble {
        redb::Error::from(error).into()
    }
}

/// What the files say.
pub(super) struct Read {
    pub(super) db: Database,
    pub(super) fault: FaultCell,
    pub(super) is_new: bool,
    pub(super) fixed: Fixed,
    pub(super) boots: BTreeMap<u32, Boot>,
    pub(super) caches: BTreeMap<CacheId, CacheRow>,
    pub(super) state: State,
    pub(super) layer: Layer,
    pub(super) journal_bytes: u64,
    pub(super) journal_records: u64,
    /// The pending records as a journal record, and where they end.
    pub(super) pending: Vec<u8>,
    pub(super) pending_end: Mark,
}

/// The format of a store that was closed cleanly, read without writing a byte: redb's own open marks the file. Where this
/// cannot tell, the open does.
pub(super) fn peek_format(disk: &Disk, options: &Options) -> Option<u64> {
    if !matches!(disk, Disk::Files) {
        return None;
    }
    let mut builder = Database::builder();
    builder.set_cache_size(1 << 20);
    let db = builder.open_read_only(options.dir.join(STORE_FILE)).ok()?;
    let txn = db.begin_read().ok()?;
    read_row::<u64>(&txn.open_table(META).ok()?, META_FORMAT).ok().flatten()
}

pub(super) fn load(
    options: &Options,
    disk: &Disk,
    ring: Option<&Ring>,
    must_verify: bool,
) -> Result<Read, Trouble> {
    if let Some(format) = peek_format(disk, options).filter(|format| *format > FORMAT) {
        return Err(Trouble::Newer(format));
    }
    let (db, fault) = open_database(disk, options, STORE_FILE, must_verify)?;
    let txn = db.begin_read().map_err(redb::Error::from)?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Read::empty(db, fault)),
        Err(error) => return Err(error.into()),
    };
    let format = read_row::<u64>(&meta, META_FORMAT)?.ok_or_else(|| damage("the format row is missing"))?;
    if format > FORMAT {
        return Err(Trouble::Newer(format));
    }
    if format < FORMAT {
        return Err(Trouble::Older(format));
    }
    let fixed: Fixed = read_row(&meta, META_FIXED)?.ok_or_else(|| damage("the fixed row is missing"))?;
    let mut boots = BTreeMap::new();
    for found in txn.open_table(BOOTS)?.range::<u32>(..)? {
        let (number, boot) = found?;
        boots.insert(number.value(), decode(boot.value()).ok_or_else(|| damage("a boot row"))?);
    }
    let mut caches = BTreeMap::new();
    for found in txn.open_table(CACHES)?.range::<u32>(..)? {
        let (cache, cache_row) = found?;
        caches.insert(cache.value(), decode(cache_row.value()).ok_or_else(|| damage("a cache row"))?);
    }
    let state = read_state(&txn.open_table(STATE)?)?;
    let mut layer = Layer::default();
    let (mut journal_bytes, mut journal_records) = (0, 0);
    for found in txn.open_table(JOURNAL)?.range::<u64>(..)? {
        let (flush, record) = found?;
        let payloads = journal::payloads(record.value())
            .ok_or_else(|| damage(&format!("journal record {} has a wrong checksum", flush.value())))?;
        for payload in payloads {
            replay(&mut layer, payload)?;
        }
        journal_bytes += record.value().len() as u64;
        journal_records += 1;
    }
    let mut pending = Vec::new();
    let pending_end = match ring {
        Some(ring) => read_pending(ring, fixed.mark, &mut layer, &mut pending)?,
        None => fixed.mark,
    };
    drop((meta, txn));
    let read = Read {
        db,
        fault,
        is_new: false,
        fixed,
        boots,
        caches,
        state,
        layer,
        journal_bytes,
        journal_records,
        pending,
        pending_end,
    };
    Ok(read)
}

impl Read {
    fn empty(db: Database, fault: FaultCell) -> Read {
        Read {
            db,
            fault,
            is_new: true,
            fixed: Fixed::default(),
            boots: BTreeMap::new(),
            caches: BTreeMap::new(),
            state: State::default(),
            layer: Layer::default(),
            journal_bytes: 0,
            journal_records: 0,
            pending: Vec::new(),
            pending_end: Mark::default(),
        }
    }
}

fn damage(what: &str) -> Trouble {
    Trouble::Damage(what.to_owned())
}

fn read_row<T: serde::de::DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, Trouble> {
    match meta.get(key)? {
        Some(found) => Ok(Some(decode(found.value()).ok_or_else(|| damage(key))?)),
        None => Ok(None),
    }
}

pub(super) fn read_state(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<State, redb::Error> {
    let mut state = State::default();
    for found in table.range::<&[u8]>(..)? {
        let (key, value) = found?;
        let Some((cache, key)) = StateKey::parse(key.value()) else { continue };
        let wrong = || redb::Error::Corrupted(format!("a state row of cache {cache}"));
        let number = || decode::<u64>(value.value()).ok_or_else(wrong);
        let pair = || decode::<(Version, Version)>(value.value()).ok_or_else(wrong);
        match key {
            StateKey::Generation => {
                state.generations.insert(cache, u32::try_from(number()?).map_err(|_| wrong())?);
            }
            StateKey::Durable => {
                state.durable.insert(cache);
            }
            StateKey::Bytes => {
                state.tree_bytes.insert(cache, number()?);
            }
            StateKey::Clear => {
                let stamps = state.stamps.entry(cache).or_default();
                (stamps.clear, stamps.stale) = pair()?;
            }
            StateKey::Tag(slot) => {
                merge_pair(stamps_of(&mut state, cache).tags.entry(slot).or_default(), pair()?)
            }
            StateKey::Prefix(prefix) => {
                let prefix = prefix.to_vec();
                merge_pair(stamps_of(&mut state, cache).prefixes.entry(prefix).or_default(), pair()?);
            }
            StateKey::Damaged => {
                state.damaged.insert(cache);
            }
            StateKey::Dropped => {
                state.dropped.insert(cache);
            }
        }
    }
    Ok(state)
}

fn stamps_of(state: &mut State, cache: CacheId) -> &mut Stamps {
    state.stamps.entry(cache).or_default()
}

/// Applies a commit as logged.
pub(super) fn replay(layer: &mut Layer, payload: &[u8]) -> Result<(), Trouble> {
    let commit: LogCommit<'_> = decode(payload).ok_or_else(|| damage("a logged commit cannot be read"))?;
    for change in &commit.changes {
        if let LogChange::Put { cache, key, record } = *change
            && !check(cache, key, record)
        {
            return Err(damage("a logged item has a wrong checksum"));
        }
        apply(layer, commit.sequence, change, None);
    }
    Ok(())
}

/// Replays the longest valid run of pending records after `mark` and gathers it as one journal record.
pub(super) fn read_pending(
    ring: &Ring,
    mark: Mark,
    layer: &mut Layer,
    out: &mut Vec<u8>,
) -> Result<Mark, Trouble> {
    journal::begin(out);
    let mut end = mark;
    loop {
        let at = journal::open(out);
        let Some(next) = ring.read(end, out) else {
            out.truncate(at);
            break;
        };
        journal::close(out, at);
        replay(layer, &out[at + 4..])?;
        end = next;
    }
    journal::end(out);
    Ok(end)
}
