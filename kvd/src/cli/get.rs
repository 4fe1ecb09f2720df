//! `kvd get`: the value of a key.

use std::time::Duration;

use kv_client::blocking::Cache;
use kv_client::{Freshness, Sliding};
use kvd::units::parse_duration;
use serde_json::Value;

use super::common::{Common, Place, say, say_raw};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// Show the value of an item
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd get product 42
  kvd get page /index.html --raw > index.html
  kvd get session 7f3a --slide 30m           give it 30 minutes more while it is used")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// Print the value's bytes and nothing else, not even a line break
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Show it also when it is stale
    #[arg(long)]
    stale: bool,
    /// Give the item this life from now if less of it is left
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "stale")]
    slide: Option<Duration>,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let (cache, key) = (common.cache(&args.place.cache)?, args.place.key()?);
    if common.json || args.stale {
        return show_entry(common, args, &cache, &key);
    }
    let value = match args.slide {
        Some(ttl) => cache.get_sliding(&key, Sliding { below: ttl, ttl })?,
        None => cache.get(&key)?,
    };
    let Some(value) = value else { return missing(&args.place) };
    print_value(&value, args.raw)?;
    Ok(Exit::Done)
}

/// With what is known about the item: to show it in JSON, or to tell a stale one from none.
fn show_entry(common: &Common, args: &Args, cache: &Cache, key: &[u8]) -> Outcome {
    if let Some(ttl) = args.slide {
        cache.get_sliding(key, Sliding { below: ttl, ttl })?;
    }
    let entry = cache.get_entry(key)?.filter(|entry| args.stale || entry.freshness == Freshness::Fresh);
    let Some(entry) = entry else { return missing(&args.place) };
    if common.json {
        let mut object = show::entry_json(key, &entry);
        show::put_bytes(&mut object, "value", &entry.value);
        say(Value::Object(object))?;
    } else {
        print_value(&entry.value, args.raw)?;
    }
    Ok(Exit::Done)
}

/// Prints a value for a person, or its bytes.
pub(super) fn print_value(value: &[u8], is_raw: bool) -> Result<(), Failure> {
    if is_raw { say_raw(value) } else { say(show::value(value)) }
}

/// Says that there is no such item.
pub(super) fn missing(place: &Place) -> Outcome {
    eprintln!("kvd: {} has no item {}", place.cache, show::escape(&place.key()?));
    Ok(Exit::NotFound)
}
