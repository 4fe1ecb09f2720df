//! Several checks and writes that happen together or not at all.
//!
//! Built by applications, sent by either client: only `commit` differs between them.

use std::borrow::Borrow;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::wire::{Durability, Expect};

use crate::options::{PutOptions, Ttl};

/// Checks and writes in any caches, all or nothing, in one round trip; at most 1,024 of each, and 4 MiB of keys and
/// values. Made by `batch()` of either client; nothing happens before `commit`.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// use std::time::Duration;
/// use kv_client::{PutOptions, Ttl};
/// let first = client.cache("price").put("42", "9.99", None)?;
/// let committed = client
///     .batch()
///     .expect_version("price", "42", first)
///     .expect_absent("price", "43")
///     .put("order", "1001", "42", None)
///     .put_with("order", "1002", "42", &PutOptions::new().tag("sku:42"))
///     .expire("price", "42", Ttl::After(Duration::from_secs(60)))
///     .delete("price", "41")
///     .durable()
///     .commit()?;
/// assert!(committed.version > first);
/// assert_eq!(committed.changed, 3); // there was no price 41 to delete
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a batch does nothing until `commit`"]
pub struct Batch<C> {
    pub(crate) client: C,
    pub(crate) data: BatchData,
}

/// What a [`Batch`] has collected.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchData {
    pub(crate) checks: Vec<OwnedCheck>,
    pub(crate) writes: Vec<OwnedWrite>,
    pub(crate) durability: Option<Durability>,
}

#[derive(Debug, Clone)]
pub(crate) struct OwnedCheck {
    pub(crate) cache: Box<str>,
    pub(crate) key: Vec<u8>,
    pub(crate) expect: Expect,
}

#[derive(Debug, Clone)]
pub(crate) enum OwnedWrite {
    Put { cache: Box<str>, key: Vec<u8>, value: Vec<u8>, options: PutOptions },
    Expire { cache: Box<str>, key: Vec<u8>, ttl: Ttl },
    Delete { cache: Box<str>, key: Vec<u8> },
}

impl OwnedWrite {
    pub(crate) fn place(&self) -> (&str, &[u8]) {
        match self {
            OwnedWrite::Put { cache, key, .. }
            | OwnedWrite::Expire { cache, key, .. }
            | OwnedWrite::Delete { cache, key } => (cache, key),
        }
    }
}

impl BatchData {
    pub(crate) fn put(&mut self, cache: &str, key: &[u8], value: &[u8], options: PutOptions) {
        self.writes.push(OwnedWrite::Put {
            cache: cache.into(),
            key: key.into(),
            value: value.into(),
            options,
        });
    }

    pub(crate) fn puts<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        cache: &str,
        items: impl IntoIterator<Item = (K, V)>,
        ttl: Option<Duration>,
    ) -> BatchData {
        let mut batch = BatchData::default();
        for (key, value) in items {
            let options = PutOptions { ttl, ..PutOptions::default() };
            batch.put(cache, key.as_ref(), value.as_ref(), options);
        }
        batch
    }

    pub(crate) fn deletes<K: AsRef<[u8]>>(cache: &str, keys: &[K]) -> BatchData {
        let mut batch = BatchData::default();
        for key in keys {
            batch.delete(cache, key.as_ref());
        }
        batch
    }

    pub(crate) fn delete(&mut self, cache: &str, key: &[u8]) {
        self.writes.push(OwnedWrite::Delete { cache: cache.into(), key: key.into() });
    }
}

impl<C> Batch<C> {
    pub(crate) fn new(client: C) -> Batch<C> {
        Batch { client, data: BatchData::default() }
    }

    /// Puts an item with this life, or the cache's default.
    pub fn put(
        self,
        cache: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
    ) -> Self {
        let options = PutOptions { ttl: ttl.into(), ..PutOptions::default() };
        self.put_with(cache, key, value, &options)
    }

    /// Puts an item. A condition in `options` counts as a check.
    pub fn put_with(
        mut self,
        cache: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: impl Borrow<PutOptions>,
    ) -> Self {
        self.data.put(cache, key.as_ref(), value.as_ref(), options.borrow().clone());
        self
    }

    /// Deletes an item; a missing one is skipped.
    pub fn delete(mut self, cache: &str, key: impl AsRef<[u8]>) -> Self {
        self.data.delete(cache, key.as_ref());
        self
    }

    /// Changes the life of an item; a missing one is skipped.
    pub fn expire(mut self, cache: &str, key: impl AsRef<[u8]>, ttl: Ttl) -> Self {
        self.data.writes.push(OwnedWrite::Expire { cache: cache.into(), key: key.as_ref().into(), ttl });
        self
    }

    /// Only if the item has exactly this version.
    pub fn expect_version(self, cache: &str, key: impl AsRef<[u8]>, version: Version) -> Self {
        self.expect(cache, key.as_ref(), Expect::Version(version))
    }

    /// Only if there is no item; a stale one counts as present.
    pub fn expect_absent(self, cache: &str, key: impl AsRef<[u8]>) -> Self {
        self.expect(cache, key.as_ref(), Expect::Absent)
    }

    /// Acknowledged only when it survives power loss.
    pub fn durable(mut self) -> Self {
        self.data.durability = Some(Durability::Durable);
        self
    }

    fn expect(mut self, cache: &str, key: &[u8], expect: Expect) -> Self {
        self.data.checks.push(OwnedCheck { cache: cache.into(), key: key.into(), expect });
        self
    }
}
