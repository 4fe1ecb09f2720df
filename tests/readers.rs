//! Readers that are killed in mid-read, and one that is stopped in it: neither the writer nor another reader notices, and the
//! daemon keeps nothing of them.
//!
//! Quiet and disturbed phases take turns. In both the same readers are started one after the other and read as long; in
//! a quiet phase each ends by itself, in a disturbed one each is killed, and one is stopped all the while. What starting
//! processes costs is thus on both sides.
//!
//! `KVD_KILLS` sets how many are killed (16 by default; `scripts/soak readers` takes 500). What is timed is printed always
//! and asserted where `KVD_KILLS` is set, in a release build: beside other tests it would mean nothing.

use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kv_client::blocking::Client;
use kv_proto::segment::Words;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shared::{KEYS, attach, board, counter, key, put_counter, var};
use crate::support::{Daemon, Home, SOON, random, wait_for};
use crate::worker;

/// The word by which the newest reader tells that it reads; the one that is to be stopped has its own.
const IS_READING: usize = KEYS;
const STOPPED_IS_READING: usize = KEYS + 1;
const KILLS_IN_PHASE: usize = 25;
/// What a disturbed phase may do to the writer's throughput and to a reader's p99.
const RATIO_MAX: f64 = 1.1;
const GROWTH_BYTES_MAX: u64 = 4 << 20;
const JOURNAL_BYTES: u64 = 4 << 20;
/// A reader whose killer is gone ends by itself.
const LIFE_MAX: Duration = Duration::from_secs(60);

#[test]
fn killed_and_stopped_readers_are_not_noticed() {
    let wanted: Option<usize> = std::env::var("KVD_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills = wanted.unwrap_or(16);
    let in_phase = KILLS_IN_PHASE.min(kills.div_ceil(2));
    let home = Home::configured(&format!(
        "memory = \"16MiB\"\njournal_max = \"{JOURNAL_BYTES}\"\n[default]\nmemory = \"1MiB\"\n[caches.hot]\nmemory = \"1MiB\"\n"
    ));
    let daemon = home.start();
    let mut stage = Stage::new(&home, in_phase);
    // What is made once, like the file's first journal, is there afterwards.
    for is_disturbed in [false, true, false, true] {
        stage.phase(is_disturbed);
    }
    let before = Kept::by(&daemon);
    let (mut puts, mut p99s) = (Vec::new(), Vec::new());
    for pair in 0..kills.div_ceil(in_phase) {
        // Whatever drifts meets both sides alike.
        let (quiet, disturbed) = if pair % 2 == 0 {
            let quiet = stage.phase(false);
            (quiet, stage.phase(true))
        } else {
            let disturbed = stage.phase(true);
            (stage.phase(false), disturbed)
        };
        puts.push(quiet.puts_per_s / disturbed.puts_per_s);
        p99s.push(disturbed.read_ns_p99 / quiet.read_ns_p99);
        (0..in_phase / 8).for_each(|_| stage.kill_at_start());
    }
    let killed = stage.killed;
    assert!(killed >= kills, "only {killed} of {kills} were killed");
    let is_timed = wanted.is_some() && !cfg!(debug_assertions);
    let mut is_kept = true;
    for (name, ratios) in [("writer", &mut puts), ("others_p99", &mut p99s)] {
        let ratio = median(ratios);
        let what = format!("readers.{name} {ratio:.3} of a quiet run, {killed} readers killed, one stopped");
        if !is_timed {
            println!("{what}");
        } else if ratio <= RATIO_MAX {
            println!("PROMISE {what} held");
        } else {
            println!("PROMISE {what} broken");
            is_kept = false;
        }
    }
    drop(stage);
    before.assert_nothing_grew(&home, &daemon, killed);
    assert!(is_kept, "above {RATIO_MAX}: writer {puts:.3?}, readers {p99s:.3?}");
}

fn median(ratios: &mut [f64]) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// What a phase saw.
struct Seen {
    puts_per_s: f64,
    read_ns_p99: f64,
}

struct Stage<'a> {
    home: &'a Home,
    board: std::sync::Arc<Words>,
    writer: Client,
    reader: Client,
    random: fastrand::Rng,
    in_phase: usize,
    killed: usize,
}

impl Stage<'_> {
    fn new(home: &Home, in_phase: usize) -> Stage<'_> {
        let board = board(&home.path().join("board"), true);
        let (writer, reader) = (home.client(), home.client());
        (0..KEYS).for_each(|number| put_counter(&writer, &board, number).expect("the daemon serves"));
        attach(&reader, "hot");
        Stage { home, board, writer, reader, random: random(), in_phase, killed: 0 }
    }

    /// A writer that never rests, a reader that is timed, and one short-lived reader after the other.
    fn phase(&mut self, is_disturbed: bool) -> Seen {
        let stopped = is_disturbed.then(|| {
            let mut reader = self.start(STOPPED_IS_READING, LIFE_MAX);
            wait_for(SOON, "the reader to be stopped", || self.reads(STOPPED_IS_READING, &mut reader));
            std::thread::sleep(Duration::from_micros(self.random.u64(..2_000)));
            kill(pid(&reader), Signal::SIGSTOP).expect("our child");
            reader
        });
        let is_over = AtomicBool::new(false);
        let (board, writer, reader) = (self.board.clone(), self.writer.clone(), self.reader.clone());
        let seen = std::thread::scope(|scope| {
            let puts = scope.spawn(|| put_until(&writer, &board, &is_over));
            let reads = scope.spawn(|| read_until(&reader, &board, &is_over));
            (0..self.in_phase).for_each(|_| self.one_reader(is_disturbed));
            is_over.store(true, Ordering::Relaxed);
            let puts_per_s = puts.join().expect("the writer does not fail");
            Seen { puts_per_s, read_ns_p99: reads.join().expect("the reader does not fail") }
        });
        if let Some(stopped) = stopped {
            end(stopped);
            self.killed += 1;
        }
        seen
    }

    /// Starts a reader, lets it read for a while, and sees it end or ends it.
    fn one_reader(&mut self, is_killed: bool) {
        let life = Duration::from_micros(self.random.u64(1_000..25_000));
        let mut reader = self.start(IS_READING, if is_killed { LIFE_MAX } else { life });
        wait_for(SOON, "the reader to read", || self.reads(IS_READING, &mut reader));
        std::thread::sleep(life);
        if is_killed {
            end(reader);
            self.killed += 1;
        } else {
            let output = reader.wait_with_output().expect("our child");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Kills one at some moment between its first instruction and its first reads.
    fn kill_at_start(&mut self) {
        let reader = self.start(IS_READING, LIFE_MAX);
        std::thread::sleep(Duration::from_micros(self.random.u64(..8_000)));
        end(reader);
        self.killed += 1;
    }

    fn start(&self, tells_at: usize, life: Duration) -> Child {
        self.board.store(tells_at, 0);
        let vars = [
            ("KVD_BOARD", self.home.path().join("board").display().to_string()),
            ("KVD_LIFE_US", life.as_micros().to_string()),
            ("KVD_TELLS_AT", tells_at.to_string()),
        ];
        worker::spawn("mortal", &self.home.socket(), &vars)
    }

    /// Whether that reader reads; one with a short life may be done already, and has then told so.
    fn reads(&self, tells_at: usize, reader: &mut Child) -> Option<()> {
        if self.board.load(tells_at) == 1 {
            return Some(());
        }
        let ended = reader.try_wait().expect("our child");
        assert!(
            ended.is_none() || self.board.load(tells_at) == 1,
            "a reader ended before it read: {ended:?}"
        );
        None
    }
}

/// Kills a reader that must still be there: one that has ended has read something wrong.
fn end(mut reader: Child) {
    let ended = reader.try_wait().expect("our child");
    reader.kill().expect("our child");
    let output = reader.wait_with_output().expect("our child");
    assert!(ended.is_none(), "a reader ended: {}", String::from_utf8_lossy(&output.stderr));
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn put_until(client: &Client, board: &Words, is_over: &AtomicBool) -> f64 {
    let began = Instant::now();
    let mut puts = 0;
    while !is_over.load(Ordering::Relaxed) {
        put_counter(client, board, puts % KEYS).expect("the daemon serves");
        puts += 1;
    }
    puts as f64 / began.elapsed().as_secs_f64()
}

/// Times reads, with pauses: it must not be what the writer waits for.
fn read_until(client: &Client, board: &Words, is_over: &AtomicBool) -> f64 {
    let mut reads = Reads::of(client);
    let mut ns = Histogram::<u64>::new_with_max(10_000_000_000, 3).expect("constant bounds");
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..100 {
            let number = fastrand::usize(..KEYS);
            let began = Instant::now();
            reads.check(board, number);
            ns.saturating_record(began.elapsed().as_nanos() as u64);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    ns.value_at_quantile(0.99) as f64
}

/// Reads and checks each against what was acknowledged before.
struct Reads {
    cache: kv_client::blocking::Cache,
    keys: Vec<String>,
    newest: [u64; KEYS],
    value: Vec<u8>,
}

impl Reads {
    fn of(client: &Client) -> Reads {
        let keys = (0..KEYS).map(key).collect();
        Reads { cache: client.cache("hot"), keys, newest: [0; KEYS], value: Vec::new() }
    }

    fn check(&mut self, board: &Words, number: usize) {
        let floor = board.load(number).max(self.newest[number]);
        let is_there = self.cache.get_into(&self.keys[number], &mut self.value).expect("the daemon serves");
        assert!(is_there, "key {number} is lost");
        let read = counter(&self.value);
        assert!(read >= floor, "key {number}: {floor} was acknowledged or read, now {read} was read");
        self.newest[number] = read;
    }
}

/// In a worker: reads without a pause until its life is over or it is killed.
pub(crate) fn mortal() {
    let board = board(Path::new(&var("KVD_BOARD")), false);
    let life = Duration::from_micros(var("KVD_LIFE_US").parse().expect("a number"));
    let tells_at = var("KVD_TELLS_AT").parse().expect("a number");
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the daemon serves");
    attach(&client, "hot");
    let mut reads = Reads::of(&client);
    let began = Instant::now();
    board.store(tells_at, 1);
    while began.elapsed() < life {
        (0..KEYS).for_each(|number| reads.check(&board, number));
    }
}

/// What the daemon keeps.
struct Kept {
    private_bytes: u64,
    shared_bytes: u64,
    descriptors: usize,
}

impl Kept {
    fn by(daemon: &Daemon) -> Kept {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("our child");
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux since 4.5");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
        };
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("our child").count();
        Kept { private_bytes: bytes("RssAnon:"), shared_bytes: bytes("RssShmem:"), descriptors }
    }

    /// `self` is from when the stage's two clients and nobody else were connected; they are gone now.
    fn assert_nothing_grew(&self, home: &Home, daemon: &Daemon, killed: usize) {
        wait_for(SOON, "the dead readers' connections to be closed", || {
            (Kept::by(daemon).descriptors <= self.descriptors).then_some(())
        });
        let now = Kept::by(daemon);
        let grown = now.private_bytes.saturating_sub(self.private_bytes);
        let shared = now.shared_bytes.saturating_sub(self.shared_bytes);
        assert!(grown <= GROWTH_BYTES_MAX, "the daemon's own memory grew by {grown} bytes");
        assert!(shared <= GROWTH_BYTES_MAX, "the daemon's shared memory grew by {shared} bytes");
        let client = home.client();
        let file = wait_for(SOON, "the file to shrink to what lives", || {
            let live = crate::churn::figure(&client, "kvd_store_live_bytes");
            let file = crate::churn::file_bytes(home);
            (file <= (live + JOURNAL_BYTES) * 5 / 2).then_some(file)
        });
        println!(
            "PROMISE readers.growth {} KiB of memory, the file has {} KiB, no descriptor kept for {killed} killed held",
            (grown + shared) >> 10,
            file >> 10
        );
    }
}
