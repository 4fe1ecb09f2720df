//! A daemon inside a test: a temporary directory, a real socket, and a clock that the test moves.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::config::Config;
use crate::engine::Engine;
use crate::server::Server;

/// How long stopping may take.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A running daemon of this process; stopped and removed when dropped.
pub struct TestServer {
    dir: TempDir,
    clock: Clock,
    engine: Arc<Engine>,
    server: Option<Server>,
}

/// Starts a daemon with 64 MiB of memory in a temporary directory.
///
/// ```
/// use std::time::Duration;
/// let server = kvd::testing::server();
/// let cache = server.client().cache("product");
/// cache.put("42", "rocket", Duration::from_secs(60))?;
/// server.clock().advance(Duration::from_secs(60));
/// assert_eq!(cache.get("42")?, None);
/// # Ok::<(), kv_client::Error>(())
/// ```
///
/// # Panics
/// When it cannot be started: a test has nothing better to do.
#[must_use]
pub fn server() -> TestServer {
    server_with(|config| config.memory_bytes = 64 << 20)
}

/// Starts a daemon with a configuration of the test's own.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn server_with(configure: impl FnOnce(&mut Config)) -> TestServer {
    let dir =
        tempfile::Builder::new().prefix("kvd-test-").tempdir().expect("a temporary directory can be made");
    let mut config = Config::in_dir(dir.path());
    config.memory_bytes = 64 << 20;
    config.default.memory_bytes = 4 << 20;
    config.journal_bytes_max = 16 << 20;
    configure(&mut config);
    config.validate().unwrap_or_else(|error| panic!("{error}"));
    let clock = Clock::system();
    let engine = Engine::open(config.clone(), clock.clone()).unwrap_or_else(|error| panic!("{error}"));
    let server = Server::start(Arc::clone(&engine), &config).unwrap_or_else(|error| panic!("{error}"));
    TestServer { dir, clock, engine, server: Some(server) }
}

impl TestServer {
    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.server.as_ref().expect("it runs until it is dropped").socket()
    }

    /// The directory with its store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The clock its items live by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What serves its requests.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// A blocking client of it.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::builder().socket(self.socket()).build().unwrap_or_else(|error| panic!("{error}"))
    }
}

impl TestServer {
    /// A client that applies its requests in the calling thread, without a socket: for writing as fast as can be.
    #[must_use]
    pub fn direct(&self) -> Client {
        crate::embedded::direct(&self.engine)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop(STOP_WITHIN);
        }
        if let Err(failure) = self.engine.close(Instant::now() + STOP_WITHIN) {
            tracing::error!(%failure, "the test's store was not closed cleanly");
        }
    }
}
