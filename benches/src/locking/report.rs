//! Prints what the lab found: one table of all mechanisms first, then each load by class, then who survived what, then
//! one `GOAL` line a goal; and the raw rounds as JSON.
//!
//! Called by [`super`] and `bin/bench`. Losses are printed like wins.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::figures::{ClassFigures, Outcome, Row};
use super::mechanisms::ALL;
use super::plan::FIRST;
use super::trials::{Fresh, Stopped, Survival};
use super::worker::Class;
use crate::BenchError;
use crate::machine::Machine;
use crate::report::{Bar, Figure, Goal, Reached, markdown, microseconds, rate, thousands};

const DATABASE: &str = "kvd database";

const fn goal(name: &'static str, workload: &'static str, under: &'static str, ratio: f64) -> Goal {
    Goal { name, workload, figure: Figure::Rate, over: DATABASE, under, bar: Bar::AtLeast(ratio) }
}

/// The goals.
pub(super) const GOALS: [Goal; 4] = [
    goal("locking.w1.bdb_tds", "w1", "bdb tds", 1.5),
    goal("locking.w10.bdb_tds", "w10", "bdb tds", 1.3),
    goal("locking.w10.bdb_cds", "w10", "bdb cds", 6.0),
    goal("locking.choice", "tx5", BEST, 0.85),
];
/// Stands for whichever mode of kvd was fastest in a round.
const BEST: &str = "best kvd mode";

/// Looks the goals up. Goals of loads that were not asked for are left out.
pub(super) fn goals(outcomes: &[Outcome]) -> Vec<Reached> {
    let reached = |goal: Goal| {
        let outcome = outcomes.iter().find(|outcome| outcome.cell.name == goal.workload)?;
        let ours: Vec<&str> =
            ALL.iter().filter(|one| one.locking().is_some()).map(|one| one.name()).collect();
        let under = if goal.under == BEST { ours } else { vec![goal.under] };
        Some(Reached { goal, ratio: outcome.ratio(goal.over, &under) })
    };
    GOALS.into_iter().filter_map(reached).collect()
}

/// Everything the lab found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `locking`.
    pub bench: &'static str,
    /// How to have it again.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// What was run.
    pub profile: String,
    /// How each mechanism is set.
    pub settings: Vec<(&'static str, &'static str)>,
    /// Its version.
    pub versions: Vec<(&'static str, String)>,
    /// Those that could not be run, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// The loads.
    pub outcomes: Vec<Outcome>,
    /// What a stopped process did to the others.
    pub stopped: Vec<Stopped>,
    /// What was left after processes had been killed.
    pub survivals: Vec<Survival>,
    /// The goals whose load was run.
    pub goals: Vec<Reached>,
    /// An earlier run to compare with.
    #[serde(skip)]
    pub baseline: Option<Baseline>,
}

/// The rates of an earlier run.
#[derive(Debug)]
pub struct Baseline {
    from: String,
    value: Value,
}

impl Baseline {
    /// Reads what `--json` wrote.
    ///
    /// # Errors
    /// When it cannot be read or is no such thing.
    pub fn read(path: &Path) -> Result<Baseline, BenchError> {
        let doing = || format!("reading {}", path.display());
        let text = std::fs::read_to_string(path).map_err(BenchError::io(doing()))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| BenchError::Server { server: "--baseline", what: error.to_string() })?;
        if value["bench"] != "locking" {
            let what = format!("{} is not what bench locking --json wrote", path.display());
            return Err(BenchError::Server { server: "--baseline", what });
        }
        Ok(Baseline { from: path.display().to_string(), value })
    }

    fn rate(&self, cell: &str, mechanism: &str) -> Option<f64> {
        let outcomes = self.value["outcomes"].as_array()?;
        let outcome = outcomes.iter().find(|outcome| outcome["cell"]["name"] == cell)?;
        let row = outcome["rows"].as_array()?.iter().find(|row| row["mechanism"] == mechanism)?;
        row["per_s"]["median"].as_f64()
    }
}

impl Report {
    /// The loads that the first table shows.
    pub(super) fn first(&self) -> Vec<&Outcome> {
        let is_first = |outcome: &&Outcome| FIRST.contains(&outcome.cell.name.as_str());
        let first: Vec<_> = self.outcomes.iter().filter(is_first).collect();
        if first.is_empty() { self.outcomes.iter().collect() } else { first }
    }

    /// The whole report for a terminal, goals last.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("locking: {}\nprofile {}\n\n", self.machine.line(), self.profile);
        out += &self.first_text();
        for outcome in &self.outcomes {
            out += &format!("\n{}: {}\n{}\n", outcome.cell.name, outcome.what, by_class(outcome));
            for row in &outcome.rows {
                for failed in &row.failed {
                    out += &format!("FAILED {} in {}: {failed}\n", row.mechanism, outcome.cell.name);
                }
            }
        }
        out += "\nRates are operations a second, medians over the rounds (lowest-highest); latencies, starvation and \
                fairness are medians of each round's, waits (over 1 ms, most of them for a processor), aborts and \
                retries are sums. Starvation: longest / median. Fairness: Jain's index over the processes, 1 is fair.\n";
        out += &self.stopped_text();
        out += &self.survivals_text();
        out += &self.baseline_text();
        out += "\nSettings\n";
        for (name, settings) in &self.settings {
            let version =
                self.versions.iter().find(|(one, _)| one == name).map_or("", |(_, version)| version);
            out += &format!("{name} ({version}): {settings}\n");
        }
        for (name, why) in &self.skipped {
            out += &format!("SKIP {name}: {why}\n");
        }
        if self.machine.is_busy() {
            out += "Others were at work on this machine: these figures do not count.\n";
        }
        for reached in &self.goals {
            out += &reached.line();
            out.push('\n');
        }
        out
    }

    fn first_text(&self) -> String {
        let first = self.first();
        if first.is_empty() {
            return String::new();
        }
        let mut header = vec!["operations/s".to_owned()];
        header.extend(first.iter().map(|outcome| outcome.cell.name.clone()));
        let mechanisms = first.first().map_or(&[][..], |outcome| &outcome.rows);
        let rows = mechanisms.iter().map(|row| {
            let rate_of = |outcome: &&Outcome| {
                outcome.row(row.mechanism).and_then(|row| row.per_s).map_or_else(|| "failed".to_owned(), rate)
            };
            let mut cells = vec![row.mechanism.to_owned()];
            cells.extend(first.iter().map(rate_of));
            cells
        });
        format!("{}\n", markdown(header, rows))
    }

    fn stopped_text(&self) -> String {
        let Some(first) = self.stopped.first() else { return String::new() };
        let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{ms:.1}"));
        let rows = self.stopped.iter().map(|one| {
            let failed = one.failed.clone().unwrap_or_default();
            vec![one.mechanism.to_owned(), ms(one.reader_ms_max), ms(one.writer_ms_max), failed]
        });
        format!(
            "\nstopped: one process is stopped for {:.0} ms in the middle of a transaction; longest wait of the other \
             three (2 ms between two operations, the keys that are most wanted are held)\n{}\n",
            first.stopped_ms,
            markdown(["", "reader max ms", "writer max ms", "failed"], rows)
        )
    }

    fn survivals_text(&self) -> String {
        if self.survivals.is_empty() {
            return String::new();
        }
        let header = [
            "survivors",
            "kills",
            "done",
            "stuck",
            "fresh process",
            "ms",
            "wrong",
            "missing",
            "torn",
            "lost",
            "after recovery",
        ];
        let rows = self.survivals.iter().map(survival_cells);
        let mut out = format!(
            "\nsurvivors: 4 processes, one is killed every 100 ms and replaced; then a fresh one opens what is left, reads \
             everything and writes, within 5 s\n{}\n",
            markdown(header, rows)
        );
        out += "stuck: processes that nobody killed and that did not end within 3 s; wrong, missing: values; torn: \
                transactions half written; lost: processes whose acknowledged write is gone.\n";
        for one in &self.survivals {
            if let Fresh::Failed(what) = &one.fresh {
                out += &format!("{}: a fresh process failed: {what}\n", one.mechanism);
            }
            if let Some(what) = &one.failed {
                out += &format!("{}: a process ended by itself: {what}\n", one.mechanism);
            }
        }
        out
    }

    fn baseline_text(&self) -> String {
        let Some(baseline) = &self.baseline else { return String::new() };
        let mut rows = Vec::new();
        for outcome in &self.outcomes {
            for row in &outcome.rows {
                let before = baseline.rate(&outcome.cell.name, row.mechanism);
                if let (Some(before), Some(now)) = (before, row.per_s) {
                    rows.push(vec![
                        format!("{} {}", outcome.cell.name, row.mechanism),
                        thousands(before),
                        rate(now),
                        format!("{:.2}", now.median / before),
                    ]);
                }
            }
        }
        let header = ["", "before /s", "now /s", "now/before"];
        format!("\ncompared with {}\n{}\n", baseline.from, markdown(header, rows))
    }
}

/// A row of the survivors.
pub(super) fn survival_cells(one: &Survival) -> Vec<String> {
    let left = one.fresh.left();
    let count =
        |of: fn(&super::storm::Left) -> u64| left.map_or_else(String::new, |left| of(left).to_string());
    vec![
        one.mechanism.to_owned(),
        one.kills.to_string(),
        one.done.to_string(),
        one.stuck.to_string(),
        one.fresh.word().to_owned(),
        format!("{:.0}", one.fresh_ms),
        count(|left| left.wrong),
        count(|left| left.missing),
        count(|left| left.torn),
        count(|left| left.lost),
        one.recovered.as_ref().map_or_else(String::new, |fresh| match fresh.left() {
            Some(left) if !left.is_whole() => format!("{} ({})", fresh.word(), left.words()),
            Some(_) | None => fresh.word().to_owned(),
        }),
    ]
}

/// One row a mechanism and class.
fn by_class(outcome: &Outcome) -> String {
    let header = [
        "",
        "class",
        "/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "waits",
        "starvation",
        "fairness",
        "aborts",
        "retries",
    ];
    let mut rows = Vec::new();
    for class in Class::ALL.into_iter().filter(|class| outcome.cell.has(*class)) {
        rows.extend(
            outcome.rows.iter().filter(|row| !row.runs.is_empty()).map(|row| class_cells(row, class)),
        );
    }
    markdown(header, rows).to_string()
}

fn class_cells(row: &Row, class: Class) -> Vec<String> {
    let median = |of: fn(&ClassFigures) -> f64| row.median(|figures| figures.class(class).map(of));
    let us = |of| median(of).map_or_else(String::new, microseconds);
    // Where no operation came to an end, all of its processes waited for others all the time.
    let per_s = median(|it| it.per_s).unwrap_or(0.0);
    // What began again is told once for a mechanism, where most of it happens.
    let is_writer = class == Class::Writer;
    vec![
        row.mechanism.to_owned(),
        class.name().to_owned(),
        thousands(per_s),
        us(|it| it.latency.us_p50),
        us(|it| it.latency.us_p99),
        us(|it| it.latency.us_p999),
        us(|it| it.latency.us_max),
        row.sum(|figures| figures.class(class).map_or(0, |it| it.waits)).to_string(),
        median(|it| it.starvation).map_or_else(String::new, |it| format!("{it:.0}")),
        median(|it| it.fairness).map_or_else(String::new, |it| format!("{it:.2}")),
        if is_writer { aborts(row) } else { String::new() },
        if is_writer {
            row.sum(|figures| figures.retries + figures.given_up).to_string()
        } else {
            String::new()
        },
    ]
}

/// Why it had to begin again, and how often.
fn aborts(row: &Row) -> String {
    let kinds = [
        ("deadlocks", row.sum(|figures| figures.aborts.deadlocks)),
        ("conflicts", row.sum(|figures| figures.aborts.conflicts)),
        ("busy", row.sum(|figures| figures.aborts.busy)),
        ("leases", row.sum(|figures| figures.aborts.leases)),
        ("given up", row.sum(|figures| figures.given_up)),
    ];
    let told: Vec<String> =
        kinds.iter().filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{count} {kind}")).collect();
    if told.is_empty() { "0".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{ALL, BEST, DATABASE, GOALS};
    use crate::locking::{Extent, Plan};

    #[test]
    fn every_goal_names_a_load_and_mechanisms_that_are_there() {
        let plan = Plan::of("default", Extent::Quick).expect("it is ours");
        let is_mechanism = |name: &str| name == BEST || ALL.iter().any(|one| one.name() == name);
        for goal in GOALS {
            assert!(plan.cells.iter().any(|cell| cell.name == goal.workload), "{}", goal.name);
            assert!(is_mechanism(goal.over) && is_mechanism(goal.under), "{}", goal.name);
            assert_eq!(goal.over, DATABASE);
        }
    }

    #[test]
    fn runs_end_in_the_time_that_is_promised() {
        for (extent, seconds_max) in
            [(Extent::Quick, 50.0), (Extent::Default, 125.0), (Extent::Full, 2_700.0)]
        {
            let plan = Plan::of("default", extent).expect("it is ours");
            let trials = plan.trials.expect("the default profile has them");
            // Starting processes and stopping takes as long again as a short run; whoever hangs is waited for.
            let run_s = (plan.warm_up + plan.time).as_secs_f64() + 0.2;
            let runs: usize = plan.cells.iter().map(|cell| plan.rounds_of(cell)).sum();
            let storms_s = (trials.storm.as_secs_f64() + 1.0) * ALL.len().div_ceil(3) as f64 + 10.0;
            let seconds = run_s * (runs * ALL.len()) as f64 + storms_s + trials.stop.as_secs_f64() + 1.0;
            assert!(seconds < seconds_max, "{extent:?} takes {seconds} s");
        }
    }
}
