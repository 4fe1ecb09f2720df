//! The daemon as a library: what the binary is made of, and what an application embeds.

pub mod clock;
pub mod config;
pub mod metrics;
pub mod units;
