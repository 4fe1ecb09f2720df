//! The segment against a model: whatever the writer is told, readers see the newest state that memory still holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kv_proto::segment::{
    Backed, Control, Freshness, Geometry, Install, Installed, Mark, NewItem, Outcome, Reader, Reason,
    SweepCursor, WalkItem, Words, Writer,
};
use kv_proto::wire::Effect;
use kv_proto::{BootMs, Version, tag_slot};

fn random() -> fastrand::Rng {
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Steps of a model test; tools that slow everything down set fewer.
fn steps() -> usize {
    std::env::var("KVD_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(20_000)
}

struct Bench {
    control: Arc<Control>,
    writer: Writer,
    reader: Reader,
    version: Version,
    now: BootMs,
}

impl Bench {
    fn new(geometry: Geometry, backed: Backed) -> Bench {
        let control = Control::private(1);
        control.commit(1);
        let words = Words::heap(geometry.bytes() / 8);
        let mut writer = Writer::create(words, geometry, 42, backed, 1);
        writer.complete(1);
        let reader = writer.reader(&control);
        Bench { control, writer, reader, version: 1, now: 1_000 }
    }

    fn commit(&mut self, stage: impl FnOnce(&mut Writer, Version, BootMs)) -> Version {
        self.version += 1;
        stage(&mut self.writer, self.version, self.now);
        self.writer.publish(self.version);
        self.control.commit(self.version);
        self.version
    }

    fn put(&mut self, key: &[u8], value: &[u8], expires: Option<BootMs>, tags: &[&[u8]]) -> Version {
        let hash = self.reader.hash(key);
        self.commit(|writer, version, now| {
            let item = item(key, value, version, expires, tags);
            if !writer.stage_put(version, hash, &item, now) {
                writer.stage_mark(version, hash, key, Mark::Disk);
            }
        })
    }

    fn get(&self, key: &[u8]) -> Outcome {
        self.reader.get(self.reader.hash(key), key, self.now, &mut Vec::new())
    }
}

fn item<'a>(
    key: &'a [u8],
    value: &'a [u8],
    version: u64,
    expires: Option<BootMs>,
    tags: &'a [&'a [u8]],
) -> NewItem<'a> {
    NewItem { key, value, version, created: 0, expires, stale_for_ms: 0, load_cost_ms: 0, stale: false, tags }
}

/// What the model knows of a key.
#[derive(Debug, Clone)]
struct Known {
    version: Version,
    value: Vec<u8>,
    expires: Option<BootMs>,
    tags: Vec<&'static str>,
    gone: bool,
}

const TAGS: [&str; 3] = ["red", "green", "blue"];

/// Random changes; after each, every key is read: a hit is the newest state, a miss is true, else memory must ask.
fn against_model(backed: Backed, geometry: Geometry, steps: usize, random: &mut fastrand::Rng) {
    let mut bench = Bench::new(geometry, backed);
    let mut model: HashMap<Vec<u8>, Known> = HashMap::new();
    let mut cursor = SweepCursor::default();
    let keys: Vec<Vec<u8>> =
        (0..60).map(|i| format!("{}key{i}", if i % 3 == 0 { "a:" } else { "b:" }).into_bytes()).collect();
    for step in 0..steps {
        let key = &keys[random.usize(..keys.len())];
        match random.u32(..100) {
            0..60 => {
                let bytes_max = if random.u8(..) == 0 { 3_000 } else { 100 };
                let value = vec![step as u8; random.usize(..bytes_max)];
                let expires = random.bool().then(|| bench.now + random.i64(1..800));
                let tags: Vec<&str> = TAGS.into_iter().filter(|_| random.u8(..4) == 0).collect();
                let tag_bytes: Vec<&[u8]> = tags.iter().map(|tag| tag.as_bytes()).collect();
                let version = bench.put(key, &value, expires, &tag_bytes);
                model.insert(key.clone(), Known { version, value, expires, tags, gone: false });
            }
            60..75 => {
                let hash = bench.reader.hash(key);
                bench.commit(|writer, version, _| writer.stage_remove(version, hash, key));
                model.remove(key);
            }
            75..80 => {
                let tag = TAGS[random.usize(..3)];
                bench.commit(|writer, version, _| {
                    writer.stamp_tag(version, tag_slot(tag.as_bytes()), Effect::Gone)
                });
                model
                    .values_mut()
                    .filter(|known| known.tags.contains(&tag))
                    .for_each(|known| known.gone = true);
            }
            80..83 => {
                let prefix: &[u8] = if random.bool() { b"a:" } else { b"b:key1" };
                bench.commit(|writer, version, _| {
                    writer.stamp_prefix(version, prefix, Effect::Gone).expect("two at most")
                });
                for (key, known) in &mut model {
                    known.gone |= key.starts_with(prefix);
                }
            }
            83..84 => {
                bench.commit(|writer, version, _| writer.stamp_all(version, Effect::Gone));
                model.values_mut().for_each(|known| known.gone = true);
            }
            84..92 => bench.now += random.i64(0..40),
            92..96 => {
                bench.version += 1;
                bench.writer.sweep(bench.version, &mut cursor, 7, bench.now);
                bench.control.commit(bench.version);
            }
            _ => {
                let hash = bench.reader.hash(key);
                if let Some(known) = model.get(key).filter(|known| !known.gone && backed == Backed::Disk) {
                    bench.version += 1;
                    let tags: Vec<&[u8]> = known.tags.iter().map(|tag| tag.as_bytes()).collect();
                    let from_disk = item(key, &known.value, known.version, known.expires, &tags);
                    bench.writer.install(bench.version, hash, &from_disk, Install::Read, bench.now);
                    bench.control.commit(bench.version);
                }
            }
        }
        check(&bench, backed, &model, &keys, random);
    }
    let counts = bench.writer.counts();
    assert!(
        steps < 20_000 || counts.evicted > 0 && counts.promoted > 0 && counts.expired_dropped > 0,
        "nothing happened: {counts:?}"
    );
}

fn check(
    bench: &Bench,
    backed: Backed,
    model: &HashMap<Vec<u8>, Known>,
    keys: &[Vec<u8>],
    random: &mut fastrand::Rng,
) {
    let mut buffer = Vec::new();
    for key in keys {
        let outcome = bench.reader.get(bench.reader.hash(key), key, bench.now, &mut buffer);
        let alive =
            model.get(key).filter(|known| !known.gone && known.expires.is_none_or(|at| bench.now < at));
        match (&outcome, alive) {
            (Outcome::Hit(meta), Some(known)) => {
                assert_eq!((meta.version, meta.value(&buffer)), (known.version, &known.value[..]));
                assert_eq!(meta.freshness, Freshness::Fresh);
                assert_eq!(meta.expires, known.expires);
                assert!(meta.tags(&buffer).eq(known.tags.iter().map(|tag| tag.as_bytes())));
                if random.u8(..8) == 0 {
                    bench.writer.hits().touch(meta.place);
                }
            }
            (Outcome::Hit(meta), None) => panic!("{key:?} is gone and was served: {meta:?}"),
            (Outcome::Miss, Some(known)) => {
                assert_eq!(backed, Backed::Memory, "false miss of {key:?}: {known:?}")
            }
            (Outcome::Miss, None) => {}
            (Outcome::Ask(reason), _) => {
                assert!(matches!(reason, Reason::Mark | Reason::Forgot), "{reason:?}");
                // A memory cache marks only what its caller staged as too large.
                assert!(backed == Backed::Disk || *reason == Reason::Mark, "{reason:?}");
            }
        }
    }
}

#[test]
fn readers_see_the_newest_state_of_a_disk_backed_cache() {
    against_model(Backed::Disk, Geometry::exact(8, 64, 240, 288), steps(), &mut random());
}

#[test]
fn readers_see_the_newest_state_of_a_memory_cache() {
    against_model(Backed::Memory, Geometry::exact(12, 64, 240, 256), steps(), &mut random());
}

#[test]
fn roomy_index_loses_nothing() {
    against_model(Backed::Disk, Geometry::exact(64, 64, 240, 288), steps(), &mut random());
}

#[test]
fn expiry_and_stale_life_are_exact_to_the_millisecond() {
    let mut bench = Bench::new(Geometry::new(256 << 10, 0), Backed::Disk);
    let hash = bench.reader.hash(b"k");
    bench.commit(|writer, version, now| {
        let stale = NewItem { stale_for_ms: 50, ..item(b"k", b"v", version, Some(2_000), &[]) };
        assert!(writer.stage_put(version, hash, &stale, now));
    });
    for (now, expected) in [
        (1_999, Some(Freshness::Fresh)),
        (2_000, Some(Freshness::Stale)),
        (2_049, Some(Freshness::Stale)),
        (2_050, None),
    ] {
        bench.now = now;
        let freshness = match bench.get(b"k") {
            Outcome::Hit(meta) => Some(meta.freshness),
            Outcome::Miss | Outcome::Ask(_) => None,
        };
        assert_eq!(freshness, expected, "at {now}");
    }
}

#[test]
fn what_a_prefix_clear_made_stale_stays_so_when_the_clear_is_retired() {
    let mut bench = Bench::new(Geometry::new(256 << 10, 0), Backed::Memory);
    bench.put(b"a:1", b"v", None, &[b"t"]);
    bench.put(b"b:1", b"v", None, &[]);
    bench.commit(|writer, version, _| writer.stamp_prefix(version, b"a:", Effect::Stale).expect("the first"));
    bench.version += 1;
    assert!(bench.writer.sweep(bench.version, &mut SweepCursor::default(), 100, bench.now));
    bench.control.commit(bench.version);
    bench.commit(|writer, _, _| writer.retire_prefix(0));
    assert!(bench.writer.prefix_entries().is_empty());
    assert!(
        matches!(bench.get(b"a:1"), Outcome::Hit(meta) if meta.freshness == Freshness::Stale && meta.version == 2)
    );
    assert!(matches!(bench.get(b"b:1"), Outcome::Hit(meta) if meta.freshness == Freshness::Fresh));
}

#[test]
fn what_is_not_committed_is_not_seen() {
    let mut bench = Bench::new(Geometry::new(256 << 10, 0), Backed::Disk);
    bench.put(b"k", b"old", None, &[]);
    let hash = bench.reader.hash(b"k");
    bench.version += 1;
    let new = item(b"k", b"new", bench.version, None, &[]);
    assert!(bench.writer.stage_put(bench.version, hash, &new, bench.now));
    assert!(
        matches!(bench.get(b"k"), Outcome::Hit(meta) if meta.version == bench.version - 1),
        "staged is not published"
    );
    bench.writer.publish(bench.version);
    assert_eq!(
        bench.get(b"k"),
        Outcome::Ask(Reason::Lapped),
        "published is not committed: the daemon answers"
    );
    bench.control.commit(bench.version);
    assert!(matches!(bench.get(b"k"), Outcome::Hit(meta) if meta.version == bench.version));
}

#[test]
fn a_commit_larger_than_the_rings_leaves_marks_for_what_it_ran_over() {
    let mut bench = Bench::new(Geometry::exact(256, 2, 256, 512), Backed::Disk);
    let keys: Vec<String> = (0..200).map(|i| format!("key{i}")).collect();
    let hashes: Vec<u64> = keys.iter().map(|key| bench.reader.hash(key.as_bytes())).collect();
    bench.commit(|writer, version, now| {
        for (key, hash) in keys.iter().zip(&hashes) {
            assert!(writer.stage_put(
                version,
                *hash,
                &item(key.as_bytes(), &[7; 40], version, None, &[]),
                now
            ));
        }
    });
    let outcomes: Vec<Outcome> = keys.iter().map(|key| bench.get(key.as_bytes())).collect();
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Hit(_) | Outcome::Ask(Reason::Mark | Reason::Forgot)))
    );
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Outcome::Hit(_))));
}

/// Everything at once.
fn moved(old: &mut Writer, new: Writer, version: Version, now: BootMs) -> Writer {
    old.begin_move(new);
    old.finish_move(version, now)
}

/// Writes, removals and clears come between the steps of a move; in the end the successor says what the model says.
#[test]
fn what_changes_during_a_move_is_newest_in_the_successor() {
    let mut random = random();
    let large = Geometry::exact(480, 16, 2_000, 14_000);
    for round in 0..60 {
        let mut bench = Bench::new(Geometry::exact(240, 16, 2_000, 14_000), Backed::Memory);
        let mut model = HashMap::new();
        for _ in 0..random.usize(0..2_000) {
            change(&mut bench, &mut model, &mut random);
        }
        let words = Words::heap(large.bytes() / 8);
        let new = Writer::create(words, large, bench.writer.seed(), Backed::Memory, bench.version);
        bench.writer.begin_move(new);
        let mut done = false;
        while !done {
            // Up to twice as many as a step copies: what it began with is evicted before it gets there.
            for _ in 0..random.usize(0..40) {
                change(&mut bench, &mut model, &mut random);
            }
            bench.commit(|writer, version, now| done = writer.move_step(version, 20, now));
        }
        change(&mut bench, &mut model, &mut random);
        bench.version += 1;
        let mut new = bench.writer.finish_move(bench.version, bench.now);
        new.complete(bench.version);
        bench.control.commit(bench.version);
        let reader = new.reader(&bench.control);
        let mut held = 0;
        for key in 0..600_u32 {
            let (key, mut buffer) = (key.to_le_bytes(), Vec::new());
            match reader.get(reader.hash(&key), &key, bench.now, &mut buffer) {
                Outcome::Hit(meta) => {
                    assert_eq!(model.get(&key), meta.value(&buffer).first(), "round {round}, key {key:?}");
                    held += 1;
                }
                Outcome::Miss => {}
                other => panic!("round {round}, key {key:?}: {other:?}"),
            }
        }
        assert!(held >= model.len() / 4, "round {round}: {held} of {} were moved", model.len());
    }
}

fn change(bench: &mut Bench, model: &mut HashMap<[u8; 4], u8>, random: &mut fastrand::Rng) {
    let (key, value) = (random.u32(0..600).to_le_bytes(), random.u8(..));
    match random.u32(0..400) {
        0 => {
            bench.commit(|writer, version, _| writer.stamp_all(version, Effect::Gone));
            model.clear();
        }
        1..100 => {
            // As the engine does: what memory does not know is not removed.
            if bench.get(&key) != Outcome::Miss {
                let hash = bench.reader.hash(&key);
                bench.commit(|writer, version, _| writer.stage_remove(version, hash, &key));
            }
            model.remove(&key);
        }
        what => {
            let bytes = if what < 150 { 900 } else { 60 };
            bench.put(&key, &vec![value; bytes], None, &[]);
            model.insert(key, value);
        }
    }
}

#[test]
fn a_larger_segment_holds_what_the_smaller_one_held() {
    let mut bench = Bench::new(Geometry::exact(16, 16, 1_000, 9_000), Backed::Disk);
    for i in 0..90_u32 {
        bench.put(&i.to_le_bytes(), &[i as u8; 30], None, &[b"t"]);
    }
    bench.commit(|writer, version, _| writer.stamp_tag(version, tag_slot(b"other"), Effect::Gone));
    let geometry = Geometry::exact(64, 16, 1_000, 9_000);
    let new = Writer::create(Words::heap(geometry.bytes() / 8), geometry, 42, Backed::Disk, bench.version);
    bench.version += 1;
    let mut new = moved(&mut bench.writer, new, bench.version, bench.now);
    new.complete(bench.version);
    bench.control.commit(bench.version);
    let reader = new.reader(&bench.control);
    let held = (0..90_u32).filter(|i| matches!(bench.get(&i.to_le_bytes()), Outcome::Hit(_))).count();
    let copied = (0..90_u32).filter(|i| {
        let key = i.to_le_bytes();
        let mut buffer = Vec::new();
        let outcome = reader.get(reader.hash(&key), &key, bench.now, &mut buffer);
        matches!(&outcome, Outcome::Hit(meta) if meta.value(&buffer) == [*i as u8; 30])
    });
    assert!(held > 50 && copied.count() == held);
}

/// A successor once got a seed of its own. Marks are hashes of the old one: a key in the side store of a memory cache was a miss.
#[test]
fn a_larger_segment_knows_the_keys_that_are_only_marked() {
    let mut bench = Bench::new(Geometry::exact(16, 16, 1_000, 9_000), Backed::Memory);
    let hash = bench.reader.hash(b"large");
    bench.commit(|writer, version, _| writer.stage_mark(version, hash, b"large", Mark::Ask));
    let geometry = Geometry::exact(64, 16, 1_000, 9_000);
    let words = || Words::heap(geometry.bytes() / 8);
    let new = Writer::create(words(), geometry, bench.writer.seed(), Backed::Memory, bench.version);
    bench.version += 1;
    let mut new = moved(&mut bench.writer, new, bench.version, bench.now);
    new.complete(bench.version);
    bench.control.commit(bench.version);
    let reader = new.reader(&bench.control);
    let outcome = reader.get(reader.hash(b"large"), b"large", bench.now, &mut Vec::new());
    assert_eq!(outcome, Outcome::Ask(Reason::Side));
    let stranger = Writer::create(words(), geometry, bench.writer.seed() + 1, Backed::Memory, bench.version);
    let begun = std::panic::AssertUnwindSafe(|| bench.writer.begin_move(stranger));
    assert!(std::panic::catch_unwind(begun).is_err(), "another seed is refused");
}

#[test]
fn an_item_too_large_for_the_successor_is_missed_only_with_its_sequence() {
    let mut bench = Bench::new(Geometry::exact(16, 16, 1_000, 9_000), Backed::Memory);
    bench.put(b"k", &[1; 3_000], None, &[]);
    let geometry = Geometry::exact(16, 16, 1_000, 4_500);
    let words = Words::heap(geometry.bytes() / 8);
    let mut new = Writer::create(words, geometry, bench.writer.seed(), Backed::Memory, bench.version);
    new.complete(bench.version);
    let new = moved(&mut bench.writer, new, bench.version + 1, bench.now);
    let reader = new.reader(&bench.control);
    let get = || reader.get(reader.hash(b"k"), b"k", bench.now, &mut Vec::new());
    assert_eq!(get(), Outcome::Ask(Reason::Lapped), "not yet");
    bench.control.commit(bench.version + 1);
    assert_eq!(get(), Outcome::Miss);
}

#[test]
fn a_walk_in_hash_order_meets_everything_once() {
    let mut bench = Bench::new(Geometry::new(1 << 20, 0), Backed::Memory);
    for i in 0..1_000_u32 {
        bench.put(&i.to_le_bytes(), b"v", None, &[]);
    }
    let mut seen = Vec::new();
    let mut from = Some(0);
    while let Some(hash) = from {
        from = bench.writer.walk(hash, 10, bench.now, &mut |walked| {
            if let WalkItem::Item { key, .. } = walked {
                seen.push(key.to_vec());
            }
        });
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len() as u64, bench.writer.counts().items);
    assert!(seen.len() > 950);
}

#[test]
fn a_walk_goes_on_in_a_larger_segment_without_meeting_anything_twice() {
    let mut bench = Bench::new(Geometry::exact(240, 16, 4_000, 30_000), Backed::Memory);
    for i in 0..600_u32 {
        bench.put(&i.to_le_bytes(), b"v", None, &[]);
    }
    let all = bench.writer.counts().items as usize;
    let geometry = Geometry::exact(316, 16, 4_000, 30_000);
    let new = Writer::create(Words::heap(geometry.bytes() / 8), geometry, 42, Backed::Memory, bench.version);
    bench.version += 1;
    let new = moved(&mut bench.writer, new, bench.version, bench.now);
    assert_eq!(new.counts().items as usize, all);
    let mut from = Some(0);
    let mut seen = Vec::new();
    for step in 0.. {
        let Some(hash) = from else { break };
        let writer = if step % 2 == 0 { &bench.writer } else { &new };
        from = writer.walk(hash, 10, bench.now, &mut |walked| {
            if let WalkItem::Item { key, .. } = walked {
                seen.push(key.to_vec());
            }
        });
    }
    let visits = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((visits, seen.len()), (all, all));
}

#[test]
fn warm_up_stops_at_a_full_memory_and_reads_do_not() {
    let mut bench = Bench::new(Geometry::new(256 << 10, 0), Backed::Disk);
    let mut declined = None;
    for i in 0..100_000_u32 {
        bench.version += 1;
        let key = i.to_le_bytes();
        let hash = bench.reader.hash(&key);
        let installed = bench.writer.install(
            bench.version,
            hash,
            &item(&key, &[1; 64], 1, None, &[]),
            Install::WarmUp,
            bench.now,
        );
        bench.control.commit(bench.version);
        if installed == Installed::Declined {
            declined = Some(i);
            break;
        }
    }
    assert!(declined.is_some_and(|i| i > 500), "{declined:?}");
    assert_eq!(bench.writer.counts().evicted, 0);
    let hash = bench.reader.hash(b"asked for");
    let asked = item(b"asked for", &[1; 64], 1, None, &[]);
    bench.version += 1;
    assert_eq!(
        bench.writer.install(bench.version, hash, &asked, Install::Read, bench.now),
        Installed::Resident
    );
}

/// A value that says whose it is and is torn if it is not of one piece.
fn telling(key: u32, version: u64, bytes: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes);
    while value.len() < bytes {
        value
            .extend_from_slice(&(u64::from(key) ^ version.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    }
    value
}

#[test]
fn no_read_is_torn_while_the_ring_laps() {
    const KEYS: u32 = 16;
    let reads_wanted =
        std::env::var("KVD_READS").ok().and_then(|reads| reads.parse().ok()).unwrap_or(1_000_000_u64);
    let mut bench = Bench::new(Geometry::exact(16, 2, 128, 640), Backed::Disk);
    let done = AtomicBool::new(false);
    let (reads, hits) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = bench.reader.clone();
            let (done, reads, hits) = (&done, &reads, &hits);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                let mut newest = [0; KEYS as usize];
                while !done.load(Ordering::Relaxed) {
                    for key in 0..KEYS {
                        let bytes = key.to_le_bytes();
                        if let Outcome::Hit(meta) = reader.get(reader.hash(&bytes), &bytes, 0, &mut buffer) {
                            let value = meta.value(&buffer);
                            assert_eq!(value, telling(key, meta.version, value.len()), "torn");
                            assert!(meta.version >= newest[key as usize], "versions went back");
                            newest[key as usize] = meta.version;
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut random = random();
        while reads.load(Ordering::Relaxed) < reads_wanted {
            for _ in 0..64 {
                let key = random.u32(..KEYS);
                let value = telling(key, bench.version + 1, random.usize(1..32) * 8);
                bench.put(&key.to_le_bytes(), &value, None, &[]);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(
        hits.load(Ordering::Relaxed) > reads_wanted / 20,
        "{hits:?} hits of {reads:?}: nothing was tested"
    );
}

#[test]
fn memory_is_filled_before_anything_leaves_it() {
    let geometry = Geometry::new(1 << 20, 6_000);
    let mut bench = Bench::new(geometry, Backed::Memory);
    let mut put = 0_u64;
    while bench.writer.counts().evicted == 0 {
        bench.put(&put.to_le_bytes(), &[1; 100], None, &[]);
        put += 1;
    }
    let counts = bench.writer.counts();
    let used = counts.ring_bytes_used as usize;
    assert!(
        used > geometry.bytes() / 2 && counts.items + counts.forgotten + counts.evicted == put,
        "{counts:?} of {geometry:?}"
    );
}

#[test]
fn what_nobody_reads_does_not_displace_what_somebody_reads() {
    let geometry = Geometry::new(1 << 20, 6_000);
    let mut bench = Bench::new(geometry, Backed::Disk);
    let hot: Vec<[u8; 8]> = (0..2_000_u64).map(u64::to_be_bytes).collect();
    for key in &hot {
        bench.put(key, &[1; 100], None, &[]);
    }
    let mut buffer = Vec::new();
    // Ten times what memory holds passes by, while the hot keys are read now and then.
    for key in 0..60_000_u64 {
        bench.put(&(key | 1 << 40).to_le_bytes(), &[2; 100], None, &[]);
        let key = &hot[key as usize % hot.len()];
        if let Outcome::Hit(meta) = bench.reader.get(bench.reader.hash(key), key, bench.now, &mut buffer) {
            bench.writer.hits().touch(meta.place);
        }
    }
    let kept = hot.iter().filter(|key| matches!(bench.get(*key), Outcome::Hit(_))).count();
    assert!(kept > 1_900, "{kept} of 2,000 kept: {:?}", bench.writer.counts());
}

#[test]
fn one_hit_wonders_do_not_get_into_main() {
    let geometry = Geometry::new(1 << 20, 6_000);
    let mut bench = Bench::new(geometry, Backed::Disk);
    // Fill main with items of which some are read, then let a long scan pass, a few of whose items are read once.
    for key in 0..20_000_u64 {
        let bytes = key.to_le_bytes();
        bench.put(&bytes, &[1; 100], None, &[]);
        if key % 10 == 0
            && let Outcome::Hit(meta) = bench.get(&bytes)
        {
            bench.writer.hits().touch(meta.place);
        }
    }
    let before = bench.writer.counts();
    for key in 20_000..40_000_u64 {
        let bytes = key.to_le_bytes();
        bench.put(&bytes, &[1; 100], None, &[]);
        if key % 10 == 0
            && let Outcome::Hit(meta) = bench.get(&bytes)
        {
            bench.writer.hits().touch(meta.place);
        }
    }
    let after = bench.writer.counts();
    let promoted = after.promoted - before.promoted;
    assert!((1_500..2_100).contains(&promoted), "{promoted} of 2,000 read ones moved to main");
    let resident =
        (20_000..40_000_u64).filter(|key| matches!(bench.get(&key.to_le_bytes()), Outcome::Hit(_)));
    let unread_in_main = resident.filter(|key| key % 10 != 0 && *key < 38_500).count();
    assert!(unread_in_main < 100, "{unread_in_main} unread ones are in main");
}
