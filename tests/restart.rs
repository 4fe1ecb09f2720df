//! Restart in place under load, and with either process hanging or dying in the middle of it.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{Initial, RestartState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::supervised::Manager;
use crate::support::{Daemon, Home, SOON, text, timed, wait_for, whole_machine};
use crate::worker;

/// Worker processes under load.
const WORKERS: usize = 8;
/// Restarts of the test; `scripts/soak restart` does more.
const RESTARTS: usize = 4;
/// Longest time that any call of a worker may take, restarts included: a debug build on a busy machine.
const GAP_MAX: Duration = Duration::from_secs(2);
/// … and of an optimised build.
const GAP_MAX_OPTIMISED: Duration = Duration::from_millis(300);
/// Items of the memory-only cache.
const KEPT: usize = 2_000;

const TOML: &str = "memory = \"64MiB\"\n[caches.kept]\nmemory = \"8MiB\"\ndurability = \"memory\"\n\
                    [caches.page]\nmemory = \"8MiB\"\n[caches.safe]\nmemory = \"4MiB\"\ndurability = \"durable\"\n";

/// Ends whoever serves a home at the end: after a restart that is nobody's child.
struct Line<'h>(&'h Home, Option<Daemon>);

impl Line<'_> {
    fn start(home: &Home) -> Line<'_> {
        Line(home, Some(home.start()))
    }

    /// Who holds the lock.
    fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.0.path().join("kvd.lock")).unwrap_or_default();
        text.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // A dead one's lock is free, and its number may be somebody else's.
        let lock = std::fs::File::open(self.0.path().join("kvd.lock")).expect("it is never removed");
        while lock.try_lock_shared().is_err() {
            let _ = kill(Pid::from_raw(self.pid()), Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.1.take());
    }
}

/// A process that lives off the cache with default settings, until it is told to stop; then it says how it went.
pub(crate) fn restarted() {
    let client = Client::builder().name("restarted").build().expect("the daemon serves");
    let is_over = Arc::new(AtomicBool::new(false));
    let reader_is_over = Arc::clone(&is_over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        reader_is_over.store(true, Ordering::Relaxed);
    });
    let pipelining_is_over = Arc::clone(&is_over);
    let pipelined = std::thread::spawn(move || pipeline(&pipelining_is_over));
    let mine = std::process::id();
    let (page, kept, safe) = (client.cache("page"), client.cache("kept"), client.cache("safe"));
    let (mut increments, mut calls, mut errors, mut undone) = (0, 0_u64, 0_u64, 0_u64);
    let mut longest = Duration::ZERO;
    println!("READY");
    for round in 0_u64.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{mine}:{}", round % 50);
        let mut took = |what: &str, call: &mut dyn FnMut() -> kv_client::Result<bool>| {
            let began = Instant::now();
            match call() {
                Ok(true) => {}
                Ok(false) => {
                    eprintln!("{what} of {key} was undone");
                    undone += 1;
                }
                Err(error) => {
                    eprintln!("{what}: {error}");
                    errors += 1;
                }
            }
            calls += 1;
            longest = longest.max(began.elapsed());
        };
        took("increment", &mut || {
            page.increment("count", 1, Initial::value(1)).map(|_| increments += 1).map(|()| true)
        });
        took("put", &mut || page.put(&key, round.to_string(), None).map(|_| true));
        took("get", &mut || {
            page.get(&key).map(|value| value.as_deref() == Some(round.to_string().as_bytes()))
        });
        took("delete", &mut || page.delete(&key).map(|_| true));
        took("get deleted", &mut || page.get(&key).map(|value| value.is_none()));
        took("kept", &mut || kept.get(format!("k{}", round % KEPT as u64)).map(|value| value.is_some()));
        if round % 20 == 0 {
            took("durable", &mut || safe.put(&key, "v", None).map(|_| true));
            took("transaction", &mut || {
                client.transact(|tx| {
                    let had = tx.get("page", "total")?.unwrap_or_default();
                    let had: u64 = String::from_utf8_lossy(&had).parse().unwrap_or(0);
                    tx.put("page", "total", (had + 1).to_string(), None)?;
                    Ok::<_, kv_client::Error>(true)
                })
            });
        }
    }
    let (piped, piped_errors) = pipelined.join().expect("it counts its errors");
    (increments, calls, errors) = (increments + piped, calls + piped, errors + piped_errors);
    println!("TALLY {increments} {calls} {errors} {undone} {}", longest.as_micros());
}

/// The same by the async client, several requests at a time on one connection: what it counted, and its errors.
fn pipeline(is_over: &AtomicBool) -> (u64, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = kv_client::Client::builder().name("restarted").build().await.expect("the daemon serves");
        let page = client.cache("page");
        let (mut counted, mut errors) = (0, 0);
        while !is_over.load(Ordering::Relaxed) {
            let increment = || page.increment("count", 1, Initial::value(1));
            let (a, b, c, d) = tokio::join!(increment(), increment(), increment(), increment());
            for outcome in [a, b, c, d] {
                match outcome {
                    Ok(_) => counted += 1,
                    Err(error) => {
                        eprintln!("pipelined: {error}");
                        errors += 1;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (counted, errors)
    })
}

fn fill_kept(client: &Client) {
    let kept = client.cache("kept");
    for i in 0..KEPT {
        kept.put(format!("k{i}"), format!("value {i}"), None).unwrap();
    }
    // Too large for its ring: it stands beside the segment.
    kept.put("large", vec![7; 600 << 10], None).unwrap();
}

/// `scripts/soak restart` asks for so many MiB in memory besides.
fn ballast_mib() -> usize {
    std::env::var("KVD_RESTART_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(0)
}

fn fill_ballast(client: &Client) {
    let value = vec![b'b'; 1_000];
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (cache, value) = (client.cache("ballast"), &value);
            scope.spawn(move || {
                for i in 0..ballast_mib() * 900 / 4 {
                    cache.put(format!("{part}:{i}"), value, None).unwrap();
                }
            });
        }
    });
}

fn kept_of(client: &Client) -> usize {
    let kept = client.cache("kept");
    let there = (0..KEPT).filter(|i| {
        kept.get(format!("k{i}")).unwrap().is_some_and(|value| value == format!("value {i}").as_bytes())
    });
    there.count()
}

#[test]
fn no_request_fails_and_nothing_counts_twice_while_the_daemon_restarts() {
    let _machine = whole_machine();
    restart_under_load(None);
}

#[test]
fn no_request_fails_under_a_service_manager_either() {
    let _machine = whole_machine();
    let manager = Manager::new();
    let heard = manager.listen();
    let restarts = restart_under_load(Some(manager.path()));
    for _ in 0..restarts {
        while !heard.recv_timeout(SOON).expect("every restart is announced").contains("MAINPID=") {}
    }
}

/// Restarts a daemon under worker processes, and checks what they say; gives how often.
fn restart_under_load(notify: Option<&Path>) -> usize {
    let ballast = ballast_mib();
    let toml = TOML.replace("64MiB", &format!("{}MiB", 64 + ballast));
    let toml = match ballast {
        0 => toml,
        _ => format!("{toml}[caches.ballast]\nmemory = \"{ballast}MiB\"\n"),
    };
    let home = Home::configured(&toml);
    let mut serve = home.serve();
    if let Some(notify) = notify {
        serve.env("NOTIFY_SOCKET", notify);
    }
    let line = Line(&home, Some(home.start_by(serve)));
    let first = line.pid();
    fill_kept(&home.client());
    fill_ballast(&home.client());
    let mut workers: Vec<_> =
        (0..WORKERS).map(|_| worker::spawn_told("restarted", &home.socket(), &[])).collect();
    let mut outputs: Vec<_> =
        workers.iter_mut().map(|worker| BufReader::new(worker.stdout.take().unwrap()).lines()).collect();
    for output in &mut outputs {
        assert!(output.any(|said| said.unwrap().ends_with("READY")));
    }
    let restarts = std::env::var("KVD_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(RESTARTS);
    for number in 1..=restarts {
        std::thread::sleep(Duration::from_millis(200));
        let restart = home.kvd(&["restart"]);
        print!("restart {number}: {}", text(&restart.stdout));
        assert_eq!(restart.status.code(), Some(0), "{}", text(&restart.stderr));
    }
    std::thread::sleep(Duration::from_millis(200));
    let (mut increments, mut calls, mut longest_us) = (0, 0, 0);
    for (worker, output) in workers.iter_mut().zip(&mut outputs) {
        worker.stdin.take().unwrap().write_all(b"stop\n").unwrap();
        let tally = output.find_map(|said| said.unwrap().strip_prefix("TALLY ").map(str::to_owned)).unwrap();
        let numbers: Vec<u64> = tally.split(' ').map(|number| number.parse().unwrap()).collect();
        let [own_increments, own_calls, errors, undone, own_longest_us] = numbers[..] else {
            panic!("{tally}")
        };
        let mut said = String::new();
        std::io::Read::read_to_string(&mut worker.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!((errors, undone), (0, 0), "{said}");
        increments += own_increments;
        calls += own_calls;
        longest_us = longest_us.max(own_longest_us);
        assert!(worker.wait().unwrap().success());
    }
    // An optimised build on a machine of its own keeps what the documentation says.
    let gap_max = if cfg!(debug_assertions) { GAP_MAX } else { GAP_MAX_OPTIMISED };
    assert!(longest_us < gap_max.as_micros() as u64, "longest call {longest_us} us");
    let client = home.client();
    let count = client.cache("page").get("count").unwrap().unwrap();
    assert_eq!(text(&count).parse::<u64>().unwrap(), increments);
    assert_eq!(kept_of(&client), KEPT);
    assert_eq!(client.cache("kept").get("large").unwrap().unwrap().len(), 600 << 10);
    assert_ne!(line.pid(), first);
    println!(
        "PROMISE restart.no_request_fails{} {restarts} restarts, {calls} calls, {increments} increments, longest call {longest_us} us held",
        if notify.is_some() { "_when_supervised" } else { "" }
    );
    assert_eq!(client.admin().last_restart().unwrap().number, restarts as u64);
    restarts
}

#[test]
fn a_restart_follows_the_configuration_and_clears_what_it_is_told_to() {
    let _timed = timed();
    let home = Home::configured(TOML);
    let line = Line::start(&home);
    let client = home.client();
    fill_kept(&client);
    client.cache("page").put("k", "v", None).unwrap();
    let larger = TOML.replace("[caches.kept]\nmemory = \"8MiB\"", "[caches.kept]\nmemory = \"16MiB\"");
    std::fs::write(home.path().join("kvd.toml"), larger + "[caches.new]\nmemory = \"1MiB\"\n").unwrap();
    let restart = home.kvd(&["restart", "--clear", "page", "--json"]);
    assert_eq!(restart.status.code(), Some(0), "{}", text(&restart.stderr));
    let said: serde_json::Value = serde_json::from_slice(&restart.stdout).unwrap();
    assert_eq!((&said["restarted"], said["pid"].as_i64()), (&true.into(), Some(line.pid().into())));
    assert_eq!(client.cache("page").get("k").unwrap(), None);
    assert_eq!(kept_of(&client), KEPT, "another amount of memory is no reason to lose what is in it");
    let caches = client.admin().caches().unwrap();
    let memory = |name: &str| caches.iter().find(|cache| cache.name == name).map(|cache| cache.memory_bytes);
    assert_eq!((memory("kept"), memory("new")), (Some(16 << 20), Some(1 << 20)));
    let unknown = home.kvd(&["restart", "--clear", "pgae"]);
    assert_eq!(unknown.status.code(), Some(4));
    assert!(text(&unknown.stderr).contains("page"), "{}", text(&unknown.stderr));
}

#[test]
fn a_restart_into_a_broken_configuration_leaves_the_old_one_serving_with_the_reason() {
    let _timed = timed();
    let home = Home::configured(TOML);
    let line = Line::start(&home);
    let pid = line.pid();
    let client = home.client();
    fill_kept(&client);
    let file = home.path().join("kvd.toml");
    for (toml, reason) in
        [(format!("{TOML}nonsense = 1\n"), "nonsense"), (TOML.replace("64MiB", "8MiB"), "adds up to")]
    {
        std::fs::write(&file, toml).unwrap();
        let restart = home.kvd(&["restart"]);
        let said = text(&restart.stderr);
        assert_eq!(restart.status.code(), Some(70), "{said}");
        assert!(said.contains(reason) && said.contains(&format!("process {pid} serves on")), "{said}");
        assert_eq!((said.lines().count(), line.pid()), (1, pid), "{said}");
    }
    assert_eq!(kept_of(&client), KEPT);
    assert_eq!(client.admin().last_restart().unwrap().state, RestartState::Failed);
    std::fs::write(&file, TOML).unwrap();
    assert_eq!(home.kvd(&["restart"]).status.code(), Some(0), "and the next one may succeed");
}

/// Whether a restart can be interfered with at its steps.
fn has_steps() -> bool {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: an optimised build has no steps to interfere at");
    }
    cfg!(debug_assertions)
}

/// Restarts while `who` comes to `step` and is made to `hang` or killed there; what a client then finds.
fn interfere(who: &str, step: &str, what: &str) -> (Outcome, String) {
    let home = Home::configured(TOML);
    let steps = home.path().join("step");
    let mut serve = home.serve();
    let _ = serve.env("KVD_TEST_STEP", &steps);
    let line = Line(&home, Some(home.start_by(serve)));
    let old = line.pid();
    let client = home.client();
    fill_kept(&client);
    let mut acknowledged = HashMap::new();
    for i in 0..200 {
        let (cache, key) = (if i % 2 == 0 { "page" } else { "safe" }, format!("k{i}"));
        let version = client.cache(cache).put(&key, i.to_string(), None).unwrap();
        acknowledged.insert((cache, key), (i.to_string(), version));
    }
    client.cache("page").delete("k0").unwrap();
    std::fs::write(&steps, format!("{who} {step} {what}")).unwrap();
    let restart = home.kvd(&["restart"]);
    let what_happened = format!("{who} {step} {what}: {}{}", text(&restart.stdout), text(&restart.stderr));
    assert!(!steps.exists(), "nobody came there: {what_happened}");
    wait_for(SOON, "somebody to serve", || Client::builder().socket(home.socket()).build().ok());
    let serving = line.pid();
    for ((cache, key), (value, _)) in &acknowledged {
        let there = client.cache(cache).get(key).unwrap();
        if key == "k0" {
            assert_eq!(there, None, "a delete was undone: {what_happened}");
        } else {
            assert_eq!(there.as_deref(), Some(value.as_bytes()), "{cache} {key}: {what_happened}");
        }
    }
    client.cache("page").put("after", "v", None).unwrap();
    // Exactly one: the lock names it, every connection leads to it, and the other one is dead.
    let others = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let is_dead = state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        let is_ours = text(&command).contains(&*home.path().to_string_lossy());
        (is_ours && !is_dead).then_some(pid)
    });
    let running: Vec<i32> = others.collect();
    assert_eq!(running, [serving], "{what_happened}");
    let outcome = Outcome { is_old: serving == old, kept: kept_of(&client), code: restart.status.code() };
    println!("{what_happened}{outcome:?}");
    (outcome, what_happened)
}

#[derive(Debug)]
struct Outcome {
    is_old: bool,
    kept: usize,
    code: Option<i32>,
}

#[test]
fn the_old_one_takes_back_over_when_the_new_one_dies_or_hangs() {
    if !has_steps() {
        return;
    }
    let _timed = timed();
    for step in ["met", "copied", "ended", "opened", "prepared", "told"] {
        for what in ["kill", "hang"] {
            let (outcome, said) = interfere("new", step, what);
            assert!(outcome.is_old, "{said}");
            assert_eq!(outcome.code, Some(70), "{said}");
            // After it was told to serve it may have: then the old one's memory is not believed.
            let kept = if step == "told" { 0 } else { KEPT };
            assert_eq!(outcome.kept, kept, "{said}");
        }
    }
}

#[test]
fn the_new_one_goes_on_when_the_old_one_dies() {
    if !has_steps() {
        return;
    }
    let _timed = timed();
    for step in ["told", "copied", "paused", "closed", "ended", "prepared", "gone"] {
        let (outcome, said) = interfere("old", step, "kill");
        assert!(!outcome.is_old, "{said}");
        assert_eq!(outcome.kept, KEPT, "{said}");
    }
}

#[test]
fn usr2_restarts_in_place() {
    let _timed = timed();
    let home = Home::configured(TOML);
    let line = Line::start(&home);
    let (client, first) = (home.client(), line.pid());
    fill_kept(&client);
    kill(Pid::from_raw(first), Signal::SIGUSR2).unwrap();
    let is_done = || client.admin().last_restart().unwrap().state == RestartState::Done;
    wait_for(SOON, "the restart", || is_done().then_some(()));
    assert_ne!(line.pid(), first);
    assert_eq!(kept_of(&client), KEPT);
}

#[test]
fn a_stop_goes_ahead_of_a_restart_that_is_under_way() {
    if !has_steps() {
        return;
    }
    let _timed = timed();
    let home = Home::configured(TOML);
    let steps = home.path().join("step");
    let mut serve = home.serve();
    serve.env("KVD_TEST_STEP", &steps);
    let mut line = Line(&home, Some(home.start_by(serve)));
    std::fs::write(&steps, "new met hang").unwrap();
    assert_eq!(home.client().admin().restart(&[]).unwrap(), 1);
    wait_for(SOON, "the new process to hang", || (!steps.exists()).then_some(()));
    let again = home.client().admin().restart(&[]).unwrap_err();
    assert!(again.to_string().contains("restart 1 is under way"), "{again}");
    let stop = home.kvd(&["stop"]);
    assert_eq!(stop.status.code(), Some(0), "{}", text(&stop.stderr));
    let (status, log) = line.1.take().unwrap().wait(SOON);
    assert_eq!(status.code(), Some(0), "{log}");
}
