//! Signals: TERM and INT stop the daemon; HUP, USR1 and USR2 ask something of it.
//!
//! `cli::serve` installs them before it starts anything; a thread of theirs turns them into orders. QUIT, ABRT and KILL need no
//! handling: the store survives them.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator;

use crate::orders::{Order, Orders};

/// Signals to stop after which the process ends where it is.
const STOPS_MAX: u32 = 3;

/// The signals of this process, queued from when they were installed.
#[derive(Debug)]
pub struct Signals(iterator::Signals);

impl Signals {
    /// From now on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn install() -> std::io::Result<Signals> {
        Ok(Signals(iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?))
    }

    /// Turns them into orders, on a thread that lives as long as the process.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn forward(mut self, orders: Arc<Orders>) -> std::io::Result<()> {
        let forward = move || {
            for signal in self.0.forever() {
                let given = match signal {
                    SIGTERM | SIGINT => {
                        stop(&orders, signal);
                        continue;
                    }
                    SIGHUP => orders.give(Order::Reload(None)),
                    SIGUSR1 => orders.give(Order::Report),
                    _ => orders.restart(Vec::new()).map(drop),
                };
                if let Err(why) = given {
                    tracing::warn!(signal, %why, "a signal was not heeded");
                }
            }
        };
        std::thread::Builder::new().name("kvd-signals".to_owned()).spawn(forward).map(drop)
    }
}

/// The first stops, the second hurries, the third ends the process: whoever sends three wants it gone, and the store survives a
/// death at any point.
fn stop(orders: &Orders, signal: i32) {
    let name = if signal == SIGTERM { "TERM" } else { "INT" };
    match orders.stop_by_signal(name) {
        1 => {}
        STOPS_MAX.. => end_now(signal),
        _ => tracing::warn!("second signal: busy connections are cut now"),
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the third signal in a row means: whatever main is waiting for, do not"
)]
fn end_now(signal: i32) -> ! {
    std::process::exit(128 + signal)
}
