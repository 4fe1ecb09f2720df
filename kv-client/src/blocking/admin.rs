//! The blocking client's calls for those who look after a daemon: counters, caches, connections, transactions.
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
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let metrics = client.admin().stats()?;
    /// assert!(metrics.iter().any(|metric| metric.name == "kvd_uptime_seconds" && metric.value >= 0.0));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn stats(&self) -> Result<Vec<Metric>> {
        self.client.call(ops::stats())
    }

    /// The caches there are.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("product").put("42", "rocket", None)?;
    /// assert!(client.admin().caches()?.iter().any(|cache| cache.name == "product"));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn caches(&self) -> Result<Vec<CacheInfo>> {
        self.client.call(ops::caches())
    }

    /// The connections there are, and how each reads.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).name("mailer").build()?;
    /// assert!(client.admin().clients()?.iter().any(|connection| connection.name == "mailer"));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clients(&self) -> Result<Vec<ClientInfo>> {
        self.client.call(ops::clients())
    }

    /// Who holds what, and who waits for whom.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let open = client.begin()?;
    /// let listed = client.admin().transactions()?;
    /// assert_eq!((listed.mode.as_str(), listed.transactions[0].number), ("database", open.number()));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn transactions(&self) -> Result<Transactions> {
        self.client.call(ops::transactions())
    }

    /// Rolls back a transaction of anybody; `false`: there is none of this number. For the daemon's own user and root.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let mut open = client.begin()?;
    /// assert!(client.admin().roll_back(open.number())?);
    /// assert_eq!(open.get("product", "42").unwrap_err().kind(), kv_client::ErrorKind::LeaseLost);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn roll_back(&self, number: u64) -> Result<bool> {
        self.client.call(ops::rollback(number))
    }

    /// Requests that took at least `longer_than`, at most so many: as far as the daemon remembers them.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let log = client.admin().slow_log(kv_client::SlowOrder::Slowest, 10, Duration::from_millis(50))?;
    /// assert!(log.requests.iter().all(|request| request.took >= Duration::from_millis(50)));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn slow_log(&self, order: SlowOrder, requests_max: u32, longer_than: Duration) -> Result<SlowLog> {
        self.client.call(ops::slow_log(order, requests_max, longer_than))
    }

    /// The keys in memory that were read most lately, of one cache or of all that this user may use; at most so many.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).shared_memory(false).build()?;
    /// client.cache("product").put("42", "rocket", None)?;
    /// client.cache("product").get("42")?;
    /// let hottest = client.admin().hottest(Some("product"), 10)?;
    /// assert_eq!(hottest[0].key, b"42");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn hottest(&self, cache: Option<&str>, keys_max: u32) -> Result<Vec<HotKey>> {
        self.client.call(ops::hottest(cache, keys_max)?)
    }

    /// All caches on disk as of one moment, as the bytes of a file that `kvd restore` takes; with `memory` those in memory only
    /// too, which are of no one moment. For the daemon's own user and root.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("product").put("42", "rocket", None)?;
    /// let mut file = Vec::new();
    /// let mut backup = client.admin().backup(false)?;
    /// while let Some(part) = backup.next_part()? {
    ///     file.extend(part);
    /// }
    /// assert!(file.starts_with(b"kvdback"));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn backup(&self, memory: bool) -> Result<Backup> {
        Backup::begin(&self.client, self.client.op_timeout(), memory)
    }

    /// Looks whether store and memory are sound, at no more than `samples` items of each cache. For the daemon's own user and
    /// root.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("product").put("42", "rocket", None)?;
    /// assert!(client.admin().check(1_000)?.wrong.is_empty());
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn check(&self, samples: u32) -> Result<Checked> {
        self.client.call(ops::check(samples))
    }

    /// Copies the store's file into a smaller one, while everything goes on, and puts that in its place. `progress` gets how
    /// many bytes are copied, of about how many. For the daemon's own user and root.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let compacted = client.admin().compact(|done, total| println!("{done} of {total}"))?;
    /// assert!(compacted.bytes_after > 0);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error). The store is as it was, unless the daemon was lost.
    pub fn compact(&self, progress: impl FnMut(u64, u64)) -> Result<Compacted> {
        super::compact::compact(&self.client, self.client.op_timeout(), progress)
    }

    /// Stops the daemon as TERM does. For its own user and root.
    ///
    /// ```no_run
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let stopping = client.admin().shutdown()?;
    /// println!("process {} stops", stopping.pid);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn shutdown(&self) -> Result<Stopping> {
        self.client.call(ops::shutdown())
    }

    /// Lets the daemon read its configuration again. One that does not hold together changes nothing. For its own user and root.
    ///
    /// ```no_run
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// for change in client.admin().reload()?.applied {
    ///     println!("{change}");
    /// }
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) says what is wrong with it and where; else see [`Error`](crate::Error).
    pub fn reload(&self) -> Result<Reloaded> {
        self.client.call(ops::reload())
    }

    /// Begins a restart in place: the same socket, the same memory, the binary and the configuration of now. Caches in `clear` are
    /// empty afterwards. Gives its number for `last_restart`. For the daemon's own user and root.
    ///
    /// ```no_run
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let number = client.admin().restart(&["page"])?;
    /// while client.admin().last_restart()?.state == kv_client::RestartState::Running {}
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn restart(&self, clear: &[&str]) -> Result<u64> {
        self.client.call(ops::restart(clear)?)
    }

    /// How the newest restart in place went, or goes. For the daemon's own user and root.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let last = client.admin().last_restart()?;
    /// assert_eq!(last.state, kv_client::RestartState::Never);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn last_restart(&self) -> Result<Restart> {
        self.client.call(ops::last_restart())
    }

    /// What a user may do; `None`: the one who asks. Others only for who has [`Rights::ADMIN`](crate::Rights::ADMIN).
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use kv_client::Rights;
    /// client.cache("product").put("42", "rocket", None)?;
    /// let nobody = client.admin().access(Some(65_534))?;
    /// assert_eq!(nobody.rights, Rights::empty());
    /// assert_eq!(nobody.caches[0].rights, Rights::empty());
    /// assert!(client.admin().access(None)?.rights.contains(Rights::ADMIN));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn access(&self, uid: Option<u32>) -> Result<AccessReport> {
        self.client.call(ops::access(uid))
    }

    /// As [`Client::ping`].
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.admin().ping()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn ping(&self) -> Result<()> {
        self.client.ping()
    }

    /// As [`Client::sync`].
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.admin().sync()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn sync(&self) -> Result<()> {
        self.client.sync()
    }
}
