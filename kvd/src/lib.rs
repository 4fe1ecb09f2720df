//! The daemon as a library.

pub mod clock;
