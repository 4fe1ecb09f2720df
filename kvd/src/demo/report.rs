//! What the demo has to show: one table, or the same as JSON, and whether anything promised was broken.
//!
//! Filled in by the conductor. Hits are what the database was *not* asked for, not what the workers believe.

use comfy_table::{Cell, CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use kvd::units::show_bytes;
use serde::Serialize;

use super::best::Happened;
use super::conduct::Sources;
use super::moment::TICK;
use super::worker::Tally;

/// Everything that was found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) requests: u64,
    pub(super) objects: u64,
    pub(super) seconds: f64,
    /// Counted by the database.
    pub(super) loads: u64,
    /// Hits of a cache with room for everything.
    pub(super) best_unbounded: u64,
    /// Hits under Belady's rule with this memory, if it does not hold everything.
    pub(super) best_bounded: Option<u64>,
    /// Objects that would fit this memory without any overhead.
    pub(super) room: Option<u64>,
    pub(super) memory_bytes: u64,
    pub(super) kept_on_disk: bool,
    #[serde(skip)]
    pub(super) sources: Sources,
    pub(super) latency_without: Percentiles,
    pub(super) latency_with: Percentiles,
    pub(super) latency_hits: Percentiles,
    pub(super) tally: Tally,
    pub(super) kill: Option<Kill>,
    /// The daemon ended with 0 when asked to.
    pub(super) ended_well: bool,
}

/// The kill in the middle.
#[derive(Debug, Serialize)]
pub(super) struct Kill {
    #[serde(skip)]
    pub(super) killed_ticks: u32,
    #[serde(skip)]
    pub(super) started_ticks: u32,
    /// From the kill to the new daemon's first answer.
    pub(super) answers_seconds: f64,
    /// From the kill to the first hit with the right row.
    pub(super) first_hit_seconds: Option<f64>,
    #[serde(skip)]
    pub(super) sources_before: Sources,
}

impl Kill {
    /// The first hit after the new daemon was started; a row is compared before it counts as one.
    pub(super) fn first_hit(&self, happened: &[Happened]) -> Option<f64> {
        let hits = happened.iter().filter(|request| request.hit && request.done > self.started_ticks);
        let first = hits.map(|request| request.done).min()?;
        Some(f64::from(first - self.killed_ticks) * TICK.as_secs_f64())
    }
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Percentiles {
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

pub(super) fn percentiles(nanoseconds: &Histogram<u64>) -> Percentiles {
    let at = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
    Percentiles { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), p999_us: at(0.999), max_us: at(1.0) }
}

impl Report {
    fn hits(&self) -> u64 {
        self.requests.saturating_sub(self.loads)
    }

    fn percent(&self, hits: u64) -> f64 {
        hits as f64 * 100.0 / self.requests.max(1) as f64
    }

    fn hits_shared_percent(&self) -> f64 {
        self.percent(self.hits()) * self.sources.shares().0
    }

    fn hits_memory_percent(&self) -> f64 {
        self.percent(self.hits()) * self.sources.shares().1
    }

    /// What was promised and broken, in words.
    fn broken(&self) -> Vec<String> {
        let tally = &self.tally;
        let mut broken = Vec::new();
        let mut claim = |count: u64, words: &str| {
            if count > 0 {
                broken.push(format!("{count} {words}"));
            }
        };
        claim(tally.hits_wrong, "hits gave another row than the one acknowledged last");
        claim(tally.hits_late, "hits came after the end of the object's life");
        claim(tally.lost, "acknowledged writes were lost by the kill");
        if self.kept_on_disk {
            claim(tally.misses_early, "misses came before the end of the object's life");
        }
        claim(
            self.hits().abs_diff(tally.hits),
            "hits are counted differently by the workers and the database",
        );
        claim(u64::from(!self.ended_well), "daemon did not end well when asked to");
        broken
    }

    pub(super) fn nothing_broken(&self) -> bool {
        self.broken().is_empty()
    }
}

pub(super) fn print_json(report: &Report) {
    let mut json = serde_json::to_value(report).expect("numbers and texts have a JSON form");
    json["hits"] = report.hits().into();
    json["hit_percent"] = report.percent(report.hits()).into();
    json["hit_percent_shared"] = report.hits_shared_percent().into();
    json["hit_percent_memory"] = report.hits_memory_percent().into();
    json["best_unbounded_percent"] = report.percent(report.best_unbounded).into();
    json["best_bounded_percent"] = report.best_bounded.map(|hits| report.percent(hits)).into();
    json["broken"] = report.broken().into();
    println!("{json:#}");
}

pub(super) fn print_table(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, value: String, remark: &str| {
        let value = Cell::new(value).set_alignment(CellAlignment::Right);
        table.add_row([Cell::new(name), value, Cell::new(remark)]);
    };
    let tally = &report.tally;
    let share = |hits: u64| format!("{:.2} %", report.percent(hits));
    let rate = format!("{:.0} a second, in {:.1} s", report.requests as f64 / report.seconds, report.seconds);
    row("requests", report.requests.to_string(), &rate);
    row(
        "loads",
        report.loads.to_string(),
        &format!("counted by the database; {} because a life had ended", tally.expired),
    );
    row("hits", share(report.hits()), &format!("{}: requests minus loads", report.hits()));
    let memory = format!("{:.2} %", report.hits_memory_percent());
    row("  from memory", memory, &format!("which is {}", show_bytes(report.memory_bytes)));
    let shared = format!("{:.2} %", report.hits_shared_percent());
    row("    shared", shared, "read by the workers themselves, without asking the daemon");
    let disk = report.percent(report.hits()) - report.hits_memory_percent();
    row("  from disk", format!("{disk:.2} %"), "");
    row("best possible", share(report.best_unbounded), "with these lives, if nothing else is ever lost");
    if let (Some(hits), Some(room)) = (report.best_bounded, report.room) {
        let remark = format!("of memory alone: Belady's rule with these lives, room for {room} objects");
        row("best of memory", share(hits), &remark);
    }
    let mut latency = |name: &str, p: Percentiles| {
        let [p50, p90, p99, p999, max] = [p.p50_us, p.p90_us, p.p99_us, p.p999_us, p.max_us].map(show_us);
        row(name, p50, &format!("p90 {p90}, p99 {p99}, p99.9 {p999}, longest {max}"));
    };
    latency("without cache", report.latency_without);
    latency("with cache", report.latency_with);
    latency("  of hits", report.latency_hits);
    if let Some(kill) = &report.kill {
        let first = kill.first_hit_seconds.map_or("none".to_owned(), |s| format!("{:.0} ms", s * 1e3));
        row("kill -9", first, "until the first correct hit; puts wait 500 ms after an unclean stop");
        if report.kept_on_disk {
            let remark = format!("acknowledged writes, of {} looked up after the kill", tally.verified);
            row("  lost", tally.lost.to_string(), &remark);
        } else {
            row("  lost", "all".to_owned(), "as promised: nothing was kept on disk");
        }
        if tally.puts_unanswered + tally.reads_failed > 0 {
            let remark =
                format!("writes, never acknowledged; {} reads fell back to the database", tally.reads_failed);
            row("  unanswered", tally.puts_unanswered.to_string(), &remark);
        }
    }
    println!();
    // The last column is padded to the longest remark.
    table.to_string().lines().for_each(|line| println!("{}", line.trim_end()));
    println!();
    let broken = report.broken();
    if broken.is_empty() {
        println!("every promise held; all processes are stopped, the directory is removed");
    }
    broken.iter().for_each(|broken| println!("BROKEN: {broken}"));
    tally.examples.iter().for_each(|example| println!("  {example}"));
    if let Some(kill) = report.kill.as_ref().filter(|_| !broken.is_empty()) {
        println!("  the kill was at {:.3} s", f64::from(kill.killed_ticks) * TICK.as_secs_f64());
    }
}

fn show_us(us: f64) -> String {
    if us < 1_000.0 { format!("{us:.0} us") } else { format!("{:.1} ms", us / 1_000.0) }
}
