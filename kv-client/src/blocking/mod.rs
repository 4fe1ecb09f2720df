//! The blocking client: for programs of processes and threads, safe across `fork`.
//!
//! Each call takes a connection of its own from a pool while it lasts, so threads that share a [`Client`] never wait for
//! each other's answers, and a slow call (a durable write, `sync`) holds up nobody. Used by applications and by the
//! command line.

mod admin;
mod backup;
mod cache;
mod client;
mod compact;
mod connection;
mod crew;
mod direct;
mod flight;
mod load;
mod load_many;
pub(crate) mod lock;
mod road;
mod scan;
mod transaction;
mod typed;
mod watch;

pub(crate) use connection::Connection;

pub use admin::Admin;
pub use backup::Backup;
pub use cache::Cache;
pub use client::Client;
pub use direct::{Direct, DirectSession};
pub use lock::LockGuard;
pub use scan::Scan;
pub use transaction::Transaction;
pub use watch::Watch;
