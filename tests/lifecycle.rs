//! Starting, stopping, and what else may stand in the directory.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Home, SOON, kvd, text, timed, wait_for};

const LONG: Duration = Duration::from_secs(3_600);

#[test]
fn term_under_load_keeps_every_answered_write_and_needs_no_repair() {
    let _timed = timed();
    let home = Home::new();
    let daemon = home.start();
    let (answered, status) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let home = &home;
                scope.spawn(move || {
                    let cache = home.client().cache("c");
                    let mut answered = Vec::new();
                    for n in 0_u32.. {
                        let key = format!("{writer}:{n}");
                        match cache.put(&key, &key, LONG) {
                            Ok(_) => answered.push(key),
                            Err(_) => break,
                        }
                    }
                    answered
                })
            })
            .collect();
        wait_for(SOON, "some writes", || {
            (home.client().cache("c").get("3:50").ok().flatten().is_some()).then_some(())
        });
        let began = Instant::now();
        daemon.signal(Signal::SIGTERM);
        let (status, log) = daemon.wait(SOON);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "TERM took {took:?}: {log}");
        let answered: Vec<String> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (answered, status)
    });
    assert_eq!(status.code(), Some(0));
    assert!(!home.socket().exists(), "the socket is gone");
    assert!(home.path().join("kvd.lock").exists(), "the lock file stays");
    let daemon = home.start();
    assert!(!daemon.first_line.contains("unclean"), "{}", daemon.first_line);
    let cache = home.client().cache("c");
    for keys in answered.chunks(1_000) {
        let found = cache.get_many(keys).unwrap();
        for (key, value) in keys.iter().zip(found) {
            assert_eq!(value.as_deref(), Some(key.as_bytes()), "{key}");
        }
    }
}

#[test]
fn second_daemon_is_refused_and_told_who_holds_the_directory() {
    let home = Home::new();
    let daemon = home.start();
    let second = home.serve().output().unwrap();
    let message = text(&second.stderr);
    assert!(!second.status.success());
    assert!(message.contains(&daemon.pid().to_string()), "{message}");
    home.client().ping().unwrap();
}

#[test]
fn stale_socket_is_taken_over_and_a_foreign_file_is_not_touched() {
    let home = Home::new();
    home.start().kill();
    assert!(home.socket().exists(), "a killed daemon leaves its socket");
    home.start().stop();
    std::fs::write(home.socket(), "mine").unwrap();
    let refused = home.serve().output().unwrap();
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("kvd.sock"), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read_to_string(home.socket()).unwrap(), "mine");
}

#[test]
fn socket_of_another_program_is_not_taken_over_while_it_listens_elsewhere() {
    let home = Home::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("other.sock");
    let _other = UnixListener::bind(&target).unwrap();
    std::os::unix::fs::symlink(&target, home.socket()).unwrap();
    let refused = home.serve().output().unwrap();
    assert!(!refused.status.success(), "a symlink in the socket's place is not followed");
    assert!(target.exists() && home.socket().is_symlink());
}

#[test]
fn unreadable_and_corrupt_stores_are_refused_and_left_as_they_are() {
    if nix::unistd::geteuid().is_root() {
        println!("skipped the permission part: root reads everything");
    } else {
        let home = Home::new();
        home.start().stop();
        let store = home.path().join("store.redb");
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(home.serve().output().unwrap().status.code(), Some(78));
    }
    let home = Home::new();
    let daemon = home.start();
    let put = kv_client::PutOptions::new().ttl(LONG).durable();
    home.client().cache("c").put_with("k", "v", put).unwrap();
    daemon.stop();
    let store = home.path().join("store.redb");
    let junk = vec![0x5a_u8; 64 * 1024];
    std::fs::write(&store, &junk).unwrap();
    let refused = home.serve().output().unwrap();
    assert_eq!(refused.status.code(), Some(78), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("--set-aside"), "{}", text(&refused.stderr));
    assert!(std::fs::read(&store).unwrap() == junk, "the file was written to");
}

#[test]
fn store_of_a_newer_format_is_refused_untouched() {
    let home = Home::new();
    home.start().stop();
    let store = home.path().join("store.redb");
    {
        let db = redb::Database::open(&store).unwrap();
        let write = db.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
        write.open_table(meta).unwrap().insert("format", &[99_u8][..]).unwrap();
        write.commit().unwrap();
    }
    let before = std::fs::read(&store).unwrap();
    let refused = home.serve().output().unwrap();
    assert_eq!(refused.status.code(), Some(78), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("newer"), "{}", text(&refused.stderr));
    assert!(std::fs::read(&store).unwrap() == before, "the file was written to");
}

#[test]
fn directory_and_socket_are_for_their_owner_only() {
    let home = Home::new();
    let _daemon = home.start();
    let mode = |name: &str| std::fs::metadata(home.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("kvd.sock"), 0o600);
    assert_eq!(mode("store.redb"), 0o600);
    assert_eq!(mode("pending.log"), 0o600);
}

#[test]
fn wrong_configuration_is_refused_with_file_line_and_nearest_key() {
    let home = Home::configured("memory = \"64MiB\"\nmemroy = 5\n");
    let refused = home.serve().stdout(Stdio::null()).output().unwrap();
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78));
    assert!(
        message.contains("kvd.toml:2") && message.contains("memroy") && message.contains("memory"),
        "{message}"
    );
    assert!(!home.path().join("store.redb").exists(), "nothing was begun");
}

#[test]
fn help_of_every_command_shows_an_example() {
    for command in [
        "serve",
        "stop",
        "reload",
        "restart",
        "get",
        "put",
        "expire",
        "delete",
        "take",
        "increment",
        "describe",
        "scan",
        "clear",
        "drop",
        "stats",
        "caches",
        "sync",
        "ping",
        "demo",
    ] {
        let help = kvd().args([command, "--help"]).output().unwrap();
        assert!(help.status.success());
        assert!(text(&help.stdout).contains(&format!("kvd {command}")), "{command}: {}", text(&help.stdout));
    }
}

#[test]
fn stop_waits_until_the_daemon_is_gone_and_says_how_long_it_took() {
    let home = Home::new();
    let daemon = home.start();
    home.client().cache("c").put("k", "v", LONG).unwrap();
    let stop = home.kvd(&["stop"]);
    assert_eq!(stop.status.code(), Some(0), "{}", text(&stop.stderr));
    assert!(
        text(&stop.stdout).contains(&format!("stopped process {} in", daemon.pid())),
        "{}",
        text(&stop.stdout)
    );
    // Nothing to wait for: the lock is free, so another may begin at once.
    let again = home.start();
    assert!(!again.first_line.contains("unclean"), "{}", again.first_line);
    assert_eq!(daemon.wait(SOON).0.code(), Some(0));
    assert_eq!(home.client().cache("c").get("k").unwrap().as_deref(), Some(&b"v"[..]));
    again.stop();
    let nobody = home.kvd(&["stop"]);
    assert_eq!(nobody.status.code(), Some(69));
    assert_eq!(text(&nobody.stderr).lines().count(), 1, "{}", text(&nobody.stderr));
}

#[test]
fn usr1_logs_a_report_and_the_daemon_serves_on() {
    let home = Home::new();
    let daemon = home.start();
    daemon.signal(Signal::SIGUSR1);
    home.client().ping().unwrap();
    let (status, log) = daemon.stop();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("connections=") && log.contains("caches"), "{log}");
}
