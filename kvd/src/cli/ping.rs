//! `kvd ping`: whether a daemon answers, and how fast the two ways of reading are this very moment.

use std::ffi::OsString;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use kv_client::{ReadPath, Source};
use serde_json::{Value, json};

use super::common::{Common, bytes_of, on_interrupt, say};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// Longest latency that is told apart, in nanoseconds: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Width of the longest bar.
const BAR_CHARS: usize = 40;
/// Before the first measurement the caches of processor and kernel are warmed by so many.
const WARM_UP: usize = 10;
/// Longest wait until the client has mapped the cache's memory.
const ATTACH_MAX: Duration = Duration::from_millis(500);

/// See whether a daemon answers, and how fast; --histogram measures again and again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd ping || kvd serve
  kvd ping --histogram                             a thousand round trips over the socket
  kvd ping --histogram --count 60 --interval 1s    for a minute; Ctrl-C shows what there is so far
  kvd ping --histogram --cache product 42          and reads of this key through shared memory

SOCKET is a whole round trip to the daemon and back. SHARED is a read in this process's own memory, as workers do it; where
that is not possible it says why. Neither is in the daemon's own figures, which do not see the way to it: compare `kvd stats`.")]
pub(super) struct Args {
    /// Measure many times, and show how the latencies are distributed
    #[arg(long)]
    histogram: bool,
    /// So many times
    #[arg(long, default_value_t = 1_000, requires = "histogram", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    count: u64,
    /// Wait so long between two
    #[arg(long, value_name = "DURATION", default_value = "0", requires = "histogram", value_parser = kvd::units::parse_duration)]
    interval: Duration,
    /// Read this cache's KEY too, through shared memory
    #[arg(long, requires = "histogram", requires = "key")]
    cache: Option<String>,
    /// The key to read; it need not be there
    #[arg(requires = "cache")]
    key: Option<OsString>,
    /// KEY is written as `kvd scan` shows it: \n, \\, \xff
    #[arg(long, requires = "key")]
    escaped: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    if args.histogram {
        return measure(common, args);
    }
    let client = common.client()?;
    let clock = kvd::clock::Clock::system();
    let asked = clock.instant();
    client.ping()?;
    let took_us = clock.instant().duration_since(asked).as_micros();
    if common.json {
        say(json!({ "answer_us": u64::try_from(took_us).unwrap_or(u64::MAX) }))?;
    } else {
        say(format_args!("the daemon answers, in {took_us} µs"))?;
    }
    Ok(Exit::Done)
}

/// What was measured on one path.
struct Path {
    name: &'static str,
    latency_ns: Histogram<u64>,
    /// Why it is not what it should be.
    note: Option<String>,
}

impl Path {
    fn new(name: &'static str) -> Path {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).expect("the bounds are constants");
        Path { name, latency_ns, note: None }
    }

    fn time<T>(&mut self, clock: &kvd::clock::Clock, what: impl FnOnce() -> T) -> T {
        let began = clock.instant();
        let done = what();
        let ns = clock.instant().duration_since(began).as_nanos();
        self.latency_ns.saturating_record(u64::try_from(ns).unwrap_or(u64::MAX).max(1));
        done
    }
}

fn measure(common: &Common, args: &Args) -> Outcome {
    let clock = kvd::clock::Clock::system();
    let client = common.client()?;
    let is_over = on_interrupt()?;
    let mut socket = Path::new("socket");
    let mut shared = match (&args.cache, &args.key) {
        (Some(cache), Some(key)) => Some(Shared::new(common, cache, bytes_of(key, args.escaped)?)?),
        (_, _) => None,
    };
    for _ in 0..WARM_UP {
        client.ping()?;
    }
    for round in 0..args.count {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        if round > 0 && !args.interval.is_zero() {
            std::thread::sleep(args.interval);
        }
        socket.time(&clock, || client.ping())?;
        if let Some(shared) = &mut shared {
            shared.read(&clock)?;
        }
    }
    let paths: Vec<Path> = [Some(socket), shared.map(|shared| shared.path)].into_iter().flatten().collect();
    if common.json {
        say(Value::Array(paths.iter().map(json_of).collect()))?;
    } else {
        paths.iter().try_for_each(print)?;
    }
    Ok(Exit::Done)
}

/// Reads through shared memory, as a worker does.
struct Shared {
    cache: kv_client::blocking::Cache,
    key: Vec<u8>,
    path: Path,
    asked: u64,
}

impl Shared {
    fn new(common: &Common, cache: &str, key: Vec<u8>) -> Result<Shared, Failure> {
        let client = common.builder("kvd ping").build()?;
        let cache = client.cache(cache);
        let mut path = Path::new("shared");
        // The first read asks, and maps the memory; a cache that is not there is an error here.
        cache.get(&key)?;
        let clock = kvd::clock::Clock::system();
        let deadline = clock.instant() + ATTACH_MAX;
        loop {
            let stats = client.stats();
            match stats.caches.first().map(|cache| &cache.path) {
                Some(ReadPath::Shared) => break,
                Some(ReadPath::Socket { because }) if clock.instant() >= deadline => {
                    path.note = Some(format!("not through shared memory: {because}"));
                    break;
                }
                None if clock.instant() >= deadline => break,
                Some(_) | None => {
                    std::thread::sleep(Duration::from_millis(5));
                    cache.get(&key)?;
                }
            }
        }
        for _ in 0..WARM_UP {
            cache.get(&key)?;
        }
        Ok(Shared { cache, key, path, asked: 0 })
    }

    fn read(&mut self, clock: &kvd::clock::Clock) -> Result<(), Failure> {
        let (cache, key) = (&self.cache, &self.key);
        let entry = self.path.time(clock, || cache.get_entry(key))?;
        if entry.is_some_and(|entry| entry.source == Source::Socket) {
            self.asked += 1;
            self.path.note = Some(format!("{} of these reads had to ask the daemon", self.asked));
        }
        Ok(())
    }
}

const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

fn print(path: &Path) -> Result<(), Failure> {
    let Path { name, latency_ns, note } = path;
    let shown = |ns: f64| show::seconds(ns / 1e9);
    say(format_args!(
        "{}: {} times, mean {}",
        name.to_uppercase(),
        latency_ns.len(),
        shown(latency_ns.mean())
    ))?;
    if let Some(note) = note {
        say(format_args!("  {note}"))?;
    }
    let quantiles =
        QUANTILES.map(|(name, q)| format!("{name} {}", shown(latency_ns.value_at_quantile(q) as f64)));
    say(format_args!("  {}", quantiles.join("  ")))?;
    bars(latency_ns).into_iter().try_for_each(say)?;
    say("")
}

/// A bar for each half of a doubling of time in which there was something, from the fastest to the slowest.
fn bars(latency_ns: &Histogram<u64>) -> Vec<String> {
    let mut rows: Vec<(u64, u64)> = Vec::new();
    for step in latency_ns.iter_recorded() {
        let bound = bound_of(step.value_iterated_to());
        match rows.last_mut().filter(|(last, _)| *last == bound) {
            Some((_, count)) => *count += step.count_since_last_iteration(),
            None => rows.push((bound, step.count_since_last_iteration())),
        }
    }
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1);
    rows.iter()
        .map(|(bound, count)| {
            let width = (*count as usize * BAR_CHARS).div_ceil(most.max(1) as usize);
            let bar = "#".repeat(width);
            format!("  up to {:>9}  {bar:<BAR_CHARS$}  {count}", show::seconds(*bound as f64 / 1e9))
        })
        .collect()
}

/// The next of 1, 1.5, 2, 3, 4, 6, 8, 12 … above.
fn bound_of(ns: u64) -> u64 {
    let power = ns.max(1).next_power_of_two();
    let between = power / 4 * 3;
    if ns <= between { between } else { power }
}

fn json_of(path: &Path) -> Value {
    let Path { name, latency_ns, note } = path;
    let mut object = serde_json::Map::new();
    object.insert("path".to_owned(), json!(name));
    object.insert("count".to_owned(), json!(latency_ns.len()));
    object.insert("mean_us".to_owned(), json!(latency_ns.mean() / 1e3));
    for (name, q) in QUANTILES {
        let name = name.replace('.', "_");
        object.insert(format!("{name}_us"), json!(latency_ns.value_at_quantile(q) as f64 / 1e3));
    }
    object.insert("note".to_owned(), json!(note));
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share_and_bounds_rise() {
        let mut latency_ns = Histogram::<u64>::new(2).unwrap();
        latency_ns.record_n(1_000, 100).unwrap();
        latency_ns.record_n(5_000, 50).unwrap();
        latency_ns.record_n(1_000_000, 1).unwrap();
        let bars = bars(&latency_ns);
        assert_eq!(bars.len(), 3);
        let width = |bar: &String| bar.chars().filter(|c| *c == '#').count();
        assert_eq!(bars.iter().map(width).collect::<Vec<_>>(), [40, 20, 1]);
        let bounds: Vec<u64> = (1..100_000).map(bound_of).collect();
        assert!(bounds.is_sorted() && (1..100_000).zip(&bounds).all(|(ns, bound)| ns <= *bound));
    }
}
