//! The daemon as a library: what the binary is made of, and what an application embeds.

pub mod clock;
pub mod config;
#[path = "engine_stub.rs"]
pub mod engine;
pub mod metrics;
pub mod server;
pub mod units;
