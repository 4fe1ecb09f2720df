//! The daemon as a library: what the binary is made of, and what an application embeds.

#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod embedded;
pub mod engine;
pub mod exposition;
pub mod handover;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod orders;
pub(crate) mod process;
pub mod server;
pub mod store;
pub mod supervisor;
pub mod testing;
pub(crate) mod txn;
pub mod units;
pub(crate) mod users;
pub(crate) mod waited;

pub use embedded::Embedded;

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
