//! kvd in its three locking modes, by the blocking client: plain reads through shared memory, the rest over the socket.

use std::time::Duration;

use kv_client::Error;
use kv_client::blocking::{Cache, Client};

use super::{Failure, Inside, Key, Mechanism, See, Store, Why, Work, Worker};
use crate::BenchError;
use crate::protocol::CACHE;
use crate::read::kvd::{answered, attached};

/// How long a call may take: longer than anybody is stopped in the lab.
const OP_TIMEOUT: Duration = Duration::from_secs(20);

pub(in crate::locking) static DATABASE: Kvd = Kvd {
    name: "kvd database",
    locking: "database",
    settings: "durability behind (acknowledged from memory, on disk 1 s later), 256 MiB; one lock for writing \
               transactions, FIFO; a silent holder loses it after 50 ms",
};
pub(in crate::locking) static KEY: Kvd = Kvd {
    name: "kvd key",
    locking: "key",
    settings: "as kvd database; locks on keys, the youngest goes at a deadlock and keeps its age",
};
pub(in crate::locking) static OPTIMISTIC: Kvd = Kvd {
    name: "kvd optimistic",
    locking: "optimistic",
    settings: "as kvd database; no locks, reads are checked at commit, after 5 conflicts under the database lock",
};

/// One of the modes.
#[derive(Debug)]
pub(in crate::locking) struct Kvd {
    name: &'static str,
    locking: &'static str,
    settings: &'static str,
}

impl Mechanism for Kvd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn settings(&self) -> &'static str {
        self.settings
    }

    fn version(&self) -> Result<String, String> {
        Ok("the daemon of this work tree".to_owned())
    }

    fn locking(&self) -> Option<&'static str> {
        Some(self.locking)
    }

    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        let (client, _) = attached(store.place, CACHE, &store.shape.key_of(0))?;
        let client = client.with_op_timeout(OP_TIMEOUT);
        let cache = client.cache(CACHE);
        Ok(Box::new(Opened { client, cache }))
    }
}

struct Opened {
    client: Client,
    cache: Cache,
}

impl Worker for Opened {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        self.cache.get_into(key.text, value).map_err(told)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.cache.put(key.text, value, None).map(drop).map_err(told)
    }

    /// A batch that insists on the versions that were read.
    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        let mut reads = Reads { cache: &self.cache, batch: Some(self.client.batch()) };
        work(&mut reads)?;
        let batch = reads.batch.expect("it is put back by whoever takes it");
        batch.commit().map(drop).map_err(told)
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        for page in self.cache.scan("").values() {
            for (key, entry) in page.map_err(told)?.items {
                see(&key, &entry.value)?;
            }
        }
        Ok(())
    }
}

/// Reads that are checked at the end.
struct Reads<'a> {
    cache: &'a Cache,
    batch: Option<kv_client::Batch<Client>>,
}

impl Reads<'_> {
    fn grow(&mut self, grow: impl FnOnce(kv_client::Batch<Client>) -> kv_client::Batch<Client>) {
        self.batch = self.batch.take().map(grow);
    }
}

impl Inside for Reads<'_> {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        let found = self.cache.get_entry(key.text).map_err(told)?;
        self.grow(|batch| match &found {
            Some(entry) => batch.expect_version(CACHE, key.text, entry.version),
            None => batch.expect_absent(CACHE, key.text),
        });
        value.clear();
        value.extend_from_slice(found.as_ref().map_or(&[], |entry| &entry.value));
        Ok(found.is_some())
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.grow(|batch| batch.put(CACHE, key.text, value, None));
        Ok(())
    }
}

fn why(error: &Error) -> Option<Why> {
    match error.kind() {
        kv_client::ErrorKind::Conflict => Some(Why::Conflict),
        kv_client::ErrorKind::Deadlock => Some(Why::Deadlock),
        kv_client::ErrorKind::LeaseLost => Some(Why::Lease),
        _ => None,
    }
}

fn told(error: Error) -> Failure {
    match why(&error) {
        Some(why) => Failure::Again(why),
        None => Failure::Broken(answered(error)),
    }
}
