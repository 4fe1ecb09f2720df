//! The sweep over the tree: drops what is dead, and keeps caches within their disk budgets.
//!
//! Run by the flush thread in chunks. Removing a dead item needs no sequence: whoever could have read it was told that it is
//! gone. Two rules keep a crash from showing: what was judged by a clear is removed only after that clear is on stable
//! storage (else a power loss could keep the removal and lose the clear); and what a budget evicts is durably gone before the
//! engine forgets the key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kv_proto::Version;
use redb::{ReadableDatabase, ReadableTable};

use super::flusher::{Flusher, Sync};
use super::options::CacheId;
use super::overlay::{TreeKey, split};
use super::record::{check, generation_and_version, view, with_stale};
use super::scan::end_of;
use super::shared::{Hooks, Judgement};
use super::tables::{STATE, StateKey, TREE};

/// A pass begins at most this often, unless somebody waits for one.
const PASS_PAUSE: Duration = Duration::from_secs(30);
/// Pause between chunks of a pass nobody waits for.
const CHUNK_PAUSE: Duration = Duration::from_millis(100);
const SAMPLE_MAX: usize = 512;
const SAMPLE_MIN: usize = 64;
/// Items looked at for a first sample.
const PROBE_ITEMS: usize = 4_096;
/// Items looked at between two looks at the clock.
const ITEMS_A_LOOK: usize = 32;
/// An eviction goes this far below the budget, in per cent of it, so that it is not needed again at once.
const EVICT_TO_PERCENT: u64 = 90;

/// Where the sweep is.
#[derive(Debug)]
pub(super) struct Sweep {
    cursor: Option<Vec<u8>>,
    is_running: bool,
    pass_sequence: Version,
    pass_dropped: BTreeSet<CacheId>,
    last_pass: Instant,
    last_chunk: Instant,
    /// Everything up to here is folded.
    pub(super) folded_sequence: Version,
    samples: BTreeMap<CacheId, Vec<Version>>,
    laps: BTreeMap<CacheId, Lap>,
    scratch: Vec<u8>,
}

/// A lap of eviction through a cache.
#[derive(Debug, Default)]
struct Lap {
    after: Option<Vec<u8>>,
    /// Versions up to this go.
    threshold: Option<Version>,
    has_victims: bool,
}

/// A tree key, and the record to put in the place of its present one, if any.
type Victim = (Vec<u8>, Option<Arc<[u8]>>);
/// A tree key and the version of its item.
type Evictable = (Vec<u8>, Version);

/// What a chunk found.
#[derive(Default)]
struct Found {
    victims: Vec<Victim>,
    last: Option<Vec<u8>>,
    is_end: bool,
}

impl Sweep {
    pub(super) fn new(now: Instant) -> Sweep {
        Sweep {
            cursor: None,
            is_running: false,
            pass_sequence: 0,
            pass_dropped: BTreeSet::new(),
            last_pass: now,
            last_chunk: now,
            folded_sequence: 0,
            samples: BTreeMap::new(),
            laps: BTreeMap::new(),
            scratch: Vec::new(),
        }
    }

    /// A random sample of the versions met, a cache.
    fn sample(&mut self, cache: CacheId, version: Version) {
        let sample = self.samples.entry(cache).or_default();
        if sample.len() < SAMPLE_MAX {
            sample.push(version);
        } else if let Some(slot) = sample.get_mut(fastrand::usize(..SAMPLE_MAX * 8)) {
            *slot = version;
        }
    }

    /// The version up to which items go, so that about `to_free` of `bytes` become free.
    fn quantile(&self, cache: CacheId, to_free: u64, bytes: u64) -> Option<Version> {
        let mut sorted = self.samples.get(&cache)?.clone();
        sorted.sort_unstable();
        let share = u128::from(to_free) * sorted.len() as u128;
        let at = share.div_ceil(u128::from(bytes.max(1))) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
    }
}

impl Flusher {
    fn hooks(&self) -> Option<Arc<Hooks>> {
        self.shared.hooks.read().clone()
    }

    /// Begins a pass or does a chunk of it when it is time; says whether to go on at once.
    pub(super) fn sweep_step(&mut self, now: Instant) -> Result<bool, redb::Error> {
        let is_wanted = self.shared.work.lock().sweep_for.is_some();
        if !self.sweep.is_running {
            if !is_wanted && now.duration_since(self.sweep.last_pass) < PASS_PAUSE {
                return Ok(false);
            }
            self.begin_pass(now);
        }
        if is_wanted || now.duration_since(self.sweep.last_chunk) >= CHUNK_PAUSE {
            self.sweep.last_chunk = now;
            self.sweep_chunk()?;
        }
        Ok(is_wanted && self.sweep.is_running)
    }

    pub(super) fn begin_pass(&mut self, now: Instant) {
        let log = self.shared.log.lock();
        let overlay = self.shared.overlay.read();
        if overlay.active.is_empty() && overlay.frozen.is_none() {
            self.sweep.folded_sequence = self.sweep.folded_sequence.max(log.appended);
        }
        self.sweep.is_running = true;
        self.sweep.cursor = None;
        self.sweep.last_pass = now;
        self.sweep.pass_sequence = self.sweep.folded_sequence;
        self.sweep.pass_dropped = self.dropped.clone();
    }

    /// Whether a pass is under way.
    #[cfg(test)]
    pub(super) fn is_sweeping(&self) -> bool {
        self.sweep.is_running
    }

    /// A chunk of a pass.
    pub(super) fn sweep_chunk(&mut self) -> Result<(), redb::Error> {
        let found = self.look()?;
        self.remove(found.victims)?;
        if found.is_end {
            self.end_pass()
        } else {
            self.sweep.cursor = found.last;
            Ok(())
        }
    }

    fn look(&mut self) -> Result<Found, redb::Error> {
        let begin = self.shared.clock.instant();
        let hooks = self.hooks();
        let db = self.database()?;
        let tree = db.begin_read()?.open_table(TREE)?;
        let from = self.sweep.cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let budgets: BTreeSet<CacheId> = self.shared.disk_bytes_max.lock().keys().copied().collect();
        let mut found = Found::default();
        for (count, item) in tree.range_owned::<&[u8]>((from, Bound::Unbounded))?.enumerate() {
            let (tree_key, record) = item?;
            let (tree_key, record) = (tree_key.value(), record.value());
            let (cache, key) = split(tree_key);
            match self.judge(hooks.as_deref(), cache, key, record) {
                Judgement::Keep => {
                    if budgets.contains(&cache) {
                        self.sweep.sample(cache, generation_and_version(record).1);
                    }
                }
                Judgement::Drop => found.victims.push((tree_key.to_vec(), None)),
                Judgement::Stale => {
                    let stale = with_stale(cache, key, record, &mut self.sweep.scratch);
                    found.victims.push((tree_key.to_vec(), Some(stale)));
                }
            }
            found.last = Some(tree_key.to_vec());
            if count % ITEMS_A_LOOK == 0
                && self.shared.clock.instant().duration_since(begin) > self.chunk_time() / 2
            {
                return Ok(found);
            }
        }
        found.is_end = true;
        Ok(found)
    }

    fn judge(&self, hooks: Option<&Hooks>, cache: CacheId, key: &[u8], record: &[u8]) -> Judgement {
        if self.dropped.contains(&cache) {
            return Judgement::Drop;
        }
        if !check(cache, key, record) {
            // Left where it is: a read of it fails loudly. A cache that can lose items loses this one.
            let is_durable = self.shared.log.lock().durable_ever.contains(&cache);
            tracing::error!(cache, "an item of the store has a wrong checksum");
            return if is_durable { Judgement::Keep } else { Judgement::Drop };
        }
        if generation_and_version(record).0 != self.shared.generation(cache) {
            return Judgement::Drop;
        }
        let view = view(record, &self.shared.boots);
        match hooks {
            Some(hooks) => match (hooks.judge)(cache, key, &view) {
                Judgement::Stale if view.stale => Judgement::Keep,
                judgement => judgement,
            },
            None if view.is_over(self.shared.clock.now()) => Judgement::Drop,
            None => Judgement::Keep,
        }
    }

    fn remove(&mut self, victims: Vec<Victim>) -> Result<(), redb::Error> {
        if victims.is_empty() {
            return Ok(());
        }
        let head = self.shared.log.lock().head.number;
        self.flush_upto(head)?;
        let txn = self.begin(Sync::Later)?;
        let removed = self.remove_in(&txn, &victims)?;
        self.commit(txn, Sync::Later)?;
        self.note_changed(victims.iter().map(|(key, _)| key.as_slice()));
        self.shared.gauges.swept_items.fetch_add(removed, Ordering::Relaxed);
        Ok(())
    }

    fn remove_in(&self, txn: &redb::WriteTransaction, victims: &[Victim]) -> Result<u64, redb::Error> {
        let mut deltas: BTreeMap<CacheId, i64> = BTreeMap::new();
        {
            let mut tree = txn.open_table(TREE)?;
            for (tree_key, instead) in victims {
                let delta = deltas.entry(split(tree_key).0).or_insert(0);
                let old = match instead {
                    Some(record) => {
                        *delta += (tree_key.len() + record.len()) as i64;
                        tree.insert(tree_key.as_slice(), &**record)?
                    }
                    None => tree.remove(tree_key.as_slice())?,
                };
                if let Some(old) = old {
                    *delta -= (tree_key.len() + old.value().len()) as i64;
                }
            }
        }
        self.count_bytes(txn, &deltas)?;
        Ok(victims.len() as u64)
    }

    /// The end of a pass: clears of prefixes and dropped caches that nothing can match any more are forgotten, durably, before
    /// the engine hears of it.
    fn end_pass(&mut self) -> Result<(), redb::Error> {
        let sequence = self.sweep.pass_sequence;
        let dropped = std::mem::take(&mut self.sweep.pass_dropped);
        let txn = self.begin(Sync::Durable)?;
        let mut removed = 0;
        {
            let mut state = txn.open_table(STATE)?;
            let is_kept = |key: &[u8], value: &[u8]| match StateKey::parse(key) {
                Some((_, StateKey::Prefix(_))) => super::record::decode::<(Version, Version)>(value)
                    .is_none_or(|(gone, stale)| gone.max(stale) > sequence),
                Some((cache, StateKey::Dropped)) => !dropped.contains(&cache),
                Some(_) | None => true,
            };
            let mut doomed = Vec::new();
            for row in state.range::<&[u8]>(..)? {
                let (key, value) = row?;
                if !is_kept(key.value(), value.value()) {
                    doomed.push(key.value().to_vec());
                }
            }
            for key in doomed {
                state.remove(key.as_slice())?;
                removed += 1;
            }
        }
        if removed > 0 || self.has_unsynced {
            self.commit(txn, Sync::Durable)?;
            self.unsettle();
        } else {
            txn.abort()?;
        }
        self.dropped.retain(|cache| !dropped.contains(cache));
        self.sweep.is_running = false;
        self.shared.gauges.sweeps.fetch_add(1, Ordering::Relaxed);
        {
            let mut work = self.shared.work.lock();
            work.sweep_for = work.sweep_for.filter(|wanted| *wanted > sequence);
        }
        if let Some(hooks) = self.hooks() {
            (hooks.swept)(sequence);
        }
        Ok(())
    }

    /// Evicts from every cache that is over its disk budget; says whether to go on at once.
    pub(super) fn evict_chunk(&mut self) -> Result<bool, redb::Error> {
        let mut must_go_on = false;
        for (cache, to_free, bytes) in self.over_budget() {
            must_go_on |= self.evict_from(cache, to_free, bytes)?;
        }
        Ok(must_go_on)
    }

    /// The caches over their budgets, what is to be freed, and what they have.
    fn over_budget(&self) -> Vec<(CacheId, u64, u64)> {
        let budgets = self.shared.disk_bytes_max.lock();
        let bytes = self.shared.tree_bytes.lock();
        let over = budgets.iter().filter_map(|(cache, bytes_max)| {
            let bytes = bytes.get(cache).copied().unwrap_or(0);
            (bytes > *bytes_max).then(|| (*cache, bytes - bytes_max * EVICT_TO_PERCENT / 100, bytes))
        });
        over.collect()
    }

    /// Goes on with the lap through a cache that evicts what is older than the lap's threshold. The threshold is the quantile
    /// of a sample that frees enough; what a lap keeps is the sample for the next.
    fn evict_from(&mut self, cache: CacheId, to_free: u64, bytes: u64) -> Result<bool, redb::Error> {
        let mut lap = self.sweep.laps.remove(&cache).unwrap_or_default();
        if lap.threshold.is_none() {
            self.probe(cache)?;
            lap.threshold = self.sweep.quantile(cache, to_free, bytes);
            self.sweep.samples.remove(&cache);
        }
        let Some(threshold) = lap.threshold else { return Ok(false) };
        let (victims, is_end) = self.look_for_victims(cache, threshold, to_free, &mut lap)?;
        lap.has_victims |= !victims.is_empty();
        let must_go_on = lap.has_victims || !is_end;
        if !is_end {
            self.sweep.laps.insert(cache, lap);
        }
        if !victims.is_empty() {
            let txn = self.begin(Sync::Durable)?;
            let (keys, versions): (Vec<_>, Vec<_>) =
                victims.into_iter().map(|(key, version)| ((key, None), version)).unzip();
            let removed = self.remove_in(&txn, &keys)?;
            self.commit(txn, Sync::Durable)?;
            self.note_changed(keys.iter().map(|(key, _)| key.as_slice()));
            self.shared.gauges.evicted_items.fetch_add(removed, Ordering::Relaxed);
            if let Some(hooks) = self.hooks() {
                for ((tree_key, _), version) in keys.iter().zip(versions) {
                    (hooks.evicted)(cache, split(tree_key).1, version);
                }
            }
        }
        Ok(must_go_on)
    }

    /// Makes sure that there is a sample, from the beginning of the cache if need be.
    fn probe(&mut self, cache: CacheId) -> Result<(), redb::Error> {
        if self.sweep.samples.get(&cache).is_some_and(|sample| sample.len() >= SAMPLE_MIN) {
            return Ok(());
        }
        let tree = self.database()?.begin_read()?.open_table(TREE)?;
        let (from, to) = (cache.to_be_bytes(), end_of(cache, b""));
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for item in tree.range_owned::<&[u8]>((Bound::Included(&from[..]), to))?.take(PROBE_ITEMS) {
            let (tree_key, record) = item?;
            if check(cache, split(tree_key.value()).1, record.value()) {
                self.sweep.sample(cache, generation_and_version(record.value()).1);
            }
        }
        Ok(())
    }

    fn look_for_victims(
        &mut self,
        cache: CacheId,
        threshold: Version,
        to_free: u64,
        lap: &mut Lap,
    ) -> Result<(Vec<Evictable>, bool), redb::Error> {
        let begin = self.shared.clock.instant();
        let hooks = self.hooks();
        let db = self.database()?;
        let tree = db.begin_read()?.open_table(TREE)?;
        let from = lap.after.clone().unwrap_or_else(|| cache.to_be_bytes().to_vec());
        let to = end_of(cache, b"");
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut victims = Vec::new();
        let mut freed = 0;
        for (count, item) in tree.range_owned::<&[u8]>((Bound::Excluded(from.as_slice()), to))?.enumerate() {
            let (tree_key, record) = item?;
            let (tree_key, record) = (tree_key.value(), record.value());
            let (_, key) = split(tree_key);
            let version = if check(cache, key, record) { generation_and_version(record).1 } else { 0 };
            // What is in the overlay is in the journal too: a crash now would bring it back.
            let is_journalled =
                || self.shared.overlay.read().get(TreeKey::new(cache, key).as_slice()).is_some();
            let may_go = || hooks.as_ref().is_none_or(|hooks| (hooks.evict)(cache, key, version));
            if version > threshold {
                self.sweep.sample(cache, version);
            } else if !is_journalled() && may_go() {
                freed += (tree_key.len() + record.len()) as u64;
                victims.push((tree_key.to_vec(), version));
            }
            let is_late = count % ITEMS_A_LOOK == 0
                && self.shared.clock.instant().duration_since(begin) > self.chunk_time();
            if freed >= to_free || is_late {
                lap.after = Some(tree_key.to_vec());
                return Ok((victims, false));
            }
        }
        Ok((victims, true))
    }
}
