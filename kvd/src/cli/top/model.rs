//! Two answers of the daemon become rates; many become a history.
//!
//! Counters of a daemon that was started anew begin at zero: then the rates of that second are left out. Bounded however long it
//! runs and whatever the daemon has.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use kv_client::ClientInfo;
use serde_json::{Value, json};

use super::sample::Sample;
use crate::cli::show;
use crate::cli::stats::{Figures, Reads};

/// Seconds that are remembered: as many as the widest screen has columns.
const HISTORY: usize = 512;
/// Operations that wait by themselves: how long they take says nothing about the daemon.
const PATIENT: [&str; 5] = ["begin", "lease", "lock", "watch", "sync"];

/// A number over time, the newest last.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<f64>);

impl History {
    pub(super) fn push(&mut self, value: f64) {
        if self.0.len() == HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The newest `count`, for a sparkline.
    pub(super) fn last(&self, count: usize) -> Vec<u64> {
        let skipped = self.0.len().saturating_sub(count);
        // A tenth of what is shown still makes a difference in the picture.
        self.0.iter().skip(skipped).map(|value| (value * 1_000.0) as u64).collect()
    }

    pub(super) fn newest(&self) -> f64 {
        self.0.back().copied().unwrap_or(0.0)
    }

    pub(super) fn peak(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// A cache in the last second.
#[derive(Debug, Default, Clone)]
pub(super) struct CacheRow {
    pub(super) name: String,
    /// A second each.
    pub(super) reads: Reads,
    pub(super) writes: f64,
    pub(super) evicted: f64,
    pub(super) loads: f64,
    pub(super) items: f64,
    pub(super) memory_bytes: f64,
    pub(super) memory_max_bytes: f64,
    pub(super) disk_bytes: f64,
}

/// A process in the last second.
#[derive(Debug, Default, Clone)]
pub(super) struct ClientRow {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) connections: usize,
    pub(super) requests: f64,
    pub(super) shared: f64,
    pub(super) idle: Duration,
    /// `shared`, or why it asks.
    pub(super) path: String,
}

/// A key in the last seconds.
#[derive(Debug, Clone)]
pub(super) struct KeyRow {
    pub(super) cache: String,
    pub(super) key: Vec<u8>,
    pub(super) reads: f64,
    pub(super) value_bytes: u32,
}

/// An operation in the last second.
#[derive(Debug, Clone)]
pub(super) struct OperationRow {
    pub(super) name: String,
    pub(super) requests: f64,
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

/// The line about the daemon.
#[derive(Debug, Default, Clone)]
pub(super) struct Head {
    pub(super) version: String,
    pub(super) uptime: Duration,
    pub(super) connections: f64,
    pub(super) memory_bytes: f64,
    pub(super) memory_max_bytes: f64,
    pub(super) pending_share: f64,
    pub(super) flush_p99: Option<f64>,
    pub(super) transactions: f64,
    pub(super) leases: f64,
    pub(super) waiting: f64,
    pub(super) errors: f64,
    pub(super) slow: f64,
    pub(super) processor_share: f64,
    pub(super) is_healthy: bool,
}

/// All that is shown.
#[derive(Debug, Default)]
pub(super) struct Model {
    last: Option<Sample>,
    /// Since when the daemon does not answer, and what is said about it.
    pub(super) away: Option<(Instant, String)>,
    pub(super) head: Head,
    pub(super) reads: History,
    pub(super) writes: History,
    pub(super) hit_percent: History,
    pub(super) p99: History,
    pub(super) caches: Vec<CacheRow>,
    pub(super) clients: Vec<ClientRow>,
    pub(super) keys: Vec<KeyRow>,
    pub(super) operations: Vec<OperationRow>,
}

impl Model {
    pub(super) fn new() -> Model {
        Model::default()
    }

    /// How long ago the last answer came.
    pub(super) fn silence(&self) -> Duration {
        let now = kvd::clock::Clock::system().instant();
        self.last.as_ref().map_or(Duration::ZERO, |last| now.duration_since(last.at))
    }

    /// The daemon did not answer.
    pub(super) fn away(&mut self, why: String) {
        let since =
            self.away.as_ref().map_or_else(|| kvd::clock::Clock::system().instant(), |(since, _)| *since);
        self.away = Some((since, why));
    }

    /// The daemon answered.
    pub(super) fn take(&mut self, sample: Sample) {
        let before = self.last.take().filter(|last| is_same_run(last, &sample));
        let came_back = self.away.take().is_some();
        let pair = Pair::new(before.as_ref().filter(|_| !came_back), &sample);
        self.head = pair.head();
        self.caches = pair.caches();
        self.clients = pair.clients();
        self.operations = pair.operations();
        self.keys = sample
            .keys
            .iter()
            .map(|key| KeyRow {
                cache: key.cache.clone(),
                key: key.key.clone(),
                reads: key.reads as f64,
                value_bytes: key.value_bytes,
            })
            .collect();
        if pair.seconds > 0.0 {
            let all = self.caches.iter().fold((0.0, 0.0, 0.0), |(hits, misses, writes), cache| {
                (hits + cache.reads.hits(), misses + cache.reads.misses, writes + cache.writes)
            });
            self.reads.push(all.0 + all.1);
            self.writes.push(all.2);
            let hit_percent = Reads { memory: all.0, misses: all.1, ..Reads::default() }.hit_percent();
            self.hit_percent.push(hit_percent.unwrap_or(0.0));
            self.p99
                .push(pair.quantile(0.99, |operation| !PATIENT.contains(&operation)).unwrap_or(0.0) * 1e6);
        }
        drop(pair);
        self.last = Some(sample);
    }

    pub(super) fn to_json(&self) -> Value {
        let caches = self.caches.iter().map(|cache| {
            json!({
                "cache": cache.name,
                "reads_per_second": cache.reads.hits() + cache.reads.misses,
                "hit_percent": cache.reads.hit_percent(),
                "shared_per_second": cache.reads.shared,
                "memory_per_second": cache.reads.memory,
                "disk_per_second": cache.reads.disk,
                "stale_per_second": cache.reads.stale,
                "misses_per_second": cache.reads.misses,
                "writes_per_second": cache.writes,
                "evicted_per_second": cache.evicted,
                "loads_per_second": cache.loads,
                "items": cache.items,
                "memory_bytes": cache.memory_bytes,
                "memory_max_bytes": cache.memory_max_bytes,
                "disk_bytes": cache.disk_bytes,
            })
        });
        let clients = self.clients.iter().map(|client| {
            json!({
                "pid": client.pid,
                "name": client.name,
                "connections": client.connections,
                "requests_per_second": client.requests,
                "shared_reads_per_second": client.shared,
                "idle_ms": u64::try_from(client.idle.as_millis()).unwrap_or(u64::MAX),
                "path": client.path,
            })
        });
        let keys = self.keys.iter().map(|key| {
            let mut object = serde_json::Map::new();
            show::put_bytes(&mut object, "key", &key.key);
            object.insert("cache".to_owned(), json!(key.cache));
            object.insert("reads".to_owned(), json!(key.reads));
            object.insert("value_bytes".to_owned(), json!(key.value_bytes));
            Value::Object(object)
        });
        let operations = self.operations.iter().map(|operation| {
            json!({
                "operation": operation.name,
                "requests_per_second": operation.requests,
                "p50_seconds": operation.p50,
                "p99_seconds": operation.p99,
            })
        });
        json!({
            "version": self.head.version,
            "uptime_seconds": self.head.uptime.as_secs(),
            "connections": self.head.connections,
            "reads_per_second": self.reads.newest(),
            "writes_per_second": self.writes.newest(),
            "p99_seconds": self.p99.newest() / 1e6,
            "caches": caches.collect::<Vec<_>>(),
            "clients": clients.collect::<Vec<_>>(),
            "keys": keys.collect::<Vec<_>>(),
            "operations": operations.collect::<Vec<_>>(),
        })
    }
}

/// Whether both are of one run of the daemon: its counters only grew.
fn is_same_run(before: &Sample, now: &Sample) -> bool {
    let uptime = |sample: &Sample| Figures::of(&sample.metrics).one("kvd_uptime_seconds");
    uptime(now) >= uptime(before)
}

/// An answer and the one before it.
struct Pair<'a> {
    before: Option<Figures<'a>>,
    now: Figures<'a>,
    /// Between them; zero: there is none before.
    seconds: f64,
    clients_before: &'a [ClientInfo],
    clients_now: &'a [ClientInfo],
}

impl<'a> Pair<'a> {
    fn new(before: Option<&'a Sample>, now: &'a Sample) -> Pair<'a> {
        Pair {
            before: before.map(|before| Figures::of(&before.metrics)),
            now: Figures::of(&now.metrics),
            seconds: before.map_or(0.0, |before| now.at.duration_since(before.at).as_secs_f64()),
            clients_before: before.map_or(&[], |before| &before.clients),
            clients_now: &now.clients,
        }
    }

    /// By how much a figure grew, a second.
    fn rate(&self, of: impl Fn(&Figures<'a>) -> f64) -> f64 {
        match &self.before {
            Some(before) if self.seconds > 0.0 => ((of(&self.now) - of(before)) / self.seconds).max(0.0),
            Some(_) | None => 0.0,
        }
    }

    fn head(&self) -> Head {
        let one = |name| self.now.one(name);
        let pending_max = one("kvd_pending_max_bytes");
        let version = self.now.labels("kvd_build_info", "version").first().copied().unwrap_or("?");
        Head {
            version: version.to_owned(),
            uptime: Duration::from_secs(one("kvd_uptime_seconds") as u64),
            connections: one("kvd_connections"),
            memory_bytes: self.now.sum("kvd_cache_memory_bytes"),
            memory_max_bytes: one("kvd_memory_max_bytes"),
            pending_share: if pending_max > 0.0 { one("kvd_pending_bytes") / pending_max } else { 0.0 },
            flush_p99: self.quantile_of("kvd_flush_seconds_bucket", &[], 0.99),
            transactions: one("kvd_transactions_open"),
            leases: one("kvd_leases_held"),
            waiting: one("kvd_lock_waiters"),
            errors: self.rate(|figures| figures.sum("kvd_errors_total")),
            slow: self.rate(|figures| figures.one("kvd_slow_requests_total")),
            processor_share: self.rate(|figures| figures.one("process_cpu_seconds_total")),
            is_healthy: self.now.with("kvd_store_healthy", &[]).is_none_or(|healthy| healthy > 0.0),
        }
    }

    fn caches(&self) -> Vec<CacheRow> {
        let names = self.now.caches();
        let row = |name: &&str| {
            let of = |figure| self.now.of_cache(figure, name);
            let rate = |figure: &str| self.rate(|figures| figures.of_cache(figure, name));
            CacheRow {
                name: (*name).to_owned(),
                reads: Reads {
                    shared: rate("kvd_cache_hits_shared_total"),
                    memory: rate("kvd_cache_hits_memory_total"),
                    disk: rate("kvd_cache_hits_disk_total"),
                    stale: rate("kvd_cache_hits_stale_total"),
                    misses: self.rate(|figures| figures.reads(name).misses),
                },
                writes: rate("kvd_cache_writes_total"),
                evicted: rate("kvd_cache_evicted_total"),
                loads: rate("kvd_leases_granted_total"),
                items: of("kvd_cache_items"),
                memory_bytes: of("kvd_cache_memory_bytes"),
                memory_max_bytes: of("kvd_cache_memory_max_bytes"),
                disk_bytes: of("kvd_cache_disk_bytes"),
            }
        };
        names.iter().map(row).collect()
    }

    fn clients(&self) -> Vec<ClientRow> {
        let mut before: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for client in self.clients_before {
            before.insert(client.id, (client.requests, shared_reads(client)));
        }
        let mut rows: BTreeMap<(u32, &str), ClientRow> = BTreeMap::new();
        for client in self.clients_now {
            let row = rows.entry((client.pid, &client.name)).or_insert_with(|| ClientRow {
                pid: client.pid,
                name: client.name.clone(),
                idle: client.idle,
                ..ClientRow::default()
            });
            row.connections += 1;
            row.idle = row.idle.min(client.idle);
            // One that has come since did all it did since.
            let (requests, shared) = before.get(&client.id).copied().unwrap_or_default();
            if self.seconds > 0.0 {
                row.requests += client.requests.saturating_sub(requests) as f64 / self.seconds;
                row.shared += shared_reads(client).saturating_sub(shared) as f64 / self.seconds;
            }
            for (cache, _, path) in &client.paths {
                match path.because() {
                    Some(because) => row.path = format!("{cache} by socket: {because}"),
                    None if row.path.is_empty() => row.path = "shared".to_owned(),
                    None => {}
                }
            }
        }
        rows.into_values().collect()
    }

    fn operations(&self) -> Vec<OperationRow> {
        let names = self.now.labels("kvd_requests_total", "operation");
        let row = |name: &str| {
            let own = [("operation", name)];
            let requests = self.rate(|figures| figures.with("kvd_requests_total", &own).unwrap_or(0.0));
            OperationRow {
                name: name.to_owned(),
                requests,
                p50: self.quantile_of("kvd_request_seconds_bucket", &own, 0.5),
                p99: self.quantile_of("kvd_request_seconds_bucket", &own, 0.99),
            }
        };
        names.into_iter().map(row).filter(|row| row.requests > 0.0).collect()
    }

    /// Of the requests since the answer before, those whose operation is wanted.
    fn quantile(&self, quantile: f64, wants: impl Fn(&str) -> bool) -> Option<f64> {
        let mut sum: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for operation in
            self.now.labels("kvd_requests_total", "operation").into_iter().filter(|name| wants(name))
        {
            for (bound, count) in self.buckets("kvd_request_seconds_bucket", &[("operation", operation)]) {
                sum.entry(bound.to_string()).or_insert((bound, 0.0)).1 += count;
            }
        }
        let mut buckets: Vec<_> = sum.into_values().collect();
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        quantile_within(&buckets, quantile)
    }

    fn quantile_of(&self, name: &str, labels: &[(&str, &str)], quantile: f64) -> Option<f64> {
        quantile_within(&self.buckets(name, labels), quantile)
    }

    /// Bounds and how many were at most that, since the answer before.
    fn buckets(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let Some(before) = &self.before else { return Vec::new() };
        let old: BTreeMap<&str, f64> = before.by_label(name, labels, "le").into_iter().collect();
        let grown = self.now.by_label(name, labels, "le").into_iter().map(|(bound, count)| {
            let seconds = bound.parse().unwrap_or(f64::INFINITY);
            (seconds, count - old.get(bound).copied().unwrap_or(0.0))
        });
        grown.collect()
    }
}

fn shared_reads(client: &ClientInfo) -> u64 {
    client.paths.iter().map(|(_, reads, _)| reads).sum()
}

/// Interpolated between the bounds around it, as Prometheus does; `None`: nothing happened.
fn quantile_within(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let (_, all) = buckets.last().filter(|(_, all)| *all > 0.0)?;
    let wanted = quantile * all;
    let mut below = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= wanted {
            if bound.is_infinite() {
                return Some(below.0);
            }
            let share = if count > below.1 { (wanted - below.1) / (count - below.1) } else { 1.0 };
            return Some(below.0 + (bound - below.0) * share);
        }
        below = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_bounds_around_them() {
        let buckets = [(0.001, 50.0), (0.01, 100.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile_within(&buckets, 0.5), Some(0.001));
        let p75 = quantile_within(&buckets, 0.75).unwrap();
        assert!((p75 - 0.0055).abs() < 1e-9, "{p75}");
        assert_eq!(quantile_within(&[(0.1, 0.0), (f64::INFINITY, 4.0)], 0.5), Some(0.1));
        assert_eq!(quantile_within(&[(0.1, 0.0)], 0.5), None);
    }

    #[test]
    fn history_is_bounded() {
        let mut history = History::default();
        (0..10_000).for_each(|n| history.push(f64::from(n)));
        assert_eq!((history.0.len(), history.newest()), (HISTORY, 9_999.0));
        assert_eq!(history.last(2), [9_998_000, 9_999_000]);
    }
}
