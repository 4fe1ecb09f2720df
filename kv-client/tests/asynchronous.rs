//! The async client against a daemon that fails on demand.

#![cfg(feature = "tokio")]

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Fault};
use kv_client::{Client, Error, ErrorKind, PutOptions, PutOutcome, RetryAdvice};

async fn client(fake: &Fake) -> Client {
    Client::builder().socket(fake.socket()).shared_memory(false).build().await.expect("the daemon is there")
}

#[tokio::test]
async fn bytes_come_back_as_they_were_put() {
    let fake = Fake::start();
    let cache = client(&fake).await.cache("product");
    let all: Vec<u8> = (0..=255).collect();
    for bytes in [0, 1, 4_095, 4_096, 65_537, 1 << 20] {
        let value: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        cache.put(&all, &value, None).await.unwrap();
        assert!(cache.get(&all).await.unwrap() == Some(value), "{bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_two_connections_and_get_their_own_answers() {
    let fake = Fake::start();
    let client = client(&fake).await;
    let tasks: Vec<_> = (0..50)
        .map(|task| {
            let cache = client.cache("product");
            tokio::spawn(async move {
                for n in 0..40 {
                    let key = format!("{task}:{n}");
                    cache.put(&key, &key, None).await.unwrap();
                    assert_eq!(cache.get(&key).await.unwrap(), Some(key.into_bytes()));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(fake.welcomes(), 2);
}

#[tokio::test]
async fn the_first_request_after_a_restart_succeeds() {
    let mut fake = Fake::start();
    let cache = client(&fake).await.cache("product");
    for n in 0..5 {
        let value = format!("{n}");
        let durable = PutOptions::new().durable();
        cache.put("42", &value, None).await.unwrap();
        assert!(matches!(cache.put_with("44", &value, &durable).await.unwrap(), PutOutcome::Written { .. }));
        fake.kill();
        fake.begin();
        // Writes that may not be repeated: they are known not to have been sent.
        cache.put("43", &value, None).await.unwrap();
        assert!(matches!(cache.put_with("44", &value, &durable).await.unwrap(), PutOutcome::Written { .. }));
        assert_eq!(cache.get("42").await.unwrap(), Some(value.into_bytes()));
    }
}

#[tokio::test]
async fn a_daemon_that_stays_away_is_waited_for_once() {
    let mut fake = Fake::start();
    let grace = Duration::from_millis(200);
    let client = Client::builder()
        .socket(fake.socket())
        .shared_memory(false)
        .restart_grace(grace)
        .build()
        .await
        .unwrap();
    fake.kill();
    let begun = Instant::now();
    let error = client.ping().await.unwrap_err();
    assert!(begun.elapsed() >= grace / 2, "gave up after {:?}", begun.elapsed());
    assert_eq!(error.retry_advice(), RetryAdvice::Reconnect);
    let begun = Instant::now();
    client.ping().await.unwrap_err();
    assert!(begun.elapsed() < grace, "waited again: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_lost_answer_is_repeated_only_where_that_is_safe() {
    let fake = Fake::start();
    let cache = client(&fake).await.cache("product");
    let version = cache.put("42", "rocket", None).await.unwrap();
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::HalfAnswer, Fault::Busy, Fault::Dribble] {
        fake.fail_next([fault]);
        assert_eq!(cache.get("42").await.unwrap().as_deref(), Some(&b"rocket"[..]), "{fault:?}");
    }
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::HalfAnswer] {
        let before = fake.requests();
        fake.fail_next([fault]);
        let error = cache.put("43", "rocket", None).await.unwrap_err();
        assert!(error.maybe_applied() && !error.is_retryable(), "{fault:?}: {error}");
        assert_eq!(fake.requests(), before + 1, "{fault:?}");
    }
    let guarded = PutOptions::new().if_version(version);
    fake.fail_next([Fault::LostBefore]);
    assert!(matches!(cache.put_with("42", "ship", &guarded).await.unwrap(), PutOutcome::Written { .. }));
}

#[tokio::test]
async fn durable_writes_hold_up_nobody() {
    let fake = Fake::start();
    let client = client(&fake).await;
    let cache = client.cache("product");
    let stuck = fake.stuck();
    fake.fail_next([Fault::Nothing]);
    let slow = client.with_op_timeout(Duration::from_millis(500)).cache("product");
    let slow = tokio::spawn(async move { slow.put_with("1", "x", &PutOptions::new().durable()).await });
    let under_way = tokio::task::spawn_blocking(move || stuck.recv_timeout(Duration::from_secs(5)));
    under_way.await.unwrap().expect("the durable write is under way");
    cache.put("2", "y", None).await.unwrap();
    assert!(!slow.is_finished());
    assert_eq!(slow.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn a_dropped_future_leaves_the_stream_in_order() {
    let fake = Fake::start();
    let client = client(&fake).await;
    let cache = client.cache("product");
    for n in 0..20 {
        cache.put(format!("{n}"), format!("{n}"), None).await.unwrap();
    }
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..500 {
        let key = format!("{}", random.u32(0..20));
        let mut call = Box::pin(cache.get(&key));
        // Polled a few times, then forgotten: its answer comes for nobody.
        for _ in 0..random.u32(1..6) {
            let polled =
                std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context))).await;
            if polled.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let key = format!("{}", random.u32(0..20));
        assert_eq!(cache.get(&key).await.unwrap(), Some(key.into_bytes()));
    }
    assert!(fake.welcomes() <= 2, "a dropped future cost a connection: {}", fake.welcomes());
}

#[tokio::test]
async fn every_wait_ends_at_the_deadline_and_a_silent_daemon_is_left() {
    let fake = Fake::start();
    let timeout = Duration::from_millis(150);
    let client = Client::builder()
        .socket(fake.socket())
        .shared_memory(false)
        .op_timeout(timeout)
        .build()
        .await
        .unwrap();
    for fault in [Fault::Nothing, Fault::HalfThenNothing] {
        fake.fail_next([fault]);
        let begun = Instant::now();
        let error = client.cache("product").put("42", "rocket", None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.maybe_applied());
        assert!(begun.elapsed() < timeout * 4, "{fault:?}: {:?}", begun.elapsed());
        client.cache("product").put("42", "rocket", None).await.unwrap();
    }
}

#[tokio::test]
async fn an_impatient_caller_costs_the_others_nothing() {
    let fake = Fake::start();
    let client = client(&fake).await;
    let impatient = client.with_op_timeout(Duration::from_nanos(1));
    for _ in 0..10 {
        // The timer is coarse: now and then the answer is quicker.
        if let Err(error) = impatient.ping().await {
            assert_eq!(error.kind(), ErrorKind::Timeout);
        }
        client.ping().await.unwrap();
    }
    assert_eq!(fake.welcomes(), 1);
}

#[tokio::test]
async fn answers_that_are_none_end_the_connection_and_nothing_else() {
    let fake = Fake::start();
    let client = client(&fake).await;
    fake.fail_next([Fault::GiantLength]);
    assert_eq!(client.ping().await.unwrap_err().kind(), ErrorKind::Protocol);
    client.ping().await.unwrap();
    fake.fail_next([Fault::Nonsense]);
    assert_eq!(client.ping().await.unwrap_err().kind(), ErrorKind::Protocol);
    client.ping().await.unwrap();
}

#[test]
fn a_client_outlives_the_runtime_that_used_it_first() {
    let fake = Fake::start();
    let client = Client::builder().socket(fake.socket()).shared_memory(false).build_lazy();
    for n in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cache = client.cache("product");
            cache.put("42", format!("{n}"), None).await.unwrap();
            client.sync().await.unwrap();
            assert_eq!(cache.get("42").await.unwrap(), Some(format!("{n}").into_bytes()));
        });
    }
}

#[tokio::test]
async fn limits_are_named_before_anything_is_sent() {
    let fake = Fake::start();
    let cache = client(&fake).await.cache("product");
    let before = fake.requests();
    let error = cache.put("42", vec![0; (1 << 20) + 1], None).await.unwrap_err();
    assert_eq!(error.to_string(), "value is 1048577 bytes, limit is 1048576");
    let error = cache.put_many((0..1_025).map(|n| (format!("{n}"), "x")), None).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { amount: 1_025, .. }), "{error}");
    assert_eq!(fake.requests(), before);
}

#[tokio::test]
async fn get_many_and_scan_go_on_over_partial_answers() {
    let fake = Fake::start();
    let client = client(&fake).await;
    let cache = client.cache("product");
    let keys: Vec<_> = (0..1_000).map(|n| format!("k{n:04}")).collect();
    cache.put_many(keys.iter().map(|key| (key, key)), None).await.unwrap();
    fake.answer_items_max(300);
    let values = cache.get_many(&keys).await.unwrap();
    assert!(values.iter().zip(&keys).all(|(value, key)| value.as_deref() == Some(key.as_bytes())));
    let mut scan = cache.scan("k");
    let mut pages = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        pages.push(page.items.len());
    }
    assert_eq!(pages, [300, 300, 300, 100]);
}

#[tokio::test]
async fn a_commit_is_all_or_nothing() {
    let fake = Fake::start();
    let client = client(&fake).await;
    let version = client.cache("a").put("1", "x", None).await.unwrap();
    client.batch().expect_version("a", "1", version).put("a", "1", "y", None).commit().await.unwrap();
    let error =
        client.batch().expect_version("a", "1", version).put("b", "1", "z", None).commit().await.unwrap_err();
    assert!(matches!(error, Error::Conflict { index: 0, version: Some(_) }), "{error}");
    assert_eq!(fake.value("b", "1"), None);
}

#[test]
fn futures_can_be_spawned() {
    fn assert_send<T: Send>(_: T) {}
    let client = Client::builder().socket("/nowhere").build_lazy();
    let cache = client.cache("product");
    assert_send(client.ping());
    assert_send(cache.get("42"));
    assert_send(cache.put("42", "x", None));
    assert_send(cache.put_many([("1", "x")], None));
    let mut value = Vec::new();
    assert_send(cache.get_into("42", &mut value));
    assert_send(cache.get_many(&["1", "2"]));
    assert_send(client.batch().delete("a", "b").commit());
    let mut scan = cache.scan("");
    assert_send(scan.next_page());
}
