//! Transactions over several requests: what they never let happen, in each locking mode, and that nobody hangs.

use std::time::{Duration, Instant};

use kv_client::blocking::{Client, Transaction};
use kv_client::{Effect, Error, ErrorKind, Initial};

use crate::raw::Raw;
use crate::support::{Daemon, Home, SOON, timed, wait_for};

pub(crate) const MODES: [&str; 3] = ["database", "key", "optimistic"];

pub(crate) fn serve(mode: &str) -> (Home, Daemon) {
    let home = Home::configured(&format!(
        "locking = \"{mode}\"\nmemory = \"16MiB\"\n[default]\nmemory = \"2MiB\"\n\
         [caches.fleeting]\nmemory = \"2MiB\"\ndurability = \"memory\"\n[caches.kept]\nmemory = \"2MiB\"\n"
    ));
    let daemon = home.start();
    (home, daemon)
}

fn in_each_mode(test: impl Fn(&str, &Home)) {
    for mode in MODES {
        let (home, _daemon) = serve(mode);
        test(mode, &home);
    }
}

fn number(value: Option<Vec<u8>>) -> i64 {
    value.map_or(0, |value| String::from_utf8(value).unwrap().parse().unwrap())
}

/// Two that would both take the last one must not both succeed, however they are interleaved.
#[test]
fn write_skew_does_not_happen() {
    in_each_mode(|mode, home| {
        for cache in ["kept", "fleeting"] {
            for round in 0..40 {
                let client = home.client();
                client.batch().put(cache, "a", "1", None).put(cache, "b", "1", None).commit().unwrap();
                // Each takes its own if the two together have more than one.
                let take = |own: &str| {
                    client.transact(|tx| {
                        let sum = number(tx.get(cache, "a")?) + number(tx.get(cache, "b")?);
                        if sum > 1 {
                            tx.put(cache, own, "0", None)?;
                        }
                        Ok::<_, Error>(())
                    })
                };
                std::thread::scope(|scope| {
                    let other = scope.spawn(|| take("a"));
                    take("b").unwrap();
                    other.join().unwrap().unwrap();
                });
                let left = |key| number(client.cache(cache).get(key).unwrap());
                assert_eq!(left("a") + left("b"), 1, "{mode}, {cache}, round {round}");
            }
        }
    });
}

#[test]
fn no_update_is_lost_whether_by_transactions_or_plain_increments() {
    in_each_mode(|mode, home| {
        for cache in ["kept", "fleeting"] {
            let client = home.client();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..60 {
                            client
                                .transact(|tx| {
                                    let count = number(tx.get(cache, "n")?) + 1;
                                    tx.put(cache, "n", count.to_string(), None)
                                })
                                .unwrap();
                        }
                    });
                }
                scope.spawn(|| {
                    for _ in 0..60 {
                        client.cache(cache).increment("n", 1, Initial::value(1)).unwrap();
                    }
                });
            });
            assert_eq!(number(client.cache(cache).get("n").unwrap()), 240, "{mode}, {cache}");
        }
    });
}

#[test]
fn what_is_not_committed_is_seen_by_nobody_else_and_leaves_no_trace() {
    in_each_mode(|mode, home| {
        let client = home.client();
        client.cache("kept").put("k", "old", None).unwrap();
        let before = client.cache("kept").get_entry("k").unwrap().unwrap();
        let mut tx = client.begin().unwrap();
        tx.put("kept", "k", "new", None).unwrap();
        tx.put("kept", "other", "new", None).unwrap();
        assert!(tx.delete("kept", "other").unwrap());
        assert_eq!(tx.get("kept", "k").unwrap().as_deref(), Some(&b"new"[..]), "{mode}: its own write");
        assert_eq!(client.cache("kept").get("k").unwrap().as_deref(), Some(&b"old"[..]), "{mode}: by map");
        let by_socket = Client::builder().socket(home.socket()).shared_memory(false).build().unwrap();
        assert_eq!(
            by_socket.cache("kept").get("k").unwrap().as_deref(),
            Some(&b"old"[..]),
            "{mode}: by socket"
        );
        tx.rollback().unwrap();
        let after = client.cache("kept").get_entry("k").unwrap().unwrap();
        assert_eq!((before.version, before.value), (after.version, after.value), "{mode}");
        drop(client.begin().map(|mut tx| tx.put("kept", "k", "dropped", None)).unwrap());
        assert_eq!(client.cache("kept").get("k").unwrap().as_deref(), Some(&b"old"[..]), "{mode}: dropped");
        assert!(client.admin().transactions().unwrap().transactions.is_empty(), "{mode}");
    });
}

/// What a transaction has read stays so, or its commit fails.
#[test]
fn what_was_read_is_still_so_at_the_commit() {
    in_each_mode(|mode, home| {
        for change in ["put", "delete", "clear", "expire", "stale"] {
            for key in ["there", "absent"] {
                let client = home.client();
                client.cache("kept").put("there", "1", None).unwrap();
                client.cache("kept").delete("absent").unwrap();
                let mut tx = client.begin().unwrap();
                let seen = tx.get("kept", key).unwrap();
                tx.put("kept", "copy", seen.clone().unwrap_or_default(), None).unwrap();
                let cache = client.cache("kept");
                std::thread::scope(|scope| {
                    let other = scope.spawn(|| match change {
                        "put" => drop(cache.put(key, "2", None).unwrap()),
                        "delete" => drop(cache.delete(key).unwrap()),
                        "clear" => drop(cache.clear(Effect::Gone).unwrap()),
                        "expire" => drop(cache.expire(key, kv_client::Ttl::Now).unwrap()),
                        _ => drop(cache.clear(Effect::Stale).unwrap()),
                    });
                    if mode == "optimistic" {
                        while !other.is_finished() {
                            std::thread::yield_now();
                        }
                    }
                    let again = tx.get("kept", key).unwrap();
                    assert_eq!(again, seen, "{mode}, {change}: a transaction keeps what it read");
                    let committed = tx.commit();
                    let changes_nothing = key == "absent" && change != "put";
                    if mode == "optimistic" && !changes_nothing {
                        let error = committed.expect_err("somebody changed what it read");
                        assert_eq!(error.kind(), ErrorKind::Conflict, "{change} {key}: {error}");
                    } else {
                        committed.unwrap_or_else(|error| panic!("{mode}, {change} {key}: {error}"));
                    }
                });
            }
        }
    });
}

/// A range that was scanned gets no new item, by a put or by a clear, before the commit; and the scan sees own writes.
#[test]
fn no_phantom_appears_in_what_was_scanned() {
    in_each_mode(|mode, home| {
        for cache in ["kept", "fleeting"] {
            let client = home.client();
            let raw = Raw::connect(home);
            for key in ["p1", "p2"] {
                client.cache(cache).put(key, "1", None).unwrap();
            }
            let number = raw.begin();
            raw.put(cache, "p3", "own");
            raw.delete(cache, "p1");
            assert_eq!(
                raw.scan(cache, "p"),
                ["p2", "p3"],
                "{mode}, {cache}: own writes are laid over the page"
            );
            let other = client.cache(cache);
            std::thread::scope(|scope| {
                let writer = scope.spawn(move || other.put("p9", "phantom", None).unwrap());
                if mode == "optimistic" {
                    while !writer.is_finished() {
                        std::thread::yield_now();
                    }
                    assert_eq!(raw.commit(number), Err(ErrorKind::Conflict), "{mode}, {cache}");
                } else {
                    assert_eq!(raw.scan(cache, "p"), ["p2", "p3"], "{mode}, {cache}: the writer waits");
                    raw.commit(number).unwrap_or_else(|kind| panic!("{mode}, {cache}: {kind:?}"));
                }
            });
            let number = raw.begin();
            let seen = raw.scan(cache, "p");
            assert!(seen.contains(&"p9".to_owned()), "{mode}, {cache}");
            let other = client.cache(cache);
            std::thread::scope(|scope| {
                let clearer = scope.spawn(move || other.clear_prefix("p", Effect::Gone).unwrap());
                if mode == "optimistic" {
                    while !clearer.is_finished() {
                        std::thread::yield_now();
                    }
                    assert_eq!(raw.commit(number), Err(ErrorKind::Conflict), "{mode}, {cache}");
                } else {
                    assert_eq!(raw.scan(cache, "p"), seen, "{mode}, {cache}: the clear waits");
                    raw.commit(number).unwrap();
                }
            });
        }
    });
}

/// A snapshot reads one moment, or says that it cannot: never a mixture ("A Read-Only Transaction Anomaly Under Snapshot
/// Isolation", Fekete et al., 2004).
#[test]
fn a_snapshot_never_reads_a_mixture() {
    in_each_mode(|mode, home| {
        let client = home.client();
        let set = |sum: i64| {
            let (a, b) = (sum.to_string(), (100 - sum).to_string());
            client.batch().put("kept", "a", a, None).put("fleeting", "b", b, None).commit().unwrap();
        };
        set(1);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (mut whole, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut sum = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    sum = (sum + 1) % 100;
                    set(sum);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            let deadline = Instant::now() + SOON;
            while whole < 200 && Instant::now() < deadline {
                let mut snapshot = client.snapshot().unwrap();
                let read =
                    (|| Ok((number(snapshot.get("kept", "a")?), number(snapshot.get("fleeting", "b")?))))();
                match read {
                    Ok((a, b)) => {
                        assert_eq!(a + b, 100, "{mode}");
                        snapshot.commit().unwrap();
                        whole += 1;
                    }
                    Err(error) => {
                        let error: Error = error;
                        assert_eq!(error.kind(), ErrorKind::Conflict, "{mode}: {error}");
                        refused += 1;
                    }
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().unwrap();
        });
        println!("{mode}: {whole} snapshots, {refused} refused");
        assert!(whole >= 200, "{mode}: {refused} were refused");
        let mut snapshot = client.snapshot().unwrap();
        assert_eq!(snapshot.put("kept", "a", "x", None).unwrap_err().kind(), ErrorKind::Invalid, "{mode}");
    });
}

#[test]
fn an_item_that_expires_before_the_commit_is_a_conflict() {
    in_each_mode(|mode, home| {
        let client = home.client();
        client.cache("kept").put("brief", "1", Duration::from_millis(60)).unwrap();
        let mut tx = client.begin().unwrap();
        assert!(tx.get("kept", "brief").unwrap().is_some(), "{mode}");
        tx.put("kept", "copy", "1", None).unwrap();
        std::thread::sleep(Duration::from_millis(80));
        assert!(tx.get("kept", "brief").unwrap().is_some(), "{mode}: it has one time");
        assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::Conflict, "{mode}");
        assert_eq!(client.cache("kept").get("copy").unwrap(), None, "{mode}");
    });
}

/// Each holds its own key and then wants its neighbour's.
fn ring(mode: &str, size: usize, upgrade: bool) {
    let (home, _daemon) = serve(mode);
    let client = home.client();
    for i in 0..size {
        client.cache("kept").put(format!("r{i}"), "0", None).unwrap();
    }
    let barrier = std::sync::Barrier::new(size);
    let victims = std::sync::atomic::AtomicUsize::new(0);
    let longest = std::sync::Mutex::new(Duration::ZERO);
    std::thread::scope(|scope| {
        for i in 0..size {
            let (client, barrier, victims, longest) = (&client, &barrier, &victims, &longest);
            scope.spawn(move || {
                let mut first = true;
                client
                    .transact(|tx| {
                        let (own, next) = if upgrade { (0, 0) } else { (i, (i + 1) % size) };
                        if upgrade {
                            tx.get("kept", format!("r{own}"))?;
                        } else {
                            tx.put("kept", format!("r{own}"), i.to_string(), None)?;
                        }
                        if std::mem::take(&mut first) && mode == "key" {
                            barrier.wait();
                        }
                        let asked = Instant::now();
                        let result = tx.put("kept", format!("r{next}"), i.to_string(), None);
                        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Deadlock) {
                            victims.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            let mut longest = longest.lock().unwrap();
                            *longest = longest.max(asked.elapsed());
                        }
                        result
                    })
                    .unwrap_or_else(|error| panic!("{mode}, {size}: {error}"));
            });
        }
    });
    let victims = victims.into_inner();
    if mode == "key" {
        if upgrade {
            // Each but one at first; those that try again may meet again.
            assert!(victims >= size - 1, "{size} upgrades have {victims} victims");
        } else {
            assert_eq!(victims, 1, "{size} in a ring");
        }
    } else {
        assert_eq!(victims, 0, "{mode} cannot deadlock");
    }
    println!(
        "{mode}, {size}, upgrade {upgrade}: {victims} victims, told after at most {:?}",
        longest.into_inner().unwrap()
    );
}

#[test]
fn a_deadlock_has_one_victim_and_everybody_finishes() {
    for mode in MODES {
        for size in [2, 3, 10] {
            ring(mode, size, false);
        }
        ring(mode, 2, true);
        ring(mode, 5, true);
    }
}

/// Found the moment it closes: the victim is told within 10 ms.
#[test]
fn a_deadlock_is_found_at_once() {
    let _timed = timed();
    let (home, _daemon) = serve("key");
    let client = home.client();
    let mut told: Vec<Duration> = (0..20)
        .map(|_| {
            let mut older = client.begin().unwrap();
            let mut younger = client.begin().unwrap();
            older.put("kept", "a", "1", None).unwrap();
            younger.put("kept", "b", "1", None).unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(move || {
                    older.put("kept", "b", "2", None).unwrap();
                    older.commit().unwrap();
                });
                wait_for(SOON, "the older one to wait", || {
                    let listed = client.admin().transactions().unwrap();
                    listed.transactions.iter().any(|open| open.waits.is_some()).then_some(())
                });
                let asked = Instant::now();
                let error = younger.put("kept", "a", "2", None).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
                assert!(error.to_string().contains("youngest"), "{error}");
                let told = asked.elapsed();
                drop(younger);
                waiting.join().unwrap();
                told
            })
        })
        .collect();
    told.sort();
    assert!(told[told.len() / 2] < Duration::from_millis(10), "{told:?}");
}

#[test]
fn a_life_ends_and_can_be_renewed() {
    let _timed = timed();
    for mode in MODES {
        let (home, _daemon) = serve(mode);
        let client = home.client();
        let mut brief = client.begin().unwrap();
        brief.put("kept", "k", "1", None).unwrap();
        std::thread::sleep(Duration::from_millis(1_050));
        let error = brief.put("kept", "k", "2", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LeaseLost, "{mode}: {error}");
        assert!(error.to_string().contains("1000 ms"), "{mode}: {error}");
        assert_eq!(brief.commit().unwrap_err().kind(), ErrorKind::LeaseLost, "{mode}");
        let mut long = client.begin().unwrap();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(500));
            long.renew().unwrap();
        }
        long.put("kept", "k", "3", None).unwrap();
        long.commit().unwrap();
        assert_eq!(client.cache("kept").get("k").unwrap().as_deref(), Some(&b"3"[..]), "{mode}");
    }
}

#[test]
fn waiting_has_a_deadline_that_names_who_is_in_the_way() {
    let _timed = timed();
    let (home, _daemon) = serve("database");
    let client = home.client();
    let mut open = client.begin().unwrap();
    let brief = client.with_op_timeout(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || brief.begin());
        while !waiting.is_finished() {
            open.get("kept", "k").unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let names = error.to_string().contains(&open.number().to_string());
        assert!(names, "it names the transaction in the way: {error}");
    });
    open.commit().unwrap();
}

#[test]
fn bounds_of_a_transaction_are_named_and_it_goes_on() {
    in_each_mode(|mode, home| {
        let client = home.client();
        let mut tx = client.begin().unwrap();
        for i in 0..kv_proto::limits::COMMIT_WRITES_MAX {
            tx.put("kept", format!("w{i}"), "x", None).unwrap();
            if i % 100 == 0 {
                tx.renew().unwrap();
            }
        }
        let error = tx.put("kept", "one more", "x", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{mode}: {error}");
        assert!(error.to_string().contains("1025") && error.to_string().contains("1024"), "{mode}: {error}");
        tx.commit().unwrap();
        assert!(client.cache("kept").contains("w1023").unwrap(), "{mode}");
    });
}

#[test]
fn an_administrator_sees_and_ends_transactions() {
    for mode in MODES {
        let (home, _daemon) = serve(mode);
        let client = home.client();
        let mut open: Transaction = client.begin().unwrap();
        open.put("kept", "k", "1", None).unwrap();
        let listed = home.kvd(&["locks"]);
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(text.contains(mode) && text.contains(&open.number().to_string()), "{mode}: {text}");
        let ended = home.kvd(&["rollback", &open.number().to_string()]);
        assert!(ended.status.success(), "{mode}");
        let error = open.get("kept", "k").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LeaseLost, "{mode}");
        assert!(error.to_string().contains("by hand"), "{mode}: {error}");
        let again = home.kvd(&["rollback", &open.number().to_string()]);
        assert_eq!(again.status.code(), Some(1), "{mode}: it is not open any more");
    }
}

/// One that lost the database for not using it has it back before it does anything, however often it waits in vain (here for
/// less than the silence that would end the other).
#[test]
fn a_grant_that_was_taken_back_is_waited_for_again_and_again() {
    let (home, _daemon) = serve("database");
    let client = home.client();
    // Each wait is nearly as long as the silence that ends a transaction: where the machine stalls for the rest, the round is
    // void, and says `LeaseLost`.
    wait_for(SOON, "a round without a stall", || {
        let held = |result: Result<(), Error>| match result {
            Err(error) if error.kind() == ErrorKind::LeaseLost => None,
            Err(error) => panic!("{error}"),
            Ok(()) => Some(()),
        };
        let mut idle = client.with_op_timeout(Duration::from_millis(40)).begin().unwrap();
        let mut other = client.begin().unwrap();
        held(other.put("kept", "k", "other", None).map(drop))?;
        for _ in 0..3 {
            match idle.get("kept", "k") {
                Err(error) if error.kind() == ErrorKind::Timeout => {}
                // Ended by the other's silence, or with a connection whose answer came too late.
                Err(error) if error.kind() == ErrorKind::LeaseLost => return None,
                Ok(_) if other.renew().is_err() => return None,
                answer => panic!("somebody else has the database: {answer:?}"),
            }
            held(other.renew())?;
        }
        held(other.commit().map(drop))?;
        let seen = idle.get("kept", "k").ok()?;
        assert_eq!(seen.as_deref(), Some(&b"other"[..]));
        held(idle.put("kept", "k", "idle", None).map(drop))?;
        held(idle.commit().map(drop))
    });
}

#[test]
fn a_long_queue_is_waited_in_for_as_long_as_the_client_says() {
    let (home, _daemon) = serve("database");
    let client = home.client();
    let mut holder = client.begin().unwrap();
    holder.put("kept", "k", "1", None).unwrap();
    std::thread::scope(|scope| {
        let queued: Vec<_> =
            (0..2).map(|_| scope.spawn(|| client.begin().and_then(Transaction::commit))).collect();
        let until = Instant::now() + Duration::from_millis(1_500);
        while Instant::now() < until {
            holder.renew().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        holder.commit().unwrap();
        for queued in queued {
            queued.join().unwrap().expect("its time was not over");
        }
    });
}

#[test]
fn a_cache_dropped_meanwhile_is_a_conflict_and_not_a_lost_write() {
    let (home, _daemon) = serve("optimistic");
    let client = home.client();
    client.cache("passing").put("k", "1", None).unwrap();
    let mut tx = client.begin().unwrap();
    assert_eq!(tx.get("passing", "absent").unwrap(), None);
    tx.put("passing", "absent", "1", None).unwrap();
    client.cache("passing").drop_cache().unwrap();
    client.cache("passing").put("k", "2", None).unwrap();
    assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn what_was_refused_counts_for_nothing() {
    let (home, _daemon) = serve("optimistic");
    let client = home.client();
    let mut tx = client.begin().unwrap();
    let large = vec![7; 900 << 10];
    for i in 0..4 {
        tx.put("fleeting", format!("f{i}"), vec![7; 60 << 10], None).unwrap();
        tx.put("kept", format!("k{i}"), &large, None).unwrap();
    }
    assert_eq!(tx.put("kept", "k5", &large, None).unwrap_err().kind(), ErrorKind::TooLarge);
    tx.put("kept", "small", "1", None).unwrap();
    tx.put("kept", "k0", "smaller now", None).unwrap();
    tx.put("kept", "k5", &large, None).unwrap();
    tx.commit().unwrap();
}

#[test]
fn a_long_key_is_cut_in_the_list() {
    let (home, _daemon) = serve("key");
    let client = home.client();
    let mut open = client.begin().unwrap();
    open.put("kept", [b'k'; 200], "1", None).unwrap();
    let listed = client.admin().transactions().unwrap();
    let holds = format!("{:?}", listed.transactions[0].holds);
    assert!(holds.contains("kkkk...") && holds.len() < 400, "a long key is cut: {holds}");
}

/// A sliding read does not wait for a transaction that has its key; the one after the transaction extends.
#[test]
fn a_sliding_read_waits_for_nobody() {
    for mode in ["database", "key"] {
        let (home, _daemon) = serve(mode);
        let client = Client::builder().socket(home.socket()).shared_memory(false).build().unwrap();
        let cache = client.cache("kept");
        cache.put("s", "anna", Duration::from_secs(10)).unwrap();
        let mut tx = client.begin().unwrap();
        tx.put("kept", "s", "bert", Duration::from_secs(10)).unwrap();
        let sliding = kv_client::Sliding { below: Duration::from_secs(60), ttl: Duration::from_secs(600) };
        assert_eq!(cache.get_sliding("s", sliding).unwrap().as_deref(), Some(&b"anna"[..]), "{mode}");
        assert!(tx.get("kept", "s").is_ok(), "{mode}: it was in nobody's way");
        tx.rollback().unwrap();
        cache.get_sliding("s", sliding).unwrap();
        let left_ms = cache.describe("s").unwrap().unwrap().expires_in_ms.unwrap();
        assert!(left_ms > 500_000, "{mode}: {left_ms} ms are left");
    }
}
