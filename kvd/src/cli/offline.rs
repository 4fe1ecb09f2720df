//! Commands on a store whose daemon is down: under the daemon's own lock, by the engine itself.
//!
//! Used by the commands that have `--offline`. They do the same as through a daemon, because it is the same engine that
//! does it; only the socket is missing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kvd::Embedded;
use kvd::config::{Config, Sources};
use kvd::engine::StartError;

use super::common::Common;
use super::failure::{Exit, Failure};

/// The name of the store's file, by which one is found.
const STORE_FILE: &str = "store.redb";
/// The last flush of what was changed may take this long.
const CLOSE_MAX: Duration = Duration::from_secs(30);

/// Where the store is.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The store's directory. Else what the configuration says
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<String>,
    /// The daemon's configuration file. Else where `kvd serve` looks
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

/// Flags of commands that a daemon usually carries out.
#[derive(Debug, clap::Args)]
pub(super) struct Offline {
    /// The daemon is down: work on its store, under its lock
    #[arg(long)]
    offline: bool,
    /// The store's directory, with --offline. Else what the configuration says
    #[arg(long, value_name = "DIR", requires = "offline")]
    dir: Option<String>,
    /// The daemon's configuration file, with --offline. Else where `kvd serve` looks
    #[arg(long, value_name = "FILE", requires = "offline")]
    config: Option<PathBuf>,
}

/// A way to the data.
pub(super) enum Way {
    /// Through a daemon.
    Served(Client),
    /// By an engine of this process.
    Own(Box<Embedded>),
}

impl Place {
    /// The daemon's configuration.
    pub(super) fn load(&self) -> Result<Config, Failure> {
        let flags = self.dir.iter().map(|dir| ("dir", dir.clone())).collect();
        Config::load(&Sources::process(self.config.clone(), flags)).map_err(refused)
    }
}

impl Offline {
    /// Connects, or opens the store.
    pub(super) fn open(&self, common: &Common) -> Result<Way, Failure> {
        if !self.offline {
            return common.client().map(Way::Served);
        }
        let place = Place { dir: self.dir.clone(), config: self.config.clone() };
        let mut config = place.load()?;
        must_be_a_store(&config.dir)?;
        // What the daemon gives its caches is not for this short while to say: nothing is evicted.
        config.default.disk_bytes_max = u64::MAX;
        config.caches.values_mut().for_each(|cache| cache.disk_bytes_max = u64::MAX);
        let own = Embedded::with(config).map_err(cannot_open)?;
        Ok(Way::Own(Box::new(own)))
    }
}

impl Way {
    pub(super) fn client(&self) -> Client {
        match self {
            Way::Served(client) => client.clone(),
            Way::Own(own) => own.client(),
        }
    }

    /// Makes what was done durable, if that is ours to do, and gives what `outcome` was.
    pub(super) fn close<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let Way::Own(own) = self else { return outcome };
        let closed = own.close_by(Instant::now() + CLOSE_MAX);
        let done = outcome?;
        closed.map_err(|error| Failure::Daemon {
            message: format!("done, but the store was not closed cleanly; its next start replays: {error}"),
            exit: Exit::Daemon,
        })?;
        Ok(done)
    }
}

/// Refuses a directory in which there is no store: to open it would make one.
pub(super) fn must_be_a_store(dir: &Path) -> Result<(), Failure> {
    if dir.join(STORE_FILE).is_file() {
        return Ok(());
    }
    Err(refused(format!(
        "{}: there is no store in it; say where it is with --dir or --config",
        dir.display()
    )))
}

pub(super) fn cannot_open(error: StartError) -> Failure {
    match error {
        StartError::Lock(error) => {
            refused(format!("{error}; or leave --offline away: the daemon does it while it serves"))
        }
        other => refused(other),
    }
}

pub(super) fn refused(why: impl ToString) -> Failure {
    Failure::Daemon { message: why.to_string(), exit: Exit::Start }
}
