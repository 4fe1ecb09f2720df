//! Caches of an application's own types: what both clients share of them.

use std::sync::Arc;

use crate::codec::{Codec, SchemaVersion};
use crate::error::{Error, Result};
#[cfg(feature = "lz4")]
use crate::limits::COMPRESS_FROM_DEFAULT;
use crate::load::EntryBuilder;
use crate::load::entry::LoadOptions;

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
    /// What holds of every load; `None`: nothing was said.
    pub(crate) defaults: Option<Arc<LoadOptions>>,
}

impl<C: Clone, T> Clone for Typed<C, T> {
    fn clone(&self) -> Typed<C, T> {
        Typed { cache: self.cache.clone(), codec: self.codec, defaults: self.defaults.clone() }
    }
}

impl<C, T: serde::Serialize + serde::de::DeserializeOwned> Typed<C, T> {
    pub(crate) fn postcard(cache: C, schema: SchemaVersion) -> Typed<C, T> {
        Typed { cache, codec: Codec::postcard(schema), defaults: None }
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
        Typed { cache, codec: Codec::raw(schema), defaults: None }
    }
}

impl<C, T> Typed<C, T> {
    /// The cache behind it, of bytes: for `delete`, `expire`, `clear`, `scan` and whatever else needs no value.
    #[must_use]
    pub fn bytes(&self) -> &C {
        &self.cache
    }

    /// Says once what holds of every load through this cache, unless a call says otherwise; what makes no sense together is
    /// said here.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let prices = client
    ///     .cache("price")
    ///     .typed::<u32>(kv_client::SchemaVersion(1))
    ///     .defaults(|entry| entry.ttl(Duration::from_secs(60)).stale_for(Duration::from_secs(600)).jitter(0.1))?;
    /// let cents = prices.get_or_load("42", None, |_fill| Ok::<_, std::io::Error>(999))?;
    /// assert_eq!(cents, 999);
    /// assert_eq!(prices.get_entry("42")?.expect("just loaded").entry.stale_for, Duration::from_secs(600));
    ///
    /// let nonsense = client.cache("price").typed::<u32>(kv_client::SchemaVersion(1));
    /// assert!(nonsense.defaults(|entry| entry.refresh_ahead(1.5)).is_err());
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) names what does not go together.
    pub fn defaults(
        self,
        say: impl FnOnce(EntryBuilder<(), T>) -> EntryBuilder<(), T>,
    ) -> Result<Typed<C, T>> {
        let said = say(EntryBuilder::new((), self.codec, b""));
        if said.cache_if.is_some() {
            return Err(Error::invalid("cache_if is for single loads, it cannot be a default"));
        }
        said.options.check()?;
        Ok(Typed { defaults: Some(Arc::new(said.options)), ..self })
    }

    /// What a load begins with.
    pub(crate) fn options(&self) -> LoadOptions {
        self.defaults.as_deref().cloned().unwrap_or_else(|| LoadOptions::with_ttl(None))
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
