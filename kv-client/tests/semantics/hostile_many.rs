//! Many keys at once, of all sorts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kv_client::{ErrorKind, Missing, SchemaVersion};

use crate::support::*;

fn find_all(missing: &Missing<Vec<u8>>) -> Result<(), Never> {
    missing.keys().iter().for_each(|key| drop(missing.found(key, key.clone())));
    Ok(())
}

#[test]
fn a_thousand_keys_with_duplicates_are_loaded_at_once_and_answered_in_order() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let keys: Vec<String> = (0..1_500).map(|n| format!("{}", n % 1_000)).collect();
    let mut calls = 0;
    let values = cache.get_or_load_many(&keys, None, |missing| {
        calls += 1;
        assert_eq!(missing.keys().len(), missing.keys().iter().collect::<BTreeSet<_>>().len());
        find_all(missing)
    });
    for (key, value) in keys.iter().zip(values.unwrap()) {
        assert_eq!(value.unwrap(), key.as_bytes());
    }
    assert_eq!(calls, 1);
    let again = cache.get_or_load_many(&keys, None, |_| -> Result<(), Never> { panic!("all is there") });
    assert_eq!(again.unwrap().len(), 1_500);
    let none: [&str; 0] = [];
    assert!(cache.get_or_load_many(&none, None, find_all).unwrap().is_empty());
    until_nothing_is_held(&server);
}

#[test]
fn a_thousand_long_keys_fit_a_request() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let keys: Vec<Vec<u8>> = (0..1_100_u32).map(|n| n.to_be_bytes().repeat(256)).collect();
    let values = cache.get_or_load_many(&keys, None, find_all).unwrap();
    assert!(values.iter().zip(&keys).all(|(value, key)| value.as_ref() == Some(key)));
    until_nothing_is_held(&server);
}

#[test]
fn undecodable_bytes_for_half_the_keys_are_loaded_with_the_missing_ones() {
    let server = kvd::testing::server();
    for client in [server.client(), by_socket(server.socket()).build().unwrap()] {
        let bytes = client.cache("t");
        bytes.put_many((0..100).map(|n| (format!("{n}"), "no postcard")), None).unwrap();
        let cache = bytes.typed::<String>(SchemaVersion(1));
        let keys: Vec<String> = (0..200).map(|n| format!("{n}")).collect();
        let values = cache.get_or_load_many(&keys, None, |missing| {
            assert_eq!(missing.keys().len(), 200);
            missing.keys().iter().for_each(|key| drop(missing.found(key, "v".to_owned())));
            Ok::<_, Never>(())
        });
        assert!(values.unwrap().iter().all(|value| value.as_deref() == Some("v")));
        assert_eq!(stats(&client, "t").loads.undecodable, 100);
        assert!(cache.get_many(&keys).unwrap().iter().all(Option::is_some), "and were replaced");
        bytes.clear(kv_client::Effect::Gone).unwrap();
    }
}

/// The whole fill was refused, the leases stayed with a pooled connection, and all others waited for them.
#[test]
fn one_value_that_cannot_be_stored_does_not_take_the_others_along() {
    let server = kvd::testing::server();
    let client = server.client();
    let cache = client.cache("c");
    let keys: Vec<String> = (0..10).map(|n| format!("{n}")).collect();
    let values = cache.get_or_load_many(&keys, None, |missing| {
        for key in missing.keys() {
            match key.as_slice() {
                b"3" => drop(missing.found(key, vec![7; (1 << 20) + 1])),
                b"5" => {
                    let fill = missing.found(key, b"v".to_vec());
                    (0..9).for_each(|n: u8| fill.add_tag([n]));
                }
                _ => drop(missing.found(key, b"v".to_vec())),
            }
        }
        Ok::<_, Never>(())
    });
    assert!(values.unwrap().iter().all(Option::is_some));
    until_nothing_is_held(&server);
    let stored = cache.get_many(&keys).unwrap().iter().filter(|value| value.is_some()).count();
    assert_eq!((stored, stats(&client, "c").loads.not_stored), (8, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_one_value_that_cannot_be_stored_does_not_take_the_others_along() {
    let server = kvd::testing::server();
    let client = async_client(&server).await;
    let cache = client.cache("c");
    let keys = ["a", "b", "large"];
    let load = |missing: Missing<Vec<u8>>| async move {
        for key in missing.keys() {
            let bytes = if key == b"large" { (1 << 20) + 1 } else { 1 };
            missing.found(key, vec![7; bytes]);
        }
        Ok::<_, Never>(())
    };
    let values = cache.get_or_load_many(&keys, None, load).await.unwrap();
    assert!(values.iter().all(Option::is_some));
    until_nothing_is_held(&server);
    assert!(cache.get("a").await.unwrap().is_some() && cache.get("b").await.unwrap().is_some());
    assert_eq!(client.stats().caches[0].loads.not_stored, 1);
}

#[test]
fn a_loader_of_many_that_fails_or_panics_gives_all_leases_back() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let keys: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
    let failed = cache.get_or_load_many(&keys, None, |_| Err::<(), _>(std::io::Error::other("no database")));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Loader);
    until_nothing_is_held(&server);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = cache.get_or_load_many(&keys, None, |_| -> Result<(), Never> { panic!("a loader's own") });
    }));
    assert!(panicked.is_err());
    until_nothing_is_held(&server);
    assert_eq!(cache.get_or_load_many(&keys, None, find_all).unwrap().len(), 100);
}

#[test]
fn many_inside_one_and_one_inside_many_end_and_name_the_key_that_is_their_own() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let outer = cache.get_or_load("outer", None, |_| {
        let inner = cache.get_or_load_many(&["a", "b"], None, |missing| {
            assert_eq!(cache.get_or_load("leaf", None, |_| bytes::<Never>("leaf")).unwrap(), b"leaf");
            find_all(missing)
        })?;
        Ok::<_, kv_client::Error>(inner.into_iter().flatten().flatten().collect())
    });
    assert_eq!(outer.unwrap(), b"ab");
    let own = cache.get_or_load_many(&["x", "y"], None, |_| {
        cache.get_or_load("y", None, |_| bytes::<Never>("")).map(drop)
    });
    assert!(own.unwrap_err().to_string().contains("key y of cache c"));
    let own = cache
        .get_or_load("z", None, |_| cache.get_or_load_many(&["w", "z"], None, find_all).map(|_| Vec::new()));
    assert!(own.unwrap_err().to_string().contains("key z of cache c"));
    until_nothing_is_held(&server);
}

#[test]
fn keys_that_others_load_are_waited_for_together_no_longer_than_for_one() {
    let server = kvd::testing::server();
    let (others, cache) =
        (server.client(), server.client().with_op_timeout(Duration::from_millis(100)).cache("c"));
    let keys: Vec<String> = (0..20).map(|n| format!("{n}")).collect();
    others
        .cache("c")
        .get_or_load_many(&keys, None, |missing| {
            let begun = Instant::now();
            let own = std::thread::scope(|scope| {
                scope.spawn(|| cache.get_or_load_many(&keys, None, find_all)).join().unwrap()
            });
            assert!(own.unwrap().iter().all(Option::is_some));
            assert!(begun.elapsed() < Duration::from_millis(1_000), "{:?}", begun.elapsed());
            find_all(missing)
        })
        .unwrap();
}
