//! `quick_cache::sync::Cache<String, Vec<u8>>` with room for all and its defaults; a get clones the value.

use quick_cache::sync::Cache;

use super::{Key, Source};
use crate::BenchError;
use crate::read::client::ReadSpec;

pub(super) fn filled(spec: &ReadSpec) -> Cache<String, Vec<u8>> {
    let cache = Cache::new(2 * spec.keys as usize);
    for (key, value) in spec.items() {
        cache.insert(key, value);
    }
    cache
}

impl Source for Cache<String, Vec<u8>> {
    #[inline]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        Ok(Cache::get(self, key.text))
    }
}
