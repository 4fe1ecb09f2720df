//! Berkeley DB 5.3, read in two of its products; [`crate::bdb`] calls the library.
//!
//! Only built with the feature `bdb`. A commit's log is written, not synced, as kvd's `behind` is.

use super::{Key, Source};
use crate::BenchError;
use crate::bdb::{Opening, cache_mib};
pub(super) use crate::bdb::{Product, version};
use crate::read::client::ReadSpec;

#[derive(Debug)]
pub(super) struct Bdb(crate::bdb::Bdb);

/// Puts all items, in order.
pub(super) fn fill(spec: &ReadSpec, product: Product) -> Result<(), BenchError> {
    let mut store = Bdb::open(spec, product)?;
    for (key, value) in spec.items() {
        store.put(Key { text: &key, number: 0 }, &value)?;
    }
    Ok(())
}

impl Bdb {
    pub(super) fn open(spec: &ReadSpec, product: Product) -> Result<Bdb, BenchError> {
        let value_bytes = spec.shape.value_bytes;
        let cache_mib = cache_mib(spec.keys, value_bytes);
        let opening = Opening { product, cache_mib, youngest: false, nosync: false, recover: false };
        crate::bdb::Bdb::open(&spec.place, opening, value_bytes as usize).map(Bdb)
    }
}

impl Source for Bdb {
    #[inline]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        let mut value = Vec::new();
        Ok(self.0.get(key.text, &mut value)?.then_some(value))
    }

    fn put(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), BenchError> {
        Ok(self.0.put(key.text, value)?)
    }
}
