//! Loading what is not there: the part that both clients share, without any I/O.
//!
//! `get_or_load` looks in memory, then asks the daemon for the item or for the lease to load it, runs the caller's loader, and
//! fills. In reading order: [`entry`] is how a caller says what it wants, [`fill`] what its loader sees, [`course`] what
//! each answer of the daemon leads to; [`chain`] knows what the caller is loading already, so that no load waits for itself;
//! [`flights`] lets callers of one process share a load; [`standby`] keeps what was loaded while the daemon is away. How
//! bytes travel and how threads or tasks wait is in `blocking::load` and `asynchronous::load`.

pub(crate) mod chain;
pub(crate) mod course;
pub(crate) mod entry;
pub(crate) mod fill;
pub(crate) mod flights;
pub(crate) mod glance;
pub(crate) mod missing;
pub(crate) mod standby;

pub use entry::{EntryBuilder, OnBusy};
pub use fill::Fill;
pub use missing::Missing;
