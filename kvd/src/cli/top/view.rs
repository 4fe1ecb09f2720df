//! Draws the model. Small screens show one table at a time, large ones all four.

use std::time::Duration;

use kvd::units::show_bytes;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Sparkline, Table};

use super::model::{History, Model};
use super::table::{Cell, Sheet, TABLES};
use crate::cli::show;

/// From these on all tables are shown.
const LARGE: (u16, u16) = (140, 34);
/// The highest of the columns of a sparkline, in lines, its title included.
const SPARK_LINES: (u16, u16) = (4, 7);

/// A daemon that does not answer for so long is said not to.
const SILENT: Duration = Duration::from_secs(3);

const HELP: &str = " \
 1 2 3 4   choose caches, clients, keys, requests
 Tab       the next table
 s  S      sort by the next column, the previous one
 r         turn the order round
 up down   scroll, also PageUp PageDown Home
 p         hold the picture, and go on
 ?         this help
 q Ctrl-C  quit

 READS/s of a cache are all reads: SHARED ones happened in
 the workers' own memory and are told once a second, MEMORY
 and DISK ones were asked over the socket. READS of a key
 are a sample of the last seconds, to be compared with each
 other. P99 is that of the last second, waits for locks,
 loads and syncs left out.";

/// What the keys have chosen.
#[derive(Debug, Default)]
pub(super) struct Screen {
    focus: usize,
    tables: [Choice; TABLES.len()],
    is_helping: bool,
    is_held: bool,
}

/// How a table is shown.
#[derive(Debug, Default, Clone, Copy)]
struct Choice {
    /// `None`: the table's own.
    column: Option<usize>,
    is_turned: bool,
    scrolled: usize,
    columns: usize,
    sort_default: usize,
}

impl Screen {
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Whether there was a help to close.
    pub(super) fn close_help(&mut self) -> bool {
        std::mem::take(&mut self.is_helping)
    }

    pub(super) fn key(&mut self, key: KeyCode) {
        let choice = &mut self.tables[self.focus];
        let columns = choice.columns.max(1);
        let column = choice.column.unwrap_or(choice.sort_default);
        match key {
            KeyCode::Char(digit @ '1'..='4') => self.focus = digit as usize - '1' as usize,
            KeyCode::Tab | KeyCode::Right => self.focus = (self.focus + 1) % TABLES.len(),
            KeyCode::BackTab | KeyCode::Left => self.focus = (self.focus + TABLES.len() - 1) % TABLES.len(),
            KeyCode::Char('s') => choice.column = Some((column + 1) % columns),
            KeyCode::Char('S') => choice.column = Some((column + columns - 1) % columns),
            KeyCode::Char('r') => choice.is_turned = !choice.is_turned,
            KeyCode::Down => choice.scrolled += 1,
            KeyCode::Up => choice.scrolled = choice.scrolled.saturating_sub(1),
            KeyCode::PageDown => choice.scrolled += 10,
            KeyCode::PageUp => choice.scrolled = choice.scrolled.saturating_sub(10),
            KeyCode::Home => choice.scrolled = 0,
            KeyCode::Char('p') => self.is_held = !self.is_held,
            KeyCode::Char('?' | 'h') => self.is_helping = !self.is_helping,
            _ => {}
        }
    }
}

/// Draws a frame.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, screen: &mut Screen) {
    let area = frame.area();
    let is_large = area.width >= LARGE.0 && area.height >= LARGE.1;
    let sparks = if is_large { SPARK_LINES.1 } else { SPARK_LINES.0 };
    let [head, graphs, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(sparks),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(frame, head, model);
    draw_graphs(frame, graphs, model);
    if is_large {
        let [left, right] =
            Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).spacing(2).areas(body);
        // What is short leaves its room to what is long.
        let lines = |rows: usize| (rows as u16).saturating_add(3).min(body.height / 2);
        let [caches, clients] =
            Layout::vertical([Constraint::Length(lines(model.caches.len())), Constraint::Fill(1)])
                .areas(left);
        let [keys, requests] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(lines(model.operations.len()))])
                .areas(right);
        for (number, area) in [caches, clients, keys, requests].into_iter().enumerate() {
            draw_table(frame, area, model, screen, number);
        }
    } else {
        draw_table(frame, body, model, screen, screen.focus);
    }
    draw_foot(frame, foot, screen, is_large);
    if screen.is_helping {
        draw_help(frame, area);
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let head = &model.head;
    let first = format!(
        "kvd {}  up {}  {} connections  memory {} of {}  cpu {:.1} %",
        head.version,
        show::whole_seconds(head.uptime),
        show::count(head.connections),
        show_bytes(head.memory_bytes as u64),
        show_bytes(head.memory_max_bytes as u64),
        100.0 * head.processor_share,
    );
    let second = match &model.away {
        Some((since, why)) => {
            let time = kvd::clock::Clock::system().instant().duration_since(*since);
            let time = show::whole_seconds(time);
            Line::from(format!("daemon away, looking for it ({time}): {why}")).style(alarm())
        }
        None if model.silence() >= SILENT => {
            let time = show::whole_seconds(model.silence());
            Line::from(format!("the daemon has not answered for {time}")).style(alarm())
        }
        None if !head.is_healthy => {
            Line::from("the disk does not take what is written: see `kvd doctor`").style(alarm())
        }
        None => Line::from(vec![
            Span::from(format!("log {:.0} %", 100.0 * head.pending_share))
                .style(warn_if(head.pending_share > 0.8)),
            Span::from(format!("  flush p99 {}", head.flush_p99.map_or("-".to_owned(), show::seconds))),
            Span::from(format!("  txns {}", head.transactions)),
            Span::from(format!("  loads {}", head.leases)),
            Span::from(format!("  waiting {}", head.waiting)).style(warn_if(head.waiting > 0.0)),
            Span::from(format!("  errors/s {}", show::count(head.errors.round())))
                .style(warn_if(head.errors >= 1.0)),
            Span::from(format!("  slow/s {}", show::count(head.slow.round())))
                .style(warn_if(head.slow >= 1.0)),
        ]),
    };
    frame.render_widget(Paragraph::new(vec![Line::from(first).bold(), second]), area);
}

fn alarm() -> Style {
    Style::new().fg(Color::White).bg(Color::Red).add_modifier(Modifier::BOLD)
}

fn warn_if(is_odd: bool) -> Style {
    if is_odd { Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD) } else { Style::new() }
}

fn draw_graphs(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let micros = |value: f64| if value > 0.0 { show::seconds(value / 1e6) } else { "-".to_owned() };
    let percent = |value: f64| format!("{value:.1} %");
    let whole = |value: f64| show::count(if value >= 10.0 { value.round() } else { value });
    let graphs: [(&str, &History, &dyn Fn(f64) -> String, Color, Option<f64>); 4] = [
        ("reads/s", &model.reads, &whole, Color::Green, None),
        ("hits", &model.hit_percent, &percent, Color::Cyan, Some(100.0)),
        ("writes/s", &model.writes, &whole, Color::Magenta, None),
        ("p99", &model.p99, &micros, Color::Yellow, None),
    ];
    let areas = Layout::horizontal([Constraint::Fill(1); 4]).spacing(1).split(area);
    for ((title, history, shown, color, most), area) in graphs.into_iter().zip(areas.iter()) {
        let mut words = format!("{title} {}", shown(history.newest()));
        let peak = format!("  peak {}", shown(history.peak()));
        if most.is_none() && words.chars().count() + peak.chars().count() <= usize::from(area.width) {
            words += &peak;
        }
        let mut graph = Sparkline::default()
            .block(Block::new().title(Line::from(words).style(Style::new().fg(color))))
            .data(history.last(usize::from(area.width)))
            .style(Style::new().fg(color));
        // Of a share one wants to see how far it is from the whole.
        if let Some(most) = most {
            graph = graph.max((most * 1_000.0) as u64);
        }
        frame.render_widget(graph, *area);
    }
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, model: &Model, screen: &mut Screen, number: usize) {
    let mut sheet = Sheet::of(model, number);
    let is_chosen = screen.focus == number;
    let choice = &mut screen.tables[number];
    choice.columns = sheet.columns.len();
    choice.sort_default = sheet.sort_default;
    let column = choice.column.unwrap_or(sheet.sort_default);
    sheet.sort(column, choice.is_turned);
    let visible = usize::from(area.height).saturating_sub(2);
    choice.scrolled = choice.scrolled.min(sheet.rows.len().saturating_sub(visible));
    let widths = sheet.fit(usize::from(area.width));
    let cell = |text: String, is_right: bool| {
        Line::from(text).alignment(if is_right { Alignment::Right } else { Alignment::Left })
    };
    let header = widths.iter().map(|(at, _)| {
        let (name, is_right) = sheet.columns[*at];
        let line = cell(name.to_owned(), is_right);
        if *at == column {
            line.style(Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED))
        } else {
            line.bold()
        }
    });
    let rows = sheet.rows.iter().skip(choice.scrolled).take(visible).map(|row| {
        Row::new(widths.iter().map(|(at, width)| {
            let Cell { text, .. } = &row[*at];
            cell(show_within(text, *width), sheet.columns[*at].1)
        }))
    });
    let hidden = sheet.rows.len().saturating_sub(visible + choice.scrolled);
    let title = match (sheet.rows.len(), hidden) {
        (0, _) => format!("{}: none", TABLES[number]),
        (all, 0) => format!("{}: {all}", TABLES[number]),
        (all, hidden) => format!("{}: {all}, {hidden} more below", TABLES[number]),
    };
    let title = Line::from(format!("{} {title}", number + 1));
    let title = if is_chosen { title.style(Style::new().fg(Color::Cyan).bold()) } else { title.dim() };
    let table = Table::new(rows, widths.iter().map(|(_, width)| Constraint::Length(*width as u16)))
        .header(Row::new(header))
        .column_spacing(1)
        .block(Block::new().title(title));
    frame.render_widget(table, area);
}

/// A text that is too long ends with an ellipsis.
fn show_within(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, screen: &Screen, is_large: bool) {
    let mut spans = Vec::new();
    if screen.is_held {
        spans.push(Span::from("HELD, p goes on ").style(alarm()));
    }
    for (number, name) in TABLES.iter().enumerate() {
        let style = if number == screen.focus {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new().add_modifier(Modifier::DIM)
        };
        spans.push(Span::from(format!(" {} {name} ", number + 1)).style(style));
    }
    let rest = if is_large {
        "   s S sort  r turn round  arrows scroll  p hold  ? help  q quit"
    } else {
        " s sort  r turn  p hold  ? help  q quit"
    };
    spans.push(Span::from(rest).dim());
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let lines = HELP.lines().count() as u16 + 2;
    let columns = HELP.lines().map(|line| line.chars().count()).max().unwrap_or(0) as u16 + 4;
    let (width, height) = (columns.min(area.width), lines.min(area.height));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" kvd top ")), place);
}

#[cfg(test)]
mod tests {
    use super::super::frame_text;
    use super::super::model::{CacheRow, ClientRow, Head, KeyRow, OperationRow};
    use super::*;
    use crate::cli::stats::Reads;

    /// A site at work, without a daemon.
    pub(crate) fn busy() -> Model {
        let mut model = Model::new();
        for second in 0..300_u32 {
            let wave = 1.0 + f64::from(second % 60) / 60.0;
            model.reads.push(40_000.0 * wave);
            model.writes.push(300.0 * wave);
            model.hit_percent.push(90.0 + 5.0 * wave / 2.0);
            model.p99.push(80.0 * wave);
        }
        model.head = Head {
            version: "0.1.0".to_owned(),
            uptime: Duration::from_secs(11_520),
            connections: 42.0,
            memory_bytes: 1.2e9,
            memory_max_bytes: 2_147_483_648.0,
            pending_share: 0.03,
            flush_p99: Some(0.0042),
            processor_share: 0.31,
            is_healthy: true,
            ..Head::default()
        };
        model.caches = ["product", "session", "a-cache-with-a-very-long-name-that-goes-on"]
            .iter()
            .enumerate()
            .map(|(at, name)| CacheRow {
                name: (*name).to_owned(),
                reads: Reads {
                    shared: 40_000.0 / (at + 1) as f64,
                    memory: 812.4,
                    misses: 55.0,
                    ..Reads::default()
                },
                writes: 120.0,
                items: 1_234_567.0,
                memory_bytes: 3e8,
                memory_max_bytes: 536_870_912.0,
                ..CacheRow::default()
            })
            .collect();
        model.clients = (0..30)
            .map(|at| ClientRow {
                pid: 4_000 + at,
                name: format!("worker {at}"),
                connections: 2,
                requests: f64::from(at),
                shared: 1_000.0,
                idle: Duration::from_millis(10),
                path: if at == 29 {
                    "product by socket: the cache is not shared".to_owned()
                } else {
                    "shared".to_owned()
                },
            })
            .collect();
        model.keys = (0..40_u32)
            .map(|at| KeyRow {
                cache: "product".to_owned(),
                key: format!("sku:{at}\x1b[2J").into_bytes(),
                reads: 4_000.0 / f64::from(at + 1),
                value_bytes: 2_048,
            })
            .collect();
        model.operations = vec![OperationRow {
            name: "get".to_owned(),
            requests: 2_000.0,
            p50: Some(0.000_02),
            p99: Some(0.000_3),
        }];
        model
    }

    fn check(text: &str, columns: usize, lines: usize) {
        assert_eq!(text.lines().count(), lines, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
        assert!(!text.contains('\x1b'), "a key paints the screen: {text:?}");
    }

    #[test]
    fn a_small_screen_shows_one_table_and_keys_choose_it() {
        let (model, mut screen) = (busy(), Screen::default());
        let text = frame_text(&model, &mut screen, 80, 24);
        check(&text, 80, 24);
        for part in ["kvd 0.1.0  up 3h12m", "reads/s 79333", "READS/s", "product", "q quit", "▇"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("worker"), "{text}");
        screen.key(KeyCode::Char('2'));
        let text = frame_text(&model, &mut screen, 80, 24);
        check(&text, 80, 24);
        assert!(text.contains("worker 29") && text.contains("15 more below"), "{text}");
        screen.key(KeyCode::Char('s'));
        screen.key(KeyCode::Char('r'));
        (0..100).for_each(|_| screen.key(KeyCode::Down));
        assert!(frame_text(&model, &mut screen, 80, 24).contains("clients: 30\n"));
        screen.key(KeyCode::Char('?'));
        assert!(frame_text(&model, &mut screen, 80, 24).contains("turn the order round"));
        assert!(screen.close_help() && !screen.close_help());
    }

    #[test]
    fn a_large_screen_shows_all_tables() {
        let text = frame_text(&busy(), &mut Screen::default(), 200, 50);
        check(&text, 200, 50);
        for part in ["1 caches: 3", "2 clients: 30", "3 keys: 40", "4 requests: 1", "ON DISK", "not shared"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.contains("sku:0\\x1b[2J"), "{text}");
    }

    #[test]
    fn a_daemon_that_is_away_is_said_to_be() {
        let mut model = busy();
        model.away("no daemon answers".to_owned());
        let text = frame_text(&model, &mut Screen::default(), 80, 24);
        assert!(text.contains("daemon away, looking for it"), "{text}");
    }

    #[test]
    fn the_tiniest_screen_does_no_harm() {
        let (model, mut screen) = (busy(), Screen::default());
        screen.key(KeyCode::Char('?'));
        for (columns, lines) in [(1, 1), (5, 2), (40, 10), (139, 33), (300, 6)] {
            frame_text(&model, &mut screen, columns, lines);
        }
    }
}
