//! One loader a key and host, and no stale set: tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kv_client::{Effect, ErrorKind, OnBusy, Ttl};
use tokio::sync::Notify;

use crate::support::*;

fn joined(client: &kv_client::Client) -> u64 {
    client.stats().caches.iter().map(|stats| stats.loads.coalesced).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn semantic_01_async_one_loader_runs_whoever_missed_and_the_others_get_its_value() {
    let server = Arc::new(kvd::testing::server());
    let loads = Arc::new(AtomicUsize::new(0));
    let mut calls = Vec::new();
    for _ in 0..8 {
        let (client, loads, watched) = (async_client(&server).await, Arc::clone(&loads), Arc::clone(&server));
        calls.push(tokio::spawn(async move {
            let load = move |_| async move {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::task::spawn_blocking(move || until_waiting(&watched, 7)).await.unwrap();
                bytes::<Never>("loaded")
            };
            client.cache("c").get_or_load("k", MINUTE, load).await
        }));
    }
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), b"loaded");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_01_async_the_lease_of_a_loader_that_panics_is_free_at_once() {
    let server = kvd::testing::server();
    let (dying, next) = (async_client(&server).await, async_client(&server).await);
    let load = |_| async { if true { panic!("the loader dies") } else { bytes::<Never>("") } };
    let error = dying.cache("c").get_or_load("k", None, load).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader, "{error}");
    let value = next.cache("c").get_or_load("k", None, |_| async { bytes::<Never>("second") }).await;
    assert_eq!(value.unwrap(), b"second");
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_01_async_a_hung_loader_loses_its_lease_and_its_late_fill_is_refused() {
    let server = kvd::testing::server();
    let (slow, quick) = (async_client(&server).await, async_client(&server).await);
    let (go_on, gone_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (may, has) = (Arc::clone(&go_on), Arc::clone(&gone_on));
    let late = slow.cache("c");
    let late = tokio::spawn(async move {
        let load = move |_| async move {
            has.notify_one();
            may.notified().await;
            bytes::<Never>("late")
        };
        late.entry("k").lease(Duration::from_millis(20)).get_or_load(load).await
    });
    gone_on.notified().await;
    let newer = quick.cache("c").get_or_load("k", None, |_| async { bytes::<Never>("newer") }).await;
    assert_eq!(newer.unwrap(), b"newer");
    go_on.notify_one();
    assert_eq!(late.await.unwrap().unwrap(), b"late");
    assert_eq!(quick.cache("c").get("k").await.unwrap().unwrap(), b"newer");
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_01_async_no_fill_after_an_invalidation_even_by_a_tag_that_only_the_loader_sets() {
    let server = kvd::testing::server();
    let client = async_client(&server).await;
    for event in ["put", "delete", "expire", "clear", "prefix", "tag", "all"] {
        let cache = client.cache("c");
        cache.put("other", "x", None).await.unwrap();
        cache.delete("key").await.unwrap();
        let (inside, everything) = (client.cache("c"), client.clone());
        let load = move |fill: kv_client::Fill<Vec<u8>>| async move {
            fill.add_tag("only-the-loader-knows");
            match event {
                "put" => drop(inside.put("key", "newer", None).await?),
                "delete" => drop(inside.delete("key").await?),
                "expire" => drop(inside.expire("key", Ttl::Now).await?),
                "clear" => drop(inside.clear(Effect::Gone).await?),
                "prefix" => drop(inside.clear_prefix("k", Effect::Gone).await?),
                "tag" => drop(inside.clear_tag("only-the-loader-knows", Effect::Gone).await?),
                _ => drop(everything.clear_all(Effect::Gone).await?),
            }
            bytes::<kv_client::Error>("of before")
        };
        assert_eq!(cache.get_or_load("key", MINUTE, load).await.unwrap(), b"of before", "{event}");
        let there = cache.get("key").await.unwrap();
        assert_eq!(there.as_deref(), (event == "put").then_some(&b"newer"[..]), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_01_async_who_waits_in_vain_loads_for_itself_or_fails_as_it_said() {
    let server = kvd::testing::server();
    let (slow, other) = (async_client(&server).await.cache("c"), async_client(&server).await.cache("c"));
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (says, waits) = (Arc::clone(&begun), Arc::clone(&end));
    let slow = tokio::spawn(async move {
        let load = move |_| async move {
            says.notify_one();
            waits.notified().await;
            bytes::<Never>("slow")
        };
        slow.get_or_load("k", None, load).await
    });
    begun.notified().await;
    let wait = Duration::from_millis(20);
    let own = other.entry("k").wait(wait).get_or_load(|_| async { bytes::<Never>("own") }).await;
    assert_eq!(own.unwrap(), b"own");
    let fails = other.entry("k").wait(wait).on_busy(OnBusy::Fail);
    let error = fails.get_or_load(|_| async { bytes::<Never>("own") }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    end.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), b"slow");
    assert_eq!(other.get("k").await.unwrap().unwrap(), b"slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_02_async_tasks_of_a_process_share_one_load() {
    let server = kvd::testing::server();
    let client = async_client(&server).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (client, loads) = (client.clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                let watched = client.clone();
                let load = move |_| async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    while joined(&watched) < 7 {
                        tokio::task::yield_now().await;
                    }
                    bytes::<Never>("loaded")
                };
                client.cache("c").get_or_load("k", None, load).await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(tokio::time::timeout(SOON, call).await.unwrap().unwrap().unwrap(), b"loaded");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_02_async_a_caller_that_is_dropped_harms_nobody_who_waits_with_it() {
    let server = kvd::testing::server();
    let client = async_client(&server).await;
    let end = Arc::new(Notify::new());
    let (waits, cache) = (Arc::clone(&end), client.cache("c"));
    let first = tokio::spawn(async move {
        let load = move |_| async move {
            waits.notified().await;
            bytes::<Never>("loaded")
        };
        cache.get_or_load("k", None, load).await
    });
    until("the lease", || held(&server).len() == 1);
    let cache = client.cache("c");
    let second =
        tokio::spawn(async move { cache.get_or_load("k", None, |_| async { bytes::<Never>("own") }).await });
    until("the second to join", || joined(&client) == 1);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    end.notify_one();
    assert_eq!(second.await.unwrap().unwrap(), b"loaded");
    until_nothing_is_held(&server);
}
