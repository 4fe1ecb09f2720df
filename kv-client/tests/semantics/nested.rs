//! Loads inside loads, locks and transactions: whoever would wait behind itself is told so, and nothing hangs.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{ErrorKind, Fill};
use kvd::config::LockingMode;

use crate::support::*;

/// The loader of each key loads the next of the ring, in a client of its own, once all are under way.
fn ring(server: &kvd::testing::TestServer, clients: &[Client]) -> Vec<kv_client::Result<Vec<u8>>> {
    let barrier = Barrier::new(clients.len());
    let size = clients.len();
    let begun = Instant::now();
    let results = std::thread::scope(|scope| {
        let calls: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(n, client)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let cache = client.cache("ring");
                    cache.get_or_load(format!("{n}"), None, |_| {
                        barrier.wait();
                        let next = format!("{}", (n + 1) % size);
                        cache.get_or_load(next, None, |_| bytes::<kv_client::Error>("leaf"))
                    })
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(begun.elapsed() < Duration::from_secs(3), "it waited for a deadline: {:?}", begun.elapsed());
    until_nothing_is_held(server);
    results
}

#[test]
fn semantic_13_a_loader_that_loads_its_own_key_gets_a_deadlock_that_names_it() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let error = cache
        .get_or_load("42", None, |_| cache.get_or_load("42", None, |_| bytes::<kv_client::Error>("never")))
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("key 42 of cache c"), "{text}");
    let kv_client::Error::Loader { source, .. } = &error else { panic!("{error}") };
    let cause = source.downcast_ref::<kv_client::Error>();
    assert_eq!(cause.map(kv_client::Error::kind), Some(ErrorKind::Deadlock));
    until_nothing_is_held(&server);
    assert_eq!(cache.get_or_load("42", None, |_| bytes::<Never>("v")).unwrap(), b"v");
}

#[test]
fn semantic_13_rings_of_two_and_three_end_in_one_process_and_across() {
    let server = kvd::testing::server();
    let one = server.client();
    for clients in [
        vec![one.clone(), one.clone()],
        vec![server.client(), server.client()],
        vec![one.clone(), one.clone(), one.clone()],
        vec![server.client(), server.client(), server.client()],
    ] {
        one.cache("ring").put("x", "v", None).unwrap();
        one.cache("ring").clear(kv_client::Effect::Gone).unwrap();
        for result in ring(&server, &clients) {
            assert_eq!(result.unwrap(), b"leaf");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn semantic_13_async_two_clients_that_need_each_others_keys_end_among_a_hundred_gets() {
    let server = kvd::testing::server();
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let clients = [async_client(&server).await, async_client(&server).await];
    clients[0].cache("c").put("unrelated", "v", None).await.unwrap();
    let begun = Instant::now();
    let mut loads = Vec::new();
    for (client, keys) in clients.iter().zip([("k1", "k2"), ("k2", "k1")]) {
        let (cache, barrier) = (client.cache("c"), Arc::clone(&barrier));
        let inner = cache.clone();
        loads.push(tokio::spawn(async move {
            let load = move |_: Fill<Vec<u8>>| async move {
                barrier.wait().await;
                inner.get_or_load(keys.1, None, |_| async { bytes::<kv_client::Error>("leaf") }).await
            };
            cache.get_or_load(keys.0, None, load).await
        }));
    }
    let gets: Vec<_> = (0..100)
        .map(|n| {
            let cache = clients[n % 2].cache("c");
            tokio::spawn(async move { cache.get("unrelated").await })
        })
        .collect();
    for get in gets {
        assert_eq!(get.await.unwrap().unwrap().unwrap(), b"v");
    }
    for load in loads {
        assert_eq!(load.await.unwrap().unwrap(), b"leaf");
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_13_async_a_loader_that_loads_its_own_key_gets_a_deadlock_that_names_it() {
    let server = kvd::testing::server();
    let cache = async_client(&server).await.cache("c");
    let inner = cache.clone();
    let load = |_| async move { inner.get_or_load("42", None, |_| async { bytes::<Never>("never") }).await };
    let error = cache.get_or_load("42", None, load).await.unwrap_err();
    assert!(error.to_string().contains("key 42 of cache c"), "{error}");
    until_nothing_is_held(&server);
}

#[test]
fn semantic_13_a_load_inside_a_transaction_never_waits_for_another_process_in_any_locking_mode() {
    for mode in [LockingMode::Database, LockingMode::Key, LockingMode::Optimistic] {
        let server = kvd::testing::server_with(|config| config.locking = mode);
        let (inside, other) = (server.client(), server.client());
        inside.cache("c").put("stock", "7", None).unwrap();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let (start, started) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let loading = scope.spawn(move || {
                other.cache("c").get_or_load("k", None, |_| {
                    start.send(()).unwrap();
                    let _ = ended.recv();
                    bytes::<Never>("theirs")
                })
            });
            started.recv().unwrap();
            let value = inside.transact(|tx| {
                tx.put("c", "stock", "6", None)?;
                let cache = inside.cache("c");
                let taken = cache.get_or_load("k", None, |_| bytes::<kv_client::Error>("mine"))?;
                let free = cache.get_or_load("free", None, |_| bytes::<kv_client::Error>("mine"))?;
                let many = cache.get_or_load_many(&["k", "l"], None, |missing| {
                    missing.keys().iter().for_each(|key| drop(missing.found(key, b"mine".to_vec())));
                    Ok::<_, kv_client::Error>(())
                })?;
                Ok::<_, kv_client::Error>((taken, free, many))
            });
            let mine = b"mine".to_vec();
            let expected = (mine.clone(), mine.clone(), vec![Some(mine.clone()), Some(mine)]);
            assert_eq!(value.unwrap(), expected, "{mode:?}");
            drop(end);
            assert_eq!(loading.join().unwrap().unwrap(), b"theirs");
        });
        assert!(begun.elapsed() < Duration::from_secs(2), "{mode:?}: {:?}", begun.elapsed());
        assert_eq!(
            inside.cache("c").get("free").unwrap(),
            None,
            "what a transaction loads it does not store"
        );
        until_nothing_is_held(&server);
    }
}

#[test]
fn semantic_13_a_ring_of_a_lock_and_a_load_is_broken() {
    let server = kvd::testing::server();
    let (one, other) = (server.client(), server.client());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let (start, started) = std::sync::mpsc::channel();
        let lock = one.lock("job", MINUTE).unwrap();
        let loading = scope.spawn(move || {
            let inside = other.clone();
            other.cache("c").get_or_load("k", None, move |_| {
                start.send(()).unwrap();
                inside.lock("job", MINUTE).map(|_lock| b"with the lock".to_vec())
            })
        });
        started.recv().unwrap();
        until_waiting(&server, 1);
        let value = one.cache("c").get_or_load("k", None, |_| bytes::<Never>("alone"));
        assert_eq!(value.unwrap(), b"alone", "it would wait for whoever waits for its lock");
        drop(lock);
        assert_eq!(loading.join().unwrap().unwrap(), b"with the lock");
    });
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// See `a_lock_leaves_the_chain_wherever_it_stands_and_whoever_gives_it_back`: this is what an application saw of it.
#[test]
fn semantic_13_locks_given_back_in_any_order_and_thread_leave_no_trace() {
    let server = kvd::testing::server();
    let client = server.client();
    for _ in 0..20 {
        let first = client.lock("first", MINUTE).unwrap();
        let second = client.lock("second", MINUTE).unwrap();
        drop(first);
        std::thread::scope(|scope| drop(scope.spawn(move || drop(second))));
    }
    let cache = client.cache("c");
    let value = cache.entry("k").ttl(MINUTE).refresh_ahead(0.5).get_or_load(|_| bytes::<Never>("v"));
    assert_eq!(value.unwrap(), b"v");
    server.clock().advance(MINUTE * 3 / 4);
    let ahead = cache.entry("k").ttl(MINUTE).refresh_ahead(0.5).get_or_load(|_| bytes::<Never>("again"));
    assert_eq!(ahead.unwrap(), b"again", "this thread holds nothing");
}
