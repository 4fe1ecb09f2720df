//! `kvd top`: what the daemon does, live.
//!
//! `sample` asks the daemon once a second on a thread of its own, so that keys are answered while it does not; `model` turns two
//! answers into rates; `table` sorts and fits; `view` draws. This file owns the terminal and gives it back however it ends.

mod model;
mod sample;
mod table;
mod view;

use std::io::IsTerminal as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};

use super::common::{Common, on_interrupt, say};
use super::failure::{Exit, Failure, Outcome};
use model::Model;
use sample::Sampler;
use view::Screen;

/// Longest wait for a key before the screen is drawn again: the clock on it goes on also without the daemon.
const DRAW_EVERY: Duration = Duration::from_millis(1_000);
/// How soon an answer of the daemon is shown.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Watch rates, latencies, caches, clients and the hottest keys, live
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd top
  kvd top --once                    one frame as text, of one second
  kvd top --once --size 200x50
  kvd top --json | jq '.caches[] | select(.hit_percent < 50)'

Keys: 1-4 or Tab choose a table, s and S its order, r turns it round, arrows scroll, p holds the picture, ? helps, q quits.
It asks the daemon three requests a second, and goes on when the daemon is restarted.")]
pub(super) struct Args {
    /// Print one frame as text instead
    #[arg(long)]
    once: bool,
    /// The size of that frame, in columns and lines
    #[arg(long, value_name = "COLUMNSxLINES", default_value = "80x24", requires = "once", value_parser = parse_size)]
    size: (u16, u16),
}

fn parse_size(text: &str) -> Result<(u16, u16), String> {
    let (columns, lines) = text.split_once('x').ok_or("write a size as 80x24")?;
    let within = |text: &str, least: u16| match text.parse::<u16>() {
        Ok(number) if (least..=1_000).contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err(format!("{text} is not within {least} and 1000; write a size as 80x24")),
    };
    Ok((within(columns, 40)?, within(lines, 10)?))
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    if args.once || common.json {
        return once(common, args.size);
    }
    if !std::io::stdout().is_terminal() {
        return Err(Failure::Usage("kvd top needs a terminal; --once prints one frame as text".to_owned()));
    }
    let is_over = on_interrupt()?;
    // Before the screen is taken: nobody there is an error like that of any other command.
    let sampler = Sampler::start(common.client()?)?;
    let mut terminal = ratatui::try_init().map_err(Failure::Output)?;
    let done = live(&mut terminal, &sampler, || is_over.load(Ordering::Relaxed));
    let restored = ratatui::try_restore().map_err(Failure::Output);
    done.and(restored)?;
    Ok(Exit::Done)
}

fn live(
    terminal: &mut DefaultTerminal,
    sampler: &Sampler,
    is_over: impl Fn() -> bool,
) -> Result<(), Failure> {
    let clock = kvd::clock::Clock::system();
    let mut model = Model::new();
    let mut screen = Screen::default();
    let mut drawn = None;
    loop {
        let is_new = sampler.take(&mut model, screen.is_held());
        let now = clock.instant();
        if is_new || drawn.is_none_or(|drawn| now.duration_since(drawn) >= DRAW_EVERY) {
            terminal.draw(|frame| view::draw(frame, &model, &mut screen)).map_err(Failure::Output)?;
            drawn = Some(now);
        }
        if is_over() {
            return Ok(());
        }
        if !event::poll(LOOK_EVERY).map_err(Failure::Output)? {
            continue;
        }
        match event::read().map_err(Failure::Output)? {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                if is_quit(key) && !screen.close_help() {
                    return Ok(());
                }
                screen.key(key.code);
                drawn = None;
            }
            Event::Resize(..) => drawn = None,
            Event::Key(_) | Event::Mouse(_) | Event::Paste(_) | Event::FocusGained | Event::FocusLost => {}
        }
    }
}

fn is_quit(key: KeyEvent) -> bool {
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

fn once(common: &Common, (columns, lines): (u16, u16)) -> Outcome {
    let client = common.client()?;
    let mut model = Model::new();
    model.take(sample::ask(&client)?);
    std::thread::sleep(sample::EVERY);
    model.take(sample::ask(&client)?);
    if common.json {
        say(model.to_json())?;
        return Ok(Exit::Done);
    }
    say(frame_text(&model, &mut Screen::default(), columns, lines))?;
    Ok(Exit::Done)
}

/// A frame without colours.
fn frame_text(model: &Model, screen: &mut Screen, columns: u16, lines: u16) -> String {
    let mut terminal =
        Terminal::new(TestBackend::new(columns, lines)).expect("a test's terminal never fails");
    terminal.draw(|frame| view::draw(frame, model, screen)).expect("a test's terminal never fails");
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(columns)).map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    rows.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_bounded() {
        assert_eq!(parse_size("200x50"), Ok((200, 50)));
        for bad in ["80", "0x0", "80x2000", "axb"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
