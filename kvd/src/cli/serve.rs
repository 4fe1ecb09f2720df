//! `kvd serve`: the daemon.
//!
//! The order matters: configuration before anything is touched, signals before anything could be left half-way, the lock
//! before the store, the store before the socket. The end goes backwards.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use kv_proto::wire::RestartState;
use kvd::clock::Clock;
use kvd::config::{Config, Sources};
use kvd::engine::Engine;
use kvd::handover::{Ended, Predecessor, Program, Successor, Taken};
use kvd::logging;
use kvd::orders::{Order, Orders, ReloadOutcome, RestartReport};
use kvd::server::{Scrape, Server, Signals};
use kvd::supervisor;

use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};

/// Requests that were sent before the stop get this long to be answered.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// The store gets this long to be flushed and closed. It survives being left behind, but the next start then replays.
const CLOSE_MAX: Duration = Duration::from_secs(30);

/// Few enough heaps that they do not keep much, and more where many cores would wait for each other.
const CORES_A_HEAP: usize = 4;

/// Run the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd serve                                      for this user, no configuration needed
  kvd serve --dir /srv/kvd --memory 2GiB         store and socket in one directory
  kvd serve --config ./kvd.toml

A configuration file (else /etc/kvd/kvd.toml or $XDG_CONFIG_HOME/kvd/kvd.toml, if there):
  memory = \"2GiB\"            # bound of all caches together
  [metrics]
  listen = \"127.0.0.1:9464\"  # for Prometheus; off unless given
  [access]
  groups = [\"www-data\"]      # who may connect besides this user and root
  [default]
  ttl = \"1h\"                 # for caches that do not say otherwise
  [caches.session]
  memory = \"256MiB\"
  durability = \"durable\"     # memory, behind (default) or durable

Each setting is also an environment variable: KVD_MEMORY, KVD_DIR, ... Flags win over the environment, it over the file.

TERM and INT stop it: what was sent is answered, everything is written, the socket removed. A second signal hurries,
a third ends it at once; no signal loses an acknowledged write of a cache that is on disk. HUP reads the configuration
again (kvd reload), USR1 logs a report, USR2 restarts in place (kvd restart).

Under systemd it speaks the notification protocol (Type=notify, WatchdogSec) and takes the socket it is passed; units are in
scripts/systemd.")]
pub(super) struct Args {
    /// Read this configuration file. Else the one that KVD_CONFIG names
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the store lives; the socket too, unless --socket says otherwise
    #[arg(long)]
    dir: Option<String>,
    /// Bound of the memory of all caches together
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Longest value, up to 16MiB
    #[arg(long, value_name = "SIZE")]
    value_max: Option<String>,
    /// Size of the pending log
    #[arg(long, value_name = "SIZE")]
    pending_log: Option<String>,
    /// A journal beyond this is folded into the tree
    #[arg(long, value_name = "SIZE")]
    journal_max: Option<String>,
    /// Page cache of the store on disk
    #[arg(long, value_name = "SIZE")]
    redb_cache: Option<String>,
    /// Longest time between a write and its flush to disk
    #[arg(long, value_name = "DURATION")]
    flush_interval: Option<String>,
    /// Most connections
    #[arg(long, value_name = "NUMBER")]
    connections_max: Option<String>,
    /// Most connections of one user
    #[arg(long, value_name = "NUMBER")]
    connections_per_user_max: Option<String>,
    /// A connection that asks nothing for this long is closed; 0: never
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<String>,
    /// How transactions keep out of each other's way: database, key or optimistic (see docs/LOCKING.md)
    #[arg(long, value_name = "MODE")]
    locking: Option<String>,
    /// Let this user connect, as shop or report:read+scan (see kvd access --help); may be given several times
    #[arg(long, value_name = "USER")]
    allow_user: Vec<String>,
    /// Let members of this group connect, as staff or staff:read; may be given several times
    #[arg(long, value_name = "GROUP")]
    allow_group: Vec<String>,
    /// Requests that take longer are kept for `kvd slow-log`; 0: none
    #[arg(long, value_name = "DURATION")]
    slow_log_threshold: Option<String>,
    /// Where Prometheus scrapes, as 127.0.0.1:9464 or /run/kvd/metrics.sock; nowhere unless given
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    /// How log lines are written: pretty, json or journald
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged, as info or kvd::server=debug,info
    #[arg(long, visible_alias = "log-filter", value_name = "FILTER")]
    log: Option<String>,
    /// Put a corrupt store aside and start empty, even if that loses durable writes
    #[arg(long)]
    set_aside: bool,
    /// For a daemon that starts its successor
    #[arg(long, hide = true)]
    take_over: bool,
}

impl Args {
    fn flags(self, socket: Option<&Path>) -> Vec<(&'static str, String)> {
        let list = |names: Vec<String>| (!names.is_empty()).then(|| names.join(","));
        let settings = [
            ("dir", self.dir),
            ("socket", socket.map(|s| s.display().to_string())),
            ("memory", self.memory),
            ("value_max", self.value_max),
            ("pending_log", self.pending_log),
            ("journal_max", self.journal_max),
            ("redb_cache", self.redb_cache),
            ("flush_interval", self.flush_interval),
            ("connections_max", self.connections_max),
            ("connections_per_user_max", self.connections_per_user_max),
            ("idle_timeout", self.idle_timeout),
            ("locking", self.locking),
            ("access.users", list(self.allow_user)),
            ("access.groups", list(self.allow_group)),
            ("slow_log_threshold", self.slow_log_threshold),
            ("metrics.listen", self.metrics_listen),
            ("log_format", self.log_format),
            ("log", self.log),
        ];
        settings.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

pub(super) fn run(common: &Common, mut args: Args) -> Outcome {
    // Before any thread: it takes variables out of the environment.
    let activated = supervisor::activated().map_err(|e| {
        cannot_start(format!("socket activation: {e}; pass one listening Unix stream socket"))
    })?;
    let program =
        Program::of_this_process().map_err(|e| cannot_start(format!("where is this program? {e}")))?;
    let before = if args.take_over { Some(Successor::meet().map_err(cannot_start)?) } else { None };
    let (file, set_aside) = (args.config.take(), args.set_aside);
    let sources = Sources::process(file, args.flags(common.socket.as_deref()));
    let config = match configure(&sources, set_aside) {
        Ok(config) => config,
        Err(failure) => {
            if let Some(before) = before {
                before.refuse(&failure);
            }
            return Err(failure);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    kv_proto::segment::share_heaps(u16::try_from(cores / CORES_A_HEAP).unwrap_or(u16::MAX).max(1));
    let orders = Arc::new(Orders::default());
    let signals = Signals::install().and_then(|signals| signals.forward(Arc::clone(&orders)));
    signals.map_err(|e| cannot_start(format!("signals cannot be handled: {e}")))?;
    // What clients hold is theirs to read by descriptor only: not by ptrace or /proc/PID/mem, also not by the same user.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "this process can be traced by its own user");
    }
    let clock = Clock::system();
    let is_successor = before.is_some();
    let Taken { engine, server } = match before {
        Some(before) => before.take_over(&config, &clock, &orders).map_err(cannot_start)?,
        None => start(&config, &clock, &orders, activated)?,
    };
    let scrape = match start_scrape(&engine, &config) {
        Ok(scrape) => scrape,
        // It serves already, and nobody else does any more.
        Err(failure) if is_successor => {
            tracing::error!("no metrics for Prometheus: {failure}");
            None
        }
        Err(failure) => {
            drop(server);
            close(&engine, &clock)?;
            return Err(failure);
        }
    };
    let daemon = Predecessor { engine, server, config, orders, clock };
    let mut serving = Serving { daemon, program, sources, scrape };
    serving.announce()?;
    loop {
        match serving.carry_out_orders() {
            Wanted::Stop(who) => return serving.stop(who),
            Wanted::Restart(clear) => match serving.restart(clear) {
                Ok(again) => serving = again,
                Err(ended) => return ended,
            },
        }
    }
}

fn configure(sources: &Sources, set_aside: bool) -> Result<Config, Failure> {
    let mut config = Config::load(sources).map_err(cannot_start)?;
    config.set_aside = set_aside;
    logging::start(config.log_format, &config.log).map_err(cannot_start)?;
    Ok(config)
}

/// Serves metrics to Prometheus, where that is wanted.
fn start_scrape(engine: &Arc<Engine>, config: &Config) -> Result<Option<Scrape>, Failure> {
    let scrape = config.metrics_listen.as_ref().map(|at| Scrape::start(engine.clone(), at)).transpose();
    let scrape = scrape.map_err(cannot_start)?;
    if let Some(scrape) = &scrape {
        tracing::info!("metrics for Prometheus at {}", scrape.place());
    }
    Ok(scrape)
}

fn start(
    config: &Config,
    clock: &Clock,
    orders: &Arc<Orders>,
    activated: Option<UnixListener>,
) -> Result<Taken, Failure> {
    make_directory(&config.dir)?;
    let engine = Engine::open_for(config.clone(), clock.clone(), Arc::clone(orders)).map_err(cannot_start)?;
    let server = match activated {
        Some(listener) => Server::start_activated(engine.clone(), config, listener),
        None => Server::start(engine.clone(), config),
    };
    match server {
        Ok(server) => Ok(Taken { engine, server }),
        Err(error) => {
            // The store is open; leave it as cleanly as it was found.
            close(&engine, clock)?;
            Err(cannot_start(error))
        }
    }
}

/// Why the main thread goes on from carrying out orders.
enum Wanted {
    Stop(&'static str),
    Restart(Vec<String>),
}

/// A daemon that serves, and what its main thread needs to carry out orders.
struct Serving {
    /// Reloads change its configuration.
    daemon: Predecessor,
    program: Program,
    sources: Sources,
    scrape: Option<Scrape>,
}

impl Serving {
    fn announce(&self) -> Result<(), Failure> {
        let (version, socket) = (env!("CARGO_PKG_VERSION"), self.daemon.server.socket().display());
        let summary = format!("{}; {}", self.daemon.engine.summary(), self.daemon.engine.found());
        self.daemon.orders.attend();
        // Whoever started us may have gone away and closed its end; that is no reason to stop.
        drop(say(format_args!("kvd {version} listens on {socket}: {summary}")));
        if !kv_client::places::search(None).iter().any(|place| place.path == self.daemon.server.socket()) {
            tracing::info!("clients do not look there by themselves: give them KVD_SOCKET={socket}");
        }
        supervisor::ready(&summary);
        supervisor::watch(&self.daemon.engine).map_err(|e| cannot_start(format!("no watchdog thread: {e}")))
    }

    /// Until one says that this process is to end.
    fn carry_out_orders(&mut self) -> Wanted {
        loop {
            match self.daemon.orders.take() {
                Order::Stop(who) => return Wanted::Stop(who),
                Order::Report => report(&self.daemon.engine),
                Order::Reload(answer) => self.answer_reload(answer),
                Order::Restart(clear) => return Wanted::Restart(clear),
            }
        }
    }

    fn answer_reload(&mut self, answer: Option<SyncSender<ReloadOutcome>>) {
        supervisor::reloading();
        let outcome = self.reload();
        supervisor::ready(&self.daemon.engine.summary());
        match &outcome {
            Ok(told) => {
                let (applied, needs_restart) = (told.applied.join(", "), told.needs_restart.join(", "));
                tracing::info!(applied, needs_restart, "configuration reloaded");
            }
            Err(problem) => {
                tracing::error!("the configuration was not reloaded, nothing has changed: {problem}")
            }
        }
        if let Some(answer) = answer {
            // Whoever asked may have gone.
            drop(answer.send(outcome));
        }
    }

    fn reload(&mut self) -> ReloadOutcome {
        let new = Config::load(&self.sources).map_err(|error| error.to_string())?;
        logging::check_filter(&new.log).map_err(|error| error.to_string())?;
        let (adjusted, told) = self.daemon.config.adjusted(&new);
        adjusted.validate().map_err(|error| format!("with what only a restart changes: {error}"))?;
        self.daemon.engine.adjust(&adjusted)?;
        self.daemon.server.adjust(&adjusted);
        logging::set_filter(&new.log).map_err(|error| error.to_string())?;
        self.daemon.config = adjusted;
        Ok(told)
    }

    /// The successor serves, and this process ends; or this one serves on.
    fn restart(self, clear: Vec<String>) -> Result<Serving, Outcome> {
        let Serving { daemon, program, sources, scrape } = self;
        // Its address is the successor's.
        drop(scrape);
        let orders = Arc::clone(&daemon.orders);
        let report = orders.last_restart();
        let engine = Arc::downgrade(&daemon.engine);
        tracing::info!(number = report.number, "restarting in place");
        match daemon.hand_over(&program, report.number, clear) {
            Ended::Followed(pid) => {
                if orders.is_stop_wanted() {
                    // Whoever wanted this process to stop meant the daemon.
                    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                }
                Err(Ok(Exit::Done))
            }
            Ended::Serves(daemon, why) => {
                tracing::error!("this process serves on: {why}");
                let (state, message) = (RestartState::Failed, why);
                orders.note_restart(RestartReport { state, message, ..report });
                let is_same = engine.upgrade().is_some_and(|engine| Arc::ptr_eq(&engine, &daemon.engine));
                // The thread that fed the watchdog has ended with the engine it looked at.
                if !is_same && let Err(error) = supervisor::watch(&daemon.engine) {
                    tracing::error!(%error, "the watchdog is not fed any more");
                }
                let scrape = start_scrape(&daemon.engine, &daemon.config).unwrap_or_else(|failure| {
                    tracing::error!("no metrics for Prometheus: {failure}");
                    None
                });
                Ok(Serving { daemon: *daemon, program, sources, scrape })
            }
            Ended::Lost(message) => Err(Err(Failure::Daemon { message, exit: Exit::Daemon })),
        }
    }

    fn stop(self, who: &str) -> Outcome {
        let Predecessor { engine, server, orders, clock, .. } = self.daemon;
        drop(self.scrape);
        tracing::info!("{who}: stopping");
        supervisor::stopping();
        let hurry = server.hurry();
        orders.on_hurry(Box::new(move || hurry.now()));
        let stopped = server.stop(DRAIN_MAX);
        if stopped.cut > 0 {
            tracing::warn!("{} connections were still busy and were cut", stopped.cut);
        }
        close(&engine, &clock)?;
        tracing::info!("stopped: {}", engine.summary());
        Ok(Exit::Done)
    }
}

fn cannot_start(error: impl ToString) -> Failure {
    Failure::Daemon { message: error.to_string(), exit: Exit::Start }
}

fn close(engine: &Engine, clock: &Clock) -> Result<(), Failure> {
    engine.close(clock.instant() + CLOSE_MAX).map_err(|error| Failure::Daemon {
        message: format!("the store was not closed cleanly, the next start replays its log: {error}"),
        exit: Exit::Daemon,
    })
}

fn make_directory(dir: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        cannot_start(format!("{}: cannot be made: {error}; choose a directory with --dir", dir.display()))
    })
}

fn report(engine: &Engine) {
    let metrics = engine.metrics();
    let (connections, requests) = (metrics.connections(), metrics.requests_total());
    tracing::info!(connections, requests, "{}", engine.summary());
}

#[cfg(test)]
mod tests {
    use clap::Args as _;
    use kvd::config::HOST_KEYS;

    use super::*;

    fn command() -> clap::Command {
        Args::augment_args(clap::Command::new("serve"))
    }

    #[test]
    fn every_setting_of_the_host_is_a_flag() {
        let command = command();
        let flags: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        // `--socket` is a flag of every command; `access` is two lists.
        for (key, _) in HOST_KEYS.iter().filter(|(key, _)| !["socket", "access", "metrics"].contains(key)) {
            assert!(flags.contains(&key.replace('_', "-").as_str()), "{key} has no flag");
        }
    }

    #[test]
    fn the_configuration_shown_in_the_help_is_a_good_one() {
        let help = command().render_long_help().to_string();
        let example: String = help
            .lines()
            .skip_while(|line| !line.starts_with("A configuration file"))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .map(|line| line.trim().to_owned() + "\n")
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvd.toml");
        // Not every machine has that group.
        std::fs::write(&file, example.replace("www-data", "root")).unwrap();
        let sources = Sources { file: Some(file), is_root: true, ..Sources::default() };
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.memory_bytes, 2 << 30);
        assert_eq!(config.caches["session"].memory_bytes, 256 << 20);
        assert_eq!(config.caches["session"].ttl_default_ms, Some(3_600_000));
    }
}
