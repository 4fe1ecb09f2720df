//! Transactions over several requests: begin, read and write inside, commit or leave no trace.
//!
//! A session has at most one. While it is open, `apply` sends the session's reads here, and `change` stages the session's
//! writes here instead of applying them. What it holds and waits for is in `txn`; what it has seen and will write is its own
//! and known to nobody before the commit, which is one `change` like any other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kv_proto::wire::{self, Durability, ErrorKind, Response, Rights, encode_into};
use kv_proto::{BootMs, Version, limits};

use super::cache::{Cache, Moment};
use super::change::{Action, Changed, Decision, Look, Target, check_room};
use super::error::Failure;
use super::item::{Current, Draft, Shape};
use super::waiting::{Passage, ended, no_means, rolled_back};
use super::write::Durable;
use super::{Engine, Session, State};
use crate::store::CacheId;
use crate::txn::{Doom, Needs, Number, Party, PartyKind};

/// A session's transaction.
pub(crate) struct Transaction {
    number: Number,
    read_only: bool,
    /// The one time it knows.
    now: BootMs,
    /// Everything up to here was committed when it began.
    start: Version,
    at_begin: Needs,
    /// Longest wait for a lock.
    wait: Duration,
    touched: BTreeMap<CacheId, Keys>,
    scanned: Vec<Scanned>,
    durability: Option<Durability>,
    size: Size,
    /// It is over, for this reason, and its client was not told yet or has not said that it knows.
    lost: Option<Failure>,
}

/// What it has to do with the keys of one cache.
struct Keys {
    cache: Arc<Cache>,
    keys: BTreeMap<Box<[u8]>, Touch>,
}

/// What it has to do with one key.
#[derive(Default)]
struct Touch {
    hash: u64,
    seen: Option<Seen>,
    /// `Some(None)`: removed.
    wrote: Option<Look>,
}

/// What was there, and the key's moment before it was looked at.
struct Seen {
    look: Look,
    moment: Moment,
}

/// A cache of which a page was read.
struct Scanned {
    cache: Arc<Cache>,
    /// The newest change before the first page.
    newest: Version,
    /// When the first of the items that it was shown expires.
    expires: Option<BootMs>,
}

/// What counts against its bounds.
#[derive(Clone, Copy, Default)]
struct Size {
    keys: usize,
    bytes: usize,
    writes: usize,
    bytes_written: usize,
}

/// How a client wants to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) read_only: bool,
    pub(crate) wait_ms: u32,
    pub(crate) first: u64,
    pub(crate) tries: u32,
}

impl Engine {
    pub(crate) fn begin(&self, session: &mut Session, wish: Wish, out: &mut Vec<u8>) -> Result<(), Failure> {
        if let Some(open) = session.transaction.as_ref().filter(|open| self.is_open(open)) {
            let message = format!("transaction {} is open on this connection: end it first", open.number);
            return Err(Failure::invalid(message));
        }
        self.leave_transaction(session);
        let began = self.clock.instant();
        let wait = Duration::from_millis(wish.wait_ms.into()).min(limits::LOCK_WAIT_MAX);
        let at_begin = if wish.read_only { Needs::new() } else { self.locking.at_begin(wish.tries) };
        let wake = session.park.unparker().map_err(no_means)?;
        let mut state = self.lock();
        let number = self.next_sequence(&mut state);
        let age = if wish.first == 0 { number } else { wish.first.min(number) };
        let kind = PartyKind::Transaction { read_only: wish.read_only };
        let mut party = Party::new(session.who(), kind, age, began, wake);
        // In the queue it has the time that its client gives it; its life begins with the grant.
        party.ends += wait;
        state.locks.join(number, party);
        let waited = self.wait_for_locks(state, &mut *session.park, number, &at_begin, false, began + wait);
        let mut state = match waited {
            Ok(state) => state,
            Err(failure) => {
                self.lock().locks.leave(number, self.clock.instant());
                return Err(failure);
            }
        };
        // Its life begins when it can do something.
        let now = self.clock.instant();
        if let Some(party) = state.locks.party_mut(number) {
            party.began = now;
            party.ends = now + limits::TRANSACTION_LIFE;
            party.is_busy = false;
            party.quiet_since = now;
        }
        session.transaction = Some(Box::new(Transaction {
            number,
            read_only: wish.read_only,
            now: self.clock.now(),
            start: self.control.committed(),
            at_begin,
            wait,
            touched: BTreeMap::new(),
            scanned: Vec::new(),
            durability: None,
            size: Size::default(),
            lost: None,
        }));
        encode_into(out, &Response::Begun { transaction: number });
        Ok(())
    }

    fn is_open(&self, open: &Transaction) -> bool {
        open.lost.is_none()
            && self.lock().locks.party(open.number).is_some_and(|party| party.doom().is_none())
    }

    /// Before each request inside a transaction: is it still open?
    pub(super) fn heard(&self, session: &mut Session) -> Result<(), Failure> {
        let Session { transaction, park, .. } = session;
        let Some(open) = transaction else { return Ok(()) };
        if let Some(lost) = &open.lost {
            return Err(lost.clone());
        }
        let now = self.clock.instant();
        let mut state = self.lock();
        let party = go_on(&mut state, open.number, now)?;
        party.requests += 1;
        if party.is_suspended {
            // It has seen nothing: what it will see is of the moment at which it has its locks again.
            drop(self.wait_for_locks(
                state,
                &mut **park,
                open.number,
                &open.at_begin,
                true,
                now + open.wait,
            )?);
            open.now = self.clock.now();
            open.start = self.control.committed();
            if let Some(party) = self.lock().locks.party_mut(open.number) {
                party.is_suspended = false;
            }
        }
        Ok(())
    }

    /// After each request inside a transaction: from here on its silence is its own, or it is over.
    pub(super) fn rest<T>(&self, session: &mut Session, result: &Result<T, Failure>) {
        let Some(open) = &mut session.transaction else { return };
        let now = self.clock.instant();
        let mut state = self.lock();
        match result {
            Err(failure)
                if matches!(
                    failure.kind,
                    ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::LeaseLost
                ) =>
            {
                state.locks.leave(open.number, now);
                open.touched = BTreeMap::new();
                open.scanned = Vec::new();
                open.lost = Some(failure.clone());
            }
            Ok(_) | Err(_) => {
                if let Some(party) = state.locks.party_mut(open.number) {
                    party.is_busy = false;
                    party.quiet_since = now;
                }
            }
        }
    }

    /// Ends what the session has open. For a connection that ends.
    pub fn leave(&self, session: &mut Session) {
        self.leave_transaction(session);
        self.give_up_all(session);
        session.watching = None;
    }

    fn leave_transaction(&self, session: &mut Session) {
        if let Some(open) = session.transaction.take() {
            self.lock().locks.leave(open.number, self.clock.instant());
        }
    }

    /// How long the session's process must be watched while nothing is heard; `None`: it has nothing that others may want.
    /// Then `end_if_old`, and ask again.
    #[must_use]
    pub fn watched_until(&self, session: &Session) -> Option<Instant> {
        let open = session.transaction.as_ref().filter(|open| open.lost.is_none());
        let ends = open.and_then(|open| {
            let state = self.lock();
            state.locks.party(open.number).filter(|party| party.doom().is_none()).map(|party| party.ends)
        });
        // Leases and locks end when somebody wants them: until then there is nothing to do but to watch.
        ends.or_else(|| session.holds_any().then(|| self.clock.instant() + limits::LEASE_LIFE_MAX))
    }

    /// Ends the session's transaction if its life is over; what it holds does not wait for somebody who wants it.
    pub fn end_if_old(&self, session: &Session) {
        let Some(open) = &session.transaction else { return };
        self.lock().locks.end_if_old(open.number, self.clock.instant());
    }

    pub(super) fn renew(
        &self,
        session: &mut Session,
        number: Number,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if session.transaction.as_ref().is_none_or(|open| open.number != number) {
            return Err(ended(number));
        }
        let now = self.clock.instant();
        if let Some(party) = self.lock().locks.party_mut(number) {
            party.ends = (now + limits::TRANSACTION_LIFE).min(party.began + limits::TRANSACTION_LIFE_MAX);
        }
        encode_into(out, &Response::Done);
        Ok(())
    }

    /// Without a trace. Of another connection: only for the daemon's own user and root.
    pub(super) fn roll_back(
        &self,
        session: &mut Session,
        number: Number,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let now = self.clock.instant();
        if session.transaction.as_ref().is_some_and(|open| open.number == number) {
            session.transaction = None;
            self.lock().locks.leave(number, now);
            encode_into(out, &Response::Done);
            return Ok(());
        }
        if session.caller().is_some_and(|caller| !caller.rights.contains(Rights::ADMIN)) {
            let message = format!(
                "transaction {number} is not open on this connection: only an administrator may end it"
            );
            return Err(Failure::new(ErrorKind::Denied, message));
        }
        let mut state = self.lock();
        let ends_itself = |party: &Party| match party.kind {
            PartyKind::Transaction { .. } => false,
            PartyKind::Write => true,
            PartyKind::Load | PartyKind::Lock => party.waits().is_some(),
        };
        if state.locks.party(number).is_some_and(ends_itself) {
            return Err(Failure::invalid(format!("{number} only waits: it ends by itself")));
        }
        let is_open = state.locks.party(number).is_some_and(|party| party.doom().is_none());
        if is_open {
            state.locks.doom(number, Doom::ByHand { who: session.who() }, now);
        }
        encode_into(out, &if is_open { Response::Done } else { Response::Missing });
        Ok(())
    }

    pub(super) fn commit_transaction(
        &self,
        session: &mut Session,
        number: Number,
        durability: Option<Durability>,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        let Some(open) = session.transaction.take_if(|open| open.number == number) else {
            return Err(ended(number));
        };
        if let Some(lost) = open.lost {
            return Err(lost);
        }
        let committed = self.commit_open(session, &open, durability);
        self.lock().locks.leave(number, self.clock.instant());
        let Changed { answer: (seen_at, changed), version, durable } = committed?;
        let version = if version == 0 { seen_at } else { version };
        encode_into(out, &Response::Committed { version, changed });
        Ok(durable)
    }

    fn commit_open(
        &self,
        session: &mut Session,
        open: &Transaction,
        durability: Option<Durability>,
    ) -> Result<Changed<(Version, u32)>, Failure> {
        go_on(&mut self.lock(), open.number, self.clock.instant())?;
        let validates = self.locking.validates() && !open.read_only;
        let mut targets = Vec::new();
        let mut touches = Vec::new();
        for (keys, key, touch) in open.touches() {
            let look = validates && touch.seen.is_some();
            if look || touch.wrote.is_some() {
                let known = touch.seen.as_ref().map(|seen| (seen.moment, seen.look.clone()));
                let cache = Arc::clone(&keys.cache);
                targets.push(Target { cache, key, hash: touch.hash, look, known });
                touches.push(touch);
            }
        }
        let wish = durability.max(open.durability);
        let decide = |looks: &[Look], now: BootMs| {
            if !open.read_only {
                open.check_lives(now)?;
            }
            open.check_caches()?;
            if validates {
                open.check_unchanged(&targets, &touches, looks)?;
            }
            let actions: Vec<Action<'static>> = touches.iter().map(|touch| touch.action()).collect();
            let changed = actions.iter().filter(|action| action.is_change()).count();
            // What it has read is true now, and in a snapshot it was when that began.
            let seen_at = if open.read_only { open.start } else { self.control.committed() };
            Ok(Decision { answer: (seen_at, changed as u32), actions })
        };
        let passage = Passage::of_transaction(self, open.number);
        self.change_by(passage, session, &targets, wish, decide)
    }

    /// What a transaction sees of a key: its own write, what it has seen before, or what is there.
    fn look_inside(&self, session: &mut Session, target: &Target<'_>) -> Result<Look, Failure> {
        let open = session.transaction.as_ref().expect("inside a transaction");
        if let Some(touch) = open.touch(target) {
            if let Some(wrote) = &touch.wrote {
                return Ok(wrote.clone());
            }
            if let Some(seen) = &touch.seen {
                return Ok(seen.look.clone());
            }
        }
        if !open.read_only {
            let needs = self.locking.to_read(target.touched());
            self.hold(session, &needs)?;
        }
        let open = session.transaction.as_mut().expect("inside a transaction");
        let moment = target.cache.moment(target.hash);
        let (look, _) = self.look(target, open.now)?;
        if open.read_only && !open.began_after(target, &look) {
            return Err(Failure::new(
                ErrorKind::Conflict,
                format!("{} was changed after this transaction began", target.name()),
            ));
        }
        let mut size = open.size;
        size.keep(open.touch(target).is_none(), bytes_of(target, &look), 0)?;
        open.size = size;
        open.touch_mut(target).seen = Some(Seen { look: look.clone(), moment });
        Ok(look)
    }

    /// Takes locks for the session's transaction.
    fn hold(&self, session: &mut Session, needs: &Needs) -> Result<(), Failure> {
        let Session { transaction, park, .. } = session;
        let open = transaction.as_ref().expect("inside a transaction");
        if !needs.is_empty() {
            let deadline = self.clock.instant() + open.wait;
            drop(self.wait_for_locks(self.lock(), &mut **park, open.number, needs, false, deadline)?);
        }
        Ok(())
    }

    /// As `change`, into the transaction.
    pub(super) fn change_inside<'a, T>(
        &self,
        session: &mut Session,
        targets: &[Target<'a>],
        durability: Option<Durability>,
        mut decide: impl FnMut(&[Look], BootMs) -> Result<Decision<'a, T>, Failure>,
    ) -> Result<Changed<T>, Failure> {
        let open = session.transaction.as_ref().expect("inside a transaction");
        let (number, now) = (open.number, open.now);
        if open.read_only {
            return Err(Failure::invalid(format!("transaction {number} is a snapshot: it only reads")));
        }
        for target in targets {
            // At once for writing: two who first read and then write would wait for each other.
            let needs = self.locking.to_write(target.touched());
            self.hold(session, &needs)?;
        }
        let mut looks = Vec::with_capacity(targets.len());
        for target in targets {
            looks.push(if target.look { self.look_inside(session, target)? } else { None });
        }
        let decision = decide(&looks, now)?;
        check_room(&self.lock(), targets, &decision.actions)?;
        let open = session.transaction.as_mut().expect("inside a transaction");
        let wrote = |action: &Action<'_>| match action {
            Action::Keep => None,
            Action::Put(draft) => Some(Some(Arc::new(draft.to_current(number)))),
            Action::KeepAbsent | Action::Remove => Some(None),
        };
        let written = targets.iter().zip(&decision.actions);
        open.stage(written.filter_map(|(target, action)| Some((target, wrote(action)?))).collect())?;
        open.durability = open.durability.max(durability);
        let is_kept = !decision.actions.iter().any(Action::is_change);
        Ok(Changed { answer: decision.answer, version: if is_kept { 0 } else { number }, durable: None })
    }

    /// As `get`, inside.
    pub(super) fn get_inside(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        key: &[u8],
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let look = self.look_inside(session, &self.target(cache, key, true))?;
        let now = session.transaction.as_ref().expect("inside a transaction").now;
        match look.as_deref().map(|item| (item, item.freshness(now))) {
            Some((item, freshness)) if shape != Shape::Value || freshness == wire::Freshness::Fresh => {
                encode_into(out, &Response::Item(item.to_wire(freshness, now, shape)));
            }
            Some(_) | None => encode_into(out, &Response::Missing),
        }
        Ok(())
    }

    /// As `get_many`, inside: a transaction's reads are of one moment anyway.
    pub(super) fn get_many_inside(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        keys: &[wire::Bytes<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let now = session.transaction.as_ref().expect("inside a transaction").now;
        let mut looks = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let look = self.look_inside(session, &self.target(cache, key.0, true))?;
            bytes += look.as_ref().map_or(0, |item| item.value.len());
            looks.push(look);
            if bytes > limits::ANSWER_BYTES_SOFT_MAX {
                break;
            }
        }
        let item = |look: &'_ Look| look.clone().filter(|item| item.freshness(now) == wire::Freshness::Fresh);
        let fresh: Vec<Look> = looks.iter().map(item).collect();
        let items = fresh
            .iter()
            .map(|look| look.as_ref().map(|item| item.to_wire(wire::Freshness::Fresh, now, Shape::Value)));
        let snapshot = session.transaction.as_ref().expect("inside a transaction").number;
        encode_into(out, &Response::Items { items: items.collect(), snapshot });
        Ok(())
    }

    /// Before a page of a scan inside: the time it is of.
    pub(super) fn begin_scan(&self, session: &mut Session, cache: &Arc<Cache>) -> Result<BootMs, Failure> {
        let open = session.transaction.as_ref().expect("inside a transaction");
        if !open.read_only {
            let needs = self.locking.to_read(cache.touched(None));
            self.hold(session, &needs)?;
        }
        let open = session.transaction.as_mut().expect("inside a transaction");
        if open.scanned.iter().all(|scanned| scanned.cache.id != cache.id) {
            let newest = if open.read_only { open.start } else { cache.newest() };
            open.scanned.push(Scanned { cache: Arc::clone(cache), newest, expires: None });
        }
        Ok(open.now)
    }

    /// After a page of a scan inside: what was shown is kept in mind, and own writes are laid over it.
    pub(super) fn end_scan(
        &self,
        session: &mut Session,
        cache: &Arc<Cache>,
        items: &mut Vec<(Vec<u8>, Current, wire::Freshness)>,
        is_in_page: impl Fn(&[u8], u64) -> bool,
    ) -> Result<(), Failure> {
        let open = session.transaction.as_mut().expect("inside a transaction");
        let now = open.now;
        let own = open.scanned.iter_mut().find(|scanned| scanned.cache.id == cache.id);
        let own = own.expect("`begin_scan` noted it");
        if open.read_only && cache.newest() > open.start {
            let message = format!("cache {} was changed after this transaction began", cache.name);
            return Err(Failure::new(ErrorKind::Conflict, message));
        }
        own.expires = items.iter().filter_map(|(_, item, _)| item.expires).chain(own.expires).min();
        let Some(keys) = open.touched.get(&cache.id) else { return Ok(()) };
        let written =
            || keys.keys.iter().filter_map(|(key, touch)| Some((key, touch.hash, touch.wrote.as_ref()?)));
        items.retain(|(key, ..)| written().all(|(own, ..)| **own != **key));
        for (key, hash, wrote) in written() {
            let Some(item) = wrote.as_deref().filter(|item| item.freshness(now) == wire::Freshness::Fresh)
            else {
                continue;
            };
            if is_in_page(key, hash) {
                items.push((key.to_vec(), item.clone(), wire::Freshness::Fresh));
            }
        }
        Ok(())
    }
}

impl Session {
    /// Refuses what cannot be part of a transaction.
    pub(super) fn must_be_outside(&self, what: &str) -> Result<(), Failure> {
        match &self.transaction {
            None => Ok(()),
            Some(open) => Err(Failure::invalid(format!(
                "{what} cannot be part of a transaction, and {} is open on this connection",
                open.number
            ))),
        }
    }
}

impl Transaction {
    fn touches(&self) -> impl Iterator<Item = (&Keys, &[u8], &Touch)> {
        self.touched.values().flat_map(|keys| keys.keys.iter().map(move |(key, touch)| (keys, &**key, touch)))
    }

    fn touch(&self, target: &Target<'_>) -> Option<&Touch> {
        self.touched.get(&target.cache.id)?.keys.get(target.key)
    }

    fn touch_mut(&mut self, target: &Target<'_>) -> &mut Touch {
        let keys = self
            .touched
            .entry(target.cache.id)
            .or_insert_with(|| Keys { cache: Arc::clone(&target.cache), keys: BTreeMap::new() });
        let touch = keys.keys.entry(target.key.into()).or_default();
        touch.hash = target.hash;
        touch
    }

    /// Whether what was found is as it was when this transaction began.
    fn began_after(&self, target: &Target<'_>, look: &Look) -> bool {
        let moment = target.cache.moment(target.hash);
        match look {
            Some(item) => item.version <= self.start && moment.is_stamped_at_most(self.start),
            None => moment.is_at_most(self.start),
        }
    }

    /// All of it, or nothing when it is too much.
    fn stage(&mut self, written: Vec<(&Target<'_>, Look)>) -> Result<(), Failure> {
        let mut size = self.size;
        for (target, wrote) in &written {
            let touch = self.touch(target);
            let before = touch.and_then(|touch| touch.wrote.as_ref());
            let (bytes, bytes_before) =
                (bytes_of(target, wrote), before.map_or(0, |before| bytes_of(target, before)));
            size.keep(touch.is_none(), bytes, bytes_before)?;
            size.write(before.is_none(), bytes, bytes_before)?;
        }
        self.size = size;
        for (target, wrote) in written {
            self.touch_mut(target).wrote = Some(wrote);
        }
        Ok(())
    }

    /// A cache that was dropped meanwhile has perhaps a successor of the same name: what was read or written is not of that.
    fn check_caches(&self) -> Result<(), Failure> {
        let caches =
            self.touched.values().map(|keys| &keys.cache).chain(self.scanned.iter().map(|page| &page.cache));
        match caches.into_iter().find(|cache| cache.dropped.load(Ordering::Acquire)) {
            Some(cache) => Err(conflict(cache, None, "was dropped")),
            None => Ok(()),
        }
    }

    /// What it has used must still live.
    fn check_lives(&self, now: BootMs) -> Result<(), Failure> {
        let expired =
            |expires: Option<BootMs>| expires.is_some_and(|expires| expires > self.now && expires <= now);
        let seen = |touch: &Touch| touch.seen.as_ref().and_then(|seen| seen.look.as_ref()?.expires);
        if let Some((keys, key, _)) = self.touches().find(|(.., touch)| expired(seen(touch))) {
            return Err(conflict(&keys.cache, Some(key), "expired"));
        }
        match self.scanned.iter().find(|scanned| expired(scanned.expires)) {
            Some(scanned) => Err(conflict(&scanned.cache, None, "lost an item that expired")),
            None => Ok(()),
        }
    }

    /// What it has seen must still be so.
    fn check_unchanged(
        &self,
        targets: &[Target<'_>],
        touches: &[&Touch],
        looks: &[Look],
    ) -> Result<(), Failure> {
        let is_same = |seen: &Look, look: &Look| match (seen, look) {
            (None, None) => true,
            (Some(seen), Some(look)) => (seen.version, seen.stale) == (look.version, look.stale),
            (Some(_), None) | (None, Some(_)) => false,
        };
        for ((target, touch), look) in targets.iter().zip(touches).zip(looks) {
            if touch.seen.as_ref().is_some_and(|seen| !is_same(&seen.look, look)) {
                return Err(conflict(&target.cache, Some(target.key), "was changed"));
            }
        }
        match self.scanned.iter().find(|scanned| scanned.cache.newest() > scanned.newest) {
            Some(scanned) => Err(conflict(&scanned.cache, None, "was changed")),
            None => Ok(()),
        }
    }
}

impl Touch {
    fn action(&self) -> Action<'static> {
        match &self.wrote {
            None => Action::Keep,
            Some(None) if self.seen.as_ref().is_some_and(|seen| seen.look.is_none()) => Action::KeepAbsent,
            Some(None) => Action::Remove,
            Some(Some(item)) => Action::Put(Draft::again(item)),
        }
    }
}

impl Size {
    /// Something is kept; what it replaces is not any more.
    fn keep(&mut self, is_new: bool, bytes: usize, bytes_before: usize) -> Result<(), Failure> {
        self.keys += usize::from(is_new);
        self.bytes = (self.bytes + bytes).saturating_sub(bytes_before);
        if self.keys > limits::TRANSACTION_KEYS_MAX {
            return Err(Failure::too_many("keys in a transaction", self.keys, limits::TRANSACTION_KEYS_MAX));
        }
        if self.bytes > limits::TRANSACTION_BYTES_MAX {
            return Err(Failure::too_large("transaction", self.bytes, limits::TRANSACTION_BYTES_MAX));
        }
        Ok(())
    }

    fn write(&mut self, is_new: bool, bytes: usize, bytes_before: usize) -> Result<(), Failure> {
        self.writes += usize::from(is_new);
        self.bytes_written = (self.bytes_written + bytes).saturating_sub(bytes_before);
        if self.writes > limits::COMMIT_WRITES_MAX {
            return Err(Failure::too_many("writes in a transaction", self.writes, limits::COMMIT_WRITES_MAX));
        }
        let what = "what a transaction writes";
        if self.writes > 1 && self.bytes_written > limits::COMMIT_BYTES_MAX {
            return Err(Failure::too_large(what, self.bytes_written, limits::COMMIT_BYTES_MAX));
        }
        Ok(())
    }
}

/// The party of a transaction that is still open, and busy from here on.
fn go_on(state: &mut State, number: Number, now: Instant) -> Result<&mut Party, Failure> {
    state.locks.end_if_old(number, now);
    let party = state.locks.party_mut(number).ok_or_else(|| ended(number))?;
    if let Some(doom) = party.doom() {
        return Err(rolled_back(number, doom));
    }
    party.is_busy = true;
    Ok(party)
}

fn bytes_of(target: &Target<'_>, look: &Look) -> usize {
    target.key.len() + look.as_ref().map_or(0, |item| item.value.len())
}

fn conflict(cache: &Cache, key: Option<&[u8]>, what: &str) -> Failure {
    let key = key.map_or(String::new(), |key| format!("key {} of ", key.escape_ascii()));
    let message = format!("{key}cache {} {what} since this transaction read it; begin anew", cache.name);
    Failure::new(ErrorKind::Conflict, message)
}
