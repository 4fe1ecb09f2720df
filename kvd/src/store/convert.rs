//! A store of an older format: set aside under another name, and converted record by record into a new file.
//!
//! Called by recovery before anything else looks at the store. The old file is only read, and stays; what is filled is a draft
//! until it is whole, so that a crash leaves the old store under its own name, to be converted from the beginning. Only a
//! store that was stopped cleanly is converted: what an older version left half done it has to finish itself.
//!
//! There is one format so far. A new one adds its step to [`STEPS`] and a golden store of the old one to the tests.

use std::path::PathBuf;

use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::disk::{Disk, STORE_FILE};
use super::options::{OpenError, Options};
use super::record::decode;
use super::recovery::{DRAFT_FILE, open_database};
use super::shadow::Shadow;
use super::tables::{
    BOOTS, CACHES, FORMAT, Fixed, JOURNAL, META, META_FIXED, META_FORMAT, RESIDENT, STATE, TREE, row,
};

/// What a step makes of a row of the tree: key and record as the next format has them; `None`: it is left out.
type Step = fn(&[u8], &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, String>;

/// From each format to the next one.
#[cfg(not(test))]
const STEPS: &[(u64, Step)] = &[];
/// Tests have one that never was.
#[cfg(test)]
const STEPS: &[(u64, Step)] = &[(0, |key, record| Ok(Some((key.to_vec(), record.to_vec()))))];

/// Rows put in one transaction.
const ROWS_A_COMMIT: usize = 4_096;

/// The steps from one format to another, if there is a way.
fn steps(from: u64, to: u64) -> Option<Vec<Step>> {
    (from..to).map(|at| STEPS.iter().find(|(format, _)| *format == at).map(|(_, step)| *step)).collect()
}

/// Converts the store in the directory of `options`, which is of an older format and was closed cleanly; gives where the old
/// file is now.
pub(super) fn convert(options: &Options, disk: &Disk, from: u64) -> Result<PathBuf, OpenError> {
    let path = options.dir.join(STORE_FILE);
    let io = |cause| OpenError::Io { doing: "converting", path: path.clone(), cause };
    let failed = |error: redb::Error| io(std::io::Error::other(error.to_string()));
    let steps = steps(from, FORMAT).ok_or_else(|| {
        let why = format!("its format {from} is too old for this version: use one in between first");
        io(std::io::Error::other(why))
    })?;
    let (backend, _fault) = disk.store_backend(&options.dir, STORE_FILE).map_err(io)?;
    let shadow = Shadow::new(backend).map_err(failed)?;
    let mut builder = Database::builder();
    let old = builder
        .set_cache_size(options.redb_cache_bytes)
        .create_with_backend(shadow)
        .map_err(|error| failed(error.into()))?;
    if !is_clean(&old).map_err(failed)? {
        return Err(OpenError::Older { path, found: from, known: FORMAT });
    }
    disk.remove(&options.dir, DRAFT_FILE);
    let copied = copy(&old, options, disk, &steps, from).map_err(failed);
    drop(old);
    // A second name first: there is a store under the first one at any moment.
    let aside = options.dir.join(format!("{STORE_FILE}.format-{from}"));
    let named = copied.and_then(|()| {
        std::fs::hard_link(&path, &aside).map_err(io)?;
        disk.rename(&options.dir, DRAFT_FILE, STORE_FILE).map_err(io)
    });
    if let Err(error) = named {
        disk.remove(&options.dir, DRAFT_FILE);
        return Err(error);
    }
    tracing::warn!(from, to = FORMAT, aside = %aside.display(), "the store was converted; the old one is kept beside it");
    Ok(aside)
}

/// Whether the version that wrote it has put everything in it that it had.
fn is_clean(db: &Database) -> Result<bool, redb::Error> {
    let meta = db.begin_read()?.open_table(META)?;
    let fixed: Option<Fixed> = meta.get(META_FIXED)?.and_then(|found| decode(found.value()));
    Ok(fixed.is_some_and(|fixed| fixed.is_clean))
}

fn copy(
    old: &Database,
    options: &Options,
    disk: &Disk,
    steps: &[Step],
    from: u64,
) -> Result<(), redb::Error> {
    let (new, _fault) = open_database(disk, options, DRAFT_FILE, false)?;
    let old = old.begin_read()?;
    let begin = || -> Result<redb::WriteTransaction, redb::Error> {
        let mut txn = new.begin_write()?;
        txn.set_quick_repair(true);
        Ok(txn)
    };
    let txn = begin()?;
    {
        for found in old.open_table(META)?.range::<&str>(..)? {
            let (key, value) = found?;
            txn.open_table(META)?.insert(key.value(), value.value())?;
        }
        // What a clean stop leaves in the journal has items in it too: a step that changes them has to be told of those.
        for found in old.open_table(JOURNAL)?.range::<u64>(..)? {
            let (flush, record) = found?;
            txn.open_table(JOURNAL)?.insert(flush.value(), record.value())?;
        }
        txn.open_table(JOURNAL)?;
        for table in [CACHES, BOOTS, RESIDENT] {
            let mut into = txn.open_table(table)?;
            for found in old.open_table(table)?.range::<u32>(..)? {
                let (key, value) = found?;
                into.insert(key.value(), value.value())?;
            }
        }
        let mut state = txn.open_table(STATE)?;
        for found in old.open_table(STATE)?.range::<&[u8]>(..)? {
            let (key, value) = found?;
            state.insert(key.value(), value.value())?;
        }
        txn.open_table(META)?.insert(META_FORMAT, row(&FORMAT).as_slice())?;
        txn.open_table(TREE)?;
    }
    txn.commit()?;
    let tree = old.open_table(TREE)?;
    let all = tree.len()?;
    let mut rows = tree.range_owned::<&[u8]>(..)?;
    let (mut done, mut told) = (0, 0);
    while done < all {
        let txn = begin()?;
        {
            let mut table = txn.open_table(TREE)?;
            for found in rows.by_ref().take(ROWS_A_COMMIT) {
                let (key, record) = found?;
                let mut converted = Some((key.value().to_vec(), record.value().to_vec()));
                for step in steps {
                    let Some((key, record)) = converted else { break };
                    converted = step(&key, &record).map_err(redb::Error::Corrupted)?;
                }
                if let Some((key, record)) = converted {
                    table.insert(key.as_slice(), record.as_slice())?;
                }
                done += 1;
            }
        }
        txn.commit()?;
        let percent = done * 100 / all;
        if percent >= told + 10 || done == all {
            told = percent;
            tracing::info!(from, to = FORMAT, percent, "converting the store");
        }
    }
    new.close()?;
    Ok(())
}
