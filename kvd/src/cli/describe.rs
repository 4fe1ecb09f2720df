//! `kvd describe`: all about an item but its value.

use kvd::units::{show_bytes, show_duration};
use serde_json::Value;

use super::common::{Common, Place, say};
use super::failure::{Exit, Outcome};
use super::get::missing;
use super::show;

/// Show all about an item but its value, stale ones too
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd describe product 42")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let key = args.place.key()?;
    let Some(entry) = common.cache(&args.place.cache)?.describe(&key)? else { return missing(&args.place) };
    if common.json {
        say(Value::Object(show::entry_json(&key, &entry)))?;
        return Ok(Exit::Done);
    }
    let tags: Vec<String> = entry.tags.iter().map(|tag| show::escape(tag)).collect();
    for (name, value) in [
        ("key", show::escape(&key)),
        ("state", show::freshness(entry.freshness).to_owned()),
        ("expires in", show::expires_in(entry.expires_in_ms)),
        ("stale for", show_duration(entry.stale_for)),
        ("value", show_bytes(u64::from(entry.value_bytes))),
        ("version", entry.version.to_string()),
        ("age", show_duration(entry.age)),
        ("load cost", show_duration(entry.load_cost)),
        ("tags", if tags.is_empty() { "none".to_owned() } else { tags.join(" ") }),
    ] {
        say(format_args!("{name:<11} {value}"))?;
    }
    Ok(Exit::Done)
}
