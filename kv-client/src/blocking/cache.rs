//! The operations on one cache, blocking.
//!
//! Called by applications. Each method builds its request in `ops` and hands it to the client; nothing is decided here.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::wire::{self, Effect};

use super::client::Client;
use super::scan::Scan;
use crate::answers::{Committed, Entry, Freshness, Life, PutOutcome};
use crate::batch::BatchData;
use crate::error::Result;
use crate::many::GetMany;
use crate::ops::{self, Call};
use crate::options::{Initial, PutOptions, Sliding, Ttl};
use crate::scope::Scope;
use crate::shared::{Found, Parts, Seat, give_back, scratch};

/// One cache: a named space of keys with its own budget, lives and durability. Cheap to clone. Keys are 1 to 1,024 bytes,
/// values up to what the daemon takes (1 MiB unless configured).
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) client: Client,
    pub(super) seat: Arc<Seat>,
    pub(super) scope: Option<Scope>,
}

impl Cache {
    pub(super) fn new(client: Client, seat: Arc<Seat>) -> Cache {
        Cache { client, seat, scope: None }
    }

    /// The same cache, whose reads and loads are recorded in `scope`.
    #[must_use]
    pub fn in_scope(&self, scope: &Scope) -> Cache {
        Cache { scope: Some(scope.clone()), ..self.clone() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.seat.name()
    }

    /// The value of a key, if it is there and fresh.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// assert_eq!(cache.get("42")?.as_deref(), Some(&b"rocket"[..]));
    /// assert_eq!(cache.get("43")?, None);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        let key = key.as_ref();
        let mut value = Vec::new();
        if self.scope.is_some() {
            return Ok(self.get_into(key, &mut value)?.then_some(value));
        }
        match self.value(key, &mut value) {
            Some(found) => Ok((found == Found::Fresh).then_some(value)),
            None => self.ask(ops::get(self.name(), key, None)?),
        }
    }

    /// As `get`, and if less than `sliding.below` of its life is left, the item gets `sliding.ttl` from now: for
    /// sessions.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// use std::time::Duration;
    /// use kv_client::Sliding;
    /// cache.put("session", "cart", Duration::from_secs(60))?;
    /// let sliding = Sliding { below: Duration::from_secs(1_000), ttl: Duration::from_secs(2_000) };
    /// assert!(cache.get_sliding("session", sliding)?.is_some());
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn get_sliding(&self, key: impl AsRef<[u8]>, sliding: Sliding) -> Result<Option<Vec<u8>>> {
        self.client.forgive(&self.seat, self.call(ops::get(self.name(), key.as_ref(), Some(sliding))?))
    }

    /// The value with all that is known about it; stale items too.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// let entry = cache.get_entry("42")?.expect("just put");
    /// assert_eq!(entry.value, b"rocket");
    /// assert_eq!(entry.freshness, kv_client::Freshness::Fresh);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn get_entry(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry>> {
        let entry = self.client.forgive(&self.seat, self.read(key.as_ref()))?;
        if let Some(scope) = &self.scope {
            scope.read(entry.as_ref());
        }
        Ok(entry)
    }

    /// As `get`, into a buffer that is used again: whether there was an item. The buffer is emptied first.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// let mut value = Vec::new();
    /// assert!(cache.get_into("42", &mut value)?);
    /// assert_eq!(value, b"rocket");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn get_into(&self, key: impl AsRef<[u8]>, value: &mut Vec<u8>) -> Result<bool> {
        let key = key.as_ref();
        value.clear();
        if self.scope.is_some() {
            let Some(entry) = self.get_entry(key)?.filter(|entry| !entry.is_stale()) else {
                return Ok(false);
            };
            *value = entry.value;
            return Ok(true);
        }
        if let Some(found) = self.value(key, value) {
            return Ok(found == Found::Fresh);
        }
        let sending = ops::get_sending(self.name(), key, None)?;
        let found = self.client.ask(&self.seat, &sending, |response| {
            ops::read_value(response, |bytes| value.extend_from_slice(bytes))
        });
        Ok(self.client.forgive(&self.seat, found)?.is_some())
    }

    /// As `get`, for a value that is only looked at: `read` gets it in a buffer that is used again.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// let letters = cache.get_with("42", |value| value.len())?;
    /// assert_eq!(letters, Some(6));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn get_with<T>(&self, key: impl AsRef<[u8]>, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let mut value = scratch();
        let answer = self.get_into(key, &mut value).map(|found| found.then(|| read(&value)));
        give_back(value);
        answer
    }

    /// The values of many keys, in their order, all of one moment.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put_many([("1", "castle"), ("2", "rocket")], None)?;
    /// let values = cache.get_many(&["2", "none", "1"])?;
    /// assert_eq!(values, [Some(b"rocket".to_vec()), None, Some(b"castle".to_vec())]);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when the cache changes too fast for so many keys at one moment;
    /// see also [`Error`](crate::Error).
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>> {
        let mut is_due = false;
        if let Some(values) = self.seat.values(keys, self.scope.as_ref(), &mut is_due) {
            self.tell(is_due);
            return Ok(values);
        }
        if let Some(scope) = &self.scope {
            let mut values = Vec::with_capacity(keys.len());
            for key in keys {
                let entry = match self.read(key.as_ref()) {
                    // The daemon does not answer: each of the others would wait as long for it.
                    Err(error) if error.is_outage() => {
                        self.client.forgive(&self.seat, Err::<(), _>(error))?;
                        scope.read(None);
                        return Ok(keys.iter().map(|_| None).collect());
                    }
                    entry => entry?,
                };
                scope.read(entry.as_ref());
                values.push(entry.filter(|entry| !entry.is_stale()).map(|entry| entry.value));
            }
            return Ok(values);
        }
        let mut many = GetMany::new(self.name(), keys)?;
        while let Some(sending) = many.next() {
            let asked = self.client.ask(&self.seat, &sending, |response| many.answered(response).map(Some));
            if self.client.forgive(&self.seat, asked)?.is_none() {
                return Ok(keys.iter().map(|_| None).collect());
            }
        }
        Ok(many.values())
    }

    /// Whether there is a fresh item.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// assert!(cache.contains("42")?);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = key.as_ref();
        match self.seen(key, Parts::Description) {
            Some(entry) => Ok(entry.is_some_and(|entry| entry.freshness == Freshness::Fresh)),
            None => self.ask(ops::contains(self.name(), key)?),
        }
    }

    /// All that is known about an item but its value; stale ones too.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// let entry = cache.describe("42")?.expect("just put");
    /// assert_eq!(entry.value_bytes, 6);
    /// assert!(entry.value.is_empty());
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn describe(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry>> {
        let key = key.as_ref();
        match self.seen(key, Parts::Description) {
            Some(entry) => Ok(entry),
            None => self.ask(ops::describe(self.name(), key)?),
        }
    }

    /// How long an item still lives; `None`: there is none.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", std::time::Duration::from_secs(60))?;
    /// assert!(matches!(cache.ttl("42")?, Some(kv_client::Life::Left(left)) if left.as_secs() >= 59));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn ttl(&self, key: impl AsRef<[u8]>) -> Result<Option<Life>> {
        let key = key.as_ref();
        match self.seen(key, Parts::Description) {
            Some(entry) => Ok(entry.map(|entry| entry.life())),
            None => self.ask(ops::ttl(self.name(), key)?),
        }
    }

    /// Puts an item with this life, or the cache's default; its version.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// use std::time::Duration;
    /// let first = cache.put("42", "rocket", Duration::from_secs(60))?;
    /// let second = cache.put("42", "bigger rocket", None)?;
    /// assert!(second > first);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<Version> {
        let options = PutOptions { ttl: ttl.into(), ..PutOptions::default() };
        self.call(ops::put_always(self.name(), key.as_ref(), value.as_ref(), &options)?)
    }

    /// Puts an item in any way there is.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// use kv_client::{PutOptions, PutOutcome};
    /// let once = PutOptions::new().if_absent();
    /// let PutOutcome::Written { version } = cache.put_with("42", "rocket", &once)? else { panic!("it was there") };
    /// let again = cache.put_with("42", "other", &once)?;
    /// assert_eq!(again, PutOutcome::Refused { version: Some(version) });
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: impl Borrow<PutOptions>,
    ) -> Result<PutOutcome> {
        self.call(ops::put(self.name(), key.as_ref(), value.as_ref(), options.borrow())?)
    }

    /// Puts many items, all or none: at most 1,024, and 4 MiB of keys and values.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// let committed = cache.put_many([("1", "castle"), ("2", "rocket")], None)?;
    /// assert_eq!(committed.changed, 2);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) beyond the bounds: it is never split. See also [`Error`](crate::Error).
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<Committed> {
        let batch = BatchData::puts(self.name(), items, ttl.into());
        self.call(ops::commit(&batch)?)
    }

    /// Gives an item another life; its new version, `None`: there is none.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// use kv_client::{Life, Ttl};
    /// cache.expire("42", Ttl::After(std::time::Duration::from_secs(60)))?;
    /// cache.expire("42", Ttl::Never)?;
    /// assert_eq!(cache.ttl("42")?, Some(Life::Forever));
    /// cache.expire("42", Ttl::Now)?;
    /// assert!(!cache.contains("42")?);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn expire(&self, key: impl AsRef<[u8]>, ttl: Ttl) -> Result<Option<Version>> {
        let call = ops::expire(self.name(), key.as_ref(), ttl)?;
        match ttl {
            Ttl::Now | Ttl::Stale => self.invalidate(Some(key.as_ref()), call),
            Ttl::After(_) | Ttl::Never => self.call(call),
        }
    }

    /// Deletes an item: whether there was one.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// assert!(cache.delete("42")?);
    /// assert!(!cache.delete("42")?);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.invalidate(Some(key.as_ref()), ops::delete(self.name(), key.as_ref())?)
    }

    /// Deletes many items, all in one commit: how many there were. At most 1,024.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// assert_eq!(cache.delete_many(&["42", "43"])?, 1);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn delete_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<u32> {
        let batch = BatchData::deletes(self.name(), keys);
        keys.iter().for_each(|key| self.client.here().outage.standby.forget(self.seat.id(), key.as_ref()));
        let along = self.seat.report_along();
        self.client.invalidate(Some(self.name()), ops::commit_changed(&batch)?, along.as_ref())
    }

    /// Reads and deletes in one: of several callers one gets it.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// assert_eq!(cache.take("42")?.as_deref(), Some(&b"rocket"[..]));
    /// assert_eq!(cache.take("42")?, None);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn take(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.call(ops::take(self.name(), key.as_ref())?)
    }

    /// Adds to a counter; its new value. Where there is none it begins at `initial.value`, *instead of* adding.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// use kv_client::Initial;
    /// let initial = Initial::value(1).ttl(std::time::Duration::from_secs(60));
    /// assert_eq!(cache.increment("visits", 1, initial)?, 1);
    /// assert_eq!(cache.increment("visits", 5, initial)?, 6);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when the item is no number; see also [`Error`](crate::Error).
    pub fn increment(&self, key: impl AsRef<[u8]>, by: i64, initial: Initial) -> Result<i64> {
        self.call(ops::increment(self.name(), key.as_ref(), by, initial)?)
    }

    /// Makes all items of the cache gone or stale.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// cache.clear(kv_client::Effect::Gone)?;
    /// assert!(!cache.contains("42")?);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clear(&self, effect: Effect) -> Result<Version> {
        self.invalidate(None, ops::clear(wire::Scope::Cache(self.name()), effect)?)
    }

    /// Makes the items of the cache with this tag gone or stale.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// use kv_client::{Effect, PutOptions};
    /// let _ = cache.put_with("42", "rocket", &PutOptions::new().tag("space"))?;
    /// cache.clear_tag("space", Effect::Gone)?;
    /// assert!(!cache.contains("42")?);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clear_tag(&self, tag: impl AsRef<[u8]>, effect: Effect) -> Result<Version> {
        let scope = wire::Scope::Tag { cache: Some(self.name()), tag: tag.as_ref() };
        self.invalidate(None, ops::clear(scope, effect)?)
    }

    /// Makes the items of the cache whose keys start so gone or stale.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("lego:1", "castle", None)?;
    /// cache.clear_prefix("lego:", kv_client::Effect::Gone)?;
    /// assert!(!cache.contains("lego:1")?);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clear_prefix(&self, prefix: impl AsRef<[u8]>, effect: Effect) -> Result<Version> {
        let scope = wire::Scope::Prefix { cache: self.name(), prefix: prefix.as_ref() };
        self.invalidate(None, ops::clear(scope, effect)?)
    }

    /// Makes items gone or stale that still have the versions that somebody saw; gives how many had. At most 1,024 at once.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// let seen = cache.put("42", "rocket", None)?;
    /// cache.put("42", "newer", None)?;
    /// assert_eq!(cache.clear_versions(&[("42", seen)], kv_client::Effect::Gone)?, 0);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clear_versions<K: AsRef<[u8]>>(&self, items: &[(K, Version)], effect: Effect) -> Result<u32> {
        self.call(ops::clear_versions(self.name(), items, effect)?)
    }

    /// Removes the cache and all its items.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", None)?;
    /// cache.drop_cache()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn drop_cache(&self) -> Result<Version> {
        self.call(ops::drop_cache(self.name())?)
    }

    /// Scans the keys that start so, page by page.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// # client.cache("product").put("lego:1", "castle", None)?;
    /// for page in client.cache("product").scan("lego:") {
    ///     for (key, entry) in page?.items {
    ///         println!("{key:?}: {} bytes", entry.value_bytes);
    ///     }
    /// }
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Scan {
        Scan::new(self.client.clone(), self.name(), prefix.as_ref())
    }

    /// Reads shared memory; `None`: ask.
    #[inline]
    fn value(&self, key: &[u8], value: &mut Vec<u8>) -> Option<Found> {
        let mut is_due = false;
        let found = self.seat.value(key, value, &mut is_due);
        self.tell(is_due);
        found
    }

    fn seen(&self, key: &[u8], parts: Parts) -> Option<Option<Entry>> {
        let mut is_due = false;
        let entry = self.seat.entry(key, parts, &mut is_due);
        self.tell(is_due);
        entry
    }

    #[inline]
    pub(super) fn tell(&self, is_due: bool) {
        if is_due {
            self.client.tell(&self.seat);
        }
    }

    /// All about an item, and the error of a daemon that is away.
    fn read(&self, key: &[u8]) -> Result<Option<Entry>> {
        if let Some(entry) = self.seen(key, Parts::All) {
            return Ok(entry);
        }
        let call = ops::get_entry(self.name(), key)?;
        self.client.ask(&self.seat, &call.sending, call.read)
    }

    /// A read that shared memory could not answer.
    fn ask<T: Default>(&self, call: Call<T>) -> Result<T> {
        let answer = self.client.ask(&self.seat, &call.sending, call.read);
        self.client.forgive(&self.seat, answer)
    }

    /// An invalidation of a key, or of many.
    fn invalidate<T: Default>(&self, key: Option<&[u8]>, call: Call<T>) -> Result<T> {
        let standby = &self.client.here().outage.standby;
        match key {
            Some(key) => standby.forget(self.seat.id(), key),
            None => standby.forget_all(),
        }
        self.client.invalidate(Some(self.name()), call, self.seat.report_along().as_ref())
    }

    fn call<T>(&self, call: Call<T>) -> Result<T> {
        self.client.call_with(&call.sending, self.seat.report_along().as_ref(), call.read)
    }
}
