//! Durations, errors and options: what is said, and when.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use kv_client::blocking::Client;
use kv_client::{Error, ErrorKind, PutOptions, RetryAdvice, SchemaVersion};

use crate::fake::{Fake, Fault};
use crate::support::*;

#[test]
fn semantic_09_durations_are_std_durations_in_code_and_words_in_configuration() {
    assert_eq!(kvd::units::parse_duration("5m").unwrap(), Duration::from_secs(300));
    assert_eq!(kvd::units::parse_duration("1h30m").unwrap(), Duration::from_secs(5_400));
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    cache.put("k", "v", Duration::from_millis(1_500)).unwrap();
    let left = cache.get_entry("k").unwrap().unwrap().expires_in_ms.unwrap();
    assert!((1_000..=1_500).contains(&left), "{left}");
}

/// What a caller has to know of an error, at once.
fn assert_is(error: &Error, kind: ErrorKind, advice: RetryAdvice, maybe_applied: bool) {
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.retry_advice(), advice, "{error}");
    assert_eq!(error.is_retryable(), advice != RetryAdvice::Never, "{error}");
    assert_eq!(error.maybe_applied(), maybe_applied, "{error}");
}

#[test]
fn semantic_10_errors_of_the_daemon_say_what_to_do_next() {
    let server = kvd::testing::server();
    let missing = server.client().cache("never").delete("k").unwrap_err();
    assert_is(&missing, ErrorKind::UnknownCache, RetryAdvice::Never, false);
    let limited = kvd::testing::server_with(|config| config.value_bytes_max = 65_536);
    let large = limited.client().cache("c").put("k", vec![0; 65_537], None).unwrap_err();
    assert_is(&large, ErrorKind::TooLarge, RetryAdvice::Never, false);

    let server = kvd::testing::server();
    let (client, other) = (server.client(), server.client());
    let cache = client.cache("c");
    cache.put("k", "v", None).unwrap();
    let conflict = client.batch().expect_version("c", "k", 1).put("c", "k", "w", None).commit().unwrap_err();
    assert_is(&conflict, ErrorKind::Conflict, RetryAdvice::Now, false);
    let large = cache.put("k", vec![0; (1 << 20) + 1], None).unwrap_err();
    assert_is(&large, ErrorKind::TooLarge, RetryAdvice::Never, false);
    let held_lock = client.lock("name", MINUTE).unwrap();
    let busy = other.with_op_timeout(Duration::from_millis(20));
    let busy = std::thread::spawn(move || busy.lock("name", MINUTE).map(drop)).join().unwrap().unwrap_err();
    assert_eq!((busy.kind(), busy.maybe_applied()), (ErrorKind::Timeout, false), "{busy}");
    let own = client.lock("name", MINUTE).unwrap_err();
    assert_is(&own, ErrorKind::Deadlock, RetryAdvice::Now, false);
    drop(held_lock);
    let mut short = client.lock("short", Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let next = other.lock("short", MINUTE).unwrap();
    assert_is(&short.renew().unwrap_err(), ErrorKind::LeaseLost, RetryAdvice::Now, false);
    assert!(next.fence() > short.fence());
    let number = cache.increment("k", 1, kv_client::Initial::value(1)).unwrap_err();
    assert_is(&number, ErrorKind::Invalid, RetryAdvice::Never, false);
}

#[test]
fn semantic_10_errors_of_the_client_keep_their_source() {
    let nobody = Client::builder().socket("/nowhere/kvd.sock").build().unwrap_err();
    assert_is(&nobody, ErrorKind::Unavailable, RetryAdvice::Reconnect, false);
    let fake = Fake::start();
    let cache = by_socket(fake.socket()).build().unwrap().cache("c");
    fake.fail_next([Fault::LostAfter]);
    let lost = cache.put("k", "v", None).unwrap_err();
    assert_is(&lost, ErrorKind::Unavailable, RetryAdvice::Never, true);
    assert!(lost.source().is_some(), "what the kernel said");
    fake.fail_next([Fault::Nonsense]);
    let nonsense = cache.put("k", "v", None).unwrap_err();
    assert_is(&nonsense, ErrorKind::Protocol, RetryAdvice::Never, true);
    assert!(nonsense.source().is_some(), "what the decoder says");
    let short = by_socket(fake.socket()).op_timeout(Duration::from_millis(30)).build().unwrap();
    fake.fail_next([Fault::Nothing]);
    assert_is(
        &short.cache("c").put("k", "v", None).unwrap_err(),
        ErrorKind::Timeout,
        RetryAdvice::Never,
        true,
    );
    fake.refuse_hello(Some(ErrorKind::Denied));
    let denied = by_socket(fake.socket()).build().unwrap_err();
    assert_is(&denied, ErrorKind::Denied, RetryAdvice::Never, false);

    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let failed = cache.get_or_load("k", None, |_| Err::<Vec<u8>, _>(std::io::Error::other("no database")));
    let failed = failed.unwrap_err();
    assert_is(&failed, ErrorKind::Loader, RetryAdvice::Never, false);
    assert!(failed.source().is_some_and(|source| source.to_string() == "no database"));
    let Error::Loader { source, .. } = &failed else { panic!("{failed}") };
    assert!(source.is::<std::io::Error>(), "the caller's own error");
    let codec = cache.typed::<Unencodable>(SchemaVersion(1)).put("k", &Unencodable, None).unwrap_err();
    assert_is(&codec, ErrorKind::Codec, RetryAdvice::Never, false);
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    shared(&failed);
}

struct Unencodable;

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("there is no way to write it"))
    }
}

impl<'de> serde::Deserialize<'de> for Unencodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Unencodable, D::Error> {
        Ok(Unencodable)
    }
}

#[test]
fn semantic_11_options_that_make_no_sense_are_said_before_anything_is_loaded() {
    let server = kvd::testing::server();
    let cache = server.client().cache("c");
    let ms = Duration::from_millis;
    let entry = || cache.entry("k").ttl(MINUTE);
    let nonsense = [
        ("refresh_ahead", entry().refresh_ahead(0.0)),
        ("refresh_ahead of 1 ms", entry().ttl(ms(1)).refresh_ahead(0.9)),
        ("negative_ttl above ttl", entry().negative_ttl(HOUR)),
        ("negative_ttl of 0", entry().negative_ttl(ms(0))),
        ("soft without stale", entry().soft_timeout(ms(5))),
        ("soft above hard", entry().stale_for(HOUR).soft_timeout(ms(9)).hard_timeout(ms(8))),
        ("hard above lease", entry().hard_timeout(HOUR)),
        ("a lease of 0", entry().lease(ms(0))),
        ("a ttl of 0", entry().ttl(ms(0))),
        ("jitter", entry().jitter(1.5)),
        ("jitter that is no number", entry().jitter(f64::NAN)),
        ("nine tags", entry().tags((0..9).map(|n| [n]))),
        ("a long tag", entry().tag([7; 65])),
    ];
    for (name, entry) in nonsense {
        let error = entry.get_or_load_detached(|_| -> Result<Vec<u8>, Never> { panic!("it is not loaded") });
        let kind = error.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::TooLarge), "{name}: {kind:?}");
    }
    let many = cache.entries().jitter(7.0).get_or_load_many(&["k"], |_| Ok::<_, Never>(()));
    assert_eq!(many.unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn semantic_10_a_value_that_cannot_be_stored_is_reported_and_its_caller_has_it() {
    let server = kvd::testing::server();
    let noted = Arc::new(Noted::default());
    let client = Client::builder().socket(server.socket()).observer(Arc::clone(&noted)).build().unwrap();
    let cache = client.cache("c");
    let large = vec![7; (1 << 20) + 1];
    for n in 1..=3 {
        let value = cache.get_or_load("large", None, |_| Ok::<_, Never>(large.clone())).unwrap();
        assert_eq!(value.len(), large.len());
        assert_eq!(stats(&client, "c").loads.not_stored, n);
        until_nothing_is_held(&server);
    }
    assert_eq!(noted.count("NotStored"), 3);
    cache
        .get_or_load("tags", None, |fill| {
            (0..9).for_each(|n: u8| fill.add_tag([n]));
            bytes::<Never>("v")
        })
        .unwrap();
    assert_eq!(noted.count("NotStored"), 4, "nor one with nine tags");
    assert!(cache.put_with("k", "v", PutOptions::new()).unwrap().is_written());
}
