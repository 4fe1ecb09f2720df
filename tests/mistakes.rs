//! What the command line says to somebody tired: whatever is wrong, one line that says what to do, and the documented exit
//! code.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use crate::support::{Home, kvd, text};

/// Each command that talks to a daemon, with arguments that are right; those that name a cache name one that is not there.
const COMMANDS: [&str; 31] = [
    "get typo k",
    "expire typo k 5m",
    "delete typo k",
    "take typo k",
    "describe typo k",
    "scan typo",
    "clear typo --yes",
    "clear typo --dry-run",
    "clear typo --tag t",
    "drop typo --yes",
    "dump typo",
    "stats typo",
    "restart --clear typo",
    "ping --histogram --count 3 --cache typo k",
    "watch --cache typo --count 1",
    "put c k v",
    "increment c k",
    "caches",
    "clients",
    "access",
    "locks",
    "slow-log",
    "rollback 5",
    "sync",
    "ping",
    "stop",
    "reload",
    "restart",
    "check",
    "compact",
    "top --once",
];

/// The exit code and the one line.
fn one_line(what: &str, output: &Output) -> (i32, String) {
    let said = text(&output.stderr);
    assert!(said.starts_with("kvd: ") && said.lines().count() == 1, "kvd {what}: {said}");
    (output.status.code().expect("it ended by itself"), said)
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn without_a_daemon_every_command_says_how_to_start_one() {
    let home = Home::new();
    for command in COMMANDS {
        let (code, said) = one_line(command, &home.kvd(&words(command)));
        assert_eq!(code, 69, "kvd {command}: {said}");
        assert!(said.contains("`kvd serve`") && said.contains("--socket"), "kvd {command}: {said}");
    }
}

#[test]
fn a_cache_that_is_not_there_is_named_with_where_to_look() {
    let home = Home::new();
    let _daemon = home.start();
    for command in COMMANDS.iter().filter(|command| command.contains("typo")) {
        let (code, said) = one_line(command, &home.kvd(&words(command)));
        assert_eq!(code, 4, "kvd {command}: {said}");
        assert!(said.contains("no cache is called \"typo\"") && said.contains("`kvd caches`"), "{said}");
    }
    assert!(text(&home.kvd(&["caches"]).stderr).contains("no caches yet"), "none was made by asking");
}

#[test]
fn what_prints_data_prints_json_for_scripts() {
    let home = Home::new();
    let _daemon = home.start();
    let backup = home.path().join("backup").display().to_string();
    let dump = home.path().join("dump").display().to_string();
    home.kvd(&["put", "c", "n", "7", "--ttl", "1h"]);
    for command in [
        "put c k v --ttl 1h",
        "get c k",
        "describe c k",
        "expire c k 5m",
        "increment c n",
        "scan c",
        "scan c --long",
        "scan c --biggest 3",
        "scan c --hottest 3",
        "scan c --prefix-summary",
        "stats",
        "stats c",
        "caches",
        "clients",
        "access",
        "locks",
        "slow-log",
        "top",
        "ping",
        "ping --histogram --count 3",
        "rollback 5",
        "doctor",
        "check",
        "compact",
        "dump",
        &format!("dump --output {dump}"),
        &format!("load {dump} --replace"),
        &format!("backup {backup}"),
        &format!("check {backup}"),
        "delete c k",
        "take c n",
        "clear c --dry-run",
        "clear c --expired --yes",
        "clear c --yes",
        "drop c --yes",
        "reload",
        "restart",
        "stop",
    ] {
        let Output { stdout, stderr, .. } = home.kvd(&[&["--json"][..], &words(command)].concat());
        let values: Result<Vec<serde_json::Value>, _> =
            serde_json::Deserializer::from_slice(&stdout).into_iter().collect();
        let said = || format!("kvd --json {command}: {}{}", text(&stdout), text(&stderr));
        assert!(
            values.unwrap_or_else(|error| panic!("{error}: {}", said())).iter().any(|value| !value.is_null()),
            "{}",
            said()
        );
    }
}

#[test]
fn wrong_arguments_are_told_in_one_line_with_the_right_ones() {
    let home = Home::new();
    for (command, says) in [
        ("get c", "<KEY>"),
        ("put c k v --tll 5m", "'--ttl'"),
        ("put c k v --ttl 5", "write 5s"),
        ("cleer c", "'clear'"),
        ("clear", "--all"),
        ("clear c --all", "cannot be used with"),
        ("top --size 9", "--size"),
        ("rollback x", "invalid digit"),
        ("serve --mermory 1g", "'--memory'"),
    ] {
        let (code, said) = one_line(command, &home.kvd(&words(command)));
        assert_eq!(code, 2, "kvd {command}: {said}");
        assert!(said.contains(says) && said.contains("--help"), "kvd {command}: {said}");
    }
}

#[test]
fn scripts_are_not_taken_at_half_a_word() {
    let home = Home::new();
    let _daemon = home.start();
    home.kvd(&["put", "c", "k", "v"]);
    for command in ["clear c", "clear --all", "clear --all --stale", "drop c"] {
        let (code, said) = one_line(command, &home.kvd(&words(command)));
        assert!(code == 2 && said.contains("--yes"), "kvd {command}: {said}");
    }
    assert_eq!(text(&home.kvd(&["get", "c", "k"]).stdout), "v\n");
    let (code, said) = one_line("clear typo", &home.kvd(&["clear", "typo"]));
    assert!(code == 4 && said.contains("no cache is called"), "what is not there is not asked about: {said}");
}

/// `kvd get c k` as a user who is nobody to the daemon; nothing where that cannot be.
fn as_a_stranger(home: &Home) -> Option<(i32, String)> {
    // As root nothing is forbidden: be somebody else then.
    let mut command = if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_kvd")]);
        command
    } else {
        std::fs::set_permissions(home.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
        kvd()
    };
    command.args(["get", "c", "k"]).env("KVD_SOCKET", home.socket()).stdin(Stdio::null());
    match command.output() {
        Ok(output) if !matches!(output.status.code(), Some(126 | 127)) => Some(one_line("get c k", &output)),
        other => {
            println!("skipped: another user cannot run this binary: {other:?}");
            None
        }
    }
}

#[test]
fn who_may_not_connect_is_told_who_could_change_that() {
    let home = Home::new();
    let _daemon = home.start();
    let Some((code, said)) = as_a_stranger(&home) else { return };
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("may not use") && said.contains("[access]"), "{said}");
}

#[test]
fn who_is_hung_up_on_is_not_told_to_start_a_daemon() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can be somebody else");
    }
    // For two users the socket is open to all.
    let home = Home::configured("[access]\nusers = [4241, 4242]\n");
    let _daemon = home.start();
    let Some((code, said)) = as_a_stranger(&home) else { return };
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("[access]") && !said.contains("`kvd serve`"), "{said}");
}
