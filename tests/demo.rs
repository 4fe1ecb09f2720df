//! `kvd demo`: that it shows the truth, and leaves nothing behind.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{SOON, kvd, wait_for};

/// The demo, with all it makes in `place`.
fn demo(place: &Path) -> Command {
    let mut command = kvd();
    command.env("TMPDIR", place).args(["demo", "--workers", "4", "--threads", "2", "--db-delay", "500us"]);
    command
}

fn is_empty(place: &Path) -> bool {
    std::fs::read_dir(place).expect("the directory is ours").next().is_none()
}

fn shown(place: &Path, arguments: &[&str]) -> serde_json::Value {
    let output = demo(place).arg("--json").args(arguments).output().expect("kvd was built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("the result is JSON")
}

#[test]
fn the_demo_keeps_what_it_promises_and_leaves_nothing() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let shown = shown(place.path(), &["--requests", "60000", "--time-scale", "20000"]);
    let number = |name: &str| shown[name].as_f64().unwrap_or_else(|| panic!("{name} in {shown:#}"));
    assert_eq!(shown["broken"], serde_json::json!([]));
    assert!(shown["tally"]["expired"].as_u64() > Some(0), "{shown:#}");
    assert!(shown["tally"]["verified"].as_u64() > Some(0), "{shown:#}");
    assert_eq!(shown["tally"]["lost"].as_u64(), Some(0));
    assert!(shown["kill"]["first_hit_seconds"].as_f64().is_some(), "{shown:#}");
    assert!((number("hit_percent") - number("best_unbounded_percent")).abs() <= 0.3, "{shown:#}");
    assert!(is_empty(place.path()));
}

#[test]
fn a_small_memory_is_shown_beside_beladys_rule() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    // Slow enough that nothing expires however long the machine takes: only the room decides.
    let arguments = ["--requests", "30000", "--memory", "10%", "--no-kill", "--time-scale", "100"];
    let shown = shown(place.path(), &arguments);
    let number = |name: &str| shown[name].as_f64().unwrap_or_else(|| panic!("{name} in {shown:#}"));
    assert!(number("best_bounded_percent") < number("best_unbounded_percent"), "{shown:#}");
    assert!(number("hit_percent_memory") <= number("best_bounded_percent"), "{shown:#}");
    assert!(
        (number("hit_percent") - number("best_unbounded_percent")).abs() <= 0.3,
        "what left memory is on disk"
    );
}

#[test]
fn an_interrupted_demo_removes_everything() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let (mut demo, _) = running_demo(place.path());
    kill(Pid::from_raw(demo.id() as i32), Signal::SIGINT).expect("it runs");
    assert_eq!(demo.wait().expect("it ends").code(), Some(130));
    assert!(is_empty(place.path()));
}

#[test]
fn a_killed_demo_takes_its_processes_along() {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let (mut demo, daemon) = running_demo(place.path());
    demo.kill().expect("it runs");
    demo.wait().expect("it ends");
    wait_for(SOON, "the demo's daemon to be gone", || UnixStream::connect(&daemon).is_err().then_some(()));
}

/// A demo whose daemon serves, and the daemon's socket.
fn running_demo(place: &Path) -> (Child, PathBuf) {
    let mut command = demo(place);
    command.args(["--requests", "1000000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let demo = command.spawn().expect("kvd was built");
    let daemon = wait_for(SOON, "the demo's daemon to serve", || {
        let mut directories = std::fs::read_dir(place).ok()?;
        let socket = directories.next()?.ok()?.path().join("kvd/kvd.sock");
        UnixStream::connect(&socket).is_ok().then_some(socket)
    });
    (demo, daemon)
}
