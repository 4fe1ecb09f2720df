//! Leases to load: of all who miss an item one gets the right to load it; the others get its stale predecessor, or wait.
//!
//! Called by `apply`. A lease is a lock in the table of `txn`, held by a session until it fills, abandons or ends. Whoever
//! changes or clears what is being loaded calls `overtake` under the mutex, so that nothing older is ever put behind it.
//! It must never be granted inside a transaction: its fill would wait for that transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kv_proto::segment::{Freshness, Install, Outcome};
use kv_proto::wire::{self, ErrorKind, Loan, Response, Wanted, encode_into};
use kv_proto::{BootMs, Version, limits};
use parking_lot::MutexGuard;

use super::cache::{Cache, count};
use super::change::{Action, Fetched, Target, look_in_memory};
use super::error::Failure;
use super::item::{Current, Shape, check_key, freshness_on_wire};
use super::read::{Source, count_hit};
use super::waiting::no_means;
use super::{Engine, Session, State};
use crate::store::Scope;
use crate::txn::{Acquired, Mode, Number, Party, PartyKind, Resource};

/// How often a wish is looked at anew, because a waiter was woken or somebody was faster. Beyond: `Busy`.
const LOOKS_MAX: usize = 64;

/// What a session holds beside its transaction.
pub(crate) enum Holding {
    Lease(Lease),
    Lock,
}

/// The right to load one item.
pub(crate) struct Lease {
    pub(super) cache: Arc<Cache>,
    pub(super) key: Box<[u8]>,
    /// What is of a later sequence is newer than what its holder loads.
    pub(super) granted: Version,
}

impl Lease {
    fn resource(&self) -> Resource {
        Resource::Lease(self.cache.id, self.key.clone())
    }
}

/// Keys whose last load failed, and until when nobody gets another lease for what is still there of them.
#[derive(Default)]
pub(crate) struct Cooling(HashMap<Resource, Instant>);

impl Cooling {
    fn begin(&mut self, lease: Resource, until: Instant, now: Instant) {
        if self.0.len() >= limits::COOLING_MAX {
            self.sweep(now);
        }
        if self.0.len() < limits::COOLING_MAX {
            self.0.insert(lease, until);
        }
    }

    /// Forgets those whose time is over: while there is one, every change looks for its key here.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, until| *until > now);
    }

    fn covers(&mut self, lease: &Resource, now: Instant) -> bool {
        let is_cooling = self.0.get(lease).map(|until| *until > now);
        if is_cooling == Some(false) {
            self.0.remove(lease);
        }
        is_cooling == Some(true)
    }
}

/// How a client wants to hold leases and locks, and to wait for them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) wait_ms: u32,
    pub(crate) life_ms: u32,
    pub(crate) holds: &'a [u64],
}

/// What a caller holds already, as far as it is believed: what its own process has.
#[derive(Default)]
pub(super) struct Believed {
    pub(super) parties: Vec<Number>,
    /// Then it must not wait for anything, for others wait for it.
    pub(super) in_transaction: bool,
}

/// A wish for one item.
struct Asked<'a> {
    target: Target<'a>,
    lease: Resource,
    except: Option<Version>,
    life: Duration,
    /// `None`: it does not wait.
    deadline: Option<Instant>,
    holds: &'a Believed,
}

/// What became of it.
enum Lent {
    Hit(Arc<Current>, wire::Freshness, Source),
    Leased(Number, Option<Arc<Current>>),
    Busy,
    Alone,
}

impl Engine {
    /// Answers `lease`.
    pub(crate) fn lend(
        &self,
        session: &mut Session,
        cache: &str,
        keys: &[Wanted<'_>],
        terms: Terms<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        session.must_be_outside("a lease")?;
        if keys.len() > limits::GET_MANY_KEYS_MAX {
            return Err(Failure::too_many("keys in a lease", keys.len(), limits::GET_MANY_KEYS_MAX));
        }
        keys.iter().try_for_each(|wanted| check_key(wanted.key))?;
        let cache = self.cache_for_writing(cache)?;
        let holds = self.believe(session, terms.holds)?;
        let wait = Duration::from_millis(terms.wait_ms.into()).min(limits::LEASE_WAIT_MAX);
        let life = Duration::from_millis(terms.life_ms.into()).min(limits::LEASE_LIFE_MAX);
        // Who waits for one of many holds the others meanwhile.
        let deadline = (keys.len() == 1 && !wait.is_zero()).then(|| self.clock.instant() + wait);
        let (mut lent, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        for wanted in keys {
            let asked = Asked {
                target: self.target(&cache, wanted.key, true),
                lease: Resource::Lease(cache.id, wanted.key.into()),
                except: wanted.except,
                life,
                deadline,
                holds: &holds,
            };
            match self.lend_one(session, &asked) {
                Ok(one) => {
                    bytes += one.bytes();
                    lent.push(one);
                }
                Err(failure) if lent.is_empty() => return Err(failure),
                // What was lent must be told; the failure comes again when the rest is asked for.
                Err(_) => break,
            }
            if bytes > limits::ANSWER_BYTES_SOFT_MAX {
                break;
            }
        }
        let now = self.clock.now();
        encode_into(out, &Response::Loans(lent.iter().map(|one| one.to_wire(now)).collect()));
        Ok(())
    }

    /// What of `holds` its own process has, so that nobody is kept waiting by what somebody else says.
    pub(super) fn believe(&self, session: &Session, holds: &[u64]) -> Result<Believed, Failure> {
        if holds.len() > limits::HOLDS_MAX {
            return Err(Failure::too_many("holds in a request", holds.len(), limits::HOLDS_MAX));
        }
        let mut believed = Believed::default();
        if holds.is_empty() {
            return Ok(believed);
        }
        let pid = session.who().pid;
        let state = self.lock();
        for number in holds {
            let Some(party) = state.locks.party(*number).filter(|party| party.who.pid == pid) else {
                continue;
            };
            believed.in_transaction |= matches!(party.kind, PartyKind::Transaction { .. });
            believed.parties.push(*number);
        }
        Ok(believed)
    }

    fn lend_one(&self, session: &mut Session, asked: &Asked<'_>) -> Result<Lent, Failure> {
        let (mut turn, mut fetched) = (None, [None]);
        let mut lent = Ok(None);
        for _ in 0..LOOKS_MAX {
            lent = self.lend_or_wait(session, asked, &mut turn, &mut fetched);
            if !matches!(lent, Ok(None)) {
                break;
            }
        }
        if let Some(number) = turn {
            self.lock().locks.leave(number, self.clock.instant());
        }
        let lent = lent?.unwrap_or(Lent::Busy);
        match &lent {
            Lent::Hit(_, freshness, source) => count_hit(&asked.target.cache, *source, *freshness),
            Lent::Leased(..) | Lent::Busy | Lent::Alone => count(&asked.target.cache.counters.misses),
        }
        Ok(lent)
    }

    /// Looks once, and waits once if it has to; `None`: look again. `turn` has its place in the queue.
    fn lend_or_wait(
        &self,
        session: &mut Session,
        asked: &Asked<'_>,
        turn: &mut Option<Number>,
        fetched: &mut [Option<Fetched>; 1],
    ) -> Result<Option<Lent>, Failure> {
        let target = &asked.target;
        if fetched[0].is_none()
            && let Some(hit) = self.fresh_in_memory(session, asked)
        {
            return Ok(Some(hit));
        }
        let mut state = self.lock();
        let now = self.clock.now();
        let Ok(mut looks) = look_in_memory(&mut state, std::slice::from_ref(target), fetched, now) else {
            drop(state);
            let read = self.fetch(target)?;
            self.install(target, read.moment, read.look.as_deref(), Install::Read);
            fetched[0] = Some(read);
            return Ok(None);
        };
        let source = if fetched[0].is_some() { Source::Disk } else { Source::Memory };
        let found = looks.pop().flatten().and_then(|item| {
            let verdict =
                state.memory(&target.cache).writer.verdict(&item.life(), item.tag_slots(), target.key, now);
            Some((item, freshness_on_wire(verdict)?))
        });
        match self.decide_loan(&mut state, session, asked, turn, found, source)? {
            Some(lent) => Ok(Some(lent)),
            None => self.wait_for_turn(state, session, asked, turn),
        }
    }

    /// What most find, without the mutex.
    fn fresh_in_memory(&self, session: &mut Session, asked: &Asked<'_>) -> Option<Lent> {
        let view = asked.target.cache.view.load();
        let (hash, key) = (asked.target.hash, asked.target.key);
        let Outcome::Hit(meta) = view.reader.get(hash, key, self.clock.now(), &mut session.buffer) else {
            return None;
        };
        view.hits.touch(meta.place);
        (meta.freshness == Freshness::Fresh && asked.except != Some(meta.version)).then(|| {
            let item = Arc::new(Current::from_segment(&meta, &session.buffer));
            Lent::Hit(item, wire::Freshness::Fresh, Source::Memory)
        })
    }

    /// Under the mutex: who gets what. `None`: it has to wait.
    fn decide_loan(
        &self,
        state: &mut State,
        session: &mut Session,
        asked: &Asked<'_>,
        turn: &mut Option<Number>,
        found: Option<(Arc<Current>, wire::Freshness)>,
        source: Source,
    ) -> Result<Option<Lent>, Failure> {
        let now = self.clock.instant();
        if asked.target.cache.dropped.load(Ordering::Acquire) {
            // There is nothing to be filled; the next wish makes the cache anew.
            return Ok(Some(Lent::Alone));
        }
        let is_there = found.is_some();
        let usable = found.filter(|(item, _)| asked.except != Some(item.version));
        let stale = match usable {
            Some((item, wire::Freshness::Fresh)) => {
                return Ok(Some(Lent::Hit(item, wire::Freshness::Fresh, source)));
            }
            Some((item, wire::Freshness::Stale)) => Some(item),
            None => None,
        };
        if let Some(number) = *turn {
            if state.locks.holds(number, &asked.lease) {
                return self.grant(state, session, asked, turn, stale).map(Some);
            }
            // What it waited for was changed, and everybody was sent to look.
            state.locks.leave(number, now);
            *turn = None;
        }
        let stale_hit = |item| Lent::Hit(item, wire::Freshness::Stale, source);
        if asked.holds.in_transaction {
            return Ok(Some(stale.map_or(Lent::Alone, stale_hit)));
        }
        self.end_if_hung(state, &asked.lease, now);
        let is_cooling = is_there && state.cooling.covers(&asked.lease, now);
        if !is_cooling && state.locks.are_free(&[(asked.lease.clone(), Mode::Exclusive)]) {
            let number = self.enlist(state, session, PartyKind::Load, asked.life, &asked.holds.parties)?;
            *turn = Some(number);
            self.take_free(state, number, &asked.lease)?;
            return self.grant(state, session, asked, turn, stale).map(Some);
        }
        if let Some(item) = stale {
            return Ok(Some(stale_hit(item)));
        }
        if state.locks.ring_through(&asked.lease, &asked.holds.parties).is_some() {
            return Ok(Some(Lent::Alone));
        }
        let may_wait = asked.deadline.is_some_and(|deadline| deadline > now);
        Ok((is_cooling || !may_wait).then_some(Lent::Busy))
    }

    /// A party for one lease or named lock of this session.
    pub(super) fn enlist(
        &self,
        state: &mut State,
        session: &mut Session,
        kind: PartyKind,
        life: Duration,
        holds: &[Number],
    ) -> Result<Number, Failure> {
        if session.held.len() >= limits::HELD_MAX {
            let count = session.held.len() + 1;
            return Err(Failure::too_many("leases and locks of one connection", count, limits::HELD_MAX));
        }
        let wake = session.park.unparker().map_err(no_means)?;
        let number = self.next_sequence(state);
        let party = Party::new(session.who(), kind, number, self.clock.instant(), wake);
        state.locks.join(number, party.of_caller(life, holds.to_vec()));
        Ok(number)
    }

    /// Takes what was found to be free.
    pub(super) fn take_free(
        &self,
        state: &mut State,
        number: Number,
        what: &Resource,
    ) -> Result<(), Failure> {
        match state.locks.acquire(number, &(what.clone(), Mode::Exclusive), false, self.clock.instant()) {
            Acquired::Held => Ok(()),
            Acquired::Waits | Acquired::Full => Err(super::waiting::too_many_locked()),
        }
    }

    /// From here on the lease is the session's.
    fn grant(
        &self,
        state: &State,
        session: &mut Session,
        asked: &Asked<'_>,
        turn: &mut Option<Number>,
        stale: Option<Arc<Current>>,
    ) -> Result<Lent, Failure> {
        let number = turn.take().expect("it has the lease");
        let cache = Arc::clone(&asked.target.cache);
        count(&cache.counters.leases_granted);
        let lease = Lease { cache, key: asked.target.key.into(), granted: state.sequence };
        session.held.insert(number, Holding::Lease(lease));
        Ok(Lent::Leased(number, stale))
    }

    fn wait_for_turn(
        &self,
        mut state: MutexGuard<'_, State>,
        session: &mut Session,
        asked: &Asked<'_>,
        turn: &mut Option<Number>,
    ) -> Result<Option<Lent>, Failure> {
        let deadline = asked.deadline.expect("it may wait");
        let number = self.enlist(&mut state, session, PartyKind::Load, asked.life, &asked.holds.parties)?;
        *turn = Some(number);
        count(&asked.target.cache.counters.lease_waits);
        let needs = vec![(asked.lease.clone(), Mode::Exclusive)];
        match self.wait_for_locks(state, &mut *session.park, number, &needs, false, deadline) {
            Ok(_) => Ok(None),
            Err(failure) if failure.kind == ErrorKind::Timeout => Ok(Some(Lent::Busy)),
            // It got the lease and lost it again before this thread woke: as if it had been sent to look.
            Err(failure) if failure.kind == ErrorKind::LeaseLost => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Ends a lease or lock whose time is over, for somebody who wants it.
    pub(super) fn end_if_hung(&self, state: &mut State, what: &Resource, now: Instant) {
        let Some(holder) = state.locks.holder(what) else { return };
        if state.locks.party(holder).is_some_and(|party| party.ends <= now) {
            self.end_expired(state, holder, now);
        }
    }

    pub(super) fn end_expired(&self, state: &mut State, holder: Number, now: Instant) {
        let held = state.locks.party(holder).and_then(|party| party.held().first());
        if let Some((Resource::Lease(cache, _), _)) = held
            && let Some(cache) = self.cache_by_id(*cache)
        {
            count(&cache.counters.leases_expired);
        }
        state.locks.doom(holder, crate::txn::Doom::Expired, now);
    }
}

impl Engine {
    /// Answers `abandon`.
    pub(crate) fn abandon(
        &self,
        session: &mut Session,
        leases: &[u64],
        retry_after_ms: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if leases.len() > limits::HELD_MAX {
            return Err(Failure::too_many("leases in an abandon", leases.len(), limits::HELD_MAX));
        }
        let retry_after = Duration::from_millis(retry_after_ms.into()).min(limits::LEASE_LIFE_MAX);
        self.give_back(session, leases, (!retry_after.is_zero()).then_some(retry_after));
        encode_into(out, &Response::Done);
        Ok(())
    }

    /// Ends those of `leases` that are the session's; the next who waits gets each.
    pub(super) fn give_back(&self, session: &mut Session, leases: &[Number], retry_after: Option<Duration>) {
        let now = self.clock.instant();
        let mut state = self.lock();
        for number in leases {
            let Some(lease) = session.take_lease(*number) else { continue };
            let resource = lease.resource();
            if let Some(retry_after) = retry_after.filter(|_| state.locks.holds(*number, &resource)) {
                state.cooling.begin(resource, now + retry_after, now);
            }
            count(&lease.cache.counters.lease_abandons);
            state.locks.leave(*number, now);
        }
    }

    /// Ends all that a session holds beside its transaction. For a connection that ends.
    pub(super) fn give_up_all(&self, session: &mut Session) {
        if session.held.is_empty() {
            return;
        }
        let now = self.clock.instant();
        let mut state = self.lock();
        for (number, holding) in std::mem::take(&mut session.held) {
            if let Holding::Lease(lease) = holding
                && state.locks.holds(number, &lease.resource())
            {
                count(&lease.cache.counters.leases_lost);
            }
            state.locks.leave(number, now);
        }
    }
}

impl Engine {
    /// Under the mutex, by every change: what is being loaded for these keys is older than this change.
    pub(super) fn overtake(&self, state: &mut State, targets: &[Target<'_>], actions: &[Action<'_>]) {
        if !state.locks.has_leases() && state.cooling.0.is_empty() {
            return;
        }
        let now = self.clock.instant();
        for (target, action) in targets.iter().zip(actions) {
            if *action == Action::Keep {
                continue;
            }
            let lease = Resource::Lease(target.cache.id, target.key.into());
            state.cooling.0.remove(&lease);
            if state.locks.overtake(&lease, now) {
                count(&target.cache.counters.leases_overtaken);
            }
        }
    }

    /// As `overtake`, by every clear. What tags a load will have nobody knows: its fill is held against the stamps.
    pub(super) fn overtake_cleared(&self, state: &mut State, caches: &[Arc<Cache>], scope: Scope<'_>) {
        if !state.locks.has_leases() {
            return;
        }
        let now = self.clock.instant();
        for cache in caches {
            let is_covered = |lease: &&Resource| match (scope, lease) {
                (Scope::All, _) => true,
                (Scope::Prefix(prefix), Resource::Lease(_, key)) => key.starts_with(prefix),
                (Scope::Prefix(_) | Scope::Tag(_), _) => false,
            };
            let covered: Vec<Resource> =
                state.locks.leases_of(cache.id).filter(is_covered).cloned().collect();
            for lease in covered {
                if state.locks.overtake(&lease, now) {
                    count(&cache.counters.leases_overtaken);
                }
            }
        }
    }
}

impl Session {
    /// Whether it has anything that others may want, beside a transaction.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn take_lease(&mut self, number: Number) -> Option<Lease> {
        match self.held.remove(&number)? {
            Holding::Lease(lease) => Some(lease),
            Holding::Lock => {
                self.held.insert(number, Holding::Lock);
                None
            }
        }
    }
}

impl Lent {
    /// How much it adds to an answer, roughly.
    fn bytes(&self) -> usize {
        let item = match self {
            Lent::Hit(item, ..) => Some(item),
            Lent::Leased(_, stale) => stale.as_ref(),
            Lent::Busy | Lent::Alone => None,
        };
        16 + item.map_or(0, |item| item.value.len() + 64)
    }

    fn to_wire(&self, now: BootMs) -> Loan<'_> {
        match self {
            Lent::Hit(item, freshness, _) => Loan::Hit(item.to_wire(*freshness, now, Shape::Entry)),
            Lent::Leased(lease, stale) => Loan::Leased {
                lease: *lease,
                stale: stale.as_ref().map(|item| item.to_wire(wire::Freshness::Stale, now, Shape::Entry)),
            },
            Lent::Busy => Loan::Busy,
            Lent::Alone => Loan::Alone,
        }
    }
}
