//! The writes: each says what it looks at and what it decides; `change` does the rest.

use std::borrow::Cow;
use std::sync::Arc;

use kv_proto::wire::{
    self, Check, Condition, Durability, Expect, Expiry, PutOptions, Response, Sliding, Write, encode_into,
};
use kv_proto::{BootMs, limits};

use super::cache::{Cache, count};
use super::change::{Action, Changed, Decision, Look, Target};
use super::error::Failure;
use super::item::{Current, Draft, Shape, check_key, check_put, check_ttl};
use super::{Engine, Session};
use crate::store::LogNumber;

/// What a write tells its caller to wait for before answering.
pub(crate) type Durable = Option<LogNumber>;

impl Engine {
    pub(crate) fn put(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        value: &[u8],
        options: &PutOptions<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        check_key(key)?;
        check_put(value, options, self.config.value_bytes_max)?;
        let look = options.condition != Condition::Always;
        let changed =
            self.change(session, &[self.target(cache, key, look)], options.durability, |looks, now| {
                let there = looks[0].as_ref().map(|item| item.version);
                let refused = !holds(options.condition, there);
                let action = if refused {
                    Action::Keep
                } else {
                    Action::Put(Draft::put(value, options, &cache.config, now))
                };
                Ok(Decision { answer: refused.then_some(there), actions: vec![action] })
            })?;
        if changed.answer.is_some() {
            count(&cache.counters.conditions_refused);
        }
        let response = match changed.answer {
            Some(version) => Response::Refused { version },
            None => Response::Written { version: changed.version },
        };
        encode_into(out, &response);
        Ok(changed.durable)
    }

    pub(crate) fn expire(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        expiry: Expiry,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        check_expiry(expiry)?;
        self.change_one(session, cache, key, absent(expiry), out, |item, now| {
            let mut draft = Draft::again(item);
            if draft.expire(expiry, &cache.config, now) { Action::Put(draft) } else { Action::Remove }
        })
    }

    pub(crate) fn delete(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        self.change_one(session, cache, key, Action::KeepAbsent, out, |_, _| Action::Remove)
    }

    /// A change of one existing item: `Written`, or `Missing` and `absent`.
    fn change_one(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        absent: Action<'static>,
        out: &mut Vec<u8>,
        act: impl Fn(&Current, BootMs) -> Action<'static>,
    ) -> Result<Durable, Failure> {
        check_key(key)?;
        let changed = self.change(session, &[self.target(cache, key, true)], None, |looks, now| {
            let action = looks[0].as_ref().map_or(absent.clone(), |item| act(item, now));
            Ok(Decision { answer: looks[0].is_some(), actions: vec![action] })
        })?;
        let response =
            if changed.answer { Response::Written { version: changed.version } } else { Response::Missing };
        encode_into(out, &response);
        Ok(changed.durable)
    }

    pub(crate) fn take(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        check_key(key)?;
        let changed = self.change(session, &[self.target(cache, key, true)], None, |looks, _| {
            let action = if looks[0].is_some() { Action::Remove } else { Action::KeepAbsent };
            Ok(Decision { answer: looks[0].clone(), actions: vec![action] })
        })?;
        match &changed.answer {
            Some(item) => {
                encode_into(
                    out,
                    &Response::Item(item.to_wire(wire::Freshness::Fresh, self.clock.now(), Shape::Value)),
                );
            }
            None => encode_into(out, &Response::Missing),
        }
        Ok(changed.durable)
    }

    pub(crate) fn increment(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        step: Step,
        durability: Option<Durability>,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        check_key(key)?;
        if let Some(ttl_ms) = step.ttl_ms {
            check_ttl("ttl", ttl_ms)?;
        }
        let options = PutOptions { ttl_ms: step.ttl_ms, ..PutOptions::default() };
        let changed = self.change(session, &[self.target(cache, key, true)], durability, |looks, now| {
            let (value, mut draft) = match &looks[0] {
                Some(item) => (add(&item.value, step.by)?, Draft::again(item)),
                None => (step.initial, Draft::put(&[], &options, &cache.config, now)),
            };
            draft.value = Cow::Owned(value.to_string().into_bytes());
            Ok(Decision { answer: value, actions: vec![Action::Put(draft)] })
        })?;
        encode_into(out, &Response::Counter { value: changed.answer, version: changed.version });
        Ok(changed.durable)
    }

    /// A sliding `get`: answers like `get`, and extends the life if little of it is left.
    pub(crate) fn get_sliding(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        sliding: Sliding,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        check_key(key)?;
        check_ttl("sliding ttl", sliding.ttl_ms)?;
        self.get(session, cache, key, shape, out)?;
        if session.transaction.is_none() && self.is_in_the_way(cache, key) {
            // A read waits for nobody: the next one extends.
            return Ok(None);
        }
        let changed = self.change(session, &[self.target(cache, key, true)], None, |looks, now| {
            let action = match &looks[0] {
                Some(item) if self.slides(cache, key, item, sliding, now) => {
                    let mut draft = Draft::again(item);
                    draft.expire(Expiry::After(sliding.ttl_ms), &cache.config, now);
                    Action::Put(draft)
                }
                Some(_) | None => Action::Keep,
            };
            Ok(Decision { answer: (), actions: vec![action] })
        })?;
        Ok(changed.durable)
    }

    fn slides(&self, cache: &Cache, key: &[u8], item: &Current, sliding: Sliding, now: BootMs) -> bool {
        let fresh = self.freshness(cache, key, item) == kv_proto::segment::Freshness::Fresh;
        let left = item.expires.map(|expires| expires.saturating_sub(now));
        fresh && left.is_some_and(|left| (left as i128) < i128::from(sliding.below_ms))
    }

    pub(crate) fn commit(
        &self,
        session: &mut Session,
        checks: &[Check<'_>],
        writes: &[Write<'_>],
        durability: Option<Durability>,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        self.check_commit(checks, writes)?;
        let plan = Plan::new(self, checks, writes)?;
        let changed: Changed<Result<u32, (u32, Option<u64>)>> =
            self.change(session, &plan.targets, plan.durability(durability, writes), |looks, now| {
                Ok(match plan.first_conflict(checks, writes, looks) {
                    Some(conflict) => {
                        let actions = plan.targets.iter().map(|_| Action::Keep).collect();
                        Decision { answer: Err(conflict), actions }
                    }
                    None => plan.run(writes, looks, now),
                })
            })?;
        let response = match changed.answer {
            Ok(count) => Response::Committed { version: changed.version, changed: count },
            Err((index, version)) => Response::Conflict { index, version },
        };
        encode_into(out, &response);
        Ok(changed.durable)
    }

    fn check_commit(&self, checks: &[Check<'_>], writes: &[Write<'_>]) -> Result<(), Failure> {
        if checks.len() > limits::COMMIT_CHECKS_MAX {
            return Err(Failure::too_many("checks in a commit", checks.len(), limits::COMMIT_CHECKS_MAX));
        }
        if writes.len() > limits::COMMIT_WRITES_MAX {
            return Err(Failure::too_many("writes in a commit", writes.len(), limits::COMMIT_WRITES_MAX));
        }
        let mut bytes = 0;
        for check in checks {
            check_key(check.key)?;
        }
        for write in writes {
            check_key(write_key(write).1)?;
            match write {
                Write::Put { key, value, options, .. } => {
                    check_put(value, options, self.config.value_bytes_max)?;
                    bytes += key.len() + value.len();
                }
                Write::Expire { expiry, .. } => check_expiry(*expiry)?,
                Write::Delete { .. } => {}
            }
        }
        if writes.len() > 1 && bytes > limits::COMMIT_BYTES_MAX {
            return Err(Failure::too_large("commit", bytes, limits::COMMIT_BYTES_MAX));
        }
        Ok(())
    }
}

/// What `increment` does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) by: i64,
    pub(crate) initial: i64,
    pub(crate) ttl_ms: Option<u64>,
}

/// A commit with its keys made distinct: each check and write knows its target.
struct Plan<'a> {
    targets: Vec<Target<'a>>,
    checks: Vec<usize>,
    writes: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(engine: &Engine, checks: &[Check<'a>], writes: &[Write<'a>]) -> Result<Plan<'a>, Failure> {
        let mut plan = Plan { targets: Vec::new(), checks: Vec::new(), writes: Vec::new() };
        let mut places = std::collections::HashMap::new();
        let created: Vec<&str> =
            writes.iter().filter(|write| creates(write)).map(|write| write_key(write).0).collect();
        let cache_of = |name: &str| {
            // A cache that the same commit creates may be checked before.
            if created.contains(&name) { engine.cache_for_writing(name) } else { engine.cache(name) }
        };
        for check in checks {
            let cache = cache_of(check.cache)?;
            let place = plan.place(engine, &mut places, cache, check.key, true);
            plan.checks.push(place);
        }
        for write in writes {
            let (name, key, look) = write_key(write);
            let cache = cache_of(name)?;
            let place = plan.place(engine, &mut places, cache, key, look);
            plan.writes.push(place);
        }
        Ok(plan)
    }

    fn place(
        &mut self,
        engine: &Engine,
        places: &mut std::collections::HashMap<(u32, &'a [u8]), usize>,
        cache: Arc<Cache>,
        key: &'a [u8],
        look: bool,
    ) -> usize {
        let place = *places.entry((cache.id, key)).or_insert_with(|| {
            self.targets.push(engine.target(&cache, key, false));
            self.targets.len() - 1
        });
        self.targets[place].look |= look;
        place
    }

    /// The strongest wish of the commit and its puts.
    fn durability(&self, asked: Option<Durability>, writes: &[Write<'_>]) -> Option<Durability> {
        let of_puts = writes.iter().filter_map(|write| match write {
            Write::Put { options, .. } => options.durability,
            Write::Expire { .. } | Write::Delete { .. } => None,
        });
        asked.into_iter().chain(of_puts).max()
    }

    fn first_conflict(
        &self,
        checks: &[Check<'_>],
        writes: &[Write<'_>],
        looks: &[Look],
    ) -> Option<(u32, Option<u64>)> {
        let there = |place: usize| looks[place].as_ref().map(|item| item.version);
        for (index, (check, &place)) in checks.iter().zip(&self.checks).enumerate() {
            let holds = match check.expect {
                Expect::Absent => there(place).is_none(),
                Expect::Version(version) => there(place) == Some(version),
            };
            if !holds {
                return Some((index as u32, there(place)));
            }
        }
        let conditions = writes.iter().zip(&self.writes).filter_map(|(write, &place)| match write {
            Write::Put { options, .. } if options.condition != Condition::Always => {
                Some((options.condition, place))
            }
            Write::Put { .. } | Write::Expire { .. } | Write::Delete { .. } => None,
        });
        for (index, (condition, place)) in conditions.enumerate() {
            if !holds(condition, there(place)) {
                return Some(((checks.len() + index) as u32, there(place)));
            }
        }
        None
    }

    /// Runs the writes in order over what is there, later ones over earlier ones.
    fn run(
        &self,
        writes: &[Write<'a>],
        looks: &[Look],
        now: BootMs,
    ) -> Decision<'a, Result<u32, (u32, Option<u64>)>> {
        let mut actions: Vec<Action<'a>> = self.targets.iter().map(|_| Action::Keep).collect();
        let mut changed = 0;
        for (write, &place) in writes.iter().zip(&self.writes) {
            let config = &self.targets[place].cache.config;
            let action = match write {
                Write::Put { value, options, .. } => {
                    Some(Action::Put(Draft::put(value, options, config, now)))
                }
                Write::Delete { .. } => running(&actions[place], &looks[place]).map(|_| Action::Remove),
                Write::Expire { expiry, .. } => running(&actions[place], &looks[place]).map(|mut draft| {
                    if draft.expire(*expiry, config, now) { Action::Put(draft) } else { Action::Remove }
                }),
            };
            match action {
                Some(action) => {
                    actions[place] = action;
                    changed += 1;
                }
                None if actions[place] == Action::Keep => actions[place] = absent_after(write),
                None => {}
            }
        }
        Decision { answer: Ok(changed), actions }
    }
}

/// The item as the writes so far would leave it.
fn running<'a>(action: &Action<'a>, look: &Look) -> Option<Draft<'a>> {
    match action {
        Action::Keep => look.as_deref().map(Draft::again),
        Action::Put(draft) => Some(draft.clone()),
        Action::KeepAbsent | Action::Remove => None,
    }
}

/// What an `expire` does where nothing is: one that takes an item away keeps away, too, what is being loaded.
fn absent(expiry: Expiry) -> Action<'static> {
    match expiry {
        Expiry::Now | Expiry::Stale => Action::KeepAbsent,
        Expiry::After(_) | Expiry::Never => Action::Keep,
    }
}

fn absent_after(write: &Write<'_>) -> Action<'static> {
    match write {
        Write::Delete { .. } => Action::KeepAbsent,
        Write::Expire { expiry, .. } => absent(*expiry),
        Write::Put { .. } => Action::Keep,
    }
}

/// Cache, key, and whether the write depends on what is there.
fn write_key<'a>(write: &Write<'a>) -> (&'a str, &'a [u8], bool) {
    match write {
        Write::Put { cache, key, options, .. } => (cache, key, options.condition != Condition::Always),
        Write::Expire { cache, key, .. } | Write::Delete { cache, key } => (cache, key, true),
    }
}

fn creates(write: &Write<'_>) -> bool {
    matches!(write, Write::Put { .. })
}

fn holds(condition: Condition, there: Option<u64>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::IfAbsent => there.is_none(),
        Condition::IfVersion(version) => there == Some(version),
    }
}

fn check_expiry(expiry: Expiry) -> Result<(), Failure> {
    match expiry {
        Expiry::After(ttl_ms) => check_ttl("ttl", ttl_ms),
        Expiry::Never | Expiry::Now | Expiry::Stale => Ok(()),
    }
}

fn add(value: &[u8], by: i64) -> Result<i64, Failure> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= 20);
    let Some(number) = text.and_then(|text| text.parse::<i64>().ok()) else {
        return Err(Failure::invalid(format!(
            "value of {} bytes is not a decimal 64-bit integer",
            value.len()
        )));
    };
    number.checked_add(by).ok_or_else(|| Failure::invalid(format!("{number} + {by} does not fit 64 bits")))
}
