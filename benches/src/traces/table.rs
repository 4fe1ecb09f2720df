//! Prints what came out: a table a source, then the `GOAL` lines; the same as JSON and as a page with plots.
//!
//! Called by `bin/bench`. The goals are about the recorded traces only: what is made up shows where a policy is weak.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::candidates::Kind;
use super::{Found, SHARES_PERCENT};
use crate::html;
use crate::machine::Machine;

/// The sources that goals are about.
const JUDGED: [&str; 2] = ["orm-busy", "web07"];
/// Percentage points that kvd may be below the better of moka and `quick_cache` at one size.
const BELOW_POINTS_MAX: f64 = 0.3;
/// … and what it may lose when nine of ten hits are never told: at one per cent of the objects, and elsewhere.
const LOST_POINTS_MAX: [f64; 2] = [2.5, 1.2];

/// A goal and what was measured, in percentage points.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// For example `traces.web07.5`.
    pub name: String,
    /// What was measured.
    pub measured: f64,
    /// What it must be.
    pub goal: f64,
    /// Whether it is.
    pub met: bool,
}

impl Goal {
    fn at_least(name: String, measured: f64, goal: f64) -> Goal {
        Goal { name, measured, goal, met: measured >= goal }
    }

    fn above(name: String, measured: f64, goal: f64) -> Goal {
        Goal { name, measured, goal, met: measured > goal }
    }

    fn at_most(name: String, measured: f64, goal: f64) -> Goal {
        Goal { name, measured, goal, met: measured <= goal }
    }

    /// The line that ends a benchmark.
    #[must_use]
    pub fn line(&self) -> String {
        let Goal { name, measured, goal, met } = self;
        format!("GOAL {name} {measured:.2} {goal:?} {}", if *met { "met" } else { "missed" })
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How to have it again.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// The sources.
    pub found: Vec<Found>,
    /// What was not run, and why.
    pub skipped: Vec<String>,
    /// The goals whose source was run.
    pub goals: Vec<Goal>,
}

/// What is to be reached, of those sources that were run.
#[must_use]
pub fn goals(found: &[Found]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let (mut over_better, mut over_lru) = (Vec::new(), Vec::new());
    for found in found.iter().filter(|found| JUDGED.contains(&found.name)) {
        for share in SHARES_PERCENT {
            let percent = |kind| found.percent(kind, share).unwrap_or(f64::NAN);
            let (kvd, name) = (percent(Kind::Kvd), found.name);
            let over = kvd - percent(Kind::Moka).max(percent(Kind::QuickCache));
            goals.push(Goal::at_least(format!("traces.{name}.{share}"), over, -BELOW_POINTS_MAX));
            over_better.push(over);
            over_lru.push(kvd - percent(Kind::Lru));
        }
    }
    if over_better.is_empty() {
        return goals;
    }
    let mean = over_better.iter().sum::<f64>() / over_better.len() as f64;
    goals.push(Goal::above("traces.average".to_owned(), mean, 0.0));
    let least = over_lru.into_iter().fold(f64::INFINITY, f64::min);
    goals.push(Goal::above("traces.lru".to_owned(), least, 0.0));
    for found in found.iter().filter(|found| JUDGED.contains(&found.name)) {
        for share in SHARES_PERCENT {
            let percent = |kind| found.percent(kind, share).unwrap_or(f64::NAN);
            let lost = percent(Kind::Kvd) - percent(Kind::KvdLost);
            let most = LOST_POINTS_MAX[usize::from(share > 1)];
            goals.push(Goal::at_most(format!("traces.lost.{}.{share}", found.name), lost, most));
        }
    }
    goals
}

impl Report {
    /// The whole report for a terminal, goals last.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("traces: {}\n", self.machine.line());
        for found in &self.found {
            let Found { name, what, accesses, objects, bytes, .. } = found;
            out += &format!(
                "\n{name}: {what}; {accesses} accesses, {objects} objects, {:.1} MB. Hits in per cent:\n{}\n",
                *bytes as f64 / 1e6,
                table(found)
            );
        }
        for skipped in &self.skipped {
            out += &format!("SKIP {skipped}\n");
        }
        out += "\nGoals, in percentage points: over the better of moka and quick_cache by size and on average, over LRU at\n\
                the worst size, and lost when nine of ten hits are not told.\n";
        for goal in &self.goals {
            out += &goal.line();
            out.push('\n');
        }
        out
    }

    /// The report as one page, complete in itself: a plot a source, a line a cache.
    #[must_use]
    pub fn page(&self) -> String {
        let mut out = html::head("traces", &[&self.machine.line()], &self.command);
        out += "<table><tr><th>goal, points</th><th>measured</th><th>goal</th><th></th></tr>";
        for Goal { name, measured, goal, met } in &self.goals {
            let verdict = if *met { "met" } else { "missed" };
            out += &format!(
                "<tr><td>{name}</td><td>{measured:.2}</td><td>{goal}</td><td class=\"{verdict}\">{verdict}</td></tr>"
            );
        }
        out += "</table>";
        for found in &self.found {
            out += &format!("<h2>{}</h2><p>{}, {} objects</p>", found.name, found.what, found.objects);
            out += &plot(found);
        }
        for skipped in &self.skipped {
            out += &format!("<p class=\"note\">skipped {}</p>", html::escape(skipped));
        }
        out + "</html>\n"
    }
}

/// One row a size, one column a cache.
fn table(found: &Found) -> Table {
    let mut table = Table::new();
    // Markdown, so that it can go into docs/BENCHMARKS.md as it is.
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["size"].into_iter().chain(Kind::ALL.map(Kind::title)));
    for share in SHARES_PERCENT {
        let figure = |kind| found.percent(kind, share).map_or_else(String::new, |hits| format!("{hits:.2}"));
        table.add_row([format!("{share} %")].into_iter().chain(Kind::ALL.map(figure)));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Hits in per cent over sizes; the sizes stand at equal distances.
fn plot(found: &Found) -> String {
    const WIDTH_PX: f64 = 520.0;
    const HEIGHT_PX: f64 = 260.0;
    const LEGEND_PX: f64 = 220.0;
    let colour = |kind| match kind {
        Kind::Belady => "#999999",
        Kind::Kvd => "#2f6fb3",
        Kind::KvdBatched => "#6fa0d2",
        Kind::KvdLost => "#a9c7e6",
        Kind::KvdWhole => "#1b3f66",
        Kind::Moka => "#b36b2f",
        Kind::QuickCache => "#3c8a4e",
        Kind::Lru => "#a8201a",
    };
    let (low, high) = found.cells.iter().fold((100.0_f64, 0.0_f64), |(low, high), cell| {
        (low.min(cell.hit_percent), high.max(cell.hit_percent))
    });
    let x = |i: usize| 20.0 + i as f64 * (WIDTH_PX - 40.0) / (SHARES_PERCENT.len() - 1) as f64;
    let y = |percent: f64| HEIGHT_PX - 30.0 - (percent - low) / (high - low).max(0.01) * (HEIGHT_PX - 50.0);
    let mut out = format!("<svg viewBox=\"0 0 {} {HEIGHT_PX}\" role=\"img\">", WIDTH_PX + LEGEND_PX);
    for (i, share) in SHARES_PERCENT.iter().enumerate() {
        out += &format!("<text x=\"{:.0}\" y=\"{:.0}\">{share} %</text>", x(i) - 10.0, HEIGHT_PX - 6.0);
    }
    for (row, kind) in Kind::ALL.into_iter().enumerate() {
        let percents = SHARES_PERCENT.map(|share| found.percent(kind, share).unwrap_or(0.0));
        let points: Vec<String> =
            percents.iter().enumerate().map(|(i, &hits)| format!("{:.1},{:.1}", x(i), y(hits))).collect();
        let (colour, points) = (colour(kind), points.join(" "));
        let legend_y = 20.0 + 22.0 * row as f64;
        out += &format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{WIDTH_PX}\" y=\"{legend_y:.0}\" style=\"fill:{colour}\">{} {:.1}-{:.1}</text>",
            kind.title(),
            percents[0],
            percents[SHARES_PERCENT.len() - 1]
        );
    }
    out + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::super::Cell;
    use super::*;

    fn found(name: &'static str, percent: impl Fn(Kind) -> f64) -> Found {
        let cell = |kind, share_percent| {
            let hit_percent = percent(kind);
            Cell { kind, share_percent, budget_bytes: 1, hits: 1, hit_percent }
        };
        let cells = Kind::ALL.iter().flat_map(|&kind| SHARES_PERCENT.map(|share| cell(kind, share)));
        Found { name, what: String::new(), accesses: 1, objects: 1, bytes: 1, cells: cells.collect() }
    }

    #[test]
    fn goals_are_judged_in_their_own_direction() {
        let found = found("web07", |kind| match kind {
            Kind::Belady => 60.0,
            Kind::Kvd | Kind::KvdBatched | Kind::KvdWhole => 50.0,
            Kind::KvdLost => 48.0,
            Kind::Moka => 49.0,
            Kind::QuickCache => 50.25,
            Kind::Lru => 50.0,
        });
        let lines: Vec<String> = goals(&[found]).iter().map(Goal::line).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(lines[0], "GOAL traces.web07.1 -0.25 -0.3 met");
        assert_eq!(
            lines[4..7],
            [
                "GOAL traces.average -0.25 0.0 missed",
                "GOAL traces.lru 0.00 0.0 missed",
                "GOAL traces.lost.web07.1 2.00 2.5 met"
            ]
        );
        assert_eq!(lines[7], "GOAL traces.lost.web07.5 2.00 1.2 missed");
    }

    #[test]
    fn what_is_made_up_has_no_goal() {
        assert_eq!(goals(&[found("zipf", |_| 1.0)]), []);
    }
}
