//! kvd in its three locking modes, by the blocking client: plain reads through shared memory, the rest over the socket.

use std::time::Duration;

use kv_client::blocking::{Cache, Client, Transaction};
use kv_client::{Error, ErrorKind};

use super::{About, Failure, Inside, Key, Mechanism, See, SeeKey, Store, Why, Work, Worker};
use crate::BenchError;
use crate::protocol::CACHE;
use crate::read::kvd::{answered, attached};

/// How long a call may take: longer than anybody is stopped in the lab.
const OP_TIMEOUT: Duration = Duration::from_secs(20);

pub(in crate::locking) static DATABASE: Kvd = Kvd {
    about: About {
        name: "kvd database",
        settings: "durability behind (survives a killed process, on disk 100 ms later), 256 MiB; one lock for writing \
               transactions, FIFO; a silent holder loses it after 50 ms",
    },
    locking: "database",
};
pub(in crate::locking) static KEY: Kvd = Kvd {
    about: About {
        name: "kvd key",
        settings: "as kvd database; locks on keys, the youngest goes at a deadlock and keeps its age",
    },
    locking: "key",
};
pub(in crate::locking) static OPTIMISTIC: Kvd = Kvd {
    about: About {
        name: "kvd optimistic",
        settings: "as kvd database; no locks, reads are checked at commit, after 5 conflicts under the database lock",
    },
    locking: "optimistic",
};

/// One of the modes.
#[derive(Debug)]
pub(in crate::locking) struct Kvd {
    about: About,
    locking: &'static str,
}

impl Mechanism for Kvd {
    fn about(&self) -> About {
        self.about
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
        Ok(self.cache.get_into(key.text, value)?)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        Ok(self.cache.put(key.text, value, None).map(drop)?)
    }

    /// The library begins again by itself, so that its age, or the database lock after some conflicts, can help it.
    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        self.client.transact(|transaction| work(&mut Within(transaction)))
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        for page in self.cache.scan("").values() {
            for (key, entry) in page?.items {
                see(&key, &entry.value)?;
            }
        }
        Ok(())
    }
}

struct Within<'a>(&'a mut Transaction);

impl Inside for Within<'_> {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        value.clear();
        let found = self.0.get(CACHE, key.text)?;
        value.extend_from_slice(found.as_deref().unwrap_or_default());
        Ok(found.is_some())
    }

    fn read_all(&mut self, keys: &[Key<'_>], see: SeeKey<'_>) -> Result<(), Failure> {
        let texts: Vec<&str> = keys.iter().map(|key| key.text).collect();
        let found = self.0.get_many(CACHE, &texts)?;
        keys.iter().zip(&found).try_for_each(|(&key, value)| see(key, value.as_deref()))
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        Ok(self.0.put(CACHE, key.text, value, None)?)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error.kind() {
            ErrorKind::Conflict => Failure::Again(Why::Conflict),
            ErrorKind::Deadlock => Failure::Again(Why::Deadlock),
            ErrorKind::LeaseLost => Failure::Again(Why::Lease),
            _ => Failure::Broken(answered(error)),
        }
    }
}
