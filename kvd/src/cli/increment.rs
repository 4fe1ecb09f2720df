//! `kvd increment`: adds to a counter.

use std::time::Duration;

use kv_client::Initial;
use kvd::units::parse_duration;
use serde_json::json;

use super::common::{Common, Place, say};
use super::failure::{Exit, Outcome};

/// Add to a counter, and show it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd increment visits 203.0.113.9 --ttl 1m      the life counts from its creation
  kvd increment stock 42 -3 --initial 100        begins at 100 when there is none")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// How much to add
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    by: i64,
    /// Where a new counter begins, instead of adding. Else at BY
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    initial: Option<i64>,
    /// How long a new counter lives. Else the cache's default
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Answer only when it survives power loss
    #[arg(long)]
    durable: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let mut initial = Initial::value(args.initial.unwrap_or(args.by));
    if let Some(ttl) = args.ttl {
        initial = initial.ttl(ttl);
    }
    if args.durable {
        initial = initial.durable();
    }
    let value = common.cache(&args.place.cache)?.increment(args.place.key()?, args.by, initial)?;
    if common.json {
        say(json!({ "value": value }))?
    } else {
        say(value)?
    }
    Ok(Exit::Done)
}
