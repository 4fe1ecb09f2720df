//! Named locks: a name means what the processes of this host agree on, and one connection at a time has it.
//!
//! Called by `apply`. They stand in the table of `txn` beside leases and the locks of transactions, so that one graph finds who
//! would wait for ever. The daemon never looks at what a lock guards: the fence is for whoever does.

use std::time::Duration;

use kv_proto::limits;
use kv_proto::wire::{ErrorKind, Response, encode_into};

use super::error::Failure;
use super::lease::{Holding, Terms};
use super::{Engine, Session, State};
use crate::txn::{Doom, Mode, Number, Party, PartyKind, Resource};

impl Engine {
    /// Answers `lock`.
    pub(crate) fn lock_name(
        &self,
        session: &mut Session,
        name: &str,
        terms: Terms<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        session.must_be_outside("a named lock")?;
        check_name(name)?;
        let holds = self.believe(session, terms.holds)?;
        let wait = Duration::from_millis(terms.wait_ms.into()).min(limits::LEASE_WAIT_MAX);
        let life = Duration::from_millis(terms.life_ms.into()).min(limits::NAMED_LOCK_LIFE_MAX);
        let lock = Resource::Name(name.into());
        let mut state = self.lock();
        let now = self.clock.instant();
        self.end_if_hung(&mut state, &lock, now);
        let is_free = state.locks.are_free(&[(lock.clone(), Mode::Exclusive)]);
        if !is_free && (wait.is_zero() || holds.in_transaction) {
            encode_into(out, &Response::Busy { holder: &holder_of(&state, &lock) });
            return Ok(());
        }
        if !is_free && let Some(ring) = state.locks.ring_through(&lock, &holds.parties) {
            return Err(self.deadlock(&state, &lock, &ring));
        }
        let fence = self.enlist(&mut state, session, PartyKind::Lock, life, &holds.parties)?;
        let needs = vec![(lock.clone(), Mode::Exclusive)];
        match self.wait_for_locks(state, &mut *session.park, fence, &needs, false, now + wait) {
            Ok(_) => {
                session.held.insert(fence, Holding::Lock);
                encode_into(out, &Response::Locked { fence });
                Ok(())
            }
            Err(failure) => {
                let mut state = self.lock();
                let holder = holder_of(&state, &lock);
                let doom = state.locks.party(fence).and_then(Party::doom).cloned();
                state.locks.leave(fence, self.clock.instant());
                match doom {
                    // It got the lock and lost it again before this thread woke.
                    Some(doom) => Err(lost(fence, Some(&doom))),
                    None if failure.kind == ErrorKind::Timeout => {
                        encode_into(out, &Response::Busy { holder: &holder });
                        Ok(())
                    }
                    None => Err(failure),
                }
            }
        }
    }

    fn deadlock(&self, state: &State, lock: &Resource, ring: &[Number]) -> Failure {
        let waits = |number: &Number| {
            state
                .locks
                .party(*number)
                .filter(|party| party.waits().is_some())
                .map(|party| party.who.to_string())
        };
        let waiting: Vec<String> = ring.iter().filter_map(waits).collect();
        let why = if waiting.is_empty() {
            "this caller has it itself".to_owned()
        } else {
            format!("{} waits for what this caller holds", waiting.join(", and "))
        };
        let message = format!("waiting for {} would never end: {why}", self.name_of(lock));
        Failure::new(ErrorKind::Deadlock, message)
    }

    /// Answers `renew_lock`.
    pub(crate) fn renew_lock(
        &self,
        session: &Session,
        fence: Number,
        lock_ms: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let life = Duration::from_millis(lock_ms.into()).min(limits::NAMED_LOCK_LIFE_MAX);
        let mut state = self.lock();
        if !session.has_locked(fence) {
            return Err(lost(fence, None));
        }
        let party = state.locks.party_mut(fence).ok_or_else(|| lost(fence, None))?;
        if let Some(doom) = party.doom() {
            return Err(lost(fence, Some(doom)));
        }
        party.ends = self.clock.instant() + life;
        encode_into(out, &Response::Done);
        Ok(())
    }

    /// Answers `unlock`.
    pub(crate) fn unlock(
        &self,
        session: &mut Session,
        fence: Number,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if !session.has_locked(fence) {
            encode_into(out, &Response::Missing);
            return Ok(());
        }
        session.held.remove(&fence);
        let mut state = self.lock();
        let doom = state.locks.party(fence).and_then(Party::doom).cloned();
        state.locks.leave(fence, self.clock.instant());
        if let Some(doom) = doom {
            return Err(lost(fence, Some(&doom)));
        }
        encode_into(out, &Response::Done);
        Ok(())
    }
}

impl Session {
    fn has_locked(&self, fence: Number) -> bool {
        matches!(self.held.get(&fence), Some(Holding::Lock))
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let limit = limits::KEY_BYTES_MAX;
    match name.len() {
        0 => Err(Failure::invalid(format!("the name of the lock is empty; names have 1 to {limit} bytes"))),
        bytes if bytes > limit => Err(Failure::too_large("name of the lock", bytes, limit)),
        _ => Ok(()),
    }
}

/// For people; empty when it was given back at this moment.
fn holder_of(state: &State, lock: &Resource) -> String {
    let holder = state.locks.holder(lock).and_then(|holder| state.locks.party(holder));
    holder.map_or(String::new(), |party| party.who.to_string())
}

fn lost(fence: Number, doom: Option<&Doom>) -> Failure {
    let why = doom.map_or("it is not held by this connection".to_owned(), Doom::to_string);
    Failure::new(ErrorKind::LeaseLost, format!("lock {fence} is lost: {why}"))
}
