//! The blocking client against a daemon that fails on demand.

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Fault};
use kv_client::blocking::Client;
use kv_client::{Error, ErrorKind, PutOptions, PutOutcome, RetryAdvice, RetryPolicy};

fn client(fake: &Fake) -> Client {
    Client::builder().socket(fake.socket()).shared_memory(false).build().expect("the daemon is there")
}

#[test]
fn bytes_come_back_as_they_were_put() {
    let fake = Fake::start();
    let cache = client(&fake).cache("product");
    let all: Vec<u8> = (0..=255).collect();
    for bytes in [0, 1, 4_095, 4_096, 65_537, 1 << 20] {
        let value: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        cache.put(&all, &value, None).unwrap();
        assert!(cache.get(&all).unwrap() == Some(value), "{bytes} bytes");
    }
}

#[test]
fn the_first_request_after_a_restart_succeeds() {
    let mut fake = Fake::start();
    let client = client(&fake);
    let cache = client.cache("product");
    for n in 0..5 {
        cache.put("42", format!("{n}"), None).unwrap();
        fake.kill();
        fake.begin();
        // A write that may not be repeated: it is known not to have been sent.
        cache.put("43", format!("{n}"), None).unwrap();
        assert_eq!(cache.get("42").unwrap(), Some(format!("{n}").into_bytes()));
    }
}

#[test]
fn every_pooled_connection_of_the_dead_daemon_is_got_over() {
    let mut fake = Fake::start();
    let client = client(&fake);
    let barrier = &std::sync::Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            let client = client.clone();
            scope.spawn(move || {
                barrier.wait();
                (0..50).for_each(|_| client.ping().unwrap());
            });
        }
    });
    fake.kill();
    fake.begin();
    client.cache("product").put("42", "rocket", None).unwrap();
}

#[test]
fn a_call_waits_for_a_daemon_that_comes_back() {
    let mut fake = Fake::start();
    let client = client(&fake);
    fake.kill();
    let called = std::thread::scope(|scope| {
        let call = scope.spawn(|| client.cache("product").put("42", "rocket", None));
        fake.begin();
        call.join().unwrap()
    });
    called.unwrap();
}

#[test]
fn a_daemon_that_stays_away_is_waited_for_once() {
    let mut fake = Fake::start();
    let grace = Duration::from_millis(200);
    let client =
        Client::builder().socket(fake.socket()).shared_memory(false).restart_grace(grace).build().unwrap();
    fake.kill();
    let begun = Instant::now();
    let error = client.ping().unwrap_err();
    assert!(begun.elapsed() >= grace / 2, "gave up after {:?}", begun.elapsed());
    assert_eq!(error.retry_advice(), RetryAdvice::Reconnect);
    let begun = Instant::now();
    client.ping().unwrap_err();
    assert!(begun.elapsed() < grace, "waited again: {:?}", begun.elapsed());
}

#[test]
fn a_lost_answer_of_a_read_is_asked_for_again() {
    let fake = Fake::start();
    let cache = client(&fake).cache("product");
    cache.put("42", "rocket", None).unwrap();
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::HalfAnswer, Fault::Busy, Fault::Dribble] {
        fake.fail_next([fault]);
        assert_eq!(cache.get("42").unwrap().as_deref(), Some(&b"rocket"[..]), "{fault:?}");
    }
}

#[test]
fn a_lost_answer_of_a_plain_write_is_never_repeated() {
    let fake = Fake::start();
    let cache = client(&fake).cache("product");
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::HalfAnswer] {
        fake.fail_next([fault]);
        let before = fake.requests();
        let error = cache.put("42", "rocket", None).unwrap_err();
        assert!(error.maybe_applied() && !error.is_retryable(), "{fault:?}: {error}");
        assert_eq!(fake.requests(), before + 1, "{fault:?}");
    }
}

#[test]
fn a_write_that_insists_on_a_version_is_repeated_but_never_misreported() {
    let fake = Fake::start();
    let cache = client(&fake).cache("product");
    let version = cache.put("42", "rocket", None).unwrap();
    // Not applied: the repetition is.
    fake.fail_next([Fault::LostBefore]);
    let PutOutcome::Written { version } =
        cache.put_with("42", "castle", PutOptions::new().if_version(version)).unwrap()
    else {
        panic!("refused")
    };
    // Applied: the repetition is refused, and that is not reported as a refusal.
    fake.fail_next([Fault::LostAfter]);
    let error = cache.put_with("42", "ship", PutOptions::new().if_version(version)).unwrap_err();
    assert!(error.maybe_applied(), "{error}");
    assert_eq!(fake.value("product", "42").as_deref(), Some(&b"ship"[..]));
    // Refused without any loss: an outcome.
    let outcome = cache.put_with("42", "tree", PutOptions::new().if_version(version)).unwrap();
    assert!(matches!(outcome, PutOutcome::Refused { version: Some(_) }));
    // Absent again does not prove that nothing was applied in between.
    fake.fail_next([Fault::LostBefore]);
    assert!(cache.put_with("43", "x", PutOptions::new().if_absent()).unwrap_err().maybe_applied());
}

#[test]
fn a_commit_is_repeated_only_if_it_changes_a_version_it_insists_on() {
    let fake = Fake::start();
    let client = client(&fake);
    let version = client.cache("a").put("1", "x", None).unwrap();
    fake.fail_next([Fault::LostBefore]);
    client
        .batch()
        .expect_version("a", "1", version)
        .put("a", "1", "y", None)
        .put("b", "2", "z", None)
        .commit()
        .unwrap();
    let error = client.batch().expect_version("a", "1", version).delete("a", "1").commit().unwrap_err();
    assert!(matches!(error, Error::Conflict { index: 0, version: Some(_) }), "{error}");
    assert_eq!(error.retry_advice(), RetryAdvice::Now);
    fake.fail_next([Fault::LostBefore]);
    let error = client.batch().expect_absent("a", "9").put("b", "2", "z", None).commit().unwrap_err();
    assert!(error.maybe_applied());
}

#[test]
fn every_wait_ends_at_the_deadline() {
    let fake = Fake::start();
    let timeout = Duration::from_millis(150);
    let client =
        Client::builder().socket(fake.socket()).shared_memory(false).op_timeout(timeout).build().unwrap();
    for fault in [Fault::Nothing, Fault::HalfThenNothing] {
        fake.fail_next([fault]);
        let begun = Instant::now();
        let error = client.cache("product").put("42", "rocket", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.maybe_applied());
        assert!(begun.elapsed() < timeout * 4, "{fault:?}: {:?}", begun.elapsed());
    }
    fake.fail_next([Fault::Nothing]);
    assert!(!client.ping().unwrap_err().maybe_applied());
    // A whole wait without any answer: calls fail at once until the daemon was found, which it is soon. The late answer, if
    // any, went with its connection.
    assert_eq!(client.ping().unwrap_err().kind(), ErrorKind::Timeout);
    let begun = Instant::now();
    while client.ping().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(2), "the daemon is there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn answers_that_are_none_end_the_connection_and_nothing_else() {
    let fake = Fake::start();
    let client = client(&fake);
    for fault in [Fault::GiantLength, Fault::Nonsense] {
        fake.fail_next([fault]);
        let before = fake.welcomes();
        assert_eq!(client.ping().unwrap_err().kind(), ErrorKind::Protocol, "{fault:?}");
        client.ping().unwrap();
        assert_eq!(fake.welcomes(), before + 1);
    }
}

#[test]
fn threads_do_not_wait_for_each_other() {
    let fake = Fake::start();
    let client = client(&fake);
    let stuck = fake.stuck();
    fake.fail_next([Fault::Nothing]);
    std::thread::scope(|scope| {
        let slow = client.with_op_timeout(Duration::from_millis(500));
        let call = scope.spawn(move || slow.ping());
        stuck.recv_timeout(Duration::from_secs(5)).expect("the slow call is under way");
        client.ping().unwrap();
        assert!(!call.is_finished());
        assert_eq!(call.join().unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    });
}

#[test]
fn limits_are_named_before_anything_is_sent() {
    let fake = Fake::start();
    let client = client(&fake);
    let cache = client.cache("product");
    let before = fake.requests();
    let too_large = |error: Error, message: &str| {
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.to_string(), message);
    };
    too_large(cache.get([0; 1_025]).unwrap_err(), "key is 1025 bytes, limit is 1024");
    let value = vec![0; (1 << 20) + 1];
    too_large(cache.put("42", value, None).unwrap_err(), "value is 1048577 bytes, limit is 1048576");
    let many = (0..1_025).map(|n| (format!("{n}"), "x"));
    too_large(cache.put_many(many, None).unwrap_err(), "commit is 1025 writes, limit is 1024");
    let tag = PutOptions::new().tag([7; 65]);
    too_large(cache.put_with("42", "x", &tag).unwrap_err(), "tag is 65 bytes, limit is 64");
    assert_eq!(cache.get("").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(cache.put("42", "x", Duration::ZERO).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(client.cache("No Such Name").get("42").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(fake.requests(), before);
}

#[test]
fn get_many_keeps_the_order_over_partial_answers() {
    let fake = Fake::start();
    let cache = client(&fake).cache("product");
    let keys: Vec<_> = (0..3_000).map(|n| format!("{n}")).collect();
    for chunk in keys.chunks(1_000) {
        cache.put_many(chunk.iter().map(|key| (key, key)), None).unwrap();
    }
    fake.answer_items_max(700);
    let values = cache.get_many(&keys).unwrap();
    assert!(values.iter().zip(&keys).all(|(value, key)| value.as_deref() == Some(key.as_bytes())));
    assert_eq!(cache.get_many::<&str>(&[]).unwrap(), Vec::<Option<Vec<u8>>>::new());
}

#[test]
fn a_scan_goes_on_where_the_last_page_ended() {
    let fake = Fake::start();
    let cache = client(&fake).cache("product");
    cache.put_many((0..100).map(|n| (format!("k{n:03}"), "v")), None).unwrap();
    cache.put("other", "v", None).unwrap();
    let pages: Vec<_> = cache.scan("k").keys_max(30).values().map(|page| page.unwrap().items).collect();
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [30, 30, 30, 10]);
    let first = cache.scan("k").keys_max(30).next_page().unwrap().unwrap();
    let second = cache.scan("k").keys_max(30).after(first.cursor).next_page().unwrap().unwrap();
    assert_eq!(second.items[0].0, b"k030");
}

#[test]
fn a_daemon_that_says_no_is_believed_at_once() {
    let fake = Fake::start();
    fake.refuse_hello(Some(ErrorKind::Denied));
    let error = Client::builder().socket(fake.socket()).shared_memory(false).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(!error.is_retryable());
    fake.refuse_hello(Some(ErrorKind::Unavailable));
    let error = Client::builder()
        .socket(fake.socket())
        .shared_memory(false)
        .retry(RetryPolicy::never())
        .build()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
}

#[test]
fn whoever_finds_nobody_is_told_where_it_was_looked_for() {
    let long = format!("/{}", "x".repeat(200));
    let error = Client::builder().socket(&long).build().unwrap_err();
    assert!(error.to_string().contains("the path is 201 bytes, limit is 107"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let error = Client::builder().socket(dir.path().join("none")).build().unwrap_err();
    assert!(matches!(&error, Error::Unreachable { tried } if tried.len() == 1), "{error}");
}

#[test]
fn closed_connections_are_not_kept() {
    let fake = Fake::start();
    let client = client(&fake);
    fake.fail_next([Fault::CloseAfterAnswer]);
    let closed = fake.stuck();
    client.ping().unwrap();
    closed.recv_timeout(Duration::from_secs(10)).expect("the fake daemon closes");
    client.cache("product").put("42", "rocket", None).unwrap();
    assert_eq!(fake.value("product", "42").as_deref(), Some(&b"rocket"[..]));
}
