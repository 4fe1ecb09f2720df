//! Models of the segment: every order of loads and stores that the memory model allows, on the lines that ship.
//!
//! Run by `scripts/models`, and by `scripts/mutants` with one line of the protocol broken at a time. Sizes under loom are tiny:
//! an item is three words (head, version, payload), its payload says its key and its version, so that a torn one shows.
//! A model must never assert that memory answers: "ask the daemon" is always right, except where a model says otherwise.
#![cfg(loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kv_proto::segment::{
    Backed, Control, Freshness, Geometry, Mark, NewItem, Outcome, Reader, Reason, SegmentState, SweepCursor,
    Words, Writer,
};
use kv_proto::wire::Effect;
use kv_proto::{Version, hash_key, tag_slot};

const SEED: u64 = 42;
const NOW: i64 = 1_000;
/// Three-word items, of which a ring of this size holds four: probation has no gap.
const RING: usize = 12;

/// Runs a model to its end: there is one writer and readers store nothing, so that no bound on preemptions is needed.
fn model(body: impl Fn() + Send + Sync + 'static) {
    run(None, body);
}

/// As `model`, with at most two preemptions, for writers who take too many steps. Little is lost: a reader whose writer has
/// gone before may still be given any older value, and one preemption is enough to put the writer first.
fn bounded_model(body: impl Fn() + Send + Sync + 'static) {
    run(Some(2), body);
}

fn run(preemptions: Option<usize>, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 100_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        body();
    });
    let runs = runs.load(Ordering::Relaxed);
    println!("{runs} executions");
    assert!(runs > 10, "only {runs} executions: threads did not meet");
}

/// Key number `number` of those that lie in `bucket` of four.
fn key(bucket: u64, number: usize) -> [u8; 4] {
    let in_bucket = |key: &[u8; 4]| hash_key(SEED, key) >> 62 == bucket;
    (0_u32..).map(u32::to_le_bytes).filter(in_bucket).nth(number).expect("there are enough numbers")
}

/// The writer's side, with the sequence it is at.
struct Side {
    control: Arc<Control>,
    writer: Writer,
    version: Version,
}

impl Side {
    fn new(backed: Backed, geometry: Geometry) -> Side {
        let mut side = Side::incomplete(backed, geometry);
        side.writer.complete(1);
        side
    }

    fn small(backed: Backed) -> Side {
        Side::new(backed, Geometry::exact(4, 2, 4 * RING, 4 * RING))
    }

    fn incomplete(backed: Backed, geometry: Geometry) -> Side {
        let control = Control::private(1);
        control.commit(1);
        let writer = Writer::create(Words::heap(geometry.bytes() / 8), geometry, SEED, backed, 1);
        Side { control, writer, version: 1 }
    }

    fn reader(&self) -> Reader {
        self.writer.reader(&self.control)
    }

    fn commit(&mut self, stage: impl FnOnce(&mut Writer, Version)) {
        self.version += 1;
        stage(&mut self.writer, self.version);
        self.writer.publish(self.version);
        self.control.commit(self.version);
    }

    fn put(&mut self, key: [u8; 4]) {
        self.commit(|writer, version| put(writer, version, key, &[]));
    }
}

fn put(writer: &mut Writer, version: Version, key: [u8; 4], tags: &[&[u8]]) {
    let value = (version as u32).to_le_bytes();
    put_value(writer, version, key, &value, tags);
}

fn put_value(writer: &mut Writer, version: Version, key: [u8; 4], value: &[u8], tags: &[&[u8]]) {
    let life = NewItem {
        key: &key,
        value,
        version,
        created: 0,
        expires: None,
        stale_for_ms: 0,
        load_cost_ms: 0,
        stale: false,
        tags,
    };
    assert!(writer.stage_put(version, hash_key(SEED, &key), &life, NOW), "models put what fits");
}

/// What a single read saw; a torn item fails here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Version(Version),
    Miss,
    Ask(Reason),
}

fn get(reader: &Reader, key: [u8; 4]) -> Seen {
    let mut buffer = Vec::new();
    match reader.get(hash_key(SEED, &key), &key, NOW, &mut buffer) {
        Outcome::Hit(meta) => {
            assert_eq!(meta.value(&buffer)[..4], (meta.version as u32).to_le_bytes(), "torn");
            Seen::Version(meta.version)
        }
        Outcome::Miss => Seen::Miss,
        Outcome::Ask(reason) => Seen::Ask(reason),
    }
}

/// The sequence of a snapshot and the versions in it; `None` when memory could not tell.
fn get_many<const N: usize>(reader: &Reader, keys: [[u8; 4]; N]) -> Option<(Version, [Option<Version>; N])> {
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    let wanted: Vec<(u64, &[u8])> = keys.iter().map(|key| (hash_key(SEED, key), &key[..])).collect();
    let sequence = reader.get_many(&wanted, NOW, &mut buffer, &mut found).ok()?;
    let versions = std::array::from_fn(|i| {
        found[i].as_ref().map(|meta| {
            assert_eq!(meta.value(&buffer), (meta.version as u32).to_le_bytes(), "torn");
            meta.version
        })
    });
    Some((sequence, versions))
}

#[test]
fn two_single_reads_never_see_half_a_commit() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.put(b);
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                put(writer, version, a, &[]);
                put(writer, version, b, &[]);
            });
        });
        if get(&reader, a) == Seen::Version(4) {
            let second = get(&reader, b);
            assert!(matches!(second, Seen::Version(4) | Seen::Ask(_)), "new a, then {second:?}");
        }
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_snapshot_never_holds_half_a_commit() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.put(b);
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                put(writer, version, a, &[]);
                put(writer, version, b, &[]);
            });
        });
        if let Some((sequence, versions)) = get_many(&reader, [a, b]) {
            let whole = if sequence < 4 { [Some(2), Some(3)] } else { [Some(4), Some(4)] };
            assert_eq!(versions, whole, "as of {sequence}");
        }
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn an_item_is_never_torn_while_its_place_is_reused() {
    bounded_model(|| {
        let (a, b, c) = (key(0, 0), key(1, 0), key(2, 0));
        // Nine small items, then one so large that it lies over the first three without a step between.
        let mut side = Side::new(Backed::Disk, Geometry::exact(4, 2, 33, 64));
        side.put(a);
        for _ in 0..8 {
            side.put(b);
        }
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                // Its words are like those of a: what is copied from both looks like a, with the value of c.
                let payload = [(version as u32).to_le_bytes(), a].concat().repeat(6);
                put_value(writer, version, c, &payload[..44], &[]);
            });
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Version(2) | Seen::Ask(_)), "{seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_read_is_never_torn_nor_old_through_a_whole_lap() {
    bounded_model(|| {
        let a = key(0, 0);
        let mut side = Side::new(Backed::Disk, Geometry::exact(4, 2, RING, RING));
        side.put(a);
        let reader = side.reader();
        let control = Arc::clone(&side.control);
        let writer = loom::thread::spawn(move || {
            // Four have places: the fifth lies over the first.
            (0..5).for_each(|_| side.put(a));
        });
        let before = control.committed();
        let seen = get(&reader, a);
        assert!(
            matches!(seen, Seen::Version(version) if version >= before) || matches!(seen, Seen::Ask(_)),
            "{seen:?}"
        );
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn an_evicted_key_is_found_by_its_mark_at_the_second_start() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut side = Side::new(Backed::Disk, Geometry::exact(4, 2, RING, RING));
        side.put(a);
        (0..3).for_each(|_| side.put(b));
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            // Evicts a, once.
            side.put(b);
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Version(2) | Seen::Ask(Reason::Mark)), "{seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_kept_key_is_found_at_its_new_place_at_the_second_start() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut side = Side::new(Backed::Disk, Geometry::exact(4, 2, RING, RING));
        side.put(a);
        (0..3).for_each(|_| side.put(b));
        let reader = side.reader();
        let mut buffer = Vec::new();
        let Outcome::Hit(meta) = reader.get(hash_key(SEED, &a), &a, NOW, &mut buffer) else {
            panic!("a was just put")
        };
        side.writer.hits().touch(meta.place);
        let writer = loom::thread::spawn(move || {
            side.put(b);
            assert_eq!(side.writer.counts().promoted, 1);
        });
        assert_eq!(get(&reader, a), Seen::Version(2));
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_removal_and_a_put_of_one_commit_are_seen_together() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.put(b);
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                writer.stage_remove(version, hash_key(SEED, &a), &a);
                put(writer, version, b, &[]);
            });
        });
        if let Some((sequence, versions)) = get_many(&reader, [a, b]) {
            let whole = if sequence < 4 { [Some(2), Some(3)] } else { [None, Some(4)] };
            assert_eq!(versions, whole, "as of {sequence}");
        }
        if get(&reader, a) == Seen::Miss {
            let second = get(&reader, b);
            assert!(matches!(second, Seen::Version(4) | Seen::Ask(_)), "a is gone, then {second:?}");
        }
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_displaced_key_is_never_a_miss() {
    model(|| {
        let mut side = Side::small(Backed::Disk);
        side.commit(|writer, version| {
            for i in 0..7 {
                let key = key(0, i);
                writer.stage_mark(version, hash_key(SEED, &key), &key, Mark::Disk);
            }
        });
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            // The bucket is full: the first mark goes, and its bucket remembers that; also when another goes for good.
            side.put(key(0, 7));
            let last = key(0, 6);
            side.commit(|writer, version| writer.stage_remove(version, hash_key(SEED, &last), &last));
        });
        let seen = get(&reader, key(0, 0));
        assert!(matches!(seen, Seen::Ask(_)), "it is on disk, but {seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn an_untagged_item_is_never_gone_with_its_old_tag() {
    model(|| {
        let a = key(0, 0);
        let tags: [&[u8]; 1] = [b"t"];
        let mut side = Side::small(Backed::Memory);
        side.commit(|writer, version| put(writer, version, a, &tags));
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| put(writer, version, a, &tags));
            side.put(a);
            side.commit(|writer, version| writer.stamp_tag(version, tag_slot(b"t"), Effect::Gone));
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Version(_) | Seen::Ask(_)), "it always lives, but {seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn an_untagged_item_is_never_stale_with_its_old_tag() {
    model(|| {
        let a = key(0, 0);
        let tags: [&[u8]; 1] = [b"t"];
        let mut side = Side::small(Backed::Memory);
        side.commit(|writer, version| put(writer, version, a, &tags));
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| put(writer, version, a, &tags));
            side.put(a);
            side.commit(|writer, version| writer.stamp_tag(version, tag_slot(b"t"), Effect::Stale));
        });
        if let Outcome::Hit(meta) = reader.get(hash_key(SEED, &a), &a, NOW, &mut Vec::new()) {
            assert_eq!(meta.freshness, Freshness::Fresh, "it is stale at no time: version {}", meta.version);
        }
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn what_a_forgotten_prefix_cleared_never_comes_back() {
    model(|| {
        let a = key(0, 0);
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.commit(|writer, version| {
            writer.stamp_prefix(version, &a, Effect::Gone).expect("the table is empty")
        });
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                writer.sweep(version, &mut SweepCursor::default(), 10, NOW);
            });
            side.commit(|writer, _| writer.retire_prefix(0));
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Miss | Seen::Ask(_)), "it was cleared, but {seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

/// `clear` and a put of b in the same commit: whatever is read is of one sequence.
fn a_clear_is_seen_whole(clear: fn(&mut Writer, Version, [u8; 4])) {
    for is_single in [false, true] {
        model(move || {
            let (a, b) = (key(0, 0), key(1, 0));
            let mut side = Side::small(Backed::Memory);
            side.commit(|writer, version| put(writer, version, a, &[b"t"]));
            side.put(b);
            let reader = side.reader();
            let writer = loom::thread::spawn(move || {
                side.commit(|writer, version| {
                    clear(writer, version, a);
                    put(writer, version, b, &[]);
                });
            });
            if is_single {
                if get(&reader, a) == Seen::Miss {
                    let second = get(&reader, b);
                    assert!(matches!(second, Seen::Version(4) | Seen::Ask(_)), "a is gone, then {second:?}");
                }
            } else if let Some((sequence, versions)) = get_many(&reader, [a, b]) {
                let whole = if sequence < 4 { [Some(2), Some(3)] } else { [None, Some(4)] };
                assert_eq!(versions, whole, "as of {sequence}");
            }
            writer.join().expect("the writer's assertions hold");
        });
    }
}

#[test]
fn what_is_swept_was_gone_in_every_snapshot() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.put(b);
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                writer.stamp_all(version, Effect::Gone);
                put(writer, version, b, &[]);
            });
            side.commit(|writer, version| {
                writer.sweep(version, &mut SweepCursor::default(), 10, NOW);
            });
        });
        // b first: what a tells would otherwise make the new b visible.
        if let Some((sequence, versions)) = get_many(&reader, [b, a]) {
            let whole = if sequence < 4 { [Some(3), Some(2)] } else { [Some(4), None] };
            assert_eq!(versions, whole, "as of {sequence}");
        }
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_clear_of_everything_is_seen_whole() {
    a_clear_is_seen_whole(|writer, version, _| writer.stamp_all(version, Effect::Gone));
}

#[test]
fn a_clear_of_a_tag_is_seen_whole() {
    a_clear_is_seen_whole(|writer, version, _| writer.stamp_tag(version, tag_slot(b"t"), Effect::Gone));
}

#[test]
fn a_clear_of_a_prefix_is_seen_whole() {
    a_clear_is_seen_whole(|writer, version, a| {
        writer.stamp_prefix(version, &a, Effect::Gone).expect("the table is empty");
    });
}

#[test]
fn a_key_not_yet_enumerated_is_never_a_miss() {
    model(|| {
        let a = key(0, 0);
        let mut side = Side::incomplete(Backed::Disk, Geometry::exact(4, 2, RING, RING));
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| writer.install_mark(version, hash_key(SEED, &a), &a));
            side.commit(|writer, version| writer.complete(version));
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Ask(_)), "it is on disk, but {seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_replaced_segment_answers_for_nothing_newer() {
    model(|| {
        let (a, b) = (key(0, 0), key(1, 0));
        let mut old = Side::small(Backed::Memory);
        old.put(a);
        old.put(b);
        let reader = old.reader();
        let writer = loom::thread::spawn(move || {
            // The successor takes the same commits; here only the sequence matters.
            old.writer.set_state(SegmentState::Superseded);
            old.control.commit(4);
        });
        if let Some((sequence, versions)) = get_many(&reader, [a, b]) {
            assert!(sequence < 4, "{versions:?} are not of {sequence}");
        }
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn what_is_cleared_twice_never_comes_back() {
    model(|| {
        let a = key(0, 0);
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.commit(|writer, version| writer.stamp_all(version, Effect::Gone));
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| writer.stamp_all(version, Effect::Gone));
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Miss | Seen::Ask(_)), "it was cleared, but {seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

/// The entry of a prefix was once zero while its stamp was renewed: what it covered came back for a moment.
#[test]
fn what_a_prefix_covers_stays_covered_when_it_is_cleared_again() {
    model(|| {
        let a = key(0, 0);
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.commit(|writer, version| {
            writer.stamp_prefix(version, &a, Effect::Gone).expect("the table is empty")
        });
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.commit(|writer, version| {
                writer.stamp_prefix(version, &a, Effect::Gone).expect("it has its entry")
            });
        });
        let seen = get(&reader, a);
        assert!(matches!(seen, Seen::Miss | Seen::Ask(_)), "it was cleared, but {seen:?}");
        writer.join().expect("the writer's assertions hold");
    });
}

#[test]
fn a_prefix_entry_is_never_read_half_replaced() {
    bounded_model(|| {
        let a = key(0, 0);
        let mut side = Side::small(Backed::Memory);
        side.put(a);
        side.commit(|writer, version| {
            writer.stamp_prefix(version, b"none", Effect::Gone).expect("the table is empty")
        });
        let reader = side.reader();
        let writer = loom::thread::spawn(move || {
            side.writer.retire_prefix(0);
            side.commit(|writer, version| {
                writer.stamp_prefix(version, &a, Effect::Gone).expect("one entry was retired");
            });
        });
        if let Some((sequence, versions)) = get_many(&reader, [a]) {
            assert_eq!(versions, if sequence < 4 { [Some(2)] } else { [None] }, "as of {sequence}");
        }
        writer.join().expect("the writer's assertions hold");
    });
}
