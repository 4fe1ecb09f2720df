//! Runs the variants of a workload interleaved, round by round, and compares them.
//!
//! Absolute figures drift by a third between runs and machines. So every variant runs once a round, the order
//! rotates, ratios are taken within a round, and the median over the rounds is what counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::BenchError;
use crate::client::{ClientSpec, Pace, Stop, load};
use crate::fleet::{self, Load, Measured};
use crate::peers::{Kind, Places, Server, awake};
use crate::protocol::{Op, Shape};
use crate::report::Figure;

/// One bar of a chart: a server under a load.
#[derive(Debug, Clone)]
pub struct Variant {
    /// What tables call it.
    pub label: &'static str,
    /// The server; variants of the same kind share one.
    pub kind: Kind,
    /// Client processes.
    pub clients: usize,
    /// What each request does.
    pub op: Op,
    /// When requests are sent; [`Pace::Open`] has the rate of all clients together.
    pub pace: Pace,
}

/// Variants that are compared.
#[derive(Debug, Clone)]
pub struct Workload {
    /// For example `get8`.
    pub name: &'static str,
    /// A sentence for a reader of the table.
    pub what: String,
    /// What runs in each round.
    pub variants: Vec<Variant>,
    /// How long.
    pub plan: Plan,
}

/// How often and how long each variant runs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rounds.
    pub rounds: usize,
    /// How long a load runs before it is counted.
    pub warm_up: Duration,
    /// How long it is counted.
    pub time: Duration,
    /// When it ends: after that time, or after a number of requests which may take longer or shorter.
    pub stop: Stop,
}

/// The items, the same for everybody.
#[derive(Debug, Clone, Copy)]
pub struct Items {
    /// How many.
    pub keys: u64,
    /// Their form.
    pub shape: Shape,
    /// Chooses the keys of requests.
    pub seed: u64,
}

/// A run of one variant.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Which round, from 0.
    pub round: usize,
    /// What came out.
    pub measured: Measured,
    /// Processor time of the server a key, in microseconds.
    pub server_us_per_key: f64,
}

/// All runs of one variant.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The variant's label.
    pub label: &'static str,
    /// One a round.
    pub runs: Vec<Run>,
}

/// What came out of a workload.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The workload's name.
    pub name: &'static str,
    /// A sentence for a reader.
    pub what: String,
    /// One a variant that could be run.
    pub rows: Vec<Row>,
    /// Variants that could not, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// What else a reader should know, a sentence each.
    pub notes: Vec<String>,
}

/// A median and how far the rounds were from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Summary {
    /// Of at least one number.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Summary { median, low, high })
    }
}

impl Row {
    /// Over the rounds, of any of their numbers.
    #[must_use]
    pub fn summary(&self, number: impl Fn(&Run) -> f64) -> Summary {
        Summary::of(self.runs.iter().map(number)).expect("a row has a run for every round")
    }
}

impl Outcome {
    /// A figure of `over` divided by that of `under`, round by round; `None` when either was not run.
    #[must_use]
    pub fn ratio(&self, figure: Figure, over: &str, under: &str) -> Option<Summary> {
        let of = |run: &Run| match figure {
            Figure::Rate => run.measured.keys_per_s,
            Figure::P999 => run.measured.latency.us_p999,
        };
        let row = |label: &str| self.rows.iter().find(|row| row.label == label);
        let pairs = row(over)?.runs.iter().zip(&row(under)?.runs);
        Summary::of(pairs.map(|(over, under)| of(over) / of(under)))
    }
}

/// The one who runs workloads.
#[derive(Debug)]
pub struct Runner {
    /// Where the programs are.
    pub places: Places,
    /// The items.
    pub items: Items,
    /// Set when somebody pressed Ctrl-C.
    pub interrupted: Arc<AtomicBool>,
}

impl Runner {
    /// Starts the servers, fills them, runs all rounds, stops the servers.
    ///
    /// # Errors
    /// When a server or a client fails in the middle. A server that cannot be started is skipped.
    pub fn run(&self, workload: &Workload) -> Result<Outcome, BenchError> {
        let mut outcome = Outcome {
            name: workload.name,
            what: workload.what.clone(),
            rows: Vec::new(),
            skipped: Vec::new(),
            notes: Vec::new(),
        };
        let mut servers: Vec<Server> = Vec::new();
        let mut variants = Vec::new();
        for variant in &workload.variants {
            if servers.iter().all(|server| server.kind() != variant.kind) {
                match self.start(variant.kind) {
                    Ok(server) => servers.push(server),
                    Err(reason) => {
                        outcome.skipped.push((variant.label, reason));
                        continue;
                    }
                }
            }
            variants.push(variant);
            outcome.rows.push(Row { label: variant.label, runs: Vec::new() });
        }
        for round in 0..workload.plan.rounds {
            for turn in 0..variants.len() {
                if self.interrupted.load(Ordering::Relaxed) {
                    return Err(BenchError::Interrupted);
                }
                let index = (round + turn) % variants.len();
                let variant = variants[index];
                let server = servers.iter().find(|server| server.kind() == variant.kind);
                let server = server.expect("a variant stays only if its server was started");
                let run = self.run_once(workload, variant, server, round)?;
                eprintln!(
                    "  {} round {} {}: {:.0} keys/s, p50 {:.1} us, {:.2} s",
                    workload.name,
                    round + 1,
                    variant.label,
                    run.measured.keys_per_s,
                    run.measured.latency.us_p50,
                    run.measured.time_s
                );
                outcome.rows[index].runs.push(run);
            }
        }
        Ok(outcome)
    }

    /// A server with all items, paused.
    fn start(&self, kind: Kind) -> Result<Server, String> {
        kind.version(&self.places)?;
        let start = || {
            let server = Server::start(kind, &self.places)?;
            load(kind.wire(), server.socket(), self.items.shape, self.items.keys)?;
            server.pause()?;
            Ok(server)
        };
        start().map_err(|error: BenchError| error.to_string())
    }

    fn run_once(
        &self,
        workload: &Workload,
        variant: &Variant,
        server: &Server,
        round: usize,
    ) -> Result<Run, BenchError> {
        let plan = workload.plan;
        let client = ClientSpec {
            wire: variant.kind.wire(),
            socket: server.socket().to_owned(),
            op: variant.op,
            depth: 1,
            connections: 1,
            shape: self.items.shape,
            keys: self.items.keys,
            seed: self.items.seed.wrapping_add(round as u64),
            pace: variant.pace,
            stop: plan.stop,
        };
        let time = match plan.stop {
            Stop::Time => plan.time,
            Stop::Requests(_) => plan.time * 10,
        };
        let load = Load { client, clients: variant.clients, warm_up: plan.warm_up, time };
        let (measured, cpu_s) = awake(Some(server), || {
            let cpu_before_s = server.cpu_s();
            let measured = fleet::run(&load)?;
            Ok((measured, server.cpu_s() - cpu_before_s))
        })?;
        // Processor time covers the warm-up too, the number of keys does not.
        let share = measured.time_s / (measured.time_s + plan.warm_up.as_secs_f64());
        let server_us_per_key = cpu_s * share * 1e6 / (measured.keys.max(1) as f64);
        Ok(Run { round, measured, server_us_per_key })
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        let of = |numbers: &[f64]| Summary::of(numbers.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some(Summary { median: 2.5, low: 1.0, high: 4.0 }));
    }
}
