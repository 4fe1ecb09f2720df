//! Visitors: who they are by their cookie, what they have by the database, and what they may not do.

pub(crate) mod cart;
pub(crate) mod cookie;
pub(crate) mod csrf;
pub(crate) mod session;
mod stored;
pub(crate) mod throttle;
