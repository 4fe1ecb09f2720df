//! Every operation by blocking client, async client and command line, against a daemon process.

use std::time::Duration;

use kv_client::{Effect, ErrorKind, Initial, PutOptions, Ttl};

use crate::support::{Home, text};

const LONG: Duration = Duration::from_secs(3_600);
const MIB: usize = 1 << 20;

#[test]
fn values_of_all_sizes_and_keys_of_any_bytes_come_back_as_they_went() {
    let home = Home::new();
    let daemon = home.start();
    let client = home.client();
    let every_byte: Vec<u8> = (0..=255).collect();
    let long_key = vec![0xff; 1_024];
    for (name, size) in
        [("empty", 0), ("one", 1), ("p", 4_095), ("page", 4_096), ("chunk", 65_537), ("mib", MIB)]
    {
        let value: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        for cache in ["disk", "other"] {
            client.cache(cache).put(name, &value, LONG).unwrap();
            assert_eq!(client.cache(cache).get(name).unwrap().as_ref(), Some(&value), "{name}");
        }
    }
    for key in [&every_byte[..], &[0], &[255], b"\n", &long_key] {
        client.cache("disk").put(key, key, LONG).unwrap();
        assert_eq!(client.cache("disk").get(key).unwrap().as_deref(), Some(key));
    }
    client.sync().unwrap();
    daemon.kill();
    let _daemon = home.start();
    let client = home.client();
    assert_eq!(client.cache("disk").get("mib").unwrap().map(|value| value.len()), Some(MIB));
    assert_eq!(client.cache("disk").get(&long_key).unwrap(), Some(long_key));
}

#[test]
fn sixteen_mebibytes_when_configured_and_too_large_beyond_any_limit() {
    let home = Home::configured("memory = \"256MiB\"\nvalue_max = \"16MiB\"\n");
    let _daemon = home.start();
    let cache = home.client().cache("large");
    let value = vec![3_u8; 16 * MIB];
    cache.put("k", &value, LONG).unwrap();
    assert!(cache.get("k").unwrap() == Some(value), "16 MiB come back as they went");
    let error = cache.put("k", vec![0; 16 * MIB + 1], LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("16777217") && error.to_string().contains("16777216"), "{error}");
    assert!(cache.get("k").unwrap().is_some(), "a refused put loses nothing");
}

#[test]
fn put_under_conditions() {
    let home = Home::new();
    let _daemon = home.start();
    let cache = home.client().cache("c");
    let first = cache.put_with("k", "1", PutOptions::new().if_absent()).unwrap();
    assert!(first.is_written());
    assert!(!cache.put_with("k", "2", PutOptions::new().if_absent()).unwrap().is_written());
    let version = first.version().unwrap();
    let second = cache.put_with("k", "3", PutOptions::new().if_version(version)).unwrap();
    assert!(second.is_written());
    assert!(!cache.put_with("k", "4", PutOptions::new().if_version(version)).unwrap().is_written());
    assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"3"[..]));
    assert!(!cache.put_with("gone", "4", PutOptions::new().if_version(version)).unwrap().is_written());
}

#[test]
fn delete_take_and_increment_say_what_was_there() {
    let home = Home::new();
    let _daemon = home.start();
    let cache = home.client().cache("c");
    cache.put("k", "v", LONG).unwrap();
    assert!(!cache.delete("other").unwrap());
    assert!(cache.delete("k").unwrap() && !cache.delete("k").unwrap());
    cache.put("k", "v", LONG).unwrap();
    assert_eq!(cache.take("k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(cache.take("k").unwrap(), None);
    assert_eq!(cache.increment("n", 5, Initial::value(1)).unwrap(), 1);
    assert_eq!(cache.increment("n", 5, Initial::value(1)).unwrap(), 6);
    assert_eq!(cache.increment("n", -10, Initial::value(1)).unwrap(), -4);
    cache.put("text", "hello", LONG).unwrap();
    assert_eq!(cache.increment("text", 1, Initial::value(0)).unwrap_err().kind(), ErrorKind::Invalid);
    cache.put("max", i64::MAX.to_string(), LONG).unwrap();
    assert_eq!(cache.increment("max", 1, Initial::value(0)).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(cache.get("max").unwrap(), Some(i64::MAX.to_string().into_bytes()));
}

#[test]
fn commit_is_all_or_nothing_across_caches() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    let fresh = client.batch().expect_absent("new", "k").put("new", "k", "1", LONG).commit();
    assert!(fresh.is_ok(), "a commit may check a cache that it creates: {fresh:?}");
    let done = client.batch().put("a", "k", "1", LONG).put("b", "k", "1", LONG).commit().unwrap();
    let version = client.cache("a").describe("k").unwrap().unwrap().version;
    assert_eq!(version, client.cache("b").describe("k").unwrap().unwrap().version, "one sequence");
    assert_eq!(done.version, version);
    let refused = client
        .batch()
        .expect_version("a", "k", version)
        .expect_absent("b", "k")
        .put("a", "k", "2", LONG)
        .delete("b", "k")
        .commit();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(client.cache("a").get("k").unwrap().as_deref(), Some(&b"1"[..]));
    let batch = client.batch().expect_version("a", "k", version).delete("b", "k").put("a", "k", "2", LONG);
    assert_eq!(batch.commit().unwrap().changed, 2);
    assert_eq!(client.cache("b").get("k").unwrap(), None);
}

#[test]
fn commit_is_never_seen_half() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    let keys = ["k1", "k2", "k3", "k4"];
    let put = |value: &str| {
        keys.iter().fold(client.batch(), |batch, key| batch.put("c", key, value, LONG)).commit().unwrap()
    };
    put("0");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let cache = home.client().cache("c");
            let mut last = 0;
            while last < 499 {
                let values = cache.get_many(&keys).unwrap();
                assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "half a commit: {values:?}");
                let now: u32 = text(values[0].as_ref().unwrap()).parse().unwrap();
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        });
        for value in 1..500 {
            put(&value.to_string());
        }
        reader.join().unwrap();
    });
}

#[test]
fn clears_cover_exactly_what_they_name() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    let (a, b) = (client.cache("a"), client.cache("b"));
    let fill = || {
        for cache in [&a, &b] {
            cache.put_with("user:1", "v", PutOptions::new().ttl(LONG).tag("red")).unwrap();
            cache.put_with("user:2", "v", PutOptions::new().ttl(LONG).tag("blue").tag("red")).unwrap();
            cache.put_with("sku:1", "v", PutOptions::new().ttl(LONG).tag("blue")).unwrap();
        }
    };
    let left = |cache: &kv_client::blocking::Cache| {
        let page = cache.scan("").next_page().unwrap().unwrap();
        page.items.into_iter().map(|(key, _)| text(&key)).collect::<Vec<_>>()
    };
    fill();
    a.clear_prefix("user:", Effect::Gone).unwrap();
    assert_eq!((left(&a), left(&b).len()), (vec!["sku:1".to_owned()], 3));
    fill();
    b.clear_tag("red", Effect::Gone).unwrap();
    assert_eq!((left(&a).len(), left(&b)), (3, vec!["sku:1".to_owned()]));
    fill();
    client.clear_tag("blue", Effect::Gone).unwrap();
    assert_eq!((left(&a), left(&b)), (vec!["user:1".to_owned()], vec!["user:1".to_owned()]));
    fill();
    a.clear(Effect::Stale).unwrap();
    assert_eq!((left(&a).len(), left(&b).len()), (0, 3));
    assert!(a.get_entry("user:1").unwrap().is_some(), "stale is not gone");
    client.clear_all(Effect::Gone).unwrap();
    assert_eq!((left(&b).len(), a.get_entry("user:1").unwrap()), (0, None));
    a.put("user:1", "new", LONG).unwrap();
    assert_eq!(left(&a), ["user:1"], "what is put after a clear lives");
    assert_eq!(client.cache("typo").clear(Effect::Gone).unwrap_err().kind(), ErrorKind::UnknownCache);
}

#[test]
fn scan_pages_go_on_under_concurrent_deletes_and_miss_nothing_that_stays() {
    let home = Home::with(&["--memory", "64MiB"]);
    let _daemon = home.start();
    let client = home.client();
    let cache = client.cache("c");
    let pairs: Vec<(String, String)> = (0..3_000).map(|n| (format!("k:{n:05}"), n.to_string())).collect();
    for chunk in pairs.chunks(500) {
        cache.put_many(chunk.iter().map(|(key, value)| (key, value)), LONG).unwrap();
    }
    let mut seen = Vec::new();
    let mut scan = cache.scan("k:").keys_max(100).values();
    let mut page_number = 0;
    while let Some(page) = scan.next_page().unwrap() {
        for (key, entry) in page.items {
            assert_eq!(text(&key), format!("k:{:05}", text(&entry.value).parse::<u32>().unwrap()));
            seen.push(text(&key));
        }
        // Odd keys go, some of them just ahead of the cursor.
        for n in (page_number * 100..(page_number + 2) * 100).filter(|n| n % 2 == 1) {
            cache.delete(format!("k:{n:05}")).unwrap();
        }
        page_number += 1;
    }
    assert!(seen.is_sorted());
    let even = seen.iter().filter(|key| key.ends_with(['0', '2', '4', '6', '8'])).count();
    assert_eq!(even, 1_500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_client_has_the_same_operations() {
    let home = Home::new();
    let _daemon = home.start();
    let client = kv_client::Client::builder().socket(home.socket()).build().await.unwrap();
    let cache = client.cache("c");
    let version = Some(cache.put("k", "v", LONG).await.unwrap());
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(Some(cache.get_entry("k").await.unwrap().unwrap().version), version);
    assert!(cache.contains("k").await.unwrap());
    assert!(cache.describe("k").await.unwrap().unwrap().value.is_empty());
    assert!(!cache.put_with("k", "w", PutOptions::new().if_absent()).await.unwrap().is_written());
    assert_eq!(cache.increment("n", 2, Initial::value(40)).await.unwrap(), 40);
    assert_eq!(cache.increment("n", 2, Initial::value(40)).await.unwrap(), 42);
    cache.put_many([("a", "1"), ("b", "2")], LONG).await.unwrap();
    let many = cache.get_many(&["b", "x", "a"]).await.unwrap();
    assert_eq!(many, [Some(b"2".to_vec()), None, Some(b"1".to_vec())]);
    assert!(cache.expire("a", Ttl::Now).await.unwrap().is_some());
    assert_eq!(cache.take("b").await.unwrap().as_deref(), Some(&b"2"[..]));
    assert!(cache.delete("k").await.unwrap());
    let batch = client.batch().put("c", "x", "1", LONG).put("d", "x", "1", LONG).expect_absent("c", "x");
    assert_eq!(batch.commit().await.unwrap().changed, 2);
    let page = cache.scan("").next_page().await.unwrap().unwrap();
    assert_eq!(page.items.iter().map(|(key, _)| text(key)).collect::<Vec<_>>(), ["n", "x"]);
    cache.clear(Effect::Gone).await.unwrap();
    assert_eq!(cache.get("x").await.unwrap(), None);
    client.sync().await.unwrap();
    assert!(client.admin().caches().await.unwrap().iter().any(|info| info.name == "d"));
    assert!(!client.admin().stats().await.unwrap().is_empty());
    client.ping().await.unwrap();
}

#[test]
fn command_line_has_the_same_operations_and_documented_exit_codes() {
    let home = Home::new();
    let _daemon = home.start();
    let run = |args: &[&str]| {
        let output = home.kvd(args);
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(run(&["put", "c", "k", "hello", "--ttl", "1h", "--tag", "t"]).0, 0);
    assert_eq!(run(&["get", "c", "k"]), (0, "hello\n".to_owned(), String::new()));
    assert_eq!(run(&["get", "c", "k", "--raw"]).1, "hello");
    let (code, out, _) = run(&["get", "c", "nothing"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(run(&["put", "c", "k", "x", "--if-absent"]).0, 3);
    assert!(run(&["describe", "c", "k"]).1.contains("59m"));
    assert_eq!(run(&["increment", "c", "n", "--initial", "7"]).1, "7\n");
    assert_eq!(run(&["increment", "c", "n", "5"]).1, "12\n");
    assert!(run(&["scan", "c"]).1.contains('k'));
    assert_eq!(run(&["expire", "c", "k", "5m"]).0, 0);
    assert_eq!(run(&["take", "c", "k"]).1, "hello\n");
    assert_eq!(run(&["delete", "c", "k"]).0, 1);
    assert_eq!(run(&["clear", "--tag", "t"]).0, 0);
    assert_eq!(run(&["clear", "c", "--yes"]).0, 0);
    assert_eq!(run(&["get", "c", "n"]).0, 1);
    assert!(run(&["caches"]).1.contains('c'));
    assert!(run(&["stats"]).1.contains("put"));
    assert_eq!(run(&["sync"]).0, 0);
    assert_eq!(run(&["ping"]).0, 0);
    assert_eq!(run(&["drop", "c", "--yes"]).0, 0);
    let (code, _, err) = run(&["get", "c", "k"]);
    assert!(code == 4 && err.contains("no cache is called"), "{code} {err}");
    assert_eq!(run(&["get", "c"]).0, 2);
    let away = Home::new();
    let output = away.kvd(&["get", "c", "k"]);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("kvd serve"), "{}", text(&output.stderr));
}
