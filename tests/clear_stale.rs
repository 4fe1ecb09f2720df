//! `kvd clear --stale --all` under load: everybody is served at once, each key is loaded at most once, and the slow database
//! behind it sees one load a key however many processes want it.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kv_client::PutOptions;
use kv_client::blocking::Client;

use crate::support::{Home, text, whole_machine};
use crate::worker;

const LONG: Duration = Duration::from_secs(3_600);
/// What the stand-in database takes for a load.
const LOAD: Duration = Duration::from_millis(20);
/// Pause of a worker between two reads: it has other work, too.
const PAUSE: Duration = Duration::from_micros(300);
const WORKERS: usize = 4;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A process that reads at random all the while, and says on each line it is told how long its reads took since the last.
pub(crate) fn reader() {
    let client = Client::builder().name("clear-stale").build().expect("the daemon serves");
    let cache = client.cache("hot");
    let keys = setting("KVD_KEYS", 0);
    let new = || Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("good bounds");
    let taken = Arc::new(Mutex::new((new(), 0_u64)));
    let loaded = Arc::new(Mutex::new(Vec::new()));
    let is_over = Arc::new(AtomicBool::new(false));
    let reading = {
        let (taken, loaded, is_over) = (taken.clone(), loaded.clone(), is_over.clone());
        std::thread::spawn(move || {
            let mut random = fastrand::Rng::new();
            while !is_over.load(Ordering::Relaxed) {
                let key = random.u64(..keys).to_string();
                let (loads, name) = (loaded.clone(), key.clone());
                let begin = Instant::now();
                let value = cache.entry(&key).ttl(LONG).stale_for(LONG).get_or_load_detached(move |_fill| {
                    loads.lock().expect("nobody panics").push(name.clone());
                    std::thread::sleep(LOAD);
                    Ok::<_, std::io::Error>(name.into_bytes())
                });
                let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let mut taken = taken.lock().expect("nobody panics");
                taken.0.saturating_record(ns);
                taken.1 += u64::from(value.ok() != Some(key.into_bytes()));
                drop(taken);
                std::thread::sleep(PAUSE);
            }
        })
    };
    println!("READY");
    for line in std::io::stdin().lines() {
        let _ = line.expect("the parent writes lines");
        let (histogram, errors) = std::mem::replace(&mut *taken.lock().expect("nobody panics"), (new(), 0));
        let loads = std::mem::take(&mut *loaded.lock().expect("nobody panics"));
        let at = |q| histogram.value_at_quantile(q) / 1_000;
        println!(
            "TOOK {} {} {} {} {errors} {}",
            histogram.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            loads.join(",")
        );
    }
    is_over.store(true, Ordering::Relaxed);
    reading.join().expect("the reader ends");
}

/// What the workers said of a stretch of time.
#[derive(Debug, Default)]
struct Stretch {
    reads: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    errors: u64,
    loads: HashMap<String, u32>,
}

struct Worker {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Worker {
    fn next(&mut self, word: &str) -> String {
        loop {
            let line = self.lines.next().expect("the worker lives").expect("lines");
            // The test harness of the worker writes to the same line.
            if let Some(at) = line.find(word) {
                return line[at..].to_owned();
            }
        }
    }
}

/// Of all workers, the slowest one's quantiles.
fn stretch(workers: &mut [Worker], during: Duration) -> Stretch {
    let mut sum = Stretch::default();
    let ask = |workers: &mut [Worker]| {
        for worker in workers.iter_mut() {
            writeln!(worker.child.stdin.as_mut().expect("piped"), "how long?").expect("it listens");
        }
        workers.iter_mut().map(|worker| worker.next("TOOK")).collect::<Vec<_>>()
    };
    std::thread::sleep(during);
    for said in ask(workers) {
        let mut parts = said.split(' ').skip(1);
        let mut number = || parts.next().expect("a number").parse::<u64>().expect("a number");
        sum.reads += number();
        sum.p50_us = sum.p50_us.max(number());
        sum.p99_us = sum.p99_us.max(number());
        sum.p999_us = sum.p999_us.max(number());
        sum.errors += number();
        for key in parts.next().unwrap_or_default().split(',').filter(|key| !key.is_empty()) {
            *sum.loads.entry(key.to_owned()).or_insert(0) += 1;
        }
    }
    sum
}

#[test]
fn everything_made_stale_is_served_at_once_and_loaded_once_a_key() {
    let _machine = whole_machine();
    let keys = setting("KVD_KEYS", 4_000);
    let during = Duration::from_secs(setting("KVD_SECONDS", 3));
    let home = Home::with(&["--memory", "1GiB"]);
    let _daemon = home.start();
    let client = home.client();
    let options = PutOptions::new().ttl(LONG).stale_for(LONG);
    for chunk in (0..keys).collect::<Vec<_>>().chunks(500) {
        let all = chunk.iter().fold(client.batch(), |batch, key| {
            batch.put_with("hot", key.to_string(), key.to_string(), &options)
        });
        all.commit().unwrap();
    }
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|_| {
            let mut child =
                worker::spawn_told("stale-reader", &home.socket(), &[("KVD_KEYS", keys.to_string())]);
            let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            Worker { child, lines }
        })
        .collect();
    workers.iter_mut().for_each(|worker| drop(worker.next("READY")));
    stretch(&mut workers, during / 3);
    let quiet = stretch(&mut workers, during);
    let cleared = home.kvd(&["clear", "--stale", "--all", "--yes"]);
    assert_eq!(cleared.status.code(), Some(0), "{}", text(&cleared.stderr));
    let storm = stretch(&mut workers, during);
    let show = |name: &str, of: &Stretch| {
        let Stretch { reads, p50_us, p99_us, p999_us, errors, loads } = of;
        println!(
            "{name}: {reads} reads, p50 {p50_us} us, p99 {p99_us} us, p99.9 {p999_us} us, {errors} errors, {} keys loaded",
            loads.len()
        );
    };
    show("quiet", &quiet);
    show("storm", &storm);
    // What the daemon says of leases tells why, should a key be loaded twice.
    for metric in client.admin().stats().unwrap().iter().filter(|metric| metric.name.contains("lease")) {
        if metric.labels.iter().any(|(_, value)| value == "hot") {
            println!("{} {}", metric.name, metric.value);
        }
    }
    assert_eq!((quiet.errors, storm.errors), (0, 0));
    assert!(quiet.loads.is_empty(), "{} keys were loaded though all were fresh", quiet.loads.len());
    let twice: Vec<_> = storm.loads.iter().filter(|(_, loads)| **loads > 1).collect();
    assert!(twice.is_empty(), "loaded more than once: {twice:?}");
    assert!(storm.loads.len() as u64 > keys / 10, "only {} keys were reloaded", storm.loads.len());
    let load_us = u64::try_from(LOAD.as_micros()).expect("short");
    assert!(storm.p99_us < load_us, "readers waited for loads: p99 {} us", storm.p99_us);
    let ratio = storm.p99_us as f64 / quiet.p99_us.max(1) as f64;
    println!(
        "PROMISE clear.stale {} reads, {} keys loaded once each, p99 {} us against {} us quiet ({ratio:.1} times) held",
        storm.reads,
        storm.loads.len(),
        storm.p99_us,
        quiet.p99_us
    );
    for worker in &mut workers {
        drop(worker.child.stdin.take());
        worker.child.wait().expect("our child");
    }
}
