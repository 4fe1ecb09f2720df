//! A full check of a store that no daemon has: every page, every record, the journal and the pending log.
//!
//! Called by the command line under the directory's lock. redb is opened over a shadow that keeps all writes in memory, because
//! opening repairs: what is checked stays as it is.

use kv_proto::Version;
use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableError};

use super::disk::{Disk, LOG_FILE, STORE_FILE};
use super::options::{OpenError, Options};
use super::overlay::{Layer, split};
use super::pending::{Header, Ring};
use super::record::{check, decode};
use super::replay::{read_pending, read_state, replay};
use super::shadow::Shadow;
use super::tables::{FORMAT, Fixed, JOURNAL, META, META_FIXED, META_FORMAT, STATE, TREE, journal};

/// Sentences at most; more of the same help nobody.
const WRONG_MAX: usize = 100;

/// What a full check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The newest sequence in tree and journal.
    pub sequence: Version,
    /// Items of the tree.
    pub items: u64,
    /// Their bytes, keys and records.
    pub bytes: u64,
    /// Records of the journal.
    pub journal_records: u64,
    /// Records of the pending log that a start would replay.
    pub pending_records: u64,
    /// What is wrong; nothing: all is as it should be.
    pub wrong: Vec<String>,
}

impl Verified {
    fn wrong(&mut self, what: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(what);
        }
    }
}

/// Checks the store in the directory of `options`. The caller holds the directory's lock. `progress` gets how many items were
/// checked, of how many.
///
/// # Errors
/// When a file cannot be opened. What is wrong in it is no error here, but an answer.
pub fn verify(options: &Options, mut progress: impl FnMut(u64, u64)) -> Result<Verified, OpenError> {
    let mut verified = Verified::default();
    let path = options.dir.join(STORE_FILE);
    let failed = |doing, cause| OpenError::Io { doing, path: path.clone(), cause };
    let (backend, _fault) =
        Disk::Files.store_backend(&options.dir, STORE_FILE).map_err(|cause| failed("opening", cause))?;
    let shadow =
        Shadow::new(backend).map_err(|error| failed("opening", std::io::Error::other(error.to_string())))?;
    let ring = open_ring(options, &mut verified)?;
    // redb may panic on a file damaged from outside, which is a finding like any other.
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        look(options, shadow, ring.as_ref(), &mut verified, &mut progress)
    }));
    match looked {
        Ok(Ok(())) => {}
        Ok(Err(redb::Error::DatabaseAlreadyOpen)) => return Err(OpenError::Held { path }),
        Ok(Err(error)) => verified.wrong(format!("{STORE_FILE}: {error}")),
        Err(_panic) => verified.wrong(format!("{STORE_FILE}: so damaged that redb cannot read it")),
    }
    Ok(verified)
}

fn open_ring(options: &Options, verified: &mut Verified) -> Result<Option<Ring>, OpenError> {
    let path = options.dir.join(LOG_FILE);
    let words = Disk::Files.open_log(&options.dir).map_err(|cause| OpenError::Io {
        doing: "opening",
        path: path.clone(),
        cause,
    })?;
    let ring = words.map(Ring::new);
    match ring.as_ref().map(|ring| ring.header(FORMAT)) {
        Some(Header::Good) => return Ok(ring),
        Some(Header::Newer { format }) => {
            return Err(OpenError::Newer { path, found: format, known: FORMAT });
        }
        Some(Header::Damaged) => verified.wrong(format!("{LOG_FILE}: its header is damaged")),
        None => verified.wrong(format!("{LOG_FILE}: it is missing; what was not flushed is lost")),
    }
    Ok(None)
}

fn look(
    options: &Options,
    shadow: Shadow,
    ring: Option<&Ring>,
    verified: &mut Verified,
    progress: &mut impl FnMut(u64, u64),
) -> Result<(), redb::Error> {
    let db = Database::builder()
        .set_cache_size(options.redb_cache_bytes)
        .set_check_integrity_on_open(true)
        .create_with_backend(shadow)?;
    let txn = db.begin_read()?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            verified.wrong(format!("{STORE_FILE}: it holds no store"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let format = meta.get(META_FORMAT)?.and_then(|found| decode::<u64>(found.value()));
    if format.is_none_or(|format| format > FORMAT) {
        verified.wrong(format!("{STORE_FILE}: format {format:?}, this version knows up to {FORMAT}"));
        return Ok(());
    }
    let Some(fixed) = meta.get(META_FIXED)?.and_then(|found| decode::<Fixed>(found.value())) else {
        verified.wrong(format!("{STORE_FILE}: the fixed row is missing or cannot be read"));
        return Ok(());
    };
    verified.sequence = fixed.sequence;
    let state = read_state(&txn.open_table(STATE)?)?;
    let mut by_cache = std::collections::BTreeMap::new();
    let tree = txn.open_table(TREE)?;
    let all = tree.len()?;
    for found in tree.range::<&[u8]>(..)? {
        let (tree_key, record) = found?;
        let (tree_key, record) = (tree_key.value(), record.value());
        let (cache, key) = split(tree_key);
        verified.items += 1;
        let bytes = (tree_key.len() + record.len()) as u64;
        verified.bytes += bytes;
        *by_cache.entry(cache).or_insert(0) += bytes;
        if !check(cache, key, record) {
            verified.wrong(format!("an item of cache number {cache} has a wrong checksum"));
        }
        progress(verified.items, all);
    }
    for (cache, bytes) in &by_cache {
        let counted = state.tree_bytes.get(cache).copied().unwrap_or(0);
        if counted != *bytes {
            verified.wrong(format!("cache number {cache} has {bytes} bytes, {counted} are counted"));
        }
    }
    // Replayed for its checks alone.
    let mut layer = Layer::default();
    for found in txn.open_table(JOURNAL)?.range::<u64>(..)? {
        let (number, record) = found?;
        verified.journal_records += 1;
        let Some(payloads) = journal::payloads(record.value()) else {
            verified.wrong(format!("journal record {} has a wrong checksum", number.value()));
            continue;
        };
        for payload in payloads {
            if let Err(trouble) = replay(&mut layer, payload) {
                verified.wrong(format!("journal record {}: {trouble:?}", number.value()));
            }
        }
    }
    if let Some(ring) = ring {
        match read_pending(ring, fixed.mark, &mut layer, &mut Vec::new()) {
            Ok(end) => verified.pending_records = end.number - fixed.mark.number,
            Err(trouble) => verified.wrong(format!("{LOG_FILE}: {trouble:?}")),
        }
    }
    verified.sequence = verified.sequence.max(layer.sequence);
    Ok(())
}
