//! The report as one HTML page with plots, complete in itself.
//!
//! Called by `bin/bench`. A bar is the median, a dot is one round: so the spread can be seen.

use crate::report::{Report, microseconds, rate};
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
    if !report.goals.is_empty() {
        out += "<table><tr><th>goal</th><th>measured</th><th>goal</th><th></th></tr>";
        for reached in &report.goals {
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
        out += "</table>";
    }
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

/// Rates: a bar a variant.
fn plot(outcome: &Outcome) -> String {
    let rates = |row: &Row| row.runs.iter().map(|run| run.measured.keys_per_s).collect::<Vec<_>>();
    let highest = outcome.rows.iter().flat_map(rates).fold(1.0, f64::max);
    let x = |rate: f64| LABEL_PX + rate / highest * PLOT_PX;
    let (width, height) = (LABEL_PX + PLOT_PX + FIGURES_PX, ROW_PX * outcome.rows.len() as f64);
    let mut out = format!("<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\">");
    for (index, row) in outcome.rows.iter().enumerate() {
        let summary = row.summary(|run| run.measured.keys_per_s);
        let middle = ROW_PX * (index as f64 + 0.5);
        let colour = if row.label.starts_with("kvd") { "#2f6fb3" } else { "#b9c3cc" };
        out += &format!(
            "<text x=\"0\" y=\"{:.1}\">{}</text>\
             <rect x=\"{LABEL_PX}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>",
            middle + 4.5,
            row.label,
            middle - 9.0,
            x(summary.median) - LABEL_PX
        );
        for rate in rates(row) {
            out += &format!("<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2.5\" fill=\"#222\"/>", x(rate));
        }
        let figures_at = LABEL_PX + PLOT_PX + 8.0;
        out += &format!("<text x=\"{figures_at}\" y=\"{:.1}\">{}</text>", middle + 4.5, rate(summary));
    }
    out + "</svg>"
}

/// Latencies: from the median to the worst, on a scale of powers of ten.
fn latency_plot(outcome: &Outcome) -> String {
    let points = |row: &Row| {
        let of = |pick: fn(&crate::fleet::Latency) -> f64| {
            row.summary(|run| pick(&run.measured.latency)).median.max(0.001)
        };
        [
            of(|latency| latency.us_p50),
            of(|latency| latency.us_p99),
            of(|latency| latency.us_p999),
            of(|latency| latency.us_max),
        ]
    };
    let all: Vec<f64> = outcome.rows.iter().flat_map(points).collect();
    let low = all.iter().copied().fold(f64::INFINITY, f64::min).log10().floor();
    let high = all.iter().copied().fold(0.001, f64::max).log10().ceil().max(low + 1.0);
    let x = |us: f64| LABEL_PX + (us.log10() - low) / (high - low) * PLOT_PX;
    let (width, bottom) = (LABEL_PX + PLOT_PX + FIGURES_PX, ROW_PX * outcome.rows.len() as f64);
    let mut out =
        format!("<svg viewBox=\"0 0 {width} {:.0}\" width=\"{width}\" role=\"img\">", bottom + ROW_PX);
    for power in low as i32..=high as i32 {
        let at = x(10f64.powi(power));
        out += &format!("<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{bottom:.1}\" stroke=\"#ddd\"/>");
        out += &format!(
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} us</text>",
            bottom + 18.0,
            10f64.powi(power)
        );
    }
    for (index, row) in outcome.rows.iter().enumerate() {
        let middle = ROW_PX * (index as f64 + 0.5);
        let [p50, p99, p999, max] = points(row).map(x);
        let colour = if row.label.starts_with("kvd") { "#2f6fb3" } else { "#8b98a5" };
        out += &format!(
            "<text x=\"0\" y=\"{:.1}\">{}</text>\
             <line x1=\"{p50:.1}\" x2=\"{max:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"{colour}\"/>",
            middle + 4.5,
            row.label
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
        let of =
            |pick: fn(&crate::fleet::Latency) -> f64| row.summary(|run| pick(&run.measured.latency)).median;
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
