//! Clears: one stamp each, however many items it covers; and of single items, as long as they are what somebody saw.

use std::sync::Arc;
use std::time::Instant;

use kv_proto::segment::PrefixTableFull;
use kv_proto::wire::{Effect, ErrorKind, Expiry, Response, Scope, Versioned, What, encode_into};
use kv_proto::{Version, limits, tag_slot};

use super::cache::{Cache, count};
use super::change::{Action, Decision, Look};
use super::error::Failure;
use super::item::{Draft, check_key, check_tag};
use super::waiting::Passage;
use super::write::Durable;
use super::{Engine, Session, State};
use crate::store::{COMMIT_OVERHEAD_BYTES, Change, Permit, Scope as ClearScope};

/// Bytes a clear of one cache needs in the log beyond its prefix.
const CLEAR_OVERHEAD_BYTES: usize = 32;

impl Engine {
    pub(crate) fn clear(
        &self,
        session: &mut Session,
        scope: Scope<'_>,
        effect: Effect,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        session.must_be_outside("a clear")?;
        let (caches, stamp, what) = match scope {
            Scope::Everything => (self.all_caches(), ClearScope::All, What::Cleared { effect }),
            Scope::Cache(name) => (vec![self.cache(name)?], ClearScope::All, What::Cleared { effect }),
            Scope::Tag { cache, tag } => {
                check_tag(tag)?;
                let caches = match cache {
                    Some(name) => vec![self.cache(name)?],
                    None => self.all_caches(),
                };
                (caches, ClearScope::Tag(tag_slot(tag)), What::ClearedTag { tag, effect })
            }
            Scope::Prefix { cache, prefix } => {
                if prefix.len() > limits::KEY_BYTES_MAX {
                    return Err(Failure::too_large("prefix", prefix.len(), limits::KEY_BYTES_MAX));
                }
                let stamp = if prefix.is_empty() { ClearScope::All } else { ClearScope::Prefix(prefix) };
                (vec![self.cache(cache)?], stamp, What::ClearedPrefix { prefix, effect })
            }
        };
        let (version, durable) = self.stamp(session, &caches, stamp, effect, what)?;
        encode_into(out, &Response::Written { version });
        Ok(durable)
    }

    /// Makes items gone or stale that still have the versions said: what was written since stays.
    pub(crate) fn clear_versions(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        items: &[Versioned<'_>],
        effect: Effect,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        session.must_be_outside("a clear")?;
        if items.len() > limits::COMMIT_CHECKS_MAX {
            return Err(Failure::too_many("items in a clear", items.len(), limits::COMMIT_CHECKS_MAX));
        }
        items.iter().try_for_each(|item| check_key(item.key))?;
        let targets: Vec<_> = items.iter().map(|item| self.target(cache, item.key, true)).collect();
        let changed = self.change(session, &targets, None, |looks, now| {
            let become_of = |(look, item): (&Look, &Versioned<'_>)| match look.as_deref() {
                Some(current) if current.version == item.version => match effect {
                    Effect::Gone => Action::Remove,
                    Effect::Stale if current.stale => Action::Keep,
                    Effect::Stale => {
                        let mut draft = Draft::again(current);
                        draft.expire(Expiry::Stale, &cache.config, now);
                        Action::Put(draft)
                    }
                },
                Some(_) | None => Action::Keep,
            };
            let actions: Vec<_> = looks.iter().zip(items).map(become_of).collect();
            let changed = actions.iter().filter(|action| action.is_change()).count();
            Ok(Decision { answer: u32::try_from(changed).expect("few"), actions })
        })?;
        encode_into(out, &Response::Committed { version: changed.version, changed: changed.answer });
        Ok(changed.durable)
    }

    fn all_caches(&self) -> Vec<Arc<Cache>> {
        self.caches.load().values().cloned().collect()
    }

    /// Stamps `caches` at one sequence, in log and memory.
    pub(crate) fn stamp(
        &self,
        session: &mut Session,
        caches: &[Arc<Cache>],
        scope: ClearScope<'_>,
        effect: Effect,
        what: What<'_>,
    ) -> Result<(Version, Durable), Failure> {
        let deadline = self.clock.instant() + limits::WRITE_WAIT_MAX;
        self.wait_until_writable(deadline)?;
        self.stamp_by(session, caches, scope, effect, what, deadline)
    }

    /// As `stamp`, also while the engine is not yet writable for others.
    pub(crate) fn stamp_by(
        &self,
        session: &mut Session,
        caches: &[Arc<Cache>],
        scope: ClearScope<'_>,
        effect: Effect,
        what: What<'_>,
        deadline: Instant,
    ) -> Result<(Version, Durable), Failure> {
        let on_disk: Vec<_> = caches.iter().filter(|cache| cache.on_disk()).map(|cache| cache.id).collect();
        let ack = caches.iter().map(|cache| cache.config.durability).max();
        let ack = ack.unwrap_or(kv_proto::wire::Durability::Memory);
        let prefix_bytes = if let ClearScope::Prefix(prefix) = scope { prefix.len() } else { 0 };
        let bytes = COMMIT_OVERHEAD_BYTES + on_disk.len() * (CLEAR_OVERHEAD_BYTES + prefix_bytes);
        let permit: Option<Permit> =
            if on_disk.is_empty() { None } else { Some(self.store.admit(&on_disk, bytes, ack, deadline)?) };

        let mut passage = Passage::of_write(self);
        let needs =
            || caches.iter().flat_map(|cache| self.locking.to_write_plainly(cache.touched(None))).collect();
        let mut state = passage.enter(self.lock(), session, needs, deadline)?;
        while matches!(scope, ClearScope::Prefix(_)) && is_full(&mut state, caches) {
            // Whoever retires clears may himself have to wait for what this one would hold.
            drop(state);
            passage.leave();
            self.store.sweep_now();
            self.tidy_now();
            state = self.lock();
            if is_full(&mut state, caches) && self.prefix_retired.wait_until(&mut state, deadline).timed_out()
            {
                return Err(prefix_table_full());
            }
            state = passage.enter(state, session, needs, deadline)?;
        }
        let version = self.next_sequence(&mut state);
        let changes: Vec<_> = on_disk.iter().map(|&cache| Change::Clear { cache, scope, effect }).collect();
        let logged = permit.map(|permit| self.store.append(permit, version, &changes));
        for cache in caches {
            let memory = state.memory(cache);
            match scope {
                ClearScope::All => {
                    memory.writer.stamp_all(version, effect);
                    if effect == Effect::Gone {
                        memory.side.clear();
                    }
                }
                ClearScope::Tag(slot) => memory.writer.stamp_tag(version, slot, effect),
                ClearScope::Prefix(prefix) => memory
                    .writer
                    .stamp_prefix(version, prefix, effect)
                    .map_err(|PrefixTableFull| prefix_table_full())?,
            }
            memory.writer.publish(version);
            cache.note_stamp(version);
            count(&cache.counters.clears);
        }
        self.control.commit(version);
        self.overtake_cleared(&mut state, caches, scope);
        caches.iter().for_each(|cache| self.tell(version, cache, what));
        Ok((version, logged.filter(|_| ack == kv_proto::wire::Durability::Durable)))
    }
}

/// Whether some cache remembers as many prefix clears as it can.
fn is_full(state: &mut State, caches: &[Arc<Cache>]) -> bool {
    caches.iter().any(|cache| state.memory(cache).writer.prefix_entries().len() >= limits::PREFIX_CLEARS_MAX)
}

fn prefix_table_full() -> Failure {
    Failure {
        retry_after_ms: 1_000,
        ..Failure::new(
            ErrorKind::Unavailable,
            format!(
                "{} prefix clears are still being swept, which is the limit; try again, or clear the whole cache",
                limits::PREFIX_CLEARS_MAX
            ),
        )
    }
}
