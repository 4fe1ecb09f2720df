//! `kvd demo`: the main job in one command, on a machine that has nothing else.
//!
//! Separate processes, as in production: a daemon, a stand-in database that is slow on purpose and counts what it is asked,
//! and workers that read through the cache. In the middle the daemon is killed. The command line calls [`run`]; the
//! processes are this same binary under hidden roles. It touches nothing outside its temporary directory, and leaves
//! nothing behind.

mod best;
mod conduct;
mod database;
mod moment;
mod objects;
mod report;
mod stage;
mod worker;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kvd::units::{parse_bytes, parse_duration};

/// See kvd at work: a daemon, a slow database and workers, with a kill -9 in the middle
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Starts a daemon in a temporary directory, a stand-in database with a deliberate delay that counts its loads, and worker
processes that read through the cache. In the middle the daemon is killed with -9 and started again. Everything is
stopped and removed at the end. Exits with 1 if anything promised was broken.

Examples:
  kvd demo                                             a shop-like workload, some seconds
  kvd demo --trace orm-busy.trace.xz                   a real trace: big-endian 32-bit keys, plain or xz
  kvd demo --trace orm-busy.trace.xz --memory 10%      with memory for a tenth of the objects' bytes"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    plan: Plan,
}

/// What is to be shown.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Worker processes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Threads a worker
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Replay this trace instead of the built-in workload
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Memory of the cache, as 64MiB, or 10% of the objects' bytes; room for everything unless said
    #[arg(long, value_name = "SIZE", value_parser = parse_budget)]
    memory: Option<Budget>,
    /// Keep nothing on disk: what leaves memory is gone, and so is everything after the kill
    #[arg(long)]
    memory_only: bool,
    /// Requests; the whole trace unless said, else 400,000
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    requests: Option<u64>,
    /// Of the built-in workload
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the stand-in database takes for a load
    #[arg(long, value_name = "DURATION", default_value = "2ms", value_parser = parse_duration)]
    db_delay: Duration,
    /// Seconds of the shop's time in a second of ours; such that the run is eight hours of the shop unless said
    #[arg(long, value_name = "FACTOR", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    time_scale: Option<u32>,
    /// Do not kill the daemon in the middle
    #[arg(long)]
    no_kill: bool,
    /// The result as JSON: a flag of the whole command line
    #[arg(skip)]
    json: bool,
}

/// Memory of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Budget {
    Bytes(u64),
    Percent(f64),
}

/// The processes of the demo, never started by hand.
#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Serve, and die with the demo
    #[command(hide = true)]
    Daemon {
        #[arg(long)]
        config: PathBuf,
        #[arg(long)]
        dir: PathBuf,
    },
    /// Be the stand-in database
    #[command(hide = true)]
    Database(database::Args),
    /// Be a worker
    #[command(hide = true)]
    Worker(worker::Args),
}

/// Runs the demo, or one of its processes.
pub(crate) fn run(mut args: Args, json: bool) -> ExitCode {
    args.plan.json = json;
    let outcome = match args.role {
        None => conduct::run(&args.plan),
        Some(Role::Daemon { config, dir }) => stage::become_daemon(&config, &dir).map(|()| ExitCode::SUCCESS),
        Some(Role::Database(args)) => database::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Role::Worker(args)) => worker::run(&args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("kvd demo: {error}");
        ExitCode::from(error.exit_code())
    })
}

/// Why the demo, or a process of it, could not go on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("{doing}: {source}")]
    Cache { doing: &'static str, source: kv_client::Error },
    #[error("{0}")]
    Plain(String),
    #[error("stopped by a signal; everything is removed")]
    Interrupted,
}

impl Failure {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
        let doing = doing.into();
        move |source| Failure::Io { doing, source }
    }

    fn cache(doing: &'static str) -> impl FnOnce(kv_client::Error) -> Failure {
        move |source| Failure::Cache { doing, source }
    }

    fn exit_code(&self) -> u8 {
        match self {
            // As the shell reports a program that INT ended.
            Failure::Interrupted => 130,
            Failure::Io { .. } | Failure::Cache { .. } | Failure::Plain(_) => 70,
        }
    }
}

fn parse_budget(text: &str) -> Result<Budget, String> {
    let Some(percent) = text.strip_suffix('%') else { return parse_bytes(text).map(Budget::Bytes) };
    match percent.trim().parse() {
        Ok(percent) if percent > 0.0 && percent <= 1_000.0 => Ok(Budget::Percent(percent)),
        _ => Err(format!("{text:?} is no share: write 10% or 64MiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_sizes_or_shares() {
        assert_eq!(parse_budget("10%"), Ok(Budget::Percent(10.0)));
        assert_eq!(parse_budget("64MiB"), Ok(Budget::Bytes(64 << 20)));
        assert!(parse_budget("-3%").is_err());
        assert!(parse_budget("some").is_err());
    }
}
