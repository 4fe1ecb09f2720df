//! The client of kvd: what applications link.
//!
//! Two clients with the same methods: [`blocking::Client`] for programs of processes and threads, and, with the feature
//! `tokio` (on by default), `Client` for async ones. Everything but the way bytes travel is shared between them.
//!
//! ```
//! # let server = kvd::testing::server();
//! use std::time::Duration;
//! use kv_client::blocking::Client;
//! let client = Client::builder().socket(server.socket()).build()?; // or Client::connect()
//! let products = client.cache("product");
//! products.put("42", "rocket", Duration::from_secs(300))?;
//! assert_eq!(products.get("42")?.as_deref(), Some(&b"rocket"[..]));
//! # Ok::<(), kv_client::Error>(())
//! ```
//!
//! # What happens when the daemon goes away
//! Calls wait up to the *restart grace* for a daemon that was there and is coming back, then fail at once. What certainly
//! was not sent is sent again. When an answer was lost, reads and writes that insist on a version are repeated; other
//! writes fail with [`Error::maybe_applied`], because a late repetition could overwrite what somebody wrote since. Every
//! wait ends at the call's deadline.
//!
//! # Fork
//! A client made before `fork` can be used in the child: it notices, and connects anew. The parent's streams stay as
//! they are.

#![forbid(unsafe_code)]

mod answers;
#[cfg(feature = "tokio")]
mod asynchronous;
mod batch;
pub mod blocking;
mod codec;
mod error;
mod fork;
mod frames;
mod limits;
mod load;
mod lock;
mod many;
mod observe;
mod ops;
mod options;
mod outage;
pub mod places;
mod retry;
mod scanning;
mod scope;
mod shared;
mod transact;
mod typed;
mod undelivered;

pub use answers::{
    AccessReport, CacheInfo, CacheRights, CacheStats, Change, Checked, ClearedScope, ClientInfo, ClientStats,
    Committed, Compacted, Entry, Fallbacks, Freshness, HotKey, Life, Loads, Metric, Page, PutOutcome,
    ReadPath, Reloaded, Restart, SlowLog, SlowRequest, Stopping, TransactionInfo, Transactions,
};
#[cfg(feature = "tokio")]
pub use asynchronous::{Admin, Backup, Cache, Client, LockGuard, Scan, Transaction, Watch};
pub use batch::Batch;
pub use codec::SchemaVersion;
pub use error::{Attempt, Error, Result, RetryAdvice};
pub use kv_proto::Version;
pub use kv_proto::wire::{Durability, Effect, ErrorKind, RestartState, Rights, SlowOrder};
pub use load::{EntryBuilder, Fill, Missing, OnBusy};
#[cfg(feature = "metrics")]
pub use observe::MetricsObserver;
pub use observe::{Event, Observer, Source};
pub use options::{Builder, Initial, OnOutage, PutOptions, RetryPolicy, Sliding, Ttl};
pub use scope::Scope;
pub use typed::{Typed, TypedEntry};

/// What the README shows, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
