//! `kvd stats`: what the daemon has done, and how fast.

mod page;

use std::collections::BTreeMap;

use kv_client::Metric;
use serde_json::json;

use super::common::{Common, say, say_raw};
use super::failure::{Exit, Failure, Outcome};

/// Show hits and misses by cache, memory, disk, locks and latencies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd stats                       a page to read
  kvd stats product               all about one cache
  kvd stats --prometheus          everything, in Prometheus' text format
  kvd stats --json | jq '.[] | select(.name == \"kvd_connections\") | .value'

HIT % is of all reads: SHARED ones needed no request (processes tell of them at most once a second), MEMORY and DISK are
answered by the daemon, STALE ones are past their life. Latencies are those inside the daemon: from when a request's bytes
were read until its answer could be sent, waits included.")]
pub(super) struct Args {
    /// Only this cache, with all that is counted about it
    cache: Option<String>,
    /// Print Prometheus' text format
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let mut metrics = common.client()?.admin().stats()?;
    if let Some(cache) = &args.cache {
        metrics.retain(|metric| label(metric, "cache") == Some(cache));
        if metrics.is_empty() {
            return Err(Failure::no_cache(cache));
        }
    }
    if common.json {
        let rows = metrics.iter().map(|m| {
            let labels: BTreeMap<_, _> = m.labels.iter().cloned().collect();
            json!({ "name": m.name, "labels": labels, "value": m.value })
        });
        say(serde_json::Value::Array(rows.collect()))?;
    } else if args.prometheus {
        say_raw(kvd::exposition::render(metrics.iter().map(row)).as_bytes())?;
    } else {
        say(page::show(&Figures::of(&metrics), args.cache.as_deref()))?;
    }
    Ok(Exit::Done)
}

fn row(metric: &Metric) -> kvd::exposition::Row<'_> {
    let labels = metric.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    (&metric.name, labels.collect(), metric.value)
}

fn label<'a>(metric: &'a Metric, name: &str) -> Option<&'a str> {
    metric.labels.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// The rows of one answer, to be asked for by name and label.
pub(super) struct Figures<'a>(BTreeMap<&'a str, Vec<&'a Metric>>);

impl<'a> Figures<'a> {
    pub(super) fn of(metrics: &'a [Metric]) -> Figures<'a> {
        let mut by_name: BTreeMap<&str, Vec<&Metric>> = BTreeMap::new();
        for metric in metrics {
            by_name.entry(&metric.name).or_default().push(metric);
        }
        Figures(by_name)
    }

    fn rows(&self, name: &str) -> &[&'a Metric] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one row of this name; 0 if an older daemon has none.
    pub(super) fn one(&self, name: &str) -> f64 {
        self.rows(name).first().map_or(0.0, |metric| metric.value)
    }

    /// The sum over all labels.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.rows(name).iter().map(|metric| metric.value).sum()
    }

    /// The row with these labels among its own.
    pub(super) fn with(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |metric: &&&Metric| labels.iter().all(|(name, value)| label(metric, name) == Some(value));
        self.rows(name).iter().find(fits).map(|metric| metric.value)
    }

    /// The rows with these labels among their own, by the value of another one.
    pub(super) fn by_label(&self, name: &str, labels: &[(&str, &str)], by: &str) -> Vec<(&'a str, f64)> {
        let fits = |metric: &&&Metric| labels.iter().all(|(name, value)| label(metric, name) == Some(value));
        let rows = self.rows(name).iter().filter(fits);
        rows.filter_map(|metric| Some((label(metric, by)?, metric.value))).collect()
    }

    pub(super) fn of_cache(&self, name: &str, cache: &str) -> f64 {
        self.with(name, &[("cache", cache)]).unwrap_or(0.0)
    }

    /// The values of a label, each once, in the daemon's order.
    pub(super) fn labels(&self, name: &str, label_name: &str) -> Vec<&'a str> {
        let mut values = Vec::new();
        for metric in self.rows(name) {
            if let Some(value) = label(metric, label_name).filter(|value| !values.contains(value)) {
                values.push(value);
            }
        }
        values
    }

    pub(super) fn caches(&self) -> Vec<&'a str> {
        self.labels("kvd_cache_items", "cache")
    }

    /// All of a cache, without names.
    pub(super) fn reads(&self, cache: &str) -> Reads {
        let of = |name| self.of_cache(name, cache);
        Reads {
            shared: of("kvd_cache_hits_shared_total"),
            memory: of("kvd_cache_hits_memory_total"),
            disk: of("kvd_cache_hits_disk_total"),
            stale: of("kvd_cache_hits_stale_total"),
            misses: of("kvd_cache_misses_total") + of("kvd_cache_misses_shared_total"),
        }
    }
}

/// How reads of a cache ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Reads {
    pub(super) shared: f64,
    pub(super) memory: f64,
    pub(super) disk: f64,
    pub(super) stale: f64,
    pub(super) misses: f64,
}

impl Reads {
    pub(super) fn hits(self) -> f64 {
        self.shared + self.memory + self.disk + self.stale
    }

    /// Of all reads, in percent; `None`: nobody has read.
    pub(super) fn hit_percent(self) -> Option<f64> {
        let all = self.hits() + self.misses;
        (all > 0.0).then(|| 100.0 * self.hits() / all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_nothing_there_is_no_ratio() {
        assert_eq!(Reads::default().hit_percent(), None);
        let reads = Reads { shared: 2.0, stale: 1.0, misses: 1.0, ..Reads::default() };
        assert_eq!(reads.hit_percent(), Some(75.0));
    }
}
