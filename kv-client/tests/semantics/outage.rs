//! The daemon is away, or stopped: misses instead of errors, and no invalidation is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{Effect, ErrorKind, OnOutage, Ttl};

use crate::fake::Fake;
use crate::support::*;

const GRACE: Duration = Duration::from_millis(30);
/// How long a call to a stopped daemon waits here.
const BRIEF: Duration = Duration::from_millis(80);

/// A client that has a connection, and little patience.
fn brief(relay: &Relay) -> Client {
    let client = by_socket(relay.socket()).op_timeout(BRIEF).connect_timeout(BRIEF).build_lazy();
    until("a connection", || client.ping().is_ok());
    client
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn semantic_06_a_daemon_that_never_was_there_is_a_miss_and_the_loader_runs() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::builder().socket(dir.path().join("none")).build_lazy();
    let cache = client.cache("c");
    assert_eq!(cache.get("k").unwrap(), None);
    assert_eq!(cache.get_many(&["k", "l"]).unwrap(), [None, None]);
    assert!(!cache.contains("k").unwrap());
    assert_eq!(cache.get_or_load("k", None, |_| bytes::<Never>("v")).unwrap(), b"v");
    let many = cache.get_or_load_many(&["a", "b"], None, |missing| {
        missing.found("a", b"1".to_vec());
        Ok::<_, Never>(())
    });
    assert_eq!(many.unwrap(), [Some(b"1".to_vec()), None]);
    assert_eq!(cache.put("k", "v", None).unwrap_err().kind(), ErrorKind::Unavailable, "plain writes report");
    assert!(stats(&client, "c").loads.outage_misses >= 3);
    let strict = Client::builder().socket(dir.path().join("none")).on_outage(OnOutage::Error).build_lazy();
    assert!(strict.cache("c").get("k").is_err() && strict.cache("c").delete("k").is_err());
}

#[test]
fn semantic_06_after_the_first_failure_the_breaker_answers_at_once_and_tells() {
    let mut fake = Fake::start();
    let noted = Arc::new(Noted::default());
    let client = by_socket(fake.socket()).restart_grace(GRACE).observer(Arc::clone(&noted)).build().unwrap();
    let cache = client.cache("c");
    cache.put("k", "v", None).unwrap();
    fake.kill();
    assert_eq!(cache.get("k").unwrap(), None);
    let begun = Instant::now();
    for n in 0..100 {
        assert_eq!(cache.get("k").unwrap(), None);
        let key = format!("k{}", n % 2);
        assert_eq!(cache.get_or_load(&key, None, |_| bytes::<Never>("own")).unwrap(), b"own");
    }
    assert!(begun.elapsed() < ms(500), "{:?}", begun.elapsed());
    let loads = stats(&client, "c").loads;
    assert_eq!((loads.loads, loads.outage_misses), (2, 101), "once a key and process");
    assert_eq!(loads.hits_standby, 98);
    assert_eq!((noted.count("OutageBegan"), noted.count("OutageMiss")), (1, 101));
    fake.begin();
    until("the daemon to be found", || cache.get("k").unwrap().is_some());
    assert_eq!(noted.count("OutageOver"), 1);
}

#[test]
fn semantic_06_a_stopped_daemon_is_as_good_as_a_dead_one() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    server.client().cache("c").put("k", "v", None).unwrap();
    let client = brief(&relay);
    let cache = client.cache("c");
    relay.stop();
    let begun = Instant::now();
    assert_eq!(cache.get_or_load("k", None, |_| bytes::<Never>("own")).unwrap(), b"own");
    assert!(begun.elapsed() < BRIEF * 4, "{:?}", begun.elapsed());
    let begun = Instant::now();
    (0..50).for_each(|_| assert_eq!(cache.get("k").unwrap(), None));
    assert!(begun.elapsed() < BRIEF, "{:?}", begun.elapsed());
    assert!(!cache.delete("k").unwrap());
    relay.go_on();
    until("the daemon to be found", || client.ping().is_ok());
    assert_eq!(server.direct().cache("c").get("k").unwrap(), None, "delivered before anybody is let through");
}

/// They used to be asked for one after the other, each for all the time of a call.
#[test]
fn semantic_06_many_keys_in_a_scope_wait_for_a_stopped_daemon_once() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    // More patient than the call, whose silence therefore says nothing about the daemon: nothing is answered at once.
    let client = by_socket(relay.socket()).build_lazy();
    until("a connection", || client.ping().is_ok());
    let scope = kv_client::Scope::new();
    let cache = client.with_op_timeout(BRIEF).cache("c").in_scope(&scope);
    relay.stop();
    assert_eq!(cache.get_many(&["a", "b", "c", "d"]).unwrap(), [None, None, None, None]);
    assert_eq!(stats(&client, "c").loads.outage_misses, 1);
    assert_eq!(scope.max_age(), Some(Duration::ZERO));
    relay.go_on();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantic_06_async_a_stopped_daemon_is_a_miss_and_a_load_an_outage_long() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    let client = kv_client::Client::builder().socket(relay.socket()).shared_memory(false);
    let client = client.op_timeout(BRIEF).connect_timeout(BRIEF).build_lazy();
    server.client().cache("c").put("k", "v", None).unwrap();
    let cache = client.cache("c");
    while client.ping().await.is_err() {}
    relay.stop();
    assert_eq!(cache.get("k").await.unwrap(), None);
    let loads = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    for _ in 0..20 {
        let loads = Arc::clone(&loads);
        let load = move |_| async move {
            loads.fetch_add(1, Ordering::SeqCst);
            bytes::<Never>("own")
        };
        assert_eq!(cache.get_or_load("l", None, load).await.unwrap(), b"own");
    }
    assert!(begun.elapsed() < ms(200), "{:?}", begun.elapsed());
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(!cache.delete("k").await.unwrap());
    cache.clear_tag("t", Effect::Gone).await.unwrap();
    relay.go_on();
    until("the daemon to be found", || server.direct().cache("c").get("k").unwrap().is_none());
}

#[test]
fn semantic_06_invalidations_made_meanwhile_are_delivered_before_anything_is_read() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    let patient = server.client();
    for key in ["deleted", "expired", "prefix:1", "kept"] {
        patient.cache("c").put(key, "v", None).unwrap();
    }
    let tagged = kv_client::PutOptions::new().tag("t");
    patient.cache("c").put_with("tagged", "v", tagged).unwrap();
    patient.cache("cleared").put("k", "v", None).unwrap();
    let client = brief(&relay);
    let cache = client.cache("c");
    relay.stop();
    assert_eq!(cache.get("kept").unwrap(), None);
    assert!(!cache.delete("deleted").unwrap());
    assert_eq!(cache.expire("expired", Ttl::Now).unwrap(), None);
    cache.clear_prefix("prefix:", Effect::Gone).unwrap();
    client.clear_tag("t", Effect::Gone).unwrap();
    client.cache("cleared").clear(Effect::Gone).unwrap();
    relay.go_on();
    until("the daemon to be found", || cache.get("kept").unwrap().is_some());
    for key in ["deleted", "expired", "prefix:1", "tagged"] {
        assert_eq!(cache.get(key).unwrap(), None, "{key}");
    }
    assert_eq!(client.cache("cleared").get("k").unwrap(), None);
}

#[test]
fn semantic_06_more_invalidations_than_are_kept_clear_the_cache_and_no_other() {
    let server = kvd::testing::server();
    let relay = Relay::to(server.socket());
    server.client().cache("c").put("never deleted", "v", None).unwrap();
    server.client().cache("other").put("k", "v", None).unwrap();
    let client = brief(&relay);
    let (cache, other) = (client.cache("c"), client.cache("other"));
    relay.stop();
    assert_eq!(cache.get("never deleted").unwrap(), None);
    for n in 0..4_200 {
        cache.delete(format!("{n}")).unwrap();
    }
    relay.go_on();
    until("the daemon to be found", || other.get("k").unwrap().is_some());
    assert_eq!(cache.get("never deleted").unwrap(), None, "what did not find room cleared it");
}

#[test]
fn semantic_06_loads_are_coalesced_in_the_process_while_the_daemon_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::builder().socket(dir.path().join("none")).build_lazy();
    let (cache, loads) = (client.cache("c"), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let value = cache.get_or_load("k", None, |_| {
                    loads.fetch_add(1, Ordering::SeqCst);
                    until("the others", || stats(&client, "c").loads.coalesced == 5);
                    bytes::<Never>("own")
                });
                assert_eq!(value.unwrap(), b"own");
            });
        }
    });
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn semantic_06_an_invalidation_forgets_what_the_process_loaded_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::builder().socket(dir.path().join("none")).build_lazy();
    let cache = client.cache("c");
    let invalidations: [fn(&kv_client::blocking::Cache); 4] = [
        |cache| ignore(cache.delete("k").unwrap()),
        |cache| ignore(cache.expire("k", Ttl::Now).unwrap()),
        |cache| ignore(cache.clear(Effect::Gone).unwrap()),
        |cache| ignore(cache.clear_tag("t", Effect::Gone).unwrap()),
    ];
    for (n, invalidate) in invalidations.into_iter().enumerate() {
        let value = format!("{n}");
        assert_eq!(cache.get_or_load("k", None, |_| bytes::<Never>(&value)).unwrap(), value.as_bytes());
        assert_eq!(cache.get_or_load("k", None, |_| bytes::<Never>("again")).unwrap(), value.as_bytes());
        invalidate(&cache);
    }
}

/// What the loader had read before the invalidation was kept after it, and served until the daemon was back.
#[test]
fn semantic_06_what_is_loaded_without_the_daemon_is_not_kept_behind_an_invalidation_of_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::builder().socket(dir.path().join("none")).build_lazy();
    let cache = client.cache("c");
    let load = |value: &'static str| cache.get_or_load("k", None, |_| bytes::<Never>(value)).unwrap();
    let before = cache.get_or_load("k", None, |_| {
        std::thread::scope(|scope| {
            scope.spawn(|| ignore(cache.delete("k")));
        });
        bytes::<Never>("of before")
    });
    assert_eq!(before.unwrap(), b"of before");
    assert_eq!(load("of after"), b"of after");
    assert_eq!(load("not again"), b"of after");
}

/// Who came between the end of a load and its being cleared away got its value, whatever had been invalidated since.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn semantic_02_async_who_comes_after_the_end_of_a_load_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let client = kv_client::Client::builder().socket(dir.path().join("none")).build_lazy();
    let cache = client.cache("c");
    for n in 0..2_000_u32 {
        let load = move |_| async move { Ok::<_, Never>(n.to_be_bytes().to_vec()) };
        let value = cache.get_or_load("k", None, load).await.unwrap();
        assert_eq!(value, n.to_be_bytes(), "round {n}");
        cache.delete("k").await.unwrap();
    }
}
