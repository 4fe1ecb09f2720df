//! SQLite in WAL mode by `rusqlite`, with the SQLite that comes with it: one writer at a time, readers never wait for it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use super::{About, Failure, Inside, Key, Mechanism, See, Store, Why, Work, Worker};
use crate::BenchError;

/// How long it waits for the write lock before it says that the database is busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const GET: &str = "SELECT value FROM items WHERE key = ?1";
const PUT: &str = "INSERT OR REPLACE INTO items (key, value) VALUES (?1, ?2)";

/// The mechanism.
#[derive(Debug)]
pub(in crate::locking) struct Sqlite;

impl Mechanism for Sqlite {
    fn about(&self) -> About {
        About {
            name: "sqlite wal",
            settings: "journal_mode=WAL, synchronous=OFF (survives a killed process, not a power loss), cache 64 MiB a process; \
         transactions BEGIN IMMEDIATE, busy_timeout 5 s (polls)",
        }
    }

    fn version(&self) -> Result<String, String> {
        Ok(format!("SQLite {}, by rusqlite", rusqlite::version()))
    }

    fn create(&self, store: Store<'_>) -> Result<(), BenchError> {
        let made = || {
            let connection = connect(store.place)?;
            connection
                .execute_batch("CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        };
        made().map_err(answered)
    }

    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        Ok(Box::new(Opened(connect(store.place).map_err(answered)?)))
    }
}

fn connect(dir: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(dir.join("items.sqlite"))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    Ok(connection)
}

struct Opened(Connection);

impl Worker for Opened {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        get(&self.0, key, value)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        put(&self.0, key, value)
    }

    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        let begun = self.0.transaction_with_behavior(TransactionBehavior::Immediate);
        let mut transaction = Transaction(begun.map_err(told)?);
        work(&mut transaction)?;
        transaction.0.commit().map_err(told)
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        let mut all = self.0.prepare_cached("SELECT key, value FROM items").map_err(told)?;
        let mut rows = all.query([]).map_err(told)?;
        while let Some(row) = rows.next().map_err(told)? {
            let key = row.get_ref(0).map_err(told)?.as_bytes().map_err(|error| told(error.into()))?;
            let value = row.get_ref(1).map_err(told)?.as_bytes().map_err(|error| told(error.into()))?;
            see(key, value)?;
        }
        Ok(())
    }
}

struct Transaction<'a>(rusqlite::Transaction<'a>);

impl Inside for Transaction<'_> {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        get(&self.0, key, value)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        put(&self.0, key, value)
    }
}

fn get(connection: &Connection, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
    value.clear();
    let mut get = connection.prepare_cached(GET).map_err(told)?;
    let copy = |row: &rusqlite::Row<'_>| {
        value.extend_from_slice(row.get_ref(0)?.as_blob()?);
        Ok(())
    };
    Ok(get.query_row([key.text], copy).optional().map_err(told)?.is_some())
}

fn put(connection: &Connection, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
    let mut put = connection.prepare_cached(PUT).map_err(told)?;
    put.execute(params![key.text, value]).map(drop).map_err(told)
}

fn told(error: rusqlite::Error) -> Failure {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::Again(Why::Busy),
        _ => Failure::Broken(answered(error)),
    }
}

fn answered(error: rusqlite::Error) -> BenchError {
    BenchError::Answer { server: "SQLite", what: error.to_string() }
}
