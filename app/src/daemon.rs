//! kvd as a process of the demo: the library served from this binary, so that one command opens a whole shop.
//!
//! Outside a demo `kvd serve` does this, and more. What matters here are the caches' manners, each as its technique needs it. The pitfall is one
//! manner for all: sessions that come back from a disk after a crash may be older than the database, so they live in memory only, and
//! so do counters; objects and pages survive, stale, and are loaded again one by one instead of all at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd::clock::Clock;
use kvd::config::{CacheConfig, Config};
use kvd::engine::Engine;
use kvd::server::Server;

use kv_client::Durability;

use crate::cli::{Daemon, Failure};
use crate::staff::{self, told_to_end};

/// Bound of all caches together.
const MEMORY_BYTES: u64 = 256 << 20;
/// How long stopping may take.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What kvd is told for a shop whose cache lives in `dir`.
pub(crate) fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::in_dir(dir);
    config.memory_bytes = MEMORY_BYTES;
    let on_disk = |mib: u64| CacheConfig::of_memory(mib << 20);
    let in_memory = |mib: u64| CacheConfig {
        durability: Durability::Memory,
        disk_bytes_max: 0,
        ..CacheConfig::of_memory(mib << 20)
    };
    config.caches = [
        ("description", on_disk(24)),
        ("price", on_disk(16)),
        ("inventory", in_memory(16)),
        ("list", on_disk(16)),
        ("page", in_memory(96)),
        ("session", in_memory(24)),
        ("throttle", in_memory(16)),
        ("metrics", in_memory(8)),
    ]
    .map(|(name, cache)| (name.to_owned(), cache))
    .into();
    config
}

/// The process: until TERM or INT, and not longer than its parent.
pub(crate) async fn serve(options: &Daemon) -> Result<(), Failure> {
    let told = told_to_end()?;
    staff::end_with_parent(options.parent)?;
    std::fs::create_dir_all(&options.dir)
        .map_err(|source| Failure::Directory { dir: options.dir.clone(), source })?;
    let config = config(&options.dir);
    config.validate().map_err(|error| Failure::Daemon(error.to_string()))?;
    let engine =
        Engine::open(config.clone(), Clock::system()).map_err(|error| Failure::Daemon(error.to_string()))?;
    let server =
        Server::start(Arc::clone(&engine), &config).map_err(|error| Failure::Daemon(error.to_string()))?;
    told.await;
    server.stop(STOP_WITHIN);
    engine.close(Instant::now() + STOP_WITHIN).map_err(|error| Failure::Daemon(error.to_string()))
}
