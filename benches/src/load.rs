//! `bench client`: what `get_or_load` costs beside a plain read where the value is there, and beside a round trip where it
//! is not.
//!
//! Called by `bin/bench`. One process with one thread asks a daemon of its own; the variants run interleaved, round by round,
//! and what counts is the median of the ratios within a round.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kv_client::blocking;
use serde::Serialize;

use crate::BenchError;
use crate::machine::Machine;
use crate::peers::{Kind, Places, Server};
use crate::report::{Bar, markdown};
use crate::rounds::Summary;

/// Items that are there.
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 512;
/// Room for everything, so that nothing is measured but the way there.
const CONFIG: &str = "memory = \"256MiB\"\n\n[default]\nmemory = \"64MiB\"\ndurability = \"memory\"\n";
/// Longer than any run.
const TTL: Duration = Duration::from_secs(3_600);

/// How long it runs.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Rounds of all variants.
    pub rounds: usize,
    /// Reads of what is there, a variant and round.
    pub hits: usize,
    /// Loads of what is not, a variant and round.
    pub misses: usize,
}

impl Length {
    /// Within a minute.
    pub const QUICK: Length = Length { rounds: 5, hits: 200_000, misses: 1_000 };
    /// Some three minutes.
    pub const FULL: Length = Length { rounds: 15, hits: 500_000, misses: 3_000 };
}

/// How two variants must compare.
struct Goal {
    name: &'static str,
    over: &'static str,
    under: &'static str,
    bar: Bar,
}

const GOALS: [Goal; 5] = [
    Goal { name: "client.hit", over: "get_or_load", under: "get", bar: Bar::AtMost(1.15) },
    Goal { name: "client.hit_typed", over: "typed get_or_load", under: "typed get", bar: Bar::AtMost(1.15) },
    Goal { name: "client.hit_async", over: "async get_or_load", under: "async get", bar: Bar::AtMost(1.15) },
    Goal { name: "client.miss", over: "cold get_or_load", under: "ping", bar: Bar::AtMost(3.0) },
    Goal {
        name: "client.miss_async",
        over: "async cold get_or_load",
        under: "async ping",
        bar: Bar::AtMost(3.0),
    },
];

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    command: String,
    machine: Machine,
    /// Nanoseconds an operation, a round each, by variant.
    variants: Vec<(&'static str, Vec<f64>)>,
}

/// Runs all rounds.
///
/// # Errors
/// When the daemon does not start or does not answer.
pub fn run(places: &Places, length: Length, command: String) -> Result<Report, BenchError> {
    let machine = Machine::look();
    let server = Server::start_configured(Kind::Kvd, places, CONFIG)?;
    let bench = Bench::prepare(&server)?;
    let mut variants: Vec<(&'static str, Vec<f64>)> =
        Variant::ALL.iter().map(|variant| (variant.label(), Vec::new())).collect();
    for round in 0..length.rounds {
        for turn in 0..variants.len() {
            let index = (round + turn) % variants.len();
            let ns = bench.time(Variant::ALL[index], length, round)?;
            eprintln!("  client round {} {}: {ns:.0} ns", round + 1, variants[index].0);
            variants[index].1.push(ns);
        }
    }
    Ok(Report { command, machine, variants })
}

#[derive(Debug, Clone, Copy)]
enum Variant {
    Get,
    GetOrLoad,
    TypedGet,
    TypedGetOrLoad,
    AsyncGet,
    AsyncGetOrLoad,
    Ping,
    ColdGetOrLoad,
    AsyncPing,
    AsyncColdGetOrLoad,
}

impl Variant {
    const ALL: [Variant; 10] = [
        Variant::Get,
        Variant::GetOrLoad,
        Variant::TypedGet,
        Variant::TypedGetOrLoad,
        Variant::AsyncGet,
        Variant::AsyncGetOrLoad,
        Variant::Ping,
        Variant::ColdGetOrLoad,
        Variant::AsyncPing,
        Variant::AsyncColdGetOrLoad,
    ];

    fn label(self) -> &'static str {
        match self {
            Variant::Get => "get",
            Variant::GetOrLoad => "get_or_load",
            Variant::TypedGet => "typed get",
            Variant::TypedGetOrLoad => "typed get_or_load",
            Variant::AsyncGet => "async get",
            Variant::AsyncGetOrLoad => "async get_or_load",
            Variant::Ping => "ping",
            Variant::ColdGetOrLoad => "cold get_or_load",
            Variant::AsyncPing => "async ping",
            Variant::AsyncColdGetOrLoad => "async cold get_or_load",
        }
    }
}

struct Bench {
    blocking: blocking::Client,
    asynchronous: kv_client::Client,
    runtime: tokio::runtime::Runtime,
    keys: Vec<String>,
}

impl Bench {
    fn prepare(server: &Server) -> Result<Bench, BenchError> {
        let blocking = blocking::Client::builder().socket(server.socket()).build().map_err(answered)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(BenchError::io("starting a runtime"))?;
        let builder = kv_client::Client::builder().socket(server.socket());
        let asynchronous = runtime.block_on(builder.build()).map_err(answered)?;
        let keys: Vec<String> = (0..KEYS).map(|number| format!("product:{number:08}")).collect();
        let (plain, typed) =
            (blocking.cache("plain"), blocking.cache("typed").typed_bytes(kv_client::SchemaVersion(1)));
        for key in &keys {
            plain.put(key, vec![b'x'; VALUE_BYTES], TTL).map_err(answered)?;
            typed.put(key, &vec![b'x'; VALUE_BYTES], TTL).map_err(answered)?;
        }
        let bench = Bench { blocking, asynchronous, runtime, keys };
        // Everybody has mapped the segments before anything is timed.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !bench.reads_shared_memory() {
            if Instant::now() > deadline {
                let what = "its segments could not be mapped within 10 s".to_owned();
                return Err(BenchError::Server { server: "kvd", what });
            }
        }
        Ok(bench)
    }

    fn reads_shared_memory(&self) -> bool {
        for cache in ["plain", "typed"] {
            let _ = self.blocking.cache(cache).get(&self.keys[0]);
            let _ = self.runtime.block_on(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.asynchronous.cache(cache).get(&self.keys[0]).await
            });
        }
        let all_shared =
            |stats: kv_client::ClientStats| stats.caches.iter().all(|cache| cache.path.is_shared());
        all_shared(self.blocking.stats()) && all_shared(self.asynchronous.stats())
    }

    /// Nanoseconds an operation.
    fn time(&self, variant: Variant, length: Length, round: usize) -> Result<f64, BenchError> {
        let none = |_: &_| Err::<Vec<u8>, _>(std::io::Error::other("it is there"));
        let none_async = |_| async { Err::<Vec<u8>, _>(std::io::Error::other("it is there")) };
        let some = |_: &_| Ok::<_, std::io::Error>(vec![b'x'; VALUE_BYTES]);
        let some_async = |_| async { Ok::<_, std::io::Error>(vec![b'x'; VALUE_BYTES]) };
        let plain = self.blocking.cache("plain");
        let typed = self.blocking.cache("typed").typed_bytes(kv_client::SchemaVersion(1));
        let shared = self.asynchronous.cache("plain");
        // What is loaded must not push out what is to be there.
        let (loaded, shared_loaded) = (self.blocking.cache("cold"), self.asynchronous.cache("cold"));
        let cold = |number: usize| format!("cold:{}:{round}:{number}", variant.label());
        let hits = |read: &dyn Fn(&str) -> kv_client::Result<usize>| -> Result<f64, BenchError> {
            // A step that meets every key and is far from the last one.
            each(length.hits, |number| read(&self.keys[number * 7_919 % KEYS]))
        };
        match variant {
            Variant::Get => hits(&|key| Ok(plain.get(key)?.map_or(0, |value| value.len()))),
            Variant::GetOrLoad => hits(&|key| Ok(plain.get_or_load(key, TTL, none)?.len())),
            Variant::TypedGet => hits(&|key| Ok(typed.get(key)?.map_or(0, |value| value.len()))),
            Variant::TypedGetOrLoad => hits(&|key| Ok(typed.get_or_load(key, TTL, none)?.len())),
            Variant::Ping => each(length.misses, |_| self.blocking.ping().map(|()| 1)),
            Variant::ColdGetOrLoad => {
                each(length.misses, |number| Ok(loaded.get_or_load(cold(number), TTL, some)?.len()))
            }
            Variant::AsyncGet => self.runtime.block_on(async {
                let began = Instant::now();
                for number in 0..length.hits {
                    black_box(shared.get(&self.keys[number * 7_919 % KEYS]).await.map_err(answered)?);
                }
                Ok(ns_each(began, length.hits))
            }),
            Variant::AsyncGetOrLoad => self.runtime.block_on(async {
                let began = Instant::now();
                for number in 0..length.hits {
                    let key = &self.keys[number * 7_919 % KEYS];
                    black_box(shared.get_or_load(key, TTL, none_async).await.map_err(answered)?);
                }
                Ok(ns_each(began, length.hits))
            }),
            Variant::AsyncPing => self.runtime.block_on(async {
                let began = Instant::now();
                for _ in 0..length.misses {
                    self.asynchronous.ping().await.map_err(answered)?;
                }
                Ok(ns_each(began, length.misses))
            }),
            Variant::AsyncColdGetOrLoad => self.runtime.block_on(async {
                let began = Instant::now();
                for number in 0..length.misses {
                    black_box(
                        shared_loaded.get_or_load(cold(number), TTL, some_async).await.map_err(answered)?,
                    );
                }
                Ok(ns_each(began, length.misses))
            }),
        }
    }
}

fn each(count: usize, read: impl Fn(usize) -> kv_client::Result<usize>) -> Result<f64, BenchError> {
    let began = Instant::now();
    for number in 0..count {
        black_box(read(number).map_err(answered)?);
    }
    Ok(ns_each(began, count))
}

fn ns_each(began: Instant, count: usize) -> f64 {
    began.elapsed().as_nanos() as f64 / count as f64
}

fn answered(error: kv_client::Error) -> BenchError {
    BenchError::Server { server: "kvd", what: error.to_string() }
}

impl Report {
    fn of(&self, label: &str) -> &[f64] {
        self.variants.iter().find(|(name, _)| *name == label).map_or(&[], |(_, rounds)| rounds)
    }

    /// The whole report for a terminal, goals last.
    #[must_use]
    pub fn text(&self) -> String {
        let summary = |label| Summary::of(self.of(label).iter().copied());
        let row = |(label, _): &(&'static str, Vec<f64>)| {
            let cells = summary(label)
                .map(|ns| [ns.median, ns.low, ns.high].map(|ns| format!("{:.3}", ns / 1e3)).to_vec());
            [vec![(*label).to_owned()], cells.unwrap_or_default()].concat()
        };
        let mut out = format!(
            "client: {}\n{KEYS} keys, values of {VALUE_BYTES} bytes, one process, loaders that take no time\n\n{}\n\n",
            self.machine.line(),
            markdown(["", "us an operation", "lowest", "highest"], self.variants.iter().map(row))
        );
        for goal in &GOALS {
            let ratios = self.of(goal.over).iter().zip(self.of(goal.under)).map(|(over, under)| over / under);
            let Some(ratio) = Summary::of(ratios) else { continue };
            let is_met = match goal.bar {
                Bar::AtLeast(bar) => ratio.median >= bar,
                Bar::AtMost(bar) => ratio.median <= bar,
            };
            let verdict = if is_met { "met" } else { "missed" };
            out += &format!("GOAL {} {:.2} {:?} {verdict}\n", goal.name, ratio.median, goal.bar.ratio());
        }
        out
    }
}
