//! The table of locks against its own rules, whatever is asked of it in whatever order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::table::{Acquired, Doom, Locks, Party, PartyKind, Who};
use super::{Mode, Number, Resource, Unpark};

const MODES: [Mode; 5] =
    [Mode::IntentShared, Mode::IntentExclusive, Mode::Shared, Mode::SharedIntentExclusive, Mode::Exclusive];

struct Nobody;

impl Unpark for Nobody {
    fn unpark(&self) {}
}

fn table(parties: impl IntoIterator<Item = Number>, now: Instant) -> Locks {
    let mut locks = Locks::default();
    for number in parties {
        let kind = PartyKind::Transaction { read_only: false };
        locks.join(number, Party::new(Who::default(), kind, number, now, Arc::new(Nobody)));
    }
    locks
}

fn key(name: u8) -> Resource {
    Resource::Key(1, [name].into())
}

#[test]
fn modes_admit_each_other_alike_and_joining_never_weakens() {
    for one in MODES {
        for other in MODES {
            assert_eq!(one.admits(other), other.admits(one));
            let both = one.and(other);
            assert_eq!(both, other.and(one));
            for third in MODES {
                assert!(
                    !both.admits(third) || (one.admits(third) && other.admits(third)),
                    "{one:?} {other:?}"
                );
            }
        }
        assert_eq!(one.and(one), one);
    }
    let admitted: Vec<_> =
        MODES.iter().map(|one| MODES.iter().filter(|other| one.admits(**other)).count()).collect();
    assert_eq!(admitted, [4, 2, 2, 1, 0], "the table of Gray et al.");
}

#[test]
fn nobody_is_overtaken() {
    let now = Instant::now();
    let mut locks = table(1..=4, now);
    let shared = (key(1), Mode::Shared);
    let exclusive = (key(1), Mode::Exclusive);
    assert_eq!(locks.acquire(1, &shared, false, now), Acquired::Held);
    assert_eq!(locks.acquire(2, &exclusive, false, now), Acquired::Waits);
    assert_eq!(
        locks.acquire(3, &shared, false, now),
        Acquired::Waits,
        "a reader does not pass a writer that waits"
    );
    assert!(!locks.are_free(std::slice::from_ref(&shared)));
    locks.leave(1, now);
    assert!(locks.is_granted(2) && !locks.is_granted(3));
    locks.leave(2, now);
    assert!(locks.is_granted(3));
    locks.leave(3, now);
    assert!(locks.is_idle());
}

#[test]
fn an_upgrade_goes_ahead_and_two_upgrades_have_one_victim() {
    let now = Instant::now();
    let mut locks = table(1..=3, now);
    let shared = (key(1), Mode::Shared);
    let exclusive = (key(1), Mode::Exclusive);
    locks.acquire(1, &shared, false, now);
    locks.acquire(2, &shared, false, now);
    assert_eq!(locks.acquire(3, &exclusive, false, now), Acquired::Waits);
    assert_eq!(locks.acquire(1, &exclusive, false, now), Acquired::Waits);
    locks.break_deadlocks(1, now);
    assert_eq!(locks.acquire(2, &exclusive, false, now), Acquired::Waits);
    locks.break_deadlocks(2, now);
    assert!(matches!(locks.party(2).unwrap().doom(), Some(Doom::Deadlock { .. })), "the youngest of the two");
    assert!(locks.is_granted(1) && locks.party(1).unwrap().doom().is_none());
    assert!(!locks.is_granted(3));
    locks.leave(1, now);
    assert!(locks.is_granted(3), "who waited for the ring without being part of it goes on");
}

#[test]
fn rings_of_any_size_have_one_victim_and_the_rest_finish() {
    let now = Instant::now();
    for size in [2_u64, 3, 10] {
        let mut locks = table(1..=size, now);
        for number in 1..=size {
            locks.acquire(number, &(key(number as u8), Mode::Exclusive), false, now);
        }
        for number in 1..=size {
            let next = number % size + 1;
            let said = locks.acquire(number, &(key(next as u8), Mode::Exclusive), false, now);
            assert_eq!(said, Acquired::Waits);
            locks.break_deadlocks(number, now);
        }
        let doomed: Vec<_> =
            locks.parties().filter(|(_, party)| party.doom().is_some()).map(|(number, _)| number).collect();
        assert_eq!(doomed, [size], "the youngest");
        locks.leave(size, now);
        for _ in 1..size {
            let ready = (1..size).find(|number| locks.party(*number).is_some() && locks.is_granted(*number));
            locks.leave(ready.expect("somebody can always go on"), now);
        }
        assert!(locks.is_idle());
    }
}

#[test]
fn what_is_taken_back_comes_back_behind_the_next() {
    let now = Instant::now();
    let mut locks = table(1..=3, now);
    let database = (Resource::Database, Mode::Exclusive);
    locks.acquire(1, &database, false, now);
    locks.acquire(2, &database, false, now);
    locks.acquire(3, &database, false, now);
    locks.suspend(1, now);
    assert!(locks.is_granted(2) && locks.party(2).unwrap().held().len() == 1);
    assert_eq!(locks.acquire(1, &database, true, now), Acquired::Waits);
    locks.leave(2, now);
    assert!(locks.party(3).unwrap().held().len() == 1, "the next who waited");
    locks.leave(3, now);
    assert_eq!(locks.party(1).unwrap().held().len(), 1);
}

fn lease(name: u8) -> Resource {
    Resource::Lease(1, [name].into())
}

fn load(locks: &mut Locks, number: Number, on_behalf_of: &[Number], now: Instant) {
    let party = Party::new(Who::default(), PartyKind::Load, number, now, Arc::new(Nobody));
    locks.join(number, party.of_caller(Duration::from_secs(1), on_behalf_of.to_vec()));
}

/// A's load of k1 asks for k2, B's of k2 for k3, C's of k3 for k1.
#[test]
fn who_waits_on_behalf_of_what_it_holds_is_found_in_a_ring_before_it_waits() {
    let now = Instant::now();
    let mut locks = Locks::default();
    for number in 1..=3 {
        load(&mut locks, number, &[], now);
        let own = (lease(number as u8), Mode::Exclusive);
        assert_eq!(locks.acquire(number, &own, false, now), Acquired::Held);
    }
    for (waiter, holds, wants) in [(4, 1, 2), (5, 2, 3)] {
        assert_eq!(locks.ring_through(&lease(wants), &[holds]), None);
        load(&mut locks, waiter, &[holds], now);
        let want = (lease(wants), Mode::Exclusive);
        assert_eq!(locks.acquire(waiter, &want, false, now), Acquired::Waits);
    }
    let ring = locks.ring_through(&lease(1), &[3]).expect("it would wait for itself");
    assert!(ring.contains(&1) && ring.contains(&2), "{ring:?}");
    assert_eq!(locks.ring_through(&lease(1), &[]), None, "who holds nothing waits for whom he likes");
    assert!(locks.ring_through(&lease(3), &[3]).is_some(), "its own");
    assert_eq!(locks.ring_through(&lease(9), &[3]), None, "it is free");
    locks.leave(4, now);
    assert_eq!(locks.ring_through(&lease(1), &[3]), None, "nobody waits on behalf of the first any more");
    (1..=5).for_each(|number| locks.leave(number, now));
    assert!(locks.is_idle() && !locks.has_leases() && locks.parties().count() == 0);
}

#[test]
fn leases_are_in_nobodys_way_and_their_time_begins_with_the_grant() {
    let start = Instant::now();
    let later = start + Duration::from_secs(10);
    let mut locks = table([1], start);
    load(&mut locks, 2, &[], start);
    load(&mut locks, 3, &[], start);
    let wanted = (lease(1), Mode::Exclusive);
    assert_eq!(locks.acquire(2, &wanted, false, start), Acquired::Held);
    assert_eq!(locks.acquire(3, &wanted, false, start), Acquired::Waits);
    assert!(locks.is_idle() && locks.has_leases());
    assert_eq!(locks.acquire(1, &(Resource::Database, Mode::Exclusive), false, start), Acquired::Held);
    assert!(!locks.is_idle());
    locks.leave(2, later);
    assert_eq!(locks.party(3).unwrap().ends, later + Duration::from_secs(1));
    assert_eq!(locks.holder(&lease(1)), Some(3));
}

#[test]
fn what_overtakes_a_load_sends_all_waiters_away_and_leaves_nothing() {
    let now = Instant::now();
    let mut locks = Locks::default();
    let wanted = (lease(1), Mode::Exclusive);
    for number in 1..=4 {
        load(&mut locks, number, &[], now);
        locks.acquire(number, &wanted, false, now);
    }
    assert!(locks.overtake(&lease(1), now));
    assert!(!locks.overtake(&lease(1), now), "nobody has it any more");
    assert!(matches!(locks.party(1).unwrap().doom(), Some(Doom::Overtaken)));
    for number in 2..=4 {
        assert!(locks.is_granted(number) && !locks.holds(number, &lease(1)), "it waits no longer");
    }
    assert!(!locks.has_leases());
}

/// Random parties ask, give up, are rolled back and leave: no two that exclude each other hold the same, whoever can be granted
/// is, nobody waits in a ring, and nothing is left in the end.
#[test]
fn random_requests_keep_the_rules() {
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let start = Instant::now();
    let mut locks = Locks::default();
    let mut open: Vec<Number> = Vec::new();
    let mut next = 0;
    for step in 0..40_000_u64 {
        let now = start + Duration::from_micros(step);
        if open.len() < 8 {
            next += 1;
            let kind = PartyKind::Transaction { read_only: false };
            locks.join(next, Party::new(Who::default(), kind, next, now, Arc::new(Nobody)));
            open.push(next);
        }
        let number = open[random.usize(..open.len())];
        let party = locks.party(number).unwrap();
        if party.doom().is_some() || random.u8(..) < 40 {
            locks.leave(number, now);
            open.retain(|other| *other != number);
        } else if party.waits().is_some() {
            if random.u8(..) < 60 {
                locks.give_up(number, now);
            }
        } else {
            let resource = if random.u8(..) < 40 { Resource::Cache(1) } else { key(random.u8(..5)) };
            let need = (resource, MODES[random.usize(..MODES.len())]);
            if locks.acquire(number, &need, false, now) == Acquired::Waits {
                locks.break_deadlocks(number, now);
            }
        }
        check(&locks);
    }
    let now = start + Duration::from_secs(1);
    open.into_iter().for_each(|number| locks.leave(number, now));
    assert!(locks.is_idle() && locks.parties().count() == 0);
}

fn check(locks: &Locks) {
    let parties: Vec<_> = locks.parties().collect();
    for (number, party) in &parties {
        for (other, with) in &parties {
            for (resource, mode) in party.held() {
                let clash = with.held().iter().find(|(held, own)| held == resource && !own.admits(*mode));
                assert!(number == other || clash.is_none(), "{number} and {other} both hold {resource:?}");
            }
        }
        assert_eq!(
            party.waits().is_some(),
            !locks.waits_for(*number).is_empty(),
            "who waits for nobody is granted"
        );
        assert!(party.doom().is_none() || party.held().is_empty());
        let ring = super::graph::cycle(*number, |from| locks.waits_for(from));
        assert_eq!(ring, None, "a ring was left");
    }
}
