//! The async client, on tokio: the same methods as [`blocking`](crate::blocking).
//!
//! Requests that wait for nothing share one pipelined connection, plain writes another; those that may wait for the disk
//! have one each while they last. Dropping a call's future never harms the others: what was not written yet is not sent,
//! and an answer that nobody awaits is thrown away in its turn.

mod admin;
mod backup;
mod cache;
mod client;
mod compact;
mod flight;
mod lanes;
mod link;
mod load;
mod load_many;
mod lock;
mod pipe;
mod scan;
mod transaction;
mod typed;
mod watch;
mod way;

pub use admin::Admin;
pub use backup::Backup;
pub use cache::Cache;
pub use client::Client;
pub use lock::LockGuard;
pub use scan::Scan;
pub use transaction::Transaction;
pub use watch::Watch;
