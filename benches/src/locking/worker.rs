//! One process of the lab: opens a mechanism and does what its cell says until its parent's moment.
//!
//! Started by `crew` with a [`WorkerSpec`] as its argument. It does the same for all mechanisms: draws its keys
//! beforehand, checks every value it reads, times every operation, begins again what has to be begun again. It ends
//! with its parent, however that ends.

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};

use super::mechanisms::{self, Failure, Inside, Key, Store, Why, Worker};
use super::plan::{Cell, SCAN_ITEMS_A_REST};
use super::{storm, value};
use crate::BenchError;
use crate::client::{Moments, await_start, failed, histogram, pairs};
use crate::clock::{now_ns, sleep};
use crate::read::Draws;

/// Keys drawn beforehand.
const DRAWS: usize = 1 << 16;
/// An operation that takes longer has waited for somebody: no mechanism needs that long for itself.
const WAIT_NS_MIN: u64 = 1_000_000;
/// An operation that is begun again for longer than this is given up.
const TRY_TIME_MAX: Duration = Duration::from_secs(10);
/// Keys of a transaction while a store is filled.
const FILL_KEYS: usize = 250;

/// What a process does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// The mechanism's name.
    pub mechanism: String,
    /// Its directory, or its daemon's socket.
    pub place: PathBuf,
    /// The load.
    pub cell: Cell,
    /// Chooses keys.
    pub seed: u64,
    /// Which process this is.
    pub index: u64,
    /// What it is there for.
    pub role: Role,
}

/// What a process is there for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// Makes the store and puts all items.
    Fill,
    /// Reads, writes and does transactions as the cell says.
    Mixed,
    /// Walks over all items, again and again.
    Scan,
    /// Stops itself by a signal in the middle of a transaction, and ends it when it is woken.
    Stopped,
    /// Works while others are killed; what was acknowledged is kept in a file in here.
    Storm(PathBuf),
    /// Looks at what the storm has left.
    Inspect {
        /// Where the acknowledgements are.
        acks: PathBuf,
        /// Whether whatever the mechanism has for the time after a crash is done first.
        recover: bool,
    },
}

/// What operations are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Reads of one key.
    Reader,
    /// Writes and transactions.
    Writer,
    /// Walks over all items.
    Scanner,
}

impl Class {
    pub(super) const ALL: [Class; 3] = [Class::Reader, Class::Writer, Class::Scanner];

    /// What tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Reader => "reader",
            Class::Writer => "writer",
            Class::Scanner => "scanner",
        }
    }
}

/// What a process did in one class.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClassReport {
    /// Operations.
    pub done: u64,
    /// Of those, that took so long that they must have waited for somebody.
    pub waits: u64,
    /// Pairs of nanoseconds and count.
    pub latencies: Vec<(u64, u64)>,
}

/// What a process did within the measured time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// In the order of `Class::ALL`.
    pub classes: [ClassReport; 3],
    /// Why something had to begin again, and how often.
    pub aborts: Aborts,
    /// Begun again.
    pub retries: u64,
    /// Not even then.
    pub given_up: u64,
    /// When counting began, in nanoseconds of the shared clock.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
}

/// How often something had to begin again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Aborts {
    /// Chosen to resolve a deadlock.
    pub deadlocks: u64,
    /// Something read had changed.
    pub conflicts: u64,
    /// A lock was not to be had in time.
    pub busy: u64,
    /// A lock was taken away from a silent holder.
    pub leases: u64,
}

impl Aborts {
    fn count(&mut self, why: Why) {
        *match why {
            Why::Deadlock => &mut self.deadlocks,
            Why::Conflict => &mut self.conflicts,
            Why::Busy => &mut self.busy,
            Why::Lease => &mut self.leases,
        } += 1;
    }
}

/// The whole life of such a process.
///
/// # Errors
/// When its mechanism or its parent fails it, or a value is wrong.
pub fn run(spec: &WorkerSpec) -> Result<(), BenchError> {
    set_pdeathsig(Signal::SIGKILL).map_err(|errno| BenchError::io("minding the parent")(errno.into()))?;
    let mechanism = mechanisms::find(&spec.mechanism)
        .ok_or_else(|| failed(format!("no mechanism {:?}", spec.mechanism)))?;
    let recover = matches!(spec.role, Role::Inspect { recover: true, .. });
    let store = Store { place: &spec.place, shape: spec.cell.shape(), keys: spec.cell.keys, recover };
    if spec.role == Role::Fill {
        mechanism.create(store)?;
    }
    let at_work = AtWork::new(spec, mechanism.open(store)?);
    let report = match &spec.role {
        Role::Fill => told(&at_work.fill()?),
        Role::Inspect { acks, .. } => told(&storm::inspect(at_work, acks)?),
        Role::Mixed => told(&at_work.until_the_end(AtWork::mixed_step)?),
        Role::Scan => told(&at_work.until_the_end(AtWork::scan_step)?),
        Role::Stopped => told(&at_work.until_the_end(AtWork::stopped_step)?),
        Role::Storm(acks) => {
            let mut acks = storm::Acks::open(acks, spec.index)?;
            told(&at_work.until_the_end(|at_work| storm::step(at_work, &mut acks))?)
        }
    };
    println!("{report}");
    Ok(())
}

fn told(report: &impl Serialize) -> String {
    serde_json::to_string(report).expect("numbers always serialise")
}

/// An operation that was done.
pub(super) struct Done {
    class: Class,
    begun_ns: u64,
    done_ns: u64,
}

/// A process with its mechanism open.
pub(super) struct AtWork<'a> {
    pub(super) spec: &'a WorkerSpec,
    worker: Box<dyn Worker>,
    draws: Draws,
    pub(super) random: fastrand::Rng,
    value: Vec<u8>,
    found: Vec<u8>,
    writes: u64,
    was_stopped: bool,
    report: WorkerReport,
}

impl AtWork<'_> {
    fn new(spec: &WorkerSpec, worker: Box<dyn Worker>) -> AtWork<'_> {
        let cell = &spec.cell;
        let seed = spec.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(spec.index);
        AtWork {
            spec,
            worker,
            draws: Draws::new(cell.pick(), cell.keys, cell.shape(), seed, DRAWS),
            random: fastrand::Rng::with_seed(!seed),
            value: Vec::new(),
            found: Vec::new(),
            writes: 0,
            was_stopped: false,
            report: WorkerReport::default(),
        }
    }

    /// Puts all items: how many.
    fn fill(mut self) -> Result<u64, BenchError> {
        let cell = &self.spec.cell;
        let texts: Vec<String> = (0..cell.keys).map(|number| cell.shape().key_of(number)).collect();
        for (chunk, texts) in texts.chunks(FILL_KEYS).enumerate() {
            let (worker, value) = (&mut self.worker, &mut self.value);
            let mut put = |inside: &mut dyn Inside| {
                for (offset, text) in texts.iter().enumerate() {
                    let number = (chunk * FILL_KEYS + offset) as u64;
                    value::make(value, cell.value_bytes, number, 0);
                    inside.write(Key { text, number }, value)?;
                }
                Ok(())
            };
            let done = worker.transact(&mut put);
            done.map_err(|failure| match failure {
                Failure::Broken(error) => error,
                Failure::Again(why) => failed(format!("{why:?} with nobody else there")),
            })?;
        }
        Ok(cell.keys)
    }

    /// Takes steps until the moment that the parent names.
    fn until_the_end(
        mut self,
        mut step: impl FnMut(&mut Self) -> Result<Done, BenchError>,
    ) -> Result<WorkerReport, BenchError> {
        let Moments { measure_ns, end_ns, .. } = await_start()?;
        let pause = Duration::from_secs_f64(self.spec.cell.pause_ms / 1e3);
        let mut latencies: [Histogram<u64>; 3] = std::array::from_fn(|_| histogram());
        let mut is_counted = now_ns() >= measure_ns;
        loop {
            let Done { class, begun_ns, done_ns } = step(&mut self)?;
            if !is_counted && done_ns >= measure_ns {
                self.report = WorkerReport::default();
                is_counted = true;
            }
            if is_counted {
                let wait_ns = (done_ns - begun_ns).max(1);
                let report = &mut self.report.classes[class as usize];
                report.done += 1;
                report.waits += u64::from(wait_ns >= WAIT_NS_MIN);
                latencies[class as usize].saturating_record(wait_ns);
            }
            if done_ns >= end_ns {
                break;
            }
            if !pause.is_zero() {
                sleep(pause);
            }
        }
        for (report, latencies) in self.report.classes.iter_mut().zip(&latencies) {
            report.latencies = pairs(latencies);
        }
        self.report.from_ns = measure_ns;
        self.report.to_ns = now_ns();
        Ok(self.report)
    }

    fn mixed_step(&mut self) -> Result<Done, BenchError> {
        let Cell { writes_percent, transactions_percent, think_ms, .. } = self.spec.cell;
        let roll = self.random.f64() * 100.0;
        if roll < writes_percent {
            let key = Drawn::from(self.draws.draw());
            self.write(&key)
        } else if roll < writes_percent + transactions_percent {
            let keys = self.drawn();
            self.transact(&keys, Duration::from_secs_f64(think_ms / 1e3))
        } else {
            self.read()
        }
    }

    /// The keys of the next transaction.
    fn drawn(&mut self) -> Vec<Drawn> {
        self.draws.draw_many(self.spec.cell.keys_a_transaction).into_iter().map(Drawn::from).collect()
    }

    /// Reads one key and checks its value.
    pub(super) fn read(&mut self) -> Result<Done, BenchError> {
        let key = self.draws.draw();
        let (worker, found) = (&mut self.worker, &mut self.found);
        let value_bytes = self.spec.cell.value_bytes;
        timed(Class::Reader, &mut self.report, |_| {
            let is_there = worker.read(key, found)?;
            check(is_there.then_some(found.as_slice()), value_bytes, key)
        })
    }

    /// Writes one key.
    pub(super) fn write(&mut self, key: &Drawn) -> Result<Done, BenchError> {
        let stamp = self.stamp();
        value::make(&mut self.value, self.spec.cell.value_bytes, key.number, stamp);
        let (worker, value) = (&mut self.worker, &self.value);
        timed(Class::Writer, &mut self.report, |_| worker.write(key.key(), value))
    }

    /// How many writes and transactions there were so far; a storm goes on where a killed process ended.
    pub(super) fn writes_mut(&mut self) -> &mut u64 {
        &mut self.writes
    }

    /// Of the next write or transaction.
    fn stamp(&mut self) -> u64 {
        self.writes += 1;
        value::stamp(self.spec.index, self.writes)
    }

    /// Reads the keys, thinks, and writes them, all with one stamp.
    pub(super) fn transact(&mut self, keys: &[Drawn], think: Duration) -> Result<Done, BenchError> {
        let stamp = self.stamp();
        let value_bytes = self.spec.cell.value_bytes;
        let read: Vec<Key<'_>> = keys.iter().map(Drawn::key).collect();
        let stops = self.spec.role == Role::Stopped;
        // Whoever is killed or stopped is to be met with half of his writes done.
        let thinks_late = self.spec.role != Role::Mixed;
        let (worker, value, was_stopped) = (&mut self.worker, &mut self.value, &mut self.was_stopped);
        let mut think = || {
            if stops && !*was_stopped {
                *was_stopped = true;
                // Until somebody sends SIGCONT. It can only fail for a signal that does not exist.
                let _ = raise(Signal::SIGSTOP);
            } else if !think.is_zero() {
                sleep(think);
            }
        };
        timed(Class::Writer, &mut self.report, |report| {
            // What failed inside each try; a library may try several times by itself.
            let mut tries = Vec::with_capacity(1);
            let mut work = |inside: &mut dyn Inside| {
                let mut once = || {
                    inside.read_all(&read, &mut |key, found| check(found, value_bytes, key))?;
                    for (index, key) in keys.iter().enumerate() {
                        if index == usize::from(thinks_late) || keys.len() == 1 {
                            think();
                        }
                        value::make(value, value_bytes, key.number, stamp);
                        inside.write(key.key(), value)?;
                    }
                    Ok(())
                };
                let worked = once();
                tries.push(match &worked {
                    Err(Failure::Again(why)) => Some(*why),
                    Ok(()) | Err(Failure::Broken(_)) => None,
                });
                worked
            };
            let done = worker.transact(&mut work);
            // The last one is told by `done`.
            tries.pop();
            for why in tries {
                report.aborts.count(why.unwrap_or(Why::Conflict));
                report.retries += 1;
            }
            done
        })
    }

    fn scan_step(&mut self) -> Result<Done, BenchError> {
        let rest = Duration::from_secs_f64(self.spec.cell.scan_rest_ms / 1e3);
        let keys = self.spec.cell.keys;
        let shape = self.spec.cell.shape();
        let worker = &mut self.worker;
        timed(Class::Scanner, &mut self.report, |_| {
            let mut seen = 0;
            worker.scan(&mut |key, value| {
                number_of(key)
                    .and_then(|number| value::stamp_of(value, shape.value_bytes, number))
                    .ok_or_else(|| wrong(&String::from_utf8_lossy(key), value))?;
                seen += 1;
                if seen % SCAN_ITEMS_A_REST == 0 && !rest.is_zero() {
                    sleep(rest);
                }
                Ok(())
            })?;
            if seen == keys {
                Ok(())
            } else {
                Err(failed(format!("a scan saw {seen} of {keys} items")).into())
            }
        })
    }

    /// The first step stops inside its transaction, the others are as the cell says.
    fn stopped_step(&mut self) -> Result<Done, BenchError> {
        if self.was_stopped {
            return self.mixed_step();
        }
        let keys = self.drawn();
        self.transact(&keys, Duration::ZERO)
    }

    /// Sees all items without rest.
    pub(super) fn scan(
        &mut self,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let worker = &mut self.worker;
        timed(Class::Scanner, &mut self.report, |_| worker.scan(see)).map(drop)
    }
}

/// A key with its own text.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    pub(super) text: String,
    pub(super) number: u64,
}

impl Drawn {
    fn key(&self) -> Key<'_> {
        Key { text: &self.text, number: self.number }
    }
}

impl From<Key<'_>> for Drawn {
    fn from(key: Key<'_>) -> Drawn {
        Drawn { text: key.text.to_owned(), number: key.number }
    }
}

/// The number in a key's text.
pub(super) fn number_of(key: &[u8]) -> Option<u64> {
    let digits = key.strip_prefix(crate::protocol::KEY_PREFIX.as_bytes())?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn check(found: Option<&[u8]>, value_bytes: u32, key: Key<'_>) -> Result<(), Failure> {
    let Some(found) = found else {
        return Err(failed(format!("{} is not there", key.text)).into());
    };
    value::stamp_of(found, value_bytes, key.number).map(drop).ok_or_else(|| wrong(key.text, found).into())
}

#[cold]
fn wrong(key: &str, value: &[u8]) -> BenchError {
    let shown = &value[..value.len().min(24)];
    failed(format!(
        "{key} has the wrong value {:?} of {} bytes",
        shown.escape_ascii().to_string(),
        value.len()
    ))
}

/// Does something until it is done, and times it.
fn timed(
    class: Class,
    report: &mut WorkerReport,
    mut act: impl FnMut(&mut WorkerReport) -> Result<(), Failure>,
) -> Result<Done, BenchError> {
    let begun_ns = now_ns();
    loop {
        let acted = act(report);
        let done_ns = now_ns();
        match acted {
            Ok(()) => return Ok(Done { class, begun_ns, done_ns }),
            Err(Failure::Broken(error)) => return Err(error),
            Err(Failure::Again(why)) => {
                report.aborts.count(why);
                if done_ns - begun_ns > TRY_TIME_MAX.as_nanos() as u64 {
                    report.given_up += 1;
                    return Ok(Done { class, begun_ns, done_ns });
                }
                report.retries += 1;
            }
        }
    }
}
