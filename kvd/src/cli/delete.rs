//! `kvd delete`: removes an item.

use serde_json::json;

use super::common::{Common, Place, say};
use super::failure::{Exit, Outcome};
use super::get::missing;

/// Delete an item
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd delete product 42           exit code 1 when it was not there")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let was_there = common.cache(&args.place.cache)?.delete(args.place.key()?)?;
    if common.json {
        say(json!({ "deleted": was_there }))?;
    }
    if was_there { Ok(Exit::Done) } else { missing(&args.place) }
}
