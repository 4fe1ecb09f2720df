//! The table of locks: parties, what they hold, and the queues of those who wait.
//!
//! Grants go in the order of arrival: nobody is granted what somebody who came earlier waits for, except who has a weaker
//! lock of the same thing already. All under the engine's mutex; every call is short.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::limits;
use kv_proto::wire::ErrorKind;

use super::graph::cycle;
use super::{Mode, Need, Number, Resource, Unpark};
use crate::store::CacheId;

/// Who is behind a party, for messages and lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Who {
    /// The connection; 0: this process itself.
    pub(crate) client: u64,
    pub(crate) pid: u32,
    pub(crate) name: String,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client {}", self.client)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        write!(f, " (pid {})", self.pid)
    }
}

/// What kind of party it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartyKind {
    /// A transaction over several requests.
    Transaction { read_only: bool },
    /// One write outside transactions that found a lock in its way.
    Write,
    /// One lease to load, held or waited for.
    Load,
    /// One named lock, held or waited for.
    Lock,
}

impl PartyKind {
    /// Whether it may be silent until its time is over: its work is done elsewhere.
    pub(crate) fn is_of_the_caller(self) -> bool {
        match self {
            PartyKind::Load | PartyKind::Lock => true,
            PartyKind::Transaction { .. } | PartyKind::Write => false,
        }
    }
}

/// Why a party was rolled back by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doom {
    /// It sent nothing while this one waited for it.
    Silent { waiter: Who },
    /// It lived too long.
    TooOld,
    /// It was the youngest of those who waited for each other.
    Deadlock { parties: usize },
    /// Somebody ended it by `kvd rollback`.
    ByHand { who: Who },
    /// A lease or named lock was held for longer than was asked for, and somebody else wanted it.
    Expired,
    /// The key of a lease was written or cleared.
    Overtaken,
}

impl Doom {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Doom::Deadlock { .. } => ErrorKind::Deadlock,
            Doom::Silent { .. } | Doom::TooOld | Doom::ByHand { .. } | Doom::Expired | Doom::Overtaken => {
                ErrorKind::LeaseLost
            }
        }
    }
}

impl std::fmt::Display for Doom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |duration: Duration| duration.as_millis();
        match self {
            Doom::Silent { waiter } => write!(
                f,
                "it sent nothing for {} ms while {waiter} waited for it",
                ms(limits::TRANSACTION_SILENCE_MAX)
            ),
            Doom::TooOld => write!(
                f,
                "it was open for longer than {} ms without being renewed, or than {} ms altogether",
                ms(limits::TRANSACTION_LIFE),
                ms(limits::TRANSACTION_LIFE_MAX)
            ),
            Doom::Deadlock { parties } => {
                write!(f, "{parties} transactions waited for each other, and it was the youngest")
            }
            Doom::ByHand { who } => write!(f, "{who} ended it by hand"),
            Doom::Expired => {
                write!(f, "it was held for longer than was asked for, and somebody else wanted it")
            }
            Doom::Overtaken => write!(f, "the key was written or cleared meanwhile"),
        }
    }
}

/// A transaction, a write that waits, a lease, or a named lock.
pub(crate) struct Party {
    pub(crate) who: Who,
    pub(crate) kind: PartyKind,
    /// The number of its first try: the larger, the younger.
    pub(crate) age: Number,
    pub(crate) began: Instant,
    /// When its life ends unless it is renewed.
    pub(crate) ends: Instant,
    /// A request of it is being served: then its silence is ours.
    pub(crate) is_busy: bool,
    pub(crate) quiet_since: Instant,
    /// Requests served since its first lock was granted.
    pub(crate) requests: u64,
    /// Its grant was taken back because nothing was done under it; the next request waits for it anew.
    pub(crate) is_suspended: bool,
    /// How long a lease or named lock is safe once it is granted.
    life: Duration,
    /// What its caller holds already, and keeps while this one waits.
    on_behalf_of: Vec<Number>,
    held: Vec<Need>,
    waits: Option<(Resource, Mode, Instant)>,
    doom: Option<Doom>,
    wake: Arc<dyn Unpark>,
}

impl Party {
    pub(crate) fn new(who: Who, kind: PartyKind, age: Number, now: Instant, wake: Arc<dyn Unpark>) -> Party {
        Party {
            who,
            kind,
            age,
            began: now,
            ends: now + limits::TRANSACTION_LIFE,
            is_busy: true,
            quiet_since: now,
            requests: 0,
            is_suspended: false,
            life: limits::TRANSACTION_LIFE,
            on_behalf_of: Vec::new(),
            held: Vec::new(),
            waits: None,
            doom: None,
            wake,
        }
    }

    /// One whose life begins with its grant, and whose caller holds these already.
    pub(crate) fn of_caller(self, life: Duration, on_behalf_of: Vec<Number>) -> Party {
        Party { life, on_behalf_of, ..self }
    }

    pub(crate) fn doom(&self) -> Option<&Doom> {
        self.doom.as_ref()
    }

    pub(crate) fn held(&self) -> &[Need] {
        &self.held
    }

    /// What it waits for, and since when.
    pub(crate) fn waits(&self) -> Option<&(Resource, Mode, Instant)> {
        self.waits.as_ref()
    }
}

struct Lock {
    holders: Vec<(Number, Mode)>,
    queue: VecDeque<(Number, Mode)>,
}

impl Lock {
    fn admits(&self, number: Number, mode: Mode) -> bool {
        self.holders.iter().all(|&(holder, held)| holder == number || held.admits(mode))
    }
}

/// What a request for a lock came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acquired {
    Held,
    /// It stands in the queue.
    Waits,
    /// The table is full.
    Full,
}

/// What happened, for `stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LockCounts {
    pub(crate) waits: u64,
    pub(crate) deadlocks: u64,
    pub(crate) silent: u64,
    pub(crate) too_old: u64,
    pub(crate) by_hand: u64,
    pub(crate) taken_back: u64,
}

/// All locks and all who hold or want some.
#[derive(Default)]
pub(crate) struct Locks {
    locks: HashMap<Resource, Lock>,
    parties: HashMap<Number, Party>,
    /// Who was asked for by whom: the second wait on behalf of the first.
    behind: HashMap<Number, Vec<Number>>,
    /// How many of `locks` keep others from reading or writing, and how many are leases.
    data: usize,
    leases: usize,
    counts: LockCounts,
}

impl Locks {
    /// Whether nobody keeps anybody from reading or writing.
    pub(crate) fn is_idle(&self) -> bool {
        self.data == 0
    }

    /// Whether somebody loads anything.
    pub(crate) fn has_leases(&self) -> bool {
        self.leases > 0
    }

    /// The leases of one cache.
    pub(crate) fn leases_of(&self, cache: CacheId) -> impl Iterator<Item = &Resource> {
        self.locks.keys().filter(move |resource| matches!(resource, Resource::Lease(own, _) if *own == cache))
    }

    /// Whether somebody without locks of its own could have all of these at once.
    pub(crate) fn are_free(&self, needs: &[Need]) -> bool {
        needs.iter().all(|(resource, mode)| {
            self.locks.get(resource).is_none_or(|lock| lock.queue.is_empty() && lock.admits(0, *mode))
        })
    }

    pub(crate) fn join(&mut self, number: Number, party: Party) {
        for holds in &party.on_behalf_of {
            self.behind.entry(*holds).or_default().push(number);
        }
        self.parties.insert(number, party);
    }

    /// The party ends: what it holds goes to those who wait.
    pub(crate) fn leave(&mut self, number: Number, now: Instant) {
        self.release_all(number, now);
        let Some(party) = self.parties.remove(&number) else { return };
        for holds in &party.on_behalf_of {
            if let Entry::Occupied(mut behind) = self.behind.entry(*holds) {
                behind.get_mut().retain(|waiter| *waiter != number);
                if behind.get().is_empty() {
                    behind.remove();
                }
            }
        }
    }

    /// As `leave`; those who wait for what it holds are not granted it one after the other, but all look again at once.
    pub(crate) fn leave_to_all(&mut self, number: Number, now: Instant) {
        let held: Vec<_> = self.parties.get(&number).map_or(Vec::new(), |party| party.held.clone());
        held.iter().for_each(|(resource, _)| self.disperse(resource));
        self.leave(number, now);
    }

    /// Ends a lease whose key was written or cleared: all who wait for it look again at once. Whether somebody had it.
    pub(crate) fn overtake(&mut self, lease: &Resource, now: Instant) -> bool {
        self.disperse(lease);
        let Some(holder) = self.holder(lease) else { return false };
        self.doom(holder, Doom::Overtaken, now);
        true
    }

    /// Sends all away who wait for this; they find that they wait no longer, and have not got it.
    fn disperse(&mut self, resource: &Resource) {
        let Some(lock) = self.locks.get_mut(resource) else { return };
        for (waiter, _) in std::mem::take(&mut lock.queue) {
            let party = self.parties.get_mut(&waiter).expect("only parties stand in queues");
            party.waits = None;
            party.wake.unpark();
        }
    }

    /// Who holds this; the first, where there may be several.
    pub(crate) fn holder(&self, resource: &Resource) -> Option<Number> {
        self.locks.get(resource)?.holders.first().map(|(holder, _)| *holder)
    }

    pub(crate) fn holds(&self, number: Number, resource: &Resource) -> bool {
        let party = self.parties.get(&number);
        party.is_some_and(|party| party.held.iter().any(|(held, _)| held == resource))
    }

    /// Those that one who holds `on_behalf_of` would wait for without end, if it began to wait for `resource`.
    pub(crate) fn ring_through(&self, resource: &Resource, on_behalf_of: &[Number]) -> Option<Vec<Number>> {
        /// Stands for who has not begun to wait.
        const ASKER: Number = 0;
        let lock = self.locks.get(resource)?;
        let in_the_way = || lock.holders.iter().chain(&lock.queue).map(|(party, _)| *party);
        let ring = cycle(ASKER, |from| {
            if from == ASKER {
                return in_the_way().collect();
            }
            let mut follows = self.waits_for(from);
            let is_waiting =
                |number: &&Number| self.parties.get(number).is_some_and(|party| party.waits.is_some());
            follows.extend(self.behind.get(&from).into_iter().flatten().filter(is_waiting));
            if on_behalf_of.contains(&from) {
                follows.push(ASKER);
            }
            follows
        })?;
        Some(ring.into_iter().filter(|number| *number != ASKER).collect())
    }

    pub(crate) fn party(&self, number: Number) -> Option<&Party> {
        self.parties.get(&number)
    }

    pub(crate) fn party_mut(&mut self, number: Number) -> Option<&mut Party> {
        self.parties.get_mut(&number)
    }

    pub(crate) fn parties(&self) -> impl Iterator<Item = (Number, &Party)> {
        self.parties.iter().map(|(number, party)| (*number, party))
    }

    pub(crate) fn counts(&self) -> LockCounts {
        self.counts
    }

    /// Takes a lock, or a place in its queue. `is_back`: it had the lock before, and stands behind the next in the queue only.
    pub(crate) fn acquire(&mut self, number: Number, need: &Need, is_back: bool, now: Instant) -> Acquired {
        let (resource, wanted) = need;
        let Some(party) = self.parties.get_mut(&number) else { return Acquired::Full };
        let own = party.held.iter().find(|(held, _)| held == resource).map(|(_, mode)| *mode);
        let mode = own.map_or(*wanted, |own| own.and(*wanted));
        if own == Some(mode) {
            return Acquired::Held;
        }
        if !self.locks.contains_key(resource) {
            if self.locks.len() >= limits::LOCKS_MAX {
                return Acquired::Full;
            }
            self.data += usize::from(resource.is_data());
            self.leases += usize::from(matches!(resource, Resource::Lease(..)));
        }
        let lock = self
            .locks
            .entry(resource.clone())
            .or_insert_with(|| Lock { holders: Vec::new(), queue: VecDeque::new() });
        if lock.admits(number, mode) && (own.is_some() || lock.queue.is_empty()) {
            self.grant(number, resource.clone(), mode, now);
            return Acquired::Held;
        }
        let place = if own.is_some() {
            let is_upgrade =
                |(waiter, _): &(Number, Mode)| lock.holders.iter().any(|(holder, _)| holder == waiter);
            lock.queue.iter().take_while(|waiter| is_upgrade(waiter)).count()
        } else if is_back {
            lock.queue.len().min(1)
        } else {
            lock.queue.len()
        };
        lock.queue.insert(place, (number, mode));
        party.waits = Some((resource.clone(), mode, now));
        // Waits for loads are counted by cache.
        self.counts.waits += u64::from(!matches!(resource, Resource::Lease(..)));
        Acquired::Waits
    }

    /// Whether it waits for nothing (any more).
    pub(crate) fn is_granted(&self, number: Number) -> bool {
        self.parties.get(&number).is_some_and(|party| party.waits.is_none())
    }

    /// It does not want to wait any longer.
    pub(crate) fn give_up(&mut self, number: Number, now: Instant) {
        let Some(party) = self.parties.get_mut(&number) else { return };
        let Some((resource, ..)) = party.waits.take() else { return };
        if let Some(lock) = self.locks.get_mut(&resource) {
            lock.queue.retain(|(waiter, _)| *waiter != number);
        }
        self.grant_next(&resource, now);
    }

    /// Those it waits for: every holder that excludes it, and everyone queued ahead.
    pub(crate) fn waits_for(&self, number: Number) -> Vec<Number> {
        let Some((resource, mode, _)) = self.parties.get(&number).and_then(|party| party.waits.as_ref())
        else {
            return Vec::new();
        };
        let Some(lock) = self.locks.get(resource) else { return Vec::new() };
        let excludes = |&&(holder, held): &&(Number, Mode)| holder != number && !held.admits(*mode);
        let holders = lock.holders.iter().filter(excludes).map(|(holder, _)| *holder);
        let ahead = lock.queue.iter().map(|(waiter, _)| *waiter).take_while(|&waiter| waiter != number);
        holders.chain(ahead).collect()
    }

    /// Rolls back the youngest of each ring that `number` has closed by beginning to wait. Of a lease or name that was found out
    /// before it began: `ring_through`.
    pub(crate) fn break_deadlocks(&mut self, number: Number, now: Instant) {
        if self.parties.get(&number).is_none_or(|party| party.kind.is_of_the_caller()) {
            return;
        }
        while let Some(ring) = cycle(number, |from| self.waits_for(from)) {
            let age = |number: &Number| self.parties.get(number).map(|party| (party.age, *number));
            let youngest = ring.iter().copied().max_by_key(age).expect("a ring has members");
            self.doom(youngest, Doom::Deadlock { parties: ring.len() }, now);
        }
    }

    /// Rolls a party back: it holds and wants nothing from now on, and is told when it asks next.
    pub(crate) fn doom(&mut self, number: Number, doom: Doom, now: Instant) {
        let Some(party) = self.parties.get_mut(&number) else { return };
        match doom {
            Doom::Silent { .. } => self.counts.silent += 1,
            Doom::TooOld => self.counts.too_old += 1,
            Doom::Deadlock { .. } => self.counts.deadlocks += 1,
            Doom::ByHand { .. } => self.counts.by_hand += 1,
            // Counted by cache.
            Doom::Expired | Doom::Overtaken => {}
        }
        party.doom = Some(doom);
        party.wake.unpark();
        self.release_all(number, now);
    }

    /// Rolls a party back whose life is over.
    pub(crate) fn end_if_old(&mut self, number: Number, now: Instant) {
        if self.parties.get(&number).is_some_and(|party| party.doom.is_none() && now >= party.ends) {
            self.doom(number, Doom::TooOld, now);
        }
    }

    /// Takes everything back from a party that has done nothing with it; its next request waits for it anew.
    pub(crate) fn suspend(&mut self, number: Number, now: Instant) {
        if let Some(party) = self.parties.get_mut(&number) {
            party.is_suspended = true;
            self.counts.taken_back += 1;
        }
        self.release_all(number, now);
    }

    fn release_all(&mut self, number: Number, now: Instant) {
        self.give_up(number, now);
        let Some(party) = self.parties.get_mut(&number) else { return };
        for (resource, _) in std::mem::take(&mut party.held) {
            if let Some(lock) = self.locks.get_mut(&resource) {
                lock.holders.retain(|(holder, _)| *holder != number);
            }
            self.grant_next(&resource, now);
        }
    }

    fn grant(&mut self, number: Number, resource: Resource, mode: Mode, now: Instant) {
        let party = self.parties.get_mut(&number).expect("only parties stand in queues");
        let lock = self.locks.get_mut(&resource).expect("it is being granted");
        match lock.holders.iter_mut().find(|(holder, _)| *holder == number) {
            Some((_, held)) => *held = mode,
            None => lock.holders.push((number, mode)),
        }
        match party.held.iter_mut().find(|(held, _)| *held == resource) {
            Some((_, held)) => *held = mode,
            None => party.held.push((resource, mode)),
        }
        if party.kind.is_of_the_caller() {
            party.ends = now + party.life;
        }
        if party.waits.take().is_some() {
            party.quiet_since = now;
            party.wake.unpark();
        }
    }

    /// Grants to the head of the queue what it can have now, and so on; forgets a lock that nobody has or wants.
    fn grant_next(&mut self, resource: &Resource, now: Instant) {
        while let Some(lock) = self.locks.get_mut(resource) {
            match lock.queue.front().copied() {
                Some((waiter, mode)) if lock.admits(waiter, mode) => {
                    lock.queue.pop_front();
                    self.grant(waiter, resource.clone(), mode, now);
                }
                // The next in the queue of a lease or name holds whoever has it now to its time.
                Some((waiter, _)) if !resource.is_data() => {
                    let party = self.parties.get(&waiter).expect("only parties stand in queues");
                    return party.wake.unpark();
                }
                None if lock.holders.is_empty() => {
                    self.locks.remove(resource);
                    self.data -= usize::from(resource.is_data());
                    self.leases -= usize::from(matches!(resource, Resource::Lease(..)));
                }
                Some(_) | None => return,
            }
        }
    }
}
