//! What is repeated, what a dropped future leaves behind (nothing), and that streams are never mixed up.

use std::sync::Arc;
use std::time::Duration;

use kv_client::{ErrorKind, PutOptions};

use crate::support::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn semantic_07_the_first_request_of_each_kind_after_a_restart_succeeds() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    let client = by_socket(relay.socket()).build().unwrap();
    let cache = client.cache("c");
    cache.put("k", "v", None).unwrap();
    let requests: [(&str, &dyn Fn()); 6] = [
        ("get", &|| assert!(cache.get("k").unwrap().is_some())),
        ("put", &|| ignore(cache.put("k", "v", None).unwrap())),
        ("get_or_load", &|| {
            cache.delete("l").unwrap();
            relay.cut();
            assert_eq!(cache.get_or_load("l", None, |_| bytes::<Never>("v")).unwrap(), b"v");
        }),
        ("lock", &|| drop(client.lock("name", MINUTE).unwrap())),
        ("transact", &|| client.transact(|tx| tx.put("c", "k", "v", None).map(drop)).unwrap()),
        ("durable", &|| ignore(cache.put_with("k", "v", PutOptions::new().durable()).unwrap())),
    ];
    for (_name, request) in requests {
        relay.cut();
        request();
    }
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_07_async_the_first_request_of_each_kind_after_a_restart_succeeds() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    let client =
        kv_client::Client::builder().socket(relay.socket()).shared_memory(false).build().await.unwrap();
    let cache = client.cache("c");
    cache.put("k", "v", None).await.unwrap();
    for n in 0..3 {
        relay.cut();
        assert!(cache.get("k").await.unwrap().is_some());
        relay.cut();
        cache.put("k", "v", None).await.unwrap();
        relay.cut();
        let key = format!("l{n}");
        let value = cache.get_or_load(key, None, |_| async { bytes::<Never>("v") }).await;
        assert_eq!(value.unwrap(), b"v");
        relay.cut();
        drop(client.lock("name", MINUTE).await.unwrap());
        relay.cut();
        client.transact(async |tx| tx.put("c", "k", "v", None).await.map(drop)).await.unwrap();
    }
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_07_async_dropped_futures_leave_no_lease_lock_or_watch() {
    let server = Arc::new(kvd::testing::server());
    let client = async_client(&server).await;
    let holder = async_client(&server).await;
    holder.cache("c").put("there", "v", None).await.unwrap();
    let held_lock = holder.lock("name", HOUR).await.unwrap();
    let before = server.direct().admin().clients().unwrap().len();
    for n in 0..30 {
        let (cache, client, key) = (client.cache("c"), client.clone(), format!("k{n}"));
        let work = tokio::spawn(async move {
            match n % 5 {
                0 => {
                    let load = |_: kv_client::Missing<Vec<u8>>| async {
                        std::future::pending::<Result<(), Never>>().await
                    };
                    drop(cache.get_or_load_many(&[&key], None, load).await);
                }
                1 => drop(client.lock("name", HOUR).await),
                2 => {
                    let mut watch = client.watch(None, "").await.unwrap();
                    loop {
                        drop(watch.next().await);
                    }
                }
                3 => loop {
                    drop(cache.put_with(&key, "v", PutOptions::new().durable()).await);
                },
                _ => {
                    let mut tx = client.begin().await.unwrap();
                    tx.put("c", &key, "v", None).await.unwrap();
                    std::future::pending::<()>().await;
                }
            }
        });
        tokio::time::sleep(ms(3)).await;
        work.abort();
        let _ = work.await;
    }
    drop(held_lock);
    until_nothing_is_held(&server);
    until("connections to be given back", || server.direct().admin().clients().unwrap().len() <= before + 6);
    assert_eq!(client.cache("c").get("there").await.unwrap().unwrap(), b"v");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_07_async_a_dropped_get_or_load_goes_on_and_gives_its_lease_back() {
    let server = kvd::testing::server();
    let client = async_client(&server).await;
    let end = Arc::new(tokio::sync::Notify::new());
    let waits = Arc::clone(&end);
    let load = move |_| async move {
        waits.notified().await;
        bytes::<Never>("loaded")
    };
    let dropped = tokio::time::timeout(ms(10), client.cache("c").get_or_load("k", None, load)).await;
    assert!(dropped.is_err());
    end.notify_one();
    until("the load to end", || client.stats().caches[0].loads.loads == 1);
    until_nothing_is_held(&server);
    assert_eq!(client.cache("c").get("k").await.unwrap().unwrap(), b"loaded");
}

#[test]
fn semantic_07_async_a_runtime_that_ends_in_the_middle_of_a_load_gives_the_lease_back() {
    let server = kvd::testing::server();
    let client = kv_client::Client::builder().socket(server.socket()).build_lazy();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let cache = client.cache("c");
    drop(first.spawn(async move {
        let load = |_| async { std::future::pending::<Result<Vec<u8>, Never>>().await };
        cache.get_or_load("k", None, load).await
    }));
    until("the lease", || held(&server).len() == 1);
    let (second, cache) = (runtime(), client.cache("c"));
    let joined =
        second.spawn(async move { cache.get_or_load("k", None, |_| async { bytes::<Never>("own") }).await });
    until("the second to wait", || client.stats().caches[0].loads.coalesced == 1);
    drop(first);
    let error = second.block_on(joined).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader, "{error}");
    until_nothing_is_held(&server);
    let value = second.block_on(client.cache("c").get_or_load("k", None, |_| async { bytes::<Never>("v") }));
    assert_eq!(value.unwrap(), b"v");
}

/// The connection went back to the pool although the answer to what it was asked last had not come: the next call read it.
#[test]
fn semantic_07_an_answer_that_comes_late_is_nobody_elses() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    server.client().cache("c").put("there", "v", None).unwrap();
    let client = by_socket(relay.socket()).op_timeout(ms(80)).connect_timeout(ms(80)).build_lazy();
    until("a connection", || client.ping().is_ok());
    let cache = client.cache("c");
    for many in [false, true] {
        let failed = if many {
            let load = |missing: &kv_client::Missing<Vec<u8>>| {
                missing.found("a", b"1".to_vec());
                relay.stop();
                Ok::<_, Never>(())
            };
            cache.get_or_load_many(&["a", "b"], None, load).map(drop)
        } else {
            let load = |_: &kv_client::Fill<Vec<u8>>| {
                relay.stop();
                Err::<Vec<u8>, _>(std::io::Error::other("no database"))
            };
            cache.get_or_load("k", None, load).map(drop)
        };
        assert_eq!(failed.is_ok(), many);
        relay.go_on();
        for _ in 0..20 {
            if let Some(value) = cache.get("there").unwrap() {
                assert_eq!(value, b"v");
            }
        }
        until("the daemon to be found", || cache.get("there").unwrap().is_some());
    }
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_07_async_an_answer_that_comes_late_is_nobody_elses() {
    let server = kvd::testing::server();
    let relay = Arc::new(Relay::to(server.socket()));
    let client = kv_client::Client::builder().socket(relay.socket()).shared_memory(false);
    server.client().cache("c").put("there", "v", None).unwrap();
    let client = client.op_timeout(ms(80)).connect_timeout(ms(80)).build_lazy();
    while client.ping().await.is_err() {}
    let cache = client.cache("c");
    let stopping = Arc::clone(&relay);
    let load = move |_| async move {
        stopping.stop();
        Err::<Vec<u8>, _>(std::io::Error::other("no database"))
    };
    assert_eq!(cache.get_or_load("k", None, load).await.unwrap_err().kind(), ErrorKind::Loader);
    relay.go_on();
    let begun = std::time::Instant::now();
    loop {
        match client.lock("name", MINUTE).await {
            Ok(lock) => break lock.unlock().await.unwrap(),
            Err(error) => assert_ne!(error.kind(), ErrorKind::Protocol, "{error}"),
        }
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(ms(1)).await;
    }
    until_nothing_is_held(&server);
}
