//! Understands gathered settings and checks them whole.
//!
//! Called by [`Config::load`](super::Config::load) and [`Config::validate`](super::Config::validate).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use kv_proto::limits;
use kv_proto::wire::{Durability, Rights};
use nix::unistd::{Group, User};

use super::access::parse_entry;
use super::error::ConfigError;
use super::source::{Draft, Given, Settings, Sources};
use super::{
    Access, CACHE_DISK_BYTES_DEFAULT, CACHE_MEMORY_BYTES_MIN, CACHE_MEMORY_FRACTION, CacheConfig, Config,
    JOURNAL_BYTES_DEFAULT, LockingMode, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, MetricsListen,
    PENDING_LOG_BYTES_DEFAULT, PENDING_LOG_COMMITS_MIN, Recover, SOCKET_NAME, check_cache_name,
};
use crate::logging::{FORMATS, check_filter};
use crate::units::{parse_bytes, parse_duration, show_bytes, show_duration};

/// Turns settings into a configuration that fits together.
pub(super) fn resolve(draft: &Draft, sources: &Sources) -> Result<Config, ConfigError> {
    let host = Table { path: "", settings: &draft.host };
    let (dir, socket) = places(&host, sources)?;
    let mut config = Config::in_dir(dir);
    config.socket = socket;
    host.bytes("memory", MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX, &mut config.memory_bytes)?;
    let mut value_bytes_max = config.value_bytes_max as u64;
    host.bytes("value_max", 1..=limits::VALUE_BYTES_MAX as u64, &mut value_bytes_max)?;
    config.value_bytes_max = usize::try_from(value_bytes_max).expect("at most 16 MiB");
    let log_bytes_min = pending_log_bytes_min(&config);
    config.pending_log_bytes = PENDING_LOG_BYTES_DEFAULT.max(log_bytes_min.next_multiple_of(1 << 20));
    host.bytes("pending_log", log_bytes_min..=1 << 40, &mut config.pending_log_bytes)?;
    config.journal_bytes_max = JOURNAL_BYTES_DEFAULT.min(config.memory_bytes / 4);
    host.bytes("journal_max", 64 << 10..=1 << 40, &mut config.journal_bytes_max)?;
    host.bytes("redb_cache", 1 << 20..=1 << 40, &mut config.redb_cache_bytes)?;
    host.duration(
        "flush_interval",
        Duration::from_millis(1)..=Duration::from_secs(60),
        &mut config.flush_interval,
    )?;
    host.count("connections_max", 1..=100_000, &mut config.connections_max)?;
    config.connections_per_user_max = config.connections_per_user_max.min(config.connections_max);
    host.count("connections_per_user_max", 1..=config.connections_max, &mut config.connections_per_user_max)?;
    let mut idle = config.idle_timeout.unwrap_or_default();
    host.duration("idle_timeout", Duration::ZERO..=Duration::from_secs(365 * 86_400), &mut idle)?;
    config.idle_timeout = Some(idle).filter(|idle| !idle.is_zero());
    host.word("locking", &LOCKING_MODES, &mut config.locking)?;
    let mut slow = config.slow_log_threshold.unwrap_or_default();
    host.duration("slow_log_threshold", Duration::ZERO..=Duration::from_secs(3_600), &mut slow)?;
    config.slow_log_threshold = Some(slow).filter(|slow| !slow.is_zero());
    if let Some(given) = host.given("metrics.listen") {
        let listen = MetricsListen::parse(&given.text);
        config.metrics_listen = Some(listen.map_err(|problem| host.value("metrics.listen", given, problem))?);
    }
    host.word("log_format", &FORMATS, &mut config.log_format)?;
    if let Some(given) = host.given("log") {
        check_filter(&given.text).map_err(|error| host.value("log", given, error.to_string()))?;
        config.log.clone_from(&given.text);
    }
    config.access = access(&host, "access.users", "access.groups", Rights::all())?;
    config.default = default_cache(draft, &config)?;
    for (name, (_, settings)) in &draft.caches {
        let path = format!("caches.{name}");
        let cache = cache(&Table { path: &path, settings }, draft, &config.default)?;
        config.caches.insert(name.clone(), cache);
    }
    validate(&config)?;
    Ok(config)
}

fn pending_log_bytes_min(config: &Config) -> u64 {
    PENDING_LOG_COMMITS_MIN * config.frame_bytes_max() as u64
}

/// What must hold between settings, however they were made.
pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let whole = |problem: String| Err(ConfigError::Whole(problem));
    let total: u64 = config.caches.values().map(|c| c.memory_bytes).fold(0, u64::saturating_add);
    if total > config.memory_bytes {
        let list = config.caches.iter().map(|(n, c)| format!("{n} {}", show_bytes(c.memory_bytes)));
        return whole(format!(
            "the memory of the caches adds up to {} ({}), limit is memory = {}",
            show_bytes(total),
            list.collect::<Vec<_>>().join(", "),
            show_bytes(config.memory_bytes)
        ));
    }
    if config.default.memory_bytes > config.memory_bytes {
        let (wanted, limit) = (show_bytes(config.default.memory_bytes), show_bytes(config.memory_bytes));
        return whole(format!("default.memory is {wanted}, limit is memory = {limit}"));
    }
    if config.caches.len() > limits::CACHES_MAX {
        return whole(format!(
            "{} caches are declared, limit is {}",
            config.caches.len(),
            limits::CACHES_MAX
        ));
    }
    if config.value_bytes_max > limits::VALUE_BYTES_MAX {
        let limit = limits::VALUE_BYTES_MAX;
        return whole(format!("value_max is {} bytes, limit is {limit}", config.value_bytes_max));
    }
    if config.pending_log_bytes < pending_log_bytes_min(config) {
        let (log, least) = (show_bytes(config.pending_log_bytes), pending_log_bytes_min(config));
        return whole(format!("pending_log is {log}, the least for this value_max is {least} bytes"));
    }
    for (name, cache) in config.caches.iter().chain([(&"default".to_owned(), &config.default)]) {
        if let Err(problem) = check_cache_name(name).and_then(|()| check_cache(cache)) {
            return whole(format!("cache {name}: {problem}"));
        }
    }
    Ok(())
}

fn check_cache(cache: &CacheConfig) -> Result<(), String> {
    if cache.memory_bytes < CACHE_MEMORY_BYTES_MIN {
        let least = show_bytes(CACHE_MEMORY_BYTES_MIN);
        return Err(format!("memory is {}, the least is {least}", show_bytes(cache.memory_bytes)));
    }
    let show = |ms: u64| show_duration(Duration::from_millis(ms));
    match (cache.ttl_default_ms, cache.ttl_max_ms) {
        (Some(ttl), Some(max)) if ttl > max => {
            Err(format!("ttl is {}, limit is ttl_max = {}", show(ttl), show(max)))
        }
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

fn places(host: &Table<'_>, sources: &Sources) -> Result<(PathBuf, PathBuf), ConfigError> {
    let dir = match host.given("dir") {
        Some(given) => host.path_of("dir", given)?,
        None if sources.is_root => PathBuf::from("/var/lib/kvd"),
        None => sources
            .env_dir("XDG_STATE_HOME")
            .or_else(|| Some(sources.env_dir("HOME")?.join(".local/state")))
            .ok_or_else(|| {
                ConfigError::Whole(
                    "neither XDG_STATE_HOME nor HOME says where to keep the store: use --dir".to_owned(),
                )
            })?
            .join("kvd"),
    };
    let socket = match host.given("socket") {
        Some(given) => host.path_of("socket", given)?,
        None if host.given("dir").is_some() => dir.join(SOCKET_NAME),
        None if sources.is_root => PathBuf::from("/run/kvd").join(SOCKET_NAME),
        // Without a runtime directory (cron, a bare ssh) the store's own is the one place sure to be private.
        None => sources
            .env_dir("XDG_RUNTIME_DIR")
            .map_or_else(|| dir.clone(), |d| d.join("kvd"))
            .join(SOCKET_NAME),
    };
    Ok((dir, socket))
}

fn access(table: &Table<'_>, users: &str, groups: &str, most: Rights) -> Result<Access, ConfigError> {
    let mut access = Access::default();
    let user = |name: &str| Ok(User::from_name(name).map_err(|e| e.to_string())?.map(|u| u.uid.as_raw()));
    let group = |name: &str| Ok(Group::from_name(name).map_err(|e| e.to_string())?.map(|g| g.gid.as_raw()));
    table.list(users, "user", user, most, &mut access.users)?;
    table.list(groups, "group", group, most, &mut access.groups)?;
    Ok(access)
}

fn default_cache(draft: &Draft, config: &Config) -> Result<CacheConfig, ConfigError> {
    let memory_bytes = (config.memory_bytes / CACHE_MEMORY_FRACTION).max(CACHE_MEMORY_BYTES_MIN);
    let base = CacheConfig::of_memory(memory_bytes);
    cache(&Table { path: "default", settings: &draft.default }, draft, &base)
}

/// A cache: what it says, else what `[default]` says, else what is built in.
fn cache(table: &Table<'_>, draft: &Draft, base: &CacheConfig) -> Result<CacheConfig, ConfigError> {
    let mut cache = base.clone();
    table.bytes("memory", CACHE_MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX, &mut cache.memory_bytes)?;
    table.word("durability", &DURABILITIES, &mut cache.durability)?;
    let inherits_recover = draft.default.contains_key("recover");
    if !inherits_recover {
        cache.recover = match cache.durability {
            Durability::Memory | Durability::Behind => Recover::Stale,
            Durability::Durable => Recover::Keep,
        };
    }
    table.word("recover", &RECOVERS, &mut cache.recover)?;
    table.word("after_clean_stop", &TRUTHS, &mut cache.after_clean_stop)?;
    table.word("shared", &TRUTHS, &mut cache.shared)?;
    if table.given("users").or_else(|| table.given("groups")).is_some() {
        cache.access = access(table, "users", "groups", Rights::CACHE)?;
    }
    table.ttl("ttl", &mut cache.ttl_default_ms)?;
    table.ttl("ttl_max", &mut cache.ttl_max_ms)?;
    if cache.durability == Durability::Memory {
        cache.disk_bytes_max = 0;
    } else if cache.disk_bytes_max == 0 {
        cache.disk_bytes_max = CACHE_DISK_BYTES_DEFAULT;
    }
    if let Some(given) = table.given("disk") {
        if cache.durability == Durability::Memory {
            return Err(table.value(
                "disk",
                given,
                "this cache is durability = \"memory\": it has no disk".to_owned(),
            ));
        }
        table.bytes("disk", 1 << 20..=1 << 50, &mut cache.disk_bytes_max)?;
    }
    Ok(cache)
}

const DURABILITIES: [(&str, Durability); 3] =
    [("memory", Durability::Memory), ("behind", Durability::Behind), ("durable", Durability::Durable)];
const RECOVERS: [(&str, Recover); 3] =
    [("keep", Recover::Keep), ("stale", Recover::Stale), ("clear", Recover::Clear)];
const LOCKING_MODES: [(&str, LockingMode); 3] =
    [("database", LockingMode::Database), ("key", LockingMode::Key), ("optimistic", LockingMode::Optimistic)];
const TRUTHS: [(&str, bool); 2] = [("true", true), ("false", false)];

/// Settings under one heading, and how to read them.
struct Table<'a> {
    path: &'a str,
    settings: &'a Settings,
}

impl Table<'_> {
    fn given(&self, key: &str) -> Option<&Given> {
        self.settings.get(key)
    }

    fn value(&self, key: &str, given: &Given, problem: String) -> ConfigError {
        let key = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        ConfigError::Value { origin: given.origin.clone(), key, value: given.text.clone(), problem }
    }

    fn within<T: PartialOrd>(
        &self,
        (key, given): (&str, &Given),
        value: Result<T, String>,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Result<T, ConfigError> {
        let value = value.map_err(|problem| self.value(key, given, problem))?;
        if range.contains(&value) {
            return Ok(value);
        }
        let problem = if value < *range.start() {
            format!("is {}, the least is {}", show(&value), show(range.start()))
        } else {
            format!("is {}, limit is {}", show(&value), show(range.end()))
        };
        Err(self.value(key, given, problem))
    }

    fn bytes(&self, key: &str, range: RangeInclusive<u64>, out: &mut u64) -> Result<(), ConfigError> {
        let Some(given) = self.given(key) else { return Ok(()) };
        *out = self.within((key, given), parse_bytes(&given.text), &range, |b| show_bytes(*b))?;
        Ok(())
    }

    fn duration(
        &self,
        key: &str,
        range: RangeInclusive<Duration>,
        out: &mut Duration,
    ) -> Result<(), ConfigError> {
        let Some(given) = self.given(key) else { return Ok(()) };
        *out = self.within((key, given), parse_duration(&given.text), &range, |d| show_duration(*d))?;
        Ok(())
    }

    fn count(&self, key: &str, range: RangeInclusive<usize>, out: &mut usize) -> Result<(), ConfigError> {
        let Some(given) = self.given(key) else { return Ok(()) };
        let count = given.text.parse().map_err(|_| "is not a whole number".to_owned());
        *out = self.within((key, given), count, &range, usize::to_string)?;
        Ok(())
    }

    fn ttl(&self, key: &str, out: &mut Option<u64>) -> Result<(), ConfigError> {
        let Some(given) = self.given(key) else { return Ok(()) };
        if given.text == "never" {
            *out = None;
            return Ok(());
        }
        let mut ttl = Duration::ZERO;
        self.duration(key, Duration::from_millis(1)..=Duration::from_millis(limits::TTL_MS_MAX), &mut ttl)?;
        *out = Some(u64::try_from(ttl.as_millis()).expect("at most 100 years"));
        Ok(())
    }

    fn word<T: Copy>(&self, key: &str, words: &[(&str, T)], out: &mut T) -> Result<(), ConfigError> {
        let Some(given) = self.given(key) else { return Ok(()) };
        let found = words.iter().find(|(word, _)| *word == given.text);
        let known = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        *out = found.ok_or_else(|| self.value(key, given, format!("is none of: {}", known())))?.1;
        Ok(())
    }

    fn path_of(&self, key: &str, given: &Given) -> Result<PathBuf, ConfigError> {
        std::path::absolute(&given.text).map_err(|e| self.value(key, given, format!("is no path: {e}")))
    }

    /// Names or numbers of users or groups, separated by commas, each with what it may do, `most` of that at most.
    fn list(
        &self,
        key: &str,
        kind: &str,
        look_up: impl Fn(&str) -> Result<Option<u32>, String>,
        most: Rights,
        out: &mut BTreeMap<u32, Rights>,
    ) -> Result<(), ConfigError> {
        let Some(given) = self.given(key) else { return Ok(()) };
        let wrong = |problem: String| self.value(key, given, problem);
        for entry in given.text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, rights) = parse_entry(entry).map_err(wrong)?;
            if !most.contains(rights) {
                let verbs = rights - most;
                return Err(wrong(format!("{verbs} is a matter of the whole daemon: say it under [access]")));
            }
            let id = match name.parse::<u32>() {
                Ok(id) => Some(id),
                Err(_) => look_up(name).map_err(wrong)?,
            };
            let id = id.ok_or_else(|| wrong(format!("this machine has no {kind} {name:?}")))?;
            *out.entry(id).or_default() |= rights;
        }
        Ok(())
    }
}
