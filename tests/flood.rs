//! Clients that take all they can get: descriptors, connections, half frames, unread answers. Who is connected already hardly
//! notices, and nothing of it stays.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kv_client::blocking::{Cache, Client};
use kv_proto::wire::{Bytes, Envelope, Hello, PROTOCOL_MAGIC, Request, encode_into};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::{Daemon, Home, SOON, wait_for, whole_machine};

/// Descriptors the daemon may have here.
const DESCRIPTORS: u64 = 256;
/// Pause between two reads of somebody who is connected.
const PACE: Duration = Duration::from_micros(500);

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// How long each flood lasts.
fn period() -> Duration {
    variable("KVD_FLOOD_MS").map_or(Duration::from_millis(400), Duration::from_millis)
}

/// What the daemon has: descriptors, threads, bytes of its own.
#[derive(Debug, Clone, Copy)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    bytes: u64,
}

fn holdings(daemon: &Daemon) -> Holdings {
    let proc = |name: &str| format!("/proc/{}/{name}", daemon.pid());
    let count = |name: &str| std::fs::read_dir(proc(name)).unwrap().count();
    let status = std::fs::read_to_string(proc("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let bytes = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024;
    Holdings { descriptors: count("fd"), threads: count("task"), bytes }
}

/// What the thread that accepts has used of a processor.
fn accept_time(daemon: &Daemon) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let accept = tasks.map(|task| task.unwrap().path()).find(|task| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "kvd-accept")
    });
    let used = std::fs::read_to_string(accept.expect("it accepts").join("schedstat")).unwrap();
    Duration::from_nanos(used.split_whitespace().next().unwrap().parse().unwrap())
}

/// Reads until it is told to stop; its latencies in nanoseconds.
fn latencies(cache: &Cache, is_over: &AtomicBool) -> Histogram<u64> {
    let mut taken = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        assert!(cache.get("k").expect("who is connected is served").is_some());
        taken.saturating_record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        std::thread::sleep(PACE);
    }
    taken
}

/// Runs `flood` beside somebody who reads through shared memory and somebody who asks; their 99th percentiles.
fn beside(home: &Home, flood: impl FnOnce()) -> [u64; 2] {
    let client = |shared| {
        let client = Client::builder().socket(home.socket()).shared_memory(shared).build().unwrap();
        assert!(client.cache("c").get("k").unwrap().is_some());
        client
    };
    let (shared, asks) = (client(true), client(false));
    wait_for(SOON, "shared memory", || crate::shared::path_of(&shared, "c").is_shared().then_some(()));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = [&shared, &asks].map(|client| {
            let (cache, is_over) = (client.cache("c"), &is_over);
            scope.spawn(move || latencies(&cache, is_over))
        });
        flood();
        is_over.store(true, Ordering::Relaxed);
        readers.map(|reader| reader.join().unwrap().value_at_quantile(0.99))
    })
}

fn hello() -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(&mut out, &Hello { magic: PROTOCOL_MAGIC, version: 1, oldest: 1, name: "flood" });
    out
}

fn set_descriptors(daemon: &Daemon, limit: u64) {
    let pid = Pid::from_raw(daemon.pid().as_raw());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(DESCRIPTORS) }).unwrap();
}

/// Twice as many callers as there are descriptors, who stay: what part of a processor the thread that accepts uses meanwhile.
fn exhaust(home: &Home, daemon: &Daemon) -> f64 {
    // No more than it has and a few: `accept` itself fails, and whoever waits in the queue would wake it again and again.
    set_descriptors(daemon, holdings(daemon).descriptors as u64 + 8);
    let callers: Vec<_> = (0..2 * DESCRIPTORS)
        .filter_map(|_| {
            let stream = UnixStream::connect(home.socket()).ok()?;
            (&stream).write_all(&hello()).ok().map(|()| stream)
        })
        .collect();
    let (began, used) = (Instant::now(), accept_time(daemon));
    std::thread::sleep(period());
    let accept = (accept_time(daemon) - used).as_secs_f64() / began.elapsed().as_secs_f64();
    drop(callers);
    set_descriptors(daemon, DESCRIPTORS);
    accept
}

/// Frames that come byte by byte.
fn dribble(home: &Home) {
    let mut callers: Vec<_> = (0..50).map(|_| UnixStream::connect(home.socket()).unwrap()).collect();
    let (began, hello) = (Instant::now(), hello());
    for byte in hello.iter().cycle() {
        callers.retain_mut(|stream| stream.write_all(&[*byte]).is_ok());
        if began.elapsed() > period() {
            return;
        }
        std::thread::sleep(period() / 40);
    }
}

/// Asks for much and reads nothing.
fn never_read(home: &Home) {
    let mut request = Vec::new();
    let get = Request::GetMany { cache: "c", keys: vec![Bytes(b"big"); 2], snapshot: None };
    encode_into(&mut request, &Envelope { number: 0, request: get });
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let stream = UnixStream::connect(home.socket()).unwrap();
            stream.set_nonblocking(true).unwrap();
            (&stream).write_all(&hello()).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    while began.elapsed() < period() {
        for mut stream in &callers {
            let _ = stream.write(&request);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Connects and goes away, as fast as it gets.
fn connect_rapidly(home: &Home) {
    for n in 0..variable("KVD_CONNECTS").unwrap_or(1_000) {
        let stream = UnixStream::connect(home.socket()).unwrap();
        if n % 2 == 0 {
            // It may have been turned away.
            let _ = (&stream).write_all(&hello());
            let _ = (&stream).read(&mut [0; 8]);
        }
    }
}

#[test]
fn who_is_connected_is_served_whatever_others_take() {
    let _whole = whole_machine();
    let home = Home::configured("connections_max = 200\nconnections_per_user_max = 200\n");
    let daemon = home.start();
    set_descriptors(&daemon, DESCRIPTORS);
    let cache = home.client().cache("c");
    cache.put("k", "v", None).unwrap();
    cache.put("big", vec![1_u8; 512 << 10], None).unwrap();
    let quiet = || beside(&home, || std::thread::sleep(period()));
    quiet();
    let before = holdings(&daemon);
    let mut broken = Vec::new();
    for name in ["exhausted", "dribble", "unread", "connects"] {
        let [shared_quiet, asks_quiet] = quiet();
        let mut accept = 0.0;
        let [shared, asks] = beside(&home, || match name {
            "exhausted" => accept = exhaust(&home, &daemon),
            "dribble" => dribble(&home),
            "unread" => never_read(&home),
            _ => connect_rapidly(&home),
        });
        wait_for(SOON, "room again", || home.client().ping().ok());
        let ratio = |under: u64, quiet: u64| under as f64 / quiet as f64;
        let line = format!(
            "p99 of who reads shared memory {shared} ns, {:.2} of a quiet {shared_quiet}; of who asks {:.1} us, {:.2} of \
             a quiet {:.1}; the thread that accepts {:.2} % of a processor while it has no descriptor",
            ratio(shared, shared_quiet),
            asks as f64 / 1e3,
            ratio(asks, asks_quiet),
            asks_quiet as f64 / 1e3,
            accept * 100.0,
        );
        let limit = variable::<f64>("KVD_P99_RATIO").unwrap_or(f64::INFINITY);
        let holds = accept < 0.02 && ratio(shared, shared_quiet) <= limit;
        let verdict = match (holds, limit.is_finite() || name == "exhausted") {
            (true, true) => "held",
            (true, false) => "measured",
            (false, _) => "broken",
        };
        println!("PROMISE flood.{name} {line} {verdict}");
        if !holds {
            broken.push(name);
        }
    }
    wait_for(SOON, "everything to be given back", || {
        let after = holdings(&daemon);
        let is_back = after.descriptors <= before.descriptors + 2
            && after.threads <= before.threads + 2
            && after.bytes < before.bytes + (16 << 20);
        is_back.then_some(())
    });
    println!("{:?} before, {:?} after", before, holdings(&daemon));
    assert!(broken.is_empty(), "{broken:?}");
}
