//! Starting and stopping: from a directory to a serving engine, and back to a clean one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kv_proto::segment::{Control, HEARTBEAT_STALE_MS, SegmentState};
use kv_proto::wire::{Durability, Effect};
use parking_lot::{Condvar, Mutex};

use super::cache::{Cache, Caches};
use super::lease::Cooling;
use super::{Adjustable, Engine, Failure, Inheritance, Inherited, Session, State, clients};
use crate::clock::Clock;
use crate::config::{CacheConfig, Config, Recover};
use crate::lock::{FileLock, LockError, lock_path};
use crate::metrics::Metrics;
use crate::orders::Orders;
use crate::store::{
    CacheId, CacheStamps, Change, Disk, HEADROOM_BYTES, Hooks, Judgement, OpenError, Options, Recovered,
    Report, Scope, Store,
};
use crate::txn::{Locks, locking};
use crate::units::show_bytes;

/// Downtime after which invalidations may have been missed, and `recover` is applied after an unclean stop.
const DOWNTIME_MAX: Duration = Duration::from_secs(10);
/// How often the heartbeat is stamped.
const HEARTBEAT_EVERY: Duration = Duration::from_millis(50);

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store refuses; the message says what to do.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Somebody else has the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The memory cannot be had.
    #[error("{0}")]
    Memory(String),
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// What a start found, for the line it prints and for `doctor`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) report: Report,
    /// Caches whose items were made stale or cleared by their recovery policy.
    pub(crate) stale: Vec<String>,
    pub(crate) cleared: Vec<String>,
}

/// A cache to be opened: from the configuration, from the disk, or both.
pub(super) struct Planned {
    pub(super) id: CacheId,
    pub(super) name: String,
    declared: bool,
    pub(super) config: CacheConfig,
    pub(super) stamps: CacheStamps,
    /// Not on disk yet: its creation has to be logged.
    new: bool,
}

impl Config {
    /// How the store of this configuration is opened.
    #[must_use]
    pub fn store_options(&self) -> Options {
        Options {
            dir: self.dir.clone(),
            pending_bytes: self.pending_log_bytes as usize,
            journal_bytes_max: self.journal_bytes_max,
            redb_cache_bytes: self.redb_cache_bytes as usize,
            flush_interval: self.flush_interval,
            value_bytes_max: self.value_bytes_max,
            headroom_bytes: HEADROOM_BYTES,
            set_aside: self.set_aside,
        }
    }
}

impl Engine {
    /// Opens the directory of `config`, replays what a crash left, and serves from then on.
    ///
    /// # Errors
    /// When the store is held by another process, of a newer format, corrupt, or cannot be read or written.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Engine>, StartError> {
        Engine::open_on(config, clock, Disk::Files, Arc::default(), None)
    }

    /// As `open`, for a daemon whose main thread takes `orders`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_for(config: Config, clock: Clock, orders: Arc<Orders>) -> Result<Arc<Engine>, StartError> {
        Engine::open_on(config, clock, Disk::Files, orders, None)
    }

    /// As `open_for`, after another engine of the same directory, whose lock comes with what it left.
    pub(crate) fn open_after(
        config: Config,
        clock: Clock,
        orders: Arc<Orders>,
        inherited: Inherited,
    ) -> Result<Arc<Engine>, StartError> {
        Engine::open_on(config, clock, Disk::Files, orders, Some(inherited))
    }

    /// Opens with the store on `disk`; the lock is in the directory all the same.
    pub(crate) fn open_on(
        config: Config,
        clock: Clock,
        disk: Disk,
        orders: Arc<Orders>,
        inherited: Option<Inherited>,
    ) -> Result<Arc<Engine>, StartError> {
        let is_clean = inherited.as_ref().is_some_and(|inherited| inherited.is_clean);
        let (lock, left) = match inherited {
            Some(inherited) => {
                let unusable = |source| LockError::Unusable { path: lock_path(&config.dir), source };
                inherited.lock.claim(&clock).map_err(unusable)?;
                (inherited.lock, inherited.caches)
            }
            None => (FileLock::take(&lock_path(&config.dir), &clock)?, Vec::new()),
        };
        let locked = clock.instant();
        let options = config.store_options();
        let (store, recovered) = Store::open(options, clock.clone(), disk)?;
        let run_id = fastrand::u64(1..);
        let control = Control::create(run_id).map_err(|cause| StartError::Memory(cause.to_string()))?;
        if let Some(why) = control.why_private() {
            tracing::warn!("no sealed memory can be made ({why}): everything is read over the socket");
        }
        control.commit(recovered.sequence_first);
        control.heartbeat(clock.beat_ms());
        clock.show_on(&control);
        let nobody_reads = is_clean || recovered.report.clean || recovered.report.created;
        let wait = if nobody_reads { 0 } else { HEARTBEAT_STALE_MS as u64 };
        let engine = Arc::new(Engine {
            adjustable: ArcSwap::from_pointee(Adjustable::of(&config)),
            orders,
            clock,
            locking: locking::mode(config.locking),
            store,
            control,
            caches: ArcSwap::from_pointee(Caches::new()),
            state: Mutex::new(State {
                sequence: recovered.sequence_first,
                memories: Vec::new(),
                cache_id: recovered.cache_first.saturating_sub(1),
                dropped: Vec::new(),
                swept: 0,
                locks: Locks::default(),
                cooling: Cooling::default(),
            }),
            prefix_retired: Condvar::new(),
            creating: Mutex::new(()),
            writable_from: locked + Duration::from_millis(wait),
            closing: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            resizes: Mutex::default(),
            wake: Mutex::new(()),
            wake_tidy: Condvar::new(),
            threads: Mutex::new(Vec::new()),
            run_id,
            segments: AtomicU64::new(0),
            clients: Arc::new(clients::Clients::default()),
            watchers: Arc::default(),
            slow_log: super::slow::SlowLog::new(config.slow_log_threshold),
            started: locked,
            lock: Mutex::new(Some(lock)),
            metrics: Metrics::new(),
            rewrites: Mutex::new(Vec::new()),
            found: Mutex::new(Found {
                report: recovered.report.clone(),
                stale: Vec::new(),
                cleared: Vec::new(),
            }),
            config,
        });
        engine.open_caches(&recovered, left)?;
        engine.set_hooks();
        engine.start_threads()?;
        Ok(engine)
    }

    fn open_caches(&self, recovered: &Recovered, mut left: Vec<Inheritance>) -> Result<(), StartError> {
        let planned = self.plan_caches(recovered, &left);
        let memory = |failure: Failure| StartError::Memory(failure.message);
        let mut opened = Vec::new();
        for plan in planned {
            let (made, is_inherited) = self.make_planned(&plan, &mut left).map_err(memory)?;
            let resize = self.geometry_wanted(&plan.config, &made).filter(|_| is_inherited);
            self.resizes.lock().extend(resize.map(|geometry| (plan.id, geometry)));
            let cache = {
                let mut state = self.lock();
                let cache =
                    self.adopt(&mut state, plan.id, &plan.name, plan.declared, plan.config.clone(), made);
                if plan.new || !cache.on_disk() {
                    let version = self.next_sequence(&mut state);
                    state.memory(&cache).writer.complete(version);
                    self.control.commit(version);
                }
                cache
            };
            opened.push((plan, cache, is_inherited));
        }
        for (plan, cache, is_inherited) in &opened {
            self.log_if_new(plan, cache).map_err(memory)?;
            if !is_inherited {
                self.recover(plan, cache, &recovered.report).map_err(memory)?;
            }
        }
        Ok(())
    }

    fn plan_caches(&self, recovered: &Recovered, left: &[Inheritance]) -> Vec<Planned> {
        let mut planned: Vec<Planned> = recovered
            .caches
            .iter()
            .map(|row| Planned {
                id: row.id,
                name: row.name.clone(),
                declared: self.config.caches.contains_key(&row.name),
                config: self.config.caches.get(&row.name).unwrap_or(&self.config.default).clone(),
                stamps: recovered
                    .stamps
                    .iter()
                    .find(|stamps| stamps.cache == row.id)
                    .cloned()
                    .unwrap_or_default(),
                new: false,
            })
            .collect();
        let mut state = self.lock();
        for (name, config) in &self.config.caches {
            if planned.iter().all(|plan| plan.name != *name) {
                state.cache_id += 1;
                planned.push(Planned {
                    id: state.cache_id,
                    name: name.clone(),
                    declared: true,
                    config: config.clone(),
                    stamps: CacheStamps::default(),
                    new: true,
                });
            }
        }
        // What its first write had created in memory only, another engine knew and nobody else.
        if self.config.default.durability == Durability::Memory {
            for name in left.iter().filter_map(Inheritance::name_in_memory) {
                if planned.iter().all(|plan| plan.name != name) {
                    state.cache_id += 1;
                    planned.push(Planned {
                        id: state.cache_id,
                        name: name.to_owned(),
                        declared: false,
                        config: self.config.default.clone(),
                        stamps: CacheStamps::default(),
                        new: true,
                    });
                }
            }
        }
        planned
    }

    /// Logs a cache that is not on disk yet.
    fn log_if_new(&self, plan: &Planned, cache: &Arc<Cache>) -> Result<(), Failure> {
        if plan.new && cache.on_disk() {
            let deadline = self.clock.instant() + kv_proto::limits::WRITE_WAIT_MAX;
            let permit = self.store.admit(&[], 256, Durability::Behind, deadline)?;
            let mut state = self.lock();
            let version = self.next_sequence(&mut state);
            let created = Change::CacheCreated { cache: plan.id, name: &plan.name, settings: &[] };
            self.store.append(permit, version, &[created]);
            self.control.commit(version);
        }
        Ok(())
    }

    /// Does to what a cache has on disk what its recovery policy says.
    fn recover(&self, plan: &Planned, cache: &Arc<Cache>, report: &Report) -> Result<(), Failure> {
        let missed = !report.clean && (!report.same_boot || report.down_for > DOWNTIME_MAX);
        let policy = missed || cache.config.after_clean_stop;
        let effect = match cache.config.recover {
            _ if plan.new || !policy || !cache.on_disk() => return Ok(()),
            Recover::Keep => return Ok(()),
            Recover::Stale => Effect::Stale,
            Recover::Clear => Effect::Gone,
        };
        // This needs not wait for the dead daemon's readers: nobody is served yet.
        let deadline = self.clock.instant() + kv_proto::limits::WRITE_WAIT_MAX;
        let what = kv_proto::wire::What::Cleared { effect };
        self.stamp_by(
            &mut Session::of_process(),
            std::slice::from_ref(cache),
            Scope::All,
            effect,
            what,
            deadline,
        )?;
        let mut found = self.found.lock();
        match effect {
            Effect::Stale => found.stale.push(cache.name.clone()),
            Effect::Gone => found.cleared.push(cache.name.clone()),
        }
        Ok(())
    }

    fn set_hooks(self: &Arc<Engine>) {
        let weak = Arc::downgrade(self);
        let (judging, evicted, sweeping, rewriting) =
            (weak.clone(), weak.clone(), weak.clone(), weak.clone());
        self.store.set_hooks(Hooks {
            judge: Box::new(move |cache, key, view| {
                judging.upgrade().map_or(Judgement::Keep, |engine| engine.judge(cache, key, view))
            }),
            evict: Box::new(move |cache, key, _| {
                weak.upgrade().is_some_and(|engine| !engine.store.is_overlaid(cache, key))
            }),
            evicted: Box::new(move |cache, key, version| {
                if let Some(engine) = evicted.upgrade() {
                    engine.evicted_from_disk(cache, key, version);
                }
            }),
            rewrite: Box::new(move |cache| {
                if let Some(engine) = rewriting.upgrade() {
                    engine.rewrites.lock().push(cache);
                    engine.tidy_now();
                }
            }),
            swept: Box::new(move |sequence| {
                if let Some(engine) = sweeping.upgrade() {
                    engine.lock().swept = sequence;
                    engine.tidy_now();
                }
            }),
        });
    }

    fn start_threads(self: &Arc<Engine>) -> Result<(), StartError> {
        self.spawn("kvd-heart", Engine::beat)?;
        self.spawn("kvd-warm", Engine::warm)?;
        self.spawn("kvd-tidy", Engine::tidy)
    }

    fn spawn(self: &Arc<Engine>, name: &str, run: fn(&Engine)) -> Result<(), StartError> {
        let engine = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&engine));
        self.threads.lock().push(thread.map_err(StartError::Thread)?);
        Ok(())
    }

    /// Stamps the heartbeat, and does nothing else: readers trust the segment as long as it beats.
    fn beat(&self) {
        while !self.closing.load(Ordering::Acquire) {
            self.control.heartbeat(self.clock.beat_ms());
            self.store.alive();
            std::thread::park_timeout(HEARTBEAT_EVERY);
        }
    }

    /// Waits until changes may be applied.
    pub(crate) fn wait_until_writable(&self, deadline: Instant) -> Result<(), Failure> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Failure::unavailable("the daemon is stopping", 200));
        }
        let now = self.clock.instant();
        if now < self.writable_from {
            if self.writable_from > deadline {
                return Err(Failure::unavailable("the daemon takes no writes yet", 500));
            }
            std::thread::sleep(self.writable_from - now);
        }
        Ok(())
    }

    /// Flushes, says the segments are closed, and closes the store. Changes are refused from here on.
    ///
    /// # Errors
    /// When the last flush fails or does not end by `deadline`; the store survives it as it survives a kill.
    pub fn close(&self, deadline: Instant) -> Result<(), Failure> {
        if self.closing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.end_threads();
        {
            let mut state = self.lock();
            for memory in state.memories.iter_mut().flatten() {
                memory.writer.set_state(SegmentState::Closed);
            }
            self.control.set_state(SegmentState::Closed);
        }
        self.save_resident();
        let closed = self.store.close(deadline).map_err(Failure::from);
        self.lock.lock().take();
        closed
    }

    /// Waits for the engine's own threads, which see that it is closing.
    pub(super) fn end_threads(&self) {
        self.tidy_now();
        for thread in self.threads.lock().drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread of the engine had panicked");
            }
        }
    }

    /// One line: what is held.
    #[must_use]
    pub fn summary(&self) -> String {
        let caches = self.caches.load().len();
        format!(
            "{caches} caches, {} of memory, {} on disk",
            show_bytes(self.adjustable.load().memory_bytes),
            show_bytes(self.store.stats().file_bytes),
        )
    }

    /// One line: what the start found.
    #[must_use]
    pub fn found(&self) -> String {
        self.found.lock().describe()
    }
}

impl Found {
    fn describe(&self) -> String {
        let report = &self.report;
        let mut parts = Vec::new();
        parts.push(report.to_string());
        if !self.stale.is_empty() {
            parts.push(format!("stale until reloaded: {}", self.stale.join(", ")));
        }
        if !self.cleared.is_empty() {
            parts.push(format!("cleared: {}", self.cleared.join(", ")));
        }
        parts.join("; ")
    }
}
