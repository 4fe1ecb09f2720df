//! One client process of the load generator: one thread, and one connection as a worker of a site has.
//!
//! Started by [`crate::fleet`] with a [`ClientSpec`] as its argument. It connects, says `ready`, reads the moments to
//! begin and end from standard input, works, and prints a [`ClientReport`]. It must do nothing for one server that it
//! does not do for the others. With several connections (only to be compared with `redis-benchmark`, which is so) it
//! waits for all of them by `epoll`. [`load`] puts all keys once, used to fill a server.

use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl::set_timerslack;
use nix::unistd::alarm;
use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::clock::{now_ns, sleep_until_ns};
use crate::protocol::{Batch, Op, Replies, Shape, Wire};

/// Latencies are kept to three digits, up to a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// A server that says nothing for this long has failed: the alarm clock ends a client that waits longer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Filling a server: requests written at once.
const LOAD_DEPTH: usize = 64;
/// The most an answer has beside the value, a key: its head, or an error's message.
const ANSWER_BYTES_BESIDES_VALUE: usize = 2_048;

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
    /// Connections of this process; more than one only at [`Pace::Closed`].
    pub connections: usize,
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
    /// Of those read in shared memory: what the daemon had to be asked for after all.
    pub asked: u64,
    /// Processor time of this process while it was measured, in nanoseconds; 0 where that is not told.
    pub cpu_ns: u64,
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

/// A histogram as a report has it.
pub(crate) fn pairs(latencies: &Histogram<u64>) -> Vec<(u64, u64)> {
    latencies.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

/// The whole life of a client process.
///
/// # Errors
/// When the server or the parent fails it.
pub fn run(spec: &ClientSpec) -> Result<(), BenchError> {
    let lanes =
        (0..spec.connections).map(|_| Lane::open(spec.wire, spec.op, spec.shape, spec.depth, &spec.socket));
    let mut lanes = lanes.collect::<Result<Vec<_>, _>>()?;
    if matches!(spec.pace, Pace::Open(_)) {
        // The kernel may otherwise wake us 50 us late, which would be counted as the server's latency.
        set_timerslack(1).map_err(|errno| BenchError::io("setting the timer slack")(errno.into()))?;
    }
    let moments = await_start()?;
    let mut tally = Tally::new(spec, moments);
    match lanes.as_mut_slice() {
        [lane] => work_one(lane, spec, &mut tally)?,
        lanes => work_many(lanes, spec, &mut tally)?,
    }
    println!("{}", serde_json::to_string(&tally.report()).expect("numbers always serialise"));
    Ok(())
}

/// Tells the parent that all is ready, and waits for the moment to begin.
pub(crate) fn await_start() -> Result<Moments, BenchError> {
    println!("ready");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(BenchError::io("reading the moments"))?;
    let moments = parse_moments(&line).ok_or_else(|| failed(format!("not three moments: {line:?}")))?;
    // A timeout of the socket would arm a timer for every answer, which was seen to cost a sixth of the rate.
    let rest = Duration::from_nanos(moments.end_ns.saturating_sub(now_ns())) + ANSWER_TIME_MAX;
    alarm::set(u32::try_from(rest.as_secs()).map_or(u32::MAX, |seconds| seconds + 1));
    sleep_until_ns(moments.start_ns);
    Ok(moments)
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

pub(crate) fn failed(what: impl Into<String>) -> BenchError {
    // The parent says which of its clients it was.
    BenchError::Client { index: 0, what: what.into() }
}

/// One connection, blocking.
fn work_one(lane: &mut Lane, spec: &ClientSpec, tally: &mut Tally) -> Result<(), BenchError> {
    let mut random = fastrand::Rng::with_seed(spec.seed);
    let mut begun_ns = now_ns();
    loop {
        if let Pace::Open(rate) = spec.pace {
            begun_ns += (-(1.0 - random.f64()).ln() * 1e9 / rate) as u64;
            if begun_ns >= tally.moments.end_ns {
                return Ok(());
            }
            sleep_until_ns(begun_ns);
        }
        lane.send(&mut random, spec.keys)?;
        let hits = loop {
            if let Some(hits) = lane.receive()? {
                break hits;
            }
        };
        let done_ns = now_ns();
        if !tally.count(begun_ns, done_ns, hits)? {
            return Ok(());
        }
        if spec.pace == Pace::Closed {
            begun_ns = done_ns;
        }
    }
}

/// Several connections, each with its batch on the way.
fn work_many(lanes: &mut [Lane], spec: &ClientSpec, tally: &mut Tally) -> Result<(), BenchError> {
    const EVENTS: usize = 64;
    let os = |errno: nix::errno::Errno| BenchError::io("waiting for answers")(errno.into());
    let mut random = fastrand::Rng::with_seed(spec.seed);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os)?;
    let mut begun_ns = vec![now_ns(); lanes.len()];
    for (index, lane) in lanes.iter_mut().enumerate() {
        epoll.add(&lane.stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).map_err(os)?;
        lane.send(&mut random, spec.keys)?;
    }
    let timeout = EpollTimeout::try_from(ANSWER_TIME_MAX).expect("half a minute is a timeout");
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let ready = epoll.wait(&mut events, timeout).map_err(os)?;
        if ready == 0 {
            return Err(failed("the server says nothing"));
        }
        for event in &events[..ready] {
            let index = event.data() as usize;
            let Some(hits) = lanes[index].receive()? else { continue };
            let done_ns = now_ns();
            if !tally.count(begun_ns[index], done_ns, hits)? {
                return Ok(());
            }
            begun_ns[index] = done_ns;
            lanes[index].send(&mut random, spec.keys)?;
        }
    }
}

/// Counts what was done, and knows when it is enough.
struct Tally {
    moments: Moments,
    stop: Stop,
    requests_a_batch: u64,
    keys_a_batch: u64,
    requests: u64,
    latencies: Histogram<u64>,
    report: ClientReport,
}

impl Tally {
    fn new(spec: &ClientSpec, moments: Moments) -> Tally {
        Tally {
            moments,
            stop: spec.stop,
            requests_a_batch: spec.depth as u64,
            keys_a_batch: (spec.depth * spec.op.keys()) as u64,
            requests: 0,
            latencies: histogram(),
            report: ClientReport {
                from_ns: moments.measure_ns,
                to_ns: moments.end_ns,
                ..ClientReport::default()
            },
        }
    }

    /// One batch was answered; false when it was the last.
    #[inline]
    fn count(&mut self, begun_ns: u64, done_ns: u64, hits: u64) -> Result<bool, BenchError> {
        let late = done_ns > self.moments.end_ns;
        if late && self.stop == Stop::Time {
            return Ok(false);
        }
        if done_ns >= self.moments.measure_ns {
            self.report.keys += self.keys_a_batch;
            self.report.hits += hits;
            self.latencies.saturating_record(done_ns.saturating_sub(begun_ns).max(1));
        }
        self.requests += self.requests_a_batch;
        match self.stop {
            Stop::Time => Ok(true),
            Stop::Requests(_) if late => {
                Err(failed(format!("did only {} requests in the time allowed", self.requests)))
            }
            Stop::Requests(requests_max) => {
                self.report.to_ns = done_ns;
                Ok(self.requests < requests_max)
            }
        }
    }

    fn report(mut self) -> ClientReport {
        self.report.latencies = pairs(&self.latencies);
        self.report
    }
}

/// Puts every key of `0..keys` once.
///
/// # Errors
/// When the server fails.
pub fn load(wire: Wire, socket: &Path, shape: Shape, keys: u64) -> Result<(), BenchError> {
    let all: Vec<u64> = (0..keys).collect();
    let mut lane = Lane::open(wire, Op::Put, shape, LOAD_DEPTH, socket)?;
    lane.stream.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(BenchError::io("setting a timeout"))?;
    for numbers in all.chunks(LOAD_DEPTH) {
        // The last batch is filled up with a key that is there already.
        let last = numbers.last().copied().unwrap_or(0);
        lane.numbers.fill(last);
        lane.numbers[..numbers.len()].copy_from_slice(numbers);
        lane.send_numbers()?;
        while lane.receive()?.is_none() {}
    }
    Ok(())
}

/// How many of the keys `0..keys` it has.
///
/// # Errors
/// When the server cannot be reached or answers wrongly.
pub fn held(wire: Wire, socket: &Path, shape: Shape, keys: u64) -> Result<u64, BenchError> {
    let depth = LOAD_DEPTH as u64;
    let mut lane = Lane::open(wire, Op::Get, shape, LOAD_DEPTH, socket)?;
    lane.stream.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(BenchError::io("setting a timeout"))?;
    (0..keys / depth).map(|batch| lane.ask(batch * depth..(batch + 1) * depth)).sum()
}

/// A connection and the batch that goes over it.
#[derive(Debug)]
pub(crate) struct Lane {
    stream: UnixStream,
    batch: Batch,
    replies: Replies,
    numbers: Vec<u64>,
    input: Vec<u8>,
    filled: usize,
}

impl Lane {
    pub(crate) fn open(
        wire: Wire,
        op: Op,
        shape: Shape,
        depth: usize,
        socket: &Path,
    ) -> Result<Lane, BenchError> {
        let doing = || format!("connecting to {}", socket.display());
        let mut stream = UnixStream::connect(socket).map_err(BenchError::io(doing()))?;
        wire.greet(&mut stream)?;
        let keys = depth * op.keys();
        Ok(Lane {
            stream,
            batch: Batch::new(wire, op, shape, depth),
            replies: Replies::new(wire, op, shape),
            numbers: vec![0; keys],
            input: vec![0; ANSWER_BYTES_BESIDES_VALUE * keys + keys * shape.value_bytes as usize],
            filled: 0,
        })
    }

    /// Sends the batch for keys chosen anew.
    #[inline]
    fn send(&mut self, random: &mut fastrand::Rng, keys: u64) -> Result<(), BenchError> {
        self.numbers.fill_with(|| random.u64(0..keys));
        self.send_numbers()
    }

    /// Sends the batch for these keys and waits for the answers: how many were found.
    #[inline]
    pub(crate) fn ask(&mut self, numbers: impl IntoIterator<Item = u64>) -> Result<u64, BenchError> {
        self.numbers.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
        self.send_numbers()?;
        loop {
            if let Some(hits) = self.receive()? {
                return Ok(hits);
            }
        }
    }

    /// What came.
    #[inline]
    pub(crate) fn answer(&self) -> &[u8] {
        &self.input[..self.filled]
    }

    #[inline]
    fn send_numbers(&mut self) -> Result<(), BenchError> {
        self.replies.restart();
        self.filled = 0;
        self.stream.write_all(self.batch.fill(&self.numbers)).map_err(BenchError::io("sending requests"))
    }

    /// Reads once. When all answers to the batch are there: how many keys were found.
    #[inline]
    fn receive(&mut self) -> Result<Option<u64>, BenchError> {
        let room = &mut self.input[self.filled..];
        if room.is_empty() {
            return Err(failed("the answers are longer than any should be"));
        }
        match self.stream.read(room).map_err(BenchError::io("reading answers"))? {
            0 => return Err(failed("the server hung up")),
            bytes => self.filled += bytes,
        }
        let complete = self.replies.advance(&self.input[..self.filled], &self.numbers)?;
        Ok(complete.then(|| self.replies.hits()))
    }
}
