//! `hashbrown::HashMap<String, Vec<u8>>` with its own default hasher (foldhash): faster, and not proof against keys that
//! somebody chose to collide.

use hashbrown::HashMap;

use super::{Key, Source};
use crate::BenchError;
use crate::read::client::ReadSpec;

pub(super) fn filled(spec: &ReadSpec) -> HashMap<String, Vec<u8>> {
    spec.items().collect()
}

impl Source for HashMap<String, Vec<u8>> {
    #[inline]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        Ok(HashMap::get(self, key.text).cloned())
    }
}
