//! What the reports of a run's processes amount to.
//!
//! Called by `turns` and `trials`; printed by `report` and `page`.

use serde::Serialize;

use super::plan::Cell;
use super::worker::{Aborts, Class, WorkerReport};
use crate::client::histogram;
use crate::fleet::Latency;
use crate::rounds::Summary;

/// One run of one mechanism under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Reads, writes and transactions a second.
    pub per_s: f64,
    /// Those classes in which something was done.
    pub classes: Vec<ClassFigures>,
    /// Why something had to begin again.
    pub aborts: Aborts,
    /// How often something was begun again.
    pub retries: u64,
    /// Not even then.
    pub given_up: u64,
}

/// A class of operations.
#[derive(Debug, Clone, Serialize)]
pub struct ClassFigures {
    /// Which.
    pub class: Class,
    /// Operations a second.
    pub per_s: f64,
    /// How long each took.
    pub latency: Latency,
    /// Operations that took longer than a millisecond.
    pub waits: u64,
    /// The longest divided by the median.
    pub starvation: f64,
    /// Jain's index over the processes: 1 when all did the same, 1/n when one did everything.
    pub fairness: f64,
}

impl Figures {
    /// Of all processes of a run.
    #[must_use]
    pub fn of(reports: &[WorkerReport]) -> Figures {
        let classes: Vec<ClassFigures> =
            Class::ALL.into_iter().filter_map(|class| class_figures(class, reports)).collect();
        let mut aborts = Aborts::default();
        for report in reports {
            aborts.deadlocks += report.aborts.deadlocks;
            aborts.conflicts += report.aborts.conflicts;
            aborts.busy += report.aborts.busy;
            aborts.leases += report.aborts.leases;
        }
        Figures {
            per_s: classes.iter().filter(|one| one.class != Class::Scanner).map(|one| one.per_s).sum(),
            classes,
            aborts,
            retries: reports.iter().map(|report| report.retries).sum(),
            given_up: reports.iter().map(|report| report.given_up).sum(),
        }
    }

    /// The figures of a class, if something was done in it.
    #[must_use]
    pub fn class(&self, class: Class) -> Option<&ClassFigures> {
        self.classes.iter().find(|one| one.class == class)
    }
}

fn class_figures(class: Class, reports: &[WorkerReport]) -> Option<ClassFigures> {
    let mut latencies = histogram();
    let mut rates = Vec::new();
    let mut waits = 0;
    for report in reports {
        let of_class = &report.classes[class as usize];
        for &(ns, count) in &of_class.latencies {
            latencies.saturating_record_n(ns, count);
        }
        let time_s = report.to_ns.saturating_sub(report.from_ns).max(1) as f64 / 1e9;
        rates.push(of_class.done as f64 / time_s);
        waits += of_class.waits;
    }
    // Whoever is there for another class is none of this one's clients; one who starved is.
    let is_scanner = |report: &WorkerReport| report.classes[Class::Scanner as usize].done > 0;
    let of_class = |report: &WorkerReport| is_scanner(report) == (class == Class::Scanner);
    let clients: Vec<f64> =
        reports.iter().zip(&rates).filter(|(report, _)| of_class(report)).map(|(_, rate)| *rate).collect();
    let latency = Latency::of(&latencies);
    (!latencies.is_empty()).then(|| ClassFigures {
        class,
        per_s: rates.iter().sum(),
        latency,
        waits,
        starvation: latency.us_max / latency.us_p50.max(0.001),
        fairness: jain(&clients),
    })
}

/// Jain, Chiu and Hawe's index: the square of the sum over n times the sum of squares.
fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    if squares > 0.0 { sum * sum / (rates.len() as f64 * squares) } else { 1.0 }
}

/// A run, and in which round it was.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// From 0.
    pub round: usize,
    /// What came out.
    pub figures: Figures,
}

/// All runs of one mechanism under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub mechanism: &'static str,
    /// One a round that ended.
    pub runs: Vec<Run>,
    /// What happened in those that did not.
    pub failed: Vec<String>,
    /// Operations a second over the rounds.
    pub per_s: Option<Summary>,
}

impl Row {
    /// The median over the rounds of any of their numbers; `None` where no round has it.
    #[must_use]
    pub fn median(&self, number: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        Some(Summary::of(self.runs.iter().filter_map(|run| number(&run.figures)))?.median)
    }

    /// The sum over the rounds.
    #[must_use]
    pub fn sum(&self, number: impl Fn(&Figures) -> u64) -> u64 {
        self.runs.iter().map(|run| number(&run.figures)).sum()
    }
}

/// What came out of a cell.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The load.
    pub cell: Cell,
    /// It, in a sentence.
    pub what: String,
    /// One a mechanism.
    pub rows: Vec<Row>,
}

impl Outcome {
    /// The row of a mechanism.
    #[must_use]
    pub fn row(&self, mechanism: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.mechanism == mechanism)
    }

    /// The rate of one over the best of others, round by round.
    #[must_use]
    pub fn ratio(&self, over: &str, under: &[&str]) -> Option<Summary> {
        let rate = |mechanism: &str, round| {
            let run = self.row(mechanism)?.runs.iter().find(|run| run.round == round)?;
            Some(run.figures.per_s)
        };
        let rounds = self.row(over)?.runs.iter().map(|run| run.round);
        Summary::of(rounds.filter_map(|round| {
            let best = under.iter().filter_map(|one| rate(one, round)).max_by(f64::total_cmp)?;
            Some(rate(over, round)? / best)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::jain;

    #[test]
    fn fairness_is_1_for_equals_and_1_of_n_for_one_who_has_all() {
        assert!((jain(&[5.0, 5.0, 5.0]) - 1.0).abs() < 1e-9);
        assert!((jain(&[9.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-9);
    }
}
