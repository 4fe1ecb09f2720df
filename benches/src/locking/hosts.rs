//! Prepares what the processes share: a daemon of its own or a directory of its own, with all items.
//!
//! Called by `turns` and `trials`. Everything that touches a store is done in a child process with a deadline.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::crew::Member;
use super::mechanisms::Mechanism;
use super::plan::Cell;
use super::worker::{Role, WorkerSpec};
use crate::BenchError;
use crate::clock::now_ns;
use crate::peers::{Kind, MEMORY_MIB, Places, Server};
use crate::protocol::CACHE;
use crate::read::calm;

/// How long filling may take.
const FILL_TIME_MAX: Duration = Duration::from_secs(60);

/// A store with all items.
pub(super) struct Host {
    pub(super) mechanism: &'static dyn Mechanism,
    keys: u64,
    value_bytes: u32,
    kept: Kept,
}

enum Kept {
    Server(Server),
    Files(TempDir),
}

impl Host {
    /// Starts and fills it. A daemon runs; whoever has several pauses those that are not measured.
    ///
    /// # Errors
    /// Why it cannot be run; the reason is for a person to read.
    pub(super) fn prepare(
        mechanism: &'static dyn Mechanism,
        cell: &Cell,
        places: &Places,
    ) -> Result<Host, String> {
        mechanism.version()?;
        let kept = match mechanism.locking() {
            Some(locking) => start(locking, places).map(Kept::Server),
            None => {
                let dir = tempfile::Builder::new().prefix("kvd-bench-locking-").tempdir_in(&places.dir);
                dir.map(Kept::Files).map_err(BenchError::io("making a directory"))
            }
        };
        let kept = kept.map_err(|error| error.to_string())?;
        let host = Host { mechanism, keys: cell.keys, value_bytes: cell.value_bytes, kept };
        let mut filler =
            Member::start(&host.spec(cell, 0, 0, Role::Fill)).map_err(|error| error.to_string())?;
        let deadline_ns = now_ns() + FILL_TIME_MAX.as_nanos() as u64;
        let filled: u64 =
            filler.report(deadline_ns).map_err(|silence| format!("filling: {}", silence.words()))?;
        if let Some(server) = host.server() {
            calm(server);
        }
        debug_assert_eq!(filled, cell.keys);
        Ok(host)
    }

    pub(super) fn server(&self) -> Option<&Server> {
        match &self.kept {
            Kept::Server(server) => Some(server),
            Kept::Files(_) => None,
        }
    }

    /// Whether its items are those of the cell.
    pub(super) fn fits(&self, cell: &Cell) -> bool {
        (self.keys, self.value_bytes) == (cell.keys, cell.value_bytes)
    }

    /// What a process is to do here.
    pub(super) fn spec(&self, cell: &Cell, seed: u64, index: u64, role: Role) -> WorkerSpec {
        let place: PathBuf = match &self.kept {
            Kept::Server(server) => server.socket().to_owned(),
            Kept::Files(dir) => dir.path().to_owned(),
        };
        WorkerSpec {
            mechanism: self.mechanism.name().to_owned(),
            place,
            cell: cell.clone(),
            seed,
            index,
            role,
        }
    }
}

fn start(locking: &str, places: &Places) -> Result<Server, BenchError> {
    let config = format!(
        "locking = \"{locking}\"\nmemory = \"{MEMORY_MIB}MiB\"\n\n[caches.{CACHE}]\nmemory = \"{MEMORY_MIB}MiB\"\n\
         disk = \"4GiB\"\ndurability = \"behind\"\n"
    );
    Server::start_configured(Kind::Kvd, places, &config)
}
