//! One loader a key and host, and no stale set: threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kv_client::blocking::{Cache, Client};
use kv_client::{Effect, ErrorKind, OnBusy, PutOptions, Ttl};

use crate::support::*;

#[test]
fn semantic_01_one_loader_runs_whoever_missed_and_the_others_get_its_value() {
    let server = kvd::testing::server();
    let loads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // Each a client of its own, as in processes of their own.
            let cache = server.client().cache("c");
            scope.spawn(|| {
                let cache = cache;
                let value = cache.get_or_load("k", MINUTE, |_| {
                    loads.fetch_add(1, Ordering::SeqCst);
                    until_waiting(&server, 7);
                    bytes::<Never>("loaded")
                });
                assert_eq!(value.unwrap(), b"loaded");
            });
        }
    });
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    until_nothing_is_held(&server);
}

#[test]
fn semantic_01_the_lease_of_a_loader_that_dies_is_free_at_once_and_the_next_loads() {
    let server = kvd::testing::server();
    let (dying, next) = (server.client().cache("c"), server.client().cache("c"));
    std::thread::scope(|scope| {
        let dead = scope.spawn(|| {
            let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = dying.get_or_load("k", None, |_| -> Result<Vec<u8>, Never> {
                    until_waiting(&server, 1);
                    panic!("the loader dies, and its connection with it")
                });
            }));
            assert!(died.is_err());
        });
        until("the lease", || held(&server).len() == 1);
        assert_eq!(next.get_or_load("k", None, |_| bytes::<Never>("second")).unwrap(), b"second");
        dead.join().unwrap();
    });
    until_nothing_is_held(&server);
}

#[test]
fn semantic_01_a_hung_loader_loses_its_lease_and_its_late_fill_is_refused() {
    let server = kvd::testing::server();
    let (slow, quick) = (server.client(), server.client());
    let lease = Duration::from_millis(20);
    let late = std::thread::scope(|scope| {
        let late = slow.cache("c").entry("k").lease(lease).get_or_load(|_| {
            let other = scope.spawn(|| quick.cache("c").get_or_load("k", None, |_| bytes::<Never>("newer")));
            assert_eq!(other.join().unwrap().unwrap(), b"newer");
            bytes::<Never>("late")
        });
        late.unwrap()
    });
    assert_eq!(late, b"late", "its own caller gets what it loaded");
    assert_eq!(quick.cache("c").get("k").unwrap().unwrap(), b"newer");
    assert_eq!(stats(&slow, "c").loads.leases_lost, 1);
    until_nothing_is_held(&server);
}

#[test]
fn semantic_01_who_waits_in_vain_loads_for_itself_or_fails_as_it_said() {
    let server = kvd::testing::server();
    let (slow, other) = (server.client().cache("c"), server.client().cache("c"));
    let (begun, is_begun) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (begun, ended) = (begun, ended);
            slow.get_or_load("k", None, |_| {
                begun.send(()).unwrap();
                let _ = ended.recv();
                bytes::<Never>("slow")
            })
        });
        is_begun.recv().unwrap();
        let wait = Duration::from_millis(20);
        let own = other.entry("k").wait(wait).get_or_load(|_| bytes::<Never>("own"));
        assert_eq!(own.unwrap(), b"own");
        let failed = other.entry("k").wait(wait).on_busy(OnBusy::Fail).get_or_load(|_| bytes::<Never>("own"));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Timeout);
        drop(end);
    });
    assert_eq!(other.get("k").unwrap().unwrap(), b"slow", "what was loaded without a lease is not stored");
}

type Event = fn(&Cache);

#[test]
fn semantic_01_no_fill_after_an_invalidation_even_by_a_tag_that_only_the_loader_sets() {
    let events: [(&str, Event, Option<&str>); 9] = [
        ("put", |cache| ignore(cache.put("key", "newer", None).unwrap()), Some("newer")),
        ("delete", |cache| assert!(!cache.delete("key").unwrap()), None),
        ("expire", |cache| assert_eq!(cache.expire("key", Ttl::Now).unwrap(), None), None),
        ("clear", |cache| ignore(cache.clear(Effect::Gone).unwrap()), None),
        ("clear stale", |cache| ignore(cache.clear(Effect::Stale).unwrap()), None),
        ("clear_prefix", |cache| ignore(cache.clear_prefix("ke", Effect::Gone).unwrap()), None),
        ("clear_tag", |cache| ignore(cache.clear_tag("only-the-loader-knows", Effect::Gone).unwrap()), None),
        (
            "clear_tag stale",
            |cache| ignore(cache.clear_tag("only-the-loader-knows", Effect::Stale).unwrap()),
            None,
        ),
        (
            "increment",
            |cache| assert_eq!(cache.increment("key", 1, kv_client::Initial::value(7)).unwrap(), 7),
            Some("7"),
        ),
    ];
    let server = kvd::testing::server();
    let clients: [(&str, Client); 3] = [
        ("shared", server.client()),
        ("socket", by_socket(server.socket()).build().unwrap()),
        ("direct", server.direct()),
    ];
    for (name, event, there) in events {
        for (n, (way, client)) in clients.iter().enumerate() {
            let cache = client.cache(&format!("c{n}"));
            cache.put("other", "x", None).unwrap();
            cache.delete("key").unwrap();
            let loaded = cache.get_or_load("key", MINUTE, |fill| {
                fill.add_tag("only-the-loader-knows");
                std::thread::scope(|scope| scope.spawn(|| event(&cache)).join().unwrap());
                bytes::<Never>("of before")
            });
            assert_eq!(loaded.unwrap(), b"of before", "{name}, {way}");
            let now = cache.get("key").unwrap();
            match there {
                Some("7") => assert!(now.is_some_and(|value| value != b"of before"), "{name}, {way}"),
                there => assert_eq!(now.as_deref(), there.map(str::as_bytes), "{name}, {way}"),
            }
        }
    }
    until_nothing_is_held(&server);
}

#[test]
fn semantic_02_threads_of_a_process_share_one_load_and_the_daemon_hears_of_it_once() {
    let server = kvd::testing::server();
    let client = server.client();
    let (cache, loads) = (client.cache("c"), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let value = cache.get_or_load("k", None, |_| {
                    loads.fetch_add(1, Ordering::SeqCst);
                    until("the others to join", || stats(&client, "c").loads.coalesced == 7);
                    assert_eq!(held(&server).len(), 1, "one lease, and nobody waits at the daemon");
                    bytes::<Never>("loaded")
                });
                assert_eq!(value.unwrap(), b"loaded");
            });
        }
    });
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn semantic_02_the_error_of_a_loader_is_for_all_who_waited_for_it() {
    let server = kvd::testing::server();
    let client = server.client();
    let cache = client.cache("c");
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    cache.get_or_load("k", None, |_| {
                        until("the others to join", || stats(&client, "c").loads.coalesced == 3);
                        Err(std::io::Error::other("no database"))
                    })
                })
            })
            .collect();
        for call in calls {
            let error = call.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Loader);
            assert!(error.to_string().contains("no database"), "{error}");
        }
    });
    assert_eq!(stats(&client, "c").loads.loads_failed, 1);
    assert_eq!(cache.get_or_load("k", None, |_| bytes::<Never>("v")).unwrap(), b"v");
}

#[test]
fn semantic_02_threads_that_waited_for_what_was_overtaken_get_what_is_newer() {
    let server = kvd::testing::server();
    let client = server.client();
    let cache = client.cache("c");
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            cache.get_or_load("k", None, |_| {
                until("another to join", || stats(&client, "c").loads.coalesced == 1);
                server.direct().cache("c").put_with("k", "newer", PutOptions::new()).unwrap();
                bytes::<Never>("of before")
            })
        });
        until("the lease", || held(&server).len() == 1);
        assert_eq!(cache.get_or_load("k", None, |_| bytes::<Never>("own")).unwrap(), b"newer");
        assert_eq!(leader.join().unwrap().unwrap(), b"of before");
    });
}
