//! What happens to the others when one process is stopped in the middle of a transaction, and when one after the other is
//! killed.
//!
//! Called by [`super`]. A process that hangs is found by a deadline and killed by its id.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Serialize;
use tempfile::TempDir;

use super::crew::{Member, Silence, assemble, moments};
use super::figures::Figures;
use super::hosts::Host;
use super::mechanisms::Mechanism;
use super::plan::{Cell, Trials};
use super::storm::Left;
use super::turns::Lab;
use super::worker::{Class, Role, WorkerReport};
use crate::BenchError;
use crate::client::Moments;
use crate::clock::{now_ns, sleep, sleep_until_ns};
use crate::peers::Places;

/// How long a fresh process may take to open what a storm has left, look at everything and write.
const INSPECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How often somebody is killed.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a process may take to report after the end.
const REPORT_TIME_MAX: Duration = Duration::from_secs(3);

/// What a stopped process did to the others.
#[derive(Debug, Clone, Serialize)]
pub struct Stopped {
    /// The mechanism.
    pub mechanism: &'static str,
    /// How long it was stopped, in milliseconds.
    pub stopped_ms: f64,
    /// The longest that a reader waited, in milliseconds; `None`: none came to an end.
    pub reader_ms_max: Option<f64>,
    /// The longest that a writer waited.
    pub writer_ms_max: Option<f64>,
    /// What went wrong besides.
    pub failed: Option<String>,
}

/// What a fresh process found after a storm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Fresh {
    /// All values are right, and it could write.
    Worked(Left),
    /// It could work, but something is amiss.
    Corrupt(Left),
    /// It did not come to an end in time.
    Hung,
    /// It could not open or use what is left.
    Failed(String),
}

impl Fresh {
    /// What tables say.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Fresh::Worked(_) => "worked",
            Fresh::Corrupt(_) => "corrupt",
            Fresh::Hung => "hung",
            Fresh::Failed(_) => "failed",
        }
    }

    /// What was amiss, if it could be looked at.
    #[must_use]
    pub fn left(&self) -> Option<&Left> {
        match self {
            Fresh::Worked(left) | Fresh::Corrupt(left) => Some(left),
            Fresh::Hung | Fresh::Failed(_) => None,
        }
    }
}

/// What a mechanism survived.
#[derive(Debug, Clone, Serialize)]
pub struct Survival {
    /// The mechanism.
    pub mechanism: &'static str,
    /// Processes killed.
    pub kills: u64,
    /// Operations of those that were alive at the end, in their lives.
    pub done: u64,
    /// Processes that were not killed and did not come to an end.
    pub stuck: u64,
    /// What a process said that ended by itself.
    pub failed: Option<String>,
    /// What a fresh process found.
    pub fresh: Fresh,
    /// How long that took, in milliseconds.
    pub fresh_ms: f64,
    /// Where it did not work: what another one found that did first whatever the mechanism has for that.
    pub recovered: Option<Fresh>,
}

/// The load of the trials: small, so that the processes get in each other's way.
fn cell() -> Cell {
    Cell {
        name: "trial".to_owned(),
        writes_percent: 25.0,
        transactions_percent: 25.0,
        pause_ms: 2.0,
        // The first key has a third of all draws: whoever holds it is met.
        zipf: Some(1.3),
        processes: 4,
        ..Cell::default()
    }
}

/// Stops one process of each mechanism, all at the same time: hardly any of them does anything meanwhile.
pub(super) fn stop(lab: &mut Lab<'_>, trials: Trials) -> Result<Vec<Stopped>, BenchError> {
    let cell = cell();
    lab.prepare(&cell)?;
    for server in lab.hosts.iter().filter_map(Host::server) {
        server.resume()?;
    }
    let seed = lab.seed;
    let found = std::thread::scope(|scope| {
        let trial = |host: &'_ Host| stop_one(host, &cell, seed, trials.stop);
        let threads: Vec<_> = lab.hosts.iter().map(|host| scope.spawn(move || trial(host))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Vec<_>>()
    });
    let order =
        |stopped: &Stopped| super::mechanisms::ALL.iter().position(|one| one.name() == stopped.mechanism);
    let mut found = found;
    found.sort_by_key(order);
    Ok(found)
}

fn stop_one(host: &Host, cell: &Cell, seed: u64, stop: Duration) -> Stopped {
    let mut stopped = Stopped {
        mechanism: host.mechanism.name(),
        stopped_ms: stop.as_secs_f64() * 1e3,
        reader_ms_max: None,
        writer_ms_max: None,
        failed: None,
    };
    match others(host, cell, seed, stop) {
        Ok(reports) => {
            let figures = Figures::of(&reports);
            let longest = |class| figures.class(class).map(|one| one.latency.us_max / 1e3);
            stopped.reader_ms_max = longest(Class::Reader);
            stopped.writer_ms_max = longest(Class::Writer);
        }
        Err(silence) => stopped.failed = Some(silence.words()),
    }
    stopped
}

/// What the others report.
fn others(host: &Host, cell: &Cell, seed: u64, stop: Duration) -> Result<Vec<WorkerReport>, Silence> {
    /// How long it takes until it has stopped itself, at most.
    const STOPPING: Duration = Duration::from_secs(3);
    /// How long everybody goes on afterwards.
    const AFTERWARDS: Duration = Duration::from_millis(500);
    // Whoever waits does nothing else: so one only reads, one only writes, and their waits do not hide each other.
    let reader = Cell { writes_percent: 0.0, transactions_percent: 0.0, ..cell.clone() };
    let writer = Cell { writes_percent: 50.0, transactions_percent: 50.0, ..cell.clone() };
    let all = [(cell, Role::Stopped), (&reader, Role::Mixed), (&writer, Role::Mixed), (cell, Role::Mixed)];
    let specs: Vec<_> =
        (0..).zip(all).map(|(index, (cell, role))| host.spec(cell, seed, index, role)).collect();
    let mut members = assemble(&specs)?;
    let start_ns = now_ns() + 50_000_000;
    let moments = Moments {
        start_ns,
        measure_ns: start_ns,
        end_ns: start_ns + (STOPPING / 10 + stop + AFTERWARDS).as_nanos() as u64,
    };
    members.iter_mut().for_each(|member| member.tell(moments));
    let deadline_ns = start_ns + STOPPING.as_nanos() as u64;
    while !members[0].is_stopped() {
        if now_ns() > deadline_ns {
            return Err(Silence::Died("the one to be stopped did not come to its transaction".to_owned()));
        }
        sleep(Duration::from_millis(2));
    }
    sleep(stop);
    members[0].signal(Signal::SIGCONT);
    let deadline_ns = moments.end_ns.max(now_ns()) + REPORT_TIME_MAX.as_nanos() as u64 * 2;
    let reports: Vec<WorkerReport> =
        members.iter_mut().map(|member| member.report(deadline_ns)).collect::<Result<_, _>>()?;
    Ok(reports.into_iter().skip(1).collect())
}

/// Kills processes of each mechanism, and has a fresh one look at what is left. A few mechanisms at a time: those that
/// hang do nothing.
pub(super) fn storm(lab: &Lab<'_>, trials: Trials) -> Result<Vec<Survival>, BenchError> {
    const AT_A_TIME: usize = 3;
    let mut survivals = Vec::new();
    let (places, seed) = (lab.places, lab.seed);
    for some in lab.mechanisms.chunks(AT_A_TIME) {
        lab.check_interrupted()?;
        let found = std::thread::scope(|scope| {
            let storm = |mechanism| scope.spawn(move || storm_one(mechanism, places, seed, trials.storm));
            let threads: Vec<_> = some.iter().copied().map(storm).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Vec<_>>()
        });
        for (mechanism, survival) in some.iter().zip(found) {
            match survival {
                Ok(survival) => {
                    eprintln!("  storm {}: {}", mechanism.name(), survival.fresh.word());
                    survivals.push(survival);
                }
                Err(why) => eprintln!("  storm {}: not run: {why}", mechanism.name()),
            }
        }
    }
    Ok(survivals)
}

fn storm_one(
    mechanism: &'static dyn Mechanism,
    places: &Places,
    seed: u64,
    time: Duration,
) -> Result<Survival, String> {
    let cell = Cell { pause_ms: 0.0, ..cell() };
    let host = Host::prepare(mechanism, &cell, places)?;
    let acks = TempDir::new_in(&places.dir).map_err(|error| error.to_string())?;
    let spec = |index| host.spec(&cell, seed, index, Role::Storm(acks.path().to_owned()));
    let text = |error: BenchError| error.to_string();
    let specs: Vec<_> = (0..cell.processes as u64).map(spec).collect();
    let mut members: Vec<Member> = specs.iter().map(Member::start).collect::<Result<_, _>>().map_err(text)?;
    let moments = moments(Duration::ZERO, time);
    members.iter_mut().for_each(|member| member.tell(moments));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kills = 0;
    let mut at_ns = moments.start_ns;
    loop {
        // Not in step with anything: between half and one and a half of the interval, 100 ms on average.
        at_ns += (KILL_INTERVAL.as_nanos() as f64 * (0.5 + random.f64())) as u64;
        if at_ns >= moments.end_ns {
            break;
        }
        sleep_until_ns(at_ns);
        let index = random.usize(0..members.len());
        members[index].kill();
        kills += 1;
        members[index] = Member::start(&specs[index]).map_err(text)?;
        members[index].tell(moments);
    }
    let (mut stuck, mut done, mut failed) = (0, 0, None);
    let deadline_ns = moments.end_ns.max(now_ns()) + REPORT_TIME_MAX.as_nanos() as u64;
    for member in &mut members {
        let report =
            member.await_ready(deadline_ns).and_then(|()| member.report::<WorkerReport>(deadline_ns));
        match report {
            Ok(report) => done += report.classes.iter().map(|class| class.done).sum::<u64>(),
            Err(Silence::Hung) => stuck += 1,
            Err(Silence::Died(what)) => failed = Some(what),
        }
    }
    // Whoever is stuck is killed here, so that the fresh process is alone.
    drop(members);
    let inspect = |recover| inspect(&host, &cell, acks.path(), recover);
    let (fresh, fresh_ms) = inspect(false);
    let recovered = (!matches!(fresh, Fresh::Worked(_))).then(|| inspect(true).0);
    Ok(Survival { mechanism: mechanism.name(), kills, done, stuck, failed, fresh, fresh_ms, recovered })
}

fn inspect(host: &Host, cell: &Cell, acks: &std::path::Path, recover: bool) -> (Fresh, f64) {
    let role = Role::Inspect { acks: acks.to_owned(), recover };
    let begun_ns = now_ns();
    let found = Member::start(&host.spec(cell, 0, u64::from(u16::MAX), role))
        .map_err(|error| Silence::Died(error.to_string()))
        .and_then(|mut member| member.report::<Left>(begun_ns + INSPECT_TIME_MAX.as_nanos() as u64));
    let fresh = match found {
        Ok(left) if left.is_whole() => Fresh::Worked(left),
        Ok(left) => Fresh::Corrupt(left),
        Err(Silence::Hung) => Fresh::Hung,
        Err(Silence::Died(what)) => Fresh::Failed(what),
    };
    (fresh, (now_ns() - begun_ns) as f64 / 1e6)
}
