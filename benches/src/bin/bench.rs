//! The command line of the benchmarks; people call it by `scripts/bench`.
//!
//! Decides what to run and where the results go. A missed goal is printed and ends with exit code 0 like a met one:
//! it is a finding, not a failure.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand};
use kvd_benches::client;
use kvd_benches::locking::{self, Baseline, Extent, Order};
use kvd_benches::machine::{Machine, is_in_memory};
use kvd_benches::peers::{Kind, MEMORY_MIB, Places};
use kvd_benches::protocol::Shape;
use kvd_benches::report::{Goal, Report, reached};
use kvd_benches::rounds::{Items, Outcome, Runner};
use kvd_benches::socket::{GOALS, Length, workloads};
use kvd_benches::traces::{self, Plan, table};
use kvd_benches::{BenchError, check, html, load, memory, read};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Parser)]
#[command(name = "bench", about = "Benchmarks of kvd and of what it is compared with")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// kvd, memcached and Redis over Unix sockets
    Socket(SocketOptions),
    /// Reads: kvd's shared memory, LMDB, Berkeley DB, memcached, Redis, maps and caches within a process
    Read(Options),
    /// Ways to share items that change: kvd's locking modes, Berkeley DB, flock, copies, LMDB, SQLite, redb
    Locking(LockingOptions),
    /// What get_or_load costs beside a plain read, and beside a round trip
    Client(Options),
    /// What a small item costs beside its key and value: kvd, memcached and Redis
    Memory(Options),
    /// Hit ratios of kvd's eviction, moka, quick_cache, LRU and the optimum on recorded and made-up accesses
    Traces(TracesOptions),
    /// Compares the load generator with redis-benchmark at the same settings
    CheckLoadgen(SocketOptions),
    /// One client process (started by the others)
    #[command(hide = true)]
    SocketClient { spec: String },
    /// One process that reads (started by `read`)
    #[command(hide = true)]
    ReadClient { spec: String },
    /// One process of the lab (started by `locking`)
    #[command(hide = true)]
    LockingWorker { spec: String },
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
}

#[derive(Args)]
struct SocketOptions {
    #[command(flatten)]
    common: Options,
    /// Number of keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Length of values
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(32..=65_536))]
    value_bytes: u32,
}

impl Options {
    fn length(&self) -> Length {
        if self.quick { Length::Quick } else { Length::Full }
    }
}

const PROFILE_HELP: &str = "\
What is run: default, etoys, or a TOML file of loads, each like

[[cell]]
name = \"mine\"
writes_percent = 5
transactions_percent = 1
keys_a_transaction = 5
think_ms = 2.0
zipf = 0.99

and if need be pause_ms, keys, value_bytes, processes, scanners, scan_rest_ms";

#[derive(Args)]
struct LockingOptions {
    #[command(flatten)]
    common: Options,
    /// Runs the matrix and long trials, which takes more than half an hour
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// What is run: default, etoys, or a TOML file of loads
    #[arg(long, default_value = "default", value_name = "NAME|FILE", long_help = PROFILE_HELP)]
    profile: String,
    /// Runs only these mechanisms, for example "kvd key,lmdb"
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    mechanisms: Vec<String>,
    /// Compares with what an earlier --json has kept
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
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
        What::SocketClient { spec } => return run_client(&spec, client::run),
        What::ReadClient { spec } => return run_client(&spec, read::client::run),
        What::LockingWorker { spec } => return run_client(&spec, locking::worker::run),
        What::Locking(options) => locking(&options),
        What::Socket(options) => socket(&options),
        What::Read(options) => read(&options),
        What::Traces(options) => traces(&options),
        What::Client(options) => loads(&options),
        What::Memory(options) => places(&options).and_then(|places| memory::run(&places)),
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
fn run_client<S: DeserializeOwned>(spec: &str, run: fn(&S) -> Result<(), BenchError>) -> ExitCode {
    let spec = match serde_json::from_str::<S>(spec) {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("not a client's work: {error}");
            return ExitCode::FAILURE;
        }
    };
    match run(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the programs are.
fn places(options: &Options) -> Result<Places, BenchError> {
    let kvd = match &options.kvd {
        Some(kvd) => kvd.clone(),
        None => {
            std::env::current_exe().map_err(BenchError::io("finding this program"))?.with_file_name("kvd")
        }
    };
    Ok(Places { kvd, dir: options.dir.clone().unwrap_or_else(std::env::temp_dir) })
}

/// Set when somebody presses Ctrl-C: the servers are then stopped and their directories removed on the way out.
fn interrupted() -> Result<Arc<AtomicBool>, BenchError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(BenchError::io("minding signals"))?;
    }
    Ok(interrupted)
}

fn runner(options: &SocketOptions) -> Result<Runner, BenchError> {
    Ok(Runner {
        places: places(&options.common)?,
        items: Items {
            keys: options.keys,
            shape: Shape { key_digits: 8, value_bytes: options.value_bytes },
            seed: options.common.seed,
        },
        interrupted: interrupted()?,
    })
}

/// Keeps what was asked for by `--only`.
fn choose<W>(all: Vec<W>, only: &[String], name: impl Fn(&W) -> &'static str) -> Result<Vec<W>, BenchError> {
    if let Some(unknown) = only.iter().find(|only| all.iter().all(|one| name(one) != **only)) {
        let names: Vec<_> = all.iter().map(name).collect();
        let what = format!("no workload {unknown:?}; there are {}", names.join(", "));
        return Err(BenchError::Server { server: "bench", what });
    }
    let is_wanted = |one: &W| only.is_empty() || only.iter().any(|only| only == name(one));
    Ok(all.into_iter().filter(is_wanted).collect())
}

fn socket(options: &SocketOptions) -> Result<(), BenchError> {
    let runner = runner(options)?;
    let common = &options.common;
    let machine = Machine::look();
    let mut chosen = choose(workloads(common.length()), &common.only, |workload| workload.name)?;
    if is_in_memory(&runner.places.dir) {
        eprintln!(
            "{} is in memory: durable writes cost nothing there, name a disk with --dir",
            runner.places.dir.display()
        );
    }
    let mut outcomes = Vec::new();
    for workload in &mut chosen {
        workload.plan.rounds = common.rounds.unwrap_or(workload.plan.rounds).max(1);
        outcomes.push(runner.run(workload)?);
    }
    let items = format!(
        "{} keys chosen uniformly with seed {}, values of {} bytes, {MEMORY_MIB} MiB of memory each",
        options.keys, common.seed, options.value_bytes
    );
    tell("socket", common, machine, versions(&runner.places), items, &GOALS, outcomes)
}

fn read(options: &Options) -> Result<(), BenchError> {
    let (places, interrupted) = (places(options)?, interrupted()?);
    let machine = Machine::look();
    let mut chosen = choose(read::all(options.length()), &options.only, |workload| workload.name)?;
    for workload in &mut chosen {
        workload.rounds = options.rounds.unwrap_or(workload.rounds).max(1);
    }
    let outcomes = read::run(&chosen, &places, options.seed, &interrupted)?;
    let items = format!(
        "100,000 keys of 16 bytes, values of 512 bytes where nothing else is said, seed {}; every value is copied and checked",
        options.seed
    );
    let mut versions = versions(&places);
    versions.extend(read::versions());
    tell("read", options, machine, versions, items, &read::GOALS, outcomes)
}

fn loads(options: &Options) -> Result<(), BenchError> {
    let length = if options.quick { load::Length::QUICK } else { load::Length::FULL };
    let length = load::Length { rounds: options.rounds.unwrap_or(length.rounds).max(1), ..length };
    let report = load::run(&places(options)?, length, command())?;
    keep((&options.json, &None), &report, String::new)?;
    print!("{}", report.text());
    Ok(())
}

fn locking(options: &LockingOptions) -> Result<(), BenchError> {
    let common = &options.common;
    let extent = match (common.quick, options.full) {
        (true, _) => Extent::Quick,
        (false, true) => Extent::Full,
        (false, false) => Extent::Default,
    };
    let mut plan = locking::Plan::of(&options.profile, extent)?;
    plan.rounds = common.rounds.unwrap_or(plan.rounds).max(1);
    // Before two minutes have gone by.
    let baseline = options.baseline.as_deref().map(Baseline::read).transpose()?;
    let mut report = locking::run(&Order {
        plan,
        only: &common.only,
        mechanisms: &options.mechanisms,
        places: &places(common)?,
        seed: common.seed,
        interrupted: &*interrupted()?,
        command: command(),
    })?;
    report.baseline = baseline;
    keep((&common.json, &common.html), &report, || report.page())?;
    print!("{}", report.text());
    Ok(())
}

fn versions(places: &Places) -> Vec<(&'static str, String)> {
    let version = |kind: Kind| kind.version(places).unwrap_or_else(|reason| format!("none: {reason}"));
    [Kind::Kvd, Kind::Memcached, Kind::Redis].map(|kind| (kind.name(), version(kind))).to_vec()
}

/// Prints the report, and writes it where it was asked for.
fn tell(
    bench: &'static str,
    options: &Options,
    machine: Machine,
    versions: Vec<(&'static str, String)>,
    items: String,
    goals: &[Goal],
    outcomes: Vec<Outcome>,
) -> Result<(), BenchError> {
    let goals = reached(goals, &outcomes);
    let report = Report { bench, command: command(), machine, versions, items, outcomes, goals };
    keep((&options.json, &options.html), &report, || html::page(&report))?;
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
    keep((&options.json, &options.html), &report, || report.page())?;
    print!("{}", report.text());
    Ok(())
}

/// Writes the report where it was asked for.
fn keep(
    (json, html): (&Option<PathBuf>, &Option<PathBuf>),
    report: &impl Serialize,
    page: impl FnOnce() -> String,
) -> Result<(), BenchError> {
    if let Some(path) = json {
        write(path, &serde_json::to_string_pretty(report).expect("a report has only text and numbers"))?;
    }
    if let Some(path) = html {
        write(path, &page())?;
    }
    Ok(())
}

fn command() -> String {
    format!("scripts/bench {}", std::env::args().skip(1).collect::<Vec<_>>().join(" "))
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(BenchError::io(format!("writing {}", path.display())))
}
