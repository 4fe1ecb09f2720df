//! A quick check of what is served: checksums of a sample, memory against the store, and numbers that must agree.
//!
//! It holds nobody up: what it reads it reads as any other reader would. All of it is looked at by `kvd check --offline`.

use std::collections::HashSet;
use std::sync::Arc;

use kv_proto::segment::Freshness;
use kv_proto::wire::{Checked, Response, encode_into};
use kv_proto::{Version, limits};

use super::cache::Cache;
use super::change::look_at;
use super::error::Failure;
use super::item::Current;
use super::{Engine, Session};

/// Places of a cache at which items are looked at.
const PLACES: usize = 8;
/// Sentences at most; more of the same help nobody.
const WRONG_MAX: usize = 100;

#[derive(Default)]
struct Findings {
    items: u64,
    compared: u64,
    wrong: Vec<String>,
}

impl Findings {
    fn wrong(&mut self, cache: &Cache, what: impl std::fmt::Display) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(format!("cache {}: {what}", cache.name));
        }
    }
}

impl Engine {
    /// Answers `check`.
    pub(super) fn check(&self, session: &Session, samples: u32, out: &mut Vec<u8>) -> Result<(), Failure> {
        session.must_be_outside("a check")?;
        let mut findings = Findings::default();
        let samples = (samples as usize).clamp(PLACES, limits::SCAN_KEYS_MAX * PLACES);
        let mut caches: Vec<_> =
            self.caches.load().values().filter(|cache| cache.on_disk()).cloned().collect();
        caches.sort_by(|a, b| a.name.cmp(&b.name));
        for cache in &caches {
            self.check_cache(cache, samples, &mut findings);
        }
        self.check_numbers(&mut findings);
        let wrong = findings.wrong.iter().map(String::as_str).collect();
        let (items, compared) = (findings.items, findings.compared);
        encode_into(
            out,
            &Response::Checked(Checked { sequence: self.control.committed(), items, compared, wrong }),
        );
        Ok(())
    }

    /// Looks at `samples` items, or all if there are fewer: from the first key on, at places here and there, and again from the
    /// first key on for what these did not give.
    fn check_cache(&self, cache: &Arc<Cache>, samples: usize, findings: &mut Findings) {
        let mut looked_at = Vec::new();
        let mut seen = HashSet::new();
        let mut visit = |after: Option<&[u8]>, looked_at: &mut Vec<Vec<u8>>| {
            let keys = self.sample(cache, after, samples / PLACES, findings);
            for key in &keys {
                if looked_at.len() < samples && seen.insert(key.clone()) {
                    findings.items += 1;
                    self.compare(cache, key, findings);
                    looked_at.push(key.clone());
                }
            }
            keys.last().cloned()
        };
        visit(None, &mut looked_at);
        for _ in 1..PLACES {
            let place = fastrand::choice(&looked_at).map(|key| elsewhere(key));
            visit(place.as_deref(), &mut looked_at);
        }
        let mut last = None;
        while looked_at.len() < samples {
            last = visit(last.as_deref(), &mut looked_at);
            if last.is_none() {
                return;
            }
        }
    }

    /// Keys of one place whose items have good checksums.
    fn sample(
        &self,
        cache: &Cache,
        after: Option<&[u8]>,
        samples: usize,
        findings: &mut Findings,
    ) -> Vec<Vec<u8>> {
        let keys_max = samples / PLACES;
        let page = {
            let _state = self.lock();
            self.store.snapshot_page(cache.id, &[], after, keys_max)
        };
        let mut keys = Vec::new();
        let mut page = match page {
            Ok(page) => page,
            Err(failure) => {
                findings.wrong(cache, failure);
                return keys;
            }
        };
        while keys.len() < keys_max {
            match page.next() {
                Ok(Some((_, key, _))) => keys.push(key),
                Ok(None) => break,
                // The key is not told: it may be anything.
                Err(failure) => {
                    findings.wrong(cache, failure);
                    break;
                }
            }
        }
        keys
    }

    /// Holds what memory says of a key against what the store says, unless the key changes meanwhile.
    fn compare(&self, cache: &Arc<Cache>, key: &[u8], findings: &mut Findings) {
        let target = self.target(cache, key, true);
        let moment = cache.moment(target.hash);
        let stored: Option<Current> = match self.store.read(cache.id, key) {
            Ok(stored) => stored.map(|stored| Current::from_store(&stored.view())),
            Err(failure) => return findings.wrong(cache, failure),
        };
        let now = self.clock.now();
        let found = {
            let mut state = self.lock();
            if cache.moment(target.hash) != moment {
                return;
            }
            let Ok(found) = look_at(state.memory(cache), &target, now) else { return };
            found
        };
        let stored = stored.filter(|item| self.freshness_at(cache, key, item, now) != Freshness::Gone);
        findings.compared += 1;
        let versions: (Option<Version>, Option<Version>) =
            (found.map(|item| item.version), stored.map(|item| item.version));
        if versions.0 != versions.1 && cache.moment(target.hash) == moment {
            let (memory, store) = versions;
            findings
                .wrong(cache, format_args!("memory has version {memory:?} of an item, the store {store:?}"));
        }
    }

    fn check_numbers(&self, findings: &mut Findings) {
        let stats = self.store.stats();
        let mut must = |holds: bool, what: String| {
            if !holds {
                findings.wrong.push(what);
            }
        };
        let (committed, limit) = (self.control.committed(), self.store.sequence_limit());
        must(
            committed < limit,
            format!("sequence {committed} is not reserved on disk, only those below {limit} are"),
        );
        let (used, all) = (stats.pending_bytes, stats.pending_bytes_max);
        must(used <= all, format!("{used} bytes of the pending log are in use, it has {all}"));
        must(
            stats.health == crate::store::Health::Good,
            format!("the disk is in trouble: {:?}", stats.health),
        );
        for id in &stats.dirty {
            let name = self.cache_by_id(*id).map_or_else(|| id.to_string(), |cache| cache.name.clone());
            must(false, format!("cache {name} is in memory only until the disk has room"));
        }
    }
}

/// A place where there may be keys, because they look like one that is there: its beginning, and something else.
fn elsewhere(key: &[u8]) -> Vec<u8> {
    let mut place = key[..fastrand::usize(..key.len())].to_vec();
    place.push(fastrand::u8(b'!'..=b'~'));
    place
}
