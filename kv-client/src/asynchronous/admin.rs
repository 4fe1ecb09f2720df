//! The async client's calls for those who look after a daemon: counters, caches, connections, transactions.
//!
//! Made by [`Client::admin`]; the command line uses it.

use std::time::Duration;

use kv_proto::wire::SlowOrder;

use super::backup::Backup;
use super::client::Client;
use crate::answers::{
    AccessReport, CacheInfo, Checked, ClientInfo, Compacted, HotKey, Metric, Reloaded, Restart, SlowLog,
    Stopping, Transactions,
};
use crate::error::Result;
use crate::ops;

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(super) fn new(client: Client) -> Admin {
        Admin { client }
    }

    /// Counters, gauges and latencies.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let metrics = client.admin().stats().await?;
    /// assert!(metrics.iter().any(|metric| metric.name == "kvd_uptime_seconds" && metric.value >= 0.0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn stats(&self) -> Result<Vec<Metric>> {
        self.client.call(ops::stats()).await
    }

    /// The caches there are.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// assert!(client.admin().caches().await?.iter().any(|cache| cache.name == "product"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn caches(&self) -> Result<Vec<CacheInfo>> {
        self.client.call(ops::caches()).await
    }

    /// The connections there are, and how each reads.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).name("mailer").build().await?;
    /// assert!(client.admin().clients().await?.iter().any(|connection| connection.name == "mailer"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn clients(&self) -> Result<Vec<ClientInfo>> {
        self.client.call(ops::clients()).await
    }

    /// Who holds what, and who waits for whom.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let open = client.begin().await?;
    /// let listed = client.admin().transactions().await?;
    /// assert_eq!((listed.mode.as_str(), listed.transactions[0].number), ("database", open.number()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn transactions(&self) -> Result<Transactions> {
        self.client.call(ops::transactions()).await
    }

    /// Rolls back a transaction of anybody; `false`: there is none of this number. For the daemon's own user and root.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut open = client.begin().await?;
    /// assert!(client.admin().roll_back(open.number()).await?);
    /// assert_eq!(open.get("product", "42").await.unwrap_err().kind(), kv_client::ErrorKind::LeaseLost);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn roll_back(&self, number: u64) -> Result<bool> {
        self.client.call(ops::rollback(number)).await
    }

    /// Requests that took at least `longer_than`, at most so many: as far as the daemon remembers them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use std::time::Duration;
    /// let log = client.admin().slow_log(kv_client::SlowOrder::Slowest, 10, Duration::from_millis(50)).await?;
    /// assert!(log.requests.iter().all(|request| request.took >= Duration::from_millis(50)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn slow_log(
        &self,
        order: SlowOrder,
        requests_max: u32,
        longer_than: Duration,
    ) -> Result<SlowLog> {
        self.client.call(ops::slow_log(order, requests_max, longer_than)).await
    }

    /// The keys in memory that were read most lately, of one cache or of all that this user may use; at most so many.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).shared_memory(false).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// client.cache("product").get("42").await?;
    /// let hottest = client.admin().hottest(Some("product"), 10).await?;
    /// assert_eq!(hottest[0].key, b"42");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn hottest(&self, cache: Option<&str>, keys_max: u32) -> Result<Vec<HotKey>> {
        self.client.call(ops::hottest(cache, keys_max)?).await
    }

    /// All caches on disk as of one moment, as the bytes of a file that `kvd restore` takes; with `memory` those in memory only
    /// too, which are of no one moment. For the daemon's own user and root.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// let mut file = Vec::new();
    /// let mut backup = client.admin().backup(false).await?;
    /// while let Some(part) = backup.next_part().await? {
    ///     file.extend(part);
    /// }
    /// assert!(file.starts_with(b"kvdback"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn backup(&self, memory: bool) -> Result<Backup> {
        Backup::begin(&self.client, self.client.op_timeout(), memory).await
    }

    /// Looks whether store and memory are sound, at no more than `samples` items of each cache. For the daemon's own user and
    /// root.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// assert!(client.admin().check(1_000).await?.wrong.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn check(&self, samples: u32) -> Result<Checked> {
        self.client.call(ops::check(samples)).await
    }

    /// Copies the store's file into a smaller one, while everything goes on, and puts that in its place. `progress` gets how
    /// many bytes are copied, of about how many. For the daemon's own user and root.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let compacted = client.admin().compact(|done, total| println!("{done} of {total}")).await?;
    /// assert!(compacted.bytes_after > 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error). The store is as it was, unless the daemon was lost.
    pub async fn compact(&self, progress: impl FnMut(u64, u64)) -> Result<Compacted> {
        super::compact::compact(&self.client, self.client.op_timeout(), progress).await
    }

    /// Stops the daemon as TERM does. For its own user and root.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let stopping = client.admin().shutdown().await?;
    /// println!("process {} stops", stopping.pid);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn shutdown(&self) -> Result<Stopping> {
        self.client.call(ops::shutdown()).await
    }

    /// Lets the daemon read its configuration again. One that does not hold together changes nothing. For its own user and root.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// for change in client.admin().reload().await?.applied {
    ///     println!("{change}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) says what is wrong with it and where; else see [`Error`](crate::Error).
    pub async fn reload(&self) -> Result<Reloaded> {
        self.client.call(ops::reload()).await
    }

    /// Begins a restart in place: the same socket, the same memory, the binary and the configuration of now. Caches in `clear` are
    /// empty afterwards. Gives its number for `last_restart`. For the daemon's own user and root.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let number = client.admin().restart(&["page"]).await?;
    /// while client.admin().last_restart().await?.state == kv_client::RestartState::Running {}
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn restart(&self, clear: &[&str]) -> Result<u64> {
        self.client.call(ops::restart(clear)?).await
    }

    /// How the newest restart in place went, or goes. For the daemon's own user and root.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let last = client.admin().last_restart().await?;
    /// assert_eq!(last.state, kv_client::RestartState::Never);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn last_restart(&self) -> Result<Restart> {
        self.client.call(ops::last_restart()).await
    }

    /// What a user may do; `None`: the one who asks. Others only for who has [`Rights::ADMIN`](crate::Rights::ADMIN).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use kv_client::Rights;
    /// assert_eq!(client.admin().access(Some(65_534)).await?.rights, Rights::empty());
    /// assert!(client.admin().access(None).await?.rights.contains(Rights::ADMIN));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn access(&self, uid: Option<u32>) -> Result<AccessReport> {
        self.client.call(ops::access(uid)).await
    }

    /// As [`Client::ping`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.admin().ping().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    /// As [`Client::sync`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.admin().sync().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn sync(&self) -> Result<()> {
        self.client.sync().await
    }
}
