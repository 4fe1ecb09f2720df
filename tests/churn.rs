//! Churn of ten times the budget: memory and disk stay within what is promised.
//!
//! `KVD_CHURN_MIB` sets the memory budget (32 by default; `scripts/soak churn` takes 256).

use std::time::{Duration, Instant};

use kv_client::blocking::Client;

use crate::support::{Daemon, Home, SOON, random, wait_for};

const MIB: u64 = 1 << 20;
const REDB_CACHE: u64 = 8 * MIB;
/// An unoptimised binary has some 15 MiB of code and tables of its own in memory; the promise is for a release build.
const SLACK: u64 = if cfg!(debug_assertions) { 48 * MIB } else { 32 * MIB };

fn resident_bytes(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

pub(crate) fn figure(client: &Client, name: &str) -> u64 {
    let stats = client.admin().stats().unwrap();
    stats.iter().filter(|metric| metric.name == name).map(|metric| metric.value).sum::<f64>() as u64
}

/// Blocks of the file that are there; holes cost nothing.
pub(crate) fn file_bytes(home: &Home) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(home.path().join("store.redb")).unwrap().blocks() * 512
}

#[test]
fn memory_and_file_stay_bounded_under_churn() {
    let budget = std::env::var("KVD_CHURN_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(32) * MIB;
    let journal = (budget / 4).min(64 * MIB);
    let disk = budget * 2;
    let home = Home::configured(&format!(
        "memory = \"{budget}\"\njournal_max = \"{journal}\"\nredb_cache = \"{REDB_CACHE}\"\npending_log = \"20MiB\"\n\
         [caches.ttl]\nmemory = \"{half}\"\n[caches.kept]\nmemory = \"{half}\"\ndisk = \"{disk}\"\n",
        half = budget / 2
    ));
    let daemon = home.start();
    let mut random = random();
    let clients: Vec<u64> = (0..4).map(|_| random.u64(..)).collect();
    let bytes_each = budget * 10 / clients.len() as u64;
    let peak = std::thread::scope(|scope| {
        let home = &home;
        let writers: Vec<_> =
            clients.into_iter().map(|seed| scope.spawn(move || churn(home, seed, bytes_each))).collect();
        let mut peak = 0;
        while !writers.iter().all(|writer| writer.is_finished()) {
            peak = peak.max(resident_bytes(&daemon));
            std::thread::sleep(Duration::from_millis(20));
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        peak
    });
    let limit = budget + budget / 4 + 2 * journal + REDB_CACHE + SLACK;
    assert!(peak <= limit, "resident {peak} bytes, limit {limit}");
    println!("PROMISE churn.memory resident at most {} MiB of {} MiB held", peak / MIB, limit / MIB);

    let client = home.client();
    wait_for(SOON * 3, "the file to shrink to what lives", || {
        let live = figure(&client, "kvd_store_live_bytes");
        let bound = (live + journal) * 5 / 2;
        (file_bytes(&home) <= bound && figure(&client, "kvd_journal_bytes") <= journal).then_some(())
    });
    let (live, file) = (figure(&client, "kvd_store_live_bytes"), file_bytes(&home));
    println!("PROMISE churn.file {} MiB for {} MiB live held", file / MIB, live / MIB);
    let kept = wait_for(SOON * 3, "the cache to be within its disk budget", || {
        let caches = client.admin().caches().unwrap();
        let kept = caches.into_iter().find(|cache| cache.name == "kept").unwrap().disk_bytes;
        (kept <= disk).then_some(kept)
    });
    println!("PROMISE churn.disk_budget {} MiB of {} MiB held", kept / MIB, disk / MIB);
}

/// Writes `bytes` bytes: overwrites and short lives in one cache, ever new keys in the other.
fn churn(home: &Home, seed: u64, bytes: u64) {
    let client = home.client();
    let (ttl, kept) = (client.cache("ttl"), client.cache("kept"));
    let mut random = fastrand::Rng::with_seed(seed);
    let deadline = Instant::now() + Duration::from_secs(3_600);
    let mut written = 0;
    while written < bytes {
        assert!(Instant::now() < deadline, "no end in sight");
        let value = vec![random.u8(..); random.usize(64..4_096)];
        written += value.len() as u64;
        if random.bool() {
            let life = Duration::from_millis(random.u64(1..2_000));
            ttl.put(random.u32(..20_000).to_le_bytes(), &value, life).unwrap();
        } else {
            kept.put(random.u64(..).to_le_bytes(), &value, Duration::from_secs(3_600)).unwrap();
        }
    }
}
