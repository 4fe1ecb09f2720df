//! `kvd reload`: lets the daemon read its configuration again.

use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};

/// Let the daemon read its configuration again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd reload && kvd restart    what a running daemon can take over, then the rest

The configuration is checked whole before anything changes: one that does not hold together changes nothing, and the reason
is printed (exit code 4). Taken over at once: memory, [default], access, connections_max, connections_per_user_max,
idle_timeout, slow_log_threshold, log. What needs a restart is listed; `kvd restart` makes it so without stopping service.
HUP does the same; its outcome is in the log.")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let reloaded = common.client()?.admin().reload()?;
    if common.json {
        say(json!({ "applied": reloaded.applied, "needs_restart": reloaded.needs_restart }))?;
        return Ok(Exit::Done);
    }
    if reloaded.applied.is_empty() && reloaded.needs_restart.is_empty() {
        say("nothing has changed")?;
    }
    for change in &reloaded.applied {
        say(change)?;
    }
    for change in &reloaded.needs_restart {
        say(format_args!("{change} (needs `kvd restart`)"))?;
    }
    Ok(Exit::Done)
}
