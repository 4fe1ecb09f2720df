//! Starts the servers that are compared, each in a temporary directory, on a Unix socket, as its own documentation
//! recommends, and stops them by their process id.
//!
//! Called by [`crate::rounds`] and [`crate::check`]. Only the measured server runs: the others are stopped by a signal
//! meanwhile, so that nobody's background work is charged to another, and everybody's own is charged to himself.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

use crate::BenchError;
use crate::clock::{now_ns, sleep};
use crate::protocol::Wire;

/// The memory every server may use for items, in MiB.
pub const MEMORY_MIB: u64 = 256;
/// … and kvd without a disk: what a million small items fill, because its index is made for as many as its memory holds.
pub const SMALL_MEMORY_MIB: u64 = 151;
/// How long a server may take until it can be connected to.
const START_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a server may take to end before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The servers, by what tables call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// kvd; writes are `behind` unless a request asks for more.
    Kvd,
    /// kvd without a disk behind its cache.
    KvdMemory,
    /// memcached with two threads.
    Memcached,
    /// Redis without persistence.
    Redis,
    /// Redis with an append-only file synced before every answer.
    RedisAlways,
}

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The `kvd` program.
    pub kvd: PathBuf,
    /// Temporary directories are made in here; must be on a disk for durable writes to mean something.
    pub dir: PathBuf,
}

impl Kind {
    /// The name that tables use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kvd => "kvd",
            Kind::KvdMemory => "kvd_memory",
            Kind::Memcached => "memcached",
            Kind::Redis => "redis",
            Kind::RedisAlways => "redis_always",
        }
    }

    /// What it speaks.
    #[must_use]
    pub fn wire(self) -> Wire {
        match self {
            Kind::Kvd | Kind::KvdMemory => Wire::Kvd,
            Kind::Memcached => Wire::Memcached,
            Kind::Redis | Kind::RedisAlways => Wire::Redis,
        }
    }

    fn program(self, places: &Places) -> &Path {
        match self {
            Kind::Kvd | Kind::KvdMemory => &places.kvd,
            Kind::Memcached => Path::new("memcached"),
            Kind::Redis | Kind::RedisAlways => Path::new("redis-server"),
        }
    }

    /// The server's version line, or why it cannot be run.
    ///
    /// # Errors
    /// The reason, for a person to read: this is not a failure of the benchmark.
    pub fn version(self, places: &Places) -> Result<String, String> {
        let program = self.program(places);
        let advice = match self {
            Kind::Kvd | Kind::KvdMemory => {
                "build it with cargo build --release -p kvd, or name it with --kvd"
            }
            Kind::Memcached | Kind::Redis | Kind::RedisAlways => "scripts/peers installs it",
        };
        let missing = |what: String| format!("{} {what}; {advice}", program.display());
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| missing(format!("does not start ({error})")))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.lines().next().unwrap_or("").trim();
        if output.status.success() && !version.is_empty() {
            Ok(version.to_owned())
        } else {
            Err(missing("does not tell its version".to_owned()))
        }
    }

    fn arguments(self, dir: &Path) -> Vec<String> {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let here = dir.display().to_string();
        let socket = self.socket(dir).display().to_string();
        let memory = MEMORY_MIB.to_string();
        match self {
            Kind::Kvd | Kind::KvdMemory => {
                let config = dir.join("kvd.toml").display().to_string();
                text(&["serve", "--dir", &here, "--config", &config])
            }
            Kind::Memcached => {
                // It refuses to run as root unless told so.
                let user = User::from_uid(geteuid())
                    .ok()
                    .flatten()
                    .map_or_else(|| "root".to_owned(), |user| user.name);
                text(&["-s", &socket, "-a", "0700", "-t", "2", "-m", &memory, "-u", &user])
            }
            Kind::Redis | Kind::RedisAlways => {
                let mut all = text(&[
                    "--port",
                    "0",
                    "--unixsocket",
                    &socket,
                    "--unixsocketperm",
                    "700",
                    "--dir",
                    &here,
                ]);
                all.extend(text(&[
                    "--save",
                    "",
                    "--maxmemory",
                    &format!("{memory}mb"),
                    "--maxmemory-policy",
                    "allkeys-lru",
                ]));
                if self == Kind::RedisAlways {
                    all.extend(text(&["--appendonly", "yes", "--appendfsync", "always"]));
                }
                all
            }
        }
    }

    fn socket(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.sock", self.wire().name()))
    }

    /// What must lie in the directory before the start.
    fn prepare(self, dir: &Path, config: &str) -> Result<(), BenchError> {
        if !matches!(self, Kind::Kvd | Kind::KvdMemory) {
            return Ok(());
        }
        std::fs::write(dir.join("kvd.toml"), config).map_err(BenchError::io("writing kvd's configuration"))
    }
}

/// A running server; ended and removed when dropped.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    child: Child,
    dir: TempDir,
    socket: PathBuf,
}

impl Server {
    /// Starts it and waits until it accepts connections.
    ///
    /// # Errors
    /// When it ends instead, with what it said.
    pub fn start(kind: Kind, places: &Places) -> Result<Server, BenchError> {
        let (memory_mib, durability) = match kind {
            Kind::KvdMemory => (SMALL_MEMORY_MIB, "memory"),
            Kind::Kvd | Kind::Memcached | Kind::Redis | Kind::RedisAlways => (MEMORY_MIB, "behind"),
        };
        let config = format!(
            "memory = \"{memory_mib}MiB\"\n\n[caches.{}]\nmemory = \"{memory_mib}MiB\"\ndurability = \"{durability}\"\n",
            crate::protocol::CACHE
        );
        Server::start_configured(kind, places, &config)
    }

    /// As `start`, kvd with this configuration.
    ///
    /// # Errors
    /// When it ends instead, with what it said.
    pub fn start_configured(kind: Kind, places: &Places, config: &str) -> Result<Server, BenchError> {
        let prefix = format!("kvd-bench-{}-", kind.name());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(&places.dir);
        let dir = dir.map_err(BenchError::io(format!("making a directory in {}", places.dir.display())))?;
        kind.prepare(dir.path(), config)?;
        let log_path = dir.path().join("log");
        let log = File::create(&log_path).map_err(BenchError::io("making a log file"))?;
        let log_too = log.try_clone().map_err(BenchError::io("making a log file"))?;
        let mut command = dies_with_parent(kind.program(places));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KVD_"))
        {
            // What configures the caller's own kvd is not to configure this one.
            command.env_remove(name);
        }
        let child = command
            .args(kind.arguments(dir.path()))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(BenchError::io(format!("starting {}", kind.name())))?;
        let socket = kind.socket(dir.path());
        let mut server = Server { kind, child, dir, socket };
        let deadline_ns = now_ns() + START_TIME_MAX.as_nanos() as u64;
        while UnixStream::connect(&server.socket).is_err() {
            let ended = server.child.try_wait().map_err(BenchError::io("waiting for a server"))?;
            let late = now_ns() > deadline_ns;
            if ended.is_some() || late {
                let said = std::fs::read_to_string(&log_path).unwrap_or_default();
                let verb = if late { "does not accept connections" } else { "ended at once" };
                let what = format!("{verb}: {}", last_lines(&said));
                return Err(BenchError::Server { server: kind.name(), what });
            }
            sleep(POLL_INTERVAL);
        }
        Ok(server)
    }

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Takes the processor from it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pause(&self) -> Result<(), BenchError> {
        self.signal(Signal::SIGSTOP)
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resume(&self) -> Result<(), BenchError> {
        self.signal(Signal::SIGCONT)
    }

    /// Processor time it has used so far, in seconds; 0 if that cannot be told.
    #[must_use]
    pub fn cpu_s(&self) -> f64 {
        const TICKS_PER_S: f64 = 100.0;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name in parentheses may contain anything; utime and stime are the 12th and 13th fields behind it.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
        ticks.sum::<f64>() / TICKS_PER_S
    }

    /// Bytes of its memory that are resident, shared ones too; 0 if that cannot be told.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        kill(Pid::from_raw(self.child.id() as i32), signal).map_err(|errno| BenchError::Server {
            server: self.kind.name(),
            what: format!("is gone ({errno})"),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Each step may find it gone already, which is what is wanted.
        drop(self.signal(Signal::SIGTERM));
        drop(self.resume());
        let deadline_ns = now_ns() + STOP_TIME_MAX.as_nanos() as u64;
        while matches!(self.child.try_wait(), Ok(None)) {
            if now_ns() > deadline_ns {
                eprintln!("{} did not end within {STOP_TIME_MAX:?} and is killed", self.kind.name());
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            sleep(POLL_INTERVAL);
        }
    }
}

/// Lets a server run for as long as this takes.
pub(crate) fn awake<T>(
    server: Option<&Server>,
    act: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    /// For a server that was asleep to see to what its clock tells it is overdue.
    const WAKE_UP: Duration = Duration::from_millis(50);
    // What the last one left for the kernel to write is not to be written in this one's time.
    nix::unistd::sync();
    if let Some(server) = server {
        server.resume()?;
        sleep(WAKE_UP);
    }
    let done = act()?;
    if let Some(server) = server {
        server.pause()?;
    }
    Ok(done)
}

/// A command whose process ends when this one does, however that happens, where `setpriv` can be had.
fn dies_with_parent(program: &Path) -> Command {
    let setpriv =
        Command::new("setpriv").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !setpriv.is_ok_and(|status| status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn last_lines(said: &str) -> String {
    const LINES: usize = 3;
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        "it said nothing".to_owned()
    } else {
        lines[lines.len().saturating_sub(LINES)..].join(" / ")
    }
}
