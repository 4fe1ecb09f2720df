//! Signals: TERM and INT stop the daemon, HUP and USR1 ask something of it.
//!
//! `cli::serve` installs them before it starts anything and waits on them. QUIT, ABRT and KILL need no handling: the
//! store survives them.

use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator;

use super::Hurry;

/// The signals of this process, queued from when they were installed.
#[derive(Debug)]
pub struct Signals(iterator::Signals);

impl Signals {
    /// From now on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn install() -> std::io::Result<Signals> {
        Ok(Signals(iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?))
    }

    /// Waits until a signal asks to stop; calls `report` when one asks for a report. Names the signal.
    pub fn wait_for_stop(&mut self, report: impl Fn()) -> &'static str {
        loop {
            for signal in self.0.wait() {
                match signal {
                    SIGTERM => return "TERM",
                    SIGINT => return "INT",
                    SIGUSR1 => report(),
                    _ => tracing::warn!(
                        "HUP: the configuration is read at start only; restart to apply changes"
                    ),
                }
            }
        }
    }

    /// While the stop goes on: a second signal makes `hurry` of it, a third ends the process where it is.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn hurry_on_second(mut self, hurry: Hurry) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("kvd-signals".to_owned()).spawn(move || {
            let mut seen = 0;
            for signal in self.0.forever() {
                match signal {
                    SIGTERM | SIGINT if seen == 0 => {
                        tracing::warn!("second signal: busy connections are cut now");
                        hurry.now();
                        seen += 1;
                    }
                    // Whoever sends three wants it gone; the store survives a death at any point.
                    SIGTERM | SIGINT => end_now(signal),
                    _ => tracing::info!("the daemon is stopping"),
                }
            }
        })
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the third signal in a row means: whatever main is waiting for, do not"
)]
fn end_now(signal: i32) -> ! {
    std::process::exit(128 + signal)
}
