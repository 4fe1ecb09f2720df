//! A full disk, a failing disk, and damage: what is refused, what goes on, what comes back, and that nothing old ever does.

use super::basic::fold_all;
use super::*;
use crate::store::sim::SimDisk;

fn open(disk: &SimDisk, headroom_bytes: u64) -> (Arc<Store>, Recovered, Flusher) {
    let mut options = options("sim");
    options.headroom_bytes = headroom_bytes;
    Store::open_by_hand(options, &Clock::system(), Disk::Sim(disk.clone())).expect("opens")
}

/// Steps until the store is well, with a bound.
fn step_until(flusher: &mut Flusher, health: Health) {
    for _ in 0..200 {
        let pause = flusher.step();
        if flusher.shared.health() == health {
            return;
        }
        std::thread::sleep(pause.min(Duration::from_millis(10)));
    }
    panic!("the store is {:?} still", flusher.shared.health());
}

fn try_put(
    store: &Store,
    sequence: Version,
    cache: CacheId,
    key: &str,
    value: &str,
) -> Result<LogNumber, StoreError> {
    let change = Change::Put { cache, key: key.as_bytes(), item: item(sequence, value.as_bytes()) };
    let permit = store.admit(&[cache], commit_bytes_max(&[change]), Durability::Behind, Instant::now())?;
    Ok(store.append(permit, sequence, &[change]))
}

fn hooks_noting(rewritten: &Arc<Mutex<Vec<CacheId>>>) -> Hooks {
    let rewritten = rewritten.clone();
    Hooks {
        judge: Box::new(|_, _, _| Judgement::Keep),
        evict: Box::new(|_, _, _| false),
        evicted: Box::new(|_, _, _| {}),
        swept: Box::new(|_| {}),
        rewrite: Box::new(move |cache| rewritten.lock().push(cache)),
    }
}

/// Two caches, one of them with a durable write, on a disk that is full; the log is filled to the brim.
struct Full {
    disk: SimDisk,
    store: Arc<Store>,
    flusher: Flusher,
    sequence: Version,
}

const DURABLE: CacheId = 1;
const PLAIN: CacheId = 2;

fn full() -> Full {
    let disk = SimDisk::new(1);
    let (store, recovered, mut flusher) = open(&disk, 1 << 20);
    let mut sequence = recovered.sequence_first;
    let change = Change::Put { cache: DURABLE, key: b"k", item: item(sequence, b"old") };
    let number = commit(&store, sequence, Durability::Durable, &[change]);
    put(&store, sequence, PLAIN, "k", "old");
    put(&store, sequence, PLAIN, "other", "old");
    flusher.flush_upto(number + 2).unwrap();
    fold_all(&mut flusher);
    disk.set_free_bytes(1000);
    step_until(&mut flusher, Health::Full);
    let big = "x".repeat(8_000);
    sequence += 1;
    while try_put(&store, sequence, DURABLE, "fill", &big).is_ok() {
        sequence += 1;
    }
    Full { disk, store, flusher, sequence }
}

#[test]
fn a_full_disk_refuses_durable_writes_before_they_are_applied_and_others_when_the_log_is_full() {
    let Full { disk, store, mut flusher, sequence } = full();
    let refused = store.admit(&[PLAIN], 100, Durability::Durable, soon()).unwrap_err();
    assert_eq!(refused, StoreError::Full);
    assert_eq!(try_put(&store, sequence, DURABLE, "k", &"y".repeat(8_000)), Err(StoreError::Full));
    assert_eq!(get(&store, DURABLE, "k").as_deref(), Some("old"));
    disk.set_free_bytes(1 << 30);
    step_until(&mut flusher, Health::Good);
    let head = store.shared.log.lock().head.number;
    flusher.flush_upto(head).unwrap();
    assert!(try_put(&store, sequence, DURABLE, "k", "new").is_ok());
    assert_eq!(get(&store, DURABLE, "k").as_deref(), Some("new"));
}

#[test]
fn a_cache_that_went_on_in_memory_never_shows_what_was_on_disk_before() {
    let Full { disk, store, mut flusher, sequence } = full();
    let rewritten = Arc::new(Mutex::new(Vec::new()));
    store.set_hooks(hooks_noting(&rewritten));
    assert!(try_put(&store, sequence, PLAIN, "k", &"n".repeat(8_000)).is_ok());
    assert!(store.is_dirty(PLAIN));
    assert_eq!(get(&store, PLAIN, "other"), None, "the disk part counts as cleared at once");
    // Killed or without power in that state: still void.
    for disk in [disk.after_power_loss(), disk.after_kill()] {
        disk.set_free_bytes(1 << 30);
        let (store, recovered, _flusher) = open(&disk, 0);
        assert_eq!(recovered.dirty, [PLAIN]);
        assert_eq!(get(&store, PLAIN, "k"), None);
        assert_eq!(get(&store, PLAIN, "other"), None);
        assert_eq!(get(&store, DURABLE, "k").as_deref(), Some("old"));
        put(&store, recovered.sequence_first, PLAIN, "k", "again");
        let disk = disk.after_kill();
        let (store, recovered, _flusher) = open(&disk, 0);
        assert!(recovered.dirty.is_empty());
        assert_eq!(get(&store, PLAIN, "k").as_deref(), Some("again"));
    }
    drop((store, flusher));
    // And when space returns while it lives.
    let Full { disk, store, flusher: again, sequence } = full();
    flusher = again;
    store.set_hooks(hooks_noting(&rewritten));
    assert!(try_put(&store, sequence, PLAIN, "k", &"n".repeat(8_000)).is_ok());
    disk.set_free_bytes(1 << 30);
    step_until(&mut flusher, Health::Good);
    assert_eq!(*rewritten.lock(), [PLAIN]);
    assert!(!store.is_dirty(PLAIN));
    assert_eq!(get(&store, PLAIN, "other"), None);
    let head = store.shared.log.lock().head.number;
    flusher.flush_upto(head).unwrap();
    // The engine writes down what it has, with the versions the items had.
    put(&store, sequence, PLAIN, "k", "kept");
    fold_all(&mut flusher);
    for disk in [disk.after_power_loss(), disk.after_kill()] {
        let (store, recovered, _flusher) = open(&disk, 0);
        assert!(recovered.dirty.is_empty());
        assert_eq!(get(&store, PLAIN, "k").as_deref(), Some("kept"));
        assert_eq!(get(&store, PLAIN, "other"), None);
    }
}

#[test]
fn running_out_of_space_in_the_middle_of_a_flush_loses_nothing() {
    for free in [0, 5_000, 20_000, 60_000, 200_000] {
        let disk = SimDisk::new(free);
        let (store, recovered, mut flusher) = open(&disk, 0);
        let mut sequence = recovered.sequence_first;
        for i in 0..20 {
            sequence += 1;
            put(&store, sequence, 1, &format!("k{i}"), &"v".repeat(5_000));
        }
        disk.set_free_bytes(free);
        let head = store.shared.log.lock().head.number;
        store.shared.want(head);
        let waiting = store.clone();
        let waiter = std::thread::spawn(move || waiting.wait_durable(head, soon()));
        while flusher.shared.health() == Health::Good && store.shared.done.lock().durable < head {
            flusher.step();
        }
        let told = waiter.join().unwrap();
        if store.shared.done.lock().durable < head {
            assert!(matches!(told, Err(StoreError::Failed { maybe_applied: true, .. })), "{told:?}");
            assert_eq!(store.health(), Health::Full, "free {free}");
        }
        disk.set_free_bytes(1 << 30);
        step_until(&mut flusher, Health::Good);
        for _ in 0..3 {
            flusher.step();
        }
        flusher.flush_upto(head).unwrap();
        assert_eq!(store.wait_durable(head, soon()), Ok(()));
        let disk = disk.after_power_loss();
        let (store, _, _flusher) = open(&disk, 0);
        for i in 0..20 {
            assert_eq!(get(&store, 1, &format!("k{i}")), Some("v".repeat(5_000)), "free {free}, item {i}");
        }
    }
}

#[test]
fn a_failed_sync_is_never_acknowledged_and_a_new_file_takes_the_old_ones_place() {
    let disk = SimDisk::new(9);
    let (store, recovered, mut flusher) = open(&disk, 0);
    let mut sequence = recovered.sequence_first;
    for i in 0..50 {
        sequence += 1;
        put(&store, sequence, 1, &format!("tree{i}"), "t");
    }
    commit(
        &store,
        sequence,
        Durability::Behind,
        &[Change::CacheCreated { cache: 1, name: "c", settings: b"" }],
    );
    let clear = Change::Clear { cache: 2, scope: Scope::Tag(5), effect: kv_proto::wire::Effect::Gone };
    commit(&store, sequence, Durability::Behind, &[clear]);
    fold_all(&mut flusher);
    sequence += 1;
    put(&store, sequence, 1, "tree7", "journalled");
    commit(&store, sequence + 1, Durability::Behind, &[Change::Delete { cache: 1, key: b"tree8" }]);
    let head = store.shared.log.lock().head.number;
    flusher.flush_upto(head).unwrap();
    sequence += 2;
    let change = Change::Put { cache: 1, key: b"tree9", item: item(sequence, b"durable") };
    let number = commit(&store, sequence, Durability::Durable, &[change]);
    disk.fail_next_sync();
    store.shared.want(number);
    flusher.step();
    assert_eq!(store.health(), Health::Failed);
    let told = store.wait_durable(number, Instant::now());
    assert!(matches!(told, Err(StoreError::Failed { maybe_applied: true, .. })), "{told:?}");
    let refused = store.admit(&[1], 100, Durability::Durable, soon());
    assert!(matches!(refused, Err(StoreError::Failed { maybe_applied: false, .. })));
    step_until(&mut flusher, Health::Good);
    assert_eq!(store.wait_durable(number, soon()), Ok(()));
    for disk in [disk.after_power_loss(), disk.after_kill()] {
        let (store, recovered, _flusher) = open(&disk, 0);
        for i in 0..50 {
            let expected = match i {
                7 => Some("journalled"),
                8 => None,
                9 => Some("durable"),
                _ => Some("t"),
            };
            assert_eq!(get(&store, 1, &format!("tree{i}")).as_deref(), expected, "tree{i}");
        }
        assert_eq!(recovered.caches[0].name, "c");
        assert!(recovered.caches[0].has_durable);
        assert_eq!(recovered.stamps.iter().find(|stamps| stamps.cache == 2).unwrap().tags[0].0, 5);
    }
}

#[test]
fn a_failed_sync_during_a_fold_loses_nothing() {
    for fail_at in 0..6 {
        let disk = SimDisk::new(fail_at);
        let (store, recovered, mut flusher) = open(&disk, 0);
        let mut sequence = recovered.sequence_first;
        for i in 0..200 {
            sequence += 1;
            put(&store, sequence, 1, &format!("k{}", i % 150), &format!("v{i}"));
        }
        flusher.freeze();
        for _ in 0..fail_at {
            flusher.step();
        }
        sequence += 1;
        let number = put(&store, sequence, 1, "k3", "later");
        disk.fail_next_sync();
        store.shared.want(number);
        for _ in 0..10 {
            flusher.step();
        }
        step_until(&mut flusher, Health::Good);
        for _ in 0..10 {
            flusher.step();
        }
        flusher.flush_upto(number).unwrap();
        for disk in [disk.after_power_loss(), disk.after_kill()] {
            let (store, _, _flusher) = open(&disk, 0);
            for i in 0..150 {
                let newest = if i < 50 { i + 150 } else { i };
                let expected = if i == 3 { "later".to_owned() } else { format!("v{newest}") };
                assert_eq!(get(&store, 1, &format!("k{i}")), Some(expected), "fail at {fail_at}, k{i}");
            }
        }
    }
}

#[test]
fn a_damaged_store_is_set_aside_only_if_that_loses_nothing_durable_or_is_asked_for() {
    let disk = SimDisk::new(4);
    let (store, recovered, mut flusher) = open(&disk, 0);
    let first = recovered.sequence_first;
    let number = put(&store, first, 1, "k", "v");
    flusher.flush_upto(number).unwrap();
    drop((store, flusher));
    let plain = disk.after_kill();
    plain.damage("store.redb", 3);
    let (store, recovered, mut flusher) = open(&plain, 0);
    assert!(recovered.report.set_aside.is_some());
    assert!(recovered.sequence_first > first, "sequences go on although the store is lost");
    assert_eq!(get(&store, 1, "k"), None);
    let change = Change::Put { cache: 1, key: b"k", item: item(recovered.sequence_first, b"v") };
    let number = commit(&store, recovered.sequence_first, Durability::Durable, &[change]);
    flusher.flush_upto(number).unwrap();
    drop((store, flusher));
    let durable = plain.after_kill();
    durable.damage("store.redb", 3);
    let before = durable.file_bytes("store.redb");
    let refused =
        Store::open_by_hand(options("sim"), &Clock::system(), Disk::Sim(durable.clone())).unwrap_err();
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused}");
    assert!(durable.file_bytes("store.redb") == before);
    let mut asked = options("sim");
    asked.set_aside = true;
    let (_store, recovered, _flusher) =
        Store::open_by_hand(asked, &Clock::system(), Disk::Sim(durable.after_kill())).unwrap();
    assert!(recovered.report.set_aside.is_some());
}

#[test]
fn a_full_disk_refuses_to_start_and_touches_nothing() {
    let disk = SimDisk::new(4);
    let (store, _, flusher) = open(&disk, 0);
    drop((store, flusher));
    let disk = disk.after_kill();
    disk.set_free_bytes(10_000);
    let before = disk.file_bytes("store.redb");
    let refused = Store::open_by_hand(options("sim"), &Clock::system(), Disk::Sim(disk.clone())).unwrap_err();
    assert!(matches!(refused, OpenError::NoSpace { .. }), "{refused}");
    assert!(disk.file_bytes("store.redb") == before);
}

#[test]
fn a_damaged_item_of_the_tree_is_an_error_and_not_a_value() {
    let disk = SimDisk::new(4);
    let (store, recovered, mut flusher) = open(&disk, 0);
    put(&store, recovered.sequence_first, 1, "k", "needle-in-the-tree");
    fold_all(&mut flusher);
    drop((store, flusher));
    let disk = disk.after_kill();
    let bytes = disk.file_bytes("store.redb");
    let needle = b"needle-in-the-tree";
    let places = (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle));
    for at in places.collect::<Vec<_>>() {
        disk.damage("store.redb", at);
    }
    // redb itself may notice at open, if it has to repair; then the store is set aside.
    if let Ok((store, _, _flusher)) = Store::open_by_hand(options("sim"), &Clock::system(), Disk::Sim(disk)) {
        let read = store.read(1, b"k");
        assert!(matches!(read, Ok(None) | Err(StoreError::Failed { .. })), "{read:?}");
    }
}

#[test]
fn a_cache_is_not_logged_again_before_its_last_unlogged_write_is_applied() {
    let Full { disk, store, mut flusher, sequence } = full();
    let rewritten = Arc::new(Mutex::new(Vec::new()));
    store.set_hooks(hooks_noting(&rewritten));
    let change = Change::Put { cache: PLAIN, key: b"k", item: item(sequence, b"n") };
    let fill = "n".repeat(8_000);
    assert!(try_put(&store, sequence, PLAIN, "fill", &fill).is_ok());
    let permit = store.admit(&[PLAIN], commit_bytes_max(&[change]), Durability::Behind, soon()).unwrap();
    assert!(permit.is_unlogged());
    disk.set_free_bytes(1 << 30);
    step_until(&mut flusher, Health::Good);
    for _ in 0..5 {
        flusher.step();
    }
    assert!(store.is_dirty(PLAIN) && rewritten.lock().is_empty());
    // Meanwhile others get permits that would be logged.
    let other = store.admit(&[PLAIN], 100, Durability::Behind, soon()).unwrap();
    assert!(!other.is_unlogged());
    store.append(permit, sequence, &[change]);
    flusher.step();
    assert_eq!(*rewritten.lock(), [PLAIN]);
    let change = Change::Put { cache: PLAIN, key: b"l", item: item(sequence + 1, b"logged") };
    store.append(other, sequence + 1, &[change]);
    assert_eq!(get(&store, PLAIN, "l").as_deref(), Some("logged"));
    assert_eq!(get(&store, PLAIN, "k"), None);
}
