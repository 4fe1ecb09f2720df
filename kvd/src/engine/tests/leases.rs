//! Leases: who gets them, who waits, and what wins over a fill.

use std::time::{Duration, Instant};

use kv_proto::wire::{
    Bytes, Condition, Effect, ErrorKind, Expiry, Filling, PutOptions, Request, Response, Scope, Wanted, Write,
};

use super::{Got, LONG_MS, PATIENCE, Somebody, fresh, house, house_with, stale};
use crate::txn::PartyKind;

#[test]
fn one_of_many_gets_the_lease_and_all_others_its_value() {
    let house = house();
    let mut loader = house.somebody();
    let lease = loader.lease("k", LONG_MS).lease();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..8).map(|_| scope.spawn(|| house.somebody().lease("k", LONG_MS))).collect();
        house.await_waiting(8);
        assert!(loader.fill(lease, "v"));
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), fresh("v"));
        }
    });
    assert_eq!(house.counted("kvd_leases_granted_total"), 1.0);
    assert_eq!(house.counted("kvd_lease_waits_total"), 8.0);
    assert!(!loader.fill(lease, "again"), "a lease fills once");
    assert_eq!(house.somebody().lease("k", 0), fresh("v"));
}

#[test]
fn nobody_waits_for_one_of_many_or_without_a_wait() {
    let house = house();
    let mut loader = house.somebody();
    loader.lease("k", 0).lease();
    let mut other = house.somebody();
    other.put("there", "v");
    assert_eq!(other.lease("k", 0), Got::Busy);
    let wanted = ["k", "there", "free"].map(|key| Wanted { key: key.as_bytes(), except: None });
    let loans = other.lend(&wanted, LONG_MS, 600_000, &[]);
    assert_eq!(loans[..2], [Got::Busy, fresh("v")]);
    assert!(matches!(loans[2], Got::Leased(_, None)));
    assert_eq!(house.somebody().lease("k", 1), Got::Busy, "the wait is over");
}

#[test]
fn the_lease_of_who_has_left_is_the_next_ones_at_once() {
    let house = house();
    let mut loader = house.somebody();
    let lease = loader.lease("k", 0).lease();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            let mut next = house.somebody();
            let lease = next.lease("k", LONG_MS).lease();
            assert!(next.fill(lease, "second"));
        });
        house.await_waiting(1);
        drop(loader);
        next.join().unwrap();
    });
    assert_eq!(house.counted("kvd_leases_lost_total"), 1.0);
    assert_eq!(house.somebody().get("k").as_deref(), Some("second"));
    assert!(!house.somebody().fill(lease, "of a dead one"), "nobody else has its number");
}

#[test]
fn an_abandoned_lease_goes_to_one_and_then_to_the_next() {
    let house = house();
    let mut loader = house.somebody();
    let lease = loader.lease("k", 0).lease();
    std::thread::scope(|scope| {
        let ask = || {
            let mut next = house.somebody();
            let lease = next.lease("k", LONG_MS).lease();
            next.abandon(lease, 0);
        };
        let (one, other) = (scope.spawn(ask), scope.spawn(ask));
        house.await_waiting(2);
        loader.abandon(lease, 0);
        one.join().unwrap();
        other.join().unwrap();
    });
    assert_eq!(house.counted("kvd_lease_abandons_total"), 3.0);
}

#[test]
fn a_hung_loader_loses_its_lease_to_who_wants_it_and_its_late_fill_is_refused() {
    let house = house();
    let mut hung = house.somebody();
    let first = hung.lease_for("k", 0, 30, &[]).lease();
    let mut next = house.somebody();
    let began = Instant::now();
    let second = next.lease("k", LONG_MS).lease();
    assert!(began.elapsed() < PATIENCE / 2, "it was told when the time was over");
    assert!(!hung.fill(first, "late"));
    assert!(next.fill(second, "v"));
    assert_eq!(next.get("k").as_deref(), Some("v"));
    assert_eq!(house.counted("kvd_leases_expired_total"), 1.0);
}

#[test]
fn a_late_fill_that_nobody_was_waiting_for_is_taken() {
    let house = house();
    let mut slow = house.somebody();
    let lease = slow.lease_for("k", 0, 0, &[]).lease();
    assert!(slow.fill(lease, "v"));
    let lost = slow.lease_for("other", 0, 0, &[]).lease();
    assert!(matches!(house.somebody().lease("other", 0), Got::Leased(..)), "asking is wanting");
    assert!(!slow.fill(lost, "v"));
}

#[test]
fn a_waiter_behind_a_hung_one_that_got_the_lease_after_another_is_served_in_time() {
    let house = house();
    let mut first = house.somebody();
    let lease = first.lease("k", 0).lease();
    let mut second = house.somebody();
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| second.lease_for("k", LONG_MS, 30, &[]).lease());
        house.await_waiting(1);
        let third = scope.spawn(|| house.somebody().lease("k", LONG_MS).lease());
        house.await_waiting(2);
        first.abandon(lease, 0);
        hung.join().unwrap();
        let began = Instant::now();
        third.join().unwrap();
        assert!(began.elapsed() < PATIENCE / 2);
    });
}

#[test]
fn whatever_happens_to_the_key_during_the_load_wins_over_the_fill() {
    type Event = fn(&mut Somebody);
    let cases: [(&str, Event, Option<&str>); 12] = [
        ("put", |other| assert!(other.put("key", "newer") > 0), Some("newer")),
        ("delete", |other| assert!(other.write(Request::Delete { cache: "c", key: b"key" }) > 0), None),
        (
            "expire now",
            |other| {
                assert!(other.write(Request::Expire { cache: "c", key: b"key", expiry: Expiry::Now }) > 0)
            },
            None,
        ),
        (
            "expire stale",
            |other| {
                assert!(other.write(Request::Expire { cache: "c", key: b"key", expiry: Expiry::Stale }) > 0)
            },
            None,
        ),
        ("take", |other| other.ask(Request::Take { cache: "c", key: b"key" }, |_| ()), None),
        ("clear everything", |other| other.clear(Scope::Everything, Effect::Gone), None),
        ("clear cache", |other| other.clear(Scope::Cache("c"), Effect::Gone), None),
        ("clear cache to stale", |other| other.clear(Scope::Cache("c"), Effect::Stale), None),
        (
            "clear prefix",
            |other| other.clear(Scope::Prefix { cache: "c", prefix: b"ke" }, Effect::Gone),
            None,
        ),
        ("clear tag", |other| other.clear(Scope::Tag { cache: None, tag: b"red" }, Effect::Gone), None),
        (
            "clear tag to stale",
            |other| other.clear(Scope::Tag { cache: Some("c"), tag: b"red" }, Effect::Stale),
            None,
        ),
        (
            "transaction",
            |other| {
                let transaction = other.begin();
                other.put("key", "newer");
                let commit = Request::CommitTransaction { transaction, durability: None };
                other.ask(commit, |response| assert!(matches!(response, Response::Committed { .. })));
            },
            Some("newer"),
        ),
    ];
    for (name, event, there) in cases {
        let house = house();
        let (mut loader, mut other) = (house.somebody(), house.somebody());
        other.put("key", "old");
        house.clock.advance(Duration::from_secs(2));
        let lease = loader.lease("key", 0).lease();
        event(&mut other);
        let options = PutOptions { tags: vec![Bytes(b"red")], ..PutOptions::default() };
        assert_eq!(loader.fill_with(lease, "of before", options), Ok(None), "{name}");
        assert_eq!(other.get("key").as_deref(), there, "{name}");
        assert_eq!(house.counted("kvd_lease_fills_refused_total"), 1.0, "{name}");
    }
}

/// Who invalidates a key need not know that it is missing, and that somebody has read what it was.
#[test]
fn an_invalidation_that_finds_nothing_still_wins_over_the_fill() {
    type Event = fn(&mut Somebody);
    let delete = Request::Delete { cache: "c", key: b"key" };
    assert_eq!(house().somebody().say(delete), "UnknownCache");
    let events: [(&str, Event); 6] = [
        ("delete", |other| assert_eq!(other.say(Request::Delete { cache: "c", key: b"key" }), "Missing")),
        ("take", |other| assert_eq!(other.say(Request::Take { cache: "c", key: b"key" }), "Missing")),
        ("expire now", |other| {
            let expire = Request::Expire { cache: "c", key: b"key", expiry: Expiry::Now };
            assert_eq!(other.say(expire), "Missing");
        }),
        ("expire stale", |other| {
            let expire = Request::Expire { cache: "c", key: b"key", expiry: Expiry::Stale };
            assert_eq!(other.say(expire), "Missing");
        }),
        ("commit", |other| {
            let writes = vec![Write::Delete { cache: "c", key: b"key" }];
            let commit = Request::Commit { checks: vec![], writes, durability: None };
            assert_eq!(other.say(commit), "Committed { version: 0, changed: 0 }");
        }),
        ("transaction", |other| {
            let transaction = other.begin();
            assert_eq!(other.say(Request::Delete { cache: "c", key: b"key" }), "Missing");
            let commit = Request::CommitTransaction { transaction, durability: None };
            other.ask(commit, |response| assert!(matches!(response, Response::Committed { changed: 0, .. })));
        }),
    ];
    for (name, event) in events {
        let house = house();
        let (mut loader, mut other) = (house.somebody(), house.somebody());
        let lease = loader.lease("key", 0).lease();
        event(&mut other);
        assert!(!loader.fill(lease, "of before"), "{name}");
        assert_eq!(other.get("key"), None, "{name}");
    }
    let house = house();
    let (mut loader, mut other) = (house.somebody(), house.somebody());
    let lease = loader.lease("key", 0).lease();
    let expire = Request::Expire { cache: "c", key: b"key", expiry: Expiry::After(1_000) };
    assert_eq!(other.say(expire), "Missing");
    assert!(loader.fill(lease, "v"), "a longer life for nothing takes nothing away");
}

#[test]
fn what_happens_to_others_leaves_the_lease_alone() {
    let house = house();
    let (mut loader, mut other) = (house.somebody(), house.somebody());
    other.put("other", "v");
    let lease = loader.lease("key", 0).lease();
    other.put("other", "v2");
    other.clear(Scope::Prefix { cache: "c", prefix: b"oth" }, Effect::Gone);
    other.clear(Scope::Tag { cache: None, tag: b"blue" }, Effect::Gone);
    let options = PutOptions { tags: vec![Bytes(b"red")], ..PutOptions::default() };
    assert!(loader.fill_with(lease, "v", options).unwrap().is_some());
}

#[test]
fn a_write_during_the_load_sends_all_waiters_to_look_at_once() {
    let house = house();
    let mut loader = house.somebody();
    let lease = loader.lease("k", 0).lease();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| house.somebody().lease("k", LONG_MS))).collect();
        house.await_waiting(4);
        house.somebody().put("k", "newer");
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), fresh("newer"));
        }
    });
    assert_eq!(house.counted("kvd_leases_overtaken_total"), 1.0);
    assert!(!loader.fill(lease, "of before"));
}

#[test]
fn after_a_clear_one_of_the_waiters_loads_anew_and_the_others_wait_for_that() {
    for scope in [Scope::Everything, Scope::Cache("c"), Scope::Prefix { cache: "c", prefix: b"k" }] {
        let house = house();
        let mut loader = house.somebody();
        let lease = loader.lease("k", 0).lease();
        std::thread::scope(|threads| {
            let ask = || {
                let mut next = house.somebody();
                let Got::Leased(lease, None) = next.lease("k", LONG_MS) else { return false };
                house.await_waiting(3);
                next.fill(lease, "second")
            };
            let waiters: Vec<_> = (0..4).map(|_| threads.spawn(ask)).collect();
            house.await_waiting(4);
            house.somebody().clear(scope, Effect::Gone);
            let loaded = waiters.into_iter().map(|waiter| waiter.join().unwrap()).filter(|loaded| *loaded);
            assert_eq!(loaded.count(), 1, "{scope:?}");
        });
        assert!(!loader.fill(lease, "first"));
        assert_eq!(house.somebody().get("k").as_deref(), Some("second"));
    }
}

#[test]
fn who_waits_for_a_load_in_a_cache_that_is_dropped_is_told_to_load_alone() {
    let house = house();
    let mut loader = house.somebody();
    let lease = loader.lease("k", 0).lease();
    std::thread::scope(|threads| {
        let waiter = threads.spawn(|| house.somebody().lease("k", LONG_MS));
        house.await_waiting(1);
        house.somebody().write(Request::Drop { cache: "c" });
        assert_eq!(waiter.join().unwrap(), Got::Alone);
    });
    assert!(!loader.fill(lease, "v"));
    let anew = loader.lease("k", 0).lease();
    assert!(loader.fill(anew, "v"), "the cache is made anew");
}

#[test]
fn a_refused_fill_wakes_who_waited_for_it() {
    let house = house();
    let mut loader = house.somebody();
    let lease = loader.lease("k", 0).lease();
    house.somebody().clear(Scope::Tag { cache: None, tag: b"red" }, Effect::Gone);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| house.somebody().lease("k", LONG_MS));
        house.await_waiting(1);
        let options = PutOptions { tags: vec![Bytes(b"red")], ..PutOptions::default() };
        assert_eq!(loader.fill_with(lease, "of before", options), Ok(None));
        assert!(matches!(waiter.join().unwrap(), Got::Leased(_, None)));
    });
}

#[test]
fn a_stale_item_is_served_at_once_to_all_but_the_one_who_reloads_it() {
    let house = house();
    let mut loader = house.somebody();
    loader.put("k", "old");
    house.clock.advance(Duration::from_secs(2));
    let Got::Leased(lease, Some(meanwhile)) = loader.lease("k", LONG_MS) else { panic!("no lease") };
    assert_eq!(meanwhile, "old");
    for _ in 0..3 {
        assert_eq!(house.somebody().lease("k", LONG_MS), stale("old"));
    }
    assert_eq!(house.counted("kvd_lease_waits_total"), 0.0);
    assert!(loader.fill(lease, "new"));
    assert_eq!(house.somebody().lease("k", 0), fresh("new"));
}

#[test]
fn after_a_failed_reload_nobody_tries_again_for_a_while() {
    let house = house();
    let mut loader = house.somebody();
    loader.put("k", "old");
    house.clock.advance(Duration::from_secs(2));
    let lease = loader.lease("k", 0).lease();
    loader.abandon(lease, 600_000);
    assert_eq!(loader.lease("k", LONG_MS), stale("old"));
    loader.write(Request::Delete { cache: "c", key: b"k" });
    assert!(matches!(loader.lease("k", 0), Got::Leased(_, None)), "what is gone cannot be served");

    let lease = loader.lease("never there", 0).lease();
    loader.abandon(lease, 600_000);
    assert!(matches!(loader.lease("never there", 0), Got::Leased(_, None)));

    loader.put("soon", "old");
    house.clock.advance(Duration::from_secs(2));
    let lease = loader.lease("soon", 0).lease();
    loader.abandon(lease, 1);
    let deadline = Instant::now() + PATIENCE;
    while loader.lease("soon", 0) == stale("old") {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn an_item_that_the_caller_has_seen_and_refused_counts_as_missing() {
    let house = house();
    let (mut loader, mut other) = (house.somebody(), house.somebody());
    let version = loader.put("k", "seen");
    assert_eq!(loader.lease_except("k", version + 1), fresh("seen"));
    let lease = match loader.lease_except("k", version) {
        Got::Leased(lease, None) => lease,
        got => panic!("{got:?}"),
    };
    assert_eq!(other.lease_except("k", version), Got::Busy);
    assert_eq!(other.lease("k", 0), fresh("seen"), "who has not refused it is served");
    assert!(loader.fill(lease, "better"));
    assert_eq!(other.lease_except("k", version), fresh("better"));
}

#[test]
fn two_loads_that_need_each_other_are_not_left_waiting() {
    let house = house();
    let (mut one, mut other) = (house.somebody(), house.somebody());
    let first = one.lease("k1", 0).lease();
    let second = other.lease("k2", 0).lease();
    assert_eq!(one.lease_for("k1", LONG_MS, 1_000, &[first]), Got::Alone, "it has it itself");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let got = one.lease_for("k2", LONG_MS, 1_000, &[first]);
            (one, got)
        });
        house.await_waiting(1);
        assert_eq!(other.lease_for("k1", LONG_MS, 1_000, &[second]), Got::Alone);
        assert!(other.fill(second, "v2"));
        let (mut one, got) = waiting.join().unwrap();
        assert_eq!(got, fresh("v2"));
        assert!(one.fill(first, "v1"));
    });
}

#[test]
fn inside_a_transaction_nothing_waits_for_a_load_or_a_name() {
    let house = house();
    let (mut loader, mut inside, mut beside) = (house.somebody(), house.somebody(), house.somebody());
    loader.put("stale", "old");
    loader.put("fresh", "v");
    house.clock.advance(Duration::from_secs(2));
    loader.put("fresh", "v");
    loader.lease("taken", 0).lease();
    loader.lock("name", 0).unwrap();
    let transaction = inside.begin();
    for (key, expected) in
        [("taken", Got::Alone), ("free", Got::Alone), ("stale", stale("old")), ("fresh", fresh("v"))]
    {
        assert_eq!(beside.lease_for(key, LONG_MS, 1_000, &[transaction]), expected, "{key}");
    }
    assert!(matches!(beside.lock_for("name", 1_000, LONG_MS, &[transaction]), Err((None, _))));
    let lease = Request::Lease { cache: "c", keys: vec![], wait_ms: 0, lease_ms: 1, holds: vec![] };
    assert_eq!(inside.say(lease), "Invalid");
    assert_eq!(inside.say(Request::Fill { fills: vec![] }), "Invalid");
    assert_eq!(inside.say(Request::Lock { name: "n", lock_ms: 1, wait_ms: 0, holds: vec![] }), "Invalid");
}

#[test]
fn a_fill_waits_for_a_transaction_as_a_put_does_and_is_refused_if_that_wrote_the_key() {
    let house = house();
    let (mut loader, mut inside) = (house.somebody(), house.somebody());
    inside.put("warm", "v");
    let lease = loader.lease("k", 0).lease();
    let transaction = inside.begin();
    inside.put("k", "newer");
    std::thread::scope(|scope| {
        let fill = scope.spawn(|| loader.fill(lease, "of before"));
        let deadline = Instant::now() + PATIENCE;
        while !house.engine.lock().locks.parties().any(|(_, party)| party.kind == PartyKind::Write) {
            assert!(Instant::now() < deadline && !fill.is_finished());
        }
        let commit = Request::CommitTransaction { transaction, durability: None };
        inside.ask(commit, |response| assert!(matches!(response, Response::Committed { .. })));
        assert!(!fill.join().unwrap());
    });
    assert_eq!(inside.get("k").as_deref(), Some("newer"));
}

#[test]
fn a_bad_fill_fails_the_request_before_anything_is_put() {
    let house = house();
    let mut loader = house.somebody();
    let (one, other) = (loader.lease("k1", 0).lease(), loader.lease("k2", 0).lease());
    let long = vec![0; house.engine.config().value_bytes_max + 1];
    let fill = |lease, value| Filling { lease, value, options: PutOptions::default() };
    let fills = vec![fill(one, &b"v"[..]), fill(other, &long)];
    assert_eq!(loader.say(Request::Fill { fills }), "TooLarge");
    let options = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
    assert_eq!(loader.fill_with(one, "v", options), Err(ErrorKind::Invalid));
    assert_eq!(loader.get("k1"), None);
    assert!(loader.fill(one, "v") && loader.fill(other, "v"), "the leases are still there");
}

#[test]
fn plain_writes_pass_while_only_leases_and_names_are_held() {
    let house = house();
    let mut holder = house.somebody();
    holder.lease("k", 0).lease();
    holder.lock("name", 0).unwrap();
    assert!(house.engine.lock().locks.is_idle());
    let transaction = house.somebody().begin();
    assert!(transaction > 0 && holder.put("k", "v") > 0);
    drop(holder);
    let state = house.engine.lock();
    assert!(state.locks.is_idle() && !state.locks.has_leases() && state.locks.parties().count() == 0);
}

#[test]
fn an_item_that_is_only_on_disk_is_found_and_not_loaded_again() {
    let house = house_with(|config| config.default.memory_bytes = 1 << 20);
    let mut somebody = house.somebody();
    let large = "v".repeat(40_000);
    for number in 0..100 {
        somebody.put(&number.to_string(), &large);
    }
    for key in ["0", "1", "99"] {
        assert_eq!(somebody.lease(key, 0), fresh(&large), "{key}");
    }
    assert!(house.counted("kvd_cache_hits_disk_total") > 0.0);
    house.clock.advance(Duration::from_secs(2));
    let Got::Leased(lease, Some(meanwhile)) = somebody.lease("2", 0) else { panic!("no lease") };
    assert_eq!(meanwhile, large);
    assert_eq!(house.somebody().lease("2", LONG_MS), stale(&large));
    assert!(somebody.fill(lease, "new"));
}

#[test]
fn a_long_answer_stops_early_and_lends_nothing_beyond() {
    let house = house();
    let mut somebody = house.somebody();
    let large = "v".repeat(600_000);
    for key in ["a", "b", "c"] {
        somebody.put(key, &large);
    }
    let wanted = ["a", "b", "c", "missing"].map(|key| Wanted { key: key.as_bytes(), except: None });
    let loans = somebody.lend(&wanted, 0, 1_000, &[]);
    assert_eq!(loans.len(), 2, "two are beyond the bound");
    assert_eq!(house.counted("kvd_leases_granted_total"), 0.0);
    assert_eq!(somebody.lend(&wanted[2..], 0, 1_000, &[]).len(), 2);
}
