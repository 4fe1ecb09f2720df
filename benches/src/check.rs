//! `bench check-loadgen`: is the load generator itself fast enough to compare servers with?
//!
//! It must reach at least 80 % of `redis-benchmark` against the same Redis with the same settings: same keys, values,
//! connections and pipelining depth, both from one process over the same socket, in turns. The benchmarks themselves
//! use a process a connection, as sites do; what those reach is printed beside it and has no goal, because there the
//! kernel switches processes where `redis-benchmark` goes on with its next connection.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::BenchError;
use crate::client::{ClientSpec, Pace, Stop, load};
use crate::fleet::{self, Load};
use crate::peers::{Kind, Server};
use crate::protocol::{KEY_PREFIX, Op, Shape};
use crate::report::{Bar, Figure, Goal, Reached};
use crate::rounds::{Items, Runner, Summary};

/// `redis-benchmark` writes random numbers in keys with this many digits.
const KEY_DIGITS: u8 = 12;
const AT_LEAST: f64 = 0.8;
const ROUNDS: usize = 5;
/// A measurement takes about this long.
const TIME: Duration = Duration::from_millis(1_200);

struct Setting {
    name: &'static str,
    op: Op,
    connections: usize,
    depth: usize,
}

const SETTINGS: [Setting; 4] = [
    Setting { name: "loadgen.get8", op: Op::Get, connections: 8, depth: 1 },
    Setting { name: "loadgen.set8", op: Op::Put, connections: 8, depth: 1 },
    Setting { name: "loadgen.get8_pipeline16", op: Op::Get, connections: 8, depth: 16 },
    Setting { name: "loadgen.set64", op: Op::Put, connections: 64, depth: 1 },
];

/// Runs all settings and prints a line each, then the `GOAL` lines.
///
/// # Errors
/// When Redis is not installed or fails.
pub fn run(runner: &Runner) -> Result<(), BenchError> {
    Kind::Redis.version(&runner.places).map_err(|what| BenchError::Server { server: "redis", what })?;
    let shape = Shape { key_digits: KEY_DIGITS, ..runner.items.shape };
    let items = Items { shape, ..runner.items };
    let server = Server::start(Kind::Redis, &runner.places)?;
    load(Kind::Redis.wire(), server.socket(), shape, items.keys)?;
    let mut goals = Vec::new();
    for setting in &SETTINGS {
        let mut ratios = Vec::new();
        let mut ratios_processes = Vec::new();
        for round in 0..ROUNDS {
            let theirs = redis_benchmark(&server, setting, items)?;
            let one = ours(&server, setting, items, round as u64, 1)?;
            let many = ours(&server, setting, items, round as u64, setting.connections)?;
            let name = setting.name;
            println!(
                "{name} round {}: redis-benchmark {theirs:.0}/s, ours {one:.0}/s, with a process a connection {many:.0}/s",
                round + 1
            );
            ratios.push(one / theirs);
            ratios_processes.push(many / theirs);
        }
        if let Some(Summary { median, low, high }) = Summary::of(ratios_processes) {
            println!("{}: with a process a connection {median:.2} ({low:.2}-{high:.2})", setting.name);
        }
        let goal = Goal {
            name: setting.name,
            workload: "",
            figure: Figure::Rate,
            over: "",
            under: "",
            bar: Bar::AtLeast(AT_LEAST),
        };
        goals.push(Reached { goal, ratio: Summary::of(ratios) });
    }
    for reached in goals {
        println!("{}", reached.line());
    }
    Ok(())
}

/// Requests a second of our own generator, its connections shared out among this many processes.
fn ours(
    server: &Server,
    setting: &Setting,
    items: Items,
    round: u64,
    processes: usize,
) -> Result<f64, BenchError> {
    let client = ClientSpec {
        wire: Kind::Redis.wire(),
        socket: server.socket().to_owned(),
        op: setting.op,
        depth: setting.depth,
        connections: setting.connections / processes,
        shape: items.shape,
        keys: items.keys,
        seed: items.seed + round,
        pace: Pace::Closed,
        stop: Stop::Time,
    };
    let warm_up = Duration::from_millis(200);
    Ok(fleet::run(&Load { client, clients: processes, warm_up, time: TIME })?.keys_per_s)
}

/// Requests a second as `redis-benchmark` counts them.
fn redis_benchmark(server: &Server, setting: &Setting, items: Items) -> Result<f64, BenchError> {
    let failed = |what: String| BenchError::Server { server: "redis-benchmark", what };
    let key = format!("{KEY_PREFIX}__rand_int__");
    let requests = if setting.depth > 1 { 1_000_000 } else { 150_000 };
    let mut command = Command::new("redis-benchmark");
    command.arg("-s").arg(server.socket()).args(["--csv", "-n", &requests.to_string()]);
    command.args(["-c", &setting.connections.to_string(), "-P", &setting.depth.to_string()]);
    command.args(["-r", &items.keys.to_string()]);
    let value = "x".repeat(items.shape.value_bytes as usize);
    match setting.op {
        Op::Put | Op::PutDurable => {
            // It can write a random number into the key only, so these values are nobody's; ours go over them again.
            command.args(["SET", &format!("other:{key}"), &value]);
        }
        Op::Get | Op::GetMany(_) => {
            command.args(["GET", &key]);
        }
    }
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.map_err(|error| failed(format!("does not start ({error}); scripts/peers installs it")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let row = said.lines().last().unwrap_or("");
    // The command, which may hold commas, comes first; all fields are quoted: "rps","avg","min","p50","p95","p99","max".
    let numbers: Vec<f64> =
        row.rsplit("\",\"").filter_map(|field| field.trim_matches('"').parse().ok()).collect();
    match numbers.get(6) {
        Some(&rate) if rate > 0.0 => Ok(rate),
        _ => Err(failed(format!("printed {row:?}"))),
    }
}
