//! kvd through shared memory, by the blocking client, as an application would.

use std::path::Path;
use std::time::Duration;

use kv_client::blocking::{Cache, Client};

use super::{Key, Source};
use crate::BenchError;
use crate::client::failed;
use crate::clock::{now_ns, sleep};
use crate::read::client::ReadSpec;

/// How long attaching may take.
const ATTACH_TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Kvd {
    client: Client,
    cache: Cache,
    /// What had been asked when reading began.
    asked_before: u64,
}

/// Reads the key until the cache's segment is mapped: nothing that goes over the socket is then measured as shared
/// memory.
pub(crate) fn attached(socket: &Path, cache: &str, key: &str) -> Result<(Client, Cache), BenchError> {
    let client = Client::builder().socket(socket).build().map_err(answered)?;
    let cache = client.cache(cache);
    let deadline_ns = now_ns() + ATTACH_TIME_MAX.as_nanos() as u64;
    loop {
        cache.get(key).map_err(answered)?;
        let stats = client.stats();
        let path = stats.caches.iter().find(|stats| stats.name == cache.name()).map(|stats| &stats.path);
        if path.is_some_and(kv_client::ReadPath::is_shared) {
            return Ok((client, cache));
        }
        if now_ns() > deadline_ns {
            return Err(failed(format!("does not come to read shared memory: {path:?}")));
        }
        sleep(Duration::from_millis(5));
    }
}

impl Kvd {
    pub(super) fn open(spec: &ReadSpec) -> Result<Kvd, BenchError> {
        let (client, cache) = attached(&spec.place, &spec.cache, &spec.shape.key_of(0))?;
        let mut opened = Kvd { client, cache, asked_before: 0 };
        opened.asked_before = opened.asked_so_far();
        Ok(opened)
    }

    fn asked_so_far(&self) -> u64 {
        let stats = self.client.stats();
        let all = stats.caches.iter().filter(|stats| stats.name == self.cache.name());
        all.map(|stats| {
            let fallbacks = &stats.fallbacks;
            fallbacks.not_attached
                + fallbacks.not_resident
                + fallbacks.forgotten
                + fallbacks.lapped
                + fallbacks.not_live
        })
        .sum()
    }
}

impl Source for Kvd {
    #[inline]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        self.cache.get(key.text).map_err(answered)
    }

    #[inline]
    fn get_into(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, BenchError> {
        self.cache.get_into(key.text, value).map_err(answered)
    }

    fn get_many(&mut self, keys: &[Key<'_>]) -> Result<Vec<Option<Vec<u8>>>, BenchError> {
        let keys: Vec<&str> = keys.iter().map(|key| key.text).collect();
        self.cache.get_many(&keys).map_err(answered)
    }

    fn put(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), BenchError> {
        self.cache.put(key.text, value, None).map(drop).map_err(answered)
    }

    fn asked(&self) -> u64 {
        self.asked_so_far() - self.asked_before
    }
}

#[cold]
pub(crate) fn answered(error: kv_client::Error) -> BenchError {
    BenchError::Answer { server: "kvd", what: error.to_string() }
}
