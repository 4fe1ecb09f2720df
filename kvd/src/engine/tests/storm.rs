//! Loaders and invalidators at once: what was invalidated never comes back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_proto::wire::{Bytes, Effect, Expiry, PutOptions, Request, Scope};

use super::{Got, House, house};

const KEYS: [&str; 3] = ["a", "b", "c"];
const STORM: Duration = Duration::from_millis(1_500);

/// The truth behind the cache: a number a key, that only grows.
type Database = [AtomicU64; KEYS.len()];

fn load(house: &House, database: &Database, is_over: &AtomicBool, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut somebody, mut loads) = (house.somebody(), 0);
    while !is_over.load(Ordering::Relaxed) {
        let key = random.usize(..KEYS.len());
        let life_ms = if random.u8(..) < 40 { 0 } else { 10_000 };
        match somebody.lease_for(KEYS[key], random.u32(..3), life_ms, &[]) {
            Got::Leased(lease, _) => {
                let value = database[key].load(Ordering::SeqCst).to_string();
                for _ in 0..random.u8(..4) {
                    std::thread::yield_now();
                }
                let options = PutOptions { tags: vec![Bytes(b"all")], ..PutOptions::default() };
                match random.u8(..10) {
                    0 => somebody.abandon(lease, 0),
                    1 => somebody = house.somebody(),
                    _ => drop(somebody.fill_with(lease, &value, options).unwrap()),
                }
                loads += 1;
            }
            Got::Hit(..) | Got::Busy => {}
            Got::Alone => panic!("nobody holds anything while it asks"),
        }
    }
    loads
}

fn invalidate(house: &House, database: &Database, is_over: &AtomicBool, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut somebody = house.somebody();
    while !is_over.load(Ordering::Relaxed) {
        let key = random.usize(..KEYS.len());
        let written = database[key].fetch_add(1, Ordering::SeqCst) + 1;
        let (cache, name) = ("c", KEYS[key].as_bytes());
        match random.u8(..6) {
            0 => somebody.clear(Scope::Tag { cache: Some(cache), tag: b"all" }, Effect::Gone),
            1 => somebody.clear(Scope::Cache(cache), Effect::Stale),
            2 => drop(somebody.say(Request::Expire { cache, key: name, expiry: Expiry::Now })),
            3 => drop(somebody.say(Request::Take { cache, key: name })),
            _ => drop(somebody.say(Request::Delete { cache, key: name })),
        }
        if let Some(value) = somebody.get(KEYS[key]) {
            let value: u64 = value.parse().unwrap();
            assert!(value >= written, "{value} was loaded before {written} was invalidated");
        }
        std::thread::yield_now();
    }
}

#[test]
fn no_fill_ever_brings_back_what_was_invalidated() {
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    let (house, database, is_over) = (house(), Database::default(), AtomicBool::new(false));
    house.somebody().put("before", "v");
    let (house, database, is_over) = (&house, &database, &is_over);
    std::thread::scope(|scope| {
        let loaders: Vec<_> =
            (0..4).map(|n| scope.spawn(move || load(house, database, is_over, seed ^ n))).collect();
        let others: Vec<_> =
            (4..6).map(|n| scope.spawn(move || invalidate(house, database, is_over, seed ^ n))).collect();
        let until = Instant::now() + STORM;
        while Instant::now() < until && !others.iter().any(|other| other.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        is_over.store(true, Ordering::Relaxed);
        others.into_iter().for_each(|other| other.join().unwrap());
        let loads: u64 = loaders.into_iter().map(|loader| loader.join().unwrap()).sum();
        assert!(loads > 0 && house.counted("kvd_lease_fills_refused_total") > 0.0, "{loads} loads");
    });
    let state = house.engine.lock();
    assert!(!state.locks.has_leases() && state.locks.parties().count() == 0, "nothing is left");
}
