//! What the client promises, number by number, through its public methods and against a real daemon in this process.
//!
//! Each test is named after the semantics that it holds the client to, so that `cargo test --test semantics semantic_07` runs
//! what belongs to one. `storm` mixes them at random; `hostile` is what no application should do.

#[path = "../fake/mod.rs"]
mod fake;

mod hostile;
mod hostile_many;
mod load_async;
mod load_blocking;
mod nested;
mod outage;
mod paths;
mod retry;
mod said;
mod stale;
mod storm;
mod support;
