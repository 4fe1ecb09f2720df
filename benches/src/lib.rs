//! Benchmarks of kvd and of what it is compared with.
//!
//! `bin/bench` calls in here, one public module a question. The path of a measurement is the list of modules:
//! [`socket`], [`mod@read`] and [`locking`] say what is run, [`rounds`] in which order, [`peers`] starts the servers, [`fleet`] the client
//! processes, [`client`] is one of those, [`protocol`] is what it speaks, [`report`] and [`html`] print what came out.
//!
//! Nothing of the product may depend on this package.

#[cfg(feature = "bdb")]
mod bdb;
pub mod check;
pub mod client;
pub mod clock;
pub mod error;
pub mod fleet;
pub mod html;
pub mod load;
pub mod locking;
pub mod machine;
pub mod memory;
pub mod peers;
pub mod protocol;
pub mod read;
pub mod report;
pub mod rounds;
pub mod socket;
pub mod traces;

pub use error::BenchError;
