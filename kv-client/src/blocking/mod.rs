//! The blocking client: for programs of processes and threads, safe across `fork`.
//!
//! Each call takes a connection of its own from a pool while it lasts, so threads that share a [`Client`] never wait for
//! each other's answers, and a slow call (a durable write, `sync`) holds up nobody. Used by applications and by the
//! command line.

mod admin;
mod cache;
mod client;
mod connection;
mod direct;
mod scan;
mod transaction;

pub(crate) use connection::Connection;

pub use admin::Admin;
pub use cache::Cache;
pub use client::Client;
pub use direct::{Direct, DirectSession};
pub use scan::Scan;
pub use transaction::Transaction;
