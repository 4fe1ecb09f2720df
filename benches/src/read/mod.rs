//! `bench read`: kvd's reads through shared memory beside what else a process can read from.
//!
//! `bin/bench` calls [`run`]. In reading order: `workloads` says what is run and what the goals are, `turns` in which
//! order, `hosts` prepares what is read, [`client`] is one process that reads, `draws` chooses its keys, and
//! `mechanisms` has a file for each thing that can be read from: to add one, add a file and its line there.

pub mod client;
mod draws;
mod hosts;
mod mechanisms;
mod turns;
mod workloads;

pub(crate) use client::Pick;
pub(crate) use draws::Draws;
pub(crate) use hosts::calm;
#[cfg(not(feature = "bdb"))]
pub(crate) use mechanisms::BDB_ABSENT;
pub use mechanisms::Mechanism;
pub(crate) use mechanisms::{Key, kvd, lmdb};
pub use turns::run;
pub use workloads::{GOALS, ReadWorkload, Reading, all};

/// Version lines of what is not a server.
#[must_use]
pub fn versions() -> Vec<(&'static str, String)> {
    let version =
        |mechanism: Mechanism| mechanism.version().unwrap_or_else(|reason| format!("none: {reason}"));
    vec![("lmdb", version(Mechanism::Lmdb)), ("bdb", version(Mechanism::BdbCds))]
}
