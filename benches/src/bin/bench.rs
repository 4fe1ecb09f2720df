//! The command line of the benchmarks; people call it by `scripts/bench`.
//!
//! Decides what to run and where the results go. A missed goal is printed and ends with exit code 0 like a met one:
//! it is a finding, not a failure.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand};
use kvd_benches::client::{self, ClientSpec};
use kvd_benches::machine::{Machine, is_in_memory};
use kvd_benches::peers::{Kind, MEMORY_MIB, Places};
use kvd_benches::protocol::Shape;
use kvd_benches::report::{Report, reached};
use kvd_benches::rounds::{Items, Runner};
use kvd_benches::socket::{GOALS, Length, workloads};
use kvd_benches::traces::{self, Plan, table};
use kvd_benches::{BenchError, check, html, memory};

#[derive(Parser)]
#[command(name = "bench", about = "Benchmarks of kvd and of what it is compared with")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// kvd, memcached and Redis over Unix sockets
    Socket(Options),
    /// What a small item costs beside its key and value: kvd, memcached and Redis
    Memory(Options),
    /// Compares the load generator with redis-benchmark at the same settings
    CheckLoadgen(Options),
    /// Hit ratios of kvd's eviction, moka, quick_cache, LRU and the optimum on recorded and made-up accesses
    Traces(TracesOptions),
    /// One client process (started by the others)
    #[command(hide = true)]
    Client { spec: String },
}

#[derive(Args)]
struct Options {
    /// Ends within a minute instead of about five
    #[arg(long)]
    quick: bool,
    /// Keeps every round as JSON in this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page with plots into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Runs only these workloads, for example get8,put8
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Rounds of each workload, instead of its own number
    #[arg(long)]
    rounds: Option<usize>,
    /// The kvd program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    kvd: Option<PathBuf>,
    /// Servers keep their files in temporary directories in here [default: the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Chooses the keys
    #[arg(long, env = "KVD_SEED", default_value_t = 1)]
    seed: u64,
    /// Number of keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Length of values
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(32..=65_536))]
    value_bytes: u32,
}

#[derive(Args)]
struct TracesOptions {
    /// Ends within a minute: at most 500,000 accesses of each source
    #[arg(long)]
    quick: bool,
    /// Keeps all figures as JSON in this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page with plots into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Runs only these sources, for example orm-busy,web07
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// The folder that has traces/*.trace.xz; what is not there is skipped
    #[arg(long, env = "KVD_DATA", value_name = "DIR", default_value = "../shared/data")]
    data: PathBuf,
    /// Chooses what is made up
    #[arg(long, env = "KVD_SEED", default_value_t = 1)]
    seed: u64,
}

/// Accesses of a source with `--quick`.
const QUICK_ACCESSES_MAX: usize = 500_000;

fn main() -> ExitCode {
    let done = match Command::parse().what {
        What::Client { spec } => return run_client(&spec),
        What::Socket(options) => socket(&options),
        What::Traces(options) => traces(&options),
        What::Memory(options) => runner(&options).and_then(|runner| memory::run(&runner.places)),
        What::CheckLoadgen(options) => runner(&options).and_then(|runner| check::run(&runner)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Its parent shows what it says on standard error.
fn run_client(spec: &str) -> ExitCode {
    let spec = match serde_json::from_str::<ClientSpec>(spec) {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("not a client's work: {error}");
            return ExitCode::FAILURE;
        }
    };
    match client::run(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runner(options: &Options) -> Result<Runner, BenchError> {
    let kvd = match &options.kvd {
        Some(kvd) => kvd.clone(),
        None => {
            std::env::current_exe().map_err(BenchError::io("finding this program"))?.with_file_name("kvd")
        }
    };
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The servers are then stopped and their directories removed on the way out.
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(BenchError::io("minding signals"))?;
    }
    Ok(Runner {
        places: Places { kvd, dir },
        items: Items {
            keys: options.keys,
            shape: Shape { key_digits: 8, value_bytes: options.value_bytes },
            seed: options.seed,
        },
        interrupted,
    })
}

fn socket(options: &Options) -> Result<(), BenchError> {
    let runner = runner(options)?;
    let machine = Machine::look();
    let length = if options.quick { Length::Quick } else { Length::Full };
    let mut chosen = workloads(length);
    if let Some(unknown) =
        options.only.iter().find(|only| chosen.iter().all(|workload| workload.name != **only))
    {
        let names: Vec<_> = chosen.iter().map(|workload| workload.name).collect();
        let what = format!("no workload {unknown:?}; there are {}", names.join(", "));
        return Err(BenchError::Server { server: "bench", what });
    }
    chosen
        .retain(|workload| options.only.is_empty() || options.only.iter().any(|only| only == workload.name));
    if is_in_memory(&runner.places.dir) {
        eprintln!(
            "{} is in memory: durable writes cost nothing there, name a disk with --dir",
            runner.places.dir.display()
        );
    }
    let mut outcomes = Vec::new();
    for workload in &mut chosen {
        workload.plan.rounds = options.rounds.unwrap_or(workload.plan.rounds).max(1);
        outcomes.push(runner.run(workload)?);
    }
    let versions = [Kind::Kvd, Kind::Memcached, Kind::Redis].map(|kind| {
        (kind.name(), kind.version(&runner.places).unwrap_or_else(|reason| format!("none: {reason}")))
    });
    let report = Report {
        bench: "socket",
        command: command(),
        machine,
        versions: versions.to_vec(),
        items: format!(
            "{} keys chosen uniformly with seed {}, values of {} bytes, {MEMORY_MIB} MiB of memory each",
            options.keys, options.seed, options.value_bytes
        ),
        goals: reached(&GOALS, &outcomes),
        outcomes,
    };
    if let Some(path) = &options.json {
        write(path, &serde_json::to_string_pretty(&report).expect("a report has only text and numbers"))?;
    }
    if let Some(path) = &options.html {
        write(path, &html::page(&report))?;
    }
    print!("{}", report.text());
    Ok(())
}

fn traces(options: &TracesOptions) -> Result<(), BenchError> {
    if let Some(unknown) = options.only.iter().find(|only| !traces::sources::NAMES.contains(&only.as_str())) {
        let what = format!("no source {unknown:?}; there are {}", traces::sources::NAMES.join(", "));
        return Err(BenchError::Server { server: "bench", what });
    }
    let machine = Machine::look();
    let (found, skipped) = traces::run(&Plan {
        data: options.data.clone(),
        accesses_max: if options.quick { QUICK_ACCESSES_MAX } else { usize::MAX },
        only: options.only.clone(),
        seed: options.seed,
    })?;
    let report = table::Report { command: command(), machine, goals: table::goals(&found), found, skipped };
    if let Some(path) = &options.json {
        write(path, &serde_json::to_string_pretty(&report).expect("a report has only text and numbers"))?;
    }
    if let Some(path) = &options.html {
        write(path, &report.page())?;
    }
    print!("{}", report.text());
    Ok(())
}

fn command() -> String {
    format!("scripts/bench {}", std::env::args().skip(1).collect::<Vec<_>>().join(" "))
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(BenchError::io(format!("writing {}", path.display())))
}
