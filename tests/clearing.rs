//! `kvd clear` as a person or a script types it: what it covers, what it asks, what it leaves alone.

use std::time::Duration;

use kv_client::blocking::Cache;
use kv_client::{Effect, PutOptions, Ttl};

use crate::support::{Home, text};

const LONG: Duration = Duration::from_secs(3_600);

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(home: &Home, args: &[&str]) -> Ran {
    let output = home.kvd(args);
    Ran {
        code: output.status.code().expect("it was not killed"),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

fn keys(cache: &Cache) -> Vec<String> {
    let pages = cache.scan("").stale().map(|page| page.expect("the daemon serves").items);
    let mut keys: Vec<String> = pages.flatten().map(|(key, _)| text(&key)).collect();
    keys.sort();
    keys
}

#[test]
fn a_script_must_say_yes_to_empty_a_cache_and_is_told_how_much_that_is() {
    let home = Home::new();
    let _daemon = home.start();
    let cache = home.client().cache("page");
    cache.put("k", "v", LONG).unwrap();
    for args in [&["clear", "page"][..], &["clear", "--all"], &["clear", "page", "--stale"]] {
        let ran = run(&home, args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains("--yes") && ran.err.contains("1 items"), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        assert!(cache.contains("k").unwrap(), "a refused clear changes nothing");
    }
    assert_eq!(run(&home, &["clear", "page", "--stale", "--yes"]).code, 0);
    assert!(cache.get("k").unwrap().is_none() && cache.get_entry("k").unwrap().is_some());
    assert_eq!(run(&home, &["clear", "--all", "--yes"]).code, 0);
    assert!(cache.get_entry("k").unwrap().is_none());
}

#[test]
fn a_dry_run_counts_what_the_clear_then_covers() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    for cache in ["page", "teaser"] {
        for n in 0..30 {
            let options = PutOptions::new().ttl(LONG).tag(if n % 3 == 0 { "red" } else { "blue" });
            client.cache(cache).put_with(format!("{}:{n:02}", n % 2), "12345", options).unwrap();
        }
    }
    let counted = |args: &[&str]| {
        let ran = run(&home, &[args, &["--dry-run", "--json"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(json["dry_run"], true);
        (json["items"].as_u64().unwrap(), json["bytes"].as_u64().unwrap())
    };
    assert_eq!(counted(&["clear", "--all"]), (60, 60 * 9));
    assert_eq!(counted(&["clear", "page"]), (30, 30 * 9));
    assert_eq!(counted(&["clear", "page", "--prefix", "1:"]), (15, 15 * 9));
    assert_eq!(counted(&["clear", "--tag", "red"]), (20, 20 * 9));
    assert_eq!(counted(&["clear", "page", "--tag", "red"]), (10, 10 * 9));
    assert_eq!(counted(&["clear", "page", "--older-than", "1h"]), (0, 0));
    assert_eq!((keys(&client.cache("page")).len(), keys(&client.cache("teaser")).len()), (30, 30));
    let ran = run(&home, &["clear", "page", "--prefix", "1:", "--dry-run"]);
    assert!(ran.out.contains("15 of 15 items would be cleared"), "{}", ran.out);
    assert_eq!(run(&home, &["clear", "--tag", "red"]).code, 0);
    assert_eq!((keys(&client.cache("page")).len(), keys(&client.cache("teaser")).len()), (20, 20));
}

#[test]
fn only_what_is_old_or_expired_goes_in_caches_on_disk_and_in_memory_alike() {
    let home =
        Home::configured("memory = \"64MiB\"\n[caches.quick]\ndurability = \"memory\"\n[caches.disk]\n");
    let _daemon = home.start();
    let client = home.client();
    for name in ["quick", "disk"] {
        let cache = client.cache(name);
        for n in 0..700 {
            cache.put_with(format!("old:{n:03}"), "v", PutOptions::new().ttl(LONG).stale_for(LONG)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(400));
        cache.put("new:1", "v", LONG).unwrap();
        cache.put("old:001", "again", LONG).unwrap();
        for n in 10..20 {
            cache.expire(format!("old:{n:03}"), Ttl::After(Duration::from_millis(1))).unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
        let ran = run(&home, &["clear", name, "--expired"]);
        assert_eq!((ran.code, ran.out.starts_with("10 of 701 items cleared")), (0, true), "{}", ran.out);
        let ran = run(&home, &["clear", name, "--older-than", "300ms", "--stale"]);
        assert!(ran.out.starts_with("689 of 691 items made stale"), "{name}: {}", ran.out);
        assert!(cache.get("old:002").unwrap().is_none());
        assert_eq!(cache.get_entry("old:002").unwrap().unwrap().value, b"v", "kept as stale");
        let ran = run(&home, &["clear", name, "--older-than", "300ms"]);
        assert!(ran.out.starts_with("689 of 691 items cleared"), "{name}: {}", ran.out);
        assert_eq!(keys(&cache), ["new:1", "old:001"]);
    }
}

#[test]
fn what_was_written_since_it_was_seen_is_never_cleared() {
    let home = Home::new();
    let _daemon = home.start();
    let cache = home.client().cache("c");
    let seen: Vec<_> =
        (0..200).map(|n| (format!("k{n}"), cache.put(format!("k{n}"), "1", LONG).unwrap())).collect();
    for n in (0..200).step_by(2) {
        cache.put(format!("k{n}"), "2", LONG).unwrap();
    }
    cache.delete("k1").unwrap();
    assert_eq!(cache.clear_versions(&seen, Effect::Stale).unwrap(), 99);
    assert_eq!(cache.clear_versions(&seen, Effect::Gone).unwrap(), 0, "a stale one has another version");
    let fresh = (0..200).filter(|n| cache.contains(format!("k{n}")).unwrap()).count();
    assert_eq!(fresh, 100);
    let many: Vec<_> = (0..1_025).map(|n| (format!("k{n}"), 1)).collect();
    assert_eq!(cache.clear_versions(&many, Effect::Gone).unwrap_err().kind(), kv_client::ErrorKind::TooLarge);
}

#[test]
fn a_store_is_cleared_while_its_daemon_is_down_and_never_while_it_serves() {
    let home = Home::new();
    let dir = home.path().display().to_string();
    let daemon = home.start();
    let client = home.client();
    for cache in ["a", "b"] {
        client.cache(cache).put("k:1", "v", LONG).unwrap();
        client.cache(cache).put("other", "v", LONG).unwrap();
    }
    let offline = |args: &[&str]| run(&home, &[args, &["--offline", "--dir", &dir]].concat());
    let ran = offline(&["clear", "a", "--yes"]);
    assert_eq!(ran.code, 78, "{}", ran.err);
    assert!(ran.err.contains("held by pid") && ran.err.contains("stop that daemon"), "{}", ran.err);
    assert_eq!(keys(&client.cache("a")).len(), 2);
    assert!(daemon.stop().0.success());
    let ran = offline(&["clear", "typo", "--yes"]);
    assert!(ran.code == 4 && ran.err.contains("no cache is called"), "{} {}", ran.code, ran.err);
    assert_eq!(offline(&["clear", "a"]).code, 2, "a script must say yes here too");
    assert_eq!(offline(&["clear", "a", "--yes"]).code, 0);
    assert_eq!(offline(&["clear", "b", "--prefix", "k:"]).code, 0);
    let empty = tempfile::tempdir().unwrap();
    let ran = run(&home, &["clear", "a", "--yes", "--offline", "--dir", empty.path().to_str().unwrap()]);
    assert!(ran.code == 78 && ran.err.contains("there is no store in it"), "{} {}", ran.code, ran.err);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "looking makes nothing");
    let _daemon = home.start();
    let client = home.client();
    assert_eq!(keys(&client.cache("a")), Vec::<String>::new());
    assert_eq!(keys(&client.cache("b")), ["other"]);
}
