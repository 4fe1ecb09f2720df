//! What those who look after a daemon look at: each command against a daemon process, its JSON, and how it fails.

use serde_json::Value;

use crate::support::{Home, text};

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
