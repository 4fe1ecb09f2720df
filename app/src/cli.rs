//! The command line, and what ends a process of the shop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, value_parser};
use kv_client::Client;

use crate::database::Database;
use crate::faults::Fault;
use crate::orders::payment::Mood;
use crate::visitors::throttle::Limits;

/// Most worker processes one parent keeps. Beyond: refused, with the limit named.
const WORKERS_MAX: i64 = 256;
/// How long one attempt to reach kvd may take.
const CONNECT_WITHIN: Duration = Duration::from_millis(300);
/// How long kvd may take to answer. A page that waits for a stopped daemon waits so long, once a worker.
const CACHE_WITHIN: Duration = Duration::from_secs(1);
/// How long requests wait for a daemon that is coming back. Longer than its last sign of life is believed: when this is over, no worker reads
/// a dead daemon's memory any more, in which there is nothing of what was changed since.
const GRACE: Duration = Duration::from_millis(600);

/// A toy store on kvd.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the process is.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Opens a whole shop: database, catalogue, kvd, web workers, orders and refresh; until Ctrl-C.
    Demo(Demo),
    /// Opens a shop, sends it the visitors of a Christmas, and says how it did.
    Christmas(Christmas),
    /// Sends visitors to a shop that is open.
    Load(Load),
    /// Serves the shop's pages.
    Web(Web),
    /// Charges what was ordered and writes the mails. Several may run.
    Orders(Orders),
    /// Loads again what is looked at before it expires, and rebuilds the search index.
    Refresh(Refresh),
    /// Fills the database with a catalogue, and builds the search index.
    Import(Import),
    /// Removes old carts, sessions and delivered events; once.
    Clean(Clean),
    /// Compares the orders that are paid with the ledger of the payment stand-in.
    Audit {
        #[command(flatten)]
        places: Places,
    },
    /// Deletes the cached copy of one page.
    Purge(Purge),
    /// Sets the price of a toy, and clears what shows it.
    Price(SetPrice),
    /// Signs cookies with a new key from the next start of a worker on; the two last keys are still believed.
    RotateKeys {
        #[command(flatten)]
        places: Places,
    },
    /// One of the workers; started by `web`, with the listening socket as standard input.
    #[command(hide = true)]
    Worker(Worker),
    /// The cache of a demo.
    #[command(hide = true)]
    Kvd(Daemon),
}

/// Where everything of a shop is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// The shop's directory: search index, keys, mails, payments and, unless said otherwise, the database.
    #[arg(long, value_name = "DIR", env = "SHOP_DATA", default_value = "shop-data")]
    pub(crate) data: PathBuf,
    /// A file of SQLite, or the URL of a PostgreSQL database.
    #[arg(long, value_name = "URL", env = "SHOP_DATABASE")]
    pub(crate) database: Option<String>,
    /// A read replica of it; may be given several times.
    #[arg(long = "replica", value_name = "URL")]
    pub(crate) replicas: Vec<String>,
    /// The socket of kvd. Without it: `KVD_SOCKET`, then the usual places.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) cache: Option<PathBuf>,
}

impl Places {
    pub(crate) fn database(&self) -> Result<Database, Failure> {
        std::fs::create_dir_all(&self.data)
            .map_err(|source| Failure::Directory { dir: self.data.clone(), source })?;
        let place =
            self.database.clone().unwrap_or_else(|| self.data.join("shop.sqlite").display().to_string());
        Ok(Database::open(&place, &self.replicas).map_err(Fault::from)?)
    }

    /// A client that connects when it is first used: the shop opens without its cache, only slower.
    pub(crate) fn client(&self, name: &str) -> Client {
        let builder = self.cache.iter().fold(Client::builder(), |builder, socket| builder.socket(socket));
        builder
            .name(name)
            .connect_timeout(CONNECT_WITHIN)
            .op_timeout(CACHE_WITHIN)
            .restart_grace(GRACE)
            .build_lazy()
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.data.join("index")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.data.join("keys")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.data.join("payments.sqlite")
    }

    pub(crate) fn mail(&self) -> PathBuf {
        self.data.join("mail")
    }

    /// The same places as arguments for another process.
    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec!["--data".into(), self.data.clone().into()];
        arguments.extend(self.database.iter().flat_map(|place| ["--database".into(), place.into()]));
        arguments.extend(self.replicas.iter().flat_map(|place| ["--replica".into(), place.into()]));
        arguments.extend(self.cache.iter().flat_map(|place| ["--cache".into(), place.into()]));
        arguments
    }
}

/// How the shop treats its visitors.
#[derive(Debug, Clone, Args)]
pub(crate) struct Manners {
    /// Another name, with its port, that the shop goes by; a proxy in front passes it on. May be given several times.
    #[arg(long = "host", value_name = "NAME:PORT")]
    pub(crate) hosts: Vec<String>,
    /// Requests that a visitor with a session may make in a minute.
    #[arg(long, value_name = "N", default_value = "600")]
    pub(crate) throttle: i64,
    /// Requests that all visitors of one address without a session may make in a minute.
    #[arg(long, value_name = "N", default_value = "6000")]
    pub(crate) throttle_address: i64,
}

/// The parent.
#[derive(Debug, Clone, Args)]
pub(crate) struct Web {
    /// Worker processes.
    #[arg(long, value_name = "N", default_value = "4", value_parser = value_parser!(u16).range(1..=WORKERS_MAX))]
    pub(crate) workers: u16,
    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) manners: Manners,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// A worker.
#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The parent's process id: a worker does not outlive it.
    #[arg(long, value_name = "PID")]
    pub(crate) parent: i32,
    /// Its place among the workers.
    #[arg(long, value_name = "N")]
    pub(crate) slot: u16,
    /// How many there are.
    #[arg(long, value_name = "N")]
    pub(crate) workers: u16,
    #[command(flatten)]
    pub(crate) manners: Manners,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// What a worker serves by.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) slot: u16,
    pub(crate) workers: u16,
    pub(crate) hosts: Vec<String>,
    pub(crate) throttle: i64,
    pub(crate) throttle_address: i64,
    pub(crate) places: Places,
}

impl Serving {
    pub(crate) fn of(worker: &Worker) -> Serving {
        let Manners { hosts, throttle, throttle_address } = worker.manners.clone();
        let (slot, workers, places) = (worker.slot, worker.workers, worker.places.clone());
        Serving { slot, workers, hosts, throttle, throttle_address, places }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { session: self.throttle, address: self.throttle_address }
    }
}

/// The order processor.
#[derive(Debug, Args)]
pub(crate) struct Orders {
    /// The process that started it: it does not outlive that one.
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<i32>,
    /// The mail server, unencrypted, so one of this host. Without it mails are files in the shop's directory.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) smtp: Option<String>,
    /// How long the payment stand-in takes, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "0")]
    pub(crate) payment_ms: u64,
    /// Of a hundred requests to the payment stand-in so many fail.
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = value_parser!(u8).range(0..=100))]
    pub(crate) payment_away: u8,
    #[command(flatten)]
    pub(crate) places: Places,
}

impl Orders {
    pub(crate) fn mood(&self) -> Mood {
        Mood { slow: Duration::from_millis(self.payment_ms), away_percent: self.payment_away }
    }
}

/// The refresher.
#[derive(Debug, Args)]
pub(crate) struct Refresh {
    /// The process that started it: it does not outlive that one.
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<i32>,
    /// How many of the toys that somebody looks at are kept warm.
    #[arg(long, value_name = "N", default_value = "8192")]
    pub(crate) toys_max: usize,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// What to fill the database with.
#[derive(Debug, Clone, Args)]
pub(crate) struct Toys {
    /// A CSV file of toy sets. Without it toys are made up.
    #[arg(long, value_name = "FILE")]
    pub(crate) catalogue: Option<PathBuf>,
    /// How many to make up.
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) toys: usize,
    /// The same number makes up the same toys.
    #[arg(long, value_name = "N", default_value = "1999")]
    pub(crate) seed: u64,
}

/// An import.
#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(flatten)]
    pub(crate) toys: Toys,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// The nightly clean-up.
#[derive(Debug, Args)]
pub(crate) struct Clean {
    /// Carts and sessions that nobody touched for so many days go.
    #[arg(long, value_name = "DAYS", default_value = "30")]
    pub(crate) days: u32,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// A purge.
#[derive(Debug, Args)]
pub(crate) struct Purge {
    /// The page's address, host included.
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// A price.
#[derive(Debug, Args)]
pub(crate) struct SetPrice {
    /// The toy's number.
    #[arg(value_name = "TOY")]
    pub(crate) toy: i64,
    /// What it costs from now on.
    #[arg(value_name = "CENTS", value_parser = value_parser!(i64).range(0..=100_000_000))]
    pub(crate) cents: i64,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// The cache's process.
#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// Where its store and socket are.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The process that started it: it does not outlive that one.
    #[arg(long, value_name = "PID")]
    pub(crate) parent: i32,
}

/// A whole shop.
#[derive(Debug, Clone, Args)]
pub(crate) struct Demo {
    /// Worker processes.
    #[arg(long, value_name = "N", default_value = "4", value_parser = value_parser!(u16).range(1..=WORKERS_MAX))]
    pub(crate) workers: u16,
    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// The shop's directory, kept. Without it a temporary one, removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The URL of a PostgreSQL database. Without it SQLite.
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// A read replica of it; may be given several times.
    #[arg(long = "replica", value_name = "URL")]
    pub(crate) replicas: Vec<String>,
    #[command(flatten)]
    pub(crate) toys: Toys,
    #[command(flatten)]
    pub(crate) manners: Manners,
}

/// How many visitors come, and for how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct Crowd {
    /// New sessions a second, of twelve views each.
    #[arg(long, value_name = "N", default_value = "55", value_parser = value_parser!(u32).range(1..=10_000))]
    pub(crate) sessions: u32,
    /// How long they keep coming, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = value_parser!(u32).range(1..=3_600))]
    pub(crate) seconds: u32,
    /// Of a hundred sessions so many order.
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = value_parser!(u8).range(0..=100))]
    pub(crate) ordering: u8,
    /// The same number sends the same visitors.
    #[arg(long = "visitors-seed", value_name = "N", default_value = "2000")]
    pub(crate) visitors_seed: u64,
}

/// A load.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Where the shop listens.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) address: SocketAddr,
    #[command(flatten)]
    pub(crate) crowd: Crowd,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// A whole Christmas.
#[derive(Debug, Args)]
pub(crate) struct Christmas {
    /// Seconds before the measured ones, in which the caches fill.
    #[arg(long, value_name = "SECONDS", default_value = "20")]
    pub(crate) warm_up: u32,
    /// Do not look for the highest rate afterwards.
    #[arg(long)]
    pub(crate) no_search: bool,
    #[command(flatten)]
    pub(crate) crowd: Crowd,
    #[command(flatten)]
    pub(crate) demo: Demo,
}

/// What ends a process of the shop. All of it is for whoever started it to put right.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the runtime does not start: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("standard input is no listening socket: {0}; workers are started by `app web`")]
    NoListener(#[source] io::Error),
    #[error("signals cannot be received: {0}")]
    Signals(#[source] io::Error),
    #[error("directory {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error("the parent, process {0}, is gone")]
    Orphaned(i32),
    #[error("the page templates: {0}")]
    Templates(#[from] minijinja::Error),
    #[error("catalogue {}: {message}", file.display())]
    Catalogue { file: PathBuf, message: String },
    #[error("a catalogue of {toys} toys, limit is {limit}")]
    TooManyToys { toys: usize, limit: usize },
    #[error("{url} is no page that is cached: give the whole address, as http://HOST:PORT/product/42")]
    NoSuchPage { url: String },
    #[error("orders and ledger do not agree")]
    Audit,
    #[error("there is no toy {0}")]
    NoSuchToy(i64),
    #[error("{role} was not ready within {within:?}")]
    NotReady { role: &'static str, within: Duration },
    #[error("kvd: {0}")]
    Daemon(String),
    #[error(transparent)]
    Fault(#[from] Fault),
}
