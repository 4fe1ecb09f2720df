//! `kvd ping`: whether a daemon answers.

use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};

/// See whether a daemon answers, and how fast
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd ping || kvd serve")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let client = common.client()?;
    let clock = kvd::clock::Clock::system();
    let asked = clock.instant();
    client.ping()?;
    let took_us = clock.instant().duration_since(asked).as_micros();
    if common.json {
        say(json!({ "answer_us": u64::try_from(took_us).unwrap_or(u64::MAX) }))?;
    } else {
        say(format_args!("the daemon answers, in {took_us} µs"))?;
    }
    Ok(Exit::Done)
}
