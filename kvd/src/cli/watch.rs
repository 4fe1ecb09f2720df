//! `kvd watch`: changes as they happen.

use std::ffi::OsString;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use kv_client::{Change, ClearedScope, Effect, Error};
use serde_json::{Map, Value, json};

use super::common::{Common, bytes_of, on_interrupt, say};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// How often it looks whether it was interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often it looks whether a daemon that went away is back.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// Show changes as they happen: what is put, removed, cleared or dropped
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd watch
  kvd watch --cache product --prefix lego:
  kvd watch --json --count 100 | jq -r .key

Goes on until Ctrl-C, or for --count changes; exit code 0 then. The engine never waits for a watcher: what it cannot keep up
with is left out, and counted. Expiry is no change: nothing happens when it comes. If the daemon goes away this waits for it.")]
pub(super) struct Args {
    /// Only this cache
    #[arg(long)]
    cache: Option<String>,
    /// Only keys that start so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: OsString,
    /// PREFIX is written as this command shows keys: \n, \\, \xff
    #[arg(long)]
    escaped: bool,
    /// Stop after so many changes
    #[arg(long, value_name = "CHANGES", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let prefix = bytes_of(&args.prefix, args.escaped)?;
    let is_over = on_interrupt()?;
    let clock = kvd::clock::Clock::system();
    let mut watch = common.client()?.watch(args.cache.as_deref(), prefix)?;
    let mut seen = Seen::default();
    let mut is_away = false;
    while !is_over.load(Ordering::Relaxed) && args.count.is_none_or(|count| seen.changes < count) {
        match watch.next_within(LOOK_EVERY) {
            Ok(None) => {}
            Ok(Some(change)) => {
                is_away = false;
                seen.note(&change);
                let now = SystemTime::UNIX_EPOCH
                    + Duration::from_millis(u64::try_from(clock.wall_ms()).unwrap_or(0));
                say(if common.json { json_line(&change, now).to_string() } else { line(&change, now) })?;
            }
            Err(error) if is_outage(&error) => {
                if !std::mem::replace(&mut is_away, true) {
                    eprintln!("kvd: the daemon is away, looking for it");
                }
                std::thread::sleep(RETRY_EVERY);
            }
            Err(error) => return Err(Failure::Client(error)),
        }
    }
    eprintln!("kvd: {seen}");
    Ok(Exit::Done)
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), kv_client::ErrorKind::Unavailable | kv_client::ErrorKind::Timeout)
}

/// How many there were.
#[derive(Default)]
struct Seen {
    changes: u64,
    missed: u64,
    gaps: u64,
}

impl Seen {
    fn note(&mut self, change: &Change) {
        match change {
            Change::Missed { at_least: 0 } => self.gaps += 1,
            Change::Missed { at_least } => self.missed += at_least,
            Change::Put { .. } | Change::Removed { .. } | Change::Cleared { .. } | Change::Dropped { .. } => {
                self.changes += 1;
            }
            // Whatever newer daemons tell is a change.
            _ => self.changes += 1,
        }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} changes, {} missed", self.changes, self.missed)?;
        match self.gaps {
            0 => Ok(()),
            gaps => write!(f, ", and those while the daemon was away ({gaps} times)"),
        }
    }
}

/// What happened in a word, and what it happened to.
fn line(change: &Change, now: SystemTime) -> String {
    let effect = |effect: &Effect| match effect {
        Effect::Gone => "gone",
        Effect::Stale => "stale",
    };
    let what = match change {
        Change::Put { cache, key, value_bytes, .. } => {
            format!("put      {cache}  {}  {value_bytes} bytes", show::escape(key))
        }
        Change::Removed { cache, key, .. } => format!("removed  {cache}  {}", show::escape(key)),
        Change::Cleared { cache, scope, effect: made, .. } => {
            let which = match scope {
                ClearedScope::All => "everything".to_owned(),
                ClearedScope::Prefix(prefix) => format!("prefix {}", show::escape(prefix)),
                ClearedScope::Tag(tag) => format!("tag {}", show::escape(tag)),
            };
            format!("cleared  {cache}  {which}, now {}", effect(made))
        }
        Change::Dropped { cache, .. } => format!("dropped  {cache}"),
        Change::Missed { at_least: 0 } => "missed   what changed while the daemon was away".to_owned(),
        Change::Missed { at_least } => format!("missed   {at_least} changes: this watcher did not keep up"),
        other => format!("{other:?}"),
    };
    format!("{}  {what}", show::time(now))
}

fn json_line(change: &Change, now: SystemTime) -> Value {
    let mut object = Map::new();
    object.insert("time".to_owned(), json!(show::time(now)));
    let mut add = |name: &str, value: Value| object.insert(name.to_owned(), value);
    match change {
        Change::Put { cache, key, version, value_bytes } => {
            add("change", json!("put"));
            add("cache", json!(cache));
            add("version", json!(version));
            add("value_bytes", json!(value_bytes));
            show::put_bytes(&mut object, "key", key);
        }
        Change::Removed { cache, key, version } => {
            add("change", json!("removed"));
            add("cache", json!(cache));
            add("version", json!(version));
            show::put_bytes(&mut object, "key", key);
        }
        Change::Cleared { cache, scope, effect, version } => {
            add("change", json!("cleared"));
            add("cache", json!(cache));
            add("version", json!(version));
            add("stale", json!(*effect == Effect::Stale));
            match scope {
                ClearedScope::All => {}
                ClearedScope::Prefix(prefix) => show::put_bytes(&mut object, "prefix", prefix),
                ClearedScope::Tag(tag) => show::put_bytes(&mut object, "tag", tag),
            }
        }
        Change::Dropped { cache, version } => {
            add("change", json!("dropped"));
            add("cache", json!(cache));
            add("version", json!(version));
        }
        Change::Missed { at_least } => {
            add("change", json!("missed"));
            add("at_least", json!(at_least));
        }
        other => {
            add("change", json!(format!("{other:?}")));
        }
    }
    Value::Object(object)
}
