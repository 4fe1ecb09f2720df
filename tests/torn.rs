//! Torn reads, across processes: values that describe themselves, a ring so small that it laps all the time, readers that
//! are killed and stopped at random. No read is torn, of another key, older than what was acknowledged, going
//! backwards, or half of a commit.
//!
//! `KVD_READS` sets how many reads all readers make together (1,000,000 by default; `scripts/soak torn` takes 100,000,000).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::blocking::{Cache, Client};
use kv_proto::segment::Words;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{random, timed, wait_for};
use crate::worker;

const READERS: usize = 4;
/// Keys of one commit, in each of two caches: all have the same generation, always.
const KEYS: u64 = 8;
/// Items written between two commits.
const LITTER: u64 = 24;
const GENERATION: usize = 0;
/// From here on a block of words for each reader that ever was: reads, times overtaken.
const READERS_AT: usize = 16;
const READERS_MAX: usize = 4_096;
const BOARD_WORDS: usize = READERS_AT + 2 * READERS_MAX;
/// A long run in which fewer reads were overtaken in mid-copy proves nothing. In a build without optimisation a read is so
/// seldom in mid-copy that a short run sees some ten a second: it ends with what it saw, and says so.
const OVERTAKEN_MIN: u64 = 1_000;
const OVERTAKEN_MIN_SHORT: u64 = 10;
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn no_process_reads_anything_torn_while_the_ring_laps() {
    let _timed = timed();
    let asked_for = std::env::var("KVD_READS").ok().and_then(|reads| reads.parse().ok());
    let wanted: u64 = asked_for.unwrap_or(1_000_000);
    let overtaken_min = if asked_for.is_some() { OVERTAKEN_MIN } else { OVERTAKEN_MIN_SHORT };
    let mut random = random();
    let server = kvd::testing::server_with(|config| {
        config.default.memory_bytes = 1 << 20;
        config.default.durability = kv_client::Durability::Memory;
        config.default.disk_bytes_max = 0;
    });
    let board_path = server.dir().join("board");
    let board = board(&board_path, true);
    let direct = server.direct();
    commit(&direct, 1, &mut random);
    board.store(GENERATION, 1);
    let stop = AtomicBool::new(false);
    let mut numbers = 0..READERS_MAX;
    let mut start = || {
        let number = numbers.next().expect("fewer readers are killed than that");
        let vars = [
            ("KVD_BOARD", board_path.display().to_string()),
            ("KVD_WORKER", number.to_string()),
            ("KVD_SEED", fastrand::u64(..).to_string()),
        ];
        worker::spawn("torn", server.socket(), &vars)
    };
    let mut readers: Vec<_> = (0..READERS).map(|_| start()).collect();
    let mut writer_random = fastrand::Rng::with_seed(random.u64(..));
    let (kills, commits) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut generation = 1;
            while !stop.load(Ordering::Relaxed) {
                generation += 1;
                commit(&direct, generation, &mut writer_random);
                // Acknowledged: from here on nobody may read anything older.
                board.store(GENERATION, generation);
                litter(&direct, generation, &mut writer_random);
            }
            generation
        });
        // A failure below must end the writer too, or the scope waits for it for ever.
        let _stops = Stops(&stop);
        let began = Instant::now();
        let mut kills = 0;
        let is_enough = || sum(&board, 0) >= wanted && sum(&board, 1) >= overtaken_min;
        while !is_enough() && began.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(random.u64(5..60)));
            let victim = random.usize(..READERS);
            assert!(
                readers[victim].try_wait().expect("our child").is_none(),
                "a reader ended: {}",
                ended(readers.swap_remove(victim))
            );
            let pid = Pid::from_raw(i32::try_from(readers[victim].id()).expect("pids are small"));
            if random.bool() && kills < 500 {
                readers[victim].kill().expect("our child");
                readers[victim].wait().expect("our child");
                readers[victim] = start();
                kills += 1;
            } else {
                kill(pid, Signal::SIGSTOP).expect("our child");
                std::thread::sleep(Duration::from_millis(random.u64(1..30)));
                kill(pid, Signal::SIGCONT).expect("our child");
            }
        }
        stop.store(true, Ordering::Relaxed);
        (kills, writer.join().expect("the writer does not fail"))
    });
    board.store(GENERATION, u64::MAX);
    for reader in readers {
        let output = reader.wait_with_output().expect("our child");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (reads, overtaken) = (sum(&board, 0), sum(&board, 1));
    assert!(reads >= wanted, "only {reads} reads in {LIMIT:?}");
    assert!(
        overtaken >= overtaken_min,
        "only {overtaken} of {reads} reads were overtaken in mid-copy: this proves nothing"
    );
    println!(
        "PROMISE torn.none {reads} reads by {READERS} processes, {overtaken} overtaken in mid-copy, {commits} commits, {kills} readers killed held"
    );
}

struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ended(reader: std::process::Child) -> String {
    let output = reader.wait_with_output().expect("our child");
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn board(path: &Path, create: bool) -> Arc<Words> {
    let file = File::options().read(true).write(true).create(create).truncate(create).open(path);
    let file = file.expect("the directory is ours");
    if create {
        file.set_len(8 * BOARD_WORDS as u64).expect("there is room");
    }
    Words::map_file(&file, 8 * BOARD_WORDS).expect("it is a file of that length")
}

fn sum(board: &Words, of: usize) -> u64 {
    (0..READERS_MAX).map(|reader| board.load(READERS_AT + 2 * reader + of)).sum()
}

fn key(number: u64) -> String {
    format!("key:{number}")
}

/// One commit over all keys of both caches.
fn commit(client: &Client, generation: u64, random: &mut fastrand::Rng) {
    let mut batch = client.batch();
    for number in 0..KEYS {
        for cache in ["a", "b"] {
            batch = batch.put(cache, key(number), value(generation, number, random.usize(..4_000)), None);
        }
    }
    batch.commit().expect("the engine is there");
}

/// Other items, so that the rings lap.
fn litter(client: &Client, generation: u64, random: &mut fastrand::Rng) {
    for cache in ["a", "b"] {
        let items = (0..LITTER).map(|n| {
            let number = litter_number(generation, n);
            (key(number), value(generation, number, random.usize(3_000..5_000)))
        });
        client.cache(cache).put_many(items, None).expect("the engine is there");
    }
}

fn litter_number(generation: u64, n: u64) -> u64 {
    KEYS + (generation * LITTER + n) % 1_000
}

/// Generation, key number, filling made of both, and a checksum.
fn value(generation: u64, number: u64, filling: usize) -> Vec<u8> {
    let mut value = [generation.to_le_bytes(), number.to_le_bytes()].concat();
    let seed = generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
    value.extend(seed.to_le_bytes().repeat(filling / 8));
    let sum = xxhash_rust::xxh3::xxh3_64(&value);
    value.extend(sum.to_le_bytes());
    value
}

/// The generation of a value, which must be whole and of this key.
fn generation(value: &[u8], number: u64) -> u64 {
    let (body, sum) = value.split_last_chunk::<8>().expect("longer than its checksum");
    assert_eq!(xxhash_rust::xxh3::xxh3_64(body).to_le_bytes(), *sum, "torn: {value:02x?}");
    let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!(word(8), number, "another key's value");
    word(0)
}

/// A reader process: reads at random until the generation says to stop.
pub(crate) fn reader() {
    let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("a reader is given {name}"));
    let mut random = fastrand::Rng::with_seed(var("KVD_SEED").parse().expect("a number"));
    let board = board(Path::new(&var("KVD_BOARD")), false);
    let at = READERS_AT + 2 * var("KVD_WORKER").parse::<usize>().expect("a number");
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the daemon serves");
    let caches = [client.cache("a"), client.cache("b")];
    let attached = || client.stats().caches.iter().all(|cache| cache.path.is_shared()).then_some(());
    wait_for(Duration::from_secs(10), "both segments", || {
        caches.iter().for_each(|cache| drop(cache.get(key(0)).expect("the daemon serves")));
        attached()
    });
    let mut newest = [[0; KEYS as usize]; 2];
    let mut buffer = Vec::new();
    loop {
        for _ in 0..64 {
            let floor = board.load(GENERATION);
            if floor == u64::MAX {
                return;
            }
            let number = random.u64(..KEYS);
            match random.u32(..16) {
                0 => read_snapshot(&caches[random.usize(..2)], floor),
                1 => read_both(&caches, number, floor),
                2..8 => {
                    let number = litter_number(floor - random.u64(..2).min(floor), random.u64(..LITTER));
                    if caches[0].get_into(key(number), &mut buffer).expect("the daemon serves") {
                        generation(&buffer, number);
                    }
                }
                _ => {
                    let which = random.usize(..2);
                    let read = read_one(&caches[which], number, floor, &mut buffer);
                    let newest = &mut newest[which][number as usize];
                    assert!(read >= *newest, "went backwards: {newest} was read, now {read}");
                    *newest = read;
                }
            }
        }
        board.store(at, board.load(at) + 64);
        let overtaken = client.stats().caches.iter().map(|cache| cache.times_overtaken).sum();
        board.store(at + 1, overtaken);
    }
}

/// Reads a key that is always there; it may have left memory for a moment, then it was evicted and is a miss.
fn read_one(cache: &Cache, number: u64, floor: u64, buffer: &mut Vec<u8>) -> u64 {
    if !cache.get_into(key(number), buffer).expect("the daemon serves") {
        // Evicted from a `memory` cache: whoever wrote since has put it back.
        return floor;
    }
    let read = generation(buffer, number);
    assert!(read >= floor, "older than acknowledged: {floor} was, {read} was read");
    read
}

/// All keys of a cache at once are of one commit.
fn read_snapshot(cache: &Cache, floor: u64) {
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let values = cache.get_many(&keys).expect("the daemon serves");
    let found = values.iter().zip(0..).filter_map(|(value, n)| Some(generation(value.as_deref()?, n)));
    let found: Vec<u64> = found.collect();
    assert!(
        found.iter().all(|read| *read == found[0] && *read >= floor),
        "half a commit: {found:?} after {floor}"
    );
}

/// What is read second is at least as new as what was read first.
fn read_both(caches: &[Cache; 2], number: u64, floor: u64) {
    let read = |cache: &Cache| {
        let value = cache.get(key(number)).expect("the daemon serves")?;
        Some(generation(&value, number))
    };
    let first = read(&caches[0]).unwrap_or(floor);
    if let Some(second) = read(&caches[1]) {
        assert!(second >= first.max(floor), "half a commit: {first} of a, then {second} of b");
    }
}
