//! Runs one load with separate client processes and puts together what they report.
//!
//! Called by [`crate::rounds`] and [`crate::check`]. The clients are this very program with the subcommand `client`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use signal_hook::consts::SIGALRM;

use crate::BenchError;
use crate::client::{ClientReport, ClientSpec, Moments, Pace, Stop, histogram, moments_line};
use crate::clock::now_ns;

/// A load: what each client does, and how many there are.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// What each does; seed, rate and number of requests are of all together and are shared out.
    pub client: ClientSpec,
    /// How many processes.
    pub clients: usize,
    /// How long the load runs before it is counted.
    pub warm_up: Duration,
    /// How long it is counted; with [`Stop::Requests`] the longest it may take.
    pub time: Duration,
}

/// What a load achieved.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Keys a second.
    pub keys_per_s: f64,
    /// Keys asked for or written.
    pub keys: u64,
    /// Keys that were not found.
    pub misses: u64,
    /// Of those read in shared memory: what the daemon had to be asked for after all.
    pub asked: u64,
    /// Processor time of the clients a key, in microseconds; 0 where that is not told.
    pub client_us_per_key: f64,
    /// How long it was counted, in seconds.
    pub time_s: f64,
    /// Latency of a batch, in microseconds.
    pub latency: Latency,
}

/// Percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half were faster.
    pub us_p50: f64,
    /// 99 % were.
    pub us_p99: f64,
    /// 99.9 % were.
    pub us_p999: f64,
    /// The slowest.
    pub us_max: f64,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Latency {
        let us = |ns: u64| ns as f64 / 1_000.0;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        Latency { us_p50: at(0.5), us_p99: at(0.99), us_p999: at(0.999), us_max: us(histogram.max()) }
    }
}

/// Runs the load once.
///
/// # Errors
/// When a client fails; the others are ended.
pub fn run(load: &Load) -> Result<Measured, BenchError> {
    let argument = |index| {
        serde_json::to_string(&share(load, index)).expect("a spec has only numbers and a path of ours")
    };
    let processes: Vec<_> =
        (0..load.clients).map(|index| Process { role: "socket-client", spec: argument(index) }).collect();
    Ok(merge(&together(&processes, load.warm_up, load.time)?))
}

/// A process to be started: this program, with the subcommand that is its role.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) role: &'static str,
    pub(crate) spec: String,
}

impl Process {
    /// Starts it; what it says is read through pipes.
    pub(crate) fn spawn(&self) -> Result<(Child, BufReader<ChildStdout>), BenchError> {
        let program = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
        let mut child = Command::new(program)
            .args([self.role, &self.spec])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BenchError::io("starting a client process"))?;
        let output = child.stdout.take().expect("it was asked to be piped");
        Ok((child, BufReader::new(output)))
    }
}

/// Starts the processes, has them begin at one moment, and gives back what they report, in their order.
pub(crate) fn together(
    processes: &[Process],
    warm_up: Duration,
    time: Duration,
) -> Result<Vec<ClientReport>, BenchError> {
    let mut clients = Clients::default();
    for process in processes {
        clients.spawn(process)?;
    }
    clients.each_line(|index, line| match line.trim_end() {
        "ready" => Ok(()),
        _ => Err(BenchError::Client { index, what: format!("said {line:?} instead of being ready") }),
    })?;
    // Enough for the parent to tell all of them before it begins.
    let start_ns = now_ns() + 20_000_000 + 500_000 * processes.len() as u64;
    let measure_ns = start_ns + warm_up.as_nanos() as u64;
    let end_ns = measure_ns + time.as_nanos() as u64;
    clients.tell(&moments_line(Moments { start_ns, measure_ns, end_ns }))?;
    let mut reports = Vec::new();
    clients.each_line(|index, line| {
        let report = serde_json::from_str(line)
            .map_err(|error| BenchError::Client { index, what: format!("reported nonsense: {error}") })?;
        reports.push(report);
        Ok(())
    })?;
    clients.finish()?;
    Ok(reports)
}

/// What the client with this index does.
fn share(load: &Load, index: usize) -> ClientSpec {
    let clients = load.clients as u64;
    let mut spec = load.client.clone();
    spec.seed = spec.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64);
    if let Pace::Open(rate) = &mut spec.pace {
        *rate /= (load.clients * spec.depth) as f64;
    }
    if let Stop::Requests(requests) = &mut spec.stop {
        *requests = requests.div_ceil(clients);
    }
    spec
}

/// What they achieved together.
pub(crate) fn merge(reports: &[ClientReport]) -> Measured {
    let mut latencies = histogram();
    for &(ns, count) in reports.iter().flat_map(|report| &report.latencies) {
        latencies.saturating_record_n(ns, count);
    }
    let keys = reports.iter().map(|report| report.keys).sum::<u64>();
    let hits = reports.iter().map(|report| report.hits).sum::<u64>();
    let asked = reports.iter().map(|report| report.asked).sum::<u64>();
    let cpu_ns = reports.iter().map(|report| report.cpu_ns).sum::<u64>();
    let client_us_per_key = cpu_ns as f64 / 1e3 / keys.max(1) as f64;
    let from_ns = reports.iter().map(|report| report.from_ns).min().unwrap_or(0);
    let to_ns = reports.iter().map(|report| report.to_ns).max().unwrap_or(0);
    let time_s = (to_ns.saturating_sub(from_ns)).max(1) as f64 / 1e9;
    let keys_per_s = keys as f64 / time_s;
    Measured {
        keys_per_s,
        keys,
        misses: keys - hits,
        asked,
        client_us_per_key,
        time_s,
        latency: Latency::of(&latencies),
    }
}

/// The running processes. Those still there are killed when this is dropped.
#[derive(Default)]
struct Clients {
    running: Vec<(Child, BufReader<ChildStdout>)>,
}

impl Clients {
    fn spawn(&mut self, process: &Process) -> Result<(), BenchError> {
        self.running.push(process.spawn()?);
        Ok(())
    }

    /// Reads one line of each.
    fn each_line(
        &mut self,
        mut see: impl FnMut(usize, &str) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        for (index, (child, output)) in self.running.iter_mut().enumerate() {
            let mut line = String::new();
            output.read_line(&mut line).map_err(BenchError::io("listening to a client process"))?;
            if line.is_empty() {
                return Err(BenchError::Client { index, what: last_words(child) });
            }
            see(index, &line)?;
        }
        Ok(())
    }

    fn tell(&mut self, line: &str) -> Result<(), BenchError> {
        for (child, _) in &mut self.running {
            let input = child.stdin.as_mut().expect("it was asked to be piped");
            input.write_all(line.as_bytes()).map_err(BenchError::io("telling a client process"))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), BenchError> {
        for (index, (child, _)) in self.running.iter_mut().enumerate() {
            let status = child.wait().map_err(BenchError::io("waiting for a client process"))?;
            if !status.success() {
                return Err(BenchError::Client { index, what: last_words(child) });
            }
        }
        self.running.clear();
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for (child, _) in &mut self.running {
            // It may have ended already; there is nobody left to tell.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

pub(crate) fn last_words(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(mut errors) = child.stderr.take() {
        // What cannot be read is not there; the caller's error stands anyway.
        drop(errors.read_to_string(&mut said));
    }
    match (said.trim(), child.wait()) {
        ("", Ok(status)) if status.signal() == Some(SIGALRM) => {
            "the server did not answer in time".to_owned()
        }
        ("", Ok(status)) => format!("ended without a word, {status}"),
        (said, _) => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientReport, merge};

    #[test]
    fn rates_are_over_the_time_from_the_first_to_the_last() {
        let one = ClientReport {
            keys: 100,
            hits: 90,
            asked: 0,
            cpu_ns: 0,
            from_ns: 0,
            to_ns: 500_000_000,
            latencies: vec![(1_000, 100)],
        };
        let two = ClientReport {
            keys: 300,
            hits: 300,
            asked: 0,
            cpu_ns: 0,
            from_ns: 0,
            to_ns: 1_000_000_000,
            latencies: vec![(9_000, 300)],
        };
        let measured = merge(&[one, two]);
        assert!((measured.keys_per_s - 400.0).abs() < 1e-6);
        assert_eq!(measured.misses, 10);
        assert!((measured.latency.us_p50 - 9.0).abs() < 0.05, "{:?}", measured.latency);
    }
}
