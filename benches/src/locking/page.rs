//! What the lab found as one HTML page with plots, complete in itself, for somebody who was not there.
//!
//! Called by `bin/bench`. Every plot has a sentence that says what to look for.

use super::figures::{Outcome, Row};
use super::report::{Report, survival_cells};
use super::worker::Class;
use crate::html::{Bar, Scale, Span, bars, escape, goals, head, spans};
use crate::report::rate;

impl Report {
    /// The page.
    #[must_use]
    pub fn page(&self) -> String {
        let busy = if self.machine.is_busy() {
            "Others were at work on this machine: these figures do not count."
        } else {
            "Nobody else was at work on this machine when it began."
        };
        let mut out = head("locking", &[&self.machine.line(), busy], &self.command);
        out += "<p>Several processes share items and change them, each with one of the mechanisms below, all with the \
                same items, the same operations and the same draws of keys. Which of them gets most done, who waits for \
                whom, and what is left when processes are killed? Blue is kvd, in its three locking modes.</p>";
        out += &goals(&self.goals);
        for outcome in &self.outcomes {
            out += &load(outcome);
        }
        out += &self.stopped_part();
        out += &self.survivors_part();
        out += "<h2>Settings</h2><table><tr><th>mechanism</th><th>version</th><th>set so</th></tr>";
        for (name, settings) in &self.settings {
            let version =
                self.versions.iter().find(|(one, _)| one == name).map_or("", |(_, version)| version);
            out += &row_of(&[name, version, settings]);
        }
        out += "</table>";
        for (name, why) in &self.skipped {
            out += &format!("<p class=\"note\">{} was skipped: {}</p>", escape(name), escape(why));
        }
        out += "<p class=\"note\">A bar is the median of the rounds, a dot is one round. Scales are powers of ten: a \
                step to the right is ten times as much.</p></html>\n";
        out
    }

    fn stopped_part(&self) -> String {
        let Some(first) = self.stopped.first() else { return String::new() };
        let mut out = format!(
            "<h2>One process stopped</h2><p>One process is stopped for {:.0} ms in the middle of a transaction that \
             holds the most wanted key, as by a debugger or a machine without memory. What to see: a bar that reaches \
             {:.0} ms is a mechanism where one such process stops the others for as long as it likes.</p>",
            first.stopped_ms, first.stopped_ms
        );
        for (class, of) in [
            (Class::Reader, (|one| one.reader_ms_max) as fn(&super::trials::Stopped) -> Option<f64>),
            (Class::Writer, |one| one.writer_ms_max),
        ] {
            let waits: Vec<Bar<'_>> = self
                .stopped
                .iter()
                .filter_map(|one| {
                    let ms = of(one)?;
                    let figures = format!("{ms:.1} ms");
                    Some(Bar { label: one.mechanism, median: ms, dots: vec![ms], figures })
                })
                .collect();
            out += &format!("<h3>Longest wait of a {}</h3>{}", class.name(), bars(&waits, Scale::Powers));
        }
        for one in &self.stopped {
            if let Some(failed) = &one.failed {
                out += &format!("<p class=\"note\">{}: {}</p>", one.mechanism, escape(failed));
            }
        }
        out
    }

    fn survivors_part(&self) -> String {
        if self.survivals.is_empty() {
            return String::new();
        }
        let mut out = "<h2>Survivors</h2><p>Four processes write and do transactions; one of them is killed every 100 ms \
                       and replaced. Then a fresh process opens what is left, reads everything and writes, and has 5 s \
                       for it. What to see: everything but <b>worked</b> with zeros behind it means that somebody has \
                       to get up at night.</p><table><tr>"
            .to_owned();
        for header in [
            "mechanism",
            "kills",
            "operations",
            "stuck",
            "fresh process",
            "ms",
            "wrong values",
            "missing",
            "torn transactions",
            "lost writes",
            "after recovery",
        ] {
            out += &format!("<th>{header}</th>");
        }
        out += "</tr>";
        for one in &self.survivals {
            let cells = survival_cells(one);
            out += &row_of(&cells.iter().map(String::as_str).collect::<Vec<_>>());
        }
        out + "</table>"
    }
}

fn row_of(cells: &[&str]) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    format!("<tr>{cells}</tr>")
}

/// A load: how much was done, then how long each class waited, then who was treated worst.
fn load(outcome: &Outcome) -> String {
    let mut out = format!("<h2>{}</h2><p>{}</p>", escape(&outcome.cell.name), escape(&outcome.what));
    let rates: Vec<Bar<'_>> = outcome
        .rows
        .iter()
        .filter_map(|row| {
            let summary = row.per_s?;
            let dots = row.runs.iter().map(|run| run.figures.per_s).collect();
            Some(Bar { label: row.mechanism, median: summary.median, dots, figures: rate(summary) })
        })
        .collect();
    out += &format!(
        "<h3>Operations a second</h3><p>What to see: {}</p>{}",
        escape(&said_of(outcome)),
        bars(&rates, Scale::Powers)
    );
    for class in Class::ALL {
        let points: Vec<Span<'_>> = outcome
            .rows
            .iter()
            .filter_map(|row| Some(Span { label: row.mechanism, us: us(row, class)? }))
            .collect();
        if points.is_empty() {
            continue;
        }
        out += &format!(
            "<h3>How long a {} takes</h3><p>What to see: the largest dot is what is usual, the smallest the one who \
             waited longest; a long line is a mechanism that treats a few badly.</p>{}",
            class.name(),
            spans(&points)
        );
    }
    out += "<table><tr><th>longest / median, fairness</th><th>readers</th><th>writers</th></tr>";
    for row in &outcome.rows {
        let told = |class| {
            let starvation = row.median(|figures| figures.class(class).map(|it| it.starvation))?;
            let fairness = row.median(|figures| figures.class(class).map(|it| it.fairness))?;
            Some(format!("{starvation:.0}, {fairness:.2}"))
        };
        let of = |class| told(class).unwrap_or_default();
        out += &row_of(&[row.mechanism, &of(Class::Reader), &of(Class::Writer)]);
    }
    out += "</table>";
    for row in &outcome.rows {
        for failed in &row.failed {
            out += &format!("<p class=\"note\">{} failed: {}</p>", row.mechanism, escape(failed));
        }
    }
    out
}

fn us(row: &Row, class: Class) -> Option<[f64; 4]> {
    let of = |pick: fn(&crate::fleet::Latency) -> f64| {
        row.median(|figures| figures.class(class).map(|it| pick(&it.latency)))
    };
    Some([of(|it| it.us_p50)?, of(|it| it.us_p99)?, of(|it| it.us_p999)?, of(|it| it.us_max)?])
}

/// Who was first and by how much, in words.
fn said_of(outcome: &Outcome) -> String {
    let mut ranked: Vec<(&str, f64)> =
        outcome.rows.iter().filter_map(|row| Some((row.mechanism, row.per_s?.median))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (Some(first), Some(last)) = (ranked.first(), ranked.last()) else {
        return "nothing: no mechanism came to an end.".to_owned();
    };
    let is_ours = |name: &str| name.starts_with("kvd");
    let other = ranked.iter().find(|(name, _)| is_ours(name) != is_ours(first.0));
    let beside = other.map_or_else(String::new, |(name, rate)| {
        format!(
            ", {:.1} times as much as {name}, the best of {}",
            first.1 / rate.max(0.001),
            if is_ours(name) { "kvd's modes" } else { "the others" }
        )
    });
    format!(
        "{} does most{beside}, and {:.0} times as much as {}.",
        first.0,
        first.1 / last.1.max(0.001),
        last.0
    )
}
