//! What those who look after a daemon look at: each command against a daemon process, its JSON, and how it fails.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use kv_client::Effect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Home, SOON, kvd, text, wait_for};

/// Exit code, standard output and standard error of `kvd ARGS`.
fn run(home: &Home, args: &[&str]) -> (i32, String, String) {
    let output = home.kvd(args);
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn json(home: &Home, args: &[&str]) -> Value {
    let (code, out, err) = run(home, args);
    assert_eq!(code, 0, "kvd {args:?}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("kvd {args:?}: {error}: {out}"))
}

/// One line on standard error that contains all of these.
fn fails(home: &Home, args: &[&str], code: i32, says: &[&str]) {
    let (found, out, err) = run(home, args);
    assert_eq!((found, out.as_str()), (code, ""), "kvd {args:?}: {err}");
    assert!(says.iter().all(|part| err.contains(part)), "kvd {args:?}: {err}");
    if code != 2 {
        assert_eq!(err.lines().count(), 1, "kvd {args:?}: {err}");
    }
}

#[test]
fn stats_is_a_page_rows_of_json_and_prometheus_text() {
    let home = Home::new();
    let _daemon = home.start();
    for (key, found) in [("k", 0), ("nothing", 1)] {
        assert_eq!(run(&home, &["put", "c", "k", "hello"]).0, 0);
        assert_eq!(run(&home, &["get", "c", key]).0, found);
    }
    let (_, page, _) = run(&home, &["stats"]);
    for part in ["HIT %", "50.0", "pending log", "flushes", "locks (mode database)", "connections", "P99.9"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let rows = json(&home, &["stats", "--json"]);
    let writes = rows.as_array().unwrap().iter().find(|row| row["name"] == "kvd_cache_writes_total").unwrap();
    assert_eq!((&writes["labels"]["cache"], writes["value"].as_f64()), (&Value::from("c"), Some(2.0)));
    let (_, prometheus, _) = run(&home, &["stats", "--prometheus"]);
    assert!(prometheus.contains("# TYPE kvd_request_seconds histogram"), "{prometheus}");
    assert!(prometheus.contains("kvd_cache_writes_total{cache=\"c\"} 2\n"), "{prometheus}");
    assert!(run(&home, &["stats", "c"]).1.contains("Items put"));
    fails(&home, &["stats", "typo"], 4, &["typo", "kvd caches"]);
    fails(&home, &["stats", "--prometheus", "--json"], 2, &["cannot be used"]);
    fails(&Home::new(), &["stats"], 69, &["kvd serve"]);
}

#[test]
fn watch_shows_each_change_and_ends_well_when_interrupted() {
    let home = Home::new();
    let daemon = home.start();
    let client = home.client();
    let cache = client.cache("c");
    cache.put("first", "x", None).unwrap();
    let mut child = kvd()
        .args(["watch", "--cache", "c", "--prefix", "k", "--json"])
        .env("KVD_SOCKET", home.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It watches from some moment on: what is put until then it does not show.
    let watches = || {
        let metrics = client.admin().stats().unwrap();
        metrics.iter().any(|metric| metric.name == "kvd_watchers" && metric.value > 0.0)
    };
    wait_for(SOON, "the watcher", || watches().then_some(()));
    cache.put("other", "x", None).unwrap();
    cache.put("k1", "abc", None).unwrap();
    cache.delete("k1").unwrap();
    cache.clear_prefix("k", Effect::Stale).unwrap();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let put = next();
    assert_eq!((&put["change"], &put["key"], &put["value_bytes"]), (&"put".into(), &"k1".into(), &3.into()));
    assert_eq!(next()["change"], "removed");
    let cleared = next();
    assert_eq!((&cleared["prefix"], &cleared["stale"]), (&"k".into(), &true.into()));
    // A new daemon is found again.
    daemon.kill();
    let _daemon = home.start();
    assert_eq!(next()["change"], "missed");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("3 changes, 0 missed"), "{}", text(&output.stderr));
}

#[test]
fn watch_counts_and_says_what_cannot_be_watched() {
    let home = Home::new();
    let _daemon = home.start();
    let cache = home.client().cache("c");
    let child = kvd()
        .args(["watch", "--count", "2"])
        .env("KVD_SOCKET", home.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = child;
    let ended = wait_for(SOON, "the watcher to have seen two", || {
        cache.put("k\n", "x", None).unwrap();
        child.try_wait().unwrap()
    });
    let output = child.wait_with_output().unwrap();
    assert_eq!(ended.code(), Some(0));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    assert!(text(&output.stdout).contains("put      c  k\\n  1 bytes"), "{}", text(&output.stdout));
    fails(&home, &["watch", "--cache", "typo"], 4, &["typo"]);
    fails(&home, &["watch", "--count", "0"], 2, &["--count"]);
    fails(&Home::new(), &["watch"], 69, &["kvd serve"]);
}

#[test]
fn slow_log_says_what_took_long_and_what_it_waited_for() {
    let home = Home::with(&["--slow-log-threshold", "50ms"]);
    let _daemon = home.start();
    let client = home.client();
    // It makes the cache, and may be slow itself on a busy disk.
    client.cache("c").put("k", "v", None).unwrap();
    let mut open = client.begin().unwrap();
    open.put("c", "k", "other", None).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| home.client().cache("c").put("k\x1b", "v", None));
        let is_waiting =
            || client.admin().transactions().unwrap().transactions.iter().any(|t| t.waits.is_some());
        wait_for(SOON, "the put to wait", || is_waiting().then_some(()));
        // Whoever holds what others want has to say something within 50 ms. Where this process was not let, it is rolled back, and
        // was waited for as long.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(10));
            if open.get("c", "k").is_err() {
                break;
            }
        }
        let _ = open.rollback();
        waits.join().unwrap().unwrap();
    });
    let (_, out, _) = run(&home, &["slow-log", "--json"]);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let put = lines.iter().find(|line| line["key"] == "k\u{1b}").unwrap_or_else(|| panic!("{out}"));
    assert_eq!((&put["cache"], &put["operation"]), (&"c".into(), &"put".into()));
    let (took, lock) = (put["took_us"].as_u64().unwrap(), put["lock_us"].as_u64().unwrap());
    assert!(took >= 50_000 && lock > took / 2 && lock <= took, "{put}");
    assert_eq!(put["pid"], std::process::id());
    let (_, table, _) = run(&home, &["slow-log", "--slowest", "--limit", "9"]);
    assert!(table.contains("k\\x1b") && table.contains("OPERATION"), "{table}");
    assert!(run(&home, &["slow-log", "--longer-than", "1h"]).1.contains("nothing to show"));
    fails(&home, &["slow-log", "--longer-than", "soon"], 2, &["250ms"]);
    let quiet = Home::with(&["--slow-log-threshold", "1h"]);
    let _daemon = quiet.start();
    assert!(run(&quiet, &["slow-log"]).1.contains("nothing to show"));
    fails(&Home::new(), &["slow-log"], 69, &["kvd serve"]);
}

#[test]
fn scan_finds_the_biggest_the_hottest_and_sums_up_by_prefix() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    let cache = client.cache("c");
    for n in 0..3_000_usize {
        let key = format!("{}:{n}", ["user", "cart", "sku"][n % 3]);
        cache.put(key, vec![0; n % 3 * 100 + n / 1_000], None).unwrap();
    }
    cache.put("giant", vec![0; 100_000], None).unwrap();
    let lines = |args: &[&str]| -> Vec<Value> {
        let (code, out, err) = run(&home, args);
        assert_eq!(code, 0, "{err}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let biggest = lines(&["scan", "c", "--biggest", "2", "--json"]);
    assert_eq!((&biggest[0]["key"], biggest.len()), (&"giant".into(), 2));
    assert_eq!(biggest[1]["value_bytes"], 202);
    let (_, table, err) = run(&home, &["scan", "c", "sku:", "--biggest", "3"]);
    assert!(table.contains("the biggest 3 of 1000 keys") && err.is_empty(), "{table}{err}");
    let sums = lines(&["scan", "c", "--prefix-summary", "--json"]);
    let of = |prefix: &str| sums.iter().find(|row| row["prefix"] == prefix).unwrap();
    assert_eq!((&of("user:")["keys"], &of("sku:")["keys"]), (&1_000.into(), &1_000.into()));
    assert_eq!(sums.last().unwrap()["kind"], "without");
    let (_, table, _) = run(&home, &["scan", "c", "--prefix-summary", "--limit", "1"]);
    assert!(table.contains("(all others)") && table.contains("sku:"), "{table}");

    let plain =
        kv_client::blocking::Client::builder().socket(home.socket()).shared_memory(false).build().unwrap();
    for n in 0..2_000_usize {
        plain.cache("c").get("sku:2").unwrap();
        plain.cache("c").get(format!("user:{}", n % 1_000 * 3)).unwrap();
    }
    let hottest = lines(&["scan", "c", "--hottest", "3", "--json"]);
    assert_eq!(hottest[0]["key"], "sku:2", "{hottest:?}");
    assert!(hottest[0]["reads"].as_u64() > Some(100), "{hottest:?}");
    assert!(run(&home, &["scan", "c", "cart:", "--hottest", "3"]).1.contains("nothing was read"));
    fails(&home, &["scan", "typo", "--biggest", "3"], 4, &["typo", "kvd caches"]);
    fails(&home, &["scan", "typo", "--hottest", "3"], 4, &["typo", "kvd caches"]);
    fails(&home, &["scan", "c", "--hottest", "0"], 2, &["1..=256"]);
    fails(&home, &["scan", "c", "--prefix-summary", "--separator", ""], 2, &["separator"]);
}

#[test]
fn ping_measures_the_socket_and_shared_memory() {
    let home = Home::new();
    let _daemon = home.start();
    home.client().cache("c").put("k", "v", None).unwrap();
    let paths = json(&home, &["ping", "--histogram", "--count", "50", "--cache", "c", "k", "--json"]);
    let (socket, shared) = (&paths[0], &paths[1]);
    assert_eq!((&socket["path"], &socket["count"]), (&"socket".into(), &50.into()));
    assert_eq!((&shared["path"], &shared["note"]), (&"shared".into(), &Value::Null), "{paths}");
    assert!(shared["p50_us"].as_f64() < socket["p50_us"].as_f64(), "{paths}");
    let (_, out, _) = run(&home, &["ping", "--histogram", "--count", "20", "--interval", "1ms"]);
    assert!(out.contains("SOCKET: 20 times") && out.contains("p99.9") && out.contains('#'), "{out}");
    assert!(json(&home, &["ping", "--json"])["answer_us"].is_u64());
    fails(&home, &["ping", "--histogram", "--cache", "typo", "k"], 4, &["typo", "kvd caches"]);
    fails(&home, &["ping", "--histogram", "--interval", "5"], 2, &["5ms"]);
    fails(&Home::new(), &["ping", "--histogram"], 69, &["kvd serve"]);
}

#[test]
fn top_prints_a_frame_or_json_and_says_that_it_needs_a_terminal() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    client.cache("c").put("k", "v", None).unwrap();
    let (code, frame, err) = run(&home, &["top", "--once", "--size", "100x20"]);
    assert_eq!((code, frame.lines().count()), (0, 20), "{frame}{err}");
    assert!(frame.contains("READS/s") && frame.contains("1 caches: 1"), "{frame}");
    let figures = json(&home, &["top", "--json"]);
    assert_eq!(figures["caches"][0]["cache"], "c");
    assert!(figures["clients"].as_array().unwrap().iter().any(|client| client["name"] == "kvd command line"));
    fails(&home, &["top"], 2, &["needs a terminal", "--once"]);
    fails(&home, &["top", "--once", "--size", "5x5"], 2, &["80x24"]);
    fails(&Home::new(), &["top", "--once"], 69, &["kvd serve"]);
}

/// What an HTTP server says to `request`; all of it until it closes.
fn http(stream: &mut (impl Read + Write), request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn prometheus_scrapes_a_unix_socket_or_the_loopback_interface() {
    let mut home = Home::new();
    let socket = home.path().join("metrics.sock");
    home.add_flags(&["--metrics-listen", socket.to_str().unwrap()]);
    let daemon = home.start();
    home.client().cache("c").put("k", "v", None).unwrap();
    let connect = || UnixStream::connect(&socket).unwrap();
    let page = http(&mut connect(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("text/plain; version=0.0.4"), "{page}");
    assert!(page.contains("kvd_cache_writes_total{cache=\"c\"} 1\n"), "{page}");
    assert!(http(&mut connect(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(http(&mut connect(), "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 405"));
    // Those who say nothing have their slots for a bounded time, and clients do not notice.
    let mut silent: Vec<_> = (0..20).map(|_| connect()).collect();
    home.client().ping().unwrap();
    for stream in &mut silent {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        assert!(stream.read_to_end(&mut rest).is_ok(), "a silent scraper is never cut off");
    }
    assert!(http(&mut connect(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200"));
    daemon.stop();
    assert!(!socket.exists(), "the socket is left behind");

    let home = Home::with(&["--metrics-listen", "127.0.0.1:0", "--log-format", "json"]);
    let (status, log) = home.start().stop();
    assert!(status.success());
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let place = "metrics for Prometheus at http://127.0.0.1:";
    assert!(
        lines.iter().any(|line| line["message"].as_str().is_some_and(|said| said.starts_with(place))),
        "{log}"
    );

    let output = Home::with(&["--metrics-listen", "0.0.0.0:9464"]).serve().output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("from elsewhere"), "{}", text(&output.stderr));
}

/// The findings of `kvd doctor` for a home, and its exit code.
fn doctor(home: &Home) -> (i32, Vec<Value>) {
    let dir = home.path().display().to_string();
    let (code, out, err) = run(home, &["doctor", "--dir", &dir, "--json"]);
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

fn found<'a>(findings: &'a [Value], level: &str, what: &str) -> Option<&'a Value> {
    findings
        .iter()
        .find(|one| one["level"] == level && one["what"].as_str().is_some_and(|text| text.contains(what)))
}

#[test]
fn doctor_finds_what_is_wrong_and_says_what_to_do_with_the_daemon_up_and_down() {
    let home = Home::new();
    let daemon = home.start();
    let plain = kv_client::blocking::Client::builder().socket(home.socket()).shared_memory(false).name("app");
    let plain = plain.build().unwrap();
    plain.cache("c").put("k", "v", None).unwrap();
    let (code, findings) = doctor(&home);
    for what in [
        "valid: store in",
        "answers, up",
        "healthy",
        "the store is held by pid",
        "somebody listens",
        "free at",
    ] {
        assert!(found(&findings, "ok", what).is_some(), "{what}: {findings:#?}");
    }
    assert!(code < 2, "{findings:#?}");
    assert!(findings.iter().all(|one| one["level"] == "ok" || one["do"].is_string()), "{findings:#?}");

    // Stopped: somebody has the store and says nothing.
    daemon.signal(Signal::SIGSTOP);
    let dir = home.path().display().to_string();
    let (code, out, _) = run(&home, &["--timeout", "300ms", "doctor", "--dir", &dir, "--quiet"]);
    assert!(code == 2 && out.contains("but no daemon answers") && out.contains("-> it is starting"), "{out}");
    daemon.signal(Signal::SIGCONT);

    // Killed: the socket is stale, and that is all.
    daemon.kill();
    let stale = || doctor(&home).1;
    wait_for(SOON, "the lock to be free", || found(&stale(), "ok", "nobody holds the store").map(drop));
    assert!(found(&stale(), "warning", "is stale").is_some());

    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(home.path(), open).unwrap();
    let (code, findings) = doctor(&home);
    assert!(code == 2 && found(&findings, "error", "written by others").is_some(), "{findings:#?}");

    let file = home.path().join("kvd.toml");
    std::fs::write(&file, "memory = \"8 apples\"\n").unwrap();
    let (code, out, _) = run(&home, &["doctor", "--config", file.to_str().unwrap()]);
    assert!(code == 2 && out.contains("8 apples"), "{out}");
}
