//! A toy store, small but real: the first user of kvd's client, and a place to read how each technique is done.
//!
//! Each technique is a module: `prefork` (worker processes behind one listening socket), `database` (the SQL that everything
//! comes from), `catalogue` (products in pieces that live as long as each may), `web` (pages, and how long they may be kept).
//! This file chooses what the process is; it must not know how any of it is done.

#![forbid(unsafe_code)]

mod catalogue;
mod cli;
mod database;
mod prefork;
mod web;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("APP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_read_by_a_person = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_read_by_a_person)
        .with_writer(std::io::stderr)
        .init();
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("app: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<(), Failure> {
    // One thread a process: a shop that wants more hands starts more workers. And a worker is told of its parent's death when the
    // thread ends that started it, so in the parent that has to be this one.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    match command {
        Command::Web(web) => runtime.block_on(prefork::lead(web)),
        Command::Worker(worker) => runtime.block_on(prefork::work(worker)),
    }
}
