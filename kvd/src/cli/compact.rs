//! `kvd compact`: gives back what the store's file does not need, while the daemon serves.

use kvd::units::show_bytes;
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};
use super::progress::Progress;

/// Make the store's file as small as what is in it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd compact                    bytes before and after, and the longest that a write had to wait

What lives is copied into a new file, which then takes the old one's place; everything is served meanwhile. It needs room
for the new file beside the old one, and looks for that first. Killed at any moment, one whole store is there.")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let progress = Progress::towards("compacting", 0);
    let compacted = common.client()?.admin().compact(|done, total| {
        if total > 0 {
            progress.at(done, total);
        }
    })?;
    drop(progress);
    let (before, after) = (compacted.bytes_before, compacted.bytes_after);
    let pause_us = u64::try_from(compacted.pause.as_micros()).unwrap_or(u64::MAX);
    if common.json {
        say(json!({ "bytes_before": before, "bytes_after": after, "pause_us": pause_us }))?;
    } else {
        let (before, after, pause_ms) = (show_bytes(before), show_bytes(after), pause_us as f64 / 1e3);
        say(format_args!("{before} before, {after} after; no flush waited longer than {pause_ms:.1} ms"))?;
    }
    Ok(Exit::Done)
}
