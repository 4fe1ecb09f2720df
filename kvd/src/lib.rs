//! The daemon as a library.

pub mod clock;
pub mod store;
