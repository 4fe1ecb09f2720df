//! What the memory tier costs inside one process: `cargo bench -p kvd-benches --bench segment`.
//!
//! Keys are chosen uniformly among 100,000, which no cache of the processor holds; the time to format the key is included, as
//! in the tables of `docs/BENCHMARKS.md`.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kv_proto::segment::{Backed, Control, Found, Geometry, NewItem, Outcome, Reader, Words, Writer};

const KEYS: u64 = 100_000;
const SEED: u64 = 7;
const NOW: i64 = 1_000;

struct Bench {
    control: Arc<Control>,
    writer: Writer,
    version: u64,
    value: Vec<u8>,
}

impl Bench {
    /// A segment with room for all keys twice, all of them there and resident.
    fn new(value_bytes: usize) -> Bench {
        let memory_bytes = KEYS * (value_bytes as u64 + 128) * 2;
        let geometry = Geometry::new(memory_bytes, KEYS);
        let (words, _descriptor) = Words::memfd(c"bench", geometry.bytes()).expect("memory can be had");
        let writer = Writer::create(words, geometry, SEED, Backed::Memory, 1);
        let mut bench =
            Bench { control: Control::private(1), writer, version: 1, value: vec![b'v'; value_bytes] };
        let mut buffer = Vec::new();
        for number in 0..KEYS {
            bench.put(number);
            let key = key(number);
            let hash = bench.reader().hash(&key);
            // Items that nobody reads would not outlive probation.
            match bench.writer.find(hash, &key, NOW, &mut buffer) {
                Found::Item(meta) => bench.writer.hits().touch(meta.place),
                other => panic!("{number} was just put and is {other:?}"),
            }
        }
        bench
    }

    fn reader(&self) -> Reader {
        self.writer.reader(&self.control)
    }

    fn put(&mut self, number: u64) {
        let key = key(number);
        let hash = kv_proto::hash_key(SEED, &key);
        self.version += 1;
        let item = NewItem {
            key: &key,
            value: &self.value,
            version: self.version,
            created: NOW,
            expires: None,
            stale_for_ms: 0,
            load_cost_ms: 0,
            stale: false,
            tags: &[],
        };
        assert!(self.writer.stage_put(self.version, hash, &item, NOW), "the item is far below a sixteenth");
        self.writer.publish(self.version);
        self.control.commit(self.version);
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("product:{number:08}").into_bytes()
}

fn get(reader: &Reader, number: u64, buffer: &mut Vec<u8>) -> bool {
    let key = key(number);
    matches!(reader.get(reader.hash(&key), &key, NOW, buffer), Outcome::Hit(_))
}

fn segment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    for value_bytes in [64, 512, 4_096] {
        let mut bench = Bench::new(value_bytes);
        let reader = bench.reader();
        let mut random = fastrand::Rng::with_seed(1);
        let mut buffer = Vec::new();
        let hits = (0..KEYS).filter(|&number| get(&reader, number, &mut buffer)).count() as u64;
        assert!(
            hits * 100 >= KEYS * 99,
            "only {hits} of {KEYS} keys are resident: hits would not be measured"
        );
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("get hit {value_bytes} B"), |bencher| {
            bencher.iter(|| get(&reader, black_box(random.u64(0..KEYS)), &mut buffer));
        });
        group.bench_function(format!("get miss among {value_bytes} B"), |bencher| {
            bencher.iter(|| get(&reader, black_box(KEYS + random.u64(0..KEYS)), &mut buffer));
        });
        group.bench_function(format!("put {value_bytes} B"), |bencher| {
            bencher.iter(|| bench.put(black_box(random.u64(0..KEYS))));
        });
    }
    group.finish();
}

/// A hundred keys of one moment.
fn many(criterion: &mut Criterion) {
    const KEYS_AT_ONCE: usize = 100;
    let bench = Bench::new(512);
    let reader = bench.reader();
    let mut random = fastrand::Rng::with_seed(1);
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Elements(KEYS_AT_ONCE as u64));
    group.bench_function(format!("get_many {KEYS_AT_ONCE} x 512 B"), |bencher| {
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        let choose = || (0..KEYS_AT_ONCE).map(|_| key(random.u64(0..KEYS))).collect::<Vec<_>>();
        bencher.iter_batched(
            choose,
            |keys| {
                let keys: Vec<(u64, &[u8])> =
                    keys.iter().map(|key| (reader.hash(key), key.as_slice())).collect();
                reader.get_many(&keys, NOW, &mut buffer, &mut found).is_ok()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// The limit: a map of this process, one copy.
fn map(criterion: &mut Criterion) {
    let map: HashMap<Vec<u8>, Vec<u8>> = (0..KEYS).map(|number| (key(number), vec![b'v'; 512])).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let mut buffer = Vec::new();
    criterion.bench_function("segment/beside: HashMap get and copy 512 B", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            buffer.extend_from_slice(&map[&key(black_box(random.u64(0..KEYS)))]);
            buffer.len()
        });
    });
}

criterion_group!(benches, segment, many, map);
criterion_main!(benches);
