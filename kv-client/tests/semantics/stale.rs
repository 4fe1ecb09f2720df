//! Stale-first, refresh-ahead, jitter and negatives: what time does to items, by a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{ErrorKind, Freshness, PutOptions, SchemaVersion};
use tokio::sync::Notify;

use crate::support::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn put_for(client: &Client, key: &str, ttl: Duration) {
    let options = PutOptions::new().ttl(ttl).stale_for(HOUR);
    assert!(client.cache("c").put_with(key, "old", options).unwrap().is_written());
}

/// Through shared memory and without.
fn both_ways(server: &kvd::testing::TestServer) -> [(&'static str, Client); 2] {
    [("shared", server.client()), ("socket", by_socket(server.socket()).build().unwrap())]
}

#[test]
fn semantic_03_the_first_reader_of_a_stale_item_reloads_and_the_rest_get_it_at_once() {
    let server = kvd::testing::server();
    for (way, client) in both_ways(&server) {
        put_for(&client, "k", s(10));
        server.clock().advance(s(11));
        let (other, cache) = (server.client().cache("c"), client.cache("c"));
        let fresh = cache.get_or_load("k", s(10), |fill| {
            assert_eq!(fill.stale().unwrap(), b"old");
            let served = std::thread::scope(|scope| {
                scope.spawn(|| other.get_or_load("k", s(10), |_| bytes::<Never>("not me"))).join().unwrap()
            });
            assert_eq!(served.unwrap(), b"old", "{way}");
            let here = std::thread::scope(|scope| {
                scope.spawn(|| cache.get_or_load("k", s(10), |_| bytes::<Never>("not me"))).join().unwrap()
            });
            assert_eq!(here.unwrap(), b"old", "{way}: also in the same process");
            bytes::<Never>("new")
        });
        assert_eq!(fresh.unwrap(), b"new", "{way}");
        assert_eq!(other.get("k").unwrap().unwrap(), b"new");
    }
}

#[test]
fn semantic_03_a_failed_reload_serves_the_stale_value_and_waits_the_throttle_time() {
    let server = kvd::testing::server();
    for (way, client) in both_ways(&server) {
        put_for(&client, "k", s(10));
        server.clock().advance(s(11));
        let tries = AtomicUsize::new(0);
        let ask = |client: &Client, throttle| {
            let entry = client.cache("c").entry("k").ttl(s(10)).stale_for(HOUR).throttle(throttle);
            entry.get_or_load(|_| {
                tries.fetch_add(1, Ordering::SeqCst);
                Err::<Vec<u8>, _>(std::io::Error::other("no database"))
            })
        };
        for _ in 0..5 {
            assert_eq!(ask(&client, HOUR).unwrap(), b"old", "{way}");
            assert_eq!(ask(&server.client(), HOUR).unwrap(), b"old", "{way}: others are told as well");
        }
        assert_eq!(tries.swap(0, Ordering::SeqCst), 1, "{way}");
        put_for(&client, "k", s(10));
        server.clock().advance(s(11));
        let begun = Instant::now();
        until("the throttle time", || {
            assert_eq!(ask(&client, Duration::from_millis(10)).unwrap(), b"old");
            tries.load(Ordering::SeqCst) >= 2
        });
        assert!(begun.elapsed() >= Duration::from_millis(10));
    }
    let client = server.client();
    let gone =
        client.cache("c").get_or_load("gone", None, |_| Err::<Vec<u8>, _>(std::io::Error::other("no")));
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::Loader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_03_async_a_stale_value_is_served_at_once_and_reloaded_beside() {
    let server = kvd::testing::server();
    let client = async_client(&server).await;
    for (n, shared) in [true, false].into_iter().enumerate() {
        let key = format!("k{n}");
        let client = kv_client::Client::builder().socket(server.socket()).shared_memory(shared).build();
        let cache = client.await.unwrap().cache("c");
        let aged = PutOptions::new().ttl(s(10)).stale_for(HOUR);
        cache.put_with(&key, "old", aged).await.unwrap();
        server.clock().advance(s(11));
        let (end, waits) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let waits_for = Arc::clone(&end);
        let load = move |_| async move {
            waits_for.notified().await;
            bytes::<Never>("new")
        };
        assert_eq!(cache.get_or_load(&key, s(10), load).await.unwrap(), b"old");
        end.notify_one();
        drop(waits);
        until("the reload", || server.direct().cache("c").get(&key).unwrap().as_deref() == Some(b"new"));
    }
    drop(client);
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_03_async_the_soft_timeout_holds_while_there_is_something_stale_and_the_hard_one_always() {
    let server = kvd::testing::server();
    let cache = async_client(&server).await.cache("c");
    cache.put_with("stale", "old", PutOptions::new().ttl(s(10)).stale_for(HOUR)).await.unwrap();
    server.clock().advance(s(11));
    let ms = Duration::from_millis;
    let entry = |key: &str| cache.entry(key).ttl(s(10)).stale_for(HOUR);
    let quick = entry("stale").soft_timeout(s(9)).get_or_load(|_| async { bytes::<Never>("new") }).await;
    assert_eq!(quick.unwrap(), b"new", "a loader that is quicker than the soft timeout is waited for");
    server.clock().advance(s(11));
    for (key, timeout) in [("stale", "soft"), ("stale", "hard"), ("gone", "hard")] {
        until("nothing to be under way", || held(&server).is_empty());
        server.clock().advance(s(11));
        let (end, begun) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        // The load before may be landing still: then this one is served what is stale, and asks again.
        let answer = loop {
            let (waits, begins) = (Arc::clone(&end), Arc::clone(&begun));
            let load = move |_| async move {
                begins.fetch_add(1, Ordering::SeqCst);
                waits.notified().await;
                bytes::<Never>("late")
            };
            let asked = match timeout {
                "soft" => entry(key).soft_timeout(ms(10)),
                _ => entry(key).hard_timeout(ms(10)),
            };
            let answer = asked.get_or_load(load).await;
            tokio::time::sleep(ms(5)).await;
            if begun.load(Ordering::SeqCst) == 1 {
                break answer;
            }
        };
        match key {
            "gone" => {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Timeout);
                assert!(error.to_string().contains("10ms"), "{error}");
            }
            _ => assert!(["new", "late"].contains(&std::str::from_utf8(&answer.unwrap()).unwrap())),
        }
        end.notify_one();
        until("the loader that overran to fill", || {
            server.direct().cache("c").get(key).unwrap().as_deref() == Some(b"late")
        });
    }
    let error = entry("absent").soft_timeout(ms(5)).hard_timeout(ms(20)).get_or_load(|_| async {
        std::future::pending::<()>().await;
        bytes::<Never>("")
    });
    let begun = Instant::now();
    assert_eq!(error.await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(begun.elapsed() >= ms(20), "without anything stale the soft timeout does not apply");
}

#[test]
fn semantic_03_a_detached_loader_that_overruns_its_timeouts_fills_later() {
    let server = kvd::testing::server();
    let client = server.client();
    put_for(&client, "k", s(10));
    server.clock().advance(s(11));
    for (key, served) in [("k", Some("old")), ("gone", None)] {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let entry =
            client.cache("c").entry(key).ttl(s(10)).stale_for(HOUR).hard_timeout(Duration::from_millis(400));
        let answer = entry.get_or_load_detached(move |_| {
            let _ = ended.recv();
            bytes::<Never>("late")
        });
        match served {
            Some(served) => assert_eq!(answer.unwrap(), served.as_bytes()),
            None => assert_eq!(answer.unwrap_err().kind(), ErrorKind::Timeout),
        }
        drop(end);
        until("the late fill", || client.cache("c").get(key).unwrap().as_deref() == Some(b"late"));
    }
}

#[test]
fn semantic_04_refresh_ahead_fires_once_after_its_fraction_and_keeps_the_load_cost() {
    let server = kvd::testing::server();
    for (way, client) in both_ways(&server) {
        let (other, cache) = (server.client().cache("c"), client.cache("c"));
        cache.put("k", "x", None).unwrap();
        cache.delete("k").unwrap();
        let ask = |value: &'static str| {
            cache.entry("k").ttl(s(100)).refresh_ahead(0.9).get_or_load(|_| {
                std::thread::sleep(Duration::from_millis(3));
                bytes::<Never>(value)
            })
        };
        assert_eq!(ask("first").unwrap(), b"first");
        server.clock().advance(s(80));
        assert_eq!(ask("too soon").unwrap(), b"first", "{way}");
        server.clock().advance(s(11));
        let entry = cache.entry("k").ttl(s(100)).refresh_ahead(0.9);
        let refreshed = entry.get_or_load(|_| {
            let beside = std::thread::scope(|scope| {
                let ask = || {
                    other.entry("k").ttl(s(100)).refresh_ahead(0.9).get_or_load(|_| bytes::<Never>("twice"))
                };
                scope.spawn(ask).join().unwrap()
            });
            assert_eq!(beside.unwrap(), b"first", "{way}: one reader reloads");
            std::thread::sleep(Duration::from_millis(3));
            bytes::<Never>("second")
        });
        assert_eq!(refreshed.unwrap(), b"second", "{way}");
        let entry = cache.get_entry("k").unwrap().unwrap();
        assert!(entry.load_cost >= Duration::from_millis(3), "{way}: {:?}", entry.load_cost);
        assert!(entry.age < s(1), "{way}: it lives anew");
        assert_eq!(stats(&client, "c").loads.refreshes, 1, "{way}");
        server.clock().advance(s(101));
        assert_eq!(cache.get("k").unwrap(), None, "{way}: what nobody reads dies");
    }
}

#[test]
fn semantic_04_a_failed_refresh_ahead_serves_what_is_there() {
    let server = kvd::testing::server();
    for (way, client) in both_ways(&server) {
        client.cache("c").put("k", "old", s(100)).unwrap();
        server.clock().advance(s(95));
        let entry = client.cache("c").entry("k").ttl(s(100)).refresh_ahead(0.9);
        let served = entry.get_or_load(|_| Err::<Vec<u8>, _>(std::io::Error::other("no database")));
        assert_eq!(served.unwrap(), b"old", "{way}");
    }
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_04_async_refresh_ahead_is_beside_its_reader_also_without_shared_memory() {
    let server = kvd::testing::server();
    for shared in [true, false] {
        let client = kv_client::Client::builder().socket(server.socket()).shared_memory(shared).build();
        let cache = client.await.unwrap().cache("c");
        cache.put("k", "old", s(100)).await.unwrap();
        server.clock().advance(s(95));
        let end = Arc::new(Notify::new());
        let waits = Arc::clone(&end);
        let entry = cache.entry("k").ttl(s(100)).stale_for(HOUR).refresh_ahead(0.9).soft_timeout(s(9));
        let load = move |_| async move {
            waits.notified().await;
            bytes::<Never>("new")
        };
        assert_eq!(entry.get_or_load(load).await.unwrap(), b"old", "nobody waits for it");
        end.notify_one();
        until("the reload", || server.direct().cache("c").get("k").unwrap().as_deref() == Some(b"new"));
    }
}

#[test]
fn semantic_05_jitter_spreads_what_was_loaded_together() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let lives: std::collections::BTreeSet<i64> = (0..50)
        .map(|n| {
            let key = format!("{n}");
            let entry = cache.entry(&key).ttl(s(1_000)).jitter(0.5);
            entry.get_or_load(|_| bytes::<Never>("v")).unwrap();
            cache.get_entry(&key).unwrap().unwrap().expires_in_ms.unwrap() / 10_000
        })
        .collect();
    assert!(lives.len() > 10, "{lives:?}");
    assert!(*lives.first().unwrap() >= 49 && *lives.last().unwrap() <= 100, "{lives:?}");
}

#[test]
fn semantic_05_that_there_is_nothing_is_remembered_for_its_own_time() {
    let server = kvd::testing::server();
    for (way, client) in both_ways(&server) {
        let cache = client.cache("n").typed::<String>(SchemaVersion(1));
        let asked = AtomicUsize::new(0);
        let find = || {
            let entry = cache.entry("none").ttl(s(100)).negative_ttl(s(10));
            entry.find_or_load(|_| {
                asked.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Never>(None)
            })
        };
        assert_eq!((find().unwrap(), find().unwrap()), (None, None), "{way}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{way}");
        assert_eq!(cache.get_entry("none").unwrap().unwrap().freshness, Freshness::Negative);
        let taken = cache.entry("none").get_or_load(|_| Ok::<_, Never>("there is one by now".to_owned()));
        assert_eq!(taken.unwrap(), "there is one by now", "{way}: who wants a value loads it");
        cache.delete("none").unwrap();
        find().unwrap();
        server.clock().advance(s(11));
        assert_eq!(find().unwrap(), None);
        assert_eq!(asked.load(Ordering::SeqCst), 3, "{way}");
        cache.delete("none").unwrap();
    }
}

/// After a deployment the daemon still has items of the schema before. Those that are stale were handed to the reader, who
/// could not decode them and failed, in spite of a loader that was about to succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_03_a_stale_item_of_another_schema_is_a_miss_and_not_an_error() {
    let server = kvd::testing::server();
    let options = PutOptions::new().ttl(s(10)).stale_for(HOUR);
    let old = server.client().cache("t").typed::<u64>(SchemaVersion(1));
    for shared in [true, false] {
        for key in ["blocking", "detached", "async"] {
            old.put_with(key, &7, &options).unwrap();
        }
        server.clock().advance(s(11));
        let socket = server.socket();
        let client = kv_client::Client::builder().socket(socket).shared_memory(shared).build().await.unwrap();
        let cache = client.cache("t").typed::<u64>(SchemaVersion(2));
        let value = cache.entry("async").get_or_load(|_| async { Ok::<_, Never>(8) }).await;
        assert_eq!(value.unwrap(), 8);
        let client = Client::builder().socket(socket).shared_memory(shared).build().unwrap();
        let cache = client.cache("t").typed::<u64>(SchemaVersion(2));
        assert_eq!(cache.entry("detached").get_or_load_detached(|_| Ok::<_, Never>(8)).unwrap(), 8);
        let failed =
            cache.entry("blocking").get_or_load(|_| Err::<u64, _>(std::io::Error::other("no database")));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Loader);
    }
}

#[test]
fn semantic_03_bytes_that_do_not_decode_are_a_miss_that_is_counted_once() {
    let server = kvd::testing::server();
    for (way, client) in both_ways(&server) {
        let key = format!("k-{way}");
        client.cache("u").put("warm", "x", None).unwrap();
        client.cache("u").get("warm").unwrap();
        client.cache("u").put(&key, "no postcard", None).unwrap();
        let cache = client.cache("u").typed::<(String, u64)>(SchemaVersion(1));
        let value = cache.get_or_load(&key, None, |_| Ok::<_, Never>(("v".to_owned(), 1)));
        assert_eq!(value.unwrap().1, 1, "{way}");
        assert_eq!(cache.get(&key).unwrap().unwrap().1, 1, "{way}: it was replaced");
        assert_eq!(stats(&client, "u").loads.undecodable, 1, "{way}");
    }
}
