//! The command line, and what ends a process of the shop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, value_parser};

/// Most worker processes one parent keeps. Beyond: refused, with the limit named.
const WORKERS_MAX: i64 = 256;

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
    /// Serves the shop's pages.
    Web(Web),
    /// One of its workers; started by `web`, with the listening socket as standard input.
    #[command(hide = true)]
    Worker(Worker),
}

/// The parent.
#[derive(Debug, Args)]
pub(crate) struct Web {
    /// Worker processes.
    #[arg(long, value_name = "N", default_value = "4", value_parser = value_parser!(u16).range(1..=WORKERS_MAX))]
    pub(crate) workers: u16,
    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// A worker.
#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The parent's process id: a worker does not outlive it.
    #[arg(long, value_name = "PID")]
    pub(crate) parent: i32,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// Where what every worker needs is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// The SQLite database; made, with a hundred toys, where there is none.
    #[arg(long, value_name = "FILE")]
    pub(crate) database: PathBuf,
    /// The socket of kvd. Without it: `KVD_SOCKET`, then the usual places.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) cache: Option<PathBuf>,
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
    #[error("database {}: {source}", file.display())]
    Database { file: PathBuf, source: sqlx::Error },
    #[error("the parent, process {0}, is gone")]
    Orphaned(i32),
    #[error("the page templates: {0}")]
    Templates(#[from] minijinja::Error),
    #[error("serving ended: {0}")]
    Serve(#[source] io::Error),
}
