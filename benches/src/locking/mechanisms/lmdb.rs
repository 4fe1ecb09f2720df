//! LMDB by `heed`: one writer at a time behind a robust mutex, readers see the state of their beginning and never wait.

use heed::{Env, RwTxn};

use super::{About, Failure, Inside, Key, Mechanism, See, Store, Work, Worker};
use crate::BenchError;
use crate::read::lmdb::{Items, answered, open, version};

/// The file may grow to four times this: pages that a reader may still see are not used again, and the process that
/// reads may wait for its processor meanwhile.
const ROOM_BYTES_MIN: usize = 512 << 20;

/// The mechanism.
#[derive(Debug)]
pub(in crate::locking) struct Lmdb;

impl Mechanism for Lmdb {
    fn about(&self) -> About {
        About {
            name: "lmdb",
            settings: "MDB_NOSYNC (survives a killed process, not a power loss), page cache of the system; one writer at a time, waits \
         without limit",
        }
    }

    fn version(&self) -> Result<String, String> {
        Ok(version())
    }

    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        let (env, items) = open(store.place, store.item_bytes().max(ROOM_BYTES_MIN)).map_err(answered)?;
        Ok(Box::new(Opened { env, items }))
    }
}

struct Opened {
    env: &'static Env,
    items: Items,
}

impl Worker for Opened {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        value.clear();
        let txn = self.env.read_txn().map_err(told)?;
        let found = self.items.get(&txn, key.text).map_err(told)?;
        value.extend_from_slice(found.unwrap_or_default());
        Ok(found.is_some())
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.transact(&mut |inside| inside.write(key, value))
    }

    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        let txn = self.env.write_txn().map_err(told)?;
        let mut inside = Transaction { txn, items: self.items };
        work(&mut inside)?;
        inside.txn.commit().map_err(told)
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        let txn = self.env.read_txn().map_err(told)?;
        for item in self.items.iter(&txn).map_err(told)? {
            let (key, value) = item.map_err(told)?;
            see(key.as_bytes(), value)?;
        }
        Ok(())
    }
}

struct Transaction {
    txn: RwTxn<'static>,
    items: Items,
}

impl Inside for Transaction {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        value.clear();
        let found = self.items.get(&self.txn, key.text).map_err(told)?;
        value.extend_from_slice(found.unwrap_or_default());
        Ok(found.is_some())
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.items.put(&mut self.txn, key.text, value).map_err(told)
    }
}

fn told(error: heed::Error) -> Failure {
    Failure::Broken(answered(error))
}
