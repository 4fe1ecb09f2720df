//! `kvd stop`: asks the daemon to stop, and waits until it has.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};

/// How often it is looked whether the daemon is gone.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Stop the daemon, and wait until it is gone
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd stop                 what was sent is answered, everything is written
  kvd stop --timeout 1m    wait longer for a slow disk

It is for the daemon's own user and root. Exit code 70: the daemon still writes when the time is up; it goes on stopping.
Where systemd looks after the daemon: systemctl stop kvd.")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let began = Instant::now();
    let stopping = common.client()?.admin().shutdown()?;
    let deadline = began + common.timeout;
    while !is_free(&stopping.lock).map_err(|source| Failure::Input {
        what: format!("{}: cannot be looked at", stopping.lock.display()),
        source,
    })? {
        if Instant::now() >= deadline {
            let (pid, waited) = (stopping.pid, common.timeout);
            return Err(Failure::Daemon {
                message: format!(
                    "process {pid} still stops after {waited:?}: wait with --timeout, or look at its log"
                ),
                exit: Exit::Daemon,
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let took_ms = began.elapsed().as_millis();
    if common.json {
        say(json!({ "pid": stopping.pid, "took_ms": took_ms }))?;
    } else {
        say(format_args!("stopped process {} in {took_ms} ms", stopping.pid))?;
    }
    Ok(Exit::Done)
}

/// Whether nobody holds the lock any more. It is given back at once: a daemon that starts waits a moment for it.
fn is_free(lock: &Path) -> std::io::Result<bool> {
    let file = match File::open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
