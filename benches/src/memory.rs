//! `bench memory`: what a small item costs beside its key and its value.
//!
//! Called by `bin/bench`. A server is filled with a million small items over its socket; what of it is resident then, less keys
//! and values, is divided by the items. Programs and empty tables count too. Nothing here measures time.

use crate::BenchError;
use crate::client::{held, load};
use crate::peers::{Kind, Places, Server};
use crate::protocol::{KEY_PREFIX, Shape};

const ITEMS: u64 = 1_000_000;
const SHAPE: Shape = Shape { key_digits: 12, value_bytes: 100 };
const KINDS: [Kind; 3] = [Kind::KvdMemory, Kind::Memcached, Kind::Redis];
/// An index of a fixed size forgets some of what it is filled with.
const ITEMS_MIN: u64 = ITEMS / 100 * 99;
const ITEM_BYTES: u64 = KEY_PREFIX.len() as u64 + SHAPE.key_digits as u64 + SHAPE.value_bytes as u64;
const OVERHEAD_BYTES_MAX: f64 = 48.0;

/// Fills each server that is installed, and prints a line each, then the goal.
///
/// # Errors
/// When a server does not start or refuses an item.
pub fn run(places: &Places) -> Result<(), BenchError> {
    println!("memory: {ITEMS} items of {ITEM_BYTES} bytes of key and value\n");
    println!(
        "| | empty, MiB | filled, MiB | items | bytes an item beside key and value |\n|---|---|---|---|---|"
    );
    let mut goal = None;
    for kind in KINDS {
        if let Err(reason) = kind.version(places) {
            println!("SKIP {}: {reason}", kind.name());
            continue;
        }
        let server = Server::start(kind, places)?;
        let empty = server.resident_bytes();
        load(kind.wire(), server.socket(), SHAPE, ITEMS)?;
        let filled = server.resident_bytes();
        let found = held(kind.wire(), server.socket(), SHAPE, ITEMS)?;
        if found < ITEMS_MIN {
            return Err(BenchError::Server {
                server: kind.name(),
                what: format!("has only {found} of {ITEMS} items"),
            });
        }
        let overhead = (filled as f64 - (found * ITEM_BYTES) as f64) / found as f64;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!("| {} | {:.1} | {:.1} | {found} | {overhead:.1} |", kind.name(), mib(empty), mib(filled));
        if kind == Kind::KvdMemory {
            goal = Some(overhead);
        }
    }
    if let Some(overhead) = goal {
        let verdict = if overhead <= OVERHEAD_BYTES_MAX { "met" } else { "missed" };
        println!("GOAL memory.item {overhead:.1} {OVERHEAD_BYTES_MAX:?} {verdict}");
    }
    Ok(())
}
