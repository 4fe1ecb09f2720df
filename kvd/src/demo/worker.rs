//! A worker process: threads that read through the cache, and know what they must find.
//!
//! Started by the conductor. An object belongs to one thread, so the thread knows which row it last put, that this was
//! acknowledged, and until when it lives: a hit with another row, a hit after the end, or a miss before it breaks a promise
//! and is counted. After the kill each thread looks up everything it was told is safe.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use kv_client::OnOutage;
use kv_client::blocking::{Cache, Client};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::database::Database;
use super::moment::Moment;
use super::objects::{self, CACHE};
use super::{Failure, stage, workload};

/// How long workers wait for a daemon that is coming back: longer than any restart of the demo.
const GRACE: Duration = Duration::from_secs(20);
/// How long a worker waits for the conductor's word before it gives up.
const WORD_WITHIN: Duration = Duration::from_secs(3_600);
/// Keys looked up at once after the kill.
const LOOK_UP_MAX: usize = 256;
/// What lives no longer than this is not looked up: it may expire in between.
const LIFE_MARGIN: Duration = Duration::from_millis(100);
/// Lives are counted in whole milliseconds: what is nearer to its end than this proves nothing.
const EDGE: Duration = Duration::from_millis(2);
/// Broken promises are told in words up to here.
const EXAMPLES_MAX: usize = 10;
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How a worker is started.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    cache: PathBuf,
    #[arg(long)]
    database: PathBuf,
    #[arg(long)]
    accesses: PathBuf,
    /// Where each thread's record goes
    #[arg(long)]
    records: PathBuf,
    #[arg(long)]
    worker: u32,
    #[arg(long)]
    workers: u32,
    #[arg(long)]
    threads: u32,
    #[arg(long)]
    time_scale: u32,
    /// What was acknowledged survives the daemon
    #[arg(long)]
    kept: bool,
}

/// What a worker counted.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) hits: u64,
    /// Loads because there was nothing.
    pub(super) misses: u64,
    /// Of them: the object had been cached and its life was over.
    pub(super) expired: u64,
    /// Of them: it should still have been there.
    pub(super) misses_early: u64,
    /// Hits with a row that is not the one acknowledged last.
    pub(super) hits_wrong: u64,
    /// Hits after the life was over.
    pub(super) hits_late: u64,
    /// Reads that failed: the row was loaded instead.
    pub(super) reads_failed: u64,
    /// Puts whose answer was lost, so that nothing was acknowledged.
    pub(super) puts_unanswered: u64,
    pub(super) puts_acknowledged: u64,
    /// Acknowledged writes looked up after the kill.
    pub(super) verified: u64,
    /// Of them not there, or not as acknowledged.
    pub(super) lost: u64,
    /// Reads answered by shared memory alone, those that looked for losses among them.
    pub(super) shared_reads: u64,
    /// Latency of everything, and of hits: nanoseconds and how often.
    /// What was broken first, in words.
    pub(super) examples: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) latency_all: Vec<(u64, u64)>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) latency_hits: Vec<(u64, u64)>,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        for (mine, others) in [
            (&mut self.requests, other.requests),
            (&mut self.hits, other.hits),
            (&mut self.misses, other.misses),
            (&mut self.expired, other.expired),
            (&mut self.misses_early, other.misses_early),
            (&mut self.hits_wrong, other.hits_wrong),
            (&mut self.hits_late, other.hits_late),
            (&mut self.reads_failed, other.reads_failed),
            (&mut self.puts_unanswered, other.puts_unanswered),
            (&mut self.puts_acknowledged, other.puts_acknowledged),
            (&mut self.verified, other.verified),
            (&mut self.lost, other.lost),
            (&mut self.shared_reads, other.shared_reads),
        ] {
            *mine += others;
        }
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).cloned());
        self.latency_all.extend(&other.latency_all);
        self.latency_hits.extend(&other.latency_hits);
    }
}

/// What a request came to, in the record: one bit beside its time.
pub(super) const RECORD_HIT: u32 = 1;

/// What the conductor said so far.
#[derive(Default)]
struct Word {
    start: Mutex<Option<Moment>>,
    verify: AtomicBool,
    changed: Condvar,
}

/// Works until all is done and looked up.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    stage::die_with_parent()?;
    let lanes = args.workers * args.threads;
    let shares = workload::shares(&workload::read_back(&args.accesses)?, lanes);
    let client = Client::builder()
        .socket(&args.cache)
        .name(format!("demo-worker-{}", args.worker))
        .op_timeout(GRACE)
        .restart_grace(GRACE)
        .on_outage(OnOutage::Error)
        .build()
        .map_err(Failure::cache("connecting to the daemon"))?;
    let word = Arc::new(Word::default());
    let heard = Arc::clone(&word);
    // Not joined: it hears until the conductor closes the line, which is after this process has ended.
    let listener = std::thread::Builder::new().name("demo-hear".to_owned());
    listener.spawn(move || listen(&heard)).map_err(Failure::io("starting a thread"))?;
    let done = AtomicU64::new(0);
    let mut out = std::io::stdout();
    writeln!(out, "ready").map_err(Failure::io("telling the conductor"))?;
    let tally = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        let mine = shares.iter().enumerate().filter(|(lane, _)| *lane as u32 % args.workers == args.worker);
        for (number, share) in mine {
            let lane = Lane {
                args,
                word: &word,
                done: &done,
                cache: client.cache(CACHE),
                database: Database::connect(&args.database)?,
                share,
                known: HashMap::new(),
                start: Moment::now(),
                tally: Tally::default(),
            };
            threads.push((scope.spawn(move || lane.run()), lane_record(&args.records, number)));
        }
        tell_progress(&done, || threads.iter().all(|(thread, _)| thread.is_finished()))?;
        let mut tally = Tally::default();
        for (thread, path) in threads {
            let (part, record) =
                thread.join().map_err(|_panic| Failure::Plain("a worker's thread failed".to_owned()))??;
            let bytes: Vec<u8> = record.iter().flat_map(|word| word.to_le_bytes()).collect();
            std::fs::write(&path, bytes).map_err(Failure::io(format!("writing {}", path.display())))?;
            tally.add(&part);
        }
        tally.shared_reads = client.stats().caches.iter().map(|cache| cache.shared_hits).sum();
        Ok(tally)
    })?;
    let told = serde_json::to_string(&tally).expect("numbers have a JSON form");
    writeln!(out, "tally {told}").map_err(Failure::io("telling the conductor"))
}

/// Where the record of one thread is kept.
pub(super) fn lane_record(records: &Path, lane: usize) -> PathBuf {
    records.join(format!("lane-{lane}.record"))
}

/// Hears the conductor; ends when the conductor closes the line.
fn listen(word: &Word) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut start = word.start.lock();
        match line.split_once(' ') {
            Some(("go", at)) => *start = at.parse().ok().map(Moment),
            _ if line == "verify" => word.verify.store(true, Ordering::Release),
            _ => {}
        }
        word.changed.notify_all();
    }
}

fn tell_progress(done: &AtomicU64, finished: impl Fn() -> bool) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    while !finished() {
        std::thread::sleep(TELL_EVERY);
        writeln!(out, "done {}", done.load(Ordering::Relaxed))
            .map_err(Failure::io("telling the conductor"))?;
    }
    Ok(())
}

/// What a thread was told about an object.
struct Known {
    stamp: u32,
    /// The put began, and was acknowledged.
    begun: Moment,
    acknowledged: Moment,
    /// The answer to a later put was lost: that row may be there instead.
    perhaps: Option<u32>,
}

/// One thread, its share, and what it knows.
struct Lane<'a> {
    args: &'a Args,
    word: &'a Word,
    done: &'a AtomicU64,
    cache: Cache,
    database: Database,
    share: &'a [u32],
    known: HashMap<u32, Known>,
    start: Moment,
    tally: Tally,
}

impl Lane<'_> {
    fn run(mut self) -> Result<(Tally, Vec<u32>), Failure> {
        self.start = self.await_start()?;
        let start = self.start;
        let mut record = Vec::with_capacity(self.share.len() + 1);
        let mut all = histogram();
        let mut hits = histogram();
        let mut verified = false;
        let mut key = String::new();
        let mut value = Vec::new();
        for object in self.share {
            if !verified && self.word.verify.load(Ordering::Acquire) {
                self.verify()?;
                verified = true;
            }
            objects::key_into(*object, &mut key);
            let begun = Moment::now();
            let hit = self.read_through(*object, &key, begun, &mut value)?;
            let took = Moment::now().since(begun).as_nanos() as u64;
            all.saturating_record(took);
            if hit {
                hits.saturating_record(took);
            }
            record.push((begun.ticks(start) << 1) | if hit { RECORD_HIT } else { 0 });
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        record.push(Moment::now().ticks(start) << 1);
        if !verified {
            self.await_verify()?;
            self.verify()?;
        }
        self.tally.requests = self.share.len() as u64;
        self.tally.latency_all = counts(&all);
        self.tally.latency_hits = counts(&hits);
        Ok((self.tally, record))
    }

    /// Cache aside: whether the cache had it.
    fn read_through(
        &mut self,
        object: u32,
        key: &str,
        begun: Moment,
        value: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        let ttl = objects::ttl(object, self.args.time_scale);
        match self.cache.get_into(key, value) {
            Ok(true) => {
                self.judge_hit(objects::stamp_of(object, value), object, begun, ttl);
                return Ok(true);
            }
            Ok(false) => self.judge_miss(object, ttl),
            // A cache must never take the site down.
            Err(error) => {
                note(&error);
                self.tally.reads_failed += 1;
            }
        }
        self.load_and_put(object, key, ttl)?;
        Ok(false)
    }

    fn judge_hit(&mut self, stamp: Option<u32>, object: u32, begun: Moment, ttl: Duration) {
        self.tally.hits += 1;
        match self.known.get(&object) {
            Some(known) if known.perhaps.is_some() && known.perhaps == stamp => {}
            Some(known) if stamp == Some(known.stamp) => {
                let late = begun > known.acknowledged.plus(ttl).plus(EDGE);
                if late && known.perhaps.is_none() {
                    self.tally.hits_late += 1;
                    self.tell("a hit after the end", object);
                }
            }
            // Nobody else puts this object.
            Some(_) | None => {
                self.tally.hits_wrong += 1;
                self.tell(&format!("a hit with row {stamp:?}"), object);
            }
        }
    }

    fn judge_miss(&mut self, object: u32, ttl: Duration) {
        self.tally.misses += 1;
        if let Some(known) = self.known.get(&object).filter(|known| known.perhaps.is_none()) {
            let early = Moment::now().plus(EDGE) < known.begun.plus(ttl);
            self.tally.misses_early += u64::from(early);
            self.tally.expired += u64::from(!early);
            if early && self.args.kept {
                self.tell("a miss", object);
            }
        }
    }

    /// Puts a broken promise in words.
    fn tell(&mut self, what: &str, object: u32) {
        if self.tally.examples.len() >= EXAMPLES_MAX {
            return;
        }
        let mut key = String::new();
        objects::key_into(object, &mut key);
        let now = Moment::now();
        let at = now.since(self.start);
        let told = self.known.get(&object).map_or("of which nothing was acknowledged".to_owned(), |known| {
            let ago = now.since(known.acknowledged);
            let ttl = objects::ttl(object, self.args.time_scale);
            format!("whose row {} was acknowledged {ago:.3?} before, for {ttl:.3?}", known.stamp)
        });
        self.tally.examples.push(format!("{what} of {key} at {at:.3?}, {told}"));
    }

    fn load_and_put(&mut self, object: u32, key: &str, ttl: Duration) -> Result<(), Failure> {
        let row = self.database.load(object)?;
        let stamp = objects::stamp_of(object, &row);
        let stamp =
            stamp.ok_or_else(|| Failure::Plain("the stand-in database gave a wrong row".to_owned()))?;
        let begun = Moment::now();
        match self.cache.put(key, row, ttl) {
            Ok(_version) => {
                self.tally.puts_acknowledged += 1;
                let acknowledged = Moment::now();
                self.known.insert(object, Known { stamp, begun, acknowledged, perhaps: None });
            }
            // No outage, and no use going on.
            Err(source) if !source.is_retryable() && !source.maybe_applied() => {
                return Err(Failure::Cache { doing: "putting a row", source });
            }
            Err(error) => {
                note(&error);
                self.tally.puts_unanswered += 1;
                // Whatever is there now, it is not known to be what was acknowledged.
                let unknown = Known { stamp, begun, acknowledged: begun, perhaps: Some(stamp) };
                self.known.entry(object).and_modify(|known| known.perhaps = Some(stamp)).or_insert(unknown);
            }
        }
        Ok(())
    }

    /// Looks up every acknowledged row that must still live.
    fn verify(&mut self) -> Result<(), Failure> {
        if !self.args.kept {
            return Ok(());
        }
        let time_scale = self.args.time_scale;
        let lives = |object: u32, known: &Known| {
            let end = known.begun.plus(objects::ttl(object, time_scale));
            known.perhaps.is_none() && Moment::now().plus(LIFE_MARGIN) < end
        };
        let safe: Vec<_> = self.known.iter().filter(|(object, known)| lives(**object, known)).collect();
        let mut lost = Vec::new();
        for chunk in safe.chunks(LOOK_UP_MAX) {
            let keys: Vec<String> = chunk
                .iter()
                .map(|(object, _)| {
                    let mut key = String::new();
                    objects::key_into(**object, &mut key);
                    key
                })
                .collect();
            let values =
                self.cache.get_many(&keys).map_err(Failure::cache("looking up what was acknowledged"))?;
            for ((object, known), value) in chunk.iter().zip(values) {
                let end = known.begun.plus(objects::ttl(**object, time_scale));
                let there = value.and_then(|value| objects::stamp_of(**object, &value)) == Some(known.stamp);
                if there || Moment::now().plus(EDGE) < end {
                    self.tally.verified += 1;
                    if !there {
                        self.tally.lost += 1;
                        lost.push(**object);
                    }
                }
            }
        }
        lost.into_iter().for_each(|object| self.tell("looked up after the kill, no trace", object));
        Ok(())
    }

    fn await_start(&self) -> Result<Moment, Failure> {
        let mut start = self.word.start.lock();
        while start.is_none() {
            if self.word.changed.wait_for(&mut start, WORD_WITHIN).timed_out() {
                return Err(Failure::Plain("the conductor said nothing".to_owned()));
            }
        }
        Ok(start.expect("the loop ends with it"))
    }

    fn await_verify(&self) -> Result<(), Failure> {
        let mut start = self.word.start.lock();
        while !self.word.verify.load(Ordering::Acquire) {
            if self.word.changed.wait_for(&mut start, WORD_WITHIN).timed_out() {
                return Err(Failure::Plain("the conductor said nothing".to_owned()));
            }
        }
        Ok(())
    }
}

/// Into the worker's log, for whoever wonders about a count.
fn note(error: &kv_client::Error) {
    eprintln!("{error}");
}

fn counts(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

/// For latencies in nanoseconds.
pub(super) fn histogram() -> Histogram<u64> {
    let longest = 60_000_000_000;
    Histogram::new_with_bounds(1, longest, 3).expect("one nanosecond to a minute, three digits")
}
