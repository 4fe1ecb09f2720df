//! Happy paths over real files: what is written is read, at every stage, and after a clean or unclean stop.

use std::collections::BTreeMap;

use super::*;
use kv_proto::wire::Effect;

fn open(dir: &std::path::Path) -> (Arc<Store>, Recovered) {
    Store::open(options(dir), Clock::system(), Disk::Files).expect("opens")
}

fn by_hand(dir: &std::path::Path) -> (Arc<Store>, Recovered, Flusher) {
    Store::open_by_hand(options(dir), &Clock::system(), Disk::Files).expect("opens")
}

/// Freezes and folds everything.
pub(in crate::store) fn fold_all(flusher: &mut Flusher) {
    flusher.freeze();
    let upto = flusher.freezing.expect("just frozen");
    flusher.flush_upto(upto).expect("flush");
    flusher.begin_fold();
    while flusher.fold.is_some() {
        flusher.fold_chunk().expect("fold");
    }
}

pub(in crate::store) fn sweep_all(flusher: &mut Flusher) {
    flusher.begin_pass(Instant::now());
    while flusher.is_sweeping() {
        flusher.sweep_chunk().expect("sweep");
    }
}

#[test]
fn an_item_is_read_pending_journalled_and_folded() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, mut flusher) = by_hand(dir.path());
    assert!(recovered.report.created);
    let first = recovered.sequence_first;
    let number = put(&store, first, 1, "k", "one");
    assert_eq!(get(&store, 1, "k").as_deref(), Some("one"));
    flusher.flush_upto(number).unwrap();
    assert_eq!(get(&store, 1, "k").as_deref(), Some("one"));
    fold_all(&mut flusher);
    assert_eq!(store.stats().journal_records, 0);
    assert_eq!(store.stats().overlay_bytes, 0);
    assert_eq!(get(&store, 1, "k").as_deref(), Some("one"));
    assert_eq!(get(&store, 2, "k"), None);
    put(&store, first + 1, 1, "k", "two");
    assert_eq!(get(&store, 1, "k").as_deref(), Some("two"));
    commit(&store, first + 2, Durability::Behind, &[Change::Delete { cache: 1, key: b"k" }]);
    assert_eq!(get(&store, 1, "k"), None);
    fold_all(&mut flusher);
    assert_eq!(get(&store, 1, "k"), None);
    assert_eq!(store.stats().tree_bytes, [(1, 0)]);
}

/// Says that a store is of another format, as if another version had written it.
fn set_format(dir: &std::path::Path, format: u64) {
    let db = redb::Database::create(dir.join("store.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    let row = crate::store::tables::row(&format);
    txn.open_table(crate::store::tables::META).unwrap().insert("format", row.as_slice()).unwrap();
    txn.commit().unwrap();
    db.close().unwrap();
}

#[test]
fn a_store_of_an_older_format_is_converted_and_the_old_one_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, mut flusher) = by_hand(dir.path());
    for n in 0..1_000 {
        put(&store, recovered.sequence_first + n, 1, &format!("k{n}"), &format!("v{n}"));
        if n == 900 {
            fold_all(&mut flusher);
        }
    }
    flusher.finish().unwrap();
    drop(store);
    set_format(dir.path(), 0);
    let (store, recovered) = open(dir.path());
    assert!(recovered.report.clean, "{}", recovered.report);
    for n in 0..1_000 {
        assert_eq!(get(&store, 1, &format!("k{n}")), Some(format!("v{n}")));
    }
    store.close(soon()).unwrap();
    assert!(dir.path().join("store.redb.format-0").exists() && !dir.path().join("store.redb.new").exists());
    drop(open(dir.path()).0);

    // Left half done by the version that wrote it: that one has to finish it.
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, flusher) = by_hand(dir.path());
    put(&store, recovered.sequence_first, 1, "k", "v");
    drop((store, flusher));
    set_format(dir.path(), 0);
    let refused = Store::open(options(dir.path()), Clock::system(), Disk::Files).unwrap_err();
    assert!(matches!(refused, OpenError::Older { found: 0, known: 1, .. }), "{refused}");
    assert!(!dir.path().join("store.redb.format-0").exists(), "it is as it was");
}

#[test]
fn durable_writes_wait_for_their_flush_and_a_clean_stop_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered) = open(dir.path());
    let first = recovered.sequence_first;
    for i in 0..50 {
        let value = format!("v{i}");
        let change = Change::Put { cache: 3, key: b"k", item: item(first + i, value.as_bytes()) };
        let number = commit(&store, first + i, Durability::Durable, &[change]);
        store.wait_durable(number, soon()).unwrap();
    }
    assert!(store.has_durable(3));
    let created = Change::CacheCreated { cache: 3, name: "carts", settings: b"s" };
    commit(&store, first + 50, Durability::Behind, &[created]);
    store.save_resident([(3, &b"k"[..])].into_iter());
    store.close(soon()).unwrap();
    let (store, recovered) = open(dir.path());
    assert!(recovered.report.clean, "{}", recovered.report);
    assert!(recovered.report.same_boot);
    assert!(recovered.sequence_first > first + 50);
    assert_eq!(recovered.cache_first, 4);
    let carts = RecoveredCache { id: 3, name: "carts".into(), settings: b"s".to_vec(), has_durable: true };
    assert_eq!(recovered.caches, [carts]);
    assert_eq!(store.load_resident(), [(3, b"k".to_vec())]);
    assert_eq!(get(&store, 3, "k").as_deref(), Some("v49"));
    store.close(soon()).unwrap();
}

#[test]
fn an_unclean_stop_loses_nothing_appended() {
    let dir = tempfile::tempdir().unwrap();
    let mut sequence = 0;
    for round in 0..5u64 {
        let (store, recovered, mut flusher) = by_hand(dir.path());
        assert!(recovered.sequence_first > sequence);
        sequence = recovered.sequence_first;
        if round > 0 {
            assert!(!recovered.report.clean);
            for i in 0..100 {
                let expected = format!("{} of {i}", round - 1);
                assert_eq!(get(&store, 1, &format!("k{i}")), Some(expected));
            }
        }
        for i in 0..100 {
            sequence += 1;
            let number = put(&store, sequence, 1, &format!("k{i}"), &format!("{round} of {i}"));
            if i == 20 + round * 10 {
                flusher.flush_upto(number).unwrap();
            }
            if i == 50 && round % 2 == 0 {
                fold_all(&mut flusher);
            }
        }
    }
}

#[test]
fn the_ring_goes_round_many_times_under_the_thread() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = options(dir.path());
    small.journal_bytes_max = 256 << 10;
    let (store, recovered) = Store::open(small, Clock::system(), Disk::Files).unwrap();
    let value = "x".repeat(5_000);
    for i in 0..1_000 {
        put(&store, recovered.sequence_first + i, 1, &format!("k{}", i % 37), &format!("{i}{value}"));
    }
    store.sync(soon()).unwrap();
    let stats = store.stats();
    assert!(stats.folds > 0, "{stats:?}");
    assert!(stats.journal_bytes < 4 * (256 << 10), "{stats:?}");
    for i in 963..1_000 {
        assert_eq!(get(&store, 1, &format!("k{}", i % 37)), Some(format!("{i}{value}")));
    }
    store.close(soon()).unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(get(&store, 1, &format!("k{}", 999 % 37)), Some(format!("999{value}")));
}

#[test]
fn clears_survive_the_fold_of_their_record() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, mut flusher) = by_hand(dir.path());
    let first = recovered.sequence_first;
    let clears = [
        (Scope::All, Effect::Gone),
        (Scope::All, Effect::Stale),
        (Scope::Tag(7), Effect::Gone),
        (Scope::Prefix(b"p"), Effect::Stale),
        (Scope::Prefix(b"q"), Effect::Gone),
    ];
    for (i, (scope, effect)) in (0..).zip(clears) {
        commit(&store, first + i, Durability::Behind, &[Change::Clear { cache: 1, scope, effect }]);
    }
    let expected = CacheStamps {
        cache: 1,
        clear: first,
        stale: first + 1,
        tags: vec![(7, first + 2, 0)],
        prefixes: vec![(b"p".to_vec(), 0, first + 3), (b"q".to_vec(), first + 4, 0)],
    };
    drop((store, flusher));
    let (store, recovered, again) = by_hand(dir.path());
    assert_eq!(recovered.stamps, std::slice::from_ref(&expected));
    flusher = again;
    fold_all(&mut flusher);
    drop((store, flusher));
    let (store, recovered, again) = by_hand(dir.path());
    assert_eq!(recovered.report.journal_records, 0);
    assert_eq!(recovered.stamps, [expected]);
    // A pass begun after the fold retires the prefixes, and only those.
    flusher = again;
    sweep_all(&mut flusher);
    drop((store, flusher));
    let (_store, recovered, _flusher) = by_hand(dir.path());
    assert_eq!(recovered.stamps[0].prefixes, []);
    assert_eq!(recovered.stamps[0].clear, first);
}

#[test]
fn pages_merge_overlay_and_tree_and_say_where_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, mut flusher) = by_hand(dir.path());
    let mut sequence = recovered.sequence_first;
    let mut model = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(3);
    for step in 0..3_000 {
        sequence += 1;
        let key = format!("{}{:03}", ["a", "b"][random.usize(..2)], random.u32(..700));
        if random.u8(..4) == 0 {
            commit(&store, sequence, Durability::Behind, &[Change::Delete { cache: 1, key: key.as_bytes() }]);
            model.remove(&key);
        } else {
            put(&store, sequence, 1, &key, &step.to_string());
            model.insert(key, step.to_string());
        }
        if step % 500 == 100 {
            let head = store.shared.log.lock().head.number;
            flusher.flush_upto(head).unwrap();
        }
        if step % 1_000 == 700 {
            fold_all(&mut flusher);
        }
        if step == 2_800 {
            flusher.freeze();
        }
    }
    put(&store, sequence + 1, 0, "before", "-");
    put(&store, sequence + 2, 2, "after", "-");
    for prefix in ["", "a", "b", "b1", "zz"] {
        let expected: Vec<_> = model.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
        let mut found = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let mut page = store.snapshot_page(1, prefix.as_bytes(), after.as_deref(), 10).unwrap();
            let mut count = 0;
            let next = loop {
                if count == 10 {
                    break found.last().map(|(key, _): &(Vec<u8>, Vec<u8>)| key.clone());
                }
                match page.next().unwrap() {
                    Some((cache, key, item)) => {
                        assert_eq!(cache, 1);
                        found.push((key, item.view().value.to_vec()));
                        count += 1;
                    }
                    None => break page.resume().map(|(_, key)| key.to_vec()),
                }
            };
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found.len(), expected.len(), "prefix {prefix:?}");
        for ((key, value), (expected_key, expected_value)) in found.iter().zip(expected) {
            assert_eq!((&key[..], &value[..]), (expected_key.as_bytes(), expected_value.as_bytes()));
        }
    }
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let step = store.enumerate(after.as_ref(), 100).unwrap();
        all.extend(step.keys);
        after = step.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(all.len(), model.len() + 2);
    assert!(all.windows(2).all(|two| (two[0].cache, &two[0].key) < (two[1].cache, &two[1].key)));
    let newest = store.newest(3);
    assert_eq!(newest[0], (2, b"after".to_vec()));
    assert_eq!(newest[1], (0, b"before".to_vec()));
}

#[test]
fn a_commit_beyond_a_quarter_of_the_log_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _flusher) = by_hand(dir.path());
    let limit = store.stats().pending_bytes_max as usize / 4;
    let error = store.admit(&[1], limit + 1, Durability::Behind, soon()).unwrap_err();
    assert_eq!(error, StoreError::TooLarge { bytes: limit + 1, limit });
    assert!(store.admit(&[1], limit, Durability::Behind, soon()).is_ok());
}

#[test]
fn a_full_log_waits_for_the_flush_until_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, mut flusher) = by_hand(dir.path());
    let value = vec![b'x'; 8_000];
    let mut sequence = recovered.sequence_first;
    let write = |sequence| {
        let change = Change::Put { cache: 1, key: b"k", item: item(sequence, &value) };
        let permit = store.admit(&[1], commit_bytes_max(&[change]), Durability::Behind, Instant::now())?;
        Ok::<_, StoreError>(store.append(permit, sequence, &[change]))
    };
    let mut last = 0;
    while let Ok(number) = write(sequence) {
        last = number;
        sequence += 1;
    }
    assert_eq!(write(sequence), Err(StoreError::Timeout));
    flusher.flush_upto(last).unwrap();
    assert!(write(sequence).is_ok());
}

#[test]
fn an_item_expires_by_the_same_clock_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let (store, recovered, flusher) = Store::open_by_hand(options(dir.path()), &clock, Disk::Files).unwrap();
    let now = clock.now();
    let mut fields = item(recovered.sequence_first, b"v");
    fields.created = now;
    fields.expires = Some(now + 60_000);
    let change = Change::Put { cache: 1, key: b"k", item: fields };
    commit(&store, recovered.sequence_first, Durability::Behind, &[change]);
    drop((store, flusher));
    clock.step_wall(-7_200_000);
    clock.advance(Duration::from_secs(10));
    let (store, _, _flusher) = Store::open_by_hand(options(dir.path()), &clock, Disk::Files).unwrap();
    let found = store.read(1, b"k").unwrap().unwrap();
    assert_eq!(found.view().expires, Some(now + 60_000));
    assert_eq!(found.view().created, now);
}

#[test]
fn the_sweep_drops_what_is_dead_and_dropped_caches() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let (store, recovered, mut flusher) =
        Store::open_by_hand(options(dir.path()), &clock, Disk::Files).unwrap();
    let mut sequence = recovered.sequence_first;
    for i in 0..100u64 {
        sequence += 1;
        let mut fields = item(sequence, b"v");
        fields.expires = (i % 2 == 0).then(|| clock.now() + 1_000);
        let key = format!("k{i}");
        let change = Change::Put { cache: 1 + (i % 5 == 0) as u32, key: key.as_bytes(), item: fields };
        commit(&store, sequence, Durability::Behind, &[change]);
    }
    fold_all(&mut flusher);
    commit(&store, sequence + 1, Durability::Behind, &[Change::CacheDropped { cache: 2 }]);
    fold_all(&mut flusher);
    clock.advance(Duration::from_secs(2));
    sweep_all(&mut flusher);
    assert_eq!(store.enumerate(None, 1_000).unwrap().keys.len(), 40);
    let bytes = store.stats().tree_bytes;
    assert_eq!(bytes.iter().find(|(cache, _)| *cache == 2), Some(&(2, 0)));
}

#[test]
fn a_cache_over_its_disk_budget_loses_its_oldest_items_after_asking() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, mut flusher) = by_hand(dir.path());
    let mut sequence = recovered.sequence_first;
    let value = "v".repeat(100);
    for i in 0..4_000 {
        sequence += 1;
        put(&store, sequence, 1, &format!("k{:05}", i * 7_919 % 4_000), &value);
        if i % 500 == 499 {
            fold_all(&mut flusher);
        }
    }
    let bytes = store.stats().tree_bytes[0].1;
    let gone = Arc::new(Mutex::new(Vec::new()));
    let seen = gone.clone();
    store.set_hooks(Hooks {
        judge: Box::new(|_, _, _| Judgement::Keep),
        evict: Box::new(|_, key, _| !key.ends_with(b"7")),
        evicted: Box::new(move |_, key, version| seen.lock().push((key.to_vec(), version))),
        swept: Box::new(|_| {}),
        rewrite: Box::new(|_| {}),
    });
    store.set_disk_bytes_max(1, Some(bytes / 2));
    for _ in 0..1_000 {
        if !flusher.evict_chunk().unwrap() {
            break;
        }
    }
    assert!(store.stats().tree_bytes[0].1 <= bytes / 2);
    let gone = gone.lock();
    assert!(gone.iter().all(|(key, _)| !key.ends_with(b"7")));
    for (key, _) in gone.iter() {
        assert!(store.read(1, key).unwrap().is_none());
    }
    let middle = recovered.sequence_first + 2_000;
    let old = gone.iter().filter(|(_, version)| *version < middle).count();
    assert!(old * 10 > gone.len() * 8, "{old} of {} evicted items are of the older half", gone.len());
}

#[test]
fn what_is_wrong_with_the_files_is_said_and_nothing_is_touched() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let held = Store::open(options(dir.path()), Clock::system(), Disk::Files).unwrap_err();
    assert!(matches!(held, OpenError::Held { .. }), "{held}");
    store.close(soon()).unwrap();
    drop(store);
    let file = dir.path().join("store.redb");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let wrong = Store::open(options(dir.path()), Clock::system(), Disk::Files).unwrap_err();
    assert!(matches!(wrong, OpenError::Permission { .. }), "{wrong}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let log = dir.path().join("pending.log");
    let before = std::fs::read(&log).unwrap();
    let mut newer = pending::header_bytes(tables::FORMAT + 1, before.len());
    newer.extend_from_slice(&before[newer.len()..]);
    std::fs::write(&log, &newer).unwrap();
    let store_before = std::fs::read(&file).unwrap();
    let refused = Store::open(options(dir.path()), Clock::system(), Disk::Files).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 2, known: 1, .. }), "{refused}");
    assert!(std::fs::read(&file).unwrap() == store_before && std::fs::read(&log).unwrap() == newer);
}

#[test]
fn a_log_of_another_size_takes_over_without_loss() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered, flusher) = by_hand(dir.path());
    put(&store, recovered.sequence_first, 1, "k", "v");
    drop((store, flusher));
    let mut larger = options(dir.path());
    larger.pending_bytes = 1 << 20;
    let (store, recovered, flusher) = Store::open_by_hand(larger, &Clock::system(), Disk::Files).unwrap();
    assert_eq!(recovered.report.pending_records, 1);
    assert_eq!(get(&store, 1, "k").as_deref(), Some("v"));
    put(&store, recovered.sequence_first, 1, "l", "w");
    drop((store, flusher));
    let (store, _, _flusher) = by_hand(dir.path());
    assert_eq!(get(&store, 1, "k").as_deref(), Some("v"));
    assert_eq!(get(&store, 1, "l").as_deref(), Some("w"));
}
