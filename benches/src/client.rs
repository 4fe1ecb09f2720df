//! One client process of the load generator: one connection, one thread, blocking.
//!
//! Started by [`crate::fleet`] with a [`ClientSpec`] as its argument. It connects, says `ready`, reads the moments to
//! begin and end from standard input, works, and prints a [`ClientReport`]. It must do nothing for one server that it
//! does not do for the others. [`load`] is the same loop over all keys once, used to fill a server.

use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use nix::sys::prctl::set_timerslack;
use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::clock::{now_ns, sleep_until_ns};
use crate::protocol::{Batch, Op, Replies, Shape, Wire};

/// Latencies are kept to three digits, up to a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// A server that says nothing for this long has failed.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Filling a server: requests written at once.
const LOAD_DEPTH: usize = 64;

/// What a client process does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientSpec {
    /// Whose words.
    pub wire: Wire,
    /// Where the server listens.
    pub socket: PathBuf,
    /// What each request does.
    pub op: Op,
    /// Requests written before the answers are awaited.
    pub depth: usize,
    /// The form of keys and values.
    pub shape: Shape,
    /// Keys are chosen uniformly from `0..keys`.
    pub keys: u64,
    /// Chooses them.
    pub seed: u64,
    /// When requests are sent.
    pub pace: Pace,
    /// When to stop.
    pub stop: Stop,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Pace {
    /// The next when the last was answered.
    Closed,
    /// On a schedule of random arrivals with this mean rate in batches a second. A late answer does not delay the
    /// schedule, and latency counts from the scheduled moment: nothing is left out for having been slow.
    Open(f64),
}

/// When a client stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// At the moment its parent names.
    Time,
    /// After this many requests (or, as a guard, at that moment).
    Requests(u64),
}

/// What a client process did within the measured time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClientReport {
    /// Keys asked for or written.
    pub keys: u64,
    /// Keys found (for writes: written).
    pub hits: u64,
    /// The first measured moment, in nanoseconds of the shared clock.
    pub from_ns: u64,
    /// The last one.
    pub to_ns: u64,
    /// Latency of a batch of `depth` requests: pairs of nanoseconds and count.
    pub latencies: Vec<(u64, u64)>,
}

/// The moments a parent tells its clients, in nanoseconds of the shared clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// Requests begin.
    pub start_ns: u64,
    /// Counting begins.
    pub measure_ns: u64,
    /// Everything ends.
    pub end_ns: u64,
}

/// An empty histogram of the kind used throughout.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants that satisfy it")
}

/// The whole life of a client process.
///
/// # Errors
/// When the server or the parent fails it.
pub fn run(spec: &ClientSpec) -> Result<(), BenchError> {
    let mut connection = Connection::open(spec.wire, &spec.socket)?;
    if matches!(spec.pace, Pace::Open(_)) {
        // The kernel may otherwise wake us 50 us late, which would be counted as the server's latency.
        set_timerslack(1).map_err(|errno| BenchError::io("setting the timer slack")(errno.into()))?;
    }
    println!("ready");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(BenchError::io("reading the moments"))?;
    let moments = parse_moments(&line)
        .ok_or_else(|| BenchError::Client { index: 0, what: format!("not three moments: {line:?}") })?;
    sleep_until_ns(moments.start_ns);
    let report = work(&mut connection, spec, moments)?;
    println!("{}", serde_json::to_string(&report).expect("numbers always serialise"));
    Ok(())
}

/// How a parent writes the moments.
#[must_use]
pub fn moments_line(moments: Moments) -> String {
    format!("{} {} {}\n", moments.start_ns, moments.measure_ns, moments.end_ns)
}

fn parse_moments(line: &str) -> Option<Moments> {
    let mut numbers = line.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(Moments { start_ns: next()?, measure_ns: next()?, end_ns: next()? })
}

fn work(
    connection: &mut Connection,
    spec: &ClientSpec,
    moments: Moments,
) -> Result<ClientReport, BenchError> {
    let mut batch = Batch::new(spec.wire, spec.op, spec.shape, spec.depth);
    let mut replies = Replies::new(spec.wire, spec.op, spec.shape);
    let mut random = fastrand::Rng::with_seed(spec.seed);
    let mut numbers = vec![0; spec.depth * spec.op.keys()];
    let mut latencies = histogram();
    let mut report =
        ClientReport { from_ns: moments.measure_ns, to_ns: moments.end_ns, ..ClientReport::default() };
    let requests_max = match spec.stop {
        Stop::Time => u64::MAX,
        Stop::Requests(requests) => requests,
    };
    let mut requests = 0;
    let mut begun_ns = now_ns();
    while requests < requests_max {
        numbers.fill_with(|| random.u64(0..spec.keys));
        if let Pace::Open(rate) = spec.pace {
            begun_ns = begun_ns.max(moments.start_ns) + (-(1.0 - random.f64()).ln() * 1e9 / rate) as u64;
            if begun_ns >= moments.end_ns {
                break;
            }
            sleep_until_ns(begun_ns);
        }
        let hits = connection.exchange(batch.fill(&numbers), &mut replies, &numbers)?;
        let done_ns = now_ns();
        requests += spec.depth as u64;
        if spec.stop == Stop::Time && done_ns > moments.end_ns {
            break;
        }
        if done_ns >= moments.measure_ns {
            report.keys += numbers.len() as u64;
            report.hits += hits;
            latencies.saturating_record(done_ns.saturating_sub(begun_ns).max(1));
        }
        if spec.stop != Stop::Time {
            report.to_ns = done_ns;
            if done_ns > moments.end_ns {
                let what = format!("did {requests} of {requests_max} requests in the time allowed");
                return Err(BenchError::Client { index: 0, what });
            }
        }
        if spec.pace == Pace::Closed {
            begun_ns = done_ns;
        }
    }
    report.latencies =
        latencies.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
    Ok(report)
}

/// Puts every key of `0..keys` once.
///
/// # Errors
/// When the server fails.
pub fn load(wire: Wire, socket: &Path, shape: Shape, keys: u64) -> Result<(), BenchError> {
    let mut connection = Connection::open(wire, socket)?;
    let all: Vec<u64> = (0..keys).collect();
    for numbers in all.chunks(LOAD_DEPTH) {
        let mut batch = Batch::new(wire, Op::Put, shape, numbers.len());
        let mut replies = Replies::new(wire, Op::Put, shape);
        connection.exchange(batch.fill(numbers), &mut replies, numbers)?;
    }
    Ok(())
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Connection {
    fn open(wire: Wire, socket: &Path) -> Result<Connection, BenchError> {
        const INPUT_BYTES: usize = 1 << 20;
        let doing = || format!("connecting to {}", socket.display());
        let mut stream = UnixStream::connect(socket).map_err(BenchError::io(doing()))?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(BenchError::io(doing()))?;
        stream.set_write_timeout(Some(ANSWER_TIME_MAX)).map_err(BenchError::io(doing()))?;
        wire.greet(&mut stream)?;
        Ok(Connection { stream, input: vec![0; INPUT_BYTES] })
    }

    /// Sends the requests, takes all their answers, and says how many keys were found.
    #[inline]
    fn exchange(
        &mut self,
        requests: &[u8],
        replies: &mut Replies,
        numbers: &[u64],
    ) -> Result<u64, BenchError> {
        self.stream.write_all(requests).map_err(BenchError::io("sending requests"))?;
        replies.restart();
        let mut filled = 0;
        loop {
            let room = &mut self.input[filled..];
            if room.is_empty() {
                return Err(BenchError::Client {
                    index: 0,
                    what: "the answers are larger than the buffer".to_owned(),
                });
            }
            match self.stream.read(room).map_err(BenchError::io("reading answers"))? {
                0 => return Err(BenchError::Client { index: 0, what: "the server hung up".to_owned() }),
                bytes => filled += bytes,
            }
            if replies.advance(&self.input[..filled], numbers)? {
                return Ok(replies.hits());
            }
        }
    }
}
