//! Named locks, and what is said of locks and leases together.

use kv_proto::wire::{ErrorKind, Request, Wanted};

use super::{LONG_MS, PATIENCE, house};

#[test]
fn a_named_lock_goes_in_the_order_of_arrival_and_its_fence_grows() {
    let house = house();
    let mut holder = house.somebody();
    let mut last = holder.lock("report", 0).unwrap();
    let (sender, fences) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for place in 0..4 {
            let (house, sender) = (&house, sender.clone());
            scope.spawn(move || {
                let mut next = house.somebody();
                let fence = next.lock("report", LONG_MS).unwrap();
                sender.send((place, fence)).unwrap();
                assert_eq!(next.say(Request::Unlock { fence }), "Done");
            });
            house.await_waiting(place + 1);
        }
        assert_eq!(holder.say(Request::Unlock { fence: last }), "Done");
        for expected in 0..4 {
            let (place, fence) = fences.recv_timeout(PATIENCE).unwrap();
            assert!(place == expected && fence > last, "{place} {fence}");
            last = fence;
        }
    });
    assert_eq!(holder.say(Request::Unlock { fence: last }), "Missing");
}

#[test]
fn a_lost_lock_cannot_be_renewed_after_somebody_else_has_it() {
    let house = house();
    let (mut slow, mut other) = (house.somebody(), house.somebody());
    let fence = slow.lock_for("report", 0, 0, &[]).unwrap();
    assert_eq!(slow.say(Request::RenewLock { fence, lock_ms: 0 }), "Done", "nobody wanted it");
    assert_eq!(other.say(Request::RenewLock { fence, lock_ms: 0 }), "LeaseLost", "it is not its own");
    let newer = other.lock("report", 0).unwrap();
    assert!(newer > fence);
    assert_eq!(slow.say(Request::RenewLock { fence, lock_ms: 1_000 }), "LeaseLost");
    assert_eq!(slow.say(Request::Unlock { fence }), "LeaseLost");
    assert_eq!(slow.say(Request::Unlock { fence }), "Missing");
    let (kind, holder) = slow.lock("report", 1).unwrap_err();
    assert!(kind.is_none() && holder.contains("this process"), "{holder}");
    assert_eq!(other.say(Request::RenewLock { fence: newer, lock_ms: 1_000 }), "Done");
}

#[test]
fn who_would_wait_for_a_name_without_end_is_told_its_name() {
    let house = house();
    let (mut one, mut other) = (house.somebody(), house.somebody());
    let first = one.lock("first", 0).unwrap();
    let second = other.lock("second", 0).unwrap();
    let (kind, message) = one.lock_for("first", 1_000, LONG_MS, &[first]).unwrap_err();
    assert_eq!(kind, Some(ErrorKind::Deadlock));
    assert!(message.contains("this caller has it itself"), "{message}");
    assert_eq!(
        one.lock_for("first", 1_000, 0, &[first]).unwrap_err().0,
        None,
        "who does not wait is told Busy"
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| one.lock_for("second", 1_000, LONG_MS, &[first]).unwrap());
        house.await_waiting(1);
        let (kind, message) = other.lock_for("first", 1_000, LONG_MS, &[second]).unwrap_err();
        assert_eq!(kind, Some(ErrorKind::Deadlock));
        assert!(message.contains("lock first"), "{message}");
        assert_eq!(other.say(Request::Unlock { fence: second }), "Done");
        waiting.join().unwrap();
    });
}

#[test]
fn a_lock_that_is_in_the_way_can_be_ended_by_hand_and_one_that_waits_cannot() {
    let house = house();
    let (mut holder, mut admin) = (house.somebody(), house.somebody());
    let fence = holder.lock("report", 0).unwrap();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| house.somebody().lock("report", LONG_MS).unwrap());
        house.await_waiting(1);
        let waiting = house.numbers().into_iter().find(|number| *number != fence).unwrap();
        assert_eq!(admin.say(Request::Rollback { transaction: waiting }), "Invalid");
        assert_eq!(admin.say(Request::Rollback { transaction: fence }), "Done");
        assert_eq!(next.join().unwrap(), waiting);
    });
    assert_eq!(holder.say(Request::RenewLock { fence, lock_ms: 1_000 }), "LeaseLost");
}

#[test]
fn leases_and_locks_are_listed_beside_transactions() {
    let house = house();
    let mut holder = house.somebody();
    holder.lease("k", 0).lease();
    holder.lock("report", 0).unwrap();
    let listed = holder.say(Request::Transactions);
    for part in ["\"load\"", "\"loads\"", "\"lock\"", "\"has\""] {
        assert!(listed.contains(part), "{part} in {listed}");
    }
}

#[test]
fn bounds_of_leases_and_locks_are_named() {
    let house = house();
    let mut somebody = house.somebody();
    let long = "n".repeat(kv_proto::limits::KEY_BYTES_MAX + 1);
    let lock = |name| Request::Lock { name, lock_ms: 1, wait_ms: 0, holds: vec![] };
    assert_eq!(somebody.say(lock("")), "Invalid");
    assert_eq!(somebody.say(lock(&long)), "TooLarge");
    let holds = vec![1; kv_proto::limits::HOLDS_MAX + 1];
    assert_eq!(somebody.say(Request::Lock { name: "n", lock_ms: 1, wait_ms: 0, holds }), "TooLarge");
    let keys: Vec<Vec<u8>> = (0..=kv_proto::limits::HELD_MAX).map(|n| n.to_string().into_bytes()).collect();
    let wanted: Vec<_> = keys.iter().map(|key| Wanted { key, except: None }).collect();
    let too_many =
        Request::Lease { cache: "c", keys: wanted.clone(), wait_ms: 0, lease_ms: 1, holds: vec![] };
    assert_eq!(somebody.say(too_many), "TooLarge");
    let most = &wanted[..kv_proto::limits::HELD_MAX];
    assert_eq!(somebody.lend(most, 0, 1_000, &[]).len(), most.len());
    let one =
        Request::Lease { cache: "c", keys: vec![wanted[most.len()]], wait_ms: 0, lease_ms: 1, holds: vec![] };
    assert_eq!(somebody.say(one), "TooLarge", "it holds as many as it may");
}
