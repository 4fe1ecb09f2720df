//! A cache as this process reads it: through its segment while that can be trusted, else by asking.
//!
//! Called by the `Cache` types of both clients for every read. A read here is a few loads and a copy; it must never make a
//! system call, wait, or answer from a segment whose daemon may be dead.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use kv_proto::BootMs;
use kv_proto::limits::KEY_BYTES_MAX;
use kv_proto::segment::{Control, Freshness, ManyOutcome, Meta, Outcome, Reason, Time, Value};
use rustix::time::{ClockId, clock_gettime};

use super::attach::{Attached, Refusal, attach};
use super::counts::LoadCounts;
use super::record::{Record, Totals};
use crate::answers::{CacheStats, Entry, Fallbacks, ReadPath};
use crate::ops::{self, Sending};
use crate::options::Settings;
use crate::scope::Scope;

/// A reader that makes no request tells what it read this often, in milliseconds.
const TELL_EVERY_MS: i64 = 1_000;
/// A request takes along what was read if the last report is this old, in milliseconds.
const TELL_ALONG_MS: i64 = 100;
/// A thread keeps no larger buffer than this for its reads.
const SCRATCH_BYTES_MAX: usize = 1 << 20;
/// Nobody else tries to attach while one may still be trying, in milliseconds beyond its deadline.
const CLAIM_SLACK_MS: i64 = 100;

/// What shared memory said.
#[derive(Debug)]
enum Read {
    /// An item, fresh or stale; its bytes are in the buffer, the value first.
    Hit(Meta),
    /// There is none, for certain.
    Miss,
    /// Ask the daemon.
    Ask,
}

/// What is known of a key whose value was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is in the buffer.
    Fresh,
    /// There is an item, but it is stale.
    Stale,
    /// There is none.
    Nothing,
}

/// How much of an item a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// All but the value.
    Description,
    /// The value too.
    All,
}

/// One cache's place in a client.
#[derive(Debug)]
pub(crate) struct Seat {
    name: Box<str>,
    /// Names this seat among all of the process.
    id: u64,
    attached: ArcSwapOption<Attached>,
    /// Counts changes of `attached`, so that threads can keep what they know of it.
    generation: AtomicU64,
    /// Nobody attaches before this moment; whoever moves it on attaches.
    attach_from: AtomicI64,
    /// Why there is no segment, since it was first wanted.
    because: ArcSwapOption<String>,
    is_warned: AtomicBool,
    record: Record,
    told: Told,
    asked: [AtomicU64; REASONS],
    loads: LoadCounts,
}

/// How far reports have come. Only whoever has moved `at` touches the rest.
#[derive(Debug, Default)]
struct Told {
    at: AtomicI64,
    hits: AtomicU64,
    misses: AtomicU64,
    path: ArcSwapOption<ReadPath>,
}

const REASONS: usize = 7;

fn reason_index(reason: Option<Reason>) -> usize {
    match reason {
        None => 0,
        Some(Reason::Mark) => 1,
        Some(Reason::Side) => 2,
        Some(Reason::Forgot) => 3,
        Some(Reason::Incomplete) => 4,
        Some(Reason::Lapped) => 5,
        Some(Reason::State) => 6,
    }
}

impl Seat {
    pub(super) fn new(name: &str) -> Seat {
        Seat {
            name: name.into(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            attached: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            attach_from: AtomicI64::new(0),
            because: ArcSwapOption::empty(),
            is_warned: AtomicBool::new(false),
            record: Record::default(),
            told: Told::default(),
            asked: Default::default(),
            loads: LoadCounts::default(),
        }
    }

    /// Names it among all of the process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What is counted of loads.
    pub(crate) fn loads(&self) -> &LoadCounts {
        &self.loads
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The fresh value of a key in `value`, if there is one; `None`: ask the daemon. `is_due` is set when what was read
    /// should be told now.
    #[inline]
    pub(crate) fn value(&self, key: &[u8], value: &mut Vec<u8>, is_due: &mut bool) -> Option<Found> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            // No key: whoever asks is told so.
            return None;
        }
        let beat = Cell::new(0);
        let found = self.with_attached(|attached| {
            let attached = attached?;
            let reader = &attached.reader;
            Some(reader.value(reader.hash(key), key, Now::of(&attached.control, &beat), value))
        });
        let found = match found {
            Some(Value::Fresh(place)) => {
                self.record.hit(place);
                Found::Fresh
            }
            Some(Value::Stale(place)) => {
                self.record.hit(place);
                Found::Stale
            }
            Some(Value::None) => {
                self.record.miss();
                Found::Nothing
            }
            // The request that follows takes along what is to be told.
            Some(Value::Ask(reason)) => {
                self.ask(Some(reason));
                return None;
            }
            None => {
                self.ask(None);
                return None;
            }
        };
        *is_due = self.is_due(beat.get());
        Some(found)
    }

    /// The fresh values of many keys, of one moment, recorded in `scope`; `None`: ask the daemon for all of them.
    pub(crate) fn values<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        scope: Option<&Scope>,
        is_due: &mut bool,
    ) -> Option<Vec<Option<Vec<u8>>>> {
        let (mut buffer, mut found) = (scratch(), Vec::with_capacity(keys.len()));
        let is_answered = self.get_many(keys, &mut buffer, &mut found, is_due);
        let fresh = |meta: &Meta| meta.freshness == Freshness::Fresh;
        if let Some(scope) = scope.filter(|_| is_answered) {
            let now = self.now();
            if !found.iter().all(|outcome| outcome.as_ref().is_some_and(fresh)) {
                scope.read(None);
            }
            for meta in found.iter().flatten().filter(|meta| fresh(meta)) {
                let left = meta.expires.map(|at| Duration::from_millis(u64::try_from(at - now).unwrap_or(0)));
                scope.used(left, Duration::from_millis(meta.stale_for_ms), meta.tags(&buffer));
            }
        }
        let values = is_answered.then(|| {
            let value = |meta: &Meta| meta.value(&buffer).to_vec();
            found.iter().map(|outcome| outcome.as_ref().filter(|meta| fresh(meta)).map(value)).collect()
        });
        give_back(buffer);
        values
    }

    /// All about an item, stale ones too; `None`: ask the daemon.
    pub(crate) fn entry(&self, key: &[u8], parts: Parts, is_due: &mut bool) -> Option<Option<Entry>> {
        let mut buffer = scratch();
        let entry = match self.get(key, &mut buffer, is_due) {
            Read::Hit(meta) => Some(Entry::from_shared(&meta, &buffer, self.now(), parts)),
            Read::Miss => Some(None),
            Read::Ask => None,
        };
        give_back(buffer);
        entry
    }

    /// Looks a key up.
    #[inline]
    fn get(&self, key: &[u8], buffer: &mut Vec<u8>, is_due: &mut bool) -> Read {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            // No key: whoever asks is told so.
            return Read::Ask;
        }
        let beat = Cell::new(0);
        self.with_attached(|attached| {
            let Some(attached) = attached else { return self.ask(None) };
            let time = Now::of(&attached.control, &beat);
            match attached.reader.get(attached.reader.hash(key), key, time, buffer) {
                Outcome::Hit(meta) => {
                    self.record.hit(meta.place);
                    *is_due = self.is_due(beat.get());
                    Read::Hit(meta)
                }
                Outcome::Miss => {
                    self.record.miss();
                    *is_due = self.is_due(beat.get());
                    Read::Miss
                }
                Outcome::Ask(reason) => self.ask(Some(reason)),
            }
        })
    }

    /// Reads with what this thread knows of the segment. A count of references in common would be a locked instruction, and
    /// that would keep the processor from overlapping one read with the next: half of what reads in a row cost.
    #[inline]
    fn with_attached<T>(&self, read: impl FnOnce(Option<&Attached>) -> T) -> T {
        KNOWN.with_borrow_mut(|known| {
            let known = &mut known[self.id as usize % KNOWN_MAX];
            if known.seat != self.id || known.generation != self.generation.load(Ordering::Acquire) {
                self.learn(known);
            }
            read(known.attached.as_deref())
        })
    }

    #[cold]
    fn learn(&self, known: &mut Known) {
        let generation = self.generation.load(Ordering::Acquire);
        *known = Known { seat: self.id, generation, attached: self.attached.load_full() };
    }

    fn set_attached(&self, attached: Option<Arc<Attached>>) {
        self.attached.store(attached);
        // After the store: whoever sees the number sees at least this segment.
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Looks many keys up as of one moment: their bytes in `buffer`, answers in `found`. False: ask the daemon for all.
    fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        buffer: &mut Vec<u8>,
        found: &mut Vec<ManyOutcome>,
        is_due: &mut bool,
    ) -> bool {
        if keys.iter().any(|key| key.as_ref().is_empty() || key.as_ref().len() > KEY_BYTES_MAX) {
            return false;
        }
        let attached = self.attached.load();
        let Some(attached) = &*attached else {
            self.ask(None);
            return false;
        };
        let beat = Cell::new(0);
        let time = Now::of(&attached.control, &beat);
        let hashed: Vec<(u64, &[u8])> =
            keys.iter().map(|key| (attached.reader.hash(key.as_ref()), key.as_ref())).collect();
        if let Err(reason) = attached.reader.get_many(&hashed, time, buffer, found) {
            self.ask(Some(reason));
            return false;
        }
        for outcome in &*found {
            match outcome {
                Some(meta) => self.record.hit(meta.place),
                None => self.record.miss(),
            }
        }
        *is_due = self.is_due(beat.get());
        true
    }

    /// What the times of an item are counted from.
    fn now(&self) -> BootMs {
        self.attached
            .load()
            .as_ref()
            .map_or_else(|| boot_ms(0), |attached| boot_ms(attached.control.time_offset_ms()))
    }

    #[cold]
    fn ask(&self, reason: Option<Reason>) -> Read {
        self.asked[reason_index(reason)].fetch_add(1, Ordering::Relaxed);
        Read::Ask
    }

    /// After the daemon has answered: attaches where that is wanted and nobody else does, in what is left of the call's time.
    pub(crate) fn attach_if_wanted(&self, settings: &Settings, deadline: Instant) {
        if let Some(claim) = self.claim(settings) {
            self.attach(settings, claim.min(deadline));
        }
    }

    /// The right to attach until a deadline. Not a lock: a process that forks or dies with it holds up nobody for long.
    pub(crate) fn claim(&self, settings: &Settings) -> Option<Instant> {
        let now = beat_ms();
        let from = self.attach_from.load(Ordering::Relaxed);
        if !settings.shared_memory || now < from || self.path().is_shared() {
            return None;
        }
        let wait = settings.connect_timeout.min(Duration::from_secs(60));
        let until = now + CLAIM_SLACK_MS + i64::try_from(wait.as_millis()).unwrap_or(0);
        self.attach_from.compare_exchange(from, until, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(Instant::now() + wait)
    }

    /// Attaches by virtue of a claim.
    pub(crate) fn attach(&self, settings: &Settings, deadline: Instant) {
        match attach(settings, &self.name, deadline) {
            Ok(fresh) => {
                // The places of another segment mean nothing in this one.
                drop(self.record.take_places());
                self.told.at.store(beat_ms(), Ordering::Relaxed);
                self.set_attached(Some(Arc::new(fresh)));
                self.is_warned.store(false, Ordering::Relaxed);
                self.attach_from.store(beat_ms() + 100, Ordering::Relaxed);
            }
            Err(refusal) => self.refused(refusal),
        }
    }

    /// Reads ask from here on: what memory says was invalidated by this process, and the daemon does not know yet.
    pub(crate) fn detach(&self) {
        self.because.store(Some(Arc::new("an invalidation waits for the daemon".to_owned())));
        self.set_attached(None);
        self.attach_from.store(0, Ordering::Relaxed);
    }

    fn refused(&self, refusal: Refusal) {
        let Refusal { because, again, is_lasting } = refusal;
        if is_lasting && !self.is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(cache = &*self.name, because, "reads of this cache go over the socket");
        }
        self.set_attached(None);
        self.because.store(Some(Arc::new(because)));
        self.attach_from.store(beat_ms() + again.as_millis() as i64, Ordering::Relaxed);
    }

    /// How this cache is read right now.
    pub(crate) fn path(&self) -> ReadPath {
        match &*self.attached.load() {
            None => {
                let because = self.because.load();
                let because = because.as_ref().map_or("nothing was asked for yet", |because| because);
                ReadPath::Socket { because: because.to_owned() }
            }
            Some(attached) => match attached.reader.why_not(Now::of(&attached.control, &Cell::new(0))) {
                None => ReadPath::Shared,
                Some(because) => ReadPath::Socket { because: because.to_owned() },
            },
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        let asked = |reason| self.asked[reason_index(reason)].load(Ordering::Relaxed);
        let Totals { hits, misses } = self.record.totals();
        CacheStats {
            name: self.name.to_string(),
            path: self.path(),
            shared_hits: hits,
            shared_misses: misses,
            times_overtaken: self.attached.load().as_ref().map_or(0, |a| a.reader.times_overtaken()),
            fallbacks: Fallbacks {
                not_attached: asked(None),
                not_resident: asked(Some(Reason::Mark)) + asked(Some(Reason::Side)),
                forgotten: asked(Some(Reason::Forgot)) + asked(Some(Reason::Incomplete)),
                lapped: asked(Some(Reason::Lapped)),
                not_live: asked(Some(Reason::State)),
            },
            loads: self.loads.read(),
        }
    }

    #[inline]
    fn is_due(&self, beat_ms: i64) -> bool {
        beat_ms - self.told.at.load(Ordering::Relaxed) >= TELL_EVERY_MS
    }

    /// The report that is due, if anything was read since the last.
    pub(crate) fn report(&self) -> Option<Sending> {
        self.report_after(TELL_EVERY_MS)
    }

    /// The report to take along with a request.
    pub(crate) fn report_along(&self) -> Option<Sending> {
        self.report_after(TELL_ALONG_MS)
    }

    fn report_after(&self, ms: i64) -> Option<Sending> {
        let at = self.told.at.load(Ordering::Relaxed);
        let now = beat_ms();
        if now - at < ms {
            return None;
        }
        let Totals { hits, misses } = self.record.totals();
        let path = self.path();
        if self.attached.load().is_none() && self.because.load().is_none() {
            return None;
        }
        let is_news = hits != self.told.hits.load(Ordering::Relaxed)
            || misses != self.told.misses.load(Ordering::Relaxed)
            || self.told.path.load().as_deref() != Some(&path);
        // One thread builds it; the others go on reading.
        self.told.at.compare_exchange(at, now, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        if !is_news {
            return None;
        }
        let segment = self.attached.load().as_ref().map_or(0, |attached| attached.segment);
        let reads = ops::SharedReads {
            segment,
            hits: hits.saturating_sub(self.told.hits.swap(hits, Ordering::Relaxed)),
            misses: misses.saturating_sub(self.told.misses.swap(misses, Ordering::Relaxed)),
            places: self.record.take_places(),
        };
        let report = ops::hits(&self.name, reads, path.because());
        self.told.path.store(Some(Arc::new(path)));
        report.ok()
    }
}

/// A buffer of this thread, to be given back. Whoever asks again before that gets another.
pub(crate) fn scratch() -> Vec<u8> {
    SCRATCH.take()
}

/// Keeps a buffer for the next read of this thread, unless it has grown large.
pub(crate) fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() <= SCRATCH_BYTES_MAX {
        buffer.clear();
        SCRATCH.set(buffer);
    }
}

thread_local!(static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });

/// What a thread knows of a seat's segment. A thread that never reads again keeps the memory of one that has been replaced
/// mapped until it ends; there are few of each.
struct Known {
    seat: u64,
    generation: u64,
    attached: Option<Arc<Attached>>,
}

const KNOWN_MAX: usize = 16;
const UNKNOWN: Known = Known { seat: 0, generation: 0, attached: None };
/// Seats are numbered from one.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
thread_local!(static KNOWN: RefCell<[Known; KNOWN_MAX]> = const { RefCell::new([UNKNOWN; KNOWN_MAX]) });

/// The machine's clocks, read when they are asked for, plus what tests have added. Answered by the vDSO, without a system
/// call.
#[derive(Clone, Copy)]
struct Now<'a> {
    control: &'a Control,
    /// The last beat that was asked for, so that nobody need ask again.
    beat_ms: &'a Cell<i64>,
}

impl<'a> Now<'a> {
    #[inline]
    fn of(control: &'a Control, beat_ms: &'a Cell<i64>) -> Now<'a> {
        Now { control, beat_ms }
    }
}

impl Time for Now<'_> {
    #[inline]
    fn beat_ms(self) -> i64 {
        self.beat_ms.set(beat_ms());
        self.beat_ms.get()
    }

    #[inline]
    fn now(self) -> BootMs {
        boot_ms(self.control.time_offset_ms())
    }
}

fn boot_ms(offset_ms: i64) -> BootMs {
    whole_ms(ClockId::Boottime) + offset_ms
}

#[inline]
fn beat_ms() -> i64 {
    whole_ms(ClockId::MonotonicCoarse)
}

#[inline]
fn whole_ms(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
}
