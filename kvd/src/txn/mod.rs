//! Who may change what while others' transactions are open, who loads what, and who has which name locked: lock modes, the
//! table of locks, and the wait-for graph.
//!
//! Plain data under the engine's mutex: `engine::waiting` waits, `engine::transaction` reads and writes. Nothing here knows
//! an item, a clock or a socket. In reading order: [`locking`] says what each mode locks, [`table`] who holds and who
//! waits, [`graph`] who would wait for ever.

mod graph;
pub(crate) mod locking;
mod park;
mod table;

pub(crate) use locking::{Locking, Need, Needs, Touched};
pub use park::{Park, Parked, ThreadPark, Unpark};
pub(crate) use table::{Acquired, Doom, Locks, Party, PartyKind, Who};

use crate::store::CacheId;

/// A transaction's number and fencing token: never given twice, not even across crashes.
pub(crate) type Number = u64;

/// What can be locked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Resource {
    /// Everything there is.
    Database,
    /// A cache and all keys it has or may get.
    Cache(CacheId),
    /// A key, whether or not there is an item.
    Key(CacheId, Box<[u8]>),
    /// The right to load the item of a key.
    Lease(CacheId, Box<[u8]>),
    /// A name that means something to the processes of this host.
    Name(Box<str>),
}

impl Resource {
    /// Whether it keeps others from reading or writing; leases and names do not.
    pub(crate) fn is_data(&self) -> bool {
        match self {
            Resource::Database | Resource::Cache(_) | Resource::Key(..) => true,
            Resource::Lease(..) | Resource::Name(_) => false,
        }
    }
}

/// How it is locked ("Granularity of Locks and Degrees of Consistency", Gray et al., 1976).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Something inside is read.
    IntentShared,
    /// Something inside is written.
    IntentExclusive,
    /// It is read.
    Shared,
    /// It is read, and something inside is written.
    SharedIntentExclusive,
    /// It is written.
    Exclusive,
}

impl Mode {
    /// Whether two parties may hold these at once.
    pub(crate) fn admits(self, other: Mode) -> bool {
        use Mode::{Exclusive, IntentExclusive, IntentShared, Shared, SharedIntentExclusive};
        match (self, other) {
            (Exclusive, _) | (_, Exclusive) => false,
            (IntentShared, _) | (_, IntentShared) => true,
            (Shared, Shared) | (IntentExclusive, IntentExclusive) => true,
            (
                Shared | IntentExclusive | SharedIntentExclusive,
                Shared | IntentExclusive | SharedIntentExclusive,
            ) => false,
        }
    }

    /// The weakest that grants what both grant.
    pub(crate) fn and(self, other: Mode) -> Mode {
        use Mode::{Exclusive, IntentExclusive, IntentShared, Shared, SharedIntentExclusive};
        match (self, other) {
            (one, other) if one == other => one,
            (Exclusive, _) | (_, Exclusive) => Exclusive,
            (IntentShared, stronger) | (stronger, IntentShared) => stronger,
            (
                Shared | IntentExclusive | SharedIntentExclusive,
                Shared | IntentExclusive | SharedIntentExclusive,
            ) => SharedIntentExclusive,
        }
    }
}

#[cfg(test)]
mod tests;
