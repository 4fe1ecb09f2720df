//! `kvd restart`: a new process takes over, with the same socket and the same memory.

use std::time::{Duration, Instant};

use kv_client::{Error, Restart, RestartState};
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};
use kvd::units::show_bytes;

/// How often it is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Copying memory takes its time; the daemon itself gives up before this.
const WAIT_MAX: Duration = Duration::from_secs(240);

/// Restart the daemon in place: the binary and the configuration of now, the same memory, no failed request
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd restart                   after an upgrade, or for settings that `kvd reload` cannot take over
  kvd restart --clear page      the same, and this cache is empty afterwards

A new process copies the memory while the old one serves; then clients wait, for less than 300 ms with 256 MiB in memory.
Room for both copies is needed. If the new process cannot take over, the old one serves on and the reason is printed
(exit code 70). Open transactions end with an error that is worth another try. It is for the daemon's own user and root.

The process that was started first ends: systemd is told which one serves now. Where something else watches that process, as
in a container, stop and start instead.")]
pub(super) struct Args {
    /// Empty this cache in the same step; may be given several times
    #[arg(long, value_name = "CACHE")]
    clear: Vec<String>,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let client = common.client()?;
    let clear: Vec<&str> = args.clear.iter().map(String::as_str).collect();
    let number = client.admin().restart(&clear)?;
    let deadline = Instant::now() + WAIT_MAX;
    let last = loop {
        std::thread::sleep(LOOK_EVERY);
        let last = client.admin().last_restart()?;
        match last.state {
            RestartState::Running if Instant::now() < deadline => {}
            RestartState::Running => {
                return Err(Failure::Client(Error::Timeout { waited: WAIT_MAX, maybe_applied: true }));
            }
            RestartState::Never | RestartState::Done | RestartState::Failed => break last,
        }
    };
    if last.number != number {
        let message = "both processes died, and another daemon was started: look at its log".to_owned();
        return Err(Failure::Daemon { message, exit: Exit::Daemon });
    }
    tell(common, &last)?;
    match last.state {
        RestartState::Done => Ok(Exit::Done),
        RestartState::Never | RestartState::Running | RestartState::Failed => {
            let (pid, why) = (last.pid, last.message.replace('\n', " "));
            Err(Failure::Daemon { message: format!("process {pid} serves on: {why}"), exit: Exit::Daemon })
        }
    }
}

fn tell(common: &Common, last: &Restart) -> Result<(), Failure> {
    let (paused_us, took_ms) = (last.paused.as_micros(), last.took.as_millis());
    if common.json {
        return say(json!({
            "restarted": last.state == RestartState::Done,
            "pid": last.pid,
            "paused_us": paused_us,
            "took_ms": took_ms,
            "items": last.items,
            "bytes": last.bytes,
            "message": last.message,
        }));
    }
    if last.state == RestartState::Done {
        let (items, bytes, ms) = (last.items, show_bytes(last.bytes), paused_us as f64 / 1_000.0);
        say(format_args!(
            "process {} serves, with {items} items in {bytes} of memory; clients waited {ms:.1} ms of {took_ms} ms",
            last.pid
        ))?;
        if !last.message.is_empty() {
            say(&last.message)?;
        }
    }
    Ok(())
}
