//! Prints what came out: a table a workload, then one `GOAL` line a goal; and the raw rounds as JSON.
//!
//! Called by `bin/bench`. The `GOAL` lines are a contract: `GOAL <name> <measured> <goal> met|missed`, last of all.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::machine::Machine;
use crate::rounds::{Outcome, Row, Summary};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Figure {
    /// Keys a second.
    Rate,
    /// The latency that 99.9 % stay below.
    P999,
}

/// On which side of a ratio it is good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Bar {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Bar {
    /// The number.
    #[must_use]
    pub fn ratio(self) -> f64 {
        match self {
            Bar::AtLeast(ratio) | Bar::AtMost(ratio) => ratio,
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Bar::AtLeast(ratio) => format!("at least {ratio:?}"),
            Bar::AtMost(ratio) => format!("at most {ratio:?}"),
        }
    }
}

/// How two variants must compare.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// For example `socket.get8.redis`.
    pub name: &'static str,
    /// The workload's name.
    pub workload: &'static str,
    /// What of them.
    pub figure: Figure,
    /// The variant whose figure is divided …
    pub over: &'static str,
    /// … by this one's.
    pub under: &'static str,
    /// The goal.
    pub bar: Bar,
}

/// A goal and what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reached {
    /// The goal.
    pub goal: Goal,
    /// The ratio over the rounds; `None` when one of the two could not be run.
    pub ratio: Option<Summary>,
}

impl Reached {
    /// Whether the median is as good as it must be.
    #[must_use]
    pub fn met(&self) -> bool {
        self.ratio.is_some_and(|ratio| match self.goal.bar {
            Bar::AtLeast(bar) => ratio.median >= bar,
            Bar::AtMost(bar) => ratio.median <= bar,
        })
    }

    /// The line that ends a benchmark.
    #[must_use]
    pub fn line(&self) -> String {
        let measured =
            self.ratio.map_or_else(|| "unmeasured".to_owned(), |ratio| format!("{:.2}", ratio.median));
        let verdict = if self.met() { "met" } else { "missed" };
        format!("GOAL {} {measured} {:?} {verdict}", self.goal.name, self.goal.bar.ratio())
    }
}

/// Everything a benchmark found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The benchmark.
    pub bench: &'static str,
    /// How to have it again.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// Version lines of the servers.
    pub versions: Vec<(&'static str, String)>,
    /// A line about the items.
    pub items: String,
    /// The workloads.
    pub outcomes: Vec<Outcome>,
    /// The goals whose workload was run.
    pub goals: Vec<Reached>,
}

/// Looks the goals up in the outcomes. Goals of workloads that were not asked for are left out.
#[must_use]
pub fn reached(goals: &[Goal], outcomes: &[Outcome]) -> Vec<Reached> {
    let reached = |&goal: &Goal| {
        let outcome = outcomes.iter().find(|outcome| outcome.name == goal.workload)?;
        Some(Reached { goal, ratio: outcome.ratio(goal.figure, goal.over, goal.under) })
    };
    goals.iter().filter_map(reached).collect()
}

/// The rate of a row for people: its median and how far the rounds were from it.
#[must_use]
pub fn rate(summary: Summary) -> String {
    format!("{} ({}-{})", thousands(summary.median), thousands(summary.low), thousands(summary.high))
}

/// Microseconds for people: two digits behind the point where one would hide a difference.
#[must_use]
pub fn microseconds(us: f64) -> String {
    if us < 10.0 { format!("{us:.2}") } else { format!("{us:.1}") }
}

/// A number for people.
pub(crate) fn thousands(number: f64) -> String {
    if number >= 1e6 {
        format!("{:.2} M", number / 1e6)
    } else if number >= 1e4 {
        format!("{:.0} k", number / 1e3)
    } else if number >= 1e3 {
        format!("{:.1} k", number / 1e3)
    } else {
        // One digit, for what hardly ever happens.
        format!("{number:.*}", usize::from(number < 10.0 && number.fract() > 0.0))
    }
}

impl Report {
    /// The whole report for a terminal, goals last.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{}: {}\n{}\n", self.bench, self.machine.line(), self.items);
        for (name, version) in &self.versions {
            out += &format!("{name}: {version}\n");
        }
        for outcome in &self.outcomes {
            out += &format!("\n{}: {}\n{}\n", outcome.name, outcome.what, table(outcome));
            for note in &outcome.notes {
                out += &format!("{note}\n");
            }
            for (label, reason) in &outcome.skipped {
                out += &format!("SKIP {label}: {reason}\n");
            }
        }
        out += "\nRates are medians over the rounds (lowest-highest), latencies medians of each round's percentile.\n";
        if self.machine.is_busy() {
            out += "Others were at work on this machine: these figures do not count.\n";
        }
        for reached in &self.goals {
            if let Some(ratio) = reached.ratio {
                let Goal { name, over, under, .. } = reached.goal;
                let Summary { median, low, high } = ratio;
                out +=
                    &format!("{name}: {over} / {under} = {median:.2} ({low:.2}-{high:.2} over the rounds)\n");
            }
        }
        for reached in &self.goals {
            out += &reached.line();
            out.push('\n');
        }
        out
    }
}

/// One row a variant.
fn table(outcome: &Outcome) -> Table {
    let header =
        ["", "keys/s", "p50 us", "p99 us", "p99.9 us", "max us", "client us/key", "server us/key", "misses"];
    let cells = |row: &Row| {
        let latency = |pick: fn(&crate::fleet::Latency) -> f64| {
            microseconds(row.summary(|run| pick(&run.measured.latency)).median)
        };
        vec![
            row.label.to_owned(),
            rate(row.summary(|run| run.measured.keys_per_s)),
            latency(|latency| latency.us_p50),
            latency(|latency| latency.us_p99),
            latency(|latency| latency.us_p999),
            latency(|latency| latency.us_max),
            match row.summary(|run| run.measured.client_us_per_key).median {
                0.0 => String::new(),
                us => format!("{us:.2}"),
            },
            format!("{:.2}", row.summary(|run| run.server_us_per_key).median),
            row.runs.iter().map(|run| run.measured.misses).sum::<u64>().to_string(),
        ]
    };
    markdown(header, outcome.rows.iter().map(cells))
}

/// A table that can go into a document as it is; numbers to the right.
pub(crate) fn markdown(
    header: impl IntoIterator<Item = impl Into<Cell>>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<Cell>>());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{Bar, Figure, Goal, Reached, Summary};

    #[test]
    fn goal_lines_are_as_agreed() {
        let mut goal = Goal {
            name: "socket.get8.redis",
            workload: "get8",
            figure: Figure::Rate,
            over: "kvd",
            under: "redis",
            bar: Bar::AtLeast(1.35),
        };
        let ratio = Some(Summary { median: 1.352, low: 1.0, high: 2.0 });
        assert_eq!(Reached { goal, ratio }.line(), "GOAL socket.get8.redis 1.35 1.35 met");
        let ratio = Some(Summary { median: 1.2, low: 1.0, high: 2.0 });
        assert_eq!(Reached { goal, ratio }.line(), "GOAL socket.get8.redis 1.20 1.35 missed");
        assert_eq!(Reached { goal, ratio: None }.line(), "GOAL socket.get8.redis unmeasured 1.35 missed");
        goal.bar = Bar::AtMost(1.3);
        assert_eq!(Reached { goal, ratio }.line(), "GOAL socket.get8.redis 1.20 1.3 met");
    }
}
