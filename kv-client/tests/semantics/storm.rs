//! Loads and invalidations mixed at random, through the public methods: nothing old is ever put behind what is newer.

use std::sync::mpsc::channel;

use kv_client::blocking::Cache;
use kv_client::{Effect, Ttl};

use crate::support::*;

const ROUNDS: u32 = 10_000;

/// What may happen to the key during its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    Put,
    PutAndDelete,
    Delete,
    ExpireNow,
    ExpireStale,
    Clear,
    ClearStale,
    Prefix,
    Tag,
    /// Of other keys: the fill stands.
    Elsewhere,
}

const EVENTS: [Event; 11] = [
    Event::Nothing,
    Event::Put,
    Event::PutAndDelete,
    Event::Delete,
    Event::ExpireNow,
    Event::ExpireStale,
    Event::Clear,
    Event::ClearStale,
    Event::Prefix,
    Event::Tag,
    Event::Elsewhere,
];

fn happen(cache: &Cache, event: Event, key: &str, tag: &str) {
    match event {
        Event::Nothing => {}
        Event::Put => drop(cache.put(key, "newer", None).unwrap()),
        Event::PutAndDelete => {
            cache.put(key, "newer", None).unwrap();
            cache.delete(key).unwrap();
        }
        Event::Delete => drop(cache.delete(key).unwrap()),
        Event::ExpireNow => drop(cache.expire(key, Ttl::Now).unwrap()),
        Event::ExpireStale => drop(cache.expire(key, Ttl::Stale).unwrap()),
        Event::Clear => drop(cache.clear(Effect::Gone).unwrap()),
        Event::ClearStale => drop(cache.clear(Effect::Stale).unwrap()),
        Event::Prefix => drop(cache.clear_prefix(&key[..2], Effect::Gone).unwrap()),
        Event::Tag => drop(cache.clear_tag(tag, Effect::Gone).unwrap()),
        Event::Elsewhere => {
            cache.put("elsewhere", "v", None).unwrap();
            cache.clear_prefix("else", Effect::Gone).unwrap();
            cache.clear_tag("another", Effect::Gone).unwrap();
        }
    }
}

/// Another thread does its part while the loader of this one is under way, before it has read the database, or after its
/// return; each round says what may be there.
#[test]
fn semantic_01_ten_thousand_random_interleavings_never_put_old_behind_new() {
    let mut random = fastrand::Rng::with_seed(seed());
    let server = kvd::testing::server();
    let (loading, other) = (server.direct().cache("c"), server.direct().cache("c"));
    // The first write makes the cache; without one there is nothing to delete in.
    loading.put("first", "v", None).unwrap();
    let (go, orders) = channel::<(Event, String, String)>();
    let (done, is_done) = channel();
    let worker = std::thread::spawn(move || {
        for (event, key, tag) in orders {
            happen(&other, event, &key, &tag);
            done.send(()).unwrap();
        }
    });
    for round in 0..ROUNDS {
        let event = EVENTS[random.usize(..EVENTS.len())];
        let key = format!("{}:{}", random.u8(b'a'..b'e') as char, random.u32(0..4));
        let tag = format!("t{}", random.u32(0..4));
        // There, stale or gone before; "racing" does not wait for the other to be done before the loader returns.
        let (is_racing, was_there) = (random.u8(0..4) == 0, random.bool());
        if was_there {
            loading.put(&key, "before", None).unwrap();
            loading.expire(&key, if random.bool() { Ttl::Stale } else { Ttl::Now }).unwrap();
        } else {
            loading.delete(&key).unwrap();
        }
        let mut ran = false;
        let loaded = loading.get_or_load(&key, HOUR, |fill| {
            ran = true;
            fill.add_tag(&tag);
            go.send((event, key.clone(), tag.clone())).unwrap();
            if !is_racing {
                is_done.recv().unwrap();
            }
            bytes::<Never>("loaded")
        });
        assert!(ran && loaded.as_deref().unwrap() == b"loaded", "round {round}: {event:?} {loaded:?}");
        if is_racing {
            is_done.recv().unwrap();
        }
        let there = loading.get(&key).unwrap();
        let there = there.as_deref().map(|value| std::str::from_utf8(value).unwrap());
        let allowed: &[Option<&str>] = match event {
            Event::Nothing | Event::Elsewhere => &[Some("loaded")],
            Event::Put => &[Some("newer")],
            Event::PutAndDelete
            | Event::Delete
            | Event::ExpireNow
            | Event::ExpireStale
            | Event::Clear
            | Event::ClearStale
            | Event::Prefix
            | Event::Tag => &[None],
        };
        assert!(allowed.contains(&there), "round {round}: {event:?}, racing {is_racing}: {there:?} is there");
    }
    drop(go);
    worker.join().unwrap();
    until_nothing_is_held(&server);
}
