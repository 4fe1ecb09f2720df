//! The operations on a cache of typed values, async.
//!
//! Called by applications. Values are encoded and decoded here; what happens to the bytes is [`Cache`]'s.

use std::borrow::Borrow;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::wire::Effect;

use super::cache::Cache;
use crate::answers::{Freshness, PutOutcome};
use crate::codec::SchemaVersion;
use crate::error::Result;
use crate::load::EntryBuilder;
use crate::options::{PutOptions, Ttl};
use crate::scope::Scope;
use crate::typed::{Typed, TypedEntry};

impl Cache {
    /// The same cache, for values of one type, encoded by postcard. Raise the version whenever the type changes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let names = client.cache("name").typed::<String>(kv_client::SchemaVersion(1));
    /// names.put("42", &"rocket".to_owned(), None).await?;
    /// assert_eq!(names.get("42").await?.as_deref(), Some("rocket"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn typed<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        schema: SchemaVersion,
    ) -> Typed<Cache, T> {
        Typed::postcard(self.clone(), schema)
    }

    /// The same cache, for bytes behind a header: with a schema version, compression where wanted, and "there is none".
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let pages = client.cache("page").typed_bytes(kv_client::SchemaVersion(1)).compressed();
    /// pages.put("/", &b"<h1>Toys</h1>".repeat(1_000), None).await?;
    /// assert!(client.cache("page").describe("/").await?.expect("just put").value_bytes < 200);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn typed_bytes(&self, schema: SchemaVersion) -> Typed<Cache, Vec<u8>> {
        Typed::raw(self.clone(), schema)
    }
}

impl<T> Typed<Cache, T> {
    /// The same cache, whose reads and loads are recorded in `scope`.
    #[must_use]
    pub fn in_scope(&self, scope: &Scope) -> Typed<Cache, T> {
        Typed { cache: self.cache.in_scope(scope), ..self.clone() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.cache.name()
    }

    /// The value of a key, if it is there, fresh, and of this schema version.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let looker = self.cache.looker(self.codec, true);
        Ok(self.cache.get_with(key, |bytes| looker.take(bytes).flatten()).await?.flatten())
    }

    /// The values of many keys, in their order, all of one moment.
    ///
    /// # Errors
    /// As [`Cache::get_many`].
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<T>>> {
        let looker = self.cache.looker(self.codec, true);
        let values = self.cache.get_many(keys).await?;
        Ok(values.into_iter().map(|bytes| looker.take(&bytes?).flatten()).collect())
    }

    /// The value with all that is known about it; stale ones too, and that there is none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use kv_client::{Freshness, SchemaVersion};
    /// let names = client.cache("name").typed::<String>(SchemaVersion(1));
    /// let entry = names.entry("no-such").negative_ttl(std::time::Duration::from_secs(5));
    /// entry.find_or_load(|_fill| async { Ok::<_, std::io::Error>(None) }).await?;
    /// let entry = names.get_entry("no-such").await?.expect("it is remembered");
    /// assert_eq!((entry.value, entry.freshness), (None, Freshness::Negative));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn get_entry(&self, key: impl AsRef<[u8]>) -> Result<Option<TypedEntry<T>>> {
        let Some(mut entry) = self.cache.get_entry(key).await? else { return Ok(None) };
        let looker = self.cache.looker(self.codec, true);
        let Some(value) = looker.take(&std::mem::take(&mut entry.value)) else { return Ok(None) };
        let is_negative = value.is_none() && entry.freshness == Freshness::Fresh;
        let freshness = if is_negative { Freshness::Negative } else { entry.freshness };
        Ok(Some(TypedEntry { value, freshness, entry }))
    }

    /// Puts a value with this life, or the cache's default; its version.
    ///
    /// # Errors
    /// [`Error::Codec`](crate::Error::Codec) for a value that cannot be encoded; see also [`Error`](crate::Error).
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: &T,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<Version> {
        self.cache.put(key, self.codec.encode(value)?, ttl).await
    }

    /// Puts a value in any way there is.
    ///
    /// # Errors
    /// As [`Typed::put`].
    pub async fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: &T,
        options: impl Borrow<PutOptions>,
    ) -> Result<PutOutcome> {
        self.cache.put_with(key, self.codec.encode(value)?, options).await
    }

    /// Reads and deletes.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn take(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let taken = self.cache.take(key).await?;
        Ok(taken.and_then(|bytes| self.cache.looker(self.codec, true).take(&bytes).flatten()))
    }

    /// As [`Cache::delete`].
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.cache.delete(key).await
    }

    /// As [`Cache::expire`].
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn expire(&self, key: impl AsRef<[u8]>, ttl: Ttl) -> Result<Option<Version>> {
        self.cache.expire(key, ttl).await
    }

    /// As [`Cache::clear`].
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn clear(&self, effect: Effect) -> Result<Version> {
        self.cache.clear(effect).await
    }

    /// Says what wants to be known of a key before it is loaded.
    pub fn entry(&self, key: impl AsRef<[u8]>) -> EntryBuilder<Cache, T> {
        let options = self.options();
        EntryBuilder { options, ..EntryBuilder::new(self.cache.clone(), self.codec, key.as_ref()) }
    }

    /// As [`Cache::get_or_load`].
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn get_or_load<E, F>(
        &self,
        key: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
        loader: impl FnOnce(crate::load::Fill<T>) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let ttl = ttl.into();
        if self.defaults.is_none() {
            return self.cache.load_as(self.codec, key.as_ref(), ttl, loader).await;
        }
        let entry = self.entry(key);
        let ttl = ttl.or(entry.options.put.ttl);
        entry.ttl(ttl).get_or_load(loader).await
    }
}
