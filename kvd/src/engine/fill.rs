//! Fills: what was loaded under a lease is put, unless something newer has happened since the lease was granted.
//!
//! Called by `apply`. A fill is a change like any plain put, by the right of a `Passage`. It must never take place behind a write
//! or a clear of the same key, however late it comes.

use kv_proto::segment::{Freshness, Life};
use kv_proto::wire::{Condition, ErrorKind, Filling, Response, encode_into};
use kv_proto::{BootMs, Version, limits};

use super::cache::count;
use super::change::{Action, Decision, Look, Target, acknowledged_when, check_room};
use super::error::Failure;
use super::item::{Draft, check_put};
use super::lease::Holding;
use super::waiting::Passage;
use super::write::Durable;
use super::{Engine, Session, State};
use crate::txn::{Number, Resource};

impl Engine {
    /// Answers `fill`.
    pub(crate) fn fill(
        &self,
        session: &mut Session,
        fills: &[Filling<'_>],
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        session.must_be_outside("a fill")?;
        if fills.len() > limits::HELD_MAX {
            return Err(Failure::too_many("fills in a request", fills.len(), limits::HELD_MAX));
        }
        fills.iter().try_for_each(|filling| self.check_fill(session, filling))?;
        let mut versions = Vec::with_capacity(fills.len());
        let mut durable = None;
        for (index, filling) in fills.iter().enumerate() {
            match self.fill_one(session, filling) {
                Ok((version, logged)) => {
                    versions.push(version);
                    durable = durable.max(logged);
                }
                Err(failure) => {
                    let rest: Vec<Number> = fills[index..].iter().map(|filling| filling.lease).collect();
                    self.give_back(session, &rest, None);
                    let maybe_applied = failure.maybe_applied || versions.iter().any(Option::is_some);
                    return Err(Failure { maybe_applied, ..failure });
                }
            }
        }
        encode_into(out, &Response::Filled(versions));
        Ok(durable)
    }

    /// What can be said of a fill before any of them is applied.
    fn check_fill(&self, session: &Session, filling: &Filling<'_>) -> Result<(), Failure> {
        if filling.options.condition != Condition::Always {
            return Err(Failure::invalid("a fill has its lease for a condition, and takes no other"));
        }
        check_put(filling.value, &filling.options, self.config.value_bytes_max)?;
        let Some(Holding::Lease(lease)) = session.held.get(&filling.lease) else { return Ok(()) };
        let target = [self.target(&lease.cache, &lease.key, false)];
        acknowledged_when(&target, filling.options.durability)?;
        let draft = Draft::put(filling.value, &filling.options, &lease.cache.config, self.clock.now());
        check_room(&self.lock(), &target, &[Action::Put(draft)])
    }

    /// The version, or `None` when it was refused. The lease ends in any case.
    fn fill_one(
        &self,
        session: &mut Session,
        filling: &Filling<'_>,
    ) -> Result<(Option<Version>, Durable), Failure> {
        let Some(lease) = session.take_lease(filling.lease) else { return Ok((None, None)) };
        let tags = filling.options.tags.iter().map(|tag| kv_proto::tag_slot(tag.0)).collect();
        let right = FillRight { number: filling.lease, granted: lease.granted, tags };
        let target = [self.target(&lease.cache, &lease.key, false)];
        let durability = filling.options.durability;
        let filled =
            self.change_by(Passage::of_fill(self, right), session, &target, durability, |_: &[Look], now| {
                let draft = Draft::put(filling.value, &filling.options, &lease.cache.config, now);
                Ok(Decision { answer: (), actions: vec![Action::Put(draft)] })
            });
        let now = self.clock.instant();
        match filled {
            Ok(changed) => {
                count(&lease.cache.counters.lease_fills);
                Ok((Some(changed.version), changed.durable))
            }
            Err(failure) if failure.kind == ErrorKind::LeaseLost => {
                count(&lease.cache.counters.lease_fills_refused);
                self.lock().locks.leave_to_all(filling.lease, now);
                Ok((None, None))
            }
            Err(failure) => {
                // Nothing is there, so that the next may load it.
                self.lock().locks.leave(filling.lease, now);
                Err(failure)
            }
        }
    }
}

/// The right to put what was loaded, for as long as its lease holds and nothing newer has happened.
pub(super) struct FillRight {
    pub(super) number: Number,
    granted: Version,
    /// Those of the item that is put: a clear by one of them makes it old before it is there.
    tags: Vec<u32>,
}

impl FillRight {
    /// Under the mutex, at the moment of the change.
    pub(super) fn check(&self, state: &State, target: &Target<'_>, now: BootMs) -> Result<(), Failure> {
        let lease = Resource::Lease(target.cache.id, target.key.into());
        let life = Life { version: self.granted, expires: None, stale_for_ms: 0, stale: false };
        let writer = &state.memory_ref(&target.cache).writer;
        let is_newest =
            || writer.verdict(&life, self.tags.iter().copied(), target.key, now) == Freshness::Fresh;
        if state.locks.holds(self.number, &lease) && is_newest() {
            return Ok(());
        }
        Err(Failure::new(ErrorKind::LeaseLost, format!("lease {} does not hold any more", self.number)))
    }
}
