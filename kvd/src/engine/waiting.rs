//! Waiting for locks: in the queue until granted, out of it when the time is up, the caller has gone, or it was rolled back.
//!
//! There is no thread that watches transactions: whoever waits for one holds it to its bounds. Its silence, its life and an
//! unused grant are looked at when they are due, by the first who waits for it, so that nothing is done for transactions
//! that are in nobody's way.

use std::time::{Duration, Instant};

use kv_proto::wire::ErrorKind;
use kv_proto::{BootMs, limits};
use parking_lot::MutexGuard;

use super::cache::Cache;
use super::change::Target;
use super::fill::FillRight;
use super::{Engine, Failure, Session, State};
use crate::txn::{Acquired, Doom, Needs, Number, Park, Parked, Party, PartyKind, Resource};
use crate::waited;

/// Of a longer key only so much is shown.
const KEY_SHOWN_BYTES_MAX: usize = 64;
/// A write that was chosen to break a ring begins anew this often.
const DEADLOCKS_MAX: usize = 64;

/// The right to apply one change: locks that are held while it is decided and applied.
pub(super) struct Passage<'e> {
    engine: &'e Engine,
    held: Held,
    /// The change takes place only while this is so.
    right: Option<FillRight>,
}

enum Held {
    Nothing,
    /// Locks of its own, given back when this is dropped.
    Own(Number),
    /// Those of a transaction, which is checked under the mutex.
    Transaction(Number),
}

impl<'e> Passage<'e> {
    /// For a write outside transactions.
    pub(super) fn of_write(engine: &'e Engine) -> Passage<'e> {
        Passage { engine, held: Held::Nothing, right: None }
    }

    /// For the commit of a transaction that holds what it needs.
    pub(super) fn of_transaction(engine: &'e Engine, number: Number) -> Passage<'e> {
        Passage { engine, held: Held::Transaction(number), right: None }
    }

    /// For what was loaded under a lease: a write that may come too late.
    pub(super) fn of_fill(engine: &'e Engine, right: FillRight) -> Passage<'e> {
        Passage { engine, held: Held::Nothing, right: Some(right) }
    }

    /// Whether the change may be decided without having seen what is there: a transaction's or a fill's may not.
    pub(super) fn may_decide_ahead(&self) -> bool {
        !matches!(self.held, Held::Transaction(_)) && self.right.is_none()
    }

    /// Under the mutex, before each decision: whether a fill still has the right to take place.
    pub(super) fn check(&self, state: &State, targets: &[Target<'_>], now: BootMs) -> Result<(), Failure> {
        match &self.right {
            None => Ok(()),
            Some(right) => targets.iter().try_for_each(|target| right.check(state, target, now)),
        }
    }

    /// The change takes place now: a fill's lease ends, and who waits for it will find the item.
    pub(super) fn spend(&mut self, state: &mut State) {
        if let Some(right) = self.right.take() {
            state.locks.leave_to_all(right.number, self.engine.clock.instant());
        }
    }

    /// Gives back what it holds. Not under the mutex.
    pub(super) fn leave(&mut self) {
        if let Held::Own(number) = std::mem::replace(&mut self.held, Held::Nothing) {
            self.engine.lock().locks.leave(number, self.engine.clock.instant());
        }
    }

    /// Returns with the mutex and with `needs` held, or free and nobody before us in the queue.
    pub(super) fn enter<'s>(
        &mut self,
        mut state: MutexGuard<'s, State>,
        session: &mut Session,
        needs: impl FnOnce() -> Needs,
        deadline: Instant,
    ) -> Result<MutexGuard<'s, State>, Failure>
    where
        'e: 's,
    {
        match self.held {
            Held::Own(_) => Ok(state),
            // The fencing token: whoever was rolled back meanwhile finds it here, whatever it has read or decided.
            Held::Transaction(number) => match state.locks.party(number).map(Party::doom) {
                Some(None) => {
                    let needs = self.engine.locking.at_commit();
                    self.engine.wait_for_locks(state, &mut *session.park, number, &needs, false, deadline)
                }
                Some(Some(doom)) => Err(rolled_back(number, doom)),
                None => Err(ended(number)),
            },
            Held::Nothing if state.locks.is_idle() => Ok(state),
            Held::Nothing => {
                let needs = needs();
                if state.locks.are_free(&needs) {
                    return Ok(state);
                }
                let number = self.engine.next_sequence(&mut state);
                let wake = session.park.unparker().map_err(no_means)?;
                for _ in 0..DEADLOCKS_MAX {
                    let party = Party::new(
                        session.who(),
                        PartyKind::Write,
                        number,
                        self.engine.clock.instant(),
                        wake.clone(),
                    );
                    state.locks.join(number, party);
                    self.held = Held::Own(number);
                    match self.engine.wait_for_locks(
                        state,
                        &mut *session.park,
                        number,
                        &needs,
                        false,
                        deadline,
                    ) {
                        Ok(state) => return Ok(state),
                        Err(failure) if failure.kind == ErrorKind::Deadlock => {
                            // It holds nothing that anybody has seen; it waits again, as old as it is.
                            state = self.engine.lock();
                            state.locks.leave(number, self.engine.clock.instant());
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                Err(Failure::new(
                    ErrorKind::Deadlock,
                    "others kept waiting for each other around this write; try again",
                ))
            }
        }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Engine {
    /// Whether a plain write of this key would have to wait for a transaction just now.
    pub(super) fn is_in_the_way(&self, cache: &Cache, key: &[u8]) -> bool {
        let state = self.lock();
        !state.locks.is_idle()
            && !state.locks.are_free(&self.locking.to_write_plainly(cache.touched(Some(key))))
    }

    /// Takes locks one after the other, waiting where need be; gives the mutex away meanwhile.
    ///
    /// On failure those it got stay with the party, which its caller ends or keeps.
    pub(super) fn wait_for_locks<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        park: &mut dyn Park,
        number: Number,
        needs: &Needs,
        is_back: bool,
        deadline: Instant,
    ) -> Result<MutexGuard<'s, State>, Failure> {
        let began = self.clock.instant();
        for need in needs {
            let now = self.clock.instant();
            match state.locks.acquire(number, need, is_back, now) {
                Acquired::Held => continue,
                Acquired::Full => return Err(too_many_locked()),
                Acquired::Waits => state.locks.break_deadlocks(number, now),
            }
            loop {
                let now = self.clock.instant();
                let again = self.hold_to_bounds(&mut state, number, now);
                if let Some(doom) = state.locks.party(number).and_then(Party::doom) {
                    return Err(rolled_back(number, doom));
                }
                if state.locks.is_granted(number) {
                    break;
                }
                if now >= deadline {
                    let failure = self.waited_in_vain(&state, number, &need.0, now - began);
                    state.locks.give_up(number, now);
                    return Err(failure);
                }
                drop(state);
                let parked = park.park(again.min(deadline));
                waited::for_lock(self.clock.instant() - now);
                state = self.lock();
                if parked == Parked::Gone {
                    state.locks.give_up(number, self.clock.instant());
                    return Err(Failure::unavailable("the client has gone", 0));
                }
            }
        }
        Ok(state)
    }

    /// Ends or suspends those that `number` waits for and that are beyond their bounds; when to look again.
    fn hold_to_bounds(&self, state: &mut State, number: Number, now: Instant) -> Instant {
        let Some(waiting) = state.locks.party(number) else { return now };
        let Some(since) = waiting.waits().map(|(.., since)| *since) else { return now };
        let waiter = waiting.who.clone();
        let blockers = state.locks.waits_for(number);
        // Nobody tells a waiter when one that was busy falls silent, or when another has got the lock: it looks again. The first
        // in the queue does so often; who has more before it has the more time. Who waits for a lease or a name is told.
        let mut again = now
            + match waiting.kind {
                PartyKind::Load | PartyKind::Lock => limits::LEASE_WAIT_MAX,
                PartyKind::Transaction { .. } | PartyKind::Write => {
                    let ahead = u32::try_from(blockers.len()).unwrap_or(1_000).clamp(1, 1_000);
                    limits::GRANT_UNUSED_MAX * ahead
                }
            };
        for blocker in blockers {
            let Some(party) = state.locks.party(blocker) else { continue };
            let due = match Due::of(party, since) {
                None => continue,
                Some(due) if due.at > now => {
                    again = again.min(due.at);
                    continue;
                }
                Some(due) => due.what,
            };
            match due {
                Measure::TakeBack => state.locks.suspend(blocker, now),
                Measure::EndSilent => state.locks.doom(blocker, Doom::Silent { waiter: waiter.clone() }, now),
                Measure::EndOld => state.locks.doom(blocker, Doom::TooOld, now),
                Measure::EndExpired => self.end_expired(state, blocker, now),
            }
        }
        again
    }

    fn waited_in_vain(
        &self,
        state: &State,
        number: Number,
        resource: &Resource,
        waited: Duration,
    ) -> Failure {
        let behind = state.locks.waits_for(number);
        let first = behind.first().and_then(|number| Some((*number, state.locks.party(*number)?)));
        let holder = first.map_or(String::new(), |(number, party)| {
            format!(" behind transaction {number} of {}", party.who)
        });
        let message = format!("waited {} ms for {}{holder}", waited.as_millis(), self.name_of(resource));
        Failure { retry_after_ms: 10, ..Failure::new(ErrorKind::Timeout, message) }
    }

    /// A locked thing, for people.
    pub(super) fn name_of(&self, resource: &Resource) -> String {
        let cache =
            |id| self.cache_by_id(id).map_or("a dropped cache".to_owned(), |cache| cache.name.clone());
        match resource {
            Resource::Database => "the database".to_owned(),
            Resource::Cache(id) => format!("cache {}", cache(*id)),
            Resource::Name(name) => format!("lock {}", crate::units::cut_text(name, KEY_SHOWN_BYTES_MAX)),
            Resource::Key(id, key) | Resource::Lease(id, key) => {
                let shown = &key[..key.len().min(KEY_SHOWN_BYTES_MAX)];
                let rest = if shown.len() < key.len() { "..." } else { "" };
                format!("key {}{rest} of cache {}", shown.escape_ascii(), cache(*id))
            }
        }
    }
}

/// What has to be done to a party that somebody waits for, and when.
struct Due {
    at: Instant,
    what: Measure,
}

enum Measure {
    TakeBack,
    EndSilent,
    EndOld,
    EndExpired,
}

impl Due {
    /// `waited_since`: when the first of those who ask began to wait.
    fn of(party: &Party, waited_since: Instant) -> Option<Due> {
        match party.kind {
            PartyKind::Transaction { .. } => {}
            PartyKind::Write => return None,
            // Its time begins with the grant; who waits ahead of us is in nobody's way but the holder's.
            PartyKind::Load | PartyKind::Lock if party.waits().is_some() => return None,
            PartyKind::Load | PartyKind::Lock => {
                return Some(Due { at: party.ends, what: Measure::EndExpired });
            }
        }
        let old = Due { at: party.ends, what: Measure::EndOld };
        // While it waits itself, or is being served, its silence is ours.
        if party.waits().is_some() {
            return Some(old);
        }
        if party.is_busy {
            return None;
        }
        let quiet = party.quiet_since.max(waited_since);
        let silent = if party.requests == 0 {
            Due { at: quiet + limits::GRANT_UNUSED_MAX, what: Measure::TakeBack }
        } else {
            Due { at: quiet + limits::TRANSACTION_SILENCE_MAX, what: Measure::EndSilent }
        };
        Some(if old.at < silent.at { old } else { silent })
    }
}

/// The failure of a party that others rolled back.
pub(super) fn rolled_back(number: Number, doom: &Doom) -> Failure {
    Failure::new(doom.kind(), format!("transaction {number} was rolled back: {doom}; begin anew"))
}

/// The failure of a transaction that is not there.
pub(super) fn ended(number: Number) -> Failure {
    Failure::new(
        ErrorKind::LeaseLost,
        format!("transaction {number} is not open on this connection; begin anew"),
    )
}

pub(super) fn too_many_locked() -> Failure {
    let message = format!("{} things are locked, which is the limit; try again", limits::LOCKS_MAX);
    Failure::unavailable(message, 100)
}

pub(super) fn no_means(cause: std::io::Error) -> Failure {
    Failure::unavailable(format!("nothing to wait with: {cause}"), 100)
}
