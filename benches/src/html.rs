//! The report as one HTML page with plots, complete in itself.
//!
//! Called by `bin/bench`. A bar is the median, a dot is one round: so the spread can be seen.

use crate::fleet::Latency;
use crate::report::{Reached, Report, microseconds, rate, thousands};
use crate::rounds::{Outcome, Row};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
h2{margin-top:2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}svg text{font:13px system-ui,sans-serif;fill:#222}.met{color:#17693a}\
.missed{color:#a8201a}.note{color:#666}";

const LABEL_PX: f64 = 130.0;
const PLOT_PX: f64 = 480.0;
const FIGURES_PX: f64 = 190.0;
const ROW_PX: f64 = 30.0;

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut out = head(report.bench, &[&report.machine.line(), &report.items], &report.command);
    out += &goals(&report.goals);
    for outcome in &report.outcomes {
        out += &format!("<h2>{}</h2><p>{}</p>", outcome.name, escape(&outcome.what));
        out += &plot(outcome);
        out += &latency_plot(outcome);
        out += &latencies(outcome);
        for note in &outcome.notes {
            out += &format!("<p class=\"note\">{}</p>", escape(note));
        }
        for (label, reason) in &outcome.skipped {
            out += &format!("<p class=\"note\">{label} was skipped: {}</p>", escape(reason));
        }
    }
    out += "<p class=\"note\">A bar is the median of the rounds, a dot is one round.</p></html>\n";
    out
}

/// How every page begins: the benchmark, lines about it, the command.
pub(crate) fn head(bench: &str, lines: &[&str], command: &str) -> String {
    let title = format!("kvd bench {bench}");
    let lines: String = lines.iter().map(|line| escape(line) + "<br>").collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>{lines}<code>{}</code></p>",
        escape(command)
    )
}

/// A table of goals; nothing when there are none.
pub(crate) fn goals(goals: &[Reached]) -> String {
    if goals.is_empty() {
        return String::new();
    }
    let mut out = "<table><tr><th>goal</th><th>measured</th><th>goal</th><th></th></tr>".to_owned();
    for reached in goals {
        let measured = reached.ratio.map_or_else(
            || "not measured".to_owned(),
            |ratio| format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.low, ratio.high),
        );
        let verdict = if reached.met() { "met" } else { "missed" };
        let (name, bar) = (reached.goal.name, reached.goal.bar.words());
        out += &format!(
            "<tr><td>{name}</td><td>{measured}</td><td>{bar}</td><td class=\"{verdict}\">{verdict}</td></tr>"
        );
    }
    out + "</table>"
}

/// Rates: a bar a variant.
fn plot(outcome: &Outcome) -> String {
    let bar = |row: &Row| {
        let summary = row.summary(|run| run.measured.keys_per_s);
        Bar {
            label: row.label,
            median: summary.median,
            dots: row.runs.iter().map(|run| run.measured.keys_per_s).collect(),
            figures: rate(summary),
        }
    };
    bars(&outcome.rows.iter().map(bar).collect::<Vec<_>>(), Scale::Linear)
}

/// A bar with its dots.
pub(crate) struct Bar<'a> {
    /// What stands before it; ours are coloured.
    pub(crate) label: &'a str,
    /// Its length.
    pub(crate) median: f64,
    /// One a round.
    pub(crate) dots: Vec<f64>,
    /// What stands behind it.
    pub(crate) figures: String,
}

/// How long a bar is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Twice the number, twice the length.
    Linear,
    /// Ten times the number, one step further: for what differs a thousandfold.
    Powers,
}

/// A picture of bars.
pub(crate) fn bars(bars: &[Bar<'_>], scale: Scale) -> String {
    let all = || bars.iter().flat_map(|bar| &bar.dots).copied();
    let highest = all().fold(1.0, f64::max);
    let lowest = all().fold(f64::INFINITY, f64::min).clamp(0.001, highest);
    let (low, high) = (lowest.log10().floor(), highest.log10().ceil());
    let share = |number: f64| match scale {
        Scale::Linear => number / highest,
        Scale::Powers => ((number.max(lowest / 10.0).log10() - low) / (high - low).max(1.0)).max(0.0),
    };
    let x = |number: f64| LABEL_PX + share(number) * PLOT_PX;
    let bottom = ROW_PX * bars.len() as f64;
    let mut out = match scale {
        Scale::Linear => svg(bottom),
        Scale::Powers => svg(bottom + ROW_PX) + &powers(low, high, bottom, x, thousands),
    };
    for (index, bar) in bars.iter().enumerate() {
        let middle = ROW_PX * (index as f64 + 0.5);
        let colour = if bar.label.starts_with("kvd") { "#2f6fb3" } else { "#b9c3cc" };
        out += &format!(
            "<text x=\"0\" y=\"{:.1}\">{}</text>\
             <rect x=\"{LABEL_PX}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>",
            middle + 4.5,
            escape(bar.label),
            middle - 9.0,
            x(bar.median) - LABEL_PX
        );
        for &dot in &bar.dots {
            out += &format!("<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2.5\" fill=\"#222\"/>", x(dot));
        }
        let figures_at = LABEL_PX + PLOT_PX + 8.0;
        out += &format!("<text x=\"{figures_at}\" y=\"{:.1}\">{}</text>", middle + 4.5, escape(&bar.figures));
    }
    out + "</svg>"
}

fn svg(height: f64) -> String {
    let width = LABEL_PX + PLOT_PX + FIGURES_PX;
    format!("<svg viewBox=\"0 0 {width} {height:.0}\" width=\"{width}\" role=\"img\">")
}

/// A power of ten of microseconds, for people.
fn time(us: f64) -> String {
    if us >= 1e6 {
        format!("{} s", us / 1e6)
    } else if us >= 1e3 {
        format!("{} ms", us / 1e3)
    } else {
        format!("{us} us")
    }
}

/// Lines at powers of ten, from the `low`th to the `high`th.
fn powers(low: f64, high: f64, bottom: f64, x: impl Fn(f64) -> f64, words: impl Fn(f64) -> String) -> String {
    let line = |power: i32| {
        let at = x(10f64.powi(power));
        format!(
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{bottom:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            words(10f64.powi(power))
        )
    };
    (low as i32..=high as i32).map(line).collect()
}

/// Latencies: from the median to the worst, on a scale of powers of ten.
fn latency_plot(outcome: &Outcome) -> String {
    let span = |row: &Row| {
        let of = |pick: fn(&Latency) -> f64| row.summary(|run| pick(&run.measured.latency)).median;
        Span {
            label: row.label,
            us: [of(|it| it.us_p50), of(|it| it.us_p99), of(|it| it.us_p999), of(|it| it.us_max)],
        }
    };
    spans(&outcome.rows.iter().map(span).collect::<Vec<_>>())
}

/// From one latency to another.
pub(crate) struct Span<'a> {
    /// What stands before it.
    pub(crate) label: &'a str,
    /// p50, p99, p99.9 and the worst.
    pub(crate) us: [f64; 4],
}

/// A picture of spans, each a line with four dots.
pub(crate) fn spans(spans: &[Span<'_>]) -> String {
    let all = || spans.iter().flat_map(|span| span.us).map(|us| us.max(0.001));
    let low = all().fold(f64::INFINITY, f64::min).min(1e9).log10().floor();
    let high = all().fold(0.001, f64::max).log10().ceil().max(low + 1.0);
    let x = |us: f64| LABEL_PX + (us.max(0.001).log10() - low) / (high - low) * PLOT_PX;
    let bottom = ROW_PX * spans.len() as f64;
    let mut out = svg(bottom + ROW_PX) + &powers(low, high, bottom, x, time);
    for (index, span) in spans.iter().enumerate() {
        let middle = ROW_PX * (index as f64 + 0.5);
        let [p50, p99, p999, max] = span.us.map(x);
        let colour = if span.label.starts_with("kvd") { "#2f6fb3" } else { "#8b98a5" };
        out += &format!(
            "<text x=\"0\" y=\"{:.1}\">{}</text>\
             <line x1=\"{p50:.1}\" x2=\"{max:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"{colour}\"/>",
            middle + 4.5,
            escape(span.label)
        );
        for (at, radius) in [(p50, 6.0), (p99, 4.5), (p999, 3.0), (max, 1.5)] {
            out += &format!("<circle cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"{radius}\" fill=\"{colour}\"/>");
        }
    }
    out + "</svg><p class=\"note\">Latency: p50, p99, p99.9 and the worst, from the largest dot to the smallest.</p>"
}

fn latencies(outcome: &Outcome) -> String {
    let mut out =
        "<table><tr><th>latency, us</th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr>".to_owned();
    for row in &outcome.rows {
        let of = |pick: fn(&Latency) -> f64| row.summary(|run| pick(&run.measured.latency)).median;
        out += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            row.label,
            microseconds(of(|latency| latency.us_p50)),
            microseconds(of(|latency| latency.us_p99)),
            microseconds(of(|latency| latency.us_p999)),
            microseconds(of(|latency| latency.us_max))
        );
    }
    out + "</table>"
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_a_server_said_cannot_break_the_page() {
        assert_eq!(escape("<b> & </b>"), "&lt;b&gt; &amp; &lt;/b&gt;");
    }
}
