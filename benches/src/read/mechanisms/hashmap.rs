//! `std::collections::HashMap<String, Vec<u8>>` with its own hasher (SipHash-1-3): what a process could keep for itself.

use std::collections::HashMap;

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

    #[inline]
    fn get_into(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, BenchError> {
        value.clear();
        let found = HashMap::get(self, key.text);
        Ok(found.inspect(|found| value.extend_from_slice(found)).is_some())
    }
}
