//! Cross-process tests: a real daemon, real workers, real signals.
//!
//! Compiled as a target of `kvd`, so that the binary under test is built with it. Every test has a directory and a
//! socket of its own; all run in parallel.

mod access;
mod architecture;
mod backups;
mod churn;
mod clear_stale;
mod clearing;
mod compacting;
mod crash;
mod demo;
mod dumps;
mod fair;
mod flood;
mod herd;
mod holders;
mod hostile;
mod inspection;
mod intruder;
mod leases;
mod life;
mod lifecycle;
mod mistakes;
mod operations;
mod outage;
mod packaging;
mod raw;
mod readers;
mod reload;
mod restart;
mod rings;
mod serial;
mod shared;
mod starved;
mod supervised;
mod support;
mod torn;
mod transactions;
mod worker;
