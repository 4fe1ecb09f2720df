//! The blocking client's calls for those who look after a daemon: counters, caches, connections, transactions.
//!
//! Made by [`Client::admin`]; the command line uses it.

use super::client::Client;
use crate::answers::{CacheInfo, ClientInfo, Metric, Reloaded, Restart, Stopping, Transactions};
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
    /// assert!(metrics.iter().all(|metric| metric.name.starts_with("kvd_")));
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
}
