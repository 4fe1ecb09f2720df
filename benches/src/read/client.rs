//! One process that reads (or writes, for others to read beside).
//!
//! Started by `turns` with a [`ReadSpec`] as its argument. First it reads as fast as it can and looks at the clock
//! only between batches: that is its rate. Then it times every read by itself, clock included: that is its latency. It
//! must do nothing for one mechanism that it does not do for the others.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::prctl::set_timerslack;
use serde::{Deserialize, Serialize};

pub use super::draws::Pick;
use super::draws::{DRAWS, Draws};
use super::mechanisms::{Key, Mechanism, Source};
use crate::BenchError;
use crate::client::{ClientReport, Moments, await_start, failed, histogram, pairs};
use crate::clock::{cpu_ns, now_ns, sleep_until_ns};
use crate::protocol::Shape;

/// Reads between two looks at the clock.
const BATCH: usize = 64;
/// How long pages may take to be mapped in before anything is measured.
const TOUCH_TIME_MAX: Duration = Duration::from_millis(500);

/// What a process does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadSpec {
    /// What it reads from.
    pub mechanism: Mechanism,
    /// The call that is measured.
    pub op: ReadOp,
    /// Whether it reads or writes.
    pub role: Role,
    /// Which keys.
    pub pick: Pick,
    /// The form of keys and values.
    pub shape: Shape,
    /// How many there are.
    pub keys: u64,
    /// Chooses them.
    pub seed: u64,
    /// The socket or the directory.
    pub place: PathBuf,
    /// The cache, for those who have several.
    pub cache: String,
    /// How much of the measured time is for latency, in nanoseconds.
    pub latency_ns: u64,
}

/// The call that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOp {
    /// A value in memory of its own.
    Get,
    /// A value in a buffer that is used again.
    Into,
    /// Many values at once.
    Many(u16),
}

/// What a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// It reads.
    Read,
    /// It puts this many values a second, at even distances.
    Write(f64),
}

impl ReadSpec {
    /// All items, in the order of their keys.
    pub(super) fn items(&self) -> impl Iterator<Item = (String, Vec<u8>)> {
        let shape = self.shape;
        (0..self.keys).map(move |number| (shape.key_of(number), shape.value_of(number)))
    }
}

/// The whole life of such a process.
///
/// # Errors
/// When what it reads from, or the parent, fails it.
pub fn run(spec: &ReadSpec) -> Result<(), BenchError> {
    let report = spec.mechanism.serve(spec)?;
    println!("{}", serde_json::to_string(&report).expect("numbers always serialise"));
    Ok(())
}

/// Reads or writes until the end.
pub(super) fn work<S: Source>(mut source: S, spec: &ReadSpec) -> Result<ClientReport, BenchError> {
    let mut draws = Draws::new(spec.pick, spec.keys, spec.shape, spec.seed, DRAWS);
    let shape = spec.shape;
    let mut buffer = Vec::new();
    touch(&mut source, spec)?;
    match (spec.role, spec.op) {
        (Role::Write(rate), _) => write(&mut source, spec, &mut draws, rate),
        (Role::Read, ReadOp::Get) => read(&mut source, spec, 1, |source| {
            let key = draws.draw();
            match source.get(key)? {
                Some(value) if shape.is_value_under(&value, key.text) => Ok(1),
                Some(value) => Err(wrong(key.text, &value)),
                None => Ok(0),
            }
        }),
        (Role::Read, ReadOp::Into) => read(&mut source, spec, 1, |source| {
            let key = draws.draw();
            match source.get_into(key, &mut buffer)? {
                true if shape.is_value_under(&buffer, key.text) => Ok(1),
                true => Err(wrong(key.text, &buffer)),
                false => Ok(0),
            }
        }),
        (Role::Read, ReadOp::Many(count)) => read(&mut source, spec, u64::from(count), |source| {
            let keys = draws.draw_many(usize::from(count));
            let values = source.get_many(&keys)?;
            let mut hits = 0;
            for (key, value) in keys.iter().zip(&values) {
                match value {
                    Some(value) if shape.is_value_under(value, key.text) => hits += 1,
                    Some(value) => return Err(wrong(key.text, value)),
                    None => {}
                }
            }
            Ok(hits)
        }),
    }
}

/// Reads every key once where that maps its page into this process: whoever keeps items of his own has touched them too.
fn touch<S: Source>(source: &mut S, spec: &ReadSpec) -> Result<(), BenchError> {
    let until_ns = now_ns() + TOUCH_TIME_MAX.as_nanos() as u64;
    if spec.mechanism.is_mapped() {
        for number in (0..spec.keys).take_while(|_| now_ns() < until_ns) {
            source.get(Key { text: &spec.shape.key_of(number), number })?;
        }
    }
    Ok(())
}

#[cold]
fn wrong(key: &str, value: &[u8]) -> BenchError {
    let shown = &value[..value.len().min(40)];
    failed(format!("{key} has the value {:?} of {} bytes", shown.escape_ascii().to_string(), value.len()))
}

/// Reads: `step` does one and says how many keys it found.
fn read<S: Source>(
    source: &mut S,
    spec: &ReadSpec,
    keys_a_step: u64,
    mut step: impl FnMut(&mut S) -> Result<u64, BenchError>,
) -> Result<ClientReport, BenchError> {
    let Moments { measure_ns, end_ns, .. } = await_start()?;
    let mut batches = |source: &mut S, until_ns: u64| {
        let (mut steps, mut hits) = (0, 0);
        loop {
            for _ in 0..BATCH {
                hits += step(source)?;
            }
            steps += BATCH as u64;
            let now_ns = now_ns();
            if now_ns >= until_ns {
                return Ok::<_, BenchError>((steps, hits, now_ns));
            }
        }
    };
    let (_, _, from_ns) = batches(source, measure_ns)?;
    let (asked_before, cpu_before_ns) = (source.asked(), cpu_ns());
    let (steps, hits, to_ns) = batches(source, end_ns - spec.latency_ns)?;
    let (asked, cpu_ns) = (source.asked() - asked_before, cpu_ns() - cpu_before_ns);
    let mut latencies = histogram();
    let (mut timed, mut timed_hits) = (0, 0);
    loop {
        let begun_ns = now_ns();
        timed_hits += step(source)?;
        let done_ns = now_ns();
        timed += 1;
        latencies.saturating_record((done_ns - begun_ns).max(1));
        if done_ns >= end_ns {
            break;
        }
    }
    let (all, found) = ((steps + timed) * keys_a_step, hits + timed_hits);
    if found != if spec.pick == Pick::Absent { 0 } else { all } {
        return Err(failed(format!("{found} of {all} keys were found")));
    }
    let keys = steps * keys_a_step;
    Ok(ClientReport { keys, hits, asked, cpu_ns, from_ns, to_ns, latencies: pairs(&latencies) })
}

/// Writes at even distances, however long a write takes; what is late is made up for.
fn write<S: Source>(
    source: &mut S,
    spec: &ReadSpec,
    draws: &mut Draws,
    rate: f64,
) -> Result<ClientReport, BenchError> {
    // The kernel may otherwise wake us 50 us late.
    set_timerslack(1).map_err(|errno| BenchError::io("setting the timer slack")(errno.into()))?;
    let mut value = spec.shape.value_of(0);
    let digits = spec.shape.digits_in_value();
    let Moments { start_ns, measure_ns, end_ns } = await_start()?;
    let mut report = ClientReport { from_ns: measure_ns, to_ns: end_ns, ..ClientReport::default() };
    for number in 0.. {
        let at_ns = start_ns + (number as f64 * 1e9 / rate) as u64;
        if at_ns >= end_ns || now_ns() >= end_ns {
            break;
        }
        sleep_until_ns(at_ns);
        let key = draws.draw();
        value[digits.clone()].copy_from_slice(&key.text.as_bytes()[key.text.len() - digits.len()..]);
        source.put(key, &value)?;
        if at_ns >= measure_ns {
            report.keys += 1;
            report.hits += 1;
        }
    }
    Ok(report)
}
