//! What a daemon is told to do: where it lives, how much it may use, and which caches it has.
//!
//! `source` gathers settings from the file, the environment and the flags, each with the place it came from; `resolve`
//! turns them into a [`Config`], checked whole. `cli::serve` and embedding applications call it. It must never read
//! half a configuration: either everything fits, or the error names place, key, value and limit and nothing starts.

mod access;
mod error;
mod file;
mod reload;
mod resolve;
mod source;

pub use access::Access;
pub use error::ConfigError;
pub use source::{HOST_KEYS, Sources};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_proto::limits;
use kv_proto::wire::Durability;
use serde::{Deserialize, Serialize};

use crate::logging::LogFormat;

/// Memory of all caches together unless configured, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// Least memory of all caches together, in bytes. Below: the configuration is refused.
pub const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Most memory of all caches together, in bytes. Beyond: the configuration is refused.
pub const MEMORY_BYTES_MAX: u64 = 1 << 42;
/// A cache that does not say otherwise has this fraction of the memory, but no less than the least.
pub const CACHE_MEMORY_FRACTION: u64 = 8;
/// Least memory of a cache, in bytes. Below: the configuration is refused.
pub const CACHE_MEMORY_BYTES_MIN: u64 = 256 << 10;
/// Disk of a cache unless configured, in bytes.
pub const CACHE_DISK_BYTES_DEFAULT: u64 = 1 << 30;
/// Pending log unless configured, in bytes; more when large values need it.
pub const PENDING_LOG_BYTES_DEFAULT: u64 = 32 << 20;
/// A commit may fill this fraction of the pending log; so the log has room for this many of the largest.
pub const PENDING_LOG_COMMITS_MIN: u64 = 4;
/// Largest journal unless configured: this, or a quarter of the memory if that is less.
pub const JOURNAL_BYTES_DEFAULT: u64 = 64 << 20;
/// redb's page cache unless configured, in bytes (redb's own default is 1 GiB a database).
pub const REDB_CACHE_BYTES_DEFAULT: u64 = 32 << 20;
/// Longest time an acknowledged `behind` write waits for its flush unless configured.
pub const FLUSH_INTERVAL_DEFAULT: Duration = Duration::from_millis(100);
/// Connections of one user unless configured. Beyond: `Unavailable`, then closed.
pub const CONNECTIONS_PER_USER_DEFAULT: usize = 512;
/// A connection that asks nothing for this long is closed, unless configured.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// Requests that take this long are kept for the slow log, unless configured.
pub const SLOW_LOG_THRESHOLD_DEFAULT: Duration = Duration::from_millis(10);

/// What an unclean stop does to what a cache has on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recover {
    /// Nothing: it is served as it was.
    Keep,
    /// It is stale until it is put anew: invalidations may have been missed.
    Stale,
    /// It is gone.
    Clear,
}

/// How transactions keep out of each other's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockingMode {
    /// One transaction at a time.
    #[default]
    Database,
    /// Each locks the keys that it reads and writes.
    Key,
    /// Nothing is locked; a commit looks whether what was read is still so.
    Optimistic,
}

/// One cache's share and manners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// Its share of memory, in bytes.
    pub memory_bytes: u64,
    /// Its share of the disk, in bytes; 0 for `memory` caches.
    pub disk_bytes_max: u64,
    /// Life of an item that does not say otherwise, in milliseconds; `None`: forever.
    pub ttl_default_ms: Option<u64>,
    /// Longest life of an item, in milliseconds; `None`: no bound.
    pub ttl_max_ms: Option<u64>,
    /// What a write that does not say otherwise outlives before it is acknowledged.
    pub durability: Durability,
    /// What an unclean stop does to it.
    pub recover: Recover,
    /// Whether `recover` is applied after a clean stop too.
    pub after_clean_stop: bool,
    /// Whether clients may map its memory.
    pub shared: bool,
    /// Who may do what with it, of those who may connect; nobody listed: what the host's list says.
    pub access: Access,
}

impl CacheConfig {
    /// A cache of `memory_bytes`, everything else as nobody said otherwise.
    #[must_use]
    pub fn of_memory(memory_bytes: u64) -> CacheConfig {
        CacheConfig {
            memory_bytes,
            disk_bytes_max: CACHE_DISK_BYTES_DEFAULT,
            ttl_default_ms: None,
            ttl_max_ms: None,
            durability: Durability::Behind,
            recover: Recover::Stale,
            after_clean_stop: false,
            shared: true,
            access: Access::default(),
        }
    }
}

impl Config {
    /// Whether any list names groups, so that those of a caller have to be known.
    pub(crate) fn lists_groups(&self) -> bool {
        let caches = self.caches.values().chain([&self.default]).map(|cache| &cache.access);
        caches.chain([&self.access]).any(|access| !access.groups.is_empty())
    }
}

/// Where Prometheus scrapes: an address of the loopback interface, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsListen {
    /// By HTTP over TCP.
    Tcp(std::net::SocketAddr),
    /// By HTTP over a Unix socket.
    Unix(PathBuf),
}

impl MetricsListen {
    /// Reads `127.0.0.1:9464`, `[::1]:9464` or an absolute path.
    ///
    /// # Errors
    /// A sentence that says what it should be.
    pub fn parse(text: &str) -> Result<MetricsListen, String> {
        if text.starts_with('/') {
            return Ok(MetricsListen::Unix(PathBuf::from(text)));
        }
        let address: std::net::SocketAddr = text.parse().map_err(|_| {
            "is neither an address nor a path: write 127.0.0.1:9464, [::1]:9464 or /run/kvd/metrics.sock"
                .to_owned()
        })?;
        if address.ip().is_loopback() {
            return Ok(MetricsListen::Tcp(address));
        }
        Err(format!(
            "{} can be reached from elsewhere, and kvd serves no network: use 127.0.0.1 or a path, and a proxy that checks who asks",
            address.ip()
        ))
    }
}

impl std::fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MetricsListen::Tcp(address) => address.fmt(f),
            MetricsListen::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Everything a daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the store lives.
    pub dir: PathBuf,
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// Bound of the memory of all caches together, in bytes.
    pub memory_bytes: u64,
    /// Longest value, in bytes.
    pub value_bytes_max: usize,
    /// Size of the pending log, in bytes.
    pub pending_log_bytes: u64,
    /// A journal beyond this is folded into the tree; at twice this writers are slowed.
    pub journal_bytes_max: u64,
    /// redb's page cache, in bytes.
    pub redb_cache_bytes: u64,
    /// Longest time between a `behind` write and the begin of its flush.
    pub flush_interval: Duration,
    /// Most connections, not counting those reserved for admin.
    pub connections_max: usize,
    /// Most connections of one user.
    pub connections_per_user_max: usize,
    /// A connection that asks nothing for this long is closed; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Who may connect, and do what with caches that list nobody.
    pub access: Access,
    /// Whether a store that is proven corrupt is set aside at start although a cache in it had durable writes. Asked
    /// for by hand only, never configured.
    pub set_aside: bool,
    /// How transactions keep out of each other's way.
    pub locking: LockingMode,
    /// Requests that take at least this long are kept for the slow log; `None`: none is.
    pub slow_log_threshold: Option<Duration>,
    /// Where Prometheus scrapes; `None`: nowhere.
    pub metrics_listen: Option<MetricsListen>,
    /// How log lines are written, and where to.
    pub log_format: LogFormat,
    /// What is logged, for example `info` or `kvd::server=debug,info`.
    pub log: String,
    /// The template of caches created by their first write.
    pub default: CacheConfig,
    /// The declared caches.
    pub caches: BTreeMap<String, CacheConfig>,
}

impl Config {
    /// A daemon that keeps everything in `dir`, everything else by default; for embedding and tests.
    ///
    /// Change fields as needed, then call [`Config::validate`].
    #[must_use]
    pub fn in_dir(dir: impl AsRef<Path>) -> Config {
        let dir = std::path::absolute(dir.as_ref()).unwrap_or_else(|_| dir.as_ref().to_owned());
        Config {
            socket: dir.join(SOCKET_NAME),
            dir,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            value_bytes_max: limits::VALUE_BYTES_DEFAULT,
            pending_log_bytes: PENDING_LOG_BYTES_DEFAULT,
            journal_bytes_max: JOURNAL_BYTES_DEFAULT.min(MEMORY_BYTES_DEFAULT / 4),
            redb_cache_bytes: REDB_CACHE_BYTES_DEFAULT,
            flush_interval: FLUSH_INTERVAL_DEFAULT,
            connections_max: limits::CONNECTIONS_MAX_DEFAULT,
            connections_per_user_max: CONNECTIONS_PER_USER_DEFAULT,
            idle_timeout: Some(IDLE_TIMEOUT_DEFAULT),
            access: Access::default(),
            set_aside: false,
            locking: LockingMode::default(),
            slow_log_threshold: Some(SLOW_LOG_THRESHOLD_DEFAULT),
            metrics_listen: None,
            log_format: LogFormat::default(),
            log: "info".to_owned(),
            default: CacheConfig::of_memory(MEMORY_BYTES_DEFAULT / CACHE_MEMORY_FRACTION),
            caches: BTreeMap::new(),
        }
    }

    /// Gathers and checks a daemon's configuration.
    ///
    /// # Errors
    /// The first thing that is wrong, with place, key, value and limit.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        resolve::resolve(&source::gather(sources)?, sources)
    }

    /// Checks what must hold between the fields; for a configuration made in code.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        resolve::validate(self)
    }

    /// Longest frame this daemon takes, in bytes.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        limits::frame_bytes_max(self.value_bytes_max)
    }
}

/// The configuration file that is installed: every setting, commented out, with its default and what it is for.
pub const DEFAULT_FILE: &str = include_str!("../../kvd.toml");

/// The socket's name in its directory.
pub const SOCKET_NAME: &str = "kvd.sock";

/// Whether `name` can name a cache.
///
/// # Errors
/// A sentence that says what a name looks like.
pub fn check_cache_name(name: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.len() > limits::CACHE_NAME_BYTES_MAX {
        return Err(format!(
            "name of a cache is {} bytes, limit is {}",
            name.len(),
            limits::CACHE_NAME_BYTES_MAX
        ));
    }
    if starts_well && name.bytes().all(good) {
        return Ok(());
    }
    Err(format!(
        "{name:?} cannot name a cache: small letters, digits and . _ - only, a letter or digit first"
    ))
}

#[cfg(test)]
mod tests;
