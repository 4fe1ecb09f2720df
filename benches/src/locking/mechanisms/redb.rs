//! redb 4.5 in its two modes for several processes.
//!
//! `SingleWriter` lets one process have the file open for writing. Here every process writes now and then, as workers of
//! a site do: so each opens it for its write and closes it again. `MultiWriter` keeps it open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, ReadOnlyDatabase, ReadableDatabase, ReadableTable,
    Table, TableDefinition,
};

use super::{About, Failure, Inside, Key, Mechanism, See, Store, Work, Worker};
use crate::BenchError;
use crate::clock::sleep;

const ITEMS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("items");
const CACHE_BYTES: usize = 64 << 20;
/// Somebody else has the file open for writing: how long until it is tried again. There is nothing to wait on.
const POLL_INTERVAL: Duration = Duration::from_micros(500);

pub(in crate::locking) static SINGLE_WRITER: Redb = Redb {
    about: About {
        name: "redb single",
        settings: "every commit synced twice (these modes refuse Durability::None); cache 64 MiB a process; \
               ConcurrencyMode::SingleWriter, opened for each write, tried again after 0.5 ms when another has it",
    },
    mode: ConcurrencyMode::SingleWriter,
};
pub(in crate::locking) static MULTI_WRITER: Redb = Redb {
    about: About {
        name: "redb multi",
        settings: "every commit synced twice (these modes refuse Durability::None); cache 64 MiB a process; \
               ConcurrencyMode::MultiWriter, one write transaction at a time, waits without limit",
    },
    mode: ConcurrencyMode::MultiWriter,
};

/// One of the modes.
#[derive(Debug)]
pub(in crate::locking) struct Redb {
    about: About,
    mode: ConcurrencyMode,
}

impl Mechanism for Redb {
    fn about(&self) -> About {
        self.about
    }

    fn version(&self) -> Result<String, String> {
        Ok("redb 4.5.0".to_owned())
    }

    fn create(&self, store: Store<'_>) -> Result<(), BenchError> {
        let database = builder(self.mode).create(path(store.place)).map_err(answered)?;
        let made = || -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            txn.open_table(ITEMS)?;
            Ok(txn.commit()?)
        };
        made().map_err(answered)
    }

    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        let path = path(store.place);
        if self.mode == ConcurrencyMode::MultiWriter {
            let database = builder(self.mode).open(&path).map_err(answered)?;
            return Ok(Box::new(Multi(database)));
        }
        let readable = loop {
            match builder(self.mode).open_read_only(&path) {
                // Whoever only reads refuses a file whose writer was killed, until another writer has had it open.
                Err(DatabaseError::RepairAborted) => drop(writable(&path)?),
                other => break other.map_err(answered)?,
            }
        };
        Ok(Box::new(Single { readable, path }))
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("items.redb")
}

fn builder(mode: ConcurrencyMode) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(mode);
    builder
}

struct Multi(Database);

struct Single {
    readable: ReadOnlyDatabase,
    path: PathBuf,
}

/// Opens the file for writing as soon as nobody else has it so.
fn writable(path: &Path) -> Result<Database, BenchError> {
    loop {
        match builder(ConcurrencyMode::SingleWriter).open(path) {
            Err(DatabaseError::DatabaseAlreadyOpen) => sleep(POLL_INTERVAL),
            other => return other.map_err(answered),
        }
    }
}

impl Worker for Multi {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        get(&self.0, key, value)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        transact(&self.0, &mut |inside| inside.write(key, value))
    }

    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        transact(&self.0, work)
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        scan(&self.0, see)
    }
}

impl Worker for Single {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        get(&self.readable, key, value)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        transact(&writable(&self.path)?, &mut |inside| inside.write(key, value))
    }

    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        transact(&writable(&self.path)?, work)
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        scan(&self.readable, see)
    }
}

fn get(database: &impl ReadableDatabase, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
    value.clear();
    let txn = database.begin_read().map_err(told)?;
    let items = txn.open_table(ITEMS).map_err(told)?;
    let found = items.get(key.text).map_err(told)?;
    if let Some(found) = &found {
        value.extend_from_slice(found.value());
    }
    Ok(found.is_some())
}

fn transact(database: &Database, work: Work<'_>) -> Result<(), Failure> {
    let txn = database.begin_write().map_err(told)?;
    {
        let mut items = txn.open_table(ITEMS).map_err(told)?;
        work(&mut items)?;
    }
    txn.commit().map_err(told)
}

fn scan(database: &impl ReadableDatabase, see: See<'_>) -> Result<(), Failure> {
    let txn = database.begin_read().map_err(told)?;
    let items = txn.open_table(ITEMS).map_err(told)?;
    for item in items.iter().map_err(told)? {
        let (key, value) = item.map_err(told)?;
        see(key.value().as_bytes(), value.value())?;
    }
    Ok(())
}

impl Inside for Table<'_, &'static str, &'static [u8]> {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        value.clear();
        let found = self.get(key.text).map_err(told)?;
        if let Some(found) = &found {
            value.extend_from_slice(found.value());
        }
        Ok(found.is_some())
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.insert(key.text, value).map(drop).map_err(told)
    }
}

fn told(error: impl Into<redb::Error>) -> Failure {
    Failure::Broken(answered(error))
}

fn answered(error: impl Into<redb::Error>) -> BenchError {
    BenchError::Answer { server: "redb", what: error.into().to_string() }
}
