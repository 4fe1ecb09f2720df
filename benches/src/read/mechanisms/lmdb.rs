//! LMDB by `heed`: every process maps the file and reads in transactions of its own, never waiting for the writer.
//!
//! Read transactions belong to threads, as by default: then beginning one takes no lock, the reader's slot stays with the
//! thread. Writes are not synced, as kvd's `behind` writes are not.

use std::path::Path;

use heed::types::{Bytes, Str};
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithTls};

use super::{Key, Source};
use crate::BenchError;
use crate::read::client::ReadSpec;

/// Gets of a transaction that is held.
pub(super) const HELD_GETS: usize = 64;

pub(crate) type Items = Database<'static, Str, Bytes>;

pub(crate) fn version() -> String {
    let version = heed::lmdb_version();
    format!("LMDB {}.{}.{}, by heed", version.major, version.minor, version.patch)
}

pub(super) struct Lmdb {
    env: &'static Env,
    items: Items,
    gets: usize,
    held: Option<RoTxn<'static, WithTls>>,
    left: usize,
}

/// Opens the directory as every process does, for as long as the process lives: what is read from it borrows from it.
/// There is room for this many bytes of items, four times over.
#[allow(unsafe_code, reason = "heed marks opening so, because a file that others change breaks the map")]
fn open_env(dir: &Path, bytes: usize) -> heed::Result<&'static Env> {
    let mut options = EnvOpenOptions::new();
    options.map_size((4 * bytes).next_multiple_of(1 << 20)).max_readers(126);
    // SAFETY: without a sync after each commit a power loss may break the file, which is temporary.
    unsafe { options.flags(EnvFlags::NO_SYNC) };
    // SAFETY: only this benchmark's processes touch the file, all of them through LMDB with its lock file.
    let env = unsafe { options.open(dir) }?;
    Ok(Box::leak(Box::new(env)))
}

/// Opens the directory with its database, which the first one makes.
pub(crate) fn open(dir: &Path, bytes: usize) -> heed::Result<(&'static Env, Items)> {
    let env = open_env(dir, bytes)?;
    let opened = env.open_databases_and_commit(env.read_txn()?, |dbo, txn| {
        dbo.open_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    });
    let items: Option<Items> = opened?.unwrap_commit();
    if let Some(items) = items {
        return Ok((env, items));
    }
    let made = env.create_databases_and_commit(env.write_txn()?, |dbo, txn| {
        dbo.create_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    });
    Ok((env, made?.unwrap_commit()))
}

fn item_bytes(spec: &ReadSpec) -> usize {
    spec.keys as usize * (spec.shape.value_bytes as usize + 256)
}

/// Puts all items, in order.
pub(super) fn fill(spec: &ReadSpec) -> Result<(), BenchError> {
    let fill = || {
        let (env, items) = open(&spec.place, item_bytes(spec))?;
        let mut txn = env.write_txn()?;
        for (key, value) in spec.items() {
            items.put_with_flags(&mut txn, PutFlags::APPEND, &key, &value)?;
        }
        txn.commit()
    };
    fill().map_err(answered)
}

impl Lmdb {
    pub(super) fn open(spec: &ReadSpec, gets: usize) -> Result<Lmdb, BenchError> {
        let (env, items) = open(&spec.place, item_bytes(spec)).map_err(answered)?;
        Ok(Lmdb { env, items, gets, held: None, left: 0 })
    }

    #[inline]
    fn read<T>(&mut self, key: &str, see: impl FnOnce(&[u8]) -> T) -> heed::Result<Option<T>> {
        if self.gets == 1 {
            let txn = self.env.read_txn()?;
            return Ok(self.items.get(&txn, key)?.map(see));
        }
        if self.left == 0 {
            self.held = None;
            self.held = Some(self.env.read_txn()?);
            self.left = self.gets;
        }
        self.left -= 1;
        let txn = self.held.as_ref().expect("begun above when none is left");
        Ok(self.items.get(txn, key)?.map(see))
    }
}

impl Source for Lmdb {
    #[inline]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        self.read(key.text, <[u8]>::to_vec).map_err(answered)
    }

    #[inline]
    fn get_into(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, BenchError> {
        value.clear();
        let found = self.read(key.text, |found| value.extend_from_slice(found));
        found.map(|found| found.is_some()).map_err(answered)
    }

    fn put(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), BenchError> {
        let put = || {
            let mut txn = self.env.write_txn()?;
            self.items.put(&mut txn, key.text, value)?;
            txn.commit()
        };
        put().map_err(answered)
    }
}

#[cold]
pub(crate) fn answered(error: heed::Error) -> BenchError {
    BenchError::Answer { server: "LMDB", what: error.to_string() }
}
