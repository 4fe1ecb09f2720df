//! Berkeley DB 5.3: CDS, one lock for the database, and TDS, locks on pages with a deadlock detector.
//!
//! Built in with the feature `bdb` ([`crate::bdb`] calls the library); without it, says how to get it.

use super::{About, Mechanism, Store, Worker};
use crate::BenchError;

pub(in crate::locking) static CDS: Bdb = Bdb {
    about: About {
        name: "bdb cds",
        settings: "written behind by the memory pool, no log; cache 3 times the items; one lock for the database, which a \
               transaction holds as a write cursor (cannot be rolled back); waits without limit; nobody runs recovery while others work",
    },
    is_transactional: false,
};
pub(in crate::locking) static TDS: Bdb = Bdb {
    about: About {
        name: "bdb tds",
        settings: "DB_TXN_NOSYNC (log in shared memory, weaker than kvd's behind); cache 3 times the items; locks on pages, \
               DB_RMW, detector DB_LOCK_YOUNGEST at every wait; waits without limit; nobody runs recovery while others work",
    },
    is_transactional: true,
};

/// One of the products.
#[derive(Debug)]
pub(in crate::locking) struct Bdb {
    about: About,
    is_transactional: bool,
}

impl Mechanism for Bdb {
    fn about(&self) -> About {
        self.about
    }

    #[cfg(not(feature = "bdb"))]
    fn version(&self) -> Result<String, String> {
        Err(crate::read::BDB_ABSENT.to_owned())
    }

    #[cfg(feature = "bdb")]
    fn version(&self) -> Result<String, String> {
        Ok(crate::bdb::version())
    }

    #[cfg(not(feature = "bdb"))]
    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        let (transactional, recover) = (self.is_transactional, store.recover);
        let why = crate::read::BDB_ABSENT;
        let what = format!("that it cannot open (transactional: {transactional}, recover: {recover}): {why}");
        Err(BenchError::Answer { server: "Berkeley DB", what })
    }

    #[cfg(feature = "bdb")]
    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        use crate::bdb::{Opening, Product, cache_mib};
        let product = if self.is_transactional { Product::Transactional } else { Product::Concurrent };
        let value_bytes = store.shape.value_bytes;
        let cache_mib = cache_mib(store.keys, value_bytes);
        let opening = Opening { product, cache_mib, youngest: true, nosync: true, recover: store.recover };
        let opened = crate::bdb::Bdb::open(store.place, opening, value_bytes as usize)?;
        Ok(Box::new(opened::Opened(opened)))
    }
}

#[cfg(feature = "bdb")]
mod opened {
    use crate::bdb::{Bdb, Refusal};
    use crate::locking::mechanisms::{Failure, Inside, Key, See, Why, Work, Worker};

    pub(super) struct Opened(pub(super) Bdb);

    impl Inside for Bdb {
        fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
            Ok(self.get(key.text, value)?)
        }

        fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
            Ok(self.put(key.text, value)?)
        }
    }

    impl Worker for Opened {
        fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
            Inside::read(&mut self.0, key, value)
        }

        fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
            Inside::write(&mut self.0, key, value)
        }

        fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
            self.0.begin()?;
            let worked = work(&mut self.0);
            let ended = self.0.end(worked.is_ok());
            worked?;
            Ok(ended?)
        }

        fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
            self.0.scan(|key, value| see(key, value).map_err(Failure::Broken))
        }
    }

    impl From<Refusal> for Failure {
        fn from(refusal: Refusal) -> Failure {
            match refusal {
                Refusal::Deadlock => Failure::Again(Why::Deadlock),
                Refusal::Other(_) => Failure::Broken(refusal.into()),
            }
        }
    }
}
