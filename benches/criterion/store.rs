//! What the store costs: appending, flushing, folding, reading.
//!
//! `cargo bench -p kvd-benches --bench store`. Wants a directory on a disk: set `TMPDIR` where the system's is in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_proto::wire::Durability;
use kvd::clock::Clock;
use kvd::store::{Change, Disk, ItemFields, Options, Store, commit_bytes_max};
use tempfile::TempDir;

const CACHE: u32 = 1;
const KEYS: u64 = 100_000;
const FOLDED_KEYS: u64 = 40_000;
const WAIT_MAX: Duration = Duration::from_secs(60);

struct Bench {
    store: Arc<Store>,
    sequence: u64,
    random: fastrand::Rng,
    value: Vec<u8>,
    _dir: TempDir,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Options)) -> Bench {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mut options = Options::new(dir.path());
        change(&mut options);
        let (store, recovered) =
            Store::open(options, Clock::system(), Disk::default()).expect("an empty store opens");
        let mut bench = Bench {
            store,
            sequence: recovered.sequence_first,
            random: fastrand::Rng::with_seed(1),
            value: vec![b'v'; 512],
            _dir: dir,
        };
        bench.commit(&[Change::CacheCreated { cache: CACHE, name: "product", settings: &[] }]);
        bench.sync();
        bench
    }

    fn commit(&mut self, changes: &[Change<'_>]) {
        let deadline = Instant::now() + WAIT_MAX;
        let permit = self.store.admit(&[CACHE], commit_bytes_max(changes), Durability::Behind, deadline);
        self.store.append(permit.expect("there is room"), self.sequence, changes);
        self.sequence += 1;
    }

    fn put(&mut self, number: u64) {
        let value = std::mem::take(&mut self.value);
        let key = format!("product:{number:08}");
        let item = ItemFields {
            version: self.sequence,
            created: 0,
            expires: None,
            stale_for_ms: 0,
            load_cost_ms: 0,
            stale: false,
            tags: &[],
            value: &value,
        };
        self.commit(&[Change::Put { cache: CACHE, key: key.as_bytes(), item }]);
        self.value = value;
    }

    fn put_random(&mut self, puts: u64) {
        for _ in 0..puts {
            let number = self.random.u64(0..KEYS);
            self.put(number);
        }
    }

    fn sync(&self) {
        self.store.sync(Instant::now() + WAIT_MAX).expect("the disk works");
    }

    /// Folds what is journalled and says how long that took. (If the store has begun by itself, only the rest is counted.)
    fn fold(&self) -> Duration {
        let begin = Instant::now();
        self.store.sweep_now();
        while self.store.stats().journal_records > 0 {
            assert!(begin.elapsed() < WAIT_MAX, "the fold does not end");
            std::thread::sleep(Duration::from_micros(200));
        }
        begin.elapsed()
    }
}

/// Admission and the copy into the pending log and the overlay; what the disk does meanwhile is not counted.
fn append(criterion: &mut Criterion) {
    const PUTS_A_SYNC: u64 = 10_000;
    let mut bench = Bench::new(|_| {});
    criterion.bench_function("store/append 512 B", |bencher| {
        bencher.iter_custom(|puts| {
            let mut time = Duration::ZERO;
            let mut left = puts;
            while left > 0 {
                let now = left.min(PUTS_A_SYNC);
                let begin = Instant::now();
                bench.put_random(now);
                time += begin.elapsed();
                bench.sync();
                left -= now;
            }
            time
        });
    });
}

/// Puts that are on stable storage at the end, as one flush.
fn flush(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store/append and flush");
    group.sample_size(20);
    for puts in [1, 64, 1_024] {
        let mut bench = Bench::new(|_| {});
        group.throughput(Throughput::Elements(puts));
        group.bench_function(format!("{puts} x 512 B"), |bencher| {
            bencher.iter(|| {
                bench.put_random(puts);
                bench.sync();
            });
        });
    }
    group.finish();
}

/// Moving different keys from the journal into a tree of 100,000.
fn fold(criterion: &mut Criterion) {
    let mut bench = Bench::new(|options| options.journal_bytes_max = 1 << 30);
    for number in 0..KEYS {
        bench.put(number);
    }
    bench.sync();
    bench.fold();
    let mut group = criterion.benchmark_group("store/fold");
    group.sample_size(10).throughput(Throughput::Elements(FOLDED_KEYS));
    group.bench_function(format!("{FOLDED_KEYS} x 512 B"), |bencher| {
        bencher.iter_custom(|folds| {
            let one = |_| {
                let first = bench.random.u64(0..KEYS - FOLDED_KEYS);
                for number in first..first + FOLDED_KEYS {
                    bench.put(number);
                }
                bench.sync();
                bench.fold()
            };
            (0..folds).map(one).sum()
        });
    });
    group.finish();
}

/// A read that misses the memory tier.
fn read(criterion: &mut Criterion) {
    let mut bench = Bench::new(|options| options.journal_bytes_max = 1 << 30);
    for number in 0..KEYS {
        bench.put(number);
    }
    bench.sync();
    let mut random = fastrand::Rng::with_seed(2);
    let mut get = |store: &Store, at: u64| {
        let key = format!("product:{:08}", at + random.u64(0..KEYS));
        store.read(CACHE, key.as_bytes()).expect("the disk works").is_some()
    };
    criterion.bench_function("store/read overlay", |bencher| bencher.iter(|| get(&bench.store, 0)));
    bench.fold();
    criterion.bench_function("store/read tree", |bencher| bencher.iter(|| get(&bench.store, 0)));
    criterion.bench_function("store/read miss", |bencher| bencher.iter(|| get(&bench.store, KEYS)));
}

criterion_group!(benches, append, flush, fold, read);
criterion_main!(benches);
