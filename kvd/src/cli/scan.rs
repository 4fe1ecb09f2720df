//! `kvd scan`: the keys of a cache; all of them, the biggest, the hottest, or how many there are of each kind.

mod survey;

use std::ffi::OsString;

use kv_client::{Entry, HotKey};
use serde_json::Value;

use super::common::{Common, bytes_of, say};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// List the keys of a cache, in order; or the biggest, the hottest, or a summary by prefix
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd scan product lego:                         keys that start with lego:
  kvd scan product --long --limit 20             with size, life and tags
  kvd scan session --json | jq -r .key           one object a line
  kvd scan product --biggest 10                  the keys with the largest values
  kvd scan product --hottest 10                  the keys read most in the last seconds
  kvd scan product --prefix-summary              how many keys and bytes each prefix has, up to the first :
  kvd scan product user: --prefix-summary --depth 2 --separator :

Each page is one state of the cache; between pages it may change. Reading all of a large cache takes a while but
holds nobody up. --biggest and --prefix-summary read all keys, without values, in bounded memory. --hottest asks the
daemon, which counts a sample of what is read in memory, over the socket or not: READS are to be compared with each other.")]
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
    /// Stop after this many keys; of a summary, show this many prefixes
    #[arg(long, value_name = "KEYS")]
    limit: Option<usize>,
    /// Show only the keys with the largest values
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..=10_000),
        conflicts_with_all = ["values", "long", "limit", "hottest", "prefix_summary"])]
    biggest: Option<u32>,
    /// Show only the keys that are read most
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..=256),
        conflicts_with_all = ["values", "long", "limit", "prefix_summary"])]
    hottest: Option<u32>,
    /// Count keys and bytes by the beginning of the key
    #[arg(long, conflicts_with_all = ["values", "long"])]
    prefix_summary: bool,
    /// What ends a prefix
    #[arg(long, default_value = ":", requires = "prefix_summary")]
    separator: String,
    /// A prefix ends at the so-manyth separator
    #[arg(long, default_value_t = 1, requires = "prefix_summary", value_parser = clap::value_parser!(u32).range(1..=16))]
    depth: u32,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let prefix = bytes_of(&args.prefix, args.escaped)?;
    if args.prefix_summary && args.separator.is_empty() {
        return Err(Failure::Usage("the separator is empty: give one or more characters".to_owned()));
    }
    if let Some(count) = args.hottest {
        return print_hottest(common, args, &prefix, count);
    }
    if let Some(count) = args.biggest {
        return survey::print_biggest(common, &args.cache, &prefix, count as usize);
    }
    if args.prefix_summary {
        let cut = survey::Cut { separator: args.separator.as_bytes(), depth: args.depth as usize };
        return survey::print_prefixes(common, &args.cache, &prefix, cut, args.limit.unwrap_or(20));
    }
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

fn print_hottest(common: &Common, args: &Args, prefix: &[u8], count: u32) -> Outcome {
    // Of a prefix only what is among the hottest of all.
    let asked = if prefix.is_empty() { count } else { kv_proto::limits::HOT_KEYS_MAX as u32 };
    let mut keys = common.client()?.admin().hottest(Some(&args.cache), asked)?;
    keys.retain(|key| key.key.starts_with(prefix));
    keys.truncate(count as usize);
    if common.json {
        keys.iter().try_for_each(|key| say(hot_json(key)))?;
        return Ok(Exit::Done);
    }
    if keys.is_empty() {
        say("nothing was read lately")?;
        return Ok(Exit::Done);
    }
    let mut table = show::Rows::new(["READS", "VALUE", "KEY"]);
    for key in &keys {
        let bytes = kvd::units::show_bytes(u64::from(key.value_bytes));
        table.add([show::count(key.reads as f64), bytes, show::escape(&key.key)]);
    }
    say(table)?;
    Ok(Exit::Done)
}

fn hot_json(key: &HotKey) -> Value {
    let mut object = serde_json::Map::new();
    show::put_bytes(&mut object, "key", &key.key);
    object.insert("cache".to_owned(), key.cache.clone().into());
    object.insert("reads".to_owned(), key.reads.into());
    object.insert("value_bytes".to_owned(), key.value_bytes.into());
    Value::Object(object)
}
