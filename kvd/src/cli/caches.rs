//! `kvd caches`: which caches there are.

use std::time::Duration;

use kv_client::CacheInfo;
use kvd::units::{show_bytes, show_duration};
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};
use super::show;

/// List the caches
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd caches

ITEMS are those in memory; a cache on disk may hold more.")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let caches = common.client()?.admin().caches()?;
    if common.json {
        say(serde_json::Value::Array(caches.iter().map(json_row).collect()))?;
        return Ok(Exit::Done);
    }
    if caches.is_empty() {
        eprintln!("kvd: no caches yet: the first `kvd put` makes one");
        return Ok(Exit::Done);
    }
    let mut table = show::Rows::new([
        "CACHE",
        "ITEMS",
        "MEMORY",
        "ON DISK",
        "DISK",
        "TTL",
        "TTL MAX",
        "DURABILITY",
        "FROM",
    ]);
    for cache in &caches {
        let life = |life: Option<Duration>| life.map_or("forever".to_owned(), show_duration);
        table.add([
            cache.name.clone(),
            cache.resident_items.to_string(),
            show_bytes(cache.memory_bytes),
            show_bytes(cache.disk_bytes),
            show_bytes(cache.disk_bytes_max),
            life(cache.ttl_default),
            life(cache.ttl_max),
            show::durability(cache.durability).to_owned(),
            if cache.declared { "configuration" } else { "first write" }.to_owned(),
        ]);
    }
    say(table)?;
    Ok(Exit::Done)
}

fn json_row(cache: &CacheInfo) -> serde_json::Value {
    let ms = |life: Option<Duration>| life.map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX));
    json!({
        "name": cache.name,
        "declared": cache.declared,
        "memory_bytes": cache.memory_bytes,
        "disk_bytes_max": cache.disk_bytes_max,
        "resident_items": cache.resident_items,
        "disk_bytes": cache.disk_bytes,
        "ttl_default_ms": ms(cache.ttl_default),
        "ttl_max_ms": ms(cache.ttl_max),
        "durability": show::durability(cache.durability),
    })
}
