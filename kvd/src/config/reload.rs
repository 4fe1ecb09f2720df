//! What a configuration that was read again changes: what a running daemon takes over, and what needs a restart.
//!
//! Called by `cli::serve` once the new configuration was validated whole. The list of what can be taken over is here and
//! nowhere else; everything else that differs is told as needing a restart, never dropped in silence.

use std::fmt::Debug;
use std::time::Duration;

use super::access::show_list;
use super::{CacheConfig, Config};
use crate::orders::Reloaded;
use crate::units::show_bytes;

impl Config {
    /// Takes over from `new` what a running daemon can; tells what changed.
    #[must_use]
    pub fn adjusted(&self, new: &Config) -> (Config, Reloaded) {
        // Named whole: a setting that is forgotten below does not compile.
        let Config {
            dir,
            socket,
            memory_bytes,
            value_bytes_max,
            pending_log_bytes,
            journal_bytes_max,
            redb_cache_bytes,
            flush_interval,
            connections_max,
            connections_per_user_max,
            idle_timeout,
            access,
            set_aside: _,
            locking,
            slow_log_threshold,
            metrics_listen,
            log_format,
            log,
            default,
            caches,
        } = self;
        let period = |period: &Option<Duration>, none: &str| {
            period.map_or(none.to_owned(), |period| format!("{period:?}"))
        };
        let bytes = |bytes: &u64| show_bytes(*bytes);
        let mut told = Reloaded::default();
        let applied = &mut told.applied;
        tell(applied, "memory", memory_bytes, &new.memory_bytes, bytes);
        tell(applied, "connections_max", connections_max, &new.connections_max, shown);
        let new_most = &new.connections_per_user_max;
        tell(applied, "connections_per_user_max", connections_per_user_max, new_most, shown);
        tell(applied, "idle_timeout", idle_timeout, &new.idle_timeout, |idle| period(idle, "never"));
        tell(applied, "access.users", &access.users, &new.access.users, show_list);
        tell(applied, "access.groups", &access.groups, &new.access.groups, show_list);
        tell(applied, "slow_log_threshold", slow_log_threshold, &new.slow_log_threshold, |threshold| {
            period(threshold, "none")
        });
        tell(applied, "log", log, &new.log, shown);
        tell_cache(applied, "default", Some(default), Some(&new.default));

        let needs = &mut told.needs_restart;
        // The caches' own lists do not change; nor do those of caches that are there.
        if access.maps_more_than(&new.access) {
            needs.push("who may read less now: the memory they were handed is theirs until then".to_owned());
        }
        if default.access != new.default.access {
            needs.push("default.users and default.groups: caches that are there keep their lists".to_owned());
        }
        tell(needs, "dir", dir, &new.dir, shown);
        tell(needs, "socket", socket, &new.socket, shown);
        tell(needs, "value_max", value_bytes_max, &new.value_bytes_max, shown);
        tell(needs, "pending_log", pending_log_bytes, &new.pending_log_bytes, bytes);
        tell(needs, "journal_max", journal_bytes_max, &new.journal_bytes_max, bytes);
        tell(needs, "redb_cache", redb_cache_bytes, &new.redb_cache_bytes, bytes);
        tell(needs, "flush_interval", flush_interval, &new.flush_interval, shown);
        tell(needs, "locking", locking, &new.locking, shown);
        tell(needs, "metrics.listen", metrics_listen, &new.metrics_listen, |listen| {
            listen.as_ref().map_or("nowhere".to_owned(), ToString::to_string)
        });
        tell(needs, "log_format", log_format, &new.log_format, shown);
        let mut names: Vec<&String> = caches.keys().chain(new.caches.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            tell_cache(needs, &format!("caches.{name}"), caches.get(name), new.caches.get(name));
        }
        let adjusted = Config {
            memory_bytes: new.memory_bytes,
            connections_max: new.connections_max,
            connections_per_user_max: new.connections_per_user_max,
            idle_timeout: new.idle_timeout,
            access: new.access.clone(),
            slow_log_threshold: new.slow_log_threshold,
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
    tell(lines, &format!("{path}.users"), &old.access.users, &new.access.users, show_list);
    tell(lines, &format!("{path}.groups"), &old.access.groups, &new.access.groups, show_list);
}

#[cfg(test)]
mod tests {
    use kv_proto::wire::Rights;

    use super::*;
    use crate::config::MetricsListen;
    use crate::logging::LogFormat;

    #[test]
    fn what_can_change_is_taken_over_and_the_rest_is_told() {
        let old = Config::in_dir("x");
        let mut new = old.clone();
        new.memory_bytes *= 2;
        new.access.users.insert(4_242, Rights::READ);
        new.slow_log_threshold = None;
        new.redb_cache_bytes += 1;
        new.metrics_listen = MetricsListen::parse("127.0.0.1:9464").ok();
        new.log_format = LogFormat::Json;
        new.caches.insert("page".to_owned(), CacheConfig::of_memory(1 << 20));
        let (adjusted, told) = old.adjusted(&new);
        let applied = [
            "memory: 256 MiB -> 512 MiB",
            "access.users: nobody -> 4242:read",
            "slow_log_threshold: 10ms -> none",
        ];
        assert_eq!(told.applied, applied);
        let needs: Vec<&str> = told.needs_restart.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(needs, ["redb_cache", "metrics.listen", "log_format", "caches.page"], "{told:?}");
        assert_eq!(
            (adjusted.memory_bytes, adjusted.redb_cache_bytes),
            (new.memory_bytes, old.redb_cache_bytes)
        );
        assert_eq!(old.adjusted(&old).1, Reloaded::default());
        let (mut reader, mut fewer) = (old.clone(), old.clone());
        reader.access.users.insert(4_242, Rights::CACHE);
        fewer.access.users.insert(4_242, Rights::CACHE - Rights::SCAN);
        assert!(reader.adjusted(&fewer).1.needs_restart[0].contains("memory they were handed"));
        assert_eq!(fewer.adjusted(&reader).1.needs_restart, [] as [&str; 0]);
    }
}
