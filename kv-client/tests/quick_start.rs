//! The README's first minute works: a new project that depends on this crate by path builds, and finds the daemon.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The first block of the README in this language, without the fence.
fn block<'a>(readme: &'a str, language: &str) -> &'a str {
    let (_, rest) = readme.split_once(&format!("```{language}\n")).expect("the README has such a block");
    rest.split_once("```").expect("the block ends").0
}

/// Writes what somebody writes who follows the README.
fn write_project(dir: &Path) {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(crate_dir.join("README.md")).expect("the README is there");
    let package = "[package]\nname = \"quick-start\"\nedition = \"2024\"\n";
    let dependencies = block(&readme, "toml").replace("../kvd/kv-client", &crate_dir.display().to_string());
    assert!(dependencies.contains(env!("CARGO_MANIFEST_DIR")), "the README depends by path: {dependencies}");
    fs::create_dir(dir.join("src")).expect("the directory is ours");
    fs::write(dir.join("Cargo.toml"), format!("{package}\n{dependencies}")).expect("the directory is ours");
    fs::write(dir.join("src/main.rs"), block(&readme, "rust,no_run")).expect("the directory is ours");
    // The versions that the workspace was built with: they are on this machine, so nothing has to be fetched.
    fs::copy(crate_dir.join("../Cargo.lock"), dir.join("Cargo.lock")).expect("the workspace has a lock file");
}

fn printed(what: &str, output: Output) -> String {
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} ended with {}: {complaints}", output.status);
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn the_quick_start_of_the_readme_builds_and_loads_once() {
    let project = tempfile::tempdir().expect("a temporary directory can be made");
    write_project(project.path());
    // Kept between runs: what the second one builds is the project itself.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quick-start");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet"])
        .current_dir(project.path())
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    printed("cargo build", built);

    let server = kvd::testing::server();
    let run = || {
        let mut program = Command::new(target.join("debug/quick-start"));
        program.env("KVD_SOCKET", server.socket()).stdin(Stdio::null());
        printed("the quick start", program.output().expect("it was built"))
    };
    assert_eq!(run(), "asking the database\nrocket\n");
    assert_eq!(run(), "rocket\n", "the second run finds what the first one loaded");
}
