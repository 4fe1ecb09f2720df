//! The async client's transactions: one connection each, from `begin` to the end.
//!
//! Made by [`Client::begin`](super::Client::begin) and [`Client::transact`](super::Client::transact). A transaction that is
//! dropped is rolled back; one that a child inherited by `fork` is its parent's, and left alone.

use kv_proto::segment::process_id;
use std::borrow::Borrow;
use std::time::Duration;

use super::client::Client;
use super::way::Way;
use crate::answers::{Committed, Entry, PutOutcome};
use crate::error::{Error, Result};
use crate::ops::{self, Call};
use crate::options::{Initial, PutOptions, Ttl};
use crate::retry::{Attempts, Failure};
use crate::transact::{connection_lost, is_worth_another_try, nothing_applied};

/// An open transaction: what it reads stays so, and what it writes is seen by nobody before [`Transaction::commit`].
///
/// It lives for a second unless [renewed](Transaction::renew), and is rolled back after 50 ms of silence while somebody waits for
/// it. Then its calls fail with [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost), and nothing of it was applied.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Transaction {
    client: Client,
    /// `None` once it is lost, and while a request is under way: a future that is dropped then takes it along.
    way: Option<Way>,
    number: u64,
    process: u32,
    was_disturbed: bool,
}

impl Transaction {
    pub(super) fn begun(client: &Client, way: Way, number: u64) -> Transaction {
        let process = process_id();
        Transaction { client: client.clone(), way: Some(way), number, process, was_disturbed: false }
    }

    /// Its number, as `kvd locks` shows it. Never given to another one.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether others were in its way, so that the same work may succeed when it is tried again.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        self.was_disturbed
    }

    /// The value of a fresh item, its own writes included.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.put("product", "42", "rocket", None).await?;
    /// assert_eq!(tx.get("product", "42").await?.as_deref(), Some(&b"rocket"[..]));
    /// tx.rollback().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error). After `Conflict`, `Deadlock` and `LeaseLost` the transaction is over.
    pub async fn get(&mut self, cache: &str, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.call(&ops::get(cache, key.as_ref(), None)?).await
    }

    /// The values of many keys of one cache.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.put("product", "42", "rocket", None).await?;
    /// let found = tx.get_many("product", &["42", "43"]).await?;
    /// assert_eq!(found, [Some(b"rocket".to_vec()), None]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn get_many<K: AsRef<[u8]>>(
        &mut self,
        cache: &str,
        keys: &[K],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let mut values = Vec::with_capacity(keys.len());
        while values.len() < keys.len() {
            let rest = &keys[values.len()..];
            let some = &rest[..rest.len().min(kv_proto::limits::GET_MANY_KEYS_MAX)];
            let found = self.call(&ops::get_many_inside(cache, some)?).await?;
            if found.is_empty() {
                return Err(Error::invalid("the daemon answered a get_many with nothing"));
            }
            values.extend(found);
        }
        Ok(values)
    }

    /// An item with everything known about it, stale ones too. The version of its own writes is [`Transaction::number`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.put("product", "42", "rocket", None).await?;
    /// assert_eq!(tx.get_entry("product", "42").await?.map(|entry| entry.version), Some(tx.number()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn get_entry(&mut self, cache: &str, key: impl AsRef<[u8]>) -> Result<Option<Entry>> {
        self.call(&ops::get_entry(cache, key.as_ref())?).await
    }

    /// Puts an item with this life, or the cache's default.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.put("product", "42", "rocket", std::time::Duration::from_secs(60)).await?;
    /// tx.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn put(
        &mut self,
        cache: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<()> {
        let options = PutOptions { ttl: ttl.into(), ..PutOptions::default() };
        self.put_with(cache, key, value, &options).await.map(drop)
    }

    /// Puts an item, perhaps under a condition.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use kv_client::{PutOptions, PutOutcome};
    /// let mut tx = client.begin().await?;
    /// tx.put("product", "42", "rocket", None).await?;
    /// let outcome = tx.put_with("product", "42", "comet", PutOptions::new().if_absent()).await?;
    /// assert!(matches!(outcome, PutOutcome::Refused { .. }));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn put_with(
        &mut self,
        cache: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: impl Borrow<PutOptions>,
    ) -> Result<PutOutcome> {
        self.call(&ops::put(cache, key.as_ref(), value.as_ref(), options.borrow())?).await
    }

    /// Deletes an item; whether there was one.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// let mut tx = client.begin().await?;
    /// assert!(tx.delete("product", "42").await?);
    /// assert_eq!(tx.get("product", "42").await?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn delete(&mut self, cache: &str, key: impl AsRef<[u8]>) -> Result<bool> {
        self.call(&ops::delete(cache, key.as_ref())?).await
    }

    /// Reads and deletes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("queue").put("job", "mail", None).await?;
    /// let mut tx = client.begin().await?;
    /// assert_eq!(tx.take("queue", "job").await?.as_deref(), Some(&b"mail"[..]));
    /// tx.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn take(&mut self, cache: &str, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.call(&ops::take(cache, key.as_ref())?).await
    }

    /// Changes the life of an item; whether there was one.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// let mut tx = client.begin().await?;
    /// assert!(tx.expire("product", "42", kv_client::Ttl::Now).await?);
    /// tx.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn expire(&mut self, cache: &str, key: impl AsRef<[u8]>, ttl: Ttl) -> Result<bool> {
        Ok(self.call(&ops::expire(cache, key.as_ref(), ttl)?).await?.is_some())
    }

    /// Adds to a counter, as [`Cache::increment`](super::Cache::increment).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.increment("counter", "visits", 1, kv_client::Initial::value(1)).await?;
    /// assert_eq!(tx.increment("counter", "visits", 1, kv_client::Initial::value(1)).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn increment(
        &mut self,
        cache: &str,
        key: impl AsRef<[u8]>,
        by: i64,
        initial: Initial,
    ) -> Result<i64> {
        self.call(&ops::increment(cache, key.as_ref(), by, initial)?).await
    }

    /// Lets it live for another second from now, up to ten from when it began.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.renew().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn renew(&mut self) -> Result<()> {
        self.call(&ops::renew(self.number)).await
    }

    /// Lets everything happen at once.
    ///
    /// # Errors
    /// `Conflict`, `Deadlock` and `LeaseLost`: nothing happened, and the same work may be tried again. When the answer was lost,
    /// [`Error::maybe_applied`](crate::Error::maybe_applied) is true.
    pub async fn commit(self) -> Result<Committed> {
        self.commit_as(None).await
    }

    /// As [`Transaction::commit`]; returns when it survives power loss.
    ///
    /// # Errors
    /// As [`Transaction::commit`].
    pub async fn commit_durable(self) -> Result<Committed> {
        self.commit_as(Some(kv_proto::wire::Durability::Durable)).await
    }

    async fn commit_as(mut self, durability: Option<kv_proto::wire::Durability>) -> Result<Committed> {
        let call = ops::commit_transaction(self.number, durability);
        let attempts = self.client.attempts(call.sending.repeat).once();
        let committed = self.exchange(&call, attempts).await;
        // Whatever the answer was, there is nothing open any more.
        self.give_back();
        committed
    }

    /// Ends it without a trace, as dropping it does.
    ///
    /// # Errors
    /// When the daemon does not answer; it rolls back all the same.
    pub async fn rollback(mut self) -> Result<()> {
        let ended = self.call(&ops::rollback(self.number)).await;
        self.give_back();
        ended.map(drop)
    }

    /// One request before the commit: a connection that is lost takes the transaction along, and nothing was applied.
    async fn call<T>(&mut self, call: &Call<T>) -> Result<T> {
        let attempts = self.client.attempts(call.sending.repeat);
        let answer = self.exchange(call, attempts).await.map_err(|error| nothing_applied(error, self.number));
        self.was_disturbed |= answer.as_ref().is_err_and(is_worth_another_try);
        answer
    }

    async fn exchange<T>(&mut self, call: &Call<T>, mut attempts: Attempts) -> Result<T> {
        let is_here = self.process == process_id();
        let Some(mut way) = self.way.take_if(|_| is_here) else { return Err(connection_lost(self.number)) };
        match way.exchange(call, &mut attempts).await {
            Ok(answer) => {
                self.way = Some(way);
                answer
            }
            Err(failure) => {
                if matches!(failure, Failure::NotSent(Error::TooLarge { .. })) {
                    self.way = Some(way);
                }
                Err(attempts.settle(failure.into_error()))
            }
        }
    }

    fn give_back(&mut self) {
        // What a child inherited is its parent's, and has the parent's transaction open.
        let is_here = self.process == process_id();
        if let Some(way) = self.way.take_if(|_| is_here) {
            self.client.give_back(way);
        }
    }
}

impl Drop for Transaction {
    /// Closing the connection ends it. What a child inherited is its parent's: it is forgotten, because dropping it would take it
    /// off the epoll instance that both share.
    fn drop(&mut self) {
        if self.process != process_id() {
            std::mem::forget(self.way.take());
        }
    }
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("number", &self.number).finish_non_exhaustive()
    }
}
