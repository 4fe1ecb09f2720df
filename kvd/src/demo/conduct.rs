//! The demo from beginning to end: sets the stage, lets the workers run, kills the daemon in the middle, adds up.
//!
//! Called by [`run`](super::run). Whatever happens, its stage and processes are gone when it returns.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use kv_client::blocking::Client;
use kvd::units::{show_bytes, show_duration};

use super::database::Database;
use super::moment::Moment;
use super::objects::CACHE;
use super::report::{Kill, Report};
use super::stage::{Process, READY_WITHIN, Stage};
use super::worker::Tally;
use super::workload::{Workload, shares};
use super::{Budget, Failure, Plan, best, objects, report};

/// Requests of the built-in workload unless said.
const REQUESTS_DEFAULT: u64 = 400_000;
/// The run is as long as so much of the shop's time, unless said.
const SHOP_TIME: Duration = Duration::from_secs(8 * 3_600);
/// Requests a second that two cores do, for the estimate alone.
const RATE_GUESS: f64 = 60_000.0;
/// Loads that tell what a request costs without the cache.
const MEASURES: u32 = 300;
/// If nothing moves for this long, something is wrong.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);
/// How often the conductor looks around while workers work.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Room for everything: the objects twice over, and some.
const ROOM_SPARE_BYTES: u64 = 16 << 20;
/// The least memory of a cache that the daemon takes.
const ROOM_BYTES_MIN: u64 = kvd::config::CACHE_MEMORY_BYTES_MIN;

/// Runs the demo; success if nothing promised was broken.
pub(super) fn run(plan: &Plan) -> Result<ExitCode, Failure> {
    let say = |line: &str| if plan.json { eprintln!("{line}") } else { println!("{line}") };
    let workload = match &plan.trace {
        Some(path) => {
            say(&format!("Reading {} ...", path.display()));
            Workload::read(path, plan.requests)?
        }
        None => Workload::make_up(plan.requests.unwrap_or(REQUESTS_DEFAULT), plan.seed),
    };
    let show = Show::new(plan, &workload);
    show.announce(plan, &workload, &say);
    let stage = Stage::new()?;
    let report = show.run(plan, &workload, &stage, &say)?;
    let kept = report.nothing_broken();
    if plan.json {
        report::print_json(&report)
    } else {
        report::print_table(&report)
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What follows from plan and workload.
struct Show {
    lanes: u32,
    memory_bytes: u64,
    /// Objects that a cache without any overhead could hold; `None`: all.
    room: Option<usize>,
    time_scale: u32,
    estimate: Duration,
}

impl Show {
    fn new(plan: &Plan, workload: &Workload) -> Show {
        let memory_bytes = match plan.memory {
            None => workload.bytes * 2 + ROOM_SPARE_BYTES,
            Some(Budget::Bytes(bytes)) => bytes,
            Some(Budget::Percent(percent)) => (workload.bytes as f64 * percent / 100.0) as u64,
        };
        let memory_bytes = memory_bytes.max(ROOM_BYTES_MIN);
        let fits =
            (memory_bytes as u128 * workload.objects as u128 / u128::from(workload.bytes.max(1))) as usize;
        let lanes = plan.workers * plan.threads;
        let loads = workload.objects as f64 * 2.0;
        let seconds = workload.accesses.len() as f64 / RATE_GUESS
            + loads * plan.db_delay.as_secs_f64() / f64::from(lanes)
            + 1.0;
        let scale = plan.time_scale.unwrap_or_else(|| (SHOP_TIME.as_secs_f64() / seconds).max(1.0) as u32);
        Show {
            lanes,
            memory_bytes,
            room: (fits < workload.objects).then_some(fits),
            time_scale: scale,
            estimate: Duration::from_secs_f64(seconds),
        }
    }

    fn announce(&self, plan: &Plan, workload: &Workload, say: &impl Fn(&str)) {
        let lives: Vec<_> = objects::lives()
            .iter()
            .map(|(name, life)| format!("{name} {} = {:.1?}", show_duration(*life), *life / self.time_scale))
            .collect();
        say(&format!(
            "{} requests for {} objects of {} bytes, by {} workers with {} threads each; an object belongs to one thread",
            workload.accesses.len(),
            workload.objects,
            objects::ROW_BYTES,
            plan.workers,
            plan.threads
        ));
        say(&format!("the stand-in database takes {} a load, on purpose", show_duration(plan.db_delay)));
        say(&format!("time runs {} times as fast: {}", self.time_scale, lives.join(", ")));
        let kind = if plan.memory_only { "in memory only" } else { "kept on disk, too" };
        say(&format!("memory of the cache: {}, {kind}", show_bytes(self.memory_bytes)));
        say(&format!("this takes about {} s", self.estimate.as_secs() + 2));
    }

    fn run(
        &self,
        plan: &Plan,
        workload: &Workload,
        stage: &Stage,
        say: &impl Fn(&str),
    ) -> Result<Report, Failure> {
        let accesses = stage.path("accesses");
        workload.write(&accesses)?;
        let mut database = self.start_database(plan, stage)?;
        let mut asking = Database::connect(&stage.path("database.sock"))?;
        let latency_without = measure(&mut asking, workload)?;
        let config = stage.path("kvd.toml");
        self.configure(plan, &config)?;
        let socket = stage.path("kvd").join("kvd.sock");
        let mut daemon = stage.start_daemon(&config)?;
        let client = stage.daemon_answers(&mut daemon, &socket)?;
        let (told, hears) = channel();
        let mut workers = Vec::new();
        for number in 0..plan.workers {
            workers.push(self.start_worker(plan, stage, number, &accesses, &socket, told.clone())?);
        }
        drop(told);
        let mut ensemble = Ensemble::new(workers, hears, workload.accesses.len() as u64, plan.json);
        ensemble.await_ready(stage)?;
        let start = Moment::now();
        ensemble.tell(&format!("go {}", start.0))?;
        let mut kill = None;
        if !plan.no_kill {
            ensemble.until(stage, workload.accesses.len() as u64 / 2)?;
            kill = Some(self.kill(stage, &mut daemon, &config, &socket, &client, start)?);
        }
        ensemble.tell("verify")?;
        let tally = ensemble.until_all_told(stage, &mut database)?;
        let took = Moment::now().since(start);
        let loads = asking.loads()?;
        let sources = sources(&client)?;
        let ended_well = daemon.stop()?;
        say("adding up ...");
        let shares = shares(&workload.accesses, self.lanes);
        let happened = best::recorded(&shares, &stage.path(""))?;
        if let Some(kill) = &mut kill {
            kill.first_hit_seconds = kill.first_hit(&happened);
        }
        let before = kill.as_ref().map_or(Sources::default(), |kill: &Kill| kill.sources_before);
        Ok(Report {
            requests: workload.accesses.len() as u64,
            objects: workload.objects as u64,
            seconds: took.as_secs_f64(),
            loads,
            best_unbounded: best::hits_unbounded(&happened, self.time_scale),
            best_bounded: self.room.map(|room| best::hits_belady(&happened, self.time_scale, room)),
            room: self.room.map(|room| room as u64),
            memory_bytes: self.memory_bytes,
            kept_on_disk: !plan.memory_only,
            sources: Sources { shared: tally.shared_reads as f64, ..before.plus(sources) },
            latency_without: report::percentiles(&latency_without),
            latency_with: report::percentiles(&merged(&tally.latency_all)),
            latency_hits: report::percentiles(&merged(&tally.latency_hits)),
            tally: Tally { latency_all: Vec::new(), latency_hits: Vec::new(), ..tally },
            kill,
            ended_well,
        })
    }

    fn configure(&self, plan: &Plan, config: &Path) -> Result<(), Failure> {
        let durability = if plan.memory_only { "memory" } else { "behind" };
        let host_bytes = self.memory_bytes.max(kvd::config::MEMORY_BYTES_MIN);
        let text = format!(
            "memory = \"{host_bytes}\"\nvalue_max = \"64KiB\"\n\n[caches.{CACHE}]\nmemory = \"{}\"\ndurability = \"{durability}\"\n",
            self.memory_bytes
        );
        std::fs::write(config, text).map_err(Failure::io("writing the daemon's configuration"))
    }

    fn start_database(&self, plan: &Plan, stage: &Stage) -> Result<Process, Failure> {
        let mut database = stage.start("database", |command| {
            command.stdout(Stdio::piped()).arg("--listen").arg(stage.path("database.sock"));
            command.arg("--delay-us").arg(plan.db_delay.as_micros().to_string());
        })?;
        let out = database.child.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map_err(Failure::io("waiting for the stand-in database"))?;
        if line.is_empty() {
            database.child.wait().map_err(Failure::io("waiting for the stand-in database"))?;
            database.still_runs()?;
        }
        Ok(database)
    }

    fn start_worker(
        &self,
        plan: &Plan,
        stage: &Stage,
        number: u32,
        accesses: &Path,
        socket: &Path,
        told: Sender<(usize, String)>,
    ) -> Result<Worker, Failure> {
        let mut process = stage.start("worker", |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let paths: [(&str, PathBuf); 4] = [
                ("--cache", socket.to_owned()),
                ("--database", stage.path("database.sock")),
                ("--accesses", accesses.to_owned()),
                ("--records", stage.path("")),
            ];
            for (flag, path) in paths {
                command.arg(flag).arg(path);
            }
            let numbers = [
                ("--worker", number),
                ("--workers", plan.workers),
                ("--threads", plan.threads),
                ("--time-scale", self.time_scale),
            ];
            for (flag, number) in numbers {
                command.arg(flag).arg(number.to_string());
            }
            if !plan.memory_only {
                command.arg("--kept");
            }
        })?;
        let out = process.child.stdout.take().expect("it was asked for");
        let line = process.child.stdin.take().expect("it was asked for");
        let listen = move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if told.send((number as usize, line)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("demo-hear-{number}"))
            .spawn(listen)
            .map_err(Failure::io("starting a thread"))?;
        Ok(Worker { process, line, ready: false, done: 0, tally: None })
    }

    /// Kills the daemon as an outage would, and starts it again.
    fn kill(
        &self,
        stage: &Stage,
        daemon: &mut Process,
        config: &Path,
        socket: &Path,
        client: &Client,
        start: Moment,
    ) -> Result<Kill, Failure> {
        let sources_before = sources(client)?;
        let killed = Moment::now();
        daemon.kill()?;
        *daemon = stage.start_daemon(config)?;
        let started = Moment::now();
        stage.daemon_answers(daemon, socket)?;
        Ok(Kill {
            killed_ticks: killed.ticks(start),
            started_ticks: started.ticks(start),
            answers_seconds: Moment::now().since(killed).as_secs_f64(),
            first_hit_seconds: None,
            sources_before,
        })
    }
}

/// One worker process and what it said.
struct Worker {
    process: Process,
    line: ChildStdin,
    ready: bool,
    done: u64,
    tally: Option<Tally>,
}

/// All workers.
struct Ensemble {
    workers: Vec<Worker>,
    hears: Receiver<(usize, String)>,
    bar: ProgressBar,
}

impl Ensemble {
    fn new(workers: Vec<Worker>, hears: Receiver<(usize, String)>, requests: u64, quiet: bool) -> Ensemble {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(requests) };
        let style = ProgressStyle::with_template(
            "{bar:40} {percent:>3} %  {human_pos} requests, {per_sec}, {eta} left",
        );
        bar.set_style(style.expect("the template is well formed"));
        Ensemble { workers, hears, bar }
    }

    fn tell(&mut self, word: &str) -> Result<(), Failure> {
        for worker in &mut self.workers {
            writeln!(worker.line, "{word}").map_err(Failure::io("telling a worker"))?;
        }
        Ok(())
    }

    fn done(&self) -> u64 {
        self.workers.iter().map(|worker| worker.done).sum()
    }

    fn await_ready(&mut self, stage: &Stage) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.workers.iter().all(|worker| worker.ready) {
            self.hear(stage)?;
            if Instant::now() > deadline {
                return Err(Failure::Plain(format!("the workers are not ready within {READY_WITHIN:?}")));
            }
        }
        Ok(())
    }

    fn until(&mut self, stage: &Stage, requests: u64) -> Result<(), Failure> {
        let mut moved = (Instant::now(), 0);
        while self.done() < requests {
            self.hear(stage)?;
            self.check_moving(&mut moved)?;
        }
        Ok(())
    }

    fn until_all_told(&mut self, stage: &Stage, database: &mut Process) -> Result<Tally, Failure> {
        let mut moved = (Instant::now(), 0);
        while !self.workers.iter().all(|worker| worker.tally.is_some()) {
            self.hear(stage)?;
            database.still_runs()?;
            self.check_moving(&mut moved)?;
        }
        self.bar.finish_and_clear();
        let mut sum = Tally::default();
        self.workers.iter().filter_map(|worker| worker.tally.as_ref()).for_each(|tally| sum.add(tally));
        Ok(sum)
    }

    /// Takes in what a worker says, if one does soon.
    fn hear(&mut self, stage: &Stage) -> Result<(), Failure> {
        stage.go_on()?;
        match self.hears.recv_timeout(LOOK_EVERY) {
            Ok((number, line)) => {
                let worker = &mut self.workers[number];
                match line.split_once(' ') {
                    Some(("done", done)) => worker.done = done.parse().unwrap_or(worker.done),
                    Some(("tally", tally)) => {
                        let tally: Tally = serde_json::from_str(tally).map_err(|error| {
                            Failure::Plain(format!("a worker's result is not readable: {error}"))
                        })?;
                        worker.done = tally.requests;
                        worker.tally = Some(tally);
                    }
                    _ => worker.ready |= line == "ready",
                }
                self.bar.set_position(self.done());
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                for worker in self.workers.iter_mut().filter(|worker| worker.tally.is_none()) {
                    worker.process.still_runs()?;
                }
            }
        }
        Ok(())
    }

    fn check_moving(&self, moved: &mut (Instant, u64)) -> Result<(), Failure> {
        if self.done() != moved.1 {
            *moved = (Instant::now(), self.done());
        }
        if moved.0.elapsed() > STANDSTILL_MAX {
            return Err(Failure::Plain(format!("nothing moved for {STANDSTILL_MAX:?}")));
        }
        Ok(())
    }
}

/// Hits as the daemon counted them, by where they came from.
/// Where hits came from, in reads.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Sources {
    /// Counted by the workers: shared memory, without the daemon.
    shared: f64,
    /// Counted by the daemon.
    memory: f64,
    disk: f64,
}

impl Sources {
    fn plus(self, other: Sources) -> Sources {
        Sources {
            shared: self.shared + other.shared,
            memory: self.memory + other.memory,
            disk: self.disk + other.disk,
        }
    }

    /// The share of shared memory, and of any memory.
    pub(super) fn shares(self) -> (f64, f64) {
        let all = (self.shared + self.memory + self.disk).max(1.0);
        (self.shared / all, (self.shared + self.memory) / all)
    }
}

fn sources(client: &Client) -> Result<Sources, Failure> {
    let metrics = client.admin().stats().map_err(Failure::cache("asking the daemon for its figures"))?;
    let of_cache = |name: &str| {
        let rows = metrics.iter().filter(|metric| metric.name == name);
        rows.filter(|metric| metric.labels.iter().any(|(_, cache)| cache == CACHE))
            .map(|metric| metric.value)
            .sum()
    };
    Ok(Sources {
        shared: 0.0,
        memory: of_cache("kvd_cache_hits_memory_total"),
        disk: of_cache("kvd_cache_hits_disk_total"),
    })
}

/// What a request costs without the cache.
fn measure(database: &mut Database, workload: &Workload) -> Result<Histogram<u64>, Failure> {
    let mut histogram = merged(&[]);
    for object in workload.accesses.iter().cycle().take(MEASURES as usize) {
        let begun = Moment::now();
        database.measure(*object)?;
        histogram.saturating_record(Moment::now().since(begun).as_nanos() as u64);
    }
    Ok(histogram)
}

fn merged(counts: &[(u64, u64)]) -> Histogram<u64> {
    let mut histogram = super::worker::histogram();
    counts.iter().for_each(|(value, count)| histogram.saturating_record_n(*value, *count));
    histogram
}
