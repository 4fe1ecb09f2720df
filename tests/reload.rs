//! Reading the configuration again: whole or not at all.

use kv_client::blocking::Client;
use nix::sys::signal::Signal;

use crate::support::{Home, SOON, text, wait_for};

fn rewrite(home: &Home, toml: &str) {
    std::fs::write(home.path().join("kvd.toml"), toml).unwrap();
}

#[test]
fn a_reload_takes_over_what_it_can_and_names_what_needs_a_restart() {
    let home = Home::configured("memory = \"64MiB\"\n");
    let daemon = home.start();
    rewrite(
        &home,
        "memory = \"96MiB\"\nlog = \"kvd=debug\"\nslow_log_threshold = \"0\"\nlog_format = \"json\"\nredb_cache = \"8MiB\"\n[caches.page]\nmemory = \"1MiB\"\n",
    );
    let reload = home.kvd(&["reload"]);
    let said = text(&reload.stdout);
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    for change in
        ["memory: 64 MiB -> 96 MiB", "slow_log_threshold: 10ms -> none", "log: \"info\" -> \"kvd=debug\""]
    {
        assert!(said.lines().any(|line| line == change), "{said}");
    }
    for change in ["redb_cache: ", "log_format: ", "caches.page: declared"] {
        assert!(
            said.lines().any(|line| line.starts_with(change) && line.ends_with("(needs `kvd restart`)")),
            "{said}"
        );
    }
    let memory = home.client().admin().stats().unwrap();
    let memory = memory.iter().find(|metric| metric.name == "kvd_memory_max_bytes").unwrap();
    assert_eq!(memory.value as u64, 96 << 20);
    assert!(text(&home.kvd(&["slow-log"]).stdout).contains("slow_log_threshold is 0"));
    let (_, log) = daemon.stop();
    assert!(log.contains("connected"), "debug lines are logged from then on: {log}");
}

#[test]
fn a_broken_file_changes_nothing_and_says_where_it_is_broken() {
    let home = Home::configured("memory = \"64MiB\"\nconnections_max = 8\n");
    let daemon = home.start();
    rewrite(&home, "memory = \"96MiB\"\nconnections_max = 3\nconections = 5\n");
    let reload = home.kvd(&["reload"]);
    assert_eq!(reload.status.code(), Some(4));
    let problem = text(&reload.stderr);
    assert!(problem.contains("kvd.toml:3") && problem.lines().count() == 1, "{problem}");
    // By signal the reason is in the log.
    daemon.signal(Signal::SIGHUP);
    let clients: Vec<Client> = (0..6).map(|_| home.client()).collect();
    drop(clients);
    let (_, log) = daemon.stop();
    assert!(log.contains("not reloaded") && log.contains("kvd.toml:3"), "{log}");
}

#[test]
fn the_memory_of_the_caches_there_are_is_the_least_a_reload_takes() {
    let home = Home::configured("memory = \"64MiB\"\n[default]\nmemory = \"16MiB\"\n");
    let _daemon = home.start();
    for cache in ["a", "b"] {
        home.client().cache(cache).put("k", "v", None).unwrap();
    }
    rewrite(&home, "memory = \"24MiB\"\n[default]\nmemory = \"16MiB\"\n");
    let reload = home.kvd(&["reload"]);
    assert_eq!(reload.status.code(), Some(4));
    assert!(text(&reload.stderr).contains("32 MiB"), "{}", text(&reload.stderr));
    // The bound is what it was, so another cache still fits.
    home.client().cache("c").put("k", "v", None).unwrap();
}

#[test]
fn limits_change_while_who_is_connected_stays() {
    let home = Home::configured("connections_max = 40\nconnections_per_user_max = 40\n");
    let _daemon = home.start();
    let held: Vec<Client> = (0..12).map(|_| home.client()).collect();
    rewrite(&home, "connections_max = 2\nconnections_per_user_max = 2\n");
    // Its own user has some slots beyond any limit, so that this can be undone.
    held[0].admin().reload().unwrap();
    for client in &held {
        client.ping().unwrap();
    }
    let refused = Client::builder().socket(home.socket()).retry(kv_client::RetryPolicy::never()).build();
    assert!(refused.unwrap_err().to_string().contains("limit is connections"), "the new limit holds");
    rewrite(&home, "connections_max = 40\nconnections_per_user_max = 40\n");
    held[0].admin().reload().unwrap();
    home.client().ping().unwrap();
}

#[test]
fn who_is_no_longer_admitted_is_cut_off() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let home = Home::configured("[access]\nusers = [\"65534\"]\n");
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let _daemon = home.start();
    let mut stranger = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["worker::process", "--exact", "--nocapture"])
        .env("KVD_TEST_ROLE", "stranger")
        .env("KVD_SOCKET", home.socket())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stranger.stdout.take().unwrap()));
    let mut told = |line: &str| lines.any(|said| said.unwrap() == line);
    if !told("READY") {
        println!("skipped: that user cannot run this binary: {:?}", stranger.wait());
        return;
    }
    rewrite(&home, "memory = \"256MiB\"\n");
    home.client().admin().reload().unwrap();
    assert!(told("GONE"), "its connection has ended");
    let _ = wait_for(SOON, "its end", || stranger.try_wait().unwrap());
}

/// A user who is admitted at first: says when its connection ends.
pub(crate) fn stranger() {
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(std::env::var_os("KVD_SOCKET").unwrap())
    else {
        return;
    };
    println!("READY");
    let mut byte = [0];
    let ended = std::io::Read::read(&mut stream, &mut byte);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    println!("GONE");
}
