//! Gathers settings from file, environment and flags, later ones winning, each with the place it came from.
//!
//! Called by [`Config::load`](super::Config::load). Knows the names of settings but not what their values mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Origin};
use super::file;

/// The settings of the host and what they mean. One list for all three sources: the file's `value_max`, the
/// environment's `KVD_VALUE_MAX` and the flag `--value-max` are the same setting.
pub const HOST_KEYS: [(&str, &str); 17] = [
    ("dir", "where the store lives; the socket too unless set"),
    ("socket", "where the daemon listens"),
    ("memory", "bound of the memory of all caches together, as 256MiB or 1g"),
    ("value_max", "longest value, up to 16MiB"),
    ("pending_log", "size of the pending log"),
    ("journal_max", "journal beyond this is folded into the tree"),
    ("redb_cache", "page cache of the store on disk"),
    ("flush_interval", "longest time between a write and its flush to disk"),
    ("connections_max", "most connections"),
    ("connections_per_user_max", "most connections of one user"),
    ("idle_timeout", "a connection that asks nothing for this long is closed; 0: never"),
    ("locking", "how transactions keep out of each other's way: database, key or optimistic"),
    ("slow_log_threshold", "requests that take longer are kept for kvd slow-log; 0: none"),
    ("log_format", "how log lines are written: pretty, json or journald"),
    ("log", "what is logged, as info or kvd::server=debug,info"),
    ("access", "who else may connect: access.users and access.groups"),
    ("metrics", "where Prometheus scrapes: metrics.listen"),
];

/// The settings of a cache.
pub(super) const CACHE_KEYS: [&str; 10] = [
    "memory",
    "disk",
    "ttl",
    "ttl_max",
    "durability",
    "recover",
    "after_clean_stop",
    "shared",
    "users",
    "groups",
];

/// The settings under `[access]`.
pub(super) const ACCESS_KEYS: [&str; 2] = ["users", "groups"];

/// The settings under `[metrics]`.
pub(super) const METRICS_KEYS: [&str; 1] = ["listen"];

/// Where a configuration is gathered from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file that must be read; `None`: the standard ones, if there.
    pub file: Option<PathBuf>,
    /// The environment's variables.
    pub env: BTreeMap<String, String>,
    /// Settings given as flags: the key as in [`HOST_KEYS`] (or `access.users`, `access.groups`), and its value.
    pub flags: Vec<(&'static str, String)>,
    /// Whether the standard places are those of the system rather than of a user.
    pub is_root: bool,
}

impl Sources {
    /// This process's environment and user, with what the command line said.
    #[must_use]
    pub fn process(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Sources {
        Sources {
            file: file
                .or_else(|| std::env::var_os("KVD_CONFIG").filter(|f| !f.is_empty()).map(PathBuf::from)),
            env: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
            flags,
            is_root: nix::unistd::geteuid().is_root(),
        }
    }

    /// A directory variable of the environment; relative ones are to be ignored, says the XDG specification.
    pub(super) fn env_dir(&self, name: &str) -> Option<PathBuf> {
        self.env.get(name).map(PathBuf::from).filter(|p| p.is_absolute())
    }

    fn standard_files(&self) -> Vec<PathBuf> {
        let system = PathBuf::from("/etc/kvd/kvd.toml");
        if self.is_root {
            return vec![system];
        }
        let user = self.env_dir("XDG_CONFIG_HOME").or_else(|| Some(self.env_dir("HOME")?.join(".config")));
        user.map(|d| d.join("kvd/kvd.toml")).into_iter().chain([system]).collect()
    }
}

/// A value as it was said, and where.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// Settings by key.
pub(super) type Settings = BTreeMap<String, Given>;

/// All settings, not yet understood.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// The host's, `access.users` and `access.groups` among them.
    pub(super) host: Settings,
    /// The template's.
    pub(super) default: Settings,
    /// The declared caches'.
    pub(super) caches: BTreeMap<String, (Origin, Settings)>,
}

impl Draft {
    /// Lays a later source over what was gathered so far.
    fn overlay(&mut self, host: Settings) {
        // Who says where the store is means the socket too, unless the same source says otherwise.
        if host.contains_key("dir") && !host.contains_key("socket") {
            self.host.remove("socket");
        }
        self.host.extend(host);
    }
}

/// Gathers everything. The first standard file that is there is read, and only that one.
pub(super) fn gather(sources: &Sources) -> Result<Draft, ConfigError> {
    let mut draft = match &sources.file {
        Some(path) => file::read(path)?,
        None => match sources.standard_files().into_iter().find(|p| p.exists()) {
            Some(path) => file::read(&path)?,
            None => Draft::default(),
        },
    };
    draft.overlay(from_env(&sources.env));
    draft.overlay(from_flags(&sources.flags));
    Ok(draft)
}

fn from_env(env: &BTreeMap<String, String>) -> Settings {
    let keys = HOST_KEYS.iter().map(|(key, _)| *key).filter(|key| !["access", "metrics"].contains(key));
    keys.chain(["access.users", "access.groups", "metrics.listen"])
        .filter_map(|key| {
            let name = format!("KVD_{}", key.replace('.', "_").to_ascii_uppercase());
            let text = env.get(&name).filter(|text| !text.is_empty())?.clone();
            Some((key.to_owned(), Given { text, origin: Origin::Env(name) }))
        })
        .collect()
}

fn from_flags(flags: &[(&'static str, String)]) -> Settings {
    flags
        .iter()
        .map(|(key, text)| {
            let flag = match *key {
                "access.users" => "--allow-user".to_owned(),
                "access.groups" => "--allow-group".to_owned(),
                key => format!("--{}", key.replace(['_', '.'], "-")),
            };
            ((*key).to_owned(), Given { text: text.clone(), origin: Origin::Flag(flag) })
        })
        .collect()
}

/// The known name nearest to `name`, as a sentence to append to an error; empty when none is near.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known.map(|k| (edit_distance(name, k), k)).min();
    match best {
        Some((distance, k)) if distance <= 2.max(name.len() / 3) => format!("; did you mean `{k}`?"),
        Some(_) | None => String::new(),
    }
}

/// Levenshtein's distance, bounded by the short names it is used on.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// An origin in `path` at the byte `offset` of `text`.
pub(super) fn origin_at(path: &Path, text: &str, offset: usize) -> Origin {
    let before = text.get(..offset).unwrap_or(text);
    Origin::File { path: path.to_owned(), line: before.bytes().filter(|b| *b == b'\n').count() + 1 }
}
