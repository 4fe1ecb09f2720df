//! Caches of an application's own types: what both clients share of them.

use crate::codec::{Codec, SchemaVersion};
#[cfg(feature = "lz4")]
use crate::limits::COMPRESS_FROM_DEFAULT;

/// A cache whose values are of one type, encoded with a schema version. Made by `typed` or `typed_bytes` of a cache of either
/// client; its methods are those of that cache.
///
/// Stored bytes of another schema version, or that do not decode, count as a miss.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// use std::time::Duration;
/// use kv_client::SchemaVersion;
/// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// struct Product { name: String, cents: u32 }
///
/// let products = client.cache("product").typed::<Product>(SchemaVersion(3)).compressed();
/// let load = |_: &_| Ok::<_, std::io::Error>(Product { name: "rocket".into(), cents: 999 });
/// let product = products.get_or_load("42", Duration::from_secs(300), load)?;
/// assert_eq!(products.get("42")?, Some(product));
///
/// let newer = client.cache("product").typed::<Product>(SchemaVersion(4));
/// assert_eq!(newer.get("42")?, None);
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Typed<C, T> {
    pub(crate) cache: C,
    pub(crate) codec: Codec<T>,
}

impl<C: Clone, T> Clone for Typed<C, T> {
    fn clone(&self) -> Typed<C, T> {
        Typed { cache: self.cache.clone(), codec: self.codec }
    }
}

impl<C, T: serde::Serialize + serde::de::DeserializeOwned> Typed<C, T> {
    pub(crate) fn postcard(cache: C, schema: SchemaVersion) -> Typed<C, T> {
        Typed { cache, codec: Codec::postcard(schema) }
    }

    /// In JSON instead of postcard: for values that other languages or people read, and for types with `#[serde(untagged)]`
    /// or `flatten`, which postcard cannot decode.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let names = client.cache("name").typed::<String>(kv_client::SchemaVersion(1)).json();
    /// names.put("42", &"rocket".to_owned(), None)?;
    /// assert!(client.cache("name").get("42")?.expect("just put").ends_with(b"\"rocket\""));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[cfg(feature = "json")]
    #[must_use]
    pub fn json(self) -> Typed<C, T> {
        Typed { codec: self.codec.json(), ..self }
    }
}

impl<C> Typed<C, Vec<u8>> {
    pub(crate) fn raw(cache: C, schema: SchemaVersion) -> Typed<C, Vec<u8>> {
        Typed { cache, codec: Codec::raw(schema) }
    }
}

impl<C, T> Typed<C, T> {
    /// The cache behind it, of bytes: for `delete`, `expire`, `clear`, `scan` and whatever else needs no value.
    #[must_use]
    pub fn bytes(&self) -> &C {
        &self.cache
    }

    /// Compresses (LZ4) values whose encoding is longer than 1 KiB, which is where Rails begins, too.
    #[cfg(feature = "lz4")]
    #[must_use]
    pub fn compressed(self) -> Typed<C, T> {
        self.compressed_from(COMPRESS_FROM_DEFAULT)
    }

    /// Compresses (LZ4) values whose encoding is at least this long, in bytes, where that makes them shorter.
    #[cfg(feature = "lz4")]
    #[must_use]
    pub fn compressed_from(self, bytes: usize) -> Typed<C, T> {
        Typed { codec: self.codec.compress_from(bytes), ..self }
    }
}

/// A value of a typed cache with all that is known about it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TypedEntry<T> {
    /// The value; `None`: the cache knows that there is none.
    pub value: Option<T>,
    /// Fresh, stale, or known not to be.
    pub freshness: crate::answers::Freshness,
    /// All else; its `value` is empty.
    pub entry: crate::answers::Entry,
}
