//! Backups under load, restores, and checks that find what is wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_client::{Effect, Life, PutOptions, Ttl};

use crate::support::{Home, text};

const LONG: Duration = Duration::from_secs(3_600);
/// Nothing becomes stale because the daemon was away.
const KEEP: &str = "memory = \"128MiB\"\njournal_max = \"1MiB\"\n[default]\nrecover = \"keep\"\n[caches.quick]\ndurability = \"memory\"\n";

fn kvd(home: &Home, args: &[&str]) -> (i32, String, String) {
    let output = home.kvd(args);
    (output.status.code().expect("not killed"), text(&output.stdout), text(&output.stderr))
}

/// A home that a backup is restored into.
fn restored(file: &Path) -> Home {
    let home = Home::configured(KEEP);
    let config = home.path().join("kvd.toml");
    let dir = home.path().to_str().unwrap().to_owned();
    let (code, out, err) =
        kvd(&home, &["restore", file.to_str().unwrap(), "--dir", &dir, "--config", config.to_str().unwrap()]);
    assert_eq!(code, 0, "{out} {err}");
    home
}

#[test]
fn a_backup_under_load_is_the_state_after_one_commit_and_says_which() {
    let home = Home::configured(KEEP);
    let daemon = home.start();
    let rounds = std::env::var("KVD_BACKUPS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let filler: Vec<(String, String)> =
        (0..5_000).map(|n| (format!("filler:{n}"), "x".repeat(200))).collect();
    for chunk in filler.chunks(500) {
        home.client().cache("filler").put_many(chunk.iter().map(|(key, value)| (key, value)), LONG).unwrap();
    }
    let is_over = AtomicBool::new(false);
    let (histories, backups) = std::thread::scope(|scope| {
        let write = |writer: usize| {
            let client = home.client();
            let key = format!("w{writer}");
            let mut history = Vec::new();
            for n in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // Two caches, and in each a key that comes early in the order and one that comes late.
                let (value, late) = (n.to_string(), format!("z-{key}"));
                let batch = client.batch().put("a", &key, &value, LONG).put("b", &late, &value, LONG);
                let batch = batch.put("a", &late, &value, LONG).put(
                    "filler",
                    format!("filler:{}", n % 5_000),
                    &value,
                    LONG,
                );
                let batch =
                    if n % 2 == 0 { batch.put("b", "even", &value, LONG) } else { batch.delete("b", "even") };
                history.push((batch.commit().unwrap().version, n));
            }
            history
        };
        let writers: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
        let mut backups = Vec::new();
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(150));
            let file = home.path().join(format!("{round}.kvd"));
            let (code, out, err) = kvd(&home, &["backup", file.to_str().unwrap(), "--json"]);
            assert_eq!(code, 0, "{err}");
            let json: serde_json::Value = serde_json::from_str(&out).unwrap();
            backups.push((file, json["sequence"].as_u64().unwrap()));
        }
        is_over.store(true, Ordering::Relaxed);
        let histories: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        (histories, backups)
    });
    assert!(daemon.stop().0.success());
    let mut commits = 0;
    for (file, sequence) in &backups {
        let other = restored(file);
        let _daemon = other.start();
        let client = other.client();
        let get = |cache: &str, key: &str| client.cache(cache).get(key).unwrap().map(|value| text(&value));
        for (writer, history) in histories.iter().enumerate() {
            let last =
                history.iter().rev().find(|(version, _)| version <= sequence).map(|(_, n)| n.to_string());
            commits += history.iter().filter(|(version, _)| version <= sequence).count();
            for (cache, key) in
                [("a", format!("w{writer}")), ("b", format!("z-w{writer}")), ("a", format!("z-w{writer}"))]
            {
                assert_eq!(get(cache, &key), last, "{cache} {key} at sequence {sequence}");
            }
        }
        let newest = histories.iter().flatten().filter(|(version, _)| version <= sequence).max().unwrap();
        assert_eq!(get("b", "even").is_some(), newest.1 % 2 == 0, "the newest commit of all decides");
        let mut fillers = BTreeMap::new();
        for (version, n) in histories.iter().flatten().filter(|(version, _)| version <= sequence) {
            let at = fillers.entry(n % 5_000).or_insert((*version, *n));
            *at = (*at).max((*version, *n));
        }
        for (number, (_, n)) in fillers {
            assert_eq!(get("filler", &format!("filler:{number}")), Some(n.to_string()));
        }
    }
    assert!(backups.windows(2).all(|pair| pair[0].1 < pair[1].1));
    println!("PROMISE backup.state_of_a_commit {} backups, {commits} commits in them held", backups.len());
}

#[test]
fn lives_tags_clears_and_versions_come_back_and_memory_caches_by_load() {
    let home = Home::configured(KEEP);
    let _daemon = home.start();
    let client = home.client();
    let disk = client.cache("disk");
    for n in 0..300 {
        let options = PutOptions::new().ttl(LONG).stale_for(LONG).tag(format!("t{}", n % 3)).tag([0xff]);
        disk.put_with(format!("{}:{n:03}", n % 5), format!("v{n}"), &options).unwrap();
        client.cache("quick").put_with(format!("q{n}"), format!("v{n}"), &options).unwrap();
    }
    client.cache("other").put("forever", vec![0_u8, 255, 10], None).unwrap();
    client.cache("empty").put("k", "v", LONG).unwrap();
    client.cache("empty").clear(Effect::Gone).unwrap();
    disk.clear_tag("t1", Effect::Stale).unwrap();
    disk.clear_prefix("4:", Effect::Gone).unwrap();
    disk.expire("0:000", Ttl::After(Duration::from_millis(1))).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    let file = home.path().join("all.kvd");
    let name = file.to_str().unwrap();
    let (code, out, err) = kvd(&home, &["backup", name, "--with-memory"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("4 caches, 541 items") && out.contains("read back whole"), "{out}");
    assert!(!file.with_extension("kvd.partial").exists());
    // What comes later is not in it.
    disk.put("later", "x", LONG).unwrap();
    let other = restored(&file);
    let daemon = other.start();
    let back = other.client();
    let all = |client: &kv_client::blocking::Client| {
        let pages = client.cache("disk").scan("").stale().values();
        let items: BTreeMap<_, _> = pages.flat_map(|page| page.unwrap().items).collect();
        items
    };
    let (mut was, is) = (all(&client), all(&back));
    was.remove(&b"later"[..]);
    assert_eq!(was.keys().collect::<Vec<_>>(), is.keys().collect::<Vec<_>>());
    for (key, was) in &was {
        let is = &is[key];
        assert_eq!(
            (&was.value, was.version, &was.tags, was.freshness),
            (&is.value, is.version, &is.tags, is.freshness)
        );
        let apart = was.expires_in_ms.unwrap().abs_diff(is.expires_in_ms.unwrap());
        assert!(apart < 20_000, "the end of its life moved by {apart} ms");
    }
    assert_eq!(back.cache("other").get("forever").unwrap(), Some(vec![0, 255, 10]));
    assert_eq!(back.cache("other").ttl("forever").unwrap(), Some(Life::Forever));
    assert!(back.cache("empty").get("k").unwrap().is_none());
    let fresh = back.cache("disk").put("new", "v", LONG).unwrap();
    assert!(was.values().all(|item| item.version < fresh), "versions never repeat");
    assert!(back.cache("quick").get("q1").unwrap().is_none());
    let (code, out, err) = kvd(&other, &["load", name, "--format", "backup", "--cache", "quick"]);
    assert!(code == 0 && out.starts_with("541 items put"), "{out} {err}");
    assert_eq!(back.cache("quick").get("q1").unwrap().as_deref(), Some(&b"v1"[..]));
    assert!(daemon.stop().0.success());
}

#[test]
fn a_restore_never_overwrites_a_store_and_a_damaged_backup_is_found_before_anything_is_touched() {
    let home = Home::configured(KEEP);
    let daemon = home.start();
    home.client().cache("c").put("k", "old", LONG).unwrap();
    let file = home.path().join("b.kvd");
    let (name, dir) = (file.to_str().unwrap(), home.path().to_str().unwrap());
    let config = home.path().join("kvd.toml");
    let restore = |name: &str, more: &[&str]| {
        kvd(&home, &[&["restore", name, "--dir", dir, "--config", config.to_str().unwrap()], more].concat())
    };
    assert_eq!(kvd(&home, &["backup", name]).0, 0);
    home.client().cache("c").put("k", "new", LONG).unwrap();
    let (code, _, err) = restore(name, &["--replace"]);
    assert!(code == 78 && err.contains("held by pid"), "{code} {err}");
    assert!(daemon.stop().0.success());
    let (code, _, err) = restore(name, &[]);
    assert!(code == 4 && err.contains("--replace") && err.lines().count() == 1, "{code} {err}");
    let good = std::fs::read(&file).unwrap();
    let damaged = home.path().join("damaged.kvd");
    for (bytes, why) in [
        (good[..good.len() - 3].to_vec(), "cut off"),
        ([&good[..60], &[good[60] ^ 1], &good[61..]].concat(), "damaged at byte"),
        (b"something else entirely".to_vec(), "not a backup"),
    ] {
        std::fs::write(&damaged, bytes).unwrap();
        for args in [
            &["restore", damaged.to_str().unwrap(), "--dir", dir, "--replace"][..],
            &["check", damaged.to_str().unwrap()],
        ] {
            let (code, _, err) = kvd(&home, args);
            assert!(code == 70 && err.contains(why) && err.lines().count() == 1, "{args:?} {code} {err}");
        }
    }
    assert_eq!(kvd(&home, &["check", name]).0, 0);
    let back = home.start();
    assert_eq!(
        home.client().cache("c").get("k").unwrap().as_deref(),
        Some(&b"new"[..]),
        "nothing was touched"
    );
    assert!(back.stop().0.success());
    let (code, out, err) = restore(name, &["--replace"]);
    assert!(code == 0 && err.contains(".replaced-"), "{out} {err}");
    let back = home.start();
    assert_eq!(home.client().cache("c").get("k").unwrap().as_deref(), Some(&b"old"[..]));
    let (code, _, err) = kvd(&home, &["backup", "/nonexistent/dir/b.kvd"]);
    assert!(code == 2 && err.contains("/nonexistent/dir/b.kvd"), "{code} {err}");
    assert!(back.stop().0.success());
}

#[test]
fn a_check_finds_sound_what_is_and_names_what_is_not() {
    let home = Home::configured(KEEP);
    let daemon = home.start();
    let client = home.client();
    for n in 0..2_000 {
        client.cache("c").put(format!("k{n:04}"), "findme-".repeat(20), LONG).unwrap();
    }
    let (code, out, err) = kvd(&home, &["check"]);
    assert!(code == 0 && out.starts_with("sound: checksums of 1000 items, 1000 of them"), "{out} {err}");
    let (code, out, _) = kvd(&home, &["check", "--json", "--samples", "80"]);
    assert!(code == 0 && out.contains("\"sound\":true") && out.contains("\"items\":80"), "{out}");
    let dir = home.path().to_str().unwrap();
    let (code, _, err) = kvd(&home, &["check", "--offline", "--dir", dir]);
    assert!(code == 78 && err.contains("held by pid"), "{err}");
    // A killed daemon leaves records behind that a start would replay.
    client.sync().unwrap();
    client.cache("c").put("last", "v", LONG).unwrap();
    daemon.kill();
    let before = std::fs::read(home.path().join("store.redb")).unwrap();
    let (code, out, err) = kvd(&home, &["check", "--offline", "--dir", dir, "--json"]);
    assert_eq!(code, 0, "{out} {err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let count = |name: &str| json[name].as_u64().unwrap();
    assert!(count("items") + count("journal_records") > 0, "{out}");
    assert!(std::fs::read(home.path().join("store.redb")).unwrap() == before, "checking changes nothing");
    assert!(home.start().stop().0.success());
    // One byte of every value, on the disk: some lie in pages that nothing leads to any more.
    let mut bytes = std::fs::read(home.path().join("store.redb")).unwrap();
    let places: Vec<usize> = (0..bytes.len() - 7).filter(|at| bytes[*at..].starts_with(b"findme-")).collect();
    places.iter().step_by(20).for_each(|at| bytes[*at] ^= 1);
    std::fs::write(home.path().join("store.redb"), bytes).unwrap();
    let (code, out, err) = kvd(&home, &["check", "--offline", "--dir", dir]);
    assert!(code == 70 && out.is_empty() && !err.is_empty(), "{code} {out} {err}");
}
