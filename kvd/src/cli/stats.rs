//! `kvd stats`: what the daemon has done, and how fast.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kv_client::Metric;
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// Show counters, sizes and latencies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd stats
  kvd stats --prometheus          in Prometheus' text format
  kvd stats --json | jq '.[] | select(.name == \"kvd_connections\") | .value'

Latencies are those inside the daemon: from when a request's bytes were read until its answer could be sent, the wait
for the disk included where there is one.")]
pub(super) struct Args {
    /// Print Prometheus' text format
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let metrics = common.client()?.admin().stats()?;
    if common.json {
        let rows = metrics.iter().map(|m| {
            let labels: BTreeMap<_, _> = m.labels.iter().cloned().collect();
            json!({ "name": m.name, "labels": labels, "value": m.value })
        });
        say(serde_json::Value::Array(rows.collect()))?;
    } else if args.prometheus {
        metrics.iter().try_for_each(|m| say(prometheus_line(m)))?;
    } else {
        print_operations(&metrics)?;
        print_by_cache(&metrics)?;
        print_rest(&metrics)?;
    }
    Ok(Exit::Done)
}

fn prometheus_line(metric: &Metric) -> String {
    let mut line = metric.name.clone();
    for (n, (name, value)) in metric.labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let open = if n == 0 { '{' } else { ',' };
        write!(line, "{open}{name}=\"{value}\"").expect("a String takes everything");
    }
    let close = if metric.labels.is_empty() { "" } else { "}" };
    format!("{line}{close} {}", metric.value)
}

fn label<'a>(metric: &'a Metric, name: &str) -> Option<&'a str> {
    metric.labels.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

fn print_operations(metrics: &[Metric]) -> Result<(), Failure> {
    let mut table = show::Rows::new(["OPERATION", "REQUESTS", "P50", "P90", "P99", "P99.9", "MAX"]);
    for total in metrics.iter().filter(|m| m.name == "kvd_requests_total" && m.value > 0.0) {
        let operation = label(total, "operation").unwrap_or("?");
        let at = |quantile: &str| {
            let found = metrics.iter().find(|m| {
                m.name == "kvd_request_seconds"
                    && label(m, "operation") == Some(operation)
                    && label(m, "quantile") == Some(quantile)
            });
            found.map_or("-".to_owned(), |m| show_seconds(m.value))
        };
        let count = number(total.value);
        table.add([operation.to_owned(), count, at("0.5"), at("0.9"), at("0.99"), at("0.999"), at("1")]);
    }
    say(table)
}

/// A block a cache, because that is how one looks for trouble.
fn print_by_cache(metrics: &[Metric]) -> Result<(), Failure> {
    let mut by_cache: BTreeMap<&str, Vec<&Metric>> = BTreeMap::new();
    for metric in metrics {
        if let Some(cache) = label(metric, "cache") {
            by_cache.entry(cache).or_default().push(metric);
        }
    }
    for (cache, metrics) in by_cache {
        say(format_args!("\ncache {cache}"))?;
        for metric in metrics {
            say_number(&metric.name, metric.value)?;
        }
    }
    Ok(())
}

fn print_rest(metrics: &[Metric]) -> Result<(), Failure> {
    say("\ndaemon")?;
    for metric in metrics.iter().filter(|m| label(m, "operation").is_none() && label(m, "cache").is_none()) {
        let labels: Vec<&str> = metric.labels.iter().map(|(_, value)| value.as_str()).collect();
        say_number(format!("{} {}", metric.name, labels.join(" ")).trim_end(), metric.value)?;
    }
    Ok(())
}

fn say_number(name: &str, value: f64) -> Result<(), Failure> {
    say(format_args!("  {name:<44} {}", number(value)))
}

/// Counts without decimals, the rest with three.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn show_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_shown_in_the_unit_that_fits() {
        assert_eq!(show_seconds(0.000_001_25), "1.2 µs");
        assert_eq!(show_seconds(0.0025), "2.50 ms");
        assert_eq!(show_seconds(3.0), "3.00 s");
        assert_eq!((number(12.0), number(0.5)), ("12".to_owned(), "0.500".to_owned()));
    }
}
