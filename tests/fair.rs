//! Fairness in `database` mode: writers are starved neither by readers nor by long, scanning or stopped neighbours, nor by each other.
//!
//! `KVD_FAIR_SECONDS` sets how long each part takes (2 by default; `scripts/soak fair` takes 20).

use std::process::Child;
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, SOON, wait_for, whole_machine};
use crate::worker;

const KEYS: u64 = 2_000;
/// Longest wait of a writer, in medians.
const WAIT_MEDIANS_MAX: f64 = 20.0;
/// Jain's index: 1 when all get the same, 1/n when one gets everything ("A Quantitative Measure of Fairness", 1984).
const JAIN_MIN: f64 = 0.95;

fn seconds() -> u64 {
    std::env::var("KVD_FAIR_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(2)
}

/// In a worker: does as `KVD_PART` says until the time is over.
pub(crate) fn part() {
    let client = Client::connect().expect("the daemon serves").with_op_timeout(Duration::from_secs(30));
    let part = std::env::var("KVD_PART").expect("the test sets it");
    // The others are there for longer than those who are measured; they are killed in the end.
    let parts = if part == "writer" { 1 } else { 10 };
    let until = Instant::now() + Duration::from_secs(seconds() * parts);
    let cache = client.cache("kept");
    let mut random = fastrand::Rng::new();
    match part.as_str() {
        "reader" => {
            while Instant::now() < until {
                cache.get(random.u64(0..KEYS).to_string()).expect("a read is answered");
            }
        }
        "scanner" => {
            while Instant::now() < until {
                let seen = cache.scan("").filter(Result::is_ok).count();
                assert!(seen as u64 >= KEYS, "every page is answered");
            }
        }
        // A cursor that thinks while it holds the database.
        "long" => {
            while Instant::now() < until {
                let done = client.transact(|tx| {
                    for key in 0..5_u64 {
                        tx.get("kept", key.to_string())?;
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    tx.put("kept", "0", "long", None)
                });
                done.expect("it comes to its end");
            }
        }
        "writer" => write(&client, until),
        part => panic!("nobody knows the part {part:?}"),
    }
}

fn write(client: &Client, until: Instant) {
    let (mut waits, mut count) = (Vec::new(), 0_u64);
    while Instant::now() < until {
        let asked = Instant::now();
        let mut waited = Duration::ZERO;
        let done = client.transact(|tx| {
            waited = asked.elapsed();
            let seen = tx.get("kept", "7")?;
            tx.put("kept", "7", seen.unwrap_or_default(), None)
        });
        done.expect("it comes to its end");
        waits.push(waited);
        count += 1;
    }
    waits.sort();
    let [median, longest] = [waits[waits.len() / 2], waits[waits.len() - 1]].map(|wait| wait.as_micros());
    println!("\nWRITER {count} {median} {longest}");
}

/// Transactions, median and longest wait in microseconds.
fn finish(writers: Vec<Child>) -> Vec<[f64; 3]> {
    let figures = |writer: Child| {
        let output = writer.wait_with_output().expect("our child");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = stdout.lines().find_map(|line| line.strip_prefix("WRITER "));
        let line = line.unwrap_or_else(|| panic!("{stdout}\n{}", String::from_utf8_lossy(&output.stderr)));
        let mut numbers = line.split(' ').map(|number| number.parse::<f64>().expect("a number"));
        [(); 3].map(|()| numbers.next().expect("three of them"))
    };
    writers.into_iter().map(figures).collect()
}

#[test]
fn no_writer_starves_beside_readers_long_and_stopped_transactions_or_other_writers() {
    let _alone = whole_machine();
    let home = Home::configured("memory = \"16MiB\"\n[caches.kept]\nmemory = \"8MiB\"\n");
    let daemon = home.start();
    let client = home.client();
    for key in 0..KEYS {
        client.cache("kept").put(key.to_string(), [7; 100], None).unwrap();
    }
    let start = |part: &str| worker::spawn("fair", &home.socket(), &[("KVD_PART", part.to_owned())]);
    // Three that take turns, so that a long one is open all the time: a writer's median is to wait for them.
    let others: Vec<Child> =
        (0..16).map(|_| start("reader")).chain(["long", "long", "long", "scanner"].map(start)).collect();
    let stopped = worker::spawn("holder", &home.socket(), &[]);
    wait_for(SOON, "a long transaction to be open and another to wait", || {
        let open = client.admin().transactions().unwrap().transactions;
        open.iter().any(|open| open.waits.is_some()).then_some(())
    });
    let writers = vec![start("writer"), start("writer")];
    // Somewhere inside its transaction, or waiting for it.
    std::thread::sleep(Duration::from_millis(200));
    kill(Pid::from_raw(stopped.id().cast_signed()), Signal::SIGSTOP).expect("our child");
    let beside = finish(writers);
    for mut other in others.into_iter().chain([stopped]) {
        let _ = other.kill();
        other.wait().expect("our child");
    }
    for [count, median, longest] in &beside {
        let ratio = longest / median;
        println!(
            "PROMISE fair.wait {count} transactions, longest wait {longest} us, median {median} us: {ratio:.1} held"
        );
        assert!(ratio <= WAIT_MEDIANS_MAX, "a writer waited {longest} us, and {median} us in the median");
    }
    let writers = (0..8).map(|_| start("writer")).collect();
    let counts: Vec<f64> = finish(writers).iter().map(|[count, ..]| *count).collect();
    let sum: f64 = counts.iter().sum();
    let squares: f64 = counts.iter().map(|count| count * count).sum();
    let jain = sum * sum / (counts.len() as f64 * squares);
    println!("PROMISE fair.jain {jain:.4} of 8 writers, {sum} transactions held");
    assert!(jain >= JAIN_MIN, "{counts:?}");
    daemon.stop();
}
