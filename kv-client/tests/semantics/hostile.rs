//! What no application should do to a loader, and what comes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::{Effect, ErrorKind, PutOptions, Ttl};

use crate::support::*;

#[test]
fn a_panic_of_a_loader_reaches_its_caller_and_fails_those_who_waited_as_a_loader_does() {
    let server = kvd::testing::server();
    let client = server.client();
    let cache = client.cache("c");
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            catch_unwind(AssertUnwindSafe(|| {
                let _ = cache.get_or_load("k", None, |_| -> Result<Vec<u8>, Never> {
                    until("another", || stats(&client, "c").loads.coalesced == 1);
                    panic!("a loader's own")
                });
            }))
        });
        until("the lease", || held(&server).len() == 1);
        let error = cache.get_or_load("k", None, |_| bytes::<Never>("own")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Loader);
        assert!(error.to_string().contains("key k") || error.to_string().contains("loading k"), "{error}");
        assert!(leader.join().unwrap().is_err());
    });
    until_nothing_is_held(&server);
    let inner = catch_unwind(AssertUnwindSafe(|| {
        let _ = cache.get_or_load("outer", None, |_| {
            cache.get_or_load("inner", None, |_| -> Result<Vec<u8>, Never> { panic!("inside") })
        });
    }));
    assert!(inner.is_err());
    let again =
        cache.get_or_load("outer", None, |_| cache.get_or_load("inner", None, |_| bytes::<Never>("v")));
    assert_eq!(again.unwrap(), b"v", "the thread is in the middle of nothing any more");
}

/// Each panic took one of the 64 threads for ever; then loaders ran in their callers' threads and no timeout held.
#[test]
fn detached_loaders_that_panic_give_their_threads_back() {
    let server = kvd::testing::server();
    let client = server.client();
    let cache = client.cache("c");
    for n in 0..70 {
        let entry = cache.entry(format!("{n}"));
        let failed = entry.get_or_load_detached(|_| -> Result<Vec<u8>, Never> { panic!("a loader's own") });
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Loader);
    }
    let here = std::thread::current().id();
    let entry = cache.entry("k").hard_timeout(Duration::from_secs(9));
    let elsewhere = entry.get_or_load_detached(move |_| {
        assert_ne!(std::thread::current().id(), here);
        bytes::<Never>("v")
    });
    assert_eq!(elsewhere.unwrap(), b"v");
    until_nothing_is_held(&server);
}

#[test]
fn beyond_sixty_four_detached_loads_the_callers_load_what_they_cannot_do_without() {
    let server = kvd::testing::server();
    let client = server.client();
    let stale = PutOptions::new().ttl(Duration::from_secs(60)).stale_for(Duration::from_secs(60));
    client.cache("c").put_with("stale", "old", stale).unwrap();
    client.cache("c").expire("stale", Ttl::Stale).unwrap();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let ended = Arc::new(parking_lot::Mutex::new(ended));
    for n in 0..64 {
        let ended = Arc::clone(&ended);
        let entry = client.cache("c").entry(format!("{n}")).hard_timeout(Duration::from_millis(1));
        let late = entry.get_or_load_detached(move |_| {
            let _ = ended.lock().recv();
            bytes::<Never>("late")
        });
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    }
    let here = std::thread::current().id();
    let own = client.cache("c").entry("own").get_or_load_detached(move |_| {
        assert_eq!(std::thread::current().id(), here);
        bytes::<Never>("own")
    });
    assert_eq!(own.unwrap(), b"own");
    // Who has something to show is not kept waiting.
    let shown = client
        .cache("c")
        .entry("stale")
        .get_or_load_detached(|_| -> Result<Vec<u8>, Never> { panic!("nobody has time for this") });
    assert_eq!(shown.unwrap(), b"old");
    drop(end);
    until_nothing_is_held(&server);
    assert_eq!(client.cache("c").get("63").unwrap().unwrap(), b"late");
}

#[test]
fn a_loader_that_deletes_or_puts_its_own_key_is_overtaken_by_itself() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    cache.put("x", "x", None).unwrap();
    let value = cache.get_or_load("k", None, |_| cache.delete("k").map(|_| b"loaded".to_vec()));
    assert_eq!((value.unwrap().as_slice(), cache.get("k").unwrap()), (&b"loaded"[..], None));
    let value = cache.get_or_load("k", None, |_| cache.put("k", "put", None).map(|_| b"loaded".to_vec()));
    assert_eq!(value.unwrap(), b"loaded");
    assert_eq!(cache.get("k").unwrap().unwrap(), b"put");
    let value = cache.get_or_load("l", None, |_| cache.drop_cache().map(|_| b"loaded".to_vec()));
    assert_eq!(value.unwrap(), b"loaded");
    assert_eq!(cache.get_or_load("l", None, |_| bytes::<Never>("anew")).unwrap(), b"anew");
    until_nothing_is_held(&server);
}

#[test]
fn keys_of_a_kilobyte_are_loaded_and_longer_ones_are_named() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let key = [255; 1_024];
    assert_eq!(cache.get_or_load(key, None, |_| bytes::<Never>("v")).unwrap(), b"v");
    assert_eq!(cache.get_or_load(key, None, |_| bytes::<Never>("not again")).unwrap(), b"v");
    let unused = |_: &_| -> Result<Vec<u8>, Never> { panic!("it is not loaded") };
    assert_eq!(cache.get_or_load([0; 1_025], None, unused).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(cache.get_or_load("", None, unused).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn an_impatient_caller_gets_its_value_and_costs_the_others_nothing() {
    let server = kvd::testing::server();
    let client = by_socket(server.socket()).build().unwrap();
    client.cache("c").put("k", "v", None).unwrap();
    let impatient = client.with_op_timeout(Duration::from_nanos(1)).cache("c");
    for n in 0..20 {
        let key = format!("{n}");
        assert_eq!(impatient.get_or_load(&key, None, |_| bytes::<Never>("own")).unwrap(), b"own");
        assert!(matches!(impatient.get("k").unwrap().as_deref(), None | Some(b"v")));
        assert_eq!(
            client.cache("c").get("k").unwrap().unwrap(),
            b"v",
            "the daemon is not away for anybody else"
        );
    }
    until_nothing_is_held(&server);
}

#[test]
fn a_client_that_is_dropped_while_it_looks_for_its_daemon_leaves_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "kvd-probe").count()
    };
    for _ in 0..5 {
        let client = kv_client::blocking::Client::builder().socket(dir.path().join("none")).build_lazy();
        client.cache("c").clear(Effect::Gone).unwrap();
        drop(client);
    }
    let before = threads();
    until("the probes to end", || threads() == 0 || threads() < before);
}

#[test]
fn a_clock_that_jumps_during_a_load_kills_neither_load_nor_lease() {
    let server = kvd::testing::server();
    let (cache, other) = (server.client().cache("c"), server.client().cache("c"));
    let value = cache.get_or_load("k", MINUTE, |_| {
        server.clock().advance(HOUR * 24 * 365);
        server.clock().step_wall(-86_400_000);
        bytes::<Never>("loaded")
    });
    assert_eq!(value.unwrap(), b"loaded");
    assert_eq!(other.get("k").unwrap().unwrap(), b"loaded", "its life begins with the fill");
    server.clock().advance(MINUTE);
    assert_eq!(other.get("k").unwrap(), None);
}

/// 256 slow loads are no reason to believe that the daemon is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_more_loads_than_have_a_turn_are_loaded_all_the_same_and_the_breaker_stays_closed() {
    let server = kvd::testing::server();
    let noted = Arc::new(Noted::default());
    let client = kv_client::Client::builder().socket(server.socket()).observer(Arc::clone(&noted));
    let client = client.op_timeout(Duration::from_millis(250)).build().await.unwrap();
    let end = Arc::new(tokio::sync::Semaphore::new(0));
    let slow: Vec<_> = (0..256)
        .map(|n| {
            let (cache, end) = (client.cache("c"), Arc::clone(&end));
            let load = move |_| async move {
                drop(end.acquire().await);
                bytes::<Never>("slow")
            };
            tokio::spawn(async move { cache.get_or_load(format!("{n}"), None, load).await })
        })
        .collect();
    until("all to be under way", || held(&server).len() == 256);
    let begun = Instant::now();
    let one_more = client.cache("c").get_or_load("more", None, |_| async { bytes::<Never>("own") }).await;
    assert_eq!(one_more.unwrap(), b"own");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    end.close();
    for load in slow {
        assert_eq!(load.await.unwrap().unwrap(), b"slow");
    }
    assert_eq!(noted.count("OutageBegan"), 0);
    until_nothing_is_held(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_a_loader_that_never_returns_and_a_caller_that_is_dropped_cost_others_the_lease_and_no_more() {
    let server = kvd::testing::server();
    let (stuck, other) = (async_client(&server).await, async_client(&server).await);
    let load = |_| async { std::future::pending::<Result<Vec<u8>, Never>>().await };
    let asked = stuck.cache("c");
    let asked = asked.entry("k").lease(Duration::from_millis(50)).get_or_load(load);
    assert!(tokio::time::timeout(Duration::from_millis(5), asked).await.is_err());
    let value = other.cache("c").get_or_load("k", None, |_| async { bytes::<Never>("v") }).await;
    assert_eq!(value.unwrap(), b"v");
    assert_eq!(stuck.cache("c").get("k").await.unwrap().unwrap(), b"v");
}
