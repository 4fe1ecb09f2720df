//! `kvd clear`: makes many items gone or stale at once, or those of an age, piece by piece.
//!
//! What a stamp can say (a cache, a tag, a prefix, everything) happens at once. What depends on the items themselves is
//! looked for by a scan, and each is cleared only if it still is what the scan saw.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use clap::ArgGroup;
use kv_client::blocking::{Client, Scan};
use kv_client::{Effect, Entry};
use kvd::units::{parse_duration, show_bytes};
use serde_json::json;

use super::common::{Common, confirm, say};
use super::failure::{Exit, Failure, Outcome};
use super::offline::Offline;
use super::progress::Progress;
use super::put::say_version;

/// Items looked at, and cleared, in one step: some hundred microseconds during which others wait.
const ITEMS_A_STEP: u32 = 256;

/// Make a cache, a tag, a prefix, everything, or what is old gone, or stale
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("what").args(["cache", "tag", "all"]).required(true).multiple(true),
    after_help = "\
Examples:
  kvd clear page                         one cache; asks first, and a script must say --yes
  kvd clear --tag sku:42                 what has this tag, in all caches
  kvd clear page --tag sku:42            what has this tag, in one cache
  kvd clear page --prefix /toys/         keys that start so
  kvd clear --all --stale --yes          everything stays servable as stale while one worker each reloads it
  kvd clear page --older-than 2h         what was put, or given a new life, longer ago
  kvd clear --all --expired              what is past its life and kept to be served as stale
  kvd clear page --dry-run               how many items that would be
  kvd clear page --offline --dir /srv/kvd --yes     while no daemon serves that directory

At once and whole, however many items it is; with --older-than and --expired piece by piece while all is served, and
nothing that was written since it was looked at is touched. `flush` is no command here: to make writes durable use
`kvd sync`."
)]
pub(super) struct Args {
    /// The cache
    cache: Option<String>,
    /// Items with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<OsString>,
    /// Items whose keys start so
    #[arg(long, value_name = "PREFIX", requires = "cache", conflicts_with = "tag")]
    prefix: Option<OsString>,
    /// Everything in all caches
    #[arg(long, conflicts_with_all = ["cache", "tag", "prefix"])]
    all: bool,
    /// Keep items servable as stale until they are reloaded or their own life ends
    #[arg(long)]
    stale: bool,
    /// Of these, only what was put, or given a new life, longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// Of these, only what is past its life and kept to be served as stale
    #[arg(long, conflicts_with = "stale")]
    expired: bool,
    /// Only say how many items it would be
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    offline: Offline,
}

/// What was looked at, and what of it was, or would be, cleared.
#[derive(Debug, Default)]
struct Counts {
    looked_at: u64,
    items: u64,
    bytes: u64,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let way = args.offline.open(common)?;
    let done = clear(common, args, &way.client());
    way.close(done)
}

fn clear(common: &Common, args: &Args, client: &Client) -> Outcome {
    if args.dry_run || args.older_than.is_some() || args.expired {
        return clear_by_scan(common, args, client);
    }
    let effect = args.effect();
    let version = match (&args.cache, &args.tag, &args.prefix) {
        (Some(cache), Some(tag), _) => client.cache(cache).clear_tag(tag.as_bytes(), effect)?,
        (Some(cache), None, Some(prefix)) => client.cache(cache).clear_prefix(prefix.as_bytes(), effect)?,
        (Some(cache), None, None) => {
            confirm_whole(args, client)?;
            client.cache(cache).clear(effect)?
        }
        (None, Some(tag), _) => client.clear_tag(tag.as_bytes(), effect)?,
        (None, None, _) if args.all => {
            confirm_whole(args, client)?;
            client.clear_all(effect)?
        }
        (None, None, _) => return Err(Failure::Usage("say what to clear: CACHE, --tag or --all".to_owned())),
    };
    say_version(common, version).map(|()| Exit::Done)
}

impl Args {
    fn effect(&self) -> Effect {
        if self.stale { Effect::Stale } else { Effect::Gone }
    }

    /// Whether an item that a scan found is meant. The scan saw to its prefix.
    fn means(&self, entry: &Entry) -> bool {
        let has_tag = |tag: &OsString| entry.tags.iter().any(|has| has == tag.as_bytes());
        self.tag.as_ref().is_none_or(has_tag)
            && self.older_than.is_none_or(|age| entry.age >= age)
            && (!self.expired || entry.expires_in_ms.is_some_and(|ms| ms <= 0))
    }

    fn scan(&self, client: &Client, cache: &str) -> Scan {
        let prefix = self.prefix.as_ref().map_or(&b""[..], |prefix| prefix.as_bytes());
        let scan = client.cache(cache).scan(prefix).keys_max(ITEMS_A_STEP);
        // What is stale already has nothing to become.
        if self.stale { scan } else { scan.stale() }
    }
}

/// Asks about a whole cache, or all of them, saying how much that is.
fn confirm_whole(args: &Args, client: &Client) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    let becomes = if args.stale { "stale" } else { "gone" };
    let mut meant = client.admin().caches()?;
    let what = match &args.cache {
        Some(name) => {
            meant.retain(|cache| cache.name == *name);
            if meant.is_empty() {
                return Err(Failure::no_cache(name));
            }
            format!("cache {name}")
        }
        None => format!("all {} caches", meant.len()),
    };
    let items: u64 = meant.iter().map(|cache| cache.resident_items).sum();
    let bytes = show_bytes(meant.iter().map(|cache| cache.disk_bytes).sum());
    let question = format!("Make {what} {becomes}, {items} items in memory and {bytes} on disk");
    confirm(&question, "--dry-run", false)
}

fn clear_by_scan(common: &Common, args: &Args, client: &Client) -> Outcome {
    let caches = match &args.cache {
        Some(cache) => vec![cache.clone()],
        None => client.admin().caches()?.into_iter().map(|cache| cache.name).collect(),
    };
    let progress = Progress::endless(if args.dry_run { "counting" } else { "clearing" });
    let mut all = Counts::default();
    let mut rows = Vec::new();
    for cache in &caches {
        let mut counts = Counts::default();
        step_through(args, client, cache, &mut counts, &progress)?;
        all.looked_at += counts.looked_at;
        all.items += counts.items;
        all.bytes += counts.bytes;
        rows.push(json!({ "cache": cache, "items": counts.items, "bytes": counts.bytes }));
    }
    drop(progress);
    if common.json {
        let (items, bytes, looked_at) = (all.items, all.bytes, all.looked_at);
        say(
            json!({ "dry_run": args.dry_run, "items": items, "bytes": bytes, "looked_at": looked_at, "caches": rows }),
        )?;
    } else {
        let verb = match (args.dry_run, args.stale) {
            (true, _) => "would be cleared",
            (false, true) => "made stale",
            (false, false) => "cleared",
        };
        let bytes = show_bytes(all.bytes);
        say(format_args!("{} of {} items {verb}, {bytes} of keys and values", all.items, all.looked_at))?;
    }
    Ok(Exit::Done)
}

fn step_through(
    args: &Args,
    client: &Client,
    cache: &str,
    counts: &mut Counts,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut scan = args.scan(client, cache);
    while let Some(page) = scan.next_page()? {
        counts.looked_at += page.items.len() as u64;
        let meant: Vec<_> = page.items.iter().filter(|(_, entry)| args.means(entry)).collect();
        let seen: Vec<_> = meant.iter().map(|(key, entry)| (key, entry.version)).collect();
        let cleared = if args.dry_run || seen.is_empty() {
            seen.len() as u64
        } else {
            u64::from(client.cache(cache).clear_versions(&seen, args.effect())?)
        };
        counts.items += cleared;
        // Those that somebody wrote meanwhile are few; which they were is not told.
        let bytes: u64 =
            meant.iter().map(|(key, entry)| key.len() as u64 + u64::from(entry.value_bytes)).sum();
        counts.bytes += bytes * cleared / (seen.len() as u64).max(1);
        progress.say(format!("{cache}: {} of {} items", counts.items, counts.looked_at));
    }
    Ok(())
}
