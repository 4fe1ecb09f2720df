//! What `stats` and `caches` answer.

use std::sync::atomic::{AtomicU64, Ordering};

use kv_proto::wire::{self, Response, encode_into};

use super::Engine;
use super::cache::Cache;
use crate::metrics::{HistogramNames, MetricRow, Scale, histogram_names, histogram_rows};
use crate::process;
use crate::store::{CacheId, Health, Stats};
use crate::txn::{Locks, PartyKind};

const FLUSH_SECONDS: HistogramNames = histogram_names!("kvd_flush_seconds");
const FLUSH_RECORDS: HistogramNames = histogram_names!("kvd_flush_records");

/// Who holds or wants locks now.
#[derive(Default)]
struct Parties {
    /// Transactions, and writes that wait for one.
    transactions: usize,
    leases: usize,
    named: usize,
    waiting: usize,
}

impl Parties {
    fn count(locks: &Locks) -> Parties {
        let mut parties = Parties::default();
        for (_, party) in locks.parties() {
            let waits = party.waits().is_some();
            parties.waiting += usize::from(waits);
            match party.kind {
                PartyKind::Transaction { .. } | PartyKind::Write => parties.transactions += 1,
                PartyKind::Load => parties.leases += usize::from(!waits),
                PartyKind::Lock => parties.named += usize::from(!waits),
            }
        }
        parties
    }
}

impl Engine {
    pub(crate) fn stats(&self, out: &mut Vec<u8>) {
        encode_into(out, &Response::Metrics(self.metric_rows().iter().map(MetricRow::as_wire).collect()));
    }

    /// Everything that is counted, as `stats` and the Prometheus endpoint show it.
    #[must_use]
    pub fn metric_rows(&self) -> Vec<MetricRow> {
        let mut rows = self.metrics.rows();
        let store = self.store.stats();
        rows.push(MetricRow::new("kvd_build_info", Some(("version", env!("CARGO_PKG_VERSION"))), 1.0));
        self.host_rows(&store, &mut rows);
        let locking = Some(("mode", self.locking.name()));
        rows.push(MetricRow::new("kvd_locking_info", locking, 1.0));
        histogram_rows(FLUSH_SECONDS, None, &store.flush_us, Scale::Microseconds, None, &mut rows);
        histogram_rows(FLUSH_RECORDS, None, &store.flush_records, Scale::Count, None, &mut rows);
        let wall_seconds = self.clock.wall_ms() as f64 / 1e3;
        process::rows(wall_seconds - self.started.elapsed().as_secs_f64(), &mut rows);
        let mut caches: Vec<_> = self.caches.load().values().cloned().collect();
        caches.sort_by(|a, b| a.name.cmp(&b.name));
        for cache in caches {
            self.cache_rows(&cache, &store, &mut rows);
        }
        rows
    }

    fn host_rows(&self, store: &Stats, rows: &mut Vec<MetricRow>) {
        let found = self.found.lock();
        let (locks, parties) = {
            let state = self.lock();
            (state.locks.counts(), Parties::count(&state.locks))
        };
        for (name, value) in [
            ("kvd_uptime_seconds", self.started.elapsed().as_secs_f64()),
            ("kvd_memory_max_bytes", self.adjustable.load().memory_bytes as f64),
            ("kvd_sequence", self.control.committed() as f64),
            ("kvd_start_clean", f64::from(u8::from(found.report.clean || found.report.created))),
            ("kvd_start_replayed_journal_records", found.report.journal_records as f64),
            ("kvd_start_replayed_pending_records", found.report.pending_records as f64),
            ("kvd_store_healthy", f64::from(u8::from(store.health == Health::Good))),
            ("kvd_store_faults_total", store.faults as f64),
            ("kvd_store_file_bytes", store.file_bytes as f64),
            ("kvd_store_live_bytes", store.tree_bytes.iter().map(|(_, bytes)| *bytes).sum::<u64>() as f64),
            ("kvd_overlay_bytes", store.overlay_bytes as f64),
            ("kvd_pending_records", store.pending_records as f64),
            ("kvd_pending_bytes", store.pending_bytes as f64),
            ("kvd_pending_max_bytes", store.pending_bytes_max as f64),
            ("kvd_journal_records", store.journal_records as f64),
            ("kvd_journal_bytes", store.journal_bytes as f64),
            ("kvd_flushes_total", store.flushes as f64),
            ("kvd_folds_total", store.folds as f64),
            ("kvd_folded_items_total", store.folded_items as f64),
            ("kvd_sweeps_total", store.sweeps as f64),
            ("kvd_swept_items_total", store.swept_items as f64),
            ("kvd_disk_evicted_items_total", store.evicted_items as f64),
            ("kvd_transactions_open", parties.transactions as f64),
            ("kvd_leases_held", parties.leases as f64),
            ("kvd_named_locks_held", parties.named as f64),
            ("kvd_lock_waiters", parties.waiting as f64),
            ("kvd_slow_requests_total", self.slow_log.total() as f64),
            ("kvd_watchers", self.watchers_count() as f64),
            ("kvd_lock_waits_total", locks.waits as f64),
            ("kvd_deadlocks_total", locks.deadlocks as f64),
            ("kvd_transactions_ended_silent_total", locks.silent as f64),
            ("kvd_transactions_ended_old_total", locks.too_old as f64),
            ("kvd_transactions_ended_by_hand_total", locks.by_hand as f64),
            ("kvd_grants_taken_back_total", locks.taken_back as f64),
        ] {
            rows.push(MetricRow::new(name, None, value));
        }
    }

    fn cache_rows(&self, cache: &Cache, store: &Stats, rows: &mut Vec<MetricRow>) {
        let (counts, side_bytes) = {
            let state = self.lock();
            let memory = state.memory_ref(cache);
            (memory.writer.counts(), memory.side.bytes())
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let counters = &cache.counters;
        for (name, value) in [
            ("kvd_cache_hits_shared_total", read(&counters.hits_shared)),
            ("kvd_cache_misses_shared_total", read(&counters.misses_shared)),
            ("kvd_cache_hits_memory_total", read(&counters.hits_memory)),
            ("kvd_cache_hits_disk_total", read(&counters.hits_disk)),
            ("kvd_cache_hits_stale_total", read(&counters.hits_stale)),
            ("kvd_cache_misses_total", read(&counters.misses)),
            ("kvd_cache_writes_total", read(&counters.writes)),
            ("kvd_cache_removals_total", read(&counters.removals)),
            ("kvd_cache_clears_total", read(&counters.clears)),
            ("kvd_cache_conditions_refused_total", read(&counters.conditions_refused)),
            ("kvd_leases_granted_total", read(&counters.leases_granted)),
            ("kvd_lease_fills_total", read(&counters.lease_fills)),
            ("kvd_lease_fills_refused_total", read(&counters.lease_fills_refused)),
            ("kvd_lease_abandons_total", read(&counters.lease_abandons)),
            ("kvd_lease_waits_total", read(&counters.lease_waits)),
            ("kvd_leases_overtaken_total", read(&counters.leases_overtaken)),
            ("kvd_leases_expired_total", read(&counters.leases_expired)),
            ("kvd_leases_lost_total", read(&counters.leases_lost)),
            ("kvd_cache_items", counts.items as f64),
            ("kvd_cache_disk_marks", counts.disk_marks as f64),
            ("kvd_cache_evicted_total", counts.evicted as f64),
            ("kvd_cache_expired_total", counts.expired_dropped as f64),
            ("kvd_cache_promoted_total", counts.promoted as f64),
            ("kvd_cache_ghost_hits_total", counts.ghost_hits as f64),
            ("kvd_cache_index_forgotten_total", counts.forgotten as f64),
            ("kvd_cache_memory_max_bytes", cache.config.memory_bytes as f64),
            (
                "kvd_cache_disk_max_bytes",
                if cache.on_disk() { cache.config.disk_bytes_max as f64 } else { 0.0 },
            ),
            ("kvd_cache_memory_bytes", (counts.ring_bytes_used + side_bytes) as f64),
            ("kvd_cache_disk_bytes", live_bytes(store, cache.id) as f64),
        ] {
            rows.push(MetricRow::new(name, Some(("cache", &cache.name)), value));
        }
    }

    pub(crate) fn list_caches(&self, out: &mut Vec<u8>) {
        let mut caches: Vec<_> = self.caches.load().values().cloned().collect();
        caches.sort_by(|a, b| a.name.cmp(&b.name));
        let store = self.store.stats();
        let state = self.lock();
        let infos = caches.iter().map(|cache| wire::CacheInfo {
            name: &cache.name,
            declared: cache.declared,
            memory_bytes: cache.config.memory_bytes,
            disk_bytes_max: if cache.on_disk() { cache.config.disk_bytes_max } else { 0 },
            resident_items: state.memory_ref(cache).writer.counts().items,
            disk_bytes: live_bytes(&store, cache.id),
            ttl_default_ms: cache.config.ttl_default_ms,
            ttl_max_ms: cache.config.ttl_max_ms,
            durability: cache.config.durability,
        });
        let infos = infos.collect();
        drop(state);
        encode_into(out, &Response::Caches(infos));
    }
}

/// Bytes of keys and records of a cache in the tree.
fn live_bytes(store: &Stats, cache: CacheId) -> u64 {
    store.tree_bytes.iter().find(|(id, _)| *id == cache).map_or(0, |(_, bytes)| *bytes)
}
