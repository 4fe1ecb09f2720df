//! `kvd slow-log`: which requests took long, and what for.

use std::time::Duration;

use kv_client::{SlowOrder, SlowRequest};
use kvd::units::{parse_duration, show_duration};
use serde_json::{Value, json};

use super::common::{Common, say};
use super::failure::{Exit, Outcome};
use super::show;

/// Of a key so many characters are shown in the table.
const KEY_CHARS_MAX: usize = 40;

/// Show requests that took long, and whether they waited for others or for the disk
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd slow-log                        the newest first
  kvd slow-log --slowest --limit 10   those that took longest since the daemon's start
  kvd slow-log --longer-than 100ms
  kvd slow-log --json | jq -c 'select(.lock_us > 0)'

What counts as slow is the daemon's slow_log_threshold (10ms unless configured). It remembers the newest 256 and the slowest
128. LOCK is the time spent waiting for what others held (`kvd locks`), DISK that for reads, room and stable storage; what is
left of TOOK is work, or waiting for a processor. Requests about caches that you may not use are left out.")]
pub(super) struct Args {
    /// Show at most so many
    #[arg(long, value_name = "REQUESTS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only those that took at least so long
    #[arg(long, value_name = "DURATION", default_value = "0", hide_default_value = true, value_parser = parse_duration)]
    longer_than: Duration,
    /// The slowest first, instead of the newest
    #[arg(long)]
    slowest: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let order = if args.slowest { SlowOrder::Slowest } else { SlowOrder::Newest };
    let log = common.client()?.admin().slow_log(order, args.limit, args.longer_than)?;
    if common.json {
        log.requests.iter().try_for_each(|request| say(json_line(request)))?;
        return Ok(Exit::Done);
    }
    let Some(threshold) = log.threshold.map(show_duration) else {
        say("the slow log is off: slow_log_threshold is 0")?;
        return Ok(Exit::Done);
    };
    if log.requests.is_empty() {
        let total = log.total;
        say(format_args!("nothing to show; {total} requests took {threshold} or longer since the start"))?;
        return Ok(Exit::Done);
    }
    let mut table = show::Rows::new([
        "WHEN",
        "TOOK",
        "LOCK",
        "DISK",
        "OPERATION",
        "CACHE",
        "KEY",
        "CLIENT",
        "PID",
        "ERROR",
    ]);
    for request in &log.requests {
        let time = |time: Duration| {
            if time.is_zero() { "-".to_owned() } else { show::seconds(time.as_secs_f64()) }
        };
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        table.add([
            show::time(request.ended),
            time(request.took),
            time(request.waited_lock),
            time(request.waited_disk),
            request.operation.clone(),
            or_none(request.cache.clone()),
            or_none(key(request)),
            show::escape(request.name.as_bytes()),
            request.pid.to_string(),
            request.failure.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    say(table)?;
    let total = log.total;
    say(format_args!("{} of {total} that took {threshold} or longer since the start", log.requests.len()))?;
    Ok(Exit::Done)
}

/// The key, with a mark where it was longer.
fn key(request: &SlowRequest) -> String {
    let is_cut = request.key.len() < request.key_bytes as usize;
    let mut shown = show::key_within(&request.key, KEY_CHARS_MAX);
    if is_cut && !shown.ends_with('…') {
        shown.push('…');
    }
    shown
}

fn json_line(request: &SlowRequest) -> Value {
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let mut object = serde_json::Map::new();
    show::put_bytes(&mut object, "key", &request.key);
    for (name, value) in [
        ("time", json!(show::time(request.ended))),
        ("operation", json!(request.operation)),
        ("cache", json!(request.cache)),
        ("key_bytes", json!(request.key_bytes)),
        ("took_us", json!(us(request.took))),
        ("lock_us", json!(us(request.waited_lock))),
        ("disk_us", json!(us(request.waited_disk))),
        ("client", json!(request.client)),
        ("name", json!(request.name)),
        ("uid", json!(request.uid)),
        ("pid", json!(request.pid)),
        ("error", json!(request.failure)),
    ] {
        object.insert(name.to_owned(), value);
    }
    Value::Object(object)
}
