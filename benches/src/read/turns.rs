//! Runs the readings of a workload interleaved, round by round, as [`crate::rounds`] does for the servers.
//!
//! Called by `bin/bench`. Only the measured server runs, the others are stopped by a signal.

use std::sync::atomic::{AtomicBool, Ordering};

use super::client::{ReadSpec, Role};
use super::hosts::{Host, TAGGED, spec};
use super::mechanisms::Shared;
use super::workloads::{ReadWorkload, Reading, WRITER_PUTS_PER_S};
use crate::BenchError;
use crate::fleet::{Process, merge, together};
use crate::peers::{Places, Server, awake};
use crate::rounds::{Outcome, Row, Run};

/// A writer that did less than this share of what it should is told of.
const WRITER_SHARE_MIN: f64 = 0.95;

/// Runs all workloads.
///
/// # Errors
/// When something fails in the middle. What cannot be started is skipped.
pub fn run(
    workloads: &[ReadWorkload],
    places: &Places,
    seed: u64,
    interrupted: &AtomicBool,
) -> Result<Vec<Outcome>, BenchError> {
    let mut hosts: Vec<Host> = Vec::new();
    let mut outcomes = Vec::new();
    for workload in workloads {
        // Whatever holds other items ends here, with its memory.
        hosts.retain(|host| host.store == workload.store);
        outcomes.push(Turns { workload, places, seed, interrupted }.run(&mut hosts)?);
    }
    Ok(outcomes)
}

struct Turns<'a> {
    workload: &'a ReadWorkload,
    places: &'a Places,
    seed: u64,
    interrupted: &'a AtomicBool,
}

impl Turns<'_> {
    fn run(&self, hosts: &mut Vec<Host>) -> Result<Outcome, BenchError> {
        let ReadWorkload { name, what, .. } = self.workload;
        let (rows, skipped, notes) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcome = Outcome { name, what: what.clone(), rows, skipped, notes };
        let mut readings = Vec::new();
        for reading in &self.workload.readings {
            match self.host(reading, hosts) {
                Ok(index) => {
                    readings.push((reading, index));
                    outcome.rows.push(Row { label: reading.label, runs: Vec::new() });
                }
                Err(reason) => outcome.skipped.push((reading.label, reason)),
            }
        }
        for (reading, index) in readings.iter().filter(|(reading, _)| reading.tagged) {
            let host = &hosts[*index];
            awake(host.server(), || host.fill_tagged())
                .inspect_err(|_| eprintln!("  while filling {}", reading.label))?;
        }
        for round in 0..self.workload.rounds {
            for turn in 0..readings.len() {
                if self.interrupted.load(Ordering::Relaxed) {
                    return Err(BenchError::Interrupted);
                }
                let index = (round + turn) % readings.len();
                let (reading, host) = (readings[index].0, &hosts[readings[index].1]);
                let run = self.run_once(reading, host, round, &mut outcome.notes)?;
                eprintln!(
                    "  {name} round {} {}: {:.0} keys/s, {:.3} us of processor each, p50 {:.3} us, p99.9 {:.3} us",
                    round + 1,
                    reading.label,
                    run.measured.keys_per_s,
                    run.measured.client_us_per_key,
                    run.measured.latency.us_p50,
                    run.measured.latency.us_p999
                );
                outcome.rows[index].runs.push(run);
            }
        }
        for ((reading, _), row) in readings.iter().zip(&outcome.rows) {
            outcome.notes.extend(told(reading, row));
        }
        Ok(outcome)
    }

    /// What it reads from, prepared.
    fn host(&self, reading: &Reading, hosts: &mut Vec<Host>) -> Result<usize, String> {
        let store = self.workload.store;
        let family = reading.mechanism.family();
        if let Some(index) = hosts.iter().position(|host| host.family == family && host.store == store) {
            return Ok(index);
        }
        hosts.push(Host::prepare(reading.mechanism, store, self.places)?);
        Ok(hosts.len() - 1)
    }

    fn run_once(
        &self,
        reading: &Reading,
        host: &Host,
        round: usize,
        notes: &mut Vec<String>,
    ) -> Result<Run, BenchError> {
        let ReadWorkload { warm_up, rate, latency, store, .. } = *self.workload;
        let cache = if reading.tagged { TAGGED.to_owned() } else { crate::protocol::CACHE.to_owned() };
        let one = |index: usize, role| ReadSpec {
            op: reading.op,
            role,
            pick: reading.pick,
            seed: (self.seed.wrapping_add(round as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15) + index as u64,
            cache: cache.clone(),
            latency_ns: latency.as_nanos() as u64,
            ..spec(reading.mechanism, store, &host.place())
        };
        let process = |spec: &ReadSpec| Process {
            role: "read-client",
            spec: serde_json::to_string(spec).expect("a spec has only numbers and a path of ours"),
        };
        let mut processes: Vec<_> =
            (0..reading.processes).map(|index| process(&one(index, Role::Read))).collect();
        if reading.writer {
            processes.push(process(&one(reading.processes, Role::Write(WRITER_PUTS_PER_S))));
        }
        awake(host.server(), || {
            let server_cpu_s = || host.server().map_or(0.0, Server::cpu_s);
            let cpu_before_s = server_cpu_s();
            let reports = together(&processes, warm_up, rate + latency)?;
            let (readers, writers) = reports.split_at(reading.processes);
            let measured = merge(readers);
            for writer in writers {
                let share = writer.keys as f64 / WRITER_PUTS_PER_S / (rate + latency).as_secs_f64();
                if share < WRITER_SHARE_MIN {
                    notes.push(format!(
                        "{} round {}: the writer came to {share:.2} of its puts",
                        reading.label,
                        round + 1
                    ));
                }
            }
            // Processor time covers all of the run, the number of keys only a part.
            let part = measured.time_s / (warm_up + rate + latency).as_secs_f64();
            let server_us_per_key =
                (server_cpu_s() - cpu_before_s) * part * 1e6 / measured.keys.max(1) as f64;
            Ok(Run { round, measured, server_us_per_key })
        })
    }
}

/// How much of what should be read in shared memory was, where that is in question.
fn told(reading: &Reading, row: &Row) -> Option<String> {
    let sum = |of: fn(&Run) -> u64| row.runs.iter().map(of).sum::<u64>();
    let (keys, asked) = (sum(|run| run.measured.keys), sum(|run| run.measured.asked));
    let is_shared = reading.mechanism.shared() == Shared::Server(crate::peers::Kind::Kvd);
    let percent = 100.0 * (1.0 - asked as f64 / keys.max(1) as f64);
    let wrong = "every answer was right: no key that is there was missed, none that is not was found";
    let label = row.label;
    (is_shared && (asked > 0 || reading.pick == super::client::Pick::Absent))
        .then(|| format!("{label}: {percent:.3} % of {keys} reads were answered without the socket ({asked} asked); {wrong}"))
}
