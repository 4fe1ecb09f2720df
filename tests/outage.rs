//! A daemon that is killed, stopped and restarted under many client processes: the site goes on.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv_client::ErrorKind;
use kv_client::blocking::Client;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use crate::support::{Home, SOON, wait_for, whole_machine};
use crate::worker;

/// Client processes.
const PROCESSES: usize = 64;
/// Keys that all of them want.
const KEYS: usize = 16;
/// Longest time of a call; the loader's comes on top.
const OP_TIMEOUT: Duration = Duration::from_secs(2);
/// What a loader takes.
const LOAD: Duration = Duration::from_millis(2);
/// What 64 processes that share two processors may add to a bound, in milliseconds, unless `KVD_SLACK_MS` says.
/// `scripts/soak outage`, on a release build, allows 300.
const SLACK_MS: u64 = 1_000;

/// What a process did since it was last asked.
#[derive(Debug, Clone, Default)]
struct Tally {
    calls: u64,
    /// Errors of reads, loads and deletes: there must be none.
    errors: u64,
    longest_us: u64,
    loads: u64,
    /// Increments that failed, and those of them that may have been applied.
    increments_failed: u64,
    increments_maybe: u64,
    /// When reads came through shared memory again after they had not, in milliseconds of the machine's clock; 0: they did
    /// all the time.
    shared_again_ms: u64,
    is_shared: u64,
    /// Whether the key that it deleted is there; 2: nobody asked.
    deleted_is_there: u64,
}

impl Tally {
    fn line(&self) -> String {
        format!(
            "TALLY {} {} {} {} {} {} {} {} {}",
            self.calls,
            self.errors,
            self.longest_us,
            self.loads,
            self.increments_failed,
            self.increments_maybe,
            self.shared_again_ms,
            self.is_shared,
            self.deleted_is_there
        )
    }

    fn read(line: &str) -> Option<Tally> {
        let numbers: Vec<u64> =
            line.strip_prefix("TALLY ")?.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [
            calls,
            errors,
            longest_us,
            loads,
            increments_failed,
            increments_maybe,
            shared_again_ms,
            is_shared,
            deleted_is_there,
        ] = numbers[..]
        else {
            panic!("a tally of {} numbers", numbers.len())
        };
        Some(Tally {
            calls,
            errors,
            longest_us,
            loads,
            increments_failed,
            increments_maybe,
            shared_again_ms,
            is_shared,
            deleted_is_there,
        })
    }
}

/// The machine's clock, the same for all processes.
fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
    time.tv_sec().cast_unsigned() * 1_000 + time.tv_nsec().cast_unsigned() / 1_000_000
}

/// A process that lives off the cache, and tells how it fares when it is asked.
pub(crate) fn dependant() {
    let client = Client::builder()
        .name("dependant")
        .op_timeout(OP_TIMEOUT)
        .restart_grace(Duration::from_millis(500))
        .build()
        .expect("the daemon serves");
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mine = format!("mine-{}", std::process::id());
    client.cache("page").put(&mine, "to be deleted", None).expect("the daemon serves");
    let (worker_client, worker_tally) = (client.clone(), Arc::clone(&tally));
    std::thread::spawn(move || live(&worker_client, &worker_tally));
    println!("READY");
    for line in std::io::stdin().lines() {
        match line.expect("the parent writes lines").as_str() {
            "delete" => {
                let deleted = client.cache("page").delete(&mine);
                if let Err(error) = deleted {
                    eprintln!("delete: {error}");
                    tally.lock().expect("nobody panics").errors += 1;
                }
                println!("DELETED");
            }
            "put" => {
                let _ = client.cache("page").put(&mine, "to be deleted", None);
                println!("PUT");
            }
            "look" => {
                let there = client.cache("page").contains(&mine).unwrap_or(true);
                tally.lock().expect("nobody panics").deleted_is_there = u64::from(there);
                println!("LOOKED");
            }
            "report" => {
                let told = std::mem::take(&mut *tally.lock().expect("nobody panics"));
                println!("{}", told.line());
            }
            other => panic!("nobody knows {other}"),
        }
    }
}

fn live(client: &Client, tally: &Mutex<Tally>) {
    let pages = client.cache("page");
    let mut number = 0_u64;
    let mut was_shared = true;
    loop {
        number += 1;
        let key = format!("key-{}", number as usize % KEYS);
        let mut loads = 0;
        let load = |_fill: &kv_client::Fill<Vec<u8>>| {
            loads += 1;
            std::thread::sleep(LOAD);
            Ok::<_, std::io::Error>(key.clone().into_bytes())
        };
        let mut longest = Duration::ZERO;
        let mut errors = 0;
        let began = Instant::now();
        match pages.get_or_load(&key, Duration::from_secs(600), load) {
            Ok(value) => assert_eq!(value, key.as_bytes()),
            Err(error) => {
                eprintln!("get_or_load: {error}");
                errors += 1;
            }
        }
        longest = longest.max(began.elapsed());
        let began = Instant::now();
        if let Err(error) = pages.get(&key) {
            eprintln!("get: {error}");
            errors += 1;
        }
        longest = longest.max(began.elapsed());
        let mut increments = (0, 0);
        if number.is_multiple_of(8) {
            let began = Instant::now();
            let counted = client.cache("counter").increment("visits", 1, kv_client::Initial::value(1));
            if let Err(error) = &counted {
                assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
                increments = (1, u64::from(error.maybe_applied()));
            }
            longest = longest.max(began.elapsed());
        }
        let is_shared =
            client.stats().caches.iter().any(|cache| cache.name == "page" && cache.path.is_shared());
        let mut tally = tally.lock().expect("nobody panics");
        if is_shared && !was_shared {
            tally.shared_again_ms = now_ms();
        }
        was_shared = is_shared;
        tally.is_shared = u64::from(is_shared);
        tally.calls += 2;
        tally.errors += errors;
        tally.loads += loads;
        tally.longest_us = tally.longest_us.max(longest.as_micros() as u64);
        tally.increments_failed += increments.0;
        tally.increments_maybe += increments.1;
        drop(tally);
        std::thread::sleep(Duration::from_millis(4));
    }
}

struct Dependants(Vec<(Child, ChildStdin, BufReader<ChildStdout>)>);

impl Dependants {
    fn start(home: &Home) -> Dependants {
        let start = |_| {
            let mut child = worker::spawn_told("dependant", &home.socket(), &[]);
            let stdin = child.stdin.take().expect("piped");
            let stdout = BufReader::new(child.stdout.take().expect("piped"));
            // Read, so that nobody stalls on a full pipe; shown when something goes wrong.
            let mut stderr = child.stderr.take().expect("piped");
            std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
            (child, stdin, stdout)
        };
        let mut all = Dependants((0..PROCESSES).map(start).collect());
        for (_, _, out) in &mut all.0 {
            await_word(out, "READY");
        }
        all
    }

    /// Tells all the same, and reads what each answers.
    fn tell(&mut self, what: &str, word: &str) -> Vec<String> {
        for (_, stdin, _) in &mut self.0 {
            writeln!(stdin, "{what}").expect("a dependant reads");
        }
        self.0.iter_mut().map(|(_, _, out)| await_word(out, word)).collect()
    }

    fn report(&mut self) -> Vec<Tally> {
        self.tell("report", "TALLY").iter().map(|line| Tally::read(line).expect("a tally")).collect()
    }
}

impl Drop for Dependants {
    fn drop(&mut self) {
        for (mut child, stdin, _) in self.0.drain(..) {
            drop(stdin);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn await_word(out: &mut BufReader<ChildStdout>, word: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(out.read_line(&mut line).expect("our child") > 0, "it ended before it said {word}");
        if let Some(at) = line.find(word) {
            return line[at..].trim_end().to_owned();
        }
    }
}

/// What all of them say about one outage.
fn judge(name: &str, tallies: &[Tally], back_ms: u64) {
    let slack = std::env::var("KVD_SLACK_MS").ok().and_then(|ms| ms.parse().ok()).unwrap_or(SLACK_MS);
    let slack = Duration::from_millis(slack);
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let most = |of: fn(&Tally) -> u64| tallies.iter().map(of).max().unwrap_or(0);
    assert_eq!(sum(|tally| tally.errors), 0, "{name}: no read, load or delete returns an error");
    let longest = Duration::from_micros(most(|tally| tally.longest_us));
    assert!(longest < OP_TIMEOUT + LOAD + slack, "{name}: a call took {longest:?}");
    let loads = sum(|tally| tally.loads);
    // Once more when the daemon is back: it may have lost them, or hold them for stale.
    let limit = (KEYS * (PROCESSES + 1)) as u64;
    assert!(loads <= limit, "{name}: {loads} loads of {KEYS} keys by {PROCESSES} processes");
    assert!(tallies.iter().all(|tally| tally.is_shared == 1), "{name}: everybody reads shared memory again");
    let again = most(|tally| tally.shared_again_ms).saturating_sub(back_ms);
    assert!(
        Duration::from_millis(again) < Duration::from_secs(1) + slack,
        "{name}: shared memory after {again} ms"
    );
    println!(
        "PROMISE outage.{name} {PROCESSES} processes, {} calls, no error, longest {longest:?} of {OP_TIMEOUT:?}, \
         {loads} loads of at most {limit}, {} increments failed ({} of them perhaps applied), all back on shared memory {again} ms after the daemon held",
        sum(|tally| tally.calls),
        sum(|tally| tally.increments_failed),
        sum(|tally| tally.increments_maybe),
    );
}

/// Waits until everybody reads shared memory again, and takes what they did since the last report together.
fn settle(dependants: &mut Dependants) -> Vec<Tally> {
    let mut totals: Vec<Tally> = vec![Tally::default(); PROCESSES];
    wait_for(SOON, "everybody to read shared memory again", || {
        for (total, tally) in totals.iter_mut().zip(dependants.report()) {
            total.calls += tally.calls;
            total.errors += tally.errors;
            total.longest_us = total.longest_us.max(tally.longest_us);
            total.loads += tally.loads;
            total.increments_failed += tally.increments_failed;
            total.increments_maybe += tally.increments_maybe;
            total.shared_again_ms = total.shared_again_ms.max(tally.shared_again_ms);
            total.is_shared = tally.is_shared;
        }
        totals.iter().all(|total| total.is_shared == 1).then_some(())
    });
    totals
}

fn check_deletes(dependants: &mut Dependants, name: &str) {
    dependants.tell("look", "LOOKED");
    let there: HashMap<u64, usize> = dependants.report().iter().fold(HashMap::new(), |mut counts, tally| {
        *counts.entry(tally.deleted_is_there).or_default() += 1;
        counts
    });
    assert_eq!(there, HashMap::from([(0, PROCESSES)]), "{name}: deletes made meanwhile are in force");
}

#[test]
fn sixty_four_processes_live_through_a_daemon_that_is_killed_stopped_and_restarted() {
    let _whole = whole_machine();
    // What the daemon kept is as good as before, so that loads after its return are not counted twice.
    let home = Home::configured("[default]\nrecover = \"keep\"\n");
    let daemon = home.start();
    let mut dependants = Dependants::start(&home);
    settle(&mut dependants);

    // Killed, and away for three seconds.
    daemon.kill();
    std::thread::sleep(Duration::from_secs(1));
    dependants.tell("delete", "DELETED");
    std::thread::sleep(Duration::from_secs(2));
    let daemon = home.start();
    let back = now_ms();
    let tallies = settle(&mut dependants);
    judge("killed", &tallies, back);
    check_deletes(&mut dependants, "killed");

    // Stopped for five seconds: its sockets are there, and nobody answers.
    dependants.tell("put", "PUT");
    settle(&mut dependants);
    daemon.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(1));
    dependants.tell("delete", "DELETED");
    std::thread::sleep(Duration::from_secs(4));
    daemon.signal(Signal::SIGCONT);
    let back = now_ms();
    let tallies = settle(&mut dependants);
    judge("stopped", &tallies, back);
    assert!(
        tallies.iter().any(|tally| tally.increments_maybe > 0),
        "an increment that was sent and not answered says that it may have been applied"
    );
    check_deletes(&mut dependants, "stopped");

    // Restarted: a clean stop and a start, within the restart grace or not.
    dependants.tell("put", "PUT");
    settle(&mut dependants);
    let (status, _) = daemon.stop();
    assert!(status.success());
    let daemon = home.start();
    let back = now_ms();
    let tallies = settle(&mut dependants);
    judge("restarted", &tallies, back);
    drop(dependants);
    drop(daemon);
}
