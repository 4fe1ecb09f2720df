//! How every change happens: look, decide, log, publish. One path for a plain put and for a commit over many caches.
//!
//! The engine's mutex is held while one change is decided and applied, never over disk or socket: what has to be
//! read from disk is read outside and used only if the key's moment is unchanged when the mutex is held again.

use std::sync::Arc;
use std::time::Instant;

use kv_proto::segment::{Backed, Found, Freshness, Mark, NewItem};
use kv_proto::wire::Durability;
use kv_proto::{BootMs, Version, limits};
use parking_lot::MutexGuard;

use super::cache::{Cache, Memory, Moment, count};
use super::error::Failure;
use super::item::{Current, Draft};
use super::waiting::Passage;
use super::{Engine, Session, State};
use crate::store::{COMMIT_OVERHEAD_BYTES, Change, ItemFields, LogNumber, PUT_OVERHEAD_BYTES, Permit};
use crate::txn::Touched;

/// How often a change is decided anew because somebody was faster, before it gives up with `Conflict`.
const TRIES_MAX: usize = 64;

/// A key that a change reads or writes.
pub(crate) struct Target<'a> {
    pub(crate) cache: Arc<Cache>,
    pub(crate) key: &'a [u8],
    pub(crate) hash: u64,
    /// Whether the decision depends on what is there.
    pub(crate) look: bool,
    /// What was there at a moment: still so if that is the key's moment.
    pub(crate) known: Option<(Moment, Look)>,
}

impl Target<'_> {
    pub(crate) fn touched(&self) -> Touched<'_> {
        self.cache.touched(Some(self.key))
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        format!("key {} of cache {}", self.key.escape_ascii(), self.cache.name)
    }
}

/// What is there, fresh or stale; `None`: nothing, or gone.
pub(crate) type Look = Option<Arc<Current>>;

/// What becomes of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action<'a> {
    Keep,
    /// It is not there, and shall not be: what somebody loads for it meanwhile is older than this.
    KeepAbsent,
    Put(Draft<'a>),
    Remove,
}

impl Action<'_> {
    /// Whether it takes a sequence of its own.
    pub(crate) fn is_change(&self) -> bool {
        match self {
            Action::Keep | Action::KeepAbsent => false,
            Action::Put(_) | Action::Remove => true,
        }
    }
}

/// A decision: what to answer and, target by target, what to do.
pub(crate) struct Decision<'a, T> {
    pub(crate) answer: T,
    pub(crate) actions: Vec<Action<'a>>,
}

/// A change that took place, or that found nothing to do.
pub(crate) struct Changed<T> {
    pub(crate) answer: T,
    /// The sequence, if anything was written.
    pub(crate) version: Version,
    /// What to wait for before telling the client, if it asked for that.
    pub(crate) durable: Option<LogNumber>,
}

/// What was read from disk, and at which moment.
pub(super) struct Fetched {
    pub(super) moment: Moment,
    pub(super) look: Look,
}

impl Engine {
    /// The target for a key of a cache.
    pub(crate) fn target<'a>(&self, cache: &Arc<Cache>, key: &'a [u8], look: bool) -> Target<'a> {
        Target { cache: Arc::clone(cache), key, hash: cache.view.load().reader.hash(key), look, known: None }
    }

    /// Looks at `targets`, lets `decide` decide, and applies the decision at one sequence; inside a transaction, into that.
    ///
    /// `decide` may run several times; it gets what is there for each target that asked to look, and the time.
    pub(crate) fn change<'a, T>(
        &self,
        session: &mut Session,
        targets: &[Target<'a>],
        durability: Option<Durability>,
        decide: impl FnMut(&[Look], BootMs) -> Result<Decision<'a, T>, Failure>,
    ) -> Result<Changed<T>, Failure> {
        if session.transaction.is_some() {
            acknowledged_when(targets, durability)?;
            return self.change_inside(session, targets, durability, decide);
        }
        self.change_by(Passage::of_write(self), session, targets, durability, decide)
    }

    /// As `change`, by the right of `passage`.
    pub(super) fn change_by<'a, T>(
        &self,
        mut passage: Passage<'_>,
        session: &mut Session,
        targets: &[Target<'a>],
        durability: Option<Durability>,
        mut decide: impl FnMut(&[Look], BootMs) -> Result<Decision<'a, T>, Failure>,
    ) -> Result<Changed<T>, Failure> {
        let deadline = self.clock.instant() + limits::WRITE_WAIT_MAX;
        let ack = acknowledged_when(targets, durability)?;
        self.wait_until_writable(deadline)?;
        let mut fetched: Vec<Option<Fetched>> = targets.iter().map(|_| None).collect();
        let mut permit: Option<Permit> = None;
        let mut ahead = None;
        if passage.may_decide_ahead() && targets.iter().all(|target| !target.look) {
            // What is there does not matter, so room is asked for before the mutex is taken, instead of taking it twice.
            let now = self.clock.now();
            let decision = decide(&targets.iter().map(|_| None).collect::<Vec<_>>(), now)?;
            permit = self.admit(targets, &decision.actions, ack, deadline)?;
            ahead = Some((now, decision));
        }
        for _ in 0..TRIES_MAX {
            let needs = || {
                targets.iter().flat_map(|target| self.locking.to_write_plainly(target.touched())).collect()
            };
            let mut state = passage.enter(self.lock(), session, needs, deadline)?;
            let now = self.clock.now();
            passage.check(&state, targets, now)?;
            let decision = match ahead.take() {
                Some((at, decision)) if at == now => decision,
                Some(_) | None => match look_in_memory(&mut state, targets, &fetched, now) {
                    Ok(looks) => decide(&looks, now)?,
                    Err(missing) => {
                        drop(state);
                        for index in missing {
                            fetched[index] = Some(self.fetch(&targets[index])?);
                        }
                        continue;
                    }
                },
            };
            if permit.as_ref().map_or(0, Permit::bytes) < bytes_to_log(targets, &decision.actions) {
                drop(state);
                permit = self.admit(targets, &decision.actions, ack, deadline)?;
                continue;
            }
            if !decision.actions.iter().any(Action::is_change) {
                self.overtake(&mut state, targets, &decision.actions);
                return Ok(Changed { answer: decision.answer, version: 0, durable: None });
            }
            check_room(&state, targets, &decision.actions)?;
            passage.spend(&mut state);
            let (version, logged) = self.carry_out(&mut state, targets, &decision.actions, permit, now);
            let durable = logged.filter(|_| ack == Durability::Durable);
            return Ok(Changed { answer: decision.answer, version, durable });
        }
        Err(Failure::new(
            kv_proto::wire::ErrorKind::Conflict,
            format!("others changed the same keys {TRIES_MAX} times in a row; try again"),
        ))
    }

    /// Reads a target from disk, outside the mutex, and remembers the moment before it did.
    pub(super) fn fetch(&self, target: &Target<'_>) -> Result<Fetched, Failure> {
        let moment = target.cache.moment(target.hash);
        let look = self.read_disk(&target.cache, target.key, self.clock.now())?.map(Arc::new);
        Ok(Fetched { moment, look })
    }

    /// What the disk holds for a key, unless it is gone; stale ones included.
    pub(crate) fn read_disk(
        &self,
        cache: &Cache,
        key: &[u8],
        now: BootMs,
    ) -> Result<Option<Current>, Failure> {
        if !cache.on_disk() {
            return Ok(None);
        }
        let began = self.clock.instant();
        let stored = self.store.read(cache.id, key);
        crate::waited::for_disk(self.clock.instant() - began);
        let Some(stored) = stored? else { return Ok(None) };
        let mut current = Current::from_store(&stored.view());
        // Writes down in the item itself that a clear has made it stale: only a put ends that, whatever else is changed.
        let freshness = self.freshness_at(cache, key, &current, now);
        current.stale |= freshness == Freshness::Stale && !current.is_expired(now);
        Ok((freshness != Freshness::Gone).then_some(current))
    }

    /// Whether an item outside the segment is fresh, stale or gone now.
    pub(crate) fn freshness(&self, cache: &Cache, key: &[u8], item: &Current) -> Freshness {
        self.freshness_at(cache, key, item, self.clock.now())
    }

    pub(crate) fn freshness_at(&self, cache: &Cache, key: &[u8], item: &Current, now: BootMs) -> Freshness {
        cache.view.load().reader.verdict(&item.life(), item.tag_slots(), key, now)
    }

    /// Asks the store for the room that `actions` take; none for those that are not logged.
    fn admit(
        &self,
        targets: &[Target<'_>],
        actions: &[Action<'_>],
        ack: Durability,
        deadline: Instant,
    ) -> Result<Option<Permit>, Failure> {
        let bytes = bytes_to_log(targets, actions);
        if bytes == 0 {
            return Ok(None);
        }
        let mut caches: Vec<_> = targets.iter().filter(|t| t.cache.on_disk()).map(|t| t.cache.id).collect();
        caches.sort_unstable();
        caches.dedup();
        Ok(Some(self.store.admit(&caches, bytes, ack, deadline)?))
    }

    /// Logs and publishes a decision under the next sequence.
    fn carry_out(
        &self,
        state: &mut MutexGuard<'_, State>,
        targets: &[Target<'_>],
        actions: &[Action<'_>],
        permit: Option<Permit>,
        now: BootMs,
    ) -> (Version, Option<LogNumber>) {
        let version = self.next_sequence(state);
        let logged = permit.and_then(|permit| self.log(targets, actions, permit, version));
        for (target, action) in targets.iter().zip(actions) {
            if action.is_change() {
                stage(state.memory(&target.cache), target, action, version, now);
                target.cache.note_change(target.hash, version);
            }
        }
        for (index, target) in targets.iter().enumerate() {
            // Publishing a segment twice would be harmless; looking back over a few targets is cheaper than a set.
            if targets[..index].iter().all(|earlier| earlier.cache.id != target.cache.id) {
                state.memory(&target.cache).writer.publish(version);
            }
        }
        self.control.commit(version);
        self.overtake(state, targets, actions);
        self.tell_changes(version, targets, actions);
        (version, logged)
    }

    /// In the log before the first slot is published.
    fn log(
        &self,
        targets: &[Target<'_>],
        actions: &[Action<'_>],
        permit: Permit,
        version: Version,
    ) -> Option<LogNumber> {
        let tags: Vec<Vec<&[u8]>> = actions.iter().map(tags_of).collect();
        let changes: Vec<Change<'_>> = targets
            .iter()
            .zip(actions)
            .zip(&tags)
            .filter(|((target, _), _)| target.cache.on_disk())
            .filter_map(|((target, action), tags)| to_log(target, action, tags, version))
            .collect();
        (!changes.is_empty()).then(|| self.store.append(permit, version, &changes))
    }
}

fn tags_of<'t>(action: &'t Action<'_>) -> Vec<&'t [u8]> {
    match action {
        Action::Put(draft) => draft.tags.iter().map(|tag| &**tag).collect(),
        Action::Keep | Action::KeepAbsent | Action::Remove => Vec::new(),
    }
}

fn to_log<'t>(
    target: &Target<'t>,
    action: &'t Action<'_>,
    tags: &'t [&'t [u8]],
    version: Version,
) -> Option<Change<'t>> {
    let (cache, key) = (target.cache.id, target.key);
    match action {
        Action::Keep | Action::KeepAbsent => None,
        Action::Remove => Some(Change::Delete { cache, key }),
        Action::Put(draft) => Some(Change::Put {
            cache,
            key,
            item: ItemFields {
                version,
                created: draft.created,
                expires: draft.expires,
                stale_for_ms: draft.stale_for_ms,
                load_cost_ms: draft.load_cost_ms,
                stale: draft.stale,
                tags,
                value: &draft.value,
            },
        }),
    }
}

/// Looks at every target that asks for it; `Err`: those whose answer is on disk and not yet known.
pub(super) fn look_in_memory(
    state: &mut State,
    targets: &[Target<'_>],
    fetched: &[Option<Fetched>],
    now: BootMs,
) -> Result<Vec<Look>, Vec<usize>> {
    let mut missing = Vec::new();
    let mut looks = Vec::with_capacity(targets.len());
    for (index, (target, fetched)) in targets.iter().zip(fetched).enumerate() {
        let mut look = None;
        let unchanged = |known: &&(Moment, Look)| known.0 == target.cache.moment(target.hash);
        if let Some((_, known)) = target.known.as_ref().filter(unchanged) {
            look = known.clone();
        } else if target.look {
            match look_at(state.memory(&target.cache), target, now) {
                Ok(found) => look = found,
                Err(OnDisk) => match fetched {
                    Some(read) if read.moment == target.cache.moment(target.hash) => look = read.look.clone(),
                    _ => missing.push(index),
                },
            }
        }
        looks.push(look);
    }
    if missing.is_empty() { Ok(looks) } else { Err(missing) }
}

/// The memory tier does not know: the overlay and the tree do.
pub(crate) struct OnDisk;

/// What the memory tier says of a target. Needs the engine's mutex.
pub(crate) fn look_at(memory: &mut Memory, target: &Target<'_>, now: BootMs) -> Result<Look, OnDisk> {
    let mut buffer = Vec::new();
    match memory.writer.find(target.hash, target.key, now, &mut buffer) {
        Found::Item(meta) if meta.freshness == Freshness::Gone => Ok(None),
        Found::Item(meta) => {
            let mut current = Current::from_segment(&meta, &buffer);
            current.stale |= meta.freshness == Freshness::Stale && !current.is_expired(now);
            Ok(Some(Arc::new(current)))
        }
        Found::AskMark => Ok(memory.side_item(target.key, now)),
        Found::Absent { known: true } => Ok(None),
        Found::Absent { known: false } | Found::DiskMark => {
            if target.cache.on_disk() {
                Err(OnDisk)
            } else {
                Ok(None)
            }
        }
    }
}

/// What must hold before the write is acknowledged.
pub(super) fn acknowledged_when(
    targets: &[Target<'_>],
    asked: Option<Durability>,
) -> Result<Durability, Failure> {
    if asked == Some(Durability::Durable)
        && let Some(target) = targets.iter().find(|target| !target.cache.on_disk())
    {
        return Err(Failure::new(
            kv_proto::wire::ErrorKind::Config,
            format!("cache {} is in memory only and cannot take a durable write", target.cache.name),
        ));
    }
    let own = targets.iter().map(|target| target.cache.config.durability).max().unwrap_or(Durability::Memory);
    Ok(asked.unwrap_or(own))
}

fn bytes_to_log(targets: &[Target<'_>], actions: &[Action<'_>]) -> usize {
    let logged = targets.iter().zip(actions).filter(|(target, _)| target.cache.on_disk());
    let bytes: usize = logged
        .map(|(target, action)| match action {
            Action::Keep | Action::KeepAbsent => 0,
            Action::Remove => target.key.len() + PUT_OVERHEAD_BYTES,
            Action::Put(draft) => target.key.len() + draft.bytes() + PUT_OVERHEAD_BYTES,
        })
        .sum();
    if bytes == 0 { 0 } else { bytes + COMMIT_OVERHEAD_BYTES }
}

/// A value of a memory cache must find room in a ring or in the side store.
pub(super) fn check_room(
    state: &State,
    targets: &[Target<'_>],
    actions: &[Action<'_>],
) -> Result<(), Failure> {
    for (target, action) in targets.iter().zip(actions) {
        let Action::Put(draft) = action else { continue };
        if target.cache.on_disk() {
            continue;
        }
        let memory = state.memory_ref(&target.cache);
        let limit = memory.writer.item_bytes_max().max(memory.side.bytes_max() as usize);
        if target.key.len() * 2 + draft.bytes() + 512 > limit {
            return Err(Failure::too_large(
                &format!("value for the memory of cache {}", target.cache.name),
                draft.value.len(),
                limit.saturating_sub(target.key.len() * 2 + 512),
            ));
        }
    }
    Ok(())
}

/// Stages one action in the segment; too large a value goes to the side store or stays on disk.
fn stage(memory: &mut Memory, target: &Target<'_>, action: &Action<'_>, version: Version, now: BootMs) {
    let Memory { writer, side, .. } = memory;
    match action {
        Action::Keep | Action::KeepAbsent => {}
        Action::Remove => {
            side.remove(target.key);
            writer.stage_remove(version, target.hash, target.key);
            count(&target.cache.counters.removals);
        }
        Action::Put(draft) => {
            side.remove(target.key);
            count(&target.cache.counters.writes);
            let tags: Vec<&[u8]> = draft.tags.iter().map(|tag| &**tag).collect();
            let item = draft.to_item(target.key, version, &tags);
            if writer.stage_put(version, target.hash, &item, now) {
                return;
            }
            match writer.backed() {
                Backed::Disk => writer.stage_mark(version, target.hash, target.key, Mark::Disk),
                Backed::Memory => {
                    let current = Arc::new(draft.to_current(version));
                    side.put(target.key, target.hash, current, |key, hash| {
                        writer.stage_remove(version, hash, key)
                    });
                    writer.stage_mark(version, target.hash, target.key, Mark::Ask);
                }
            }
        }
    }
}

impl Draft<'_> {
    fn to_item<'i>(&'i self, key: &'i [u8], version: Version, tags: &'i [&'i [u8]]) -> NewItem<'i> {
        NewItem {
            key,
            value: &self.value,
            version,
            created: self.created,
            expires: self.expires,
            stale_for_ms: self.stale_for_ms,
            load_cost_ms: self.load_cost_ms,
            stale: self.stale,
            tags,
        }
    }

    pub(super) fn to_current(&self, version: Version) -> Current {
        Current {
            version,
            created: self.created,
            expires: self.expires,
            stale_for_ms: self.stale_for_ms,
            load_cost_ms: self.load_cost_ms,
            stale: self.stale,
            tags: self.tags.iter().map(|tag| (**tag).into()).collect(),
            value: self.value.to_vec(),
        }
    }
}
