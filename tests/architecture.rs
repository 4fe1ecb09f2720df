//! The documents are true: every test that ARCHITECTURE.md names exists, and every invariant has one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("kvd lies in the workspace").to_owned()
}

fn sources() -> String {
    let mut text = String::new();
    let mut folders =
        vec![root().join("kv-proto"), root().join("kv-client"), root().join("kvd"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("readable").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &std::fs::read_to_string(&path).expect("our sources are text");
            }
        }
    }
    text
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let document = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("it is there");
    let sources = sources();
    let mut guarded = BTreeSet::new();
    for row in document.lines().filter(|line| line.starts_with("| I")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let invariant = cells[1].split(' ').next().expect("split yields one");
        let tests: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{invariant} names no test");
        for test in tests {
            let name = test.rsplit("::").next().expect("split yields one");
            assert!(
                sources.contains(&format!("fn {name}(")),
                "{invariant} names {test}, which does not exist"
            );
        }
        guarded.insert(invariant.to_owned());
    }
    let all: BTreeSet<String> = (1..=10).map(|number| format!("I{number}")).collect();
    assert_eq!(guarded, all);
}

#[test]
fn only_the_segment_has_unsafe_code_and_only_the_clock_and_store_what_is_theirs() {
    let mut folders = vec![root().join("kv-proto/src"), root().join("kv-client/src"), root().join("kvd/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let place = path.strip_prefix(root()).expect("below the root").display().to_string();
            let code = || text.lines().filter(|line| !line.trim_start().starts_with("//"));
            if !place.starts_with("kv-proto/src/segment") {
                assert!(
                    !code().any(|line| line.contains("unsafe {") || line.contains("unsafe fn")),
                    "unsafe in {place}"
                );
            }
            if place.starts_with("kvd/src") && !place.starts_with("kvd/src/store") {
                assert!(!code().any(|line| line.contains("redb::")), "{place} names redb");
            }
            if place.starts_with("kvd/src/store") {
                assert!(!code().any(|line| line.contains("wire::Request")), "{place} knows requests");
            }
            if place.starts_with("kvd/src/engine") {
                assert!(!code().any(|line| line.contains("UnixStream")), "{place} knows sockets");
            }
        }
    }
}
