//! `kvd scan`: the keys of a cache.

use std::ffi::OsString;

use kv_client::Entry;
use serde_json::Value;

use super::common::{Common, bytes_of, say};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// List the keys of a cache, in order
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd scan product lego:                         keys that start with lego:
  kvd scan product --long --limit 20             with size, life and tags
  kvd scan session --json | jq -r .key           one object a line

Each page is one state of the cache; between pages it may change. Reading all of a large cache takes a while but
holds nobody up.")]
pub(super) struct Args {
    /// The cache
    cache: String,
    /// Only keys that start so
    #[arg(default_value = "")]
    prefix: OsString,
    /// PREFIX is written as this command shows keys: \n, \\, \xff
    #[arg(long)]
    escaped: bool,
    /// Show values too, behind a tab
    #[arg(long, conflicts_with = "long")]
    values: bool,
    /// Show size, remaining life, state and tags too
    #[arg(long, short)]
    long: bool,
    /// Stop after this many keys
    #[arg(long, value_name = "KEYS")]
    limit: Option<usize>,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let prefix = bytes_of(&args.prefix, args.escaped)?;
    let mut scan = common.cache(&args.cache)?.scan(&prefix);
    if args.values {
        scan = scan.values();
    }
    let mut left = args.limit.unwrap_or(usize::MAX);
    if let Ok(limit) = u32::try_from(left) {
        scan = scan.keys_max(limit.clamp(1, 1_024));
    }
    while left > 0 {
        let Some(page) = scan.next_page()? else { break };
        for (key, entry) in page.items.iter().take(left) {
            print_row(common, args, key, entry)?;
        }
        left = left.saturating_sub(page.items.len());
    }
    Ok(Exit::Done)
}

fn print_row(common: &Common, args: &Args, key: &[u8], entry: &Entry) -> Result<(), Failure> {
    if common.json {
        let mut object = show::entry_json(key, entry);
        if args.values {
            show::put_bytes(&mut object, "value", &entry.value);
        }
        return say(Value::Object(object));
    }
    let key = show::escape(key);
    if args.values {
        return say(format_args!("{key}\t{}", show::escape(&entry.value)));
    }
    if args.long {
        let tags: Vec<String> = entry.tags.iter().map(|tag| show::escape(tag)).collect();
        let life = show::expires_in(entry.expires_in_ms);
        let (bytes, state) = (entry.value_bytes, show::freshness(entry.freshness));
        return say(format_args!("{bytes:>10}  {life:>10}  {state}  {key}  {}", tags.join(" ")));
    }
    say(key)
}
