//! What callers get: items, pages, counts, figures. Owned copies of what the wire borrows.
//!
//! Made by `ops`, read by applications and the command line.

mod client;
mod daemon;
mod items;

pub use client::{CacheStats, ClientStats, Fallbacks, Loads, ReadPath};
pub(crate) use daemon::Compacting;
pub use daemon::{
    AccessReport, CacheInfo, CacheRights, Checked, ClientInfo, Compacted, HotKey, Metric, Reloaded, Restart,
    SlowLog, SlowRequest, Stopping, TransactionInfo, Transactions,
};
pub use items::{Change, ClearedScope, Committed, Entry, Freshness, Life, Page, PutOutcome};
