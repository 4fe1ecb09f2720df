//! The examples do what they say. They are run as a reader would run them, each with the daemon that it starts for itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs an example to its end; what it printed.
fn run(name: &str) -> String {
    let path = built(name);
    let output = Command::new(&path)
        .env_remove("KVD_SOCKET")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo build --examples` makes it", path.display()));
    let printed = String::from_utf8(output.stdout).expect("examples print text");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} ended with {}: {printed}{complaints}", output.status);
    printed
}

/// `cargo test` builds the examples beside its tests: target/PROFILE/deps/this, target/PROFILE/examples/NAME.
fn built(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    let profile = this.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
    profile.join("examples").join(name)
}

/// The lines that start so, or hold it.
fn lines<'a>(printed: &'a str, part: &str) -> Vec<&'a str> {
    printed.lines().filter(|line| line.contains(part)).collect()
}

#[test]
fn preforked_workers_ask_the_database_once_a_toy() {
    let printed = run("prefork");
    assert_eq!(lines(&printed, "asked the database").len(), 5, "{printed}");
    let summary = lines(&printed, "40 requests for 5 toys, answered by");
    assert!(summary.len() == 1 && summary[0].ends_with(": 5 loader runs"), "{printed}");
}

#[test]
fn a_crowd_costs_one_query_a_part_and_a_cleared_tag_changes_the_page() {
    let printed = run("web");
    let pages = lines(&printed, "<h1>Rocket No. 42</h1>");
    assert_eq!(pages.len(), 2, "{printed}");
    assert!(pages[0].contains("$51.99, 2 in stock") && pages[1].contains("$56.99, 2 in stock"), "{printed}");
    assert_eq!(lines(&printed, ": 3 queries").len(), 2, "{printed}");
    // The stock lives for two seconds, and is never served stale.
    let ages = lines(&printed, "cache-control: public, max-age=");
    assert!(
        ages.len() == 2 && ages.iter().all(|line| line.ends_with("stale-while-revalidate=0")),
        "{printed}"
    );
}

#[test]
fn one_process_writes_the_report_and_the_others_say_why_they_do_not() {
    let printed = run("cron");
    assert_eq!(lines(&printed, " wrote ").len(), 1, "{printed}");
    assert_eq!(lines(&printed, " has nothing to do: ").len(), 3, "{printed}");
    assert!(printed.ends_with("4 processes, 1 report\n"), "{printed}");
}
