//! Loading many keys at once: what a loader sees of those that are missing, and what it says of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;

use super::course::{Loaded, conclude};
use super::entry::LoadOptions;
use super::fill::Fill;
use crate::codec::Codec;
use crate::error::Result;
use crate::lock::Lock;

/// The keys that are missing, for a loader that gets them all at once (many misses, one query). Cheap to clone.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// let products = client.cache("product").typed::<String>(kv_client::SchemaVersion(1));
/// products.put("1", &"castle".to_owned(), None)?;
/// let found = products.get_or_load_many(&["1", "2", "3"], None, |missing| {
///     assert_eq!(missing.keys(), [b"2", b"3"]); // SELECT … WHERE id IN (2, 3)
///     missing.found("2", "rocket".to_owned()).add_tag("sku:2");
///     Ok::<_, std::io::Error>(())
/// })?;
/// assert_eq!(found, [Some("castle".to_owned()), Some("rocket".to_owned()), None]);
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Missing<T> {
    keys: Arc<[Vec<u8>]>,
    codec: Codec<T>,
    found: Arc<Lock<HashMap<Vec<u8>, (T, Fill<T>)>>>,
}

impl<T> Clone for Missing<T> {
    fn clone(&self) -> Missing<T> {
        Missing { keys: Arc::clone(&self.keys), codec: self.codec, found: Arc::clone(&self.found) }
    }
}

impl<T> Missing<T> {
    pub(crate) fn new(keys: Vec<Vec<u8>>, codec: Codec<T>) -> Missing<T> {
        Missing { keys: keys.into(), codec, found: Arc::default() }
    }

    /// They, in the order in which they were asked for.
    #[must_use]
    pub fn keys(&self) -> &[Vec<u8>] {
        &self.keys
    }

    /// The value of one of them. What is answered says how it is stored; one that was not asked for is not stored.
    pub fn found(&self, key: impl AsRef<[u8]>, value: T) -> Fill<T> {
        let fill = Fill::new(self.codec, None);
        self.found.lock().insert(key.as_ref().to_vec(), (value, fill.clone()));
        fill
    }

    /// What was found of each key, encoded; `None`: it was not, and that is not remembered either.
    pub(crate) fn conclude(
        &self,
        options: &LoadOptions,
        took: Duration,
    ) -> Result<Vec<(Option<T>, Option<Loaded>)>> {
        let mut found = std::mem::take(&mut *self.found.lock());
        let remembers = options.negative_ttl.is_some() && self.codec.knows_negatives();
        self.keys
            .iter()
            .map(|key| match found.remove(key) {
                Some((value, fill)) => {
                    let loaded = conclude(Some(&value), &fill, self.codec, options, true, took)?;
                    Ok((Some(value), Some(loaded)))
                }
                None if remembers => {
                    let fill = Fill::new(self.codec, None);
                    Ok((None, Some(conclude(None, &fill, self.codec, options, true, took)?)))
                }
                None => Ok((None, None)),
            })
            .collect()
    }
}

/// A `get_or_load_many` under way: what is known of each key asked for. Does no I/O.
pub(crate) struct Many<T> {
    /// The distinct keys, in the order in which they were first asked for.
    pub(crate) keys: Vec<Vec<u8>>,
    /// Where in `keys` each asked one stands.
    places: Vec<usize>,
    /// What came of each; `None`: nothing yet. A value is handed out as often as its key was asked for.
    values: Vec<Option<Option<T>>>,
    /// Versions that are there and will not do.
    pub(crate) except: Vec<Option<Version>>,
}

impl<T> Many<T> {
    pub(crate) fn new<K: AsRef<[u8]>>(asked: &[K]) -> Many<T> {
        let mut at = HashMap::new();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let places = asked
            .iter()
            .map(|key| {
                *at.entry(key.as_ref()).or_insert_with(|| {
                    keys.push(key.as_ref().to_vec());
                    keys.len() - 1
                })
            })
            .collect();
        let values = keys.iter().map(|_| None).collect();
        let except = vec![None; keys.len()];
        Many { keys, places, values, except }
    }

    pub(crate) fn set(&mut self, at: usize, value: Option<T>) {
        self.values[at] = Some(value);
    }

    /// Those of which nothing is known yet.
    pub(crate) fn open(&self) -> Vec<usize> {
        (0..self.keys.len()).filter(|&at| self.values[at].is_none()).collect()
    }

    /// Everything, in the order asked for. A key that was asked for twice is decoded twice by `again`.
    pub(crate) fn into_values(mut self, again: impl Fn(&T) -> Option<T>) -> Vec<Option<T>> {
        let mut left = vec![0_usize; self.keys.len()];
        self.places.iter().for_each(|&at| left[at] += 1);
        self.places
            .iter()
            .map(|&at| {
                left[at] -= 1;
                match &mut self.values[at] {
                    Some(value) if left[at] == 0 => value.take(),
                    Some(value) => value.as_ref().and_then(&again),
                    None => None,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_asked_for_twice_are_loaded_once_and_answered_twice() {
        let mut many = Many::new(&["b", "a", "b"]);
        assert_eq!(many.keys, [b"b", b"a"]);
        many.set(0, Some(7));
        assert_eq!(many.open(), [1]);
        many.set(1, None);
        assert_eq!(many.into_values(|value| Some(*value)), [Some(7), None, Some(7)]);
    }
}
