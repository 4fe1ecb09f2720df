//! Time to live, to the millisecond: an item is never served after its expiry.

use std::time::{Duration, Instant};

use kv_client::{Effect, Freshness, PutOptions, Sliding, Ttl};

use crate::support::Home;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn item_is_served_until_its_expiry_and_never_after_by_the_real_clock() {
    let home = Home::new();
    let _daemon = home.start();
    let cache = home.client().cache("c");
    for ttl_ms in [1_u64, 20, 50, 120] {
        let ttl = Duration::from_millis(ttl_ms);
        let asked = Instant::now();
        cache.put("k", "v", ttl).unwrap();
        let written = Instant::now();
        let mut seen_late = None;
        while written.elapsed() < ttl + Duration::from_millis(30) {
            let before = Instant::now();
            if cache.get("k").unwrap().is_some() {
                seen_late = Some(before);
            }
        }
        // The life began between `asked` and `written`, so nothing asked for after `written + ttl` may be there.
        if let Some(late) = seen_late {
            assert!(
                late < written + ttl + Duration::from_millis(1),
                "{ttl_ms} ms item seen after {:?}",
                late - asked
            );
        }
    }
}

#[test]
fn item_expires_to_the_millisecond_by_a_moved_clock() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    cache.put("k", "v", 10 * SECOND).unwrap();
    server.clock().advance(Duration::from_millis(9_900));
    assert!(cache.get("k").unwrap().is_some());
    let left = cache.describe("k").unwrap().unwrap().expires_in_ms.unwrap();
    assert!(left <= 100, "{left}");
    server.clock().advance(Duration::from_millis(left as u64));
    assert_eq!(cache.get("k").unwrap(), None);
    assert!(!cache.contains("k").unwrap());
    assert_eq!(cache.get_many(&["k"]).unwrap(), [None]);
    assert!(cache.scan("").next_page().unwrap().unwrap().items.is_empty());
}

#[test]
fn wall_clock_steps_change_no_life() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    cache.put("k", "v", 10 * SECOND).unwrap();
    server.clock().step_wall(3_600_000);
    assert!(cache.get("k").unwrap().is_some());
    server.clock().step_wall(-7_200_000);
    server.clock().advance(10 * SECOND);
    assert_eq!(cache.get("k").unwrap(), None);
}

#[test]
fn item_that_expires_while_the_daemon_is_down_is_gone_when_it_returns() {
    let home = Home::new();
    let daemon = home.start();
    let cache = home.client().cache("c");
    cache.put("short", "v", Duration::from_millis(300)).unwrap();
    cache.put("long", "v", Duration::from_secs(3_600)).unwrap();
    let written = Instant::now();
    daemon.kill();
    while written.elapsed() < Duration::from_millis(310) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _daemon = home.start();
    let cache = home.client().cache("c");
    assert_eq!(cache.get("short").unwrap(), None);
    assert!(cache.describe("short").unwrap().is_none());
    assert_eq!(cache.get("long").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn expire_makes_life_longer_shorter_endless_and_over() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let put = cache.put("k", "v", 10 * SECOND).unwrap();
    let longer = cache.expire("k", Ttl::After(100 * SECOND)).unwrap().expect("it is there");
    assert!(longer > put, "an expiry is a new version");
    server.clock().advance(50 * SECOND);
    assert!(cache.contains("k").unwrap());
    cache.expire("k", Ttl::After(SECOND)).unwrap();
    server.clock().advance(SECOND);
    assert!(!cache.contains("k").unwrap());
    assert_eq!(cache.expire("k", Ttl::Never).unwrap(), None, "what is gone cannot be given a new life");

    cache.put("k", "v", SECOND).unwrap();
    cache.expire("k", Ttl::Never).unwrap();
    server.clock().advance(Duration::from_secs(1_000_000));
    assert!(cache.contains("k").unwrap());
    cache.expire("k", Ttl::Now).unwrap();
    assert!(cache.describe("k").unwrap().is_none());
}

#[test]
fn stale_item_is_kept_for_loads_and_hidden_from_reads_until_a_put_ends_it() {
    let server = kvd::testing::server();
    let client = server.client();
    let cache = client.cache("c");
    cache.put_with("k", "v", PutOptions::new().ttl(10 * SECOND).stale_for(20 * SECOND)).unwrap();
    for make_stale in [0, 1, 2] {
        cache.put_with("k", "v", PutOptions::new().ttl(10 * SECOND).stale_for(20 * SECOND)).unwrap();
        match make_stale {
            0 => drop(cache.expire("k", Ttl::Stale).unwrap()),
            1 => drop(cache.clear(Effect::Stale).unwrap()),
            _ => server.clock().advance(10 * SECOND),
        }
        assert_eq!(cache.get("k").unwrap(), None, "{make_stale}");
        assert_eq!(cache.get_many(&["k"]).unwrap(), [None]);
        assert!(!cache.contains("k").unwrap());
        assert!(cache.scan("").next_page().unwrap().unwrap().items.is_empty());
        let entry = cache.get_entry("k").unwrap().expect("stale, not gone");
        assert_eq!((entry.freshness, &entry.value[..]), (Freshness::Stale, &b"v"[..]));
        assert!(
            !cache.put_with("k", "x", PutOptions::new().if_absent()).unwrap().is_written(),
            "it is present"
        );
        cache.put("k", "w", 10 * SECOND).unwrap();
        assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"w"[..]), "a put ends it");
    }
    cache.put_with("k", "v", PutOptions::new().ttl(10 * SECOND).stale_for(20 * SECOND)).unwrap();
    server.clock().advance(30 * SECOND);
    assert!(cache.get_entry("k").unwrap().is_none(), "its stale life is over too");
}

#[test]
fn increment_keeps_a_stale_item_stale() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    cache.put("n", "5", Duration::from_secs(60)).unwrap();
    cache.clear(Effect::Stale).unwrap();
    assert_eq!(
        cache.increment("n", 1, kv_client::Initial::value(100)).unwrap(),
        6,
        "a stale one counts as present"
    );
    assert_eq!(cache.get("n").unwrap(), None, "only a put ends staleness");
}

#[test]
fn sliding_get_extends_only_what_is_nearly_over() {
    let server = kvd::testing::server();
    let cache = server.client().cache("session");
    cache.put("s", "v", 100 * SECOND).unwrap();
    let sliding = Sliding { below: 50 * SECOND, ttl: 100 * SECOND };
    server.clock().advance(40 * SECOND);
    let before = cache.describe("s").unwrap().unwrap().version;
    assert!(cache.get_sliding("s", sliding).unwrap().is_some());
    assert_eq!(cache.describe("s").unwrap().unwrap().version, before, "60 s are left: nothing is written");
    server.clock().advance(20 * SECOND);
    assert!(cache.get_sliding("s", sliding).unwrap().is_some());
    let entry = cache.describe("s").unwrap().unwrap();
    assert!(entry.version > before && entry.expires_in_ms.unwrap() > 99_000);
    server.clock().advance(100 * SECOND);
    assert!(cache.get_sliding("s", sliding).unwrap().is_none(), "what is over is not revived");
}
