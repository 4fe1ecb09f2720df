//! Prepares what is read: a server with its items, or a directory with theirs.
//!
//! Called by [`super::turns`]. A server is stopped by a signal until its turn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_client::blocking::{Cache, Client};
use kv_client::{PutOptions, ReadPath};
use tempfile::TempDir;

use super::client::{Pick, ReadOp, ReadSpec, Role};
use super::mechanisms::{Mechanism, Shared, answered};
use crate::BenchError;
use crate::client::load;
use crate::clock::sleep;
use crate::peers::{Kind, Places, Server};
use crate::protocol::{CACHE, Shape};

/// The cache of kvd whose items have two tags and a life.
pub(super) const TAGGED: &str = "tagged";
/// How often all keys are read until all of them are in memory.
const SETTLE_PASSES_MAX: usize = 6;
/// How often it is looked whether the daemon is done with what it was filled with.
const CALM_LOOKS_MAX: usize = 40;
const CALM_LOOK: Duration = Duration::from_millis(250);

/// What is stored, and how much room it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Store {
    /// Items.
    pub keys: u64,
    /// Length of each value.
    pub value_bytes: u32,
    /// Memory of kvd's cache, in MiB; of the other servers too, if it is not less than they have anyway.
    pub memory_mib: u64,
    /// Whether all items fit in there.
    pub fits: bool,
}

impl Store {
    pub(super) fn shape(self) -> Shape {
        Shape { key_digits: 8, value_bytes: self.value_bytes }
    }
}

/// Something that processes read.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) family: Mechanism,
    pub(super) store: Store,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Server(Server),
    Files(TempDir),
    Nothing,
}

impl Host {
    /// Starts and fills it.
    ///
    /// # Errors
    /// When it is not installed or fails; the reason is for a person to read.
    pub(super) fn prepare(mechanism: Mechanism, store: Store, places: &Places) -> Result<Host, String> {
        let prepare = || {
            Ok(match mechanism.shared() {
                Shared::Server(Kind::Kvd) => Kept::Server(start_kvd(store, places)?),
                Shared::Server(kind) => {
                    let server = Server::start(kind, places)?;
                    load(kind.wire(), server.socket(), store.shape(), store.keys)?;
                    server.pause()?;
                    Kept::Server(server)
                }
                Shared::Files => {
                    let dir = tempfile::Builder::new().prefix("kvd-bench-read-").tempdir_in(&places.dir);
                    let dir = dir.map_err(BenchError::io("making a directory"))?;
                    mechanism.fill(&spec(mechanism, store, dir.path()))?;
                    Kept::Files(dir)
                }
                Shared::Nothing => Kept::Nothing,
            })
        };
        match mechanism.shared() {
            Shared::Server(kind) => kind.version(places)?,
            Shared::Files | Shared::Nothing => mechanism.version()?,
        };
        let kept = prepare().map_err(|error: BenchError| error.to_string())?;
        Ok(Host { family: mechanism.family(), store, kept })
    }

    pub(super) fn place(&self) -> PathBuf {
        match &self.kept {
            Kept::Server(server) => server.socket().to_owned(),
            Kept::Files(dir) => dir.path().to_owned(),
            Kept::Nothing => PathBuf::new(),
        }
    }

    pub(super) fn server(&self) -> Option<&Server> {
        match &self.kept {
            Kept::Server(server) => Some(server),
            Kept::Files(_) | Kept::Nothing => None,
        }
    }
}

/// A reader of everything, to be changed where it should be otherwise.
pub(super) fn spec(mechanism: Mechanism, store: Store, place: &Path) -> ReadSpec {
    ReadSpec {
        mechanism,
        op: ReadOp::Get,
        role: Role::Read,
        pick: Pick::Uniform,
        shape: store.shape(),
        keys: store.keys,
        seed: 0,
        place: place.to_owned(),
        cache: CACHE.to_owned(),
        latency_ns: 0,
    }
}

fn start_kvd(store: Store, places: &Places) -> Result<Server, BenchError> {
    let Store { memory_mib, .. } = store;
    let cache = |name| {
        format!("\n[caches.{name}]\nmemory = \"{memory_mib}MiB\"\ndisk = \"4GiB\"\ndurability = \"behind\"\n")
    };
    let names = if store.fits { vec![CACHE, TAGGED] } else { vec![CACHE] };
    let memory_all_mib = memory_mib * names.len() as u64;
    let config =
        format!("memory = \"{memory_all_mib}MiB\"\n") + &names.into_iter().map(cache).collect::<String>();
    let server = Server::start_configured(Kind::Kvd, places, &config)?;
    load(Kind::Kvd.wire(), server.socket(), store.shape(), store.keys)?;
    if store.fits {
        let client = Client::builder().socket(server.socket()).build().map_err(answered)?;
        settle(&client, &client.cache(CACHE), store)?;
    }
    calm(&server);
    server.pause()?;
    Ok(server)
}

/// Waits until the daemon has put away what it was filled with: that is a matter of writes.
pub(crate) fn calm(server: &Server) {
    for _ in 0..CALM_LOOKS_MAX {
        let before_s = server.cpu_s();
        sleep(CALM_LOOK);
        if server.cpu_s() - before_s < 0.02 {
            return;
        }
    }
    eprintln!("  kvd is still busy with what it was filled with");
}

impl Host {
    /// Puts the items with two tags and a life too, where they are wanted.
    pub(super) fn fill_tagged(&self) -> Result<(), BenchError> {
        let Some(server) = self.server() else { return Ok(()) };
        let client = Client::builder().socket(server.socket()).build().map_err(answered)?;
        let cache = client.cache(TAGGED);
        let shape = self.store.shape();
        for number in 0..self.store.keys {
            let options = PutOptions::new()
                .ttl(Duration::from_secs(86_400))
                .tag(format!("shelf:{}", number % 1_000))
                .tag(format!("maker:{}", number % 300));
            cache.put_with(shape.key_of(number), shape.value_of(number), options).map_err(answered)?;
        }
        settle(&client, &cache, self.store)?;
        calm(server);
        Ok(())
    }
}

/// Reads all keys until no read goes to the daemon any more. What was pushed out while the cache was filled comes back
/// by being read, as it would at a site; what is measured afterwards is memory.
fn settle(client: &Client, cache: &Cache, store: Store) -> Result<(), BenchError> {
    let shape = store.shape();
    let mut before = 0;
    for _ in 0..SETTLE_PASSES_MAX {
        for number in 0..store.keys {
            if cache.get(shape.key_of(number)).map_err(answered)?.is_none() {
                let what = format!("{} is not there", shape.key_of(number));
                return Err(BenchError::Answer { server: "kvd", what });
            }
        }
        let stats = client.stats();
        let stats = stats.caches.iter().find(|stats| stats.name == cache.name());
        let asked = stats.map_or(0, |stats| stats.fallbacks.not_attached + stats.fallbacks.not_resident);
        if asked == before && stats.is_some_and(|stats| stats.path == ReadPath::Shared) {
            return Ok(());
        }
        before = asked;
        sleep(Duration::from_millis(20));
    }
    let what = format!(
        "keys that are still not in memory after {SETTLE_PASSES_MAX} readings of all: {before} asked"
    );
    Err(BenchError::Answer { server: "kvd", what })
}
