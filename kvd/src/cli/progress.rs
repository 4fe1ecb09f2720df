//! How far a long command is, on a terminal only: a script's log is not filled with it.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often it is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// A line that shows how far it is, and is gone when this is dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Of something whose end is not known.
    pub(super) fn endless(what: &str) -> Progress {
        Progress::of(ProgressBar::no_length(), "{spinner} {prefix}: {msg} ({elapsed})", what)
    }

    /// Of so much; the total may change.
    pub(super) fn towards(what: &str, total: u64) -> Progress {
        Progress::of(ProgressBar::new(total), "{prefix}: {bar:30} {percent} % ({elapsed}, {eta} left)", what)
    }

    fn of(bar: ProgressBar, template: &str, what: &str) -> Progress {
        let is_seen = std::io::stderr().is_terminal();
        bar.set_draw_target(if is_seen {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        });
        bar.set_style(
            ProgressStyle::with_template(template).expect("the template is a constant that parses"),
        );
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(DRAW_EVERY);
        Progress(bar)
    }

    /// Says how far it is.
    pub(super) fn say(&self, message: String) {
        self.0.set_message(message);
    }

    /// Says how much of how much is done.
    pub(super) fn at(&self, done: u64, total: u64) {
        self.0.set_length(total.max(done));
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
