//! Runs all mechanisms under each load, interleaved round by round: A B C, B C A.
//!
//! Called by [`super`]. Only the measured daemon runs, the others are stopped by a signal. A mechanism whose processes
//! fail or hang loses that run and gets a fresh store; the lab goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::crew::{Silence, assemble, moments};
use super::figures::{Figures, Outcome, Row, Run};
use super::hosts::Host;
use super::mechanisms::Mechanism;
use super::plan::{Cell, Plan};
use super::worker::{Role, WorkerReport};
use crate::BenchError;
use crate::clock::now_ns;
use crate::peers::{Places, awake};
use crate::rounds::Summary;

/// How long after the end of a run a process may take to say what it did.
const REPORT_TIME_MAX: Duration = Duration::from_secs(12);

/// The mechanisms, the places, and what is prepared.
pub(super) struct Lab<'a> {
    pub(super) places: &'a Places,
    pub(super) seed: u64,
    pub(super) interrupted: &'a AtomicBool,
    /// Those that can be run.
    pub(super) mechanisms: Vec<&'static dyn Mechanism>,
    /// Those that cannot, and why.
    pub(super) skipped: Vec<(&'static str, String)>,
    pub(super) hosts: Vec<Host>,
}

impl Lab<'_> {
    /// Ends everything when somebody pressed Ctrl-C.
    pub(super) fn check_interrupted(&self) -> Result<(), BenchError> {
        if self.interrupted.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
    }

    /// Runs all rounds of a load.
    pub(super) fn run(&mut self, plan: &Plan, cell: &Cell) -> Result<Outcome, BenchError> {
        self.prepare(cell)?;
        let row = |mechanism: &&dyn Mechanism| Row {
            mechanism: mechanism.name(),
            runs: Vec::new(),
            failed: Vec::new(),
            per_s: None,
        };
        let mut outcome = Outcome {
            cell: cell.clone(),
            what: cell.what(),
            rows: self.mechanisms.iter().map(row).collect(),
        };
        for round in 0..plan.rounds_of(cell) {
            for turn in 0..self.mechanisms.len() {
                self.check_interrupted()?;
                let index = (round + turn) % self.mechanisms.len();
                // One that failed last time begins with a fresh store.
                self.prepare(cell)?;
                let name = self.mechanisms[index].name();
                let Some(at) = self.hosts.iter().position(|host| host.mechanism.name() == name) else {
                    outcome.rows[index].failed.push("its store could not be made again".to_owned());
                    continue;
                };
                match run_once(&self.hosts[at], plan, cell, self.seed.wrapping_add(round as u64))? {
                    Ok(figures) => {
                        eprintln!("  {} round {} {name}: {:.0} /s", cell.name, round + 1, figures.per_s);
                        outcome.rows[index].runs.push(Run { round, figures });
                    }
                    Err(silence) => {
                        eprintln!("  {} round {} {name}: {}", cell.name, round + 1, silence.words());
                        outcome.rows[index].failed.push(silence.words());
                        drop(self.hosts.remove(at));
                    }
                }
            }
        }
        for row in &mut outcome.rows {
            row.per_s = Summary::of(row.runs.iter().map(|run| run.figures.per_s));
        }
        Ok(outcome)
    }

    /// A store with the cell's items for every mechanism that can be run.
    pub(super) fn prepare(&mut self, cell: &Cell) -> Result<(), BenchError> {
        self.hosts.retain(|host| host.fits(cell));
        for mechanism in self.mechanisms.clone() {
            if self.hosts.iter().any(|host| host.mechanism.name() == mechanism.name()) {
                continue;
            }
            self.check_interrupted()?;
            match Host::prepare(mechanism, cell, self.places) {
                Ok(host) => {
                    if let Some(server) = host.server() {
                        server.pause()?;
                    }
                    self.hosts.push(host);
                }
                Err(why) => {
                    eprintln!("  {} is left out: {why}", mechanism.name());
                    self.skipped.push((mechanism.name(), why));
                }
            }
        }
        Ok(())
    }

    /// Leaves out for good what could not be prepared.
    pub(super) fn forget_skipped(&mut self) {
        let skipped = &self.skipped;
        self.mechanisms.retain(|one| skipped.iter().all(|(name, _)| *name != one.name()));
    }
}

fn run_once(
    host: &Host,
    plan: &Plan,
    cell: &Cell,
    seed: u64,
) -> Result<Result<Figures, Silence>, BenchError> {
    let role = |index| if index < cell.processes { Role::Mixed } else { Role::Scan };
    let specs: Vec<_> = (0..cell.processes + cell.scanners)
        .map(|index| host.spec(cell, seed, index as u64, role(index)))
        .collect();
    awake(host.server(), || {
        let reports = || {
            let mut members = assemble(&specs)?;
            let moments = moments(plan.warm_up, plan.time);
            members.iter_mut().for_each(|member| member.tell(moments));
            let deadline_ns = moments.end_ns.max(now_ns()) + REPORT_TIME_MAX.as_nanos() as u64;
            let reports = members.iter_mut().map(|member| member.report(deadline_ns));
            reports.collect::<Result<Vec<WorkerReport>, Silence>>()
        };
        Ok(reports().map(|reports| Figures::of(&reports)))
    })
}
