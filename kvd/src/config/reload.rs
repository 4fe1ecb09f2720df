//! What a configuration that was read again changes: what a running daemon takes over, and what needs a restart.
//!
//! Called by `cli::serve` once the new configuration was validated whole. The list of what can be taken over is here and
//! nowhere else; everything else that differs is told as needing a restart, never dropped in silence.

use std::fmt::Debug;

use super::{CacheConfig, Config};
use crate::orders::Reloaded;
use crate::units::show_bytes;

impl Config {
    /// Takes over from `new` what a running daemon can; tells what changed.
    #[must_use]
    pub fn adjusted(&self, new: &Config) -> (Config, Reloaded) {
        let mut told = Reloaded::default();
        let applied = &mut told.applied;
        tell(applied, "memory", &self.memory_bytes, &new.memory_bytes, |bytes| show_bytes(*bytes));
        tell(applied, "connections_max", &self.connections_max, &new.connections_max, shown);
        let (old_most, new_most) = (&self.connections_per_user_max, &new.connections_per_user_max);
        tell(applied, "connections_per_user_max", old_most, new_most, shown);
        tell(applied, "idle_timeout", &self.idle_timeout, &new.idle_timeout, |idle| {
            idle.map_or("never".to_owned(), |idle| format!("{idle:?}"))
        });
        tell(applied, "access.users", &self.access.users, &new.access.users, shown);
        tell(applied, "access.groups", &self.access.groups, &new.access.groups, shown);
        tell(applied, "log", &self.log, &new.log, shown);
        tell_cache(applied, "default", Some(&self.default), Some(&new.default));

        let needs = &mut told.needs_restart;
        tell(needs, "dir", &self.dir, &new.dir, shown);
        tell(needs, "socket", &self.socket, &new.socket, shown);
        tell(needs, "value_max", &self.value_bytes_max, &new.value_bytes_max, shown);
        tell(needs, "pending_log", &self.pending_log_bytes, &new.pending_log_bytes, |bytes| {
            show_bytes(*bytes)
        });
        tell(needs, "journal_max", &self.journal_bytes_max, &new.journal_bytes_max, |bytes| {
            show_bytes(*bytes)
        });
        tell(needs, "redb_cache", &self.redb_cache_bytes, &new.redb_cache_bytes, |bytes| show_bytes(*bytes));
        tell(needs, "flush_interval", &self.flush_interval, &new.flush_interval, shown);
        tell(needs, "locking", &self.locking, &new.locking, shown);
        let mut names: Vec<&String> = self.caches.keys().chain(new.caches.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            tell_cache(needs, &format!("caches.{name}"), self.caches.get(name), new.caches.get(name));
        }
        let adjusted = Config {
            memory_bytes: new.memory_bytes,
            connections_max: new.connections_max,
            connections_per_user_max: new.connections_per_user_max,
            idle_timeout: new.idle_timeout,
            access: new.access.clone(),
            log: new.log.clone(),
            default: new.default.clone(),
            ..self.clone()
        };
        (adjusted, told)
    }
}

fn shown<T: Debug>(value: &T) -> String {
    format!("{value:?}")
}

fn tell<T: PartialEq>(lines: &mut Vec<String>, key: &str, old: &T, new: &T, show: impl Fn(&T) -> String) {
    if old != new {
        lines.push(format!("{key}: {} -> {}", show(old), show(new)));
    }
}

fn tell_cache(lines: &mut Vec<String>, path: &str, old: Option<&CacheConfig>, new: Option<&CacheConfig>) {
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, Some(_)) => return lines.push(format!("{path}: declared")),
        (Some(_), None) => return lines.push(format!("{path}: no longer declared")),
        (None, None) => return,
    };
    tell(lines, &format!("{path}.memory"), &old.memory_bytes, &new.memory_bytes, |bytes| show_bytes(*bytes));
    tell(lines, &format!("{path}.disk"), &old.disk_bytes_max, &new.disk_bytes_max, |bytes| {
        show_bytes(*bytes)
    });
    tell(lines, &format!("{path}.ttl"), &old.ttl_default_ms, &new.ttl_default_ms, shown);
    tell(lines, &format!("{path}.ttl_max"), &old.ttl_max_ms, &new.ttl_max_ms, shown);
    tell(lines, &format!("{path}.durability"), &old.durability, &new.durability, shown);
    tell(lines, &format!("{path}.recover"), &old.recover, &new.recover, shown);
    let (old_after, new_after) = (&old.after_clean_stop, &new.after_clean_stop);
    tell(lines, &format!("{path}.after_clean_stop"), old_after, new_after, shown);
    tell(lines, &format!("{path}.shared"), &old.shared, &new.shared, shown);
    tell(lines, &format!("{path}.users"), &old.access.users, &new.access.users, shown);
    tell(lines, &format!("{path}.groups"), &old.access.groups, &new.access.groups, shown);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_change_is_taken_over_and_the_rest_is_told() {
        let old = Config::in_dir("x");
        let mut new = old.clone();
        new.memory_bytes *= 2;
        new.access.users.insert(4_242);
        new.redb_cache_bytes += 1;
        new.caches.insert("page".to_owned(), CacheConfig::of_memory(1 << 20));
        let (adjusted, told) = old.adjusted(&new);
        assert_eq!(told.applied, ["memory: 256 MiB -> 512 MiB", "access.users: {} -> {4242}"]);
        assert_eq!(told.needs_restart.len(), 2, "{told:?}");
        assert_eq!(
            (adjusted.memory_bytes, adjusted.redb_cache_bytes),
            (new.memory_bytes, old.redb_cache_bytes)
        );
        assert_eq!(old.adjusted(&old).1, Reloaded::default());
    }
}
